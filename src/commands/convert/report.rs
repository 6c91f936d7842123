//! Collects the notes and errors of a conversion, each with its place in the file.

use std::ops::Range;

use super::yaml::Node;
use crate::config::{Diagnostics, Problem, Severity, Source};

/// Notes and errors about one file.
pub(super) struct Report {
    source: Source,
    place: Placement,
    diagnostics: Diagnostics,
    errors: usize,
    /// The number of diagnostics, including notes.
    count: usize,
}

/// The most diagnostics of one file; later ones are only counted.
const DIAGNOSTICS_MAX: usize = 1_000;

/// The position in the file of the text that is being read.
#[derive(Clone, Default)]
pub(super) enum Placement {
    /// The text is the whole file.
    #[default]
    File,
    /// A block of text: for the start of each of its lines, the byte of the file.
    Lines(Vec<(usize, usize)>),
    /// All of the text is reported at one place, because the file has it with escapes.
    At(usize),
}

impl Placement {
    /// The byte of the file for a byte of the text.
    pub(super) fn of(&self, offset: usize) -> usize {
        match self {
            Placement::File => offset,
            Placement::At(place) => *place,
            Placement::Lines(lines) => {
                let line = lines.partition_point(|(start, _)| *start <= offset).checked_sub(1);
                match line.and_then(|line| lines.get(line)) {
                    Some((start, of_file)) => of_file + (offset - start),
                    None => offset,
                }
            }
        }
    }

    /// The placement of a text in quotes.
    pub(super) fn whole(&self, node: &Node) -> Placement {
        Placement::At(self.of(node.span.start))
    }

    /// The placement of a block of text that begins at a node.
    pub(super) fn block(&self, file: &str, node: &Node) -> Placement {
        if let Placement::At(place) = self {
            return Placement::At(*place);
        }
        let text = node.text().unwrap_or_default();
        let start = file.floor_char_boundary(self.of(node.span.start));
        // The lines of the block begin after the line with its `|`.
        let mut at = match file[start..].find('\n') {
            Some(end) if file[start..].starts_with(['|', '>']) => start + end + 1,
            _ => file[..start].rfind('\n').map_or(0, |end| end + 1),
        };
        let spaces = |line: &str| line.len() - line.trim_start_matches(' ').len();
        let first = |text: &str| text.lines().find(|line| !line.trim().is_empty()).map(spaces);
        let indent = first(&file[at..]).unwrap_or(0).saturating_sub(first(text).unwrap_or(0));
        let mut lines = Vec::new();
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            lines.push((start, (at + indent).min(file.len())));
            start += line.len();
            at = file[at.min(file.len())..].find('\n').map_or(file.len(), |end| at + end + 1);
        }
        Placement::Lines(lines)
    }
}

impl Report {
    pub(super) fn new(source: Source) -> Self {
        let diagnostics = Diagnostics::default();
        Report { source, place: Placement::default(), diagnostics, errors: 0, count: 0 }
    }

    /// Sets the placement of the text that later messages are about.
    pub(super) fn set_place(&mut self, place: Placement) {
        self.place = place;
    }

    /// Whether the limit of diagnostics is reached.
    pub(super) fn is_full(&self) -> bool {
        self.count >= DIAGNOSTICS_MAX
    }

    /// The number of errors so far.
    pub(super) fn errors(&self) -> usize {
        self.errors
    }

    pub(super) fn error(&mut self, node: &Node, message: impl Into<String>) {
        self.at(node.span.clone(), Severity::Error, message.into());
    }

    /// Reports an error at a byte range of a node's text.
    pub(super) fn error_in(&mut self, node: &Node, within: Range<usize>, message: &str) {
        let span = match node.text() {
            Some(text) => self.inside(node, text, within),
            None => node.span.clone(),
        };
        self.at(span, Severity::Error, message.to_owned());
    }

    pub(super) fn note(&mut self, node: &Node, message: impl Into<String>) {
        self.at(node.span.clone(), Severity::Note, message.into());
    }

    /// Reports an error at a place of the text, or about the whole file.
    pub(super) fn fault(&mut self, at: usize, message: String) {
        self.at(at..at + 1, Severity::Error, message);
    }

    /// The messages of the errors reported since there were `since` of them.
    pub(super) fn last_errors(&self, since: usize) -> Vec<String> {
        let errors = self.diagnostics.iter().filter(|d| d.severity == Severity::Error);
        errors.skip(since).map(|d| format!("line {}: {}", d.line, d.message)).collect()
    }

    pub(super) fn file(&self) -> &str {
        self.source.text()
    }

    pub(super) fn finish(mut self) -> Diagnostics {
        self.diagnostics.sort();
        self.diagnostics
    }

    /// The byte range `within` a scalar, if the file has its text without escapes.
    fn inside(&self, node: &Node, text: &str, within: Range<usize>) -> Range<usize> {
        let start = self.place.of(node.span.start);
        let file = self.source.text();
        for quote in 0..2 {
            if file.get(start + quote..).is_some_and(|rest| rest.starts_with(text)) {
                let start = node.span.start + quote;
                return start + within.start..start + within.end;
            }
        }
        node.span.clone()
    }

    fn at(&mut self, span: Range<usize>, severity: Severity, message: String) {
        self.errors += usize::from(severity == Severity::Error);
        if self.is_full() {
            return;
        }
        let span = self.place.of(span.start)..self.place.of(span.end).max(1);
        self.count += 1;
        let (severity, message) = match self.count {
            DIAGNOSTICS_MAX => {
                (Severity::Error, "there are more than 1,000 diagnostics".to_owned())
            }
            _ => (severity, message),
        };
        self.errors += usize::from(self.count == DIAGNOSTICS_MAX);
        let diagnostic = self.source.diagnose(span, severity, Problem::new(message));
        self.diagnostics.push(diagnostic);
    }
}
