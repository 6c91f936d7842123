//! The only two readings of a clock: monotonic milliseconds for everything that waits, and wall
//! time for people. Wall time is never compared with anything, so that a step of it decides
//! nothing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::window::Millis;

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
