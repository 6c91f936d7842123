//! The only two readings of a clock: monotonic milliseconds for everything that waits, and wall
//! time for people. Wall time is compared with nothing but the dates of certificates (by rustls,
//! with a reading of its own), so that a step of it decides nothing.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::window::Millis;

/// Monotonic time since the service started.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts at 0 now.
    #[expect(clippy::disallowed_methods, reason = "this is the place where time is read")]
    pub fn start() -> Self {
        Clock { start: Instant::now() }
    }

    /// Milliseconds since the start, wrapping after 49 days as [`Millis`] expects.
    pub fn now(&self) -> Millis {
        Millis(self.start.elapsed().as_millis() as u32)
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// Unix milliseconds by the wall clock; 0 before 1970.
pub fn unix_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
