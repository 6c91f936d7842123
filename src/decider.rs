//! The decider: the one task that decides what is due, encodes what is kept and fills the sending queue.
//!
//! Each tick (100 ms, or a tenth of a shorter `decision_wait`) is spread over the shards, one at a time, at
//! most 256 traces a lock: a tick that walked everything at once made acknowledgements wait 26 ms at the
//! 99th percentile. Kept spans of all shards are encoded together at the end of a tick, earlier when they
//! fill a request. Late spans and traces at their limit come through the [`Outbox`].
//!
//! Above the soft memory limit the oldest traces are decided early, by the same policies. With
//! `overflow = "block"` nothing is decided without room in the queue, so due traces wait in the window.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tracing::{error, info};

use crate::{
    budget::{Budget, Hold, Holder},
    clock::{self, Clock},
    config::Overflow,
    exporter::Queue,
    metrics::{FailedBecause, Metrics},
    otlp::{
        encode::{Batch, KeptSpan, TraceStamp},
        tracestate::Stamp,
    },
    sampler::{Decided, KeptTrace, Progress, Sampler, Which},
    trace::Trigger,
    window::Millis,
};

/// What connection tasks have decided on the way in: late spans and traces at their limit. The decider
/// empties it many times a tick; what is in it is charged to the budget.
#[derive(Debug)]
pub struct Outbox {
    waiting: Mutex<Waiting>,
    budget: Arc<Budget>,
}

#[derive(Debug, Default)]
struct Waiting {
    kept: Vec<KeptTrace>,
    spans: Vec<KeptSpan>,
    holds: Vec<Hold>,
}

impl Outbox {
    /// An empty outbox.
    pub fn new(budget: &Arc<Budget>) -> Arc<Self> {
        Arc::new(Outbox { waiting: Mutex::default(), budget: Arc::clone(budget) })
    }

    /// Takes over the kept spans of `decided`.
    pub fn put(&self, decided: &mut Decided) {
        if decided.kept.is_empty() {
            return;
        }
        let hold = self.budget.hold(Holder::Export, decided.kept_bytes);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.kept.append(&mut decided.kept);
        waiting.spans.append(&mut decided.spans);
        waiting.holds.push(hold);
    }

    fn take(&self) -> Waiting {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What kept spans are stamped with, and how large requests may be.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Between two visits to a shard.
    pub tick: Duration,
    /// `sampling.stamp.tracestate`.
    pub stamp_tracestate: bool,
    /// `sampling.stamp.policy`.
    pub stamp_policy: bool,
    /// `exporter.otlp.max_request_size_kib`, in bytes.
    pub max_request_bytes: usize,
    /// `exporter.otlp.sending_queue.overflow`.
    pub overflow: Overflow,
}

/// See the module.
#[derive(Debug)]
pub struct Decider {
    sampler: Arc<Sampler>,
    outbox: Arc<Outbox>,
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
    budget: Arc<Budget>,
    clock: Clock,
    settings: Settings,
    batch: Batch,
    decided: Decided,
    is_relieving: bool,
}

/// What the decider works with.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Holds and decides the traces.
    pub sampler: Arc<Sampler>,
    /// What connection tasks have decided.
    pub outbox: Arc<Outbox>,
    /// Where requests go.
    pub queue: Arc<Queue>,
    /// Counts decisions.
    pub metrics: Arc<Metrics>,
    /// Says when memory is short.
    pub budget: Arc<Budget>,
    /// Gives `now`.
    pub clock: Clock,
}

impl Decider {
    /// A decider that has decided nothing yet.
    pub fn new(parts: Parts, settings: Settings) -> Self {
        let Parts { sampler, outbox, queue, metrics, budget, clock } = parts;
        Decider {
            sampler,
            outbox,
            queue,
            metrics,
            budget,
            clock,
            settings,
            batch: Batch::default(),
            decided: Decided::default(),
            is_relieving: false,
        }
    }

    /// Decides for ever. Cancel it between two polls; [`Self::finish`] decides what is left.
    pub async fn run(&mut self) {
        let shards = self.sampler.shards();
        let step = self.settings.tick / u32::try_from(shards).unwrap_or(u32::MAX);
        let mut interval = tokio::time::interval(step.max(Duration::from_millis(1)));
        // After a stall there is one late tick, not a burst of empty ones.
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for shard in (0..shards).cycle() {
            interval.tick().await;
            self.empty_outbox();
            self.decide_shard(shard, Which::Due).await;
            self.relieve_memory().await;
            if shard == shards - 1 {
                self.flush();
                self.sampler.trim(self.clock.now());
            }
        }
    }

    /// Decides everything that is buffered, due or not, as long as the queue takes it.
    pub async fn finish(&mut self) {
        self.empty_outbox();
        for shard in 0..self.sampler.shards() {
            while self.decide_shard(shard, Which::Oldest(Trigger::Shutdown)).await
                == Progress::NoRoom
            {
                self.flush();
                self.queue.departure().await;
            }
        }
        self.empty_outbox();
        self.flush();
    }

    async fn decide_shard(&mut self, shard: usize, which: Which) -> Progress {
        loop {
            let room = self.room();
            if room == 0 {
                return Progress::NoRoom;
            }
            let now = self.clock.now();
            let progress = self.sampler.decide(shard, now, which, room, &mut self.decided);
            self.absorb();
            if progress != Progress::More {
                return progress;
            }
            // Others of this thread get their turn between two locks.
            tokio::task::yield_now().await;
        }
    }

    /// Bytes of spans that may be kept now.
    fn room(&self) -> usize {
        match self.settings.overflow {
            Overflow::Block => self.queue.room().saturating_sub(self.batch.body_bytes()),
            Overflow::Drop => usize::MAX,
        }
    }

    fn absorb(&mut self) {
        self.metrics.decided(&self.decided);
        self.sampler.log().push(&self.decided.decisions, clock::unix_millis());
        let kept = std::mem::take(&mut self.decided.kept);
        let mut spans = std::mem::take(&mut self.decided.spans);
        self.stamp(&kept, &mut spans);
        self.decided.kept = kept;
        self.decided.spans = spans;
        self.decided.clear();
    }

    fn empty_outbox(&mut self) {
        let mut waiting = self.outbox.take();
        self.stamp(&waiting.kept, &mut waiting.spans);
        if !waiting.holds.is_empty() {
            // What is stamped is charged again as soon as it is encoded.
            self.flush();
        }
    }

    fn stamp(&mut self, kept: &[KeptTrace], spans: &mut Vec<KeptSpan>) {
        let mut spans = spans.drain(..);
        for trace in kept {
            let stamp = Stamp {
                threshold: trace.verdict.threshold,
                randomness: trace.randomness,
                explicit: trace.is_explicit,
            };
            let policy = self.sampler.plan().name(trace.verdict.policy);
            let trigger = trace.trigger.filter(|_| self.settings.stamp_policy);
            let stamp = TraceStamp {
                tracestate: self.settings.stamp_tracestate.then_some(stamp),
                policy_and_trigger: trigger.map(|trigger| (policy, trigger.as_str())),
            };
            self.batch.push_trace(spans.by_ref().take(trace.spans), &stamp);
            if self.batch.body_bytes() >= self.settings.max_request_bytes {
                flush(&mut self.batch, &self.settings, &self.queue, &self.metrics);
            }
        }
    }

    fn flush(&mut self) {
        flush(&mut self.batch, &self.settings, &self.queue, &self.metrics);
    }

    /// Decides the oldest traces, shard by shard, until memory is below the soft target.
    async fn relieve_memory(&mut self) {
        let used = self.sampler.memory_used();
        if !self.is_relieving && used <= self.budget.soft_limit() {
            return;
        }
        if !self.is_relieving {
            info!(used, limit = self.budget.limit(), "memory is short: deciding the oldest traces");
        }
        self.is_relieving = true;
        for shard in 0..self.sampler.shards() {
            let which = Which::Oldest(Trigger::Memory);
            let room = self.room();
            if room == 0 {
                return;
            }
            self.sampler.decide(shard, self.clock.now(), which, room, &mut self.decided);
            self.absorb();
            // Kept spans hold on to their segments until they are encoded.
            self.flush();
            if self.sampler.memory_used() <= self.budget.soft_target() {
                self.is_relieving = false;
                return;
            }
            tokio::task::yield_now().await;
        }
        self.is_relieving = self.sampler.buffered().traces > 0;
    }

    /// Time as the decider sees it.
    pub fn now(&self) -> Millis {
        self.clock.now()
    }
}

/// Encodes what waits and queues it. Apart from the decider, so that `stamp` can call it while it borrows
/// the names of the policies.
fn flush(batch: &mut Batch, settings: &Settings, queue: &Queue, metrics: &Metrics) {
    let mut requests = Vec::new();
    batch.encode(settings.max_request_bytes, &mut requests);
    metrics.encoded(&batch.take_faults());
    for request in requests {
        match settings.overflow {
            Overflow::Block => queue.push(request),
            Overflow::Drop => {
                if let Err(request) = queue.try_push(request) {
                    error!(spans = request.spans, "the sending queue is full: kept spans are lost");
                    metrics.failed(FailedBecause::QueueFull, request.spans);
                }
            }
        }
    }
}
