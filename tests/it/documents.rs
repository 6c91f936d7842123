//! Checks the README and the book: their configurations work, their pages are linked, and they are
//! short enough to read.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tailwater::commands::{Format, check::check};

use crate::harness::Directory;

/// A block of TOML in a document.
struct Block {
    /// The document and the line of its fence.
    place: String,
    is_fragment: bool,
    text: String,
}

fn read(file: &Path) -> String {
    fs::read_to_string(root().join(file)).expect("readable")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The pages of the book, relative to the repository.
fn pages() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("docs/src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).expect("readable") {
            let entry = entry.expect("readable");
            let path = folder.join(entry.file_name());
            if entry.path().is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(found.len() > 10, "found only {found:?}");
    found
}

/// The blocks of TOML in a document. Blocks in other languages are skipped. A block without a
/// language is an error, because it may be TOML that nobody checks.
fn blocks(file: &Path) -> Vec<Block> {
    let text = read(file);
    let mut lines = text.lines().enumerate();
    let mut found = Vec::new();
    while let Some((index, line)) = lines.next() {
        let Some(language) = line.trim_start().strip_prefix("```") else { continue };
        let place = format!("{}:{}", file.display(), index + 1);
        let text: Vec<&str> = lines
            .by_ref()
            .map(|(_, line)| line)
            .take_while(|line| line.trim_start() != "```")
            .collect();
        let is_fragment = match language {
            "toml" => false,
            "toml,fragment" => true,
            _ => {
                assert!(
                    !language.is_empty() && !language.contains("toml"),
                    "{place}: {language:?}"
                );
                continue;
            }
        };
        found.push(Block { place, is_fragment, text: text.join("\n") + "\n" });
    }
    found
}

/// Scenario: every block of TOML in the README and the book.
/// Guarantees: a whole configuration passes `tailwater check` by itself, and a fragment is TOML.
#[test]
fn configurations_in_documents_work() {
    let documents = [PathBuf::from("README.md")].into_iter().chain(pages());
    let found: Vec<Block> = documents.flat_map(|document| blocks(&document)).collect();
    assert!(found.iter().filter(|block| !block.is_fragment).count() > 20);
    let directory = Directory::new();
    for Block { place, is_fragment, text } in found {
        if is_fragment {
            let parsed = toml::from_str::<toml::Table>(&text);
            assert!(parsed.is_ok(), "{place}: {}", parsed.expect_err("an error"));
        } else {
            let file = directory.file("document.toml", &text);
            let report = check(&[file.into()], Format::Text);
            assert!(!report.has_errors, "{place}: {}", report.text);
        }
    }
}

/// Scenario: the pages of the book and its summary.
/// Guarantees: the summary lists every page, and every page that it lists exists.
#[test]
fn every_page_is_in_the_summary() {
    let summary = read(Path::new("docs/src/SUMMARY.md"));
    let linked: Vec<PathBuf> = summary
        .split("](")
        .skip(1)
        .map(|rest| Path::new("docs/src").join(rest.split(')').next().unwrap_or_default()))
        .collect();
    let pages = pages();
    for page in pages.iter().filter(|page| !page.ends_with("SUMMARY.md")) {
        assert!(linked.contains(page), "{} is not in SUMMARY.md", page.display());
    }
    for page in &linked {
        assert!(pages.contains(page), "SUMMARY.md names {}, which is not there", page.display());
    }
}

/// Scenario: the documents that people read as a whole.
/// Guarantees: they are short enough.
#[test]
fn documents_are_short() {
    for (file, lines_max) in [("README.md", 150), ("ARCHITECTURE.md", 300)] {
        let lines = read(Path::new(file)).lines().count();
        assert!(lines <= lines_max, "{file} has {lines} lines of {lines_max}");
    }
}

/// Scenario: every metric that a document, a dashboard or an alert names.
/// Guarantees: it is in the reference, which is generated from the code, or belongs to a feature
/// that the tests of the dashboards leave out too.
#[test]
fn metrics_in_documents_exist() {
    let reference = read(Path::new("docs/src/reference/metrics.md"));
    let off = read(Path::new("tests/dashboards/features-off.txt"));
    let off: Vec<&str> = off.lines().filter(|line| line.starts_with("tailwater_")).collect();
    let others = [
        "README.md",
        "ARCHITECTURE.md",
        "RELIABILITY.md",
        "SECURITY.md",
        "policies/README.md",
        "deploy/grafana/dashboards/overview.json",
        "deploy/grafana/dashboards/policies.json",
        "deploy/grafana/dashboards/resources.json",
        "deploy/prometheus/tailwater-alerts.yml",
    ];
    let mut count = 0;
    for document in others.map(PathBuf::from).into_iter().chain(pages()) {
        let text = read(&document);
        for (at, _) in text.match_indices("tailwater_") {
            let is_of_name = |c: char| c.is_ascii_lowercase() || c == '_';
            let end = text[at..].find(|c| !is_of_name(c)).unwrap_or(text.len() - at);
            let name = &text[at..at + end];
            // The series of a histogram.
            let of = ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end));
            let is_described =
                [Some(name), of].iter().flatten().any(|n| reference.contains(&format!("`{n}`")));
            let is_off = off.iter().any(|feature| name.starts_with(feature));
            assert!(is_described || is_off, "{}: there is no {name}", document.display());
            count += 1;
        }
    }
    assert!(count > 50, "found only {count}");
}
