//! Reloading policies: buffered traces are decided by the new ones, nothing is lost or refused
//! meanwhile, and counters and names survive.

mod buffered;
mod expiry;
mod shadow;
mod watching;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::Value;
use tailwater::config::{self, Config};

use crate::{
    harness::{
        ALL, ERRORS_AND_HALF, HIGH, LOW, Metrics, Running, attribute, error, get, span, string,
        tempfile, trace_id,
    },
    wire::{self, Answer},
};

/// A configuration file that a service was started with, and may read again.
struct File(PathBuf);

impl File {
    fn new(text: &str) -> Self {
        File(tempfile(text))
    }

    fn write(&self, text: &str) {
        std::fs::write(&self.0, text).expect("written");
    }

    /// The configuration of the harness, with the file still there.
    fn config(&self) -> Config {
        let loaded = config::load(&self.0).config.expect("no errors");
        let mut config = crate::harness::config(ALL);
        config.policies = loaded.policies;
        config.file = loaded.file;
        config.inputs = loaded.inputs;
        config.shown = loaded.shown;
        config.telemetry.enable_lifecycle = true;
        config
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn post(running: &Running, headers: &str) -> Answer {
    let head = format!(
        "POST /-/reload HTTP/1.1\r\nhost: t\r\n{headers}content-length: 0\r\nconnection: close\r\n\
         \r\n"
    );
    wire::http1(running.service.admin_address, head.as_bytes()).await
}

fn body(answer: &Answer) -> &str {
    std::str::from_utf8(&answer.body).expect("UTF-8")
}

/// A policy that keeps traces with this value of this attribute.
fn attribute_policy(name: &str, key: &str, value: &str) -> String {
    format!(
        "[[policy]]\nname = \"{name}\"\ntype = \"string_attribute\"\nkey = \"{key}\"\n\
         values = [\"{value}\"]\n"
    )
}

/// Scenario: a reload of a file in which a setting has changed as well, which needs a restart.
/// Guarantees: the page shows the file as it was and as it is, and says what waits for a restart.
#[tokio::test]
async fn the_page_shows_what_is_in_force_after_a_reload() {
    let with_wait = |seconds| format!("[sampling]\ndecision_wait = \"{seconds}s\"\n{ALL}");
    let file = File::new(&with_wait(41));
    let running = Running::start(file.config()).await;
    let page = async || get(running.service.admin_address, "/").await.1;
    let before = page().await;
    assert!(before.contains("decision_wait = &quot;41s&quot;"), "{before}");
    assert!(!before.contains("waits for a restart"), "{before}");
    file.write(&with_wait(42));
    assert_eq!(post(&running, "").await.status, 200);
    let after = page().await;
    for part in [
        "read at the start: in force except for policies",
        "decision_wait = &quot;41s&quot;",
        "read at the last reload: only its policies are in force",
        "decision_wait = &quot;42s&quot;",
        "waits for a restart",
        "[sampling]",
    ] {
        assert!(after.contains(part), "{part}: {after}");
    }
    running.stop().await;
}

/// Scenario: traces wait that no policy would keep; then policies are loaded on an attribute, a
/// resource attribute and the name of their spans, which no policy had read before; late spans
/// follow.
/// Guarantees: they are decided by the new policies; credit, stamp and look-up name them; counters
/// of the removed policy stay, those of new ones begin at 0, and a policy that returns goes on
/// counting.
#[tokio::test]
async fn buffered_traces_are_decided_by_the_new_policies() {
    let file = File::new(&attribute_policy("old", "nobody", "has"));
    let mut config = file.config();
    config.sampling.decision_wait_after_root_received = None;
    let running = Running::start(config).await;
    running.accept(vec![Span { name: "old".into(), ..span(LOW | 9, 1, None) }]).await;
    let metrics = running.at_rest().await;
    assert_eq!(metrics.get("spans_dropped_total{policy=\"none\",reason=\"decision\"}"), 1.0);
    assert_eq!(metrics.0.keys().filter(|series| series.contains("\"new\"")).count(), 0);

    let wanted = Span { attributes: vec![string("tier", "gold")], ..span(LOW | 1, 1, None) };
    let named = Span { name: "pay".into(), ..span(LOW | 2, 1, None) };
    running.accept(vec![wanted, named, span(LOW | 3, 1, None)]).await;
    let names = "[[policy]]\nname = \"names\"\ntype = \"span_name\"\nvalues = [\"pay\"]\n";
    let of_no_one = "[[policy]]\nname = \"idle\"\ntype = \"and\"\npolicies = [{ type = \
                     \"service_name\", values = [\"shop\"] }, { type = \"span_count\", \
                     min_spans = 7 }]\n";
    file.write(&format!("{}{names}{of_no_one}", attribute_policy("new", "tier", "gold")));
    let answer = post(&running, "").await;
    assert_eq!((answer.status, body(&answer)), (200, "reloaded, policies: 3\n"));
    let metrics = running.metrics().await;
    assert_eq!(metrics.get("spans_kept_total{policy=\"new\"}"), 0.0);
    assert_eq!(metrics.get("spans_dropped_total{policy=\"idle\",reason=\"late\"}"), 0.0);
    assert_eq!(metrics.get("window_spans"), 3.0);

    let metrics = running.at_rest().await;
    for (policy, kept) in [("new", 1.0), ("names", 1.0), ("idle", 0.0), ("old", 0.0)] {
        assert_eq!(metrics.get(&format!("traces_kept_total{{policy=\"{policy}\"}}")), kept);
    }
    assert_eq!(metrics.get("traces_dropped_total{policy=\"none\"}"), 2.0);
    let traces = running.traces();
    assert_eq!(traces.keys().collect::<Vec<_>>(), [&trace_id(LOW | 1), &trace_id(LOW | 2)]);
    let policy = attribute(&traces[&trace_id(LOW | 2)][0], "tailwater.policy");
    assert_eq!(policy, Some("names"));

    file.write(&attribute_policy("old", "nobody", "has"));
    assert_eq!(post(&running, "").await.status, 200);
    running.accept(vec![span(LOW | 1, 2, Some(1))]).await;
    let metrics = running.at_rest().await;
    assert_eq!(metrics.get("spans_kept_total{policy=\"new\"}"), 2.0, "a late span follows");
    let hex: String = trace_id(LOW | 1).iter().map(|byte| format!("{byte:02x}")).collect();
    let (_, found) = get(running.service.admin_address, &format!("/-/decisions/{hex}")).await;
    assert_eq!(serde_json::from_str::<Value>(&found).expect("JSON")["policy"], "new");
    running.stop().await;
}

fn reloads(metrics: &Metrics) -> (f64, f64) {
    let success = metrics.get("config_last_reload_success_timestamp_seconds");
    (metrics.get("config_last_reload_successful"), success)
}

/// Scenario: reloads of a file with mistakes in two places, of a missing file, and of a valid one.
/// Guarantees: 400 with the output of `check`, as text or as JSON; the old policies stay in force,
/// and the metrics have the time of the last successful reload.
#[tokio::test]
async fn invalid_files_change_nothing() {
    let file = File::new(ERRORS_AND_HALF);
    let running = Running::start(file.config()).await;
    let before = running.metrics().await;
    let (successful, at_start) = reloads(&before);
    assert!(successful == 1.0 && at_start > 1.6e9);

    file.write("[[policy]]\nname = \"x\"\ntype = \"latncy\"\n[sampling]\ndecision_wiat = \"1s\"\n");
    let report =
        tailwater::commands::check::check(std::slice::from_ref(&file.0), Default::default()).text;
    let place = format!("{}:3:8: error: ", file.0.display());
    for _ in 0..2 {
        let answer = post(&running, "accept: text/plain\r\n").await;
        assert_eq!((answer.status, body(&answer)), (400, &report[..]));
        assert!(report.starts_with(&place), "{report}");
    }
    let answer = post(&running, "accept: application/json\r\n").await;
    assert_eq!((answer.status, answer.header("content-type")), (400, "application/json"));
    let json: Value = serde_json::from_str(body(&answer)).expect("JSON");
    let diagnostics = json["diagnostics"].as_array().expect("a list");
    assert_eq!(diagnostics.len(), 2);
    assert_eq!((&diagnostics[0]["line"], &diagnostics[0]["column"]), (&3.into(), &8.into()));
    std::fs::remove_file(&file.0).expect("removed");
    assert_eq!(post(&running, "").await.status, 400);

    let after = running.metrics().await;
    assert_eq!(reloads(&after), (0.0, at_start));
    assert!(before.0.keys().eq(after.0.keys()), "no series of a refused policy");
    running.accept(vec![span(HIGH | 1, 1, None), span(LOW | 2, 1, None)]).await;
    assert_eq!(running.at_rest().await.get("traces_kept_total{policy=\"half\"}"), 1.0);

    file.write(ALL);
    assert_eq!(post(&running, "").await.status, 200);
    let (successful, at) = reloads(&running.metrics().await);
    assert!(successful == 1.0 && at > at_start);
    running.stop().await;
}

/// Scenario: POST while `enable_lifecycle` is off, and other methods.
/// Guarantees: 403 that names the key, and 405; nothing is read.
#[tokio::test]
async fn reloading_over_http_has_to_be_enabled() {
    let file = File::new(ALL);
    let mut config = file.config();
    config.telemetry.enable_lifecycle = false;
    let running = Running::start(config).await;
    file.write("nonsense");
    let answer = post(&running, "").await;
    assert_eq!(answer.status, 403);
    assert!(body(&answer).contains("`enable_lifecycle = true` in [telemetry]"));
    for method in ["GET", "PUT", "HEAD"] {
        let head = format!("{method} /-/reload HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n");
        let answer = wire::http1(running.service.admin_address, head.as_bytes()).await;
        assert_eq!((answer.status, answer.header("allow")), (405, "POST"), "{method}");
    }
    assert_eq!(reloads(&running.metrics().await).0, 1.0);
    running.stop().await;
}

/// Scenario: a service without a configuration file is told to reload.
/// Guarantees: the built-in policies stay in force.
#[tokio::test]
async fn built_in_policies_can_be_reloaded() {
    let mut config = crate::harness::config(ALL);
    config.policies = config::embedded().policies;
    config.file = None;
    let running = Running::start(config).await;
    running.service.reload().await;
    assert_eq!(reloads(&running.metrics().await).0, 1.0);
    running.accept(vec![Span { status: error(), ..span(LOW | 1, 1, None) }]).await;
    assert_eq!(running.at_rest().await.get("traces_kept_total{policy=\"errors\"}"), 1.0);
    running.stop().await;
}

/// Exports traces of two requests until told to stop; returns how many. Every second trace has an
/// error.
async fn load(running: &Running, sender: u64, stop: &AtomicBool) -> u64 {
    let mut sent = 0;
    while !stop.load(Relaxed) {
        let trace = LOW | sender << 32 | sent;
        running.accept(vec![span(trace, 2, Some(1))]).await;
        let status = if sent.is_multiple_of(2) { error() } else { None };
        running.accept(vec![Span { status, ..span(trace, 1, None) }]).await;
        sent += 1;
        tokio::task::yield_now().await;
    }
    sent
}

/// Scenario: 1,000 reloads, half of them of an invalid file, while two senders export traces in two
/// parts. All valid files keep errors, by policies with other names and other leaves.
/// Guarantees: no request is refused, every failed trace arrives whole, nothing else arrives, the
/// ledger is exact, and every reload gets the right answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_reloads_under_load_lose_nothing() {
    let errors = |name: &str| {
        let status = "type = \"status_code\"\nstatus_codes = [\"ERROR\"]\n";
        format!("[[policy]]\nname = \"{name}\"\n{status}")
    };
    let file = File::new(&errors("first"));
    let mut config = file.config();
    config.sampling.decision_wait = Duration::from_millis(100);
    config.sampling.decision_wait_after_root_received = Some(Duration::from_millis(20));
    let running = Arc::new(Running::start(config).await);
    let stop = Arc::new(AtomicBool::new(false));
    let senders = [1, 2].map(|sender| {
        let (running, stop) = (Arc::clone(&running), Arc::clone(&stop));
        tokio::spawn(async move { load(&running, sender, &stop).await })
    });
    for number in 0..1_000 {
        let (text, status) = match number % 4 {
            0 => (errors("first") + &attribute_policy("other", "http.route", "/none"), 200),
            2 => (attribute_policy("gold", "tier", "gold") + &errors("second"), 200),
            _ => (errors("first") + "unknown = 1\n", 400),
        };
        file.write(&text);
        assert_eq!(post(&running, "").await.status, status, "{number}");
    }
    stop.store(true, Relaxed);
    let mut sent = 0;
    for (sender, task) in (1..).zip(senders) {
        let traces = task.await.expect("no panic");
        assert!(traces > 0, "sender {sender}");
        sent += traces;
    }
    let running = Arc::into_inner(running).expect("the senders are gone");
    let metrics = running.at_rest().await;
    assert_eq!(metrics.get("receiver_accepted_spans_total{transport=\"grpc\"}"), 2.0 * sent as f64);
    for none in ["receiver_refused_requests_total", "exporter_failed_spans_total"] {
        assert_eq!(metrics.sum(none), 0.0, "{none}");
    }
    assert_eq!(metrics.sum("task_restarts_total"), 0.0);
    let traces = running.traces();
    for (id, spans) in &traces {
        assert_eq!(spans.len(), 2, "{id:02x?} is not whole");
        assert!(spans.iter().any(|span| span.status.is_some()), "{id:02x?} has no error");
    }
    assert_eq!(metrics.sum("traces_kept_total"), traces.len() as f64);
    assert_eq!(metrics.sum("decisions_total"), sent as f64);
    let kept = |policy| metrics.get(&format!("traces_kept_total{{policy=\"{policy}\"}}"));
    assert!(kept("first") > 0.0 && kept("second") > 0.0);
    assert_eq!(running.stop().await.1, 0);
}
