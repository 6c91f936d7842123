//! One shard: the ring and its index, the deadlines, and the slots of the log.

use std::{collections::VecDeque, sync::Arc};

use hashbrown::HashTable;

use super::{
    ContextSlots, Due, Freed, Millis, Pool, Position, Run, Segment, Waits, hash_of,
    ring::{Entry, ExplicitRandomness, Ring},
    segment::{Location, RECORD_HEADER_BYTES, Record, SPAN_HEADER_BYTES, Tables},
};
use crate::{
    budget::{Budget, Holder},
    otlp::{conditions::Words, encode::KeptSpan},
    trace::{Facts, Randomness, TraceId, Trigger},
};

/// A trace that has been taken out of the window but whose records are still in their segments.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    hash: u64,
    position: Position,
    is_kept: bool,
    /// The newest record that is not in the list of links yet.
    next: Location,
    /// The link of the oldest record that is in the list.
    oldest: u32,
}

/// A record of a taken trace.
#[derive(Clone, Copy, Debug)]
struct Link {
    location: Location,
    /// The link of the next newer record.
    newer: u32,
}

const NO_LINK: u32 = u32::MAX;

const IN_RING: &str = "an undecided trace is in the ring";

/// One shard of the window.
#[derive(Debug)]
pub struct Shard {
    waits: Waits,
    pub(super) words: Words,
    pub(super) now: Millis,
    pub(super) ring: Ring,
    /// The position that is stored with the next trace, if the shard keeps positions.
    pub(super) low: u64,
    index: HashTable<u32>,
    pub(super) hasher: super::Hasher,
    randomness: ExplicitRandomness,
    after_root: VecDeque<(Millis, Position)>,
    pub(super) slots: Vec<Option<Segment>>,
    free_slots: Vec<u32>,
    open: Option<u32>,
    /// The cleared tables for the next open segment.
    tables: Tables,
    pub(super) cold: VecDeque<(Millis, u32, u64)>,
    /// The number of records of the segment at the front of `cold` that compaction has looked at.
    pub(super) evacuated: u32,
    pub(super) chain: Vec<Location>,
    chains: Vec<Link>,
    spans: u64,
    span_bytes: u64,
    pool: Arc<Pool>,
    budget: Arc<Budget>,
    charged: usize,
}

impl Shard {
    /// An empty shard. `hasher` is the one with which callers hash trace ids; `words` are the
    /// words of attribute bits per trace.
    pub fn new(
        waits: Waits,
        words: Words,
        hasher: super::Hasher,
        pool: &Arc<Pool>,
        budget: &Arc<Budget>,
    ) -> Self {
        Shard {
            waits,
            words,
            now: Millis::default(),
            ring: Ring::new(words.all()),
            low: 0,
            index: HashTable::new(),
            hasher,
            randomness: ExplicitRandomness::default(),
            after_root: VecDeque::new(),
            slots: Vec::new(),
            free_slots: Vec::new(),
            open: None,
            tables: Tables::default(),
            cold: VecDeque::new(),
            evacuated: 0,
            chain: Vec::new(),
            chains: Vec::new(),
            spans: 0,
            span_bytes: 0,
            pool: Arc::clone(pool),
            budget: Arc::clone(budget),
            charged: 0,
        }
    }

    /// Sets the shard's time to `now`, unless that would move it back.
    pub fn advance(&mut self, now: Millis) {
        if self.now.is_due(now) {
            self.now = now;
        }
    }

    /// The shard's time.
    pub fn now(&self) -> Millis {
        self.now
    }

    /// The number of undecided traces.
    pub(crate) fn traces(&self) -> usize {
        self.index.len()
    }

    /// The number of spans of undecided traces.
    pub(crate) fn spans(&self) -> u64 {
        self.spans
    }

    /// The encoded bytes of those spans.
    pub(crate) fn span_bytes(&self) -> u64 {
        self.span_bytes
    }

    /// The position of the undecided trace with this id.
    pub fn find(&self, hash: u64, trace_id: TraceId) -> Option<Position> {
        let same = |&position: &u32| {
            self.ring.get(Position(position)).is_some_and(|entry| entry.trace_id == trace_id)
        };
        self.index.find(hash, same).map(|&position| Position(position))
    }

    /// The probable position of the trace with this hash, without reading its entry.
    /// [`Self::is_at`] gives the certain answer.
    pub(crate) fn guess(&self, hash: u64) -> Option<Position> {
        self.index.find(hash, |_| true).map(|&position| Position(position))
    }

    /// Whether the undecided trace with this id is at `position`.
    pub(crate) fn is_at(&self, position: Position, trace_id: TraceId) -> bool {
        let entry = self.ring.get(position);
        entry.is_some_and(|entry| entry.is_live && entry.trace_id == trace_id)
    }

    /// Adds a trace that [`Self::find`] has not found.
    pub fn insert(&mut self, hash: u64, trace_id: TraceId) -> Position {
        let position = self.ring.push(Entry::new(trace_id, self.now), self.low);
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
        let Entry { trace_id, mut last_record, .. } = *self.entry(position);
        let mut rest = run.order;
        while let Some(&first) = rest.first() {
            let needed = record_bytes(run.spans[first as usize].len as usize);
            let slot = self.open_segment(needed);
            let segment = self.slots[slot as usize].as_mut().expect("the open slot has a segment");
            let mut room = segment.room() - RECORD_HEADER_BYTES;
            let fits = |&&index: &&u32| {
                let span = &run.spans[index as usize];
                let needed = SPAN_HEADER_BYTES + span.len as usize;
                let fits = needed <= room;
                if fits {
                    room -= needed;
                    slots.find(segment, run.contexts, span.context);
                }
                fits
            };
            let (now, later) = rest.split_at(rest.iter().take_while(fits).count());
            rest = later;
            let spans = now.iter().map(|&index| {
                let span = &run.spans[index as usize];
                let bytes = &run.request[span.offset as usize..][..span.len as usize];
                (slots.found(span.context), bytes)
            });
            last_record = Location { slot, record: segment.append(trace_id, last_record, spans) };
            self.entry_mut(position).last_record = last_record;
        }
    }

    fn add_facts(&mut self, position: Position, run: &Run<'_>) {
        let entry = self.ring.get_mut(position).expect(IN_RING);
        let root_was_seen = entry.root_seen();
        let mut randomness: Option<Randomness> = None;
        for &index in run.order {
            let span = &run.spans[index as usize];
            // The totals change together with the entry, span by span, so they agree even after a
            // panic.
            entry.add(span);
            self.spans += 1;
            self.span_bytes += u64::from(span.len);
            randomness = Randomness::lowest(randomness, span.explicit_randomness);
        }
        let bits = self.ring.bits_mut(position);
        for &index in run.order {
            let words = self.words.all();
            self.words.merge(bits, &run.bits[index as usize * words..][..words]);
        }
        if let Some(randomness) = randomness {
            let known = self.randomness.entry(position).or_insert(randomness);
            *known = randomness.min(*known);
            self.entry_mut(position).has_randomness = true;
        }
        if !root_was_seen {
            self.expect_after_root(position);
        }
    }

    /// Queues the deadline after the root if the root has arrived and this deadline is the earlier
    /// one.
    fn expect_after_root(&mut self, position: Position) {
        let entry = self.entry(position);
        let (Some(wait), true) = (self.waits.after_root, entry.root_seen()) else { return };
        let due = self.now.after(wait);
        if !entry.arrived.after(self.waits.decision_wait).is_due(due) {
            self.after_root.push_back((due, position));
        }
    }

    /// The facts of an undecided trace.
    pub(crate) fn facts(&self, position: Position) -> Facts {
        self.entry(position).facts()
    }

    /// The number of spans of an undecided trace.
    pub(crate) fn trace_spans(&self, position: Position) -> u32 {
        self.entry(position).spans()
    }

    /// The encoded bytes of an undecided trace.
    pub(crate) fn trace_bytes(&self, position: Position) -> u32 {
        self.entry(position).bytes()
    }

    /// The id of an undecided trace.
    pub(crate) fn trace_id(&self, position: Position) -> TraceId {
        self.entry(position).trace_id
    }

    /// The time since an undecided trace arrived.
    pub(crate) fn age_millis(&self, position: Position) -> u32 {
        self.now.since(self.entry(position).arrived)
    }

    /// The attribute bits of an undecided trace.
    pub(crate) fn bits(&self, position: Position) -> &[u64] {
        self.ring.bits(position)
    }

    /// The lowest explicit randomness among the spans of an undecided trace.
    pub(crate) fn explicit_randomness(&self, position: Position) -> Option<Randomness> {
        if !self.entry(position).has_randomness {
            return None;
        }
        self.randomness.get(&position).copied()
    }

    /// When an undecided trace will be decided at the latest. Searches the deadlines after the
    /// root, so it is for queries by people, not for the data path.
    pub(crate) fn due(&self, position: Position) -> Millis {
        let after_root = self.after_root.iter().find(|(_, expected)| *expected == position);
        // The deadline after the root is queued only if it is the earlier one.
        after_root.map_or_else(
            || self.entry(position).arrived.after(self.waits.decision_wait),
            |(at, _)| *at,
        )
    }

    /// A trace whose deadline has passed at `now`, if there is one.
    pub fn next_due(&mut self, now: Millis) -> Option<Due> {
        while let Some(&(at, position)) = self.after_root.front() {
            if !self.is_live(position) {
                self.after_root.pop_front();
                continue;
            }
            if at.is_due(now) {
                return Some(Due { position, trigger: Trigger::RootReceived, at });
            }
            break;
        }
        let (position, arrived) = self.oldest()?;
        let at = arrived.after(self.waits.decision_wait);
        at.is_due(now).then_some(Due { position, trigger: Trigger::DecisionWait, at })
    }

    /// All traces that [`Self::next_due`] would return if each were taken, in no particular order.
    pub(crate) fn all_due(&self, now: Millis) -> impl Iterator<Item = Position> {
        let waits_out = move |position: Position| {
            self.entry(position).arrived.after(self.waits.decision_wait).is_due(now)
        };
        let by_wait = self.ring.positions().take_while(move |&position| waits_out(position));
        let by_wait = by_wait.filter(|&position| self.is_live(position));
        let after_root = self.after_root.iter().take_while(move |(at, _)| at.is_due(now));
        let after_root = after_root.map(|&(_, position)| position);
        let live = after_root.filter(|&position| self.is_live(position));
        by_wait.chain(live.filter(move |&position| !waits_out(position)))
    }

    /// The undecided trace that arrived first, and its time of arrival.
    pub(crate) fn oldest(&mut self) -> Option<(Position, Millis)> {
        while let Some(position) = self.ring.front() {
            if self.is_live(position) {
                return Some((position, self.entry(position).arrived));
            }
            self.ring.pop_front();
        }
        None
    }

    /// Appends the spans of an undecided trace in order of arrival, usable after the lock is
    /// released. For traces that people record; kept traces are shared by [`Self::empty`].
    pub(crate) fn share(&self, position: Position, out: &mut Vec<KeptSpan>) {
        let mut location = self.entry(position).last_record;
        let mut records = Vec::new();
        while location != Location::NONE {
            records.push(location);
            location = self.segment(location.slot).previous(location.record);
        }
        records.into_iter().rev().for_each(|location| self.share_record(location, out));
    }

    /// Removes a trace from the deadlines. The trace stays in the index, and its records in their
    /// segments, until [`Self::empty`] is called. Nothing may be inserted before that call.
    pub fn take(&mut self, position: Position, is_kept: bool) -> Taken {
        let entry = *self.entry(position);
        if entry.has_randomness {
            self.randomness.remove(&position);
        }
        self.entry_mut(position).is_live = false;
        self.spans -= u64::from(entry.spans());
        self.span_bytes -= u64::from(entry.bytes());
        let hash = hash_of(&self.hasher, entry.trace_id);
        Taken { hash, position, is_kept, next: entry.last_record, oldest: NO_LINK }
    }

    /// Removes taken traces from the index and their records from the segments. Appends the spans
    /// of kept traces to `kept`, trace by trace in order of arrival, and the segments that are now
    /// free to `freed`.
    pub fn empty(&mut self, taken: &mut Vec<Taken>, kept: &mut Vec<KeptSpan>, freed: &mut Freed) {
        for trace in taken.iter() {
            let same = |&other: &u32| other == trace.position.0;
            if let Ok(found) = self.index.find_entry(trace.hash, same) {
                found.remove();
            }
        }
        let mut chains = std::mem::take(&mut self.chains);
        self.collect_chains(taken, &mut chains);
        let records = |trace: &Taken| {
            let first = chains.get(trace.oldest as usize);
            std::iter::successors(first, |link| chains.get(link.newer as usize))
        };
        let traces = || taken.iter().filter(|trace| trace.is_kept);
        // The kept records are read here, and again when they are cleaned. Reading one byte of each
        // cache line first lets the processor wait for all of them at once.
        let touch = |link: &Link| self.segment(link.location.slot).touch(link.location.record);
        std::hint::black_box(traces().flat_map(records).fold(0, |sum, link| sum ^ touch(link)));
        for link in traces().flat_map(records) {
            self.share_record(link.location, kept);
        }
        taken.clear();
        for link in chains.drain(..) {
            self.release(link.location, freed);
        }
        self.chains = chains;
    }

    /// Collects the records of all traces: first the newest of each, then the previous ones. These
    /// reads do not depend on each other, so the processor waits for them together. One trace after
    /// the other took twice as long.
    fn collect_chains(&self, taken: &mut [Taken], chains: &mut Vec<Link>) {
        let mut going: Vec<u32> = (0..taken.len() as u32).collect();
        while !going.is_empty() {
            going.retain(|&trace| {
                let trace = &mut taken[trace as usize];
                let location = trace.next;
                if location == Location::NONE {
                    return false;
                }
                chains.push(Link { location, newer: trace.oldest });
                trace.oldest = (chains.len() - 1) as u32;
                trace.next = self.segment(location.slot).previous(location.record);
                true
            });
        }
    }

    /// Charges the budget with the current size of the index and the deadlines. Called at the end
    /// of each hold of the lock.
    pub(crate) fn settle(&mut self) {
        // Without this, a table that has grown in a burst would keep its size.
        if self.index.capacity() > 4096 && self.index.len() < self.index.capacity() / 16 {
            let (ring, hasher) = (&self.ring, &self.hasher);
            self.index.shrink_to(2 * self.index.len(), |&position| {
                let entry = ring.get(Position(position)).expect("the index names live entries");
                hash_of(hasher, entry.trace_id)
            });
            self.after_root.shrink_to(2 * self.after_root.len());
            self.randomness.shrink_to(2 * self.randomness.len());
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

    pub(super) fn entry(&self, position: Position) -> &Entry {
        self.ring.get(position).expect(IN_RING)
    }

    pub(super) fn entry_mut(&mut self, position: Position) -> &mut Entry {
        self.ring.get_mut(position).expect(IN_RING)
    }

    /// The slot of an open segment with room for a record of `needed` bytes.
    pub(super) fn open_segment(&mut self, needed: usize) -> u32 {
        if let Some(slot) = self.open {
            let segment = self.slots[slot as usize].as_mut().expect("the open slot has a segment");
            if segment.room() >= needed {
                return slot;
            }
            self.tables = segment.seal();
            self.open = None;
            self.note_cold(slot);
        }
        let tables = std::mem::take(&mut self.tables);
        let segment = Segment::open(&self.pool, needed, self.now, tables);
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.slots[slot as usize] = Some(segment);
        self.open = Some(slot);
        slot
    }

    pub(super) fn segment(&self, slot: u32) -> &Segment {
        self.slots[slot as usize].as_ref().expect("a live record is in a segment")
    }

    fn share_record(&self, location: Location, kept: &mut Vec<KeptSpan>) {
        let segment = self.segment(location.slot);
        let bytes = segment.share(location.record);
        kept.extend(Record::at(&bytes, 0).spans().map(|(context, span)| KeptSpan {
            bytes: bytes.slice_ref(span),
            context: Arc::clone(&segment.contexts()[usize::from(context)]),
        }));
    }

    pub(super) fn release(&mut self, location: Location, freed: &mut Freed) {
        let segment = self.slots[location.slot as usize].as_mut().expect("a live record's segment");
        segment.live -= segment.record_len(location.record);
        if segment.live == 0 {
            // This includes the open segment. It may be large or hold large contexts; if those
            // bring memory to its limit, no request is admitted that would seal it.
            self.open = self.open.filter(|&open| open != location.slot);
            freed.extend(self.slots[location.slot as usize].take());
            self.free_slots.push(location.slot);
        } else if segment.is_sealed() {
            self.note_cold(location.slot);
        }
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.budget.release(Holder::Index, self.charged);
    }
}

fn record_bytes(first_span_len: usize) -> usize {
    RECORD_HEADER_BYTES + SPAN_HEADER_BYTES + first_span_len
}
