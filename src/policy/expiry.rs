//! Policies that end at a time of the wall clock, from which on they match nothing.
//!
//! Whoever has a clock says what time it is ([`super::Plan::expire`]), once a tick; decisions read
//! one flag, and only those of policies that end. A clock that is set back puts a policy in force
//! again. Times are Unix milliseconds. A reload keeps the flag of a policy whose end is as it was,
//! so that shards that still decide by the plan before it follow, too.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// When a policy ends, and whether it has.
#[derive(Debug)]
pub(super) struct Expiry {
    at: u64,
    /// Nothing else is read by it, so that no ordering is needed.
    is_over: AtomicBool,
}

impl Expiry {
    /// Not over until it is told the time.
    pub(super) fn new(at: u64) -> Self {
        Expiry { at, is_over: AtomicBool::new(false) }
    }

    pub(super) fn at(&self) -> u64 {
        self.at
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Relaxed)
    }

    /// Whether the policy has ended since the last call.
    pub(super) fn has_come(&self, now: u64) -> bool {
        let is_over = now >= self.at;
        !self.is_over.swap(is_over, Relaxed) && is_over
    }
}
