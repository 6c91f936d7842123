//! The problems of a configuration, and how they are shown to people and tools.
//!
//! A [`Diagnostic`] owns everything it needs (its place, its message and the line it is about), so
//! that it outlives the file. Text from files is made visible when a diagnostic is built: no escape
//! sequence of a file reaches a terminal, whether it is printed as text or as JSON. A list holds at
//! most [`DIAGNOSTICS_MAX`] of them, because a file of 1 MiB has room for a hundred thousand
//! mistakes and nobody reads past the first screen.

use std::fmt;

use serde::Serialize;

use super::source::Snippet;

/// The most diagnostics kept of one load; later ones are only counted.
const DIAGNOSTICS_MAX: usize = 1_000;

/// The most characters of a file that a message quotes at once.
const QUOTE_CHARS_MAX: usize = 60;

/// Whether a configuration can be used in spite of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// The configuration is used, but probably does not say what was meant.
    Warning,
    /// A remark; nothing is wrong.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        })
    }
}

/// One problem and its place.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diagnostic {
    /// The file as the user or another file named it.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Whether this refuses the configuration.
    pub severity: Severity,
    /// The problem, in one line.
    pub message: String,
    /// The remedy, if known.
    pub hint: Option<String>,
    /// The line that the problem is about; `None` if it is about a whole file.
    #[serde(skip)]
    pub(super) snippet: Option<Snippet>,
}

impl Diagnostic {
    /// Another problem at the same place.
    pub(crate) fn saying(self, problem: Problem) -> Self {
        let hint = problem.hint.as_deref().map(visible);
        Diagnostic { message: visible(&problem.message), hint, ..self }
    }

    /// `file:line:column: error: message`.
    pub(crate) fn summary(&self) -> String {
        let Diagnostic { file, line, column, severity, message, .. } = self;
        format!("{file}:{line}:{column}: {severity}: {message}")
    }
}

impl fmt::Display for Diagnostic {
    /// Writes `file:line:column: error: message`, the line with the problem underlined, and `help:
    /// ...`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.summary())?;
        if let Some(Snippet { text, indent, width }) = &self.snippet {
            let line = self.line;
            let gutter = line.to_string().len();
            writeln!(f, "{:gutter$} |", "")?;
            writeln!(f, "{line} | {text}")?;
            writeln!(f, "{:gutter$} | {:indent$}{:^<width$}", "", "", "")?;
        }
        match &self.hint {
            Some(hint) => writeln!(f, "help: {hint}"),
            None => Ok(()),
        }
    }
}

/// All problems of a configuration, sorted by file, line and column once loading has ended.
///
/// `Display` writes the output of `tailwater check`, serialization that of `--format json`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Diagnostics {
    diagnostics: Vec<Diagnostic>,
    #[serde(skip)]
    omitted: usize,
    #[serde(skip)]
    has_errors: bool,
}

impl Diagnostics {
    /// The problems, at most 1,000.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.diagnostics.iter()
    }

    /// Whether there is neither an error nor a warning.
    pub fn is_empty(&self) -> bool {
        self.diagnostics.is_empty()
    }

    /// The number of problems beyond those.
    pub(crate) fn omitted(&self) -> usize {
        self.omitted
    }

    /// The errors among them, each in one line.
    pub(crate) fn errors(&self) -> Vec<String> {
        let errors = self.iter().filter(|diagnostic| diagnostic.severity == Severity::Error);
        errors.map(Diagnostic::summary).collect()
    }

    /// Whether any problem, listed or omitted, is an error.
    pub fn has_errors(&self) -> bool {
        self.has_errors
    }

    /// Adds the problems of another load; a problem that both loads found is kept once.
    pub(crate) fn merge(&mut self, other: Diagnostics) {
        self.omitted += other.omitted;
        self.has_errors |= other.has_errors;
        for diagnostic in other.diagnostics {
            self.push(diagnostic);
        }
        self.sort();
    }

    pub(crate) fn push(&mut self, diagnostic: Diagnostic) {
        self.has_errors |= diagnostic.severity == Severity::Error;
        if self.diagnostics.len() < DIAGNOSTICS_MAX {
            self.diagnostics.push(diagnostic);
        } else {
            self.omitted += 1;
        }
    }

    /// Sorts and removes repetitions. Problems at one place keep the order in which they were
    /// found.
    pub(crate) fn sort(&mut self) {
        self.diagnostics
            .sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        self.diagnostics.dedup();
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.diagnostics.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            diagnostic.fmt(f)?;
        }
        if self.omitted > 0 {
            writeln!(f, "\n... and {} more", self.omitted)?;
        }
        Ok(())
    }
}

/// A problem whose place is not known yet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Problem {
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl Problem {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Problem { message: message.into(), hint: None }
    }

    /// Adds advice about what to do.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        self.maybe_hint(Some(hint.into()))
    }

    /// The problem, in one line.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(super) fn maybe_hint(self, hint: Option<String>) -> Self {
        Problem { hint, ..self }
    }
}

/// Quotes text of a file for a message: in backticks, and shortened if it is long.
pub(super) fn quote(text: &str) -> String {
    match text.char_indices().nth(QUOTE_CHARS_MAX) {
        Some((end, _)) => format!("`{}…`", &text[..end]),
        None => format!("`{text}`"),
    }
}

/// Replaces everything in `text` that could control a terminal or reorder its text.
pub(crate) fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    text.chars().for_each(|c| push_visible(&mut out, c));
    out
}

/// Appends one character of [`visible`] text. A tab becomes one space, so that columns stay
/// aligned.
pub(super) fn push_visible(out: &mut String, c: char) {
    match c {
        '\t' => out.push(' '),
        // Direction marks and overrides, and separators that some terminals treat as a new line.
        '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}'
        | '\u{feff}' => {
            out.extend(c.escape_unicode());
        }
        c if c.is_control() => out.extend(c.escape_unicode()),
        c => out.push(c),
    }
}

/// The candidate that `text` probably means, if any is close.
pub(super) fn nearest<'a>(
    text: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    // Comparing costs the product of both lengths; all keys and names are much shorter than this.
    if text.len() > 100 {
        return None;
    }
    let text = text.to_lowercase();
    let candidates: Vec<&str> = candidates.into_iter().collect();
    let alike = candidates
        .iter()
        .map(|candidate| (strsim::jaro_winkler(&text, &candidate.to_lowercase()), *candidate))
        .filter(|(likeness, _)| *likeness >= 0.85)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate);
    alike.or_else(|| only_one_with_part(&text, &candidates))
}

/// The only candidate that is a part of `text`, or that contains it: `percentage` is short for
/// `sampling_percentage`, `STATUS_CODE_ERROR` long for `ERROR`. `None` if there are several.
fn only_one_with_part<'a>(text: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let framed = |text: &str| format!("_{}_", text.to_lowercase());
    let text = framed(text);
    let fits = |candidate: &&&str| {
        let candidate = framed(candidate);
        candidate.contains(&text) || text.contains(&candidate)
    };
    let mut fitting = candidates.iter().filter(fits);
    fitting.next().filter(|_| fitting.next().is_none()).copied()
}

/// A hint that suggests [`nearest`].
pub(super) fn did_you_mean<'a>(
    text: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    nearest(text, candidates).map(|candidate| format!("did you mean `{candidate}`?"))
}
