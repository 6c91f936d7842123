//! The outbox: kept spans from decisions that connection tasks make while they take in requests,
//! that is late spans and traces that reach a limit.
//!
//! Connection tasks fill it, and the decider empties it many times per tick. Its contents,
//! including the overhead of listing small spans, are charged to the memory budget. While the
//! export queue is full the spans stay here, and requests are refused before the outbox grows.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
}

impl Outbox {
    /// An empty outbox for spans that will go to `queue`.
    pub(crate) fn new(queue: &Arc<Queue>, budget: &Arc<Budget>) -> Arc<Self> {
        let (queue, budget) = (Arc::clone(queue), Arc::clone(budget));
        Arc::new(Outbox { waiting: Mutex::default(), queue, budget })
    }

    /// Takes the kept spans of `decided`, which count as queued from now on.
    pub(crate) fn put(&self, decided: &mut Decided) {
        let is_written = decided.taken_below.is_some();
        // A trace over its cap may have no spans left.
        if decided.spans.is_empty() && !is_written {
            return;
        }
        let listed = decided.spans.len() * SPAN_BYTES + decided.kept.len() * size_of::<KeptTrace>();
        let hold = self.budget.hold(Holder::Export, decided.kept_bytes + listed);
        let mut waiting = self.lock();
        if is_written {
            waiting.decided.add(decided);
        }
        self.queue.announce(decided.spans.len() as u64);
        waiting.kept.append(&mut decided.kept);
        waiting.spans.append(&mut decided.spans);
        waiting.holds.push(hold);
    }

    /// Takes everything out.
    pub(super) fn take(&self) -> Waiting {
        std::mem::take(&mut *self.lock())
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
