//! Compiles a rule to the expression that decides, and gives its conditions to the builder of
//! leaves. `not` is pushed down to the conditions (De Morgan).

use super::{
    builder::{Bearer, LeavesBuilder, Text},
    leaves::DurationRange,
    node::{Condition, Node},
    spec::{RuleKind, RuleSpec, Scope, StringMatch},
};
use crate::trace::Threshold;

/// The resource attribute that `service_name` compares.
const SERVICE_NAME: &str = "service.name";

/// The expression of a rule, or of its opposite if `negated`.
pub(super) fn compile(rule: &RuleSpec, negated: bool, leaves: &mut LeavesBuilder) -> Node {
    let node = compile_kind(&rule.kind, negated, leaves);
    let threshold = Threshold::from_percentage(rule.sampling_percentage);
    if threshold == Threshold::ALWAYS {
        return node;
    }
    // A percentage on a combination is an intersection with it, never a product.
    Node::And(vec![node, Node::Constant(threshold)])
}

fn compile_kind(kind: &RuleKind, negated: bool, leaves: &mut LeavesBuilder) -> Node {
    match kind {
        RuleKind::AlwaysSample if negated => Node::Or(Vec::new()),
        RuleKind::AlwaysSample => Node::Constant(Threshold::ALWAYS),
        RuleKind::StatusCode { codes } => {
            let mask = codes.iter().fold(0, |mask, code| mask | code.mask());
            Node::Condition { condition: Condition::Status(mask), negated }
        }
        RuleKind::Latency { threshold_ms, upper_threshold_ms } => {
            let longer_than = |ms| Condition::LongerThan(nanos(ms));
            between(longer_than(*threshold_ms), upper_threshold_ms.map(longer_than), negated)
        }
        RuleKind::SpanCount { min_spans, max_spans } => {
            let from = Condition::SpansFrom(u64::from(*min_spans));
            let above = |spans: u32| Condition::SpansFrom(u64::from(spans) + 1);
            between(from, max_spans.map(above), negated)
        }
        RuleKind::And(parts)
        | RuleKind::Drop(parts)
        | RuleKind::Budget(parts, _)
        | RuleKind::Rare(parts, _) => {
            all_of(parts.iter().map(|part| compile(part, negated, leaves)).collect(), negated)
        }
        RuleKind::Or(parts) => {
            all_of(parts.iter().map(|part| compile(part, negated, leaves)).collect(), !negated)
        }
        RuleKind::Not(part) => compile(part, !negated, leaves),
        kind => {
            let (bit, invert) = compile_leaf(kind, leaves);
            Node::Condition { condition: Condition::Leaf(bit), negated: negated != invert }
        }
    }
}

/// The bit of a condition on single spans, and whether the condition is inverted (no span meets
/// it).
fn compile_leaf(kind: &RuleKind, leaves: &mut LeavesBuilder) -> (u32, bool) {
    match kind {
        RuleKind::StringAttribute { key, scope, values, invert } => {
            let key = (Bearer::Scope(*scope), key.as_str());
            (leaves.text(Text::Attribute(key), values), *invert)
        }
        RuleKind::NumericAttribute { key, scope, range, invert } => {
            (leaves.number((Bearer::Scope(*scope), key), *range), *invert)
        }
        RuleKind::BooleanAttribute { key, scope, value, invert } => {
            (leaves.boolean((Bearer::Scope(*scope), key), *value), *invert)
        }
        RuleKind::AttributeExists { key, scope, invert } => {
            (leaves.exists((Bearer::Scope(*scope), key)), *invert)
        }
        RuleKind::TraceState { key, values } => {
            let values = StringMatch::Exact(values.clone());
            (leaves.text(Text::TraceState(key), &values), false)
        }
        RuleKind::TraceFlags => (leaves.sampled(), false),
        RuleKind::SpanName { values, invert } => (leaves.text(Text::SpanName, values), *invert),
        RuleKind::ServiceName { values, invert } => {
            let key = (Bearer::Scope(Scope::Resource), SERVICE_NAME);
            (leaves.text(Text::Attribute(key), values), *invert)
        }
        RuleKind::SpanKind { kinds } => {
            (leaves.kinds(kinds.iter().fold(0, |mask, kind| mask | kind.mask())), false)
        }
        RuleKind::RootSpan => (leaves.root(), false),
        RuleKind::SpanDuration { threshold_ms, upper_threshold_ms } => {
            let (over, up_to) = (nanos(*threshold_ms), upper_threshold_ms.map(nanos));
            (leaves.duration(DurationRange { over, up_to }), false)
        }
        RuleKind::SpanEvent { names, key, values, invert } => {
            let event = compile_event(names.as_ref(), key.as_deref(), values.as_ref(), leaves);
            (leaves.same_event(event), *invert)
        }
        RuleKind::SameSpan(parts) => {
            let parts = parts.iter().map(|part| compile(part, false, leaves)).collect();
            (leaves.same_span(Node::And(parts)), false)
        }
        RuleKind::AlwaysSample
        | RuleKind::StatusCode { .. }
        | RuleKind::Latency { .. }
        | RuleKind::SpanCount { .. }
        | RuleKind::And(_)
        | RuleKind::Drop(_)
        | RuleKind::Budget(..)
        | RuleKind::Rare(..)
        | RuleKind::Or(_)
        | RuleKind::Not(_) => unreachable!("has no bit"),
    }
}

/// The conditions that one event has to meet.
fn compile_event(
    names: Option<&StringMatch>,
    key: Option<&str>,
    values: Option<&StringMatch>,
    leaves: &mut LeavesBuilder,
) -> Node {
    let name = names.map(|names| leaves.text(Text::EventName, names));
    let attribute = key.map(|key| match ((Bearer::Event, key), values) {
        (key, Some(values)) => leaves.text(Text::Attribute(key), values),
        (key, None) => leaves.exists(key),
    });
    let holds = |bit| Node::Condition { condition: Condition::Leaf(bit), negated: false };
    Node::And(name.into_iter().chain(attribute).map(holds).collect())
}

fn nanos(millis: u64) -> u64 {
    millis.saturating_mul(1_000_000)
}

/// Holds from the first condition on, until the second one holds.
fn between(from: Condition, until: Option<Condition>, negated: bool) -> Node {
    let mut bounds = vec![Node::Condition { condition: from, negated }];
    if let Some(condition) = until {
        bounds.push(Node::Condition { condition, negated: !negated });
    }
    all_of(bounds, negated)
}

/// The intersection of the parts; below a negation, their union.
fn all_of(parts: Vec<Node>, negated: bool) -> Node {
    if negated { Node::Or(parts) } else { Node::And(parts) }
}
