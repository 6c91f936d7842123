//! The state of the service in one message, and as JSON.

use std::time::Duration;

use serde_json::Value;
use tailwater::control::{GetStatusResponse, backend, decision};
use tonic::Status;

use crate::harness::{
    Directory, ERRORS_AND_HALF, HIGH, LOW, Metrics, Running, config, error, get, span,
};

/// Beside errors and half of the rest.
const OTHERS: &str = r#"
[[policy]]
name = "limited"
type = "always_sample"
sampling_percentage = 12.5
limit = { spans_per_second = 1000 }

[[policy]]
name = "noise"
type = "drop"
policies = [{ type = "span_count", min_spans = 3 }]

[[policy]]
name = "longer"
type = "latency"
threshold_ms = 5
shadow = true
expires = 2100-01-01T00:00:00Z
"#;

/// Traces with every outcome: kept by two policies, dropped by one, by a veto, and by none.
async fn send(running: &Running) {
    let mut failed = span(LOW | 1, 1, None);
    failed.status = error();
    running.accept(vec![failed]).await;
    running.accept(vec![span(HIGH | 2, 1, None), span(HIGH | 2, 2, Some(1))]).await;
    running.accept(vec![span(LOW | 3, 1, None)]).await;
    running.accept((1..=3).map(|id| span(HIGH | 4, id, None)).collect()).await;
}

fn assert_agrees(status: &GetStatusResponse, metrics: &Metrics) {
    let ledger = status.ledger.as_ref().expect("there");
    for (counted, metric) in [
        (ledger.accepted, "receiver_accepted_spans_total"),
        (ledger.kept, "spans_kept_total"),
        (ledger.dropped, "spans_dropped_total"),
        (ledger.buffered, "window_spans"),
        (ledger.sent, "exporter_sent_spans_total"),
        (ledger.failed, "exporter_failed_spans_total"),
        (ledger.queued, "exporter_queue_spans"),
    ] {
        assert_eq!(counted as f64, metrics.sum(metric), "{metric}");
    }
    for policy in &status.policies {
        let of = |metric: &str| metrics.get(&format!("{metric}{{policy=\"{}\"}}", policy.name));
        assert_eq!(policy.matched_traces as f64, of("policy_matches_total"), "{policy:?}");
        assert_eq!(policy.kept_traces as f64, of("traces_kept_total"), "{policy:?}");
        assert_eq!(policy.dropped_traces as f64, of("traces_dropped_total"), "{policy:?}");
        assert_eq!(policy.kept_spans as f64, of("spans_kept_total"), "{policy:?}");
    }
}

/// Scenario: traces with every outcome; then the service is at rest.
/// Guarantees: the status has the figures of /metrics, each policy with its type and the share that
/// it keeps, and the last decisions, newest first and complete. As JSON it has the same figures,
/// including zeros.
#[tokio::test]
async fn the_figures_agree_at_rest() {
    let running = Running::start(config(&(ERRORS_AND_HALF.to_owned() + OTHERS))).await;
    let before = running.service.admin().status();
    assert_eq!(before.backend.expect("there").state(), backend::State::Unused);
    send(&running).await;
    let metrics = running.at_rest().await;
    let status = running.service.admin().status();
    assert!(status.ready);
    assert_agrees(&status, &metrics);
    let shares = [Some(100.0), Some(50.0), Some(12.5), None, Some(100.0)];
    let types = ["status_code", "probabilistic", "always_sample", "drop", "latency"];
    assert_eq!(status.policies.iter().map(|p| p.percentage).collect::<Vec<_>>(), shares);
    assert_eq!(status.policies.iter().map(|p| &p.r#type[..]).collect::<Vec<_>>(), types);
    let longer = &status.policies[4];
    assert!(longer.shadow && longer.expire_time.is_some_and(|at| at.seconds == 4_102_444_800));
    assert_eq!((longer.shadow_kept_traces, longer.shadow_dropped_traces), (1, 0));
    assert_eq!(status.backend.as_ref().expect("there").state(), backend::State::Taking);

    let decisions = &status.recent_decisions;
    assert_eq!(decisions.len(), 4);
    let times: Vec<_> = decisions.iter().map(|d| d.details.as_ref()?.decision_time).collect();
    assert!(
        times.is_sorted_by_key(|at| std::cmp::Reverse(at.expect("there").seconds)),
        "newest first"
    );
    let vetoed = decisions.iter().find(|d| d.policy == "noise").expect("there");
    assert_eq!((vetoed.state(), &vetoed.threshold), (decision::State::Dropped, &None));
    let failed = decisions.iter().find(|d| d.policy == "errors").expect("there");
    assert_eq!((failed.percentage, failed.threshold.as_deref()), (100.0, Some("00000000000000")));
    let details = failed.details.as_ref().expect("logged");
    assert_eq!(details.matched, ["errors", "half", "limited"]);
    assert_eq!(details.shadow_matched, ["longer"]);
    assert!(details.root_received && details.spans == 1 && details.due_time.is_none());

    let (code, json) = get(running.service.admin_address, "/-/status").await;
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(code, 200);
    assert_eq!(json["ledger"]["accepted"], "7", "64 bits are strings");
    assert_eq!((&json["ledger"]["failed"], &json["queue"]["spans"]), (&"0".into(), &"0".into()));
    assert_eq!(json["activity"]["trialRunning"], false);
    assert_eq!(json["policies"][0]["name"], "errors");
    assert_eq!(json["policies"][0]["shadow"], false);
    assert_eq!(json["policies"][1]["percentage"], 50.0);
    assert!(json["policies"][3].get("percentage").is_none());
    assert_eq!(json["backend"]["state"], "STATE_TAKING");
    running.stop().await;
}

/// Scenario: policies that tell kinds of traces apart.
/// Guarantees: a `rare` policy keeps all that it grants, and a `budget` has no single share.
#[tokio::test]
async fn the_shares_of_policies_with_kinds() {
    let policies = r#"
[[policy]]
name = "first"
type = "rare"
keys = ["span.name"]

[[policy]]
name = "fair"
type = "budget"
keys = ["span.name"]
spans_per_second = 100

[[policy]]
name = "second"
type = "rare"
keys = ["service.name"]
shadow = true
"#;
    let running = Running::start(config(policies)).await;
    running.accept(vec![span(LOW | 1, 1, None)]).await;
    running.at_rest().await;
    let status = running.service.admin().status();
    let shares: Vec<_> = status.policies.iter().map(|policy| policy.percentage).collect();
    assert_eq!(shares, [Some(100.0), None, Some(100.0)]);
    running.stop().await;
}

/// Scenario: the backend refuses every request for a while, then accepts them.
/// Guarantees: the status says so, with the error and the time since when.
#[tokio::test]
async fn the_backend_is_told() {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    };
    let is_down = Arc::new(AtomicBool::new(true));
    let told = Arc::clone(&is_down);
    let answer = move |_: &_| match told.load(Relaxed) {
        true => Err(Status::unavailable("the ingester is down")),
        false => Ok(bytes::Bytes::new()),
    };
    let running = Running::start_with(config(crate::harness::ALL), Box::new(answer)).await;
    running.accept(vec![span(1, 1, None)]).await;
    let until = async |state: backend::State| {
        for _ in 0..500 {
            let backend = running.service.admin().status().backend.expect("there");
            if backend.state() == state {
                return backend;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the backend is never {state:?}");
    };
    let failing = until(backend::State::Failing).await;
    assert_eq!(failing.error, "UNAVAILABLE: the ingester is down");
    is_down.store(false, Relaxed);
    let taking = until(backend::State::Taking).await;
    assert_eq!(taking.error, "");
    running.at_rest().await;
    running.stop().await;
}

/// Scenario: a configuration of two files is reloaded, once with a mistake.
/// Guarantees: the hash covers all files one after the other, and belongs to the policies in force;
/// the status says whether the last reload succeeded.
#[tokio::test]
async fn the_configuration_in_force_is_named() {
    let directory = Directory::new();
    let more = "[[policy]]\nname = \"more\"\ntype = \"always_sample\"\n";
    directory.file("more.toml", more);
    let text = "[sampling]\npolicy_files = [\"more.toml\"]\n";
    let file = directory.file("tailwater.toml", text);
    let loaded = tailwater::config::load(file.as_ref()).config.expect("good");
    let mut config = config(crate::harness::ALL);
    (config.file, config.hash) = (loaded.file, loaded.hash);
    let running = Running::start(config).await;
    let configuration = || running.service.admin().status().configuration.expect("there");
    let sha256 = |text: &str| {
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let before = configuration();
    assert_eq!((&before.file, &before.hash), (&file, &sha256(&format!("{text}{more}"))));
    assert!(before.last_reload_successful);
    directory.file("more.toml", "[[policy]]\n");
    running.service.reload().await;
    let refused = configuration();
    assert_eq!((refused.last_reload_successful, refused.hash), (false, before.hash));
    let changed = more.replace("more", "changed");
    directory.file("more.toml", &changed);
    running.service.reload().await;
    let reloaded = configuration();
    assert_eq!(reloaded.hash, sha256(&format!("{text}{changed}")));
    assert!(reloaded.last_reload_successful);
    let names: Vec<_> = running.service.admin().status().policies;
    assert_eq!(names.iter().map(|policy| &policy.name[..]).collect::<Vec<_>>(), ["changed"]);
    running.stop().await;
}
