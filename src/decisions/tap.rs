//! Decisions for people who watch them as they are made.
//!
//! While nobody watches, each hold of a lock only reads a flag. While somebody watches, the
//! decisions of each hold are copied into a list of at most [`BYTES_MAX`], which the admin thread
//! empties every few milliseconds. Decisions that do not fit are left out and counted; the decider
//! never waits.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use super::{DecisionRecord, Decisions};
use crate::policy::{PolicyId, Shadowed};

/// The bytes of decisions that may wait for the admin thread: 30,000 decisions or more.
const BYTES_MAX: usize = 4 << 20;

/// The decisions since the list was last taken.
#[derive(Debug, Default)]
pub(crate) struct Tapped {
    /// The decisions of each hold of a lock, with the Unix time in milliseconds.
    pub(crate) decisions: Vec<(Decisions, u64)>,
    /// The number of decisions that did not fit.
    pub(crate) missed: u64,
    bytes: usize,
}

/// The list of decisions, filled only while it is open.
#[derive(Debug, Default)]
pub(crate) struct Tap {
    is_open: AtomicBool,
    tapped: Mutex<Tapped>,
}

impl Tap {
    /// Opens or closes the list.
    pub(crate) fn set_open(&self, is_open: bool) {
        self.is_open.store(is_open, Relaxed);
        if !is_open {
            *self.lock() = Tapped::default();
        }
    }

    /// Takes the contents of the list.
    pub(crate) fn take(&self) -> Tapped {
        std::mem::take(&mut *self.lock())
    }

    /// Copies decisions if somebody watches.
    pub(super) fn offer(&self, decisions: &Decisions, decided_at: u64) {
        if !self.is_open.load(Relaxed) || decisions.records.is_empty() {
            return;
        }
        let bytes = decisions.records.len() * size_of::<DecisionRecord>()
            + decisions.matched.len() * size_of::<PolicyId>()
            + decisions.shadowed.len() * size_of::<Shadowed>();
        let mut tapped = self.lock();
        if tapped.bytes + bytes > BYTES_MAX {
            tapped.missed += decisions.records.len() as u64;
            return;
        }
        tapped.bytes += bytes;
        tapped.decisions.push((decisions.clone(), decided_at));
    }

    fn lock(&self) -> MutexGuard<'_, Tapped> {
        // The list and its bytes are changed together, and no code in between panics.
        self.tapped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
