//! The member of the consumer group, with librdkafka: a thread that polls it, and one that asks
//! where the partitions end.
//!
//! librdkafka keeps the connections, fetches ahead and sends heartbeats on threads of its own; its
//! callbacks run inside `poll`. Polling never stops: while records wait for room, their partitions
//! are paused. Nothing here runs on the async runtime.
//!
//! A record that cannot be taken in now is kept here and offered again; its partition is paused
//! meanwhile, unless that takes only a moment.
//!
//! Errors are counted and logged, and librdkafka tries again for ever. After a fatal one, and when
//! certificates or the password change, the client is replaced by a new one. With
//! `group_instance_id`, it gets its partitions back.

mod context;
mod ends;
mod resets;
mod settings;
mod starts;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use rdkafka::{
    ClientConfig, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    error::{KafkaError as ClientError, KafkaResult},
    message::{BorrowedMessage, Message as _},
    types::RDKafkaErrorCode,
};
use tracing::{error, info, warn};

use self::{context::Context, ends::Ends};
use super::{Member, Record, Taken, Why};
use crate::{
    clock, config,
    credentials::{ClientSecrets, Live},
    metrics::Metrics,
    receiver::Intake,
    supervise::{Supervisor, Task},
    throttle::Throttle,
};

/// The longest wait for a record.
const POLL: Duration = Duration::from_millis(25);
/// The time between two ticks of the member.
const TICK_MILLIS: u64 = 50;
/// The time between two attempts to start the remaining partitions, and to skip removed offsets.
const REPAIR_MILLIS: u64 = 1_000;
/// The number of times that a record is offered before its partition is paused. A pause throws away
/// the records that were fetched ahead.
const PATIENCE: u32 = 30;
/// The pause between two offers. All of them together are longer than a tick of the decider.
const PATIENCE_PAUSE: Duration = Duration::from_millis(5);
/// The pause before a new client takes the place of one that failed.
const RESTART_PAUSE: Duration = Duration::from_secs(5);
/// At the end: the longest wait for decided spans to be delivered, so that their offsets can be
/// committed, and for the group to let go of the partitions.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the receiver cannot start.
#[derive(Debug, thiserror::Error)]
pub enum KafkaError {
    /// A setting is not accepted.
    #[error("[receiver.kafka] cannot be used: {0}")]
    Settings(String),
    /// A thread cannot be started.
    #[error("cannot start a thread of [receiver.kafka]: {0}")]
    Thread(#[from] std::io::Error),
}

/// A condition that both threads wait for.
#[derive(Debug, Default)]
struct Stop {
    is_set: AtomicBool,
    /// Held while it is set, so that a thread that begins to wait at this moment notices it.
    waiting: Mutex<()>,
    told: Condvar,
}

impl Stop {
    fn set(&self) {
        let _waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_set.store(true, Relaxed);
        self.told.notify_all();
    }

    fn is_set(&self) -> bool {
        self.is_set.load(Relaxed)
    }

    /// Waits at most this long. Returns whether it is set.
    fn wait(&self, most: Duration) -> bool {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let _waited = self.told.wait_timeout_while(waiting, most, |()| !self.is_set());
        self.is_set()
    }
}

/// The settings and secrets that clients are made from.
#[derive(Debug)]
struct Clients {
    kafka: config::Kafka,
    secrets: Option<Arc<Live<ClientSecrets>>>,
    memory_limit: usize,
}

impl Clients {
    /// The settings of a client that is not a member of the group.
    fn connection(&self) -> ClientConfig {
        let secrets = self.secrets.as_ref().map(|secrets| secrets.get());
        settings::connection(&self.kafka, secrets.as_ref().and_then(|it| it.password.as_ref()))
    }

    fn member(&self) -> ClientConfig {
        let secrets = self.secrets.as_ref().map(|secrets| secrets.get());
        let password = secrets.as_ref().and_then(|it| it.password.as_ref());
        settings::member(&self.kafka, password, self.memory_limit)
    }

    /// Changes when certificates or the password do.
    fn generation(&self) -> u64 {
        self.secrets.as_ref().map_or(0, |secrets| secrets.get().generation)
    }
}

/// The running receiver.
#[derive(Debug)]
pub(crate) struct Kafka {
    stop: Arc<Stop>,
    threads: [thread::JoinHandle<()>; 2],
}

impl Kafka {
    /// Starts the threads. The brokers need not be there.
    ///
    /// # Errors
    /// [`KafkaError`] if librdkafka does not accept the settings, or there is no thread.
    pub(crate) fn start(
        kafka: &config::Kafka,
        secrets: Option<Arc<Live<ClientSecrets>>>,
        member: &Arc<Mutex<Member>>,
        intake: &Arc<Intake>,
    ) -> Result<Self, KafkaError> {
        let memory_limit = intake.budget.limit();
        let clients = Arc::new(Clients { kafka: kafka.clone(), secrets, memory_limit });
        let (stop, ends) = (Arc::new(Stop::default()), Arc::new(Ends::default()));
        let receiver = Receiver {
            clients: Arc::clone(&clients),
            member: Arc::clone(member),
            ends: Arc::clone(&ends),
            stop: Arc::clone(&stop),
            metrics: Arc::clone(&intake.metrics),
            supervisor: Arc::clone(&intake.supervisor),
            passed_over: Throttle::default(),
        };
        // A mistake in the settings fails the start, instead of only being logged.
        let first = receiver.connect().map_err(|error| KafkaError::Settings(error.to_string()))?;
        let reserve = intake.budget.reserve(settings::fetched_bytes_max(memory_limit));
        let vital = intake.supervisor.vital(Task::Kafka);
        let run = move || {
            // Dropped when the thread ends: if it was not told to, the service ends as well.
            let _held = (vital, reserve);
            receiver.run(first);
        };
        let vital = intake.supervisor.vital(Task::Kafka);
        let asking = ends.spawn(&clients, Arc::clone(&stop), vital)?;
        let reading = thread::Builder::new().name("kafka".into()).spawn(run)?;
        Ok(Kafka { stop, threads: [reading, asking] })
    }

    /// Gives all partitions up, commits their last offsets where possible, and ends the threads.
    /// Blocks.
    pub(crate) fn stop(self) {
        self.stop.set();
        for thread in self.threads {
            // A panic was told by the panic hook.
            let _ = thread.join();
        }
    }
}

/// A record that could not be taken in yet, and the assignment of its partition.
struct Waiting<'c> {
    message: BorrowedMessage<'c>,
    generation: Option<u64>,
}

/// The reading thread.
struct Receiver {
    clients: Arc<Clients>,
    member: Arc<Mutex<Member>>,
    ends: Arc<Ends>,
    stop: Arc<Stop>,
    metrics: Arc<Metrics>,
    supervisor: Arc<Supervisor>,
    passed_over: Throttle,
}

impl Receiver {
    fn connect(&self) -> KafkaResult<BaseConsumer<Context>> {
        let context = Context::new(&self.member, &self.metrics, &self.clients);
        self.clients.member().create_with_context(context)
    }

    /// Runs one client after another until it is told to stop.
    fn run(&self, first: BaseConsumer<Context>) {
        let mut first = Some(first);
        while !self.stop.is_set() {
            let session = || {
                let consumer = first.take().map_or_else(|| self.connect(), Ok)?;
                consumer.subscribe(&[&self.clients.kafka.topic])?;
                self.read(&consumer)
            };
            match self.supervisor.contained_now(Task::Kafka, session) {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => {
                    self.metrics.kafka().failed();
                    error!(%error, "Kafka: the client has failed; a new one takes its place");
                }
                Err(_) if self.supervisor.keeps_panicking() => return,
                Err(_) => {}
            }
            self.lock_member().revoke_all();
            self.stop.wait(RESTART_PAUSE);
        }
    }

    fn lock_member(&self) -> MutexGuard<'_, Member> {
        self.member.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads until it is told to stop, or needs another client.
    fn read(&self, consumer: &BaseConsumer<Context>) -> KafkaResult<()> {
        let generation = self.clients.generation();
        let mut reading = Reading {
            receiver: self,
            consumer,
            waiting: BTreeMap::new(),
            paused: BTreeMap::new(),
            ticked_at: 0,
            repaired_at: 0,
            is_reset: false,
        };
        while !self.stop.is_set() {
            let polled = consumer.poll(POLL);
            let wall = clock::unix_millis();
            match polled {
                Some(Ok(message)) => reading.offer(message, wall),
                Some(Err(ClientError::MessageConsumptionFatal(code))) => {
                    return Err(ClientError::MessageConsumptionFatal(code));
                }
                Some(Err(ClientError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset))) => {
                    reading.is_reset = true;
                }
                Some(Err(ClientError::PartitionEOF(partition))) => {
                    self.lock_member().note_at_end(partition, true);
                }
                // The context has counted and logged it.
                Some(Err(_)) | None => {}
            }
            if wall.abs_diff(reading.ticked_at) < TICK_MILLIS {
                continue;
            }
            reading.tick(wall);
            if generation != self.clients.generation() {
                info!("Kafka: connecting again with the changed credentials");
                return Ok(());
            }
        }
        drop(reading);
        self.leave(consumer);
        Ok(())
    }

    /// Delivers and commits the decided traces, as far as that takes only a moment, and lets go.
    fn leave(&self, consumer: &BaseConsumer<Context>) {
        let context = consumer.context();
        let topic = &self.clients.kafka.topic;
        let mut all = TopicPartitionList::new();
        for (partition, _) in self.lock_member().partitions() {
            all.add_partition(topic, partition);
        }
        // Only heartbeats and commits go on.
        let _ = consumer.pause(&all);
        let until = clock::Clock::start();
        self.lock_member().hurry();
        while until.elapsed() < LEAVE_TIMEOUT && !self.lock_member().is_settled() {
            let _ = consumer.poll(POLL);
        }
        let commits = self.lock_member().revoke_all();
        if !commits.is_empty()
            && let Err(error) = consumer.commit(&context.commit_list(&commits), CommitMode::Sync)
        {
            context.note_commit_failed(&error);
        }
        if self.clients.kafka.leave_on_shutdown {
            // A static member that only closes its client keeps its partitions.
            consumer.unsubscribe();
            let until = clock::Clock::start();
            let has_left = || consumer.assignment().is_ok_and(|list| list.count() == 0);
            while until.elapsed() < LEAVE_TIMEOUT && !has_left() {
                let _ = consumer.poll(POLL);
            }
        }
    }
}

/// The state of reading with one client.
struct Reading<'c> {
    receiver: &'c Receiver,
    consumer: &'c BaseConsumer<Context>,
    /// Records that could not be taken in, by partition.
    waiting: BTreeMap<i32, Waiting<'c>>,
    /// The partitions that are paused, with the assignment in which they were.
    paused: BTreeMap<i32, u64>,
    ticked_at: u64,
    repaired_at: u64,
    /// Whether a fetch asked for offsets that are gone.
    is_reset: bool,
}

impl<'c> Reading<'c> {
    fn take(&self, message: &BorrowedMessage<'_>, wall: u64) -> Taken {
        let record = Record {
            offset: message.offset().try_into().unwrap_or(0),
            time: message.timestamp().to_millis().and_then(|time| time.try_into().ok()),
            payload: message.payload(),
        };
        let taken = self.receiver.lock_member().take(message.partition(), record, wall);
        if let Taken::PassedOver(refusal) = &taken
            && let Some(records) = self.receiver.passed_over.add(1)
        {
            let (partition, offset) = (message.partition(), record.offset);
            warn!(
                records,
                partition,
                offset,
                "Kafka: skipped undecodable records, this one last: {refusal}. Check what writes \
                 to the topic, and `encoding` in [receiver.kafka]"
            );
        }
        taken
    }

    /// Takes a record in. If that is not possible in a moment, its partition has to pause.
    fn offer(&mut self, message: BorrowedMessage<'c>, wall: u64) {
        for _ in 0..PATIENCE {
            match self.take(&message, wall) {
                Taken::In | Taken::PassedOver(_) => return,
                Taken::Later(Why::Memory) => break,
                Taken::Later(Why::Tick | Why::Backend) => {
                    if self.receiver.stop.wait(PATIENCE_PAUSE) {
                        return;
                    }
                }
            }
        }
        let partition = message.partition();
        let generation = self.receiver.lock_member().generation(partition);
        self.waiting.insert(partition, Waiting { message, generation });
        self.pause();
    }

    fn tick(&mut self, wall: u64) {
        self.ticked_at = wall;
        let receiver = self.receiver;
        let commits = {
            let mut member = receiver.lock_member();
            for (partition, end) in receiver.ends.take() {
                member.confirm(partition, end.offset, end.asked_at);
            }
            receiver.ends.want(member.partitions().map(|(partition, _)| partition));
            member.tick(wall)
        };
        self.consumer.context().commit(self.consumer, &commits);
        self.offer_waiting(wall);
        self.pause();
        if wall.abs_diff(self.repaired_at) >= REPAIR_MILLIS {
            self.repaired_at = wall;
            self.consumer.context().start_others(self.consumer);
            if self.is_reset {
                self.mend();
            }
        }
    }

    /// Reads on after offsets that the brokers have refused.
    fn mend(&mut self) {
        self.is_reset = false;
        if let Err(error) = resets::mend(self.consumer) {
            self.is_reset = true;
            self.receiver.metrics.kafka().failed();
            warn!(%error, "Kafka: cannot find out which records are gone; trying again");
        }
    }

    /// Offers the records that wait once more.
    fn offer_waiting(&mut self, wall: u64) {
        for (partition, waiting) in std::mem::take(&mut self.waiting) {
            let generation = self.receiver.lock_member().generation(partition);
            // If its partition has moved meanwhile, the record belongs to the new owner.
            let is_current = generation.is_some() && generation == waiting.generation;
            if is_current && matches!(self.take(&waiting.message, wall), Taken::Later(_)) {
                self.waiting.insert(partition, waiting);
            }
        }
    }

    /// Pauses and resumes partitions as they have to be. A partition that begins is not paused.
    fn pause(&mut self) {
        let (more, fewer, held) = {
            let mut member = self.receiver.lock_member();
            self.paused.keys().for_each(|id| member.note_at_end(*id, false));
            let all = member.partitions().filter_map(|(id, _)| Some((id, member.generation(id)?)));
            let pauses = |(id, _): &_| self.waiting.contains_key(id) || member.pauses(*id);
            let held: BTreeMap<_, _> = all.filter(pauses).collect();
            let is_current = |(id, of): &(&i32, &u64)| member.generation(**id) == Some(**of);
            let paused = self.paused.iter().filter(is_current);
            let fewer = self.list(paused.filter(|(id, _)| !held.contains_key(id)));
            let more = held.iter().filter(|(id, of)| self.paused.get(id) != Some(of));
            (self.list(more), fewer, held)
        };
        let paused = if more.count() > 0 { self.consumer.pause(&more) } else { Ok(()) };
        let resumed = if fewer.count() > 0 { self.consumer.resume(&fewer) } else { Ok(()) };
        if let Err(error) = paused.and(resumed) {
            warn!(%error, "Kafka: partitions cannot be paused or resumed");
        }
        self.paused = held;
    }

    fn list<'p>(&self, partitions: impl Iterator<Item = (&'p i32, &'p u64)>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for (partition, _) in partitions {
            list.add_partition(&self.receiver.clients.kafka.topic, *partition);
        }
        list
    }
}

/// Counts and logs records that were gone before they were read.
fn note_lost(metrics: &Metrics, partition: i32, records: u64) {
    metrics.kafka().lost(records);
    error!(
        partition,
        records,
        "Kafka: retention has removed records before they were read. Raise the retention of the \
         topic, or read faster: `kafka_lag_records` shows how far behind it is"
    );
}
