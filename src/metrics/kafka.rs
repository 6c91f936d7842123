//! The counters of the Kafka receiver. The series exist in every build.

use std::sync::{Mutex, PoisonError};

use metrics::{Counter, Gauge};

use super::{count::Count, described};
use crate::sampler::Ingested;

/// The handles.
pub struct Kafka {
    pub(super) accepted: Count,
    refused_spans: [Counter; 2],
    pub(super) handed_over: Count,
    records: Counter,
    undecodable: Counter,
    lost: Counter,
    rebalances: Counter,
    errors: Counter,
    partitions: Gauge,
    lag: Gauge,
    commit_age: Gauge,
    shown: Mutex<Option<Shown>>,
}

/// What the receiver reads.
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    /// The number of its partitions.
    pub partitions: usize,
    /// The records in them that are not read.
    pub lag: u64,
    /// The seconds for which a commit has been behind and has not moved.
    pub commit_age: f64,
}

impl Kafka {
    pub(super) fn register(accepted: Count, refused_spans: [Counter; 2]) -> Self {
        Kafka {
            accepted,
            refused_spans,
            handed_over: Count::new(described::HANDED_OVER.counter([])),
            records: described::KAFKA_RECORDS.counter([]),
            undecodable: described::KAFKA_UNDECODABLE.counter([]),
            lost: described::KAFKA_LOST.counter([]),
            rebalances: described::KAFKA_REBALANCES.counter([]),
            errors: described::KAFKA_ERRORS.counter([]),
            partitions: described::KAFKA_PARTITIONS.gauge([]),
            lag: described::KAFKA_LAG.gauge([]),
            commit_age: described::KAFKA_COMMIT_AGE.gauge([]),
            shown: Mutex::default(),
        }
    }

    /// The spans of a record that was taken in.
    pub fn taken(&self, ingested: &Ingested) {
        self.accepted.add(ingested.accepted);
        let outsized = ingested.outsized.as_ref().map_or(0, |outsized| outsized.spans);
        for (counter, spans) in self.refused_spans.iter().zip([ingested.rejected, outsized]) {
            if spans > 0 {
                counter.increment(spans);
            }
        }
    }

    /// A record that was taken in, or skipped because it cannot be.
    pub fn record(&self, is_taken: bool) {
        self.records.increment(1);
        if !is_taken {
            self.undecodable.increment(1);
        }
    }

    /// Undecided spans that left with their partition.
    pub fn handed_over(&self, spans: u64) {
        self.handed_over.add(spans);
    }

    /// Records that were gone before they were read.
    pub fn lost(&self, records: u64) {
        self.lost.increment(records);
    }

    /// A change of the partitions.
    pub fn rebalanced(&self) {
        self.rebalances.increment(1);
    }

    /// An error that the client has reported.
    pub fn failed(&self) {
        self.errors.increment(1);
    }

    /// Shows what is read now.
    pub fn show(&self, shown: Shown) {
        self.partitions.set(shown.partitions as f64);
        self.lag.set(shown.lag as f64);
        self.commit_age.set(shown.commit_age);
        // No code panics while it holds this lock.
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(shown);
    }

    /// What was shown last; `None` if nothing is read from Kafka.
    pub fn shown(&self) -> Option<Shown> {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
