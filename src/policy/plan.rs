//! The compiled policies: the leaves for which spans set bits, and one expression over thresholds
//! per policy.
//!
//! Every policy is a probability: an expression ([`super::node`]) that evaluates to a
//! [`Threshold`]. The set of policies is their `or`, the minimum. This is exact, because all
//! thresholds are compared with the same randomness.
//!
//! Evaluation is a pure function of facts, bits, randomness and the plan. It costs a few
//! nanoseconds per node and never reads a span.
//!
//! A plan knows the names of all policies since the process started. A successor
//! ([`Plan::successor`]) appends its names, so a [`PolicyId`] in the decision cache, in the
//! decision log or in a counter means the same policy after any number of reloads.

use std::{collections::HashMap, sync::Arc};

use super::{
    builder::LeavesBuilder,
    compile::compile,
    expiry::Expiry,
    leaves::Leaves,
    limit::Limit,
    node::Node,
    spec::{LimitSpec, PolicySpec, RuleKind},
    trial::Trial,
};
use crate::trace::{Facts, Randomness, Threshold};

/// The most policy names that a process accepts over its life. The limit keeps an id at two bytes
/// and bounds the number of series in the metrics.
pub const POLICY_NAMES_MAX: usize = 10_000;

/// The policies that decide, compiled once.
#[derive(Debug)]
pub struct Plan {
    /// The policies that decide, in the order of the file.
    policies: Vec<Policy>,
    /// The shadow policies, in the order of the file. They are evaluated but decide nothing.
    shadows: Vec<Policy>,
    /// The names of these and all earlier policies, by id.
    names: Vec<String>,
    leaves: Leaves,
    limits: Vec<Arc<Limit>>,
    /// The trial that runs beside these policies.
    trial: Option<Arc<Trial>>,
}

/// Too many policy names since the start. A restart forgets the names that are no longer used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {POLICY_NAMES_MAX} policy names since the start")]
pub struct TooManyNames;

/// The index of a policy in [`Plan::names`]; [`PolicyId::NONE`] if no policy matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PolicyId(pub u16);

impl PolicyId {
    /// No policy matched. Shown as `none`.
    pub const NONE: PolicyId = PolicyId(u16::MAX);
}

/// The result of the policies for a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the trace is kept.
    pub kept: bool,
    /// The policy that proposed the lowest threshold (the first in the file, if several did), or
    /// the policy that vetoed.
    pub policy: PolicyId,
    /// The lowest proposed threshold; [`Threshold::NEVER`] if none was proposed or a policy vetoed.
    pub threshold: Threshold,
}

impl Verdict {
    /// Dropped because no policy matched.
    pub const NONE: Verdict =
        Verdict { kept: false, policy: PolicyId::NONE, threshold: Threshold::NEVER };
}

/// The change that a shadow policy would have made to a trace that it matches, if it had been in
/// force with the policies that decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// The trace was dropped and would have been kept.
    Kept = 0,
    /// The trace was kept and would have been dropped.
    Dropped = 1,
    /// No change.
    None = 2,
}

/// A shadow policy that matched, and the change it would have made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shadowed {
    /// The policy.
    pub policy: PolicyId,
    /// The change it would have made.
    pub effect: Effect,
}

/// A policy in force, as people see it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InForce<'a> {
    /// Its id.
    pub id: PolicyId,
    /// Its name.
    pub name: &'a str,
    /// Its `type`, as it is written.
    pub type_name: &'static str,
    /// Whether it is a shadow policy.
    pub is_shadow: bool,
    /// When it ends, in Unix milliseconds.
    pub expires: Option<u64>,
    /// The threshold that it proposes now for a trace that it matches, limits included; if it has
    /// parts with different percentages, the lowest of these thresholds. `None` for `drop`.
    pub threshold: Option<Threshold>,
}

#[derive(Debug)]
struct Policy {
    id: PolicyId,
    type_name: &'static str,
    node: Node,
    is_veto: bool,
    /// The index of its limit in the plan's limits.
    limit: Option<usize>,
    /// The time at which it ends, if it ends.
    expiry: Option<Arc<Expiry>>,
}

/// The input of a decision.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The facts of the whole trace.
    pub facts: &'a Facts,
    /// The bits of the leaves that hold for any span; as many words as the plan's [`Leaves`] need.
    pub bits: &'a [u64],
    /// The randomness, which is compared with the threshold.
    pub randomness: Randomness,
    /// Whether the decision is early. Conditions that can still change do not veto then.
    pub forced: bool,
}

impl Plan {
    /// Compiles valid policies. Leaves that several policies share are compiled once.
    pub fn compile(specs: &[PolicySpec]) -> Self {
        Plan::build(None, specs, None)
    }

    /// Compiles valid policies as a successor of this plan. A name that was known keeps its id, and
    /// a policy with an unchanged limit keeps its bucket.
    ///
    /// # Errors
    /// [`TooManyNames`]: only a restart helps.
    pub fn successor(&self, specs: &[PolicySpec]) -> Result<Self, TooManyNames> {
        let plan = Plan::build(Some(self), specs, None);
        if plan.names.len() > POLICY_NAMES_MAX { Err(TooManyNames) } else { Ok(plan) }
    }

    /// This plan, compiled again from its policies, with a trial of `candidate` beside it. The
    /// candidate must not have shadow policies.
    pub fn with_trial(&self, specs: &[PolicySpec], candidate: &[PolicySpec]) -> Self {
        Plan::build(Some(self), specs, Some(candidate))
    }

    /// This plan, compiled again from its policies, without a trial.
    pub fn without_trial(&self, specs: &[PolicySpec]) -> Self {
        Plan::build(Some(self), specs, None)
    }

    fn build(
        before: Option<&Plan>,
        specs: &[PolicySpec],
        candidate: Option<&[PolicySpec]>,
    ) -> Self {
        let mut leaves = LeavesBuilder::default();
        let plan = Plan::with_leaves(before, specs, &mut leaves);
        let trial = candidate.map(|candidate| {
            let candidate = Plan::with_leaves(None, candidate, &mut leaves);
            Arc::new(Trial::new(&plan, candidate))
        });
        Plan { leaves: leaves.build(), trial, ..plan }
    }

    /// Compiles policies whose conditions go to `leaves`; the plan has none of its own yet.
    fn with_leaves(
        before: Option<&Plan>,
        specs: &[PolicySpec],
        leaves: &mut LeavesBuilder,
    ) -> Self {
        let mut names = before.map_or_else(Vec::new, |before| before.names.clone());
        let ids = ids(&mut names, specs);
        let mut limits = Vec::new();
        let (mut policies, mut shadows) = (Vec::new(), Vec::new());
        for (spec, id) in specs.iter().zip(ids) {
            let policy = Policy {
                id,
                type_name: spec.type_name,
                node: compile(&spec.rule, false, leaves),
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
        Plan { policies, shadows, names, leaves: Leaves::default(), limits, trial: None }
    }

    /// Adds names of policies of an earlier process, as far as there is room for them, so that its
    /// decisions can be named.
    #[must_use]
    pub fn with_names<'a>(mut self, names: impl Iterator<Item = &'a str>) -> Self {
        for name in names {
            if self.names.len() < POLICY_NAMES_MAX && self.id(name).is_none() {
                self.names.push(name.to_owned());
            }
        }
        self
    }

    /// The id of a policy that is in force or was.
    pub fn id(&self, name: &str) -> Option<PolicyId> {
        let position = self.names.iter().position(|known| known == name)?;
        u16::try_from(position).ok().map(PolicyId)
    }

    /// The names of all policies since the start, by id.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The name of a policy; `none` for [`PolicyId::NONE`].
    pub fn name(&self, id: PolicyId) -> &str {
        self.names.get(usize::from(id.0)).map_or("none", String::as_str)
    }

    /// The conditions for which spans set bits.
    pub fn leaves(&self) -> &Leaves {
        &self.leaves
    }

    /// Decides. Appends every policy that matches, including vetoes, to `matched`.
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

    /// For each shadow policy that matches, tells how it alone would have changed the verdict. A
    /// set of policies takes the lowest threshold, so this is one comparison per policy.
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

    /// The policies that decide, in the order of the file.
    pub(super) fn deciding(&self) -> impl Iterator<Item = PolicyId> {
        self.policies.iter().map(|policy| policy.id)
    }

    /// The trial that runs beside these policies.
    pub fn trial(&self) -> Option<&Arc<Trial>> {
        self.trial.as_ref()
    }

    /// The second set of policies, if a trial runs.
    pub(super) fn candidate(&self) -> Option<&Arc<Plan>> {
        self.trial.as_ref().map(|trial| trial.candidate())
    }

    /// The shadow policies. If there are none, they cost nothing.
    pub fn shadows(&self) -> impl ExactSizeIterator<Item = PolicyId> {
        self.shadows.iter().map(|policy| policy.id)
    }

    /// The policies in force: those that decide in the order of the files, then the shadow
    /// policies.
    pub fn in_force(&self) -> impl Iterator<Item = InForce<'_>> {
        let count = self.policies.len();
        self.all().enumerate().map(move |(index, policy)| InForce {
            id: policy.id,
            name: self.name(policy.id),
            type_name: policy.type_name,
            is_shadow: index >= count,
            expires: policy.expiry.as_ref().map(|expiry| expiry.at()),
            threshold: (!policy.is_veto).then(|| self.raised(policy, policy.node.lowest())),
        })
    }

    /// The threshold that a policy proposes, raised by its limit.
    fn raised(&self, policy: &Policy, proposed: Threshold) -> Threshold {
        let raised = policy.limit.map(|limit| self.limits[limit].threshold());
        raised.map_or(proposed, |raised| raised.max(proposed))
    }

    /// All policies: those that decide, then the shadow policies.
    fn all(&self) -> impl Iterator<Item = &Policy> {
        self.policies.iter().chain(&self.shadows)
    }

    /// The limit of a policy with the same name and the same limit.
    fn limit(&self, id: PolicyId, spec: &LimitSpec) -> Option<Arc<Limit>> {
        let policy = self.all().find(|policy| policy.id == id)?;
        let limit = &self.limits[policy.limit?];
        (limit.spec() == spec).then(|| Arc::clone(limit))
    }

    /// The expiry of a policy with the same name and the same end.
    fn expiry(&self, id: PolicyId, at: u64) -> Option<Arc<Expiry>> {
        let policy = self.all().find(|policy| policy.id == id)?;
        policy.expiry.clone().filter(|expiry| expiry.at() == at)
    }

    /// Sets the time, in Unix milliseconds. A policy that has reached its end matches nothing.
    /// Returns the policies that have ended since the last call, without those of a trial. Called
    /// before the plan decides anything, and once per tick.
    pub fn expire(&self, now: u64) -> Vec<PolicyId> {
        if let Some(candidate) = self.candidate() {
            candidate.expire(now);
        }
        let has_come =
            |policy: &&Policy| policy.expiry.as_ref().is_some_and(|expiry| expiry.has_come(now));
        self.all().filter(has_come).map(|policy| policy.id).collect()
    }

    /// The policies that end, with their ends in Unix milliseconds.
    pub fn expiries(&self) -> Vec<(PolicyId, u64)> {
        let at = |policy: &Policy| Some((policy.id, policy.expiry.as_ref()?.at()));
        self.all().filter_map(at).collect()
    }

    /// Whether any policy, also of a trial, has a limit. If none has, ticks and charges do nothing.
    pub fn has_limits(&self) -> bool {
        !self.limits.is_empty() || self.candidate().is_some_and(|plan| plan.has_limits())
    }

    /// Whether a limit has not had a tick yet, so its threshold does not hold the rate.
    pub fn has_new_limits(&self) -> bool {
        !self.limits.iter().all(|limit| limit.has_begun())
            || self.candidate().is_some_and(|plan| plan.has_new_limits())
    }

    /// The limits of the policies that decide.
    pub(super) fn limits(&self) -> &[Arc<Limit>] {
        &self.limits
    }

    /// Charges a trace to the limits whose thresholds keep it. A trace that is decided early was
    /// not a candidate in a tick; it is noted, kept or not, so that the thresholds of the next
    /// ticks expect others like it.
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

    /// The limits that a trace counts towards, each with the threshold that its policy proposes
    /// without the limit. These are the limits of policies that would keep the trace, unless a
    /// policy vetoes it or another policy without a limit keeps it anyway. A shadow policy counts
    /// only towards its own limit.
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
    /// The threshold that the policy proposes without its limit.
    fn propose(&self, evidence: &Evidence<'_>) -> Threshold {
        if self.expiry.as_ref().is_some_and(|expiry| expiry.is_over()) {
            return Threshold::NEVER;
        }
        self.node.evaluate(evidence.facts, evidence.bits, self.is_veto && evidence.forced)
    }
}

/// The id of each policy. Appends new names.
fn ids(names: &mut Vec<String>, specs: &[PolicySpec]) -> Vec<PolicyId> {
    let mut known: HashMap<String, u16> = names.iter().cloned().zip(0..).collect();
    let id = |spec: &PolicySpec| {
        // At most 11,000: the known names, and at most 1,000 new ones.
        let next = names.len() as u16;
        let id = *known.entry(spec.name.clone()).or_insert(next);
        if id == next {
            names.push(spec.name.clone());
        }
        PolicyId(id)
    };
    specs.iter().map(id).collect()
}
