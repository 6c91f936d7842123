//! The spans of a piece of a request, sorted by shard and trace.

use std::ops::Range;

use super::Sampler;
use crate::{otlp::walk::Walked, window};

/// The spans of one piece of a request, sorted.
#[derive(Debug, Default)]
pub(super) struct Sorted {
    pub(super) hashes: Vec<u64>,
    /// The indices of the spans, sorted by shard and, within a shard, by trace.
    pub(super) order: Vec<u32>,
    counts: Vec<u32>,
    /// The part of `order` that is left for each shard.
    pub(super) rests: Vec<Range<usize>>,
}

impl Sampler {
    /// A counting sort by the middle bits of the hash, with about as many buckets as spans. The
    /// spans of a shard become contiguous, and nearly always those of a trace too, in order of
    /// arrival.
    pub(super) fn sort(&self, walked: &Walked, sorted: &mut Sorted) {
        let Sorted { hashes, order, counts, rests } = sorted;
        let spans = &walked.spans;
        // Reserves as much room as the spans have; the charge for the spans includes it.
        hashes.clear();
        hashes.reserve_exact(walked.room());
        hashes.extend(spans.iter().map(|span| window::hash_of(&self.hasher, span.trace_id)));
        let bucket_bits =
            spans.len().next_power_of_two().trailing_zeros().clamp(self.shard_bits, 16);
        let bucket_of =
            |hash: u64| (u64::from(Self::sort_key(hash)) >> (32 - bucket_bits)) as usize;
        counts.clear();
        counts.resize(1 << bucket_bits, 0);
        for &hash in hashes.iter() {
            counts[bucket_of(hash)] += 1;
        }
        let mut start = 0;
        for count in counts.iter_mut() {
            start += std::mem::replace(count, start);
        }
        order.clear();
        order.reserve_exact(walked.room());
        order.resize(spans.len(), 0);
        for (index, &hash) in (0..).zip(hashes.iter()) {
            let place = &mut counts[bucket_of(hash)];
            order[*place as usize] = index;
            *place += 1;
        }
        let shard_of = |&index: &u32| self.shard_of(hashes[index as usize]);
        rests.clear();
        rests.extend(order.chunk_by(|a, b| shard_of(a) == shard_of(b)).scan(0, |end, of_shard| {
            let start = std::mem::replace(end, *end + of_shard.len());
            Some(start..*end)
        }));
    }
}
