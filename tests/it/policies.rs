//! The shipped policy files, each with real traffic through a running service.

use opentelemetry_proto::tonic::trace::v1::Span;

use crate::harness::{Metrics, Running, attribute, config, error, span, string};

/// Kept by a policy of 5 % and more.
const LUCKY: u64 = 0x00ff_0000_0000_0000;
/// Kept by a policy of 10 % and more.
const FAIR: u64 = 0x00f0_0000_0000_0000;
/// Kept only by a policy of 100 %.
const UNLUCKY: u64 = 0x0010_0000_0000_0000;

/// A root span and a child, the child of this duration in milliseconds.
fn trace(number: u64, millis: u64) -> Vec<Span> {
    let root = span(number, 1, None);
    let mut child = span(number, 2, Some(1));
    child.end_time_unix_nano = child.start_time_unix_nano + millis * 1_000_000;
    vec![child, root]
}

fn failing(number: u64) -> Vec<Span> {
    let mut spans = trace(number, 1);
    spans[0].status = error();
    spans
}

fn of_route(number: u64, route: &str) -> Vec<Span> {
    let mut spans = trace(number, 1);
    spans[0].attributes = vec![string("http.route", route)];
    spans
}

/// What is to become of a trace: kept by a policy with a tracestate, or dropped by one.
enum Expected {
    Kept(&'static str, &'static str),
    Dropped(&'static str),
}

use Expected::{Dropped, Kept};

/// Sends the traces, each in a request of its own, to a service with this file and nothing else.
async fn check(file: &str, traces: Vec<(Vec<Span>, Expected)>) {
    let path = format!("{}/policies/{file}", env!("CARGO_MANIFEST_DIR"));
    let running = Running::start(config(&format!("[sampling]\npolicy_files = ['{path}']"))).await;
    for (spans, _) in &traces {
        running.accept(spans.clone()).await;
    }
    let metrics = running.at_rest().await;
    let sent = running.traces();
    for (spans, expected) in &traces {
        let sent = sent.get(&spans[0].trace_id).map_or(&[][..], Vec::as_slice);
        match expected {
            Kept(policy, tracestate) => {
                assert_eq!(sent.len(), spans.len(), "{spans:?}");
                assert!(sent.iter().all(|span| span.trace_state == *tracestate), "{sent:?}");
                let root = sent.iter().find(|span| span.parent_span_id.is_empty());
                let root = root.expect("a root");
                assert_eq!(attribute(root, "tailwater.policy"), Some(*policy), "{spans:?}");
            }
            Dropped(_) => assert!(sent.is_empty(), "{sent:?}"),
        }
    }
    for policy in ["errors", "slow", "checkout", "baseline", "none"] {
        let of = |wanted: &str| metrics_of(&metrics, wanted, policy);
        let kept = traces.iter().filter(|(_, to)| matches!(to, Kept(by, _) if *by == policy));
        let dropped = traces.iter().filter(|(_, to)| matches!(to, Dropped(by) if *by == policy));
        assert_eq!(of("traces_kept_total"), kept.count() as f64, "{policy}");
        assert_eq!(of("traces_dropped_total"), dropped.count() as f64, "{policy}");
    }
    running.stop().await;
}

/// 0 where the file has no such policy.
fn metrics_of(metrics: &Metrics, metric: &str, policy: &str) -> f64 {
    let series = format!("{metric}{{policy=\"{policy}\"}}");
    metrics.0.get(&series).copied().unwrap_or_default()
}

/// Scenario: the default policies with failing, slow and ordinary traces.
/// Guarantees: errors and those over 500 ms are all kept, of the rest one in ten by its id.
#[tokio::test]
async fn default() {
    let baseline = "ot=th:e6666666666666";
    let traces = vec![
        (failing(UNLUCKY | 1), Kept("errors", "ot=th:0")),
        (trace(UNLUCKY | 2, 501), Kept("slow", "ot=th:0")),
        (trace(UNLUCKY | 3, 500), Dropped("baseline")),
        (trace(FAIR | 4, 1), Kept("baseline", baseline)),
        (trace(LUCKY | 5, 1), Kept("baseline", baseline)),
        (trace(UNLUCKY | 6, 1), Dropped("baseline")),
        (of_route(UNLUCKY | 7, "/api/checkout"), Dropped("baseline")),
    ];
    check("default.toml", traces).await;
}

/// Scenario: the policies for busy services with failing, slow and ordinary traces.
/// Guarantees: errors and those over two seconds are all kept, of the rest one in twenty.
#[tokio::test]
async fn errors_and_slow() {
    let traces = vec![
        (failing(UNLUCKY | 1), Kept("errors", "ot=th:0")),
        (trace(UNLUCKY | 2, 2001), Kept("slow", "ot=th:0")),
        (trace(UNLUCKY | 3, 2000), Dropped("baseline")),
        (trace(FAIR | 4, 1), Dropped("baseline")),
        (trace(LUCKY | 5, 1), Kept("baseline", "ot=th:f3333333333333")),
    ];
    check("errors-and-slow.toml", traces).await;
}

/// Scenario: the policies of a shop with failing, slow, paying and other traces.
/// Guarantees: whatever touches checkout or payment is kept besides errors and those over a second.
#[tokio::test]
async fn shop() {
    let mut everything = of_route(UNLUCKY | 8, "/api/checkout");
    everything.extend(
        failing(UNLUCKY | 8).into_iter().take(1).map(|s| Span { span_id: vec![3; 8], ..s }),
    );
    let traces = vec![
        (failing(UNLUCKY | 1), Kept("errors", "ot=th:0")),
        (trace(UNLUCKY | 2, 1001), Kept("slow", "ot=th:0")),
        (trace(UNLUCKY | 3, 1000), Dropped("baseline")),
        (of_route(UNLUCKY | 4, "/api/checkout"), Kept("checkout", "ot=th:0")),
        (of_route(UNLUCKY | 5, "/api/payment"), Kept("checkout", "ot=th:0")),
        (of_route(UNLUCKY | 6, "/api/checkout/7"), Dropped("baseline")),
        (trace(FAIR | 7, 1), Kept("baseline", "ot=th:e6666666666666")),
        // Of several policies that keep all, the first of the file is credited.
        (everything, Kept("errors", "ot=th:0")),
    ];
    check("shop.toml", traces).await;
}
