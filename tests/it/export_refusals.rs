//! Refusals that say nothing about the spans, or only about one of them: kept spans must not be
//! lost because of an expired token, a wrong port, or a rate limit, and one span must not slow down
//! all others.

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use tailwater::{
    config::{Config, Protocol},
    grpc::EXPORT_PATH,
};
use tokio::task::JoinSet;
use tonic::Status;

use crate::{
    certificates::{Ca, server},
    cli::Process,
    export::{roots, waiting},
    harness::{Answer, Directory, Metrics, Running, sink, spans_of},
    tls::export::Terminator,
    web::{Reply, Seen, Web, over_http, reply, reply_with},
};

fn sent(metrics: &Metrics) -> f64 {
    metrics.sum("exporter_sent_spans_total")
}

fn retries(metrics: &Metrics, code: &str) -> f64 {
    metrics.get(&format!("exporter_retries_total{{code=\"{code}\"}}"))
}

/// Keeps everything and decides soon, with one request per tick and one consumer.
fn soon() -> Config {
    let mut config = waiting();
    config.sampling.decision_wait_after_root_received = Some(Duration::from_millis(200));
    config.exporter.queue.num_consumers = 1;
    config.exporter.max_request_bytes = 64 << 20;
    config.exporter.retry.max_interval = Duration::from_millis(100);
    config
}

/// The same over this protocol, to a backend at this address.
fn over(protocol: Protocol, url: &str) -> Config {
    let mut config = over_http(soon(), url);
    config.exporter.protocol = protocol;
    config
}

/// An answer of gRPC without a message.
fn grpc_reply(status: u16, message: &str) -> Reply {
    let response = Response::builder().header("content-type", "application/grpc");
    let response = response.header("grpc-status", status).header("grpc-message", message);
    response.body(Full::default()).expect("valid")
}

fn taken(seen: &Seen) -> Reply {
    if seen.path == EXPORT_PATH { grpc_reply(0, "") } else { reply(200) }
}

/// Scenario: RESOURCE_EXHAUSTED without RetryInfo, with the words of Tempo's rate limit, three
/// times.
/// Guarantees: it is treated as a delay: the spans are sent again, and arrive once.
#[tokio::test]
async fn a_rate_limit_in_words_is_a_delay() {
    let calls = AtomicUsize::new(0);
    let answer: Answer = Box::new(move |_| match calls.fetch_add(1, Relaxed) {
        0..3 => Err(Status::resource_exhausted(
            "RATE_LIMITED: ingestion rate limit (local: 15000000 bytes, global: 0 bytes) exceeded \
             while adding 20 bytes for user single-tenant",
        )),
        _ => Ok(Bytes::new()),
    });
    let running = Running::start_with(soon(), answer).await;
    running.accept(roots(20, 0)).await;
    let metrics = running.at_rest().await;
    assert_eq!((sent(&metrics), running.spans().len()), (20.0, 20));
    assert_eq!(retries(&metrics, "RESOURCE_EXHAUSTED"), 3.0);
    assert_eq!(metrics.sum("exporter_failed_spans_total"), 0.0);
    running.stop().await;
}

/// Scenario: RESOURCE_EXHAUSTED without end, with a message about a quota.
/// Guarantees: it is treated as final after one attempt.
#[tokio::test]
async fn a_quota_is_a_verdict() {
    let answer: Answer = Box::new(|_| Err(Status::resource_exhausted("your quota is used up")));
    let running = Running::start_with(soon(), answer).await;
    running.accept(roots(20, 0)).await;
    let metrics = running.at_rest().await;
    assert_eq!(metrics.get("exporter_failed_spans_total{reason=\"rejected\"}"), 20.0);
    assert_eq!(metrics.sum("exporter_retries_total"), 0.0);
    running.stop().await;
}

/// Scenario: over both protocols, a token that the backend no longer accepts; its file is replaced
/// first by an unusable token, then by the new one.
/// Guarantees: spans are kept while the token is not accepted, and all arrive once it is replaced.
#[tokio::test]
async fn a_token_that_is_replaced_ends_the_outage() {
    for (protocol, code) in [(Protocol::Grpc, "UNAUTHENTICATED"), (Protocol::Http, "401")] {
        let accepted = Arc::new(Mutex::new("Bearer old"));
        let current = Arc::clone(&accepted);
        let web = Web::start(move |seen| {
            let is_known = seen.headers["authorization"] == *current.lock().expect("no panic");
            match (is_known, protocol) {
                (true, _) => taken(seen),
                (false, Protocol::Grpc) => grpc_reply(16, "token expired"),
                (false, Protocol::Http) => reply_with(401, "text/plain", b"token expired"),
            }
        })
        .await;
        let directory = Directory::new();
        let file = directory.file("token", " old\n");
        let mut config = over(protocol, &web.url());
        config.exporter.bearer_token_file = Some(file.clone().into());
        let running = Running::start_to(config).await;
        running.accept(roots(5, 0)).await;
        running.until("sent", |metrics| sent(metrics) == 5.0).await;

        *accepted.lock().expect("no panic") = "Bearer new";
        running.accept(roots(10, 0).split_off(5)).await;
        running.until("retries", |metrics| retries(metrics, code) >= 3.0).await;
        fs::write(&file, "one\ntwo\n").expect("written");
        let bad = |metrics: &Metrics| metrics.get("credentials_last_reload_successful") == 0.0;
        let metrics = running.until("the file cannot be used", bad).await;
        assert_eq!(metrics.sum("exporter_queue_spans"), 5.0);
        assert_eq!(metrics.sum("exporter_failed_spans_total"), 0.0);
        fs::write(&file, "new\n").expect("written");
        running.until("sent", |metrics| sent(metrics) == 10.0).await;
        let metrics = running.at_rest().await;
        assert_eq!(metrics.sum("exporter_failed_spans_total"), 0.0);
        assert_eq!(metrics.get("credentials_last_reload_successful"), 1.0);
        running.stop().await;
    }
}

/// Scenario: over both protocols, a backend whose answers are about permissions or paths, or are
/// pages, redirects or from other services; then it accepts everything.
/// Guarantees: each costs a retry and no span.
#[tokio::test]
async fn answers_that_are_not_about_spans_cost_none() {
    let page = || reply_with(200, "text/html; charset=utf-8", b"<html>Welcome</html>");
    let redirect = || {
        let mut reply = reply(302);
        reply.headers_mut().insert("location", "/login".parse().expect("valid"));
        reply
    };
    for (protocol, count) in [(Protocol::Grpc, 9), (Protocol::Http, 7)] {
        let calls = AtomicUsize::new(0);
        let web = Web::start(move |seen| match calls.fetch_add(1, Relaxed) {
            0 => reply_with(404, "text/plain", b"404 page not found"),
            1 => page(),
            2 => redirect(),
            3 => reply(403),
            4 => reply_with(400, "text/html", b"<html>400 Bad Request</html>"),
            5 => reply_with(400, "", b"Client sent an HTTP request to an HTTPS server."),
            6 => reply(405),
            7 if protocol == Protocol::Grpc => grpc_reply(12, "unknown service"),
            8 if protocol == Protocol::Grpc => grpc_reply(7, "not for this tenant"),
            _ => taken(seen),
        })
        .await;
        let running = Running::start_to(over(protocol, &web.url())).await;
        running.accept(roots(20, 0)).await;
        let metrics = running.at_rest().await;
        assert_eq!((sent(&metrics), metrics.sum("exporter_failed_spans_total")), (20.0, 0.0));
        assert_eq!(metrics.sum("exporter_retries_total"), f64::from(count), "{protocol:?}");
        running.stop().await;
    }
}

/// Scenario: such answers without end, with a `max_elapsed_time`.
/// Guarantees: the spans are given up in the end, as `retry_expired`, without a search for single
/// spans.
#[tokio::test]
async fn an_outage_without_end_is_given_up() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let web = Web::start(|_| reply(404)).await;
        let mut config = over(protocol, &web.url());
        config.exporter.retry.max_elapsed_time = Some(Duration::from_millis(300));
        let running = Running::start_to(config).await;
        running.accept(roots(20, 0)).await;
        let metrics = running.at_rest().await;
        assert_eq!(metrics.get("exporter_failed_spans_total{reason=\"retry_expired\"}"), 20.0);
        assert!(web.statuses().len() < 30, "{}", web.statuses().len());
        running.stop().await;
    }
}

/// The log line about a backend that contains `part`, within the three seconds of a shutdown.
async fn log_of(protocol: &str, url: &str, part: &str) -> String {
    let exporter = format!("endpoint = \"{url}\"\nprotocol = \"{protocol}\"");
    let process = Process::start_exporting("shutdown_timeout = \"3s\"", &exporter, "info");
    process.export(1).await;
    process.signal("TERM");
    process.line(part).await["fields"].to_string()
}

/// Scenario: endpoints that do not match the configuration: another path, a page, a redirect,
/// HTTP/1.1 instead of gRPC, gRPC instead of HTTP, TLS instead of plaintext.
/// Guarantees: the log says what the endpoint seems to be, and what to check.
#[tokio::test]
async fn the_log_says_what_the_endpoint_seems_to_be() {
    const OUTAGE: &str = "the backend does not accept spans";
    let path = Web::start(|_| reply_with(404, "text/plain", b"no such page")).await;
    let page = Web::start(|_| reply_with(200, "text/html", b"<html>")).await;
    let redirect = Web::start(|_| {
        let mut reply = reply(301);
        reply.headers_mut().insert("location", "https://tempo/otlp?key=1".parse().expect("valid"));
        reply
    })
    .await;
    let http1 = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port 0");
    let http1_url = format!("http://{}", http1.local_addr().expect("bound"));
    tokio::spawn(async move {
        while let Ok((mut client, _)) = http1.accept().await {
            use tokio::io::AsyncWriteExt as _;
            let answer = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
            client.write_all(answer).await.expect("open");
            // If it were dropped at once, the connection would be reset.
            let _ = tokio::io::copy(&mut client, &mut tokio::io::sink()).await;
        }
    });
    let (grpc, _) = sink("127.0.0.1:0", Box::new(|_| Ok(Bytes::new()))).await;
    let ca = Ca::new();
    let tls = Terminator::start(grpc.address, server(&ca.sign("localhost"), None)).await;
    let tls_url = format!("http://{}", tls.address);
    let mut processes = JoinSet::new();
    for (protocol, url, part, expected) in [
        ("grpc", path.url(), OUTAGE, "HTTP 404: is the path right?"),
        ("http/protobuf", path.url(), OUTAGE, "HTTP 404: is the path right? (no such page)"),
        ("grpc", page.url(), OUTAGE, "HTTP 200 with a web page"),
        ("http/protobuf", page.url(), OUTAGE, "exporter.otlp.protocol"),
        ("http/protobuf", redirect.url(), OUTAGE, "a redirect to https://tempo/otlp\""),
        ("grpc", http1_url, "answers with HTTP/1.1", "http/protobuf"),
        ("http/protobuf", grpc.url(), "answers with HTTP/2 without TLS", "often 4318"),
        ("grpc", tls_url.clone(), "answers with TLS", "write https://"),
        ("http/protobuf", tls_url, "answers with TLS", "write https://"),
    ] {
        processes.spawn(async move {
            let said = log_of(protocol, &url, part).await;
            assert!(said.contains(expected), "{protocol} {expected}: {said}");
        });
    }
    processes.join_all().await;
    grpc.stop().await;
}

/// Scenario: a backend that refuses one span as "larger than max", with and without a number that
/// could be a limit of requests: a small span among 2,000, and one that is larger than all others
/// of its request together; then a large request without it.
/// Guarantees: only that span is lost, counted as `too_large`; the exporter learns no limit from
/// it: the second request is sent whole.
#[tokio::test]
async fn one_span_that_is_too_large_teaches_no_limit() {
    const PLAIN: &str = "attribute value larger than max";
    const NUMBERED: &str = "span attribute larger than max (70000 vs 65536)";
    for (code, name, words, spans, bad_bytes) in [
        (8, "RESOURCE_EXHAUSTED", PLAIN, 2_000, 1_000),
        (3, "INVALID_ARGUMENT", NUMBERED, 2_000, 1_000),
        (8, "RESOURCE_EXHAUSTED", PLAIN, 20, 70_000),
        (3, "INVALID_ARGUMENT", NUMBERED, 20, 90_000),
    ] {
        let answer = move |request: &ExportTraceServiceRequest| {
            let is_bad = spans_of(request).any(|span| span.trace_id[0] == 1);
            if is_bad { Err(Status::new(code.into(), words)) } else { Ok(Bytes::new()) }
        };
        let running = Running::start_with(soon(), Box::new(answer)).await;
        let mut first = roots(spans, 1_000);
        let bad = usize::try_from(spans / 3).expect("small");
        first[bad] = roots(bad as u64, bad_bytes).pop().expect("one");
        first[bad].trace_id[0] = 1;
        running.accept(first).await;
        let lost = |metrics: &Metrics| {
            metrics.get("exporter_failed_spans_total{reason=\"too_large\"}") == 1.0
        };
        running.until("the span is lost", lost).await;
        let metrics = running.at_rest().await;
        let others = spans as f64 - 1.0;
        assert_eq!((sent(&metrics), metrics.sum("exporter_failed_spans_total")), (others, 1.0));
        let series = format!("exporter_request_duration_seconds_count{{code=\"{name}\"}}");
        assert!(metrics.get(&series) <= 24.0, "{}", metrics.get(&series));

        running.received.lock().expect("no panic").clear();
        let mut second = roots(2_000, 1_000);
        second.iter_mut().for_each(|span| span.trace_id[0] = 2);
        running.accept(second).await;
        running.until("sent", |metrics| sent(metrics) == others + 2_000.0).await;
        let sizes: Vec<_> = {
            let received = running.received.lock().expect("no panic");
            received.iter().map(|request| request.encoded_len()).collect()
        };
        // One tick or two.
        assert!(sizes.len() <= 2, "{words}: {sizes:?}");
        running.at_rest().await;
        running.stop().await;
    }
}
