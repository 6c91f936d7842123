//! A topic of Kafka and a consumer group, in memory: records by partition and offset, static
//! members that heartbeat or are expelled, cooperative rebalances, commits with fencing.

use std::collections::{BTreeMap, BTreeSet};

use tailwater::receiver::kafka::{Commit, Start};

/// A record.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The timestamp that the producer gave it, in Unix milliseconds.
    pub time: u64,
    /// `None` is a null record.
    pub payload: Option<Vec<u8>>,
    /// Whether it can be decoded.
    pub is_sound: bool,
    /// The ids of its spans.
    pub spans: Vec<u64>,
}

/// A member of the group, as the broker knows it.
#[derive(Debug)]
struct Seat {
    /// Which process has it: one that comes back under the same name fences the one before.
    epoch: u64,
    seen_at: u64,
}

/// The topic and its group.
#[derive(Debug)]
pub struct Broker {
    pub partitions: Vec<Vec<Stored>>,
    pub committed: Vec<Commit>,
    /// Whether the commit came from a member that did not have the partition any more.
    is_stray: Vec<bool>,
    /// Whether the broker answers.
    pub is_up: bool,
    session_millis: u64,
    seats: BTreeMap<usize, Seat>,
    /// The owner of a partition, and its next owner.
    owners: Vec<Option<usize>>,
    wanted: Vec<Option<usize>>,
}

/// The answer to a member's heartbeat.
#[derive(Debug, Default)]
pub struct Orders {
    pub revoke: Vec<i32>,
    pub assign: Vec<i32>,
}

fn index(partition: i32) -> usize {
    usize::try_from(partition).expect("not negative")
}

fn number(index: usize) -> i32 {
    i32::try_from(index).expect("few partitions")
}

impl Broker {
    pub fn new(partitions: usize, session_millis: u64) -> Self {
        let mut broker = Broker {
            partitions: Vec::new(),
            committed: Vec::new(),
            is_stray: Vec::new(),
            is_up: true,
            session_millis,
            seats: BTreeMap::new(),
            owners: Vec::new(),
            wanted: Vec::new(),
        };
        broker.add_partitions(partitions);
        broker
    }

    pub fn add_partitions(&mut self, count: usize) {
        for _ in 0..count {
            self.partitions.push(Vec::new());
            self.committed.push(Commit::default());
            self.is_stray.push(false);
            self.owners.push(None);
        }
        self.assign();
    }

    /// The offset after the last record of a partition.
    pub fn end(&self, partition: i32) -> u64 {
        self.partitions[index(partition)].len() as u64
    }

    pub fn record(&self, partition: i32, offset: u64) -> Option<&Stored> {
        self.partitions[index(partition)].get(usize::try_from(offset).expect("small"))
    }

    /// The offset at which a new owner of a partition begins to read.
    pub fn start(&self, partition: i32, margin_millis: u64) -> Start {
        let commit = self.committed[index(partition)];
        let from = commit.time.saturating_sub(margin_millis);
        let records = &self.partitions[index(partition)];
        let first = records.iter().position(|record| record.time >= from).unwrap_or(0) as u64;
        let first = first.min(commit.offset);
        Start { first, commit: commit.offset, to_commit: None }
    }

    /// A process takes a seat, or takes it over from one before it.
    pub fn join(&mut self, seat: usize, epoch: u64, now: u64) {
        self.seats.insert(seat, Seat { epoch, seen_at: now });
        self.assign();
    }

    /// A member leaves at once.
    pub fn leave(&mut self, seat: usize) {
        self.seats.remove(&seat);
        self.free(seat);
    }

    /// Expels members that have not been seen for the session timeout.
    pub fn expel(&mut self, now: u64) {
        let session = self.session_millis;
        let gone = |seat: &Seat| now.saturating_sub(seat.seen_at) > session;
        let gone: Vec<usize> =
            self.seats.iter().filter(|(_, seat)| gone(seat)).map(|(&name, _)| name).collect();
        for seat in gone {
            self.leave(seat);
        }
    }

    /// Sessions do not end while the broker is away.
    pub fn forgive(&mut self, now: u64) {
        self.seats.values_mut().for_each(|seat| seat.seen_at = now);
    }

    fn is_member(&self, seat: usize, epoch: u64) -> bool {
        self.seats.get(&seat).is_some_and(|it| it.epoch == epoch)
    }

    /// A member says what it has; `None` if it is no member any more.
    pub fn heartbeat(
        &mut self,
        seat: usize,
        epoch: u64,
        now: u64,
        held: &BTreeSet<i32>,
    ) -> Option<Orders> {
        if !self.is_member(seat, epoch) {
            return None;
        }
        self.seats.get_mut(&seat)?.seen_at = now;
        let mut orders = Orders::default();
        for partition in 0..self.partitions.len() {
            let is_held = held.contains(&number(partition));
            let is_wanted = self.wanted[partition] == Some(seat);
            if is_held && !is_wanted {
                orders.revoke.push(number(partition));
            } else if !is_held && is_wanted && self.owners[partition].is_none_or(|it| it == seat) {
                self.owners[partition] = Some(seat);
                orders.assign.push(number(partition));
            } else if !is_held && self.owners[partition] == Some(seat) {
                // From the previous process, which has ended.
                self.owners[partition] = None;
            }
        }
        Some(orders)
    }

    /// A member has given a partition up.
    pub fn release(&mut self, seat: usize, epoch: u64, partition: i32) {
        if self.is_member(seat, epoch) && self.owners[index(partition)] == Some(seat) {
            self.owners[index(partition)] = None;
        }
    }

    /// Commits, unless the member is fenced. Returns the commit before it.
    pub fn commit(&mut self, seat: usize, epoch: u64, at: (i32, Commit)) -> Option<Commit> {
        let partition = index(at.0);
        if !self.is_up || !self.is_member(seat, epoch) || self.owners[partition] != Some(seat) {
            return None;
        }
        let before = std::mem::replace(&mut self.committed[partition], at.1);
        // The owner does not know of such a commit, and may go back behind it.
        let is_stray = std::mem::take(&mut self.is_stray[partition]);
        Some(if is_stray && before.offset > at.1.offset { at.1 } else { before })
    }

    /// Commits for a member that may not have the partition any more: the broker asks only whether
    /// it is a member. Commits that would go back are left out: they cost nothing but repetitions.
    pub fn commit_late(&mut self, seat: usize, epoch: u64, at: (i32, Commit)) -> Option<Commit> {
        let partition = index(at.0);
        let before = self.committed[partition];
        if !self.is_up || !self.is_member(seat, epoch) || at.1.offset <= before.offset {
            return None;
        }
        self.committed[partition] = at.1;
        self.is_stray[partition] = self.owners[partition] != Some(seat);
        Some(before)
    }

    fn free(&mut self, seat: usize) {
        for owner in self.owners.iter_mut().filter(|owner| **owner == Some(seat)) {
            *owner = None;
        }
        self.assign();
    }

    /// Divides the partitions evenly, and moves as few as it can.
    fn assign(&mut self) {
        let most = self.partitions.len().div_ceil(self.seats.len().max(1));
        let mut has: BTreeMap<usize, usize> = self.seats.keys().map(|&seat| (seat, 0)).collect();
        self.wanted = vec![None; self.partitions.len()];
        for (wanted, owner) in self.wanted.iter_mut().zip(&self.owners) {
            if let Some(count) = owner.and_then(|owner| has.get_mut(&owner))
                && *count < most
            {
                *count += 1;
                *wanted = *owner;
            }
        }
        for wanted in self.wanted.iter_mut().filter(|wanted| wanted.is_none()) {
            let least = has.iter_mut().min_by_key(|(seat, count)| (**count, **seat));
            if let Some((&seat, count)) = least {
                *count += 1;
                *wanted = Some(seat);
            }
        }
    }
}
