//! New policies for old traces: the bits of what is buffered, computed anew from its bytes, mostly
//! without the lock.
//!
//! Sealed segments never change, so a [`View`] of a shard, which is a reference to each of them and
//! the place of each trace's last record, can be walked while the shard goes on. What has come
//! since is walked with the next view, and the rest, which is little, under the lock. Walking a
//! shard of 128 MiB under its lock took 100 to 900 ms, depending on the policies; this takes a few.

use super::{
    Position, Shard,
    segment::{Location, SegmentView},
};
use crate::otlp::{conditions::Conditions, rewalk::Rewalk};

/// What a shard holds at one moment. Keeps its segments from being reused.
#[derive(Debug)]
pub struct View {
    segments: Vec<Option<SegmentView>>,
    first: Position,
    /// The last record of each trace from `first` on, none for those that are decided.
    last_records: Vec<Location>,
}

/// A record by the segment that it is in and not by its slot, which may be reused.
type Mark = (u64, u32);

const NO_MARK: Mark = (u64::MAX, 0);

/// The bits of a shard's traces by new conditions, as far as they have been computed.
#[derive(Debug)]
pub struct NewBits<'a, C> {
    rewalk: Rewalk<'a, C>,
    words: usize,
    first: Option<Position>,
    /// For each trace from `first` on: the last record that is in its bits.
    done: Vec<Mark>,
    bits: Vec<u64>,
}

impl<'a, C: Conditions> NewBits<'a, C> {
    /// Has none yet.
    pub fn new(conditions: &'a C) -> Self {
        NewBits {
            rewalk: Rewalk::new(conditions),
            words: conditions.words(),
            first: None,
            done: Vec::new(),
            bits: Vec::new(),
        }
    }

    /// Bytes that it takes, with the view, once that has been walked.
    pub fn bytes_for(&self, view: &View) -> usize {
        let traces = self.done.len().max(view.last_records.len());
        let of_trace = size_of::<Location>() + size_of::<Mark>() + 8 * self.words;
        traces * of_trace + super::SEGMENT_BYTES
    }

    /// Walks what of a view has not been walked. Views of one shard, each later than the ones
    /// before.
    pub fn catch_up(&mut self, view: &View) {
        if self.words == 0 {
            return;
        }
        let behind = self.index(view.first);
        let traces = behind + view.last_records.len();
        self.done.resize(traces, NO_MARK);
        self.bits.resize(traces * self.words, 0);
        for (trace, &last) in (behind..).zip(&view.last_records) {
            self.walk(view, trace, last);
        }
    }

    /// Walks the records of a trace from the last one back to those that are done. Where the trace
    /// has been moved, that is all of them, again, which changes nothing.
    fn walk(&mut self, view: &View, trace: usize, last: Location) {
        let bits = &mut self.bits[trace * self.words..][..self.words];
        let mut newest = None;
        let mut location = last;
        while location != Location::NONE {
            let segment = view.segments[location.slot as usize].as_ref();
            let segment = segment.expect("a live record is in a segment");
            let mark = (segment.id, location.record);
            if mark == self.done[trace] {
                break;
            }
            newest.get_or_insert(mark);
            let (record, previous) = segment.record(location.record);
            for (context, span) in record.spans() {
                self.rewalk.add(&segment.contexts[usize::from(context)], span, bits);
            }
            location = previous;
        }
        self.done[trace] = newest.unwrap_or(self.done[trace]);
    }

    fn index(&mut self, position: Position) -> usize {
        let first = self.first.get_or_insert(position);
        position.0.wrapping_sub(first.0) as usize
    }
}

impl Shard {
    /// What is to be walked. Costs a few nanoseconds a trace and a copy of the open segment.
    pub fn view(&self) -> View {
        let view = |slot: &Option<super::Segment>| slot.as_ref().map(super::Segment::view);
        let last_record = |position| {
            let live = Some(self.entry(position)).filter(|entry| entry.is_live);
            live.map_or(Location::NONE, |entry| entry.last_record)
        };
        View {
            segments: self.slots.iter().map(view).collect(),
            first: self.ring.first(),
            last_records: self.ring.positions().map(last_record).collect(),
        }
    }

    /// Replaces the bits of all traces by these, once what they lack has been walked; those of
    /// spans that come after it must be by the same conditions.
    pub fn replace_bits<C: Conditions>(&mut self, new: &mut NewBits<'_, C>) {
        new.catch_up(&self.view());
        self.words = new.words;
        self.ring.reset_bits(self.words);
        if new.words == 0 {
            return;
        }
        for position in self.ring.positions() {
            let start = new.index(position) * new.words;
            self.ring.bits_mut(position).copy_from_slice(&new.bits[start..][..new.words]);
        }
    }
}
