//! Export by OTLP/HTTP: the requests that are sent, and the effect of each kind of answer.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Response, Version};
use http_body::Frame;
use tailwater::{
    config::{Compression, Config},
    net::listen,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{
    export::{one_by_one, roots, waiting},
    export_outage::{Exporter, defaults},
    harness::{ALL, Metrics, Running, config},
    web::{Seen, Web, over_http, reply, reply_with, serve},
};

const PROTOBUF: &str = "application/x-protobuf";
const CHUNK_BYTES: usize = 64 << 10;

fn sent(metrics: &Metrics) -> f64 {
    metrics.sum("exporter_sent_spans_total")
}

fn failed(metrics: &Metrics, reason: &str) -> f64 {
    metrics.get(&format!("exporter_failed_spans_total{{reason=\"{reason}\"}}"))
}

fn retries(metrics: &Metrics, code: &str) -> f64 {
    metrics.get(&format!("exporter_retries_total{{code=\"{code}\"}}"))
}

fn attempts(metrics: &Metrics, code: &str) -> f64 {
    metrics.get(&format!("exporter_request_duration_seconds_count{{code=\"{code}\"}}"))
}

/// Keeps everything, and sends it in one request by one consumer when a shutdown decides.
fn at_once(base: &str) -> Config {
    let mut config = over_http(waiting(), base);
    config.exporter.queue.num_consumers = 1;
    config
}

/// Answers each span once as `first` says for its id, then accepts it.
async fn once(first: impl Fn(u64) -> crate::web::Reply + Send + Sync + 'static) -> Web {
    let known = std::sync::Mutex::new(BTreeSet::new());
    Web::start(move |seen: &Seen| {
        let id = seen.ids().next().expect("a span");
        if known.lock().expect("no panic").insert(id) { first(id) } else { reply(200) }
    })
    .await
}

/// Scenario: base URLs with and without a path and a slash at the end; plain bodies, gzip and zstd;
/// a configured header.
/// Guarantees: spans are posted to the base URL followed by `/v1/traces`, decode to the kept spans,
/// and share connections.
#[tokio::test]
async fn kept_spans_are_posted() {
    for (base, path, compression, encoding) in [
        ("", "/v1/traces", Compression::None, None),
        ("/", "/v1/traces", Compression::Gzip, Some("gzip")),
        ("/otlp", "/otlp/v1/traces", Compression::Zstd, Some("zstd")),
        ("/a/b/", "/a/b/v1/traces", Compression::None, None),
    ] {
        let web = Web::start(|_| reply_with(200, PROTOBUF, b"")).await;
        let mut config = over_http(one_by_one(), &format!("{}{base}", web.url()));
        config.exporter.compression = compression;
        config.exporter.headers = [("x-scope-orgid".into(), "team-a".into())].into();
        let running = Running::start_to(config).await;
        running.accept(roots(20, 500)).await;
        let metrics = running.at_rest().await;
        assert_eq!((sent(&metrics), attempts(&metrics, "200")), (20.0, 20.0));
        assert_eq!(metrics.sum("exporter_retries_total"), 0.0);
        assert_eq!(web.spans().len(), 20);
        for seen in web.seen.lock().expect("no panic").iter() {
            assert_eq!((&seen.method[..], &seen.path[..]), ("POST", path));
            assert_eq!(seen.version, Version::HTTP_11);
            assert_eq!(seen.headers["content-type"], PROTOBUF);
            assert_eq!(seen.headers["x-scope-orgid"], "team-a");
            assert_eq!(seen.headers["host"], web.address.to_string());
            assert!(seen.headers["user-agent"].to_str().expect("text").starts_with("tailwater/"));
            assert_eq!(
                seen.headers.get("content-encoding").map(|it| it.to_str().expect("text")),
                encoding
            );
            assert!(!seen.headers.contains_key("authorization"));
            assert!(encoding.is_none() || seen.body.len() < 500);
        }
        running.stop().await;
    }
}

/// Scenario: partial success with 1, 1,000 and -7 rejected spans in protobuf, and with 1 span in
/// JSON.
/// Guarantees: rejected spans are counted, the rest counts as sent, and nothing is sent twice.
#[tokio::test]
async fn partial_success_is_counted() {
    let web = once(|id| match id {
        1 => reply_with(200, PROTOBUF, b"\x0a\x05\x08\x01\x12\x01x"),
        2 => reply_with(200, PROTOBUF, b"\x0a\x03\x08\xe8\x07"),
        3 => reply_with(200, PROTOBUF, b"\x0a\x0b\x08\xf9\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        _ => reply_with(200, "application/json", br#"{"partialSuccess":{"rejectedSpans":"1"}}"#),
    })
    .await;
    let running = Running::start_to(over_http(one_by_one(), &web.url())).await;
    running.accept(roots(4, 0)).await;
    let metrics = running.at_rest().await;
    assert_eq!((failed(&metrics, "partial_success"), sent(&metrics)), (3.0, 1.0));
    assert_eq!(web.statuses(), [200; 4]);
    running.stop().await;
}

/// Scenario: a backend that answers with each of these statuses once, then accepts everything.
/// Guarantees: spans are rejected after a status that may be about them; everything else is
/// retried; both are counted by status.
#[tokio::test]
async fn each_status_is_retried_or_final() {
    const FINAL: [u16; 3] = [400, 422, 500];
    const RETRIED: [u16; 18] =
        [301, 307, 401, 402, 403, 404, 405, 408, 409, 415, 418, 429, 501, 502, 503, 504, 507, 522];
    const TAKEN: [u16; 3] = [200, 202, 204];
    let all: Vec<u16> = [&FINAL[..], &RETRIED, &TAKEN].concat();
    let statuses = all.clone();
    let web = once(move |id| reply(statuses[usize::try_from(id).expect("small") - 1])).await;
    let running = Running::start_to(over_http(one_by_one(), &web.url())).await;
    running.accept(roots(all.len() as u64, 0)).await;
    let metrics = running.at_rest().await;
    assert_eq!(failed(&metrics, "rejected"), FINAL.len() as f64);
    assert_eq!(sent(&metrics), (RETRIED.len() + TAKEN.len()) as f64);
    for status in ["401", "403", "404", "415", "429", "502", "503", "504"] {
        assert_eq!((retries(&metrics, status), attempts(&metrics, status)), (1.0, 1.0), "{status}");
    }
    assert_eq!(retries(&metrics, "other"), 10.0);
    assert_eq!(metrics.sum("exporter_retries_total"), RETRIED.len() as f64);
    // 422, 202 and 204 have no series of their own.
    assert_eq!(attempts(&metrics, "other"), 13.0);
    assert_eq!(attempts(&metrics, "200"), 1.0 + RETRIED.len() as f64);
    running.stop().await;
}

/// Scenario: 429 and 503 with a Retry-After of 40 s, in seconds and as a date.
/// Guarantees: the next attempt comes after this time and not much later; nothing is lost.
#[tokio::test(start_paused = true)]
async fn retry_after_is_honoured() {
    for (status, after) in
        [(429, "40"), (503, "40"), (503, "Sun, 06 Nov 1994 08:50:17 GMT"), (429, "nonsense")]
    {
        let web = once(move |_| {
            let mut reply = reply(status);
            reply.headers_mut().insert("retry-after", after.parse().expect("valid"));
            let date = "Sun, 06 Nov 1994 08:49:37 GMT".parse().expect("valid");
            reply.headers_mut().insert("date", date);
            reply
        })
        .await;
        let mut exporter = Exporter::start(&over_http(defaults(), &web.url()));
        let started = tokio::time::Instant::now();
        exporter.push(1);
        let metrics = exporter.stop().await;
        let waited = started.elapsed().as_secs_f64();
        let expected = if after == "nonsense" { 0.4..2.0 } else { 40.0..62.0 };
        assert!(expected.contains(&waited), "{status} {after}: {waited}");
        assert_eq!((sent(&metrics), retries(&metrics, &status.to_string())), (1.0, 1.0));
    }
}

/// Scenario: a backend that always answers 429 to requests of more than ten spans.
/// Guarantees: requests are halved until they fit; nothing is lost.
#[tokio::test]
async fn requests_beyond_the_rate_are_halved() {
    let web = Web::start(|seen| reply(if seen.ids().count() > 10 { 429 } else { 200 })).await;
    let mut config = at_once(&web.url());
    config.sampling.decision_wait_after_root_received = Some(Duration::from_millis(200));
    config.exporter.retry.initial_interval = Duration::from_millis(1);
    config.exporter.retry.max_interval = Duration::from_millis(2);
    let running = Running::start_to(config).await;
    running.accept(roots(40, 0)).await;
    let metrics = running.at_rest().await;
    assert_eq!((sent(&metrics), web.spans().len()), (40.0, 40));
    running.stop().await;
}

/// Scenario: a limit of 64 KiB, reported with 413 by a proxy, with a number, and with 400 in words.
/// Guarantees: requests are cut until they fit and nothing is lost; later requests stay within the
/// limit.
#[tokio::test]
async fn requests_that_are_too_large_are_cut() {
    for (status, content_type, words) in [
        (413, "text/html", "<html><title>413 Request Entity Too Large</title></html>"),
        (413, "text/plain", "the limit is 65536 bytes"),
        (400, "text/plain", "http: request body too large"),
    ] {
        let web = Web::start(move |seen| {
            let fits = seen.body.len() <= 64 << 10;
            if fits { reply(200) } else { reply_with(status, content_type, words.as_bytes()) }
        })
        .await;
        let mut config = at_once(&web.url());
        config.sampling.decision_wait_after_root_received = Some(Duration::from_millis(200));
        let running = Running::start_to(config).await;
        for round in 1..=2_u16 {
            let mut spans = roots(400, 1_000);
            for span in &mut spans {
                span.trace_id[..2].copy_from_slice(&round.to_be_bytes());
            }
            running.accept(spans).await;
            let all = f64::from(round) * 400.0;
            running.until("all", |metrics| sent(metrics) == all).await;
        }
        let metrics = running.at_rest().await;
        assert_eq!((sent(&metrics), web.spans().len()), (800.0, 800));
        assert_eq!(metrics.sum("exporter_retries_total"), 0.0);
        let refused = attempts(&metrics, &status.to_string());
        assert!((1.0..=4.0).contains(&refused), "{status} {words}: {refused}");
        running.stop().await;
    }
}

/// Scenario: 400 for requests that contain one of two spans among a thousand.
/// Guarantees: exactly those two are lost, in a bounded number of requests.
#[tokio::test]
async fn spans_that_are_refused_are_lost_alone() {
    let is_bad = |id: u64| id == 17 || id == 900;
    let web = Web::start(move |seen| match seen.ids().any(is_bad) {
        true => reply_with(400, PROTOBUF, b"\x08\x03\x12\x08bad span"),
        false => reply(200),
    })
    .await;
    let running = Running::start_to(at_once(&web.url())).await;
    running.accept(roots(1_000, 0)).await;
    let (metrics, undelivered) = running.stop().await;
    assert_eq!((undelivered, failed(&metrics, "rejected")), (2, 2.0));
    assert_eq!(sent(&metrics), 998.0);
    assert_eq!(web.spans().len(), 998);
    assert!(web.statuses().len() <= 64, "{}", web.statuses().len());
}

/// Scenario: an answer of 200 that is not protobuf, an endless one, and an endless one with 503.
/// Guarantees: spans answered with 200 count as sent, once; at most a few MiB are read.
#[tokio::test]
async fn garbage_and_endless_answers_are_bounded() {
    let web = Web::start(|_| reply_with(200, PROTOBUF, &[0xff; 99])).await;
    let running = Running::start_to(over_http(one_by_one(), &web.url())).await;
    running.accept(roots(2, 0)).await;
    let metrics = running.at_rest().await;
    assert_eq!((sent(&metrics), web.statuses().len()), (2.0, 2));
    running.stop().await;

    for (status, is_taken) in [(200, true), (503, false)] {
        let listener = listen::bind("hostile", "127.0.0.1:0").await.expect("port 0");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let (chunks, calls) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (chunk_counter, call_counter) = (Arc::clone(&chunks), Arc::clone(&calls));
        serve(listener, move |_| {
            let is_first = call_counter.fetch_add(1, Relaxed) == 0;
            let status = if is_first { status } else { 200 };
            let chunks = is_first.then(|| Arc::clone(&chunk_counter));
            let response = Response::builder().status(status).body(Endless(chunks));
            std::future::ready(response.expect("valid"))
        });
        let running = Running::start_to(over_http(one_by_one(), &url)).await;
        running.accept(roots(1, 0)).await;
        let metrics = running.at_rest().await;
        assert_eq!(sent(&metrics), 1.0);
        assert_eq!(calls.load(Relaxed), if is_taken { 1 } else { 2 });
        // This includes the bytes in socket buffers.
        let read = chunks.load(Relaxed) * CHUNK_BYTES;
        assert!((4 << 20..24 << 20).contains(&read), "{read} bytes");
        running.stop().await;
    }
}

/// Endless chunks of 64 KiB, counted; or nothing.
struct Endless(Option<Arc<AtomicUsize>>);

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.as_ref().map(|chunks| {
            chunks.fetch_add(1, Relaxed);
            Ok(Frame::data(vec![0; CHUNK_BYTES].into()))
        }))
    }
}

/// Scenario: a backend that answers after 30 s, with a timeout of 5 s and then of a minute.
/// Guarantees: attempts end at the timeout until they are given up; with the longer timeout, the
/// spans arrive.
#[tokio::test(start_paused = true)]
async fn slow_answers_end_by_the_timeout() {
    let listener = listen::bind("slow", "127.0.0.1:0").await.expect("port 0");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    serve(listener, |_| async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        reply(200)
    });
    for (timeout, expected) in [(5, 0.0), (60, 1.0)] {
        let mut config = over_http(defaults(), &url);
        config.exporter.timeout = Duration::from_secs(timeout);
        let mut exporter = Exporter::start(&config);
        exporter.push(1);
        let metrics = exporter.stop().await;
        assert_eq!(sent(&metrics), expected);
        assert_eq!(failed(&metrics, "retry_expired"), 1.0 - expected);
        assert_eq!(retries(&metrics, "DEADLINE_EXCEEDED") > 5.0, expected == 0.0);
    }
}

/// Reads the head of a request, and its body if `with_body`.
async fn read_request(client: &mut TcpStream, with_body: bool) {
    let mut read = Vec::new();
    let head = loop {
        let mut chunk = [0; 4096];
        let length = client.read(&mut chunk).await.expect("open");
        assert!(length > 0, "a whole head");
        read.extend_from_slice(&chunk[..length]);
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let text = String::from_utf8_lossy(&read[..head]).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.expect("a length").trim().parse().expect("a number");
    let left = (head + length).saturating_sub(read.len());
    if with_body {
        client.read_exact(&mut vec![0; left]).await.expect("a whole body");
    }
}

/// Scenario: connections that are closed at once, in the head or in the body of an answer, that
/// carry another protocol, or whose head never ends; then an honest backend.
/// Guarantees: each costs one attempt, as UNAVAILABLE; nothing panics and nothing is lost.
#[tokio::test]
async fn broken_answers_cost_attempts() {
    const BEGINNINGS: [&[u8]; 5] = [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    ];
    let honest = Web::start(|_| reply(200)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port 0");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let backend = honest.address;
    tokio::spawn(async move {
        // Each beginning twice, because an attempt may use two connections.
        let mut beginnings = BEGINNINGS.into_iter().flat_map(|beginning| [beginning; 2]);
        let mut endless = 2;
        while let Ok((mut client, _)) = listener.accept().await {
            if let Some(beginning) = beginnings.next() {
                read_request(&mut client, true).await;
                client.write_all(beginning).await.expect("open");
            } else if endless > 0 {
                endless -= 1;
                tokio::spawn(async move {
                    read_request(&mut client, true).await;
                    client.write_all(b"HTTP/1.1 200 OK\r\n").await.expect("open");
                    while client
                        .write_all(&[b"x: ", &[b'y'; 2_000][..], b"\r\n"].concat())
                        .await
                        .is_ok()
                    {}
                });
            } else {
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(backend).await.expect("listening");
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        }
    });
    let mut config = over_http(config(ALL), &url);
    config.exporter.queue.num_consumers = 1;
    let running = Running::start_to(config).await;
    running.accept(roots(10, 0)).await;
    running.until("all is sent", |metrics| sent(metrics) == 10.0).await;
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("exporter_failed_spans_total"), 0.0);
    assert_eq!(metrics.sum("task_restarts_total"), 0.0);
    assert!(retries(&metrics, "UNAVAILABLE") >= 4.0, "{:#?}", metrics.nonzero());
    assert_eq!(honest.spans().len(), 10);
    running.stop().await;
}

/// Scenario: a proxy that answers 413 to a body of 2 MB before it has read it, and closes the
/// connection.
/// Guarantees: the answer counts although the body could not be written: the request is cut, and
/// nothing is lost.
#[tokio::test]
async fn an_early_413_is_an_answer() {
    let honest = Web::start(|_| reply(200)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port 0");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let backend = honest.address;
    tokio::spawn(async move {
        let mut is_first = true;
        while let Ok((mut client, _)) = listener.accept().await {
            if std::mem::take(&mut is_first) {
                read_request(&mut client, false).await;
                let refusal =
                    b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                client.write_all(refusal).await.expect("open");
                continue;
            }
            tokio::spawn(async move {
                let mut server = TcpStream::connect(backend).await.expect("listening");
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    let running = Running::start_to(at_once(&url)).await;
    running.accept(roots(200, 10_000)).await;
    let (metrics, undelivered) = running.stop().await;
    assert_eq!((undelivered, sent(&metrics)), (0, 200.0));
    assert_eq!(attempts(&metrics, "413"), 1.0, "{:#?}", metrics.nonzero());
    assert_eq!(honest.spans().len(), 200);
}

/// Scenario: the backend closes idle connections after a moment, as load balancers do.
/// Guarantees: a request on a closed connection is sent again over another one at once.
#[tokio::test]
async fn a_connection_that_was_closed_costs_no_retry() {
    let honest = Web::start(|_| reply(200)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port 0");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let backend = honest.address;
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = TcpStream::connect(backend).await.expect("listening");
                let both = tokio::io::copy_bidirectional(&mut client, &mut server);
                let _ = tokio::time::timeout(Duration::from_millis(150), both).await;
            });
        }
    });
    let running = Running::start_to(over_http(one_by_one(), &url)).await;
    for trace in 1..=5 {
        running.accept(roots(trace, 0).split_off(trace as usize - 1)).await;
        running.until("sent", |metrics| sent(metrics) == trace as f64).await;
        tokio::time::sleep(Duration::from_millis(160)).await;
    }
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("exporter_retries_total"), 0.0, "{:#?}", metrics.nonzero());
    running.stop().await;
}
