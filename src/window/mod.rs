//! The window: undecided traces, their records and their deadlines, one [`Shard`] behind one lock each.
//!
//! A shard is a ring of entries that is the FIFO of deadlines ([`ring`]), a hash table of 32-bit positions
//! into it, a second FIFO for deadlines after the root, and a log of segments ([`segment`]). The sampler
//! calls it under the shard's lock and gives the time; nothing in here knows a clock, a policy or a wire.
//! What is freed leaves through out-parameters and is dropped after the lock.
//!
//! Invariants: a segment is reused only when no record of an undecided trace is left in it; time in a shard
//! never goes back (a request that took its time before it waited for the lock must not stamp a segment
//! older than its predecessor); `spans` is exactly the spans of live entries.
//!
//! Compaction: a sealed segment that stays more than half dead for [`COMPACT_AFTER_MILLIS`] is emptied by
//! appending its undecided traces again, whole, so that the memory of early decisions comes back while a
//! few traces wait on. The delay lets segments that die in order do so for free.

mod ring;
mod segment;

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use hashbrown::HashTable;

pub use ring::Position;
pub use segment::{Pool, SEGMENT_BYTES, Segment};

use self::{
    ring::{Entry, ExplicitRandomness, Ring},
    segment::{HEADER_BYTES, Location, RECORD_HEADER_BYTES, Record, SPAN_HEADER_BYTES},
};
use crate::{
    budget::{Budget, Holder},
    otlp::{Context, encode::KeptSpan, walk::SpanMeta},
    trace::{Facts, Randomness, TraceId, Trigger},
};

/// How long a segment must have been mostly dead before its survivors are moved.
pub const COMPACT_AFTER_MILLIS: u32 = 500;

/// Monotonic milliseconds since the service started, modulo 2^32. Differences are right up to 24 days.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Millis(pub u32);

impl Millis {
    /// Milliseconds from `earlier` to this; 0 where `earlier` is later.
    pub fn since(self, earlier: Millis) -> u32 {
        let difference = self.0.wrapping_sub(earlier.0);
        if difference > u32::MAX / 2 { 0 } else { difference }
    }

    /// This much later.
    pub fn after(self, millis: u32) -> Millis {
        Millis(self.0.wrapping_add(millis))
    }

    /// Whether this moment has come at `now`.
    pub fn is_due(self, now: Millis) -> bool {
        now.0.wrapping_sub(self.0) <= u32::MAX / 2
    }
}

/// The deadlines of a window, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// From the first span of a trace.
    pub decision_wait: u32,
    /// From its root, where that is earlier; `None` turns it off.
    pub after_root: Option<u32>,
}

/// A trace whose time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Which.
    pub position: Position,
    /// What made it due.
    pub trigger: Trigger,
    /// When it became due.
    pub at: Millis,
}

/// Spans of one trace in one request that are appended together.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The request's bytes.
    pub request: &'a [u8],
    /// The request's contexts.
    pub contexts: &'a [Arc<Context>],
    /// The request's spans, which `order` refers to.
    pub spans: &'a [SpanMeta],
    /// The attribute bits of the request's spans.
    pub bits: &'a [u64],
    /// The spans of this run, as indices.
    pub order: &'a [u32],
}

/// Remembers, for each context of a request, its index in the segment being written. Kept by the caller
/// from shard to shard of one request, so that the table of a segment is searched once a context.
#[derive(Debug, Default)]
pub struct ContextSlots(Vec<(u64, u16)>);

impl ContextSlots {
    /// Forgets a request and makes room for one with this many contexts.
    pub fn reset(&mut self, contexts: usize) {
        self.0.clear();
        self.0.resize(contexts, (u64::MAX, 0));
    }

    fn index(&mut self, segment: &mut Segment, contexts: &[Arc<Context>], context: u32) -> u16 {
        let slot = &mut self.0[context as usize];
        if slot.0 != segment.id {
            *slot = (segment.id, segment.context_index(&contexts[context as usize]));
        }
        slot.1
    }
}

/// Segments and their contexts that no undecided trace needs any more. Dropped after the lock.
pub type Freed = Vec<Segment>;

/// One shard of the window.
#[derive(Debug)]
pub struct Shard {
    waits: Waits,
    words: usize,
    now: Millis,
    ring: Ring,
    index: HashTable<u32>,
    hasher: foldhash::fast::RandomState,
    randomness: ExplicitRandomness,
    after_root: VecDeque<(Millis, Position)>,
    slots: Vec<Option<Segment>>,
    free_slots: Vec<u32>,
    open: Option<u32>,
    cold: VecDeque<(Millis, u32, u64)>,
    chain: Vec<Location>,
    spans: u64,
    span_bytes: u64,
    pool: Arc<Pool>,
    budget: Arc<Budget>,
    charged: usize,
}

impl Shard {
    /// An empty shard. `hasher` is the one that callers hash trace ids with; `words` is the number of
    /// 64-bit words of attribute bits a trace has.
    pub fn new(
        waits: Waits,
        words: usize,
        hasher: foldhash::fast::RandomState,
        pool: &Arc<Pool>,
        budget: &Arc<Budget>,
    ) -> Self {
        Shard {
            waits,
            words,
            now: Millis::default(),
            ring: Ring::new(words),
            index: HashTable::new(),
            hasher,
            randomness: ExplicitRandomness::default(),
            after_root: VecDeque::new(),
            slots: Vec::new(),
            free_slots: Vec::new(),
            open: None,
            cold: VecDeque::new(),
            chain: Vec::new(),
            spans: 0,
            span_bytes: 0,
            pool: Arc::clone(pool),
            budget: Arc::clone(budget),
            charged: 0,
        }
    }

    /// Moves the shard's time to `now`, never back.
    pub fn advance(&mut self, now: Millis) {
        if self.now.is_due(now) {
            self.now = now;
        }
    }

    /// The shard's time.
    pub fn now(&self) -> Millis {
        self.now
    }

    /// Undecided traces.
    pub fn traces(&self) -> usize {
        self.index.len()
    }

    /// Spans of undecided traces.
    pub fn spans(&self) -> u64 {
        self.spans
    }

    /// Encoded bytes of those spans.
    pub fn span_bytes(&self) -> u64 {
        self.span_bytes
    }

    /// The undecided trace of this id.
    pub fn find(&self, hash: u64, trace_id: TraceId) -> Option<Position> {
        let same = |&position: &u32| {
            self.ring.get(Position(position)).is_some_and(|entry| entry.trace_id == trace_id)
        };
        self.index.find(hash, same).map(|&position| Position(position))
    }

    /// Begins a trace that [`Self::find`] did not find.
    pub fn insert(&mut self, hash: u64, trace_id: TraceId) -> Position {
        let position = self.ring.push(Entry::new(trace_id, self.now));
        let (ring, hasher) = (&self.ring, &self.hasher);
        let rehash = |&position: &u32| {
            let entry = ring.get(Position(position)).expect("the index names live entries");
            hash_of(hasher, entry.trace_id)
        };
        self.index.insert_unique(hash, position.0, rehash);
        position
    }

    /// Appends spans of one trace and adds their facts.
    pub fn append(&mut self, position: Position, run: &Run<'_>, slots: &mut ContextSlots) {
        self.add_facts(position, run);
        let trace_id = self.entry(position).trace_id;
        let mut rest = run.order;
        while let Some(&first) = rest.first() {
            let needed = record_bytes(run.spans[first as usize].len as usize);
            let slot = self.open_segment(needed);
            let previous = self.entry(position).last_record;
            let segment = self.slots[slot as usize].as_mut().expect("the open slot has a segment");
            let offset = segment.begin_record(trace_id, previous);
            while let Some((&next, later)) = rest.split_first() {
                let span = &run.spans[next as usize];
                if segment.room() < SPAN_HEADER_BYTES + span.len as usize {
                    break;
                }
                let context = slots.index(segment, run.contexts, span.context);
                segment
                    .put_span(context, &run.request[span.offset as usize..][..span.len as usize]);
                rest = later;
            }
            segment.finish_record(offset);
            self.entry_mut(position).last_record = Location { slot, offset };
        }
    }

    fn add_facts(&mut self, position: Position, run: &Run<'_>) {
        let root_was_seen = self.entry(position).root_seen();
        let mut randomness: Option<Randomness> = None;
        for &index in run.order {
            let span = &run.spans[index as usize];
            self.entry_mut(position).add(span);
            self.span_bytes += u64::from(span.len);
            randomness = lowest(randomness, span.explicit_randomness);
            let bits = &run.bits[index as usize * self.words..][..self.words];
            for (word, &added) in self.ring.bits_mut(position).iter_mut().zip(bits) {
                *word |= added;
            }
        }
        self.spans += run.order.len() as u64;
        if let Some(randomness) = randomness {
            let known = self.randomness.entry(position).or_insert(randomness);
            *known = randomness.min(*known);
            self.entry_mut(position).has_randomness = true;
        }
        if !root_was_seen {
            self.expect_after_root(position);
        }
    }

    /// Queues the deadline after the root, if the root is here and that deadline is the earlier one.
    fn expect_after_root(&mut self, position: Position) {
        let entry = self.entry(position);
        let (Some(wait), true) = (self.waits.after_root, entry.root_seen()) else { return };
        let due = self.now.after(wait);
        if !entry.arrived.after(self.waits.decision_wait).is_due(due) {
            self.after_root.push_back((due, position));
        }
    }

    /// The facts of an undecided trace.
    pub fn facts(&self, position: Position) -> Facts {
        self.entry(position).facts()
    }

    /// Spans of an undecided trace.
    pub fn trace_spans(&self, position: Position) -> u32 {
        self.entry(position).spans()
    }

    /// Encoded bytes of an undecided trace.
    pub fn trace_bytes(&self, position: Position) -> u32 {
        self.entry(position).bytes()
    }

    /// The id of an undecided trace.
    pub fn trace_id(&self, position: Position) -> TraceId {
        self.entry(position).trace_id
    }

    /// The attribute bits of an undecided trace.
    pub fn bits(&self, position: Position) -> &[u64] {
        self.ring.bits(position)
    }

    /// The lowest explicit randomness among the spans of an undecided trace.
    pub fn explicit_randomness(&self, position: Position) -> Option<Randomness> {
        if !self.entry(position).has_randomness {
            return None;
        }
        self.randomness.get(&position).copied()
    }

    /// A trace whose time has come, if there is one.
    pub fn next_due(&mut self) -> Option<Due> {
        while let Some(&(at, position)) = self.after_root.front() {
            if !self.is_live(position) {
                self.after_root.pop_front();
                continue;
            }
            if at.is_due(self.now) {
                return Some(Due { position, trigger: Trigger::RootReceived, at });
            }
            break;
        }
        let position = self.oldest()?;
        let at = self.entry(position).arrived.after(self.waits.decision_wait);
        at.is_due(self.now).then_some(Due { position, trigger: Trigger::DecisionWait, at })
    }

    /// The undecided trace that arrived first.
    pub fn oldest(&mut self) -> Option<Position> {
        while let Some(position) = self.ring.front() {
            if self.is_live(position) {
                return Some(position);
            }
            self.ring.pop_front();
        }
        None
    }

    /// Takes a trace out of the window; its spans are gone unless `kept` takes them, in the order of their
    /// arrival. Segments that are free now go to `freed`.
    pub fn take(
        &mut self,
        position: Position,
        kept: Option<&mut Vec<KeptSpan>>,
        freed: &mut Freed,
    ) {
        let entry = *self.entry(position);
        let hash = hash_of(&self.hasher, entry.trace_id);
        if let Ok(found) = self.index.find_entry(hash, |&other| other == position.0) {
            found.remove();
        }
        if entry.has_randomness {
            self.randomness.remove(&position);
        }
        self.entry_mut(position).is_live = false;
        self.spans -= u64::from(entry.spans());
        self.span_bytes -= u64::from(entry.bytes());
        self.collect_chain(entry.last_record);
        if let Some(kept) = kept {
            for &location in self.chain.iter().rev() {
                self.share_record(location, kept);
            }
        }
        for index in 0..self.chain.len() {
            self.release(self.chain[index], freed);
        }
    }

    /// Empties one segment that has been mostly dead for long enough, if there is one.
    pub fn compact(&mut self, freed: &mut Freed) {
        while let Some(&(since, slot, id)) = self.cold.front() {
            if self.now.since(since) < COMPACT_AFTER_MILLIS {
                return;
            }
            self.cold.pop_front();
            let in_slot = self.slots[slot as usize].as_ref();
            if in_slot.is_some_and(|segment| segment.id == id) {
                return self.evacuate(slot, freed);
            }
        }
    }

    /// Charges the budget with what index and deadlines hold now. Called at the end of a lock hold.
    pub fn settle(&mut self) {
        // A table that a burst has grown would keep its size for good.
        if self.index.capacity() > 4096 && self.index.len() < self.index.capacity() / 16 {
            let (ring, hasher) = (&self.ring, &self.hasher);
            self.index.shrink_to(2 * self.index.len(), |&position| {
                let entry = ring.get(Position(position)).expect("the index names live entries");
                hash_of(hasher, entry.trace_id)
            });
            self.after_root.shrink_to(2 * self.after_root.len());
        }
        let held = self.ring.bytes()
            + self.index.allocation_size()
            + self.after_root.capacity() * size_of::<(Millis, Position)>()
            + self.randomness.capacity() * size_of::<(Position, Randomness)>();
        if held > self.charged {
            self.budget.charge(Holder::Index, held - self.charged);
        } else {
            self.budget.release(Holder::Index, self.charged - held);
        }
        self.charged = held;
    }

    fn is_live(&self, position: Position) -> bool {
        self.ring.get(position).is_some_and(|entry| entry.is_live)
    }

    fn entry(&self, position: Position) -> &Entry {
        self.ring.get(position).expect("an undecided trace is in the ring")
    }

    fn entry_mut(&mut self, position: Position) -> &mut Entry {
        self.ring.get_mut(position).expect("an undecided trace is in the ring")
    }

    /// The slot of an open segment with room for a record of `needed` bytes.
    fn open_segment(&mut self, needed: usize) -> u32 {
        if let Some(slot) = self.open {
            let segment = self.slots[slot as usize].as_mut().expect("the open slot has a segment");
            if segment.room() >= needed {
                return slot;
            }
            segment.seal();
            self.open = None;
            self.note_cold(slot);
        }
        let segment = Segment::open(&self.pool, needed, self.now);
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.slots[slot as usize] = Some(segment);
        self.open = Some(slot);
        slot
    }

    fn segment(&self, slot: u32) -> &Segment {
        self.slots[slot as usize].as_ref().expect("a live record is in a segment")
    }

    /// Fills `chain` with the places of a trace's records, the newest first.
    fn collect_chain(&mut self, last: Location) {
        let mut chain = std::mem::take(&mut self.chain);
        chain.clear();
        let mut location = last;
        while location != Location::NONE {
            chain.push(location);
            location = self.segment(location.slot).record(location.offset).previous();
        }
        self.chain = chain;
    }

    fn share_record(&self, location: Location, kept: &mut Vec<KeptSpan>) {
        let segment = self.segment(location.slot);
        let record = segment.record(location.offset);
        let start = location.offset as usize;
        let bytes: Bytes = segment.share(start..start + record.len());
        kept.extend(record.spans().map(|(context, range)| KeptSpan {
            bytes: bytes.slice(range.start - start..range.end - start),
            context: Arc::clone(segment.context(context)),
        }));
    }

    fn release(&mut self, location: Location, freed: &mut Freed) {
        let segment = self.slots[location.slot as usize].as_mut().expect("a live record's segment");
        segment.live -= segment.record(location.offset).len();
        if !segment.is_sealed() {
            return;
        }
        if segment.live == 0 {
            self.free(location.slot, freed);
        } else {
            self.note_cold(location.slot);
        }
    }

    /// Queues a sealed segment for compaction when it has become mostly dead.
    fn note_cold(&mut self, slot: u32) {
        let segment = self.slots[slot as usize].as_mut().expect("called for a segment in use");
        if !segment.is_cold && segment.live * 2 < segment.bytes().len() {
            segment.is_cold = true;
            self.cold.push_back((self.now, slot, segment.id));
        }
    }

    /// Appends the undecided traces of a segment again, whole: records refer to older ones, which are
    /// sealed, so a record cannot move alone. A trace moves at most once for each time its new segments
    /// become mostly dead in turn.
    fn evacuate(&mut self, slot: u32, freed: &mut Freed) {
        let (id, bytes) = {
            let segment = self.segment(slot);
            (segment.id, segment.share(0..segment.bytes().len()))
        };
        let mut seen = HashSet::with_hasher(self.hasher.clone());
        let mut offset = HEADER_BYTES;
        while offset < bytes.len() {
            let record = Record::at(&bytes, offset as u32);
            offset += record.len();
            let trace_id = record.trace_id();
            let found = self.find(hash_of(&self.hasher, trace_id), trace_id);
            let Some(position) = found.filter(|&position| seen.insert(position)) else { continue };
            if self.is_in_chain(position, slot) {
                self.append_again(position, freed);
            }
            // The last undecided record has freed the slot, and it may already hold another segment.
            if self.slots[slot as usize].as_ref().is_none_or(|segment| segment.id != id) {
                return;
            }
        }
        // It was already empty when it was sealed, so no `release` has come upon it.
        self.free(slot, freed);
    }

    fn is_in_chain(&mut self, position: Position, slot: u32) -> bool {
        self.collect_chain(self.entry(position).last_record);
        self.chain.iter().any(|location| location.slot == slot)
    }

    fn free(&mut self, slot: u32, freed: &mut Freed) {
        freed.extend(self.slots[slot as usize].take());
        self.free_slots.push(slot);
    }

    fn append_again(&mut self, position: Position, freed: &mut Freed) {
        let entry = *self.entry(position);
        self.collect_chain(entry.last_record);
        let old = std::mem::take(&mut self.chain);
        let mut last = Location::NONE;
        for &location in old.iter().rev() {
            let record = self.segment(location.slot).record(location.offset);
            let slot = self.open_segment(record.len());
            last = self.copy_record(location, slot, entry.trace_id, last);
        }
        self.entry_mut(position).last_record = last;
        for &location in &old {
            self.release(location, freed);
        }
        self.chain = old;
    }

    /// Copies a record into the open segment, contexts included.
    fn copy_record(
        &mut self,
        from: Location,
        slot: u32,
        trace_id: TraceId,
        previous: Location,
    ) -> Location {
        let source = self.segment(from.slot);
        let record = source.record(from.offset);
        let bytes = source.share(from.offset as usize..from.offset as usize + record.len());
        let spans: Vec<_> = record
            .spans()
            .map(|(context, range)| (Arc::clone(source.context(context)), range))
            .collect();
        let target = self.slots[slot as usize].as_mut().expect("the open slot has a segment");
        let offset = target.begin_record(trace_id, previous);
        for (context, range) in spans {
            let index = target.context_index(&context);
            let base = from.offset as usize;
            target.put_span(index, &bytes[range.start - base..range.end - base]);
        }
        target.finish_record(offset);
        Location { slot, offset }
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.budget.release(Holder::Index, self.charged);
    }
}

/// The keyed hash of a trace id: ids are chosen by outsiders, so the hash must not be.
pub fn hash_of(hasher: &foldhash::fast::RandomState, trace_id: TraceId) -> u64 {
    std::hash::BuildHasher::hash_one(hasher, trace_id)
}

fn record_bytes(first_span_len: usize) -> usize {
    RECORD_HEADER_BYTES + SPAN_HEADER_BYTES + first_span_len
}

fn lowest(a: Option<Randomness>, b: Option<Randomness>) -> Option<Randomness> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
