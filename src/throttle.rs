//! Limits log lines about events that may be frequent: one line per pause, with the number of
//! events since the previous line.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::clock::Clock;

/// The time between two lines of one kind.
const PAUSE: Duration = Duration::from_secs(10);

/// Limits the log lines of one kind.
#[derive(Debug)]
pub(crate) struct Throttle {
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the last line was logged.
    last: Option<Duration>,
    /// The number of events that have not been logged yet.
    left_out: u64,
}

impl Default for Throttle {
    fn default() -> Self {
        Throttle { clock: Clock::start(), state: Mutex::default() }
    }
}

impl Throttle {
    /// Whether a line may be logged now; if so, the number of lines that were left out before it.
    pub(crate) fn ask(&self) -> Option<u64> {
        self.add(1).map(|lines| lines - 1)
    }

    /// Adds `more` events, possibly 0. If a line may be logged now, returns the number of events it
    /// has to report, including those that were left out before.
    pub(crate) fn add(&self, more: u64) -> Option<u64> {
        let now = self.clock.elapsed();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.left_out += more;
        if state.left_out == 0 || state.last.is_some_and(|last| now - last < PAUSE) {
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suppressed_lines_are_counted() {
        let throttle = Throttle::default();
        assert_eq!(throttle.ask(), Some(0));
        assert_eq!(throttle.ask(), None);
        assert_eq!(throttle.ask(), None);
        throttle.state.lock().unwrap().last = None;
        assert_eq!(throttle.ask(), Some(2));
    }
}
