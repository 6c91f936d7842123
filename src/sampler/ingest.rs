//! Takes in a request: walks it, sorts its spans by shard and trace, and appends them with one hold
//! of the lock per shard.
//!
//! A request of up to some tens of thousands of spans is walked once and sorted as a whole. A
//! larger request is first walked to its end, because a request is taken whole or not at all, and
//! then walked again in pieces, so the descriptions of its spans never take more than 8 MiB. Before
//! the first span of a large request is taken in, the budget is asked for the memory that all its
//! spans need.

mod again;
mod sorted;

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
};

use self::{again::WalkedAgain, sorted::Sorted};
use super::{Decided, PartitionWindow, Passed, Sampler, ShardState, cap::Since};
use crate::{
    budget::{Hold, Holder},
    decisions::Decision,
    otlp::{
        Context,
        conditions::Conditions as _,
        outsized::Outsized,
        walk::{self, SpanMeta, Unwalked, Walked},
    },
    policy::Plan,
    trace::{TraceId, Trigger},
    window::{self, ContextSlots, Due, Millis, Position, Run},
};

/// Spans taken in under one hold of the lock: a millisecond or two of work, during which others
/// wait for the shard.
const SPANS_PER_LOCK: usize = 4096;

/// A request of at most this many bytes, whose spans need at most as much again in the window, is
/// taken in without a reservation: admission leaves more room than that.
const UNASKED_BYTES: usize = 1 << 20;

/// The memory that a span needs in the window in addition to its own bytes: 6 bytes in a segment;
/// 32 more if it is the only span of its record; if it is the only span of its trace, 64 for the
/// entry and about 10 in the index. A late span needs 130 on its way out. The bits of its trace are
/// not included.
const TAKEN_SPAN_BYTES: usize = 130;

/// The buffers of one ingest, reused from request to request.
#[derive(Debug, Default)]
pub struct Scratch {
    walked: Walked,
    sorted: Sorted,
    appending: Appending,
    /// The number of spans of the request that have been taken in so far.
    taken: u64,
}

impl Scratch {
    /// The number of spans that were taken in from a request that panicked.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// Whether the request that was prepared has a span that can be taken in.
    pub(crate) fn has_spans(&self) -> bool {
        !self.walked.spans.is_empty() || !self.walked.is_whole()
    }

    /// Forgets a request that was prepared and is not taken in.
    pub(crate) fn clear(&mut self) {
        self.shrink();
    }

    /// The spans of the request that was prepared, or of its last piece.
    pub(super) fn spans(&self) -> &[SpanMeta] {
        &self.walked.spans
    }

    /// Shrinks the buffers to the room that `walked` keeps.
    fn shrink(&mut self) {
        self.walked.clear();
        let Sorted { hashes, order, .. } = &mut self.sorted;
        let room = self.walked.room();
        hashes.truncate(room);
        hashes.shrink_to(room);
        order.truncate(room);
        order.shrink_to(room);
        self.appending.slots.shrink();
    }
}

/// Buffers used while spans are appended to a shard.
#[derive(Debug, Default)]
struct Appending {
    /// The traces of the spans.
    sought: Vec<Sought>,
    slots: ContextSlots,
    /// The key of a series of span metrics.
    series: Vec<u8>,
}

/// A request that has been walked and fits, but of which nothing has been taken in yet.
#[derive(Debug)]
pub struct Prepared {
    plan: Arc<Plan>,
    room: Option<(Hold, usize)>,
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Origin<'a> {
    /// Its position in the log that the shards read from, if there is one.
    pub position: Option<u64>,
    /// In a replay: the spans that an earlier process has dealt with.
    pub passed: Option<&'a Passed>,
    /// The window of the partition that it comes from, and the time of its record.
    pub partition: Option<(PartitionWindow, Millis)>,
}

/// A request that is being taken in.
struct Taking<'a> {
    now: Millis,
    origin: Origin<'a>,
    request: &'a [u8],
    plan: &'a Arc<Plan>,
    /// The memory reserved for the spans that are still to come, and the share of each span.
    room: Option<(Hold, usize)>,
}

/// The spans of a request that belong to one shard.
struct OfShard<'a> {
    origin: Origin<'a>,
    request: &'a [u8],
    contexts: &'a [Arc<Context>],
    spans: &'a [SpanMeta],
    bits: &'a [u64],
    hashes: &'a [u64],
    order: &'a [u32],
    plan: &'a Arc<Plan>,
}

/// A trace with spans in this request.
#[derive(Clone, Copy, Debug)]
struct Sought {
    hash: u64,
    trace_id: TraceId,
    /// The number of its spans.
    spans: usize,
    place: Place,
}

/// Where the spans of a trace go.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// To a trace in the window.
    Buffered(Position),
    /// To the decision of their trace: the spans are late.
    Decided(Decision),
    /// The trace is new.
    New,
}

impl ShardState {
    fn place_of(&self, hash: u64, trace_id: TraceId) -> Place {
        let position = self.window.find(hash, trace_id).map(Place::Buffered);
        let place = position.or_else(|| self.remembered.recall(hash).map(Place::Decided));
        place.unwrap_or(Place::New)
    }

    /// Whether nothing has changed under this lock since the trace was looked up.
    fn is_still(&self, place: Place, trace_id: TraceId) -> bool {
        match place {
            Place::Buffered(position) => self.window.is_at(position, trace_id),
            Place::Decided(_) => true,
            Place::New => false,
        }
    }
}

/// The result for a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ingested {
    /// Spans that were buffered or that followed the decision of their trace.
    pub accepted: u64,
    /// Spans left out because an id was malformed.
    pub rejected: u64,
    /// Spans left out because their resource or scope is too large.
    pub outsized: Option<Box<Outsized>>,
}

impl Sampler {
    /// Takes in one `ExportTraceServiceRequest`. Adds the decisions that it causes (late spans,
    /// traces that reach a limit) to `out`.
    ///
    /// # Errors
    /// [`Unwalked`] if the request cannot be decoded or there is not enough memory for it. Nothing
    /// of the request is taken in then.
    pub fn ingest(
        &self,
        now: Millis,
        request: &[u8],
        scratch: &mut Scratch,
        out: &mut Decided,
    ) -> Result<Ingested, Unwalked> {
        let prepared = self.prepare(request, scratch)?;
        Ok(self.take_in(now, request, (prepared, Origin::default()), scratch, out))
    }

    /// Walks a request, and reserves the memory that it needs if it is large. A request that is
    /// prepared can be taken in by [`Self::take_in`], with the same `scratch`; between the two the
    /// caller may write it to a log.
    ///
    /// # Errors
    /// [`Unwalked`], as for [`Self::ingest`].
    pub fn prepare(&self, request: &[u8], scratch: &mut Scratch) -> Result<Prepared, Unwalked> {
        scratch.walked.bound(self.bounds);
        let plan = self.plan();
        let walked = walk::walk(request, &self.contexts, plan.leaves(), &mut scratch.walked);
        let room = walked.and_then(|()| self.room_for(request, &scratch.walked));
        // Release the request's memory before the sender gets an answer.
        let room = room.inspect_err(|_| scratch.shrink())?;
        Ok(Prepared { plan, room })
    }

    /// Takes in a request that was prepared. Adds the decisions that it causes to `out`.
    pub fn take_in(
        &self,
        now: Millis,
        request: &[u8],
        (prepared, origin): (Prepared, Origin<'_>),
        scratch: &mut Scratch,
        out: &mut Decided,
    ) -> Ingested {
        let Prepared { plan, room } = prepared;
        let plan = &plan;
        // Decisions of partitions are not logged, so the data for the log is not collected.
        out.position = origin.position.filter(|_| origin.partition.is_none());
        let mut taking = Taking { now, origin, request, plan, room };
        let Scratch { walked, sorted, appending, taken } = scratch;
        appending.slots.reset(walked.contexts.len());
        let mut ingest = |walked: &Walked| {
            self.ingest_piece(&mut taking, walked, sorted, (appending, out, taken))
        };
        if walked.is_whole() {
            ingest(walked);
        } else {
            walk::walk_in_pieces(request, plan.leaves(), walked, &mut ingest);
        }
        let rejected = walked.rejected;
        let outsized = walked.outsized.take().filter(|outsized| outsized.spans > 0);
        let accepted = std::mem::take(taken);
        // An idle connection must not keep the contexts of its last request alive.
        scratch.shrink();
        Ingested { accepted, rejected, outsized }
    }

    /// Reserves memory for the spans of a large request. Returns the reservation and the share of
    /// each span.
    fn room_for(&self, request: &[u8], walked: &Walked) -> Result<Option<(Hold, usize)>, Unwalked> {
        let bits_bytes = 8 * walked.words();
        let beside = walked.spans.len() * (TAKEN_SPAN_BYTES + bits_bytes);
        if walked.is_whole() && request.len().max(beside) <= UNASKED_BYTES {
            return Ok(None);
        }
        // A request is shorter than 4 GiB, so its number of spans fits.
        let seen = walked.seen();
        let [spans, bytes, runs] = [seen.spans, seen.bytes, seen.runs].map(|sum| sum as usize);
        let needed = bytes + spans * TAKEN_SPAN_BYTES + runs * bits_bytes;
        match self.budget.try_hold(Holder::Walking, needed) {
            Some(hold) => Ok(Some((hold, needed / spans.max(1)))),
            None => Err(Unwalked::NoRoom { bytes: walked.charged() + needed }),
        }
    }

    /// Takes in the spans of a piece.
    fn ingest_piece(
        &self,
        taking: &mut Taking<'_>,
        walked: &Walked,
        sorted: &mut Sorted,
        (appending, out, taken): (&mut Appending, &mut Decided, &mut u64),
    ) {
        self.sort(walked, sorted);
        if taking.origin.partition.is_some() && !sorted.rests.is_empty() {
            // All spans go to the one window.
            sorted.rests.clear();
            sorted.rests.push(0..sorted.order.len());
        }
        let Sorted { hashes, order, rests, .. } = sorted;
        let &mut Taking { now, origin, request, plan, .. } = taking;
        let Walked { contexts, spans, bits, .. } = walked;
        // A very large request returns to a shard only after it has visited all others, so other
        // tasks get the lock in between.
        while !rests.is_empty() {
            for rest in &mut *rests {
                let now_taken = rest.start..rest.end.min(rest.start + SPANS_PER_LOCK);
                rest.start = now_taken.end;
                let order = &order[now_taken];
                let of_shard =
                    OfShard { origin, request, contexts, spans, bits, hashes, order, plan };
                self.ingest_locked(now, &of_shard, appending, out, taken);
                if let Some((room, of_span)) = &mut taking.room {
                    room.shrink(order.len() * *of_span);
                }
            }
            rests.retain(|rest| !rest.is_empty());
        }
    }

    fn ingest_locked(
        &self,
        now: Millis,
        of_shard: &OfShard<'_>,
        appending: &mut Appending,
        out: &mut Decided,
        taken: &mut u64,
    ) {
        let mut state = match of_shard.origin.partition {
            None => self.lock(self.shard_of(of_shard.hashes[of_shard.order[0] as usize])),
            Some((window, _)) => self.lock(window.0),
        };
        match of_shard.origin.partition {
            None => state.window.advance(now),
            Some((_, time)) => {
                state.window.advance(time);
                state.window.advance_position(of_shard.origin.position.unwrap_or(0));
            }
        }
        out.note_taken(&mut state);
        let before = state.counted_spans() + out.left_spans();
        // The sum before and the sum after are both read under this hold of the lock, so their
        // difference is exactly the number of spans that this request has added.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            if Arc::ptr_eq(&state.plan, of_shard.plan) {
                self.ingest_shard(&mut state, of_shard, appending, out);
            } else {
                let again = WalkedAgain::new(of_shard, &state.plan, &self.budget);
                self.ingest_shard(&mut state, &again.of_shard(of_shard), appending, out);
            }
        }));
        let new = state.counted_spans() + out.left_spans() - before;
        drop(state);
        *taken += new;
        // An earlier process has already counted the spans of a replay.
        if let (Some(metrics), None) = (&self.span_metrics, of_shard.origin.passed) {
            // They were taken in this order, so this is exact even after a panic.
            let order = of_shard.order.iter().take(new as usize);
            let spans = order.map(|&index| &of_shard.spans[index as usize]);
            let OfShard { request, contexts, .. } = of_shard;
            metrics.count(now, request, contexts, spans, &mut appending.series);
        }
        outcome.unwrap_or_else(|panic| resume_unwind(panic));
    }

    fn ingest_shard(
        &self,
        state: &mut ShardState,
        of_shard: &OfShard<'_>,
        appending: &mut Appending,
        out: &mut Decided,
    ) {
        let &OfShard { origin, request, contexts, spans, bits, hashes, order, .. } = of_shard;
        let Appending { sought, slots, .. } = appending;
        // Look up all traces first. The look-ups then wait for memory together; with appends in
        // between, each would wait alone.
        let trace_of = |&index: &u32| spans[index as usize].trace_id;
        let runs = order.chunk_by(|a, b| trace_of(a) == trace_of(b));
        sought.clear();
        sought.extend(runs.map(|run| {
            let (hash, trace_id) = (hashes[run[0] as usize], trace_of(&run[0]));
            let place = state.window.guess(hash).map_or(Place::New, Place::Buffered);
            Sought { hash, trace_id, spans: run.len(), place }
        }));
        for Sought { hash, trace_id, place, .. } in &mut *sought {
            if let Place::Buffered(position) = *place
                && !state.window.is_at(position, *trace_id)
            {
                let position = state.window.find(*hash, *trace_id);
                *place = position.map_or(Place::New, Place::Buffered);
            }
        }
        for Sought { hash, place, .. } in &mut *sought {
            if matches!(place, Place::New) {
                *place = state.remembered.recall(*hash).map_or(Place::New, Place::Decided);
            }
        }
        // Several words of bits are not part of the entry, and are waited for together, too.
        if state.plan.leaves().words() > 1 {
            let touched = sought.iter().fold(0, |sum, sought| match sought.place {
                Place::Buffered(position) => sum ^ state.window.bits(position)[0],
                Place::Decided(_) | Place::New => sum,
            });
            std::hint::black_box(touched);
        }
        let mut rest = order;
        for sought in &*sought {
            let (order, later) = rest.split_at(sought.spans);
            rest = later;
            if let (Some(passed), Some(position)) = (origin.passed, origin.position)
                && passed.covers(sought.trace_id, position)
            {
                out.passed_over += order.len() as u64;
                continue;
            }
            let run = Run { request, contexts, spans, bits, order };
            self.ingest_run(state, sought, &run, slots, out);
        }
        state.window.settle();
    }

    fn ingest_run(
        &self,
        state: &mut ShardState,
        &Sought { hash, trace_id, mut place, .. }: &Sought,
        run: &Run<'_>,
        slots: &mut ContextSlots,
        out: &mut Decided,
    ) {
        let mut rest = run.order;
        while !rest.is_empty() {
            // An earlier run may have added this trace, or filled and decided it.
            if !state.is_still(place, trace_id) {
                place = state.place_of(hash, trace_id);
            }
            let position = match place {
                Place::Buffered(position) => position,
                Place::New => state.window.insert(hash, trace_id),
                Place::Decided(decision) => {
                    let late = Run { order: rest, ..*run };
                    return self.follow(state, &decision, &late, out);
                }
            };
            let spans = state.window.trace_spans(position);
            let bytes = state.window.trace_bytes(position);
            let fitting = self.fitting(spans, bytes, run.spans, rest);
            let (now, later) = rest.split_at(fitting.end);
            state.window.append(position, &Run { order: now, ..*run }, slots);
            rest = later;
            if self.is_full(state, position) {
                let due = Due { position, trigger: Trigger::TraceLimit, at: state.time() };
                // The spans of a trace at its limit leave at once. The request has been admitted,
                // and room in the export queue is reserved for this case.
                let since = Since::now(out);
                let _ = self.decide_trace(state, due, usize::MAX, out);
                self.conclude(state, since, out);
            }
        }
    }

    /// The spans of `rest` up to and including the one with which the trace reaches its limit.
    fn fitting(&self, spans: u32, bytes: u32, metas: &[SpanMeta], rest: &[u32]) -> Range<usize> {
        let (mut spans, mut bytes) = (spans, bytes);
        for (index, &span) in rest.iter().enumerate() {
            spans = spans.saturating_add(1);
            bytes = bytes.saturating_add(metas[span as usize].len);
            if spans >= self.limits.max_trace_spans || bytes >= self.limits.max_trace_bytes {
                return 0..index + 1;
            }
        }
        0..rest.len()
    }

    fn is_full(&self, state: &ShardState, position: window::Position) -> bool {
        state.window.trace_spans(position) >= self.limits.max_trace_spans
            || state.window.trace_bytes(position) >= self.limits.max_trace_bytes
    }
}
