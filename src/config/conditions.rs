//! The parameters of the conditions: `status_code`, `latency` and `string_attribute`.

use std::ops::RangeInclusive;

use regex::bytes::{RegexSet, RegexSetBuilder};

use crate::{
    policy::{RuleKind, StringMatch},
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
            section.error(span.clone(), problem.hint("for no upper bound leave the key out"));
        }
        (Read::Set(lower, _), Read::Set(upper, span)) if upper <= lower => {
            let message = format!(
                "the policy can never match: `upper_threshold_ms`, {upper}, is not above \
                 `threshold_ms`, {lower}"
            );
            section.error(span.clone(), Problem::new(message));
        }
        _ => {}
    }
    let upper_threshold_ms = upper.good();
    threshold.good().map(|threshold_ms| RuleKind::Latency { threshold_ms, upper_threshold_ms })
}

pub(super) fn string_attribute(section: &mut Section<'_, '_>) -> Option<RuleKind> {
    let key = section.literal("key", |text| match text {
        "" => Err(Problem::new("`key` is empty")),
        key => Ok(key.to_owned()),
    });
    section.require("key", &key, Problem::new("`string_attribute` has no `key`"));
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
    key.good().map(|key| RuleKind::StringAttribute { key, values, invert })
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
    Problem::new(format!("invalid regular expression {}: {reason}", quote(text)))
}
