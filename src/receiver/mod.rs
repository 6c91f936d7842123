//! Receiving: from an accepted connection to spans in the window, and the answer to the sender.
//!
//! Both receivers share [`Intake`]. It decides who may send and whether a request may come in at
//! all (before its body is read), walks the request and puts its spans in the window, counts, and
//! names the reason of a refusal. [`grpc`] and [`http`] turn that into answers; `net` owns sockets
//! and connections. An acknowledged request is in the window. A refused request is refused whole:
//! nothing of it was consumed.

mod admission;
mod compression;
pub(crate) mod cors;
pub(crate) mod empty;
pub(crate) mod grpc;
mod gzip;
pub(crate) mod http;
pub mod kafka;
pub(crate) mod take;
pub(crate) mod turns;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tracing::warn;

use self::{admission::SMALL_BYTES_MAX, empty::EmptyRequests, turns::Turns};
use crate::{
    budget::Budget,
    buffers::Buffers,
    clock::WindowClock,
    config::Overflow,
    credentials::{Live, Tokens},
    decider::Outbox,
    durability::{Durability, Keeper, Unwritten},
    exporter::Queue,
    metrics::{Metrics, RefusedBecause},
    net::deadline::REQUEST_TIMEOUT,
    otlp::{json::InvalidJson, outsized::Outsized, walk::Unwalked},
    sampler::Sampler,
    supervise::{Panicked, Supervisor},
    throttle::Throttle,
};
use ::http::{HeaderMap, HeaderValue, header::AUTHORIZATION};

/// Intake refuses requests once the export queue is this full, which leaves space for late spans
/// and due traces.
const QUEUE_REFUSES_FROM: f64 = 0.75;
/// What partitions may have in the outbox, which the decider empties many times a tick.
const OUTBOX_BYTES_MAX: usize = 8 << 20;
/// The delay that refused senders are asked to wait. The Python SDK gives up at once when the delay
/// is longer than its own timeout of 10 s.
const RETRY_SECONDS: std::ops::RangeInclusive<f64> = 1.0..=8.0;

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The request has no token, or a wrong one.
    #[error("a valid bearer token is required in `authorization`")]
    Unauthenticated,
    /// The memory limit is reached.
    #[error("the memory limit is reached, try again later")]
    Memory,
    /// The export queue is nearly full and must not lose the spans that were already acknowledged.
    #[error("the backend is behind and the export queue is nearly full, try again later")]
    QueueFull,
    /// The directory of `[durability]` is full, or its disk fails.
    #[error("the [durability] log cannot be written, try again later")]
    Disk,
    /// The service is shutting down.
    #[error("the service is shutting down, try another instance")]
    Draining,
    /// The message is larger than the configured limit.
    #[error("the message is larger than the limit of {limit_bytes} bytes")]
    TooLarge {
        /// The limit, which holds before and after decompression.
        limit_bytes: usize,
    },
    /// The request needs more memory than the service can ever give it.
    #[error(
        "the request needs {needed_bytes} bytes of memory during intake, more than the \
         memory limit can ever spare: send smaller requests, or raise memory_limit_mib"
    )]
    NeverFits {
        /// Needed for the request itself and for all its converted forms.
        needed_bytes: usize,
    },
    /// The zstd frame needs a larger window than the decoder may have.
    #[error("the zstd frame needs a window larger than 32 MiB")]
    WindowTooLarge,
    /// The request cannot be decoded.
    #[error("the request is not a valid ExportTraceServiceRequest: {0}")]
    Malformed(String),
    /// The body did not arrive in time, or a large request did not get its turn in time.
    #[error("the request took longer than {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout,
    /// The sender left before the request was complete.
    #[error("the request ended early")]
    Abandoned,
    /// A bug: walking the request or adding its spans panicked. The panic is counted.
    #[error("internal error")]
    Panicked,
}

impl From<InvalidJson> for Refusal {
    fn from(invalid: InvalidJson) -> Self {
        Refusal::Malformed(invalid.to_string())
    }
}

/// A panic costs one request, and spares the other requests of the connection.
impl From<Panicked> for Refusal {
    fn from(_: Panicked) -> Self {
        Refusal::Panicked
    }
}

impl From<Unwritten> for Refusal {
    fn from(_: Unwritten) -> Self {
        Refusal::Disk
    }
}

impl Refusal {
    /// The reason it is counted under. A panic is counted as a restarted task instead; a request
    /// whose sender has left is not counted.
    pub(crate) fn because(&self) -> Option<RefusedBecause> {
        match self {
            Refusal::Unauthenticated => Some(RefusedBecause::Unauthenticated),
            Refusal::Memory => Some(RefusedBecause::Memory),
            Refusal::QueueFull => Some(RefusedBecause::QueueFull),
            Refusal::Draining => Some(RefusedBecause::Draining),
            Refusal::Disk => Some(RefusedBecause::Disk),
            Refusal::TooLarge { .. } | Refusal::NeverFits { .. } | Refusal::WindowTooLarge => {
                Some(RefusedBecause::TooLarge)
            }
            Refusal::Malformed(_) => Some(RefusedBecause::Malformed),
            Refusal::Timeout => Some(RefusedBecause::Timeout),
            Refusal::Abandoned | Refusal::Panicked => None,
        }
    }
}

/// Buffers that receive request bodies. Four per core are kept for the next requests, but no more
/// than a 32nd of the memory limit, since nobody is charged for them. Buffers of more than 1 MiB
/// are not kept: only a few large requests are worked on at a time, and keeping their buffers would
/// cost too much memory.
pub(crate) fn buffers(cores: usize, budget: &Budget) -> Arc<Buffers> {
    let count_max = (budget.limit() / 32 / SMALL_BYTES_MAX).clamp(1, 4 * cores);
    Buffers::new(64 << 10..=SMALL_BYTES_MAX, count_max)
}

/// The state that both receivers share.
#[derive(Debug)]
pub(crate) struct Intake {
    /// Stores the spans until their traces are decided.
    pub(crate) sampler: Arc<Sampler>,
    /// Takes the traces that are decided during intake.
    pub(crate) outbox: Arc<Outbox>,
    /// Says how far the backend is behind.
    pub(crate) queue: Arc<Queue>,
    /// Whether a full export queue refuses requests or drops spans.
    pub(crate) overflow: Overflow,
    /// Says whether there is memory.
    pub(crate) budget: Arc<Budget>,
    /// Buffers that receive request bodies.
    pub(crate) buffers: Arc<Buffers>,
    /// The turns that large requests take.
    pub(crate) turns: Turns,
    /// Where requests are written before they are taken in.
    pub(crate) durability: Option<Arc<Durability>>,
    /// Tells when they are synced, with `mode = "power"`.
    pub(crate) keeper: Option<Arc<Keeper>>,
    /// Counts requests and spans.
    pub(crate) metrics: Arc<Metrics>,
    /// Counts and logs requests that carry no span.
    pub(crate) empty: EmptyRequests,
    /// Gives the time.
    pub(crate) clock: Arc<WindowClock>,
    /// Contains and counts panics.
    pub(crate) supervisor: Arc<Supervisor>,
    /// The valid tokens; anyone may send if `None`.
    pub(crate) tokens: Option<Arc<Live<Tokens>>>,
    /// Limits the log lines about spans with a resource or scope that is too large.
    pub(crate) outsized: Throttle,
    /// True once the service has stopped accepting.
    pub(crate) is_draining: AtomicBool,
}

impl Intake {
    /// Checks whether the sender of these headers may send. Called before anything else.
    ///
    /// # Errors
    /// [`Refusal::Unauthenticated`].
    pub(crate) fn authenticate(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let Some(tokens) = &self.tokens else { return Ok(()) };
        let authorization = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
        let is_admitted = authorization.is_some_and(|value| tokens.get().admit(value));
        if is_admitted { Ok(()) } else { Err(Refusal::Unauthenticated) }
    }

    /// Checks whether a request may come in. Called before its body is read.
    ///
    /// # Errors
    /// The reason; the sender should try again.
    pub(crate) fn admit(&self) -> Result<(), Refusal> {
        if self.is_draining.load(Relaxed) {
            return Err(Refusal::Draining);
        }
        if self.overflow == Overflow::Block && self.queue.pressure() >= QUEUE_REFUSES_FROM {
            return Err(Refusal::QueueFull);
        }
        if !self.budget.admits() {
            return Err(Refusal::Memory);
        }
        if let Some(durability) = &self.durability {
            durability.admits()?;
        }
        Ok(())
    }

    /// The bytes of spans that may be kept now by decisions on the way in: as much as the outbox
    /// takes, while the export queue is not nearly full.
    fn kept_room(&self) -> usize {
        let is_blocking = self.overflow == Overflow::Block;
        if is_blocking && self.queue.pressure() >= QUEUE_REFUSES_FROM {
            return 0;
        }
        let room = if is_blocking { self.queue.room() } else { usize::MAX };
        let outbox_max = (self.budget.limit() / 16).min(OUTBOX_BYTES_MAX);
        room.min(outbox_max).saturating_sub(self.outbox.bytes())
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

    /// Throttled: a sender with such a resource repeats it in every request.
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
             exporter.otlp.max_request_size_kib, and every export request would repeat it. \
             Make the service send smaller resource attributes, or raise max_request_size_kib"
        );
    }

    /// The delay that a refused sender is asked to wait: 1 to 8 s, longer the scarcer memory or the
    /// queue is, with jitter, so that senders that were refused together do not return together.
    pub(crate) fn retry_delay(&self, refusal: &Refusal) -> Duration {
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
