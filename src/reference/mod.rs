//! Writes documents from the descriptions in the code: the JSON Schema, the annotated configuration
//! and the reference pages.
//!
//! Tests compare each committed file with what the code generates. After changing a description,
//! run `UPDATE_REFERENCE=1 cargo test --lib reference` and commit the files that it wrote. Only
//! tests use this module: the binary contains the committed schema.

use std::{env, fs, path::Path};

mod annotated;
mod configuration;
mod metrics;
mod policies;
mod schema;

/// Checks that a committed file equals `text`, or writes it if `UPDATE_REFERENCE` is set.
#[track_caller]
fn hold(file: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if env::var_os("UPDATE_REFERENCE").is_some() {
        fs::create_dir_all(path.parent().expect("a folder")).expect("to write");
        fs::write(&path, text).expect("to write");
        return;
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    let differs = committed.lines().zip(text.lines()).position(|(a, b)| a != b);
    let line = differs.unwrap_or(committed.lines().count().min(text.lines().count())) + 1;
    assert!(
        committed == text,
        "{file}:{line} differs from the code; run `UPDATE_REFERENCE=1 cargo test --lib reference` \
         and commit the change"
    );
}

/// Breaks `text` into lines of at most `columns` characters.
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
