//! Ticks: when the thresholds of limited policies change, and what is decided by them.
//!
//! A tick sets the thresholds from all traces that are due by its moment, and lasts until each of
//! them is decided, at least until the decider comes around again. Traces that become due after
//! that moment wait for the next one. So every trace is a candidate in one tick, and decided by
//! the thresholds of that tick. While the sending queue is full, due traces stay undecided: if a
//! new tick judged those again that had passed the thresholds of the last one, their counts would
//! be too low.
//!
//! Traces that are decided before their time (memory, the limits of a trace, shutdown) do not wait
//! for a tick.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
};

use super::{Sampler, decide::evidence};
use crate::{
    policy::{Begins, Plan, Tick},
    window::Millis,
};

/// The tick that thresholds are from.
#[derive(Debug)]
pub(super) struct Ticks {
    /// Whether a shard may decide by a limit.
    has_limits: AtomicBool,
    /// Milliseconds: the moment of the tick. Only the decider sets and reads it, so that no
    /// ordering is needed.
    by: AtomicU32,
    /// Seconds since the last tick began.
    seconds: Mutex<f64>,
}

impl Ticks {
    pub(super) fn new(has_limits: bool) -> Self {
        Ticks {
            has_limits: AtomicBool::new(has_limits),
            by: AtomicU32::default(),
            seconds: Mutex::default(),
        }
    }

    /// Before the first shard decides by `plan`.
    pub(super) fn reload_begins(&self, plan: &Plan) {
        self.has_limits.fetch_or(plan.has_limits(), Relaxed);
    }

    /// After all shards do.
    pub(super) fn reload_ends(&self, plan: &Plan) {
        self.has_limits.store(plan.has_limits(), Relaxed);
    }

    fn by(&self) -> Millis {
        Millis(self.by.load(Relaxed))
    }
}

impl Sampler {
    /// Begins a tick at `now`, if the last one is over: sets the thresholds of limited policies
    /// from what all shards have to decide by `now`. Called before each round over the shards, with
    /// the time since the last call.
    pub fn begin_tick(&self, now: Millis, seconds: f64) {
        if !self.ticks.has_limits.load(Relaxed) {
            self.ticks.by.store(now.0, Relaxed);
            return;
        }
        // Nothing can panic while it is held.
        let mut since = self.ticks.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        *since += seconds;
        let by = self.ticks.by();
        let (mut is_over, mut has_new_limits) = (true, false);
        for shard in 0..self.shards() {
            let mut state = self.lock(shard);
            is_over &= !state.plan.has_limits() || state.window.next_due(by).is_none();
            has_new_limits |= state.plan.has_new_limits();
        }
        if is_over {
            self.ticks.by.store(now.0, Relaxed);
            self.candidates(now).begin(std::mem::take(&mut *since), Begins::All);
        } else if has_new_limits {
            self.candidates(by).begin(0.0, Begins::New);
        }
    }

    /// What all shards have to decide by this moment.
    fn candidates(&self, by: Millis) -> Tick {
        let mut tick = Tick::default();
        for shard in 0..self.shards() {
            let mut state = self.lock(shard);
            state.window.advance(by);
            tick.join(&state.plan);
            if !state.plan.has_limits() {
                continue;
            }
            for position in state.window.all_due(by) {
                let facts = state.window.facts(position);
                let evidence = evidence(&state.window, position, &facts, false);
                // A trace that makes a policy panic is no candidate; its decision counts it.
                let _ = catch_unwind(AssertUnwindSafe(|| tick.add(&state.plan, &evidence)));
            }
        }
        tick
    }

    /// By when traces are due that `plan` may decide now: with limits only those of the tick, and
    /// none before the first tick of each limit.
    pub(super) fn limited_to_tick(&self, plan: &Plan, now: Millis) -> Option<Millis> {
        if !plan.has_limits() {
            return Some(now);
        }
        let by = self.ticks.by();
        let by = if by.is_due(now) { by } else { now };
        (!plan.has_new_limits()).then_some(by)
    }
}
