//! Reads one TOML table, takes every key once and reports all mistakes.
//!
//! The getters of a [`Section`] never fail: they report, return [`Read::Bad`] and go on, so that
//! one load finds every mistake. [`Section::finish`] then reports the keys that nobody asked for
//! and the required keys that are missing; a mistyped required key is one mistake and gets one
//! diagnostic. Sections that a file leaves out are read as well, so that hints know their keys.

use std::{
    fmt::Display,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use crate::policy::Number;

use super::{
    diagnostics::{Diagnostic, Problem, Severity, nearest},
    env::{self, Variable},
    keys::{self, Key, Need},
    reader::{Reader, Span, UnknownKey},
    values,
};

/// The result of asking for a key.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Read<T> {
    /// The file does not have the key.
    Unset,
    /// The value is wrong, and this has been reported.
    Bad,
    /// A valid value and its place.
    Set(T, Span),
}

impl<T> Read<T> {
    /// The value or the default. For `Bad` either would do: the configuration is refused.
    pub(super) fn or(self, default: T) -> T {
        self.good().unwrap_or(default)
    }

    /// The value, if it is valid.
    pub(super) fn good(self) -> Option<T> {
        match self {
            Read::Set(value, _) => Some(value),
            Read::Unset | Read::Bad => None,
        }
    }

    pub(super) fn map<U>(self, convert: impl FnOnce(T) -> U) -> Read<U> {
        match self {
            Read::Set(value, span) => Read::Set(convert(value), span),
            Read::Unset => Read::Unset,
            Read::Bad => Read::Bad,
        }
    }
}

/// One table that is being read.
pub(super) struct Section<'r, 't> {
    reader: &'r mut Reader<'t>,
    /// `None` if the file does not have the table; every key is unset then.
    table: Option<&'t DeTable<'t>>,
    /// The header, or the braces of an inline table.
    span: Span,
    /// The section's path; `None` for policies, whose keys are not keys of the configuration.
    path: Option<String>,
    place: String,
    /// The described keys that this section may have.
    pub(super) keys: &'static [Key],
    asked: Vec<&'static str>,
    /// Sets of keys of which at least one is required, and the problem if none is there.
    missing: Vec<(Vec<&'static str>, Problem)>,
}

impl<'r, 't> Section<'r, 't> {
    pub(super) fn new(
        reader: &'r mut Reader<'t>,
        table: Option<&'t DeTable<'t>>,
        span: Span,
        path: Option<String>,
        place: String,
    ) -> Self {
        if let Some(path) = &path {
            reader.known.entry(path.clone()).or_default();
        }
        let keys = path.as_deref().map_or(&[][..], keys::of);
        Section { reader, table, span, path, place, keys, asked: Vec::new(), missing: Vec::new() }
    }

    /// The header of the table.
    pub(super) fn span(&self) -> Span {
        self.span.clone()
    }

    /// Sets how messages about unknown keys name this table, such as " in [sampling]".
    pub(super) fn set_place(&mut self, place: String) {
        self.place = place;
    }

    /// `file:line:column` of a span.
    pub(super) fn place_of(&self, span: &Span) -> String {
        self.reader.source.place(span.start)
    }

    pub(super) fn error(&mut self, span: Span, problem: Problem) {
        self.reader.report(span, Severity::Error, problem);
    }

    /// An error whose line is not shown, because it may hold a secret.
    pub(super) fn error_without_line(&mut self, span: Span, problem: Problem) {
        self.reader.report_without_line(span, problem);
    }

    pub(super) fn warn(&mut self, span: Span, problem: Problem) {
        self.reader.report(span, Severity::Warning, problem);
    }

    /// A warning at this place whose message is set later, when all files have been read.
    pub(super) fn warning_at(&self, span: Span) -> Diagnostic {
        self.reader.source.diagnose(span, Severity::Warning, Problem::new(""))
    }

    /// An error at this place whose message is set later, when all files have been read.
    pub(super) fn error_at(&self, span: Span) -> Diagnostic {
        self.reader.source.diagnose(span, Severity::Error, Problem::new(""))
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Read<bool> {
        self.read(key, |value| values::boolean(key, value))
    }

    pub(super) fn integer_within<T>(
        &mut self,
        key: &'static str,
        range: RangeInclusive<T>,
    ) -> Read<T>
    where
        T: TryFrom<i128> + PartialOrd + Display,
    {
        self.read(key, |value| values::integer(key, value, range))
    }

    pub(super) fn percentage(&mut self, key: &'static str) -> Read<f64> {
        self.read(key, |value| values::percentage(key, value))
    }

    /// A date-time with an offset, as Unix milliseconds.
    pub(super) fn instant(&mut self, key: &'static str) -> Read<u64> {
        self.read(key, |value| values::instant(key, value))
    }

    pub(super) fn number(&mut self, key: &'static str) -> Read<Number> {
        self.read(key, |value| values::number(key, value))
    }

    /// A string, exactly as written, converted.
    pub(super) fn literal<T>(
        &mut self,
        key: &'static str,
        convert: impl FnOnce(&str) -> Result<T, Problem>,
    ) -> Read<T> {
        self.read(key, |value| values::string(key, value).and_then(convert))
    }

    /// A string with its environment variables replaced, converted.
    pub(super) fn text<T>(
        &mut self,
        key: &'static str,
        convert: impl Fn(&str) -> Result<T, Problem>,
    ) -> Read<T> {
        let variable = self.reader.variable;
        self.read(key, |value| expanded(key, values::string(key, value)?, variable, convert))
    }

    /// A path relative to `directory`.
    pub(super) fn file(&mut self, key: &'static str, directory: &Path) -> Read<PathBuf> {
        self.text(key, |text| match text {
            "" => Err(Problem::new(format!("`{key}` is empty"))),
            path => Ok(directory.join(path)),
        })
    }

    /// The value of an environment variable.
    pub(super) fn environment(&self, name: &str) -> Option<String> {
        (self.reader.variable)(name).ok()
    }

    /// Whether the file has this table.
    pub(super) fn is_there(&self) -> bool {
        self.table.is_some()
    }

    /// A duration string within `range`.
    pub(super) fn duration_within(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Read<Duration> {
        let variable = self.reader.variable;
        self.read(key, |value| {
            let text = values::duration_text(key, value)?;
            expanded(key, text, variable, |text| values::duration(key, text, range.clone()))
        })
    }

    /// The same, exactly as written.
    pub(super) fn literal_duration_within(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Read<Duration> {
        self.read(key, |value| values::duration(key, values::duration_text(key, value)?, range))
    }

    /// A list of strings, exactly as written. Elements that are not strings are reported and left
    /// out.
    pub(super) fn literals(&mut self, key: &'static str) -> Read<Vec<(String, Span)>> {
        let of_element = match key {
            "values" => {
                "write it in quotes; `numeric_attribute` is for attributes that are numbers"
            }
            _ => "write it in quotes",
        };
        let hints = [r#"write ["..."]"#, of_element];
        self.list(key, "a list of strings", hints, |value| Some(value.as_str()?.to_owned()))
    }

    /// A list of strings with their environment variables replaced.
    pub(super) fn texts(&mut self, key: &'static str) -> Read<Vec<(String, Span)>> {
        let variable = self.reader.variable;
        let literals = self.literals(key);
        let Read::Set(literals, span) = literals else {
            return literals;
        };
        let mut texts = Vec::with_capacity(literals.len());
        for (literal, span) in literals {
            match env::expand(&literal, variable) {
                Ok(text) => texts.push((text, span)),
                Err(problem) => self.error(span, problem),
            }
        }
        Read::Set(texts, span)
    }

    /// A list of tables. Elements that are not tables are reported and left out.
    pub(super) fn tables(&mut self, key: &'static str) -> Read<Vec<(&'t DeTable<'t>, Span)>> {
        let hint = match (self.path.as_deref(), key) {
            (Some(""), "test") => "write [[test]], with two brackets",
            (Some(""), _) => "write [[policy]], with two brackets",
            _ => "write [{ ... }]",
        };
        self.list(key, "a list of tables", [hint; 2], |value| value.as_table())
    }

    /// One table of a list, as a section.
    pub(super) fn element(&mut self, (table, span): (&'t DeTable<'t>, Span)) -> Section<'_, 't> {
        Section::new(self.reader, Some(table), span, None, self.place.clone())
    }

    /// The table at `key`, as a section whose keys are not keys of the configuration.
    pub(super) fn nameless(&mut self, key: &'static str, hint: &str) -> Read<Section<'_, 't>> {
        match self.read(key, |value| {
            value.as_table().ok_or_else(|| values::wrong_type(key, "a table", value).hint(hint))
        }) {
            Read::Set(table, span) => Read::Set(self.element((table, span.clone())), span),
            Read::Unset => Read::Unset,
            Read::Bad => Read::Bad,
        }
    }

    /// The section `key` below this one, even if the file does not have it.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'_, 't> {
        let path = match self.path.as_deref() {
            Some(parent) if !parent.is_empty() => format!("{parent}.{key}"),
            _ => key.to_owned(),
        };
        let table = self.read(key, |value| {
            let hint = format!("write [{path}]");
            value.as_table().ok_or_else(|| values::wrong_type(key, "a table", value).hint(hint))
        });
        let (table, span) = match table {
            Read::Set(table, span) => (Some(table), span),
            Read::Unset | Read::Bad => (None, self.span.clone()),
        };
        let place = format!(" in [{path}]");
        Section::new(self.reader, table, span, Some(path), place)
    }

    /// A table of strings with names that the user chooses; `convert` makes a value of both.
    pub(super) fn entries<T>(
        &mut self,
        key: &'static str,
        convert: impl Fn(&str, &str) -> Result<T, Problem>,
    ) -> Vec<(T, Span)> {
        let table = self.read(key, |value| {
            value.as_table().ok_or_else(|| values::wrong_type(key, "a table of strings", value))
        });
        let variable = self.reader.variable;
        let mut entries = Vec::new();
        for (name, value) in table.good().into_iter().flatten() {
            if !self.spares(&value.span()) {
                continue;
            }
            let converted = values::string(name.get_ref(), value.get_ref())
                .and_then(|text| env::expand(text, variable))
                .and_then(|text| convert(name.get_ref(), &text));
            match converted {
                Ok(entry) => entries.push((entry, name.span())),
                Err(problem) => self.error(value.span(), problem),
            }
        }
        entries
    }

    /// Whether `key` is missing, but another key was probably meant for it.
    pub(super) fn mistypes(&self, key: &str) -> bool {
        let names = self.table.into_iter().flatten().map(|(name, _)| name.get_ref());
        let mut names = names.filter(|name| !self.asked.contains(&name.as_ref()));
        !self.table.is_some_and(|table| table.contains_key(key))
            && names.any(|name| nearest(name, [key]).is_some())
    }

    /// Refuses `key` if the table has it.
    pub(super) fn refuse(&mut self, key: &'static str, problem: Problem) {
        if let Some((name, _)) = self.entry(key)
            && self.spares(&name.span())
        {
            self.error(name.span(), problem);
        }
    }

    /// Requires `key`, unless `read` says that the table has it.
    pub(super) fn require<T>(&mut self, key: &'static str, read: &Read<T>, problem: Problem) {
        if matches!(read, Read::Unset) {
            self.missing.push((vec![key], problem));
        }
    }

    /// Requires one of these keys, none of which the table has.
    pub(super) fn require_any(&mut self, keys: &[&'static str], problem: Problem) {
        self.missing.push((keys.to_vec(), problem));
    }

    /// Reports unknown and missing keys.
    pub(super) fn finish(self) {
        self.conclude(true);
    }

    /// Reports missing keys, and only those unknown keys that were probably meant for a missing
    /// one. For a table whose possible keys are not known.
    pub(super) fn abandon(self) {
        self.conclude(false);
    }

    fn conclude(mut self, keys_are_known: bool) {
        self.require_described();
        let table = self.table;
        let unset: Vec<&'static str> = self
            .asked
            .iter()
            .copied()
            .filter(|key| !table.is_some_and(|table| table.contains_key(*key)))
            .collect();
        for (key, value) in table.into_iter().flatten() {
            let name: &str = key.get_ref();
            if self.asked.contains(&name) || !self.spares(&key.span()) {
                continue;
            }
            let nearest = nearest(name, unset.iter().copied())
                .or_else(|| nearest(name, self.asked.iter().copied()));
            let missing_before = self.missing.len();
            // A missing key may also be one table too deep, as in the Collector.
            let holds = |key: &&str| value.get_ref().get(*key).is_some();
            self.missing.retain(|(keys, _)| {
                !nearest.is_some_and(|key| keys.contains(&key)) && !keys.iter().any(holds)
            });
            if keys_are_known || self.missing.len() < missing_before {
                self.reader.unknown.push(UnknownKey {
                    key: name.to_owned(),
                    span: key.span(),
                    place: self.place.clone(),
                    nearest,
                    siblings: self.asked.clone(),
                });
            }
        }
        if self.reader.damage.hides_keys() {
            return;
        }
        for (_, problem) in std::mem::take(&mut self.missing) {
            self.error(self.span.clone(), problem);
        }
    }

    /// Requires the keys that are required by their description and are missing.
    fn require_described(&mut self) {
        let (Some(table), Some(path)) = (self.table, &self.path) else { return };
        for key in self.keys.iter().filter(|key| !table.contains_key(key.name)) {
            let name = key.name;
            let problem = match key.need {
                Need::Required => format!("[{path}] has no `{name}`"),
                Need::With(other) if table.contains_key(other) => {
                    format!("[{path}] has `{other}` and no `{name}`")
                }
                Need::With(_) | Need::Optional => continue,
            };
            self.missing.push((vec![name], Problem::new(problem)));
        }
    }

    /// Takes `key` and converts it. A value that the parser invented counts as reported.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        convert: impl FnOnce(&'t DeValue<'t>) -> Result<T, Problem>,
    ) -> Read<T> {
        let Some((_, value)) = self.entry(key) else {
            return Read::Unset;
        };
        let span = value.span();
        if !self.spares(&span) {
            return Read::Bad;
        }
        match convert(value.get_ref()) {
            Ok(value) => Read::Set(value, span),
            Err(problem) => {
                self.error(span, problem);
                Read::Bad
            }
        }
    }

    fn list<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        [hint, of_element]: [&str; 2],
        convert: impl Fn(&'t DeValue<'t>) -> Option<T>,
    ) -> Read<Vec<(T, Span)>> {
        let wrong = |value, hint: &str| values::wrong_type(key, wanted, value).hint(hint);
        let elements = self.read(key, |value| value.as_array().ok_or_else(|| wrong(value, hint)));
        let Read::Set(elements, span) = elements else {
            return elements.map(|_| Vec::new());
        };
        let mut list = Vec::with_capacity(elements.len());
        for element in elements {
            if !self.spares(&element.span()) {
                continue;
            }
            match convert(element.get_ref()) {
                Some(value) => list.push((value, element.span())),
                None => self.error(element.span(), wrong(element.get_ref(), of_element)),
            }
        }
        // An empty list would be reported as empty, though its mistakes have been reported already.
        if list.is_empty() && !elements.is_empty() { Read::Bad } else { Read::Set(list, span) }
    }

    /// Looks up `key`, and records that it is known.
    fn entry(
        &mut self,
        key: &'static str,
    ) -> Option<(&'t Spanned<DeString<'t>>, &'t Spanned<DeValue<'t>>)> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
        if let Some(known) = self.path.as_ref().and_then(|path| self.reader.known.get_mut(path)) {
            known.insert(key);
        }
        self.table?.get_key_value(key)
    }

    pub(super) fn spares(&self, span: &Span) -> bool {
        self.reader.damage.spares(self.reader.source, span.start)
    }
}

/// Replaces environment variables in `text` and converts it. The variables may be secrets, so a
/// problem quotes only the text as written.
fn expanded<T>(
    key: &str,
    text: &str,
    variable: Variable,
    convert: impl Fn(&str) -> Result<T, Problem>,
) -> Result<T, Problem> {
    let expanded = env::expand(text, variable)?;
    convert(&expanded).map_err(|problem| match convert(text) {
        _ if expanded == text => problem,
        Ok(_) => Problem::new(format!("`{key}` is wrong")).hint(env::HIDDEN),
        Err(as_written) => Problem::new(as_written.message).hint(env::HIDDEN),
    })
}
