//! Shadow policies that are added, removed and put in force while the service runs.

use super::{File, post};
use crate::harness::{HIGH, LOW, Metrics, Running, span};

const HALF: &str =
    "[[policy]]\nname = \"half\"\ntype = \"probabilistic\"\nsampling_percentage = 50\n";

fn named(shadow: &str) -> String {
    format!(
        "{HALF}[[policy]]\nname = \"named\"\ntype = \"span_name\"\nvalues = [\"a\"]\n{shadow}\n"
    )
}

fn kept(metrics: &Metrics) -> [f64; 2] {
    let shadow = "shadow_traces_total{policy=\"named\",effect=\"kept\"}";
    [shadow, "traces_kept_total{policy=\"named\"}"].map(|series| metrics.get(series))
}

/// Scenario: traces wait while a shadow policy is added that reads something new; then it is put in
/// force; then it is removed.
/// Guarantees: it counts the buffered traces that it would have kept, and keeps nothing; in force,
/// it keeps traces, and no longer counts as a shadow; its counters stay.
#[tokio::test]
async fn a_shadow_policy_is_added_and_put_in_force() {
    let file = File::new(HALF);
    let mut config = file.config();
    config.sampling.decision_wait_after_root_received = None;
    let running = Running::start(config).await;
    let named_span = |trace| {
        let mut span = span(trace, 1, None);
        span.name = "a".into();
        span
    };
    running.accept(vec![named_span(LOW | 1), span(LOW | 2, 1, None), named_span(HIGH | 3)]).await;
    file.write(&named("shadow = true"));
    assert_eq!(post(&running, "").await.status, 200);
    let metrics = running.metrics().await;
    assert_eq!(kept(&metrics), [0.0, 0.0]);
    assert_eq!(metrics.get("window_spans"), 3.0);
    assert_eq!(kept(&running.at_rest().await), [1.0, 0.0]);

    running.accept(vec![named_span(LOW | 4)]).await;
    file.write(&named(""));
    assert_eq!(post(&running, "").await.status, 200);
    assert_eq!(kept(&running.at_rest().await), [1.0, 1.0]);

    file.write(HALF);
    assert_eq!(post(&running, "").await.status, 200);
    running.accept(vec![named_span(LOW | 5)]).await;
    let metrics = running.at_rest().await;
    assert_eq!(kept(&metrics), [1.0, 1.0]);
    assert_eq!(metrics.get("traces_dropped_total{policy=\"half\"}"), 3.0);
    running.stop().await;
}
