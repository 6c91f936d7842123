//! HTTP/2 windows: what senders may have in flight, granted from a part of the memory limit.
//!
//! A connection gets a quarter of what is left, between 64 KiB (less HTTP/2 does not know for a
//! connection; so small, they cost up to 22 % more CPU) and 1 MiB (larger ones gained nothing).
//! What is granted is reserved in the budget, since senders can fill it whenever they like: a
//! thousand that sent at once made 500 MiB of a limit of 256.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use crate::budget::{Budget, Reserve};

const WINDOW_BYTES: std::ops::RangeInclusive<usize> = (64 << 10)..=(1 << 20);

/// What the HTTP/2 windows of connections are granted from. Clones share it.
#[derive(Clone, Debug)]
pub struct Windows(Arc<WindowsLeft>);

#[derive(Debug)]
struct WindowsLeft {
    bytes: usize,
    granted: AtomicUsize,
    budget: Option<Arc<Budget>>,
}

/// A connection's window, until it ends.
pub(super) struct Granted {
    windows: Windows,
    pub(super) bytes: usize,
    _reserve: Option<Reserve>,
}

impl Windows {
    /// Grants from so many bytes, which are reserved in the budget where there is one.
    pub fn new(bytes: usize, budget: Option<&Arc<Budget>>) -> Self {
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
