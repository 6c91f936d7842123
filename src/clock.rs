//! All readings of a clock, except tokio's for timeouts, retries and pauses: monotonic time for
//! measurements and for waiting traces, CPU time for a metric, and wall time for people. Wall time
//! is compared only with dates that people wrote: those of certificates (by rustls, with its own
//! reading) and `expires` of policies. A step of the wall clock does not move any trace's deadline.
//!
//! Traces wait in the time of a [`WindowClock`]. In this time, a period in which the process did
//! not run (SIGSTOP, a paused container, a machine without spare CPU) is short. Spans that were
//! sent during that period wait in sockets and at senders. By any other clock, every trace in the
//! window would be due at once and would be decided without them.

mod millis;

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

pub use self::millis::Millis;

/// The CPU time of the process since it started, user and system.
pub(crate) fn cpu_time() -> Duration {
    let read = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(read).unwrap_or_default()
}

/// Monotonic time since the service started. It is tokio's clock, which is the operating system's
/// unless a test controls it, so timers and deadlines agree on the time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts a clock at 0.
    pub fn start() -> Self {
        Clock { start: Instant::now() }
    }

    /// Time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// The time in which traces wait.
#[derive(Debug)]
pub struct WindowClock {
    clock: Clock,
    steps: Mutex<Steps>,
}

impl WindowClock {
    /// Starts a clock at 0. Between two readings, at least those of the decider, it advances by at
    /// most `step_max`.
    pub(crate) fn start(step_max: Duration) -> Self {
        let step_max_millis = step_max.as_millis().max(1) as u64;
        let steps = Steps { step_max_millis, ..Steps::default() };
        WindowClock { clock: Clock::start(), steps: Mutex::new(steps) }
    }

    /// Starts a clock at the time at which an earlier process ended. [`Self::restart`] sets it to
    /// this time again.
    pub(crate) fn start_at(millis: u64, step_max: Duration) -> Self {
        let clock = Self::start(step_max);
        clock.lock().base_millis = millis;
        clock
    }

    /// Sets the clock back to the time at which it was started, so that the time since then does
    /// not count. Called before anything waits by this clock.
    pub(crate) fn restart(&self) {
        let mut steps = self.lock();
        let elapsed = self.clock.elapsed().as_millis() as u64;
        steps.read_at = elapsed;
        steps.before_millis = elapsed - steps.stalled_millis;
    }

    /// Milliseconds since the start of the first process.
    pub(crate) fn millis(&self) -> u64 {
        // A lock instead of atomics: after a stall, no reading may see the time before another
        // reading has subtracted the stall. No code panics while it holds the lock.
        let mut steps = self.lock();
        // Read under the lock, so that readings are in order.
        steps.step(self.clock.elapsed().as_millis() as u64)
    }

    /// Milliseconds since the start. They wrap after 49 days, as [`Millis`] expects.
    pub(crate) fn now(&self) -> Millis {
        Millis(self.millis() as u32)
    }

    /// The time that has been subtracted since the start.
    pub(crate) fn stalled(&self) -> Duration {
        Duration::from_millis(self.lock().stalled_millis)
    }

    fn lock(&self) -> MutexGuard<'_, Steps> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Real time, minus the excess of steps that were too long.
#[derive(Clone, Copy, Debug, Default)]
struct Steps {
    step_max_millis: u64,
    read_at: u64,
    stalled_millis: u64,
    /// The time at the start.
    base_millis: u64,
    /// Time that passed before the restart.
    before_millis: u64,
}

impl Steps {
    fn step(&mut self, elapsed_millis: u64) -> u64 {
        let step = elapsed_millis - self.read_at;
        self.stalled_millis += step.saturating_sub(self.step_max_millis);
        self.read_at = elapsed_millis;
        self.base_millis + elapsed_millis - self.stalled_millis - self.before_millis
    }
}

/// The wall clock in Unix milliseconds; 0 before 1970.
pub(crate) fn unix_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_takes_a_step_at_most() {
        let mut steps = Steps { step_max_millis: 500, ..Steps::default() };
        assert_eq!([0, 100, 600, 600].map(|elapsed| steps.step(elapsed)), [0, 100, 600, 600]);
        // Half a minute without a reading, then regular readings again.
        assert_eq!([30_600, 30_700].map(|elapsed| steps.step(elapsed)), [1_100, 1_200]);
        assert_eq!(steps.stalled_millis, 29_500);
        // A day in steps that are just short enough.
        let day = 30_700 + 86_400_000;
        let last = (30_700..=day).step_by(500).map(|elapsed| steps.step(elapsed)).last();
        assert_eq!(last, Some(day - 29_500));
    }

    #[tokio::test(start_paused = true)]
    async fn a_restart_goes_back_to_the_time_at_the_start() {
        let clock = WindowClock::start_at(70_000, Duration::from_millis(500));
        tokio::time::advance(Duration::from_millis(400)).await;
        assert_eq!(clock.millis(), 70_400);
        tokio::time::advance(Duration::from_secs(9)).await;
        clock.restart();
        assert_eq!((clock.millis(), clock.now()), (70_000, Millis(70_000)));
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(clock.millis(), 70_100);
    }
}
