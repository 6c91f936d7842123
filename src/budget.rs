//! The one budget of bytes: who holds how much, the soft limit and the hard one.
//!
//! Every part of the service that keeps bytes for longer than a call charges them here, so that
//! `memory_used_bytes` is one number and the limit one place. Requests ask ([`Budget::try_hold`])
//! and are refused at the hard limit; what an admitted request becomes (segments, index) is charged
//! without asking ([`Budget::charge`]), because refusing it there would lose acknowledged spans. A
//! request of more than a few thousand spans asks for that room before its first span is taken.
//!
//! Limits: soft = 80 % of the limit, where the oldest traces begin to be decided early, until 75 %;
//! hard = the limit, where requests begin to be refused, until 90 %. Relaxed atomics: the numbers
//! are independent sums, nothing else is ordered by them.
//!
//! Every holder either yields or has a share that is bounded at the start. At rest, with an empty
//! window and queue, the shares leave room, so that only the window and the queue can refuse intake
//! for long:
//!
//! - Segments, index and contexts in use: no share; above the soft limit the oldest traces are
//!   decided. Spare segments: freed above the soft limit, and after 10 s without use.
//! - One open segment a shard: 1/8, since less memory has fewer shards; the last trace frees it.
//! - The index of an empty window: 256 KiB a shard, so 1/8 at most, mostly far less.
//! - Remembered decisions: 1/4; the oldest are forgotten. Decision log: 1/16; the oldest leave.
//! - Buffers of walking: a thread keeps its part of 1/32 and takes up to 1/64 (at least 256 KiB,
//!   at most 8 MiB) for a large request, which asks.
//! - Requests being received: 1/8 for those up to 1 MiB, and what the largest message needs for
//!   larger ones, which ask; until they are answered.
//! - Export: the queue, 1/4 by default and 1/2 at most, and what waits for it; the backend takes
//!   it.
//! - HTTP/2 flow control windows (reserved): 1/8, beyond it 64 KiB a connection; until it ends.
//! - Not charged: spare receive buffers, 1/32, and two spare export buffers of the largest request.
//!
//! What is charged is what was asked for; the kernel counts pages, and kills by that. What the
//! process has beyond its charges (freed memory that the allocator keeps, stacks, code) is its
//! *overhead*: it lowers both limits, by a fifth at most, since deciding earlier frees no more of
//! it. So does what is *reserved*: HTTP/2 windows, which senders may fill before anybody is asked.
//! Together they lower them by a half at most.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

/// The decision log may take the limit divided by this.
pub const DECISION_LOG_PART: usize = 16;
/// Bytes of a logged decision beside the two for each policy that matched.
pub const LOGGED_TRACE_BYTES: usize = 104;
/// A request may need the limit divided by this even when everything else that is bounded at the
/// start has taken its share.
pub const REQUEST_PART: usize = 2;

/// Who holds bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Segments of the window, in use or waiting to be used again.
    Segments,
    /// Trace entries, their hash tables and deadlines.
    Index,
    /// Interned resources and scopes.
    Contexts,
    /// Remembered decisions.
    Decisions,
    /// The decision log.
    DecisionLog,
    /// What walking a request takes, and room for the spans of a large one until they are there.
    Walking,
    /// Requests being received and walked.
    Receiving,
    /// Large ones, which must not keep the others out.
    ReceivingLarge,
    /// Kept spans between their decision and the answer of the backend.
    Export,
}

const HOLDERS: usize = 9;

/// Bytes held, by holder, against one limit.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    held: [AtomicUsize; HOLDERS],
    used: AtomicUsize,
    overhead: AtomicUsize,
    /// The least overhead that was noted, `usize::MAX` before the first.
    overhead_least: AtomicUsize,
    reserved: AtomicUsize,
    is_refusing: AtomicBool,
}

impl Budget {
    /// A budget of `limit` bytes with nothing held.
    pub fn new(limit: usize) -> Arc<Self> {
        let (held, used, overhead, reserved, is_refusing) = Default::default();
        let overhead_least = AtomicUsize::new(usize::MAX);
        Arc::new(Budget { limit, held, used, overhead, overhead_least, reserved, is_refusing })
    }

    /// The hard limit in bytes.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes held by all.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// Bytes held by one.
    pub fn held(&self, holder: Holder) -> usize {
        self.held[holder as usize].load(Relaxed)
    }

    /// Takes note of how much memory the process has by the kernel's count.
    pub fn note_resident(&self, bytes: usize) {
        let overhead = bytes.saturating_sub(self.used()).min(self.limit / 5);
        self.overhead.store(overhead, Relaxed);
        self.overhead_least.fetch_min(overhead, Relaxed);
    }

    /// See the module.
    pub fn overhead(&self) -> usize {
        self.overhead.load(Relaxed)
    }

    /// Keeps room for bytes that may come uncharged, until the [`Reserve`] is dropped.
    pub fn reserve(self: &Arc<Self>, bytes: usize) -> Reserve {
        self.reserved.fetch_add(bytes, Relaxed);
        Reserve { budget: Arc::clone(self), bytes }
    }

    /// What may be charged.
    fn capacity(&self) -> usize {
        let unavailable = self.overhead() + self.reserved.load(Relaxed);
        self.limit - unavailable.min(self.limit / 2)
    }

    /// Whether a request that needs so many bytes would be refused even if the window and the queue
    /// were empty, so that its sender must not try again. Counts the decisions that are remembered
    /// and logged now, the share of walking, and the part of the overhead that has always been
    /// there: the rest of it comes and goes.
    pub fn never_fits(&self, bytes: usize) -> bool {
        let overhead = match self.overhead_least.load(Relaxed) {
            usize::MAX => 0,
            least => least,
        };
        let unavailable = (overhead + self.reserved.load(Relaxed)).min(self.limit / 2);
        let kept = self.held(Holder::Decisions) + self.held(Holder::DecisionLog) + self.limit / 32;
        bytes.saturating_add(unavailable + kept) > self.limit
    }

    /// Charges bytes whose room was taken before.
    pub fn charge(&self, holder: Holder, bytes: usize) {
        self.held[holder as usize].fetch_add(bytes, Relaxed);
        self.used.fetch_add(bytes, Relaxed);
    }

    /// Gives charged bytes back.
    pub fn release(&self, holder: Holder, bytes: usize) {
        let held = self.held[holder as usize].fetch_sub(bytes, Relaxed);
        let used = self.used.fetch_sub(bytes, Relaxed);
        debug_assert!(held >= bytes && used >= bytes, "{holder:?} gave back more than it held");
    }

    /// Charges bytes without asking and gives them back when the [`Hold`] is dropped.
    pub fn hold(self: &Arc<Self>, holder: Holder, bytes: usize) -> Hold {
        self.charge(holder, bytes);
        Hold { budget: Arc::clone(self), holder, bytes }
    }

    /// Holds bytes if the limit allows it; `None` at the hard limit.
    pub fn try_hold(self: &Arc<Self>, holder: Holder, bytes: usize) -> Option<Hold> {
        let before = self.used.fetch_add(bytes, Relaxed);
        if before.saturating_add(bytes) > self.capacity() {
            self.used.fetch_sub(bytes, Relaxed);
            self.is_refusing.store(true, Relaxed);
            return None;
        }
        self.held[holder as usize].fetch_add(bytes, Relaxed);
        Some(Hold { budget: Arc::clone(self), holder, bytes })
    }

    /// Whether a request may begin: not from the hard limit on until there is room for more than
    /// one, so that senders are not let in and sent away in turns. Those under way go on up to the
    /// limit.
    pub fn admits(&self) -> bool {
        let (used, capacity) = (self.used(), self.capacity());
        if used >= capacity {
            self.is_refusing.store(true, Relaxed);
        } else if used <= capacity / 10 * 9 {
            self.is_refusing.store(false, Relaxed);
        }
        !self.is_refusing.load(Relaxed)
    }

    /// Bytes above which the oldest traces are decided early.
    pub fn soft_limit(&self) -> usize {
        self.capacity() / 5 * 4
    }

    /// Bytes down to which they are, once it has begun: lower, so that it does not begin anew each
    /// tick.
    pub fn soft_target(&self) -> usize {
        self.capacity() / 4 * 3
    }

    /// How full the budget is, 0.0 to 1.0 and above.
    pub fn pressure(&self) -> f64 {
        self.used() as f64 / self.capacity() as f64
    }
}

/// Room kept until this is dropped.
#[derive(Debug)]
pub struct Reserve {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Reserve {
    fn drop(&mut self) {
        self.budget.reserved.fetch_sub(self.bytes, Relaxed);
    }
}

/// Bytes held until this is dropped.
#[derive(Debug)]
pub struct Hold {
    budget: Arc<Budget>,
    holder: Holder,
    bytes: usize,
}

impl Hold {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Counts what is held under another holder from now on.
    pub fn pass_to(&mut self, holder: Holder) {
        self.budget.held[self.holder as usize].fetch_sub(self.bytes, Relaxed);
        self.budget.held[holder as usize].fetch_add(self.bytes, Relaxed);
        self.holder = holder;
    }

    /// Holds less.
    pub fn shrink(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.budget.release(self.holder, bytes);
    }

    /// One more for the same holder, which holds nothing yet.
    pub fn another(&self) -> Hold {
        self.budget.hold(self.holder, 0)
    }

    /// Whether it is charged to this budget.
    pub fn is_of(&self, budget: &Arc<Budget>) -> bool {
        Arc::ptr_eq(&self.budget, budget)
    }

    /// Holds more, if the limit allows it.
    pub fn try_grow(&mut self, bytes: usize) -> bool {
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

/// What the process has by the kernel's count, where it tells: the second number of `statm`, in
/// pages. `status` has it too, and takes more than twice as long, ten times a second.
pub fn resident_bytes() -> Option<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: usize = statm.split(' ').nth(1)?.parse().ok()?;
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
        // What is under way and does not fit makes the door refuse too.
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
    fn what_never_fits_is_told_from_what_does_not_fit_now() {
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
    fn what_was_admitted_is_charged_beyond_the_limit() {
        let budget = Budget::new(100);
        budget.charge(Holder::Segments, 150);
        assert!(budget.pressure() > 1.0 && budget.used() > budget.soft_limit());
        assert!(budget.try_hold(Holder::Receiving, 1).is_none());
        budget.release(Holder::Segments, 150);
        assert_eq!(budget.used(), 0);
    }
}
