//! Kept spans between their decision and the export queue: they are stamped, encoded and queued one
//! request at a time, as the queue accepts them.
//!
//! Owned by the decider. A request takes its place in the queue, and is charged, before it is
//! encoded. With `overflow = "block"`, requests without a place wait here, and the decider decides
//! nothing more; with `"drop"` they are counted as lost without being encoded. Waiting spans are
//! slices of segments or of late requests, which stay charged; the memory for listing and stamping
//! them is charged here. It is bounded by one step of the decider (about a request) and one trace,
//! or by the bytes that the outbox has charged.

use std::{collections::VecDeque, sync::Arc};

use tracing::error;

use super::{Settings, journal::Journal, outbox::Waiting};
use crate::{
    budget::{Budget, Hold, Holder},
    config::Overflow,
    exporter::Queue,
    metrics::{FailedBecause, Metrics},
    otlp::{
        encode::{Batch, KeptSpan, TraceStamp},
        tracestate::Stamp,
    },
    policy::Plan,
    sampler::KeptTrace,
    throttle::Throttle,
};

/// The least number of bytes that one hold of the lock may decide to keep, however small requests
/// are.
const STEP_BYTES_MIN: usize = 1 << 20;

/// The number of spans for which an empty list keeps its capacity: less than 1 MiB, which is not
/// charged.
const SPARE_SPANS: usize = 4 << 10;

/// Kept spans on their way to the export queue.
#[derive(Debug)]
pub(super) struct Leaving {
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
    budget: Arc<Budget>,
    settings: Settings,
    /// Traces that are not stamped yet, and their spans.
    kept: VecDeque<KeptTrace>,
    spans: VecDeque<KeptSpan>,
    spans_bytes: usize,
    /// Stamped spans.
    batch: Batch,
    /// The charges of the outbox, held until all its spans are encoded.
    of_outbox: Vec<Hold>,
    /// The charge for memory allocated here.
    allocated: Option<Hold>,
    /// Whether the queue had no room for the next request.
    is_waiting: bool,
    /// Limits the log lines about lost spans, because an outage keeps the queue full and affects
    /// every request.
    lost: Throttle,
}

impl Leaving {
    pub(super) fn new(
        queue: &Arc<Queue>,
        metrics: &Arc<Metrics>,
        budget: &Arc<Budget>,
        settings: Settings,
    ) -> Self {
        Leaving {
            queue: Arc::clone(queue),
            metrics: Arc::clone(metrics),
            budget: Arc::clone(budget),
            settings,
            kept: VecDeque::new(),
            spans: VecDeque::new(),
            spans_bytes: 0,
            batch: Batch::default(),
            of_outbox: Vec::new(),
            allocated: None,
            is_waiting: false,
            lost: Throttle::default(),
        }
    }

    /// From this call on, no span is lost because the queue is full.
    pub(super) fn wait_for_room(&mut self) {
        self.settings.overflow = Overflow::Block;
    }

    /// Whether nothing is left to queue.
    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty() && self.batch.is_empty()
    }

    /// Whether a request waits for room in the queue.
    pub(super) fn is_waiting(&self) -> bool {
        self.is_waiting
    }

    /// The bytes of spans that may be kept now.
    pub(super) fn room(&self) -> usize {
        match self.settings.overflow {
            Overflow::Block if self.is_waiting => 0,
            Overflow::Block => {
                self.queue.room().saturating_sub(self.batch.body_bytes() + self.spans_bytes)
            }
            Overflow::Drop => usize::MAX,
        }
    }

    /// The bytes of spans that one hold of the lock may decide to keep. With many small spans,
    /// listing them takes several times their bytes.
    pub(super) fn step_bytes(&self) -> usize {
        self.settings.max_request_bytes.max(STEP_BYTES_MIN)
    }

    /// Adds traces and their spans, which have been announced to the queue.
    pub(super) fn add(&mut self, kept: &mut Vec<KeptTrace>, spans: &mut Vec<KeptSpan>) {
        self.spans_bytes += spans.iter().map(|span| span.bytes.len()).sum::<usize>();
        self.kept.extend(kept.drain(..));
        self.spans.extend(spans.drain(..));
    }

    /// Adds the contents of the outbox, except its decisions.
    pub(super) fn take(&mut self, waiting: &mut Waiting) {
        self.add(&mut waiting.kept, &mut waiting.spans);
        self.of_outbox.append(&mut waiting.holds);
    }

    /// Stamps the added traces, and queues them as soon as they fill a request.
    pub(super) fn stamp(&mut self, plan: &Plan, journal: Option<&Journal>) {
        // Slightly below the limit, so the result is mostly one request instead of one and a small
        // rest.
        let enough = self.settings.max_request_bytes / 16 * 15;
        loop {
            if self.batch.body_bytes() >= enough && !self.batch.is_empty() {
                self.queue_batch(journal);
                if self.is_waiting {
                    break;
                }
            }
            let Some(trace) = self.kept.pop_front() else { break };
            self.push(&trace, plan);
        }
        self.charge();
    }

    fn push(&mut self, trace: &KeptTrace, plan: &Plan) {
        let stamp = Stamp {
            threshold: trace.verdict.threshold,
            randomness: trace.randomness,
            explicit: trace.is_explicit,
        };
        let policy = plan.name(trace.verdict.policy);
        let trigger = trace.trigger.filter(|_| self.settings.stamp_policy);
        let stamp = TraceStamp {
            tracestate: self.settings.stamp_tracestate.then_some(stamp),
            policy_and_trigger: trigger.map(|trigger| (policy, trigger.as_str())),
        };
        let spans_bytes = &mut self.spans_bytes;
        let spans = self.spans.drain(..trace.spans);
        let spans = spans.inspect(|span| *spans_bytes -= span.bytes.len());
        self.batch.push_trace(spans, &stamp);
    }

    /// Stamps, encodes and queues everything, as far as the queue accepts it.
    pub(super) fn flush(&mut self, plan: &Plan, journal: Option<&Journal>) {
        self.is_waiting = false;
        self.stamp(plan, journal);
        if !self.is_waiting {
            self.queue_batch(journal);
        }
        self.charge();
    }

    /// Encodes and queues the batch, one request at a time. Each is written to the journal first.
    fn queue_batch(&mut self, journal: Option<&Journal>) {
        self.is_waiting = false;
        let (mut settled, mut lost) = (0, 0);
        while let Some(next) = self.batch.next(self.settings.max_request_bytes) {
            let place = match self.settings.overflow {
                Overflow::Block => self.queue.place(next.bytes()),
                Overflow::Drop => self.queue.place_within(next.bytes()),
            };
            match (place, self.settings.overflow) {
                (Some(place), _) => {
                    let request = next.encode();
                    settled += request.spans;
                    let stored_at = journal.and_then(|journal| journal.store(&request));
                    place.fill_stored(request, stored_at);
                }
                (None, Overflow::Drop) => lost += next.give_up(),
                (None, Overflow::Block) => {
                    self.is_waiting = true;
                    break;
                }
            }
        }
        let faults = self.batch.take_faults();
        self.metrics.encoded(&faults);
        self.metrics.failed(FailedBecause::QueueFull, lost);
        if let Some(spans) = self.lost.add(lost) {
            error!(
                spans,
                capacity_bytes = self.queue.capacity_bytes(),
                "export queue full: dropped kept spans. Raise queue_size_mib to outlast longer \
                 outages of the backend, or set overflow = \"block\" to refuse new spans instead"
            );
        }
        // Settled last, so a span is briefly counted twice rather than not at all.
        self.queue.settle(settled + lost + faults.malformed_spans);
    }

    /// Charges the allocated memory, and frees memory that is no longer needed.
    fn charge(&mut self) {
        if self.is_empty() {
            self.of_outbox.clear();
            self.spans.shrink_to(SPARE_SPANS);
            self.kept.shrink_to(SPARE_SPANS);
            self.allocated = None;
            return;
        }
        let listed = self.spans.capacity() * size_of::<KeptSpan>()
            + self.kept.capacity() * size_of::<KeptTrace>();
        let bytes = self.batch.allocated_bytes() + listed;
        if self.allocated.as_ref().map_or(0, Hold::bytes) != bytes {
            self.allocated = Some(self.budget.hold(Holder::Export, bytes));
        }
    }

    /// After a panic: drops everything.
    pub(super) fn give_up(&mut self) {
        self.kept.clear();
        self.spans.clear();
        self.spans_bytes = 0;
        self.batch = Batch::default();
        self.is_waiting = false;
        self.charge();
    }
}
