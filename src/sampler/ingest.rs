//! Taking a request in: walk, sort by shard and trace, append under one lock a shard.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
};

use super::{Decided, Sampler, ShardState, cap::Since};
use crate::{
    decisions::Decision,
    otlp::{
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

/// Buffers of one ingest, kept from request to request.
#[derive(Debug, Default)]
pub struct Scratch {
    walked: Walked,
    hashes: Vec<u64>,
    /// Indices of spans, by shard and within a shard by trace.
    order: Vec<u32>,
    counts: Vec<u32>,
    /// What is left of `order` for each shard.
    rests: Vec<Range<usize>>,
    appending: Appending,
    /// Spans of the request that were taken in so far.
    taken: u64,
}

impl Scratch {
    /// Spans of a request that panicked which were taken in nevertheless.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Keeps the capacity that a request of up to 64 Ki spans needs: what one larger request took
    /// is not to stay with each worker.
    fn shrink(&mut self) {
        const SPANS: usize = 64 << 10;
        self.hashes.truncate(SPANS);
        self.hashes.shrink_to(SPANS);
        self.order.truncate(SPANS);
        self.order.shrink_to(SPANS);
        self.appending.sought.truncate(SPANS);
        self.appending.sought.shrink_to(SPANS);
    }
}

/// Buffers of appending to a shard.
#[derive(Debug, Default)]
struct Appending {
    /// The traces of the spans.
    sought: Vec<Sought>,
    slots: ContextSlots,
    /// Bits by the plan of the shard, where that is not the one the request was walked with.
    rewalked: Vec<u64>,
}

/// The spans of a request that belong to one shard.
struct OfShard<'a> {
    request: &'a [u8],
    walked: &'a Walked,
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

/// Computes the bits of some spans of a request by another plan than it was walked with: a reload
/// has come to their shard, or is on its way to it.
fn walk_again(request: &[u8], walked: &Walked, spans: &[u32], plan: &Plan, bits: &mut Vec<u64>) {
    let words = plan.leaves().words();
    bits.clear();
    bits.resize(walked.spans.len() * words, 0);
    let mut rewalk = Rewalk::new(plan.leaves());
    for &index in spans {
        let span = &walked.spans[index as usize];
        let bytes = &request[span.offset as usize..][..span.len as usize];
        let context = &walked.contexts[span.context as usize];
        rewalk.add(context, bytes, &mut bits[index as usize * words..][..words]);
    }
}

impl Sampler {
    /// Takes one `ExportTraceServiceRequest` in. Decisions that it brings about (late spans, traces
    /// that reach a limit) are added to `out`.
    ///
    /// # Errors
    /// [`Unwalked`] when it is undecodable or there is no memory for its contexts; nothing of it
    /// was taken then.
    pub fn ingest(
        &self,
        now: Millis,
        request: &[u8],
        scratch: &mut Scratch,
        out: &mut Decided,
    ) -> Result<Ingested, Unwalked> {
        scratch.walked.clear();
        let plan = self.plan();
        walk::walk(request, &self.contexts, plan.leaves(), &mut scratch.walked)
            .inspect_err(|_| scratch.walked.clear())?;
        self.sort(scratch);
        let Scratch { walked, hashes, order, rests, appending, taken, .. } = scratch;
        appending.slots.reset(walked.contexts.len());
        // A giant request comes back to a shard once all others had their turn: whoever waits for
        // the lock in between gets it.
        while !rests.is_empty() {
            for rest in &mut *rests {
                let now_taken = rest.start..rest.end.min(rest.start + SPANS_PER_LOCK);
                rest.start = now_taken.end;
                let order = &order[now_taken];
                let of_shard = OfShard { request, walked, hashes, order, plan: &plan };
                self.ingest_locked(now, &of_shard, appending, out, taken);
            }
            rests.retain(|rest| !rest.is_empty());
        }
        let (rejected, outsized) = (walked.rejected, walked.outsized.take());
        // The contexts of a request must not live on in an idle connection.
        walked.clear();
        let accepted = std::mem::take(taken);
        scratch.shrink();
        Ok(Ingested { accepted, rejected, outsized })
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
            self.ingest_shard(&mut state, of_shard, appending, out);
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
        let &OfShard { request, walked, hashes, order, plan } = of_shard;
        let Appending { sought, slots, rewalked } = appending;
        let bits = if Arc::ptr_eq(&state.plan, plan) {
            &walked.bits
        } else {
            walk_again(request, walked, order, &state.plan, rewalked);
            &*rewalked
        };
        // All look-ups first, and those that depend on one another in turns: they wait for
        // memory together, where with an append in between each would wait alone.
        let trace_of = |&index: &u32| walked.spans[index as usize].trace_id;
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
            let (contexts, spans) = (&walked.contexts, &walked.spans);
            let run = Run { request, contexts, spans, bits, order };
            self.ingest_run(state, sought, &run, slots, out);
        }
        state.window.settle();
    }

    /// Counting sort by the hash's middle bits, with about as many buckets as spans: shards become
    /// contiguous, and the spans of a trace as good as always, in their order of arrival.
    fn sort(&self, scratch: &mut Scratch) {
        let Scratch { walked, hashes, order, counts, rests, .. } = scratch;
        let spans = &walked.spans;
        hashes.clear();
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
