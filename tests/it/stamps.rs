//! The stamps of kept spans on arrival: `tracestate` as specified, policy and trigger on one span.

use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

use crate::harness::{
    ALL, ERRORS_AND_HALF, HIGH, LOW, Metrics, Running, attribute, config, request, span, trace_id,
};

fn with_state(span: Span, trace_state: &str) -> Span {
    Span { trace_state: trace_state.into(), ..span }
}

/// The `tracestate` lists with which the spans of this trace arrive.
fn states(running: &Running, trace: u64) -> Vec<String> {
    let spans = running.traces().remove(&trace_id(trace)).unwrap_or_default();
    spans.into_iter().map(|span| span.trace_state).collect()
}

/// Scenario: kept traces whose spans have every kind of `tracestate`.
/// Guarantees: `ot` goes to the front with the higher threshold, other members stay unchanged, and
/// a list that cannot be parsed or would become too long is sent unchanged and counted.
#[tokio::test]
async fn tracestate_is_composed_or_left_alone() {
    let members = |n: usize| (0..n).map(|i| format!("k{i}=v")).collect::<Vec<_>>().join(",");
    let (fits, full) = (members(31), members(32));
    let long = format!("ot=x:{}", "y".repeat(250));
    let table = [
        ("", Some("ot=th:8")),
        ("a=1, b=2 ,,c=3", Some("ot=th:8,a=1,b=2,c=3")),
        ("a=1,ot=th:c,b=2", Some("ot=th:c,a=1,b=2")),
        ("ot=th:4", Some("ot=th:8")),
        ("ot=th:0;x:y,a=1", Some("ot=th:8;x:y,a=1")),
        ("a=1,ot=th:f8", Some("ot=th:8,a=1")), // above the randomness: erased
        ("ot=rv:bad", Some("ot=th:8;rv:bad")),
        (&fits, Some(&format!("ot=th:8,{fits}") as &str)),
        ("a=1,ot=th:G", None),
        ("ot=th:123456789012345", None),
        ("ot=th:1,ot=th:2", None),
        ("ot=th", None),
        ("ot=th:", None),
        ("a=1,ot=th;rv:f0000000000000", None),
        ("ot", None),
        (&full, None),
        (&long, None),
    ]
    .map(|(came, leaves)| (came.to_owned(), leaves.unwrap_or(came).to_owned(), leaves.is_none()));
    let running = Running::start(config(ERRORS_AND_HALF)).await;
    let traces = (1..).map(|n| HIGH | n).zip(&table);
    let spans = traces.clone().map(|(trace, (came, ..))| with_state(span(trace, 1, None), came));
    running.accept(spans.collect()).await;
    let metrics = running.at_rest().await;
    for (trace, (came, leaves, _)) in traces {
        assert_eq!(states(&running, trace), [leaves.as_str()], "{came}");
    }
    let unstamped = table.iter().filter(|(.., is_left)| *is_left).count();
    assert_eq!(metrics.get("unstamped_spans_total"), unstamped as f64);
    assert_eq!(metrics.get("inconsistent_threshold_spans_total"), 1.0);
    running.stop().await;
}

/// Scenario: a span whose `tracestate` is not UTF-8 and contains a low randomness.
/// Guarantees: it is kept by its trace id, is sent without a stamp, and is counted.
#[tokio::test]
async fn a_tracestate_that_is_no_text_is_not_stamped() {
    let running = Running::start(config(ERRORS_AND_HALF)).await;
    let list = b"ot=rv:00000000000001,vendor=caf#";
    let named = with_state(span(HIGH | 1, 1, None), std::str::from_utf8(list).expect("text"));
    let mut bytes = request("shop", vec![named]).encode_to_vec();
    let at = bytes.windows(list.len()).position(|window| window == list).expect("sent");
    bytes[at + list.len() - 1] = 0xe9;
    running.export_bytes(bytes).await.expect("accepted");
    let metrics = running.at_rest().await;
    assert_eq!(states(&running, HIGH | 1), ["ot=rv:00000000000001,vendor=caf\u{fffd}"]);
    assert_eq!(metrics.get("unstamped_spans_total"), 1.0);
    assert_eq!(metrics.get("repaired_strings_total"), 1.0);
    running.stop().await;
}

/// Scenario: the output of one instance is the input of another, which has other policies.
/// Guarantees: the root has policy and trigger once, those of the second instance.
#[tokio::test]
async fn a_second_instance_replaces_what_the_first_one_said() {
    let first = Running::start(config(ERRORS_AND_HALF)).await;
    first.accept(vec![span(HIGH | 1, 2, Some(1)), span(HIGH | 1, 1, None)]).await;
    first.at_rest().await;
    let sent = first.received.lock().expect("no panic").clone();
    first.stop().await;
    let second = Running::start(config(ALL)).await;
    for request in &sent {
        second.export(request).await.expect("accepted");
    }
    second.at_rest().await;
    let spans = second.spans();
    let keys = |span: &Span| -> Vec<String> {
        span.attributes.iter().map(|pair| pair.key.clone()).collect()
    };
    let expected = ["http.route", "tailwater.policy", "tailwater.trigger"];
    let (roots, others): (Vec<_>, Vec<_>) =
        spans.iter().partition(|span| span.parent_span_id.is_empty());
    assert_eq!((roots.len(), others.len()), (1, 1));
    assert_eq!(keys(roots[0]), expected);
    assert_eq!(attribute(roots[0], "tailwater.policy"), Some("all"));
    assert_eq!(keys(others[0]), ["http.route"]);
    assert!(spans.iter().all(|span| span.trace_state == "ot=th:8"));
    second.stop().await;
}

/// Scenario: spans of one trace that were sampled upstream at different thresholds, and one that
/// was not.
/// Guarantees: each is sent with the higher of its own and the trace's threshold.
#[tokio::test]
async fn spans_of_a_trace_keep_their_own_thresholds() {
    let running = Running::start(config(ERRORS_AND_HALF)).await;
    let came = ["ot=th:4", "ot=th:c", "", "ot=th:e8,a=1"];
    let spans = (1..)
        .zip(came)
        .map(|(id, state)| with_state(span(HIGH | 1, id, (id > 1).then_some(1)), state));
    running.accept(spans.collect()).await;
    running.at_rest().await;
    assert_eq!(states(&running, HIGH | 1), ["ot=th:8", "ot=th:c", "ot=th:8", "ot=th:e8,a=1"]);
    running.stop().await;
}

/// Scenario: spans of a trace with two valid `rv`, an invalid one and none; and one whose `rv` is
/// too low.
/// Guarantees: the lowest valid one decides; spans without an `rv` get it, including late ones.
#[tokio::test]
async fn the_lowest_explicit_randomness_decides() {
    let running = Running::start(config(ERRORS_AND_HALF)).await;
    let spans = [
        (LOW | 1, 1, "ot=rv:f0000000000000"),
        (LOW | 1, 2, "a=1,ot=rv:e0000000000000"),
        (LOW | 1, 3, ""),
        (LOW | 1, 4, "ot=rv:0"),
        (HIGH | 2, 1, "ot=rv:10000000000000"),
        (HIGH | 2, 2, "ot=rv:f0000000000000"),
    ];
    let parent = |id: u64| Some(1).filter(|_| id > 1);
    let spans = spans.map(|(trace, id, state)| with_state(span(trace, id, parent(id)), state));
    running.accept(spans.into()).await;
    running.at_rest().await;
    running.accept(vec![span(LOW | 1, 5, Some(1))]).await;
    let sent = |metrics: &Metrics| metrics.sum("exporter_sent_spans_total") == 5.0;
    running.until("the late span", sent).await;
    let expected = [
        "ot=th:8;rv:f0000000000000",
        "ot=th:8;rv:e0000000000000,a=1",
        "ot=th:8;rv:e0000000000000",
        "ot=th:8;rv:e0000000000000",
        "ot=th:8;rv:e0000000000000",
    ];
    assert_eq!(states(&running, LOW | 1), expected);
    assert_eq!(running.traces().len(), 1);
    running.stop().await;
}

/// Scenario: each of the two stamps turned off.
/// Guarantees: `tracestate` is sent unchanged, and no attribute is added.
#[tokio::test]
async fn stamps_can_be_turned_off() {
    for (tracestate, policy) in [(false, true), (true, false)] {
        let mut config = config(ALL);
        config.sampling.stamp_tracestate = tracestate;
        config.sampling.stamp_policy = policy;
        let running = Running::start(config).await;
        running.accept(vec![with_state(span(HIGH | 1, 1, None), "a=1 , ot=th:4")]).await;
        running.at_rest().await;
        let span = running.spans().remove(0);
        let expected = if tracestate { "ot=th:4,a=1" } else { "a=1 , ot=th:4" };
        assert_eq!(span.trace_state, expected);
        assert_eq!(attribute(&span, "tailwater.policy"), Some("all").filter(|_| policy));
        assert_eq!(span.attributes.len(), if policy { 3 } else { 1 });
        running.stop().await;
    }
}

/// Scenario: a trace whose root arrives last, one without a root, one whose root has a parent of
/// all zeros, and a late root.
/// Guarantees: policy and trigger are on the root, or otherwise on the first received span, and
/// once per decision.
#[tokio::test]
async fn one_span_of_a_decision_says_why() {
    let running = Running::start(config(ALL)).await;
    let child = |trace: u64, id: u64| span(HIGH | trace, id, Some(1));
    let zero_parent = Span { parent_span_id: vec![0; 8], ..span(HIGH | 3, 1, None) };
    running.accept(vec![child(1, 3), child(2, 9), child(2, 2), child(3, 2), zero_parent]).await;
    running.accept(vec![child(1, 2), span(HIGH | 1, 1, None), child(2, 3)]).await;
    running.at_rest().await;
    running.accept(vec![span(HIGH | 2, 1, None)]).await;
    let sent = |metrics: &Metrics| metrics.sum("exporter_sent_spans_total") == 9.0;
    running.until("the late root", sent).await;
    for (trace, bearer, trigger) in
        [(1, 1, "root_received"), (2, 9, "decision_wait"), (3, 1, "root_received")]
    {
        let spans = &running.traces()[&trace_id(HIGH | trace)];
        let stamped: Vec<_> = spans
            .iter()
            .filter(|span| attribute(span, "tailwater.policy") == Some("all"))
            .map(|span| (span.span_id[7], attribute(span, "tailwater.trigger")))
            .collect();
        assert_eq!(stamped, [(bearer, Some(trigger))]);
    }
    running.stop().await;
}
