//! Evaluates policies directly from their specification, over all spans of a trace.

use std::ops::Bound;

use opentelemetry_proto::tonic::{
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::Event},
};
use tailwater::{
    policy::{Effect, Number, NumberRange, PolicySpec, RuleKind, RuleSpec, Scope, StringMatch},
    trace::StatusCode,
};

use super::naive::{Stored, code, duration, is_root};

/// One above every randomness.
const NEVER: u64 = 1 << 56;

/// The policies' verdict on a trace.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Verdict {
    pub(super) kept: bool,
    pub(super) policy: String,
    pub(super) threshold: u64,
    pub(super) randomness: u64,
    pub(super) explicit: Option<u64>,
    pub(super) matched: Vec<String>,
    /// The shadow policies that matched, each with what it would have changed.
    pub(super) shadowed: Vec<(String, Effect)>,
}

/// The explicit randomness of one span, parsed by hand.
fn rv(trace_state: &str) -> Option<u64> {
    let ot: Vec<_> =
        trace_state.split(',').filter_map(|member| member.trim().strip_prefix("ot=")).collect();
    let [ot] = ot[..] else { return None };
    let valid = |digits: &&str| {
        digits.len() == 14 && digits.chars().all(|c| "0123456789abcdef".contains(c))
    };
    let digits = ot.split(';').filter_map(|pair| pair.strip_prefix("rv:")).find(valid)?;
    u64::from_str_radix(digits, 16).ok()
}

fn threshold(percentage: f64) -> u64 {
    let whole = 72_057_594_037_927_936.0;
    NEVER - (whole * percentage / 100.0).round() as u64
}

/// The verdict of the policies on a trace, and the effect of each shadow policy.
pub(super) fn verdict(
    policies: &[PolicySpec],
    id: [u8; 16],
    spans: &[Stored],
    forced: bool,
) -> Verdict {
    let (shadows, active): (Vec<_>, Vec<_>) = policies.iter().cloned().partition(|p| p.shadow);
    let mut verdict = verdict_of_all(&active, id, spans, forced);
    for shadow in shadows {
        let with_it = [&active[..], std::slice::from_ref(&shadow)].concat();
        let with_it = verdict_of_all(&with_it, id, spans, forced);
        if with_it.matched.contains(&shadow.name) {
            let effect = match (verdict.kept, with_it.kept) {
                (false, true) => Effect::Kept,
                (true, false) => Effect::Dropped,
                _ => Effect::None,
            };
            verdict.shadowed.push((shadow.name, effect));
        }
    }
    verdict
}

fn verdict_of_all(
    policies: &[PolicySpec],
    id: [u8; 16],
    spans: &[Stored],
    forced: bool,
) -> Verdict {
    let explicit = spans.iter().filter_map(|stored| rv(&stored.span.trace_state)).min();
    let by_id = id[9..].iter().fold(0, |number, &byte| number << 8 | u64::from(byte));
    let randomness = explicit.unwrap_or(by_id);
    let mut matched = Vec::new();
    let mut veto = None;
    let mut best = (NEVER, "none");
    for policy in policies {
        let is_drop = matches!(policy.rule.kind, RuleKind::Drop(_));
        let matches = match &policy.rule.kind {
            RuleKind::Drop(parts) if forced => parts.iter().all(|part| is_certain(part, spans)),
            _ => proposes(&policy.rule, spans) < NEVER,
        };
        if !matches {
            continue;
        }
        matched.push(policy.name.clone());
        let proposed = proposes(&policy.rule, spans);
        if is_drop {
            veto.get_or_insert(&policy.name);
        } else if proposed < best.0 {
            best = (proposed, &policy.name);
        }
    }
    let (kept, policy, threshold) = match veto {
        Some(name) => (false, name.clone(), NEVER),
        None => (randomness >= best.0, best.1.to_owned(), best.0),
    };
    Verdict { kept, policy, threshold, randomness, explicit, matched, shadowed: Vec::new() }
}

/// The threshold that a rule proposes for these spans, or [`NEVER`] if it does not match.
fn proposes(rule: &RuleSpec, spans: &[Stored]) -> u64 {
    let proposed = match &rule.kind {
        // Budgets and rare policies match without limits before their first tick.
        RuleKind::And(parts)
        | RuleKind::Drop(parts)
        | RuleKind::Budget(parts, _)
        | RuleKind::Rare(parts, _) => {
            parts.iter().map(|part| proposes(part, spans)).max().unwrap_or(0)
        }
        RuleKind::Or(parts) => {
            parts.iter().map(|part| proposes(part, spans)).min().expect("has parts")
        }
        condition if holds(condition, spans) => 0,
        _ => NEVER,
    };
    proposed.max(threshold(rule.sampling_percentage))
}

/// Whether a condition without probability holds.
fn holds(condition: &RuleKind, spans: &[Stored]) -> bool {
    let any = |meets: &dyn Fn(&Stored) -> bool| spans.iter().any(meets);
    let any_value = |key: &str, scope: Scope, meets: &dyn Fn(&Value) -> bool| {
        any(&|stored| values(&attributes(stored, scope), key).iter().any(meets))
    };
    match condition {
        RuleKind::AlwaysSample => true,
        RuleKind::StatusCode { codes } => any(&|stored| has_status(codes, &stored.span)),
        RuleKind::Latency { threshold_ms, upper_threshold_ms } => {
            let nanos = u128::from(duration(spans));
            let over = |ms: u64| nanos > u128::from(ms) * 1_000_000;
            over(*threshold_ms) && !upper_threshold_ms.is_some_and(over)
        }
        RuleKind::SpanCount { min_spans, max_spans } => {
            spans.len() >= *min_spans as usize
                && max_spans.is_none_or(|max| spans.len() <= max as usize)
        }
        RuleKind::StringAttribute { key, scope, values, invert } => {
            any_value(key, *scope, &|value| is_text(value, values)) != *invert
        }
        RuleKind::NumericAttribute { key, scope, range, invert } => {
            any_value(key, *scope, &|value| is_within(value, range)) != *invert
        }
        RuleKind::BooleanAttribute { key, scope, value, invert } => {
            any_value(key, *scope, &|found| *found == Value::BoolValue(*value)) != *invert
        }
        RuleKind::AttributeExists { key, scope, invert } => {
            let has_key = |of: &Vec<KeyValue>| of.iter().any(|pair| pair.key == *key);
            any(&|stored| attributes(stored, *scope).into_iter().any(has_key)) != *invert
        }
        RuleKind::SpanKind { kinds } => {
            any(&|stored| kinds.iter().any(|kind| *kind as i32 == stored.span.kind))
        }
        RuleKind::RootSpan => any(&|stored| is_root(&stored.span)),
        RuleKind::SpanDuration { threshold_ms, upper_threshold_ms } => any(&|stored| {
            let Span { start_time_unix_nano: start, end_time_unix_nano: end, .. } = stored.span;
            let nanos = u128::from(end.saturating_sub(start));
            let over = |ms: u64| nanos > u128::from(ms) * 1_000_000;
            start > 0 && end > 0 && over(*threshold_ms) && !upper_threshold_ms.is_some_and(over)
        }),
        RuleKind::SpanEvent { names, key, values, invert } => {
            let meets =
                |event: &Event| is_event(event, names.as_ref(), key.as_ref(), values.as_ref());
            any(&|stored| stored.span.events.iter().any(meets)) != *invert
        }
        RuleKind::TraceState { key, values } => {
            any(&|stored| has_member(&stored.span.trace_state, key, values))
        }
        RuleKind::TraceFlags => any(&|stored| stored.span.flags % 2 == 1),
        RuleKind::SpanName { values, invert } => {
            any(&|stored| is_listed(&stored.span.name, values)) != *invert
        }
        RuleKind::ServiceName { values: names, invert } => {
            let named = |stored: &Stored| {
                values(&[&stored.resource], "service.name").iter().any(|name| is_text(name, names))
            };
            any(&named) != *invert
        }
        RuleKind::SameSpan(parts) => spans.iter().any(|stored| {
            parts.iter().all(|part| proposes(part, std::slice::from_ref(stored)) == 0)
        }),
        RuleKind::Not(part) => proposes(part, spans) == NEVER,
        RuleKind::And(_)
        | RuleKind::Or(_)
        | RuleKind::Drop(_)
        | RuleKind::Budget(..)
        | RuleKind::Rare(..) => unreachable!("has parts"),
    }
}

/// Whether a condition holds whatever spans may still arrive.
fn is_certain(rule: &RuleSpec, spans: &[Stored]) -> bool {
    match &rule.kind {
        RuleKind::Latency { upper_threshold_ms: Some(_), .. }
        | RuleKind::SpanCount { max_spans: Some(_), .. } => false,
        RuleKind::And(parts) | RuleKind::Drop(parts) => {
            parts.iter().all(|part| is_certain(part, spans))
        }
        RuleKind::Or(parts) => parts.iter().any(|part| is_certain(part, spans)),
        RuleKind::Not(part) => is_ruled_out(part, spans),
        condition => !is_inverted(condition) && holds(condition, spans),
    }
}

/// Whether a condition fails whatever spans may still arrive.
fn is_ruled_out(rule: &RuleSpec, spans: &[Stored]) -> bool {
    match &rule.kind {
        RuleKind::Latency { upper_threshold_ms: Some(upper), .. } => {
            u128::from(duration(spans)) > u128::from(*upper) * 1_000_000
        }
        RuleKind::SpanCount { max_spans: Some(max), .. } => spans.len() > *max as usize,
        RuleKind::And(parts) | RuleKind::Drop(parts) => {
            parts.iter().any(|part| is_ruled_out(part, spans))
        }
        RuleKind::Or(parts) => parts.iter().all(|part| is_ruled_out(part, spans)),
        RuleKind::Not(part) => is_certain(part, spans),
        condition => is_inverted(condition) && !holds(condition, spans),
    }
}

fn is_inverted(condition: &RuleKind) -> bool {
    matches!(
        condition,
        RuleKind::StringAttribute { invert: true, .. }
            | RuleKind::NumericAttribute { invert: true, .. }
            | RuleKind::BooleanAttribute { invert: true, .. }
            | RuleKind::AttributeExists { invert: true, .. }
            | RuleKind::SpanEvent { invert: true, .. }
            | RuleKind::SpanName { invert: true, .. }
            | RuleKind::ServiceName { invert: true, .. }
    )
}

/// The lists of attributes that a condition looks into.
fn attributes(stored: &Stored, scope: Scope) -> Vec<&Vec<KeyValue>> {
    match scope {
        Scope::Any => vec![&stored.span.attributes, &stored.resource],
        Scope::Span => vec![&stored.span.attributes],
        Scope::Resource => vec![&stored.resource],
    }
}

fn is_event(
    event: &Event,
    names: Option<&StringMatch>,
    key: Option<&String>,
    texts: Option<&StringMatch>,
) -> bool {
    let mut pairs = event.attributes.iter().filter(|pair| Some(&pair.key) == key);
    let has_attribute = match (key, texts) {
        (None, _) => true,
        (Some(_), None) => pairs.next().is_some(),
        (Some(key), Some(texts)) => {
            values(&[&event.attributes], key).iter().any(|value| is_text(value, texts))
        }
    };
    has_attribute && names.is_none_or(|names| is_listed(&event.name, names))
}

fn has_status(codes: &[StatusCode], span: &Span) -> bool {
    codes.iter().any(|listed| match listed {
        StatusCode::Unset => code(span) == 0,
        StatusCode::Ok => code(span) == 1,
        StatusCode::Error => code(span) == 2,
    })
}

/// Every value of a key; for a list, its elements, recursively.
fn values(attributes: &[&Vec<KeyValue>], key: &str) -> Vec<Value> {
    let pairs = attributes.iter().copied().flatten().filter(|pair| pair.key == key);
    pairs.filter_map(|pair| pair.value.clone()?.value).flat_map(elements).collect()
}

fn elements(value: Value) -> Vec<Value> {
    match value {
        Value::ArrayValue(list) => {
            list.values.into_iter().filter_map(|value| value.value).flat_map(elements).collect()
        }
        value => vec![value],
    }
}

fn is_text(value: &Value, values: &StringMatch) -> bool {
    matches!(value, Value::StringValue(text) if is_listed(text, values))
}

fn is_listed(text: &str, values: &StringMatch) -> bool {
    match values {
        StringMatch::Exact(values) => values.iter().any(|listed| listed == text),
        StringMatch::Regex(set) => set
            .patterns()
            .iter()
            .any(|pattern| regex::Regex::new(pattern).expect("valid").is_match(text)),
    }
}

fn is_within(value: &Value, range: &NumberRange) -> bool {
    let number = match value {
        Value::IntValue(number) => Number::Int(*number),
        Value::DoubleValue(number) if !number.is_nan() => Number::Double(*number),
        _ => return false,
    };
    let is_above = match range.lower {
        Bound::Included(lower) => is_at_most(lower, number),
        Bound::Excluded(lower) => !is_at_most(number, lower),
        Bound::Unbounded => true,
    };
    let is_below = match range.upper {
        Bound::Included(upper) => is_at_most(number, upper),
        Bound::Excluded(upper) => !is_at_most(upper, number),
        Bound::Unbounded => true,
    };
    is_above && is_below
}

/// Compares in 128 bits, which hold every integer; infinities become the extreme values.
fn is_at_most(a: Number, b: Number) -> bool {
    match (a, b) {
        (Number::Int(a), Number::Int(b)) => a <= b,
        (Number::Double(a), Number::Double(b)) => a <= b,
        (Number::Int(a), Number::Double(b)) => i128::from(a) <= b.floor() as i128,
        (Number::Double(a), Number::Int(b)) => a.ceil() as i128 <= i128::from(b),
    }
}

fn has_member(trace_state: &str, key: &str, values: &[String]) -> bool {
    trace_state.split(',').any(|member| {
        let member = member.trim_matches([' ', '\t']);
        values.iter().any(|value| member == format!("{key}={value}"))
    })
}
