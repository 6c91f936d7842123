//! Instances that share a topic, come, go, stall and are killed, while its broker and the backends
//! have outages.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use prost::Message as _;
use tailwater::config::{Kafka, KafkaEncoding, Overflow};
use tokio::time::{Instant, sleep};

use crate::{
    consumers::{Committed, Instance},
    harness::{self, Metrics},
    in_virtual_time,
    journal::Journal,
    setup::{self, Setup},
    topic::{Broker, Stored},
};

/// A seed takes as long as two of `seeds`.
const SEEDS: u64 = 100;
const TURN: Duration = Duration::from_millis(50);
const EPOCH_MILLIS: u64 = 1_700_000_000_000;
/// After the last fault, everything is delivered and committed within this time.
const SETTLED_WITHIN: Duration = Duration::from_secs(180);
/// The most that a producer's clock and its batches put between a record and its timestamp.
const JITTER_MILLIS: u64 = 300;

/// A span to produce.
#[derive(Clone, Copy, Debug)]
struct Planned {
    trace: usize,
    at_millis: u64,
    is_error: bool,
}

/// A trace, and the outcome that a single instance with all its spans has.
#[derive(Clone, Copy, Debug)]
struct Trace {
    id: u64,
    partition: usize,
    is_kept: bool,
    spans: u32,
}

/// A run.
struct Fleet {
    setup: Setup,
    journal: Arc<Journal>,
    rng: fastrand::Rng,
    broker: Broker,
    instances: Vec<Instance>,
    /// The backends of processes that are gone. They keep their spans.
    gone: Vec<(Arc<Journal>, BTreeMap<i32, u64>)>,
    began: Instant,
    epochs: u64,
    traces: Vec<Trace>,
    /// By trace, the number of spans that have been produced.
    produced: Vec<u32>,
    /// Partition and offset of each span.
    places: BTreeMap<u64, (i32, u64)>,
    margin_millis: u64,
    filler: usize,
}

const POLICIES: &str = r#"
[[policy]]
name = "0-errors"
type = "status_code"
status_codes = ["ERROR"]

[[policy]]
name = "0-baseline"
type = "probabilistic"
sampling_percentage = 25
"#;

/// The configuration of a service; the brokers are simulated.
fn kafka() -> Kafka {
    Kafka {
        brokers: Vec::new(),
        topic: "otlp_spans".into(),
        group_id: "tailwater".into(),
        group_instance_id: None,
        encoding: KafkaEncoding::Protobuf,
        starts_at_end: false,
        replay_margin: Duration::ZERO,
        session_timeout: Duration::from_secs(10),
        leave_on_shutdown: false,
        tls: None,
        sasl: None,
    }
}

fn span_id(trace: usize, index: u32) -> u64 {
    (trace as u64 + 1) << 16 | u64::from(index)
}

impl Fleet {
    fn new(seed: u64, is_printed: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        fastrand::seed(rng.u64(..));
        let mut setup = Setup::quiet(setup::configure(POLICIES));
        let is_tight = rng.u32(0..3) == 0;
        let wait = Duration::from_millis(rng.u64(1_500..6_000));
        let sampling = &mut setup.config.sampling;
        sampling.decision_wait = wait;
        sampling.decision_wait_after_root_received = None;
        sampling.memory_limit_bytes = if is_tight { 4 << 20 } else { 64 << 20 };
        sampling.decision_cache_ttl = Duration::from_secs(3_600);
        let exporter = &mut setup.config.exporter;
        exporter.max_request_bytes = rng.usize(2..32) << 10;
        exporter.queue.queue_bytes_max = rng.usize(16..256) << 10;
        exporter.queue.overflow = Overflow::Block;
        exporter.retry.max_elapsed_time = None;
        exporter.retry.max_interval = Duration::from_secs(5);
        // The brokers, the margin and the session are those of `topic`.
        setup.config.kafka = Some(kafka());
        let partitions = rng.usize(1..=6);
        Fleet {
            setup,
            journal: Arc::new(Journal::new(is_printed)),
            broker: Broker::new(partitions, rng.u64(2_000..8_000)),
            instances: Vec::new(),
            gone: Vec::new(),
            began: Instant::now(),
            epochs: 0,
            traces: Vec::new(),
            produced: Vec::new(),
            places: BTreeMap::new(),
            margin_millis: wait.as_millis() as u64 * 5 / 2,
            filler: if is_tight { 12_000 } else { 200 },
            rng,
        }
    }

    fn wall(&self) -> u64 {
        EPOCH_MILLIS + self.began.elapsed().as_millis() as u64
    }

    async fn start(&mut self, seat: usize) {
        self.epochs += 1;
        let (epoch, wall) = (self.epochs, self.wall());
        self.journal.note(format_args!("start {seat} {epoch}"));
        let name = (seat, epoch);
        let started =
            Instance::start(&self.setup, name, &mut self.broker, wall, &mut self.rng).await;
        self.instances.push(started);
    }

    /// A plan of spans in order of time. Errors come while their trace waits, or, where memory is
    /// short, with the first span.
    fn plan(&mut self, horizon: Duration) -> Vec<Planned> {
        let wait = self.setup.config.sampling.decision_wait.as_millis() as u64;
        let mut planned = Vec::new();
        for trace in 0..self.rng.usize(100..300) {
            let (id, begins) = (self.rng.u64(1..), self.rng.u64(0..horizon.as_millis() as u64));
            let spans = self.rng.u32(1..=6);
            let failing = (self.rng.u32(0..4) == 0).then(|| self.rng.u32(0..spans));
            let mut is_kept = id & ((1 << 56) - 1) >= 3 << 54;
            for index in 0..spans {
                let is_late = index > 0 && failing != Some(index) && self.rng.u32(0..8) == 0;
                let delay = match index {
                    0 => 0,
                    _ if is_late => self.rng.u64(0..self.margin_millis - 1_000),
                    _ => self.rng.u64(0..wait.saturating_sub(2 * JITTER_MILLIS + 200)),
                };
                let is_error = failing == Some(if self.filler > 1_000 { 0 } else { index });
                is_kept |= is_error;
                planned.push(Planned { trace, at_millis: begins + delay, is_error });
            }
            let partition = self.rng.usize(0..self.broker.partitions.len());
            self.traces.push(Trace { id, partition, is_kept, spans });
            self.produced.push(0);
        }
        planned.sort_by_key(|span| span.at_millis);
        planned
    }

    /// Appends the due spans, several spans of a trace in one record or in several.
    fn produce(&mut self, planned: &mut Vec<Planned>, elapsed_millis: u64) {
        let due = planned.partition_point(|span| span.at_millis <= elapsed_millis);
        for span in planned.drain(..due) {
            let index = self.produced[span.trace];
            self.produced[span.trace] += 1;
            let Trace { id, partition, .. } = self.traces[span.trace];
            let own = span_id(span.trace, index);
            let mut built = harness::span(id, own, (index > 0).then_some(7));
            built.attributes =
                vec![harness::string("filler", "x".repeat(self.rng.usize(0..=self.filler)))];
            if span.is_error {
                built.status = harness::error();
            }
            let request = harness::request("shop", vec![built]);
            let time = EPOCH_MILLIS + span.at_millis - self.rng.u64(0..JITTER_MILLIS);
            if self.rng.u32(0..60) == 0 {
                let payload = self.rng.bool().then(|| b"\x0a\xffgarbage".to_vec());
                let bad = Stored { time, payload, is_sound: false, spans: Vec::new() };
                self.broker.partitions[partition].push(bad);
            }
            let offset = self.broker.partitions[partition].len() as u64;
            self.places.insert(own, (partition as i32, offset));
            let payload = Some(request.encode_to_vec());
            let stored = Stored { time, payload, is_sound: true, spans: vec![own] };
            self.broker.partitions[partition].push(stored);
        }
    }

    /// One turn of everything.
    async fn turn(&mut self) {
        sleep(TURN).await;
        let wall = self.wall();
        if self.broker.is_up {
            self.broker.expel(wall);
        } else {
            self.broker.forgive(wall);
        }
        let mut committed = Vec::new();
        for instance in &mut self.instances {
            committed.extend(instance.turn(&mut self.broker, wall, self.margin_millis));
        }
        self.check_commits(&committed);
    }

    /// Every span below a commit that the policies keep is delivered.
    fn check_commits(&self, committed: &[Committed]) {
        for &(partition, before, offset) in committed {
            self.journal.note(format_args!("commit {partition}: {before} to {offset}"));
            self.journal.check(offset >= before, || {
                format!("the commit of {partition} goes back from {before} to {offset}")
            });
            let records = before..offset;
            let spans = records.filter_map(|at| self.broker.record(partition, at));
            for &span in spans.flat_map(|record| &record.spans) {
                let trace = self.traces[(span >> 16) as usize - 1];
                self.journal.check(!trace.is_kept || self.is_stored(span), || {
                    format!("{span:x} is committed in {partition} and not delivered")
                });
            }
        }
    }

    fn journals(&self) -> impl Iterator<Item = (&Arc<Journal>, &BTreeMap<i32, u64>)> {
        let running = self.instances.iter().map(|one| (&one.journal, &one.began));
        running.chain(self.gone.iter().map(|(journal, began)| (journal, began)))
    }

    fn is_stored(&self, span: u64) -> bool {
        self.journals().any(|(journal, _)| journal.has_stored(span))
    }

    /// The end of a process, however it comes: nothing of it leaves any more.
    fn kill(&mut self, place: usize) -> usize {
        let killed = self.instances.swap_remove(place);
        self.journal.note(format_args!("kill {} {}", killed.seat, killed.epoch));
        killed.backend().crash();
        self.gone.push((Arc::clone(&killed.journal), killed.began.clone()));
        killed.seat
    }

    async fn stop(&mut self, place: usize) {
        let mut leaving = self.instances.swap_remove(place);
        self.journal.note(format_args!("stop {} {}", leaving.seat, leaving.epoch));
        leaving.backend().restart();
        let committed = leaving.leave(&mut self.broker);
        self.gone.push((Arc::clone(&leaving.journal), leaving.began.clone()));
        self.check_commits(&committed);
        let admin = Arc::clone(leaving.service().admin());
        leaving.world.service.shutdown().await;
        Metrics::parse(&admin.scrape()).assert_ledger();
    }

    fn anyone(&mut self) -> Option<usize> {
        (!self.instances.is_empty()).then(|| self.rng.usize(0..self.instances.len()))
    }

    /// A fault, or a change of the fleet. Returns how long until it is put right, if it has to be.
    async fn happen(&mut self, repairs: &mut BTreeMap<u64, Repair>) {
        let wall = self.wall();
        let soon = |rng: &mut fastrand::Rng, most: u64| wall + rng.u64(50..most);
        match self.rng.u32(0..8) {
            0 | 1 => {
                if let Some(place) = self.anyone() {
                    let seat = self.kill(place);
                    repairs.insert(soon(&mut self.rng, 15_000), Repair::Start(seat));
                }
            }
            2 if self.instances.len() < 4 => {
                let seat = 10 + self.epochs as usize;
                self.start(seat).await;
            }
            3 if self.instances.len() > 1 => {
                let place = self.anyone().expect("several");
                self.stop(place).await;
            }
            4 => {
                if let Some(place) = self.anyone() {
                    let until = soon(&mut self.rng, 15_000);
                    self.journal.note(format_args!("stall {}", self.instances[place].seat));
                    self.instances[place].stalled_until = until;
                }
            }
            5 => {
                self.journal.note(format_args!("broker down"));
                self.broker.is_up = false;
                repairs.insert(soon(&mut self.rng, 20_000), Repair::Broker);
            }
            6 => {
                if let Some(place) = self.anyone() {
                    self.journal.note(format_args!("backend down {}", self.instances[place].seat));
                    self.instances[place].backend().crash();
                    repairs.insert(soon(&mut self.rng, 15_000), Repair::Backends);
                }
            }
            _ if self.broker.partitions.len() < 10 => self.broker.add_partitions(1),
            _ => {}
        }
    }

    async fn repair(&mut self, repair: Repair) {
        match repair {
            Repair::Start(seat) => self.start(seat).await,
            Repair::Broker => self.broker.is_up = true,
            Repair::Backends => self.instances.iter().for_each(|one| one.backend().restart()),
        }
    }

    fn is_settled(&self) -> bool {
        let ends = self.broker.partitions.iter().map(|records| records.len() as u64);
        ends.zip(&self.broker.committed).all(|(end, commit)| commit.offset == end)
            && self.instances.iter().all(Instance::is_at_rest)
    }

    fn check_the_end(&self) {
        let mut times: BTreeMap<u64, u32> = BTreeMap::new();
        for (journal, began) in self.journals() {
            for violation in journal.violations() {
                self.journal.check(false, || violation);
            }
            for (span, count) in journal.stored() {
                *times.entry(span).or_default() += count;
                let (partition, offset) = self.places[&span];
                self.journal.check(began.get(&partition).is_some_and(|it| offset >= *it), || {
                    format!("{span:x} is delivered from below the commit")
                });
            }
        }
        for (number, trace) in self.traces.iter().enumerate() {
            let stored = (0..trace.spans).filter(|&at| times.contains_key(&span_id(number, at)));
            let stored = stored.count() as u32;
            let wanted = if trace.is_kept { trace.spans } else { 0 };
            self.journal.check(stored == wanted, || {
                format!("trace {number} in {}: {stored} of {wanted} spans", trace.partition)
            });
        }
        let again: u32 = times.values().map(|count| count - 1).sum();
        self.journal.note(format_args!("{} spans stored, {again} again", times.len()));
    }
}

/// The repair of a fault.
#[derive(Clone, Copy, Debug)]
enum Repair {
    Start(usize),
    Broker,
    Backends,
}

async fn run(seed: u64, is_printed: bool) -> u64 {
    let mut fleet = Fleet::new(seed, is_printed);
    let horizon = Duration::from_secs(fleet.rng.u64(10..40));
    let mut planned = fleet.plan(horizon);
    for seat in 0..fleet.rng.usize(1..=3) {
        fleet.start(seat).await;
    }
    let mut repairs = BTreeMap::new();
    let pause = fleet.rng.u32(10..100);
    while !planned.is_empty() {
        let elapsed = fleet.began.elapsed().as_millis() as u64;
        fleet.produce(&mut planned, elapsed);
        if elapsed < horizon.as_millis() as u64 && fleet.rng.u32(0..pause) == 0 {
            fleet.happen(&mut repairs).await;
        }
        while let Some(entry) = repairs.first_entry().filter(|it| *it.key() <= fleet.wall()) {
            fleet.repair(entry.remove()).await;
        }
        fleet.turn().await;
    }
    fleet.journal.note(format_args!("calm"));
    for repair in repairs.into_values().chain([Repair::Broker, Repair::Backends]) {
        fleet.repair(repair).await;
    }
    if fleet.instances.is_empty() {
        fleet.start(0).await;
    }
    let calm = Instant::now();
    while !fleet.is_settled() && calm.elapsed() < SETTLED_WITHIN {
        fleet.turn().await;
    }
    let is_settled = fleet.is_settled();
    fleet.journal.check(is_settled, || {
        let instances: Vec<_> = fleet.instances.iter().map(Instance::told).collect();
        format!("not settled: {:?}, {instances:#?}", fleet.broker.committed)
    });
    for instance in &fleet.instances {
        Metrics::parse(&instance.service().admin().scrape()).assert_ledger();
    }
    fleet.check_the_end();
    // The end of the others is that of their runtime.
    fleet.stop(0).await;
    let violations = fleet.journal.violations();
    assert!(violations.is_empty(), "{violations:#?}");
    fleet.journal.hash()
}

/// Scenario: instances read a topic; they join, leave, are killed and come back, stall for longer
/// than their session; commits are held up and arrive after their partition has moved, and
/// instances hear of them late; partitions are added; the broker and the backends have outages;
/// memory is short in some runs; producers' clocks are a little off. The mixture differs for each
/// seed.
/// Guarantees: no trace is split: of each, the backends have all spans or none, as one instance
/// with all of them would decide; no span of a kept trace is lost; everything below a commit is
/// delivered, commits never go back, and nothing is delivered from below the commit with which
/// an instance has begun; once the faults stop, everything is committed; the ledgers hold.
#[test]
fn seeds_of_fleets() {
    let run = |seed, is_printed| in_virtual_time(run(seed, is_printed));
    crate::run_seeds("seeds_of_fleets", SEEDS, run);
}
