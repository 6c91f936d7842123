//! Reads the parameters of the conditions: all policy types without parts.

use std::{
    fmt::Display,
    ops::Bound::{self, Excluded, Included, Unbounded},
};

use regex::bytes::{RegexSet, RegexSetBuilder};

use crate::{
    policy::{Number, NumberRange, RuleKind, Scope, StringMatch},
    trace::{SpanKind, StatusCode},
};

use super::{
    diagnostics::{Problem, quote},
    reader::Span,
    section::{Read, Section},
    values,
};

/// The most memory that the compiled expressions of one condition may take, in bytes.
const REGEX_BYTES_MAX: usize = 1 << 20;

const STATUS_CODES: &[(&str, StatusCode)] =
    &[("OK", StatusCode::Ok), ("ERROR", StatusCode::Error), ("UNSET", StatusCode::Unset)];

pub(super) const SPAN_KINDS: &[(&str, SpanKind)] = &[
    ("INTERNAL", SpanKind::Internal),
    ("SERVER", SpanKind::Server),
    ("CLIENT", SpanKind::Client),
    ("PRODUCER", SpanKind::Producer),
    ("CONSUMER", SpanKind::Consumer),
    ("UNSPECIFIED", SpanKind::Unspecified),
];

const SCOPES: &[(&str, Scope)] =
    &[("any", Scope::Any), ("span", Scope::Span), ("resource", Scope::Resource)];

pub(super) fn status_code(section: &mut Section<'_, '_>) -> Option<RuleKind> {
    choices(section, "status_codes", STATUS_CODES).map(|codes| RuleKind::StatusCode { codes })
}

pub(super) fn span_kind(section: &mut Section<'_, '_>) -> Option<RuleKind> {
    choices(section, "kinds", SPAN_KINDS).map(|kinds| RuleKind::SpanKind { kinds })
}

pub(super) fn latency(section: &mut Section<'_, '_>) -> Option<RuleKind> {
    let (threshold_ms, upper_threshold_ms) = thresholds(section, "latency", "trace")?;
    Some(RuleKind::Latency { threshold_ms, upper_threshold_ms })
}

pub(super) fn span_duration(section: &mut Section<'_, '_>) -> Option<RuleKind> {
    let (threshold_ms, upper_threshold_ms) = thresholds(section, "span_duration", "span")?;
    Some(RuleKind::SpanDuration { threshold_ms, upper_threshold_ms })
}

/// `threshold_ms` and `upper_threshold_ms` of a policy type about the duration of `of`.
fn thresholds(section: &mut Section<'_, '_>, kind: &str, of: &str) -> Option<(u64, Option<u64>)> {
    let threshold = section.integer::<u64>("threshold_ms");
    let missing = Problem::new(format!("`{kind}` has no `threshold_ms`"));
    section.require("threshold_ms", &threshold, missing);
    let upper = section.integer_or_zero::<u64>("upper_threshold_ms");
    match (&threshold, &upper) {
        (_, Read::Set(0, span)) => {
            let message = format!("`upper_threshold_ms` is 0, and no {of} is that short");
            section.error(span.clone(), Problem::new(message).hint(NO_UPPER_BOUND));
        }
        (Read::Set(lower, _), Read::Set(upper, span)) if upper <= lower => {
            let problem =
                never(("upper_threshold_ms", upper), "not above", ("threshold_ms", lower));
            section.error(span.clone(), problem);
        }
        _ => {}
    }
    let upper = upper.good();
    threshold.good().map(|threshold| (threshold, upper))
}

pub(super) fn span_count(section: &mut Section<'_, '_>) -> Option<RuleKind> {
    let min = section.integer::<u32>("min_spans");
    section.require("min_spans", &min, Problem::new("`span_count` has no `min_spans`"));
    let max = section.integer_or_zero::<u32>("max_spans");
    match (&min, &max) {
        (_, Read::Set(0, span)) => {
            let problem = Problem::new("`max_spans` is 0, and no trace has no spans");
            section.error(span.clone(), problem.hint(NO_UPPER_BOUND));
        }
        (Read::Set(min, _), Read::Set(max, span)) if max < min => {
            let problem = never(("max_spans", max), "below", ("min_spans", min));
            section.error(span.clone(), problem);
        }
        _ => {}
    }
    let max_spans = max.good();
    min.good().map(|min_spans| RuleKind::SpanCount { min_spans, max_spans })
}

pub(super) fn string_attribute(section: &mut Section<'_, '_>) -> Option<RuleKind> {
    let (key, scope) = attribute(section, "`string_attribute` has no `key`");
    let (values, invert) = string_match(section)?;
    Some(RuleKind::StringAttribute { key: key?, scope: scope?, values, invert })
}

pub(super) fn numeric_attribute(section: &mut Section<'_, '_>) -> Option<RuleKind> {
    let (key, scope) = attribute(section, "`numeric_attribute` has no `key`");
    let invert = section.boolean("invert_match").or(false);
    let lower = limit(section, ["min_value", "above"], "lower");
    let upper = limit(section, ["max_value", "below"], "upper");
    match (&lower, &upper) {
        (Read::Bad, _) | (_, Read::Bad) => return None,
        (Read::Unset, Read::Unset) => {
            let message = "`numeric_attribute` has no `min_value`, `above`, `max_value` or `below`";
            let problem = Problem::new(message).hint("give a lower bound, an upper one, or both");
            section.require_any(&["min_value", "above", "max_value", "below"], problem);
            return None;
        }
        (Read::Set(lower, _), Read::Set(upper, span)) => {
            if let Some(problem) = lower.leaves_nothing(upper) {
                section.error(span.clone(), problem);
            }
        }
        _ => {}
    }
    let range = NumberRange { lower: Limit::bound(lower), upper: Limit::bound(upper) };
    Some(RuleKind::NumericAttribute { key: key?, scope: scope?, range, invert })
}

/// A bound on numbers, as written.
struct Limit {
    key: &'static str,
    number: Number,
    is_included: bool,
}

/// Reads a bound from one of two keys: `included` is inclusive, `excluded` is exclusive.
fn limit(
    section: &mut Section<'_, '_>,
    [included, excluded]: [&'static str; 2],
    which: &str,
) -> Read<Limit> {
    let mut read =
        |key, is_included| section.number(key).map(|number| Limit { key, number, is_included });
    match (read(included, true), read(excluded, false)) {
        (Read::Set(..), Read::Set(_, span)) => {
            let message = format!("`{included}` and `{excluded}` are two {which} bounds");
            let hint = format!("keep one: `{included}` includes its number, `{excluded}` does not");
            section.error(span, Problem::new(message).hint(hint));
            Read::Bad
        }
        (Read::Bad, _) | (_, Read::Bad) => Read::Bad,
        (Read::Unset, limit) | (limit, Read::Unset) => limit,
    }
}

impl Limit {
    fn bound(limit: Read<Limit>) -> Bound<Number> {
        match limit.good() {
            Some(Limit { number, is_included: true, .. }) => Included(number),
            Some(Limit { number, .. }) => Excluded(number),
            None => Unbounded,
        }
    }

    /// The problem if no number lies between this lower bound and the upper one.
    fn leaves_nothing(&self, upper: &Limit) -> Option<Problem> {
        let relation = if self.is_included && upper.is_included {
            (upper.number < self.number).then_some("below")
        } else {
            (upper.number <= self.number).then_some("not above")
        };
        let none_in_the_collector = upper.key == "max_value" && upper.number == Number::Int(0);
        let hint = none_in_the_collector.then(|| NO_UPPER_BOUND.to_owned());
        let bounds = ((upper.key, upper.number), (self.key, self.number));
        relation.map(|relation| never(bounds.0, relation, bounds.1).maybe_hint(hint))
    }
}

pub(super) fn boolean_attribute(section: &mut Section<'_, '_>) -> Option<RuleKind> {
    let (key, scope) = attribute(section, "`boolean_attribute` has no `key`");
    let invert = section.boolean("invert_match").or(false);
    let value = section.boolean("value");
    section.require("value", &value, Problem::new("`boolean_attribute` has no `value`"));
    let (key, scope, value) = (key?, scope?, value.good()?);
    Some(RuleKind::BooleanAttribute { key, scope, value, invert })
}

pub(super) fn attribute_exists(section: &mut Section<'_, '_>) -> Option<RuleKind> {
    let (key, scope) = attribute(section, "`attribute_exists` has no `key`");
    let invert = section.boolean("invert_match").or(false);
    Some(RuleKind::AttributeExists { key: key?, scope: scope?, invert })
}

pub(super) fn span_name(section: &mut Section<'_, '_>) -> Option<RuleKind> {
    string_match(section).map(|(values, invert)| RuleKind::SpanName { values, invert })
}

pub(super) fn service_name(section: &mut Section<'_, '_>) -> Option<RuleKind> {
    string_match(section).map(|(values, invert)| RuleKind::ServiceName { values, invert })
}

/// `span_event`: names, an attribute, or both, which one event has to have.
pub(super) fn span_event(section: &mut Section<'_, '_>) -> Option<RuleKind> {
    let names = optional(section, "names");
    let key = attribute_key(section);
    let written = optional(section, "values");
    let is_regex = section.boolean("enabled_regex_matching");
    let invert = section.boolean("invert_match").or(false);
    if matches!((&names, &key), (Read::Unset, Read::Unset)) {
        let problem = Problem::new("`span_event` has no `names` and no `key`");
        section.require_any(&["names", "key"], problem.hint("give one or both"));
    } else if matches!(written, Read::Set(..)) {
        let problem = Problem::new("`values` needs `key`, the attribute that has the values");
        section.require("key", &key, problem.hint("names of events go into `names`"));
    }
    let mut matching = |list: Read<Vec<(String, Span)>>| match list {
        Read::Set(list, _) => matching(section, list, &is_regex).map(Some),
        Read::Unset => Some(None),
        Read::Bad => None,
    };
    let (names, values) = (matching(names), matching(written));
    let (names, values) = (names?, values?);
    match key {
        Read::Set(key, _) => Some(RuleKind::SpanEvent { names, key: Some(key), values, invert }),
        Read::Unset if names.is_some() && values.is_none() => {
            Some(RuleKind::SpanEvent { names, key: None, values: None, invert })
        }
        Read::Unset | Read::Bad => None,
    }
}

/// `trace_state`. Keys and values that a tracestate cannot carry are errors. W3C forbids more, but
/// some senders do not comply, so the rest is allowed.
pub(super) fn trace_state(section: &mut Section<'_, '_>) -> Option<RuleKind> {
    let key = section.literal("key", |text| {
        let problem = match text {
            "" => Problem::new("`key` is empty"),
            key if key.contains([',', '=', ' ', '\t']) => {
                let message = format!("{} is not a key of tracestate", quote(key));
                Problem::new(message).hint("it is the text before the `=`, such as `vendor`")
            }
            key => return Ok(key.to_owned()),
        };
        Err(problem)
    });
    section.require("key", &key, Problem::new("`trace_state` has no `key`"));
    let written = non_empty(section, "values")?;
    let mut values = Vec::with_capacity(written.len());
    for (text, span) in &written {
        if text.contains(',') || text.ends_with([' ', '\t']) {
            let message = format!("{} is not a value of tracestate", quote(text));
            let hint = "a value has no comma and no white space at its end";
            section.error(span.clone(), Problem::new(message).hint(hint));
        } else {
            values.push(text.clone());
        }
    }
    (values.len() == written.len()).then_some(RuleKind::TraceState { key: key.good()?, values })
}

const NO_UPPER_BOUND: &str = "for no upper bound leave the key out";

/// The problem with bounds that no value can meet.
fn never(
    (upper, max): (&str, impl Display),
    relation: &str,
    (lower, min): (&str, impl Display),
) -> Problem {
    Problem::new(format!(
        "the policy can never match: `{upper}`, {max}, is {relation} `{lower}`, {min}"
    ))
}

/// Reads `key` and `scope` of a condition on attributes.
fn attribute(section: &mut Section<'_, '_>, missing: &str) -> (Option<String>, Option<Scope>) {
    let key = attribute_key(section);
    section.require("key", &key, Problem::new(missing));
    let scope = match section.literal("scope", |text| values::choice("scope", text, SCOPES)) {
        Read::Unset => Some(Scope::Any),
        scope => scope.good(),
    };
    (key.good(), scope)
}

fn attribute_key(section: &mut Section<'_, '_>) -> Read<String> {
    section.literal("key", |text| match text {
        "" => Err(Problem::new("`key` is empty")),
        key => Ok(key.to_owned()),
    })
}

/// A required, non-empty list of words.
fn choices<T: Copy>(
    section: &mut Section<'_, '_>,
    key: &'static str,
    words: &[(&'static str, T)],
) -> Option<Vec<T>> {
    let written = non_empty(section, key)?;
    let mut chosen = Vec::with_capacity(written.len());
    for (text, span) in &written {
        match values::choice(key, text, words) {
            Ok(word) => chosen.push(word),
            Err(problem) => section.error(span.clone(), problem),
        }
    }
    (chosen.len() == written.len()).then_some(chosen)
}

/// Reads `values`, `enabled_regex_matching` and `invert_match`.
fn string_match(section: &mut Section<'_, '_>) -> Option<(StringMatch, bool)> {
    let is_regex = section.boolean("enabled_regex_matching");
    let invert = section.boolean("invert_match").or(false);
    let written = non_empty(section, "values");
    Some((matching(section, written?, &is_regex)?, invert))
}

/// Compiles the values or keeps them as strings, by `enabled_regex_matching`.
fn matching(
    section: &mut Section<'_, '_>,
    written: Vec<(String, Span)>,
    is_regex: &Read<bool>,
) -> Option<StringMatch> {
    match is_regex {
        Read::Set(true, _) => regexes(section, &written).map(StringMatch::Regex),
        Read::Set(false, _) | Read::Unset => {
            Some(StringMatch::Exact(written.into_iter().map(|(text, _)| text).collect()))
        }
        Read::Bad => None,
    }
}

/// A required, non-empty list of strings.
fn non_empty(section: &mut Section<'_, '_>, key: &'static str) -> Option<Vec<(String, Span)>> {
    let list = optional(section, key);
    section.require(key, &list, Problem::new(format!("the policy has no `{key}`")));
    list.good()
}

/// An optional list of strings, which must not be empty.
fn optional(section: &mut Section<'_, '_>, key: &'static str) -> Read<Vec<(String, Span)>> {
    match section.literals(key) {
        Read::Set(list, span) if list.is_empty() => {
            let problem = Problem::new(format!("`{key}` is empty: the policy can never match"));
            section.error(span, problem);
            Read::Bad
        }
        list => list,
    }
}

fn regexes(section: &mut Section<'_, '_>, written: &[(String, Span)]) -> Option<RegexSet> {
    for (text, span) in written {
        if text.contains('\u{8}') {
            let message = format!("the expression {} contains a backspace", quote(text));
            let hint = "in double quotes TOML makes a backspace of `\\b`: use single quotes";
            section.warn(span.clone(), Problem::new(message).hint(hint));
        }
    }
    let error = match compile(written.iter().map(|(text, _)| text.as_str())) {
        Ok(set) => return Some(set),
        Err(error) => error,
    };
    // The error of a set does not say which expressions are wrong, and there may be several.
    let mut any_reported = false;
    for (text, span) in written {
        if let Err(error) = compile([text.as_str()]) {
            section.error(span.clone(), invalid_regex(text, &error));
            any_reported = true;
        }
    }
    if !any_reported {
        let span = written.first().map_or_else(|| section.span(), |(_, span)| span.clone());
        let problem = invalid_regex("values", &error);
        section.error(span, problem.hint("split the expressions over several policies in an `or`"));
    }
    None
}

fn compile<'v>(written: impl IntoIterator<Item = &'v str>) -> Result<RegexSet, regex::Error> {
    RegexSetBuilder::new(written).size_limit(REGEX_BYTES_MAX).build()
}

/// Advice for features of other engines that this one, which runs in linear time, does not have.
const REGEX_HINTS: &[(&str, &str)] = &[
    (
        "look-around",
        "instead of `(?!...)` and `(?<!...)` write an expression for what must not match, and set \
         `invert_match = true`; beside another condition, in an `and`",
    ),
    (
        "backreferences",
        "write out what may be repeated, as alternatives: `aa|bb`, or one more string in `values`",
    ),
];

fn invalid_regex(text: &str, error: &regex::Error) -> Problem {
    let reason = match error {
        regex::Error::CompiledTooBig(limit) => {
            format!("compiled it takes more than {limit} bytes")
        }
        // The reason follows a drawing of the expression, which the snippet shows already.
        error => {
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default();
            last.trim_start_matches("error: ").to_owned()
        }
    };
    let hint = REGEX_HINTS.iter().find(|(start, _)| reason.starts_with(start));
    let problem = Problem::new(format!("invalid regular expression {}: {reason}", quote(text)));
    problem.maybe_hint(hint.map(|(_, hint)| (*hint).to_owned()))
}
