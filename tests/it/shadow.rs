//! Shadow policies: they count what they would have changed, and change nothing.

use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::{Value, json};
use tailwater::{
    policy::{Effect, LimitSpec, PolicySpec, Rate, RuleKind, RuleSpec},
    sampler::{Decided, Which},
    trace::StatusCode,
    window::Millis,
};

use crate::{
    builders::{self, Fixture},
    harness::{HIGH, LOW, Metrics, Running, attribute, config, error, get, span, trace_id},
};

const POLICIES: &str = r#"
[[policy]]
name = "half"
type = "probabilistic"
sampling_percentage = 50

[[policy]]
name = "errors"
type = "status_code"
status_codes = ["ERROR"]
shadow = true

[[policy]]
name = "no-polling"
type = "drop"
policies = [{ type = "span_name", values = ["poll"] }]
shadow = true

[[policy]]
name = "few"
type = "probabilistic"
sampling_percentage = 0.1
shadow = true
"#;

/// Traces and spans by effect: kept, dropped, none.
fn shadow(metrics: &Metrics, policy: &str) -> [[f64; 3]; 2] {
    ["shadow_traces_total", "shadow_spans_total"].map(|metric| {
        ["kept", "dropped", "none"].map(|effect| {
            metrics.get(&format!("{metric}{{policy=\"{policy}\",effect=\"{effect}\"}}"))
        })
    })
}

fn failed(trace: u64, id: u64) -> Span {
    Span { status: error(), ..span(trace, id, Some(1)) }
}

fn poll(trace: u64, id: u64) -> Span {
    Span { name: "poll".into(), ..span(trace, id, Some(1)) }
}

async fn shadow_matched(running: &Running, trace: u64) -> Value {
    let hex = trace_id(trace).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let path = format!("/-/decisions/{hex}");
    let (status, body) = get(running.service.admin_address, &path).await;
    assert_eq!(status, 200);
    serde_json::from_str::<Value>(&body).expect("JSON")["shadow_matched"].clone()
}

/// Scenario: a probabilistic policy and three shadow policies: one keeps failures, one vetoes, one
/// has a small percentage; traces for each outcome, and late spans of some.
/// Guarantees: kept traces, stamps and credit come from the one policy alone; each shadow policy
/// counts what it alone would have changed, including late spans, and counts no match; look-ups
/// name it.
#[tokio::test]
async fn they_count_what_they_would_have_changed_and_change_nothing() {
    let running = Running::start(config(POLICIES)).await;
    for policy in ["errors", "no-polling", "few"] {
        assert_eq!(shadow(&running.metrics().await, policy), [[0.0; 3]; 2], "{policy}");
    }
    let spans = vec![
        span(LOW | 1, 1, None),
        failed(LOW | 1, 2),
        span(HIGH | 2, 1, None),
        failed(HIGH | 2, 2),
        poll(HIGH | 2, 3),
        span(LOW | 3, 1, None),
        poll(LOW | 3, 2),
        span(LOW | 4, 1, None),
    ];
    running.accept(spans).await;
    let metrics = running.at_rest().await;
    assert_eq!(shadow(&metrics, "errors"), [[1.0, 0.0, 1.0], [2.0, 0.0, 3.0]]);
    assert_eq!(shadow(&metrics, "no-polling"), [[0.0, 1.0, 1.0], [0.0, 3.0, 2.0]]);
    assert_eq!(shadow(&metrics, "few"), [[0.0, 0.0, 4.0], [0.0, 0.0, 8.0]]);
    assert_eq!(metrics.get("traces_kept_total{policy=\"half\"}"), 1.0);
    assert_eq!(metrics.get("traces_dropped_total{policy=\"half\"}"), 3.0);
    assert_eq!(metrics.get("policy_matches_total{policy=\"half\"}"), 4.0);
    for policy in ["errors", "no-polling", "few"] {
        for metric in ["policy_matches_total", "traces_kept_total", "traces_dropped_total"] {
            assert_eq!(metrics.get(&format!("{metric}{{policy=\"{policy}\"}}")), 0.0);
        }
    }
    assert!(running.spans().iter().all(|span| span.trace_state == "ot=th:8"));
    let stamps: Vec<_> = running
        .spans()
        .iter()
        .filter_map(|s| attribute(s, "tailwater.policy").map(str::to_owned))
        .collect();
    assert_eq!(stamps, ["half"]);
    assert_eq!(shadow_matched(&running, LOW | 1).await, json!(["errors", "few"]));
    assert_eq!(shadow_matched(&running, HIGH | 2).await, json!(["errors", "no-polling", "few"]));
    assert_eq!(shadow_matched(&running, LOW | 4).await, json!(["few"]));

    // Late spans follow the outcome of their trace, whatever they contain.
    running
        .accept(vec![span(LOW | 1, 3, Some(1)), span(HIGH | 2, 4, Some(1)), failed(LOW | 4, 2)])
        .await;
    let metrics = running.at_rest().await;
    assert_eq!(shadow(&metrics, "errors"), [[1.0, 0.0, 1.0], [3.0, 0.0, 4.0]]);
    assert_eq!(shadow(&metrics, "no-polling"), [[0.0, 1.0, 1.0], [0.0, 4.0, 2.0]]);
    assert_eq!(shadow(&metrics, "few"), [[0.0, 0.0, 4.0], [0.0, 0.0, 11.0]]);
    running.stop().await;
}

fn always(sampling_percentage: f64) -> RuleSpec {
    RuleSpec { kind: RuleKind::AlwaysSample, sampling_percentage }
}

fn errors() -> RuleSpec {
    let codes = vec![StatusCode::Error];
    RuleSpec { kind: RuleKind::StatusCode { codes }, sampling_percentage: 100.0 }
}

/// At most ten spans a second.
fn limited(rule: RuleSpec, shadow: bool) -> PolicySpec {
    let spans = Some(Rate { per_second: 10.0, burst: 20.0 });
    let limit = Some(LimitSpec { spans, bytes: None });
    PolicySpec { limit, shadow, ..PolicySpec::new("limited", rule) }
}

/// Ten seconds of traffic, half of which fails, in ticks of 100 ms. Returns the kept traces, and
/// the traces that the shadow policy would have kept.
fn run(policies: &[PolicySpec]) -> (Vec<u128>, Vec<u128>) {
    let mut fixture = Fixture::new(policies, builders::limits(), 4);
    let (mut kept, mut would_be_kept) = (Vec::new(), Vec::new());
    for tick in 0..100u32 {
        let at = tick * 100;
        let spans = (0..10).map(|n| {
            let trace = u64::from(tick) * 10 + n;
            let status = builders::status(if n % 2 == 0 { 2 } else { 0 });
            Span { status, ..builders::root(trace, trace) }
        });
        fixture.ingest(at, &builders::request_of(spans.collect()));
        fixture.sampler.begin_tick(Millis(at), 0.1);
        for Decided { decisions, .. } in fixture.decide(at, Which::Due) {
            for record in &decisions.records {
                let id = u128::from_be_bytes(record.trace_id.0);
                kept.extend(record.decision.verdict.kept.then_some(id));
                let effects = decisions.shadowed(record).iter().map(|shadowed| shadowed.effect);
                would_be_kept.extend(effects.filter(|e| *e == Effect::Kept).map(|_| id));
            }
        }
    }
    kept.sort_unstable();
    would_be_kept.sort_unstable();
    (kept, would_be_kept)
}

/// Scenario: the same traffic under a baseline alone, with a limited policy beside it, and with the
/// same policy as a shadow policy, once with a baseline of 20 % and once with one that keeps every
/// error, whose traces cost a limit nothing; and a limited policy beside a shadow policy of 100 %.
/// Guarantees: the shadow policy reports exactly the traces that it would have kept, with its
/// limit, and the baseline keeps the same as alone; a shadow policy takes nothing from another
/// policy's limit.
#[test]
fn limits_hold_shadow_policies_too() {
    for (baseline, rule) in [(always(20.0), errors()), (errors(), always(100.0))] {
        let baseline = || PolicySpec::new("baseline", baseline.clone());
        let limited = |shadow| limited(rule.clone(), shadow);
        let (alone, _) = run(&[baseline()]);
        let (together, _) = run(&[baseline(), limited(false)]);
        let (kept, would_be_kept) = run(&[baseline(), limited(true)]);
        assert_eq!(kept, alone);
        let more: Vec<_> = together.into_iter().filter(|id| !alone.contains(id)).collect();
        assert!((20..200).contains(&more.len()), "{} by the limited policy", more.len());
        assert_eq!(would_be_kept, more);
    }

    let limited = || limited(errors(), false);
    let everything = PolicySpec { shadow: true, ..PolicySpec::new("everything", always(100.0)) };
    let (beside, _) = run(&[limited(), everything]);
    assert_eq!(beside, run(&[limited()]).0);
}
