//! The text of one file, and the conversion of byte offsets to lines and columns.
//!
//! Columns count characters, not bytes; lines end with LF or CRLF; a byte order mark is not
//! counted. Offsets come from the TOML parser. An invalid offset (past the end, or inside a
//! character) is moved back to the nearest valid one and never panics.

use std::{collections::BTreeSet, ops::Range, path::Path};

use ring::digest;

use super::{
    diagnostics::{Diagnostic, Problem, Severity, push_visible, visible},
    hidden::hidden_lines,
};

/// The most characters of a line that a snippet shows.
const SNIPPET_CHARS_MAX: usize = 140;

/// The characters shown before the problem if the line is longer than that.
const SNIPPET_CHARS_BEFORE: usize = 40;

/// A file that has been read.
#[derive(Debug)]
pub(crate) struct Source {
    name: String,
    text: String,
    has_bom: bool,
    /// Byte offset at which each line starts; never empty.
    line_starts: Vec<usize>,
    /// Lines that may hold a secret and must not be shown.
    hidden_lines: BTreeSet<usize>,
}

/// The line that a diagnostic is about, ready to print.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Snippet {
    pub(super) text: String,
    /// Columns before the underline.
    pub(super) indent: usize,
    /// Columns to underline, at least 1.
    pub(super) width: usize,
}

impl Source {
    pub(crate) fn new(name: &Path, text: &str) -> Self {
        let (text, has_bom) = match text.strip_prefix('\u{feff}') {
            Some(text) => (text, true),
            None => (text, false),
        };
        let line_ends = text.match_indices('\n').map(|(at, _)| at + 1);
        let line_starts: Vec<usize> = std::iter::once(0).chain(line_ends).collect();
        Source {
            name: visible(&name.display().to_string()),
            text: text.to_owned(),
            has_bom,
            hidden_lines: hidden_lines(text, |offset| line_of(&line_starts, offset)),
            line_starts,
        }
    }

    /// The text for the TOML parser; all spans are offsets into it.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Adds the bytes of the file to a hash.
    pub(super) fn hash(&self, hash: &mut digest::Context) {
        if self.has_bom {
            hash.update("\u{feff}".as_bytes());
        }
        hash.update(self.text.as_bytes());
    }

    /// The name, and the text with secrets hidden.
    pub(super) fn shown(&self) -> (String, String) {
        let mut text = String::with_capacity(self.text.len());
        for (number, line) in self.text.lines().enumerate() {
            if self.hidden_lines.contains(&number) {
                text.push_str("# hidden: this line may hold a credential");
            } else {
                text.push_str(line);
            }
            text.push('\n');
        }
        (self.name.clone(), text)
    }

    /// The line of an offset, from 0.
    pub(super) fn line(&self, offset: usize) -> usize {
        line_of(&self.line_starts, offset)
    }

    /// Whether the line of an offset may hold a secret.
    pub(super) fn is_hidden(&self, offset: usize) -> bool {
        self.hidden_lines.contains(&self.line(offset))
    }

    /// `file:line:column` of an offset.
    pub(super) fn place(&self, offset: usize) -> String {
        let (line, column) = self.position(offset);
        format!("{}:{line}:{column}", self.name)
    }

    /// A problem with the text in `span`.
    pub(crate) fn diagnose(
        &self,
        span: Range<usize>,
        severity: Severity,
        problem: Problem,
    ) -> Diagnostic {
        let (line, column) = self.position(span.start);
        Diagnostic { line, column, snippet: self.snippet(span), ..self.whole(severity, problem) }
    }

    /// A problem with the whole file, placed at its beginning.
    pub(super) fn whole(&self, severity: Severity, problem: Problem) -> Diagnostic {
        Diagnostic {
            file: self.name.clone(),
            line: 1,
            column: 1,
            severity,
            message: visible(&problem.message),
            hint: problem.hint.as_deref().map(visible),
            snippet: None,
        }
    }

    /// Line and column of an offset, both from 1.
    fn position(&self, offset: usize) -> (usize, usize) {
        let offset = self.text.floor_char_boundary(offset);
        let line = self.line(offset);
        let before = &self.text[self.line_starts[line]..offset];
        (line + 1, before.chars().count() + 1)
    }

    fn snippet(&self, span: Range<usize>) -> Option<Snippet> {
        let start = self.text.floor_char_boundary(span.start);
        let line_start = self.line_starts[self.line(start)];
        let line = self.text[line_start..].lines().next().filter(|line| !line.is_empty())?;
        if self.is_hidden(start) {
            return None;
        }
        let end = self.text.floor_char_boundary(span.end).min(line_start + line.len());

        let marked_from = self.text[line_start..start].chars().count();
        let marked = self.text.get(start..end).map_or(0, |text| text.chars().count()).max(1);
        let long = line.chars().count() > SNIPPET_CHARS_MAX;
        let skipped = if long { marked_from.saturating_sub(SNIPPET_CHARS_BEFORE) } else { 0 };

        let mut text = String::new();
        let mut indent = 0;
        let mut width = 0;
        for (i, c) in line.chars().enumerate().skip(skipped).take(SNIPPET_CHARS_MAX) {
            let shown_before = text.len();
            push_visible(&mut text, c);
            let columns = text[shown_before..].chars().count();
            if i < marked_from {
                indent += columns;
            } else if i < marked_from + marked {
                width += columns;
            }
        }
        Some(Snippet { text, indent, width: width.max(1) })
    }
}

fn line_of(line_starts: &[usize], offset: usize) -> usize {
    line_starts.partition_point(|start| *start <= offset) - 1
}
