//! Numbers 11 and 13: requests that are small on the wire and large in memory.

use std::io::Write as _;

use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use prost::Message as _;
use tailwater::{config::Config, grpc::EXPORT_PATH};

use super::beside_honest;
use crate::{
    harness::{ALL, Metrics, Running, config, request, span, string},
    wire::{connect, frame, http1, http2, post},
};

const LIMIT: usize = 2 << 20;

fn small() -> Config {
    let mut config = config(ALL);
    config.grpc.max_recv_msg_bytes = LIMIT;
    config.http.max_request_body_bytes = LIMIT;
    config
}

/// Compressed zeros.
fn bomb(encoding: &str, length: usize) -> Vec<u8> {
    let zeros = std::iter::repeat_n(vec![0; 1 << 20], length >> 20);
    let level = flate2::Compression::fast();
    fn all(mut to: impl std::io::Write, zeros: impl Iterator<Item = Vec<u8>>) {
        zeros.for_each(|zeros| to.write_all(&zeros).expect("in memory"));
    }
    let mut out = Vec::new();
    match encoding {
        "gzip" => all(flate2::write::GzEncoder::new(&mut out, level), zeros),
        "deflate" => all(flate2::write::ZlibEncoder::new(&mut out, level), zeros),
        _ => all(zstd::Encoder::new(&mut out, 1).expect("an encoder").auto_finish(), zeros),
    }
    out
}

/// A message that fits, compressed with a zstd window of `2^window_log` bytes.
fn windowed(message: &[u8], window_log: u32) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
    encoder.window_log(window_log).expect("a window");
    encoder.write_all(message).expect("in memory");
    // Otherwise the frame would begin with a length, which makes its zstd window small.
    encoder.flush().expect("in memory");
    encoder.finish().expect("in memory")
}

async fn http(running: &Running, encoding: &str, body: &[u8]) -> u16 {
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-length: {}\r\n\
         content-type: application/x-protobuf\r\ncontent-encoding: {encoding}\r\n\r\n",
        body.len()
    );
    http1(running.service.http_address, &[head.as_bytes(), body].concat()).await.status
}

async fn grpc(running: &Running, encoding: &'static str, body: &[u8]) -> String {
    let client = connect(running.service.grpc_address).await;
    let head = post(EXPORT_PATH, &[("grpc-encoding", encoding)]);
    http2(&client, head, frame(1, body)).await.header("grpc-status").to_owned()
}

/// Scenario: number 11. Compression bombs of eight times the limit in each encoding, to both
/// receivers.
/// Guarantees: RESOURCE_EXHAUSTED or 413; the memory in use meanwhile is bounded by the limit.
#[tokio::test]
async fn bombs_stop_at_the_limit() {
    let running = Running::start(small()).await;
    let before = running.metrics().await.get("memory_used_bytes");
    for encoding in ["gzip", "deflate", "zstd"] {
        let bomb = bomb(encoding, 16 << 20);
        let attack = async {
            let held = async || running.metrics().await.get("memory_used_bytes") - before;
            let (status, most) = tokio::join!(http(&running, encoding, &bomb), held());
            assert_eq!(status, 413, "{encoding}");
            assert!(most < (4 * LIMIT) as f64, "{encoding}: {most} bytes");
            assert_eq!(grpc(&running, encoding, &bomb).await, "8", "{encoding}");
        };
        beside_honest(&running, attack).await;
    }
    let (metrics, _) = running.stop().await;
    assert_eq!(metrics.sum("receiver_refused_requests_total"), 6.0);
}

/// Scenario: number 11. A small message in a zstd frame that asks for a zstd window of 32 or of 128
/// MiB; and a message of nearly the largest size while memory is scarce.
/// Guarantees: the first, which real senders use, is accepted; the second is refused for good; the
/// third is accepted.
#[tokio::test]
async fn zstd_windows_are_bounded() {
    let mut config = small();
    config.sampling.memory_limit_bytes = 24 << 20;
    let running = Running::start(config).await;
    let message = request("shop", vec![span(1, 1, None)]).encode_to_vec();
    let (common, huge) = (windowed(&message, 25), windowed(&message, 27));
    assert_eq!(grpc(&running, "zstd", &common).await, "0");
    assert_eq!(http(&running, "zstd", &common).await, 200);
    assert_eq!(grpc(&running, "zstd", &huge).await, "8");
    assert_eq!(http(&running, "zstd", &huge).await, 413);
    let mut large = span(2, 1, None);
    large.attributes.push(string("k", "x".repeat(LIMIT - 1000)));
    let large = windowed(&request("shop", vec![large]).encode_to_vec(), 25);
    assert_eq!(grpc(&running, "zstd", &large).await, "0");
    let (metrics, _) = running.stop().await;
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 3.0);
    let too_large = |transport| {
        let labels = format!("transport=\"{transport}\",reason=\"too_large\"");
        metrics.get(&format!("receiver_refused_requests_total{{{labels}}}"))
    };
    assert_eq!((too_large("grpc"), too_large("http")), (1.0, 1.0));
}

/// Scenario: number 13. One large attribute, many attributes, many spans without an id, many
/// resources without a span, or with spans without an id.
/// Guarantees: the requests are accepted, or rejected span by span; empty parts cost nothing.
#[tokio::test]
async fn odd_shapes_are_taken() {
    let running = Running::start(config(ALL)).await;
    let mut large = span(1, 1, None);
    large.attributes.push(string("large", "x".repeat(3 << 20)));
    let mut many = span(2, 1, None);
    many.attributes = (0..30_000).map(|n| string(&format!("k{n}"), "v")).collect();
    let empty = request("shop", vec![Span::default(); 100_000]);
    let resource = |name: String| request(&name, vec![Span::default()]).resource_spans;
    let mut resources = empty.clone();
    resources.resource_spans = vec![ResourceSpans::default(); 50_000];
    resources.resource_spans.extend((0..50_000).flat_map(|n| resource(format!("shop {n}"))));
    let attack = async {
        running.accept(vec![large]).await;
        running.accept(vec![many]).await;
        for (request, rejected) in [(&empty, 100_000), (&resources, 50_000)] {
            let answer = running.export(request).await.expect("OK");
            assert_eq!(answer.partial_success.expect("partial").rejected_spans, rejected);
        }
    };
    beside_honest(&running, attack).await;
    running.stop().await;
}

/// Scenario: number 13. A body of 256 KiB in chunks of one byte, which never ends.
/// Guarantees: its charge matches the memory it uses, and all of it is released.
#[tokio::test]
async fn chunks_of_a_byte_hold_a_byte() {
    use tokio::io::AsyncWriteExt as _;
    let running = Running::start(config(ALL)).await;
    let before = running.metrics().await.get("memory_used_bytes");
    let mut stream =
        tokio::net::TcpStream::connect(running.service.http_address).await.expect("listening");
    let head = "POST /v1/traces HTTP/1.1\r\nhost: t\r\ncontent-type: application/x-protobuf\r\n\
                transfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("sent");
    stream.write_all(&b"1\r\nx\r\n".repeat(256 << 10)).await.expect("sent");
    let held = |metrics: &Metrics| metrics.get("memory_used_bytes") - before;
    let whole = |metrics: &Metrics| held(metrics) >= f64::from(256 << 10);
    let metrics = running.until("all arrived", whole).await;
    assert!(held(&metrics) < f64::from(512 << 10));
    drop(stream);
    running.until("given back", |metrics| held(metrics) <= 0.0).await;
    running.accept(vec![span(1, 1, None)]).await;
    running.at_rest().await;
    running.stop().await;
}

/// Scenario: number 13. 30,000 resources of a few bytes each, which cost hundreds of bytes each
/// once interned, with a memory limit of 16 MiB.
/// Guarantees: the request is refused for good, since it would never fit, and all memory is
/// released.
#[tokio::test]
async fn resources_end_where_memory_does() {
    let mut config = config(ALL);
    config.sampling.memory_limit_bytes = 16 << 20;
    let running = Running::start(config).await;
    running.accept(vec![span(1, 1, None)]).await;
    let before = running.at_rest().await.get("memory_used_bytes");
    let mut many = request("shop", Vec::new());
    let spans = |n: u64| vec![Span { attributes: Vec::new(), ..span(n, 1, None) }];
    many.resource_spans =
        (1..=30_000).flat_map(|n| request(&n.to_string(), spans(n)).resource_spans).collect();
    let refused = running.export(&many).await.expect_err("refused");
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused:?}");
    let given_back = |metrics: &Metrics| metrics.get("memory_used_bytes") <= before;
    running.until("all is given back", given_back).await;
    running.accept(vec![span(2, 1, None)]).await;
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 2.0);
    running.stop().await;
}
