//! Trials: a second set of policies also decides the traffic, and changes nothing.

mod commands;
pub(crate) mod running;

use std::sync::Arc;

use opentelemetry_proto::tonic::trace::v1::Span;
use tailwater::{
    policy::{
        BudgetSpec, KindsSpec, LimitSpec, PolicySpec, RareSpec, Rate, Report, RuleKind, RuleSpec,
        Sum,
    },
    sampler::{Decided, Which},
    trace::{StatusCode, TraceId},
    window::Millis,
};

use crate::builders::{self, Fixture};

fn always(sampling_percentage: f64) -> RuleSpec {
    RuleSpec { kind: RuleKind::AlwaysSample, sampling_percentage }
}

/// Failed traces, up to this many spans a second.
fn limited(name: &str, per_second: f64) -> PolicySpec {
    let spans = Some(Rate { per_second, burst: 2.0 * per_second });
    let codes = vec![StatusCode::Error];
    let rule = RuleSpec { kind: RuleKind::StatusCode { codes }, sampling_percentage: 100.0 };
    let limit = Some(LimitSpec { spans, bytes: None });
    PolicySpec { limit, ..PolicySpec::new(name, rule) }
}

/// Spans a second, shared by the traces of each name of a root.
fn budget(name: &str, per_second: f64) -> PolicySpec {
    let burst = per_second * BudgetSpec::BURST_SECONDS;
    let rate = LimitSpec { spans: Some(Rate { per_second, burst }), bytes: None };
    let budget = BudgetSpec { rate, kinds: by_name(), power: 0.0 };
    let kind = RuleKind::Budget(Vec::new(), budget);
    PolicySpec::new(name, RuleSpec { kind, sampling_percentage: 100.0 })
}

/// Two traces of each name of a root every five seconds.
fn rare(name: &str) -> PolicySpec {
    let rare = RareSpec { kinds: by_name(), interval_millis: 5_000, traces: 2 };
    let kind = RuleKind::Rare(Vec::new(), rare);
    PolicySpec::new(name, RuleSpec { kind, sampling_percentage: 100.0 })
}

fn by_name() -> KindsSpec {
    KindsSpec { keys: vec!["span.name".to_owned()], kinds_max: 100 }
}

/// Twenty seconds of traffic, half of which fails and which has five names, in ticks of 100 ms. At `at` the policies become
/// others, or others are tried. Returns the kept traces and the last report.
fn run(
    policies: &[PolicySpec],
    others: &[PolicySpec],
    at: u32,
    are_tried: bool,
) -> (Vec<TraceId>, Option<Report>) {
    let mut fixture = Fixture::new(policies, builders::limits(), 4);
    let mut kept = Vec::new();
    for tick in 0..200u32 {
        let now = tick * 100;
        if tick == at {
            let plan = fixture.sampler.plan();
            let plan = if are_tried {
                plan.with_trial(policies, others)
            } else {
                plan.successor(others).expect("few names")
            };
            fixture.sampler.reload(&Arc::new(plan), |_| {});
        }
        // One after the other: rare kinds go by the order of arrival.
        for n in 0..10 {
            let trace = u64::from(tick * 10 + n);
            let status = builders::status(if n % 2 == 0 { 2 } else { 0 });
            let name = format!("GET /{}", n * n / 20);
            let span = Span { status, name, ..builders::root(trace, trace) };
            fixture.ingest(now + 10 * n, &builders::request_of(vec![span]));
        }
        let end = now + 99;
        fixture.sampler.begin_tick(Millis(end), 0.1);
        for Decided { decisions, .. } in fixture.decide(end, Which::Due) {
            let of = decisions.records.iter().filter(|record| record.decision.verdict.kept);
            kept.extend(of.filter(|_| tick >= at).map(|record| record.trace_id));
        }
    }
    fixture.assert_ledger();
    kept.sort_unstable();
    (kept, fixture.sampler.plan().trial().map(|trial| trial.report()))
}

/// Scenario: twenty seconds of the same traffic three times. At the beginning, or in the middle,
/// other policies with limits, budgets and rare kinds are tried, come into force, or neither. Some of
/// the policies before have a limit, a budget or rare kinds as well.
/// Guarantees: a trial changes nothing that is kept. It says exactly what a reload at the same
/// moment does, with limits, which begin full. Neither set's limit takes from the other's.
#[test]
fn a_trial_with_limits_says_what_a_reload_brings() {
    let baseline = PolicySpec::new("baseline", always(20.0));
    let before = [
        vec![baseline.clone()],
        vec![baseline.clone(), limited("few", 5.0)],
        vec![baseline.clone(), budget("shared", 8.0), rare("first")],
    ];
    let others = [
        vec![PolicySpec::new("less", always(2.0)), limited("failed", 20.0)],
        vec![PolicySpec::new("less", always(2.0)), budget("fair", 20.0)],
        vec![limited("failed", 5.0), budget("fair", 15.0), rare("seldom")],
    ];
    let pairs = before.iter().flat_map(|policies| others.iter().map(move |one| (policies, one)));
    for (policies, others) in pairs {
        for at in [0, 100] {
            let (kept, report) = run(policies, others, at, true);
            let (all, _) = run(policies, policies, at, false);
            assert_eq!(kept, all, "a trial changes nothing");
            let (reloaded, _) = run(policies, others, at, false);
            let report = report.expect("a trial runs");
            let of = |traces: usize| Sum { traces: traces as u64, ..Sum::default() };
            let count = |sum: &Sum| Sum { traces: sum.traces, ..Sum::default() };
            let only = |some: &[TraceId], others: &[TraceId]| -> Vec<TraceId> {
                some.iter().filter(|id| others.binary_search(id).is_err()).copied().collect()
            };
            assert_eq!(count(&report.current.kept), of(kept.len()));
            assert_eq!(count(&report.candidate.kept), of(reloaded.len()), "from {at}");
            let (more, fewer) = (only(&reloaded, &kept), only(&kept, &reloaded));
            assert!(more.len() > 20 && fewer.len() > 20, "{} {}", more.len(), fewer.len());
            assert_eq!(count(&report.newly_kept.sum), of(more.len()));
            assert_eq!(count(&report.newly_dropped.sum), of(fewer.len()));
            let examples = [(&report.newly_kept, &more), (&report.newly_dropped, &fewer)];
            for (change, all) in examples {
                assert_eq!(change.examples.len(), 5);
                assert!(change.examples.iter().all(|id| all.contains(id)));
            }
        }
    }
}
