//! Parses text to a TOML tree that is as complete as its mistakes allow.
//!
//! The parser recovers from errors, so the other mistakes in a file with a syntax error can be
//! reported at once. But one mistake can cause several errors, and the tree then contains invented
//! values. So this module keeps one error per line, one for a bracket that is never closed, and a
//! record of unreliable values ([`Damage`]): those on a line with an error, and everything after
//! the place where the parser lost its way. The reader does not report problems with these values.

use std::{collections::BTreeSet, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue, Error},
};

use super::{
    diagnostics::{Diagnostics, Problem, Severity, quote},
    source::Source,
};

/// The longest string whose corrected form a hint shows, in bytes.
const SHOWN_BYTES_MAX: usize = 60;

/// The parts of a tree that the parser invented.
#[derive(Debug, Default)]
pub(super) struct Damage {
    lines: BTreeSet<usize>,
    scalars: Vec<Range<usize>>,
    lost_from: Option<usize>,
}

impl Damage {
    /// Whether the tree has the author's text at `offset`.
    pub(super) fn spares(&self, source: &Source, offset: usize) -> bool {
        self.lost_from.is_none_or(|lost| offset < lost)
            && !self.lines.contains(&source.line(offset))
            && !self.scalars.iter().any(|scalar| scalar.contains(&offset))
    }

    /// Whether keys or tables may be absent only because the parser lost its way.
    pub(super) fn hides_keys(&self) -> bool {
        self.lost_from.is_some()
    }

    fn lose_from(&mut self, offset: usize) {
        self.lost_from = Some(self.lost_from.map_or(offset, |lost| lost.min(offset)));
    }
}

/// Parses the file and reports its syntax errors.
pub(super) fn parse<'t>(
    source: &'t Source,
    diagnostics: &mut Diagnostics,
) -> (DeTable<'t>, Damage) {
    let (table, errors) = DeTable::parse_recoverable(source.text());
    let table = table.into_inner();
    let mut damage = Damage::default();
    if errors.is_empty() {
        return (table, damage);
    }

    let mut extents = Vec::new();
    collect_extents_of(&table, &mut extents);
    let mut errors: Vec<SyntaxError> = errors.iter().map(SyntaxError::new).collect();
    errors.sort_by_key(|error| error.span.start);
    if let Some(opened_at) = unclosed_bracket(source, &table, &errors) {
        damage.lose_from(opened_at);
        summarize_unclosed(source, opened_at, &mut errors);
    }
    for mut error in errors {
        error.blame(source, &extents, &mut damage);
        if damage.lines.insert(source.line(error.span.start)) {
            let problem = Problem::new(error.message).maybe_hint(error.hint);
            diagnostics.push(source.diagnose(error.span, Severity::Error, problem));
        }
    }
    (table, damage)
}

/// A parser error that will become a diagnostic.
struct SyntaxError {
    message: String,
    span: Range<usize>,
    hint: Option<String>,
}

impl SyntaxError {
    fn new(error: &Error) -> Self {
        // Only "recursion limit" has no place: a key of more than 80 dotted parts.
        let span = error.span().unwrap_or(0..0);
        SyntaxError { message: error.message().to_owned(), span, hint: None }
    }

    /// Records the values that the parser invented because of this error, and improves its message
    /// if possible.
    fn blame(&mut self, source: &Source, extents: &[Extent], damage: &mut Damage) {
        let at = self.span.start;
        if self.message == "duplicate key" {
            let key = source.text().get(self.span.clone()).unwrap_or_default();
            self.message = format!("duplicate key {}", quote(key));
            return;
        }
        if self.message.starts_with("cannot extend") {
            return;
        }
        let Some(extent) = extents.iter().find(|extent| extent.touches(at)) else {
            damage.lose_from(at);
            return;
        };
        if !extent.is_scalar {
            return;
        }
        self.hint = escape_hint(&self.message, source, extent.span.clone());
        let Range { start, end } = extent.span;
        damage.scalars.push(start..end.max(start + 1));
        if start == end {
            self.message = "a value is missing here".to_owned();
        } else if source.line(start) != source.line(at) && self.message.starts_with("invalid multi")
        {
            // The error is at the end of the file, because the string includes everything up to
            // there.
            self.message = "this string is never closed".to_owned();
            self.span = start..start + 3;
            damage.lose_from(start);
        }
    }
}

/// Advice for a backslash that TOML takes for the start of an escape, as in a regular expression in
/// double quotes.
fn escape_hint(message: &str, source: &Source, string: Range<usize>) -> Option<String> {
    let about_escapes = [
        "missing escaped value",
        "too few unicode value digits",
        "invalid value, expected unicode",
    ];
    if !about_escapes.iter().any(|start| message.starts_with(start)) {
        return None;
    }
    let is_hidden = source.is_hidden(string.start);
    let written = source.text().get(string)?;
    let quotes = if written.starts_with("\"\"\"") { 3 } else { 1 };
    let inside = written.get(quotes..written.len().checked_sub(quotes)?)?;
    // If the string has valid TOML escapes too, the intention is unknown.
    let is_plain = !is_hidden
        && !inside.contains("\\\\")
        && !inside.contains("\\\"")
        && !inside.contains(|c: char| c == '\'' || c.is_control())
        && inside.len() <= SHOWN_BYTES_MAX;
    Some(match is_plain {
        true => format!("in double quotes `\\` begins an escape of TOML: write '{inside}'"),
        false => "in double quotes `\\` begins an escape of TOML: use single quotes, or write \
                  `\\\\` for it"
            .to_owned(),
    })
}

/// The byte range of a scalar, or of the outside of an array or table.
struct Extent {
    span: Range<usize>,
    is_scalar: bool,
}

impl Extent {
    /// Whether an error at `at` is about this value. If so, the parser has not lost its way.
    fn touches(&self, at: usize) -> bool {
        let at_an_end = self.span.start == at || self.span.end == at;
        at_an_end || (self.is_scalar && self.span.contains(&at))
    }
}

fn collect_extents_of(table: &DeTable<'_>, extents: &mut Vec<Extent>) {
    table.values().for_each(|value| collect_extents(value, extents));
}

fn collect_extents(value: &Spanned<DeValue<'_>>, extents: &mut Vec<Extent>) {
    let is_scalar = !value.get_ref().is_array() && !value.get_ref().is_table();
    extents.push(Extent { span: value.span(), is_scalar });
    match value.get_ref() {
        DeValue::Array(array) => array.iter().for_each(|value| collect_extents(value, extents)),
        DeValue::Table(table) => collect_extents_of(table, extents),
        _ => {}
    }
}

/// The place where the outermost array or inline table opens that is not closed before the end of
/// the file.
fn unclosed_bracket(source: &Source, table: &DeTable<'_>, errors: &[SyntaxError]) -> Option<usize> {
    let unclosed = ["unclosed array, ", "unclosed inline table, "];
    if !errors.iter().any(|error| unclosed.iter().any(|start| error.message.starts_with(start))) {
        return None;
    }
    let mut extents = Vec::new();
    collect_extents_of(table, &mut extents);
    let text = source.text();
    let runs_on = |extent: &&Extent| {
        let value = text.get(extent.span.clone()).unwrap_or_default();
        (value.starts_with('[') && !value.ends_with(']'))
            || (value.starts_with('{') && !value.ends_with('}'))
    };
    extents
        .iter()
        .filter(|extent| !extent.is_scalar)
        .filter(runs_on)
        .map(|extent| extent.span.start)
        .min()
}

/// Keeps one of the errors that an unclosed bracket causes: the first one if it is on the bracket's
/// line (for instance a string without its closing quote), otherwise one for the bracket.
fn summarize_unclosed(source: &Source, opened_at: usize, errors: &mut Vec<SyntaxError>) {
    let kept = errors.partition_point(|error| error.span.start < opened_at);
    let same_line = errors
        .get(kept)
        .is_some_and(|error| source.line(error.span.start) == source.line(opened_at));
    errors.truncate(if same_line { kept + 1 } else { kept });
    if same_line {
        return;
    }
    let bracket = source.text().get(opened_at..opened_at + 1).unwrap_or_default();
    errors.push(SyntaxError {
        message: format!("this {} is never closed", quote(bracket)),
        span: opened_at..opened_at + 1,
        hint: None,
    });
}
