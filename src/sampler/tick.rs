//! Ticks: they set the thresholds of limited policies, and define which traces are decided by them.
//!
//! A tick sets the thresholds from all traces that are due at its moment. It lasts until each of
//! these traces is decided, and at least until the decider comes around again. Traces that become
//! due later wait for the next tick. So every trace is a candidate in exactly one tick and is
//! decided by the thresholds of that tick. While the export queue is full, due traces stay
//! undecided. If a new tick judged traces again that had passed the thresholds of the previous
//! tick, their counts would be too low.
//!
//! Traces that are decided early (memory, trace limits, shutdown) do not wait for a tick.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
};

use super::{Sampler, ShardState, decide::evidence};
use crate::{
    budget::{Hold, Holder},
    policy::{Begins, Plan, Tick},
    window::Millis,
};

/// The tick that set the current thresholds.
#[derive(Debug)]
pub(super) struct Ticks {
    /// Whether a shard may decide by a limit.
    has_limits: AtomicBool,
    /// The moment of the tick in milliseconds. Only the decider writes and reads it, so no memory
    /// ordering is needed.
    by: AtomicU32,
    /// Seconds since the previous tick began.
    seconds: Mutex<f64>,
    /// The memory that the tables of kinds take.
    kinds: Mutex<Option<Hold>>,
}

impl Ticks {
    pub(super) fn new(has_limits: bool) -> Self {
        Ticks {
            has_limits: AtomicBool::new(has_limits),
            by: AtomicU32::default(),
            seconds: Mutex::default(),
            kinds: Mutex::default(),
        }
    }

    /// Called before the first shard decides by `plan`.
    pub(super) fn reload_begins(&self, plan: &Plan) {
        self.has_limits.fetch_or(plan.has_limits(), Relaxed);
    }

    /// Called after all shards decide by the new plan.
    pub(super) fn reload_ends(&self, plan: &Plan) {
        self.has_limits.store(plan.has_limits(), Relaxed);
    }

    fn by(&self) -> Millis {
        Millis(self.by.load(Relaxed))
    }
}

impl Sampler {
    /// Begins a tick at `now` if the previous one is over: sets the thresholds of limited policies
    /// from all traces that are due at `now`, in all shards. Called before each round over the
    /// shards, with the time since the previous call.
    pub fn begin_tick(&self, now: Millis, seconds: f64) {
        if !self.ticks.has_limits.load(Relaxed) {
            self.ticks.by.store(now.0, Relaxed);
            self.hold_kinds(0);
            return;
        }
        // No code panics while it holds this lock.
        let mut since = self.ticks.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        *since += seconds;
        let by = self.ticks.by();
        let (mut is_over, mut has_new_limits) = (true, false);
        for shard in self.all() {
            let mut state = self.lock(shard);
            let is_candidate = state.candidates_by(by).is_some();
            let by = state.ticked_by(by);
            let is_done = !is_candidate || !state.plan.has_limits();
            is_over &= is_done || state.window.next_due(by).is_none();
            has_new_limits |= state.plan.has_new_limits();
        }
        if is_over {
            self.ticks.by.store(now.0, Relaxed);
            let seconds = std::mem::take(&mut *since);
            self.tick(now, Begins::All, seconds);
        } else if has_new_limits {
            self.tick(by, Begins::New, 0.0);
        }
        self.hold_kinds(self.plan().kinds_bytes());
    }

    /// Charges the tables of kinds, without asking: there are at most `max_keys` kinds for each
    /// policy.
    fn hold_kinds(&self, bytes: usize) {
        // No code panics while it holds this lock.
        let mut kinds = self.ticks.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if kinds.as_ref().map_or(0, Hold::bytes) != bytes {
            *kinds = Some(self.budget.hold(Holder::Kinds, bytes));
        }
    }

    /// Begins a tick with the candidates of all shards at this moment. Windows of partitions have
    /// their own time, and may decide their candidates only after the tick.
    fn tick(&self, by: Millis, begins: Begins, seconds: f64) {
        let mut tick = Tick::new(begins, seconds);
        let mut partitions = Vec::new();
        for shard in self.all() {
            let mut state = self.lock(shard);
            let Some(by) = state.candidates_by(by) else { continue };
            if shard < self.shards() {
                state.window.advance(by);
            } else {
                partitions.push((shard, by, state.generation()));
            }
            tick.join(&state.plan);
            if !state.plan.has_limits() {
                continue;
            }
            for position in state.window.all_due(by) {
                let facts = state.window.facts(position);
                let evidence = evidence(&state.window, position, &facts, false);
                // A trace that makes a policy panic is not a candidate; its decision counts the
                // panic.
                let age = state.window.age_millis(position);
                let _ = catch_unwind(AssertUnwindSafe(|| tick.add(&state.plan, &evidence, age)));
            }
        }
        tick.begin();
        if begins == Begins::All {
            for (shard, by, generation) in partitions {
                self.lock(shard).note_tick(by, generation);
            }
        }
    }

    /// The moment up to which due traces may be decided by `plan` now. With limits, it is the
    /// moment of the current tick; before the first tick of a limit, no trace may be decided.
    pub(super) fn limited_to_tick(&self, state: &ShardState, now: Millis) -> Option<Millis> {
        let plan = &state.plan;
        if !plan.has_limits() {
            return Some(now);
        }
        let by = state.ticked_by(self.ticks.by());
        let by = if by.is_due(now) { by } else { now };
        (!plan.has_new_limits()).then_some(by)
    }
}
