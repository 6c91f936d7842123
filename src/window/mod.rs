//! The window: undecided traces, their records and their deadlines, in [`Shard`]s with one lock
//! each.
//!
//! A shard consists of a ring of entries, which is also the FIFO of deadlines (`ring`); a hash
//! table of 32-bit positions in the ring; a second FIFO for deadlines after the root; and a log of
//! segments (`segment`). The sampler calls it under the shard's lock and passes the time. This
//! module knows nothing of clocks, policies or protocols. It returns freed segments through
//! out-parameters, and the caller drops them after it has released the lock.
//!
//! Invariants: a segment is reused only when it holds no record of an undecided trace; a shard's
//! time never goes back (a request may read the time before it waits for the lock, and must not
//! stamp a segment older than its predecessor); `spans` is exactly the number of spans of live
//! entries.
//!
//! Compaction: when a sealed segment has been more than half dead for `COMPACT_AFTER_MILLIS`, its
//! undecided traces are appended again, each as a whole. This frees the memory of early decisions
//! while a few traces still wait. Because of the delay, segments that die in order are freed
//! without a copy.

mod compact;
mod positions;
mod recompute;
mod ring;
mod segment;
mod shard;

use std::sync::Arc;

pub(crate) use recompute::NewBits;
pub use ring::Position;
pub(crate) use segment::Segment;
pub use segment::{Pool, SEGMENT_BYTES};
pub use shard::Shard;
pub(crate) use shard::Taken;

pub use crate::clock::Millis;
use crate::{
    otlp::{Context, walk::SpanMeta},
    trace::{TraceId, Trigger},
};

/// The deadlines of a window, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// Time from the first span of a trace to its decision.
    pub decision_wait: u32,
    /// Time from the root to the decision, used if that is earlier; `None` turns it off.
    pub after_root: Option<u32>,
}

/// A trace whose deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// The trace's position in the ring.
    pub position: Position,
    /// The deadline that has passed.
    pub trigger: Trigger,
    /// When it became due.
    pub at: Millis,
}

/// Spans of one trace in one request that are appended together.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The request's bytes.
    pub request: &'a [u8],
    /// The request's contexts.
    pub contexts: &'a [Arc<Context>],
    /// The request's spans, which `order` refers to.
    pub spans: &'a [SpanMeta],
    /// The attribute bits of the request's spans.
    pub bits: &'a [u64],
    /// The spans of this run, as indices into `spans`.
    pub order: &'a [u32],
}

/// The number of contexts that a [`ContextSlots`] keeps room for between two requests.
const CONTEXTS_KEPT: usize = 4 << 10;

/// The index of each context of a request in the open segment. The caller keeps it while it goes
/// from shard to shard with one request, so each context is searched in a segment's table only
/// once.
#[derive(Debug, Default)]
pub struct ContextSlots(Vec<(u64, u16)>);

impl ContextSlots {
    /// Clears the table and makes room for a request with this many contexts.
    pub fn reset(&mut self, contexts: usize) {
        self.0.clear();
        self.0.reserve_exact(contexts);
        self.0.resize(contexts, (u64::MAX, 0));
    }

    /// Shrinks the table to the size that most requests need.
    pub(crate) fn shrink(&mut self) {
        self.0.truncate(CONTEXTS_KEPT);
        self.0.shrink_to(CONTEXTS_KEPT);
    }

    fn find(&mut self, segment: &mut Segment, contexts: &[Arc<Context>], context: u32) {
        let slot = &mut self.0[context as usize];
        if slot.0 != segment.id {
            *slot = (segment.id, segment.context_index(&contexts[context as usize]));
        }
    }

    /// The index in the segment that was last searched.
    fn found(&self, context: u32) -> u16 {
        self.0[context as usize].1
    }
}

/// Segments, with their contexts, that no undecided trace uses any more. The caller drops them
/// after it has released the lock.
pub(crate) type Freed = Vec<Segment>;

/// Hashes trace ids with a key. The key is random, except in simulations, which repeat a run from
/// its seed.
pub type Hasher = foldhash::fast::SeedableRandomState;

/// The keyed hash of a trace id. Senders choose the ids, so the hash must not be predictable.
pub fn hash_of(hasher: &Hasher, trace_id: TraceId) -> u64 {
    std::hash::BuildHasher::hash_one(hasher, trace_id)
}
