//! Recordings: whole traces as they were at their decision, kept and dropped alike, for people who
//! want to replay the traffic.
//!
//! The sampler chooses traces under the lock of their shard ([`Recordings::choose`]), each by a
//! chance of its own that has nothing to do with the trace's randomness. It shares their spans, as
//! it does for kept traces. After the lock is released, the decider or the connection task encodes
//! them and hands them to the recording's buffer ([`Recordings::deliver`]). Neither ever waits: a
//! trace for which there is no room is left out and counted. Traces are encoded at once: a small
//! trace that waited as slices would hold a segment of 256 KiB.
//!
//! Limits: [`RECORDINGS_MAX`] at once. The buffer of each takes a 32nd of the memory limit, at most
//! 16 MiB, and beyond that one trace. Above the soft memory limit nothing is recorded. While no
//! recording runs, a decision costs one load.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{
    budget::{Budget, Hold, Holder},
    decisions::{Decisions, Logged},
    otlp::{encode::KeptSpan, whole},
};

/// The most recordings at once.
pub const RECORDINGS_MAX: usize = 4;
/// Every part of a trace is shorter than this.
pub const PART_BYTES_MAX: usize = 7 << 19;
/// The buffer of a recording may hold the memory limit divided by this.
const PART_OF_LIMIT: usize = 32;
const BUFFER_BYTES_MAX: usize = 16 << 20;
/// The most traces in a buffer.
const BUFFER_TRACES_MAX: usize = 8 << 10;
/// The bytes of a trace in a buffer in addition to its parts.
const TRACE_BYTES: usize = 512;
/// The most spans of chosen traces that one hold of a lock, or one request, may list: 40 bytes
/// each.
const CHOSEN_SPANS_MAX: usize = 64 << 10;

/// All recordings of a service.
#[derive(Debug)]
pub struct Recordings {
    /// The length of `list`. It only says whether to look there, so it needs no memory ordering.
    count: AtomicUsize,
    list: Mutex<Vec<Arc<Recording>>>,
    budget: Arc<Budget>,
}

/// The filling side of a recording.
#[derive(Debug)]
struct Recording {
    share: f64,
    traces: mpsc::Sender<RecordedTrace>,
    waiting_bytes: Arc<AtomicUsize>,
    bytes_max: usize,
    skipped: AtomicU64,
}

impl Recording {
    fn has_room(&self) -> bool {
        self.waiting_bytes.load(Relaxed) < self.bytes_max && self.traces.capacity() > 0
    }

    fn skip(&self) {
        self.skipped.fetch_add(1, Relaxed);
    }

    fn push(&self, decision: Logged, encoded: &Arc<Encoded>) {
        let bytes = encoded.hold.bytes();
        self.waiting_bytes.fetch_add(bytes, Relaxed);
        let waiting = Waiting { bytes, of: Arc::clone(&self.waiting_bytes) };
        let trace = RecordedTrace { decision, encoded: Arc::clone(encoded), _waiting: waiting };
        // A recording that has just ended takes no more traces.
        if let Err(mpsc::error::TrySendError::Full(_)) = self.traces.try_send(trace) {
            self.skip();
        }
    }
}

/// A recorded trace. It counts towards the buffer of its recording until it is dropped.
#[derive(Debug)]
pub struct RecordedTrace {
    /// The decision about it.
    pub decision: Logged,
    encoded: Arc<Encoded>,
    _waiting: Waiting,
}

impl RecordedTrace {
    /// Its spans as `ExportTraceServiceRequest`s, at least one.
    pub fn requests(&self) -> &[Bytes] {
        &self.encoded.requests
    }
}

/// A trace, encoded once for all recordings that have chosen it.
#[derive(Debug)]
struct Encoded {
    requests: Vec<Bytes>,
    hold: Hold,
}

/// Bytes in a recording's buffer.
#[derive(Debug)]
struct Waiting {
    bytes: usize,
    of: Arc<AtomicUsize>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Relaxed);
    }
}

/// The reader of a recording. When it is dropped, the recording ends.
#[derive(Debug)]
pub struct Recorder {
    recordings: Arc<Recordings>,
    recording: Arc<Recording>,
    traces: mpsc::Receiver<RecordedTrace>,
}

impl Recorder {
    /// The next trace. After [`Self::end`], `None` once the buffer is empty. May be cancelled.
    pub async fn next(&mut self) -> Option<RecordedTrace> {
        self.traces.recv().await
    }

    /// The number of chosen traces that were left out because the buffer was full, or because
    /// memory was short.
    pub fn skipped(&self) -> u64 {
        self.recording.skipped.load(Relaxed)
    }

    /// Discards the traces in the buffer, and returns their number.
    pub(crate) fn discard(&mut self) -> u64 {
        std::iter::from_fn(|| self.traces.try_recv().ok()).count() as u64
    }

    /// Chooses no more traces.
    pub fn end(&mut self) {
        self.recordings.remove(&self.recording);
        self.traces.close();
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.recordings.remove(&self.recording);
    }
}

/// Traces that recordings have chosen, and their spans.
#[derive(Debug, Default)]
pub struct Chosen {
    traces: Vec<ChosenTrace>,
    /// The spans of the traces, one trace after the other.
    spans: Vec<KeptSpan>,
}

#[derive(Debug)]
struct ChosenTrace {
    by: Vec<Arc<Recording>>,
    /// The index of its decision.
    record: usize,
    spans: usize,
}

impl Chosen {
    /// The number of spans.
    pub(crate) fn spans(&self) -> usize {
        self.spans.len()
    }

    /// Counts all traces as left out, after a panic.
    pub(crate) fn give_up(&mut self) {
        self.traces.drain(..).for_each(|trace| trace.by.iter().for_each(|by| by.skip()));
        self.spans.clear();
    }
}

impl Recordings {
    /// No recordings.
    pub(crate) fn new(budget: &Arc<Budget>) -> Arc<Self> {
        let (count, list, budget) = (AtomicUsize::new(0), Mutex::default(), Arc::clone(budget));
        Arc::new(Recordings { count, list, budget })
    }

    /// Begins a recording of this share of all traces, above 0 and at most 1. `None` if there are
    /// too many.
    pub fn begin(self: &Arc<Self>, share: f64) -> Option<Recorder> {
        let (sender, traces) = mpsc::channel(BUFFER_TRACES_MAX);
        let recording = Arc::new(Recording {
            share,
            traces: sender,
            waiting_bytes: Arc::default(),
            bytes_max: (self.budget.limit() / PART_OF_LIMIT).min(BUFFER_BYTES_MAX),
            skipped: AtomicU64::new(0),
        });
        let mut list = self.lock();
        if list.len() == RECORDINGS_MAX {
            return None;
        }
        list.push(Arc::clone(&recording));
        self.count.store(list.len(), Relaxed);
        drop(list);
        Some(Recorder { recordings: Arc::clone(self), recording, traces })
    }

    /// The number of recordings that run.
    pub fn running(&self) -> usize {
        self.count.load(Relaxed)
    }

    fn remove(&self, recording: &Arc<Recording>) {
        let mut list = self.lock();
        list.retain(|other| !Arc::ptr_eq(other, recording));
        self.count.store(list.len(), Relaxed);
    }

    /// Lets the recordings choose a trace, given its number of spans and the index of its decision.
    /// If one does, `share` is called to append the spans.
    pub(crate) fn choose(
        &self,
        chosen: &mut Chosen,
        record: usize,
        spans: u32,
        share: impl FnOnce(&mut Vec<KeptSpan>),
    ) {
        let list = self.lock();
        let by_chance = list.iter().filter(|recording| fastrand::f64() < recording.share);
        let fits =
            chosen.spans.is_empty() || chosen.spans.len() + spans as usize <= CHOSEN_SPANS_MAX;
        let (by, full): (Vec<_>, Vec<_>) =
            by_chance.partition(|recording| fits && recording.has_room());
        full.iter().for_each(|recording| recording.skip());
        if by.is_empty() {
            return;
        }
        let by = by.into_iter().map(Arc::clone).collect();
        drop(list);
        let before = chosen.spans.len();
        share(&mut chosen.spans);
        chosen.traces.push(ChosenTrace { by, record, spans: chosen.spans.len() - before });
    }

    /// Encodes the chosen traces and hands them to the recordings, as far as there is room. Must
    /// not be called under the lock of a shard.
    pub(crate) fn deliver(&self, chosen: &mut Chosen, decisions: &Decisions, decided_at: u64) {
        if chosen.traces.is_empty() {
            return;
        }
        let mut spans = &mut chosen.spans[..];
        for ChosenTrace { mut by, record, spans: count } in chosen.traces.drain(..) {
            let (own, rest) = spans.split_at_mut(count);
            spans = rest;
            // Earlier traces may have filled the buffer.
            let full = by.extract_if(.., |recording| !recording.has_room());
            full.for_each(|recording| recording.skip());
            if by.is_empty() {
                continue;
            }
            let Some(encoded) = self.encode(own) else {
                by.iter().for_each(|recording| recording.skip());
                continue;
            };
            let logged = decisions.logged(&decisions.records[record], decided_at);
            by.iter().for_each(|recording| recording.push(logged.clone(), &encoded));
        }
        *chosen = Chosen::default();
    }

    /// `None` if memory is short, or if a span does not fit into a part.
    fn encode(&self, spans: &mut [KeptSpan]) -> Option<Arc<Encoded>> {
        let least = whole::bytes_of(spans) + TRACE_BYTES;
        // The budget is not asked for a hold: a refusal would make receivers refuse requests.
        if self.budget.used() + least > self.budget.soft_limit() {
            return None;
        }
        let requests = whole::requests(spans, PART_BYTES_MAX - 1)?;
        let bytes = requests.iter().map(Bytes::len).sum::<usize>() + TRACE_BYTES;
        let hold = self.budget.hold(Holder::Recordings, bytes);
        Some(Arc::new(Encoded { requests, hold }))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Recording>>> {
        // No code panics while it holds this lock.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
