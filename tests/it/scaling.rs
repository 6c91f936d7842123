//! Several instances behind a load balancer that routes by trace id, while their number changes.

use std::collections::HashMap;

use opentelemetry_proto::tonic::trace::v1::Span;

use crate::harness::{ERRORS_AND_HALF, Metrics, Running, config, error, span};

const TRACES: u64 = 300;

/// The instance of a trace: the one that hashes highest with it, so that a change of their number
/// moves as few traces as possible, as with the Collector's ring.
fn instance(trace: u64, instances: usize) -> usize {
    let score = |instance: usize| {
        let mixed = (trace ^ (instance as u64) << 56).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93)
    };
    (0..instances).max_by_key(|&instance| score(instance)).expect("instances")
}

/// Exports one span per trace to its instance.
async fn send(running: &[Running], instances: usize, spans: &HashMap<u64, Span>) {
    for (index, running) in running.iter().enumerate() {
        let of_instance = spans.iter().filter(|(trace, _)| instance(**trace, instances) == index);
        let spans: Vec<_> = of_instance.map(|(_, span)| span.clone()).collect();
        if !spans.is_empty() {
            running.accept(spans).await;
        }
    }
}

/// Scenario: children of 300 traces, a tenth of them errors, reach 3 (4) instances; their roots
/// arrive when there are 4 (2).
/// Guarantees: about a quarter (half) of the traces are split; if only probability decides, all
/// halves are decided alike; errors are kept on the instance that sees them; the ledgers hold, and
/// halves without a root are decided by `decision_wait` and counted as such.
#[tokio::test]
async fn halves_of_split_traces_are_decided_alike() {
    for (before, after, share) in [(3, 4, 0.25), (4, 2, 0.5)] {
        let mut running = Vec::new();
        for _ in 0..4 {
            running.push(Running::start(config(ERRORS_AND_HALF)).await);
        }
        let mut random = fastrand::Rng::with_seed(before as u64);
        let traces: Vec<u64> = (0..TRACES).map(|_| random.u64(1..)).collect();
        let is_error = |index: usize| index.is_multiple_of(10);
        let children = traces.iter().enumerate().map(|(index, &trace)| {
            let status = if is_error(index) { error() } else { None };
            (trace, Span { status, ..span(trace, 2, Some(1)) })
        });
        send(&running, before, &children.collect()).await;
        let roots = traces.iter().map(|&trace| (trace, span(trace, 1, None))).collect();
        send(&running, after, &roots).await;

        let is_split = |trace: u64| instance(trace, before) != instance(trace, after);
        let split = traces.iter().filter(|&&trace| is_split(trace)).count();
        let measured = split as f64 / TRACES as f64;
        assert!((measured - share).abs() < 0.1, "{before} to {after}: {measured}");
        let mut rootless = 0.0;
        let mut kept = HashMap::<Vec<u8>, usize>::new();
        for running in running {
            let metrics: Metrics = running.at_rest().await;
            // On a slow machine a root may come after the wait, and then follows the decision.
            rootless += metrics.get("decisions_total{trigger=\"decision_wait\"}");
            rootless -= metrics.sum("late_spans_total");
            for (trace, spans) in running.traces() {
                *kept.entry(trace).or_default() += spans.len();
            }
            assert_eq!(running.stop().await.1, 0);
        }
        assert_eq!(rootless as usize, split, "those that never saw their root");
        for (index, &trace) in traces.iter().enumerate() {
            let kept = kept.get(&crate::harness::trace_id(trace)).copied().unwrap_or(0);
            let by_probability = trace << 8 >> 63 == 1;
            let expected = match (is_error(index), by_probability, is_split(trace)) {
                (_, true, _) | (true, _, false) => 2,
                // The half with the error.
                (true, false, true) => 1,
                (false, false, _) => 0,
            };
            assert_eq!(kept, expected, "{trace:x}");
        }
    }
}
