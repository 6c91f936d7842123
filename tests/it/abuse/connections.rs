//! Numbers 5 to 10: connections and requests that are held open, and answers that are not read.

use std::time::Duration;

use prost::Message as _;
use tailwater::grpc::EXPORT_PATH;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{
    Raw, beside_honest,
    frames::{self, DATA, END_STREAM, HEADERS, INITIAL_WINDOW, RST_STREAM, SETTINGS},
};
use crate::{
    cli::{NOBODY, Process},
    harness::{ALL, Metrics, Running, config, get, request, span},
    wire::{answer, connect, frame, http2, open, post},
};

const REFUSED_STREAM: u32 = 7;
/// Much shorter than any timeout of a connection, and longer than a busy machine needs.
const AT_ONCE: Duration = Duration::from_secs(5);

fn one_span(trace: u64) -> Vec<u8> {
    frame(0, &request("shop", vec![span(trace, 1, None)]).encode_to_vec())
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let read = timeout(AT_ONCE, stream.read(&mut [0; 64])).await;
    read.is_ok_and(|read| read.is_err() || read.is_ok_and(|length| length == 0))
}

/// Scenario: number 5. A flow-control window of 0 for answers, and as many requests as streams are
/// allowed.
/// Guarantees: all requests are accepted; the connection is closed when no answer could be sent for
/// 30 s.
#[tokio::test(start_paused = true)]
async fn answers_that_are_not_read_end_the_connection() {
    let mut config = config(ALL);
    config.sampling.decision_wait = Duration::from_secs(3600);
    let running = Running::start(config).await;
    let mut raw = Raw::connect(running.service.grpc_address, &[(INITIAL_WINDOW, 0)]).await;
    for index in 0..100 {
        let id = 2 * index + 1;
        let body = one_span(u64::from(id));
        raw.send(&[frames::export(id, 0), frames::frame(DATA, END_STREAM, id, &body)].concat())
            .await;
    }
    let (began, mut answers) = (Instant::now(), 0);
    while let Some(frame) = raw.next().await {
        assert_ne!(frame.kind, DATA, "there is no window for it");
        answers += u32::from(frame.kind == HEADERS);
    }
    let waited = began.elapsed().as_secs();
    assert!((20..120).contains(&waited), "{waited} s");
    assert_eq!(answers, 100);
    let (metrics, _) = running.stop().await;
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 100.0);
}

/// Scenario: number 6. More silent connections than allowed, then one that sends a request; then
/// more active connections than allowed.
/// Guarantees: the connection that was silent first makes room for the active one; if all are
/// active, a further one is closed at once.
#[tokio::test]
async fn silent_connections_make_room() {
    let mut config = config(ALL);
    config.grpc.max_connections = 3;
    let running = Running::start(config).await;
    let address = running.service.grpc_address;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpStream::connect(address).await.expect("listening"));
    }
    silent[2].write_all(b"PRI * HT").await.expect("sent");
    running.accept(vec![span(1, 1, None)]).await;
    assert!(is_closed(&mut silent[0]).await);
    let speaking = [connect(address).await, connect(address).await];
    for (trace, client) in (2..).zip(&speaking) {
        let answer = http2(client, post(EXPORT_PATH, &[]), one_span(trace)).await;
        assert_eq!(answer.header("grpc-status"), "0");
    }
    for stream in &mut silent[1..] {
        assert!(is_closed(stream).await);
    }
    assert!(is_closed(&mut TcpStream::connect(address).await.expect("listening")).await);
    let metrics = running.metrics().await;
    let closed = "receiver_connections_closed_total{transport=\"grpc\",reason=\"max_connections\"}";
    assert_eq!((metrics.get(closed), metrics.sum("receiver_connections")), (4.0, 3.0));
    running.accept(vec![span(4, 1, None)]).await;
    drop(speaking);
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 4.0);
    running.stop().await;
}

/// Scenario: number 7. A limit of 256 descriptors, and 400 connections that send a request and stay
/// open.
/// Guarantees: earlier connections and /metrics are still served; one line is logged; once
/// connections close, a new connection is served.
#[tokio::test]
async fn descriptors_do_not_run_out() {
    let process = Process::start_with_descriptors(256, NOBODY);
    let (grpc, admin) = process.addresses().await;
    let honest = connect(grpc).await;
    let export = async |client, trace| {
        let answer = http2(client, post(EXPORT_PATH, &[]), one_span(trace)).await;
        assert_eq!(answer.header("grpc-status"), "0");
    };
    export(&honest, 1).await;
    let mut greedy = Vec::new();
    for _ in 0..400 {
        let mut stream = TcpStream::connect(grpc).await.expect("listening");
        // Refused connections are reset.
        let _ = stream.write_all(&frames::preface(&[])).await;
        greedy.push(stream);
        export(&honest, 2).await;
    }
    let mut last = greedy.pop().expect("some");
    while !is_closed(&mut last).await {}
    assert_eq!(get(admin, "/-/ready").await.0, 200);
    assert_eq!(process.lines("closed a new connection"), 1);
    assert_eq!(process.lines("cannot accept"), 0);
    drop(greedy);
    // The server sees them close one by one.
    let mut others = Vec::new();
    for _ in 0..500 {
        let mut stream = TcpStream::connect(grpc).await.expect("listening");
        let _ = stream.write_all(&frames::preface(&[])).await;
        if stream.read(&mut [0; 64]).await.is_ok_and(|length| length > 0) {
            others.push(stream);
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(others.len(), 1, "served again");
    let metrics = Metrics::parse(&get(admin, "/metrics").await.1);
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 401.0);
    metrics.assert_ledger();
}

/// Scenario: numbers 8 and 9. A request that claims 64 MiB and sends nothing more, and a body that
/// sends a byte every five seconds, to both receivers.
/// Guarantees: each is ended after 30 s, with DEADLINE_EXCEEDED, or with 503 and a Retry-After,
/// which senders retry; it is counted as a timeout, and its memory is released.
#[tokio::test(start_paused = true)]
async fn slow_bodies_are_ended() {
    let mut config = config(ALL);
    config.sampling.decision_wait = Duration::from_secs(3600);
    let running = Running::start(config).await;
    let before = running.metrics().await.get("memory_used_bytes");
    let client = connect(running.service.grpc_address).await;
    let began = Instant::now();
    let (response, mut body) = open(&client, post(EXPORT_PATH, &[])).await;
    let claim = [&[0][..], &(64_u32 << 20).to_be_bytes()].concat();
    body.send_data(claim.into(), false).expect("sent");
    let (slow_response, mut slow) = open(&client, post(EXPORT_PATH, &[])).await;
    let drip = async {
        loop {
            if slow.send_data(vec![0].into(), false).is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    };
    let answers = async { (answer(response).await, answer(slow_response).await) };
    let ((silent, slow), ()) = tokio::join!(answers, drip);
    for answer in [silent, slow] {
        assert_eq!(answer.expect("answered").header("grpc-status"), "4");
    }
    let waited = began.elapsed().as_secs();
    assert!((30..60).contains(&waited), "{waited} s");

    let mut stream = TcpStream::connect(running.service.http_address).await.expect("listening");
    let head = "POST /v1/traces HTTP/1.1\r\nhost: t\r\ncontent-type: application/x-protobuf\r\n\
                content-length: 100\r\n\r\nonly this";
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut told = vec![0; 1024];
    let length = stream.read(&mut told).await.expect("answered");
    let told = String::from_utf8_lossy(&told[..length]).into_owned();
    assert!(told.starts_with("HTTP/1.1 503 ") && told.contains("retry-after: "), "{told}");
    let metrics = running.metrics().await;
    let timeouts = |transport: &str| {
        let labels = format!("transport=\"{transport}\",reason=\"timeout\"");
        metrics.get(&format!("receiver_refused_requests_total{{{labels}}}"))
    };
    assert_eq!((timeouts("grpc"), timeouts("http")), (2.0, 1.0));
    assert_eq!(metrics.sum("receiver_refused_requests_total"), 3.0);
    assert!(metrics.get("memory_used_bytes") <= before);
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 0.0);
    drop(client);
    running.stop().await;
}

/// Scenario: number 9. An invalid grpc-timeout and a timeout of zero, and content types that only
/// begin like gRPC's. (`answers.rs` tests methods, flags and encodings.)
/// Guarantees: a request that is buffered at once needs no timeout and is accepted; the others get
/// 415.
#[tokio::test]
async fn absurd_headers_are_answered() {
    let running = Running::start(config(ALL)).await;
    let client = connect(running.service.grpc_address).await;
    for (trace, timeout) in (1..).zip(["99999999H", "0n", "-1S", "soon", ""]) {
        let head = post(EXPORT_PATH, &[("grpc-timeout", timeout)]);
        let answer = http2(&client, head, one_span(trace)).await;
        assert_eq!(answer.header("grpc-status"), "0", "{timeout}");
    }
    for content_type in ["application/grpc-web", "application/grpcx"] {
        let head = post(EXPORT_PATH, &[("content-type", content_type)]);
        assert_eq!(http2(&client, head, one_span(9)).await.status, 415, "{content_type}");
    }
    drop(client);
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 5.0);
    running.stop().await;
}

/// Scenario: number 10. A client that opens 200 streams, although it knows the limit of 100.
/// Guarantees: the streams above the limit are refused one by one; the first 100 are accepted.
#[tokio::test]
async fn streams_over_the_limit_are_refused() {
    let running = Running::start(config(ALL)).await;
    let mut raw = Raw::connect(running.service.grpc_address, &[]).await;
    while raw.next().await.is_some_and(|frame| frame.kind != SETTINGS) {}
    raw.send(&frames::frame(SETTINGS, frames::ACK, 0, &[])).await;
    let ids = || (0..200).map(|index| 2 * index + 1);
    for id in ids() {
        raw.send(&frames::export(id, 0)).await;
    }
    let refusals = async {
        let mut refused = Vec::new();
        while refused.len() < 100 {
            let frame = raw.next().await.expect("open");
            if frame.kind == RST_STREAM {
                assert_eq!(frame.payload, REFUSED_STREAM.to_be_bytes());
                refused.push(frame.stream);
            }
        }
        (raw, refused)
    };
    let (mut raw, refused) = beside_honest(&running, refusals).await;
    assert_eq!(refused, ids().skip(100).collect::<Vec<_>>());
    for id in ids().take(100) {
        let body = one_span(u64::from(id));
        raw.send(&frames::frame(DATA, END_STREAM, id, &body)).await;
    }
    let mut answered = 0;
    while answered < 100 {
        let frame = raw.next().await.expect("open");
        answered += u32::from(frame.kind == HEADERS && frame.flags & END_STREAM != 0);
    }
    running.at_rest().await;
    running.stop().await;
}
