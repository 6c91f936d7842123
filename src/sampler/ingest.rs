//! Taking a request in: walk, sort by shard and trace, append under one lock a shard.
//!
//! A request of up to some tens of thousands of spans is walked once and sorted as a whole. One
//! with more is walked to its end first, since it is taken whole or not at all, and then in pieces,
//! so that what is known of its spans never takes more than 8 MiB. Before the first span of a large
//! request is taken, the budget is asked for what all of them will need.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
};

use super::{Decided, Sampler, ShardState, cap::Since};
use crate::{
    budget::{Budget, Hold, Holder},
    decisions::Decision,
    otlp::{
        Context,
        conditions::Conditions as _,
        outsized::Outsized,
        rewalk::Rewalk,
        walk::{self, SpanMeta, Unwalked, Walked},
    },
    policy::Plan,
    trace::{TraceId, Trigger},
    window::{self, ContextSlots, Due, Millis, Position, Run},
};

/// Spans taken in under one lock, a millisecond or two of work: others wait for the shard.
const SPANS_PER_LOCK: usize = 4096;

/// Requests of at most so many bytes, whose spans take as many beside their own, are taken without
/// asking for the room that they need in the window: what admits them leaves more than that.
const UNASKED_BYTES: usize = 1 << 20;

/// What a span takes once it is taken in, beside its own bytes: in a segment 6 bytes, and where it
/// is the only one of its record 32 more; where it is the only one of its trace, 64 for the entry
/// and about 10 in the index; or, if it is late, 130 on its way out.
/// Not the bits of its trace.
const TAKEN_SPAN_BYTES: usize = 130;

/// Buffers of one ingest, kept from request to request.
#[derive(Debug, Default)]
pub struct Scratch {
    walked: Walked,
    sorted: Sorted,
    appending: Appending,
    /// Spans of the request that were taken in so far.
    taken: u64,
}

impl Scratch {
    /// Spans of a request that panicked which were taken in nevertheless.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Keeps no more than the spans that are kept have use for.
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

/// The spans of a piece, sorted.
#[derive(Debug, Default)]
struct Sorted {
    hashes: Vec<u64>,
    /// Indices of spans, by shard and within a shard by trace.
    order: Vec<u32>,
    counts: Vec<u32>,
    /// What is left of `order` for each shard.
    rests: Vec<Range<usize>>,
}

/// Buffers of appending to a shard.
#[derive(Debug, Default)]
struct Appending {
    /// The traces of the spans.
    sought: Vec<Sought>,
    slots: ContextSlots,
}

/// A request that is being taken in.
struct Taking<'a> {
    now: Millis,
    request: &'a [u8],
    plan: &'a Arc<Plan>,
    /// Room for the spans that are still to come, and how much of it each has.
    room: Option<(Hold, usize)>,
}

/// The spans of a request that belong to one shard.
struct OfShard<'a> {
    request: &'a [u8],
    contexts: &'a [Arc<Context>],
    spans: &'a [SpanMeta],
    bits: &'a [u64],
    hashes: &'a [u64],
    order: &'a [u32],
    plan: &'a Arc<Plan>,
}

/// A trace that spans of a request belong to.
#[derive(Clone, Copy, Debug)]
struct Sought {
    hash: u64,
    trace_id: TraceId,
    /// How many spans.
    spans: usize,
    place: Place,
}

/// Where the spans of a trace belong.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// To others that are not decided yet.
    Buffered(Position),
    /// After a decision that was made.
    Decided(Decision),
    /// Nothing is known of the trace.
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

/// What became of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ingested {
    /// Spans buffered, or following their trace's decision.
    pub accepted: u64,
    /// Spans left out because an id was malformed.
    pub rejected: u64,
    /// Spans left out because their resource or scope is too large.
    pub outsized: Option<Box<Outsized>>,
}

/// Some spans of a request with their bits by another plan than they were walked with: a reload
/// has come to their shard, or is on its way to it.
struct WalkedAgain {
    spans: Vec<SpanMeta>,
    hashes: Vec<u64>,
    bits: Vec<u64>,
    order: Vec<u32>,
    _hold: Hold,
}

impl WalkedAgain {
    fn new(of_shard: &OfShard<'_>, plan: &Plan, budget: &Arc<Budget>) -> Self {
        let (words, order) = (plan.leaves().words(), of_shard.order);
        // Those of one lock: they are few enough not to be asked for.
        let bytes = order.len() * (size_of::<SpanMeta>() + 8 + 8 * words + 4);
        let hold = budget.hold(Holder::Walking, bytes);
        let spans: Vec<_> = order.iter().map(|&index| of_shard.spans[index as usize]).collect();
        let hashes = order.iter().map(|&index| of_shard.hashes[index as usize]).collect();
        let mut bits = vec![0; spans.len() * words];
        let mut rewalk = Rewalk::new(plan.leaves());
        for (index, span) in spans.iter().enumerate() {
            let bytes = &of_shard.request[span.offset as usize..][..span.len as usize];
            let context = &of_shard.contexts[span.context as usize];
            rewalk.add(context, bytes, &mut bits[index * words..][..words]);
        }
        let order = (0..).take(spans.len()).collect();
        WalkedAgain { spans, hashes, bits, order, _hold: hold }
    }

    fn of_shard<'a>(&'a self, before: &OfShard<'a>) -> OfShard<'a> {
        let WalkedAgain { spans, hashes, bits, order, .. } = self;
        OfShard { spans, hashes, bits, order, ..*before }
    }
}

impl Sampler {
    /// Takes one `ExportTraceServiceRequest` in. Decisions that it brings about (late spans, traces
    /// that reach a limit) are added to `out`.
    ///
    /// # Errors
    /// [`Unwalked`] when it is undecodable or there is no memory for what it needs; nothing of it
    /// was taken then.
    pub fn ingest(
        &self,
        now: Millis,
        request: &[u8],
        scratch: &mut Scratch,
        out: &mut Decided,
    ) -> Result<Ingested, Unwalked> {
        scratch.walked.bound(self.bounds);
        let plan = &self.plan();
        let walked = walk::walk(request, &self.contexts, plan.leaves(), &mut scratch.walked);
        let room = walked.and_then(|()| self.room_for(request, &scratch.walked));
        // What it had is given back before anybody answers.
        let room = room.inspect_err(|_| scratch.shrink())?;
        let mut taking = Taking { now, request, plan, room };
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
        // The contexts of a request must not live on in an idle connection.
        scratch.shrink();
        Ok(Ingested { accepted, rejected, outsized })
    }

    /// Room for what the spans of a large request will need, and how much of it each has.
    fn room_for(&self, request: &[u8], walked: &Walked) -> Result<Option<(Hold, usize)>, Unwalked> {
        let bits_bytes = 8 * walked.words();
        let beside = walked.spans.len() * (TAKEN_SPAN_BYTES + bits_bytes);
        if walked.is_whole() && request.len().max(beside) <= UNASKED_BYTES {
            return Ok(None);
        }
        // A request is shorter than 4 GiB, and so has fewer spans.
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
        let Sorted { hashes, order, rests, .. } = sorted;
        let &mut Taking { now, request, plan, .. } = taking;
        let Walked { contexts, spans, bits, .. } = walked;
        // A giant request comes back to a shard once all others had their turn: whoever waits for
        // the lock in between gets it.
        while !rests.is_empty() {
            for rest in &mut *rests {
                let now_taken = rest.start..rest.end.min(rest.start + SPANS_PER_LOCK);
                rest.start = now_taken.end;
                let order = &order[now_taken];
                let of_shard = OfShard { request, contexts, spans, bits, hashes, order, plan };
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
        let shard = self.shard_of(of_shard.hashes[of_shard.order[0] as usize]);
        let mut state = self.lock(shard);
        state.window.advance(now);
        let before = state.window.spans() + out.left_spans();
        // Under the lock, since only there the difference is what this request has added.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            if Arc::ptr_eq(&state.plan, of_shard.plan) {
                self.ingest_shard(&mut state, of_shard, appending, out);
            } else {
                let again = WalkedAgain::new(of_shard, &state.plan, &self.budget);
                self.ingest_shard(&mut state, &again.of_shard(of_shard), appending, out);
            }
        }));
        *taken += state.window.spans() + out.left_spans() - before;
        drop(state);
        outcome.unwrap_or_else(|panic| resume_unwind(panic));
    }

    fn ingest_shard(
        &self,
        state: &mut ShardState,
        of_shard: &OfShard<'_>,
        appending: &mut Appending,
        out: &mut Decided,
    ) {
        let &OfShard { request, contexts, spans, bits, hashes, order, .. } = of_shard;
        let Appending { sought, slots } = appending;
        // All look-ups first, and those that depend on one another in turns: they wait for
        // memory together, where with an append in between each would wait alone.
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
        let mut rest = order;
        for sought in &*sought {
            let (order, later) = rest.split_at(sought.spans);
            rest = later;
            let run = Run { request, contexts, spans, bits, order };
            self.ingest_run(state, sought, &run, slots, out);
        }
        state.window.settle();
    }

    /// Counting sort by the hash's middle bits, with about as many buckets as spans: shards become
    /// contiguous, and the spans of a trace as good as always, in their order of arrival.
    fn sort(&self, walked: &Walked, sorted: &mut Sorted) {
        let Sorted { hashes, order, counts, rests } = sorted;
        let spans = &walked.spans;
        // As much room as the spans have, which is charged.
        hashes.clear();
        hashes.reserve_exact(walked.room());
        hashes.extend(spans.iter().map(|span| window::hash_of(&self.hasher, span.trace_id)));
        let bucket_bits =
            spans.len().next_power_of_two().trailing_zeros().clamp(self.shard_bits, 16);
        let bucket_of =
            |hash: u64| (u64::from(Self::sort_key(hash)) >> (32 - bucket_bits)) as usize;
        counts.clear();
        counts.resize(1 << bucket_bits, 0);
        for &hash in hashes.iter() {
            counts[bucket_of(hash)] += 1;
        }
        let mut start = 0;
        for count in counts.iter_mut() {
            start += std::mem::replace(count, start);
        }
        order.clear();
        order.reserve_exact(walked.room());
        order.resize(spans.len(), 0);
        for (index, &hash) in (0..).zip(hashes.iter()) {
            let place = &mut counts[bucket_of(hash)];
            order[*place as usize] = index;
            *place += 1;
        }
        let shard_of = |&index: &u32| self.shard_of(hashes[index as usize]);
        rests.clear();
        rests.extend(order.chunk_by(|a, b| shard_of(a) == shard_of(b)).scan(0, |end, of_shard| {
            let start = std::mem::replace(end, *end + of_shard.len());
            Some(start..*end)
        }));
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
            // An earlier run may have begun this trace, or filled and decided it.
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
                let due = Due { position, trigger: Trigger::TraceLimit, at: state.window.now() };
                // The spans of a trace at its limit leave at once: the sender's request has been
                // admitted, and the room that is kept free in the queue is for exactly this.
                let since = Since::now(out);
                let _ = self.decide_trace(state, due, usize::MAX, out);
                self.conclude(state, since, out);
            }
        }
    }

    /// The spans of `rest` up to and including the one that fills the trace.
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
