//! OTLP/JSON: its conversion, and the answers to its senders.

mod writer;

use fastrand::Rng;
use proptest::prelude::*;
use serde_json::{Value, json};
use tailwater::otlp::json::to_protobuf;

use crate::{
    differential,
    harness::{ALL, Running, config, get, trace_id},
    http::{POST, answered, compressed, refused, send},
    walker::mutate,
    wire::Answer,
};

const JSON: &str = "content-type: application/json";

proptest! {
    /// Scenario: requests of every field, written as JSON in any order, with integers as numbers,
    /// floats and strings, enums by number and name, nulls, unknown members, escapes, either case
    /// of hexadecimal and alphabet of base64, names of today and of before, in camel case and as in
    /// the proto files.
    /// Guarantees: the result is the one that prost would have written, and is not longer than the
    /// JSON.
    #[test]
    fn json_becomes_what_it_says(seed in any::<u64>()) {
        let mut rng = Rng::with_seed(seed);
        let request = mutate::any_request(&mut rng);
        let json = writer::request(&request, &mut rng);
        let bytes = to_protobuf(json.as_bytes()).map_err(|error| error.to_string());
        let bytes = bytes.unwrap_or_else(|error| panic!("{error}: {json}"));
        prop_assert!(bytes.len() <= json.len());
        let read = differential::decode(&bytes).expect("valid");
        // Compared as text, so that NaN equals itself, whatever its bits.
        prop_assert_eq!(format!("{read:?}"), format!("{request:?}"), "{}", json);
    }
}

fn request(spans: &[Value]) -> Vec<u8> {
    let resource = json!({ "attributes": [
        { "key": "service.name", "value": { "stringValue": "shop" } },
    ] });
    let scopes = json!([{ "scope": { "name": "lib" }, "spans": spans }]);
    json!({ "resourceSpans": [{ "resource": resource, "scopeSpans": scopes }] })
        .to_string()
        .into_bytes()
}

/// A span as the Node SDK writes it.
fn span(trace: &str, id: u64) -> Value {
    json!({
        "traceId": trace, "spanId": format!("{id:016x}"), "name": "pay", "kind": 3,
        "startTimeUnixNano": "1700000000000000000", "endTimeUnixNano": "1700000000010000000",
        "attributes": [
            { "key": "ratio", "value": { "doubleValue": null } },
            { "key": "count", "value": { "intValue": 3 } },
        ],
        "droppedAttributesCount": 0, "events": [], "droppedEventsCount": 0,
        "status": { "code": 2 }, "links": [], "droppedLinksCount": 0, "flags": 257,
    })
}

/// The hexadecimal digits of [`trace_id`], in upper case.
fn hex(trace: u64) -> String {
    trace_id(trace).iter().map(|byte| format!("{byte:02X}")).collect()
}

fn body(answer: &Answer) -> Value {
    assert_eq!(answer.header("content-type"), "application/json");
    serde_json::from_slice(&answer.body).expect("JSON")
}

/// Scenario: plain JSON, with a charset, compressed; with invalid ids beside a valid span.
/// Guarantees: 200 with `{}`, or with the number of rejected spans, in JSON; the spans arrive
/// unchanged, and the decision is found by the id that was sent.
#[tokio::test]
async fn json_is_taken_and_answered_in_json() {
    let running = Running::start(config(ALL)).await;
    let good = request(&[span(&hex(1), 1)]);
    let charset = "Content-Type: Application/JSON; charset=utf-8";
    let mut answers = vec![send(&running, POST, &[JSON], &good).await];
    answers.push(send(&running, POST, &[charset], &good).await);
    for encoding in ["gzip", "deflate", "zstd"] {
        let header = format!("content-encoding: {encoding}");
        let body = compressed(encoding, &good);
        answers.push(send(&running, POST, &[JSON, &header], &body).await);
    }
    answers.push(send(&running, POST, &[JSON], b"{}").await);
    for answer in &answers {
        assert_eq!((answer.status, body(answer)), (200, json!({})), "{answer:?}");
    }
    let bad = ["", "zz", "W47/95gDgQPSabYzgT/GDA==", "00000000000000000000000000000000"];
    let mut spans: Vec<_> = bad.iter().map(|id| span(id, 2)).collect();
    spans.push(span(&hex(2), 2));
    let answer = send(&running, POST, &[JSON], &request(&spans)).await;
    assert_eq!(answer.status, 200);
    let partial = &body(&answer)["partialSuccess"];
    assert_eq!(partial["rejectedSpans"], "4");
    assert!(partial["errorMessage"].as_str().is_some_and(|text| text.contains("ids")));

    let metrics = running.at_rest().await;
    assert_eq!(answered(&metrics, 200), 7.0);
    assert_eq!(metrics.get("receiver_accepted_spans_total{transport=\"http\"}"), 6.0);
    let rejected = "receiver_refused_spans_total{transport=\"http\",reason=\"invalid_id\"}";
    assert_eq!(metrics.get(rejected), 4.0);
    let spans = running.traces().remove(&trace_id(1)).expect("kept");
    assert_eq!(spans.len(), 5);
    let arrived = &spans[0];
    assert_eq!((arrived.name.as_str(), arrived.kind, arrived.flags), ("pay", 3, 257));
    assert_eq!(arrived.end_time_unix_nano - arrived.start_time_unix_nano, 10_000_000);
    assert_eq!(arrived.status.as_ref().map(|status| status.code), Some(2));
    let values: Vec<_> = arrived.attributes.iter().take(2).map(|pair| pair.value.clone()).collect();
    assert_eq!(values[0].as_ref().map(|value| value.value.is_none()), Some(true));
    let found = get(running.service.admin_address, &format!("/-/decisions/{}", hex(2))).await;
    assert_eq!(found.0, 200, "{}", found.1);
    running.stop().await;
}

/// Scenario: bodies that are not JSON, or of other types; other paths, methods and encodings.
/// Guarantees: the same codes as for protobuf, as JSON that does not quote the body; nothing is
/// accepted.
#[tokio::test]
async fn bad_json_is_refused_in_json() {
    let running = Running::start(config(ALL)).await;
    let good = request(&[span(&hex(1), 1)]);
    let other_type = request(&[span(&hex(1), 1), json!({ "name": ["secret"] })]);
    let cases = [&good[..good.len() - 1], &other_type, b"", b"\x0a\x00", b"[]", b"\"secret\""];
    for case in cases {
        let answer = send(&running, POST, &[JSON], case).await;
        let why = body(&answer);
        assert_eq!((answer.status, why["code"].as_i64()), (400, Some(3)), "{why}");
        let message = why["message"].as_str().expect("a message");
        assert!(message.contains(" at line ") && !message.contains("secret"), "{message}");
    }
    let other_path = "POST /v1/metrics HTTP/1.1";
    let brotli = "content-encoding: br";
    for (line, headers, status) in [
        (other_path, &[JSON][..], 404),
        ("PUT /v1/traces HTTP/1.1", &[JSON], 405),
        ("OPTIONS /v1/traces HTTP/1.1", &[JSON, "origin: http://a"], 405),
        (POST, &[JSON, brotli], 415),
    ] {
        let answer = send(&running, line, headers, b"").await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("access-control-allow-origin"), "");
        assert!(body(&answer)["message"].is_string());
    }
    let metrics = running.metrics().await;
    assert_eq!(refused(&metrics, "malformed"), cases.len() as f64);
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 0.0);
    running.stop().await;
}

/// Scenario: JSON over the limit, also after decompression; JSON within it that does not fit into
/// memory.
/// Guarantees: 413 for all of them, since they can never fit; the memory used to convert JSON to
/// protobuf is counted, and released.
#[tokio::test]
async fn json_is_held_to_the_limits() {
    let mut config = config(ALL);
    config.http.max_request_body_bytes = 1 << 20;
    config.sampling.memory_limit_bytes = 2 << 20;
    let running = Running::start(config).await;
    let named = |length: usize| {
        let mut span = span(&hex(1), 1);
        span["name"] = "x".repeat(length).into();
        request(&[span])
    };
    let before = running.metrics().await.get("memory_used_bytes");
    let gzip = "content-encoding: gzip";
    for (headers, body) in
        [(&[JSON][..], named(2 << 20)), (&[JSON, gzip], compressed("gzip", &named(2 << 20)))]
    {
        assert_eq!(send(&running, POST, headers, &body).await.status, 413);
    }
    // 900 KiB fit by themselves, but not together with the converted request.
    let answer = send(&running, POST, &[JSON], &named(900 << 10)).await;
    assert_eq!(answer.status, 413);
    assert_eq!(running.metrics().await.get("memory_used_bytes"), before);
    assert_eq!(send(&running, POST, &[JSON], &named(300 << 10)).await.status, 200);
    let metrics = running.at_rest().await;
    assert_eq!((refused(&metrics, "too_large"), refused(&metrics, "memory")), (3.0, 0.0));
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 1.0);
    running.stop().await;
}
