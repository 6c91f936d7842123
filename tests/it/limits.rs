//! The limits of a trace and of memory: traces that reach them are decided early, by the configured
//! policies.

use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use std::{sync::Arc, time::Duration};
use tailwater::{config::Config, sampler::Which, trace::Trigger, window::Waits};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    harness::{
        ALL, ERRORS_AND_HALF, HIGH, LOW, Metrics, Running, attribute, config, error, get, request,
        span, string, trace_id,
    },
    timing::Core,
};

/// A configuration in which no trace is decided because of time.
fn waiting(policies: &str) -> Config {
    let mut config = config(policies);
    config.sampling.decision_wait = Duration::from_secs(600);
    config.sampling.decision_wait_after_root_received = None;
    config
}

/// A span with an attribute of this length.
fn large(trace: u64, id: u64, bytes: usize) -> Span {
    Span { attributes: vec![string("filler", "x".repeat(bytes))], ..span(trace, id, Some(1)) }
}

/// Scenario: a kept and a dropped trace exceed `max_trace_spans`, in one request and after it; a
/// third does not.
/// Guarantees: they are decided with exactly the cap; later spans follow the decision; the third is
/// not affected.
#[tokio::test]
async fn a_trace_is_decided_at_its_span_limit() {
    let mut config = waiting(ERRORS_AND_HALF);
    config.sampling.max_trace_spans = 10;
    let running = Running::start(config).await;
    let of = |trace: u64, ids: std::ops::Range<u64>| ids.map(move |id| span(trace, id, Some(1)));
    let spans = of(HIGH | 1, 1..26).chain(of(LOW | 2, 1..13)).chain(of(HIGH | 3, 1..10));
    running.accept(spans.collect()).await;
    let failed = Span { status: error(), ..span(LOW | 2, 13, Some(1)) };
    running.accept(of(HIGH | 1, 26..29).chain([failed]).collect()).await;
    let sent = |metrics: &Metrics| metrics.sum("exporter_sent_spans_total") == 28.0;
    let metrics = running.until("all of the kept trace", sent).await;
    assert_eq!(metrics.get("decisions_total{trigger=\"trace_limit\"}"), 2.0);
    assert_eq!(metrics.get("trace_spans_sum"), 20.0);
    assert_eq!(metrics.get("late_spans_total{decision=\"kept\"}"), 18.0);
    assert_eq!(metrics.get("late_spans_total{decision=\"dropped\"}"), 3.0);
    assert_eq!(metrics.get("late_error_spans_total{decision=\"dropped\"}"), 1.0);
    assert_eq!((metrics.sum("window_traces"), metrics.sum("window_spans")), (1.0, 9.0));
    let spans = running.spans();
    assert!(spans.iter().all(|span| span.trace_state == "ot=th:8"));
    let triggers = spans.iter().filter_map(|s| attribute(s, "tailwater.trigger"));
    assert_eq!(triggers.collect::<Vec<_>>(), ["trace_limit"]);
    running.stop().await;
}

/// Scenario: a trace exceeds `max_trace_bytes`, another stays below.
/// Guarantees: it is decided with the span that reaches the limit; the other keeps waiting.
#[tokio::test]
async fn a_trace_is_decided_at_its_byte_limit() {
    let mut config = waiting(ALL);
    let span_bytes = large(HIGH | 1, 1, 1_000).encoded_len();
    // The fourth span reaches the limit exactly.
    config.sampling.max_trace_bytes = 4 * u32::try_from(span_bytes).expect("small");
    let running = Running::start(config).await;
    let spans = (1..=6).map(|id| large(HIGH | 1, id, 1_000));
    running.accept(spans.chain((1..=3).map(|id| large(HIGH | 2, id, 1_000))).collect()).await;
    let sent = |metrics: &Metrics| metrics.sum("exporter_sent_spans_total") == 6.0;
    let metrics = running.until("all of the large trace", sent).await;
    assert_eq!(metrics.get("decisions_total{trigger=\"trace_limit\"}"), 1.0);
    assert_eq!(metrics.get("trace_spans_sum"), 4.0);
    assert_eq!(metrics.get("late_spans_total{decision=\"kept\"}"), 2.0);
    assert_eq!(metrics.sum("window_spans"), 3.0);
    running.stop().await;
}

/// Scenario: 20 MB of traces, one of ten with an error, with a memory limit of 16 MiB and a window
/// without end.
/// Guarantees: no sender is refused; the oldest traces are decided by the policies, so errors are
/// kept; memory returns below the soft limit.
#[tokio::test]
async fn above_the_soft_limit_the_oldest_are_decided_early() {
    let mut config = waiting(ERRORS_AND_HALF);
    config.sampling.memory_limit_bytes = 16 << 20;
    config.exporter.queue.queue_bytes_max = 4 << 20;
    let running = Running::start(config).await;
    let trace = |n: u64| {
        let status = if n.is_multiple_of(10) { error() } else { None };
        Span { status, ..large(LOW | n, 2, 4_000) }
    };
    let mut most = 0.0_f64;
    for first in (0..5_000).step_by(50) {
        running.accept((first..first + 50).map(trace).collect()).await;
        most = most.max(running.metrics().await.sum("memory_used_bytes"));
        // Wait for the decider, so that the limit is not reached, however busy the machine is.
        let room = |m: &Metrics| m.sum("memory_used_bytes") <= 0.9 * m.sum("memory_limit_bytes");
        running.until("there is room", room).await;
    }
    assert!(most <= f64::from(16 << 20), "{most} bytes");
    let below = |m: &Metrics| {
        m.sum("memory_used_bytes") <= 0.8 * m.sum("memory_limit_bytes")
            // Kept traces count before they are in the queue.
            && running.traces().len() as f64 == m.get("traces_kept_total{policy=\"errors\"}")
    };
    let metrics = running.until("memory is below the soft limit", below).await;
    assert_eq!(metrics.sum("receiver_refused_requests_total"), 0.0);
    assert_eq!(metrics.get("memory_limit_bytes"), f64::from(16 << 20));
    let decided = metrics.get("decisions_total{trigger=\"memory\"}");
    assert_eq!(decided, metrics.sum("decisions_total"));
    assert!((1_000.0..5_000.0).contains(&decided), "{decided}");
    let kept: std::collections::BTreeSet<_> = running.traces().into_keys().collect();
    assert!(kept.len() as f64 > 0.9 * decided / 10.0, "{} of {decided}", kept.len());
    // The oldest traces were decided first, in whatever shard.
    let oldest = (0..decided as u64 / 2).step_by(10).map(|n| trace_id(LOW | n));
    assert!(oldest.into_iter().all(|trace| kept.contains(&trace)));
    let (metrics, undelivered) = running.stop().await;
    assert_eq!(undelivered, 0);
    assert_eq!(metrics.get("traces_kept_total{policy=\"errors\"}"), 500.0);
}

/// Scenario: more requests at once than fit into the memory limit, from one sender that does not
/// wait for answers.
/// Guarantees: at the limit, requests are refused whole and with a retryable error, and accepted
/// when they are retried.
#[tokio::test]
async fn the_hard_limit_refuses_and_recovers() {
    let mut config = waiting(ERRORS_AND_HALF);
    config.sampling.memory_limit_bytes = 8 << 20;
    config.exporter.queue.queue_bytes_max = 2 << 20;
    let running = Arc::new(Running::start(config).await);
    let batch =
        |n: u64| request("shop", (1..=50).map(|i| large(LOW | n << 8 | i, 2, 20_000)).collect());
    let mut at_once = tokio::task::JoinSet::new();
    for n in 1..=20 {
        let running = Arc::clone(&running);
        at_once
            .spawn(async move { running.export(&batch(n)).await.map_err(|refusal| (n, refusal)) });
    }
    let answers = at_once.join_all().await;
    let refused: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
    assert!((1..20).contains(&refused.len()), "{refused:?}");
    let mut refusals = refused.len();
    for (n, refusal) in &refused {
        assert_eq!(refusal.code(), Code::Unavailable);
        assert!(refusal.get_details_retry_info().is_some());
        while running.export(&batch(*n)).await.is_err() {
            refusals += 1;
            assert!(refusals < 1_000, "memory does not become free");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let running = Arc::into_inner(running).expect("all have answered");
    let (metrics, _) = running.stop().await;
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 1_000.0);
    let because = "receiver_refused_requests_total{transport=\"grpc\",reason=\"memory\"}";
    assert_eq!(metrics.get(because), refusals as f64);
}

/// Scenario: a memory limit of 32 MiB, 400 policies that all match, and more decisions than the
/// memory limit can hold with their details.
/// Guarantees: the decision log stays within its share, so that no sender is refused, and the
/// newest decisions can be looked up.
#[tokio::test]
async fn the_decision_log_never_keeps_spans_out() {
    let policy = |n| format!("[[policy]]\nname = \"p{n}\"\ntype = \"always_sample\"\n");
    let mut config = config(&(0..400).map(policy).collect::<String>());
    config.sampling.memory_limit_bytes = 32 << 20;
    config.exporter.queue.queue_bytes_max = 8 << 20;
    config.sampling.decision_wait = Duration::from_millis(50);
    // The details of 40,000 traces take 36 MB.
    let running = Running::start(config).await;
    for first in (0..40_000).step_by(2_000) {
        let traces = first + 1..=first + 2_000;
        running.accept(traces.map(|n| span(n, 1, None)).collect()).await;
        running.at_rest().await;
    }
    let metrics = running.metrics().await;
    assert_eq!(metrics.sum("receiver_refused_requests_total"), 0.0);
    assert!(metrics.get("memory_used_bytes") <= 0.5 * metrics.get("memory_limit_bytes"));
    let path = |n| format!("/-/decisions/{:016x}{n:016x}", 0xabcd_ef01_2345_6789_u64);
    let (status, newest) = get(running.service.admin_address, &path(40_000)).await;
    assert!(status == 200 && newest.contains("p399"), "{newest}");
    running.stop().await;
}

/// Scenario: vetoes by something that a trace lacks and by something that it has, decided in time
/// and early.
/// Guarantees: in early decisions, only conditions that can no longer change veto.
#[test]
fn a_condition_that_can_still_turn_does_not_veto_by_force() {
    let policies = r#"
[[policy]]
name = "no-user"
type = "drop"
policies = [
  { type = "string_attribute", key = "user", values = ["a"], invert_match = true },
  { type = "not", policy = { type = "status_code", status_codes = ["OK"] } },
]

[[policy]]
name = "probe"
type = "drop"
policies = [{ type = "string_attribute", key = "http.route", values = ["/healthz"] }]

[[policy]]
name = "all"
type = "always_sample"
"#;
    let waits = Waits { decision_wait: 1_000, after_root: None };
    let probe = Span { attributes: vec![string("http.route", "/healthz")], ..span(2, 1, None) };
    let spans = || vec![span(1, 1, None), probe.clone()];
    let mut core = Core::new(policies, waits);
    core.ingest(0, spans());
    core.decide(1_000, Which::Due);
    assert_eq!(core.decided.kept.len(), 0);
    for trigger in [Trigger::Memory, Trigger::Shutdown] {
        let mut core = Core::new(policies, waits);
        core.ingest(0, spans());
        assert_eq!(core.decide(10, Which::Oldest(trigger)), [(1, trigger), (2, trigger)]);
        let kept = core.decided.decisions.records.iter().filter(|r| r.decision.verdict.kept);
        assert_eq!(kept.map(|record| record.trace_id.0[15]).collect::<Vec<_>>(), [1]);
    }
}

/// Scenario: spans of two undecided traces.
/// Guarantees: the gauges have their exact number and bytes, and the memory in use.
#[tokio::test]
async fn the_window_is_measured() {
    let running = Running::start(waiting(ALL)).await;
    let spans = vec![span(HIGH | 1, 1, None), span(HIGH | 1, 2, Some(1)), span(HIGH | 2, 1, None)];
    let bytes: usize = spans.iter().map(prost::Message::encoded_len).sum();
    running.accept(spans).await;
    let metrics = running.metrics().await;
    assert_eq!(metrics.get("window_traces"), 2.0);
    assert_eq!(metrics.get("window_spans"), 3.0);
    assert_eq!(metrics.get("window_bytes"), bytes as f64);
    assert!(metrics.get("memory_used_bytes") > bytes as f64);
    metrics.assert_ledger();
    running.stop().await;
}

/// Scenario: a cap of 5 KiB on kept traces; a trace of nine spans of a kilobyte with one of six
/// kilobytes among them, then late ones; another trace beside it.
/// Guarantees: spans that fit are sent in the order of arrival, over the whole life of the trace;
/// the rest is counted as trace_bytes under the policy; the other trace is whole.
#[tokio::test]
async fn kept_traces_stay_below_the_cap_for_life() {
    let mut config = config(ALL);
    config.exporter.max_trace_bytes = Some(5 << 10);
    let running = Running::start(config).await;
    let first = (2..=3).map(|id| large(1, id, 1_000)).chain([large(1, 4, 6_000)]);
    running.accept(first.chain([span(1, 1, None), large(2, 1, 1_000)]).collect()).await;
    running.at_rest().await;
    running.accept((5..=10).map(|id| large(1, id, 1_000)).collect()).await;
    running.at_rest().await;
    running.accept(vec![large(1, 11, 1_000), large(2, 2, 1_000)]).await;
    let metrics = running.at_rest().await;
    let of = |trace: u64| {
        let spans = running.traces().remove(&trace_id(trace)).expect("kept");
        let mut ids: Vec<u8> = spans.iter().map(|span| span.span_id[7]).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!((of(1), of(2)), (vec![1, 2, 3, 5, 6], vec![1, 2]));
    let cut = "spans_dropped_total{policy=\"all\",reason=\"trace_bytes\"}";
    assert_eq!((metrics.get(cut), metrics.sum("spans_kept_total")), (6.0, 7.0));
    assert_eq!(metrics.get("late_spans_total{decision=\"kept\"}"), 8.0);
    running.stop().await;
}
