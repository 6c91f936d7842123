//! The outbox: kept spans from decisions that connection tasks make while they take in requests,
//! that is late spans and traces that reach a limit.
//!
//! Connection tasks fill it, and the decider empties it many times per tick. Its contents,
//! including the overhead of listing small spans, are charged to the memory budget. While the
//! export queue is full the spans stay here, and requests are refused before the outbox grows.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use crate::{
    budget::{Budget, Hold, Holder},
    durability::Pending,
    exporter::Queue,
    otlp::encode::KeptSpan,
    sampler::{Decided, KeptTrace},
};

/// The bytes of a span here in addition to its own: its entry, and the overhead of an allocation.
const SPAN_BYTES: usize = size_of::<KeptSpan>() + 16;

/// Kept spans of decisions made by connection tasks: late spans and traces at their limit. The
/// decider empties it many times per tick; its contents are charged to the budget.
#[derive(Debug)]
pub(crate) struct Outbox {
    waiting: Mutex<Waiting>,
    /// The number of additions up to the last one that has been encoded and queued.
    left: AtomicU64,
    queue: Arc<Queue>,
    budget: Arc<Budget>,
}

/// Kept traces, their spans and their charges.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) kept: Vec<KeptTrace>,
    pub(super) spans: Vec<KeptSpan>,
    pub(super) holds: Vec<Hold>,
    /// The decisions, if they are written to a log. They wait here together with their spans,
    /// because the spans have to be written first.
    pub(super) decided: Pending,
    /// How often something was put in.
    pub(super) puts: u64,
    bytes: usize,
}

impl Outbox {
    /// An empty outbox for spans that will go to `queue`.
    pub(crate) fn new(queue: &Arc<Queue>, budget: &Arc<Budget>) -> Arc<Self> {
        let (queue, budget) = (Arc::clone(queue), Arc::clone(budget));
        Arc::new(Outbox { waiting: Mutex::default(), left: AtomicU64::new(0), queue, budget })
    }

    /// Takes the kept spans of `decided`, which count as queued from now on.
    pub(crate) fn put(&self, decided: &mut Decided) {
        let is_written = decided.taken_below.is_some();
        // A trace over its cap may have no spans left.
        if decided.spans.is_empty() && !is_written {
            return;
        }
        let listed = decided.spans.len() * SPAN_BYTES + decided.kept.len() * size_of::<KeptTrace>();
        let bytes = decided.kept_bytes + listed;
        let hold = self.budget.hold(Holder::Export, bytes);
        let mut waiting = self.lock();
        if is_written {
            waiting.decided.add(decided);
        }
        self.queue.announce(decided.spans.len() as u64);
        waiting.kept.append(&mut decided.kept);
        waiting.spans.append(&mut decided.spans);
        waiting.holds.push(hold);
        waiting.puts += 1;
        waiting.bytes += bytes;
    }

    /// How often something was put in.
    pub(crate) fn put_so_far(&self) -> u64 {
        self.lock().puts
    }

    /// Whether everything that had been put in by then is in the export queue, or lost and counted.
    pub(crate) fn has_left(&self, put: u64) -> bool {
        self.left.load(Ordering::Acquire) >= put
    }

    /// Notes that this much is in the export queue.
    pub(super) fn note_left(&self, put: u64) {
        // Paired with the load in `has_left`: who sees this sees the requests in the queue.
        self.left.store(put, Ordering::Release);
    }

    /// The bytes of the spans that wait here, and what listing them takes.
    pub(crate) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Takes everything out.
    pub(super) fn take(&self) -> Waiting {
        let mut waiting = self.lock();
        let puts = waiting.puts;
        std::mem::replace(&mut *waiting, Waiting { puts, ..Waiting::default() })
    }

    /// Settles the announced spans that are not in the outbox, and returns their number.
    pub(super) fn settle_others(&self) -> u64 {
        let waiting = self.lock();
        let others = self.queue.announced() - waiting.spans.len() as u64;
        self.queue.settle(others);
        others
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
