//! Positions of requests, for a shard that reads from a log (`sampler/positions.rs`).

use super::Shard;

impl Shard {
    /// From now on, a position is kept for each trace. Called while the shard is empty.
    pub(crate) fn keep_positions(&mut self) {
        self.ring.keep_positions();
    }

    /// Notes that all requests below `low`, which was read under the lock, have been taken in.
    pub(crate) fn advance_position(&mut self, low: u64) {
        debug_assert!(low >= self.low, "the least position never goes back");
        self.low = low;
    }

    /// A lower bound of the positions of all spans of undecided traces; `None` without such traces.
    pub(crate) fn lowest_position(&mut self) -> Option<u64> {
        self.oldest().and_then(|(position, _)| self.ring.low(position))
    }
}
