//! From socket to sink: kept traces arrive whole and stamped, dropped ones do not, late spans
//! follow.

use std::time::Duration;

use crate::harness::{
    ERRORS_AND_HALF, HIGH, LOW, Running, attribute, config, error, get, span, trace_id,
};

/// Scenario: an error trace, a lucky trace and an unlucky one, each in two requests.
/// Guarantees: the first two arrive whole, with the right stamps; the third does not; look-ups
/// explain why.
#[tokio::test]
async fn kept_traces_arrive_whole_and_stamped() {
    let running = Running::start(config(ERRORS_AND_HALF)).await;
    running.accept(vec![span(LOW | 1, 2, Some(1)), span(HIGH | 2, 2, Some(1))]).await;
    let failed =
        opentelemetry_proto::tonic::trace::v1::Span { status: error(), ..span(LOW | 1, 1, None) };
    running.accept(vec![failed, span(HIGH | 2, 1, None), span(LOW | 3, 1, None)]).await;
    let metrics = running.at_rest().await;

    let traces = running.traces();
    assert_eq!(traces.len(), 2);
    for (trace, policy, tracestate) in
        [(LOW | 1, "errors", "ot=th:0"), (HIGH | 2, "half", "ot=th:8")]
    {
        let spans = &traces[&trace_id(trace)];
        assert_eq!(spans.len(), 2);
        assert!(spans.iter().all(|span| span.trace_state == tracestate), "{spans:#?}");
        let root = spans.iter().find(|span| span.parent_span_id.is_empty()).expect("a root");
        let child = spans.iter().find(|span| !span.parent_span_id.is_empty()).expect("a child");
        assert_eq!(attribute(root, "tailwater.policy"), Some(policy));
        assert_eq!(attribute(root, "tailwater.trigger"), Some("root_received"));
        assert_eq!(attribute(child, "tailwater.policy"), None);
    }
    assert_eq!(metrics.get("traces_kept_total{policy=\"errors\"}"), 1.0);
    assert_eq!(metrics.get("traces_kept_total{policy=\"half\"}"), 1.0);
    assert_eq!(metrics.get("traces_dropped_total{policy=\"half\"}"), 1.0);
    assert_eq!(metrics.get("policy_matches_total{policy=\"half\"}"), 3.0);

    let hex: String = trace_id(LOW | 3).iter().map(|byte| format!("{byte:02x}")).collect();
    let (status, body) = get(running.service.admin_address, &format!("/-/decisions/{hex}")).await;
    assert_eq!(status, 200);
    let answer: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(answer["decision"], "dropped");
    assert_eq!(answer["policy"], "half");
    assert_eq!(answer["threshold"], "8");
    assert_eq!(answer["matched_policies"], serde_json::json!(["half"]));
    assert_eq!(running.stop().await.1, 0);
}

/// Scenario: spans that arrive after their trace was decided, one of them an error of a dropped
/// trace.
/// Guarantees: those of the kept trace are sent with its threshold, those of the dropped one are
/// counted.
#[tokio::test]
async fn late_spans_follow_their_trace() {
    let running = Running::start(config(ERRORS_AND_HALF)).await;
    running.accept(vec![span(HIGH | 1, 1, None), span(LOW | 2, 1, None)]).await;
    running.at_rest().await;
    let failed = opentelemetry_proto::tonic::trace::v1::Span {
        status: error(),
        ..span(LOW | 2, 2, Some(1))
    };
    running.accept(vec![span(HIGH | 1, 2, Some(1)), failed]).await;
    let sent = |metrics: &crate::harness::Metrics| metrics.sum("exporter_sent_spans_total") == 2.0;
    running.until("the late span was sent", sent).await;
    let metrics = running.at_rest().await;
    assert_eq!(metrics.get("late_spans_total{decision=\"kept\"}"), 1.0);
    assert_eq!(metrics.get("late_spans_total{decision=\"dropped\"}"), 1.0);
    assert_eq!(metrics.get("late_error_spans_total{decision=\"dropped\"}"), 1.0);
    assert_eq!(metrics.get("spans_dropped_total{policy=\"half\",reason=\"late\"}"), 1.0);
    let spans = running.spans();
    assert_eq!(spans.len(), 2);
    assert!(spans.iter().all(|span| span.trace_state == "ot=th:8"));
    running.stop().await;
}

/// Scenario: a shutdown while traces wait for a window that is far from over.
/// Guarantees: they are decided with the spans that they have, kept ones are delivered, and the
/// ledger balances.
#[tokio::test]
async fn a_shutdown_decides_and_delivers_what_is_pending() {
    let mut config = config(ERRORS_AND_HALF);
    config.sampling.decision_wait = Duration::from_secs(600);
    config.sampling.decision_wait_after_root_received = None;
    let running = Running::start(config).await;
    running.accept((0..100).map(|i| span(HIGH | i, 1, None)).collect()).await;
    let received = running.received.clone();
    let (metrics, undelivered) = running.stop().await;
    assert_eq!(undelivered, 0);
    assert_eq!(metrics.get("decisions_total{trigger=\"shutdown\"}"), 100.0);
    assert_eq!(metrics.sum("exporter_sent_spans_total"), 100.0);
    assert_eq!(received.lock().expect("no panic").len(), 1);
}
