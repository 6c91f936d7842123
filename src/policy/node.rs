//! Expressions over facts and bits. Each evaluates to a threshold.
//!
//! A condition that holds proposes 0 (always), a condition that does not hold proposes
//! [`Threshold::NEVER`], and a percentage proposes its own threshold. `or` takes the minimum, `and`
//! the maximum. The compiler pushes `not` down to the conditions (De Morgan), so each condition is
//! known to be *rising* (once true, it stays true) or *falling* (later spans can make it false).
//!
//! The same expressions decide on a trace and on a single span. A single span has the facts and
//! bits of a trace with one span.

use crate::trace::{Facts, Threshold};

/// An expression that evaluates to a threshold.
#[derive(Debug, PartialEq)]
pub(super) enum Node {
    /// Always or never, regardless of the trace.
    Condition {
        condition: Condition,
        /// Whether the condition is falling.
        negated: bool,
    },
    /// Intersection: the highest threshold of the parts.
    And(Vec<Node>),
    /// Union: the lowest threshold of the parts.
    Or(Vec<Node>),
    /// Matches always, with this threshold.
    Constant(Threshold),
}

/// A condition on the whole trace. It is rising: once it holds, it keeps holding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// Any span has a status in this mask.
    Status(u8),
    /// The trace lasts longer than this, in nanoseconds.
    LongerThan(u64),
    /// The trace has at least this many spans.
    SpansFrom(u64),
    /// The bit of a leaf is set.
    Leaf(u32),
}

impl Node {
    /// Evaluates the expression. With `certain`, conditions that later spans can still change count
    /// as not holding.
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
                    // No other part can raise the threshold further. Most conditions fail on most
                    // spans, so stopping here saves a third of the walk if many policies are about
                    // single spans.
                    if !highest.matches() {
                        break;
                    }
                }
                highest
            }
            Node::Or(parts) => parts.iter().map(evaluate).min().unwrap_or(Threshold::NEVER),
        }
    }

    /// The lowest threshold that the expression evaluates to for any trace that it matches.
    pub(super) fn lowest(&self) -> Threshold {
        match self {
            Node::Constant(threshold) => *threshold,
            Node::Condition { .. } => Threshold::ALWAYS,
            Node::And(parts) => parts.iter().map(Node::lowest).max().unwrap_or(Threshold::ALWAYS),
            Node::Or(parts) => parts.iter().map(Node::lowest).min().unwrap_or(Threshold::NEVER),
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
