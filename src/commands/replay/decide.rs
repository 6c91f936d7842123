//! Decides gathered traces in the order of their time, by one set of policies or two.
//!
//! A trace is decided when it is complete, at its latest end. Limits tick on that time as in the
//! service: every 100 ms, and each trace is a candidate in the tick that it falls into. A trace
//! without times comes first.

use std::sync::Arc;

use super::totals::{Change, Sum, Totals, Weighed};
use crate::{
    commands::traces::Traces,
    otlp::walk::Unwalked,
    policy::{Begins, Plan, PolicySpec, Tick, Verdict},
};

/// The length of a tick of the service.
const TICK_NANOS: u64 = 100_000_000;

/// When memory is full, the oldest traces are decided early: one in this many of those in memory.
const EARLY_PART: usize = 8;

/// The undecided traces, and the outcome so far.
pub(super) struct Replay {
    traces: Traces,
    traces_max: usize,
    sets: Vec<Set>,
    outcome: Outcome,
}

/// One set of policies, and its totals.
struct Set {
    plan: Arc<Plan>,
    /// When the last tick began, Unix nanoseconds.
    ticked_at: Option<u64>,
    totals: Totals,
}

/// The outcome of a replay: the figures of the input, and the decisions.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Outcome {
    pub(super) input: Sum,
    /// Earliest start and latest end, in Unix nanoseconds; 0 if there is none.
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) skipped: u64,
    /// Whether any trace stands for more than one trace of the original traffic.
    pub(super) is_weighted: bool,
    /// Traces that were decided before everything was read.
    pub(super) early: u64,
    /// The totals of the first set, and of the second if there is one.
    pub(super) totals: Vec<Totals>,
    pub(super) newly_kept: Change,
    pub(super) newly_dropped: Change,
}

impl Replay {
    /// A replay with one set of policies or two, and at most `memory` bytes for undecided traces.
    pub(super) fn new(sets: &[Vec<PolicySpec>], memory: usize) -> Self {
        let plans: Vec<_> = sets.iter().map(|specs| Arc::new(Plan::compile(specs))).collect();
        let traces = Traces::new(plans);
        let set = |plan: &Arc<Plan>| {
            let totals = Totals::of(plan.names());
            Set { plan: Arc::clone(plan), ticked_at: None, totals }
        };
        Replay {
            traces_max: (memory / traces.bytes_per_trace()).clamp(EARLY_PART, 1 << 31),
            sets: traces.plans().iter().map(set).collect(),
            traces,
            outcome: Outcome::default(),
        }
    }

    /// Adds a request from a file that holds `share` of all traces. Returns the number of spans
    /// without valid ids.
    ///
    /// # Errors
    /// [`Unwalked`]; nothing of the request was taken.
    pub(super) fn add(&mut self, request: &[u8], share: f64) -> Result<u64, Unwalked> {
        let left_out = self.traces.add(request, share)?;
        while self.traces.all().len() > self.traces_max {
            self.decide_early();
        }
        Ok(left_out)
    }

    /// Decides the remaining traces.
    pub(super) fn finish(mut self, skipped: u64) -> Outcome {
        let all = self.in_order();
        self.decide(&all, false);
        let totals = self.sets.into_iter().map(|set| set.totals).collect();
        Outcome { skipped, totals, ..self.outcome }
    }

    /// Traces in the order of their time.
    fn in_order(&self) -> Vec<u32> {
        let all = self.traces.all();
        // The memory limit keeps their number far below 2^32.
        let mut order: Vec<u32> = (0..all.len() as u32).collect();
        order.sort_by_key(|&at| (all[at as usize].time(), all[at as usize].id));
        order
    }

    fn decide_early(&mut self) {
        let mut oldest = self.in_order();
        oldest.truncate((oldest.len() / EARLY_PART).max(1));
        self.decide(&oldest, true);
        self.outcome.early += oldest.len() as u64;
        let mut is_decided = vec![false; self.traces.all().len()];
        oldest.iter().for_each(|&at| is_decided[at as usize] = true);
        self.traces.forget(&is_decided);
    }

    fn decide(&mut self, order: &[u32], are_early: bool) {
        let all = self.traces.all();
        let tick_of = |at: &u32| all[*at as usize].time() / TICK_NANOS;
        let mut decided = Vec::new();
        for tick in order.chunk_by(|a, b| tick_of(a) == tick_of(b)) {
            for (number, set) in self.sets.iter_mut().enumerate() {
                if set.plan.has_limits() {
                    set.begin_tick(number, tick, &self.traces, tick_of(&tick[0]) * TICK_NANOS);
                }
            }
            for &at in tick {
                let trace = &self.traces.all()[at as usize];
                self.outcome.note(trace);
                let trace = Weighed::new(trace);
                self.outcome.input.add(&trace, trace.weight);
                decided.clear();
                for (number, set) in self.sets.iter_mut().enumerate() {
                    let verdict = set.decide(&self.traces, at as usize, number, are_early);
                    decided.push((trace.kept(&verdict.0), verdict.0.kept));
                    let matched = verdict.1.iter().copied();
                    set.totals.add(&trace, &verdict.0, matched);
                }
                if let [(before, was_kept), (after, is_kept)] = decided[..] {
                    let Outcome { newly_kept, newly_dropped, .. } = &mut self.outcome;
                    newly_kept.add(&trace, after - before, is_kept && !was_kept);
                    newly_dropped.add(&trace, before - after, was_kept && !is_kept);
                }
            }
        }
    }
}

impl Set {
    /// Sets the thresholds of limits for the traces of one tick.
    fn begin_tick(&mut self, number: usize, tick: &[u32], traces: &Traces, now: u64) {
        let seconds = |nanos: u64| nanos as f64 / 1e9;
        let since = self.ticked_at.map_or(TICK_NANOS, |last| now.saturating_sub(last));
        self.ticked_at = self.ticked_at.max(Some(now));
        // A time without traces passes as a tick without candidates.
        if since > TICK_NANOS {
            let mut quiet = Tick::new(Begins::All, seconds(since - TICK_NANOS));
            quiet.join(&self.plan);
            quiet.begin();
        }
        let mut begun = Tick::new(Begins::All, seconds(since.min(TICK_NANOS)));
        begun.join(&self.plan);
        for &at in tick {
            // The traces come in the order of their time.
            begun.add(&self.plan, &traces.evidence(at as usize, number, false), 0);
        }
        begun.begin();
    }

    /// The verdict and the indices of the policies that match.
    fn decide(
        &self,
        traces: &Traces,
        at: usize,
        number: usize,
        is_early: bool,
    ) -> (Verdict, Vec<usize>) {
        let mut matched = Vec::new();
        let evidence = traces.evidence(at, number, is_early);
        let verdict = self.plan.decide(&evidence, &mut matched);
        if verdict.kept && self.plan.has_limits() {
            self.plan.charge(&traces.evidence(at, number, false));
        }
        (verdict, matched.into_iter().map(|policy| usize::from(policy.0)).collect())
    }
}

impl Outcome {
    fn note(&mut self, trace: &crate::commands::traces::Trace) {
        let facts = &trace.facts;
        if facts.start_unix_nano != 0 && (self.from == 0 || facts.start_unix_nano < self.from) {
            self.from = facts.start_unix_nano;
        }
        self.to = self.to.max(trace.time());
        self.is_weighted |= trace.sampled_at.is_some() || trace.share < 1.0;
    }
}
