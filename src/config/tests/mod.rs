//! Diagnostics and defaults of the whole of `config`: files and the result of loading them.

use std::{env::VarError, path::Path};

use super::{
    Config, Diagnostics,
    load::{self, Host, Loaded},
    memory::MemoryLimit,
    reader::KnownKeys,
    source::Source,
};

mod conditions;
mod credentials;
mod expires;
pub(super) mod files;
mod hints;
mod kinds;
mod limits;
mod policies;
mod review;
mod schema;
mod sections;
mod shadow;
mod span_metrics;
mod text;

/// A policy that makes a file complete.
const POLICY: &str = "[[policy]]\nname = 'p'\ntype = 'always_sample'\n";

fn host() -> Host {
    let variable = |name: &str| match name {
        "PORT" => Ok("4444".to_owned()),
        "SECRET" => Ok("s3cret".to_owned()),
        "ESCAPE" => Ok("\u{1b}[31m".to_owned()),
        _ => Err(VarError::NotPresent),
    };
    // 2026-11-21T00:00:00Z.
    let now = 1_795_219_200_000;
    Host { variable, memory_default: MemoryLimit::configured(1 << 30), now }
}

fn parse(text: &str) -> (Loaded, KnownKeys) {
    let path = Path::new("t.toml");
    load::parse(&Source::new(path, text), path, host())
}

/// The configuration of a file without any problem.
#[track_caller]
fn config(text: &str) -> Config {
    let (loaded, _) = parse(text);
    assert!(loaded.diagnostics.is_empty(), "{}", loaded.diagnostics);
    loaded.config.expect("no diagnostics")
}

/// One line for each problem: `line:column: severity: message`, and ` | hint` if there is one.
fn lines(diagnostics: &Diagnostics) -> Vec<String> {
    let line = |d: &super::Diagnostic| {
        let hint = d.hint.as_ref().map(|hint| format!(" | {hint}")).unwrap_or_default();
        format!("{}:{}: {}: {}{hint}", d.line, d.column, d.severity, d.message)
    };
    diagnostics.iter().map(line).collect()
}

fn problems(text: &str) -> Vec<String> {
    let (loaded, _) = parse(text);
    assert_eq!(loaded.config.is_none(), loaded.diagnostics.has_errors(), "{text}");
    lines(&loaded.diagnostics)
}

/// A file with one named policy with these lines, which start at line 3.
fn policy(lines: &str) -> String {
    format!("[[policy]]\nname = 'p'\n{lines}\n")
}

#[track_caller]
fn each_policy_has_one_problem(cases: &[(&str, &str)]) {
    for (lines, expected) in cases {
        each_has_one_problem(&[(&policy(lines), expected)]);
    }
}

/// Checks that each file has exactly one problem.
#[track_caller]
fn each_has_one_problem(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        assert_eq!(problems(text), [*expected], "{text}");
    }
}
