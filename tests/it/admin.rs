//! The answers for operators: health, readiness, metrics and decisions.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::{Value, json};

use crate::{
    harness::{
        ALL, ERRORS_AND_HALF, HIGH, LOW, Metrics, Running, attribute, config, error, request, span,
        string, trace_id,
    },
    wire::{Answer, connect, http1, http2, post},
};

async fn ask(address: SocketAddr, method: &str, path: &str) -> Answer {
    let head = format!("{method} {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n");
    http1(address, head.as_bytes()).await
}

/// The metrics that users rely on, with every value of their labels, as they are after the start.
const METRICS: &str = r#"
counter receiver_accepted_spans_total transport=grpc,http
counter receiver_refused_spans_total transport=grpc,http reason=invalid_id
counter receiver_refused_requests_total transport=grpc,http reason=memory,queue_full,draining
counter receiver_refused_requests_total transport=grpc,http reason=too_large,malformed
counter receiver_refused_requests_total transport=grpc,http reason=unauthenticated,timeout
counter receiver_refused_requests_total transport=grpc,http reason=headers_too_large
gauge receiver_connections transport=grpc,http
counter receiver_connections_closed_total transport=grpc,http reason=client,idle,handshake
counter receiver_connections_closed_total transport=grpc,http reason=max_connections,max_age
counter receiver_connections_closed_total transport=grpc,http reason=drain,unresponsive,error
counter receiver_requests_total transport=grpc code=OK,CANCELLED,UNKNOWN,INVALID_ARGUMENT
counter receiver_requests_total transport=grpc code=DEADLINE_EXCEEDED,NOT_FOUND,ALREADY_EXISTS
counter receiver_requests_total transport=grpc code=PERMISSION_DENIED,RESOURCE_EXHAUSTED
counter receiver_requests_total transport=grpc code=FAILED_PRECONDITION,ABORTED,OUT_OF_RANGE
counter receiver_requests_total transport=grpc code=UNIMPLEMENTED,INTERNAL,UNAVAILABLE,DATA_LOSS
counter receiver_requests_total transport=grpc code=UNAUTHENTICATED,415
counter receiver_requests_total transport=http code=200,204,400,401,404,405,413,415,500,503
counter traces_kept_total policy=errors,half,none
counter traces_dropped_total policy=errors,half,none
counter spans_kept_total policy=errors,half,none
counter spans_dropped_total policy=errors,half,none reason=decision,late,trace_bytes
counter decisions_total trigger=decision_wait,root_received,memory,trace_limit,shutdown
counter late_spans_total decision=kept,dropped
counter late_error_spans_total decision=kept,dropped
counter decisions_forgotten_early_total
counter log_lines_lost_total
gauge window_traces
gauge window_spans
gauge window_bytes
gauge memory_limit_bytes
gauge memory_overhead_bytes
gauge memory_used_bytes
counter policy_matches_total policy=errors,half,none
histogram decision_lag_seconds le=0.005,0.01,0.025,0.05,0.1,0.25,0.5,1,2.5,5,10,+Inf
histogram trace_duration_seconds le=0.001,0.0025,0.005,0.01,0.025,0.05,0.1,0.25,0.5,1,2.5,5,10,30
histogram trace_duration_seconds le=60,120,300,+Inf
histogram trace_spans le=1,2,4,8,16,32,64,128,256,512,1024,2048,4096,8192,16384,32768,+Inf
counter exporter_sent_spans_total
counter exporter_failed_spans_total reason=queue_full,rejected,partial_success,malformed
counter exporter_failed_spans_total reason=too_large,retry_expired,shutdown
gauge exporter_queue_spans
gauge exporter_queue_bytes
gauge exporter_queue_capacity_bytes
histogram exporter_request_duration_seconds code=OK,UNAVAILABLE le=0.005,0.01,0.025,0.05,0.1
histogram exporter_request_duration_seconds code=OK,UNAVAILABLE le=0.25,0.5,1,2.5,5,10,+Inf
counter exporter_retries_total code=OK,CANCELLED,DEADLINE_EXCEEDED,UNAVAILABLE,RESOURCE_EXHAUSTED
gauge credentials_last_reload_successful
counter receiver_tls_handshake_failures_total transport=grpc,http
gauge config_last_reload_successful
gauge config_last_reload_success_timestamp_seconds
gauge build_info version=VERSION
counter task_restarts_total task=receiver,decider,exporter,reload,admin,credentials
counter unstamped_spans_total
gauge ready
"#;

/// Every combination of the labels' values, in the exposition format.
fn combinations<'a>(labels: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut all = vec![String::new()];
    for label in labels {
        let (name, values) = label.split_once('=').expect("a label");
        let with = |before: &String, value: &str| match before.as_str() {
            "" => format!("{name}=\"{value}\""),
            before => format!("{before},{name}=\"{value}\""),
        };
        all = all.iter().flat_map(|before| values.split(',').map(|v| with(before, v))).collect();
    }
    all
}

fn series(name: &str, labels: &str) -> String {
    if labels.is_empty() { name.to_owned() } else { format!("{name}{{{labels}}}") }
}

/// Scenario: the first scrape of a service, by Prometheus and by a person.
/// Guarantees: every documented series exists with help and type; all counters are 0.
#[tokio::test]
async fn every_metric_exists_from_the_start() {
    let mut config = config(ERRORS_AND_HALF);
    config.sampling.memory_limit_bytes = 1 << 30;
    let running = Running::start(config).await;
    let answer = ask(running.service.admin_address, "GET", "/metrics").await;
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    let text = String::from_utf8(answer.body).expect("UTF-8");
    let metrics = Metrics::parse(&text);
    let promised = METRICS.replace("VERSION", env!("CARGO_PKG_VERSION"));
    for line in promised.lines().filter(|line| !line.is_empty()) {
        let (kind, line) = line.split_once(' ').expect("a kind");
        let (name, labels) = line.split_once(' ').unwrap_or((line, ""));
        let typed = format!("# TYPE tailwater_{name} {kind}\n");
        assert_eq!(text.matches(&typed).count(), 1, "{typed}");
        assert_eq!(text.matches(&format!("# HELP tailwater_{name} ")).count(), 1, "help: {name}");
        let suffix = if kind == "histogram" { "_bucket" } else { "" };
        for labels in combinations(labels.split_whitespace()) {
            let value = metrics.get(&series(&format!("{name}{suffix}"), &labels));
            assert!(kind == "gauge" || value == 0.0, "{name} {labels} {value}");
        }
        if kind == "histogram" && !labels.contains("code") {
            assert_eq!(
                (metrics.get(&format!("{name}_sum")), metrics.get(&format!("{name}_count"))),
                (0.0, 0.0)
            );
        }
    }
    let told: BTreeSet<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    assert_eq!(told.len(), text.matches("# HELP ").count());
    assert_eq!(metrics.get("window_spans"), 0.0);
    assert_eq!(metrics.get("memory_limit_bytes"), (1 << 30) as f64);
    assert_eq!(metrics.get("config_last_reload_successful"), 1.0);
    assert_eq!(metrics.sum("build_info"), 1.0);
    running.stop().await;
}

/// Scenario: senders put odd values everywhere they can choose a value.
/// Guarantees: this adds no series.
#[tokio::test]
async fn traffic_cannot_add_series() {
    let running = Running::start(config(ERRORS_AND_HALF)).await;
    let before: BTreeSet<_> = running.metrics().await.0.into_keys().collect();
    let odd = "odd\"\n\\{} \u{1b}[31m";
    let spans = (0..20).map(|id| Span {
        name: format!("{odd}{id}"),
        kind: 77,
        trace_state: format!("k{id}=v"),
        status: Some(opentelemetry_proto::tonic::trace::v1::Status {
            code: 9,
            message: odd.into(),
        }),
        attributes: vec![string(odd, odd), string("tailwater.policy", odd)],
        ..span(HIGH | id, id + 1, None)
    });
    running.export(&request(odd, spans.collect())).await.expect("accepted");
    running.export_bytes(b"garbage".to_vec()).await.expect_err("garbage");
    let client = connect(running.service.grpc_address).await;
    for (path, content_type) in [("/odd", "application/grpc"), ("/odd", "odd/type")] {
        http2(&client, post(path, &[("content-type", content_type)]), Vec::new()).await;
    }
    drop(client);
    ask(running.service.http_address, "ODD", "/odd").await;
    running.at_rest().await;
    let after: BTreeSet<_> = running.stop().await.0.0.into_keys().collect();
    assert_eq!(after, before);
}

/// Scenario: requests with every method and to several paths.
/// Guarantees: health and readiness are 200; other methods are 405 with Allow, other paths 404.
#[tokio::test]
async fn health_and_readiness() {
    let running = Running::start(config(ALL)).await;
    let address = running.service.admin_address;
    for path in ["/-/healthy", "/-/ready"] {
        assert_eq!(ask(address, "GET", path).await.status, 200, "{path}");
    }
    for path in ["/-/healthy", "/-/ready", "/-/decisions/1", "/-/decisions/x", "/", "/metrics"] {
        let (get, head) = (ask(address, "GET", path).await, ask(address, "HEAD", path).await);
        assert_eq!((head.status, head.body.len()), (get.status, 0), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
        let length = head.header("content-length").parse::<usize>().expect("a length");
        // The text of the metrics differs in length from one scrape to the next.
        assert!(length == get.body.len() || (path == "/metrics" && length > 1_000), "{path}");
    }
    assert_eq!(ask(running.service.http_address, "HEAD", "/v1/traces").await.status, 405);
    for method in ["POST", "PUT", "DELETE"] {
        for path in ["/metrics", "/-/ready", "/-/decisions/00"] {
            let answer = ask(address, method, path).await;
            assert_eq!(
                (answer.status, answer.header("allow")),
                (405, "GET, HEAD"),
                "{method} {path}"
            );
        }
    }
    for path in ["/index.html", "/metrics/", "/-/", "/-/decisions"] {
        assert_eq!(ask(address, "GET", path).await.status, 404, "{path}");
    }
    assert_eq!(running.metrics().await.get("ready"), 1.0);
    running.stop().await;
}

/// Scenario: the metrics of a running service are read twice.
/// Guarantees: the process metrics are there, and belong to this process.
#[tokio::test]
async fn the_metrics_of_the_process() {
    let running = Running::start(config(ALL)).await;
    let read = async || {
        let text = ask(running.service.admin_address, "GET", "/metrics").await.body;
        let text = String::from_utf8(text).expect("UTF-8");
        let of_process = text.lines().filter(|line| line.starts_with("process_"));
        let parsed = of_process.map(|line| {
            let (name, value) = line.split_once(' ').expect("a value");
            (name["process_".len()..].to_owned(), value.parse().expect("a number"))
        });
        parsed.collect::<BTreeMap<String, f64>>()
    };
    let (before, after) = (read().await, read().await);
    assert!(before["cpu_seconds_total"] > 0.0, "{before:?}");
    assert!(after["cpu_seconds_total"] > before["cpu_seconds_total"], "{before:?} {after:?}");
    // At least three standard streams and three listeners are open.
    assert!((6.0..after["max_fds"]).contains(&after["open_fds"]), "{after:?}");
    assert!((1e6..1e12).contains(&after["resident_memory_bytes"]), "{after:?}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
    assert!((now - 600.0..=now).contains(&after["start_time_seconds"]), "{after:?}");
    running.stop().await;
}

async fn decision(running: &Running, id: &str) -> (u16, Value) {
    let path = format!("/-/decisions/{id}");
    let answer = ask(running.service.admin_address, "GET", &path).await;
    assert_eq!(answer.header("content-type"), "application/json");
    (answer.status, serde_json::from_slice(&answer.body).expect("JSON"))
}

/// Scenario: look-ups of traces that are pending, kept, dropped and unknown, and of invalid ids.
/// Guarantees: each decision has its policy, trigger, threshold and randomness, and the details of
/// the decision log.
#[tokio::test]
async fn decisions_can_be_looked_up() {
    let mut config = config(ERRORS_AND_HALF);
    config.sampling.decision_wait_after_root_received = None;
    let running = Running::start(config).await;
    let hex =
        |trace: u64| trace_id(trace).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let failed = Span { status: error(), ..span(LOW | 1, 2, Some(1)) };
    running.accept(vec![span(LOW | 1, 1, None), failed, span(LOW | 2, 1, None)]).await;
    let pending = json!({ "trace_id": hex(LOW | 1), "decision": "pending" });
    assert_eq!(decision(&running, &hex(LOW | 1)).await, (200, pending));
    running.at_rest().await;

    let (status, kept) = decision(&running, &hex(LOW | 1).to_uppercase()).await;
    assert_eq!(status, 200);
    let expected = json!({
        "trace_id": hex(LOW | 1), "decision": "kept", "policy": "errors", "spans": 2,
        "trigger": "decision_wait", "threshold": "0", "randomness": "10000000000001",
        "matched_policies": ["errors", "half"], "duration_ms": 10.0,
        "bytes": kept["bytes"], "decided_at_unix_ms": kept["decided_at_unix_ms"],
    });
    assert_eq!(kept, expected);
    assert!(
        kept["bytes"].as_u64() > Some(100) && kept["decided_at_unix_ms"].as_u64() > Some(1 << 40)
    );
    let (_, dropped) = decision(&running, &hex(LOW | 2)).await;
    assert_eq!((&dropped["decision"], &dropped["policy"]), (&json!("dropped"), &json!("half")));
    assert_eq!(dropped["matched_policies"], json!(["half"]));
    assert_eq!(decision(&running, &hex(7)).await.0, 404);
    let of_two = hex(LOW | 2);
    let uuid = [&of_two[..8], &of_two[8..12], &of_two[12..16], &of_two[16..20], &of_two[20..]];
    for id in [uuid.join("-"), uuid.join("-").to_uppercase()] {
        assert_eq!(decision(&running, &id).await, (200, dropped.clone()), "{id}");
    }
    assert_eq!(decision(&running, &hex(1)[1..]).await.0, 404);
    for id in ["", "0", "xyz", &hex(1)[1..].replace('b', "-"), &format!("{}0", hex(1)), "%00"] {
        assert_eq!(decision(&running, id).await.0, 400, "{id}");
    }
    assert_eq!(attribute(&running.spans()[0], "tailwater.trigger"), Some("decision_wait"));
    running.stop().await;
}

/// Scenario: look-ups of an id that begins with zeros: in full, as Grafana shows it, and as a UUID.
/// Guarantees: each returns the decision about that trace.
#[tokio::test]
async fn ids_are_taken_as_tools_show_them() {
    let running = Running::start(config(ALL)).await;
    let id = (u128::from(HIGH) << 4) | 0xabc;
    let trace_id = id.to_be_bytes().to_vec();
    running.accept(vec![Span { trace_id, ..span(HIGH, 1, None) }]).await;
    running.at_rest().await;
    let full = format!("{id:032x}");
    let uuid = [&full[..8], &full[8..12], &full[12..16], &full[16..20], &full[20..]].join("-");
    let short = format!("{id:x}");
    assert!(short.len() < 20);
    for shown in [&full, &short, &short.to_uppercase(), &uuid, &uuid.to_uppercase()] {
        let (status, answer) = decision(&running, shown).await;
        assert_eq!((status, &answer["trace_id"]), (200, &json!(full)), "{shown}");
        assert_eq!(answer["decision"], "kept");
    }
    running.stop().await;
}

/// Scenario: decisions about traces with explicit randomness, remembered without a decision log.
/// Guarantees: the look-up still returns decision, policy, trigger, threshold and randomness.
#[tokio::test]
async fn decisions_outlive_their_details() {
    let mut config = config(ERRORS_AND_HALF);
    config.sampling.decision_log_size = 0;
    let running = Running::start(config).await;
    let explicit = Span { trace_state: "ot=rv:ffffffffffff00".into(), ..span(LOW | 1, 1, None) };
    running.accept(vec![explicit]).await;
    running.at_rest().await;
    let hex = trace_id(LOW | 1).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let expected = json!({
        "trace_id": hex, "decision": "kept", "policy": "half", "trigger": "root_received",
        "threshold": "8", "randomness": "ffffffffffff00",
    });
    assert_eq!(decision(&running, &hex).await, (200, expected));
    running.stop().await;
}

/// Scenario: a browser opens the page, also with a hostile query.
/// Guarantees: the page is HTML with a policy that allows nothing from other origins; a trace is
/// explained in sentences, and an invalid id is shown as text.
#[tokio::test]
async fn the_page_is_served_and_explains_traces() {
    let running = Running::start(config(ERRORS_AND_HALF)).await;
    let failed = Span { status: error(), ..span(1, 1, None) };
    running.accept(vec![failed]).await;
    running.at_rest().await;
    let id: String = trace_id(1).iter().map(|byte| format!("{byte:02x}")).collect();
    let admin = running.service.admin_address;
    let page = ask(admin, "GET", &format!("/?trace_id={}", id.to_uppercase())).await;
    assert_eq!(page.status, 200);
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    let policy = page.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
    let text = String::from_utf8(page.body).expect("UTF-8");
    let kept = format!("The trace {id} was kept by the policy `errors`, which keeps 100 %");
    assert!(text.contains(&kept), "{text}");
    let traceparent = format!("/?trace_id=00-{id}-00f067aa0ba902b7-01");
    let pasted = String::from_utf8(ask(admin, "GET", &traceparent).await.body).expect("UTF-8");
    assert!(pasted.contains(&kept), "{pasted}");
    let hostile = "/?trace_id=%3Cscript%3E%22&trace_id=2&%ff=%zz";
    let text = String::from_utf8(ask(admin, "GET", hostile).await.body).expect("UTF-8");
    assert!(text.contains("value=\"&lt;script&gt;&quot;\""), "{text}");
    assert!(text.contains("a trace id is up to 32 hexadecimal digits"), "{text}");
    assert_eq!(ask(admin, "HEAD", "/").await.body, b"");
    assert_eq!(ask(admin, "POST", "/").await.status, 405);
    running.stop().await;
}
