//! Writes `docs/src/reference/configuration.md`: a table of keys for each section.

use std::fmt::Write as _;

use super::hold;
use crate::config::keys::{self, Key, Kind, Need};

const HEADER: &str = "\
# Configuration reference

Every key of `tailwater.toml`. A file needs only what differs from the defaults, and at least one
[policy](policies.md). Unknown keys are errors. Paths are relative to the file that names them.
Durations are strings such as `\"500ms\"`, `\"30s\"` or `\"1h 30m\"`; sizes are integers with the
unit in the key. `${env:NAME}` and `${env:NAME:-default}` stand for environment variables in every
string outside of policies.

`deploy/tailwater.toml` is the same as a file to start from, and `tailwater check FILE` finds every
mistake in a file without starting anything. Only policies are read again on a reload; every other
key needs a restart.
";

#[test]
fn the_page_of_the_configuration_is_what_the_code_says() {
    let mut page = HEADER.to_owned();
    for section in keys::sections() {
        let title = match section.path {
            "" => "Top of the file".to_owned(),
            path => format!("`[{path}]`"),
        };
        let _ = writeln!(page, "\n## {title}");
        if !section.words.is_empty() {
            let _ = writeln!(page, "\n{}", section.words);
        }
        if section.keys.is_empty() {
            continue;
        }
        page.push_str("\n| key | type | default | meaning |\n|---|---|---|---|\n");
        for key in section.keys {
            let default = match (key.default(), key.need) {
                (Some(default), _) => format!("`{default}`"),
                (None, Need::Required) => "required".to_owned(),
                (None, Need::With(other)) => format!("required with `{other}`"),
                (None, Need::Optional) => "unset".to_owned(),
            };
            let words = key.words.replace('|', "\\|");
            let _ = writeln!(page, "| `{}` | {} | {default} | {words} |", key.name, kind(key));
        }
    }
    hold("docs/src/reference/configuration.md", &page);
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("`\"{word}\"`")).collect::<Vec<_>>().join(", ")
}

/// The type of a key and its bounds, as text.
pub(super) fn kind(key: &Key) -> String {
    match key.kind {
        Kind::Boolean { .. } => "boolean".to_owned(),
        Kind::Integer { min, max, .. } => format!("integer, {min} to {max}"),
        Kind::Duration { min, max, .. } => {
            let [min, max] = [min, max].map(humantime::format_duration);
            format!("duration, {min} to {max}")
        }
        Kind::Word { words, .. } => quoted(words),
        Kind::Listener { .. } => "`host:port`".to_owned(),
        Kind::UrlPath { .. } => "path of a URL".to_owned(),
        Kind::Url { .. } => "URL".to_owned(),
        Kind::Path => "path".to_owned(),
        Kind::Text { .. } => "string".to_owned(),
        Kind::Texts | Kind::Strings { .. } => "list of strings".to_owned(),
        Kind::Words(words) | Kind::WordsOr { words, .. } => {
            format!("list of {}", quoted(words))
        }
        Kind::Truth => "boolean".to_owned(),
        Kind::Number => "number".to_owned(),
        Kind::AboveZero => "number above 0".to_owned(),
        Kind::Percentage => "number, 0 to 100".to_owned(),
        Kind::Fraction => "number, 0 to 1".to_owned(),
        Kind::DateTime => "date and time".to_owned(),
        Kind::Policy => "nameless policy".to_owned(),
        Kind::Policies => "list of nameless policies".to_owned(),
        Kind::Limit => "limit".to_owned(),
        Kind::Headers => "table of strings".to_owned(),
    }
}
