//! Rates of the last ten minutes: spans accepted, kept, dropped and sent in each second.
//!
//! The admin thread reads the sums of the ledger once a second; the data path does nothing for it.
//! A rate is the difference of two readings divided by the time between them, so a late reading
//! does not distort it. Limit: 601 readings of 56 bytes.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{control::Rates, metrics::Totals};

/// The time between two readings.
pub(super) const PERIOD: Duration = Duration::from_secs(1);
/// The rates in a status are averages over this time.
const RATES_OVER: Duration = Duration::from_secs(10);
/// Ten minutes, and the reading from which the first second is counted.
const READINGS_MAX: usize = 601;

/// One reading of the sums.
#[derive(Clone, Copy, Debug)]
struct Reading {
    /// The time since the start of the service.
    at: Duration,
    /// The wall-clock time in Unix milliseconds, for display.
    wall_millis: u64,
    totals: Totals,
}

/// The rates of one second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Second {
    /// The end of the second, in Unix milliseconds.
    pub(crate) wall_millis: u64,
    /// Accepted spans a second.
    pub(crate) accepted: f64,
    /// Kept spans a second.
    pub(crate) kept: f64,
    /// Dropped spans a second.
    pub(crate) dropped: f64,
    /// Sent spans a second.
    pub(crate) sent: f64,
}

/// The readings, the oldest first.
#[derive(Debug, Default)]
pub struct History(Mutex<VecDeque<Reading>>);

impl History {
    /// Records the sums, once per [`PERIOD`].
    pub(super) fn note(&self, at: Duration, wall_millis: u64, totals: Totals) {
        let mut readings = self.lock();
        if readings.len() == READINGS_MAX {
            readings.pop_front();
        }
        readings.push_back(Reading { at, wall_millis, totals });
    }

    /// The average rates of the last ten seconds, or since the start if that is shorter.
    pub(super) fn rates(&self) -> Rates {
        let readings = self.lock();
        let Some(last) = readings.back() else { return Rates::default() };
        let is_within = |reading: &&Reading| last.at.saturating_sub(reading.at) <= RATES_OVER;
        let first = readings.iter().rev().take_while(is_within).last().unwrap_or(last);
        let Second { accepted, kept, dropped, sent, .. } = between(first, last);
        Rates { accepted, kept, dropped, sent }
    }

    /// The rates of each of the last 600 seconds, the oldest first; fewer after a start. If the
    /// thread did not run for a second, the next entry covers that second too.
    pub(crate) fn seconds(&self) -> Vec<Second> {
        let readings = self.lock();
        let pairs = readings.iter().zip(readings.iter().skip(1));
        pairs.map(|(before, after)| between(before, after)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Reading>> {
        // No code panics while it holds this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The average rates between two readings; 0 if they were taken at the same time.
fn between(before: &Reading, after: &Reading) -> Second {
    let seconds = after.at.saturating_sub(before.at).as_secs_f64();
    let rate = |of: fn(&Totals) -> u64| {
        let spans = of(&after.totals).saturating_sub(of(&before.totals));
        if seconds > 0.0 { spans as f64 / seconds } else { 0.0 }
    };
    Second {
        wall_millis: after.wall_millis,
        accepted: rate(|totals| totals.accepted),
        kept: rate(|totals| totals.kept),
        dropped: rate(|totals| totals.dropped),
        sent: rate(|totals| totals.sent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_means_over_the_time_that_has_passed() {
        let history = History::default();
        let note = |seconds: u64, accepted: u64| {
            let totals = Totals { accepted, kept: accepted / 2, ..Totals::default() };
            history.note(Duration::from_secs(seconds), seconds * 1_000, totals);
        };
        let rates = || (history.rates().accepted, history.rates().kept);
        assert_eq!((rates(), history.seconds()), ((0.0, 0.0), Vec::new()));
        note(0, 0);
        assert_eq!((rates(), history.seconds().len()), ((0.0, 0.0), 0));
        note(1, 100);
        note(5, 500);
        assert_eq!(rates(), (100.0, 50.0));
        note(11, 500);
        assert_eq!(rates(), (40.0, 20.0), "from the first second on");
        note(22, 500);
        assert_eq!(rates(), (0.0, 0.0), "nothing is known of the time before");
        let seconds: Vec<_> =
            history.seconds().iter().map(|s| (s.wall_millis, s.accepted)).collect();
        assert_eq!(seconds, [(1_000, 100.0), (5_000, 100.0), (11_000, 0.0), (22_000, 0.0)]);
        (23..2_000).for_each(|second| note(second, second));
        assert_eq!(history.seconds().len(), 600);
    }
}
