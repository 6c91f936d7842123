//! Compaction: frees segments that only a few undecided traces still use.
//!
//! When traces are decided a few seconds after their root, most records die long before
//! `decision_wait` ends. Without compaction, the few traces without a root would hold every segment
//! until then. The decider calls it once per visit to a shard, under the shard's lock. One call
//! moves about 256 KiB or looks at a few thousand records, and the next call continues there. The
//! work per call must be bounded: a segment may hold records of a thousand traces, each of them
//! with records in hundreds of other segments, and all of these move too.

use std::sync::Arc;

use super::{
    Freed, Position, Shard, hash_of,
    segment::{Location, Record},
};
use crate::trace::TraceId;

/// A call ends after it has moved this many bytes. A trace moves whole, so one call may exceed the
/// limit by one trace.
const MOVED_BYTES_MAX: usize = 256 << 10;
/// Looking at a record counts as moving this many bytes, because the wait for memory takes about as
/// long.
const LOOK_BYTES: usize = 64;

/// A segment is compacted after it has been mostly dead for this long.
pub(crate) const COMPACT_AFTER_MILLIS: u32 = 500;

impl Shard {
    /// Empties one segment, or a part of it, that has been mostly dead for long enough. Returns
    /// whether it found one, so there may be more to do.
    pub(crate) fn compact(&mut self, freed: &mut Freed) -> bool {
        while let Some(&(since, slot, id)) = self.cold.front() {
            if self.now.since(since) < COMPACT_AFTER_MILLIS {
                return false;
            }
            if self.is_in_slot(slot, id) && self.evacuate(slot, freed) {
                return true;
            }
            self.cold.pop_front();
            self.evacuated = 0;
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

    fn is_in_slot(&self, slot: u32, id: u64) -> bool {
        self.slots[slot as usize].as_ref().is_some_and(|segment| segment.id == id)
    }

    /// Appends the undecided traces of a segment again, each as a whole: a record refers to older
    /// records in sealed segments, so it cannot move alone. A trace moves again only when its new
    /// segments have become mostly dead. Returns whether it did anything.
    fn evacuate(&mut self, slot: u32, freed: &mut Freed) -> bool {
        let view = self.segment(slot).view();
        let (begun_at, mut worked) = (self.evacuated, 0);
        for number in begun_at..view.records() {
            // Moving the last undecided record frees the slot, which may already hold another
            // segment.
            if worked >= MOVED_BYTES_MAX || !self.is_in_slot(slot, view.id) {
                break;
            }
            self.evacuated += 1;
            worked += LOOK_BYTES;
            let trace_id = view.record(number).0.trace_id();
            let Some(position) = self.find(hash_of(&self.hasher, trace_id), trace_id) else {
                continue;
            };
            let is_there = self.is_in_chain(position, slot);
            worked += LOOK_BYTES * self.chain.len();
            if is_there {
                worked += self.append_again(position, freed);
            }
        }
        self.evacuated > begun_at
    }

    /// Fills `chain` with the locations of a trace's records, newest first.
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

    /// Appends the records listed in `chain` again. Returns the number of bytes moved.
    fn append_again(&mut self, position: Position, freed: &mut Freed) -> usize {
        let entry = *self.entry(position);
        let old = std::mem::take(&mut self.chain);
        let (mut last, mut moved) = (Location::NONE, 0);
        for &location in old.iter().rev() {
            let needed = self.segment(location.slot).record_len(location.record);
            moved += needed;
            let slot = self.open_segment(needed);
            last = self.copy_record(location, slot, entry.trace_id, last);
        }
        self.entry_mut(position).last_record = last;
        for &location in &old {
            self.release(location, freed);
        }
        self.chain = old;
        moved
    }

    /// Copies a record and its contexts into the open segment.
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
