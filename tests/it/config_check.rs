//! Checks the configuration loader on any bytes. The fuzz target includes this file, so it refers
//! to nothing else of this binary.

use std::{fs, path::Path};

use tailwater::{config, policy::Plan};

/// Loads any bytes as a main file and, from the first NUL on, as its policy file. Nothing may
/// panic, every problem must have a place in its file and no control character, and a valid
/// configuration must compile. Returns whether it is valid.
pub(crate) fn config(bytes: &[u8], folder: &Path) -> bool {
    let (main, policies) = match bytes.iter().position(|byte| *byte == 0) {
        Some(nul) => (&bytes[..nul], &bytes[nul + 1..]),
        None => (bytes, &[][..]),
    };
    // Globs could match other files of the machine: `both` names the only one of this test.
    let names_files = main.windows(5).any(|window| window == b"files");
    let main = if names_files { &b""[..] } else { main };
    let both = [b"sampling.policy_files = [\"policies.toml\"]\n", main].concat();
    let write = |name: &str, text: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, text).expect("written");
        path
    };
    write("policies.toml", policies);
    let loads = [("main.toml", main), ("both.toml", &both)].map(|(name, text)| {
        let loaded = config::load(&write(name, text));
        let shown = loaded.diagnostics.to_string();
        assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
        for problem in loaded.diagnostics.iter() {
            let text = if problem.file.ends_with("policies.toml") { policies } else { text };
            assert_place(text, problem);
        }
        assert_eq!(loaded.config.is_none(), loaded.diagnostics.has_errors(), "{shown}");
        loaded.config.map(|config| Plan::compile(&config.policies)).is_some()
    });
    loads.contains(&true) | tests(&write("main.test.toml", main), main)
}

/// Loads any bytes as a file of policy tests. Returns whether it is valid.
fn tests(path: &Path, text: &[u8]) -> bool {
    let loaded = config::load_tests(path);
    let shown = loaded.diagnostics.to_string();
    assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
    let own = loaded.diagnostics.iter().filter(|problem| problem.file.ends_with("main.test.toml"));
    own.for_each(|problem| assert_place(text, problem));
    assert_eq!(loaded.file.is_none(), loaded.diagnostics.has_errors(), "{shown}");
    loaded.file.is_some()
}

/// Checks that the place is in the file, or directly after one of its lines.
fn assert_place(text: &[u8], problem: &config::Diagnostic) {
    let text = String::from_utf8_lossy(text);
    let line = text.split('\n').nth(problem.line.wrapping_sub(1));
    let line = line.unwrap_or_else(|| panic!("no such line: {problem}"));
    assert!((1..=line.chars().count() + 1).contains(&problem.column), "no such column: {problem}");
}
