//! The sampler: traces grouped by id in sharded windows, decided when due, late spans after their
//! trace.
//!
//! [`Sampler::ingest`] runs on connection tasks, [`Sampler::decide`] on the decider. Both are
//! synchronous, take `now`, and know no network, no clock and no TOML. A shard is a mutex around
//! its window and its remembered decisions; spans of a request are sorted by shard first, so that
//! each shard is locked once for every 4,096 spans that a request has for it. Under the lock
//! nothing is logged or notified, and no segment, span, context or plan is freed: what was decided
//! and what is free leaves in a [`Decided`]. Tables of a shard do grow, shrink and forget under it.
//!
//! Invariants: a trace is decided exactly once while it is buffered or remembered; every span of it
//! leaves, or does not, by that decision; `accepted = kept + dropped + buffered`, in spans, after
//! every call. A trace's bits belong to its shard's plan; a reload changes both under the lock, and
//! a request that was walked with another plan is walked again there.
//!
//! 4 shards a core: contention follows (threads - 1) x time in lock / shards, and more did not
//! measure better. The shard is taken from the middle bits of a keyed hash, since the hash table
//! uses both ends.

mod cap;
mod decide;
mod ingest;
#[cfg(test)]
mod tests;
mod tick;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use self::tick::Ticks;
pub use self::{
    cap::Cut,
    decide::{Decided, KeptTrace, Late, Progress, Which},
    ingest::{Ingested, Scratch},
};
use crate::{
    budget::{Budget, Holder},
    decisions::{Decision, DecisionLog, Logged, Remembered},
    otlp::{Contexts, conditions::Conditions as _, walked::Bounds},
    policy::Plan,
    trace::TraceId,
    window::{self, Hasher, Millis, NewBits, Pool, Shard, Waits},
};

/// What bounds a trace and its stay.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// When a trace is due.
    pub waits: Waits,
    /// Spans at which a trace is decided with what it has.
    pub max_trace_spans: u32,
    /// Encoded bytes at which a trace is decided with what it has.
    pub max_trace_bytes: u32,
    /// Encoded bytes that a resource may have, and a scope.
    pub context_bytes_max: usize,
    /// Encoded bytes that a kept trace may come to over its whole life.
    pub kept_bytes_max: Option<u64>,
    /// How long a decision is remembered, in milliseconds.
    pub decision_ttl_millis: u32,
    /// Decisions in the log.
    pub decision_log_traces: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Sampler {
    shards: Box<[Mutex<ShardState>]>,
    shard_bits: u32,
    hasher: Hasher,
    /// What requests are walked with, read once each. A reload sets it before it comes to the first
    /// shard, so it names every policy that any shard decides by.
    plan: RwLock<Arc<Plan>>,
    contexts: Contexts,
    limits: Limits,
    /// Of what is known of the spans of a request while they are taken in.
    bounds: Bounds,
    log: DecisionLog,
    pool: Arc<Pool>,
    budget: Arc<Budget>,
    ticks: Ticks,
}

#[derive(Debug)]
struct ShardState {
    /// Decides here, and is what the bits of the window's traces belong to.
    plan: Arc<Plan>,
    window: Shard,
    remembered: Remembered,
}

/// What is buffered now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buffered {
    /// Undecided traces.
    pub traces: u64,
    /// Their spans.
    pub spans: u64,
    /// The spans' encoded bytes.
    pub bytes: u64,
}

/// What a reload does with the lock of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Has just got it.
    Begins,
    /// Has just given it up.
    Ended,
}

/// What is known about a trace by its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Buffered, not decided yet.
    Pending,
    /// Decided, with the details while the log has them.
    Decided(Decision, Option<Box<Logged>>),
    /// Never seen, or forgotten.
    Unknown,
}

impl Sampler {
    /// A sampler with at least `shards` shards, rounded up to a power of two.
    pub fn new(plan: Arc<Plan>, limits: Limits, budget: &Arc<Budget>, shards: usize) -> Self {
        Self::with_hasher(plan, limits, budget, shards, Hasher::random())
    }

    /// The same, with trace ids hashed by `hasher`.
    pub fn with_hasher(
        plan: Arc<Plan>,
        limits: Limits,
        budget: &Arc<Budget>,
        shards: usize,
        hasher: Hasher,
    ) -> Self {
        let pool = Pool::new(Arc::clone(budget));
        let words = plan.leaves().words();
        let shards = shards.next_power_of_two();
        // However many traces are decided, the window keeps most of the memory.
        let remembered_bytes_max = budget.limit() / 4 / shards;
        // There are four shards a core, and as many walks at once as there are cores, or half more.
        let piece_bytes = (budget.limit() / 64).clamp(256 << 10, 8 << 20);
        let bounds =
            Bounds { piece_bytes, kept_bytes: piece_bytes.min(budget.limit() / 8 / shards) };
        let ttl = limits.decision_ttl_millis;
        let shards: Box<[_]> = (0..shards)
            .map(|_| {
                Mutex::new(ShardState {
                    plan: Arc::clone(&plan),
                    window: Shard::new(limits.waits, words, hasher.clone(), &pool, budget),
                    remembered: Remembered::new(ttl, remembered_bytes_max, budget),
                })
            })
            .collect();
        let ticks = Ticks::new(plan.has_limits());
        Sampler {
            shard_bits: shards.len().trailing_zeros(),
            shards,
            hasher,
            plan: RwLock::new(plan),
            contexts: Contexts::with_bytes_max(Arc::clone(budget), limits.context_bytes_max),
            limits,
            bounds,
            log: DecisionLog::new(limits.decision_log_traces, budget),
            pool,
            budget: Arc::clone(budget),
            ticks,
        }
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// The policies that decide, and the names of all before them. While a reload goes on, some
    /// shards still decide by those before.
    pub fn plan(&self) -> Arc<Plan> {
        // Nothing can panic while it is held.
        Arc::clone(&self.plan.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Decides by `plan` from now on, what is buffered included. Goes from shard to shard and walks
    /// the spans of each, nearly all of them without its lock; `watch` is told of every hold.
    /// `plan` is a successor of [`Self::plan`]; only one reload may be under way.
    pub fn reload(&self, plan: &Arc<Plan>, mut watch: impl FnMut(Hold)) {
        self.ticks.reload_begins(plan);
        *self.plan.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(plan);
        for shard in 0..self.shards.len() {
            self.reload_shard(shard, plan, &mut watch);
        }
        self.ticks.reload_ends(plan);
    }

    fn reload_shard(&self, shard: usize, plan: &Arc<Plan>, watch: &mut impl FnMut(Hold)) {
        let mut bits = NewBits::new(plan.leaves());
        let mut _held;
        // The second time only what came during the first, so that the lock is held for what came
        // during the second.
        for _ in 0..2 {
            let state = self.lock(shard);
            watch(Hold::Begins);
            let view = state.window.view();
            drop(state);
            watch(Hold::Ended);
            // Without asking: that it is charged makes room, by deciding the oldest traces.
            _held = self.budget.hold(Holder::Index, bits.bytes_for(&view));
            bits.catch_up(&view);
        }
        let mut state = self.lock(shard);
        watch(Hold::Begins);
        let before = std::mem::replace(&mut state.plan, Arc::clone(plan));
        state.window.replace_bits(&mut bits);
        state.window.settle();
        drop(state);
        watch(Hold::Ended);
        // To free a plan may take longer than what was done under the lock.
        drop(before);
    }

    /// The log of the last decisions.
    pub fn log(&self) -> &DecisionLog {
        &self.log
    }

    /// What is buffered now. Locks each shard in turn.
    pub fn buffered(&self) -> Buffered {
        let mut sum = Buffered::default();
        for index in 0..self.shards.len() {
            let shard = self.lock(index);
            sum.traces += shard.window.traces() as u64;
            sum.spans += shard.window.spans();
            sum.bytes += shard.window.span_bytes();
        }
        sum
    }

    /// When the oldest undecided trace arrived. Locks each shard in turn.
    pub fn oldest_arrival(&self, now: Millis) -> Option<Millis> {
        let of_shards = (0..self.shards.len()).filter_map(|index| self.lock(index).window.oldest());
        of_shards.map(|(_, arrived)| arrived).max_by_key(|&arrived| now.since(arrived))
    }

    /// Interned contexts in use.
    pub fn contexts(&self) -> usize {
        self.contexts.len()
    }

    /// Bytes of the budget that undecided and remembered traces need, without buffers that lie
    /// spare.
    pub fn memory_used(&self) -> usize {
        self.budget.used().saturating_sub(self.pool.spare_bytes())
    }

    /// Gives memory back that has been of no use for a while. Called once a tick.
    pub fn trim(&self, now: Millis) {
        self.pool.trim(now);
        self.contexts.trim();
    }

    /// What is known about a trace.
    pub fn look_up(&self, trace_id: TraceId) -> Lookup {
        let hash = window::hash_of(&self.hasher, trace_id);
        let shard = self.lock(self.shard_of(hash));
        if shard.window.find(hash, trace_id).is_some() {
            return Lookup::Pending;
        }
        let remembered = shard.remembered.recall(hash);
        drop(shard);
        match remembered {
            Some(decision) => Lookup::Decided(decision, self.log.find(trace_id).map(Box::new)),
            None => Lookup::Unknown,
        }
    }

    /// The 32 bits of a hash that order spans by shard and, within it, by trace.
    fn sort_key(hash: u64) -> u32 {
        (hash >> 24) as u32
    }

    fn shard_of(&self, hash: u64) -> usize {
        (u64::from(Self::sort_key(hash)) >> (32 - self.shard_bits)) as usize
    }

    fn lock(&self, index: usize) -> MutexGuard<'_, ShardState> {
        // A panic under this lock is a bug that the service counts and survives; the traces of the
        // shard are still worth deciding.
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
