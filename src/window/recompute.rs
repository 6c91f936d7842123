//! Recomputes the attribute bits of buffered traces for new policies, mostly without the lock.
//!
//! Sealed segments never change. A [`View`] of a shard holds a reference to each segment and the
//! location of each trace's last record, so it can be walked while the shard takes in requests. The
//! next view covers the records that arrived in the meantime, and the few that remain are walked
//! under the lock. To walk a shard of 128 MiB under its lock took 100 to 900 ms, depending on the
//! policies; this takes a few milliseconds.

use super::{
    Position, Shard,
    segment::{Location, SegmentView},
};
use crate::otlp::{
    conditions::{Conditions, Words},
    rewalk::Rewalk,
};

/// The contents of a shard at one moment. While it exists, its segments are not reused.
#[derive(Debug)]
pub(crate) struct View {
    segments: Vec<Option<SegmentView>>,
    first: Position,
    /// The last record of each trace from `first` on; `NONE` for decided traces.
    last_records: Vec<Location>,
}

/// Identifies a record by the id of its segment, because the segment's slot may be reused.
type Mark = (u64, u32);

const NO_MARK: Mark = (u64::MAX, 0);

/// The bits of a shard's traces under new conditions, as far as they have been computed.
#[derive(Debug)]
pub(crate) struct NewBits<'a, C> {
    rewalk: Rewalk<'a, C>,
    shape: Words,
    words: usize,
    first: Option<Position>,
    /// For each trace from `first` on: the newest record that its bits include.
    done: Vec<Mark>,
    bits: Vec<u64>,
}

impl<'a, C: Conditions> NewBits<'a, C> {
    /// Starts with no bits computed.
    pub(crate) fn new(conditions: &'a C) -> Self {
        NewBits {
            rewalk: Rewalk::new(conditions),
            shape: conditions.shape(),
            words: conditions.words(),
            first: None,
            done: Vec::new(),
            bits: Vec::new(),
        }
    }

    /// The bytes that it takes, together with the view, after the view has been walked.
    pub(crate) fn bytes_for(&self, view: &View) -> usize {
        let traces = self.done.len().max(view.last_records.len());
        let of_trace = size_of::<Location>() + size_of::<Mark>() + 8 * self.words;
        traces * of_trace + super::SEGMENT_BYTES
    }

    /// Walks the records of a view that have not been walked yet. All views must be of the same
    /// shard, each later than the one before.
    pub(crate) fn catch_up(&mut self, view: &View) {
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

    /// Walks the records of a trace from the newest back to the first one already walked. If
    /// compaction has moved the trace, it walks all of them again, which does not change the
    /// result.
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
    /// A view of the shard. It costs a few nanoseconds per trace and a copy of the open segment.
    pub(crate) fn view(&self) -> View {
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

    /// Walks the records that `bits` lacks, then replaces the bits of all traces with it. Spans
    /// that are appended later must bring bits of the same conditions.
    pub(crate) fn replace_bits<C: Conditions>(&mut self, new: &mut NewBits<'_, C>) {
        new.catch_up(&self.view());
        self.words = new.shape;
        self.ring.reset_bits(new.words);
        if new.words == 0 {
            return;
        }
        for position in self.ring.positions() {
            let start = new.index(position) * new.words;
            self.ring.bits_mut(position).copy_from_slice(&new.bits[start..][..new.words]);
        }
    }
}
