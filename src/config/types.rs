//! The description of every policy type: its parameters, its meaning, where it is allowed, and
//! whether its match can still change while spans arrive.
//!
//! The loader takes names, places and bounds from here; `crate::reference` writes the JSON Schema
//! and the reference page from it. To add a type, add one entry here, and its reader in
//! `config::conditions` or `config::policies`. `crate::policy` implements the types.

#![cfg_attr(
    not(test),
    expect(dead_code, reason = "some of the description is for the documents, which tests write")
)]

mod kinds;

use super::keys::{Key, Kind, Need};

/// The description of a policy type.
#[derive(Debug)]
pub(crate) struct PolicyType {
    pub(crate) name: &'static str,
    pub(super) id: Type,
    /// A description of the traces that it matches, as Markdown.
    pub(crate) words: &'static str,
    pub(crate) parameters: &'static [Key],
    /// Parameters of which at least one is required.
    pub(crate) any_of: &'static [&'static str],
    /// Pairs of parameters of which at most one is allowed.
    pub(crate) exclusive: &'static [[&'static str; 2]],
    pub(crate) place: Standing,
    /// The policies that are allowed as its parts.
    pub(crate) parts: Parts,
    pub(crate) turns: Turns,
}

/// Names of the types within the loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    AlwaysSample,
    StatusCode,
    Latency,
    StringAttribute,
    NumericAttribute,
    BooleanAttribute,
    AttributeExists,
    Probabilistic,
    SpanCount,
    TraceState,
    TraceFlags,
    SpanName,
    ServiceName,
    SpanKind,
    RootSpan,
    SpanDuration,
    SpanEvent,
    And,
    Or,
    Not,
    Drop,
    SameSpan,
    Budget,
    Rare,
}

/// The places where a type is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Anywhere, also inside `same_span`: a single span can meet it.
    OfOneSpan,
    /// Anywhere except inside `same_span`.
    OfTrace,
    /// Only at the top level.
    Top,
}

/// The policies that are allowed as the parts of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parts {
    /// None.
    None,
    /// Any policy that is allowed in the place of the type itself.
    Any,
    /// Policies that are not probabilistic.
    Certain,
    /// Policies that are not probabilistic and that a single span can meet.
    OfOneSpan,
}

/// Whether a policy that matches a part of a trace can stop matching when more spans arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turns {
    /// It cannot.
    Never,
    /// It can with `invert_match`.
    Inverted,
    /// It can with an upper bound.
    Bounded,
    /// It can if its parts can.
    AsParts,
    /// It can, because its part can start matching.
    Opposite,
}

impl PolicyType {
    const fn new(name: &'static str, id: Type, words: &'static str) -> Self {
        PolicyType {
            name,
            id,
            words,
            parameters: &[],
            any_of: &[],
            exclusive: &[],
            place: Standing::OfOneSpan,
            parts: Parts::None,
            turns: Turns::Never,
        }
    }

    const fn with(self, parameters: &'static [Key]) -> Self {
        PolicyType { parameters, ..self }
    }

    const fn stands(self, place: Standing) -> Self {
        PolicyType { place, ..self }
    }

    const fn takes(self, parts: Parts) -> Self {
        PolicyType { parts, ..self }
    }

    const fn turns(self, turns: Turns) -> Self {
        PolicyType { turns, ..self }
    }

    /// The type with this name.
    pub(super) fn named(name: &str) -> Option<&'static PolicyType> {
        TYPES.iter().find(|known| known.name == name)
    }
}

/// A year in milliseconds, so that nanoseconds easily fit into 64 bits.
const YEAR_MS: u64 = 31_536_000_000;

const KEY: Key = required("key", Kind::Text { pattern: "." }, "The key of the attribute.");
const SCOPE: Key = Key::word(
    "scope",
    &["any", "span", "resource"],
    "Where to look for the attribute: on the span and its resource, or on one of the two.",
);
const VALUES: Key = required(
    "values",
    Kind::Strings { pattern: "" },
    "The values to match, or regular expressions.",
);
const REGEX: Key = Key::boolean(
    "enabled_regex_matching",
    false,
    "Whether `values` are regular expressions (of the Rust `regex` crate). They match anywhere in \
     a value.",
);
const INVERT: Key = Key::boolean("invert_match", false, "Match if no span meets the condition.");
const MIN: Key = optional("min_value", Kind::Number, "The number is at least this.");
const MAX: Key = optional("max_value", Kind::Number, "The number is at most this.");
const ABOVE: Key = optional("above", Kind::Number, "The number is above this.");
const BELOW: Key = optional("below", Kind::Number, "The number is below this.");
const PARTS: Key = required("policies", Kind::Policies, "The parts: policies without a name.");

const fn required(name: &'static str, kind: Kind, words: &'static str) -> Key {
    Key::new(name, kind, words).needed(Need::Required)
}

const fn optional(name: &'static str, kind: Kind, words: &'static str) -> Key {
    Key::new(name, kind, words)
}

const fn whole(min: u64, max: u64) -> Kind {
    Kind::Integer { min, max, default: None }
}

/// All types, in the order in which they are shown.
pub(crate) const TYPES: &[PolicyType] = &[
    PolicyType::new("always_sample", Type::AlwaysSample, "Matches every trace.")
        .stands(Standing::OfTrace),
    PolicyType::new(
        "status_code",
        Type::StatusCode,
        "Matches if any span has one of the statuses. A span without a status is `UNSET`.",
    )
    .with(&[required(
        "status_codes",
        Kind::Words(&["OK", "ERROR", "UNSET"]),
        "Statuses of spans.",
    )]),
    PolicyType::new(
        "latency",
        Type::Latency,
        "Matches if the whole trace, from its earliest start to its latest end, lasts longer than \
         `threshold_ms` and at most `upper_threshold_ms`.",
    )
    .with(&[
        required("threshold_ms", whole(0, YEAR_MS), "The trace lasts longer than this."),
        optional(
            "upper_threshold_ms",
            whole(1, YEAR_MS),
            "And at most this long. Unset: no upper bound.",
        ),
    ])
    .stands(Standing::OfTrace)
    .turns(Turns::Bounded),
    PolicyType::new(
        "string_attribute",
        Type::StringAttribute,
        "Matches if any span, or its resource, has the attribute with one of the values. Each \
         element of a list counts as a value.",
    )
    .with(&[KEY, VALUES, REGEX, SCOPE, INVERT])
    .turns(Turns::Inverted),
    PolicyType {
        any_of: &["min_value", "above", "max_value", "below"],
        exclusive: &[["min_value", "above"], ["max_value", "below"]],
        ..PolicyType::new(
            "numeric_attribute",
            Type::NumericAttribute,
            "Matches if any span, or its resource, has the attribute with a number within the \
             bounds. Integers are compared exactly, also beyond 2^53.",
        )
        .with(&[KEY, MIN, ABOVE, MAX, BELOW, SCOPE, INVERT])
        .turns(Turns::Inverted)
    },
    PolicyType::new(
        "boolean_attribute",
        Type::BooleanAttribute,
        "Matches if any span, or its resource, has the attribute with this boolean.",
    )
    .with(&[KEY, required("value", Kind::Truth, "The value to match."), SCOPE, INVERT])
    .turns(Turns::Inverted),
    PolicyType::new(
        "attribute_exists",
        Type::AttributeExists,
        "Matches if any span, or its resource, has the attribute, whatever its value.",
    )
    .with(&[KEY, SCOPE, INVERT])
    .turns(Turns::Inverted),
    PolicyType::new(
        "probabilistic",
        Type::Probabilistic,
        "Matches every trace with the probability `sampling_percentage`.",
    )
    .stands(Standing::OfTrace),
    PolicyType::new(
        "span_count",
        Type::SpanCount,
        "Matches if the number of spans of the trace is within the bounds. Both are inclusive.",
    )
    .with(&[
        required("min_spans", whole(0, u32::MAX as u64), "The least number of spans."),
        optional(
            "max_spans",
            whole(1, u32::MAX as u64),
            "The greatest number of spans. Unset: no upper bound.",
        ),
    ])
    .stands(Standing::OfTrace)
    .turns(Turns::Bounded),
    PolicyType::new(
        "trace_state",
        Type::TraceState,
        "Matches if the `tracestate` of any span has the key with one of the values.",
    )
    .with(&[
        required("key", Kind::Text { pattern: "^[^,= \\t]+$" }, "The text before the `=`."),
        required(
            "values",
            Kind::Strings { pattern: "^([^,]*[^, \\t])?$" },
            "Values to match exactly.",
        ),
    ]),
    PolicyType::new("trace_flags", Type::TraceFlags, "Matches if any span has the sampled flag."),
    PolicyType::new("span_name", Type::SpanName, "Matches if any span has one of the names.")
        .with(&[VALUES, REGEX, INVERT])
        .turns(Turns::Inverted),
    PolicyType::new(
        "service_name",
        Type::ServiceName,
        "Matches if the `service.name` in the resource of any span is one of the values.",
    )
    .with(&[VALUES, REGEX, INVERT])
    .turns(Turns::Inverted),
    PolicyType::new("span_kind", Type::SpanKind, "Matches if any span is of one of the kinds.")
        .with(&[required(
            "kinds",
            Kind::Words(&["INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER", "UNSPECIFIED"]),
            "Kinds of spans.",
        )]),
    PolicyType::new(
        "root_span",
        Type::RootSpan,
        "Matches if any span is a root: its parent span id is empty or all zero. In `same_span`, \
         that span has to be the root.",
    ),
    PolicyType::new(
        "span_duration",
        Type::SpanDuration,
        "Matches if any single span lasts longer than `threshold_ms` and at most \
         `upper_threshold_ms`, compared in nanoseconds.",
    )
    .with(&[
        required("threshold_ms", whole(0, YEAR_MS), "The span lasts longer than this."),
        optional(
            "upper_threshold_ms",
            whole(1, YEAR_MS),
            "And at most this long. Unset: no upper bound.",
        ),
    ]),
    PolicyType {
        any_of: &["names", "key"],
        ..PolicyType::new(
            "span_event",
            Type::SpanEvent,
            "Matches if any span has an event with one of the names, and with the attribute `key` \
             with one of the values (any value if `values` is unset). A single event has to meet \
             all of these.",
        )
        .with(&[
            optional("names", Kind::Strings { pattern: "" }, "Names of the event."),
            optional("key", Kind::Text { pattern: "." }, "The key of an attribute of the event."),
            Key::new(
                "values",
                Kind::Strings { pattern: "" },
                "Values, or regular expressions, for that attribute.",
            )
            .needed(Need::With("key")),
            REGEX,
            INVERT,
        ])
        .turns(Turns::Inverted)
    },
    PolicyType::new(
        "and",
        Type::And,
        "Matches if all parts match. The lowest percentage among them counts.",
    )
    .with(&[PARTS])
    .takes(Parts::Any)
    .turns(Turns::AsParts),
    PolicyType::new(
        "or",
        Type::Or,
        "Matches if any part matches. The highest percentage among the matching parts counts.",
    )
    .with(&[PARTS])
    .takes(Parts::Any)
    .turns(Turns::AsParts),
    PolicyType::new("not", Type::Not, "Matches if its part does not match.")
        .with(&[required("policy", Kind::Policy, "The part: a policy without a name.")])
        .takes(Parts::Certain)
        .turns(Turns::Opposite),
    PolicyType::new(
        "drop",
        Type::Drop,
        "Matches if all parts match. The trace is then dropped, whatever else would keep it.",
    )
    .with(&[PARTS])
    .stands(Standing::Top)
    .takes(Parts::Certain)
    .turns(Turns::AsParts),
    PolicyType::new(
        "same_span",
        Type::SameSpan,
        "Matches if one single span, with its resource, meets all parts.",
    )
    .with(&[PARTS])
    .stands(Standing::OfTrace)
    .takes(Parts::OfOneSpan),
    kinds::BUDGET,
    kinds::RARE,
];

/// The keys that every policy can have. Except the percentage, they are for the top level.
pub(crate) const COMMON: &[Key] = &[
    required(
        "name",
        Kind::Text { pattern: "^[A-Za-z0-9_.-]{1,64}$" },
        "The name in metrics and on kept spans. Must be unique; `none` is reserved.",
    ),
    Key::new(
        "sampling_percentage",
        Kind::Percentage,
        "The percentage of the matching traces that the policy keeps; 100 if unset. With 0 the \
         policy never matches. Parts can have it too.",
    ),
    Key::new(
        "limit",
        Kind::Limit,
        "The maximum rate that the policy keeps: `{ spans_per_second = 500 }`, `bytes_per_second`, \
         or both.",
    ),
    Key::new(
        "expires",
        Kind::DateTime,
        "A date and time with an offset, such as `2026-12-24T18:00:00Z`. From then on, the policy \
         matches nothing.",
    ),
    Key::boolean(
        "shadow",
        false,
        "Whether the policy is only evaluated. A shadow policy decides nothing; metrics show what \
         it would change.",
    ),
];

/// The keys of a limit.
pub(crate) const LIMIT: &[Key] = &[
    Key::new("spans_per_second", Kind::AboveZero, "Kept spans per second."),
    Key::new("bytes_per_second", Kind::AboveZero, "Kept bytes per second, of encoded spans."),
    Key::new(
        "burst_capacity",
        Kind::AboveZero,
        "How many spans or bytes can be kept at once after a quiet time. Only with a single rate. \
         Unset: twice the rate.",
    ),
];
