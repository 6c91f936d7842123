//! A hostile backend, or another program at its address: bytes that are not HTTP/2, endless frames,
//! endless answers.
//!
//! Each connection gets one kind of attack; later connections reach an honest backend.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::Response;
use hyper::body::{Frame, Incoming};
use tailwater::net::listen;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{
    export::{OK, Trailers, raw_backend, roots, serve_raw},
    harness::{ALL, Metrics, Running, config, sink},
};

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const PREFACE_BYTES: usize = 24;
/// After this many streams, the connection is closed.
const STREAMS: usize = 3;
const CHUNK_BYTES: usize = 64 << 10;

#[derive(Clone, Copy, Debug)]
enum Hostility {
    /// An answer of another protocol, then noise.
    Garbage,
    /// The connection is closed at once.
    Close,
    /// Every stream is reset with this code.
    Reset(u32),
    /// The header list of an answer never ends.
    EndlessHeaders,
    /// A thousand GOAWAYs, of every code.
    GoAways,
}

const ALL_HOSTILITIES: [Hostility; 8] = [
    Hostility::Garbage,
    Hostility::Close,
    Hostility::Reset(2),
    Hostility::Reset(7),
    Hostility::Reset(8),
    Hostility::Reset(11),
    Hostility::EndlessHeaders,
    Hostility::GoAways,
];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Reads frames until the client opens a stream, and returns its number.
async fn next_stream(client: &mut TcpStream) -> io::Result<u32> {
    loop {
        let mut head = [0; 9];
        client.read_exact(&mut head).await?;
        let [a, b, c, kind, _, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        client.read_exact(&mut payload).await?;
        if kind == HEADERS {
            return Ok(u32::from_be_bytes(stream));
        }
    }
}

/// Attacks the client until it closes the connection.
async fn harm(
    client: &mut TcpStream,
    hostility: Hostility,
    written: &AtomicUsize,
) -> io::Result<()> {
    if matches!(hostility, Hostility::Close) {
        return Ok(());
    }
    if matches!(hostility, Hostility::Garbage) {
        client.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n").await?;
        client.write_all(&[0xa5; 4096]).await?;
        client.read_to_end(&mut Vec::new()).await?;
        return Ok(());
    }
    client.read_exact(&mut [0; PREFACE_BYTES]).await?;
    client.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    for _ in 0..STREAMS {
        let stream = next_stream(client).await?;
        match hostility {
            Hostility::Reset(code) => {
                client.write_all(&frame(RST_STREAM, 0, stream, &code.to_be_bytes())).await?;
            }
            Hostility::EndlessHeaders => {
                // `:status: 200`, and then endless headers.
                client.write_all(&frame(HEADERS, 0, stream, &[0x88])).await?;
                let header = [&[0, 1, b'x', 0x7f, 0x81, 0x0f][..], &[b'y'; 2_048]].concat();
                let endless = frame(CONTINUATION, 0, stream, &header);
                loop {
                    client.write_all(&endless).await?;
                    written.fetch_add(endless.len(), Relaxed);
                }
            }
            _ => {
                for code in 0..1_000_u32 {
                    let last_and_code = [[0; 4], code.to_be_bytes()].concat();
                    client.write_all(&frame(GOAWAY, 0, 0, &last_and_code)).await?;
                }
            }
        }
    }
    Ok(())
}

/// Scenario: connections that are closed, reset streams, speak another protocol, send endless
/// headers or thousands of GOAWAYs; then the backend is honest.
/// Guarantees: nothing panics, little is read, nothing is lost.
#[tokio::test]
async fn hostile_connections_cost_attempts() {
    let (sink, received) = sink("127.0.0.1:0", Box::new(|_| Ok(Bytes::new()))).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port 0");
    let mut config = config(ALL);
    config.exporter.endpoint = format!("http://{}", listener.local_addr().expect("bound"));
    config.exporter.retry.max_interval = Duration::from_millis(50);
    let (backend, written) = (sink.address, Arc::new(AtomicUsize::new(0)));
    let counter = Arc::clone(&written);
    tokio::spawn(async move {
        // Each attack twice, because an attempt may use two connections.
        let mut hostilities = ALL_HOSTILITIES.into_iter().flat_map(|hostility| [hostility; 2]);
        while let Ok((mut client, _)) = listener.accept().await {
            let (hostility, counter) = (hostilities.next(), Arc::clone(&counter));
            tokio::spawn(async move {
                let Some(hostility) = hostility else {
                    let mut server = TcpStream::connect(backend).await.expect("listening");
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    return;
                };
                // It always ends with an error of the connection.
                let _ = harm(&mut client, hostility, &counter).await;
            });
        }
    });
    let running = Running::start_to(config).await;
    running.accept(roots(10, 0)).await;
    let all = |metrics: &Metrics| metrics.sum("exporter_sent_spans_total") == 10.0;
    running.until("all is sent", all).await;
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("exporter_failed_spans_total"), 0.0);
    assert_eq!(metrics.sum("task_restarts_total"), 0.0);
    assert!(metrics.sum("exporter_retries_total") >= 4.0, "{:#?}", metrics.nonzero());
    // This includes the bytes in the socket buffers of both ends.
    assert!(written.load(Relaxed) < 32 << 20, "{} bytes", written.load(Relaxed));
    assert!(!received.lock().expect("no panic").is_empty());
    running.stop().await;
    sink.stop().await;
}

/// Endless chunks of 64 KiB that begin like a message of a gigabyte, and their number.
struct Endless(Arc<AtomicUsize>);

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut chunk = vec![0; CHUNK_BYTES];
        if self.0.fetch_add(1, Relaxed) == 0 {
            chunk[1] = 0x40;
        }
        Poll::Ready(Some(Ok(Frame::data(chunk.into()))))
    }
}

/// Scenario: an answer that announces a gigabyte and goes on as long as it is read.
/// Guarantees: little more than 4 MiB is read; the spans count as sent, once, because a backend
/// sends a message only when it has accepted them.
#[tokio::test]
async fn an_answer_without_end_is_not_read() {
    let listener = listen::bind("hostile", "127.0.0.1:0").await.expect("port 0");
    let mut config = config(ALL);
    config.exporter.endpoint = format!("http://{}", listener.local_addr().expect("bound"));
    let (chunks, calls) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (chunk_counter, call_counter) = (Arc::clone(&chunks), Arc::clone(&calls));
    let answer = move |_: http::Request<Incoming>| {
        call_counter.fetch_add(1, Relaxed);
        let body = Endless(Arc::clone(&chunk_counter));
        let response = Response::builder().header("content-type", "application/grpc");
        std::future::ready(response.body(body).expect("valid"))
    };
    serve_raw(listener, answer);
    let running = Running::start_to(config).await;
    running.accept(roots(1, 0)).await;
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("exporter_sent_spans_total"), 1.0);
    assert_eq!(metrics.sum("exporter_retries_total"), 0.0);
    assert_eq!(calls.load(Relaxed), 1);
    // This includes the bytes that HTTP/2 flow control lets the server send ahead.
    let read = chunks.load(Relaxed) * CHUNK_BYTES;
    assert!((4 << 20..16 << 20).contains(&read), "{read} bytes");
    running.stop().await;
}

/// Scenario: UNAVAILABLE with a message that is not UTF-8, and an answer without a status; then the
/// backend is back.
/// Guarantees: an answer that says nothing about the spans is retried; nothing is lost.
#[tokio::test]
async fn nonsense_is_no_answer() {
    const WORDS: Trailers = &[("grpc-status", "14"), ("grpc-message", "%ff%fe %1b[31m")];
    const NOTHING: Trailers = &[("x-nothing", "1")];
    let (url, seen) = raw_backend(&[WORDS, NOTHING, OK]).await;
    let mut config = config(ALL);
    config.exporter.endpoint = url;
    let running = Running::start_to(config).await;
    running.accept(roots(1, 0)).await;
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("exporter_sent_spans_total"), 1.0);
    assert_eq!(metrics.get("exporter_retries_total{code=\"UNAVAILABLE\"}"), 1.0);
    assert_eq!(metrics.get("exporter_retries_total{code=\"UNKNOWN\"}"), 1.0);
    assert_eq!(seen.lock().expect("no panic").len(), 3);
    running.stop().await;
}
