//! Rates of the last ten minutes: what came in, was kept, dropped and sent, second by second.
//!
//! The admin thread reads the sums of the ledger once a second; the data path does nothing for it.
//! Rates are differences of these readings over the time between them, so a reading that comes late
//! spoils none. Limit: 601 readings of 56 bytes.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{control::Rates, metrics::Totals};

/// The time between two readings.
pub(super) const PERIOD: Duration = Duration::from_secs(1);
/// The rates of a status are means over this time.
const RATES_OVER: Duration = Duration::from_secs(10);
/// Ten minutes, and the reading that the first second is counted from.
const READINGS_MAX: usize = 601;

/// One reading of the sums.
#[derive(Clone, Copy, Debug)]
struct Reading {
    /// Since the start of the service.
    at: Duration,
    /// The wall clock in Unix milliseconds, for people.
    wall_millis: u64,
    totals: Totals,
}

/// The rates of one second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Second {
    /// Its end, in Unix milliseconds.
    pub(crate) wall_millis: u64,
    /// Accepted spans a second.
    pub(crate) accepted: f64,
    /// Kept spans a second.
    pub(crate) kept: f64,
    /// Dropped spans a second.
    pub(crate) dropped: f64,
    /// Spans a second that the backend has taken.
    pub(crate) sent: f64,
}

/// The readings, the oldest first.
#[derive(Debug, Default)]
pub struct History(Mutex<VecDeque<Reading>>);

impl History {
    /// Notes the sums, once a [`PERIOD`].
    pub(super) fn note(&self, at: Duration, wall_millis: u64, totals: Totals) {
        let mut readings = self.lock();
        if readings.len() == READINGS_MAX {
            readings.pop_front();
        }
        readings.push_back(Reading { at, wall_millis, totals });
    }

    /// Spans a second over the last ten seconds, or since the start if that is less.
    pub(super) fn rates(&self) -> Rates {
        let readings = self.lock();
        let Some(last) = readings.back() else { return Rates::default() };
        let is_within = |reading: &&Reading| last.at.saturating_sub(reading.at) <= RATES_OVER;
        let first = readings.iter().rev().take_while(is_within).last().unwrap_or(last);
        let Second { accepted, kept, dropped, sent, .. } = between(first, last);
        Rates { accepted, kept, dropped, sent }
    }

    /// The rates of each of the last 600 seconds, the oldest first; fewer after a start. A second
    /// in which the thread did not run is part of the next one.
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

/// The mean rates from one reading to a later one; 0 if they are the same.
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
