//! One decision tick of all limits: the candidates of every shard, each by the plan of its shard,
//! then one threshold for each limit.
//!
//! While a reload goes from shard to shard there are two plans. They share the limits that did not
//! change, which are offered the candidates of both and ticked once.

use std::{collections::HashMap, sync::Arc};

use super::{
    limit::{CANDIDATES_MAX, Candidate, Candidates, Limit},
    plan::{Evidence, Plan},
};

/// See the module.
#[derive(Debug)]
pub struct Tick {
    plans: Vec<OfPlan>,
    limits: Vec<(Arc<Limit>, Candidates)>,
    /// Where in `limits` each of them is, by address.
    found: HashMap<*const Limit, usize>,
    /// How many more candidates may be listed.
    room: usize,
}

#[derive(Debug)]
struct OfPlan {
    plan: Arc<Plan>,
    /// Where in [`Tick::limits`] each of its limits is.
    limits: Vec<usize>,
}

/// Which limits a tick begins for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begins {
    /// All.
    All,
    /// Those that have not had a tick yet.
    New,
}

impl Default for Tick {
    /// Without plans.
    fn default() -> Self {
        Tick { plans: Vec::new(), limits: Vec::new(), found: HashMap::new(), room: CANDIDATES_MAX }
    }
}

impl Tick {
    /// Takes the limits of a plan in. Costs little where it is known already.
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
    }

    /// Adds a due trace to the candidates of each limit that it counts towards. The plan has
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
    }

    /// Sets the thresholds, this long after the last tick.
    pub fn begin(self, seconds: f64, begins: Begins) {
        for (limit, candidates) in self.limits {
            if begins == Begins::All || !limit.has_begun() {
                limit.begin_tick(seconds, candidates);
            }
        }
    }
}
