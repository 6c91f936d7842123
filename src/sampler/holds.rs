//! Counts the holds of the locks of shards, of all samplers of the process. Only the feature
//! `lock-counts` compiles this, for the bench `stages -- cores`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Holds so far.
pub static HOLDS: AtomicU64 = AtomicU64::new(0);
/// The holds that began with a wait, because another thread held the lock.
pub static WAITS: AtomicU64 = AtomicU64::new(0);

pub(super) fn note(waits: bool) {
    HOLDS.fetch_add(1, Relaxed);
    WAITS.fetch_add(u64::from(waits), Relaxed);
}
