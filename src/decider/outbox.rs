//! What requests decide on their way in: late spans, and traces that reach a limit.
//!
//! Connection tasks put it in, the decider takes it out many times a tick. What is in it is charged
//! to the memory budget, with what listing small spans costs. While the sending queue is full it
//! stays here, and requests are refused before it grows.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    budget::{Budget, Hold, Holder},
    exporter::Queue,
    otlp::encode::KeptSpan,
    sampler::{Decided, KeptTrace},
};

/// What a span takes here beside its bytes: its entry, and what an allocation of its own costs.
const SPAN_BYTES: usize = size_of::<KeptSpan>() + 16;

/// What connection tasks have decided on the way in: late spans and traces at their limit. The
/// decider empties it many times a tick; what is in it is charged to the budget.
#[derive(Debug)]
pub struct Outbox {
    waiting: Mutex<Waiting>,
    queue: Arc<Queue>,
    budget: Arc<Budget>,
}

/// Kept traces, their spans, and what these were charged.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) kept: Vec<KeptTrace>,
    pub(super) spans: Vec<KeptSpan>,
    pub(super) holds: Vec<Hold>,
}

impl Outbox {
    /// An empty outbox whose spans will go to `queue`.
    pub fn new(queue: &Arc<Queue>, budget: &Arc<Budget>) -> Arc<Self> {
        let (queue, budget) = (Arc::clone(queue), Arc::clone(budget));
        Arc::new(Outbox { waiting: Mutex::default(), queue, budget })
    }

    /// Takes over the kept spans of `decided`, which count as queued from now on.
    pub fn put(&self, decided: &mut Decided) {
        // Of a trace over its cap nothing may be left.
        if decided.spans.is_empty() {
            return;
        }
        let listed = decided.spans.len() * SPAN_BYTES + decided.kept.len() * size_of::<KeptTrace>();
        let hold = self.budget.hold(Holder::Export, decided.kept_bytes + listed);
        let mut waiting = self.lock();
        self.queue.announce(decided.spans.len() as u64);
        waiting.kept.append(&mut decided.kept);
        waiting.spans.append(&mut decided.spans);
        waiting.holds.push(hold);
    }

    /// Everything that waits.
    pub(super) fn take(&self) -> Waiting {
        std::mem::take(&mut *self.lock())
    }

    /// Settles the announced spans that do not wait in here, and returns their number.
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
