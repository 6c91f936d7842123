//! The time of a partition: that of its records, and of the wall clock only where the partition has
//! been read to its end.
//!
//! Two times in Unix milliseconds, neither of which goes back:
//! - the *record time*, the latest timestamp of a record so far. Traces arrive by it, so that every
//!   owner of the partition sees them arrive at the same time.
//! - the *time*, by which traces are decided: the record time, or, if that is later, the moment for
//!   which the end of the partition was last confirmed, less [`GRACE_MILLIS`].
//!
//! Windows take both as [`Millis`], which cover 24 days. Where the time jumps by more than that, as
//! it does over a gap in the records, it advances there by [`STEP_MILLIS_MAX`], which is longer
//! than any wait or any time that a decision is remembered.

use crate::clock::Millis;

/// A record may carry the time at which its producer made it, and reach the partition a little
/// later. Deciding by the wall clock waits for such records.
const GRACE_MILLIS: u64 = 500;
/// Four days; the longest time that a decision can be remembered is twice one day.
const STEP_MILLIS_MAX: u64 = 4 * 86_400_000;

/// The time of one partition.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RecordClock {
    record: u64,
    time: u64,
    /// The offset between Unix time and [`Millis`]; `None` before the first time is known.
    shift: Option<u64>,
}

impl RecordClock {
    /// A record with this timestamp is about to be taken in.
    pub(super) fn record(&mut self, timestamp: u64) {
        self.record = self.record.max(timestamp);
        self.advance(self.record);
    }

    /// Everything that was in the partition at this moment of the wall clock has been taken in.
    pub(super) fn confirm(&mut self, asked_at: u64) {
        self.advance(asked_at.saturating_sub(GRACE_MILLIS));
    }

    /// The record time; 0 before the first record.
    pub(super) fn record_unix(&self) -> u64 {
        self.record
    }

    /// The time by which traces are decided; 0 before it is known.
    pub(super) fn time_unix(&self) -> u64 {
        self.time
    }

    /// The record time for a window.
    pub(super) fn arrival(&self) -> Millis {
        self.millis(self.record)
    }

    /// The time for a window.
    pub(super) fn time(&self) -> Millis {
        self.millis(self.time)
    }

    /// The Unix time of an arrival.
    pub(super) fn unix_of(&self, arrival: Millis) -> u64 {
        self.record.saturating_sub(self.arrival().since(arrival).into())
    }

    fn advance(&mut self, to: u64) {
        if to <= self.time {
            return;
        }
        // The first time becomes a time well after 0, so that a record time before it, which is
        // possible after a confirmation, is not negative.
        let shift = self.shift.get_or_insert(to.saturating_sub(STEP_MILLIS_MAX));
        let step = to - self.time;
        if self.time > 0 && step > STEP_MILLIS_MAX {
            *shift += step - STEP_MILLIS_MAX;
        }
        self.time = to;
    }

    fn millis(&self, unix: u64) -> Millis {
        // Cut to what `Millis` is: a number modulo 2^32.
        Millis(unix.saturating_sub(self.shift.unwrap_or(0)) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_time_goes_back() {
        let mut clock = RecordClock::default();
        clock.record(1_000_000_000_000);
        let first = clock.time();
        clock.record(999_999_999_000);
        assert_eq!((clock.time(), clock.arrival()), (first, first));
        clock.confirm(1_000_000_001_500);
        assert_eq!(clock.time().since(first), 1_000);
        assert_eq!(clock.arrival(), first, "arrivals do not follow the wall clock");
        clock.confirm(1_000_000_001_000);
        assert_eq!(clock.time().since(first), 1_000);
        clock.record(1_000_000_000_300);
        assert_eq!(clock.arrival().since(first), 300);
        assert_eq!(clock.unix_of(first), 1_000_000_000_000);
    }

    #[test]
    fn a_gap_of_months_is_a_long_step() {
        let mut clock = RecordClock::default();
        clock.record(1_000_000_000_000);
        let before = clock.time();
        clock.record(1_000_000_000_000 + 60 * 86_400_000);
        assert_eq!(u64::from(clock.time().since(before)), STEP_MILLIS_MAX);
        assert_eq!(clock.time(), clock.arrival());
        clock.record(1_000_000_000_007 + 60 * 86_400_000);
        assert_eq!(u64::from(clock.time().since(before)), STEP_MILLIS_MAX + 7);
    }

    #[test]
    fn records_without_a_time_wait_for_the_end() {
        let mut clock = RecordClock::default();
        assert_eq!((clock.time(), clock.arrival()), (Millis(0), Millis(0)));
        clock.confirm(1_000_000_000_500);
        assert_eq!(clock.time_unix(), 1_000_000_000_000);
        assert!(clock.time().since(clock.arrival()) > 0);
    }
}
