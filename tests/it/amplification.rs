//! Small inputs that could cause large outputs or allocations: contexts that every outgoing request
//! repeats, requests that are cut, and a sending queue that must not exceed its size.

use std::{
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, common::v1::InstrumentationScope,
    trace::v1::ScopeSpans,
};
use prost::Message;
use tailwater::config::{Config, Overflow};
use tonic::{Code, Status, codec::CompressionEncoding, transport::Channel};

use crate::{
    export::{gate, roots, waiting},
    harness::{ALL, Metrics, Running, config, http1, request, send, spans_of, string, tempfile},
};

const REFUSED: &str = "receiver_refused_spans_total{transport=\"grpc\",reason=\"too_large\"}";

/// Roots of this many traces under one resource with an attribute of this length.
fn large_resource(traces: u64, attribute_bytes: usize) -> ExportTraceServiceRequest {
    let mut large = request("large", roots(traces, 0));
    let resource = large.resource_spans[0].resource.as_mut().expect("has one");
    resource.attributes.push(string("large", "x".repeat(attribute_bytes)));
    large
}

/// The same with the attribute in the scope.
fn large_scope(traces: u64, attribute_bytes: usize) -> ExportTraceServiceRequest {
    let mut large = request("large", roots(traces, 0));
    let attributes = vec![string("large", "x".repeat(attribute_bytes))];
    let scope = InstrumentationScope { attributes, ..InstrumentationScope::default() };
    large.resource_spans[0].scope_spans[0].scope = Some(scope);
    large
}

/// A configuration with requests of at most 16 KiB and a queue of 64 KiB.
fn small_queue(policies: &str) -> Config {
    let mut config = config(policies);
    config.exporter.max_request_bytes = 16 << 10;
    config.exporter.queue.queue_bytes_max = 64 << 10;
    config
}

/// Scenario: 2,000 spans under a resource or a scope nearly as large as a request may be, with the
/// default request size and with a smaller one, beside a normal resource and a normal scope.
/// Guarantees: the spans of the large one are refused, counted, and explained to the sender; the
/// others are kept; no request is larger than configured.
#[tokio::test]
async fn spans_of_a_large_resource_or_scope_are_refused_alone() {
    for (max_request_kib, large_kib) in [(3584, 3580), (128, 127), (128, 33)] {
        for large in [large_resource, large_scope] {
            let mut config = config(ALL);
            config.exporter.max_request_bytes = max_request_kib << 10;
            let running = Running::start(config).await;
            let mut mixed = large(2_000, large_kib << 10);
            mixed.resource_spans[0]
                .scope_spans
                .push(ScopeSpans { spans: roots(3, 10), ..ScopeSpans::default() });
            mixed.resource_spans.extend(request("shop", roots(4, 10)).resource_spans);
            let answer = running.export(&mixed).await.expect("taken");
            let is_resource = mixed.resource_spans[0].scope_spans[0].scope.is_none();
            let refused = if is_resource { 2_003 } else { 2_000 };
            let partial = answer.partial_success.expect("some were refused");
            assert_eq!(partial.rejected_spans, refused);
            assert!(partial.error_message.contains("resource or scope"), "{partial:?}");
            let metrics = running.at_rest().await;
            assert_eq!(metrics.get(REFUSED), refused as f64);
            assert_eq!(metrics.sum("exporter_sent_spans_total"), 2_007.0 - refused as f64);
            assert_eq!(metrics.sum("exporter_failed_spans_total"), 0.0);
            let received = Arc::clone(&running.received);
            let sent: usize =
                received.lock().expect("no panic").iter().map(Message::encoded_len).sum();
            assert!(sent < max_request_kib << 10, "{sent} bytes for seven small spans");
            running.stop().await;
        }
    }
}

/// Scenario: resources of the largest accepted size, over gRPC and, as JSON, over HTTP.
/// Guarantees: every span is delivered, and less than four times the received bytes are sent.
#[tokio::test]
async fn answers_are_bounded_by_requests() {
    for large in [large_resource, large_scope] {
        let mut config = config(ALL);
        config.exporter.max_request_bytes = 64 << 10;
        let running = Running::start(config).await;
        let large = large(2_000, (16 << 10) - 200);
        running.export(&large).await.expect("taken");
        running.at_rest().await;
        let received = Arc::clone(&running.received);
        let (metrics, undelivered) = running.stop().await;
        assert_eq!((metrics.sum("exporter_sent_spans_total"), undelivered), (2_000.0, 0));
        let received = received.lock().expect("no panic");
        let sizes: Vec<_> = received.iter().map(Message::encoded_len).collect();
        assert!(sizes.iter().all(|size| *size <= 64 << 10), "{sizes:?}");
        let (sent, came) = (sizes.iter().sum::<usize>(), large.encoded_len());
        assert!(sent < 4 * came, "{sent} bytes sent for {came}");
    }
}

/// Scenario: the backend is down; kept spans of 9 KiB, each of which fills a request together with
/// its resource of 4 KiB; then traces of many requests each, and late spans.
/// Guarantees: the queue exceeds its size by less than a request; nothing is lost.
#[tokio::test]
async fn the_queue_passes_its_size_by_less_than_a_request() {
    let (is_up, answer) = gate();
    let mut config = small_queue(ALL);
    config.sampling.max_trace_spans = 50;
    let running = Running::start_with(config, answer).await;
    let mut sent = 0;
    let mut single = large_resource(0, 3_900);
    single.resource_spans[0].scope_spans[0].spans = roots(30, 9 << 10);
    // At its limit, so that it is decided at once, however full the queue is.
    let mut long = large_resource(0, 3_900);
    let mut spans = roots(60, 2 << 10);
    let id = spans[0].trace_id.clone();
    spans.iter_mut().for_each(|span| span.trace_id = id.clone());
    long.resource_spans[0].scope_spans[0].spans = spans;
    for request in [long, single] {
        sent += spans_of(&request).count();
        running.export(&request).await.expect("taken");
    }
    let full = |metrics: &Metrics| metrics.sum("exporter_queue_bytes") >= (64 << 10) as f64;
    running.until("the queue is full", full).await;
    for _ in 0..20 {
        let metrics = running.metrics().await;
        let queued = metrics.sum("exporter_queue_bytes");
        assert!(queued < (80 << 10) as f64, "{queued} bytes in a queue of 65,536");
        metrics.assert_ledger();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    is_up.store(true, Relaxed);
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("exporter_sent_spans_total"), sent as f64);
    running.stop().await;
}

/// Scenario: SIGTERM with twenty times more kept spans in the window than the queue holds, with
/// either value of `overflow`; the backend is healthy, and gets one request after the other.
/// Guarantees: all spans are delivered.
#[tokio::test]
async fn the_last_decisions_wait_for_room() {
    for overflow in [Overflow::Drop, Overflow::Block] {
        let mut config = waiting();
        config.exporter.max_request_bytes = 16 << 10;
        config.exporter.queue.queue_bytes_max = 64 << 10;
        config.exporter.queue.overflow = overflow;
        config.exporter.queue.num_consumers = 1;
        config.shutdown_timeout = Duration::from_secs(60);
        let running = Running::start(config).await;
        running.accept(roots(1_300, 1_000)).await;
        let (metrics, undelivered) = running.stop().await;
        assert_eq!(undelivered, 0, "{overflow:?}: {:#?}", metrics.nonzero());
        assert_eq!(metrics.sum("exporter_sent_spans_total"), 1_300.0);
    }
}

/// Scenario: a backend that finds every request too large, or refuses it because of its content; a
/// request of 1,000 small spans under a resource of nearly a quarter of the request size.
/// Guarantees: cutting a request copies at most its length, so the number of attempts is bounded,
/// and all spans are counted.
#[tokio::test]
async fn cutting_a_request_copies_at_most_its_length() {
    for (code, words, reason) in [
        (Code::ResourceExhausted, "received message larger than max", "too_large"),
        (Code::InvalidArgument, "no", "rejected"),
    ] {
        let mut config = config(ALL);
        config.exporter.max_request_bytes = 1 << 20;
        let attempted = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&attempted);
        let answer = move |request: &ExportTraceServiceRequest| {
            counter.fetch_add(request.encoded_len(), Relaxed);
            Err(Status::new(code, words))
        };
        let running = Running::start_with(config, Box::new(answer)).await;
        let large = large_resource(1_000, 250 << 10);
        running.export(&large).await.expect("taken");
        let metrics = running.at_rest().await;
        let lost = format!("exporter_failed_spans_total{{reason=\"{reason}\"}}");
        assert_eq!(metrics.get(&lost), 1_000.0, "{:#?}", metrics.nonzero());
        let (attempted, came) = (attempted.load(Relaxed), large.encoded_len());
        assert!(attempted < 8 * came, "{attempted} bytes attempted of a request of {came}");
        running.stop().await;
    }
}

/// The binary with a memory limit of 512 MiB and a backend that is down, and its log.
struct Process {
    child: Child,
    files: [std::path::PathBuf; 2],
}

impl Process {
    fn start(max_request_kib: usize) -> Self {
        let zero = "endpoint = \"127.0.0.1:0\"\n";
        let config = tempfile(&format!(
            "[receiver.grpc]\n{zero}[receiver.http]\n{zero}[telemetry]\n{zero}[sampling]\n\
             decision_wait = \"200ms\"\nmemory_limit_mib = 512\n[exporter.otlp]\n\
             endpoint = \"http://127.0.0.1:9\"\nmax_request_size_kib = {max_request_kib}\n{ALL}"
        ));
        let log = tempfile("");
        let mut command = Command::new(env!("CARGO_BIN_EXE_tailwater"));
        command.args(["run", "--config"]).arg(&config).stdout(Stdio::null());
        let child = command.stderr(std::fs::File::create(&log).expect("created")).spawn();
        Process { child: child.expect("spawned"), files: [config, log] }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.files[1]).expect("UTF-8")
    }

    async fn logged(&self, part: &str) -> String {
        for _ in 0..500 {
            if self.log().contains(part) {
                return self.log();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("not logged within 10 s: {part}\n{}", self.log());
    }

    async fn grpc_url(&self) -> String {
        let log = self.logged("ready grpc_address=").await;
        let address = log.split("grpc_address=").nth(1).expect("an address");
        format!("http://{}", address.split_whitespace().next().expect("an address"))
    }

    /// The peak of its resident memory, in MiB.
    fn peak_mib(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("it runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib: usize = peak.expect("a peak").trim().trim_end_matches(" kB").parse().expect("KiB");
        kib >> 10
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for file in &self.files {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Scenario: gzip requests of a few KiB, each with 2,000 spans under a resource or scope of 3.6 MiB
/// (127 KiB if requests are small), or under one of the largest accepted size.
/// Guarantees: the process survives, its resident memory stays far below the limit, and the log
/// names the service and the key to change.
#[tokio::test]
async fn a_small_compressed_request_does_not_fill_memory() {
    for (max_request_kib, large_kib) in [(3584, 3600), (128, 127), (3584, 890), (128, 31)] {
        let mut process = Process::start(max_request_kib);
        let channel = Channel::from_shared(process.grpc_url().await).expect("a url").connect_lazy();
        let mut client =
            tonic::client::Grpc::new(channel).send_compressed(CompressionEncoding::Gzip);
        for large in [large_resource, large_scope] {
            let large = large(2_000, large_kib << 10).encode_to_vec();
            send(&mut client, large).await.expect("taken");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(process.child.try_wait().expect("asked").is_none(), "{}", process.log());
        let peak = process.peak_mib();
        assert!(peak < 100, "{peak} MiB resident for 2,000 spans of a resource of {large_kib} KiB");
        if large_kib << 12 > max_request_kib << 10 {
            let log = process.logged("refused spans").await;
            assert!(
                log.contains("service=\"large\"") && log.contains("max_request_size_kib"),
                "{log}"
            );
        }
    }
}

/// Scenario: a resource that is small as JSON or Latin-1, but larger as protobuf or UTF-8.
/// Guarantees: if it exceeds the largest size only after its strings are repaired, its spans are
/// counted as `malformed` at export, and nothing else is lost.
#[tokio::test]
async fn a_resource_that_repairing_makes_too_large_does_not_leave() {
    let running = Running::start(small_queue(ALL)).await;
    let mut bytes = large_resource(5, 3_000).encode_to_vec();
    bytes.iter_mut().filter(|byte| **byte == b'x').for_each(|byte| *byte = 0xe9);
    running.export_bytes(bytes).await.expect("taken");
    running.accept(roots(2, 10)).await;
    let metrics = running.at_rest().await;
    assert_eq!(metrics.get("exporter_failed_spans_total{reason=\"malformed\"}"), 5.0);
    assert_eq!(metrics.sum("exporter_sent_spans_total"), 2.0);
    running.stop().await;
}

/// Scenario: a large resource over OTLP/HTTP with JSON.
/// Guarantees: HTTP 200 with `partialSuccess`, counted for that transport.
#[tokio::test]
async fn json_senders_are_told_too() {
    let running = Running::start(small_queue(ALL)).await;
    let body = serde_json::json!({ "resourceSpans": [{
        "resource": {
            "attributes": [{ "key": "a", "value": { "stringValue": "x".repeat(5_000) } }],
        },
        "scopeSpans": [{ "spans": [{
            "traceId": "0af7651916cd43dd8448eb211c80319c",
            "spanId": "b7ad6b7169203331",
        }] }],
    }] });
    let body = body.to_string();
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let (status, answer) = http1(running.service.http_address, &head, body.as_bytes()).await;
    assert_eq!(status, 200);
    assert!(answer.contains("\"rejectedSpans\":\"1\"") && answer.contains("4096"), "{answer}");
    let metrics = running.at_rest().await;
    let refused = "receiver_refused_spans_total{transport=\"http\",reason=\"too_large\"}";
    assert_eq!(metrics.get(refused), 1.0);
    running.stop().await;
}

/// Scenario: 39 requests for /metrics on three connections, which read one byte of the answers.
/// Guarantees: a few are answered, the others get 503, so that memory stays bounded; once the
/// clients are gone, everybody is answered again.
#[tokio::test]
async fn unread_metrics_are_few() {
    let running = Running::start(config(ALL)).await;
    let address = running.service.admin_address;
    let mut answers = Vec::new();
    // Sixteen streams are open at once on each connection.
    for _ in 0..3 {
        let stream = tokio::net::TcpStream::connect(address).await.expect("listening");
        let builder = h2::client::Builder::new().initial_window_size(1).clone();
        let (client, connection) = builder.handshake(stream).await.expect("HTTP/2");
        tokio::spawn(connection);
        for _ in 0..13 {
            let request = http::Request::get("http://t/metrics").body(()).expect("a request");
            let mut client: h2::client::SendRequest<bytes::Bytes> =
                client.clone().ready().await.expect("a stream");
            let (answer, _) = client.send_request(request, true).expect("sent");
            answers.push(answer.await.expect("answered"));
        }
    }
    let with = |status: u16| answers.iter().filter(|answer| answer.status() == status).count();
    assert_eq!((with(200), with(503)), (16, 23));
    drop(answers);
    running.until("answered again", |metrics| !metrics.0.is_empty()).await;
    running.stop().await;
}
