//! The journal: writes the decider's records to the logs of `[durability]`, in this order: kept
//! spans to the outbox, then their decisions, then the watermark.
//!
//! Kept spans are written when they are queued ([`Journal::store`]). At the end of a tick, once all
//! of them are queued, the decisions of the tick are written. They also wait while the queue holds
//! a request that could not be written: a decision on disk without its kept spans would lose them.
//! The journal takes a watermark every quarter of a second, and writes it at the end of a later
//! tick. By then its fence has been reached, the decider's outbox has been emptied after that, and
//! the decisions that existed at that time are written.
//!
//! With `mode = "power"`, each of these steps waits for the sync of the previous one. The decider
//! does not wait: the journal keeps its state from tick to tick. If a sync fails, the decisions
//! wait until every request that was queued before is delivered or given up, and are then written
//! again.

use std::sync::Arc;

use crate::{
    budget::{Budget, Hold, Holder},
    clock::WindowClock,
    durability::{Durability, Keeper, Pending, Since, Ticket},
    exporter::Queue,
    otlp::encode::EncodedRequest,
    sampler::{Decided, Mark, Sampler},
};

/// The time between two watermarks, in milliseconds: short, so that few files wait to be freed.
const MARK_MILLIS: u64 = 250;

/// The parts of the service that the journal uses.
#[derive(Clone, Debug)]
pub(crate) struct JournalParts {
    /// The logs.
    pub(crate) durability: Arc<Durability>,
    /// Syncs them, with `mode = "power"`.
    pub(crate) keeper: Option<Arc<Keeper>>,
    /// Takes watermarks.
    pub(crate) sampler: Arc<Sampler>,
    /// Tells which requests are settled.
    pub(crate) queue: Arc<Queue>,
    /// The window's time.
    pub(crate) clock: Arc<WindowClock>,
    /// Charged for decisions that wait.
    pub(crate) budget: Arc<Budget>,
}

/// Writes the decider's records to the logs.
#[derive(Debug)]
pub(super) struct Journal {
    parts: JournalParts,
    /// Decisions that are not written.
    pending: Pending,
    charged: Option<Hold>,
    /// The syncs that kept spans depend on which no batch has covered yet.
    since: Since,
    /// Decisions that wait until their kept spans are synced.
    staged: Option<(Pending, Ticket)>,
    /// Decisions that are written and wait to be synced.
    written: Option<(Pending, Ticket)>,
    /// After a failed sync: a fence behind the requests that were queued by then.
    fence: Option<u64>,
    /// The number of batches of decisions that have been begun, and the number that are done:
    /// written and, with `mode = "power"`, synced.
    begun: u64,
    done: u64,
    mark: Option<Mark>,
    /// Whether the fence of the mark had been reached before the outbox was emptied last.
    is_reached: bool,
    /// The batches that have to be done before the mark is used.
    needed: Option<u64>,
    /// A watermark that is written and waits to be synced.
    marked: Option<(u64, Ticket)>,
    marked_at: u64,
    watermark: u64,
}

impl Journal {
    pub(super) fn new(parts: JournalParts) -> Self {
        Journal {
            since: since(&parts),
            parts,
            pending: Pending::default(),
            charged: None,
            staged: None,
            written: None,
            fence: None,
            begun: 0,
            done: 0,
            mark: None,
            is_reached: false,
            needed: None,
            marked: None,
            marked_at: 0,
            watermark: 0,
        }
    }

    /// Adds the decisions of one hold of a lock.
    pub(super) fn add(&mut self, decided: &Decided) {
        self.pending.add(decided);
    }

    /// Adds decisions that connection tasks have made.
    pub(super) fn append(&mut self, pending: Pending) {
        self.pending.append(pending);
    }

    /// Writes a request that is about to be queued. Returns its position in the outbox; `None` if
    /// it cannot be written, which is counted and logged.
    pub(super) fn store(&self, request: &EncodedRequest) -> Option<u64> {
        let (durability, time) = (&self.parts.durability, self.parts.clock.millis());
        durability.queue(&request.body, request.spans, time).ok()
    }

    /// Called before the outbox is emptied for the last time in a tick.
    pub(super) fn begin_end(&mut self) {
        let least = self.parts.durability.positions().least();
        self.is_reached = self.mark.is_some_and(|mark| least >= mark.fence());
    }

    /// Called at the end of a tick. `all_queued` says whether all kept spans so far are queued.
    pub(super) fn end(&mut self, all_queued: bool) {
        let now = self.parts.clock.millis();
        let JournalParts { durability, queue, .. } = &self.parts;
        durability.settle(&queue.take_departed(), now);
        self.free_marked(now);
        self.check_written();
        if all_queued && queue_is_stored(&mut self.fence, &self.parts.queue) {
            self.stage(now);
        }
        self.write(now);
        if self.is_reached && all_queued {
            let next = u64::from(!self.pending.is_empty());
            self.needed.get_or_insert(self.begun + next);
        }
        if self.needed.is_some_and(|needed| self.done >= needed) {
            self.use_mark(now);
        }
        self.take_mark(now);
        self.charge();
    }

    /// Whether everything is written and synced, and no watermark is left to use.
    pub(super) fn is_at_rest(&self) -> bool {
        self.is_written()
            && self.marked.is_none()
            && self.watermark == self.parts.durability.positions().next()
    }

    /// Whether all decisions are written and, with `mode = "power"`, synced. A decision is not
    /// written while its kept spans cannot be queued or written. If the process ends then, the next
    /// one decides the trace again from the intake log.
    pub(super) fn is_written(&self) -> bool {
        self.staged.is_none() && self.written.is_none() && self.pending.is_empty()
    }

    /// Whether something waits for a sync.
    pub(super) fn waits_for_sync(&self) -> bool {
        self.staged.is_some() || self.written.is_some() || self.marked.is_some()
    }

    /// Called after something was written since then.
    fn ticket(&self, since: Since) -> Option<Ticket> {
        self.parts.keeper.as_ref().map(|keeper| keeper.ticket(since))
    }

    /// Writes the decisions whose kept spans are in the outbox. With `mode = "power"`, they first
    /// wait for the sync of the outbox.
    fn stage(&mut self, now: u64) {
        if self.staged.is_some() || self.written.is_some() || self.pending.is_empty() {
            return;
        }
        match self.ticket(self.since) {
            Some(ticket) => {
                self.since = since(&self.parts);
                self.staged = Some((std::mem::take(&mut self.pending), ticket));
            }
            None if self.decide(&self.pending, now) => {
                self.pending = Pending::default();
                self.done += 1;
            }
            None => return,
        }
        self.begun += 1;
    }

    /// Writes decisions, and returns whether that succeeded.
    fn decide(&self, pending: &Pending, now: u64) -> bool {
        let plan = self.parts.sampler.plan();
        self.parts.durability.decide(pending, plan.names(), now).is_ok()
    }

    /// Writes the decisions whose kept spans are synced.
    fn write(&mut self, now: u64) {
        let (Some(keeper), Some((_, ticket))) = (&self.parts.keeper, &self.staged) else { return };
        let Some(is_synced) = keeper.outcome(*ticket) else { return };
        let Some((pending, _)) = self.staged.take() else { return };
        let before = since(&self.parts);
        if is_synced && self.decide(&pending, now) {
            self.written = self.ticket(before).map(|ticket| (pending, ticket));
        } else {
            self.put_back(pending, is_synced);
        }
    }

    /// Forgets the decisions that are synced.
    fn check_written(&mut self) {
        let (Some(keeper), Some((_, ticket))) = (&self.parts.keeper, &self.written) else { return };
        let Some(is_synced) = keeper.outcome(*ticket) else { return };
        let Some((pending, _)) = self.written.take() else { return };
        if is_synced {
            self.done = self.begun;
        } else {
            self.put_back(pending, false);
        }
    }

    /// Moves the decisions of a batch that failed to the next batch.
    fn put_back(&mut self, mut pending: Pending, is_synced: bool) {
        pending.append(std::mem::take(&mut self.pending));
        self.pending = pending;
        self.needed = self.needed.map(|_| self.begun + 1);
        if !is_synced {
            self.fence = Some(self.parts.queue.fence());
            self.since = since(&self.parts);
        }
    }

    /// Writes the watermark of a mark whose fence has been reached, and frees the records below it.
    fn use_mark(&mut self, now: u64) {
        let Some(mark) = self.mark else { return };
        let before = since(&self.parts);
        if self.parts.durability.mark(mark.watermark(), now).is_err() {
            return;
        }
        self.mark = None;
        self.needed = None;
        self.watermark = mark.watermark();
        match self.ticket(before) {
            Some(ticket) => self.marked = Some((self.watermark, ticket)),
            None => self.parts.durability.release(self.watermark, now),
        }
    }

    fn free_marked(&mut self, now: u64) {
        let (Some(keeper), Some((watermark, ticket))) = (&self.parts.keeper, self.marked) else {
            return;
        };
        if let Some(is_synced) = keeper.outcome(ticket) {
            self.marked = None;
            if is_synced {
                self.parts.durability.release(watermark, now);
            } else {
                // The next one is written even if nothing changes meanwhile.
                self.watermark = 0;
            }
        }
    }

    fn take_mark(&mut self, now: u64) {
        let is_time = now >= self.marked_at + MARK_MILLIS;
        if !is_time || self.mark.is_some() || self.marked.is_some() {
            return;
        }
        let JournalParts { durability, sampler, .. } = &self.parts;
        let mark = sampler.mark(durability.positions());
        // If no request has arrived and no trace waits, there is no new watermark to write.
        if mark.watermark() != self.watermark || sampler.buffered().traces > 0 {
            self.mark = Some(mark);
            self.marked_at = now;
        }
    }

    /// Makes the journal take the next mark at the next end of a tick.
    pub(super) fn hurry(&mut self) {
        self.marked_at = 0;
    }

    fn charge(&mut self) {
        let bytes = self.pending.bytes();
        if self.charged.as_ref().map_or(0, Hold::bytes) != bytes {
            let hold = self.parts.budget.hold(Holder::Decisions, bytes);
            self.charged = (bytes > 0).then_some(hold);
        }
    }
}

/// Called before something is written. Without a keeper nothing is synced.
fn since(parts: &JournalParts) -> Since {
    parts.keeper.as_ref().map(|keeper| keeper.since()).unwrap_or_default()
}

/// Whether every queued request is stored, and every request that a failed sync may have lost is
/// settled.
fn queue_is_stored(fence: &mut Option<u64>, queue: &Queue) -> bool {
    *fence = fence.filter(|&fence| !queue.is_settled(fence));
    fence.is_none() && queue.unstored() == 0
}
