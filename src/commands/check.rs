//! `tailwater check FILE...`: reports every problem in configurations, without starting anything.
//!
//! Loads each file, and the policy files that it names, as `run` would; a file named `*.test.toml`
//! is loaded as `test` would. `main` prints the report and sets the exit code. Files are checked
//! independently; a problem that two of them share is printed once.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use super::Format;
use crate::config::{self, Diagnostics};

/// The result of `check`.
#[derive(Debug, PartialEq)]
pub struct Report {
    /// The text to print, unchanged.
    pub text: String,
    /// Whether any file has an error, for which the exit code is 1. Warnings alone are fine.
    pub has_errors: bool,
}

/// Loads a file. Returns how many policies or tests it has, unless it has errors, and all problems.
fn load(file: &Path) -> (Option<String>, Diagnostics) {
    let counted = |count: usize, one: &str, more: &str| {
        format!("{count} {}", if count == 1 { one } else { more })
    };
    // Test files are kept beside policy files, so a shell pattern such as `*.toml` matches both.
    if file.as_os_str().as_encoded_bytes().ends_with(b".test.toml") {
        let loaded = config::load_tests(file);
        let tests = loaded.file.map(|file| counted(file.tests.len(), "test", "tests"));
        return (tests, loaded.diagnostics);
    }
    let loaded = config::load(file);
    let policies = loaded.config.map(|config| counted(config.policies.len(), "policy", "policies"));
    (policies, loaded.diagnostics)
}

/// Checks all files. Blocks on the file system.
pub fn check(files: &[PathBuf], format: Format) -> Report {
    let mut diagnostics = Diagnostics::default();
    let mut fine = String::new();
    for file in files {
        let (counted, problems) = load(file);
        diagnostics.merge(problems);
        if let Some(counted) = counted {
            let name = config::visible(&file.display().to_string());
            let _ = writeln!(fine, "{name}: ok, {counted}");
        }
    }
    let has_errors = diagnostics.has_errors();
    let text = match format {
        Format::Text if diagnostics.is_empty() || fine.is_empty() => format!("{diagnostics}{fine}"),
        Format::Text => format!("{diagnostics}\n{fine}"),
        Format::Json => {
            let json = serde_json::to_string(&diagnostics)
                .expect("diagnostics are strings and numbers, which always serialize");
            json + "\n"
        }
    };
    Report { text, has_errors }
}
