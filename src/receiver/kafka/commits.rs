//! Which offsets may be committed: those below which nothing is undecided, once everything that was
//! decided is delivered.
//!
//! A round takes the marks of all partitions. The spans they have kept by then are in the outbox of
//! the decider. Once the outbox has been emptied and encoded, it is in the export queue, and once
//! all that was queued by then is settled, the marks may be committed. Spans that are given up, and
//! counted as failed, count as settled. One round is under way at a time.

use super::partition::Commit;
use crate::receiver::Intake;

/// The mark of an assignment of a partition.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marked {
    pub(super) partition: i32,
    /// Tells this assignment from a later one of the same partition, whose offsets may mean other
    /// records: the topic may have been created again.
    pub(super) generation: u64,
    pub(super) commit: Commit,
}

/// Marks that wait until everything before them is delivered.
#[derive(Debug)]
pub(super) struct Round {
    marks: Vec<Marked>,
    /// The number of puts into the outbox so far.
    put: u64,
    /// The last request of the export queue that has to be settled, once that is known.
    fence: Option<u64>,
}

impl Round {
    /// Begins with the marks of this moment.
    pub(super) fn begin(marks: Vec<Marked>, intake: &Intake) -> Self {
        Round { marks, put: intake.outbox.put_so_far(), fence: None }
    }

    /// The marks, once they may be committed.
    pub(super) fn settled(&mut self, intake: &Intake) -> Option<&[Marked]> {
        if self.fence.is_none() && intake.outbox.has_left(self.put) {
            self.fence = Some(intake.queue.fence());
        }
        let is_settled = self.fence.is_some_and(|fence| intake.queue.is_settled(fence));
        is_settled.then_some(&self.marks)
    }
}
