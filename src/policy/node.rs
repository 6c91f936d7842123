//! Expressions over facts and bits, each of which evaluates to a threshold.
//!
//! A condition that holds proposes 0 (always), one that does not [`Threshold::NEVER`], a percentage
//! its own; `or` is the minimum, `and` the maximum. `not` stands only on conditions (the compiler
//! pushes it down, De Morgan), so that each of them is known to be *rising* (once true it stays
//! true) or *falling* (later spans can still turn it).
//!
//! The same expressions decide on a trace and on a single span, whose facts and bits are those of a
//! trace of one span.

use crate::trace::{Facts, Threshold};

/// An expression that evaluates to a threshold.
#[derive(Debug, PartialEq)]
pub(super) enum Node {
    /// Always or never.
    Condition {
        condition: Condition,
        /// Whether it is falling.
        negated: bool,
    },
    /// Intersection: the highest threshold of the parts.
    And(Vec<Node>),
    /// Union: the lowest threshold of the parts.
    Or(Vec<Node>),
    /// Always, at this threshold.
    Constant(Threshold),
}

/// A condition on the whole trace, rising: once it holds it holds for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// Any span has a status of this mask.
    Status(u8),
    /// The trace lasts longer than this, in nanoseconds.
    LongerThan(u64),
    /// The trace has this many spans or more.
    SpansFrom(u64),
    /// The bit of a leaf is set.
    Leaf(u32),
}

impl Node {
    /// With `certain`, conditions that can still turn count as not holding.
    pub(super) fn evaluate(&self, facts: &Facts, bits: &[u64], certain: bool) -> Threshold {
        let evaluate = |part: &Node| part.evaluate(facts, bits, certain);
        match self {
            Node::Constant(threshold) => *threshold,
            Node::Condition { condition, negated } => {
                let holds = condition.holds(facts, bits) != *negated && !(certain && *negated);
                if holds { Threshold::ALWAYS } else { Threshold::NEVER }
            }
            Node::And(parts) => {
                let mut highest = Threshold::ALWAYS;
                for part in parts {
                    highest = highest.max(evaluate(part));
                    // Nothing is higher. Most conditions fail on most spans, so to look no further
                    // saves a third of the walk where many policies are about single spans.
                    if !highest.matches() {
                        break;
                    }
                }
                highest
            }
            Node::Or(parts) => parts.iter().map(evaluate).min().unwrap_or(Threshold::NEVER),
        }
    }
}

impl Condition {
    fn holds(self, facts: &Facts, bits: &[u64]) -> bool {
        match self {
            Condition::Status(mask) => facts.status_mask & mask != 0,
            Condition::LongerThan(nanos) => facts.duration_nanos() > nanos,
            Condition::SpansFrom(spans) => u64::from(facts.spans) >= spans,
            Condition::Leaf(bit) => bits[bit as usize / 64] >> (bit % 64) & 1 == 1,
        }
    }
}
