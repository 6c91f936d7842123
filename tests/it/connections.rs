//! Connections that are slow, silent, greedy or broken.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use prost::Message as _;
use tailwater::grpc::EXPORT_PATH;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use crate::{
    harness::{ALL, Metrics, Running, config, request, span, string},
    wire::{connect, frame, http2, open, post},
};

/// The bytes of a request with one root span with an attribute of this length.
pub fn one_span(trace: u64, length: usize) -> Vec<u8> {
    let mut span = span(trace, 1, None);
    span.attributes.push(string("padding", "x".repeat(length)));
    request("shop", vec![span]).encode_to_vec()
}

/// Scenario: a hundred requests in progress on one connection, each of which claims 64 MiB.
/// Guarantees: the claims take no memory; another request waits until one of them ends.
#[tokio::test]
async fn streams_are_limited_and_claims_hold_nothing() {
    let running = Running::start(config(ALL)).await;
    let baseline = running.metrics().await.get("memory_used_bytes");
    let client = connect(running.service.grpc_address).await;
    let mut streams = Vec::new();
    for _ in 0..100 {
        let (response, mut body) = open(&client, post(EXPORT_PATH, &[])).await;
        let claim = [&[0][..], &(64_u32 << 20).to_be_bytes()].concat();
        body.send_data(claim.into(), false).expect("sent");
        streams.push((response, body));
    }
    let arrived = |metrics: &Metrics| metrics.get("memory_used_bytes") >= baseline + 500.0;
    let metrics = running.until("all claims arrived", arrived).await;
    assert!(metrics.get("memory_used_bytes") < baseline + 10_000.0);
    let export = http2(&client, post(EXPORT_PATH, &[]), frame(0, &one_span(1, 9)));
    let mut export = std::pin::pin!(export);
    let waiting = tokio::time::timeout(Duration::from_millis(100), &mut export);
    assert!(waiting.await.is_err(), "the 101st stream waits");
    streams.pop();
    assert_eq!(export.await.header("grpc-status"), "0");
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 1.0);
    drop(streams);
    running.stop().await;
}

/// Scenario: senders that reset their request or close their connection in the middle of a body.
/// Guarantees: their memory is released, nothing is accepted or counted as malformed, and other
/// senders go on.
#[tokio::test]
async fn senders_that_go_away_leave_nothing_behind() {
    let running = Running::start(config(ALL)).await;
    let baseline = running.metrics().await.get("memory_used_bytes");
    let client = connect(running.service.grpc_address).await;
    let half: Bytes = frame(0, &one_span(1, 400 << 10))[..200 << 10].to_vec().into();
    let mut streams = Vec::new();
    for _ in 0..2 {
        let (response, mut body) = open(&client, post(EXPORT_PATH, &[])).await;
        body.send_data(half.clone(), false).expect("sent");
        streams.push((response, body));
    }
    let arrived =
        |metrics: &Metrics| metrics.get("memory_used_bytes") >= baseline + (2 * half.len()) as f64;
    running.until("both halves arrived", arrived).await;
    streams[0].1.send_reset(h2::Reason::CANCEL);
    let one =
        |metrics: &Metrics| metrics.get("memory_used_bytes") < baseline + (2 * half.len()) as f64;
    running.until("the first half is given back", one).await;
    drop((streams, client));
    let gone = |metrics: &Metrics| metrics.get("memory_used_bytes") <= baseline;
    let metrics = running.until("everything is given back", gone).await;
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 0.0);
    assert_eq!(metrics.sum("receiver_refused_requests_total"), 0.0);
    running.accept(vec![span(1, 1, None)]).await;
    running.at_rest().await;
    running.stop().await;
}

/// The connections closed for this reason, over gRPC and over HTTP.
pub fn closed(metrics: &Metrics, reason: &str) -> [f64; 2] {
    ["grpc", "http"].map(|transport| {
        let labels = format!("transport=\"{transport}\",reason=\"{reason}\"");
        metrics.get(&format!("receiver_connections_closed_total{{{labels}}}"))
    })
}

/// Sends the beginning of a request; returns how long the server waits for the rest.
pub async fn patience(address: SocketAddr, beginning: &[u8]) -> Duration {
    let mut stream = TcpStream::connect(address).await.expect("listening");
    stream.write_all(beginning).await.expect("sent");
    let began = Instant::now();
    // HTTP/2 settings may arrive; the end is a reset if the server has not read everything.
    while stream.read(&mut [0; 1024]).await.is_ok_and(|length| length > 0) {}
    began.elapsed()
}

/// Scenario: connections that send nothing, half a preface, half a request head, or no HTTP at all.
/// Guarantees: incomplete ones are closed after 10 s, the last one at once.
#[tokio::test(start_paused = true)]
async fn connections_without_a_request_are_closed() {
    let running = Running::start(config(ALL)).await;
    let (grpc, http) = (running.service.grpc_address, running.service.http_address);
    for (address, beginning) in [
        (grpc, &b""[..]),
        (grpc, b"PRI * HTTP/2.0"),
        (http, b""),
        (http, b"POST /v1/traces HTTP/1.1\r\nhost:"),
    ] {
        let waited = patience(address, beginning).await.as_secs_f64();
        assert!((10.0..60.0).contains(&waited), "{waited} s, {}", beginning.escape_ascii());
    }
    for address in [grpc, http] {
        let waited = patience(address, b"\x16\x03\x01 a TLS hello").await;
        assert!(waited < Duration::from_secs(10), "{waited:?}");
    }
    let metrics = running.metrics().await;
    assert_eq!(closed(&metrics, "handshake"), [2.0, 2.0]);
    assert_eq!(closed(&metrics, "error"), [1.0, 1.0]);
    running.stop().await;
}

/// Scenario: requests over HTTP/1.1 and gRPC with a minute of silence between them, then silence.
/// Guarantees: the connections are kept for both requests and closed after eleven minutes of
/// silence, which is longer than the ten for which load balancers keep theirs.
#[tokio::test(start_paused = true)]
async fn idle_connections_are_kept_for_eleven_minutes() {
    let mut config = config(ALL);
    // This makes ticks longer; eleven minutes have many of them.
    config.sampling.decision_wait = Duration::from_secs(3600);
    let running = Running::start(config).await;
    let mut stream = TcpStream::connect(running.service.http_address).await.expect("listening");
    let client = connect(running.service.grpc_address).await;
    let mut answer = [0; 1024];
    let mut answered = Instant::now();
    for pause in [0, 60] {
        tokio::time::sleep(Duration::from_secs(pause)).await;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n").await.expect("sent");
        let length = stream.read(&mut answer).await.expect("answered");
        assert!(answer[..length].starts_with(b"HTTP/1.1 404 "), "{length}");
        assert_eq!(http2(&client, post("/", &[]), Vec::new()).await.header("grpc-status"), "12");
        answered = Instant::now();
    }
    assert_eq!(stream.read(&mut answer).await.expect("closed"), 0);
    // The paused clock runs on while sockets are waited for, so the bounds are not exact. hyper
    // uses the real clock, on which the minute in between did not pass.
    assert!((590..1100).contains(&answered.elapsed().as_secs()), "{:?}", answered.elapsed());
    while client.clone().ready().await.is_ok() {
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    assert!((630..1100).contains(&answered.elapsed().as_secs()), "{:?}", answered.elapsed());
    let is_over = |metrics: &Metrics| closed(metrics, "idle") == [1.0, 1.0];
    running.until("both were closed", is_over).await;
    running.stop().await;
}
