//! Positions of requests in their logs, and the watermark of a log.
//!
//! A log is a Kafka partition or the intake log of `durability`. Each request has a position in its
//! log, and may be removed from the log once none of its spans is undecided or undelivered. This
//! module finds the *watermark*, the position below which that holds for every request, without a
//! reference or a counter per span:
//!
//! - [`Positions`] lists the requests that are being taken in. [`Positions::least`] is the position
//!   below which every request has been taken in whole. It never goes back.
//! - Each trace in the window keeps the value that `least` had when the trace was added, read under
//!   the lock of its shard (`window/ring.rs`). This value is at most the position of any span of
//!   the trace, because `least` never exceeds the position of a request that is being taken in.
//!   Because it is read under the lock, it never decreases from one trace of a shard to the next.
//!   So the value of the oldest undecided trace of a shard is a lower bound for all its traces,
//!   although concurrent requests arrive out of order.
//! - [`Mark::watermark`] is the least of both, over all shards that read from the log.
//!
//! A trace that has left its shard may still be in the hands of the thread that decided it, on its
//! way to the export queue. Therefore a watermark may be used only later:
//!
//! 1. `mark = sampler.mark(&positions)`;
//! 2. wait until `positions.least() >= mark.fence()`: each request that was being taken in at the
//!    time of the mark has ended, and has passed on its decisions;
//! 3. make sure that everything kept up to now is delivered or stored: the outbox of the decider is
//!    emptied and encoded, and then either written to a log, or all requests up to
//!    [`Queue::fence`](crate::exporter) are settled;
//! 4. every request below `mark.watermark()` may be removed from the log.
//!
//! An [`Underway`] must be dropped only after the decisions of its request have been passed on.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// The positions of one log.
#[derive(Debug)]
pub struct Positions {
    state: Mutex<State>,
    /// A copy of the least position of `state`, for readers that hold the lock of a shard.
    least: AtomicU64,
}

#[derive(Debug)]
struct State {
    /// The requests that are being taken in, in order.
    underway: Vec<u64>,
    /// The first position that no request has had.
    next: u64,
}

/// A request that is being taken in. Dropping it says that the request has been taken in whole, or
/// refused, and that the decisions it caused have been passed on.
#[derive(Debug)]
pub struct Underway {
    positions: Arc<Positions>,
    position: u64,
}

impl Underway {
    /// The position of the request.
    pub fn position(&self) -> u64 {
        self.position
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        let mut state = self.positions.lock();
        if let Ok(index) = state.underway.binary_search(&self.position) {
            state.underway.remove(index);
        }
        self.positions.publish(&state);
    }
}

impl Positions {
    /// The positions of a log from which requests are taken in from `next` on.
    pub fn starting_at(next: u64) -> Arc<Self> {
        let state = Mutex::new(State { underway: Vec::new(), next });
        Arc::new(Positions { state, least: AtomicU64::new(next) })
    }

    /// Begins to take in a request. `reserve` returns the positions that the request occupies,
    /// which must be at or after [`Self::next`]: each call gives higher ones.
    ///
    /// # Errors
    /// The errors of `reserve`. Nothing has begun then.
    pub fn begin<E>(
        self: &Arc<Self>,
        reserve: impl FnOnce() -> Result<Range<u64>, E>,
    ) -> Result<Underway, E> {
        let mut state = self.lock();
        let Range { start, end } = reserve()?;
        debug_assert!(start >= state.next && end > start, "positions only grow");
        state.underway.push(start);
        state.next = end;
        self.publish(&state);
        drop(state);
        Ok(Underway { positions: Arc::clone(self), position: start })
    }

    /// The position below which every request has been taken in whole, or refused.
    pub fn least(&self) -> u64 {
        // Paired with the release in `publish`: a reader that sees a position here also sees, under
        // the locks of the shards, the spans of all requests below it.
        self.least.load(Ordering::Acquire)
    }

    /// The first position that no request has had.
    pub fn next(&self) -> u64 {
        self.lock().next
    }

    fn publish(&self, state: &State) {
        let least = state.underway.first().copied().unwrap_or(state.next);
        self.least.store(least, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Only `reserve` can panic under this lock, before anything is changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A watermark, and when it may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    watermark: u64,
    fence: u64,
}

impl Mark {
    pub(super) fn new(watermark: u64, fence: u64) -> Self {
        Mark { watermark, fence }
    }

    /// No span below this position was undecided at the time of the mark.
    pub fn watermark(self) -> u64 {
        self.watermark
    }

    /// The mark may be used after [`Positions::least`] has reached this position.
    pub fn fence(self) -> u64 {
        self.fence
    }
}
