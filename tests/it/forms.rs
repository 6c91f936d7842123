//! The forms that a request may have: names of another version of OTLP, names instead of numbers,
//! other names of content codings. Input in any other form is refused or counted, but never dropped
//! silently with a success.

use std::io::Write as _;

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::InstrumentationScope,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message;
use tailwater::{grpc::EXPORT_PATH, otlp::wire};

use crate::{
    harness::{ALL, Metrics, Running, attribute, config, request, span},
    http::{POST, PROTOBUF, answered, compressed, refused, send},
    wire::{connect, frame, http2, post},
};

const JSON: &str = "content-type: application/json";

/// The JSON members of a resource of the service `shop`.
const RESOURCE: &str =
    r#""resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}}]}"#;

/// The JSON members of a span of this trace, in today's names.
fn members(trace: u8) -> String {
    let times =
        r#""startTimeUnixNano":"1764000000000000000","endTimeUnixNano":1764000000120000000"#;
    format!(r#""traceId":"{trace:032x}","spanId":"b7ad6b7169203331","name":"GET /cart",{times}"#)
}

/// A JSON request with one resource of these members.
fn json(members: &str) -> Vec<u8> {
    format!(r#"{{"resourceSpans":[{{{RESOURCE},{members}}}]}}"#).into_bytes()
}

/// A request with the scope and the spans in the former field, in a resource with the fields of
/// `beside`.
fn former(scope: &str, spans: Vec<Span>, beside: ResourceSpans) -> Vec<u8> {
    let scope = InstrumentationScope { name: scope.into(), ..Default::default() };
    let of_scope = ScopeSpans { scope: Some(scope), spans, schema_url: "scope-schema".into() };
    let mut of_resource = Vec::new();
    put(&mut of_resource, 1000, &of_scope.encode_to_vec());
    of_resource.extend(beside.encode_to_vec());
    let mut bytes = Vec::new();
    put(&mut bytes, 1, &of_resource);
    bytes
}

fn put(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    wire::put_length_delimited(out, number, content.len());
    out.extend_from_slice(content);
}

/// A resource of the service `shop` with these scopes.
fn shop(spans: Vec<Span>) -> ResourceSpans {
    let mut of_resource = request("shop", spans).resource_spans.remove(0);
    of_resource.scope_spans.retain(|of_scope| !of_scope.spans.is_empty());
    of_resource
}

fn empty(metrics: &Metrics, transport: &str) -> f64 {
    metrics.get(&format!("receiver_empty_requests_total{{transport=\"{transport}\"}}"))
}

/// Each span that arrived, with the names of its service and its scope.
fn arrived(running: &Running) -> Vec<(Span, String, String)> {
    let received = running.received.lock().expect("no panic");
    let mut spans = Vec::new();
    for of_resource in received.iter().flat_map(|request| &request.resource_spans) {
        let resource = of_resource.resource.clone().unwrap_or_default();
        let bearer = Span { attributes: resource.attributes, ..Span::default() };
        let service = attribute(&bearer, "service.name").unwrap_or_default();
        for of_scope in &of_resource.scope_spans {
            let scope = of_scope.scope.clone().unwrap_or_default().name;
            spans.extend(
                of_scope.spans.iter().map(|span| (span.clone(), service.to_owned(), scope.clone())),
            );
        }
    }
    spans.sort_by_key(|(span, ..)| span.trace_id.clone());
    spans
}

/// Scenario: OTLP/JSON with the names of the proto files; with enums by name; with the former field
/// for scopes, under both of its names.
/// Guarantees: each span arrives whole, in its resource and scope, under today's fields.
#[tokio::test]
async fn json_of_other_names_is_taken() {
    let running = Running::start(config(ALL)).await;
    let proto_names = r#"{"resource_spans":[{"resource":{"attributes":[{"key":"service.name",
        "value":{"string_value":"shop"}}]},"scope_spans":[{"scope":{"name":"web"},"spans":[{
        "trace_id":"00000000000000000000000000000001","span_id":"b7ad6b7169203332",
        "parent_span_id":"","name":"GET /cart","kind":2,"status":{"code":2},
        "start_time_unix_nano":"1764000000000000000",
        "end_time_unix_nano":"1764000000120000000"}]}]}]}"#;
    let of_kind = |trace| {
        let names = r#""kind":"SPAN_KIND_SERVER","status":{"code":"STATUS_CODE_ERROR"}"#;
        format!("{{{},{names}}}", members(trace))
    };
    let scope = |scopes: &str, scope: &str, trace| {
        let library = format!(r#""{scope}":{{"name":"web","version":"0.1"}}"#);
        json(&format!(r#""{scopes}":[{{{library},"spans":[{}]}}]"#, of_kind(trace)))
    };
    let bodies = [
        proto_names.as_bytes().to_vec(),
        scope("scopeSpans", "scope", 2),
        scope("instrumentationLibrarySpans", "instrumentationLibrary", 3),
        scope("instrumentation_library_spans", "instrumentation_library", 4),
        scope("instrumentationLibrarySpans", "scope", 5),
    ];
    for body in &bodies {
        let answer = send(&running, POST, &[JSON], body).await;
        assert_eq!((answer.status, &answer.body[..]), (200, &b"{}"[..]));
    }
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), bodies.len() as f64);
    assert_eq!(empty(&metrics, "http"), 0.0);
    let arrived = arrived(&running);
    assert_eq!(arrived.len(), bodies.len());
    for (trace, (span, service, scope)) in (1..).zip(&arrived) {
        assert_eq!((service.as_str(), scope.as_str()), ("shop", "web"));
        assert_eq!((span.trace_id[15], span.name.as_str(), span.kind), (trace, "GET /cart", 2));
        assert_eq!(span.end_time_unix_nano - span.start_time_unix_nano, 120_000_000);
        assert_eq!(span.status.as_ref().map(|status| status.code), Some(2));
    }
    running.stop().await;
}

/// Scenario: protobuf with scopes in the former field of their resource, over both receivers; the
/// same spans in both fields; other spans there beside a scope without spans; a malformed id; the
/// field as a number, and as bytes that are not a scope.
/// Guarantees: the spans arrive as scope spans, those in both fields once; an unreadable request is
/// refused as a whole.
#[tokio::test]
async fn spans_under_the_former_field_are_taken_once() {
    let running = Running::start(config(ALL)).await;
    let alone = |trace| former("web", vec![span(trace, 1, None)], shop(Vec::new()));
    running.export_bytes(alone(1)).await.expect("accepted");
    assert_eq!(send(&running, POST, &[PROTOBUF], &alone(2)).await.status, 200);
    let both = former("old", vec![span(3, 1, None)], shop(vec![span(3, 1, None)]));
    running.export_bytes(both).await.expect("accepted");
    let without = ResourceSpans { scope_spans: vec![ScopeSpans::default()], ..shop(Vec::new()) };
    let beside_none = former("web", vec![span(4, 1, None)], without);
    running.export_bytes(beside_none).await.expect("accepted");
    let bad = former("web", vec![Span::default(), span(5, 1, None)], shop(Vec::new()));
    let answer = running.export_bytes(bad).await.expect("accepted");
    assert_eq!(answer.partial_success.map(|partial| partial.rejected_spans), Some(1));
    for malformed in [&[0xc0, 0x3e, 1][..], &[0xc2, 0x3e, 2, 0x12, 9]] {
        let mut bytes = Vec::new();
        put(&mut bytes, 1, malformed);
        let status = running.export_bytes(bytes).await.expect_err("malformed");
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
    }
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 5.0);
    assert_eq!(empty(&metrics, "grpc") + empty(&metrics, "http"), 0.0);
    let arrived = arrived(&running);
    let scopes: Vec<_> = arrived.iter().map(|(.., scope)| scope.as_str()).collect();
    assert_eq!(scopes, ["web", "web", "", "web", "web"]);
    assert!(arrived.iter().all(|(_, service, _)| service == "shop"));
    // The former field is gone: today's backends would at best keep it as an unknown field.
    for bytes in running.received.lock().expect("no panic").iter().map(Message::encode_to_vec) {
        assert!(!bytes.windows(2).any(|tag| tag == [0xc2, 0x3e]));
    }
    running.stop().await;
}

/// Scenario: requests that are answered with success and have no span: a member around the request,
/// members of other signals, scopes under an unknown name, an empty object; in protobuf, unknown
/// fields, or only a resource. And the empty request, which has no bytes.
/// Guarantees: all except the empty request are counted, by transport.
#[tokio::test]
async fn requests_without_spans_are_counted() {
    let running = Running::start(config(ALL)).await;
    let wrapped = json(&format!(r#""scopeSpans":[{{"spans":[{{{}}}]}}]"#, members(1)));
    let wrapped = [&b"{\"data\":"[..], &wrapped, b"}"].concat();
    let no_spans = [
        &wrapped[..],
        br#"{"batches":[{"scopeSpans":[{"spans":[{"traceId":"AAAA"}]}]}]}"#,
        br#"{"resourceMetrics":[{"scopeMetrics":[]}]}"#,
        br#"{"resourceSpans":[{"spans":[{"traceId":"00000000000000000000000000000001"}]}]}"#,
        br#"{"resourceSpans":null}"#,
        br#"{"resourceSpans":[{}]}"#,
        b"{}",
    ];
    for body in no_spans {
        let answer = send(&running, POST, &[JSON], body).await;
        assert_eq!((answer.status, &answer.body[..]), (200, &b"{}"[..]));
    }
    let mut nested = Vec::new();
    put(&mut nested, 2, &request("shop", vec![span(1, 1, None)]).encode_to_vec());
    let resource = ExportTraceServiceRequest { resource_spans: vec![shop(Vec::new())] };
    let in_protobuf = [nested, resource.encode_to_vec(), vec![0x0a, 0], vec![0x18, 1]];
    for body in &in_protobuf {
        assert_eq!(send(&running, POST, &[PROTOBUF], body).await.status, 200);
        running.export_bytes(body.clone()).await.expect("accepted");
    }
    assert_eq!(send(&running, POST, &[PROTOBUF], b"").await.status, 200);
    running.export_bytes(Vec::new()).await.expect("accepted");
    let metrics = running.metrics().await;
    assert_eq!(empty(&metrics, "http"), (no_spans.len() + in_protobuf.len()) as f64);
    assert_eq!(empty(&metrics, "grpc"), in_protobuf.len() as f64);
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 0.0);
    running.stop().await;
}

/// A request of another signal with one metric or log record in the place of spans.
fn of_signal(item: &[u8]) -> Vec<u8> {
    let mut message = item.to_vec();
    for number in [2, 2, 1] {
        let mut outer = Vec::new();
        put(&mut outer, number, &message);
        message = outer;
    }
    message
}

/// Scenario: metrics and logs in protobuf at the path of traces; JSON in a list, on several lines,
/// with an object instead of a list; JSON as protobuf and protobuf as JSON; ids in base64.
/// Guarantees: every one is refused, as a whole or span by span, with a message.
#[tokio::test]
async fn bodies_without_requests_are_never_accepted_silently() {
    let running = Running::start(config(ALL)).await;
    let one = json(&format!(r#""scopeSpans":[{{"spans":[{{{}}}]}}]"#, members(1)));
    let listed = [b"[", &one[..], b"]"].concat();
    let lines = [&one[..], b"\n", &one].concat();
    let text = |text: &str| text.as_bytes().to_vec();
    let base64 = String::from_utf8(one.clone()).expect("text");
    let base64 = base64.replace("00000000000000000000000000000001", "AAAAAAAAAAAAAAAAAAAAAQ==");
    let cases = [
        // A gauge and a sum, each with a name; a log record with a time, and one with a text.
        (PROTOBUF, of_signal(&[0x0a, 1, b'm', 0x2a, 0])),
        (PROTOBUF, of_signal(&[0x0a, 1, b'm', 0x3a, 0])),
        (PROTOBUF, of_signal(&[0x09, 1, 0, 0, 0, 0, 0, 0, 0])),
        (PROTOBUF, of_signal(&[0x2a, 3, 0x0a, 1, b'l'])),
        (PROTOBUF, one.clone()),
        (JSON, request("shop", vec![span(1, 1, None)]).encode_to_vec()),
        (JSON, listed),
        (JSON, lines),
        (JSON, text(r#"{"resourceSpans":{"scopeSpans":[]}}"#)),
        (JSON, text(r#"{"resourceSpans":[{"scopeSpans":{"spans":[]}}]}"#)),
        (JSON, text(r#"{"resourceSpans":[[{"scopeSpans":[]}]]}"#)),
        (JSON, text(r#"{"resourceSpans":"[]"}"#)),
        (JSON, text(&base64)),
    ];
    for (content_type, body) in &cases {
        let answer = send(&running, POST, &[content_type], body).await;
        let said = String::from_utf8_lossy(&answer.body);
        let is_told =
            answer.status == 400 || (answer.status == 200 && said.contains("malformed ids"));
        assert!(is_told, "{content_type} {}: {answer:?}", String::from_utf8_lossy(body));
    }
    let metrics = running.metrics().await;
    let rejected = metrics.sum("receiver_refused_spans_total");
    assert_eq!(rejected + refused(&metrics, "malformed"), cases.len() as f64);
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 0.0);
    running.stop().await;
}

/// DEFLATE without the header of zlib.
fn bare_deflate(bytes: &[u8], level: u32) -> Vec<u8> {
    let level = flate2::Compression::new(level);
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), level);
    encoder.write_all(bytes).expect("in memory");
    encoder.finish().expect("in memory")
}

/// Compresses all of the bytes and flushes them, in a stream that does not end.
fn flushed(coding: &str, bytes: &[u8]) -> Vec<u8> {
    macro_rules! started {
        ($encoder:expr) => {{
            let mut encoder = $encoder;
            encoder.write_all(bytes).expect("in memory");
            encoder.flush().expect("in memory");
            encoder.get_ref().clone()
        }};
    }
    let level = flate2::Compression::fast();
    match coding {
        "gzip" => started!(flate2::write::GzEncoder::new(Vec::new(), level)),
        "deflate" => started!(flate2::write::ZlibEncoder::new(Vec::new(), level)),
        _ => started!(zstd::Encoder::new(Vec::new(), 1).expect("an encoder")),
    }
}

fn one_span(trace: u64, name: usize) -> Vec<u8> {
    let span = Span { name: "x".repeat(name), ..span(trace, 1, None) };
    request("shop", vec![span]).encode_to_vec()
}

/// Scenario: the Collector's name for deflate, gzip's old name, bare DEFLATE at every level, upper
/// case, a coding beside `identity`, a coding in a second header; from small to over a megabyte.
/// Guarantees: they are accepted over HTTP, and over gRPC if it names one coding.
#[tokio::test]
async fn codings_by_other_words_are_taken() {
    let running = Running::start(config(ALL)).await;
    let mut sent = 0;
    for length in [9, 200 << 10, 3 << 20] {
        let body = one_span(1, length);
        let (gzip, zlib) = (compressed("gzip", &body), compressed("deflate", &body));
        let mut cases = vec![
            (vec!["content-encoding: zlib"], zlib.clone()),
            (vec!["content-encoding: x-gzip"], gzip.clone()),
            (vec!["content-encoding: GZIP"], gzip.clone()),
            (vec!["content-encoding: identity, gzip"], gzip.clone()),
            (vec!["content-encoding: identity", "content-encoding:  Zlib "], zlib.clone()),
            (vec!["content-encoding: zstd,"], compressed("zstd", &body)),
        ];
        for level in [0, 1, 6, 9] {
            cases.push((vec!["content-encoding: deflate"], bare_deflate(&body, level)));
        }
        for (headers, body) in cases {
            let headers: Vec<_> = headers.into_iter().chain([PROTOBUF]).collect();
            let answer = send(&running, POST, &headers, &body).await;
            assert_eq!(answer.status, 200, "{headers:?} {length} {answer:?}");
            sent += 1;
        }
        let client = connect(running.service.grpc_address).await;
        for (encoding, body) in
            [("GZIP", &gzip), ("deflate", &zlib), ("deflate", &bare_deflate(&body, 6))]
        {
            let head = post(EXPORT_PATH, &[("grpc-encoding", encoding)]);
            let answer = http2(&client, head, frame(1, body)).await;
            assert_eq!(answer.header("grpc-status"), "0", "{encoding} {answer:?}");
            sent += 1;
        }
    }
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), f64::from(sent));
    running.stop().await;
}

/// Scenario: several codings in a row, unknown codings, a coding that is not text; bodies that end
/// early, where the content so far is a valid request, or that continue after their end.
/// Guarantees: 415 with the accepted codings, UNIMPLEMENTED with the same over gRPC; 400 for the
/// bodies; nothing is accepted.
#[tokio::test]
async fn incomplete_compressed_bodies_are_refused() {
    let running = Running::start(config(ALL)).await;
    let body = one_span(1, 9);
    let twice = compressed("gzip", &compressed("gzip", &body));
    for coding in ["gzip, gzip", "deflate, gzip", "br", "gzip;q=1", "caf\u{e9}", "gzip zstd"] {
        let header = format!("content-encoding: {coding}");
        let answer = send(&running, POST, &[PROTOBUF, &header], &twice).await;
        assert_eq!(answer.status, 415, "{coding} {answer:?}");
        assert!(answer.header("accept-encoding").contains("gzip"), "{coding} {answer:?}");
    }
    let client = connect(running.service.grpc_address).await;
    for encoding in ["snappy", "gzip,zstd"] {
        let head = post(EXPORT_PATH, &[("grpc-encoding", encoding)]);
        let answer = http2(&client, head, frame(1, &twice)).await;
        assert_eq!(answer.header("grpc-status"), "12", "{answer:?}");
        assert!(answer.header("grpc-accept-encoding").contains("deflate"), "{answer:?}");
    }
    drop(client);
    let bare = bare_deflate(&body, 6);
    for coding in ["gzip", "deflate", "zstd"] {
        let whole = compressed(coding, &body);
        let (rest, last) = whole.split_at(whole.len() - 1);
        for (what, body) in [
            ("a byte missing", rest.to_vec()),
            ("the last byte changed", [rest, &[!last[0]]].concat()),
            ("a byte behind it", [&whole[..], &[7]].concat()),
            ("flushed, not ended", flushed(coding, &body)),
        ] {
            let header = format!("content-encoding: {coding}");
            let answer = send(&running, POST, &[PROTOBUF, &header], &body).await;
            assert_eq!(answer.status, 400, "{coding}, {what} {answer:?}");
        }
    }
    for (what, body) in [
        ("zlib twice", &compressed("deflate", &body).repeat(2)[..]),
        ("bare deflate and a byte", &[&bare[..], &[0]].concat()),
        ("bare deflate cut short", &bare[..bare.len() - 2]),
        ("nothing", &[]),
        ("a header alone", &[0x78, 0x9c]),
    ] {
        let answer = send(&running, POST, &[PROTOBUF, "content-encoding: deflate"], body).await;
        assert_eq!(answer.status, 400, "{what} {answer:?}");
    }
    let metrics = running.metrics().await;
    assert_eq!((answered(&metrics, 415), refused(&metrics, "malformed")), (6.0, 17.0));
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 0.0);
    running.stop().await;
}
