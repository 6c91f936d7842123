//! A counter that can be read: the answers for people need the values that the exporter crate only
//! renders. The value is counted here, once, and shown to the exporter crate before a scrape.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use metrics::Counter;

/// A counter and its series.
pub(super) struct Count {
    value: AtomicU64,
    series: Counter,
}

impl Count {
    /// Counts from 0.
    pub(super) fn new(series: Counter) -> Self {
        Count { value: AtomicU64::new(0), series }
    }

    pub(super) fn add(&self, count: u64) {
        self.value.fetch_add(count, Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.value.load(Relaxed)
    }

    /// Sets the series to the value.
    pub(super) fn show(&self) {
        self.series.absolute(self.get());
    }
}
