//! Counts computed from stamps match the traffic before any sampling, and instances that see parts
//! of a trace agree on it.

use std::{collections::HashSet, sync::Arc};

use tailwater::{
    otlp::tracestate::{self, Stamp},
    policy::{Begins, Evidence, LimitSpec, Plan, PolicySpec, Rate, RuleKind, RuleSpec, Tick},
    sampler::Which,
    trace::{Facts, Randomness, StatusCode, Threshold, TraceId},
};

use crate::builders::{Fixture, child, limits, policy, probabilistic, request_of, root};

const TRACES: u64 = 1_000_000;
const TRACES_PER_TICK: u64 = 10_000;

fn rule(kind: RuleKind, sampling_percentage: f64) -> RuleSpec {
    RuleSpec { kind, sampling_percentage }
}

fn errors() -> RuleKind {
    RuleKind::StatusCode { codes: vec![StatusCode::Error] }
}

fn slow() -> RuleKind {
    RuleKind::Latency { threshold_ms: 500, upper_threshold_ms: None }
}

/// The estimate from the stamps of one class of traces.
#[derive(Clone, Copy, Default)]
struct Estimate {
    truth: f64,
    /// Horvitz-Thompson: the sum of 1 / p over kept traces; the variance is the sum of
    /// (1 - p) / p^2.
    count: f64,
    variance: f64,
}

impl Estimate {
    fn add_kept(&mut self, stamped: &str) {
        let th = stamped.split(['=', ';', ',']).find_map(|pair| pair.strip_prefix("th:"));
        let th = format!("{:0<14}", th.expect("every kept span is stamped"));
        let threshold = u64::from_str_radix(&th, 16).expect("hexadecimal");
        let p = 1.0 - threshold as f64 / (1u64 << 56) as f64;
        self.count += 1.0 / p;
        self.variance += (1.0 - p) / (p * p);
    }

    #[track_caller]
    fn assert_unbiased(&self) {
        let (error, sigma) = (self.count - self.truth, self.variance.sqrt());
        assert!(self.truth > 0.0 && self.count > 0.0);
        assert!(error.abs() <= 3.0 * sigma, "{} of {}, sigma {sigma}", self.count, self.truth);
    }
}

/// A million traces, a tenth of them with an error and an independent fifth slow. An upstream
/// sampler has kept those at or above its threshold.
fn assert_unbiased(policies: &[PolicySpec], upstream: Threshold, seed: u64) {
    let plan = Arc::new(Plan::compile(policies));
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut classes = [Estimate::default(); 2];
    let arrived =
        if upstream == Threshold::ALWAYS { String::new() } else { format!("ot=th:{upstream}") };
    for _ in 0..TRACES / TRACES_PER_TICK {
        let traces: Vec<_> = (0..TRACES_PER_TICK).map(|_| random_trace(&mut rng)).collect();
        for (facts, _) in &traces {
            classes[class_of(facts)].truth += 1.0;
        }
        let passed = || traces.iter().filter(|(_, randomness)| upstream.keeps(*randomness));
        let mut tick = Tick::new(Begins::All, 1.0);
        tick.join(&plan);
        passed().for_each(|trace| tick.add(&plan, &evidence(trace), 0));
        tick.begin();
        for trace in passed() {
            let verdict = plan.decide(&evidence(trace), &mut Vec::new());
            plan.charge(&evidence(trace));
            if verdict.kept {
                let stamp =
                    Stamp { threshold: verdict.threshold, randomness: trace.1, explicit: false };
                let mut stamped = String::new();
                let inconsistent = tracestate::stamp(arrived.as_bytes(), &stamp, &mut stamped);
                assert_eq!(inconsistent, Ok(false));
                classes[class_of(&trace.0)].add_kept(&stamped);
            }
        }
    }
    classes.iter().for_each(Estimate::assert_unbiased);
}

fn random_trace(rng: &mut fastrand::Rng) -> (Facts, Randomness) {
    let code = if rng.u8(..10) == 0 { StatusCode::Error } else { StatusCode::Unset };
    let millis = if rng.u8(..5) == 0 { 900 } else { 100 };
    let facts = Facts {
        start_unix_nano: 1,
        end_unix_nano: 1 + millis * 1_000_000,
        spans: rng.u32(1..20),
        bytes: 1_000,
        status_mask: code.mask(),
        root_seen: true,
    };
    (facts, Randomness(rng.u64(..1 << 56)))
}

fn class_of(facts: &Facts) -> usize {
    usize::from(facts.status_mask == StatusCode::Error.mask())
}

fn evidence((facts, randomness): &(Facts, Randomness)) -> Evidence<'_> {
    let trace_id = TraceId([1; 16]);
    Evidence { trace_id, facts, bits: &[], randomness: *randomness, forced: false }
}

/// Scenario: errors at 50 %, slow traces at 25 %, everything at 2 %.
/// Guarantees: the union is estimated correctly, errors and others separately.
#[test]
fn a_union_is_unbiased() {
    let policies = [
        policy("errors", rule(errors(), 50.0)),
        policy("slow", rule(slow(), 25.0)),
        probabilistic(2.0),
    ];
    assert_unbiased(&policies, Threshold::ALWAYS, 1);
}

/// Scenario: 60 % of everything and 30 % of that, in one `and`, with a baseline.
/// Guarantees: the intersection is kept at 30 %, not at the product, and is estimated correctly.
#[test]
fn an_intersection_is_unbiased() {
    let parts = vec![
        rule(RuleKind::AlwaysSample, 60.0),
        rule(RuleKind::Or(vec![rule(errors(), 100.0), rule(slow(), 40.0)]), 30.0),
    ];
    let policies = [policy("both", rule(RuleKind::And(parts), 100.0)), probabilistic(1.0)];
    assert_unbiased(&policies, Threshold::ALWAYS, 2);
}

/// Scenario: everything at 50 %, limited to a fraction of that, and errors at 20 %.
/// Guarantees: the threshold that results from the limit gives correct estimates.
#[test]
fn a_limit_is_unbiased() {
    let rate = Rate { per_second: 5_000.0, burst: 10_000.0 };
    let limit = Some(LimitSpec { spans: Some(rate), bytes: None });
    let all = policy("all", rule(RuleKind::AlwaysSample, 50.0));
    let policies = [PolicySpec { limit, ..all }, policy("errors", rule(errors(), 20.0))];
    assert_unbiased(&policies, Threshold::ALWAYS, 3);
}

/// Scenario: an SDK has already sampled 40 %; here errors are kept at 100 %, slow traces at 50 %,
/// the rest at 10 %.
/// Guarantees: percentages refer to the original population, and so do the estimates.
#[test]
fn upstream_sampling_stays_unbiased() {
    let policies = [
        policy("errors", rule(errors(), 100.0)),
        policy("slow", rule(slow(), 50.0)),
        probabilistic(10.0),
    ];
    assert_unbiased(&policies, Threshold::from_percentage(40.0), 4);
}

/// Scenario: two instances each get half of every trace, against the rule that a trace goes to one.
/// Guarantees: probabilistic policies keep the same traces on both.
#[test]
fn halves_of_a_split_trace_agree() {
    let kept = |span: fn(u64, u64) -> opentelemetry_proto::tonic::trace::v1::Span| {
        let mut fixture = Fixture::new(&[probabilistic(30.0)], limits(), 4);
        fixture.ingest(0, &request_of((0..1_000).map(|trace| span(trace, 0)).collect()));
        let decided = fixture.decide(30_000, Which::Due);
        fixture.assert_ledger();
        let records = decided.iter().flat_map(|decided| &decided.decisions.records);
        let kept = records.filter(|record| record.decision.verdict.kept);
        kept.map(|record| record.trace_id).collect::<HashSet<_>>()
    };
    let (front, back) = (kept(root), kept(child));
    assert_eq!(front, back);
    assert!((200..400).contains(&front.len()), "{}", front.len());
}

/// Scenario: spans of a kept and a dropped trace arrive 1, 2 and 10 windows after the decision, and
/// once more when the decision is forgotten.
/// Guarantees: as long as the decision is remembered, they follow it, at its threshold.
#[test]
fn late_spans_follow_for_as_long_as_is_remembered() {
    let mut limits = limits();
    limits.waits.decision_wait = 10_000;
    let mut fixture = Fixture::new(&[probabilistic(50.0)], limits, 2);
    fixture.ingest(0, &request_of((0..20).map(|trace| child(trace, 0)).collect()));
    let decided = fixture.decide(10_000, Which::Due);
    let records = decided.iter().flat_map(|decided| &decided.decisions.records);
    let kept = records.filter(|record| record.decision.verdict.kept).count();
    assert!((1..20).contains(&kept));
    for windows in [1, 2, 10] {
        let late = (0..20).map(|trace| child(trace, windows.into())).collect();
        let decided = fixture.ingest(10_000 + windows * 10_000, &request_of(late));
        let followed = decided.late.iter().filter(|late| late.verdict.kept).count();
        assert_eq!((decided.late.len(), followed, decided.kept.len()), (20, kept, kept));
        let half = Threshold::from_percentage(50.0);
        assert!(decided.kept.iter().all(|trace| trace.verdict.threshold == half));
        fixture.assert_ledger();
    }
    for now in [140_000, 300_000] {
        drop(fixture.decide(now, Which::Due));
    }
    let forgotten = fixture.ingest(300_000, &request_of(vec![child(0, 99)]));
    assert!(forgotten.late.is_empty());
    assert_eq!(fixture.sampler.buffered().traces, 1);
    fixture.assert_ledger();
}
