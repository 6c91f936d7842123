//! Compaction: memory comes back from segments that a few undecided traces keep alive.
//!
//! With a decision some seconds after the root most records die long before the window ends, and
//! the traces without a root would hold every segment for the rest of it. Called by the decider
//! once a visit to a shard, one segment at a time, under the lock.

use std::{collections::HashSet, sync::Arc};

use super::{
    Freed, Position, Shard, hash_of,
    segment::{Location, Record},
};
use crate::trace::TraceId;

/// How long a segment must have been mostly dead before its survivors are moved.
pub const COMPACT_AFTER_MILLIS: u32 = 500;

impl Shard {
    /// Empties one segment that has been mostly dead for long enough. Whether there was one, and so
    /// may be another.
    pub fn compact(&mut self, freed: &mut Freed) -> bool {
        while let Some(&(since, slot, id)) = self.cold.front() {
            if self.now.since(since) < COMPACT_AFTER_MILLIS {
                return false;
            }
            self.cold.pop_front();
            let in_slot = self.slots[slot as usize].as_ref();
            if in_slot.is_some_and(|segment| segment.id == id) {
                self.evacuate(slot, freed);
                return true;
            }
        }
        false
    }

    /// Queues a sealed segment for compaction when it has become mostly dead.
    pub(super) fn note_cold(&mut self, slot: u32) {
        let segment = self.slots[slot as usize].as_mut().expect("called for a segment in use");
        if !segment.is_cold && segment.live * 2 < segment.bytes().len() {
            segment.is_cold = true;
            self.cold.push_back((self.now, slot, segment.id));
        }
    }

    /// Appends the undecided traces of a segment again, whole: records refer to older ones, which
    /// are sealed, so a record cannot move alone. A trace moves at most once for each time its new
    /// segments become mostly dead in turn.
    fn evacuate(&mut self, slot: u32, freed: &mut Freed) {
        let view = self.segment(slot).view();
        let mut seen = HashSet::with_hasher(self.hasher.clone());
        for record in view.records() {
            let trace_id = record.trace_id();
            let found = self.find(hash_of(&self.hasher, trace_id), trace_id);
            let Some(position) = found.filter(|&position| seen.insert(position)) else { continue };
            if self.is_in_chain(position, slot) {
                self.append_again(position, freed);
            }
            // The last undecided record has freed the slot, and it may already hold another
            // segment.
            if self.slots[slot as usize].as_ref().is_none_or(|segment| segment.id != view.id) {
                return;
            }
        }
    }

    /// Fills `chain` with the places of a trace's records, the newest first.
    fn collect_chain(&mut self, last: Location) {
        let mut chain = std::mem::take(&mut self.chain);
        chain.clear();
        let mut location = last;
        while location != Location::NONE {
            chain.push(location);
            location = self.segment(location.slot).previous(location.record);
        }
        self.chain = chain;
    }

    fn is_in_chain(&mut self, position: Position, slot: u32) -> bool {
        self.collect_chain(self.entry(position).last_record);
        self.chain.iter().any(|location| location.slot == slot)
    }

    fn append_again(&mut self, position: Position, freed: &mut Freed) {
        let entry = *self.entry(position);
        self.collect_chain(entry.last_record);
        let old = std::mem::take(&mut self.chain);
        let mut last = Location::NONE;
        for &location in old.iter().rev() {
            let needed = self.segment(location.slot).record_len(location.record);
            let slot = self.open_segment(needed);
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
        let (bytes, contexts) = (source.share(from.record), Arc::clone(source.contexts()));
        let target = self.slots[slot as usize].as_mut().expect("the open slot has a segment");
        let with_index =
            |(context, span)| (target.context_index(&contexts[usize::from(context)]), span);
        let spans: Vec<_> = Record::at(&bytes, 0).spans().map(with_index).collect();
        Location { slot, record: target.append(trace_id, previous, spans.into_iter()) }
    }
}
