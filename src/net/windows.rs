//! HTTP/2 flow control windows: the bytes that senders may have in flight, granted from a part of
//! the memory limit.
//!
//! A connection gets a quarter of the remaining part, between 64 KiB and 1 MiB. HTTP/2 allows no
//! less than 64 KiB for a connection; windows that small cost up to 22 % more CPU, and windows over
//! 1 MiB gained nothing. A grant is reserved in the budget, because senders can fill it at any
//! time: without the reservation, a thousand senders at once took 500 MiB of memory with a limit of
//! 256 MiB.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use crate::budget::{Budget, Reserve};

const WINDOW_BYTES: std::ops::RangeInclusive<usize> = (64 << 10)..=(1 << 20);

/// The memory that connections get their flow control windows from. Clones share it.
#[derive(Clone, Debug)]
pub struct Windows(Arc<WindowsLeft>);

#[derive(Debug)]
struct WindowsLeft {
    bytes: usize,
    granted: AtomicUsize,
    budget: Option<Arc<Budget>>,
}

/// The flow control window of one connection. Dropping it returns the memory.
pub(super) struct Granted {
    windows: Windows,
    pub(super) bytes: usize,
    _reserve: Option<Reserve>,
}

impl Windows {
    /// Grants from `bytes`, which are reserved in the budget if there is one.
    pub(crate) fn new(bytes: usize, budget: Option<&Arc<Budget>>) -> Self {
        let (granted, budget) = (AtomicUsize::new(0), budget.cloned());
        Windows(Arc::new(WindowsLeft { bytes, granted, budget }))
    }

    pub(super) fn grant(&self) -> Granted {
        let left = self.0.bytes.saturating_sub(self.0.granted.load(Relaxed));
        let bytes = (left / 4).clamp(*WINDOW_BYTES.start(), *WINDOW_BYTES.end());
        self.0.granted.fetch_add(bytes, Relaxed);
        let reserve = self.0.budget.as_ref().map(|budget| budget.reserve(bytes));
        Granted { windows: self.clone(), bytes, _reserve: reserve }
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        self.windows.0.granted.fetch_sub(self.bytes, Relaxed);
    }
}
