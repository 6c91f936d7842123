//! Writes `deploy/tailwater.toml`: every key with its description and its default.

use std::fmt::Write as _;

use super::{hold, wrapped};
use crate::config::keys::{self, Described, Key};

const HEADER: &str = "\
# Every key of Tailwater with its default. A file needs only the keys that differ from their
# defaults, and at least one policy. Durations are strings (\"500ms\", \"30s\", \"1h 30m\"), sizes
# are integers with the unit in the key. In strings outside of policies, ${env:NAME} and
# ${env:NAME:-default} stand for environment variables. Paths are relative to this file.
# `tailwater check FILE` finds every mistake in a file without starting anything. This file is
# generated from the code; CONTRIBUTING.md says how.
";

const COLUMNS: usize = 110;

#[test]
fn the_annotated_configuration_is_what_the_code_says() {
    let mut text = HEADER.to_owned();
    for section in keys::sections().filter(|section| !section.keys.is_empty()) {
        text.push('\n');
        write_section(&mut text, section);
    }
    text.push_str("\n# The policies of policies/default.toml, which says what each costs.\n");
    let policies = include_str!("../../policies/default.toml");
    for table in policies.split("[[policy]]").skip(1) {
        text.push_str("\n[[policy]]");
        for line in table.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let _ = write!(text, "\n{line}");
        }
        text.push('\n');
    }
    hold("deploy/tailwater.toml", &text);
}

fn write_section(text: &mut String, section: &Described) {
    comment(text, section.words);
    let off = if section.is_optional { "# " } else { "" };
    if !section.path.is_empty() {
        let _ = writeln!(text, "{off}[{}]", section.path);
    }
    for key in section.keys {
        comment(text, key.words);
        let _ = writeln!(text, "{}", line(key, off));
    }
}

fn comment(text: &mut String, words: &str) {
    for line in wrapped(words, COLUMNS - 2) {
        let _ = writeln!(text, "# {line}");
    }
}

fn line(key: &Key, off: &str) -> String {
    match key.default() {
        Some(default) => format!("{off}{} = {default}", key.name),
        None => format!("# {} = {}", key.name, key.example),
    }
}
