//! Limits: kept spans are held to a rate, and the counts estimated from the stamps stay right.

use tailwater::{
    policy::{LimitSpec, PolicySpec, Rate, RuleKind, RuleSpec},
    sampler::{Decided, Which},
    trace::{StatusCode, Threshold},
    window::Millis,
};

use crate::{
    builders::{Fixture, child, limits, policy, request_of, root, status},
    harness::{Running, config, span, trace_id},
};

const TICK_MILLIS: u32 = 100;
const SPANS_PER_TRACE: u64 = 2;

fn spans_per_second(per_second: f64) -> LimitSpec {
    LimitSpec { spans: Some(Rate { per_second, burst: 2.0 * per_second }), bytes: None }
}

fn limited(name: &str, kind: RuleKind, percentage: f64, limit: LimitSpec) -> PolicySpec {
    let rule = RuleSpec { kind, sampling_percentage: percentage };
    PolicySpec { limit: Some(limit), ..policy(name, rule) }
}

/// The outcome of a run.
#[derive(Default)]
struct Outcome {
    traces: u64,
    kept_spans: u64,
    kept_bytes: u64,
    /// Horvitz-Thompson: the sum of 1 / p over kept traces; the variance is the sum of
    /// (1 - p) / p^2.
    estimate: f64,
    variance: f64,
    thresholds: Vec<Threshold>,
}

impl Outcome {
    fn add(&mut self, decided: &Decided) {
        for record in &decided.decisions.records {
            self.traces += 1;
            let verdict = record.decision.verdict;
            self.thresholds.push(verdict.threshold);
            if verdict.kept {
                let p = 1.0 - verdict.threshold.bits() as f64 / (1u64 << 56) as f64;
                self.kept_spans += u64::from(record.spans);
                self.kept_bytes += u64::from(record.bytes);
                self.estimate += 1.0 / p;
                self.variance += (1.0 - p) / (p * p);
            }
        }
    }

    #[track_caller]
    fn assert_unbiased(&self) {
        let error = (self.estimate - self.traces as f64).abs();
        let sigma = self.variance.sqrt();
        assert!(error <= 3.0 * sigma, "{} of {}, sigma {sigma}", self.estimate, self.traces);
    }
}

/// Sixty seconds with this many traces per tick, every fifth of them with an error, after the first
/// burst has been spent.
fn a_minute(policies: &[PolicySpec], shards: usize, traces_per_tick: u64) -> Outcome {
    let mut fixture = Fixture::new(policies, limits(), shards);
    let mut rng = fastrand::Rng::with_seed(7);
    let mut outcome = Outcome::default();
    for tick in 0..700 {
        let now = tick * TICK_MILLIS;
        let mut spans = Vec::new();
        for number in 0..traces_per_tick {
            let trace = rng.u64(..);
            let mut first = root(trace, 0);
            first.status = status(if number % 5 == 0 { 2 } else { 0 });
            spans.extend([first, child(trace, 1)]);
        }
        fixture.ingest(now, &request_of(spans));
        fixture.sampler.begin_tick(Millis(now), f64::from(TICK_MILLIS) / 1_000.0);
        for decided in fixture.decide(now, Which::Due) {
            if tick >= 100 {
                outcome.add(&decided);
            }
        }
        fixture.assert_ledger();
    }
    outcome
}

/// Scenario: 800 spans/s with a limit of 100, in 1, 2 and 8 shards.
/// Guarantees: the kept rate is within 2 % of the limit, over all shards together, and the stamps
/// give the correct count.
#[test]
fn a_limit_holds_over_all_shards() {
    let policies = [limited("all", RuleKind::AlwaysSample, 100.0, spans_per_second(100.0))];
    for shards in [1, 2, 8] {
        let outcome = a_minute(&policies, shards, 40);
        let rate = outcome.kept_spans as f64 / 60.0;
        assert!((98.0..=102.0).contains(&rate), "{rate} spans/s in {shards} shards");
        println!("{rate} spans/s in {shards} shards");
        outcome.assert_unbiased();
    }
}

/// Scenario: the limit is a rate of bytes, in 1, 2 and 8 shards.
/// Guarantees: bytes are counted, over all shards together.
#[test]
fn a_limit_of_bytes_holds() {
    let rate = Rate { per_second: 10_000.0, burst: 20_000.0 };
    let limit = LimitSpec { spans: None, bytes: Some(rate) };
    let policies = [limited("all", RuleKind::AlwaysSample, 100.0, limit)];
    for shards in [1, 2, 8] {
        let outcome = a_minute(&policies, shards, 40);
        let rate = outcome.kept_bytes as f64 / 60.0;
        assert!((9_800.0..=10_200.0).contains(&rate), "{rate} bytes/s in {shards} shards");
        println!("{rate} bytes/s in {shards} shards");
        outcome.assert_unbiased();
    }
}

/// Scenario: a limit above the traffic.
/// Guarantees: it changes nothing.
#[test]
fn a_limit_that_is_not_reached_changes_nothing() {
    let policies = [limited("half", RuleKind::AlwaysSample, 50.0, spans_per_second(10_000.0))];
    let outcome = a_minute(&policies, 2, 10);
    assert!(outcome.thresholds.iter().all(|&t| t == Threshold::from_percentage(50.0)));
    outcome.assert_unbiased();
}

/// Scenario: errors at 100 %, everything else at 50 % and limited.
/// Guarantees: traces that another policy keeps do not use up the limit; percentage and limit
/// together stay unbiased; the limited policy never keeps more than its percentage.
#[test]
fn traces_kept_in_any_case_are_free() {
    let errors = RuleKind::StatusCode { codes: vec![StatusCode::Error] };
    let policies = [
        policy("errors", RuleSpec { kind: errors, sampling_percentage: 100.0 }),
        limited("rest", RuleKind::AlwaysSample, 50.0, spans_per_second(100.0)),
    ];
    let outcome = a_minute(&policies, 2, 40);
    let errors = outcome.thresholds.iter().filter(|&&t| t == Threshold::ALWAYS).count() as u64;
    assert_eq!(errors, outcome.traces / 5);
    let rest = (outcome.kept_spans - errors * SPANS_PER_TRACE) as f64 / 60.0;
    assert!((98.0..=102.0).contains(&rest), "{rest} spans/s");
    outcome.assert_unbiased();
    let least = Threshold::from_percentage(50.0);
    assert!(outcome.thresholds.iter().all(|&t| t == Threshold::ALWAYS || t >= least));
}

/// Scenario: the policies are reloaded unchanged, with another limit, and as before, while a burst
/// is due that the bucket cannot hold twice.
/// Guarantees: an unchanged limit keeps its remaining tokens; a changed one begins full.
#[test]
fn a_limit_that_stays_survives_a_reload() {
    let all =
        |per_second| [limited("all", RuleKind::AlwaysSample, 100.0, spans_per_second(per_second))];
    let mut fixture = Fixture::new(&all(10.0), limits(), 2);
    let kept_of_a_burst = |fixture: &mut Fixture, now: u32| {
        let ids = u64::from(now)..u64::from(now) + 100;
        fixture.ingest(now, &request_of(ids.map(|trace| child(trace, 0)).collect()));
        let due = now + 30_000;
        fixture.sampler.begin_tick(Millis(due), 0.0);
        let decided = fixture.decide(due, Which::Due);
        let records = || decided.iter().flat_map(|decided| &decided.decisions.records);
        assert_eq!(records().count(), 100);
        records().filter(|record| record.decision.verdict.kept).count()
    };
    let reload = |fixture: &Fixture, per_second| {
        let plan = fixture.sampler.plan().successor(&all(per_second)).expect("few names");
        fixture.sampler.reload(&std::sync::Arc::new(plan), |_| {});
    };
    assert_eq!(kept_of_a_burst(&mut fixture, 0), 20);
    reload(&fixture, 10.0);
    assert_eq!(kept_of_a_burst(&mut fixture, 40_000), 0);
    reload(&fixture, 15.0);
    assert_eq!(kept_of_a_burst(&mut fixture, 80_000), 30);
    fixture.assert_ledger();
}

/// Scenario: a hundred traces of one span at once, with a limit whose burst is twenty.
/// Guarantees: the service keeps about the burst, the traces of the highest randomness, each
/// stamped with the applied threshold.
#[tokio::test]
async fn the_service_holds_a_limit() {
    const LIMITED: &str = "[[policy]]\nname = \"all\"\ntype = \"always_sample\"\n\
                           limit = { spans_per_second = 0.1, burst_capacity = 20 }\n";
    let running = Running::start(config(LIMITED)).await;
    let traces = (1..=100).map(|trace| span(trace << 48 | trace, 1, None)).collect();
    running.accept(traces).await;
    let metrics = running.at_rest().await;
    let kept = metrics.get("traces_kept_total{policy=\"all\"}");
    assert_eq!((kept, metrics.get("traces_dropped_total{policy=\"all\"}")), (20.0, 80.0));
    let highest: Vec<_> = (81..=100u64).map(|trace| trace_id(trace << 48 | trace)).collect();
    assert_eq!(running.traces().into_keys().collect::<Vec<_>>(), highest);
    // Just above the randomness of the eightieth.
    let stamp = format!("ot=th:{:014x}", 80u64 << 48 | 81);
    assert!(running.spans().iter().all(|span| span.trace_state == stamp), "{stamp}");
    running.stop().await;
}
