//! Limits at every rate: the kept spans meet the rate, and the counts estimated from the stamps
//! match the traffic, with fewer than one trace per tick as well as with thousands.
//!
//! Traffic is seeded. The estimate of a run is Horvitz-Thompson's, the sum of 1 / p over the kept
//! traces; its variance is estimated by the sum of (1 - p) / p^2, and the bound is 3 sigma.

use std::sync::Arc;

use tailwater::{
    policy::{
        Begins, Evidence, LimitSpec, Plan, PolicySpec, Rate, RuleKind, RuleSpec, Tick, Verdict,
    },
    sampler::{Decided, Progress, Which},
    trace::{Facts, Randomness, TraceId, Trigger},
    window::{Millis, Waits},
};

use crate::builders::{Fixture, child, limits, policy, request_of, root, trace_id};

const TICK_MILLIS: u32 = 100;
const TICK_SECONDS: f64 = 0.1;

/// The traffic of a run.
#[derive(Clone, Copy, Debug)]
struct Traffic {
    traces_per_second: f64,
    /// The possible numbers of spans of a trace, each equally likely.
    sizes: &'static [u64],
    /// All traces of a second arrive in one tick of it.
    in_bursts: bool,
}

/// The outcome of a run.
#[derive(Debug, Default)]
struct Outcome {
    traces: u64,
    spans: u64,
    kept_spans: u64,
    /// The estimated numbers of traces and of spans.
    estimates: [f64; 2],
    variances: [f64; 2],
}

impl Outcome {
    fn add(&mut self, verdict: Verdict, spans: u32) {
        self.traces += 1;
        self.spans += u64::from(spans);
        if verdict.kept {
            self.kept_spans += u64::from(spans);
            let p = 1.0 - verdict.threshold.bits() as f64 / (1u64 << 56) as f64;
            for (index, weight) in [1.0, f64::from(spans)].into_iter().enumerate() {
                self.estimates[index] += weight / p;
                self.variances[index] += weight * weight * (1.0 - p) / (p * p);
            }
        }
    }

    /// The error of each estimate in sigma; 0 if everything was kept.
    fn errors(&self) -> [f64; 2] {
        let truths = [self.traces as f64, self.spans as f64];
        std::array::from_fn(|index| {
            let error = self.estimates[index] - truths[index];
            if error == 0.0 { 0.0 } else { error / self.variances[index].sqrt() }
        })
    }

    #[track_caller]
    fn assert_unbiased(&self) {
        let errors = self.errors();
        assert!(errors.iter().all(|error| error.abs() <= 3.0), "{errors:?} sigma: {self:?}");
    }
}

fn limit(per_second: f64, burst: f64) -> LimitSpec {
    LimitSpec { spans: Some(Rate { per_second, burst }), bytes: None }
}

fn limited(limit: LimitSpec) -> PolicySpec {
    let rule = RuleSpec { kind: RuleKind::AlwaysSample, sampling_percentage: 100.0 };
    PolicySpec { limit: Some(limit), ..policy("all", rule) }
}

impl Traffic {
    /// The traces of a tick, each with its spans.
    fn arriving(self, tick: u32, rng: &mut fastrand::Rng) -> impl Iterator<Item = (u64, u64)> {
        let per_tick = if !self.in_bursts {
            self.traces_per_second * TICK_SECONDS
        } else if tick.is_multiple_of(10) {
            self.traces_per_second
        } else {
            0.0
        };
        let traces = per_tick as u64 + u64::from(rng.f64() < per_tick.fract());
        (0..traces).map(move |_| (rng.u64(..), self.sizes[rng.usize(..self.sizes.len())]))
    }
}

struct Trace {
    facts: Facts,
    randomness: Randomness,
}

impl From<(u64, u64)> for Trace {
    fn from((trace, spans): (u64, u64)) -> Self {
        let facts = Facts { spans: spans as u32, bytes: 100 * spans as u32, ..Facts::default() };
        Trace { facts, randomness: TraceId(trace_id(trace)).randomness() }
    }
}

impl Trace {
    fn evidence(&self) -> Evidence<'_> {
        Evidence {
            trace_id: TraceId([1; 16]),
            facts: &self.facts,
            bits: &[],
            randomness: self.randomness,
            forced: false,
        }
    }
}

/// Runs this many seconds of traffic without a window: every trace is decided in the tick in which
/// it arrives.
fn run(limit: LimitSpec, traffic: Traffic, seconds: u32, seed: u64, outcome: &mut Outcome) {
    let plan = Arc::new(Plan::compile(&[limited(limit)]));
    // Small seeds would give similar streams.
    let mut rng = fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    for tick in 0..seconds * 10 {
        let traces: Vec<_> = traffic.arriving(tick, &mut rng).map(Trace::from).collect();
        let mut candidates = Tick::new(Begins::All, TICK_SECONDS);
        candidates.join(&plan);
        traces.iter().for_each(|trace| candidates.add(&plan, &trace.evidence(), 0));
        candidates.begin();
        for trace in &traces {
            let verdict = plan.decide(&trace.evidence(), &mut Vec::new());
            if verdict.kept {
                plan.charge(&trace.evidence());
            }
            outcome.add(verdict, trace.facts.spans);
        }
    }
}

/// Scenario: limits of 1, 2, 5, 20 and 500 spans per second, for 40 traces per second (400 for the
/// last limit) of one span, of two, and of 1 to 30, evenly or in bursts once a second; a quarter of
/// an hour of each, in nine runs.
/// Guarantees: the kept spans meet the rate, except for the burst and the debt of a few traces; the
/// counts of traces and of spans estimated from the thresholds match the traffic.
#[test]
fn every_rate_is_met_and_unbiased() {
    const SECONDS: u32 = 100;
    const RUNS: u64 = 9;
    for per_second in [1.0, 2.0, 5.0, 20.0, 500.0] {
        for sizes in [&[1u64][..], &[2], &[1, 2, 5, 30]] {
            for in_bursts in [false, true] {
                let traces_per_second = if per_second < 100.0 { 40.0 } else { 400.0 };
                let traffic = Traffic { traces_per_second, sizes, in_bursts };
                let burst = 2.0 * per_second;
                let mut outcome = Outcome::default();
                for seed in 1..=RUNS {
                    run(limit(per_second, burst), traffic, SECONDS, seed, &mut outcome);
                }
                println!("{per_second}/s of {traffic:?}: {:?} sigma", outcome.errors());
                outcome.assert_unbiased();
                let rate = outcome.kept_spans as f64 / f64::from(SECONDS) / RUNS as f64;
                let offered = outcome.spans as f64 / f64::from(SECONDS) / RUNS as f64;
                let largest = sizes.iter().copied().max().unwrap_or(0) as f64;
                let slack = (burst + 6.0 * largest) / f64::from(SECONDS);
                let expected = per_second.min(offered);
                let met = expected - slack..=expected + slack;
                assert!(met.contains(&rate), "{rate} of {per_second} spans/s: {traffic:?}");
            }
        }
    }
}

/// Scenario: a limit of 500 spans per second for 2,000, in traces of one span and of twenty, with
/// bursts from less than a tick's rate to two seconds of it.
/// Guarantees: the rate is met with any burst, and the counts are unbiased.
#[test]
fn a_small_burst_keeps_the_rate() {
    for burst in [1.0, 10.0, 40.0, 60.0, 1_000.0] {
        for sizes in [&[1u64][..], &[20]] {
            let traces_per_second = 2_000.0 / sizes[0] as f64;
            let traffic = Traffic { traces_per_second, sizes, in_bursts: false };
            let mut outcome = Outcome::default();
            run(limit(500.0, burst), traffic, 120, 1, &mut outcome);
            let rate = outcome.kept_spans as f64 / 120.0;
            assert!((497.0..=512.0).contains(&rate), "{rate} spans/s with a burst of {burst}");
            outcome.assert_unbiased();
        }
    }
}

/// A sampler whose traces are due in the tick after they arrive.
fn fixture(limit: LimitSpec) -> Fixture {
    let waits = Waits { decision_wait: TICK_MILLIS, after_root: None };
    let limits = tailwater::sampler::Limits { waits, ..limits() };
    Fixture::new(&[limited(limit)], limits, 4)
}

/// Runs traffic through a sampler. After each tick has begun, decides `which`, shard by shard, with
/// this much room.
fn run_fixture(
    fixture: &mut Fixture,
    traffic: Traffic,
    which: Which,
    room: usize,
    seed: u64,
) -> Outcome {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut outcome = Outcome::default();
    for tick in 0..600 {
        let now = tick * TICK_MILLIS;
        let spans = traffic
            .arriving(tick, &mut rng)
            .flat_map(|(trace, spans)| (0..spans).map(move |id| child(trace, id)));
        let spans: Vec<_> = spans.collect();
        if !spans.is_empty() {
            fixture.ingest(now, &request_of(spans));
        }
        fixture.sampler.begin_tick(Millis(now), TICK_SECONDS);
        for shard in 0..4 {
            loop {
                let mut decided = Decided::default();
                let progress =
                    fixture.sampler.decide(shard, Millis(now), which, room, &mut decided);
                fixture.book(&decided);
                for record in &decided.decisions.records {
                    outcome.add(record.decision.verdict, record.spans);
                }
                if progress != Progress::More {
                    break;
                }
            }
        }
        fixture.assert_ledger();
    }
    outcome
}

/// Scenario: a limit of 300 spans per second for 800, in bursts of a second; in each tick a shard
/// has room for 300 to 1,000 bytes, so that kept traces wait for room while ticks pass.
/// Guarantees: the counts are unbiased: a waiting trace is not judged again by the threshold of
/// another tick.
#[test]
fn a_trace_that_waits_for_room_is_judged_once() {
    for room in [300, 600, 1_000] {
        for seed in 1..=2 {
            let traffic = Traffic { traces_per_second: 400.0, sizes: &[1, 2, 3], in_bursts: true };
            let mut fixture = fixture(limit(300.0, 600.0));
            let outcome = run_fixture(&mut fixture, traffic, Which::Due, room, seed);
            println!("room for {room} bytes: {:?} sigma", outcome.errors());
            outcome.assert_unbiased();
        }
    }
}

/// Scenario: memory is short all the time, so that all traces are decided early: 50 spans per
/// second of 400.
/// Guarantees: the limit also applies to them, and their counts are unbiased.
#[test]
fn a_limit_holds_what_is_decided_early() {
    let traffic = Traffic { traces_per_second: 200.0, sizes: &[1, 3], in_bursts: false };
    let mut fixture = fixture(limit(50.0, 100.0));
    let outcome = run_fixture(&mut fixture, traffic, Which::Oldest(Trigger::Memory), usize::MAX, 1);
    let rate = outcome.kept_spans as f64 / 60.0;
    assert!((48.0..=56.0).contains(&rate), "{rate} spans/s");
    outcome.assert_unbiased();
}

/// Scenario: traces for which both the wait and the wait after the root are over.
/// Guarantees: each is one candidate, so that a bucket with room for all of them keeps all of them.
#[test]
fn a_trace_that_is_due_twice_is_one_candidate() {
    let mut fixture = Fixture::new(&[limited(limit(0.1, 20.0))], limits(), 4);
    fixture.ingest(0, &request_of((0..20).map(|trace| root(trace, 0)).collect()));
    fixture.sampler.begin_tick(Millis(60_000), 0.0);
    fixture.decide(60_000, Which::Due);
    assert_eq!((fixture.kept, fixture.dropped), (20, 0));
}

/// Scenario: a reload brings another limit while traces of the last tick wait for room.
/// Guarantees: they wait for a threshold of the new limit, which applies to them.
#[test]
fn a_new_limit_holds_what_waits_for_room() {
    let mut fixture = fixture(limit(1_000.0, 1_000.0));
    fixture.ingest(0, &request_of((0..100).map(|trace| child(trace, 0)).collect()));
    fixture.sampler.begin_tick(Millis(100), TICK_SECONDS);
    let plan = fixture.sampler.plan().successor(&[limited(limit(10.0, 20.0))]).expect("few names");
    fixture.sampler.reload(&Arc::new(plan), |_| {});
    fixture.decide(100, Which::Due);
    assert_eq!((fixture.kept, fixture.dropped), (0, 0), "the new limit has no threshold yet");
    fixture.sampler.begin_tick(Millis(200), TICK_SECONDS);
    fixture.decide(200, Which::Due);
    assert_eq!((fixture.kept, fixture.dropped), (20, 80));
}
