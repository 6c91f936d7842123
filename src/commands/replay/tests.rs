//! Decisions about recorded traces: weights, limits, early decisions, and changes.

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message as _;

use super::decide::{Outcome, Replay};
use crate::policy::{
    BudgetSpec, KindsSpec, LimitSpec, PolicySpec, RareSpec, Rate, RuleKind, RuleSpec,
};

const BEGINNING: u64 = 1_704_067_200_000_000_000;
const ROOMY: usize = 1 << 30;

fn keeps(name: &str, sampling_percentage: f64) -> PolicySpec {
    PolicySpec::new(name, RuleSpec { kind: RuleKind::AlwaysSample, sampling_percentage })
}

/// A request with one span of this trace, with this randomness and tracestate, that ends at this
/// time.
fn request(number: u64, randomness: u64, tracestate: &str, millis: u64) -> Vec<u8> {
    request_of_kind(number, randomness, tracestate, millis, "")
}

/// The same with a name for the span.
fn request_of_kind(
    number: u64,
    randomness: u64,
    tracestate: &str,
    millis: u64,
    name: &str,
) -> Vec<u8> {
    let id = (u128::from(number) << 64) | u128::from(randomness);
    let span = Span {
        trace_id: id.to_be_bytes().to_vec(),
        span_id: vec![1; 8],
        name: name.to_owned(),
        trace_state: tracestate.to_owned(),
        start_time_unix_nano: BEGINNING + millis * 1_000_000,
        end_time_unix_nano: BEGINNING + (millis + 1) * 1_000_000,
        ..Span::default()
    };
    let scope_spans = vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

/// Randomness spread evenly over `count` traces.
fn spread(number: u64, count: u64) -> u64 {
    ((u128::from(number) << 56) / u128::from(count)) as u64
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-6 * b.max(1.0)
}

/// Replays the traces, out of a thousand, that an `ot=th` of this percentage has kept before.
fn replayed(kept_before: f64, sets: &[Vec<PolicySpec>]) -> Outcome {
    let th = crate::trace::Threshold::from_percentage(kept_before);
    let mut replay = Replay::new(sets, ROOMY);
    for number in 0..1000 {
        let randomness = spread(number, 1000);
        if th.keeps(crate::trace::Randomness(randomness)) {
            let request = request(number + 1, randomness, &format!("ot=th:{th}"), number);
            assert_eq!(replay.add(&request, 1.0), Ok(0));
        }
    }
    replay.finish(0)
}

#[test]
fn weights_estimate_what_the_original_traffic_would_have_come_to() {
    for kept_before in [100.0, 50.0, 12.5] {
        for policy in [100.0, 50.0, 25.0, 12.5, 5.0] {
            let sets = [vec![keeps("p", policy)], vec![keeps("q", 25.0)]];
            let outcome = replayed(kept_before, &sets);
            let case = format!("{kept_before} {policy} {outcome:?}");
            assert!(outcome.is_weighted);
            assert!(close(outcome.input.traces, 1000.0), "{case}");
            assert!(close(outcome.totals[0].kept.traces, policy * 10.0), "{case}");
            assert!(close(outcome.totals[1].kept.traces, 250.0), "{case}");
            let of_policy = &outcome.totals[0].policies[0];
            assert!(close(of_policy.matched_traces, 1000.0), "{case}");
            assert!(close(of_policy.kept.traces + of_policy.dropped_traces, 1000.0), "{case}");
            let more = (250.0 - policy * 10.0).max(0.0);
            let less = (policy * 10.0 - 250.0).max(0.0);
            assert!(close(outcome.newly_kept.sum.traces, more), "{case}");
            assert!(close(outcome.newly_dropped.sum.traces, less), "{case}");
        }
    }
}

#[test]
fn without_thresholds_every_trace_counts_once() {
    let mut replay = Replay::new(&[vec![keeps("half", 50.0)], vec![keeps("all", 100.0)]], ROOMY);
    for number in 0..20 {
        let request = request(number + 1, spread(number, 20), "", 20 - number);
        replay.add(&request, 1.0).expect("a request");
    }
    let outcome = replay.finish(0);
    assert!(!outcome.is_weighted);
    assert_eq!((outcome.input.traces, outcome.totals[0].kept.traces), (20.0, 10.0));
    assert_eq!((outcome.from, outcome.to), (BEGINNING + 1_000_000, BEGINNING + 21_000_000));
    assert_eq!(outcome.newly_kept.sum.traces, 10.0);
    // The examples are the earliest traces, which were read last.
    let examples = outcome.newly_kept.examples.iter().map(|id| id.0[7]);
    assert_eq!(examples.collect::<Vec<_>>(), [10, 9, 8, 7, 6]);
    assert_eq!(outcome.newly_dropped.examples, []);
}

#[test]
fn a_recording_of_a_share_stands_for_the_whole() {
    let mut replay = Replay::new(&[vec![keeps("half", 50.0)]], ROOMY);
    for number in 0..20 {
        let request = request(number + 1, spread(number, 20), "", number);
        replay.add(&request, 0.1).expect("a request");
    }
    let outcome = replay.finish(0);
    assert!(outcome.is_weighted);
    assert!(close(outcome.input.traces, 200.0) && close(outcome.input.spans, 200.0));
    assert!(close(outcome.totals[0].kept.traces, 100.0), "{outcome:?}");
}

/// Scenario: a minute of 100 traces per second, an hour without traces, and another minute, in any
/// order.
/// Guarantees: a limit of 10 spans per second uses the time of the traces.
#[test]
fn limits_run_on_the_time_of_the_traces() {
    let rate = Rate { per_second: 10.0, burst: 20.0 };
    let limited = PolicySpec {
        limit: Some(LimitSpec { spans: Some(rate), bytes: None }),
        ..keeps("limited", 100.0)
    };
    let mut random = fastrand::Rng::with_seed(7);
    let mut requests: Vec<_> = (0..12_000)
        .map(|number| {
            let hour = if number < 6_000 { 0 } else { 3_600_000 };
            request(number + 1, random.u64(0..1 << 56), "", number % 6_000 * 10 + hour)
        })
        .collect();
    random.shuffle(&mut requests);
    let mut replay = Replay::new(&[vec![limited], vec![keeps("all", 100.0)]], ROOMY);
    requests.iter().for_each(|request| assert_eq!(replay.add(request, 1.0), Ok(0)));
    let outcome = replay.finish(0);
    let kept = outcome.totals[0].kept.traces;
    assert!((1_080.0..=1_320.0).contains(&kept), "{kept}");
    assert_eq!(outcome.totals[1].kept.traces, 12_000.0);
    assert_eq!(outcome.totals[0].policies[0].matched_traces, 12_000.0);
}

/// Scenario: a minute of 100 traces per second and, 50 minutes later, another, in which every tenth
/// trace is of one of ten quiet kinds; with a budget of 20 spans per second, and with rare
/// policies.
/// Guarantees: both use the time of the traces: quiet kinds are kept whole, the loud one gets the
/// rest; each kind has its first trace in each of the two intervals.
#[test]
fn kinds_run_on_the_time_of_the_traces() {
    let keys = || vec!["span.name".to_owned()];
    let rate = Rate { per_second: 20.0, burst: 8.0 };
    let rate = LimitSpec { spans: Some(rate), bytes: None };
    let kinds = || KindsSpec { keys: keys(), kinds_max: 100 };
    let budget = BudgetSpec { rate, kinds: kinds(), power: 0.0 };
    let rare = RareSpec { kinds: kinds(), interval_millis: 900_000, traces: 1 };
    let policy = |kind| PolicySpec::new("p", RuleSpec { kind, sampling_percentage: 100.0 });
    let sets = [
        vec![policy(RuleKind::Budget(Vec::new(), budget))],
        vec![policy(RuleKind::Rare(Vec::new(), rare))],
    ];
    let mut random = fastrand::Rng::with_seed(7);
    let mut requests: Vec<_> = (0..12_000)
        .map(|number| {
            let later = if number < 6_000 { 0 } else { 3_000_000 };
            let randomness = random.u64(0..1 << 56);
            let kind = if number % 10 == 0 { number / 10 % 10 + 1 } else { 0 };
            let millis = number % 6_000 * 10 + later;
            request_of_kind(number + 1, randomness, "", millis, &kind.to_string())
        })
        .collect();
    random.shuffle(&mut requests);
    let mut replay = Replay::new(&sets, ROOMY);
    requests.iter().for_each(|request| assert_eq!(replay.add(request, 1.0), Ok(0)));
    let outcome = replay.finish(0);
    let kept = outcome.totals[0].kept.traces;
    assert!((2_340.0..=2_440.0).contains(&kept), "{kept} of 2,400");
    assert_eq!(outcome.totals[1].kept.traces, 22.0);
}

#[test]
fn a_full_memory_decides_the_oldest() {
    let mut replay = Replay::new(&[vec![keeps("all", 100.0)]], 1 << 20);
    for number in 0..20_000 {
        let request = request(number + 1, 0, "", number);
        replay.add(&request, 1.0).expect("a request");
    }
    let outcome = replay.finish(3);
    assert!((1..20_000).contains(&outcome.early), "{}", outcome.early);
    assert_eq!((outcome.input.traces, outcome.totals[0].kept.traces), (20_000.0, 20_000.0));
    assert_eq!((outcome.skipped, outcome.to), (3, BEGINNING + 20_000 * 1_000_000));
}

#[test]
fn numbers_are_read_easily() {
    let answer = super::report::print(
        &replayed(10.0, &[vec![keeps("p", 50.0)], vec![keeps("q", 1.0)]]),
        super::Format::Text,
    );
    let expected = "\
input: 1,000 traces, 1,000 spans, 66.4 KiB
from 2024-01-01T00:00:00.900Z to 2024-01-01T00:00:01.000Z
The traces were sampled before: all figures estimate the original traffic.

kept: 500 traces, 500 spans, 33.2 KiB (50.00 % of the traces)
  policy  matched traces  kept traces  kept spans      kept  dropped traces
  p                1,000          500         500  33.2 KiB             500
  none                 0            0           0       0 B               0
";
    assert!(answer.starts_with(expected), "{answer}");
}
