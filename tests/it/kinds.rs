//! Budgets and rare policies in a sampler: which span describes a trace, which traces count, what a
//! reload keeps, and what hostile values cost.

use std::sync::Arc;

use opentelemetry_proto::tonic::{common::v1::any_value::Value, trace::v1::Span};
use tailwater::{
    budget::Holder,
    policy::{
        BudgetSpec, KindsReading, KindsSpec, LimitSpec, PolicySpec, RareSpec, Rate, RuleKind,
        RuleSpec, StringMatch,
    },
    sampler::{Limits, Which},
    trace::Trigger,
    window::{Millis, Waits},
};

use crate::{
    builders::{
        Fixture, attribute, child, policy, request, request_of, resource_spans, root, status, text,
    },
    harness::{LOW, Running, config, error, get, span, trace_id},
};

/// The milliseconds from a trace's arrival to its decision.
const WAIT: u32 = 100;

fn limits() -> Limits {
    let waits = Waits { decision_wait: WAIT, after_root: None };
    Limits { waits, ..crate::builders::limits() }
}

fn rule(kind: RuleKind) -> RuleSpec {
    RuleSpec { kind, sampling_percentage: 100.0 }
}

fn rare_of(keys: &[&str], traces: u32, kinds_max: usize) -> PolicySpec {
    let keys = keys.iter().map(|key| (*key).to_owned()).collect();
    let kinds = KindsSpec { keys, kinds_max };
    let spec = RareSpec { kinds, interval_millis: 900_000, traces };
    policy("rare", rule(RuleKind::Rare(Vec::new(), spec)))
}

fn budget_of(keys: &[&str], per_second: f64) -> PolicySpec {
    let keys = keys.iter().map(|key| (*key).to_owned()).collect();
    let rate = Rate { per_second, burst: BudgetSpec::BURST_SECONDS * per_second };
    let rate = LimitSpec { spans: Some(rate), bytes: None };
    let kinds = KindsSpec { keys, kinds_max: 4096 };
    let spec = BudgetSpec { rate, kinds, power: 0.0 };
    policy("budget", rule(RuleKind::Budget(Vec::new(), spec)))
}

fn route(span: Span, route: &str) -> Span {
    Span { attributes: vec![text("route", route)], ..span }
}

/// Begins a tick when everything is due, and decides it. Returns the number of kept traces.
fn decide(fixture: &mut Fixture, now: u32, seconds: f64) -> usize {
    fixture.sampler.begin_tick(Millis(now), seconds);
    let decided = fixture.decide(now, Which::Due);
    fixture.assert_ledger();
    decided.iter().map(|decided| decided.kept.len()).sum()
}

fn reading(fixture: &Fixture) -> KindsReading {
    fixture.sampler.plan().kinds()[0].1
}

/// Scenario: six traces, whose spans come in one request, one by one, and in reverse order: with
/// the value on the root, on a child that is earlier than the root, on the earliest child without a
/// root, only on the resource of the root, on a span that does not describe the trace, and nowhere.
/// Guarantees: the root describes a trace, otherwise the span that starts first, and its attribute
/// comes before that of its resource; all traces without a value are of one kind.
#[test]
fn the_root_or_the_earliest_span_describes_a_trace() {
    let early = |span: Span| Span { start_time_unix_nano: 1, ..span };
    let late = |span: Span| Span { start_time_unix_nano: 1 << 62, ..span };
    let none = |span: Span| Span { start_time_unix_nano: 0, ..span };
    // Spans by trace; the expected kinds are a, a, a, that of the resource, none, none.
    let spans = [
        route(root(0, 0), "a"),
        route(early(child(0, 1)), "b"),
        route(early(child(1, 0)), "a"),
        route(late(child(1, 1)), "b"),
        route(none(child(1, 2)), "c"),
        route(late(root(2, 0)), "a"),
        route(none(child(2, 1)), "b"),
        route(late(child(3, 1)), "b"),
        root(3, 0),
        root(4, 0),
        route(child(4, 1), "a"),
        child(5, 0),
    ];
    let of_resource = |spans: Vec<Span>, route: Option<&str>| {
        let mut of = resource_spans("shop", spans);
        let attributes = &mut of.resource.as_mut().expect("has one").attributes;
        attributes.extend(route.map(|route| text("route", route)));
        of
    };
    let request_of = |spans: &[Span]| {
        let is_third = |span: &&Span| span.trace_id == child(3, 0).trace_id;
        let with = spans.iter().filter(is_third).cloned().collect();
        let without = spans.iter().filter(|span| !is_third(span)).cloned().collect();
        request(vec![of_resource(with, Some("resource")), of_resource(without, None)])
    };
    for arrival in 0..3 {
        let mut fixture = Fixture::new(&[rare_of(&["route", "span.kind"], 1, 100)], limits(), 4);
        match arrival {
            0 => drop(fixture.ingest(0, &request_of(&spans))),
            1 => spans.iter().for_each(|span| {
                fixture.ingest(0, &request_of(std::slice::from_ref(span)));
            }),
            _ => spans.iter().rev().for_each(|span| {
                fixture.ingest(0, &request_of(std::slice::from_ref(span)));
            }),
        }
        assert_eq!(decide(&mut fixture, WAIT, 0.1), 3, "arrival {arrival}");
        assert_eq!(reading(&fixture), KindsReading::Rare(3));
    }
}

/// Scenario: a hundred traces of each of three kinds arrive a millisecond apart; a policy vetoes
/// the first ten of one kind; another keeps the first five of another.
/// Guarantees: the first two of each kind are kept, by arrival over all shards; traces that another
/// policy keeps count, vetoed ones do not; after the interval, two more are kept.
#[test]
fn the_first_of_each_kind_are_kept() {
    let is = |key: &str| RuleKind::AttributeExists {
        key: key.to_owned(),
        scope: tailwater::policy::Scope::Any,
        invert: false,
    };
    let policies = [
        rare_of(&["route"], 2, 100),
        policy("veto", rule(RuleKind::Drop(vec![rule(is("veto"))]))),
        policy("keep", rule(is("keep"))),
    ];
    let mut fixture = Fixture::new(&policies, limits(), 4);
    let mut expected = Vec::new();
    for round in 0..2_u32 {
        let began = round * 16 * 60_000;
        for number in 0..100_u32 {
            let mut spans = Vec::new();
            for kind in 0..3_u32 {
                let id = u64::from(round * 300 + number * 3 + kind);
                let mut span = route(child(id, 0), &kind.to_string());
                if kind == 1 && number < 10 {
                    span.attributes.push(text("veto", ""));
                }
                if kind == 2 && number < 5 {
                    span.attributes.push(text("keep", ""));
                }
                let first = if kind == 1 { 10 } else { 0 };
                let is_first = (first..first + 2).contains(&number);
                if is_first || kind == 2 && number < 5 {
                    expected.push(span.trace_id.clone());
                }
                spans.push(span);
            }
            fixture.ingest(began + number, &request_of(spans));
        }
        let now = began + 100 + WAIT;
        fixture.sampler.begin_tick(Millis(now), 16.0 * 60.0);
        for decided in fixture.decide(now, Which::Due) {
            let records = &decided.decisions.records;
            for record in records.iter().filter(|record| record.decision.verdict.kept) {
                let id = record.trace_id.0.to_vec();
                assert!(expected.contains(&id), "{:?} is kept", record.trace_id);
                expected.retain(|other| *other != id);
            }
        }
        assert!(expected.is_empty(), "round {round}: {} are missing", expected.len());
    }
}

/// Scenario: traces that are decided early, before and after those of a tick.
/// Guarantees: they are judged when they are decided, and count like the others.
#[test]
fn early_decisions_ask_as_well() {
    let mut fixture = Fixture::new(&[rare_of(&["route"], 1, 100)], limits(), 1);
    fixture.sampler.begin_tick(Millis(0), 0.1);
    let spans = (0..10).map(|id| route(child(id, 0), if id < 5 { "a" } else { "b" }));
    fixture.ingest(0, &request_of(spans.collect()));
    fixture.decide(0, Which::Oldest(Trigger::Memory));
    assert_eq!(fixture.kept, 2);
    fixture.ingest(0, &request_of(vec![route(child(10, 0), "a"), route(child(11, 0), "c")]));
    assert_eq!(decide(&mut fixture, WAIT, 0.1), 1);
}

/// Scenario: a rare policy and a budget of one span per second see kinds; a reload adds a policy
/// and leaves them unchanged; then another one changes them.
/// Guarantees: an unchanged policy keeps its state; a changed one starts anew.
#[test]
fn a_reload_keeps_the_state_of_what_did_not_change() {
    let before = [rare_of(&["route"], 1, 100), budget_of(&["service.name"], 1.0)];
    let mut fixture = Fixture::new(&before, limits(), 4);
    let mut traces = 0..;
    let mut take = |fixture: &mut Fixture, now: u32| {
        let spans = traces.by_ref().take(40).map(|id| route(child(id, 0), "a"));
        fixture.ingest(now, &request_of(spans.collect()));
        decide(fixture, now + WAIT, 0.1)
    };
    // One trace is rare; the bucket holds nearly half a span, so one more takes it.
    let kept = take(&mut fixture, 0);
    assert!((1..=2).contains(&kept), "{kept}");
    let error = StringMatch::Exact(vec!["e".to_owned()]);
    let other = policy("names", rule(RuleKind::SpanName { values: error, invert: false }));
    let same = [other.clone(), before[1].clone(), before[0].clone()];
    let plan = fixture.sampler.plan().successor(&same).expect("few names");
    fixture.sampler.reload(&Arc::new(plan), |_| {});
    let again: usize = (1..=5).map(|round| take(&mut fixture, 1_000 * round)).sum();
    assert!(again <= 2, "{again} of five ticks of a budget of one a second");
    let changed = [other, rare_of(&["route"], 2, 100)];
    let plan = fixture.sampler.plan().successor(&changed).expect("few names");
    fixture.sampler.reload(&Arc::new(plan), |_| {});
    assert_eq!(take(&mut fixture, 10_000), 2);
}

/// Scenario: traces that a policy keeps at 100 %, more than a budget could hold, and in each tick
/// one trace that only the budget keeps.
/// Guarantees: traces that are kept by another policy cost the budget nothing.
#[test]
fn traces_kept_by_other_policies_cost_a_budget_nothing() {
    let errors = RuleKind::StatusCode { codes: vec![tailwater::trace::StatusCode::Error] };
    let policies = [budget_of(&["span.name"], 20.0), policy("errors", rule(errors))];
    let mut fixture = Fixture::new(&policies, limits(), 4);
    for tick in 0..50_u32 {
        let first = u64::from(tick) * 101;
        let mut spans: Vec<_> =
            (first..first + 100).map(|id| Span { status: status(2), ..child(id, 0) }).collect();
        spans.push(child(first + 100, 0));
        fixture.ingest(1_000 * tick, &request_of(spans));
        assert_eq!(decide(&mut fixture, 1_000 * tick + WAIT, 0.1), 101, "tick {tick}");
    }
}

/// Scenario: 20,000 kinds at once with values of 60 KB, and a table with room for a hundred.
/// Guarantees: the table stays bounded and is charged; traces without room are counted; a value
/// costs its trace 8 bytes; missing values form a kind.
#[test]
fn hostile_values_are_bounded() {
    let mut fixture = Fixture::new(&[rare_of(&["route"], 1, 100)], limits(), 4);
    let long = "x".repeat(60 << 10);
    for batch in 0..20 {
        let spans = (0..50).map(|n| route(child(batch * 50 + n, 0), &format!("{long}{batch} {n}")));
        fixture.ingest(0, &request_of(spans.collect()));
    }
    let ids = (1_000..21_000).map(|id| {
        let value = Value::IntValue(id as i64);
        Span { attributes: vec![attribute("route", Some(value))], ..child(id, 0) }
    });
    fixture.ingest(1, &request_of(ids.collect()));
    assert_eq!(decide(&mut fixture, WAIT + 1, 0.1), 100);
    assert_eq!(reading(&fixture), KindsReading::Rare(100));
    let overflowed: u64 = fixture.sampler.plan().take_overflowed().iter().map(|of| of.traces).sum();
    assert_eq!(overflowed, 20_900);
    let held = fixture.budget.held(Holder::Kinds);
    assert!((1_000..100_000).contains(&held), "{held} bytes");
    // The interval ends, and all memory is released.
    fixture.sampler.begin_tick(Millis(WAIT + 2), 16.0 * 60.0);
    assert_eq!((reading(&fixture), fixture.budget.held(Holder::Kinds)), (KindsReading::Rare(0), 0));
}

const POLICIES: &str = r#"
[[policy]]
name = "first"
type = "rare"
keys = ["span.name"]
max_keys = 2

[[policy]]
name = "fair"
type = "budget"
spans_per_second = 0.001
keys = ["service.name", "span.name"]

[[policy]]
name = "bytes"
type = "budget"
bytes_per_second = 1000
keys = ["span.name"]
policies = [{ type = "span_name", values = ["nobody"] }]

[[policy]]
name = "would-be"
type = "rare"
keys = ["status.code"]
shadow = true
"#;

/// Scenario: a running service with budgets and rare policies, one of them a shadow policy; four
/// traces of three names, the first of each name alone, then late spans of both decisions.
/// Guarantees: the first two names are kept at 100 %, the third finds the table full and is
/// counted; these cost the budget nothing; gauges show kinds and levels; the look-up names the
/// policy; late spans follow.
#[tokio::test]
async fn a_service_shows_its_budgets_and_rare_policies() {
    let running = Running::start(config(POLICIES)).await;
    let metrics = running.metrics().await;
    for series in [
        "budget_overflow_traces_total{policy=\"fair\"}",
        "budget_overflow_traces_total{policy=\"bytes\"}",
        "rare_overflow_traces_total{policy=\"first\"}",
        "rare_kinds{policy=\"first\"}",
        "budget_keys{policy=\"fair\"}",
    ] {
        assert_eq!(metrics.get(series), 0.0, "{series}");
    }
    assert_eq!(metrics.get("budget_level_bytes_per_second{policy=\"bytes\"}"), 1000.0);
    assert_eq!(metrics.get("budget_limit_bytes_per_second{policy=\"bytes\"}"), 1000.0);
    assert_eq!(metrics.get("budget_limit_spans_per_second{policy=\"fair\"}"), 0.001);
    let of = |trace: u64, name: &str| Span { name: name.to_owned(), ..span(trace, 1, None) };
    for (number, name) in [(1, "a"), (2, "b"), (3, "c"), (4, "a")] {
        running.accept(vec![of(LOW | number, name)]).await;
        running.at_rest().await;
    }
    let metrics = running.at_rest().await;
    assert_eq!(metrics.get("traces_kept_total{policy=\"first\"}"), 2.0);
    assert_eq!(metrics.get("policy_matches_total{policy=\"first\"}"), 2.0);
    assert_eq!(metrics.get("rare_overflow_traces_total{policy=\"first\"}"), 1.0);
    assert_eq!(metrics.get("rare_kinds{policy=\"first\"}"), 2.0);
    assert_eq!(metrics.get("budget_keys{policy=\"fair\"}"), 2.0, "those that are not rare");
    // The first trace finds a full bucket, and leaves a debt.
    assert_eq!(metrics.get("traces_kept_total{policy=\"fair\"}"), 1.0);
    assert_eq!(metrics.get("traces_dropped_total{policy=\"fair\"}"), 1.0);
    assert_eq!(metrics.get("shadow_traces_total{policy=\"would-be\",effect=\"none\"}"), 1.0);
    let hex = trace_id(LOW | 1).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (_, body) = get(running.service.admin_address, &format!("/-/decisions/{hex}")).await;
    let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((&body["policy"], &body["threshold"]), (&"first".into(), &"0".into()));
    let late = |number: u64| Span { status: error(), ..span(LOW | number, 2, Some(1)) };
    running.accept(vec![late(1), late(4)]).await;
    running.at_rest().await;
    let mut arrived: Vec<_> = running.spans().into_iter().map(|span| span.trace_id).collect();
    arrived.sort();
    assert_eq!(arrived, [1, 1, 2, 3].map(|number| trace_id(LOW | number).to_vec()));
    running.stop().await;
}
