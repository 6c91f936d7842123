//! The compiled policies: leaves that spans set bits for, and one expression over thresholds a
//! policy.
//!
//! Every policy is a probability. A node of an expression evaluates to a [`Threshold`]: a condition
//! that holds to 0 (always), one that does not to [`Threshold::NEVER`], a percentage to its own.
//! `or` is the minimum, `and` the maximum, and the set of policies is an `or`: exact, since all are
//! compared with the same randomness. `not` is pushed down to the conditions when compiling (De
//! Morgan), so that each leaf knows whether it is *rising* (once true it stays true) or *falling*
//! (later spans can still turn it).
//!
//! Evaluation is a pure function of facts, bits, randomness and the plan, costs a few nanoseconds a
//! node and never reads a span.

use super::{
    leaves::{Leaves, LeavesBuilder},
    spec::{PolicySpec, RuleKind, RuleSpec},
};
use crate::trace::{Facts, Randomness, Threshold};

/// The policies that decide, compiled once.
#[derive(Debug)]
pub struct Plan {
    policies: Vec<Policy>,
    names: Vec<String>,
    leaves: Leaves,
}

/// Index of a policy in [`Plan::names`]; [`PolicyId::NONE`] where none matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PolicyId(pub u16);

impl PolicyId {
    /// No policy matched. Written `none`.
    pub const NONE: PolicyId = PolicyId(u16::MAX);
}

/// What the policies make of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the trace is kept.
    pub kept: bool,
    /// The policy that proposed the lowest threshold (of equals the first in the file), or that
    /// vetoed.
    pub policy: PolicyId,
    /// The lowest threshold proposed; [`Threshold::NEVER`] where none was or a policy vetoed.
    pub threshold: Threshold,
}

#[derive(Debug)]
struct Policy {
    node: Node,
    is_veto: bool,
}

/// An expression that evaluates to a threshold.
#[derive(Debug)]
enum Node {
    Condition {
        condition: Condition,
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
enum Condition {
    /// Any span has a status of this mask.
    Status(u8),
    /// The trace lasts longer than this, in nanoseconds.
    LongerThan(u64),
    /// The bit of an attribute leaf is set.
    Attribute(u32),
}

/// What a trace is decided on.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// What is known of the whole trace.
    pub facts: &'a Facts,
    /// The attribute leaves that hold for any span: [`Leaves::words`] words.
    pub bits: &'a [u64],
    /// Compared with the threshold.
    pub randomness: Randomness,
    /// The decision comes before its time: what can still turn does not veto.
    pub forced: bool,
}

impl Plan {
    /// Compiles valid policies. Leaves that several of them share are compiled once.
    pub fn compile(specs: &[PolicySpec]) -> Self {
        let mut leaves = LeavesBuilder::default();
        let policies = specs
            .iter()
            .map(|spec| Policy {
                node: compile(&spec.rule, false, &mut leaves),
                is_veto: matches!(spec.rule.kind, RuleKind::Drop(_)),
            })
            .collect();
        let names = specs.iter().map(|spec| spec.name.clone()).collect();
        Plan { policies, names, leaves: leaves.build() }
    }

    /// Policy names in the order of the file.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// A policy's name, `none` for [`PolicyId::NONE`].
    pub fn name(&self, id: PolicyId) -> &str {
        self.names.get(usize::from(id.0)).map_or("none", String::as_str)
    }

    /// The attribute conditions.
    pub fn leaves(&self) -> &Leaves {
        &self.leaves
    }

    /// Decides. Every policy that matches is appended to `matched`, vetoes included.
    pub fn decide(&self, evidence: &Evidence<'_>, matched: &mut Vec<PolicyId>) -> Verdict {
        let mut veto = None;
        let mut lowest = (Threshold::NEVER, PolicyId::NONE);
        for (id, policy) in (0..).map(PolicyId).zip(&self.policies) {
            let threshold = policy.node.evaluate(evidence, policy.is_veto && evidence.forced);
            if !threshold.matches() {
                continue;
            }
            matched.push(id);
            if policy.is_veto {
                veto = veto.or(Some(id));
            } else if threshold < lowest.0 {
                lowest = (threshold, id);
            }
        }
        if let Some(policy) = veto {
            return Verdict { kept: false, policy, threshold: Threshold::NEVER };
        }
        let (threshold, policy) = lowest;
        Verdict { kept: threshold.keeps(evidence.randomness), policy, threshold }
    }
}

impl Node {
    /// With `certain`, conditions that can still turn count as not holding.
    fn evaluate(&self, evidence: &Evidence<'_>, certain: bool) -> Threshold {
        match self {
            Node::Constant(threshold) => *threshold,
            Node::Condition { condition, negated } => {
                let holds = condition.holds(evidence) != *negated && !(certain && *negated);
                if holds { Threshold::ALWAYS } else { Threshold::NEVER }
            }
            Node::And(parts) => parts
                .iter()
                .map(|part| part.evaluate(evidence, certain))
                .max()
                .unwrap_or(Threshold::ALWAYS),
            Node::Or(parts) => parts
                .iter()
                .map(|part| part.evaluate(evidence, certain))
                .min()
                .unwrap_or(Threshold::NEVER),
        }
    }
}

impl Condition {
    fn holds(self, evidence: &Evidence<'_>) -> bool {
        match self {
            Condition::Status(mask) => evidence.facts.status_mask & mask != 0,
            Condition::LongerThan(nanos) => evidence.facts.duration_nanos() > nanos,
            Condition::Attribute(bit) => evidence.bits[bit as usize / 64] >> (bit % 64) & 1 == 1,
        }
    }
}

fn compile(rule: &RuleSpec, negated: bool, leaves: &mut LeavesBuilder) -> Node {
    let condition = |condition, negated| Node::Condition { condition, negated };
    let node = match &rule.kind {
        RuleKind::AlwaysSample if negated => Node::Constant(Threshold::NEVER),
        RuleKind::AlwaysSample => Node::Constant(Threshold::ALWAYS),
        RuleKind::StatusCode { codes } => {
            let mask = codes.iter().fold(0, |mask, code| mask | code.mask());
            condition(Condition::Status(mask), negated)
        }
        RuleKind::Latency { threshold_ms, upper_threshold_ms } => {
            let longer_than = |ms: u64| Condition::LongerThan(ms.saturating_mul(1_000_000));
            let mut bounds = vec![condition(longer_than(*threshold_ms), negated)];
            if let Some(upper) = upper_threshold_ms {
                bounds.push(condition(longer_than(*upper), !negated));
            }
            all_of(bounds, negated)
        }
        RuleKind::StringAttribute { key, values, invert } => {
            condition(Condition::Attribute(leaves.string(key, values)), negated != *invert)
        }
        RuleKind::And(parts) | RuleKind::Drop(parts) => {
            all_of(parts.iter().map(|part| compile(part, negated, leaves)).collect(), negated)
        }
        RuleKind::Or(parts) => {
            all_of(parts.iter().map(|part| compile(part, negated, leaves)).collect(), !negated)
        }
        RuleKind::Not(part) => compile(part, !negated, leaves),
    };
    let threshold = Threshold::from_percentage(rule.sampling_percentage);
    if threshold == Threshold::ALWAYS {
        return node;
    }
    // A percentage on a combination is an intersection with it, never a product.
    Node::And(vec![node, Node::Constant(threshold)])
}

/// The intersection of the parts, or, below a negation, their union.
fn all_of(parts: Vec<Node>, negated: bool) -> Node {
    if negated { Node::Or(parts) } else { Node::And(parts) }
}
