//! The window: undecided traces, their records and their deadlines, one [`Shard`] behind one lock
//! each.
//!
//! A shard is a ring of entries that is the FIFO of deadlines (`ring`), a hash table of 32-bit
//! positions into it, a second FIFO for deadlines after the root, and a log of segments
//! (`segment`). The sampler calls it under the shard's lock and gives the time; nothing in here
//! knows a clock, a policy or a wire. What is freed leaves through out-parameters and is dropped
//! after the lock.
//!
//! Invariants: a segment is reused only when no record of an undecided trace is left in it; time in
//! a shard never goes back (a request that took its time before it waited for the lock must not
//! stamp a segment older than its predecessor); `spans` is exactly the spans of live entries.
//!
//! Compaction: a sealed segment that stays more than half dead for [`COMPACT_AFTER_MILLIS`] is
//! emptied by appending its undecided traces again, whole, so that the memory of early decisions
//! comes back while a few traces wait on. The delay lets segments that die in order do so for free.

mod compact;
mod recompute;
mod ring;
mod segment;
mod shard;

use std::sync::Arc;

pub use compact::COMPACT_AFTER_MILLIS;
pub use recompute::{NewBits, View};
pub use ring::Position;
pub use segment::{Pool, SEGMENT_BYTES, Segment};
pub use shard::{Shard, Taken};

pub use crate::clock::Millis;
use crate::{
    otlp::{Context, walk::SpanMeta},
    trace::{TraceId, Trigger},
};

/// The deadlines of a window, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// From the first span of a trace.
    pub decision_wait: u32,
    /// From its root, where that is earlier; `None` turns it off.
    pub after_root: Option<u32>,
}

/// A trace whose time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Which.
    pub position: Position,
    /// What made it due.
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
    /// The spans of this run, as indices.
    pub order: &'a [u32],
}

/// Contexts that a [`ContextSlots`] keeps room for between two requests.
const CONTEXTS_KEPT: usize = 4 << 10;

/// Remembers, for each context of a request, its index in the segment being written. Kept by the
/// caller from shard to shard of one request, so that the table of a segment is searched once a
/// context.
#[derive(Debug, Default)]
pub struct ContextSlots(Vec<(u64, u16)>);

impl ContextSlots {
    /// Forgets a request and makes room for one with this many contexts.
    pub fn reset(&mut self, contexts: usize) {
        self.0.clear();
        self.0.reserve_exact(contexts);
        self.0.resize(contexts, (u64::MAX, 0));
    }

    /// Keeps room for as many contexts as requests mostly have.
    pub fn shrink(&mut self) {
        self.0.truncate(CONTEXTS_KEPT);
        self.0.shrink_to(CONTEXTS_KEPT);
    }

    fn find(&mut self, segment: &mut Segment, contexts: &[Arc<Context>], context: u32) {
        let slot = &mut self.0[context as usize];
        if slot.0 != segment.id {
            *slot = (segment.id, segment.context_index(&contexts[context as usize]));
        }
    }

    /// The index in the segment that it was found in last.
    fn found(&self, context: u32) -> u16 {
        self.0[context as usize].1
    }
}

/// Segments and their contexts that no undecided trace needs any more. Dropped after the lock.
pub type Freed = Vec<Segment>;

/// Hashes trace ids by a key: random, but for simulations, which repeat a run by its seed.
pub type Hasher = foldhash::fast::SeedableRandomState;

/// The keyed hash of a trace id: ids are chosen by outsiders, so the hash must not be.
pub fn hash_of(hasher: &Hasher, trace_id: TraceId) -> u64 {
    std::hash::BuildHasher::hash_one(hasher, trace_id)
}
