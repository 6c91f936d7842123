//! Policies as they are written: `config` reads them from TOML, and [`super::Plan`] compiles them.
//!
//! A specification is always valid: percentages are in 0..=100, lists are not empty, regular
//! expressions are compiled, nothing probabilistic is below `not`, `drop` or `same_span`, and below
//! `same_span` are only conditions on single spans. Only `config` builds specifications from user
//! input, and it reports input that breaks these rules.

use regex::bytes::RegexSet;

use super::number::NumberRange;
use crate::trace::{SpanKind, StatusCode};

/// One `[[policy]]`.
#[derive(Clone, Debug)]
pub struct PolicySpec {
    /// The unique name, `[A-Za-z0-9_.-]{1,64}`. It is the value of every `policy` label.
    pub name: String,
    /// Its `type`, as it is written.
    pub type_name: &'static str,
    /// The conditions, and the probability with which it keeps a matching trace.
    pub rule: RuleSpec,
    /// The rate at which it may keep spans; not for `drop`.
    pub limit: Option<LimitSpec>,
    /// The time at which it ends, in Unix milliseconds. From then on it matches nothing.
    pub expires: Option<u64>,
    /// Whether it is a shadow policy, which reports the changes it would make and decides nothing.
    pub shadow: bool,
}

impl PolicySpec {
    /// A policy without an end and without a limit.
    pub fn new(name: impl Into<String>, rule: RuleSpec) -> Self {
        let type_name = rule.kind.type_name();
        let (limit, expires, shadow) = (None, None, false);
        PolicySpec { name: name.into(), type_name, rule, limit, expires, shadow }
    }
}

/// `limit`: at least one of the rates is set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LimitSpec {
    /// `spans_per_second`.
    pub spans: Option<Rate>,
    /// `bytes_per_second`, of encoded spans.
    pub bytes: Option<Rate>,
}

impl LimitSpec {
    /// The rates of spans and of bytes.
    pub(super) fn rates(&self) -> [Option<Rate>; 2] {
        [self.spans, self.bytes]
    }
}

/// How a budget or a rare policy tells kinds of traces apart.
#[derive(Clone, Debug, PartialEq)]
pub struct KindsSpec {
    /// `keys`: attributes, or `span.name`, `span.kind`, `status.code`. Not empty.
    pub keys: Vec<String>,
    /// `max_keys`: the most kinds that are told apart, above 0.
    pub kinds_max: usize,
}

/// `budget`: one rate that kinds of traces share fairly.
#[derive(Clone, Debug, PartialEq)]
pub struct BudgetSpec {
    /// Exactly one of the rates is set.
    pub rate: LimitSpec,
    /// The kinds.
    pub kinds: KindsSpec,
    /// `power`: 0 for equal shares, 1 for shares in proportion to the demand.
    pub power: f64,
}

impl BudgetSpec {
    /// The burst, in seconds of the rate. The amount kept in any ten seconds exceeds the rate by no
    /// more than the burst.
    pub const BURST_SECONDS: f64 = 0.4;
}

/// `rare`: the first traces of each kind in each interval.
#[derive(Clone, Debug, PartialEq)]
pub struct RareSpec {
    /// The kinds.
    pub kinds: KindsSpec,
    /// `interval` in milliseconds, from the first trace of a kind on.
    pub interval_millis: u64,
    /// `traces`: the number of traces of a kind in each interval, above 0.
    pub traces: u32,
}

/// A bucket that fills at this rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// The rate, above 0.
    pub per_second: f64,
    /// `burst_capacity`: the most that the bucket holds, above 0.
    pub burst: f64,
}

/// A condition or a combination, with the probability that it proposes if it matches.
#[derive(Clone, Debug)]
pub struct RuleSpec {
    /// The condition or combination.
    pub kind: RuleKind,
    /// Per cent, in 0..=100; 100 if the file sets none.
    pub sampling_percentage: f64,
}

/// The policy types.
#[derive(Clone, Debug)]
pub enum RuleKind {
    /// Matches always. `probabilistic` is this with a percentage.
    AlwaysSample,
    /// Any span has one of the codes.
    StatusCode {
        /// Not empty.
        codes: Vec<StatusCode>,
    },
    /// The duration of the whole trace in milliseconds: above the threshold, and at most the upper
    /// threshold.
    Latency {
        /// Exclusive.
        threshold_ms: u64,
        /// Inclusive.
        upper_threshold_ms: Option<u64>,
    },
    /// Any span or its resource has the key with a matching string; inverted: none has.
    StringAttribute {
        /// Attribute key, compared byte by byte.
        key: String,
        /// The owner of the attribute.
        scope: Scope,
        /// Values to match.
        values: StringMatch,
        /// `invert_match`.
        invert: bool,
    },
    /// Any span or its resource has the key with a number within bounds; inverted: none has.
    NumericAttribute {
        /// Attribute key, compared byte by byte.
        key: String,
        /// The owner of the attribute.
        scope: Scope,
        /// The bounds.
        range: NumberRange,
        /// `invert_match`.
        invert: bool,
    },
    /// Any span or its resource has the key with this boolean; inverted: none has.
    BooleanAttribute {
        /// Attribute key, compared byte by byte.
        key: String,
        /// The owner of the attribute.
        scope: Scope,
        /// The value to match.
        value: bool,
        /// `invert_match`.
        invert: bool,
    },
    /// Any span or its resource has the key, whatever its value; inverted: none has.
    AttributeExists {
        /// Attribute key, compared byte by byte.
        key: String,
        /// The owner of the attribute.
        scope: Scope,
        /// `invert_match`.
        invert: bool,
    },
    /// The number of spans of the whole trace.
    SpanCount {
        /// Inclusive.
        min_spans: u32,
        /// Inclusive, not below `min`.
        max_spans: Option<u32>,
    },
    /// Any span's tracestate has the key with one of the values.
    TraceState {
        /// The key, as it is written before the `=`.
        key: String,
        /// Compared after white space around the member has been removed. Not empty.
        values: Vec<String>,
    },
    /// Any span has the sampled flag.
    TraceFlags,
    /// Any span's name matches; inverted: none does.
    SpanName {
        /// Names to match.
        values: StringMatch,
        /// `invert_match`.
        invert: bool,
    },
    /// `service.name` of any span's resource matches; inverted: none does.
    ServiceName {
        /// Names to match.
        values: StringMatch,
        /// `invert_match`.
        invert: bool,
    },
    /// Any span has one of the kinds.
    SpanKind {
        /// Not empty.
        kinds: Vec<SpanKind>,
    },
    /// Any span has no parent.
    RootSpan,
    /// The duration of a single span in milliseconds: above the threshold, and at most the upper
    /// threshold. A span without a start or an end has no duration.
    SpanDuration {
        /// Exclusive.
        threshold_ms: u64,
        /// Inclusive.
        upper_threshold_ms: Option<u64>,
    },
    /// Any span has an event that meets all of this; inverted: none has. Names or a key must be
    /// set.
    SpanEvent {
        /// Names to match.
        names: Option<StringMatch>,
        /// The key of an attribute of the event, compared byte by byte.
        key: Option<String>,
        /// Values of that attribute to match; if there are none, any value matches.
        values: Option<StringMatch>,
        /// `invert_match`.
        invert: bool,
    },
    /// One single span, with its own resource, meets all parts. The parts are conditions on single
    /// spans and combinations of them.
    SameSpan(Vec<RuleSpec>),
    /// All parts match.
    And(Vec<RuleSpec>),
    /// Any part matches.
    Or(Vec<RuleSpec>),
    /// The part does not match; nothing probabilistic inside.
    Not(Box<RuleSpec>),
    /// Vetoes if all parts match. Top level only; nothing probabilistic inside.
    Drop(Vec<RuleSpec>),
    /// Keeps traces that match all parts, within a budget that their kinds share. Top level only;
    /// nothing probabilistic inside.
    Budget(Vec<RuleSpec>, BudgetSpec),
    /// Keeps the first traces of each kind that match all parts. Top level only; nothing
    /// probabilistic inside.
    Rare(Vec<RuleSpec>, RareSpec),
}

impl RuleKind {
    /// The parts of a combination, none for a condition.
    pub fn parts(&self) -> Option<&[RuleSpec]> {
        match self {
            RuleKind::SameSpan(parts)
            | RuleKind::And(parts)
            | RuleKind::Or(parts)
            | RuleKind::Drop(parts)
            | RuleKind::Budget(parts, _)
            | RuleKind::Rare(parts, _) => Some(parts),
            RuleKind::Not(part) => Some(std::slice::from_ref(part)),
            _ => None,
        }
    }

    /// The name of its `type` in TOML.
    pub fn type_name(&self) -> &'static str {
        match self {
            RuleKind::AlwaysSample => "always_sample",
            RuleKind::StatusCode { .. } => "status_code",
            RuleKind::Latency { .. } => "latency",
            RuleKind::StringAttribute { .. } => "string_attribute",
            RuleKind::NumericAttribute { .. } => "numeric_attribute",
            RuleKind::BooleanAttribute { .. } => "boolean_attribute",
            RuleKind::AttributeExists { .. } => "attribute_exists",
            RuleKind::SpanCount { .. } => "span_count",
            RuleKind::TraceState { .. } => "trace_state",
            RuleKind::TraceFlags => "trace_flags",
            RuleKind::SpanName { .. } => "span_name",
            RuleKind::ServiceName { .. } => "service_name",
            RuleKind::SpanKind { .. } => "span_kind",
            RuleKind::RootSpan => "root_span",
            RuleKind::SpanDuration { .. } => "span_duration",
            RuleKind::SpanEvent { .. } => "span_event",
            RuleKind::SameSpan(_) => "same_span",
            RuleKind::And(_) => "and",
            RuleKind::Or(_) => "or",
            RuleKind::Not(_) => "not",
            RuleKind::Drop(_) => "drop",
            RuleKind::Budget(..) => "budget",
            RuleKind::Rare(..) => "rare",
        }
    }

    /// The kinds of traces that it tells apart.
    pub(crate) fn kinds(&self) -> Option<&KindsSpec> {
        match self {
            RuleKind::Budget(_, budget) => Some(&budget.kinds),
            RuleKind::Rare(_, rare) => Some(&rare.kinds),
            _ => None,
        }
    }

    /// The `key` of a condition, if it has one.
    pub fn key(&self) -> Option<&str> {
        match self {
            RuleKind::StringAttribute { key, .. }
            | RuleKind::NumericAttribute { key, .. }
            | RuleKind::BooleanAttribute { key, .. }
            | RuleKind::AttributeExists { key, .. }
            | RuleKind::TraceState { key, .. } => Some(key),
            RuleKind::SpanEvent { key, .. } => key.as_deref(),
            _ => None,
        }
    }
}

/// The owner of the attribute that a condition is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The span or its resource.
    Any,
    /// The span.
    Span,
    /// The resource.
    Resource,
}

/// The way a string value is compared.
#[derive(Clone, Debug)]
pub enum StringMatch {
    /// Equal to any of these.
    Exact(Vec<String>),
    /// Any of these regular expressions matches somewhere in the value (unanchored).
    Regex(RegexSet),
}
