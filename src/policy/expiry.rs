//! Policies that end at a time of the wall clock. After that time they match nothing.
//!
//! The decider passes the time to [`super::Plan::expire`] once per tick. Decisions only read a
//! flag, and only for policies that end. If the clock is set back, the policy is in force again.
//! Times are Unix milliseconds. A reload keeps the flag of a policy whose end has not changed, so
//! shards that still decide by the previous plan see it too.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// The time at which a policy ends, and whether it has ended.
#[derive(Debug)]
pub(super) struct Expiry {
    at: u64,
    /// No other data depends on this flag, so it needs no memory ordering.
    is_over: AtomicBool,
}

impl Expiry {
    /// The end of a policy at `at`, in Unix milliseconds. It takes effect once [`Self::has_come`]
    /// gets that time.
    pub(super) fn new(at: u64) -> Self {
        Expiry { at, is_over: AtomicBool::new(false) }
    }

    pub(super) fn at(&self) -> u64 {
        self.at
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Relaxed)
    }

    /// Takes the time in Unix milliseconds. Returns whether the policy has ended since the last
    /// call.
    pub(super) fn has_come(&self, now: u64) -> bool {
        let is_over = now >= self.at;
        !self.is_over.swap(is_over, Relaxed) && is_over
    }
}
