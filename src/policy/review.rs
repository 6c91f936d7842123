//! Finds policies that cannot be what their author meant: a policy that never matches, one that is
//! never credited because another always comes first, and a `drop` that drops everything.
//!
//! `check` warns about them; nothing here decides about traces. The review works on the expressions
//! that decide ([`super::node`]) and draws conclusions only from their shape. It compares bounds,
//! lists and thresholds, and the parts of combinations one by one; it does not detect a policy that
//! two others cover only in combination. A claim is never wrong (a property test checks this), but
//! the absence of a claim proves nothing.
//!
//! All pairs are compared. Hostile policies could make this very slow, so the review stops after
//! [`STEPS_MAX`] steps, which take well under a second, and reports only its findings up to then.

use std::cell::Cell;

use super::{
    builder::{Leaf, LeavesBuilder},
    compile::compile,
    node::{Condition, Node},
    spec::{PolicySpec, RuleKind},
};
use crate::trace::Threshold;

/// The most pairs of nodes compared in one review. A thousand ordinary policies need two million.
const STEPS_MAX: usize = 5_000_000;

/// A finding about a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remark {
    /// Its conditions contradict each other.
    NeverMatches,
    /// It vetoes every trace.
    DropsEverything,
    /// It is never credited: whenever it matches, the policy with this index matches too and
    /// proposes a lower threshold, or the same threshold and is first in the file.
    CoveredBy(usize),
}

/// The findings about these policies, each with the index of its policy, at most one per policy.
///
/// A policy that never matches because of a percentage of 0 is not reported here, because the
/// configuration reader already reports the percentage.
pub(crate) fn review(specs: &[PolicySpec]) -> Vec<(usize, Remark)> {
    let mut builder = LeavesBuilder::default();
    let policies: Vec<Policy> = specs.iter().map(|spec| Policy::new(spec, &mut builder)).collect();
    let review = Review { leaves: &builder.leaves(), steps: Cell::new(0) };
    let remark = |index| review.remark(&policies, index).map(|remark| (index, remark));
    (0..policies.len()).filter_map(remark).collect()
}

struct Policy {
    node: Node,
    is_veto: bool,
    /// Whether it may propose a higher threshold than its expression says.
    is_limited: bool,
    /// The time at which it ends, if it ends.
    expires: Option<u64>,
    is_shadow: bool,
}

impl Policy {
    fn new(spec: &PolicySpec, leaves: &mut LeavesBuilder) -> Self {
        let is_veto = matches!(spec.rule.kind, RuleKind::Drop(_));
        let node = compile(&spec.rule, false, leaves);
        Policy {
            node,
            is_veto,
            is_limited: spec.limit.is_some() || spec.rule.kind.kinds().is_some(),
            expires: spec.expires,
            is_shadow: spec.shadow,
        }
    }

    /// Whether `other` is still in force after this one has ended.
    fn ends_before(&self, other: &Policy) -> bool {
        self.expires.is_some_and(|end| other.expires.is_none_or(|later| end < later))
    }
}

struct Review<'l> {
    /// The leaves, by bit.
    leaves: &'l [Leaf<'l>],
    steps: Cell<usize>,
}

/// The bar of a comparison: the threshold of the other policy is never below `floor`.
#[derive(Clone, Copy)]
struct Bar {
    floor: Threshold,
    /// Whether thresholds within the other policy count; if not, only whether it matches.
    by_threshold: bool,
}

const NO_HIGHER: Bar = Bar { floor: Threshold::ALWAYS, by_threshold: true };

impl Bar {
    /// The bar, raised to the threshold of a node of the other policy. That policy's threshold must
    /// never be below the node's.
    fn raised_by(self, node: &Node) -> Bar {
        match node {
            Node::Constant(threshold) if self.by_threshold || !threshold.matches() => {
                Bar { floor: self.floor.max(*threshold), ..self }
            }
            _ => self,
        }
    }
}

impl Review<'_> {
    fn remark(&self, policies: &[Policy], index: usize) -> Option<Remark> {
        let policy = &policies[index];
        if self.never(&policy.node) {
            return Some(Remark::NeverMatches);
        }
        if policy.is_veto && self.covers(&policy.node, &ALWAYS, NO_HIGHER) {
            return Some(Remark::DropsEverything);
        }
        if !lowest(&policy.node).matches() {
            return None;
        }
        let covers = |other: &usize| *other != index && self.comes_first(policies, *other, index);
        (0..policies.len()).find(covers).map(Remark::CoveredBy)
    }

    /// Whether `first` comes before `second` wherever `second` matches. A drop and a policy that
    /// keeps do not compete; the effect of a limit is not known here; and a shadow policy decides
    /// nothing.
    fn comes_first(&self, policies: &[Policy], first: usize, second: usize) -> bool {
        let (a, b) = (&policies[first], &policies[second]);
        if a.is_veto != b.is_veto || a.is_limited || a.ends_before(b) {
            return false;
        }
        if a.is_shadow || b.is_shadow {
            return false;
        }
        if first < second {
            return self.covers(&a.node, &b.node, NO_HIGHER);
        }
        // If both are equal, the one further up is credited, so this one has to be lower.
        let below = lowest(&b.node).bits().checked_sub(1).map(Threshold::from_bits);
        let bar = |floor| Bar { floor, by_threshold: false };
        below.is_some_and(|floor| self.covers(&a.node, &b.node, bar(floor)))
    }

    /// Whether `a` never proposes a higher threshold than `b` or the bar.
    fn covers(&self, a: &Node, b: &Node, bar: Bar) -> bool {
        if !self.may_go_on(1) {
            return false;
        }
        let covers = |a: &Node, b: &Node| self.covers(a, b, bar);
        match (a, b) {
            (_, Node::Or(parts)) => parts.iter().all(|part| covers(a, part)),
            (Node::And(parts), _) => parts.iter().all(|part| covers(part, b)),
            (_, Node::And(parts)) => self.covers_any(a, b, parts, bar),
            (Node::Or(parts), _) => parts.iter().any(|part| covers(part, b)),
            (Node::Constant(a), _) => *a <= bar.raised_by(b).floor,
            (Node::Condition { condition, negated }, Node::Constant(threshold)) => {
                !threshold.matches() || (is_certain(*condition) && !negated)
            }
            (
                Node::Condition { condition: a, negated: a_negated },
                Node::Condition { condition: b, negated: b_negated },
            ) => match (a_negated, b_negated) {
                (false, false) => self.implies(*b, *a),
                (true, true) => self.implies(*a, *b),
                (false, true) => is_certain(*a),
                (true, false) => false,
            },
        }
    }

    /// The same for an intersection, whose threshold is at least that of each of its parts.
    fn covers_any(&self, a: &Node, b: &Node, parts: &[Node], bar: Bar) -> bool {
        let raised = parts.iter().fold(bar, Bar::raised_by);
        let by_a_part =
            |a: &[Node]| raised.floor == bar.floor && a.iter().any(|a| self.covers(a, b, bar));
        self.may_go_on(parts.len())
            && (parts.iter().any(|part| self.covers(a, part, raised))
                || matches!(a, Node::Or(a) if by_a_part(a)))
    }

    /// Counts a step and returns whether any are left.
    fn may_go_on(&self, steps: usize) -> bool {
        self.steps.set(self.steps.get().saturating_add(steps));
        self.steps.get() <= STEPS_MAX
    }

    /// Whether condition `other` holds wherever `one` holds.
    fn implies(&self, one: Condition, other: Condition) -> bool {
        match (one, other) {
            (_, other) if is_certain(other) => true,
            (Condition::Status(one), Condition::Status(other)) => one & !other == 0,
            (Condition::LongerThan(one), Condition::LongerThan(other)) => one >= other,
            (Condition::SpansFrom(one), Condition::SpansFrom(other)) => one >= other,
            (Condition::Leaf(one), Condition::Leaf(other)) if one == other => true,
            _ => self.implies_by_leaf(one, other),
        }
    }

    /// The same if at least one of the two is a leaf. A condition that holds on a single span holds
    /// on the trace, except inverted conditions. An inverted condition never implies one that is
    /// not inverted, so it claims nothing here.
    fn implies_by_leaf(&self, one: Condition, other: Condition) -> bool {
        let [leaf, other_leaf] = [one, other].map(|condition| self.leaf(condition));
        let node = |condition| Node::Condition { condition, negated: false };
        match (leaf, other_leaf) {
            (Some(Leaf::SameSpan(a)), Some(Leaf::SameSpan(b))) => self.covers(b, a, NO_HIGHER),
            (Some(Leaf::SameSpan(a)), _) => self.covers(&node(other), a, NO_HIGHER),
            (_, Some(Leaf::SameSpan(b))) => self.covers(b, &node(one), NO_HIGHER),
            (Some(Leaf::SameEvent(a)), Some(Leaf::SameEvent(b))) => self.covers(b, a, NO_HIGHER),
            (Some(a), Some(b)) => a.implies(b),
            (Some(Leaf::Duration(of_span)), None) => match other {
                // The trace lasts at least as long as any of its spans.
                Condition::LongerThan(nanos) => of_span.over >= nanos,
                _ => false,
            },
            _ => false,
        }
    }

    fn leaf(&self, condition: Condition) -> Option<&Leaf<'_>> {
        match condition {
            Condition::Leaf(bit) => Some(&self.leaves[bit as usize]),
            _ => None,
        }
    }

    /// Whether it never matches, whatever its percentages.
    fn never(&self, node: &Node) -> bool {
        match node {
            Node::Constant(_) => false,
            Node::Condition { condition, negated: true } => is_certain(*condition),
            Node::Condition { condition, negated: false } => match self.leaf(*condition) {
                Some(Leaf::SameSpan(node)) => self.never(node),
                _ => false,
            },
            Node::Or(parts) => parts.iter().all(|part| self.never(part)),
            Node::And(parts) => {
                let clashes = |(index, part): (usize, &Node)| {
                    parts[..index].iter().any(|other| self.exclude(part, other))
                };
                parts.iter().any(|part| self.never(part)) || parts.iter().enumerate().any(clashes)
            }
        }
    }

    /// Whether no trace matches both.
    fn exclude(&self, a: &Node, b: &Node) -> bool {
        if !self.may_go_on(1) {
            return false;
        }
        match (a, b) {
            (Node::Or(parts), other) | (other, Node::Or(parts)) => {
                parts.iter().all(|part| self.exclude(part, other))
            }
            (Node::And(parts), other) | (other, Node::And(parts)) => {
                parts.iter().any(|part| self.exclude(part, other))
            }
            (
                Node::Condition { condition: holds, negated: false },
                Node::Condition { condition: fails, negated: true },
            )
            | (
                Node::Condition { condition: fails, negated: true },
                Node::Condition { condition: holds, negated: false },
            ) => self.implies(*holds, *fails),
            _ => false,
        }
    }
}

const ALWAYS: Node = Node::Constant(Threshold::ALWAYS);

/// A trace has at least one span.
fn is_certain(condition: Condition) -> bool {
    matches!(condition, Condition::SpansFrom(0 | 1))
}

/// The lowest threshold that the node can propose.
fn lowest(node: &Node) -> Threshold {
    match node {
        Node::Constant(threshold) => *threshold,
        Node::Condition { .. } => Threshold::ALWAYS,
        Node::And(parts) => parts.iter().map(lowest).max().unwrap_or(Threshold::ALWAYS),
        Node::Or(parts) => parts.iter().map(lowest).min().unwrap_or(Threshold::NEVER),
    }
}
