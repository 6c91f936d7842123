//! The policy types that divide traces into kinds.

use std::time::Duration;

use super::{Parts, PolicyType, Standing, Turns, Type, optional, required};
use crate::config::keys::{Key, Kind};

const KINDS: Key = required(
    "keys",
    Kind::Strings { pattern: "." },
    "The 1 to 16 keys whose values define the kind of a trace: attributes of the root span (or of \
     the span that starts first if there is no root), or otherwise of its resource; also \
     `span.name`, `span.kind` and `status.code` of that span. Choose attributes with few values.",
);
const PARTICIPANTS: Key = optional(
    "policies",
    Kind::Policies,
    "Conditions (policies without a name): traces that meet all of them take part. Unset: all \
     traces.",
);
/// The most kinds of a policy. A kind takes about 100 bytes.
const KINDS_MAX: u64 = 1_000_000;

pub(super) const BUDGET: PolicyType = PolicyType {
    any_of: &["spans_per_second", "bytes_per_second"],
    exclusive: &[["spans_per_second", "bytes_per_second"]],
    ..PolicyType::new(
        "budget",
        Type::Budget,
        "Keeps matching traces within a rate that all kinds of traces share. A kind is a set \
             of values of `keys`. Kinds below their fair share are kept whole; the others are \
             sampled down to the same level, so that together they reach the rate. Over any 10 s \
             the kept spans exceed the rate by at most a tenth.",
    )
    .with(&[
        KINDS,
        optional("spans_per_second", Kind::AboveZero, "Kept spans per second, over all kinds."),
        optional(
            "bytes_per_second",
            Kind::AboveZero,
            "Kept bytes per second, of encoded spans as received, over all kinds.",
        ),
        PARTICIPANTS,
        Key::new(
            "max_keys",
            Kind::Integer { min: 1, max: KINDS_MAX, default: Some(4096) },
            "The most kinds that are distinguished. Traces of further kinds share one kind, and \
             `tailwater_budget_overflow_traces_total` counts them.",
        ),
        Key::new(
            "power",
            Kind::Fraction,
            "How the rate is shared: with 0, every kind has the same share; with 1, shares are \
             proportional to the traffic of each kind; in between, large kinds get more, but less \
             than proportionally.",
        ),
    ])
    .stands(Standing::Top)
    .takes(Parts::Certain)
    .turns(Turns::AsParts)
};

pub(super) const RARE: PolicyType = PolicyType::new(
    "rare",
    Type::Rare,
    "Keeps the first matching traces of each kind in each interval, at 100 %. A kind is a set \
         of values of `keys`. The first traces are those that arrive first. A trace that another \
         policy keeps counts as well; one that a policy drops does not.",
)
.with(&[
    KINDS,
    Key::new(
        "interval",
        Kind::Duration {
            min: Duration::from_secs(1),
            max: Duration::from_hours(24),
            default: Duration::from_mins(15),
        },
        "The interval of a kind begins with its first trace.",
    ),
    Key::new(
        "traces",
        Kind::Integer { min: 1, max: 1000, default: Some(1) },
        "The number of traces of each kind in each interval.",
    ),
    PARTICIPANTS,
    Key::new(
        "max_keys",
        Kind::Integer { min: 1, max: KINDS_MAX, default: Some(65_536) },
        "The most kinds with a running interval. A trace of a further kind gets no guarantee, and \
         `tailwater_rare_overflow_traces_total` counts it.",
    ),
])
.stands(Standing::Top)
.takes(Parts::Certain)
.turns(Turns::AsParts);
