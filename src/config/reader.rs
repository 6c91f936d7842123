//! The state of reading one file: where problems go, and which keys have been asked for.
//!
//! A key is known if it was asked for. An unknown key is therefore reported last, when every
//! section has been read and the sections that would have had it are known. A test uses the same
//! record to check that `deploy/tailwater.toml` is complete.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use toml::de::DeTable;

use super::{
    diagnostics::{Diagnostic, Diagnostics, Problem, Severity, quote},
    env::Variable,
    section::Section,
    source::Source,
    syntax::Damage,
};

/// The known keys by the path of their section; "" is the top of the file.
pub(super) type KnownKeys = BTreeMap<String, BTreeSet<&'static str>>;

/// A place in the file, in bytes.
pub(super) type Span = Range<usize>;

/// The state of reading one file.
pub(super) struct Reader<'t> {
    pub(super) source: &'t Source,
    pub(super) damage: &'t Damage,
    pub(super) variable: Variable,
    pub(super) known: KnownKeys,
    pub(super) unknown: Vec<UnknownKey>,
    diagnostics: &'t mut Diagnostics,
}

/// A key that nobody asked for. Reported last, when the sections that would have had it are known.
pub(super) struct UnknownKey {
    pub(super) key: String,
    pub(super) span: Span,
    /// The table that has no such key, such as " in [sampling]".
    pub(super) place: String,
    pub(super) nearest: Option<&'static str>,
    pub(super) siblings: Vec<&'static str>,
}

impl<'t> Reader<'t> {
    pub(super) fn new(
        source: &'t Source,
        damage: &'t Damage,
        diagnostics: &'t mut Diagnostics,
        variable: Variable,
    ) -> Self {
        let (known, unknown) = (KnownKeys::new(), Vec::new());
        Reader { source, damage, variable, known, unknown, diagnostics }
    }

    /// The file as a section. `place` names the kind of file in messages.
    pub(super) fn root(&mut self, table: &'t DeTable<'t>, place: &str) -> Section<'_, 't> {
        Section::new(self, Some(table), 0..0, Some(String::new()), place.to_owned())
    }

    /// Reports the unknown keys and returns the known ones by section.
    pub(super) fn finish(mut self) -> KnownKeys {
        for unknown in std::mem::take(&mut self.unknown) {
            let hint = self.hint(&unknown);
            let message = format!("unknown key {}{}", quote(&unknown.key), unknown.place);
            self.report(unknown.span, Severity::Error, Problem::new(message).maybe_hint(hint));
        }
        self.known
    }

    fn hint(&self, unknown: &UnknownKey) -> Option<String> {
        if let Some((_, hint)) = COLLECTOR_KEYS.iter().find(|(key, _)| *key == unknown.key) {
            return Some((*hint).to_owned());
        }
        if let Some(nearest) = unknown.nearest {
            return Some(format!("did you mean `{nearest}`?"));
        }
        let key = unknown.key.as_str();
        let homes: Vec<String> = self
            .known
            .iter()
            .filter(|(_, keys)| keys.contains(key))
            .map(|(path, _)| match path.as_str() {
                "" => "the top of the main file, before the first [section]".to_owned(),
                path => format!("[{path}]"),
            })
            .collect();
        if !homes.is_empty() {
            return Some(format!("{} belongs to {}", quote(key), homes.join(" or ")));
        }
        let siblings: Vec<String> = unknown.siblings.iter().map(|key| format!("`{key}`")).collect();
        (!siblings.is_empty()).then(|| format!("the keys here are {}", siblings.join(", ")))
    }

    pub(super) fn report(&mut self, span: Span, severity: Severity, problem: Problem) {
        self.diagnostics.push(self.source.diagnose(span, severity, problem));
    }

    pub(super) fn report_without_line(&mut self, span: Span, problem: Problem) {
        let diagnostic = self.source.diagnose(span, Severity::Error, problem);
        self.diagnostics.push(Diagnostic { snippet: None, ..diagnostic });
    }
}

/// Keys of the Collector's tail sampler that Tailwater does not have.
const COLLECTOR_KEYS: &[(&str, &str)] = &[
    ("num_traces", "the window is bounded by `memory_limit_mib` in [sampling], not by a count"),
    ("expected_new_traces_per_sec", "leave it out: nothing is allocated ahead"),
    ("decision_cache", "use `decision_cache_ttl` in [sampling]"),
    ("cache_max_size", "leave it out: expressions run in linear time and nothing is cached"),
    ("hash_salt", "leave it out: randomness comes from the trace id or `tracestate: ot=rv`"),
    ("and_sub_policy", "write the parts as `policies = [{ type = ... }, ...]`"),
    ("not_sub_policy", "write the part as `policy = { type = ... }`"),
    ("drop_sub_policy", "write the parts as `policies = [{ type = ... }, ...]`"),
    ("latency", BESIDE_TYPE),
    ("numeric_attribute", BESIDE_TYPE),
    ("string_attribute", BESIDE_TYPE),
    ("boolean_attribute", BESIDE_TYPE),
    ("probabilistic", BESIDE_TYPE),
    ("status_code", BESIDE_TYPE),
    ("span_count", BESIDE_TYPE),
    ("trace_state", BESIDE_TYPE),
];

const BESIDE_TYPE: &str = "write its keys next to `type`, not in a table of their own";
