//! The sampler groups spans by trace in sharded windows, decides traces when they are due, and lets
//! late spans follow the decision of their trace.
//!
//! [`Sampler::ingest`] runs on connection tasks, [`Sampler::decide`] on the decider. Both are
//! synchronous, take `now` as an argument, and know nothing of the network, the clock or TOML. A
//! shard is a mutex around its window and its decision cache. The spans of a request are sorted by
//! shard first, so each shard is locked once per 4,096 spans that the request has for it. Under the
//! lock nothing is logged or notified, and no segment, span, context or plan is freed: decisions
//! and free segments leave in a [`Decided`]. The tables of a shard do grow, shrink and expire under
//! the lock.
//!
//! Invariants: a trace is decided exactly once while it is in the window or in the decision cache;
//! all its spans follow that decision; after every call, `accepted = kept + dropped + buffered`, in
//! spans. The bits of a trace belong to its shard's plan. A reload changes both under the lock, and
//! spans that were walked with another plan are walked again there.
//!
//! There are 4 shards per core: contention follows (threads - 1) x time in lock / shards, and more
//! shards did not measure better. The shard is taken from the middle bits of a keyed hash, because
//! the hash table uses both ends.

mod cap;
mod decide;
#[cfg(feature = "lock-counts")]
pub mod holds;
mod ingest;
mod partition;
mod passed;
mod positions;
mod recall;
#[cfg(test)]
mod tests;
mod tick;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

pub(crate) use self::{
    cap::Cut,
    decide::{KeptTrace, Late},
    ingest::Prepared,
    partition::PartitionWindow,
};
use self::{
    decide::evidence,
    partition::{OfPartition, Partitions},
    tick::Ticks,
};
pub use self::{
    decide::{Decided, Progress, Which},
    ingest::{Ingested, Origin, Scratch},
    passed::Passed,
    positions::{Mark, Positions, Underway},
};
use crate::{
    budget::{Budget, Holder},
    decisions::{Decision, DecisionCache, DecisionLog, Logged},
    otlp::{Contexts, conditions::Conditions as _, walked::Bounds},
    policy::{Plan, PolicyId},
    recording::Recordings,
    span_metrics::SpanMetrics,
    trace::{Facts, Randomness, TraceId},
    window::{self, Hasher, Millis, NewBits, Pool, Position, Shard, Waits},
};

/// The limits of a trace and of the time it is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// When a trace is due.
    pub waits: Waits,
    /// A trace with this many spans is decided with the spans it has.
    pub max_trace_spans: u32,
    /// A trace with this many encoded bytes is decided with the spans it has.
    pub max_trace_bytes: u32,
    /// The most encoded bytes that a resource, and a scope, may have.
    pub context_bytes_max: usize,
    /// The most encoded bytes that a kept trace may have over its whole life.
    pub kept_bytes_max: Option<u64>,
    /// How long a decision stays in the decision cache, in milliseconds.
    pub decision_ttl_millis: u32,
    /// The number of decisions in the decision log.
    pub decision_log_traces: usize,
}

/// Groups spans by trace and decides the traces.
#[derive(Debug)]
pub struct Sampler {
    shards: Box<[Mutex<ShardState>]>,
    partitions: Partitions,
    shard_bits: u32,
    hasher: Hasher,
    /// The plan that requests are walked with, read once per request. A reload sets it before it
    /// changes the first shard, so it names every policy that any shard decides by.
    plan: RwLock<Arc<Plan>>,
    contexts: Contexts,
    limits: Limits,
    /// Limits the memory for descriptions of the spans of requests in progress.
    bounds: Bounds,
    log: DecisionLog,
    recordings: Arc<Recordings>,
    pool: Arc<Pool>,
    budget: Arc<Budget>,
    ticks: Ticks,
    span_metrics: Option<Arc<SpanMetrics>>,
}

#[derive(Debug)]
struct ShardState {
    /// The plan that decides in this shard. The bits of the window's traces belong to it.
    plan: Arc<Plan>,
    window: Shard,
    remembered: DecisionCache,
    /// The positions of the log that the shard reads from, if there is one.
    positions: Option<Arc<Positions>>,
    /// Present in the window of a partition.
    partition: Option<Box<OfPartition>>,
}

impl ShardState {
    /// The position below which all requests have been taken in. Called under the shard's lock.
    fn taken_below(&mut self) -> u64 {
        let Some(positions) = &self.positions else { return 0 };
        let low = positions.least();
        self.window.advance_position(low);
        low
    }
}

/// The contents of the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buffered {
    /// Undecided traces.
    pub traces: u64,
    /// The number of their spans.
    pub spans: u64,
    /// The encoded bytes of their spans.
    pub bytes: u64,
}

/// A step of a reload at the lock of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The reload has acquired the lock.
    Begins,
    /// The reload has released the lock.
    Ended,
}

/// The state of a trace, looked up by its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// In the window, undecided.
    Pending(Box<Pending>),
    /// Decided; the details are present while the decision log has them.
    Decided(Decision, Option<Box<Logged>>),
    /// Never seen, or forgotten.
    Unknown,
}

/// The state of an undecided trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// The facts of its spans.
    pub facts: Facts,
    /// The randomness that will be compared with the threshold, unless a later span changes it.
    pub randomness: Randomness,
    /// The policies that match so far.
    pub matched: Vec<PolicyId>,
    /// The shadow policies that match so far.
    pub shadow_matched: Vec<PolicyId>,
    /// Milliseconds until it is decided at the latest; 0 if it is due.
    pub due_in_millis: u32,
}

impl Sampler {
    /// A sampler with at least `shards` shards, rounded up to a power of two.
    pub fn new(plan: Arc<Plan>, limits: Limits, budget: &Arc<Budget>, shards: usize) -> Self {
        Self::with_hasher(plan, limits, budget, shards, Hasher::random())
    }

    /// Like [`Self::new`], with trace ids hashed by `hasher`.
    pub(crate) fn with_hasher(
        plan: Arc<Plan>,
        limits: Limits,
        budget: &Arc<Budget>,
        shards: usize,
        hasher: Hasher,
    ) -> Self {
        let pool = Pool::new(Arc::clone(budget));
        let words = plan.leaves().shape();
        let shards = shards.next_power_of_two();
        // Limits the decision cache, so that most of the memory is left to the window.
        let remembered_bytes_max = budget.limit() / 4 / shards;
        // There are four shards per core, and up to one and a half times as many walks at once as
        // cores.
        let piece_bytes = (budget.limit() / 64).clamp(256 << 10, 8 << 20);
        let bounds =
            Bounds { piece_bytes, kept_bytes: piece_bytes.min(budget.limit() / 8 / shards) };
        let ttl = limits.decision_ttl_millis;
        let shards: Box<[_]> = (0..shards)
            .map(|_| {
                Mutex::new(ShardState {
                    plan: Arc::clone(&plan),
                    window: Shard::new(limits.waits, words, hasher.clone(), &pool, budget),
                    remembered: DecisionCache::new(ttl, remembered_bytes_max, budget),
                    positions: None,
                    partition: None,
                })
            })
            .collect();
        let ticks = Ticks::new(plan.has_limits());
        Sampler {
            shard_bits: shards.len().trailing_zeros(),
            shards,
            partitions: Partitions::default(),
            hasher,
            plan: RwLock::new(plan),
            contexts: Contexts::with_bytes_max(Arc::clone(budget), limits.context_bytes_max),
            limits,
            bounds,
            log: DecisionLog::new(limits.decision_log_traces, budget),
            recordings: Recordings::new(budget),
            pool,
            budget: Arc::clone(budget),
            ticks,
            span_metrics: None,
        }
    }

    /// Counts every accepted span in these metrics.
    #[must_use]
    pub fn with_span_metrics(self, metrics: Option<Arc<SpanMetrics>>) -> Self {
        Sampler { span_metrics: metrics, ..self }
    }

    /// The metrics in which accepted spans are counted, if any.
    pub fn span_metrics(&self) -> Option<&Arc<SpanMetrics>> {
        self.span_metrics.as_ref()
    }

    /// Keeps the positions of the requests that it takes in from now on, which all stand in one
    /// log. Called before the first request. It costs 8 bytes per undecided trace.
    #[must_use]
    pub fn with_positions(self, positions: &Arc<Positions>) -> Self {
        for index in 0..self.shards.len() {
            let mut state = self.lock(index);
            state.window.keep_positions();
            state.positions = Some(Arc::clone(positions));
        }
        self
    }

    /// The watermark of a log, over all shards that read from it. Locks each shard in turn.
    /// [`Mark`] says when it may be used.
    pub fn mark(&self, positions: &Arc<Positions>) -> Mark {
        // Read before the shards: the spans of a request that ends in the meantime are in their
        // shards by the time these are read.
        let mut watermark = positions.least();
        for index in 0..self.shards.len() {
            let mut state = self.lock(index);
            if state.positions.as_ref().is_some_and(|of_shard| Arc::ptr_eq(of_shard, positions)) {
                let lowest = state.window.lowest().map(|(position, _)| position);
                watermark = watermark.min(lowest.unwrap_or(watermark));
            }
        }
        // Read after the shards: a request that took a trace out of a shard before the shard was
        // read has begun by now, so its position is below this one.
        Mark::new(watermark, positions.next())
    }

    /// The number of shards, without the windows of partitions.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// All shards, with the windows of partitions.
    fn all(&self) -> std::ops::Range<usize> {
        0..self.shards.len() + self.partitions.used()
    }

    /// The policies that decide, and the names of all earlier policies. During a reload, some
    /// shards still decide by the previous plan.
    pub fn plan(&self) -> Arc<Plan> {
        // No code panics while it holds this lock.
        Arc::clone(&self.plan.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the plan, also for buffered traces. It goes from shard to shard and walks the spans
    /// of each, nearly all of them without the lock. `watch` is called at every hold of a lock.
    /// `plan` must be a successor of [`Self::plan`], and only one reload may run at a time.
    pub fn reload(&self, plan: &Arc<Plan>, mut watch: impl FnMut(Hold)) {
        self.ticks.reload_begins(plan);
        *self.plan.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(plan);
        for shard in self.all() {
            self.reload_shard(shard, plan, &mut watch);
        }
        self.ticks.reload_ends(plan);
    }

    fn reload_shard(&self, shard: usize, plan: &Arc<Plan>, watch: &mut impl FnMut(Hold)) {
        let mut bits = NewBits::new(plan.leaves());
        let generation = self.lock(shard).generation();
        let mut _held;
        // The second pass walks the spans that arrived during the first. Only the spans that arrive
        // during the second pass are left to walk under the lock.
        for _ in 0..2 {
            let state = self.lock(shard);
            watch(Hold::Begins);
            let view = state.window.view();
            drop(state);
            watch(Hold::Ended);
            // Charged without asking: the charge makes the service decide the oldest traces, which
            // frees memory.
            _held = self.budget.hold(Holder::Index, bits.bytes_for(&view));
            bits.catch_up(&view);
        }
        let mut state = self.lock(shard);
        if state.generation() != generation {
            // Another partition has the window now. It began with the new plan.
            return;
        }
        watch(Hold::Begins);
        let before = std::mem::replace(&mut state.plan, Arc::clone(plan));
        state.window.replace_bits(&mut bits);
        state.window.settle();
        drop(state);
        watch(Hold::Ended);
        // Freeing a plan may take longer than the work under the lock.
        drop(before);
    }

    /// The decision log.
    pub fn log(&self) -> &DecisionLog {
        &self.log
    }

    /// The recordings of decided traces.
    pub fn recordings(&self) -> &Arc<Recordings> {
        &self.recordings
    }

    /// Passes decisions, made at a Unix time in milliseconds, to the decision log and the
    /// recordings, and makes kept spans exemplars. Must be called before the spans leave `decided`,
    /// and not under the lock of a shard.
    pub fn publish(&self, decided: &mut Decided, decided_at: u64) {
        if let Some(metrics) = self.span_metrics() {
            metrics.kept(&decided.spans, decided_at);
        }
        self.log.push(&decided.decisions, decided_at);
        self.recordings.deliver(&mut decided.chosen, &decided.decisions, decided_at);
    }

    /// The contents of all windows. Locks each shard in turn.
    pub fn buffered(&self) -> Buffered {
        let mut sum = Buffered::default();
        for index in self.all() {
            let shard = self.lock(index);
            sum.traces += shard.window.traces() as u64;
            sum.spans += shard.counted_spans();
            sum.bytes += shard.window.span_bytes();
        }
        sum
    }

    /// The time of arrival of the oldest undecided trace, partitions aside. Locks each shard in
    /// turn.
    pub(crate) fn oldest_arrival(&self, now: Millis) -> Option<Millis> {
        let of_shards = (0..self.shards.len()).filter_map(|index| self.lock(index).window.oldest());
        of_shards.map(|(_, arrived)| arrived).max_by_key(|&arrived| now.since(arrived))
    }

    /// The number of interned contexts in use.
    pub fn contexts(&self) -> usize {
        self.contexts.len()
    }

    /// The bytes of the budget that the window and the decision cache need, without spare buffers.
    pub fn memory_used(&self) -> usize {
        self.budget.used().saturating_sub(self.pool.spare_bytes())
    }

    /// Frees memory that has not been used for a while. Called once per tick.
    pub fn trim(&self, now: Millis) {
        self.pool.trim(now);
        self.contexts.trim();
        if let Some(metrics) = &self.span_metrics {
            metrics.sweep(now);
        }
    }

    /// The state of a trace at `now`.
    pub fn look_up(&self, now: Millis, trace_id: TraceId) -> Lookup {
        let hash = window::hash_of(&self.hasher, trace_id);
        let mut remembered = None;
        // A trace of a partition may be in any of their windows.
        let partitions = self.all().skip(self.shards.len());
        for index in std::iter::once(self.shard_of(hash)).chain(partitions) {
            let shard = self.lock(index);
            if let Some(position) = shard.window.find(hash, trace_id) {
                let now = shard.partition.as_ref().map_or(now, |_| shard.time());
                return Lookup::Pending(Box::new(pending(&shard, position, now)));
            }
            remembered = remembered.or_else(|| shard.remembered.recall(hash));
        }
        match remembered {
            Some(decision) => Lookup::Decided(decision, self.log.find(trace_id).map(Box::new)),
            None => Lookup::Unknown,
        }
    }

    /// The 32 bits of a hash by which spans are sorted, first by shard, then by trace.
    fn sort_key(hash: u64) -> u32 {
        (hash >> 24) as u32
    }

    fn shard_of(&self, hash: u64) -> usize {
        (u64::from(Self::sort_key(hash)) >> (32 - self.shard_bits)) as usize
    }

    fn lock(&self, index: usize) -> MutexGuard<'_, ShardState> {
        // A panic under this lock is a bug that the service counts and survives. The other traces
        // of the shard can still be decided.
        let shard = self.shards.get(index);
        let shard = shard.unwrap_or_else(|| self.partitions.shard(index - self.shards.len()));
        #[cfg(feature = "lock-counts")]
        holds::note(shard.try_lock().is_err());
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state at `now` of the undecided trace at this position.
fn pending(shard: &ShardState, position: Position, now: Millis) -> Pending {
    let facts = shard.window.facts(position);
    let evidence = evidence(&shard.window, position, &facts, false);
    let (mut matched, mut shadowed) = (Vec::new(), Vec::new());
    let verdict = shard.plan.decide(&evidence, &mut matched);
    shard.plan.shadow(&evidence, &verdict, &mut shadowed);
    Pending {
        facts,
        randomness: evidence.randomness,
        matched,
        shadow_matched: shadowed.iter().map(|shadowed| shadowed.policy).collect(),
        due_in_millis: shard.window.due(position).since(now),
    }
}
