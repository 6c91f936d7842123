//! The answers to senders over OTLP/HTTP, by the table of the specification.

use std::io::Write as _;

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceResponse, trace::v1::Span,
};
use prost::Message as _;
use tailwater::config::Config;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Status;
use tonic_types::pb;

use crate::{
    harness::{ALL, Metrics, Running, config, request, span, string},
    wire::{Answer, connect, http1, http2, post},
};

pub(crate) const POST: &str = "POST /v1/traces HTTP/1.1";
pub(crate) const PROTOBUF: &str = "content-type: application/x-protobuf";

/// Sends one request on a connection of its own, with the length of the body.
pub(crate) async fn send(running: &Running, line: &str, headers: &[&str], body: &[u8]) -> Answer {
    let head = format!("{line}\r\n{}\r\ncontent-length: {}", headers.join("\r\n"), body.len());
    send_raw(running, &head, body).await
}

async fn send_raw(running: &Running, head: &str, body: &[u8]) -> Answer {
    let head = format!("{head}\r\nhost: t\r\nconnection: close\r\n\r\n");
    http1(running.service.http_address, &[head.as_bytes(), body].concat()).await
}

/// The bytes of a request with one root span, whose name has this length.
fn one_span(trace: u64, name: usize) -> Vec<u8> {
    let span = Span { name: "x".repeat(name), ..span(trace, 1, None) };
    request("shop", vec![span]).encode_to_vec()
}

pub(crate) fn answered(metrics: &Metrics, code: u16) -> f64 {
    metrics.get(&format!("receiver_requests_total{{transport=\"http\",code=\"{code}\"}}"))
}

pub(crate) fn refused(metrics: &Metrics, reason: &str) -> f64 {
    let labels = format!("transport=\"http\",reason=\"{reason}\"");
    metrics.get(&format!("receiver_refused_requests_total{{{labels}}}"))
}

/// Checks that the answer has this status, and a `google.rpc.Status` with the reason.
fn assert_refused(answer: &Answer, status: u16) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/x-protobuf");
    let why = pb::Status::decode(&answer.body[..]).expect("a google.rpc.Status");
    assert!(why.code != 0 && !why.message.is_empty(), "{why:?}");
    assert_eq!(answer.header("retry-after").is_empty(), status != 503, "{answer:?}");
}

pub(crate) fn compressed(encoding: &str, bytes: &[u8]) -> Vec<u8> {
    let level = flate2::Compression::fast();
    match encoding {
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(bytes).expect("in memory");
            encoder.finish().expect("in memory")
        }
        "deflate" => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
            encoder.write_all(bytes).expect("in memory");
            encoder.finish().expect("in memory")
        }
        _ => zstd::encode_all(bytes, 1).expect("in memory"),
    }
}

/// Scenario: bodies with a length, in chunks, in each encoding, over HTTP/2, with a charset, in
/// upper and lower case.
/// Guarantees: 200 with an empty response message; each span arrives.
#[tokio::test]
async fn every_way_to_post_is_taken() {
    let running = Running::start(config(ALL)).await;
    let mut answers = Vec::new();
    for content_type in [PROTOBUF, "Content-Type: Application/X-Protobuf; charset=utf-8"] {
        answers.push(send(&running, POST, &[content_type], &one_span(1, 9)).await);
    }
    for encoding in ["gzip", "deflate", "zstd"] {
        let body = compressed(encoding, &one_span(1, 1 << 20));
        let encoding = format!("content-encoding: {encoding}");
        answers.push(send(&running, POST, &[PROTOBUF, &encoding], &body).await);
    }
    let identity = [PROTOBUF, "content-encoding: identity"];
    answers.push(send(&running, POST, &identity, &one_span(1, 9)).await);
    let mut chunks = Vec::new();
    for chunk in one_span(1, 100).chunks(50) {
        chunks.extend(format!("{:x}\r\n", chunk.len()).bytes().chain(chunk.iter().copied()));
        chunks.extend(b"\r\n");
    }
    chunks.extend(b"0\r\n\r\n");
    let head = format!("{POST}\r\n{PROTOBUF}\r\ntransfer-encoding: chunked");
    answers.push(send_raw(&running, &head, &chunks).await);
    let client = connect(running.service.http_address).await;
    let head = post("/v1/traces", &[("content-type", "application/x-protobuf")]);
    answers.push(http2(&client, head, one_span(1, 9)).await);
    drop(client);
    for answer in &answers {
        assert_eq!((answer.status, &answer.body[..]), (200, &b""[..]), "{answer:?}");
        assert_eq!(answer.header("content-type"), "application/x-protobuf");
    }
    let metrics = running.at_rest().await;
    assert_eq!(answered(&metrics, 200), answers.len() as f64);
    let accepted = metrics.get("receiver_accepted_spans_total{transport=\"http\"}");
    assert_eq!(accepted, answers.len() as f64);
    assert_eq!(running.spans().len(), answers.len());
    running.stop().await;
}

/// Scenario: two requests on one connection; the second has a malformed id and a resource without
/// spans.
/// Guarantees: the connection stays open; the second answer contains a partial success.
#[tokio::test]
async fn connections_are_kept_and_partial_success_is_told() {
    let running = Running::start(config(ALL)).await;
    let mut stream = TcpStream::connect(running.service.http_address).await.expect("listening");
    let bad = Span { span_id: vec![1; 4], ..span(1, 2, Some(1)) };
    let bodies = [one_span(1, 9), request("shop", vec![bad, span(1, 3, Some(1))]).encode_to_vec()];
    for (body, rejected) in bodies.into_iter().zip([0, 1]) {
        let length = body.len();
        let head = format!("{POST}\r\n{PROTOBUF}\r\nhost: t\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(&[head.as_bytes(), &body].concat()).await.expect("sent");
        let mut bytes = vec![0; 4096];
        let length = stream.read(&mut bytes).await.expect("answered");
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
        assert!(bytes.starts_with(b"HTTP/1.1 200 "));
        let message = ExportTraceServiceResponse::decode(&bytes[end..length]).expect("a message");
        let partial = message.partial_success.unwrap_or_default();
        assert_eq!(
            (partial.rejected_spans, partial.error_message.is_empty()),
            (rejected, rejected == 0)
        );
    }
    let metrics = running.at_rest().await;
    let rejected = "receiver_refused_spans_total{transport=\"http\",reason=\"invalid_id\"}";
    assert_eq!(metrics.get(rejected), 1.0);
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 2.0);
    running.stop().await;
}

/// Scenario: bodies that cannot be decoded or decompressed; other paths, methods, types and
/// encodings.
/// Guarantees: 400, 404, 405 with Allow, 415, each with a message, and nothing is accepted.
#[tokio::test]
async fn other_requests_are_refused() {
    let running = Running::start(config(ALL)).await;
    let good = one_span(1, 9);
    let gzip = compressed("gzip", &good);
    for (encoding, body) in [
        ("identity", &good[..good.len() - 1]),
        ("identity", b"\xff\xffgarbage"),
        ("gzip", &good[..]),
        ("gzip", &gzip[..gzip.len() / 2]),
        ("deflate", &gzip[..]),
        ("zstd", &gzip[..]),
    ] {
        let encoding = format!("content-encoding: {encoding}");
        assert_refused(&send(&running, POST, &[PROTOBUF, &encoding], body).await, 400);
    }
    for path in ["/v1/metrics", "/v1/logs", "/", "/v1/traces/x"] {
        let line = format!("POST {path} HTTP/1.1");
        assert_refused(&send(&running, &line, &[PROTOBUF], &good).await, 404);
    }
    for method in ["GET", "PUT", "DELETE"] {
        let line = format!("{method} /v1/traces HTTP/1.1");
        let answer = send(&running, &line, &[PROTOBUF], b"").await;
        assert_refused(&answer, 405);
        assert_eq!(answer.header("allow"), "POST");
    }
    for headers in [
        &["content-type: application/xml"][..],
        &["content-type: text/plain"],
        &["accept: */*"],
        &[PROTOBUF, "content-encoding: br"],
    ] {
        assert_refused(&send(&running, POST, headers, b"{}").await, 415);
    }
    let metrics = running.metrics().await;
    let counts = [400, 404, 405, 415].map(|code| answered(&metrics, code));
    assert_eq!(counts, [6.0, 4.0, 3.0, 4.0]);
    assert_eq!(refused(&metrics, "malformed"), 6.0);
    assert_eq!(metrics.sum("receiver_refused_requests_total"), 6.0);
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 0.0);
    running.stop().await;
}

/// A limit of 64 KiB per body.
fn small() -> Config {
    let mut config = config(ALL);
    config.http.max_request_body_bytes = 64 << 10;
    config
}

/// Scenario: a body over the limit, by its length, by its chunks, after decompression.
/// Guarantees: 413, even if the sender has sent everything; nothing is accepted.
#[tokio::test]
async fn bodies_over_the_limit_are_refused_for_good() {
    let running = Running::start(small()).await;
    let large = one_span(1, 4 << 20);
    assert_refused(&send(&running, POST, &[PROTOBUF], &large).await, 413);
    let head = format!("{POST}\r\n{PROTOBUF}\r\ntransfer-encoding: chunked");
    let size = format!("{:x}\r\n", large.len());
    let chunk = [size.as_bytes(), &large, b"\r\n0\r\n\r\n"].concat();
    assert_refused(&send_raw(&running, &head, &chunk).await, 413);
    for encoding in ["gzip", "deflate", "zstd"] {
        let bomb = compressed(encoding, &large);
        let encoding = format!("content-encoding: {encoding}");
        assert_refused(&send(&running, POST, &[PROTOBUF, &encoding], &bomb).await, 413);
    }
    let metrics = running.metrics().await;
    assert_eq!((answered(&metrics, 413), refused(&metrics, "too_large")), (5.0, 5.0));
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 0.0);
    running.stop().await;
}

/// Scenario: a body that memory can never hold, and a full queue because the backend is down.
/// Guarantees: 413, and 503 with a Retry-After of 1 to 8 whole seconds; nothing is accepted.
#[tokio::test]
async fn without_room_senders_are_told_when_to_come_back() {
    let mut config = small();
    config.http.max_request_body_bytes = 64 << 20;
    config.sampling.memory_limit_bytes = 4 << 20;
    config.exporter.queue.queue_bytes_max = 16 << 10;
    config.shutdown_timeout = std::time::Duration::from_secs(1);
    let running = Running::start_with(config, Box::new(|_| Err(Status::unavailable("no")))).await;
    let seconds = |answer: &Answer| answer.header("retry-after").parse::<u64>().expect("seconds");
    let large = send(&running, POST, &[PROTOBUF], &one_span(1, 5 << 20)).await;
    assert_refused(&large, 413);

    running
        .accept(vec![Span {
            attributes: vec![string("k", "v".repeat(14 << 10))],
            ..span(2, 1, None)
        }])
        .await;
    let full = |metrics: &Metrics| metrics.get("exporter_queue_bytes") > 0.75 * (16 << 10) as f64;
    running.until("the queue is nearly full", full).await;
    let behind = send(&running, POST, &[PROTOBUF], &one_span(3, 9)).await;
    assert_refused(&behind, 503);
    assert!((1..=8).contains(&seconds(&behind)));
    let (metrics, _) = running.stop().await;
    assert_eq!((refused(&metrics, "too_large"), refused(&metrics, "queue_full")), (1.0, 1.0));
    assert_eq!((answered(&metrics, 503), answered(&metrics, 413)), (1.0, 1.0));
    assert_eq!(metrics.get("receiver_accepted_spans_total{transport=\"http\"}"), 0.0);
}

/// Scenario: a sender that closes its connection in the middle of a body.
/// Guarantees: its memory is released, and nothing is accepted or counted as malformed.
#[tokio::test]
async fn a_sender_that_goes_away_leaves_nothing_behind() {
    let running = Running::start(config(ALL)).await;
    let baseline = running.metrics().await.get("memory_used_bytes");
    let mut stream = TcpStream::connect(running.service.http_address).await.expect("listening");
    let head = format!("{POST}\r\n{PROTOBUF}\r\nhost: t\r\ncontent-length: 200000\r\n\r\n");
    let half = [head.as_bytes(), &one_span(1, 100_000)].concat();
    stream.write_all(&half).await.expect("sent");
    let used = |metrics: &Metrics| metrics.get("memory_used_bytes") - baseline;
    running.until("half a body arrived", |metrics| used(metrics) >= 100_000.0).await;
    drop(stream);
    let metrics = running.until("it is given back", |metrics| used(metrics) <= 0.0).await;
    assert_eq!(metrics.sum("receiver_refused_requests_total"), 0.0);
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 0.0);
    running.stop().await;
}
