//! The decider: the only task that decides due traces, encodes kept ones and fills the export
//! queue.
//!
//! Each tick (100 ms, or a tenth of a shorter `decision_wait`) is spread over the shards. The
//! decider visits one shard at a time, and decides at most 256 traces and about one request of kept
//! spans per hold of the lock. A tick that decided everything at once delayed acknowledgements by
//! 26 ms at the 99th percentile. The kept spans of all shards are encoded together at the end of a
//! tick, or earlier when they fill a request (`decider/leaving.rs`). Late spans and traces at their
//! limit arrive through the [`Outbox`].
//!
//! Above the soft memory limit the oldest traces are decided early, by the same policies. With
//! `overflow = "block"` nothing is decided unless the queue has room, so due traces wait in the
//! window. The decider checks for room before it judges a trace, so a trace that has to wait is
//! judged only once. At shutdown, the last decisions wait for room regardless of `overflow`.

mod journal;
mod leaving;
mod outbox;

use std::{sync::Arc, time::Duration};

use tracing::{info, warn};

pub(crate) use self::journal::JournalParts;
pub(crate) use self::outbox::Outbox;
use self::{journal::Journal, leaving::Leaving};
use crate::{
    budget::{self, Budget},
    clock::{self, WindowClock},
    config::Overflow,
    exporter::Queue,
    metrics::{FailedBecause, Metrics},
    policy::Plan,
    sampler::{Decided, Progress, Sampler, Which},
    supervise::{Supervisor, Task},
    throttle::Throttle,
    trace::Trigger,
    window::Millis,
};

/// Shorter stalls are normal on a busy machine and are not logged.
const STALL_LOGGED_MIN: Duration = Duration::from_secs(1);

/// At the end of the process: the attempts to write the remaining records, and the pause between
/// two attempts, in which the disk may sync.
const LEAVE_ATTEMPTS: u32 = 40;
const LEAVE_PAUSE: Duration = Duration::from_millis(25);

/// How kept spans are stamped, and how large requests may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// The time between two visits to a shard.
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

/// Decides due traces, encodes kept spans and fills the export queue.
#[derive(Debug)]
pub(crate) struct Decider {
    sampler: Arc<Sampler>,
    outbox: Arc<Outbox>,
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
    budget: Arc<Budget>,
    clock: Arc<WindowClock>,
    supervisor: Arc<Supervisor>,
    tick: Duration,
    leaving: Leaving,
    journal: Option<Journal>,
    decided: Decided,
    /// How often something had been put into the outbox when it was emptied.
    put_taken: u64,
    is_relieving: bool,
    next_shard: usize,
    /// The time at which the tick began.
    tick_began: Millis,
    /// The total time for which the process had not run by then.
    stalled: Duration,
    /// Limits the log lines about forgotten decisions, because overload lasts and affects every
    /// hold of a lock.
    forgotten: Throttle,
}

/// The parts of the service that the decider uses.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    /// Holds and decides the traces.
    pub(crate) sampler: Arc<Sampler>,
    /// Decisions that connection tasks have made.
    pub(crate) outbox: Arc<Outbox>,
    /// The export queue.
    pub(crate) queue: Arc<Queue>,
    /// Counts decisions.
    pub(crate) metrics: Arc<Metrics>,
    /// Tells when memory is short.
    pub(crate) budget: Arc<Budget>,
    /// The clock of the window.
    pub(crate) clock: Arc<WindowClock>,
    /// Counts panics.
    pub(crate) supervisor: Arc<Supervisor>,
}

impl Decider {
    /// Creates a decider; it starts with [`Self::run`].
    pub(crate) fn new(parts: Parts, settings: Settings, journal: Option<JournalParts>) -> Self {
        let Parts { sampler, outbox, queue, metrics, budget, clock, supervisor } = parts;
        let leaving = Leaving::new(&queue, &metrics, &budget, settings);
        Decider {
            sampler,
            outbox,
            queue,
            metrics,
            budget,
            clock,
            supervisor,
            tick: settings.tick,
            leaving,
            journal: journal.map(Journal::new),
            decided: Decided::default(),
            put_taken: 0,
            is_relieving: false,
            next_shard: 0,
            tick_began: Millis::default(),
            stalled: Duration::ZERO,
            forgotten: Throttle::default(),
        }
    }

    /// Decides until it is cancelled, which is allowed at any await. [`Self::finish`] then decides
    /// the remaining traces.
    pub(crate) async fn run(&mut self) {
        let shards = self.sampler.shards();
        // A timer has a resolution of a millisecond. If a tick has more shards than milliseconds,
        // several shards are visited at once.
        let tick_millis = u32::try_from(self.tick.as_millis()).unwrap_or(u32::MAX).max(1);
        let at_once = shards.div_ceil(tick_millis as usize);
        let steps = u32::try_from(shards.div_ceil(at_once)).unwrap_or(u32::MAX);
        let mut interval = tokio::time::interval(Duration::from_millis(tick_millis.into()) / steps);
        // After a stall there is one late tick instead of a burst of empty ones.
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.empty_outbox();
            // Without traces, one visit to all shards is enough: most of the idle cost is waking
            // up.
            let is_idle = self.next_shard == 0
                && self.sampler.buffered().traces == 0
                && self.leaving.is_empty();
            if is_idle {
                interval.reset_after(self.tick);
            }
            for _ in 0..if is_idle { shards } else { at_once } {
                // Kept across restarts, so a shard that panics does not starve the following ones.
                let shard = self.next_shard;
                self.next_shard = (shard + 1) % shards;
                if shard == 0 {
                    self.begin_tick();
                }
                self.decide_shard(shard, Which::Due).await;
                if shard == shards - 1 {
                    self.end_tick();
                    self.sampler.trim(self.clock.now());
                }
            }
            self.relieve_memory().await;
        }
    }

    /// Decides all buffered traces, due or not, and queues the kept ones as the queue accepts them.
    /// It may be cancelled at any await and called again.
    pub(crate) async fn finish(&mut self) {
        // No more spans arrive, and there is time to wait for room, so nothing has to be dropped.
        self.leaving.wait_for_room();
        self.empty_outbox();
        let queue = Arc::clone(&self.queue);
        for shard in 0..self.sampler.shards() {
            loop {
                // Created before the check for room, so it does not miss a departure in between.
                let departure = queue.departure();
                let which = Which::Oldest(Trigger::Shutdown);
                if self.decide_shard(shard, which).await != Progress::NoRoom {
                    break;
                }
                self.flush();
                if !queue.is_empty() {
                    departure.await;
                }
            }
        }
        loop {
            let departure = queue.departure();
            self.empty_outbox();
            self.flush();
            if self.leaving.is_empty() {
                return;
            }
            departure.await;
        }
    }

    /// Called after a panic: discards and counts the data in progress, so it cannot panic again.
    pub(crate) fn recover(&mut self) {
        self.leaving.give_up();
        let mut decided = std::mem::take(&mut self.decided);
        let lost = decided.give_up() + self.outbox.settle_others();
        self.metrics.failed(FailedBecause::Malformed, lost);
        self.metrics.decided(&decided);
    }

    async fn decide_shard(&mut self, shard: usize, which: Which) -> Progress {
        loop {
            let (room, step) = (self.leaving.room(), self.leaving.step_bytes());
            if room == 0 {
                return Progress::NoRoom;
            }
            let now = self.decide_by();
            let room_now = room.min(step);
            let progress = self.sampler.decide(shard, now, which, room_now, &mut self.decided);
            self.absorb();
            match progress {
                Progress::Done => return progress,
                // The queue has no room. With more room than a step, only the step was too short
                // for the next trace, and the next call can take it.
                Progress::NoRoom if room <= step => return progress,
                Progress::NoRoom | Progress::More => {}
            }
            // Lets other tasks of this thread run between two holds of the lock.
            tokio::task::yield_now().await;
        }
    }

    fn begin_tick(&mut self) {
        self.supervisor.note_round();
        // Runs before the limits, which only see policies in force.
        expire(&self.sampler.plan());
        // Without room nothing is decided. The due traces then wait for the thresholds of a later
        // tick, and are not listed again and again in the meantime.
        if self.leaving.room() > 0 {
            let now = self.clock.now();
            self.sampler.begin_tick(now, f64::from(now.since(self.tick_began)) / 1_000.0);
            self.tick_began = now;
            self.metrics.overflowed(&self.sampler.plan().take_overflowed());
        }
        if let Some(bytes) = budget::resident_bytes() {
            self.budget.note_resident(bytes);
        }
        let stall = self.clock.stalled() - self.stalled;
        self.stalled += stall;
        if stall > STALL_LOGGED_MIN {
            warn!(
                ?stall,
                "process did not run: traces in the window wait that much longer. If this \
                 repeats, raise the CPU limit"
            );
        }
    }

    /// The moment up to which traces are due: now, or, with limits, the beginning of the tick,
    /// because the thresholds were computed for exactly those traces.
    fn decide_by(&self) -> Millis {
        if self.sampler.plan().has_limits() { self.tick_began } else { self.clock.now() }
    }

    fn absorb(&mut self) {
        // Taken out, so nothing in it is counted twice after a panic.
        let mut decided = std::mem::take(&mut self.decided);
        self.queue.announce(decided.spans.len() as u64);
        self.metrics.decided(&decided);
        self.sampler.publish(&mut decided, clock::unix_millis());
        for _ in 0..decided.panics {
            self.supervisor.panicked(Task::Decider);
        }
        if let Some(decisions) = self.forgotten.add(decided.forgotten) {
            warn!(
                decisions,
                "decision cache full: forgot decisions before decision_cache_ttl, so late spans of \
                 their traces start new traces. Raise memory_limit_mib"
            );
        }
        if let Some(journal) = &mut self.journal {
            journal.add(&decided);
        }
        self.leaving.add(&mut decided.kept, &mut decided.spans);
        decided.clear();
        self.decided = decided;
        self.leaving.stamp(&self.sampler.plan(), self.journal.as_ref());
    }

    /// Takes over the decisions of connection tasks, unless the queue has no room for those taken
    /// before.
    fn empty_outbox(&mut self) {
        if self.leaving.is_waiting() {
            self.flush();
            if self.leaving.is_waiting() {
                return;
            }
        }
        let mut waiting = self.outbox.take();
        self.put_taken = waiting.puts;
        if let Some(journal) = &mut self.journal {
            journal.append(std::mem::take(&mut waiting.decided));
        }
        if !waiting.kept.is_empty() {
            self.leaving.take(&mut waiting);
            // Flushed at once, to release its charge on the budget.
            self.flush();
        }
    }

    /// Encodes and queues the waiting spans, as far as the queue accepts them.
    fn flush(&mut self) {
        self.leaving.flush(&self.sampler.plan(), self.journal.as_ref());
        if self.leaving.is_empty() {
            self.outbox.note_left(self.put_taken);
        }
    }

    /// Queues the spans that the tick has kept, and writes its decisions.
    fn end_tick(&mut self) {
        if self.journal.is_none() {
            return self.flush();
        }
        if let Some(journal) = &mut self.journal {
            journal.begin_end();
        }
        self.empty_outbox();
        self.flush();
        let all_queued = self.leaving.is_empty();
        if let Some(journal) = &mut self.journal {
            journal.end(all_queued);
        }
    }

    /// Called between two steps of a replay, during which no trace becomes due. Passes on late
    /// spans, and frees memory if it is short.
    pub(crate) async fn relieve(&mut self) {
        self.empty_outbox();
        self.end_tick();
        self.relieve_memory().await;
    }

    /// Ends without deciding anything more. Undecided traces and undelivered spans stay on disk for
    /// the next process. It also decides the traces again whose decisions could not be queued or
    /// written.
    pub(crate) async fn leave(&mut self) {
        for _ in 0..LEAVE_ATTEMPTS {
            self.end_tick();
            if !self.journal.as_ref().is_some_and(Journal::waits_for_sync) {
                return;
            }
            tokio::time::sleep(LEAVE_PAUSE).await;
        }
    }

    /// Frees the records on disk. Called after everything is decided and delivered.
    pub(crate) async fn tidy_up(&mut self) {
        for _ in 0..LEAVE_ATTEMPTS {
            let Some(journal) = &mut self.journal else { return };
            if journal.is_at_rest() {
                return;
            }
            journal.hurry();
            self.end_tick();
            if self.journal.as_ref().is_some_and(Journal::waits_for_sync) {
                tokio::time::sleep(LEAVE_PAUSE).await;
            }
        }
    }

    /// Decides the oldest traces until memory is below the soft target. One round decides the
    /// oldest sixteenth by age, over all shards. Going shard by shard instead would decide the
    /// youngest traces of the first shard before the oldest of the last.
    async fn relieve_memory(&mut self) {
        let used = self.sampler.memory_used();
        let (soft_limit, target) = (self.budget.soft_limit(), self.budget.soft_target());
        if used <= if self.is_relieving { target } else { soft_limit } {
            self.is_relieving = false;
            return;
        }
        let now = self.clock.now();
        // The windows of partitions are not among them: partitions pause instead.
        let Some(oldest) = self.sampler.oldest_arrival(now) else { return };
        if !self.is_relieving {
            info!(
                used_bytes = used,
                limit_bytes = self.budget.limit(),
                "memory above the soft limit: deciding the oldest traces early. If this lasts, \
                 raise memory_limit_mib or lower decision_wait"
            );
        }
        self.is_relieving = true;
        let which = Which::ArrivedBy(oldest.after(now.since(oldest) / 16), Trigger::Memory);
        for shard in 0..self.sampler.shards() {
            let room = self.leaving.room().min(self.leaving.step_bytes());
            if room == 0 {
                return;
            }
            self.sampler.decide(shard, now, which, room, &mut self.decided);
            self.absorb();
            // Kept spans hold their segments until they are encoded.
            self.flush();
            if self.sampler.memory_used() <= target {
                return;
            }
            tokio::task::yield_now().await;
        }
    }
}

/// Ends the policies of a plan that have reached their end by the wall clock, and logs each of
/// them.
pub(crate) fn expire(plan: &Plan) {
    for id in plan.expire(clock::unix_millis()) {
        let policy = plan.name(id);
        warn!(
            policy,
            "policy expired: it no longer matches any trace. Remove it, or extend `expires`"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{sampler::Limits, window::Waits};

    #[test]
    fn spans_lost_in_a_panic_are_counted() {
        let budget = Budget::new(1 << 20);
        let queue = Queue::new(1 << 10, &budget);
        let metrics = Arc::new(Metrics::new(&[]));
        let limits = Limits {
            waits: Waits { decision_wait: 10, after_root: None },
            max_trace_spans: 10,
            max_trace_bytes: 1 << 10,
            context_bytes_max: usize::MAX,
            kept_bytes_max: None,
            decision_ttl_millis: 10,
            decision_log_traces: 0,
        };
        let parts = Parts {
            sampler: Arc::new(Sampler::new(Arc::new(Plan::compile(&[])), limits, &budget, 1)),
            outbox: Outbox::new(&queue, &budget),
            queue: Arc::clone(&queue),
            metrics: Arc::clone(&metrics),
            budget,
            clock: Arc::new(WindowClock::start(Duration::from_secs(1))),
            supervisor: Arc::default(),
        };
        let settings = Settings {
            tick: Duration::from_millis(1),
            stamp_tracestate: true,
            stamp_policy: true,
            max_request_bytes: 1 << 10,
            overflow: Overflow::Block,
        };
        let mut decider = Decider::new(parts, settings, None);
        queue.announce(3);
        assert_eq!(queue.held(), (0, 3));
        decider.recover();
        assert_eq!(queue.held(), (0, 0));
        let lost = "tailwater_exporter_failed_spans_total{reason=\"malformed\"} 3";
        assert!(metrics.render(&Default::default()).contains(lost));
    }
}
