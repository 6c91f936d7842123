//! Policies that expire while the service runs.

use std::time::{Duration, SystemTime};

use super::{File, post};
use crate::harness::{LOW, Metrics, Running, span};

/// A policy that keeps everything until `end`.
fn until(end: Option<SystemTime>) -> String {
    let expires = end.map(|end| format!("expires = {}", humantime::format_rfc3339_millis(end)));
    format!("[[policy]]\nname = \"p\"\ntype = \"always_sample\"\n{}\n", expires.unwrap_or_default())
}

fn kept_and_dropped(metrics: &Metrics) -> [f64; 2] {
    ["traces_kept_total{policy=\"p\"}", "traces_dropped_total{policy=\"none\"}"]
        .map(|series| metrics.get(series))
}

/// Scenario: a policy that expires in a second decides traces; the file is changed so that it
/// expires much later, and then so that it does not expire.
/// Guarantees: once expired, it matches nothing and gets no credit; a reload puts it in force
/// again; the metric has the time of expiry, and exists only while the policy has one.
#[tokio::test]
async fn a_policy_ends_at_its_time() {
    const EXPIRY: &str = "policy_expiry_timestamp_seconds{policy=\"p\"}";
    let end = SystemTime::now() + Duration::from_secs(1);
    let file = File::new(&until(Some(end)));
    let running = Running::start(file.config()).await;
    let unix = end.duration_since(SystemTime::UNIX_EPOCH).expect("later").as_millis() as f64 / 1e3;
    assert_eq!(running.metrics().await.get(EXPIRY), unix);
    let mut sent = 0;
    let [kept, dropped] = loop {
        sent += 1;
        running.accept(vec![span(LOW | sent, 1, None)]).await;
        let has_ended = SystemTime::now() > end + Duration::from_millis(200);
        let counts = kept_and_dropped(&running.at_rest().await);
        if has_ended {
            break counts;
        }
    };
    assert!(dropped >= 1.0, "the last one at least");
    assert_eq!(kept + dropped, sent as f64);

    let later = SystemTime::now() + Duration::from_secs(3600);
    file.write(&until(Some(later)));
    assert_eq!(post(&running, "").await.status, 200);
    running.accept(vec![span(LOW | 1001, 1, None)]).await;
    let metrics = running.at_rest().await;
    assert_eq!(kept_and_dropped(&metrics), [kept + 1.0, dropped]);
    assert!(metrics.get(EXPIRY) > unix + 3000.0);

    file.write(&until(None));
    assert_eq!(post(&running, "").await.status, 200);
    let metrics = running.metrics().await;
    assert!(
        !metrics.0.contains_key(EXPIRY)
            && metrics.0.keys().all(|key| !key.contains("expiry_timestamp"))
    );

    // A policy that has expired before the start decides nothing, not even the first trace.
    file.write(&until(Some(end)));
    assert_eq!(post(&running, "").await.status, 200);
    running.accept(vec![span(LOW | 1002, 1, None)]).await;
    assert_eq!(kept_and_dropped(&running.at_rest().await), [kept + 1.0, dropped + 1.0]);
    running.stop().await;
}
