//! Receiving: from an accepted connection to spans in the window, and the answer to the sender.
//!
//! [`Intake`] is what both receivers share: it says who may send and whether a request may come in
//! at all (before its body is read), walks and buffers it, counts, and names the reason of a
//! refusal. [`grpc`] and [`http`] turn that into answers; `net` owns sockets and connections.
//! Acknowledged means buffered. A refused request is refused whole: nothing of it was consumed.

mod admission;
mod compression;
pub mod cors;
pub mod empty;
pub mod grpc;
pub mod http;
pub mod turns;

use std::{
    cell::RefCell,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tracing::warn;

use self::{
    admission::SMALL_BYTES_MAX,
    empty::{EmptyRequests, Sent},
    turns::Turns,
};
use crate::{
    budget::Budget,
    buffers::Buffers,
    clock::WindowClock,
    config::Overflow,
    credentials::{Live, Tokens},
    decider::Outbox,
    exporter::Queue,
    metrics::{FailedBecause, Metrics, RefusedBecause, Transport},
    net::deadline::REQUEST_TIMEOUT,
    otlp::{json::InvalidJson, outsized::Outsized, walk::Unwalked},
    sampler::{Decided, Ingested, Sampler, Scratch},
    supervise::{Panicked, Supervisor, Task},
    throttle::Throttle,
};
use ::http::{HeaderMap, HeaderValue, header::AUTHORIZATION};

/// The fill of the sending queue from which intake is refused, so that late spans and due traces
/// fit.
const QUEUE_REFUSES_FROM: f64 = 0.75;
/// Delays that refused senders are asked to wait. The Python SDK gives up at once when told to wait
/// longer than its own timeout of 10 s.
const RETRY_SECONDS: std::ops::RangeInclusive<f64> = 1.0..=8.0;

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Without a token, or with a wrong one.
    #[error("a valid bearer token is required in `authorization`")]
    Unauthenticated,
    /// The memory limit is reached.
    #[error("the memory limit is reached, try again later")]
    Memory,
    /// The sending queue is nearly full and must not lose what is already here.
    #[error("the backend is behind and the sending queue is nearly full, try again later")]
    QueueFull,
    /// The service is shutting down.
    #[error("the service is shutting down, try another instance")]
    Draining,
    /// Larger than a message may be.
    #[error("the message is larger than the limit of {limit_bytes} bytes")]
    TooLarge {
        /// The limit, before and after decompression.
        limit_bytes: usize,
    },
    /// Larger than memory can ever hold.
    #[error(
        "the request needs {needed_bytes} bytes of memory while it is taken in, more than the \
         memory limit can ever spare: send smaller requests, or raise memory_limit_mib"
    )]
    NeverFits {
        /// Of the request itself, and of what it becomes.
        needed_bytes: usize,
    },
    /// To inflate it would take more than a decoder may hold.
    #[error("the zstd frame needs a window larger than 32 MiB")]
    WindowTooLarge,
    /// Undecodable.
    #[error("the request is not a valid ExportTraceServiceRequest: {0}")]
    Malformed(String),
    /// Its body did not come in time, or the turn of a large one did not.
    #[error("the request took longer than {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout,
    /// The sender went away before its request was whole.
    #[error("the request ended early")]
    Abandoned,
    /// A bug: walking or buffering it panicked. The panic is counted.
    #[error("internal error")]
    Panicked,
}

impl From<InvalidJson> for Refusal {
    fn from(invalid: InvalidJson) -> Self {
        Refusal::Malformed(invalid.to_string())
    }
}

/// A panic must cost one request, not the connection with everything else on it.
impl From<Panicked> for Refusal {
    fn from(_: Panicked) -> Self {
        Refusal::Panicked
    }
}

impl Refusal {
    /// How it is counted; a panic is counted as a restarted task instead, and what no sender waits
    /// for not at all.
    pub fn because(&self) -> Option<RefusedBecause> {
        match self {
            Refusal::Unauthenticated => Some(RefusedBecause::Unauthenticated),
            Refusal::Memory => Some(RefusedBecause::Memory),
            Refusal::QueueFull => Some(RefusedBecause::QueueFull),
            Refusal::Draining => Some(RefusedBecause::Draining),
            Refusal::TooLarge { .. } | Refusal::NeverFits { .. } | Refusal::WindowTooLarge => {
                Some(RefusedBecause::TooLarge)
            }
            Refusal::Malformed(_) => Some(RefusedBecause::Malformed),
            Refusal::Timeout => Some(RefusedBecause::Timeout),
            Refusal::Abandoned | Refusal::Panicked => None,
        }
    }
}

/// Buffers to put requests together in. Four a core wait for the next requests, but no more than
/// take a 32nd of the memory limit, since nobody is charged for them. Of those that take turns
/// there is one at a time, and it would be much to keep.
pub fn buffers(cores: usize, budget: &Budget) -> Arc<Buffers> {
    let count_max = (budget.limit() / 32 / SMALL_BYTES_MAX).clamp(1, 4 * cores);
    Buffers::new(64 << 10..=SMALL_BYTES_MAX, count_max)
}

/// What both receivers share.
#[derive(Debug)]
pub struct Intake {
    /// Buffers the spans.
    pub sampler: Arc<Sampler>,
    /// Takes what is decided on the way in.
    pub outbox: Arc<Outbox>,
    /// Says how far the backend is behind.
    pub queue: Arc<Queue>,
    /// What a full queue does.
    pub overflow: Overflow,
    /// Says whether there is memory.
    pub budget: Arc<Budget>,
    /// What requests are put together in.
    pub buffers: Arc<Buffers>,
    /// What large requests take one after the other.
    pub turns: Turns,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Notices requests that carry no span.
    pub empty: EmptyRequests,
    /// Gives `now`.
    pub clock: Arc<WindowClock>,
    /// Contains and counts panics.
    pub supervisor: Arc<Supervisor>,
    /// Who may send; anyone where there are no tokens.
    pub tokens: Option<Arc<Live<Tokens>>>,
    /// Lines about spans with a resource or scope that is too large.
    pub outsized: Throttle,
    /// Set once the service stops accepting.
    pub is_draining: AtomicBool,
}

impl Intake {
    /// Whether the sender of these headers may send, asked before anything else.
    ///
    /// # Errors
    /// [`Refusal::Unauthenticated`].
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let Some(tokens) = &self.tokens else { return Ok(()) };
        let authorization = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
        let is_admitted = authorization.is_some_and(|value| tokens.get().admit(value));
        if is_admitted { Ok(()) } else { Err(Refusal::Unauthenticated) }
    }

    /// Whether a request may come in, asked before its body is read.
    ///
    /// # Errors
    /// The reason why not; the sender should try again.
    pub fn admit(&self) -> Result<(), Refusal> {
        if self.is_draining.load(Relaxed) {
            return Err(Refusal::Draining);
        }
        if self.overflow == Overflow::Block && self.queue.pressure() >= QUEUE_REFUSES_FROM {
            return Err(Refusal::QueueFull);
        }
        if !self.budget.admits() {
            return Err(Refusal::Memory);
        }
        Ok(())
    }

    /// Buffers the spans of one decoded request, whose bytes the caller has charged to the budget.
    ///
    /// # Errors
    /// [`Refusal::Malformed`], [`Refusal::Memory`], [`Refusal::NeverFits`], or
    /// [`Refusal::Panicked`].
    pub fn take(&self, transport: Transport, request: &[u8]) -> Result<Ingested, Refusal> {
        thread_local! {
            // One of each a worker thread: there is no await between here and the acknowledgement.
            static BUFFERS: RefCell<(Scratch, Decided)> = RefCell::default();
        }
        let ingest = || {
            BUFFERS.with_borrow_mut(|(scratch, decided)| {
                let now = self.clock.now();
                let ingested = self.sampler.ingest(now, request, scratch, decided);
                self.pass_on(decided);
                ingested
            })
        };
        let ingested = self
            .supervisor
            .contained_now(Task::Receiver, ingest)
            .map_err(|panicked| {
                BUFFERS.with_borrow_mut(|(scratch, decided)| {
                    let taken = Ingested { accepted: scratch.taken(), ..Ingested::default() };
                    self.metrics.accepted(transport, &taken);
                    self.metrics.failed(FailedBecause::Malformed, decided.give_up());
                    self.pass_on(decided);
                    (*scratch, *decided) = Default::default();
                });
                Refusal::from(panicked)
            })?
            .map_err(|unwalked| self.refusal_of(unwalked, request.len()))?;
        self.metrics.accepted(transport, &ingested);
        if let Some(outsized) = &ingested.outsized {
            self.log_outsized(outsized);
        }
        Ok(ingested)
    }

    fn refusal_of(&self, unwalked: Unwalked, request_bytes: usize) -> Refusal {
        match unwalked {
            Unwalked::Malformed(malformed) => Refusal::Malformed(malformed.to_string()),
            Unwalked::NoRoom { bytes } => match request_bytes + bytes {
                needed_bytes if self.budget.never_fits(needed_bytes) => {
                    Refusal::NeverFits { needed_bytes }
                }
                _ => Refusal::Memory,
            },
        }
    }

    /// Counts and logs a request that was taken though it has no span.
    fn notice_empty(&self, transport: Transport, sent: Sent<'_>, ingested: &Ingested) {
        self.empty.notice(&self.metrics, transport, sent, ingested);
    }

    /// What a sender of one such resource sends again and again.
    #[cold]
    fn log_outsized(&self, outsized: &Outsized) {
        let Some(spans) = self.outsized.add(outsized.spans) else { return };
        let Outsized { bytes, bytes_max, service, .. } = outsized;
        warn!(
            spans,
            service,
            bytes,
            bytes_max,
            "refused spans: their resource or scope is larger than a quarter of \
             exporter.otlp.max_request_size_kib, and would be sent again with every request. \
             Let the service send smaller resource attributes, or raise max_request_size_kib"
        );
    }

    /// Hands on what a request has brought about.
    fn pass_on(&self, decided: &mut Decided) {
        // First, so that kept spans count as queued before they count as kept.
        self.outbox.put(decided);
        self.metrics.decided(decided);
        self.sampler.log().push(&decided.decisions, crate::clock::unix_millis());
        for _ in 0..decided.panics {
            self.supervisor.panicked(Task::Decider);
        }
        decided.clear();
    }

    /// How long a refused sender is asked to wait: 1 to 8 s, rising with what is short, jittered so
    /// that senders that were refused together do not come back together.
    pub fn retry_delay(&self, refusal: &Refusal) -> Duration {
        let pressure = match refusal {
            Refusal::Memory => (self.budget.pressure() - 0.9) / 0.2,
            Refusal::QueueFull => {
                (self.queue.pressure() - QUEUE_REFUSES_FROM) / (1.0 - QUEUE_REFUSES_FROM)
            }
            _ => 0.0,
        };
        let (least, most) = (*RETRY_SECONDS.start(), *RETRY_SECONDS.end());
        let middle = least + (most - least) * pressure.clamp(0.0, 1.0);
        let seconds = middle * (0.75 + 0.5 * fastrand::f64());
        Duration::from_secs_f64(seconds.clamp(least, most))
    }
}
