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

mod asked;
mod readings;
mod verdict;

use std::{collections::HashMap, sync::Arc};

pub(in crate::policy) use self::asked::Asked;
pub(crate) use self::readings::Overflowed;
pub use self::{
    readings::KindsReading,
    verdict::{Effect, Evidence, Shadowed, Verdict},
};

use super::{
    builder::LeavesBuilder,
    compile::compile,
    expiry::Expiry,
    kinds,
    leaves::Leaves,
    limit::{Candidate, Limit, Spec},
    node::Node,
    rare::Rare,
    spec::{PolicySpec, RareSpec, RuleKind},
    trial::Trial,
};
use crate::trace::{Randomness, Threshold};

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
    /// Limits and budgets.
    limits: Vec<Arc<Limit>>,
    rares: Vec<Arc<Rare>>,
    /// The word of the first value that tells kinds of traces apart.
    first_value: usize,
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

/// A policy in force, described for people.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct InForce<'a> {
    /// Its id.
    pub(crate) id: PolicyId,
    /// Its name.
    pub(crate) name: &'a str,
    /// Its `type`, as it is written.
    pub(crate) type_name: &'static str,
    /// Whether it is a shadow policy.
    pub(crate) is_shadow: bool,
    /// When it ends, in Unix milliseconds.
    pub(crate) expires: Option<u64>,
    /// The threshold that it proposes now for a trace that it matches, limits included; if it has
    /// parts with different percentages, the lowest of these thresholds. `None` for `drop`, and for
    /// `budget`, which has one for each kind of traces.
    pub(crate) threshold: Option<Threshold>,
}

#[derive(Debug)]
struct Policy {
    id: PolicyId,
    type_name: &'static str,
    node: Node,
    is_veto: bool,
    /// The index of its limit or budget in the plan's limits.
    limit: Option<usize>,
    /// The index of its state in the plan's rares, if it is `rare`.
    rare: Option<usize>,
    /// The words of the values that tell kinds of traces apart; empty unless it has kinds.
    kind: Box<[u32]>,
    /// The time at which it ends, if it ends.
    expiry: Option<Arc<Expiry>>,
}

impl Plan {
    /// Compiles valid policies. Leaves that several policies share are compiled once.
    pub fn compile(specs: &[PolicySpec]) -> Self {
        Plan::build(None, specs, None)
    }

    /// Compiles valid policies as a successor of this plan. A name that was known keeps its id, and
    /// a policy with an unchanged limit, budget or `rare` keeps its state.
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
        let candidate = candidate.map(|specs| Plan::with_leaves(None, specs, &mut leaves));
        let leaves = leaves.build();
        let first_value = leaves.first_value();
        let trial = candidate
            .map(|candidate| Arc::new(Trial::new(&plan, Plan { first_value, ..candidate })));
        Plan { leaves, trial, first_value, ..plan }
    }

    /// Compiles policies whose conditions go to `leaves`; the plan has none of its own yet.
    fn with_leaves(
        before: Option<&Plan>,
        specs: &[PolicySpec],
        leaves: &mut LeavesBuilder,
    ) -> Self {
        let mut names = before.map_or_else(Vec::new, |before| before.names.clone());
        let ids = ids(&mut names, specs);
        let (mut limits, mut rares) = (Vec::new(), Vec::new());
        let (mut policies, mut shadows) = (Vec::new(), Vec::new());
        for (spec, id) in specs.iter().zip(ids) {
            let keys = spec.rule.kind.kinds().map_or(&[][..], |kinds| &kinds.keys);
            let policy = Policy {
                id,
                type_name: spec.type_name,
                node: compile(&spec.rule, false, leaves),
                is_veto: matches!(spec.rule.kind, RuleKind::Drop(_)),
                limit: limit_spec(spec).map(|limit| {
                    let kept = before.and_then(|before| before.limit(id, &limit));
                    limits.push(kept.unwrap_or_else(|| Arc::new(Limit::new(limit))));
                    limits.len() - 1
                }),
                rare: rare_spec(spec).map(|rare| {
                    let kept = before.and_then(|before| before.rare(id, rare));
                    rares.push(kept.unwrap_or_else(|| Arc::new(Rare::new(rare.clone()))));
                    rares.len() - 1
                }),
                kind: keys.iter().map(|key| leaves.value(key)).collect(),
                expiry: spec.expires.map(|at| {
                    let kept = before.and_then(|before| before.expiry(id, at));
                    kept.unwrap_or_else(|| Arc::new(Expiry::new(at)))
                }),
            };
            if spec.shadow { &mut shadows } else { &mut policies }.push(policy);
        }
        let (leaves, first_value) = (Leaves::default(), 0);
        Plan { policies, shadows, names, leaves, limits, rares, first_value, trial: None }
    }

    /// Adds names of policies of an earlier process, as far as there is room for them, so that its
    /// decisions can be named.
    #[must_use]
    pub(crate) fn with_names<'a>(mut self, names: impl Iterator<Item = &'a str>) -> Self {
        for name in names {
            if self.names.len() < POLICY_NAMES_MAX && self.id(name).is_none() {
                self.names.push(name.to_owned());
            }
        }
        self
    }

    /// The id of a policy that is in force or was.
    pub(crate) fn id(&self, name: &str) -> Option<PolicyId> {
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
        let is_vetoed = evidence.forced && !self.rares.is_empty() && self.vetoes(evidence);
        for policy in &self.policies {
            let id = policy.id;
            let proposed = policy.propose(evidence);
            if !proposed.matches() || !self.is_granted(policy, evidence, is_vetoed) {
                continue;
            }
            matched.push(id);
            if policy.is_veto {
                veto = veto.or(Some(id));
                continue;
            }
            let threshold = self.raised(policy, proposed, evidence);
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

    /// Whether a trace that is kept owes this to a limit, a budget or a rare policy alone. These
    /// depend on other traces, so another process may decide otherwise.
    pub(crate) fn depends_on_others(&self, evidence: &Evidence<'_>) -> bool {
        let is_sure =
            |policy: &&Policy| policy.limit.is_none() && policy.rare.is_none() && !policy.is_veto;
        let mut sure = self.policies.iter().filter(is_sure);
        self.has_limits() && !sure.any(|policy| policy.propose(evidence).keeps(evidence.randomness))
    }

    /// For each shadow policy that matches, tells how it alone would have changed the verdict. A
    /// set of policies takes the lowest threshold, so this is one comparison per policy.
    pub(crate) fn shadow(
        &self,
        evidence: &Evidence<'_>,
        verdict: &Verdict,
        out: &mut Vec<Shadowed>,
    ) {
        let is_vetoed = verdict.policy != PolicyId::NONE && !verdict.threshold.matches();
        for policy in &self.shadows {
            let proposed = policy.propose(evidence);
            if !proposed.matches() || !self.is_granted(policy, evidence, is_vetoed) {
                continue;
            }
            let keeps = || self.raised(policy, proposed, evidence).keeps(evidence.randomness);
            let effect = match (policy.is_veto, verdict.kept) {
                (true, true) => Effect::Dropped,
                (false, false) if !is_vetoed && keeps() => Effect::Kept,
                _ => Effect::None,
            };
            out.push(Shadowed { policy: policy.id, effect });
        }
    }

    /// Whether any policy vetoes.
    fn vetoes(&self, evidence: &Evidence<'_>) -> bool {
        let mut vetoes = self.policies.iter().filter(|policy| policy.is_veto);
        vetoes.any(|policy| policy.propose(evidence).matches())
    }

    /// Whether a policy that is `rare` keeps a trace that meets its conditions; true for any other
    /// policy. A trace that is decided outside a tick asks for its grant here.
    fn is_granted(&self, policy: &Policy, evidence: &Evidence<'_>, is_vetoed: bool) -> bool {
        let Some(rare) = policy.rare else { return true };
        let rare = &self.rares[rare];
        if evidence.forced && !is_vetoed {
            return rare.grant(self.kind(policy, evidence), evidence.trace_id);
        }
        rare.has_granted(evidence.trace_id)
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
    pub(crate) fn shadows(&self) -> impl ExactSizeIterator<Item = PolicyId> {
        self.shadows.iter().map(|policy| policy.id)
    }

    /// The policies in force: those that decide in the order of the files, then the shadow
    /// policies.
    pub(crate) fn in_force(&self) -> impl Iterator<Item = InForce<'_>> {
        let count = self.policies.len();
        self.all().enumerate().map(move |(index, policy)| InForce {
            id: policy.id,
            name: self.name(policy.id),
            type_name: policy.type_name,
            is_shadow: index >= count,
            expires: policy.expiry.as_ref().map(|expiry| expiry.at()),
            threshold: self.current(policy),
        })
    }

    /// The lowest threshold that a policy proposes now; `None` if it has none, or has one for each
    /// kind of traces.
    fn current(&self, policy: &Policy) -> Option<Threshold> {
        // A `rare` policy tells kinds apart as well, but keeps all that it grants.
        if policy.is_veto || (!policy.kind.is_empty() && policy.rare.is_none()) {
            return None;
        }
        let any = Candidate { randomness: Randomness(0), kind: 0, costs: [1, 1] };
        let limit = policy.limit.map(|limit| self.limits[limit].threshold(&any));
        let lowest = policy.node.lowest();
        Some(limit.map_or(lowest, |limit| limit.max(lowest)))
    }

    /// The threshold that a policy proposes, raised by its limit or budget.
    fn raised(&self, policy: &Policy, proposed: Threshold, of: &Evidence<'_>) -> Threshold {
        let Some(limit) = policy.limit else { return proposed };
        let candidate = Candidate { kind: self.kind(policy, of), ..of.candidate() };
        self.limits[limit].threshold(&candidate).max(proposed)
    }

    /// The kind of a trace for this policy.
    fn kind(&self, policy: &Policy, evidence: &Evidence<'_>) -> u64 {
        kinds::kind(&policy.kind, self.first_value, evidence.bits)
    }

    /// All policies: those that decide, then the shadow policies.
    fn all(&self) -> impl Iterator<Item = &Policy> {
        self.policies.iter().chain(&self.shadows)
    }

    /// The limit or budget of a policy with the same name and the same specification.
    fn limit(&self, id: PolicyId, spec: &Spec) -> Option<Arc<Limit>> {
        let policy = self.all().find(|policy| policy.id == id)?;
        let limit = &self.limits[policy.limit?];
        (limit.spec() == spec).then(|| Arc::clone(limit))
    }

    /// The state of a rare policy with the same name and the same specification.
    fn rare(&self, id: PolicyId, spec: &RareSpec) -> Option<Arc<Rare>> {
        let policy = self.all().find(|policy| policy.id == id)?;
        let rare = &self.rares[policy.rare?];
        (rare.spec() == spec).then(|| Arc::clone(rare))
    }

    /// The expiry of a policy with the same name and the same end.
    fn expiry(&self, id: PolicyId, at: u64) -> Option<Arc<Expiry>> {
        let policy = self.all().find(|policy| policy.id == id)?;
        policy.expiry.clone().filter(|expiry| expiry.at() == at)
    }

    /// Sets the time, in Unix milliseconds. A policy that has reached its end matches nothing.
    /// Returns the policies that have ended since the last call, without those of a trial. Called
    /// before the plan decides anything, and once per tick.
    pub(crate) fn expire(&self, now: u64) -> Vec<PolicyId> {
        if let Some(candidate) = self.candidate() {
            candidate.expire(now);
        }
        let has_come =
            |policy: &&Policy| policy.expiry.as_ref().is_some_and(|expiry| expiry.has_come(now));
        self.all().filter(has_come).map(|policy| policy.id).collect()
    }

    /// The policies that end, with their ends in Unix milliseconds.
    pub(crate) fn expiries(&self) -> Vec<(PolicyId, u64)> {
        let at = |policy: &Policy| Some((policy.id, policy.expiry.as_ref()?.at()));
        self.all().filter_map(at).collect()
    }

    /// Whether any policy, also of a trial, has a limit, or is a budget or `rare`. If none, ticks
    /// and charges do nothing.
    pub(crate) fn has_limits(&self) -> bool {
        !self.limits.is_empty()
            || !self.rares.is_empty()
            || self.candidate().is_some_and(|plan| plan.has_limits())
    }

    /// Whether a limit has not had a tick yet, so its threshold does not hold the rate.
    pub(crate) fn has_new_limits(&self) -> bool {
        !self.limits.iter().all(|limit| limit.has_begun())
            || !self.rares.iter().all(|rare| rare.has_begun())
            || self.candidate().is_some_and(|plan| plan.has_new_limits())
    }

    /// The limits and budgets.
    pub(super) fn limits(&self) -> &[Arc<Limit>] {
        &self.limits
    }

    /// The states of rare policies.
    pub(super) fn rares(&self) -> &[Arc<Rare>] {
        &self.rares
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

/// The limit of a policy, or the budget that it is.
fn limit_spec(spec: &PolicySpec) -> Option<Spec> {
    match &spec.rule.kind {
        RuleKind::Budget(_, budget) => Some(Spec::Budget(budget.clone())),
        _ => spec.limit.map(Spec::Limit),
    }
}

fn rare_spec(spec: &PolicySpec) -> Option<&RareSpec> {
    match &spec.rule.kind {
        RuleKind::Rare(_, rare) => Some(rare),
        _ => None,
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
