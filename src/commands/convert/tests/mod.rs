//! Conversions of small files, and the diagnostics about each.

mod composites;
mod forms;
mod hostile;
mod mistakes;
mod ottl;
mod property;
mod types;
mod yaml;

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{Conversion, of_source, report::Report};
use crate::config::{self, Severity, Source};

/// The result of a conversion: policies in TOML, and diagnostics as `line:column: error: ...`.
pub(super) struct Converted {
    pub(super) toml: String,
    pub(super) said: Vec<String>,
}

impl Converted {
    /// The errors, without the notes.
    pub(super) fn errors(&self) -> Vec<&str> {
        self.said.iter().map(String::as_str).filter(|said| said.contains(" error: ")).collect()
    }

    /// Whether a diagnostic contains these words.
    pub(super) fn says(&self, words: &str) -> bool {
        self.said.iter().any(|said| said.contains(words))
    }

    /// The TOML from the first policy on, without empty lines.
    pub(super) fn policies(&self) -> String {
        let starts = ["\n[[policy]]", "\n# Not converted"].map(|start| self.toml.find(start));
        let start = starts.into_iter().flatten().min();
        let policies = start.map_or("", |start| &self.toml[start..]);
        policies.lines().filter(|line| !line.is_empty()).map(|line| format!("{line}\n")).collect()
    }
}

pub(super) fn convert(text: &str) -> Converted {
    convert_one(text, None)
}

pub(super) fn convert_one(text: &str, processor: Option<&str>) -> Converted {
    let file = Path::new("c.yaml");
    let report = Report::new(Source::new(file, text));
    let Conversion { toml, diagnostics } = of_source(report, file, processor);
    let said = diagnostics.iter().map(|d| {
        let severity = match d.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        format!("{}:{}: {severity}: {}", d.line, d.column, d.message)
    });
    let said = said.collect();
    if toml.contains("[[policy]]") {
        assert_checks(&toml);
    }
    Converted { toml, said }
}

/// A processor with one policy, whose lines begin in line 4, column 5.
pub(super) fn convert_policy(lines: &str) -> Converted {
    let lines: String = lines.lines().map(|line| format!("    {line}\n")).collect();
    convert(&format!("tail_sampling:\n  decision_cache: {{}}\n  policies:\n{lines}"))
}

/// A policy of a type, named `p`, with its block in flow style.
pub(super) fn of_type(kind: &str, block: &str) -> Converted {
    convert_policy(&format!("- name: p\n  type: {kind}\n  {kind}: {block}"))
}

/// Checks that `tailwater check` finds no error in a configuration.
fn assert_checks(toml: &str) {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("tailwater-convert-{}-{number}.toml", std::process::id());
    let path = std::env::temp_dir().join(name);
    fs::write(&path, toml).expect("written");
    let loaded = config::load(&path);
    fs::remove_file(&path).expect("removed");
    let has_errors = loaded.diagnostics.has_errors();
    assert!(!has_errors, "{}\n{toml}", loaded.diagnostics);
}
