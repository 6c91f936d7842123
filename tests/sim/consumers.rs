//! Instances that read a topic: each a whole service with a backend of its own, and a member that
//! is driven as the client of Kafka drives it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use tailwater::{
    receiver::kafka::{Commit, Member, Record, Start, Taken, Why},
    service::Service,
};

use crate::{
    backend::Backend,
    journal::Journal,
    run::World,
    setup::Setup,
    topic::{Broker, Orders},
};

/// The most records of a partition in a turn.
const FETCH: usize = 20;

/// An answer about the end of a partition that is under way.
#[derive(Clone, Copy, Debug)]
struct Asked {
    partition: i32,
    end: u64,
    at: u64,
    answered_at: u64,
}

/// A commit that the client has not sent yet, or of which the instance has not heard.
#[derive(Clone, Copy, Debug)]
struct Late {
    partition: i32,
    commit: Commit,
    at: u64,
}

/// A running instance.
#[derive(Debug)]
pub struct Instance {
    /// Its name in the group, and the number of its process.
    pub seat: usize,
    pub epoch: u64,
    pub world: World,
    /// The spans that its own backend has stored.
    pub journal: Arc<Journal>,
    member: Arc<Mutex<Member>>,
    held: BTreeSet<i32>,
    next: BTreeMap<i32, u64>,
    asked: Vec<Asked>,
    acknowledged: Vec<Late>,
    /// The client sends them when it reaches the coordinator, also if the partition has moved.
    unsent: Vec<Late>,
    /// The lowest commit with which it has begun to read a partition.
    pub began: BTreeMap<i32, u64>,
    pub stalled_until: u64,
    /// How far its clock is from the broker's, in milliseconds.
    skew: i64,
    /// The last record that had to wait, and why.
    later: Option<(i32, u64, Why)>,
    rng: fastrand::Rng,
}

/// A commit that the broker has taken: partition, the offset before, the offset.
pub type Committed = (i32, u64, u64);

impl Instance {
    pub async fn start(
        setup: &Setup,
        (seat, epoch): (usize, u64),
        broker: &mut Broker,
        wall: u64,
        rng: &mut fastrand::Rng,
    ) -> Self {
        let journal = Arc::new(Journal::new(false));
        let world = World::start(setup, &journal, rng).await;
        let member = Arc::clone(world.service.kafka().expect("configured"));
        broker.join(seat, epoch, wall);
        Instance {
            seat,
            epoch,
            world,
            journal,
            member,
            held: BTreeSet::new(),
            next: BTreeMap::new(),
            asked: Vec::new(),
            acknowledged: Vec::new(),
            unsent: Vec::new(),
            began: BTreeMap::new(),
            stalled_until: 0,
            skew: rng.i64(-150..=150),
            later: None,
            rng: rng.fork(),
        }
    }

    fn member(&self) -> MutexGuard<'_, Member> {
        self.member.lock().expect("no panic")
    }

    pub fn service(&self) -> &Service {
        &self.world.service
    }

    pub fn backend(&self) -> &Arc<Backend> {
        &self.world.backend
    }

    /// Its state, for people.
    pub fn told(&self) -> String {
        let member = self.member();
        let admin = self.service().admin();
        let partitions = self.held.iter().map(|&id| (id, self.next[&id], member.pauses(id)));
        format!(
            "{}: partitions, offsets, pauses {:?}, waited {:?}, {:?}, memory {} of {}, queued {:?}",
            self.seat,
            partitions.collect::<Vec<_>>(),
            self.later,
            admin.sampler.buffered(),
            admin.sampler.memory_used(),
            admin.budget.limit(),
            admin.queue.held(),
        )
    }

    /// Whether nothing is undecided or undelivered here.
    pub fn is_at_rest(&self) -> bool {
        let admin = self.service().admin();
        admin.sampler.buffered().spans == 0 && admin.queue.held() == (0, 0)
    }

    /// Acts between two moments. Returns the commits that the broker has accepted.
    pub fn turn(&mut self, broker: &mut Broker, wall: u64, margin: u64) -> Vec<Committed> {
        if wall < self.stalled_until {
            return Vec::new();
        }
        let mut committed = Vec::new();
        if broker.is_up {
            match broker.heartbeat(self.seat, self.epoch, wall, &self.held) {
                Some(orders) => committed = self.obey(broker, orders, margin),
                None => self.rejoin(broker, wall),
            }
            self.fetch(broker, wall);
        }
        self.ask(broker, wall);
        let due = self.member().tick(self.own(wall));
        for (partition, commit) in due {
            if self.rng.u32(0..20) == 0 {
                let at = wall + self.rng.u64(0..3_000);
                self.unsent.push(Late { partition, commit, at });
            } else if let Some(taken) = self.commit(broker, (partition, commit)) {
                let at = wall + self.rng.u64(0..700);
                self.acknowledged.push(Late { partition, commit, at });
                committed.push(taken);
            }
        }
        committed.extend(self.be_late(broker, wall));
        committed
    }

    /// Sends commits that were held up, and hears of others.
    fn be_late(&mut self, broker: &mut Broker, wall: u64) -> Vec<Committed> {
        let own = self.own(wall);
        let heard: Vec<_> = self.acknowledged.extract_if(.., |late| late.at <= wall).collect();
        for Late { partition, commit, .. } in heard {
            self.member().note_committed(partition, commit.offset, own);
        }
        let sent: Vec<_> = self.unsent.extract_if(.., |late| late.at <= wall).collect();
        let taken = sent.iter().filter_map(|late| {
            let before =
                broker.commit_late(self.seat, self.epoch, (late.partition, late.commit))?;
            Some((late.partition, before.offset, late.commit.offset))
        });
        taken.collect()
    }

    /// SIGTERM with `leave_on_shutdown`: gives everything up and commits what is settled.
    pub fn leave(&mut self, broker: &mut Broker) -> Vec<Committed> {
        let left = self.member().revoke_all();
        self.held.clear();
        let taken = left.into_iter().filter_map(|at| self.commit(broker, at)).collect();
        broker.leave(self.seat);
        taken
    }

    fn own(&self, wall: u64) -> u64 {
        wall.saturating_add_signed(self.skew)
    }

    fn commit(&self, broker: &mut Broker, at: (i32, Commit)) -> Option<Committed> {
        let before = broker.commit(self.seat, self.epoch, at)?;
        Some((at.0, before.offset, at.1.offset))
    }

    fn obey(&mut self, broker: &mut Broker, orders: Orders, margin: u64) -> Vec<Committed> {
        let mut committed = Vec::new();
        for partition in orders.revoke {
            let left = self.member().revoke(partition);
            committed.extend(left.and_then(|commit| self.commit(broker, (partition, commit))));
            self.held.remove(&partition);
            self.asked.retain(|asked| asked.partition != partition);
            broker.release(self.seat, self.epoch, partition);
        }
        for partition in orders.assign {
            let start: Start = broker.start(partition, margin);
            assert!(self.member().assign(partition, start), "no window for {partition}");
            self.next.insert(partition, start.first);
            self.held.insert(partition);
            let began = self.began.entry(partition).or_insert(start.commit);
            *began = start.commit.min(*began);
        }
        committed
    }

    /// It was expelled: others may have its partitions already.
    fn rejoin(&mut self, broker: &mut Broker, wall: u64) {
        self.member().revoke_all();
        self.held.clear();
        self.asked.clear();
        broker.join(self.seat, self.epoch, wall);
    }

    fn fetch(&mut self, broker: &Broker, wall: u64) {
        let own = self.own(wall);
        let mut member = self.member.lock().expect("no panic");
        for &partition in &self.held {
            let next = self.next.get_mut(&partition).expect("assigned");
            for _ in 0..self.rng.usize(0..=FETCH) {
                if member.pauses(partition) {
                    break;
                }
                let Some(stored) = broker.record(partition, *next) else { break };
                let record = Record {
                    offset: *next,
                    time: Some(stored.time),
                    payload: stored.payload.as_deref(),
                };
                match member.take(partition, record, own) {
                    Taken::Later(why) => {
                        self.later = Some((partition, *next, why));
                        break;
                    }
                    taken => {
                        let is_in = taken == Taken::In;
                        let told = || format!("{partition}/{next}: {taken:?}");
                        self.journal.check(is_in == stored.is_sound, told);
                    }
                }
                *next += 1;
            }
        }
    }

    /// Asks where partitions end, and hears what was asked before, on a connection of its own.
    fn ask(&mut self, broker: &Broker, wall: u64) {
        let own = self.own(wall);
        let mut member = self.member.lock().expect("no panic");
        for asked in self.asked.extract_if(.., |asked| asked.answered_at <= wall) {
            member.confirm(asked.partition, asked.end, asked.at);
        }
        for &partition in &self.held {
            if broker.is_up && self.rng.u32(0..5) == 0 {
                let answered_at = wall + self.rng.u64(0..700);
                let end = broker.end(partition);
                self.asked.push(Asked { partition, end, at: own, answered_at });
            }
        }
    }
}
