//! Partitions of a Kafka topic against a naive model: a log in memory, owners that come and go in
//! every way, and a backend that remembers everything it was ever sent.
//!
//! The model decides a trace once, by the whole log: it arrives with its first record, and what
//! arrives before it is due decides it. Whoever owns the partition meanwhile must make no
//! difference.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    trace::v1::{Span, Status},
};
use proptest::{prelude::*, test_runner::Config as ProptestConfig};
use prost::Message as _;

use super::{Commit, Member, Record, Settings, Start, Taken, Why};
use crate::{
    budget::Budget,
    clock::WindowClock,
    config::{KafkaEncoding, Overflow},
    decider::{Decider, Outbox, Parts, Settings as Deciding},
    exporter::Queue,
    metrics::Metrics,
    policy::{LimitSpec, Plan, PolicySpec, Rate, RuleKind, RuleSpec},
    receiver::{Intake, buffers, empty::EmptyRequests, turns::Turns},
    sampler::{Limits, Lookup, Sampler},
    testing::{request, spans_of},
    trace::{StatusCode, TraceId},
    window::{Hasher, Millis, Waits},
};

/// The waits of this file, in milliseconds.
const WAIT: u64 = 2_000;
const MARGIN: u64 = 5 * WAIT / 2;
/// Records carry a time of up to this much before they reach the log.
const JITTER: u64 = 400;
/// Wall time at the beginning.
const BEGIN: u64 = 1_700_000_000_000;
/// The partition under test.
const ID: i32 = 3;

/// A span as the model knows it: its trace and number.
type Known = (u64, u64);

struct InLog {
    time: u64,
    spans: Vec<(Known, bool)>,
    payload: Option<Vec<u8>>,
}

/// The log, and what is known about it by those who are not under test.
#[derive(Default)]
struct Log {
    records: Vec<InLog>,
    committed: Option<(u64, u64)>,
    delivered: BTreeSet<Known>,
}

/// An instance that owns the partition.
struct Owner {
    runtime: tokio::runtime::Runtime,
    intake: Arc<Intake>,
    decider: Decider,
    member: Member,
    start: Start,
    next: u64,
}

fn policies() -> Vec<PolicySpec> {
    let kind = RuleKind::StatusCode { codes: vec![StatusCode::Error] };
    let errors = RuleSpec { kind, sampling_percentage: 100.0 };
    let half = RuleSpec { kind: RuleKind::AlwaysSample, sampling_percentage: 50.0 };
    vec![PolicySpec::new("errors", errors), PolicySpec::new("half", half)]
}

fn limits() -> Limits {
    Limits {
        waits: Waits { decision_wait: WAIT as u32, after_root: None },
        max_trace_spans: u32::MAX,
        max_trace_bytes: u32::MAX,
        context_bytes_max: usize::MAX,
        kept_bytes_max: None,
        decision_ttl_millis: 120_000,
        decision_log_traces: 0,
    }
}

/// The id of the `n`th trace; its low 56 bits, the randomness, are spread evenly over the traces.
fn trace_id(n: u64) -> [u8; 16] {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&n.wrapping_add(1).to_be_bytes());
    id[8..].copy_from_slice(&(n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    id
}

fn child(trace: u64, span: u64, is_error: bool) -> Span {
    Span {
        trace_id: trace_id(trace).to_vec(),
        span_id: (span + 1).to_be_bytes().to_vec(),
        parent_span_id: vec![7; 8],
        status: Some(Status { code: if is_error { 2 } else { 0 }, message: String::new() }),
        ..Span::default()
    }
}

fn request_of(spans: Vec<Span>) -> Vec<u8> {
    request(Vec::new(), spans).encode_to_vec()
}

impl Owner {
    fn new(log: &Log, memory: usize) -> Self {
        Self::with_policies(log, memory, &policies())
    }

    fn with_policies(log: &Log, memory: usize, policies: &[PolicySpec]) -> Self {
        let budget = Budget::new(memory);
        let plan = Arc::new(Plan::compile(policies));
        let metrics = Arc::new(Metrics::new(plan.names()));
        let sampler = Sampler::with_hasher(plan, limits(), &budget, 1, Hasher::random());
        let sampler = Arc::new(sampler.with_partitions(2));
        let queue = Queue::new(budget.limit() / 4, &budget);
        let outbox = Outbox::new(&queue, &budget);
        let clock = Arc::new(WindowClock::start(Duration::from_secs(1)));
        let parts = Parts {
            sampler: Arc::clone(&sampler),
            outbox: Arc::clone(&outbox),
            queue: Arc::clone(&queue),
            metrics: Arc::clone(&metrics),
            budget: Arc::clone(&budget),
            clock: Arc::clone(&clock),
            supervisor: Arc::default(),
        };
        let deciding = Deciding {
            tick: Duration::from_millis(100),
            stamp_tracestate: true,
            stamp_policy: true,
            max_request_bytes: 1 << 10,
            overflow: Overflow::Block,
        };
        let intake = Arc::new(Intake {
            sampler,
            outbox,
            queue,
            overflow: Overflow::Block,
            budget: Arc::clone(&budget),
            buffers: buffers(1, &budget),
            turns: Turns::new(1),
            durability: None,
            keeper: None,
            metrics,
            empty: EmptyRequests::default(),
            clock,
            supervisor: Arc::default(),
            tokens: None,
            outsized: Default::default(),
            is_draining: AtomicBool::new(false),
        });
        let settings = Settings { encoding: KafkaEncoding::Protobuf, limit_bytes: 1 << 20 };
        let mut member = Member::new(&intake, settings);
        let start = start(log);
        assert!(member.assign(ID, start));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        Owner {
            runtime: runtime.expect("a runtime"),
            decider: Decider::new(parts, deciding, None),
            intake,
            member,
            start,
            next: start.first,
        }
    }

    /// Reads up to so many records, as far as they can be taken.
    fn read(&mut self, log: &Log, most: usize, wall: u64) {
        for _ in 0..most {
            let Some(record) = log.records.get(self.next as usize) else { return };
            let offered = Record {
                offset: self.next,
                time: Some(record.time),
                payload: record.payload.as_deref(),
            };
            match self.member.take(ID, offered, wall) {
                Taken::In => assert!(record.payload.is_some()),
                Taken::PassedOver(_) => assert!(record.spans.is_empty()),
                Taken::Later(Why::Backend) => return,
                Taken::Later(why) => panic!("{why:?}"),
            }
            self.next += 1;
        }
    }

    /// Encodes and queues the spans of decided traces.
    fn flush(&mut self) {
        self.runtime.block_on(self.decider.relieve());
    }

    /// Delivers up to so many requests.
    fn deliver(&mut self, log: &mut Log, most: usize) {
        for _ in 0..most {
            if self.intake.queue.is_empty() {
                return;
            }
            let mut popped = self.runtime.block_on(self.intake.queue.pop()).expect("not closed");
            let request = ExportTraceServiceRequest::decode(&*popped.body).expect("valid");
            for span in spans_of(&request) {
                let known = known(span);
                let offset = log.records.iter().position(|record| record.has(known));
                let offset = offset.expect("only what is in the log is sent") as u64;
                assert!(offset >= self.start.commit, "{known:?} lies below {:?}", self.start);
                log.delivered.insert(known);
            }
            let spans = popped.unsettled();
            self.intake.metrics.sent(spans);
            popped.settle(spans);
        }
    }

    /// Commits what may be committed. It may hear only later that the group has the commit.
    fn commit(&mut self, log: &mut Log, wall: u64, is_heard: bool) {
        for (id, commit) in self.member.tick(wall) {
            assert_eq!(id, ID);
            log.commit(commit);
            if is_heard {
                self.member.note_committed(ID, commit.offset, wall);
            }
        }
    }

    /// Loses the partition and gets it again, with everything else as it was.
    fn begin_again(&mut self, log: &mut Log) {
        if let Some(commit) = self.member.revoke(ID) {
            log.commit(commit);
        }
        self.start = start(log);
        self.next = self.start.first;
        assert!(self.member.assign(ID, self.start));
    }

    fn assert_ledger(&self) {
        let metrics = &self.intake.metrics;
        let buffered = self.intake.sampler.buffered().spans;
        let totals = metrics.totals();
        let left = totals.kept + totals.dropped + totals.handed_over;
        assert_eq!(totals.accepted, left + buffered, "{totals:?}");
        assert_eq!(totals.kept, totals.sent + totals.failed + self.intake.queue.held().1);
    }
}

impl InLog {
    fn has(&self, known: Known) -> bool {
        self.spans.iter().any(|(span, _)| *span == known)
    }
}

fn known(span: &Span) -> Known {
    let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().expect("8 bytes"));
    (number(&span.trace_id[..8]) - 1, number(&span.span_id) - 1)
}

/// Where a new owner begins, as the client of a real broker finds it.
fn start(log: &Log) -> Start {
    let Some((commit, time)) = log.committed else { return Start::default() };
    let from = time.saturating_sub(MARGIN);
    let first = log.records.iter().position(|record| record.time >= from);
    let first = first.map_or(commit, |first| first as u64).min(commit);
    Start { first, commit, to_commit: None }
}

impl Log {
    fn append(&mut self, time: u64, spans: Vec<(Known, bool)>) {
        let built = spans.iter().map(|&((trace, span), is_error)| child(trace, span, is_error));
        let payload = Some(request_of(built.collect()));
        self.records.push(InLog { time, spans, payload });
    }

    fn commit(&mut self, commit: Commit) {
        let before = self.committed.map_or(0, |(offset, _)| offset);
        assert!(commit.offset >= before, "{commit:?} goes back from {before}");
        self.committed = Some((commit.offset, commit.time));
        let decided = self.decided();
        for record in &self.records[..commit.offset as usize] {
            for (span, _) in &record.spans {
                let is_settled = !decided[&span.0] || self.delivered.contains(span);
                assert!(is_settled, "{span:?} is kept, and not delivered below {commit:?}");
            }
        }
    }

    /// Whether each trace is kept, by the whole log.
    fn decided(&self) -> BTreeMap<u64, bool> {
        let (mut now, mut due, mut errors) = (0, BTreeMap::new(), BTreeSet::new());
        for record in &self.records {
            now = now.max(record.time);
            for &((trace, _), is_error) in &record.spans {
                let due = *due.entry(trace).or_insert(now + WAIT);
                if is_error && now < due {
                    errors.insert(trace);
                }
            }
        }
        let half = |trace: u64| {
            let id = TraceId(trace_id(trace));
            id.randomness().0 >= 1 << 55
        };
        due.keys().map(|&trace| (trace, errors.contains(&trace) || half(trace))).collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A record with spans of these traces (how long ago they began), and whether they are errors.
    Append(Vec<(u8, bool)>),
    Null,
    Undecodable,
    Pass(u64),
    Read(usize),
    Confirm,
    Flush,
    Deliver(usize),
    Commit,
    /// A commit of which the owner does not hear.
    CommitUnheard,
    /// The owner loses the partition and gets it again, in one process.
    BeginAgain,
    /// The owner is told to give the partition up, and another begins.
    Revoke,
    /// The owner is gone at once.
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    let span = (0..4_u8, prop::bool::weighted(0.2));
    prop_oneof![
        12 => prop::collection::vec(span, 0..4).prop_map(Step::Append),
        1 => Just(Step::Null),
        1 => Just(Step::Undecodable),
        8 => (0..900_u64).prop_map(Step::Pass),
        8 => (0..12_usize).prop_map(Step::Read),
        4 => Just(Step::Confirm),
        4 => Just(Step::Flush),
        4 => (0..6_usize).prop_map(Step::Deliver),
        6 => Just(Step::Commit),
        2 => Just(Step::CommitUnheard),
        2 => Just(Step::BeginAgain),
        1 => Just(Step::Revoke),
        2 => Just(Step::Kill),
    ]
}

struct World {
    log: Log,
    owner: Owner,
    wall: u64,
    /// The traces that may still get spans, and when they began.
    young: Vec<(u64, u64)>,
    traces: u64,
    spans: u64,
    memory: usize,
}

impl World {
    fn new(memory: usize) -> Self {
        let log = Log::default();
        let owner = Owner::new(&log, memory);
        World { log, owner, wall: BEGIN, young: Vec::new(), traces: 0, spans: 0, memory }
    }

    fn step(&mut self, step: Step) {
        let World { log, owner, wall, .. } = self;
        match step {
            Step::Append(spans) => self.append(&spans),
            Step::Null => {
                let time = *wall;
                log.records.push(InLog { time, spans: Vec::new(), payload: None });
            }
            Step::Undecodable => {
                let (time, payload) = (*wall, Some(vec![0xff; 7]));
                log.records.push(InLog { time, spans: Vec::new(), payload });
            }
            Step::Pass(millis) => *wall += millis,
            Step::Read(most) => owner.read(log, most, *wall),
            Step::Confirm => owner.member.confirm(ID, log.records.len() as u64, *wall),
            Step::Flush => owner.flush(),
            Step::Deliver(most) => owner.deliver(log, most),
            Step::Commit => owner.commit(log, *wall, true),
            Step::CommitUnheard => owner.commit(log, *wall, false),
            Step::BeginAgain => owner.begin_again(log),
            Step::Revoke => {
                if let Some(commit) = owner.member.revoke(ID) {
                    log.commit(commit);
                }
                owner.assert_ledger();
                assert_eq!(owner.intake.sampler.buffered().spans, 0);
                // What was decided is still delivered, while the next owner reads.
                owner.flush();
                owner.deliver(log, usize::MAX);
                *owner = Owner::new(log, self.memory);
            }
            Step::Kill => *owner = Owner::new(log, self.memory),
        }
        self.owner.assert_ledger();
    }

    fn append(&mut self, spans: &[(u8, bool)]) {
        // No trace is longer than its wait and a fifth, so that the margin covers it.
        self.young.retain(|&(_, began)| self.wall < began + WAIT * 6 / 5 - JITTER);
        let mut chosen = Vec::new();
        for &(ago, is_error) in spans {
            let at = self
                .young
                .len()
                .checked_sub(usize::from(ago))
                .filter(|at| ago > 0 && *at < self.young.len());
            let trace = at.map(|at| self.young[at].0).unwrap_or_else(|| {
                self.traces += 1;
                self.young.push((self.traces, self.wall));
                self.traces
            });
            self.spans += 1;
            chosen.push(((trace, self.spans), is_error));
        }
        let jitter = self.spans.wrapping_mul(0x9e37_79b9) % JITTER;
        self.log.append(self.wall - jitter, chosen);
    }

    /// Nothing more happens, and everything has time to end.
    fn end(&mut self) {
        for _ in 0..60 {
            self.wall += 500;
            let World { log, owner, wall, .. } = self;
            owner.read(log, usize::MAX, *wall);
            owner.member.confirm(ID, log.records.len() as u64, *wall);
            owner.commit(log, *wall, true);
            owner.flush();
            owner.deliver(log, usize::MAX);
            owner.assert_ledger();
        }
        let World { log, owner, .. } = self;
        assert_eq!(owner.intake.sampler.buffered().spans, 0);
        let decided = log.decided();
        for record in &log.records {
            for (span, _) in &record.spans {
                assert_eq!(log.delivered.contains(span), decided[&span.0], "{span:?}");
            }
        }
        let committed = log.committed.map_or(0, |(offset, _)| offset);
        assert_eq!(committed, log.records.len() as u64, "everything is committed in the end");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Scenario: records of traces that are spread over the log, null and undecodable ones; reading
    /// with lag; confirmations of the end; a backend that takes its time; owners that give the
    /// partition up or are killed at any moment.
    /// Guarantees: each trace is decided as by one owner that lived through it all; every span of a
    /// kept trace is delivered, and none of a dropped one; nothing below the commit is delivered
    /// again; no commit passes what is undecided or undelivered, or goes back; the ledger of each
    /// owner holds at every step.
    #[test]
    fn owners_make_no_difference(steps in prop::collection::vec(step(), 1..220)) {
        let mut world = World::new(64 << 20);
        for step in steps {
            world.step(step);
        }
        world.end();
    }
}

/// Scenario: a trace begins below the commit and ends above it; its owner is killed after the
/// commit.
/// Guarantees: the next owner decides it by all its spans, and delivers only those above the
/// commit. A trace that lies below it as a whole is remembered, and neither delivered nor counted.
#[test]
fn traces_across_the_commit_are_seen_whole() {
    let mut world = World::new(64 << 20);
    let [whole, straddling] = [10, 20];
    world.log.append(BEGIN, vec![((whole, 1), true)]);
    world.log.append(BEGIN + 100, vec![((straddling, 1), false)]);
    world.log.append(BEGIN + 200, vec![((straddling, 2), true)]);
    world.wall += 3_000;
    world.owner.read(&world.log, 3, world.wall);
    world.owner.member.confirm(ID, 3, world.wall);
    // The late span is in the log, and not read by the first owner.
    world.log.append(BEGIN + 2_900, vec![((straddling, 3), false)]);
    for _ in 0..4 {
        world.wall += 1_000;
        world.step(Step::Commit);
        world.step(Step::Flush);
        world.step(Step::Deliver(usize::MAX));
    }
    assert_eq!(world.log.committed.map(|(offset, _)| offset), Some(3));
    world.step(Step::Kill);
    assert_eq!(world.owner.start, Start { first: 0, commit: 3, to_commit: None });
    world.end();
    let totals = world.owner.intake.metrics.totals();
    assert_eq!((totals.accepted, totals.kept, totals.sent), (1, 1, 1));
    let decided = world.owner.intake.sampler.look_up(Millis(0), TraceId(trace_id(whole)));
    assert!(matches!(decided, Lookup::Decided(decision, _) if decision.verdict.kept));
}

/// Scenario: a round of commits is under way while a partition begins anew, since it was created
/// again and its offsets mean other records.
/// Guarantees: the marks of before are not committed.
#[test]
fn the_marks_of_an_earlier_assignment_are_not_committed() {
    let mut world = World::new(64 << 20);
    for trace in 1..20 {
        world.log.append(BEGIN, vec![((trace, 1), true)]);
    }
    world.wall += 10_000;
    world.step(Step::Read(usize::MAX));
    world.step(Step::Confirm);
    world.step(Step::Commit);
    // The marks of this round wait for the backend.
    world.wall += 2_000;
    assert!(world.owner.member.tick(world.wall).is_empty());
    world.log.records.truncate(1);
    world.owner.begin_again(&mut world.log);
    world.owner.flush();
    world.owner.deliver_any();
    for _ in 0..5 {
        world.wall += 2_000;
        let due = world.owner.member.tick(world.wall);
        assert!(due.iter().all(|(_, commit)| commit.offset <= 1), "{due:?}");
    }
}

/// Scenario: a partition begins where the group has no commit yet, or one that means nothing any
/// more.
/// Guarantees: the start is committed before anything else, until the group has it, and also by
/// those who give the partition up before.
#[test]
fn a_start_without_a_commit_is_committed() {
    let mut world = World::new(64 << 20);
    let start = Start { first: 7, commit: 7, to_commit: Some(BEGIN) };
    let wanted = Commit { offset: 7, time: BEGIN };
    let member = &mut world.owner.member;
    assert!(member.assign(ID, start));
    assert_eq!(member.revoke(ID), Some(wanted));
    assert!(member.assign(ID, start));
    for wall in [BEGIN, BEGIN + 100, BEGIN + 2_000] {
        member.tick(wall);
    }
    assert_eq!(member.tick(BEGIN + 2_050), [(ID, wanted)]);
    member.note_committed(ID, 7, BEGIN + 2_060);
    for wall in [BEGIN + 4_000, BEGIN + 4_100] {
        assert_eq!(member.tick(wall), []);
    }
    assert_eq!(member.revoke(ID), None);
}

/// Scenario: a trace begins below the commit and ends above it. Its next owner would keep it by a
/// limit, as the owner before did or did not. A late span follows.
/// Guarantees: what the owner before has decided does not leave by a guess, in whole or in part.
/// The late span follows the guess.
#[test]
fn a_limit_does_not_keep_a_part_of_what_was_decided_before() {
    let kind = RuleKind::AlwaysSample;
    let mut policy = PolicySpec::new("limited", RuleSpec { kind, sampling_percentage: 100.0 });
    let rate = Rate { per_second: 1e6, burst: 1e6 };
    policy.limit = Some(LimitSpec { spans: Some(rate), bytes: None });
    let mut log = Log { committed: Some((1, BEGIN)), ..Log::default() };
    let straddling = 7;
    log.append(BEGIN, vec![((straddling, 1), false)]);
    log.append(BEGIN + 100, vec![((straddling, 2), false)]);
    log.append(BEGIN + WAIT + 100, vec![((8, 1), false)]);
    log.append(BEGIN + WAIT + 500, vec![((straddling, 3), false)]);
    let mut owner = Owner::with_policies(&log, 64 << 20, &[policy]);
    let wall = BEGIN + 10_000;
    owner.read(&log, 3, wall);
    owner.member.tick(wall);
    owner.intake.sampler.begin_tick(Millis(100), 0.1);
    owner.member.tick(wall + 50);
    let totals = owner.intake.metrics.totals();
    assert_eq!((totals.accepted, totals.kept, totals.dropped), (2, 0, 1), "{totals:?}");
    let decided = owner.intake.sampler.look_up(Millis(0), TraceId(trace_id(straddling)));
    assert!(matches!(decided, Lookup::Decided(decision, _) if decision.verdict.kept));
    owner.read(&log, 1, wall);
    owner.assert_ledger();
    let totals = owner.intake.metrics.totals();
    assert_eq!((totals.accepted, totals.kept, totals.dropped), (3, 1, 1), "{totals:?}");
    owner.flush();
    owner.deliver(&mut log, usize::MAX);
    assert_eq!(log.delivered, BTreeSet::from([(straddling, 3)]));
}

/// Scenario: the owner catches up with hours of records in a moment.
/// Guarantees: traces wait by the time of their records, and what is decided is what living through
/// it would have decided.
#[test]
fn catching_up_decides_as_living_through_it() {
    let mut world = World::new(64 << 20);
    for trace in 1..2_000 {
        let time = BEGIN + trace * 3_000;
        world.log.append(time, vec![((trace, 1), false)]);
        // An error that comes in time for every other trace.
        let later = if trace % 2 == 0 { WAIT - 1 } else { WAIT };
        world.log.append(time + later, vec![((trace, 2), true)]);
    }
    world.wall += 10_000_000;
    while world.owner.next < world.log.records.len() as u64 {
        world.owner.read(&world.log, usize::MAX, world.wall);
        world.owner.flush();
        world.owner.deliver(&mut world.log, usize::MAX);
    }
    assert!(world.owner.intake.sampler.buffered().traces <= 1);
    world.end();
}

/// Scenario: two partitions, one of them behind, and memory above the soft limit.
/// Guarantees: the one that is ahead pauses, the other goes on; traces are decided early only when
/// the one that runs brings memory near the limit.
#[test]
fn the_partition_that_is_behind_runs_while_memory_is_short() {
    let mut world = World::new(4 << 20);
    let owner = &mut world.owner;
    assert!(owner.member.assign(4, Start::default()));
    assert!(!owner.member.assign(5, Start::default()), "there are windows for two");
    let record = |offset: u64, time: u64| {
        let mut spans = vec![child(offset, 1, false)];
        spans[0].name = "n".repeat(20_000);
        (offset, time, request_of(spans))
    };
    let offer = |member: &mut Member, id, (offset, time, payload): (u64, u64, Vec<u8>)| {
        let record = Record { offset, time: Some(time), payload: Some(&payload) };
        member.take(id, record, BEGIN * 2)
    };
    let member = &mut owner.member;
    assert_eq!(offer(member, ID, record(0, BEGIN + 1_000)), Taken::In);
    let mut offset = 0;
    while !member.pauses(ID) {
        assert_eq!(offer(member, 4, record(offset, BEGIN)), Taken::In);
        member.tick(BEGIN);
        offset += 1;
        assert!(offset < 1_000);
    }
    assert!(!member.pauses(4));
    let early = |owner: &Owner| {
        let text = owner.intake.metrics.render(&Default::default());
        let series = "tailwater_decisions_total{trigger=\"memory\"} ";
        let line = text.lines().find_map(|line| line.strip_prefix(series)).expect("the series");
        line.parse::<u64>().expect("a number")
    };
    assert_eq!(early(owner), 0);
    for _ in 0..400 {
        let member = &mut owner.member;
        if offer(member, 4, record(offset, BEGIN)) == Taken::In {
            offset += 1;
        }
        member.tick(BEGIN);
        owner.runtime.block_on(owner.decider.relieve());
        owner.deliver_any();
        assert!(!owner.member.pauses(4));
    }
    assert!(early(owner) > 0);
    assert!(owner.intake.budget.used() < owner.intake.budget.limit());
    owner.assert_ledger();
    assert!(offset > 300, "it goes on: {offset}");
}

/// Scenario: a trace is due before a record, and there is no room on the way to the backend.
/// Guarantees: the record waits, so that it does not change the decision.
#[test]
fn a_record_waits_for_what_is_due_before_it() {
    let mut world = World::new(4 << 20);
    world.log.append(BEGIN, vec![((1, 1), true)]);
    world.log.append(BEGIN + WAIT + 10, vec![((1, 2), false)]);
    world.wall += 10_000;
    world.owner.read(&world.log, 1, world.wall);
    let queue = Arc::clone(&world.owner.intake.queue);
    let place = queue.place(queue.capacity_bytes()).expect("an empty queue");
    world.owner.read(&world.log, 1, world.wall);
    assert_eq!(world.owner.next, 1);
    drop(place);
    world.owner.read(&world.log, 1, world.wall);
    assert_eq!((world.owner.next, world.owner.intake.sampler.buffered().spans), (2, 0));
}

/// Scenario: the client fetches a record again that was taken in.
/// Guarantees: it is taken in once.
#[test]
fn a_record_is_taken_in_once() {
    let mut world = World::new(4 << 20);
    world.log.append(BEGIN, vec![((1, 1), false)]);
    for _ in 0..2 {
        world.owner.next = 0;
        world.owner.read(&world.log, 1, BEGIN);
    }
    assert_eq!(world.owner.intake.metrics.totals().accepted, 1);
}

/// Scenario: a record reaches the partition a little after its time, which the wall clock has
/// passed.
/// Guarantees: its trace waits from the time of the record on, as it does for any other owner.
#[test]
fn a_trace_arrives_at_the_time_of_its_record() {
    let mut world = World::new(4 << 20);
    let member = &mut world.owner.member;
    member.confirm(ID, 0, BEGIN + 5_000);
    world.log.append(BEGIN + 4_200, vec![((1, 1), true)]);
    world.owner.read(&world.log, 1, BEGIN + 5_000);
    for (asked_at, traces) in [(BEGIN + 4_600 + WAIT, 1), (BEGIN + 4_750 + WAIT, 0)] {
        world.owner.member.confirm(ID, 1, asked_at);
        world.owner.member.tick(asked_at);
        assert_eq!(world.owner.intake.sampler.buffered().traces, traces);
    }
}

/// Scenario: memory is short, and the partition with the lower number is behind.
/// Guarantees: it runs, and the other one pauses.
#[test]
fn the_partition_that_runs_is_the_one_behind() {
    let mut world = World::new(4 << 20);
    let member = &mut world.owner.member;
    assert!(member.assign(ID + 1, Start::default()));
    let mut spans = vec![child(1, 1, false)];
    spans[0].name = "n".repeat(20_000);
    let payload = request_of(spans);
    for offset in 0..200 {
        for (id, time) in [(ID, BEGIN), (ID + 1, BEGIN + 500)] {
            member.confirm(id, 1_000, 0);
            let record = Record { offset, time: Some(time), payload: Some(&payload) };
            member.take(id, record, BEGIN * 2);
        }
        member.tick(BEGIN);
        if member.pauses(ID + 1) {
            return assert!(!member.pauses(ID));
        }
        assert!(!member.pauses(ID));
    }
    panic!("memory is not short");
}

/// Scenario: an instance ends while a round of commits is under way, and more was decided since.
/// Guarantees: what was decided since is committed as well, once it is delivered.
#[test]
fn the_last_round_has_the_marks_of_the_end() {
    let mut world = World::new(4 << 20);
    for (trace, time) in [(1, BEGIN), (2, BEGIN + 5_000)] {
        world.log.append(time, vec![((trace, 1), true)]);
        world.wall += 5_000;
        world.step(Step::Read(1));
        world.step(Step::Confirm);
        assert!(world.owner.member.tick(world.wall).is_empty(), "nothing is delivered yet");
    }
    world.owner.member.hurry();
    assert!(!world.owner.member.is_settled());
    world.step(Step::Flush);
    world.step(Step::Deliver(usize::MAX));
    assert!(world.owner.member.is_settled());
    let last = Commit { offset: 2, time: BEGIN + 5_000 };
    assert_eq!(world.owner.member.revoke_all(), [(ID, last)]);
}

impl Owner {
    /// Delivers everything, whatever it is.
    fn deliver_any(&mut self) {
        while !self.intake.queue.is_empty() {
            let mut popped = self.runtime.block_on(self.intake.queue.pop()).expect("not closed");
            let spans = popped.unsettled();
            self.intake.metrics.sent(spans);
            popped.settle(spans);
        }
    }
}
