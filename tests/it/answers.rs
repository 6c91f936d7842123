//! The answers to senders over gRPC, row by row of the README's table.

use std::time::Duration;

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, ArrayValue, KeyValue, any_value::Value},
    trace::v1::{Span, Status as SpanStatus},
};
use prost::Message as _;
use tailwater::{
    config::{Config, Overflow},
    grpc::EXPORT_PATH,
};
use tonic::{Code, Status, codec::CompressionEncoding};
use tonic_types::StatusExt as _;

use crate::{
    harness::{
        ALL, ERRORS_AND_HALF, Metrics, Running, attribute, config, request, span, string, trace_id,
    },
    wire::{Answer, answer, backend, connect, frame, http2, open, post},
};

/// The bytes of a request with one root span.
fn one_span(trace: u64) -> Vec<u8> {
    request("shop", vec![span(trace, 1, None)]).encode_to_vec()
}

/// The bytes of a request of exactly this length, with one span.
fn of_length(trace: u64, length: usize) -> Vec<u8> {
    let padded = |padding: usize| {
        let mut span = span(trace, 1, None);
        span.attributes.push(string("padding", "x".repeat(padding)));
        request("shop", vec![span]).encode_to_vec()
    };
    // A long padding has length fields of the same size as a slightly shorter one.
    let overhead = padded(length).len() - length;
    let bytes = padded(length - overhead);
    assert_eq!(bytes.len(), length);
    bytes
}

fn answered(metrics: &Metrics, code: &str) -> f64 {
    metrics.get(&format!("receiver_requests_total{{transport=\"grpc\",code=\"{code}\"}}"))
}

fn refused(metrics: &Metrics, reason: &str) -> f64 {
    let labels = format!("transport=\"grpc\",reason=\"{reason}\"");
    metrics.get(&format!("receiver_refused_requests_total{{{labels}}}"))
}

/// UNAVAILABLE, with a delay of 1 to 8 s in both places where senders look for it.
fn assert_retryable(status: &Status) {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let info = status.get_details_retry_info().expect("RetryInfo in the details");
    let delay = info.retry_delay.expect("a delay");
    assert!((1.0..=8.0).contains(&delay.as_secs_f64()), "{delay:?}");
    let trailer = status.metadata().get_bin("google.rpc.retryinfo-bin").expect("a trailer");
    let trailer = trailer.to_bytes().expect("base64");
    let trailer = tonic_types::pb::RetryInfo::decode(trailer).expect("RetryInfo");
    assert_eq!(trailer.retry_delay, prost_types::Duration::try_from(delay).ok());
}

/// A final refusal: it has nothing that a sender could take for a delay.
fn assert_final(status: &Status, code: Code) {
    assert_eq!(status.code(), code, "{status:?}");
    assert_eq!(status.details(), b"", "{status:?}");
    assert!(status.metadata().get_bin("google.rpc.retryinfo-bin").is_none(), "{status:?}");
    assert!(!status.message().is_empty());
}

/// Scenario: an ordinary request, a request without a span, and an empty message.
/// Guarantees: OK without partial success; each is counted, and the span is accepted and sent.
#[tokio::test]
async fn fine_and_empty_requests_are_ok() {
    let running = Running::start(config(ALL)).await;
    running.accept(vec![span(1, 1, None)]).await;
    running.accept(Vec::new()).await;
    let answer = running.export_bytes(Vec::new()).await.expect("accepted");
    assert_eq!(answer.partial_success, None);
    let metrics = running.at_rest().await;
    assert_eq!(answered(&metrics, "OK"), 3.0);
    assert_eq!(metrics.get("receiver_accepted_spans_total{transport=\"grpc\"}"), 1.0);
    assert_eq!(metrics.get("exporter_sent_spans_total"), 1.0);
    running.stop().await;
}

/// Scenario: malformed ids of each kind, each beside a valid span; a parent id of eight zeros.
/// Guarantees: only the malformed spans are rejected, and counted; a parent of zeros means a root.
#[tokio::test]
async fn spans_with_malformed_ids_are_rejected_alone() {
    let running = Running::start(config(ALL)).await;
    let good = span(1, 1, None);
    let mut bad = Vec::new();
    for length in [0, 8, 15, 17, 32] {
        bad.push(Span { trace_id: vec![1; length], ..good.clone() });
    }
    for length in [0, 4, 7, 9, 16] {
        bad.push(Span { span_id: vec![1; length], ..good.clone() });
    }
    bad.push(Span { trace_id: vec![0; 16], ..good.clone() });
    bad.push(Span { span_id: vec![0; 8], ..good.clone() });
    for parent in [vec![1; 4], vec![0; 4], vec![1; 9], vec![1; 16]] {
        bad.push(Span { parent_span_id: parent, ..good.clone() });
    }
    let count = bad.len() as u64;
    for (number, bad) in (2..).zip(bad) {
        let request = request("shop", vec![bad.clone(), span(number, 1, None)]);
        let answer = running.export(&request).await.expect("OK");
        let partial = answer.partial_success.expect("a partial success");
        assert_eq!(partial.rejected_spans, 1, "{bad:?}");
        assert!(partial.error_message.contains("ids"), "{}", partial.error_message);
    }
    let root = Span { parent_span_id: vec![0; 8], ..good };
    running.accept(vec![root, span(1, 2, Some(1))]).await;
    let metrics = running.at_rest().await;

    let rejected = "receiver_refused_spans_total{transport=\"grpc\",reason=\"invalid_id\"}";
    assert_eq!(metrics.get(rejected), count as f64);
    assert_eq!(answered(&metrics, "OK"), count as f64 + 1.0);
    assert_eq!(metrics.sum("receiver_refused_requests_total"), 0.0);
    let traces = running.traces();
    assert_eq!(traces.len() as u64, count + 1);
    let trigger = |span| attribute(span, "tailwater.trigger");
    assert!(traces[&trace_id(1)].iter().any(|span| trigger(span) == Some("root_received")));
    running.stop().await;
}

/// Scenario: messages of exactly the limit and of one byte more, and compression bombs that exceed
/// it.
/// Guarantees: the first is accepted; the others are refused for good, and none of their spans is
/// kept.
#[tokio::test]
async fn messages_over_the_limit_are_refused_for_good() {
    let limit = 64 << 10;
    let mut config = config(ALL);
    config.grpc.max_recv_msg_bytes = limit;
    let running = Running::start(config).await;
    let fits = of_length(1, limit);
    running.export_bytes(fits.clone()).await.expect("fits");
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
        running.export_compressed(fits.clone(), encoding).await.expect("fits");
        for length in [limit + 1, 16 << 20] {
            let bomb = running.export_compressed(of_length(2, length), encoding).await;
            assert_final(&bomb.expect_err("a bomb"), Code::ResourceExhausted);
        }
    }
    for length in [limit + 1, 4 << 20] {
        let large = running.export_bytes(of_length(2, length)).await;
        assert_final(&large.expect_err("too large"), Code::ResourceExhausted);
    }
    let metrics = running.at_rest().await;
    assert_eq!(refused(&metrics, "too_large"), 6.0);
    assert_eq!(answered(&metrics, "RESOURCE_EXHAUSTED"), 6.0);
    assert_eq!(metrics.sum("receiver_refused_requests_total"), 6.0);
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 3.0);
    running.stop().await;
}

/// Scenario: requests with each kind of wrong framing or bytes, after valid spans.
/// Guarantees: INVALID_ARGUMENT, and no span of these requests is accepted.
#[tokio::test]
async fn undecodable_requests_are_refused_whole() {
    let running = Running::start(config(ALL)).await;
    let good = one_span(1);
    let with = |more: &[u8]| frame(0, &[&good[..], more].concat());
    let claims = |length: u32| [&[0][..], &length.to_be_bytes(), &good].concat();
    let (plain, gzip, zstd): (&[_], &[_], &[_]) =
        (&[], &[("grpc-encoding", "gzip")], &[("grpc-encoding", "zstd")]);
    let cases = [
        ("a span cut short", plain, frame(0, &good[..good.len() - 1])),
        ("spans of another wire type", plain, with(&[0x08, 1])),
        ("a trace id of another wire type", plain, with(&[0x0a, 6, 0x12, 4, 0x12, 2, 0x08, 1])),
        ("garbage", plain, frame(0, b"\xff\xffgarbage")),
        ("no gzip", gzip, frame(1, b"garbage")),
        ("no zstd", zstd, frame(1, b"garbage")),
        ("gzip that decompresses to garbage", gzip, frame(1, &gzipped(b"\xff\xffgarbage"))),
        ("gzip cut short", gzip, frame(1, &gzipped(&good)[..40])),
        ("no message", plain, Vec::new()),
        ("half a header", plain, vec![0, 0]),
        ("less than the header says", plain, claims(1 << 20)),
        ("more than the header says", plain, claims(7)),
        ("an unknown flag", plain, frame(2, &good)),
        ("compressed by nothing", plain, frame(1, &good)),
        ("compressed by identity", &[("grpc-encoding", "identity")], frame(1, &good)),
    ];
    let client = connect(running.service.grpc_address).await;
    let count = cases.len() as f64;
    for (what, headers, body) in cases {
        let answer = http2(&client, post(EXPORT_PATH, headers), body).await;
        assert_eq!((answer.status, answer.header("grpc-status")), (200, "3"), "{what} {answer:?}");
        assert_eq!(answer.header("grpc-status-details-bin"), "", "{what}");
    }
    let metrics = running.metrics().await;
    assert_eq!(refused(&metrics, "malformed"), count);
    assert_eq!(answered(&metrics, "INVALID_ARGUMENT"), count);
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 0.0);
    assert_eq!(metrics.get("window_spans"), 0.0);
    drop(client);
    running.stop().await;
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).expect("in memory");
    gzip.finish().expect("in memory")
}

/// Scenario: a truncated attribute, which the policies of one service read and those of another do
/// not.
/// Guarantees: the request is refused if policies read the attribute; otherwise the span is
/// accepted, and counted as malformed when it is kept.
#[tokio::test]
async fn attributes_are_checked_where_policies_read_them() {
    let reads = "[[policy]]\nname = \"cart\"\ntype = \"string_attribute\"\nvalues = [\"/cart\"]\n\
                 key = \"http.route\"";
    let mut bytes = one_span(1);
    let attribute = string("http.route", "/").encode_to_vec();
    let place = bytes.windows(attribute.len()).position(|window| window == attribute);
    // The value now claims to be longer than the attribute.
    let value = place.expect("the attribute") + attribute.len() - 2;
    bytes[value] = 9;
    let reading = Running::start(config(reads)).await;
    let refused = reading.export_bytes(bytes.clone()).await.expect_err("refused");
    assert_final(&refused, Code::InvalidArgument);
    assert_eq!(reading.stop().await.0.sum("receiver_accepted_spans_total"), 0.0);

    let running = Running::start(config(ALL)).await;
    running.export_bytes(bytes).await.expect("accepted");
    let metrics = running.at_rest().await;
    assert_eq!(metrics.get("exporter_failed_spans_total{reason=\"malformed\"}"), 1.0);
    running.stop().await;
}

/// A value inside this many arrays.
fn nested(levels: usize) -> KeyValue {
    let mut value = AnyValue { value: Some(Value::IntValue(7)) };
    for _ in 0..levels {
        value = AnyValue { value: Some(Value::ArrayValue(ArrayValue { values: vec![value] })) };
    }
    KeyValue { key: "deep".into(), value: Some(value), ..KeyValue::default() }
}

/// The span with an attribute whose value is inside too many arrays for prost to encode.
fn abysmal(span: &Span, levels: usize) -> Vec<u8> {
    let wrap = |tag: u8, inner: Vec<u8>| {
        let mut out = vec![tag];
        prost::encoding::encode_varint(inner.len() as u64, &mut out);
        [out, inner].concat()
    };
    let mut value = vec![0x18, 7];
    for _ in 0..levels {
        value = wrap(0x2a, wrap(0x0a, value));
    }
    let span = [span.encode_to_vec(), wrap(0x4a, wrap(0x12, value))].concat();
    wrap(0x0a, wrap(0x12, wrap(0x12, span)))
}

/// Scenario: values nested 64, 65 and 20,000 levels deep, beside ordinary spans.
/// Guarantees: all are accepted; 64 levels arrive whole; spans with deeper values are counted, the
/// others arrive.
#[tokio::test]
async fn values_nested_too_deep_cost_only_their_span() {
    let (url, bodies) = backend().await;
    let mut config = config(ALL);
    config.exporter.endpoint = url;
    let running = Running::start_to(config).await;
    let deep = |trace, id, levels| {
        let mut span = span(trace, id, Some(9));
        span.attributes.push(nested(levels));
        span
    };
    running.accept(vec![deep(1, 1, 64), deep(1, 2, 65), span(1, 3, None)]).await;
    let bytes = abysmal(&span(2, 1, None), 20_000);
    running.export_bytes(bytes).await.expect("accepted");
    running.accept(vec![span(2, 2, Some(1)), span(3, 1, None)]).await;
    let metrics = running.at_rest().await;
    assert_eq!(metrics.get("exporter_failed_spans_total{reason=\"malformed\"}"), 2.0);
    assert_eq!(metrics.get("exporter_sent_spans_total"), 4.0);
    running.stop().await;
    let sent = bodies.lock().expect("no panic").concat();
    let count = |part: &[u8]| sent.windows(part.len()).filter(|window| *window == part).count();
    assert_eq!((count(b"span 1"), count(b"span 2"), count(b"span 3")), (2, 1, 1));
    assert_eq!(count(&nested(64).encode_to_vec()), 1);
}

/// Scenario: strings that are not UTF-8 in a name, an attribute, a status, and a resource.
/// Guarantees: the sink, which decodes strictly, receives the span with U+FFFD in their place.
#[tokio::test]
async fn strings_that_are_not_utf8_are_repaired() {
    let running = Running::start(config(ALL)).await;
    let broken = Span {
        name: "caf?".into(),
        attributes: vec![string("caf?", "caf?")],
        status: Some(SpanStatus { code: 1, message: "caf?".into() }),
        ..span(1, 1, None)
    };
    let mut bytes = request("caf?", vec![broken]).encode_to_vec();
    bytes.iter_mut().filter(|byte| **byte == b'?').for_each(|byte| *byte = 0xe9);
    running.export_bytes(bytes).await.expect("accepted");
    let metrics = running.at_rest().await;
    assert_eq!(metrics.get("repaired_strings_total"), 5.0);
    let span = &running.spans()[0];
    let repaired = "caf\u{fffd}";
    assert_eq!(span.name, repaired);
    assert_eq!(attribute(span, repaired), Some(repaired));
    assert_eq!(span.status.as_ref().expect("a status").message, repaired);
    let received = running.received.lock().expect("no panic")[0].clone();
    let resource = received.resource_spans[0].resource.clone().expect("a resource");
    assert_eq!(resource.attributes, [string("service.name", repaired)]);
    running.stop().await;
}

/// Scenario: a memory limit that one request exceeds by itself, and another together with a request
/// in progress.
/// Guarantees: the first is refused for good, the second with UNAVAILABLE and a delay, and no span
/// of either is accepted; the request in progress is accepted when it is complete.
#[tokio::test]
async fn at_the_memory_limit_senders_are_asked_to_come_back() {
    let mut config = config(ALL);
    config.sampling.memory_limit_bytes = 11 << 20;
    let running = Running::start(config).await;
    for length in [12 << 20, 15 << 19] {
        let large = running.export_bytes(of_length(1, length)).await.expect_err("never fits");
        assert_eq!(large.code(), Code::ResourceExhausted, "{large:?}");
        assert!(large.get_details_retry_info().is_none(), "{large:?}");
    }

    let client = connect(running.service.grpc_address).await;
    let (response, mut body) = open(&client, post(EXPORT_PATH, &[])).await;
    let whole = frame(0, &of_length(2, 7 << 19));
    let (first, rest) = whole.split_at(3 << 20);
    body.send_data(first.to_vec().into(), false).expect("sent");
    let arrived = |metrics: &Metrics| metrics.get("memory_used_bytes") >= (3 << 20) as f64;
    running.until("half of the request arrived", arrived).await;
    let second = running.export_bytes(of_length(3, 7 << 19)).await;
    assert_retryable(&second.expect_err("no memory"));
    body.send_data(rest.to_vec().into(), true).expect("sent");
    assert_eq!(answer(response).await.expect("answered").header("grpc-status"), "0");

    let metrics = running.at_rest().await;
    assert_eq!((refused(&metrics, "memory"), refused(&metrics, "too_large")), (1.0, 2.0));
    assert_eq!(answered(&metrics, "UNAVAILABLE"), 1.0);
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 1.0);
    assert_eq!(running.traces().into_keys().collect::<Vec<_>>(), [trace_id(2)]);
    drop(client);
    running.stop().await;
}

/// A small queue in front of a backend that is always down.
fn config_of_an_outage(overflow: Overflow) -> Config {
    let mut config = config(ALL);
    config.exporter.queue.queue_bytes_max = 16 << 10;
    config.exporter.queue.overflow = overflow;
    config.exporter.max_request_bytes = 4 << 10;
    config.shutdown_timeout = Duration::from_secs(1);
    config
}

/// Scenario: a backend that is down, with overflow = "block", until the queue is nearly full.
/// Guarantees: UNAVAILABLE with a delay, counted as queue_full; no accepted span is lost, except
/// those that the shutdown cannot deliver; the service stays ready.
#[tokio::test]
async fn a_full_queue_refuses_senders_when_it_blocks() {
    let config = config_of_an_outage(Overflow::Block);
    let running = Running::start_with(config, Box::new(|_| Err(Status::unavailable("down")))).await;
    let mut accepted = 0;
    let refusal = loop {
        match running.export_bytes(of_length(accepted + 1, 2 << 10)).await {
            Ok(_) => accepted += 1,
            Err(status) => break status,
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_retryable(&refusal);
    let metrics = running.metrics().await;
    assert_eq!(refused(&metrics, "queue_full"), 1.0);
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), accepted as f64);
    assert_eq!(metrics.sum("exporter_failed_spans_total"), 0.0);
    // The last decided trace may be larger than the room that was left for it.
    let most = metrics.get("exporter_queue_capacity_bytes") + f64::from(3 << 10);
    assert!(metrics.get("exporter_queue_bytes") <= most, "{:#?}", metrics.nonzero());
    let ready = crate::harness::get(running.service.admin_address, "/-/ready").await;
    assert_eq!(ready.0, 200);
    let (metrics, undelivered) = running.stop().await;
    assert_eq!(undelivered, accepted);
    let lost = metrics.get("exporter_failed_spans_total{reason=\"shutdown\"}");
    assert_eq!(lost, accepted as f64);
}

/// Scenario: the same with overflow = "drop".
/// Guarantees: senders are never refused; spans that do not fit are counted as queue_full.
#[tokio::test]
async fn a_full_queue_drops_when_it_is_told_to() {
    let config = config_of_an_outage(Overflow::Drop);
    let running = Running::start_with(config, Box::new(|_| Err(Status::unavailable("down")))).await;
    for trace in 1..=20 {
        running.export_bytes(of_length(trace, 2 << 10)).await.expect("accepted");
    }
    let is_decided = |metrics: &Metrics| {
        let lost = metrics.get("exporter_failed_spans_total{reason=\"queue_full\"}");
        // A span on its way into the queue counts as queued, so its fate is not known yet.
        let queued_bytes = metrics.get("exporter_queue_bytes");
        metrics.get("window_spans") == 0.0 && lost + (queued_bytes / 2048.0).floor() == 20.0
    };
    let metrics = running.until("everything is queued or lost", is_decided).await;
    assert!(metrics.get("exporter_failed_spans_total{reason=\"queue_full\"}") > 0.0);
    let (metrics, undelivered) = running.stop().await;
    assert_eq!(metrics.sum("exporter_failed_spans_total"), 20.0);
    let lost = metrics.get("exporter_failed_spans_total{reason=\"shutdown\"}");
    assert_eq!(undelivered as f64, lost);
}

/// Scenario: other methods, services, content types and encodings.
/// Guarantees: UNIMPLEMENTED, or 415 if it is not gRPC, as the gRPC specification requires.
#[tokio::test]
async fn other_methods_are_not_implemented() {
    let running = Running::start(config(ALL)).await;
    let client = connect(running.service.grpc_address).await;
    let call = async |path, headers: &[(&'static str, &'static str)]| -> Answer {
        http2(&client, post(path, headers), frame(0, &one_span(1))).await
    };
    for path in [
        "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        "/opentelemetry.proto.collector.trace.v1.TraceService/Import",
        "/",
    ] {
        let answer = call(path, &[]).await;
        assert_eq!((answer.status, answer.header("grpc-status")), (200, "12"), "{path} {answer:?}");
    }
    let answer = call(EXPORT_PATH, &[("grpc-encoding", "br")]).await;
    assert_eq!(answer.header("grpc-status"), "12");
    assert!(answer.header("grpc-accept-encoding").contains("gzip"), "{answer:?}");
    for content_type in ["application/json", "application/x-protobuf", "text/plain", ""] {
        let answer = call(EXPORT_PATH, &[("content-type", content_type)]).await;
        assert_eq!((answer.status, answer.header("grpc-status")), (415, ""), "{content_type}");
    }
    for content_type in ["application/grpc", "application/grpc+proto"] {
        let answer = call(EXPORT_PATH, &[("content-type", content_type)]).await;
        assert_eq!(answer.header("grpc-status"), "0", "{content_type} {answer:?}");
    }
    let metrics = running.at_rest().await;
    assert_eq!(answered(&metrics, "UNIMPLEMENTED"), 5.0);
    assert_eq!(metrics.sum("receiver_refused_requests_total"), 0.0);
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 2.0);
    drop(client);
    running.stop().await;
}

/// Scenario: requests compressed with gzip and zstd, from small to large.
/// Guarantees: the spans arrive unchanged.
#[tokio::test]
async fn compressed_requests_are_taken() {
    let running = Running::start(config(ERRORS_AND_HALF)).await;
    let mut traces = 0;
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
        for length in [1 << 10, 3 << 20] {
            traces += 1;
            let trace = crate::harness::HIGH | traces;
            running.export_compressed(of_length(trace, length), encoding).await.expect("accepted");
        }
    }
    let metrics = running.at_rest().await;
    assert_eq!(metrics.get("exporter_sent_spans_total"), traces as f64);
    let spans = running.spans();
    let padded = |span: &Span| attribute(span, "padding").expect("padding").len() > 500;
    assert!(spans.len() == 4 && spans.iter().all(padded));
    running.stop().await;
}
