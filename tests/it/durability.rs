//! `[durability]` in a running service: recovery after a restart, and faults of the disk.
//!
//! A kill is simulated by a copy of the directory while the service runs: the next process finds
//! the content of the page cache. Real kills under load are in `tests/durability`.

use std::{fs, path::Path, process::Command, time::Duration};

use bytes::Bytes;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tailwater::{
    config::{Config, Durability},
    durability::{LogFiles, LogKind, RecordReader},
    service::{Ground, Service},
    window::Hasher,
};
use tokio::net::TcpListener;
use tonic::{Code, Status, codec::CompressionEncoding};

use crate::harness::{
    ALL, Answer, Directory, ERRORS_AND_HALF, HIGH, LOW, Metrics, Running, attribute, config, error,
    get, http1, request, span, trace_id,
};

const LONG: Duration = Duration::from_secs(60);

/// A configuration whose logs are in a directory.
fn durable(policies: &str, directory: &Path) -> Config {
    let mut config = config(policies);
    config.durability = Some(Durability {
        directory: directory.to_owned(),
        bytes_max: 256 << 20,
        sync_interval: None,
        keeps_on_shutdown: true,
    });
    config
}

fn failed(mut span: Span) -> Span {
    span.status = error();
    span
}

/// A copy of the directory at this moment, for the next process.
fn killed(directory: &Directory) -> Directory {
    let copy = Directory::new();
    for entry in fs::read_dir(&directory.0).expect("readable") {
        let path = entry.expect("readable").path();
        fs::copy(&path, copy.0.join(path.file_name().expect("a name"))).expect("copied");
    }
    copy
}

fn replayed(metrics: &Metrics) -> f64 {
    metrics.get("receiver_accepted_spans_total{transport=\"replay\"}")
}

fn kept(metrics: &Metrics, policy: &str) -> f64 {
    metrics.get(&format!("spans_kept_total{{policy=\"{policy}\"}}"))
}

async fn decision(service: &Service, trace: u64) -> (u16, String) {
    let id: String = trace_id(trace).iter().map(|byte| format!("{byte:02x}")).collect();
    get(service.admin_address, &format!("/-/decisions/{id}")).await
}

fn unavailable() -> Answer {
    Box::new(|_| Err(Status::unavailable("down")))
}

/// Scenario: spans of undecided traces arrive over gRPC, with gzip, with zstd, and as JSON over
/// HTTP; the process is killed.
/// Guarantees: the next process has all of them, and decides each trace once, as a whole.
#[tokio::test]
async fn undecided_traces_come_back() {
    let directory = Directory::new();
    let mut first = durable(ERRORS_AND_HALF, &directory.0);
    (first.sampling.decision_wait, first.sampling.decision_wait_after_root_received) = (LONG, None);
    let running = Running::start(first).await;
    let low = LOW | 1;
    running.accept(vec![span(low, 1, None), span(HIGH | 2, 1, None), span(LOW | 3, 1, None)]).await;
    let gzip = request("shop", vec![span(low, 2, Some(1))]).encode_to_vec();
    running.export_compressed(gzip, CompressionEncoding::Gzip).await.expect("accepted");
    let zstd = request("cart", vec![span(low, 3, Some(1))]).encode_to_vec();
    running.export_compressed(zstd, CompressionEncoding::Zstd).await.expect("accepted");
    let json = r#"{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"@","spanId":"0000000000000004",
        "name":"from a browser","status":{"code":2}}]}]}]}"#;
    let id: String = trace_id(low).iter().map(|byte| format!("{byte:02x}")).collect();
    let json = json.replace('@', &id);
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-type: \
         application/json\r\ncontent-length: {}\r\n\r\n",
        json.len()
    );
    let (status, _) = http1(running.service.http_address, &head, json.as_bytes()).await;
    assert_eq!(status, 200);
    let copy = killed(&directory);
    drop(running);

    let next = Running::start(durable(ERRORS_AND_HALF, &copy.0)).await;
    assert_eq!(replayed(&next.metrics().await), 6.0);
    let metrics = next.at_rest().await;
    assert_eq!((kept(&metrics, "errors"), kept(&metrics, "half")), (4.0, 1.0));
    let traces = next.traces();
    assert_eq!(traces[&trace_id(low)].len(), 4);
    assert_eq!(traces.len(), 2);
    assert_eq!(metrics.get("durability_damaged_records_total"), 0.0);
    next.stop().await;
}

/// Scenario: a start that reads its directory for long, because a log is a pipe that nobody writes.
/// Guarantees: until it has read the logs, the telemetry port says that it is alive and not ready. A
/// mistake that it finds then is an error of the start. The next start gets ready.
#[tokio::test]
async fn while_logs_are_opened_it_is_not_ready() {
    let directory = Directory::new();
    let log = directory.0.join("decisions-0000000000000000.log");
    assert!(Command::new("mkfifo").arg(&log).status().expect("runs").success());
    let pipe = directory.0.join("pipe");
    fs::hard_link(&log, &pipe).expect("linked");
    let admin = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    admin.set_nonblocking(true).expect("set");
    let address = admin.local_addr().expect("an address");
    let ground = Ground {
        grpc: TcpListener::bind("127.0.0.1:0").await.expect("bound"),
        http: TcpListener::bind("127.0.0.1:0").await.expect("bound"),
        admin,
        client: None,
        shards: 1,
        hasher: Hasher::random(),
        has_brokers: true,
    };
    let config = durable(ALL, &directory.0);
    let start = async move { Service::start_on(&config, ground).await };
    let start = tokio::spawn(start);
    let asked = async |path| {
        let answer = tokio::time::timeout(Duration::from_secs(10), get(address, path)).await;
        answer.expect("answered in time")
    };
    assert_eq!(asked("/-/ready").await, (503, "not ready\n".to_owned()));
    assert_eq!(asked("/-/healthy").await, (200, "healthy\n".to_owned()));
    assert_eq!(asked("/metrics").await.0, 503);
    assert!(!start.is_finished());
    fs::remove_file(&log).expect("removed");
    // Opening a pipe for both never waits, and ends the wait of whoever reads it.
    let both = fs::File::options().read(true).write(true).open(&pipe).expect("opened");
    let failed = start.await.expect("no panic").expect_err("the log is gone");
    assert!(failed.to_string().contains("decisions-0000000000000000.log"), "{failed}");
    drop(both);
    fs::remove_file(pipe).expect("removed");
    let next = Running::start(durable(ALL, &directory.0)).await;
    assert_eq!(get(next.service.admin_address, "/-/ready").await.0, 200);
    next.stop().await;
}

/// Scenario: traces are decided and delivered, one is undecided; the process is killed, twice.
/// Guarantees: decided traces are not decided or sent again; late spans follow; decisions can be
/// looked up, even by a policy that the next configuration no longer has.
#[tokio::test]
async fn decisions_are_remembered() {
    let directory = Directory::new();
    let mut first = durable(ERRORS_AND_HALF, &directory.0);
    first.sampling.decision_wait = LONG;
    let running = Running::start(first.clone()).await;
    // A child without a root waits, and holds the watermark below the others.
    running.accept(vec![span(HIGH | 9, 2, Some(1))]).await;
    running.accept(vec![failed(span(LOW | 1, 1, None)), span(LOW | 2, 1, None)]).await;
    running.until("two are decided", |metrics| metrics.sum("decisions_total") == 2.0).await;
    running.until("one is sent", |metrics| metrics.sum("exporter_sent_spans_total") == 1.0).await;
    // Late spans of both decided traces.
    running.accept(vec![span(LOW | 1, 5, Some(1)), span(LOW | 2, 5, Some(1))]).await;
    running.until("late", |metrics| metrics.sum("exporter_sent_spans_total") == 2.0).await;
    let written = |directory: &Directory| decided(&directory.0) == (2, 1);
    until(|| written(&directory)).await;
    let copy = killed(&directory);
    drop(running);

    let mut second = first;
    second.durability = durable(ALL, &copy.0).durability;
    second.policies =
        config("[[policy]]\nname = \"slow\"\ntype = \"latency\"\nthreshold_ms = 9000\n").policies;
    let next = Running::start(second.clone()).await;
    let metrics = next.metrics().await;
    // The undecided span, and the late span of the dropped trace.
    assert_eq!((replayed(&metrics), metrics.sum("window_spans")), (2.0, 1.0));
    assert_eq!(metrics.sum("decisions_total"), 0.0);
    let (status, answer) = decision(&next.service, LOW | 1).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer.contains("\"kept\"") && answer.contains("\"errors\""), "{answer}");
    assert!(decision(&next.service, LOW | 2).await.1.contains("\"dropped\""));
    assert!(decision(&next.service, HIGH | 9).await.1.contains("pending"));
    next.accept(vec![span(LOW | 1, 6, Some(1)), span(LOW | 2, 6, Some(1))]).await;
    let metrics =
        next.until("sent", |metrics| metrics.sum("exporter_sent_spans_total") == 1.0).await;
    assert_eq!(kept(&metrics, "errors"), 1.0);
    until(|| decided(&copy.0) == (2, 2)).await;
    let again = killed(&copy);
    drop(next);

    second.durability = durable(ALL, &again.0).durability;
    second.sampling.decision_wait = Duration::from_millis(500);
    let last = Running::start(second).await;
    assert_eq!(replayed(&last.metrics().await), 3.0);
    last.at_rest().await;
    assert_eq!(last.spans().len(), 0, "everything was sent or dropped");
    last.stop().await;
}

/// The numbers of decisions and late spans that are written in a directory.
fn decided(directory: &Path) -> (usize, usize) {
    let files = LogFiles::list(directory, LogKind::Decisions).expect("readable");
    let mut sum = (0, 0);
    for file in &files.files {
        let mut reader = RecordReader::open(file, 0).expect("opened");
        while let Some(record) = reader.next_record().expect("read") {
            if let Some(written) = (record.header.kind
                == tailwater::durability::RecordKind::Decisions)
                .then(|| tailwater::durability::WrittenDecisions::decode(record.body))
                .flatten()
            {
                sum = (sum.0 + written.decided.len(), sum.1 + written.followed.len());
            }
        }
    }
    sum
}

async fn until(is_so: impl Fn() -> bool) {
    for _ in 0..1_500 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not within 30 s");
}

/// Scenario: the backend is down while traces are decided; the process is killed.
/// Guarantees: the next process delivers the kept spans once, and counts them by their policy.
#[tokio::test]
async fn kept_spans_that_were_not_delivered_are_sent() {
    let directory = Directory::new();
    let running = Running::start_with(durable(ERRORS_AND_HALF, &directory.0), unavailable()).await;
    let spans = (0..20).flat_map(|n| [span(HIGH | n, 1, None), failed(span(LOW | n, 1, None))]);
    running.accept(spans.collect()).await;
    running.until("decided", |metrics| metrics.sum("decisions_total") == 40.0).await;
    until(|| decided(&directory.0).0 == 40).await;
    let copy = killed(&directory);
    drop(running);

    let next = Running::start(durable(ERRORS_AND_HALF, &copy.0)).await;
    let metrics = next.at_rest().await;
    assert_eq!((replayed(&metrics), metrics.sum("decisions_total")), (40.0, 0.0));
    assert_eq!((kept(&metrics, "errors"), kept(&metrics, "half")), (20.0, 20.0));
    assert_eq!(next.spans().len(), 40);
    assert!(next.spans().iter().all(|span| attribute(span, "tailwater.policy").is_some()));
    next.stop().await;
    let last = Running::start(durable(ERRORS_AND_HALF, &copy.0)).await;
    assert_eq!(replayed(&last.metrics().await), 0.0, "delivered spans are settled");
    last.stop().await;
}

/// Scenario: SIGTERM with undecided traces, while the backend is down.
/// Guarantees: nothing is decided, lost, or counted as failed; the next process takes over, and
/// traces wait for the rest of their time.
#[tokio::test]
async fn a_shutdown_keeps_the_window() {
    let directory = Directory::new();
    let mut first = durable(ALL, &directory.0);
    first.sampling.decision_wait = Duration::from_secs(3);
    let running = Running::start_with(first.clone(), unavailable()).await;
    running.accept(vec![span(1, 1, None)]).await;
    running.until("decided", |metrics| metrics.sum("decisions_total") == 1.0).await;
    running.accept(vec![span(2, 2, Some(1))]).await;
    let (metrics, undelivered) = running.stop().await;
    assert_eq!((undelivered, metrics.sum("exporter_failed_spans_total")), (0, 0.0));
    assert_eq!((metrics.sum("window_spans"), metrics.sum("exporter_queue_spans")), (1.0, 1.0));
    tokio::time::sleep(Duration::from_millis(200)).await;

    let next = Running::start(first).await;
    let metrics = next.metrics().await;
    assert_eq!((replayed(&metrics), metrics.sum("window_spans")), (2.0, 1.0));
    next.accept(vec![span(2, 1, None)]).await;
    next.at_rest().await;
    assert_eq!(next.traces()[&trace_id(2)].len(), 2);
    assert_eq!(next.spans().len(), 3);
    next.stop().await;
}

/// Scenario: `on_shutdown = "decide"`.
/// Guarantees: everything is decided and delivered, and the next process finds nothing.
#[tokio::test]
async fn a_shutdown_may_decide() {
    let directory = Directory::new();
    let mut first = durable(ALL, &directory.0);
    first.sampling.decision_wait = LONG;
    first.durability.as_mut().expect("set").keeps_on_shutdown = false;
    let running = Running::start(first.clone()).await;
    running.accept((0..50).map(|n| span(n, 2, Some(1))).collect()).await;
    let received = running.received.clone();
    let (_, undelivered) = running.stop().await;
    assert_eq!(undelivered, 0);
    let spans =
        received.lock().expect("no panic").iter().flat_map(crate::harness::spans_of).count();
    assert_eq!(spans, 50);
    let next = Running::start(first).await;
    assert_eq!(replayed(&next.metrics().await), 0.0);
    next.stop().await;
}

/// Scenario: more requests arrive than the log has room for, until traces are decided.
/// Guarantees: requests are refused with reason `disk`, and accepted again once there is room;
/// nothing is lost.
#[tokio::test]
async fn a_full_log_refuses_and_recovers() {
    let directory = Directory::new();
    let mut config = durable(ALL, &directory.0);
    config.durability.as_mut().expect("set").bytes_max = 8 << 20;
    config.sampling.decision_wait = Duration::from_secs(1);
    let running = Running::start(config).await;
    let large = |trace| {
        let mut span = span(trace, 2, Some(1));
        span.name = "x".repeat(500_000);
        request("shop", vec![span]).encode_to_vec()
    };
    let mut accepted = 0;
    let refused = loop {
        match running.export_bytes(large(accepted)).await {
            Ok(_) => accepted += 1,
            Err(status) => break status,
        }
    };
    assert_eq!((refused.code(), accepted > 4), (Code::Unavailable, true), "{refused}");
    let reason = "receiver_refused_requests_total{transport=\"grpc\",reason=\"disk\"}";
    assert!(running.metrics().await.get(reason) >= 1.0);
    let mut again = running.export_bytes(large(accepted)).await;
    for _ in 0..500 {
        if again.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        again = running.export_bytes(large(accepted)).await;
    }
    again.expect("accepted again");
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), (accepted + 1) as f64);
    let disk: f64 = metrics.sum("durability_bytes");
    assert!(disk > 0.0 && disk <= f64::from(8 << 20), "{disk}");
    let (metrics, _) = running.stop().await;
    assert_eq!(metrics.sum("exporter_sent_spans_total"), (accepted + 1) as f64);
}

/// Scenario: a directory that is a file, is used by another process, or has a newer version.
/// Guarantees: the service does not start, and names the reason.
#[tokio::test]
async fn a_directory_that_cannot_be_used_is_named() {
    let directory = Directory::new();
    let running = Running::start(durable(ALL, &directory.0)).await;
    let refused =
        Service::start(&durable(ALL, &directory.0)).await.expect_err("in use").to_string();
    assert!(
        refused.contains("in use") && refused.contains(&*directory.0.to_string_lossy()),
        "{refused}"
    );
    running.stop().await;
    let file = directory.file("a-file", "");
    let refused =
        Service::start(&durable(ALL, Path::new(&file))).await.expect_err("a file").to_string();
    assert!(refused.contains("a-file"), "{refused}");
    // A valid header of version 2.
    let mut header = b"TWATRLOG\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\0".to_vec();
    header.extend(crc32c::crc32c(&header).to_le_bytes());
    fs::write(directory.0.join("intake-0000000000000000.log"), header).expect("written");
    let refused = Service::start(&durable(ALL, &directory.0)).await.expect_err("newer").to_string();
    assert!(refused.contains("version 2") && refused.contains("intake-"), "{refused}");
}

/// Scenario: damaged records in every log.
/// Guarantees: the service starts, counts them, and loses only their content.
#[tokio::test]
async fn damage_is_counted() {
    let directory = Directory::new();
    let mut first = durable(ALL, &directory.0);
    (first.sampling.decision_wait, first.sampling.decision_wait_after_root_received) = (LONG, None);
    let running = Running::start(first.clone()).await;
    for trace in 0..10 {
        running.accept(vec![span(trace, 1, None)]).await;
    }
    let copy = killed(&directory);
    drop(running);
    let log = |format: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tailwater"));
        let output = command.arg("log").arg(&copy.0).args(["--format", format]).output();
        let output = output.expect("it runs");
        (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8"))
    };
    let (code, text) = log("json");
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        (code, &report["window"]["requests"], &report["damaged"]),
        (Some(0), &10.into(), &0.into())
    );
    let files = LogFiles::list(&copy.0, LogKind::Intake).expect("readable").files;
    let file = &files.iter().find(|file| file.len > 0).expect("a file").path;
    let mut bytes = fs::read(file).expect("read");
    // In the middle of the first record.
    bytes[100] ^= 1;
    fs::write(file, bytes).expect("written");
    let (code, text) = log("text");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("9 requests") && text.contains("9 records, 1 damaged"), "{text}");
    first.durability = durable(ALL, &copy.0).durability;
    first.sampling.decision_wait = Duration::from_millis(500);
    let next = Running::start_with(first, Box::new(|_| Ok(Bytes::new()))).await;
    let metrics = next.at_rest().await;
    assert_eq!((replayed(&metrics), metrics.get("durability_damaged_records_total")), (9.0, 1.0));
    next.stop().await;
}

/// Scenario: `mode = "power"`; the process is killed.
/// Guarantees: acknowledged spans come back, and every acknowledgement waited for a sync.
#[tokio::test]
async fn power_acknowledges_after_a_sync() {
    let directory = Directory::new();
    let mut first = durable(ERRORS_AND_HALF, &directory.0);
    first.durability.as_mut().expect("set").sync_interval = Some(Duration::from_millis(5));
    first.sampling.decision_wait = LONG;
    let running = Running::start(first.clone()).await;
    running.accept(vec![span(HIGH | 1, 2, Some(1))]).await;
    assert!(running.metrics().await.get("durability_sync_seconds_count") >= 1.0);
    running.accept(vec![failed(span(LOW | 2, 1, None))]).await;
    running.until("sent", |metrics| metrics.sum("exporter_sent_spans_total") == 1.0).await;
    until(|| decided(&directory.0).0 == 1).await;
    let copy = killed(&directory);
    drop(running);
    first.durability.as_mut().expect("set").directory.clone_from(&copy.0);
    let next = Running::start(first).await;
    let metrics = next.metrics().await;
    assert_eq!((replayed(&metrics), metrics.sum("window_spans")), (1.0, 1.0));
    assert!(decision(&next.service, LOW | 2).await.1.contains("errors"));
    next.stop().await;
}
