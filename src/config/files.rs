//! Reads configuration files, and finds the files that `policy_files` names.
//!
//! Globs are matched against a walk of the directories that they can reach. Entries that start with
//! a dot are skipped, and directories behind symbolic links are not entered: Kubernetes mounts a
//! ConfigMap as links into a hidden directory, so every file would be found twice. Bounds: 1 MiB
//! for a file, 16 levels for `**`, 10,000 entries for a walk.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read as _},
    path::{Component, Path, PathBuf},
};

use globset::GlobBuilder;

use super::{
    diagnostics::{Diagnostic, Diagnostics, Problem, Severity, quote},
    source::Source,
};
use crate::changes::{self, Digest};

const FILE_BYTES_MAX: u64 = 1 << 20;
const GLOB_DEPTH_MAX: usize = 16;
const WALK_ENTRIES_MAX: usize = 10_000;

/// Why a file cannot be parsed.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// The file cannot be read. The problem is reported where the file is named.
    Closed(Problem),
    /// The file is not UTF-8. The problem is reported inside the file.
    NotText(Box<Diagnostic>),
}

/// Reads a file of at most 1 MiB.
pub(super) fn read(path: &Path) -> Result<Source, Unreadable> {
    text(path, bytes(path))
}

/// Reads a file of at most 1 MiB, and returns its digest too.
pub(super) fn read_with_digest(path: &Path) -> (Digest, Result<Source, Unreadable>) {
    let bytes = bytes(path);
    (digest_of(path, &bytes), text(path, bytes))
}

/// The digest of a file as it is now.
pub(super) fn digest(path: &Path) -> Digest {
    digest_of(path, &bytes(path))
}

fn digest_of(path: &Path, bytes: &Result<Vec<u8>, Problem>) -> Digest {
    match bytes {
        Ok(bytes) => changes::digest(path, Ok(bytes)),
        Err(problem) => changes::digest(path, Err(&problem.message)),
    }
}

fn bytes(path: &Path) -> Result<Vec<u8>, Problem> {
    let closed = |error: io::Error| unreadable(path, &error);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(closed)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(closed)?;
    check_size(path, bytes.len())?;
    Ok(bytes)
}

fn text(path: &Path, bytes: Result<Vec<u8>, Problem>) -> Result<Source, Unreadable> {
    let bytes = bytes.map_err(Unreadable::Closed)?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Source::new(path, text)),
        Err(error) => {
            let source = Source::new(path, &String::from_utf8_lossy(&bytes));
            let bom = if bytes.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
            let at = error.valid_up_to().saturating_sub(bom);
            let problem = Problem::new("the file is not UTF-8");
            Err(Unreadable::NotText(Box::new(source.diagnose(
                at..at + 1,
                Severity::Error,
                problem,
            ))))
        }
    }
}

/// A source from a text that was sent, of at most 1 MiB.
pub(super) fn sized(path: &Path, text: &str) -> Result<Source, Problem> {
    check_size(path, text.len())?;
    Ok(Source::new(path, text))
}

fn check_size(path: &Path, bytes: usize) -> Result<(), Problem> {
    if bytes as u64 <= FILE_BYTES_MAX {
        return Ok(());
    }
    Err(Problem::new(format!("{} is larger than 1 MiB", quote(&path.display().to_string()))))
}

/// Reads any file of at most 1 MiB, or returns why it cannot be read.
pub(crate) fn read_text(path: &Path) -> Result<Source, Diagnostics> {
    let mut diagnostics = Diagnostics::default();
    match read(path) {
        Ok(source) => return Ok(source),
        Err(Unreadable::Closed(problem)) => {
            diagnostics.push(Source::new(path, "").whole(Severity::Error, problem));
        }
        Err(Unreadable::NotText(diagnostic)) => diagnostics.push(*diagnostic),
    }
    Err(diagnostics)
}

fn unreadable(path: &Path, error: &io::Error) -> Problem {
    let problem =
        Problem::new(format!("cannot read {}: {error}", quote(&path.display().to_string())));
    match error.kind() {
        ErrorKind::IsADirectory => {
            problem.hint("to read every file in it write `*.toml` behind it")
        }
        _ => problem,
    }
}

/// The files that one entry of `policy_files` names, relative to the directory of `naming_file`. A
/// glob never yields `naming_file` itself, nor test files (`*.test.toml`), which are kept beside
/// policies. A path without wildcards is returned unchanged; a glob may match no file at all.
pub(super) fn named(pattern: &str, naming_file: &Path) -> Result<Vec<PathBuf>, Problem> {
    let base = naming_file.parent().unwrap_or(Path::new(""));
    let has_wildcard = |part: &str| part.contains(['*', '?', '[', '{']);
    if pattern.is_empty() {
        return Err(Problem::new("the path is empty"));
    }
    if !has_wildcard(pattern) {
        return Ok(vec![plain(&base.join(pattern))]);
    }

    let glob_start = match pattern.find(['*', '?', '[', '{']) {
        Some(wildcard) => pattern[..wildcard].rfind('/').map_or(0, |slash| slash + 1),
        None => 0,
    };
    let (directory, glob) = pattern.split_at(glob_start);
    let matcher = GlobBuilder::new(glob)
        .literal_separator(true)
        .build()
        .map_err(|error| {
            Problem::new(format!("{} is not a glob: {}", quote(pattern), error.kind()))
        })?
        .compile_matcher();
    let root = plain(&base.join(directory));
    let depth = if glob.contains("**") { GLOB_DEPTH_MAX } else { glob.matches('/').count() };
    let mut walk = Walk { entries: 0, files: Vec::new() };
    walk.directory(&root, depth)?;

    let naming_file = plain(naming_file);
    let is_named = |file: &PathBuf| {
        *file != naming_file
            && !file.as_os_str().as_encoded_bytes().ends_with(b".test.toml")
            && file.strip_prefix(&root).is_ok_and(|rest| matcher.is_match(rest))
    };
    Ok(walk.files.into_iter().filter(is_named).collect())
}

/// Removes `.` components from `path`, so that a file has one name however it was spelled.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|component| *component != Component::CurDir).collect()
}

struct Walk {
    entries: usize,
    files: Vec<PathBuf>,
}

impl Walk {
    /// Collects the files of `directory`, and of directories up to `depth` levels below it.
    fn directory(&mut self, directory: &Path, depth: usize) -> Result<(), Problem> {
        let opened = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        let entries = match fs::read_dir(opened) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(unreadable(opened, &error)),
        };
        for entry in entries {
            let entry = entry.map_err(|error| unreadable(opened, &error))?;
            self.entries += 1;
            if self.entries > WALK_ENTRIES_MAX {
                return Err(Problem::new("the glob reaches more than 10,000 files")
                    .hint("start it with a directory that holds only policies"));
            }
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = directory.join(entry.file_name());
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && depth > 0 => self.directory(&path, depth - 1)?,
                Ok(kind) if kind.is_dir() => {}
                // A link to a directory is not a file either; a broken link is reported when it is
                // read.
                _ if path.is_dir() => {}
                _ => self.files.push(path),
            }
        }
        Ok(())
    }
}
