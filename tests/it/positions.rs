//! Positions and watermarks against a naive model that knows where every span is.
//!
//! The model ingests requests as several threads would: it begins, ingests and ends them in
//! different orders, with decisions in between. Kept spans are delivered late or never.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use opentelemetry_proto::tonic::trace::v1::Span;
use proptest::prelude::*;
use prost::Message as _;
use tailwater::{
    budget::Budget,
    policy::{Plan, PolicySpec},
    sampler::{
        Decided, Limits, Lookup, Mark, Origin, Passed, Positions, Progress, Sampler, Scratch,
        Underway, Which,
    },
    trace::{TraceId, Trigger},
    window::{Millis, Waits},
};

use crate::builders::{ANY_ROOM, cases, child, limits, probabilistic, request_of, root};

#[derive(Clone, Debug)]
enum Step {
    /// Begins a request with spans of these traces, and whether each is a root.
    Begin(Vec<(u64, bool)>),
    Take(usize),
    PassOn(usize),
    Tick(u32),
    Memory,
    Reload,
    Deliver,
    Mark,
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    let span = (0..12_u64, any::<bool>());
    prop_oneof![
        6 => prop::collection::vec(span, 0..6).prop_map(Step::Begin),
        6 => any::<usize>().prop_map(Step::Take),
        6 => any::<usize>().prop_map(Step::PassOn),
        4 => (0..700_u32).prop_map(Step::Tick),
        1 => Just(Step::Memory),
        1 => Just(Step::Reload),
        2 => Just(Step::Deliver),
        3 => Just(Step::Mark),
        4 => Just(Step::Release),
    ]
}

/// Short waits, small traces, and decisions that are forgotten during a run.
fn short_limits() -> Limits {
    Limits {
        waits: Waits { decision_wait: 1_000, after_root: Some(200) },
        max_trace_spans: 5,
        decision_ttl_millis: 3_000,
        ..limits()
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Undecided,
    /// Kept, and not delivered; with the note of its decision.
    Kept(Note),
    /// Kept, and delivered; with the note of its decision.
    Delivered(Note),
    Dropped,
}

/// `taken_below` and `position` of the decision by which a span was exported.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Note {
    below: u64,
    own: Option<u64>,
}

struct Begun {
    underway: Underway,
    spans: Vec<Span>,
}

/// The decisions that an earlier process has written.
#[derive(Default)]
struct Written {
    decisions: Vec<(TraceId, tailwater::decisions::Decision, Note)>,
    late: Vec<(TraceId, u64)>,
}

impl Written {
    fn add(&mut self, decided: &Decided) {
        let note = note(decided);
        let records = decided.decisions.records.iter();
        self.decisions.extend(records.map(|record| (record.trace_id, record.decision, note)));
        let late = decided.late_kept.iter().map(|(trace, _)| (*trace, note.own.expect("late")));
        self.late.extend(late);
    }

    fn append(&mut self, other: Written) {
        self.decisions.extend(other.decisions);
        self.late.extend(other.late);
    }
}

fn note(decided: &Decided) -> Note {
    Note { below: decided.taken_below.unwrap_or(0), own: decided.position }
}

struct Model {
    sampler: Sampler,
    positions: Arc<Positions>,
    plan: Vec<PolicySpec>,
    now: u32,
    scratch: Scratch,
    begun: Vec<Begun>,
    in_hand: Vec<(Underway, Decided)>,
    /// The ids of kept spans that were passed on, and their decisions.
    outbox: Vec<[u8; 8]>,
    pending: Written,
    written: Written,
    /// Every request that was begun, by position: the content of the log.
    log: BTreeMap<u64, Vec<Span>>,
    stages: HashMap<[u8; 8], (u64, TraceId, Stage)>,
    mark: Option<Mark>,
    watermark: u64,
    spans: u64,
}

fn id(span: &Span) -> [u8; 8] {
    span.span_id[..].try_into().expect("eight bytes")
}

fn sampler(plan: &[PolicySpec], positions: &Arc<Positions>) -> Sampler {
    let plan = Arc::new(Plan::compile(plan));
    Sampler::new(plan, short_limits(), &Budget::new(1 << 30), 2).with_positions(positions)
}

impl Model {
    fn new() -> Self {
        let (positions, plan) = (Positions::starting_at(0), vec![probabilistic(50.0)]);
        Model {
            sampler: sampler(&plan, &positions),
            positions,
            plan,
            now: 0,
            scratch: Scratch::default(),
            begun: Vec::new(),
            in_hand: Vec::new(),
            outbox: Vec::new(),
            pending: Written::default(),
            written: Written::default(),
            log: BTreeMap::new(),
            stages: HashMap::new(),
            mark: None,
            watermark: 0,
            spans: 0,
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Begin(traces) => self.begin(traces),
            Step::Take(which) if !self.begun.is_empty() => {
                let begun = self.begun.remove(which % self.begun.len());
                self.take(begun);
            }
            Step::PassOn(which) if !self.in_hand.is_empty() => {
                let (underway, decided) = self.in_hand.remove(which % self.in_hand.len());
                self.pass_on(&decided);
                drop(underway);
            }
            Step::Take(_) | Step::PassOn(_) => {}
            Step::Tick(advance) => {
                self.now += advance;
                self.decide(Which::Due);
            }
            Step::Memory => self.decide(Which::Oldest(Trigger::Memory)),
            Step::Reload => {
                let plan = Arc::new(self.sampler.plan().successor(&self.plan).expect("few names"));
                self.sampler.reload(&plan, |_| {});
            }
            Step::Deliver => self.deliver(),
            Step::Mark => {
                self.mark.get_or_insert_with(|| self.sampler.mark(&self.positions));
            }
            Step::Release => self.release(),
        }
    }

    fn begin(&mut self, traces: &[(u64, bool)]) {
        let spans = traces.iter().map(|&(trace, is_root)| {
            self.spans += 1;
            if is_root { root(trace, self.spans) } else { child(trace, self.spans) }
        });
        let spans: Vec<_> = spans.collect();
        let start = self.positions.next();
        let reserved = self.positions.begin(|| Ok::<_, Infallible>(start..start + 10));
        let underway = reserved.expect("reserved");
        self.log.insert(start, spans.clone());
        self.begun.push(Begun { underway, spans });
    }

    fn take(&mut self, Begun { underway, spans }: Begun) {
        let position = underway.position();
        for span in &spans {
            let trace = TraceId(span.trace_id[..].try_into().expect("sixteen bytes"));
            self.stages.insert(id(span), (position, trace, Stage::Undecided));
        }
        let request = request_of(spans);
        let mut decided = Decided::default();
        let prepared = self.sampler.prepare(&request, &mut self.scratch).expect("sound");
        let origin = Origin { position: Some(position), passed: None };
        let now = Millis(self.now);
        let taking = (prepared, origin);
        self.sampler.take_in(now, &request, taking, &mut self.scratch, &mut decided);
        self.note(&decided);
        self.in_hand.push((underway, decided));
    }

    /// Records the outcome of the spans.
    fn note(&mut self, decided: &Decided) {
        let note = note(decided);
        for span in &decided.spans {
            let span = Span::decode(&span.bytes[..]).expect("a span");
            self.stages.get_mut(&id(&span)).expect("taken").2 = Stage::Kept(note);
        }
        for (_, trace, stage) in self.stages.values_mut() {
            let now = Millis(self.now);
            let is_gone = !matches!(self.sampler.look_up(now, *trace), Lookup::Pending(_));
            if *stage == Stage::Undecided && is_gone {
                *stage = Stage::Dropped;
            }
        }
    }

    fn pass_on(&mut self, decided: &Decided) {
        let spans = decided.spans.iter().map(|span| Span::decode(&span.bytes[..]));
        self.outbox.extend(spans.map(|span| id(&span.expect("a span"))));
        self.pending.add(decided);
    }

    fn decide(&mut self, which: Which) {
        for shard in 0..self.sampler.shards() {
            loop {
                let mut decided = Decided::default();
                let now = Millis(self.now);
                let progress = self.sampler.decide(shard, now, which, ANY_ROOM, &mut decided);
                self.note(&decided);
                self.pass_on(&decided);
                if progress == Progress::Done {
                    break;
                }
            }
        }
    }

    /// Delivers in the order of a tick: kept spans, then decisions.
    fn deliver(&mut self) {
        for span in self.outbox.drain(..) {
            let stage = &mut self.stages.get_mut(&span).expect("taken").2;
            let Stage::Kept(note) = *stage else { panic!("delivered twice: {stage:?}") };
            *stage = Stage::Delivered(note);
        }
        self.written.append(std::mem::take(&mut self.pending));
    }

    fn release(&mut self) {
        let Some(mark) = self.mark.filter(|mark| self.positions.least() >= mark.fence()) else {
            return;
        };
        self.mark = None;
        self.deliver();
        assert!(mark.watermark() >= self.watermark, "a watermark never goes back");
        self.watermark = mark.watermark();
        let waiting = self.begun.iter().map(|begun| begun.underway.position()).min();
        assert!(waiting.is_none_or(|position| position >= self.watermark));
        for (position, trace, stage) in self.stages.values() {
            let is_done = matches!(stage, Stage::Delivered(_) | Stage::Dropped);
            assert!(is_done || *position >= self.watermark, "{trace} at {position}: {stage:?}");
        }
    }

    /// Simulates a kill of the process. The next one reads the log from the watermark on.
    fn kill_and_replay(mut self) {
        let positions = Positions::starting_at(self.watermark);
        let next = sampler(&self.plan, &positions);
        let mut passed = Passed::default();
        for (trace, decision, note) in &self.written.decisions {
            next.remember(*trace, decision);
            passed.decided(*trace, note.below, note.own);
        }
        for (trace, at) in &self.written.late {
            passed.followed(*trace, *at);
        }
        let mut again: HashMap<[u8; 8], u32> = HashMap::new();
        let mut came_back = |decided: &Decided| {
            for span in &decided.spans {
                *again.entry(id(&Span::decode(&span.bytes[..]).expect("a span"))).or_default() += 1;
            }
        };
        for (&position, spans) in self.log.range(self.watermark..) {
            let underway = positions.begin(|| Ok::<_, Infallible>(position..position + 10));
            let request = request_of(spans.clone());
            let mut decided = Decided::default();
            let prepared = next.prepare(&request, &mut self.scratch).expect("sound");
            let origin = Origin { position: Some(position), passed: Some(&passed) };
            let (now, taking) = (Millis(0), (prepared, origin));
            next.take_in(now, &request, taking, &mut self.scratch, &mut decided);
            came_back(&decided);
            drop(underway);
        }
        for shard in 0..next.shards() {
            let mut progress = Progress::More;
            while progress != Progress::Done {
                let which = Which::Oldest(Trigger::Shutdown);
                let mut decided = Decided::default();
                progress = next.decide(shard, Millis(0), which, ANY_ROOM, &mut decided);
                came_back(&decided);
            }
        }
        assert!(again.values().all(|&times| times == 1), "the replay itself repeats nothing");
        for (span, (position, trace, stage)) in &self.stages {
            let is_kept = trace.randomness().0 >= 1 << 55;
            match stage {
                Stage::Delivered(note) if again.contains_key(span) => assert!(
                    *position >= note.below && Some(*position) != note.own,
                    "{trace} at {position} was sent twice, although {note:?} covers it"
                ),
                Stage::Delivered(_) => assert!(is_kept),
                Stage::Dropped => assert!(!is_kept && !again.contains_key(span)),
                Stage::Undecided | Stage::Kept(_) => {
                    assert_eq!(
                        again.contains_key(span),
                        is_kept,
                        "{trace} at {position}: {stage:?}"
                    );
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(400))]

    /// Scenario: requests that are begun, ingested and ended in any order, decisions by time,
    /// memory and limits, reloads, late spans, deliveries, marks; then the process is killed.
    /// Guarantees: a watermark never passes a span that is undecided or undelivered; a replay from
    /// the watermark brings back every kept span that was not delivered; of the delivered spans, it
    /// only brings back those whose requests were being ingested when they were decided.
    #[test]
    fn a_watermark_passes_nothing_undecided_or_undelivered(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut model = Model::new();
        for step in &steps {
            model.step(step);
        }
        model.kill_and_replay();
    }
}

/// Scenario: three threads ingest requests and decide full traces, a fourth decides and sets marks.
/// Guarantees: when a mark is used, all spans below it have left the window and were passed on.
#[test]
fn a_watermark_holds_among_threads() {
    let positions = Positions::starting_at(0);
    let sampler = &sampler(&[probabilistic(100.0)], &positions);
    let ended = &AtomicBool::new(false);
    // The positions of ingested spans, by trace and span, and the spans passed on.
    let taken = &Mutex::new(HashMap::new());
    let left = &Mutex::new(HashMap::<[u8; 8], ()>::new());
    let pass_on = |decided: &Decided| {
        let mut left = left.lock().expect("no panic");
        for span in &decided.spans {
            left.insert(id(&Span::decode(&span.bytes[..]).expect("a span")), ());
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..3_u64 {
            let positions = Arc::clone(&positions);
            scope.spawn(move || {
                let mut scratch = Scratch::default();
                for number in 0..1_500_u64 {
                    let at = (thread << 32) + number * 4;
                    let spans: Vec<_> =
                        (0..4).map(|n| child((number / 3 + n) % 40, at + n)).collect();
                    let request = request_of(spans.clone());
                    let prepared = sampler.prepare(&request, &mut scratch).expect("sound");
                    let underway = positions.begin(|| {
                        let next = taken.lock().expect("no panic").len() as u64;
                        let mut taken = taken.lock().expect("no panic");
                        taken.extend(spans.iter().map(|span| (id(span), next)));
                        Ok::<_, Infallible>(next..next + 4)
                    });
                    let underway = underway.expect("reserved");
                    let origin = Origin { position: Some(underway.position()), passed: None };
                    let mut decided = Decided::default();
                    let taking = (prepared, origin);
                    sampler.take_in(Millis(0), &request, taking, &mut scratch, &mut decided);
                    pass_on(&decided);
                }
                if thread == 0 {
                    ended.store(true, Relaxed);
                }
            });
        }
        let mut marks = 0;
        while !ended.load(Relaxed) || marks == 0 {
            let mark = sampler.mark(&positions);
            while positions.least() < mark.fence() {
                std::thread::yield_now();
            }
            let left = left.lock().expect("no panic");
            let taken = taken.lock().expect("no panic");
            for (span, position) in taken.iter().filter(|(_, at)| **at < mark.watermark()) {
                assert!(left.contains_key(span), "{position} is below {mark:?}");
            }
            drop((left, taken));
            marks += 1;
            for shard in 0..sampler.shards() {
                let mut decided = Decided::default();
                let which = Which::Oldest(Trigger::Memory);
                sampler.decide(shard, Millis(0), which, ANY_ROOM, &mut decided);
                pass_on(&decided);
            }
        }
    });
}

/// Scenario: a trace of an old request stays; another shard, and then this trace, are decided.
/// Guarantees: the watermark is the position of the oldest undecided trace, then the end.
#[test]
fn the_oldest_undecided_trace_holds_the_watermark() {
    let mut model = Model::new();
    for traces in [&[(0, false)][..], &[(1, true), (2, true)], &[(3, true)]] {
        model.begin(traces);
        let begun = model.begun.pop().expect("begun");
        model.take(begun);
        model.step(&Step::PassOn(0));
    }
    assert_eq!(model.sampler.mark(&model.positions).watermark(), 0);
    model.step(&Step::Tick(200));
    assert_eq!(model.sampler.mark(&model.positions).watermark(), 0);
    model.step(&Step::Tick(800));
    let mark = model.sampler.mark(&model.positions);
    assert_eq!((mark.watermark(), mark.fence()), (30, 30));
}
