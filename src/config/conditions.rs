//! The parameters of the conditions: every policy type that has no parts.

use std::{fmt::Display, ops::RangeInclusive};

use regex::bytes::{RegexSet, RegexSetBuilder};

use crate::{
    policy::{Number, NumberRange, RuleKind, StringMatch},
    trace::StatusCode,
};

use super::{
    diagnostics::{Problem, quote},
    reader::Span,
    section::{Read, Section},
    values,
};

/// A year in milliseconds, so that nanoseconds fit 64 bits with ease.
const LATENCY_MS: RangeInclusive<u64> = 0..=31_536_000_000;

/// Memory that the compiled expressions of one condition may take.
const REGEX_BYTES_MAX: usize = 1 << 20;

const STATUS_CODES: &[(&str, StatusCode)] =
    &[("OK", StatusCode::Ok), ("ERROR", StatusCode::Error), ("UNSET", StatusCode::Unset)];

pub(super) fn status_code(section: &mut Section<'_, '_>) -> Option<RuleKind> {
    let written = non_empty(section, "status_codes")?;
    let mut codes = Vec::with_capacity(written.len());
    for (text, span) in &written {
        match values::choice("status_codes", text, STATUS_CODES) {
            Ok(code) => codes.push(code),
            Err(problem) => section.error(span.clone(), problem),
        }
    }
    (codes.len() == written.len()).then_some(RuleKind::StatusCode { codes })
}

pub(super) fn latency(section: &mut Section<'_, '_>) -> Option<RuleKind> {
    let threshold = section.integer("threshold_ms", LATENCY_MS);
    section.require("threshold_ms", &threshold, Problem::new("`latency` has no `threshold_ms`"));
    let upper = section.integer("upper_threshold_ms", LATENCY_MS);
    match (&threshold, &upper) {
        (_, Read::Set(0, span)) => {
            let problem = Problem::new("`upper_threshold_ms` is 0, and no trace is that short");
            section.error(span.clone(), problem.hint(NO_UPPER_BOUND));
        }
        (Read::Set(lower, _), Read::Set(upper, span)) if upper <= lower => {
            let problem =
                never(("upper_threshold_ms", upper), "not above", ("threshold_ms", lower));
            section.error(span.clone(), problem);
        }
        _ => {}
    }
    let upper_threshold_ms = upper.good();
    threshold.good().map(|threshold_ms| RuleKind::Latency { threshold_ms, upper_threshold_ms })
}

pub(super) fn span_count(section: &mut Section<'_, '_>) -> Option<RuleKind> {
    let min = section.integer("min_spans", 0..=u32::MAX);
    section.require("min_spans", &min, Problem::new("`span_count` has no `min_spans`"));
    let max = section.integer("max_spans", 0..=u32::MAX);
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
    let key = attribute_key(section, "`string_attribute` has no `key`");
    let (values, invert) = string_match(section)?;
    Some(RuleKind::StringAttribute { key: key?, values, invert })
}

pub(super) fn numeric_attribute(section: &mut Section<'_, '_>) -> Option<RuleKind> {
    let key = attribute_key(section, "`numeric_attribute` has no `key`");
    let invert = section.boolean("invert_match").or(false);
    let min = section.number("min_value");
    let max = section.number("max_value");
    match (&min, &max) {
        (Read::Unset, Read::Unset) => {
            let problem = Problem::new("`numeric_attribute` has no `min_value` and no `max_value`");
            section.require_any(&["min_value", "max_value"], problem.hint("give one or both"));
            return None;
        }
        (Read::Set(min, _), Read::Set(max, span)) if max < min => {
            let none_in_the_collector = *max == Number::Int(0);
            let hint = none_in_the_collector.then(|| NO_UPPER_BOUND.to_owned());
            let problem = never(("max_value", max), "below", ("min_value", min)).maybe_hint(hint);
            section.error(span.clone(), problem);
        }
        _ => {}
    }
    let range = NumberRange { min: min.good(), max: max.good() };
    Some(RuleKind::NumericAttribute { key: key?, range, invert })
}

pub(super) fn boolean_attribute(section: &mut Section<'_, '_>) -> Option<RuleKind> {
    let key = attribute_key(section, "`boolean_attribute` has no `key`");
    let invert = section.boolean("invert_match").or(false);
    let value = section.boolean("value");
    section.require("value", &value, Problem::new("`boolean_attribute` has no `value`"));
    Some(RuleKind::BooleanAttribute { key: key?, value: value.good()?, invert })
}

pub(super) fn span_name(section: &mut Section<'_, '_>) -> Option<RuleKind> {
    string_match(section).map(|(values, invert)| RuleKind::SpanName { values, invert })
}

pub(super) fn service_name(section: &mut Section<'_, '_>) -> Option<RuleKind> {
    string_match(section).map(|(values, invert)| RuleKind::ServiceName { values, invert })
}

/// `trace_state`. Keys and values that tracestate has no way to carry are errors; what W3C forbids
/// beyond that is left to the senders, some of which do not care.
pub(super) fn trace_state(section: &mut Section<'_, '_>) -> Option<RuleKind> {
    let key = section.literal("key", |text| {
        let problem = match text {
            "" => Problem::new("`key` is empty"),
            key if key.contains([',', '=', ' ', '\t']) => {
                let message = format!("{} is not a key of tracestate", quote(key));
                Problem::new(message).hint("it is what stands before the `=`, such as `vendor`")
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

/// Bounds between which nothing is.
fn never(
    (upper, max): (&str, impl Display),
    relation: &str,
    (lower, min): (&str, impl Display),
) -> Problem {
    Problem::new(format!(
        "the policy can never match: `{upper}`, {max}, is {relation} `{lower}`, {min}"
    ))
}

fn attribute_key(section: &mut Section<'_, '_>, missing: &str) -> Option<String> {
    let key = section.literal("key", |text| match text {
        "" => Err(Problem::new("`key` is empty")),
        key => Ok(key.to_owned()),
    });
    section.require("key", &key, Problem::new(missing));
    key.good()
}

/// `values`, `enabled_regex_matching` and `invert_match`.
fn string_match(section: &mut Section<'_, '_>) -> Option<(StringMatch, bool)> {
    let is_regex = section.boolean("enabled_regex_matching");
    let invert = section.boolean("invert_match").or(false);
    let written = non_empty(section, "values");
    let values = match is_regex {
        Read::Set(true, _) => StringMatch::Regex(regexes(section, &written?)?),
        Read::Set(false, _) | Read::Unset => {
            StringMatch::Exact(written?.into_iter().map(|(text, _)| text).collect())
        }
        Read::Bad => return None,
    };
    Some((values, invert))
}

/// A required list of strings that is not empty.
fn non_empty(section: &mut Section<'_, '_>, key: &'static str) -> Option<Vec<(String, Span)>> {
    let list = section.literals(key);
    section.require(key, &list, Problem::new(format!("the policy has no `{key}`")));
    let Read::Set(list, span) = list else {
        return None;
    };
    if list.is_empty() {
        let problem = Problem::new(format!("`{key}` is empty: the policy can never match"));
        section.error(span, problem);
        return None;
    }
    Some(list)
}

fn regexes(section: &mut Section<'_, '_>, written: &[(String, Span)]) -> Option<RegexSet> {
    for (text, span) in written {
        if text.contains('\u{8}') {
            let message = format!("the expression {} holds a backspace", quote(text));
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

/// What to do about what other engines have and this one, which is linear in time, has not.
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
        // A drawing of the expression precedes the reason; the snippet shows the expression
        // already.
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
