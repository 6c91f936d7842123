//! The partitions of this instance: whether each may read now, and which offsets may be committed.
//!
//! One thread drives it; nothing in it waits. Times are those of the wall clock, in Unix
//! milliseconds, and come with each call.
//!
//! Memory: from three quarters of the soft limit on, all partitions pause except the one that is
//! furthest behind. It runs to its end, or until there is memory again. If the choice changed as
//! soon as another partition is further behind, all would advance together, and all their windows
//! would be needed at once. If none ran, the time of the records would stand still, and nothing
//! would be decided. If the running partition brings memory near the hard limit, its oldest traces
//! are decided early.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    commits::{Marked, Round},
    partition::{Commit, Hands, Partition, Record, Start, Taken},
};
use crate::{config::KafkaEncoding, metrics::Shown, receiver::Intake};

/// The time between two commits.
const COMMIT_MILLIS: u64 = 1_000;
/// Partitions pause from the first of these eighths of the soft limit on, until the second.
const PAUSE_EIGHTHS: [usize; 2] = [6, 5];
/// From this part of the memory limit on, traces of the running partition are decided early.
const RELIEVE_FROM: f64 = 0.96;

/// How records are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// What a record holds.
    pub(crate) encoding: KafkaEncoding,
    /// The most bytes of a record.
    pub(crate) limit_bytes: usize,
}

/// A partition and the state of its commits.
#[derive(Debug)]
struct Held {
    partition: Partition,
    /// Tells this assignment from others.
    generation: u64,
    /// The offset that the group has committed; `None` if that has to be put right first.
    committed: Option<u64>,
    /// The offset that may be committed now.
    settled: Option<Commit>,
    /// Since when the commit has been behind and has not moved.
    behind_since: Option<u64>,
}

impl Held {
    /// What may be committed, and is not.
    fn due_commit(&self) -> Option<Commit> {
        let is_due = |settled: &Commit| self.committed.is_none_or(|it| settled.offset > it);
        self.settled.filter(is_due)
    }
}

/// The partitions that this instance reads.
#[derive(Debug)]
pub struct Member {
    intake: Arc<Intake>,
    settings: Settings,
    partitions: BTreeMap<i32, Held>,
    hands: Hands,
    round: Option<Round>,
    round_at: u64,
    is_short: bool,
    /// The partition that runs while memory is short.
    running: Option<i32>,
    assignments: u64,
}

impl Member {
    /// A member without partitions.
    pub(crate) fn new(intake: &Arc<Intake>, settings: Settings) -> Self {
        Member {
            intake: Arc::clone(intake),
            settings,
            partitions: BTreeMap::new(),
            hands: Hands::default(),
            round: None,
            round_at: 0,
            is_short: false,
            running: None,
            assignments: 0,
        }
    }

    /// Begins to read a partition. Returns whether there is a window for it; without one, it must
    /// not be read.
    pub fn assign(&mut self, partition: i32, start: Start) -> bool {
        let Some(opened) = Partition::open(&self.intake, start) else { return false };
        let settled = start.to_commit.map(|time| Commit { offset: start.commit, time });
        let committed = settled.is_none().then_some(start.commit);
        let behind_since = None;
        self.assignments += 1;
        let generation = self.assignments;
        let held = Held { partition: opened, generation, committed, settled, behind_since };
        if let Some(before) = self.partitions.insert(partition, held) {
            self.hand_over(before.partition);
        }
        true
    }

    /// Gives a partition up, with its undecided traces. Returns the offset that must still be
    /// committed.
    pub fn revoke(&mut self, partition: i32) -> Option<Commit> {
        let held = self.partitions.remove(&partition)?;
        let due = held.due_commit();
        self.hand_over(held.partition);
        due
    }

    /// Gives all partitions up. Returns the offsets that must still be committed.
    pub fn revoke_all(&mut self) -> Vec<(i32, Commit)> {
        let all: Vec<_> = self.partitions.keys().copied().collect();
        all.into_iter().filter_map(|id| Some((id, self.revoke(id)?))).collect()
    }

    fn hand_over(&self, partition: Partition) {
        let spans = partition.close(&self.intake);
        self.intake.metrics.kafka().handed_over(spans);
    }

    /// Offers the next record of a partition. A record of a partition that it does not have counts
    /// as taken.
    pub fn take(&mut self, partition: i32, record: Record<'_>, wall: u64) -> Taken {
        let Some(held) = self.partitions.get_mut(&partition) else { return Taken::In };
        let with = (&self.settings, wall);
        held.partition.take(record, with, &self.intake, &mut self.hands)
    }

    /// Notes where a partition ended at a moment of the wall clock, at which somebody has asked.
    pub fn confirm(&mut self, partition: i32, end: u64, asked_at: u64) {
        if let Some(held) = self.partitions.get_mut(&partition) {
            held.partition.confirm(end, asked_at);
        }
    }

    /// Notes that everything in a partition was fetched, or, when it pauses, that this is not known
    /// any more.
    pub fn note_at_end(&mut self, partition: i32, is_at_end: bool) {
        if let Some(held) = self.partitions.get_mut(&partition) {
            held.partition.note_at_end(is_at_end);
        }
    }

    /// Goes on at a later offset, since the records before it are gone.
    pub fn skip_to(&mut self, partition: i32, offset: u64) {
        if let Some(held) = self.partitions.get_mut(&partition) {
            held.partition.skip_to(offset);
        }
    }

    /// Notes that the group has a commit.
    pub fn note_committed(&mut self, partition: i32, offset: u64, wall: u64) {
        let Some(held) = self.partitions.get_mut(&partition) else { return };
        // Also if it goes back, as it does where an earlier assignment had committed more than the
        // partition has now: what matters is what the group has.
        if held.committed != Some(offset) {
            held.committed = Some(offset);
            held.behind_since = (held.partition.next() > offset).then_some(wall);
        }
    }

    /// Called several times a second: decides due traces, looks at memory, and returns the offsets
    /// to commit, of which [`Self::note_committed`] is to follow.
    pub fn tick(&mut self, wall: u64) -> Vec<(i32, Commit)> {
        for held in self.partitions.values_mut() {
            let _ = held.partition.decide_due(&self.intake, &mut self.hands);
            let is_behind = held.committed.is_none_or(|offset| held.partition.next() > offset);
            // The wall clock may go back.
            let since = held.behind_since.map_or(wall, |since| since.min(wall));
            held.behind_since = is_behind.then_some(since);
        }
        self.look_at_memory();
        let is_settled = self.settle();
        let is_time = wall >= self.round_at + COMMIT_MILLIS || wall < self.round_at;
        let due = if is_settled { self.due_commits() } else { Vec::new() };
        if self.round.is_none() && is_time {
            self.begin_round(wall);
        }
        self.show(wall);
        due
    }

    /// Begins a round of commits now, unless one is under way.
    fn begin_round(&mut self, wall: u64) {
        if self.round.is_none() {
            let marks = self.partitions.iter().filter_map(|(&partition, held)| {
                let commit = held.partition.mark(&self.intake)?;
                Some(Marked { partition, generation: held.generation, commit })
            });
            self.round = Some(Round::begin(marks.collect(), &self.intake));
            self.round_at = wall;
        }
    }

    /// Ends the round that is under way if everything before its marks is delivered. Returns
    /// whether it has ended.
    fn settle(&mut self) -> bool {
        let Some(marks) = self.round.as_mut().and_then(|round| round.settled(&self.intake)) else {
            return false;
        };
        for &Marked { partition, generation, commit } in marks {
            // A partition may have been given up and taken over again meanwhile.
            if let Some(held) = self.partitions.get_mut(&partition)
                && held.generation == generation
            {
                held.settled = Some(commit);
            }
        }
        self.round = None;
        true
    }

    fn due_commits(&self) -> Vec<(i32, Commit)> {
        let due = |(&id, held): (&i32, &Held)| Some((id, held.due_commit()?));
        self.partitions.iter().filter_map(due).collect()
    }

    /// Whether a partition has to pause, since memory is short.
    pub fn pauses(&self, partition: i32) -> bool {
        self.is_short && self.running != Some(partition)
    }

    fn look_at_memory(&mut self) {
        let budget = &self.intake.budget;
        let eighths = PAUSE_EIGHTHS[usize::from(self.is_short)];
        self.is_short = self.intake.sampler.memory_used() > budget.soft_limit() / 8 * eighths;
        if !self.is_short {
            self.running = None;
            return;
        }
        let has_more = |id: &i32| self.partitions.get(id).is_some_and(|it| it.partition.lag() > 0);
        self.running = self.running.filter(has_more).or_else(|| self.furthest_behind());
        // After the limit was reached, nothing is taken in until a tenth is free, so that has to be
        // made free.
        if budget.pressure() < RELIEVE_FROM && budget.admits() {
            return;
        }
        // If nothing is undecided in the running partition, the others hold the memory.
        let undecided = |id: &i32| self.partitions[id].partition.is_undecided(&self.intake);
        let running = self.running.filter(undecided);
        let id = running.or_else(|| self.partitions.keys().copied().find(undecided));
        if let Some(held) = id.and_then(|id| self.partitions.get_mut(&id)) {
            held.partition.relieve(&self.intake, &mut self.hands);
        }
    }

    /// The partition with records to read whose time is the earliest.
    fn furthest_behind(&self) -> Option<i32> {
        let key = |held: &Held| (held.partition.lag() == 0, held.partition.time());
        let behind = self.partitions.iter().min_by_key(|(_, held)| key(held));
        behind.map(|(&id, _)| id)
    }

    fn show(&self, wall: u64) {
        let lag = self.partitions.values().map(|held| held.partition.lag()).sum();
        let ages = self.partitions.values().filter_map(|held| held.behind_since);
        let age = ages.map(|since| wall.saturating_sub(since)).max().unwrap_or(0);
        let (partitions, commit_age) = (self.partitions.len(), age as f64 / 1e3);
        self.intake.metrics.kafka().show(Shown { partitions, lag, commit_age });
    }

    /// The number of the assignment of a partition, if it has it.
    pub fn generation(&self, partition: i32) -> Option<u64> {
        self.partitions.get(&partition).map(|held| held.generation)
    }

    /// Begins a round of commits with the marks of now, instead of the one that is under way.
    pub fn hurry(&mut self) {
        self.round = None;
        self.begin_round(self.round_at);
    }

    /// Whether the last round of commits has ended.
    pub fn is_settled(&mut self) -> bool {
        self.round.is_none() || self.settle()
    }

    /// Its partitions.
    pub fn partitions(&self) -> impl Iterator<Item = (i32, &Partition)> {
        self.partitions.iter().map(|(&id, held)| (id, &held.partition))
    }
}
