//! The memory budget: one count of the bytes that each part of the service holds, with a soft and a
//! hard limit.
//!
//! Every part of the service that keeps bytes for longer than a call charges them here, so
//! `memory_used_bytes` is one number and the limit is enforced in one place. Requests ask
//! ([`Budget::try_hold`]) and are refused at the hard limit. The segments and index entries of an
//! admitted request are charged without asking ([`Budget::charge`]), because a refusal there would
//! lose acknowledged spans. A request of more than a few thousand spans asks for that memory before
//! its first span is taken in.
//!
//! Limits: at the soft limit (80 % of the capacity) the oldest traces are decided early, until
//! 75 %; at the hard limit (100 %) requests are refused, until 90 %. The counters are relaxed
//! atomics: they are independent sums, and nothing else is ordered by them.
//!
//! Every holder either frees memory under pressure or has a share that is fixed at the start. With
//! an empty window and an empty queue, the shares leave room, so only the window and the queue can
//! cause refusals for long:
//!
//! - Segments, index and contexts in use: no share. Above the soft limit the oldest traces are
//!   decided. Spare segments are freed above the soft limit, and after 10 s without use.
//! - One open segment per shard: 1/8, because less memory means fewer shards. The last trace frees
//!   it.
//! - The index of an empty window: 256 KiB per shard, so 1/8 at most and usually far less.
//! - Decision cache: 1/4; the oldest decisions are forgotten. The windows of Kafka partitions share
//!   another quarter for theirs. Decision log: 1/16; the oldest are removed.
//! - Kinds of traces: about 100 bytes for each of `max_keys` of each budget and rare policy. Kinds
//!   are forgotten a minute after their last trace, or at the end of their interval.
//! - Buffers of walking: each thread keeps its part of 1/32, and takes up to 1/64 (at least
//!   256 KiB, at most 8 MiB) for a large request, which asks.
//! - Requests being received, until they are answered: 1/8 for requests of up to 1 MiB. For larger
//!   requests, which ask, as much as the largest message needs.
//! - Series of span metrics: 1/16. Spans whose series has no room are counted in a shared series.
//! - Export: the queue, 1/4 by default and 1/2 at most, and the requests that wait for it. The
//!   backend empties it.
//! - Recordings, up to four: 1/32 each, at most 16 MiB, and one trace; nothing is recorded above
//!   the soft limit.
//! - HTTP/2 flow control (reserved): 1/8, and beyond that 64 KiB per connection, until the
//!   connection ends.
//! - Not charged: spare receive buffers, 1/32, and two spare export buffers of the size of the
//!   largest request.
//!
//! The budget counts the bytes that were requested; the kernel counts pages, and kills the process
//! by that count. The difference between the two (freed memory that the allocator keeps, stacks,
//! code) is the *overhead*. It lowers both limits by at most a fifth, because early decisions
//! cannot free more of it. *Reserved* memory lowers the limits too: senders may fill HTTP/2 flow
//! control windows without asking. Overhead and reserved memory together lower the limits by at
//! most half.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
};

/// The decision log may hold the limit divided by this.
pub(crate) const DECISION_LOG_PART: usize = 16;
/// The bytes of a logged decision, without the two for each policy that matched.
pub(crate) const LOGGED_TRACE_BYTES: usize = 104;
/// A request may need the limit divided by this, even when every holder with a share that is fixed
/// at the start has used it up.
pub(crate) const REQUEST_PART: usize = 2;

/// The holders of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Segments of the window, in use or spare.
    Segments,
    /// Trace entries, their hash tables and deadlines.
    Index,
    /// Interned resources and scopes.
    Contexts,
    /// The decision cache.
    Decisions,
    /// The decision log.
    DecisionLog,
    /// The buffers of walking, and the memory reserved for the spans of a large request.
    Walking,
    /// Requests being received and walked.
    Receiving,
    /// Large requests being received. They have their own share, so they do not block small ones.
    ReceivingLarge,
    /// Kinds of traces that budgets and rare policies know.
    Kinds,
    /// Kept spans between their decision and the answer of the backend.
    Export,
    /// Recorded traces that wait for their reader.
    Recordings,
    /// The series of span metrics.
    SpanMetrics,
}

/// The number of holders; `SpanMetrics` is the last.
const HOLDERS: usize = Holder::SpanMetrics as usize + 1;

/// The bytes of all holders, and their limit.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    held: [AtomicUsize; HOLDERS],
    used: AtomicUsize,
    overhead: AtomicUsize,
    /// The lowest overhead that was noted; `usize::MAX` before the first.
    overhead_least: AtomicUsize,
    reserved: AtomicUsize,
    is_refusing: AtomicBool,
}

impl Budget {
    /// A budget of `limit` bytes; nothing is held yet.
    pub fn new(limit: usize) -> Arc<Self> {
        let (held, used, overhead, reserved, is_refusing) = Default::default();
        let overhead_least = AtomicUsize::new(usize::MAX);
        Arc::new(Budget { limit, held, used, overhead, overhead_least, reserved, is_refusing })
    }

    /// The hard limit in bytes.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// The bytes held by all holders.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// The bytes held by one holder.
    pub fn held(&self, holder: Holder) -> usize {
        self.held[holder as usize].load(Relaxed)
    }

    /// Notes the resident memory of the process.
    pub(crate) fn note_resident(&self, bytes: usize) {
        let overhead = bytes.saturating_sub(self.used()).min(self.limit / 5);
        self.overhead.store(overhead, Relaxed);
        self.overhead_least.fetch_min(overhead, Relaxed);
    }

    /// The resident memory that is not charged, by the last note, up to a fifth of the limit.
    pub(crate) fn overhead(&self) -> usize {
        self.overhead.load(Relaxed)
    }

    /// Reserves memory for bytes that may arrive uncharged, until the [`Reserve`] is dropped.
    pub(crate) fn reserve(self: &Arc<Self>, bytes: usize) -> Reserve {
        self.reserved.fetch_add(bytes, Relaxed);
        Reserve { budget: Arc::clone(self), bytes }
    }

    /// The bytes that may be charged: the limit without overhead and reserved memory.
    fn capacity(&self) -> usize {
        let unavailable = self.overhead() + self.reserved.load(Relaxed);
        self.limit - unavailable.min(self.limit / 2)
    }

    /// Whether a request that needs this many bytes would be refused even with an empty window and
    /// an empty queue, so its sender must not retry. Counts the decisions that are cached and
    /// logged now, the series of span metrics, the share of walking, and the lowest overhead so
    /// far, because the rest of the overhead comes and goes.
    pub(crate) fn never_fits(&self, bytes: usize) -> bool {
        let overhead = match self.overhead_least.load(Relaxed) {
            usize::MAX => 0,
            least => least,
        };
        let unavailable = (overhead + self.reserved.load(Relaxed)).min(self.limit / 2);
        let lasting = [Holder::Decisions, Holder::DecisionLog, Holder::SpanMetrics];
        let kept = lasting.map(|holder| self.held(holder)).iter().sum::<usize>() + self.limit / 32;
        bytes.saturating_add(unavailable + kept) > self.limit
    }

    /// Charges bytes without asking, for requests that have been admitted and for parts with a
    /// share.
    pub(crate) fn charge(&self, holder: Holder, bytes: usize) {
        self.held[holder as usize].fetch_add(bytes, Relaxed);
        self.used.fetch_add(bytes, Relaxed);
    }

    /// Releases charged bytes.
    pub(crate) fn release(&self, holder: Holder, bytes: usize) {
        let held = self.held[holder as usize].fetch_sub(bytes, Relaxed);
        let used = self.used.fetch_sub(bytes, Relaxed);
        debug_assert!(held >= bytes && used >= bytes, "{holder:?} gave back more than it held");
    }

    /// Charges bytes without asking, until the [`Hold`] is dropped.
    pub fn hold(self: &Arc<Self>, holder: Holder, bytes: usize) -> Hold {
        self.charge(holder, bytes);
        Hold { budget: Arc::clone(self), holder, bytes }
    }

    /// Charges bytes if the limit allows it; `None` at the hard limit.
    pub(crate) fn try_hold(self: &Arc<Self>, holder: Holder, bytes: usize) -> Option<Hold> {
        let before = self.used.fetch_add(bytes, Relaxed);
        if before.saturating_add(bytes) > self.capacity() {
            self.used.fetch_sub(bytes, Relaxed);
            self.is_refusing.store(true, Relaxed);
            return None;
        }
        self.held[holder as usize].fetch_add(bytes, Relaxed);
        Some(Hold { budget: Arc::clone(self), holder, bytes })
    }

    /// Whether a new request may begin. From the hard limit on, this is false until there is room
    /// for more than one request; otherwise senders would be admitted and refused in turns.
    /// Requests in progress may continue up to the limit.
    pub(crate) fn admits(&self) -> bool {
        let (used, capacity) = (self.used(), self.capacity());
        if used >= capacity {
            self.is_refusing.store(true, Relaxed);
        } else if used <= capacity / 10 * 9 {
            self.is_refusing.store(false, Relaxed);
        }
        !self.is_refusing.load(Relaxed)
    }

    /// Above this number of bytes the oldest traces are decided early.
    pub fn soft_limit(&self) -> usize {
        self.capacity() / 5 * 4
    }

    /// Early decisions continue down to this number of bytes. It is lower than the soft limit, so
    /// they do not start again in each tick.
    pub(crate) fn soft_target(&self) -> usize {
        self.capacity() / 4 * 3
    }

    /// How full the budget is: 0.0 is empty, 1.0 is full, and it may be higher.
    pub(crate) fn pressure(&self) -> f64 {
        self.used() as f64 / self.capacity() as f64
    }
}

/// Reserved memory, until this is dropped.
#[derive(Debug)]
pub(crate) struct Reserve {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Reserve {
    fn drop(&mut self) {
        self.budget.reserved.fetch_sub(self.bytes, Relaxed);
    }
}

/// Charged bytes, until this is dropped.
#[derive(Debug)]
pub struct Hold {
    budget: Arc<Budget>,
    holder: Holder,
    bytes: usize,
}

impl Hold {
    /// The bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Moves the bytes to another holder.
    pub(crate) fn pass_to(&mut self, holder: Holder) {
        self.budget.held[self.holder as usize].fetch_sub(self.bytes, Relaxed);
        self.budget.held[holder as usize].fetch_add(self.bytes, Relaxed);
        self.holder = holder;
    }

    /// Releases a part of the bytes.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.budget.release(self.holder, bytes);
    }

    /// A second hold for the same holder, of 0 bytes.
    pub(crate) fn another(&self) -> Hold {
        self.budget.hold(self.holder, 0)
    }

    /// Whether it is charged to this budget.
    pub(crate) fn is_of(&self, budget: &Arc<Budget>) -> bool {
        Arc::ptr_eq(&self.budget, budget)
    }

    /// Charges more bytes if the limit allows it. Returns whether it did.
    pub(crate) fn try_grow(&mut self, bytes: usize) -> bool {
        let Some(mut more) = self.budget.try_hold(self.holder, bytes) else { return false };
        self.bytes += std::mem::take(&mut more.bytes);
        true
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.budget.release(self.holder, self.bytes);
    }
}

/// The resident memory of the process, where the kernel reports it: the second number of `statm`,
/// in pages. `status` has it too, but takes more than twice as long to read, ten times per second.
/// The file stays open, because opening it takes longer than reading it.
pub(crate) fn resident_bytes() -> Option<usize> {
    static STATM: LazyLock<Option<File>> = LazyLock::new(|| File::open("/proc/self/statm").ok());
    let mut text = [0; 128];
    let length = STATM.as_ref()?.read_at(&mut text, 0).ok()?;
    let pages: usize = str::from_utf8(&text[..length]).ok()?.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hard_limit_refuses_and_a_drop_gives_back() {
        let budget = Budget::new(100);
        let mut first = budget.try_hold(Holder::Receiving, 60).expect("fits");
        assert!(budget.try_hold(Holder::Receiving, 41).is_none());
        assert!(first.try_grow(40));
        assert!(!first.try_grow(1));
        assert_eq!((budget.used(), budget.held(Holder::Receiving)), (100, 100));
        drop(first);
        assert_eq!((budget.used(), budget.held(Holder::Receiving)), (0, 0));
    }

    #[test]
    fn refusing_goes_on_until_there_is_room() {
        let budget = Budget::new(100);
        let admits = |used: usize| {
            budget.charge(Holder::Segments, used);
            let admits = budget.admits();
            budget.release(Holder::Segments, used);
            admits
        };
        let expected = [true, true, false, false, true, true];
        assert_eq!([0, 99, 100, 91, 90, 99].map(admits), expected);
        // Requests in progress that do not fit make the receiver refuse new ones too.
        let _hold = budget.try_hold(Holder::Receiving, 95).expect("fits");
        assert!(budget.admits() && budget.try_hold(Holder::Receiving, 6).is_none());
        assert!(!budget.admits());
    }

    #[test]
    fn overhead_lowers_the_limits_by_a_fifth_at_most() {
        let budget = Budget::new(1000);
        let _hold = budget.hold(Holder::Segments, 500);
        for (resident, capacity) in [(0, 1000), (500, 1000), (600, 900), (700, 800), (9999, 800)] {
            budget.note_resident(resident);
            let limits = (budget.soft_limit(), budget.soft_target());
            assert_eq!(limits, (capacity / 5 * 4, capacity / 4 * 3), "{resident}");
            assert!(budget.try_hold(Holder::Receiving, capacity - 500).is_some());
            assert!(budget.try_hold(Holder::Receiving, capacity - 499).is_none());
        }
        assert_eq!((budget.limit(), budget.used(), budget.overhead()), (1000, 500, 200));
        let reserve = budget.reserve(100);
        assert_eq!(budget.soft_limit(), 700 / 5 * 4);
        let more = budget.reserve(900);
        assert_eq!(budget.soft_limit(), 500 / 5 * 4);
        drop((reserve, more));
        assert_eq!(budget.soft_limit(), 800 / 5 * 4);
    }

    #[test]
    fn never_fitting_differs_from_not_fitting_now() {
        let budget = Budget::new(3200);
        assert!(!budget.never_fits(3100) && budget.never_fits(3101));
        let _window = budget.hold(Holder::Segments, 3200);
        assert!(!budget.never_fits(3100), "the window can be decided");
        let _decisions = budget.hold(Holder::Decisions, 800);
        let mut log = budget.hold(Holder::DecisionLog, 300);
        assert!(!budget.never_fits(2000) && budget.never_fits(2001));
        log.shrink(200);
        assert!(!budget.never_fits(2200) && budget.never_fits(2201));
        let _reserve = budget.reserve(200);
        budget.note_resident(4500);
        assert!(!budget.never_fits(1600) && budget.never_fits(1601));
        budget.note_resident(9999);
        assert!(!budget.never_fits(1600), "overhead that was not always there may go");
        assert!(budget.never_fits(usize::MAX));
    }

    #[test]
    fn admitted_bytes_are_charged_beyond_the_limit() {
        let budget = Budget::new(100);
        budget.charge(Holder::Segments, 150);
        assert!(budget.pressure() > 1.0 && budget.used() > budget.soft_limit());
        assert!(budget.try_hold(Holder::Receiving, 1).is_none());
        budget.release(Holder::Segments, 150);
        assert_eq!(budget.used(), 0);
    }
}
