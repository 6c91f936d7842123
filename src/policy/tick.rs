//! One decision tick of all limits, budgets and rare policies: collects the candidates of every
//! shard, each according to the plan of its shard, and sets the thresholds.
//!
//! During a reload, shards decide by two different plans. The plans share the limits that did not
//! change; these get the candidates of both and have one tick.
//!
//! Rare policies grant the due traces in their order of arrival over all shards, so traces that may
//! be granted wait until all shards have been visited. A trace that is granted is kept at 100 % and
//! is not a candidate of a limit. At most [`CANDIDATES_MAX`] traces wait; further traces get no
//! grant and count as overflowed.

use std::{collections::HashMap, sync::Arc};

use super::{
    limit::{CANDIDATES_MAX, Candidate, Candidates, Limit},
    plan::{Asked, Evidence, Plan},
    rare::Rare,
};
use crate::trace::TraceId;

/// A decision tick that is collecting candidates.
#[derive(Debug)]
pub struct Tick {
    begins: Begins,
    /// Seconds since the last tick.
    seconds: f64,
    plans: Vec<OfPlan>,
    limits: Vec<(Arc<Limit>, Candidates)>,
    /// The index in `limits` of each limit, by address.
    found: HashMap<*const Limit, usize>,
    rares: Vec<Arc<Rare>>,
    /// The traces that a rare policy may grant.
    waiting: Vec<Waiting>,
    /// The number of candidates that may still be listed.
    room: usize,
    /// A buffer for the claims of one trace.
    asked: Asked,
    /// The limits of a trial. They have a list of their own, so they take no room from the others.
    of_trial: Option<Box<Tick>>,
}

#[derive(Debug)]
struct OfPlan {
    plan: Arc<Plan>,
    /// The index in [`Tick::limits`] of each of its limits.
    limits: Vec<usize>,
}

/// A trace that a rare policy may grant.
#[derive(Debug)]
struct Waiting {
    age_millis: u32,
    trace: TraceId,
    /// The index in [`Tick::plans`].
    plan: usize,
    candidate: Candidate,
    asked: Asked,
}

/// The limits that a tick begins for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begins {
    /// All limits.
    All,
    /// The limits that have not had a tick yet.
    New,
}

impl Tick {
    /// A tick without plans, `seconds` after the last one.
    pub fn new(begins: Begins, seconds: f64) -> Self {
        Tick {
            begins,
            seconds,
            plans: Vec::new(),
            limits: Vec::new(),
            found: HashMap::new(),
            rares: Vec::new(),
            waiting: Vec::new(),
            room: CANDIDATES_MAX,
            asked: Asked::default(),
            of_trial: None,
        }
    }

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
        for rare in plan.rares() {
            if !self.rares.iter().any(|known| Arc::ptr_eq(known, rare)) {
                // Before the first trace asks, so that kinds whose interval is over make room.
                if self.begins == Begins::All || !rare.has_begun() {
                    rare.begin_tick(self.seconds);
                }
                self.rares.push(Arc::clone(rare));
            }
        }
        self.plans.push(OfPlan { plan: Arc::clone(plan), limits });
        if let Some(candidate) = plan.candidate() {
            let new = || Box::new(Tick::new(self.begins, self.seconds));
            self.of_trial.get_or_insert_with(new).join(candidate);
        }
    }

    /// Adds a due trace, which arrived `age_millis` ago, to the candidates of each limit that it
    /// counts towards. The plan must have been passed to [`Self::join`].
    pub fn add(&mut self, plan: &Arc<Plan>, evidence: &Evidence<'_>, age_millis: u32) {
        let known = self.plans.iter().position(|known| Arc::ptr_eq(&known.plan, plan));
        let Some(of_plan) = known else { return };
        let mut asked = std::mem::take(&mut self.asked);
        plan.asked(evidence, &mut asked);
        let candidate = evidence.candidate();
        if !asked.rares.is_empty() && self.waiting.len() < CANDIDATES_MAX {
            let (trace, plan, asked) = (evidence.trace_id, of_plan, std::mem::take(&mut asked));
            self.waiting.push(Waiting { age_millis, trace, plan, candidate, asked });
        } else {
            asked.rares.iter().for_each(|rare| plan.rares()[rare.index].note_overflowed());
            self.add_to_limits(of_plan, &asked, candidate);
        }
        self.asked = asked;
        if let (Some(tick), Some(candidate)) = (&mut self.of_trial, plan.candidate()) {
            tick.add(candidate, evidence, age_millis);
        }
    }

    /// Sets the thresholds.
    pub fn begin(mut self) {
        let mut waiting = std::mem::take(&mut self.waiting);
        // Stable, so the traces of a millisecond stay in the order of the visit.
        waiting.sort_by_key(|trace| std::cmp::Reverse(trace.age_millis));
        for Waiting { trace, plan, candidate, asked, .. } in waiting {
            let rares = self.plans[plan].plan.rares();
            let mut is_granted = false;
            for rare in &asked.rares {
                is_granted |= rares[rare.index].grant(rare.kind, trace) && !rare.is_shadow;
            }
            if !is_granted {
                self.add_to_limits(plan, &asked, candidate);
            }
        }
        for (limit, candidates) in self.limits {
            if self.begins == Begins::All || !limit.has_begun() {
                limit.begin_tick(self.seconds, candidates);
            }
        }
        if let Some(tick) = self.of_trial {
            tick.begin();
        }
    }

    /// Adds a trace to its limits.
    fn add_to_limits(&mut self, plan: usize, asked: &Asked, of: Candidate) {
        for (limit, _) in &asked.limits {
            let (known, candidates) = &mut self.limits[self.plans[plan].limits[limit.index]];
            if self.begins == Begins::All || !known.has_begun() {
                let candidate = Candidate { kind: limit.kind, ..of };
                known.ask(&candidate);
                candidates.add(candidate, &mut self.room);
            }
        }
    }
}
