//! The compiled policies: leaves that spans set bits for, and one expression over thresholds a
//! policy.
//!
//! Every policy is a probability: an expression ([`super::node`]) that evaluates to a
//! [`Threshold`]. The set of policies is an `or` of them, the minimum: exact, since all are
//! compared with the same randomness.
//!
//! Evaluation is a pure function of facts, bits, randomness and the plan, costs a few nanoseconds a
//! node and never reads a span.
//!
//! A plan knows the names of all policies that there have been since the process started: one that
//! follows another ([`Plan::successor`]) appends to its names, so that a [`PolicyId`] in a
//! remembered decision, in the log or in a counter means the same policy after any number of
//! reloads.

use std::{collections::HashMap, sync::Arc};

use super::{
    builder::LeavesBuilder,
    compile::compile,
    expiry::Expiry,
    leaves::Leaves,
    limit::Limit,
    node::Node,
    spec::{LimitSpec, PolicySpec, RuleKind},
};
use crate::trace::{Facts, Randomness, Threshold};

/// Names of policies that a process may know over its life, so that an id is two bytes and there is
/// an end to the series of metrics.
pub const POLICY_NAMES_MAX: usize = 10_000;

/// The policies that decide, compiled once.
#[derive(Debug)]
pub struct Plan {
    /// Those that decide, in the order of the file.
    policies: Vec<Policy>,
    /// Those that are evaluated beside them and decide nothing, in the order of the file.
    shadows: Vec<Policy>,
    /// Of these and of all policies before them, by id.
    names: Vec<String>,
    leaves: Leaves,
    limits: Vec<Arc<Limit>>,
}

/// Too many names of policies since the start; a restart forgets those that are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there have been more than {POLICY_NAMES_MAX} policy names since the start")]
pub struct TooManyNames;

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

impl Verdict {
    /// Dropped, because nothing matched.
    pub const NONE: Verdict =
        Verdict { kept: false, policy: PolicyId::NONE, threshold: Threshold::NEVER };
}

/// What a shadow policy would have changed about a trace that it matches, had it been in force
/// beside those that decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// The trace was dropped and would have been kept.
    Kept = 0,
    /// The trace was kept and would have been dropped.
    Dropped = 1,
    /// Nothing.
    None = 2,
}

/// A shadow policy that matched, and what it would have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shadowed {
    /// The policy.
    pub policy: PolicyId,
    /// What it would have changed.
    pub effect: Effect,
}

#[derive(Debug)]
struct Policy {
    id: PolicyId,
    node: Node,
    is_veto: bool,
    /// Index into the plan's limits.
    limit: Option<usize>,
    /// Where it ends at a time.
    expiry: Option<Arc<Expiry>>,
}

/// What a trace is decided on.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// What is known of the whole trace.
    pub facts: &'a Facts,
    /// The leaves that hold for any span, as many words as the plan's [`Leaves`] ask for.
    pub bits: &'a [u64],
    /// Compared with the threshold.
    pub randomness: Randomness,
    /// The decision comes before its time: what can still turn does not veto.
    pub forced: bool,
}

impl Plan {
    /// Compiles valid policies. Leaves that several of them share are compiled once.
    pub fn compile(specs: &[PolicySpec]) -> Self {
        Plan::build(None, specs)
    }

    /// Compiles valid policies that follow these. A name that was known before keeps its id, and a
    /// policy whose limit is as it was keeps what is left of it.
    ///
    /// # Errors
    /// [`TooManyNames`]; only a restart helps.
    pub fn successor(&self, specs: &[PolicySpec]) -> Result<Self, TooManyNames> {
        let plan = Plan::build(Some(self), specs);
        if plan.names.len() > POLICY_NAMES_MAX { Err(TooManyNames) } else { Ok(plan) }
    }

    fn build(before: Option<&Plan>, specs: &[PolicySpec]) -> Self {
        let mut names = before.map_or_else(Vec::new, |before| before.names.clone());
        let ids = ids(&mut names, specs);
        let mut leaves = LeavesBuilder::default();
        let mut limits = Vec::new();
        let (mut policies, mut shadows) = (Vec::new(), Vec::new());
        for (spec, id) in specs.iter().zip(ids) {
            let policy = Policy {
                id,
                node: compile(&spec.rule, false, &mut leaves),
                is_veto: matches!(spec.rule.kind, RuleKind::Drop(_)),
                limit: spec.limit.map(|limit| {
                    let kept = before.and_then(|before| before.limit(id, &limit));
                    limits.push(kept.unwrap_or_else(|| Arc::new(Limit::new(limit))));
                    limits.len() - 1
                }),
                expiry: spec.expires.map(|at| {
                    let kept = before.and_then(|before| before.expiry(id, at));
                    kept.unwrap_or_else(|| Arc::new(Expiry::new(at)))
                }),
            };
            if spec.shadow { &mut shadows } else { &mut policies }.push(policy);
        }
        Plan { policies, shadows, names, leaves: leaves.build(), limits }
    }

    /// The names of all policies since the start, by id.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// A policy's name, `none` for [`PolicyId::NONE`].
    pub fn name(&self, id: PolicyId) -> &str {
        self.names.get(usize::from(id.0)).map_or("none", String::as_str)
    }

    /// The conditions that spans set bits for.
    pub fn leaves(&self) -> &Leaves {
        &self.leaves
    }

    /// Decides. Every policy that matches is appended to `matched`, vetoes included.
    pub fn decide(&self, evidence: &Evidence<'_>, matched: &mut Vec<PolicyId>) -> Verdict {
        let mut veto = None;
        let mut lowest = (Threshold::NEVER, PolicyId::NONE);
        for policy in &self.policies {
            let id = policy.id;
            let proposed = policy.propose(evidence);
            if !proposed.matches() {
                continue;
            }
            matched.push(id);
            if policy.is_veto {
                veto = veto.or(Some(id));
                continue;
            }
            let threshold = self.raised(policy, proposed);
            if threshold < lowest.0 {
                lowest = (threshold, id);
            }
        }
        if let Some(policy) = veto {
            return Verdict { kept: false, policy, threshold: Threshold::NEVER };
        }
        let (threshold, policy) = lowest;
        Verdict { kept: threshold.keeps(evidence.randomness), policy, threshold }
    }

    /// Says what each shadow policy that matches would have changed about the verdict of those that
    /// decide, each of them alone. Since a set of policies takes the lowest threshold, that is one
    /// comparison a policy.
    pub fn shadow(&self, evidence: &Evidence<'_>, verdict: &Verdict, out: &mut Vec<Shadowed>) {
        let is_vetoed = verdict.policy != PolicyId::NONE && !verdict.threshold.matches();
        for policy in &self.shadows {
            let proposed = policy.propose(evidence);
            if !proposed.matches() {
                continue;
            }
            let keeps = || self.raised(policy, proposed).keeps(evidence.randomness);
            let effect = match (policy.is_veto, verdict.kept) {
                (true, true) => Effect::Dropped,
                (false, false) if !is_vetoed && keeps() => Effect::Kept,
                _ => Effect::None,
            };
            out.push(Shadowed { policy: policy.id, effect });
        }
    }

    /// The shadow policies. Without any they cost nothing.
    pub fn shadows(&self) -> impl ExactSizeIterator<Item = PolicyId> {
        self.shadows.iter().map(|policy| policy.id)
    }

    /// What a policy proposes, raised by its limit.
    fn raised(&self, policy: &Policy, proposed: Threshold) -> Threshold {
        let raised = policy.limit.map(|limit| self.limits[limit].threshold());
        raised.map_or(proposed, |raised| raised.max(proposed))
    }

    /// Those that decide, and those that do not.
    fn all(&self) -> impl Iterator<Item = &Policy> {
        self.policies.iter().chain(&self.shadows)
    }

    /// The limit of a policy, if it is the same one.
    fn limit(&self, id: PolicyId, spec: &LimitSpec) -> Option<Arc<Limit>> {
        let policy = self.all().find(|policy| policy.id == id)?;
        let limit = &self.limits[policy.limit?];
        (limit.spec() == spec).then(|| Arc::clone(limit))
    }

    /// The expiry of a policy, if it is at the same time.
    fn expiry(&self, id: PolicyId, at: u64) -> Option<Arc<Expiry>> {
        let policy = self.all().find(|policy| policy.id == id)?;
        policy.expiry.clone().filter(|expiry| expiry.at() == at)
    }

    /// Says what time it is, in Unix milliseconds. From its end on a policy matches nothing; those
    /// that have ended since the last call are returned. Called before the plan decides anything,
    /// and once a tick.
    pub fn expire(&self, now: u64) -> Vec<PolicyId> {
        let has_come =
            |policy: &&Policy| policy.expiry.as_ref().is_some_and(|expiry| expiry.has_come(now));
        self.all().filter(has_come).map(|policy| policy.id).collect()
    }

    /// The policies that end at a time, with that time in Unix milliseconds.
    pub fn expiries(&self) -> Vec<(PolicyId, u64)> {
        let at = |policy: &Policy| Some((policy.id, policy.expiry.as_ref()?.at()));
        self.all().filter_map(at).collect()
    }

    /// Whether any policy has a limit. Without one, ticks and charges are nothing.
    pub fn has_limits(&self) -> bool {
        !self.limits.is_empty()
    }

    /// Whether a limit has not had a tick yet, and so has no threshold that holds it.
    pub fn has_new_limits(&self) -> bool {
        !self.limits.iter().all(|limit| limit.has_begun())
    }

    /// The limits that decide.
    pub(super) fn limits(&self) -> &[Arc<Limit>] {
        &self.limits
    }

    /// Charges a trace to the limits whose thresholds keep it. One that is decided by force was no
    /// candidate of a tick: it is noted, kept or not, so that the thresholds of the next ticks
    /// expect others like it.
    pub fn charge(&self, evidence: &Evidence<'_>) {
        let costs = [evidence.facts.spans, evidence.facts.bytes];
        for (limit, proposed) in self.limited(evidence) {
            let limit = &self.limits[limit];
            if limit.threshold().max(proposed).keeps(evidence.randomness) {
                limit.charge(costs);
            }
            if evidence.forced {
                limit.note_outside(costs);
            }
        }
    }

    /// The limits that a trace counts towards, with what their policies propose without them: those
    /// of policies that would keep it, unless it is vetoed, or another policy without a limit keeps
    /// it in any case. A shadow policy counts only for its own limit.
    pub(super) fn limited(&self, evidence: &Evidence<'_>) -> Vec<(usize, Threshold)> {
        let mut limited = Vec::new();
        for policy in &self.policies {
            let proposed = policy.propose(evidence);
            match policy.limit {
                Some(limit) if proposed.keeps(evidence.randomness) => {
                    limited.push((limit, proposed));
                }
                None if policy.is_veto && proposed.matches() => return Vec::new(),
                None if proposed == Threshold::ALWAYS => return Vec::new(),
                _ => {}
            }
        }
        for shadow in &self.shadows {
            if let Some(limit) = shadow.limit {
                let proposed = shadow.propose(evidence);
                limited.extend(proposed.keeps(evidence.randomness).then_some((limit, proposed)));
            }
        }
        limited
    }
}

impl Policy {
    /// The threshold it proposes where there is no limit.
    fn propose(&self, evidence: &Evidence<'_>) -> Threshold {
        if self.expiry.as_ref().is_some_and(|expiry| expiry.is_over()) {
            return Threshold::NEVER;
        }
        self.node.evaluate(evidence.facts, evidence.bits, self.is_veto && evidence.forced)
    }
}

/// The id of each policy, new names appended.
fn ids(names: &mut Vec<String>, specs: &[PolicySpec]) -> Vec<PolicyId> {
    let mut known: HashMap<String, u16> = names.iter().cloned().zip(0..).collect();
    let id = |spec: &PolicySpec| {
        // Below 11,000: those that are known, and at most 1,000 more.
        let next = names.len() as u16;
        let id = *known.entry(spec.name.clone()).or_insert(next);
        if id == next {
            names.push(spec.name.clone());
        }
        PolicyId(id)
    };
    specs.iter().map(id).collect()
}
