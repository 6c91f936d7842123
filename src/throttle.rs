//! Logging what outsiders can cause at will: one line every so often, with the number of those that
//! were left out.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::clock::Clock;

/// Between two lines of one kind.
const PAUSE: Duration = Duration::from_secs(10);

/// Lines of one kind.
#[derive(Debug)]
pub struct Throttle {
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the last line was logged.
    last: Option<Duration>,
    left_out: u64,
}

impl Default for Throttle {
    fn default() -> Self {
        Throttle { clock: Clock::start(), state: Mutex::default() }
    }
}

impl Throttle {
    /// Whether a line may be logged now; then, how many were left out before it.
    pub fn ask(&self) -> Option<u64> {
        let now = self.clock.elapsed();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| now - last < PAUSE) {
            state.left_out += 1;
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
    fn what_is_left_out_is_counted() {
        let throttle = Throttle::default();
        assert_eq!(throttle.ask(), Some(0));
        assert_eq!(throttle.ask(), None);
        assert_eq!(throttle.ask(), None);
        throttle.state.lock().unwrap().last = None;
        assert_eq!(throttle.ask(), Some(2));
    }
}
