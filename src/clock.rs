//! The only readings of a clock, beside tokio's for timeouts, retries and pauses: monotonic time
//! for what is measured and for traces that wait, and wall time for people. Wall time is compared with nothing but dates that people wrote: those of certificates
//! (by rustls, with a reading of its own) and `expires` of policies. A step of it moves no trace's
//! deadline.
//!
//! Traces wait in the time of a [`WindowClock`], in which a stretch that the process did not run
//! (SIGSTOP, a paused container, a machine with no CPU to spare) takes a moment at most. What was
//! sent meanwhile waits in sockets and at senders: by any other clock every trace in the window
//! would be due at once, and decided without it.

mod millis;

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

pub use self::millis::Millis;

/// Monotonic time since the service started. Tokio's clock, which is the operating system's, but
/// which tests can turn: timers and deadlines then agree on what time it is.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts at 0 now.
    pub fn start() -> Self {
        Clock { start: Instant::now() }
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// The time that traces wait in.
#[derive(Debug)]
pub struct WindowClock {
    clock: Clock,
    steps: Mutex<Steps>,
}

impl WindowClock {
    /// Starts at 0 now. Between two readings, the decider's at least, at most `step_max` passes.
    pub fn start(step_max: Duration) -> Self {
        let step_max_millis = step_max.as_millis().max(1) as u64;
        let steps = Steps { step_max_millis, ..Steps::default() };
        WindowClock { clock: Clock::start(), steps: Mutex::new(steps) }
    }

    /// Milliseconds since the start, wrapping after 49 days as [`Millis`] expects.
    pub fn now(&self) -> Millis {
        // A lock and no atomics: of two readings after a stall neither may see the time before the
        // other has taken the stall off. Nothing in it can panic.
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        // Read under the lock, so that readings are in order.
        Millis(steps.step(self.clock.elapsed().as_millis() as u64) as u32)
    }

    /// What was taken off since the start.
    pub fn stalled(&self) -> Duration {
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        Duration::from_millis(steps.stalled_millis)
    }
}

/// Real time, less what exceeds a step.
#[derive(Clone, Copy, Debug, Default)]
struct Steps {
    step_max_millis: u64,
    read_at: u64,
    stalled_millis: u64,
}

impl Steps {
    fn step(&mut self, elapsed_millis: u64) -> u64 {
        let step = elapsed_millis - self.read_at;
        self.stalled_millis += step.saturating_sub(self.step_max_millis);
        self.read_at = elapsed_millis;
        elapsed_millis - self.stalled_millis
    }
}

/// Unix milliseconds by the wall clock; 0 before 1970.
pub fn unix_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_takes_a_step_at_most() {
        let mut steps = Steps { step_max_millis: 500, ..Steps::default() };
        assert_eq!([0, 100, 600, 600].map(|elapsed| steps.step(elapsed)), [0, 100, 600, 600]);
        // Half a minute without a reading, then as before.
        assert_eq!([30_600, 30_700].map(|elapsed| steps.step(elapsed)), [1_100, 1_200]);
        assert_eq!(steps.stalled_millis, 29_500);
        // A day in steps that are just short enough.
        let day = 30_700 + 86_400_000;
        let last = (30_700..=day).step_by(500).map(|elapsed| steps.step(elapsed)).last();
        assert_eq!(last, Some(day - 29_500));
    }
}
