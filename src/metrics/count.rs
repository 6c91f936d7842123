//! A counter whose value can be read. The status and the page need values, but the exporter crate
//! can only render its counters. So the value is counted here, once, and copied to the exporter
//! crate before a scrape.

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

    /// Copies the value to the series.
    pub(super) fn show(&self) {
        self.series.absolute(self.get());
    }
}
