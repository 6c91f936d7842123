//! One decision tick of all limits: collects the candidates of every shard, each by the plan of its
//! shard, and sets one threshold per limit.
//!
//! During a reload, shards decide by two different plans. The plans share the limits that did not
//! change; these get the candidates of both and have one tick.

use std::{collections::HashMap, sync::Arc};

use super::{
    limit::{CANDIDATES_MAX, Candidate, Candidates, Limit},
    plan::{Evidence, Plan},
};

/// A decision tick that is collecting candidates.
#[derive(Debug)]
pub struct Tick {
    plans: Vec<OfPlan>,
    limits: Vec<(Arc<Limit>, Candidates)>,
    /// The index in `limits` of each limit, by address.
    found: HashMap<*const Limit, usize>,
    /// The number of candidates that may still be listed.
    room: usize,
    /// The limits of a trial. They have a list of their own, so they take no room from the others.
    of_trial: Option<Box<Tick>>,
}

#[derive(Debug)]
struct OfPlan {
    plan: Arc<Plan>,
    /// The index in [`Tick::limits`] of each of its limits.
    limits: Vec<usize>,
}

/// The limits that a tick begins for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begins {
    /// All limits.
    All,
    /// The limits that have not had a tick yet.
    New,
}

impl Default for Tick {
    /// Begins without plans.
    fn default() -> Self {
        let (plans, limits, found) = Default::default();
        Tick { plans, limits, found, room: CANDIDATES_MAX, of_trial: None }
    }
}

impl Tick {
    /// Adds the limits of a plan. Cheap if the plan is already known.
    pub fn join(&mut self, plan: &Arc<Plan>) {
        if self.plans.iter().any(|known| Arc::ptr_eq(&known.plan, plan)) {
            return;
        }
        let limits = plan.limits().iter().map(|limit| {
            *self.found.entry(Arc::as_ptr(limit)).or_insert_with(|| {
                self.limits.push((Arc::clone(limit), Candidates::default()));
                self.limits.len() - 1
            })
        });
        let limits = limits.collect();
        self.plans.push(OfPlan { plan: Arc::clone(plan), limits });
        if let Some(candidate) = plan.candidate() {
            self.of_trial.get_or_insert_default().join(candidate);
        }
    }

    /// Adds a due trace to the candidates of each limit that it counts towards. The plan must have
    /// joined.
    pub fn add(&mut self, plan: &Arc<Plan>, evidence: &Evidence<'_>) {
        let known = self.plans.iter().find(|known| Arc::ptr_eq(&known.plan, plan));
        let Some(known) = known else { return };
        let costs = [evidence.facts.spans, evidence.facts.bytes];
        let candidate = Candidate { randomness: evidence.randomness, costs };
        for (limit, _) in plan.limited(evidence) {
            let (_, candidates) = &mut self.limits[known.limits[limit]];
            candidates.add(candidate, &mut self.room);
        }
        if let (Some(tick), Some(candidate)) = (&mut self.of_trial, plan.candidate()) {
            tick.add(candidate, evidence);
        }
    }

    /// Sets the thresholds, `seconds` after the last tick.
    pub fn begin(self, seconds: f64, begins: Begins) {
        for (limit, candidates) in self.limits {
            if begins == Begins::All || !limit.has_begun() {
                limit.begin_tick(seconds, candidates);
            }
        }
        if let Some(tick) = self.of_trial {
            tick.begin(seconds, begins);
        }
    }
}
