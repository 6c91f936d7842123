//! Positions of requests, for a shard that reads from a log (`sampler/positions.rs`).

use super::{Millis, Position, Shard};

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

    /// A lower bound of the positions of all spans of undecided traces, and the time at which the
    /// oldest of these traces arrived; `None` without such traces.
    pub(crate) fn lowest(&mut self) -> Option<(u64, Millis)> {
        let (position, arrived) = self.oldest()?;
        Some((self.ring.low(position)?, arrived))
    }

    /// All undecided traces, with the number of their spans and bytes.
    pub(crate) fn undecided(&self) -> impl Iterator<Item = (Position, u32, u32)> {
        let entries = self.ring.positions().map(|position| (position, self.entry(position)));
        let live = entries.filter(|(_, entry)| entry.is_live);
        live.map(|(position, entry)| (position, entry.spans(), entry.bytes()))
    }
}
