//! Software between senders and receivers: meshes, load balancers, proxies, browsers.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use tailwater::{config::CorsPolicy, grpc::EXPORT_PATH};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep},
};

use crate::{
    abuse::{
        Raw,
        frames::{self, DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM},
    },
    connections::{closed, one_span},
    harness::{ALL, Directory, Metrics, Running, config, span},
    http::{POST, PROTOBUF, refused, send},
    wire::{Answer, answer, connect, frame, http1, http2, open, post},
};

fn refused_grpc(metrics: &Metrics, reason: &str) -> f64 {
    let labels = format!("transport=\"grpc\",reason=\"{reason}\"");
    metrics.get(&format!("receiver_refused_requests_total{{{labels}}}"))
}

/// The header block of an Export call with this encoded `:authority`.
fn block(authority: &[u8]) -> Vec<u8> {
    let [method, scheme, path, _, content_type, te] = frames::export_fields();
    let pseudo = frames::hpack(&[method, scheme, path]);
    [&pseudo, authority, &frames::hpack(&[content_type, te])].concat()
}

fn export(stream: u32, authority: &[u8]) -> Vec<u8> {
    let message = frame(0, &one_span(u64::from(stream), 9));
    [
        frames::frame(HEADERS, END_HEADERS, stream, &block(authority)),
        frames::frame(DATA, END_STREAM, stream, &message),
    ]
    .concat()
}

/// Reads until this many streams have ended; returns how each ended: by an answer or by a reset.
async fn ended(raw: &mut Raw, count: usize) -> Vec<(u32, u8)> {
    let mut ended = Vec::new();
    while ended.len() < count {
        let frame = raw.next().await.expect("open");
        let is_whole = matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0;
        if is_whole || frame.kind == RST_STREAM {
            ended.push((frame.stream, frame.kind));
        }
    }
    ended.sort_unstable();
    ended
}

/// Scenario: an Istio proxy, which writes the name of its cluster as `:authority`, first as a
/// literal and then as a reference to it, in bytes that arrive one by one; then an authority that
/// cannot be repaired.
/// Guarantees: the requests with a repairable authority are accepted; the other is refused and
/// counted, and affects no other request.
#[tokio::test]
async fn a_mesh_that_names_its_cluster_may_send() {
    let running = Running::start(config(ALL)).await;
    let mut raw = Raw::connect(running.service.grpc_address, &[]).await;
    let name = b"outbound|4317||tailwater.observability.svc.cluster.local";
    let literal = [&[0x41, name.len() as u8], &name[..]].concat();
    let reference = [0x80 | 62];
    for byte in export(1, &literal) {
        raw.send(&[byte]).await;
    }
    raw.send(&[export(3, &reference), export(5, &reference)].concat()).await;
    assert_eq!(ended(&mut raw, 3).await, [(1, HEADERS), (3, HEADERS), (5, HEADERS)]);
    raw.send(&[export(7, b"\x01\x03a#b"), export(9, &reference)].concat()).await;
    assert_eq!(ended(&mut raw, 2).await, [(7, RST_STREAM), (9, HEADERS)]);
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 4.0);
    assert_eq!(refused_grpc(&metrics, "malformed"), 1.0);
    assert_eq!(metrics.sum("receiver_refused_requests_total"), 1.0);
    running.stop().await;
}

/// Scenario: 60 KiB of metadata in one header and in fifty, then 70 KiB, over gRPC and HTTP/1.1.
/// Guarantees: the first two are accepted, the last is refused and counted; the connection
/// continues.
#[tokio::test]
async fn metadata_of_64_kib_is_taken() {
    let running = Running::start(config(ALL)).await;
    let client = connect(running.service.grpc_address).await;
    let call = async |trace: u64, header: usize, count: usize| {
        let mut head = post(EXPORT_PATH, &[]);
        let value = HeaderValue::from_str(&"x".repeat(header)).expect("text");
        for _ in 0..count {
            head.headers_mut().append("baggage", value.clone());
        }
        http2(&client, head, frame(0, &one_span(trace, 9))).await
    };
    for (trace, (header, count)) in (1..).zip([(60 << 10, 1), (1 << 10, 50), (1, 1)]) {
        assert_eq!(call(trace, header, count).await.header("grpc-status"), "0", "{header}");
    }
    assert_eq!(call(8, 70 << 10, 1).await.status, 431);
    assert_eq!(call(8, 1 << 10, 70).await.status, 431);
    assert_eq!(call(4, 1, 1).await.header("grpc-status"), "0");

    let large = |bytes: usize| format!("baggage: {}", "x".repeat(bytes));
    let taken = send(&running, POST, &[PROTOBUF, &large(60 << 10)], &one_span(5, 9)).await;
    assert_eq!(taken.status, 200);
    // The connection may be reset after the answer, since not everything was read.
    let mut stream = TcpStream::connect(running.service.http_address).await.expect("listening");
    let head = format!("{POST}\r\nhost: t\r\n{PROTOBUF}\r\n{}\r\n\r\n", large(70 << 10));
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut told = vec![0; 1024];
    let length = stream.read(&mut told).await.expect("answered");
    assert!(told[..length].starts_with(b"HTTP/1.1 431 "));
    let counted = |metrics: &Metrics| {
        [refused_grpc(metrics, "headers_too_large"), refused(metrics, "headers_too_large")]
            == [2.0, 1.0]
    };
    running.until("counted", counted).await;
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 5.0);
    assert_eq!(metrics.sum("receiver_refused_requests_total"), 3.0);
    running.stop().await;
}

/// Scenario: senders, and a scraper, that close their side as soon as their request is sent.
/// Guarantees: each gets its answer.
#[tokio::test]
async fn a_client_that_half_closes_is_answered() {
    let running = Running::start(config(ALL)).await;
    for trace in 1..=10 {
        let body = one_span(trace, 9);
        let length = body.len();
        let head = format!("{POST}\r\nhost: t\r\n{PROTOBUF}\r\ncontent-length: {length}\r\n\r\n");
        let post = [head.as_bytes(), &body].concat();
        let scrape = b"GET /-/healthy HTTP/1.1\r\nhost: t\r\n\r\n".to_vec();
        let service = &running.service;
        for (address, bytes) in [(service.http_address, post), (service.admin_address, scrape)] {
            let mut stream = TcpStream::connect(address).await.expect("listening");
            stream.write_all(&bytes).await.expect("sent");
            stream.shutdown().await.expect("half closed");
            let mut told = String::new();
            stream.read_to_string(&mut told).await.expect("answered");
            assert!(told.starts_with("HTTP/1.1 200 "), "{told:?}");
        }
        for address in [service.grpc_address, service.http_address] {
            let mut raw = Raw::connect(address, &[]).await;
            raw.send(&export(1, b"\x01\x01t")).await;
            raw.writer.shutdown().await.expect("half closed");
            assert_ne!(ended(&mut raw, 1).await, [(1, RST_STREAM)]);
            while raw.next().await.is_some() {}
        }
    }
    let metrics = running.at_rest().await;
    // Over HTTP/2 the HTTP receiver answers 415 to gRPC.
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 20.0);
    running.until("all are closed", |m| m.sum("receiver_connections") == 0.0).await;
    running.stop().await;
}

/// Scenario: `max_connection_age` of a second; a request that is in progress when it is over.
/// Guarantees: the connection is told to go away, not earlier than 10 % before that age; the
/// request is answered, and the connection closed; it counts as `max_age`.
#[tokio::test]
async fn old_grpc_connections_are_told_to_leave() {
    let mut config = config(ALL);
    config.sampling.decision_wait = Duration::from_secs(3600);
    config.grpc.max_connection_age = Some(Duration::from_secs(1));
    let running = Running::start(config).await;
    let began = Instant::now();
    let client = connect(running.service.grpc_address).await;
    let body = frame(0, &one_span(1, 100));
    assert!(client.clone().ready().await.is_ok());
    let (response, mut under_way) = open(&client, post(EXPORT_PATH, &[])).await;
    under_way.send_data(Bytes::from(body[..9].to_vec()), false).expect("sent");
    while client.clone().ready().await.is_ok() {
        sleep(Duration::from_millis(10)).await;
    }
    assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
    under_way.send_data(Bytes::from(body[9..].to_vec()), true).expect("sent");
    assert_eq!(answer(response).await.expect("answered").header("grpc-status"), "0");
    let is_over = |metrics: &Metrics| closed(metrics, "max_age") == [1.0, 0.0];
    running.until("it was closed", is_over).await;
    let (metrics, _) = running.stop().await;
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 1.0);
}

/// Scenario: the same over HTTP/1.1, where a server cannot tell anything to a waiting client.
/// Guarantees: the next answer says that the connection closes, and it does.
#[tokio::test]
async fn old_http_connections_close_after_an_answer() {
    let mut config = config(ALL);
    config.sampling.decision_wait = Duration::from_secs(3600);
    config.http.max_connection_age = Some(Duration::from_secs(2));
    let running = Running::start(config).await;
    let mut stream = TcpStream::connect(running.service.http_address).await.expect("listening");
    for is_last in [false, false, true] {
        if is_last {
            sleep(Duration::from_millis(2300)).await;
        }
        stream.write_all(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n").await.expect("sent");
        let mut told = vec![0; 1024];
        let length = stream.read(&mut told).await.expect("answered");
        let told = String::from_utf8_lossy(&told[..length]).into_owned();
        assert!(told.starts_with("HTTP/1.1 404 "), "{told}");
        assert_eq!(told.contains("connection: close"), is_last, "{told}");
    }
    assert_eq!(stream.read(&mut [0; 64]).await.expect("closed"), 0);
    let is_over = |metrics: &Metrics| closed(metrics, "max_age") == [0.0, 1.0];
    running.until("it was closed", is_over).await;
    running.stop().await;
}

/// Scenario: senders that connect and disconnect, and one that is connected at the shutdown.
/// Guarantees: the gauge follows them, and each end has its reason.
#[tokio::test]
async fn connections_are_counted() {
    let running = Running::start(config(ALL)).await;
    let open = |metrics: &Metrics, transport: &str| {
        metrics.get(&format!("receiver_connections{{transport=\"{transport}\"}}"))
    };
    let stays = connect(running.service.grpc_address).await;
    let goes = TcpStream::connect(running.service.http_address).await.expect("listening");
    let both = |metrics: &Metrics| (open(metrics, "grpc"), open(metrics, "http")) == (1.0, 1.0);
    running.until("both are open", both).await;
    let sent = http2(&stays, post(EXPORT_PATH, &[]), frame(0, &one_span(1, 9))).await;
    assert_eq!(sent.header("grpc-status"), "0");
    drop(goes);
    let gone = |metrics: &Metrics| open(metrics, "http") == 0.0;
    let metrics = running.until("one is gone", gone).await;
    assert_eq!(closed(&metrics, "client"), [0.0, 1.0]);
    let (metrics, _) = running.stop().await;
    assert_eq!((open(&metrics, "grpc"), closed(&metrics, "drain")), (0.0, [1.0, 0.0]));
    assert_eq!(metrics.sum("receiver_connections_closed_total"), 2.0);
}

/// Scenario: traces posted to the usual path and to another one, with a slash at the end.
/// Guarantees: the configured path is accepted with or without the slash; for others, the sender
/// learns where to post.
#[tokio::test]
async fn traces_are_taken_at_the_configured_path() {
    let post = async |running: &Running, path: &str| {
        let line = format!("POST {path} HTTP/1.1");
        send(running, &line, &[PROTOBUF], &one_span(1, 9)).await
    };
    let running = Running::start(config(ALL)).await;
    assert_eq!(post(&running, "/v1/traces/").await.status, 200);
    assert_eq!(post(&running, "/v1/traces//").await.status, 404);
    running.at_rest().await;
    running.stop().await;
    let mut config = config(ALL);
    config.http.traces_url_path = "/otlp/team-a/".to_owned();
    let running = Running::start(config).await;
    assert_eq!(post(&running, "/otlp/team-a").await.status, 200);
    assert_eq!(post(&running, "/otlp/team-a/").await.status, 200);
    let elsewhere = post(&running, "/v1/traces").await;
    assert_eq!(elsewhere.status, 404);
    assert!(String::from_utf8_lossy(&elsewhere.body).contains("/otlp/team-a/"));
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 2.0);
    running.stop().await;
}

async fn preflight(running: &Running, origin: &str, method: &str, headers: &str) -> Answer {
    let head = format!(
        "OPTIONS /v1/traces HTTP/1.1\r\nhost: t\r\nconnection: close\r\norigin: {origin}\r\n\
         access-control-request-method: {method}\r\n\
         access-control-request-headers: {headers}\r\n\r\n"
    );
    http1(running.service.http_address, head.as_bytes()).await
}

const ALLOWED: &str = "access-control-allow-origin";
const CREDENTIALS: &str = "access-control-allow-credentials";

/// Scenario: pages of allowed and of other sites ask whether they may send, and send, with and
/// without the token.
/// Guarantees: only allowed requests are answered as allowed; a page may read refusals too; an
/// origin that is not allowed is never repeated.
#[tokio::test]
async fn browsers_of_allowed_origins_may_send() {
    let directory = Directory::new();
    let mut config = config(ALL);
    config.bearer_token_file = Some(directory.file("token", "s3cret\n").into());
    config.http.cors = CorsPolicy {
        allowed_origins: vec!["https://shop.example".into(), "https://*.shop.example".into()],
        allowed_headers: vec!["X-Team".into(), "authorization".into()],
    };
    let running = Running::start(config).await;
    for (origin, method, headers, is_allowed) in [
        ("https://shop.example", "POST", "content-type, x-team,Authorization", true),
        ("https://eu.shop.example", "POST", "content-type", true),
        ("https://evil.example", "POST", "content-type", false),
        ("https://shop.example.evil.example", "POST", "content-type", false),
        ("null", "POST", "content-type", false),
        ("https://shop.example", "DELETE", "content-type", false),
        ("https://shop.example", "POST", "x-other", false),
        ("https://shop.example", "POST", "x-requested-with", false),
    ] {
        let answer = preflight(&running, origin, method, headers).await;
        assert_eq!(answer.status, 204);
        let (expected, yes) = if is_allowed { (origin, "true") } else { ("", "") };
        assert_eq!(answer.header(ALLOWED), expected, "{origin} {method} {headers}");
        assert_eq!(answer.header(CREDENTIALS), yes);
        assert_eq!(answer.headers.contains_key("access-control-allow-headers"), is_allowed);
        assert!(answer.header("vary").contains("Origin"));
    }
    let token = "authorization: Bearer s3cret";
    let (ours, theirs) = ("origin: https://eu.shop.example", "origin: https://evil.example");
    let body = one_span(1, 9);
    for (headers, status, allowed) in [
        (&[PROTOBUF, token, ours][..], 200, "https://eu.shop.example"),
        (&[PROTOBUF, ours], 401, "https://eu.shop.example"),
        (&[PROTOBUF, token, theirs], 200, ""),
        (&[PROTOBUF, token], 200, ""),
    ] {
        let answer = send(&running, POST, headers, &body).await;
        assert_eq!((answer.status, answer.header(ALLOWED)), (status, allowed), "{headers:?}");
        assert_eq!(answer.header("vary"), "Origin");
    }
    running.at_rest().await;
    running.stop().await;
}

/// Scenario: all origins and headers allowed; then none, which is the default.
/// Guarantees: the first is answered with `*` and without credentials, the second as without CORS.
#[tokio::test]
async fn a_star_allows_all_origins_and_no_credentials() {
    let mut open = config(ALL);
    let all = vec!["*".to_owned()];
    open.http.cors = CorsPolicy { allowed_origins: all.clone(), allowed_headers: all };
    let running = Running::start(open).await;
    let answer = preflight(&running, "https://any.example", "POST", "x-any").await;
    assert_eq!((answer.header(ALLOWED), answer.header(CREDENTIALS)), ("*", ""));
    running.accept(vec![span(1, 1, None)]).await;
    running.at_rest().await;
    running.stop().await;
    let running = Running::start(config(ALL)).await;
    let answer = preflight(&running, "https://any.example", "POST", "content-type").await;
    assert_eq!((answer.status, answer.header(ALLOWED)), (405, ""));
    let origin = "origin: https://any.example";
    let answer = send(&running, POST, &[PROTOBUF, origin], &one_span(1, 9)).await;
    assert_eq!((answer.status, answer.header(ALLOWED), answer.header("vary")), (200, "", ""));
    running.at_rest().await;
    running.stop().await;
}
