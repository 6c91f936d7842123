//! Hostile content in valid requests: rows 12 to 20 of RELIABILITY.md.

mod cardinality;
mod logs;
mod nesting;

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{
        AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList,
        any_value::Value,
    },
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status,
        span::{Event, Link},
    },
};
use prost::Message as _;
use tailwater::otlp::wire;

use crate::harness::{ALL, Running, config, get, span, string, trace_id};

/// A length-delimited field.
fn field(number: u32, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 8);
    wire::put_length_delimited(&mut out, number, content.len());
    out.extend_from_slice(content);
    out
}

/// Attributes with a string, a list of strings and a map of strings, each of them this text.
fn broken_attributes(text: &str) -> Vec<KeyValue> {
    let plain = string(text, text);
    let of = |value| KeyValue {
        key: text.into(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    };
    let values = plain.value.clone().into_iter().collect();
    let array = of(Value::ArrayValue(ArrayValue { values }));
    let map = of(Value::KvlistValue(KeyValueList { values: vec![plain.clone()] }));
    vec![plain, array, map]
}

/// A span with every field that is or contains a string, in a resource and a scope of the same
/// kind.
fn all_strings(text: &str) -> ExportTraceServiceRequest {
    let attributes = broken_attributes(text);
    let text = || text.to_owned();
    let entity = EntityRef {
        schema_url: text(),
        r#type: text(),
        id_keys: vec![text()],
        description_keys: vec![text()],
    };
    let resource = Resource {
        attributes: attributes.clone(),
        entity_refs: vec![entity],
        ..Resource::default()
    };
    let scope = InstrumentationScope {
        name: text(),
        version: text(),
        attributes: attributes.clone(),
        ..InstrumentationScope::default()
    };
    let link = Link {
        trace_id: trace_id(2),
        span_id: vec![1; 8],
        trace_state: text(),
        attributes: attributes.clone(),
        ..Link::default()
    };
    let span = Span {
        trace_state: text(),
        name: text(),
        events: vec![Event { name: text(), attributes: attributes.clone(), ..Event::default() }],
        links: vec![link],
        status: Some(Status { message: text(), code: 1 }),
        attributes,
        ..span(1, 1, None)
    };
    let scope_spans = ScopeSpans { scope: Some(scope), spans: vec![span], schema_url: text() };
    let resource_spans = ResourceSpans {
        resource: Some(resource),
        scope_spans: vec![scope_spans],
        schema_url: text(),
    };
    ExportTraceServiceRequest { resource_spans: vec![resource_spans] }
}

fn count(bytes: &[u8], part: &[u8]) -> usize {
    bytes.windows(part.len()).filter(|window| *window == part).count()
}

/// Scenario: a request in which every string of OTLP is Latin-1.
/// Guarantees: it is accepted; the sink, which decodes strictly, receives each string repaired, and
/// each is counted.
#[tokio::test]
async fn every_string_is_repaired() {
    let running = Running::start(config(ALL)).await;
    let mut bytes = all_strings("caf?").encode_to_vec();
    let strings = count(&bytes, b"caf?");
    assert_eq!(strings, 5 * 7 + 13, "five sets of attributes, and the others");
    let places: Vec<_> = bytes.windows(4).enumerate().filter(|(_, w)| *w == b"caf?").collect();
    let places: Vec<_> = places.into_iter().map(|(at, _)| at + 3).collect();
    places.into_iter().for_each(|at| bytes[at] = 0xe9);
    running.export_bytes(bytes).await.expect("accepted");
    let metrics = running.at_rest().await;
    assert_eq!(metrics.get("repaired_strings_total"), strings as f64);
    assert_eq!(metrics.sum("exporter_failed_spans_total"), 0.0);
    let received = running.received.lock().expect("no panic")[0].encode_to_vec();
    assert_eq!(count(&received, "caf\u{fffd}".as_bytes()), strings);
    running.stop().await;
}

/// Scenario: a trace with the same span three times, in one request and after it.
/// Guarantees: all are counted and kept, because only the sender could know which one is right.
#[tokio::test]
async fn spans_that_come_twice_are_kept_twice() {
    let running = Running::start(config(ALL)).await;
    running.accept(vec![span(1, 1, None), span(1, 1, None)]).await;
    running.accept(vec![span(1, 1, None), span(1, 2, Some(1))]).await;
    let metrics = running.at_rest().await;
    assert_eq!(metrics.get("exporter_sent_spans_total"), 4.0);
    assert_eq!(metrics.get("trace_spans_sum"), 4.0);
    assert_eq!(running.traces()[&trace_id(1)].len(), 4);
    running.stop().await;
}

/// Keeps slow traces.
const SLOW: &str = "[[policy]]\nname = \"slow\"\ntype = \"latency\"\nthreshold_ms = 500\n";

/// Scenario: spans that start or end at 0, in 1970, in 2262 where signed nanoseconds end, or where
/// unsigned ones end; spans that end before they start; alone and together in a trace.
/// Guarantees: latency is as the README defines it, nothing overflows, and every figure shown about
/// them is a number.
#[tokio::test]
async fn times_at_the_edges_have_a_defined_latency() {
    const YEAR_2262: u64 = i64::MAX as u64;
    const END: u64 = u64::MAX;
    const SECOND: u64 = 1_000_000_000;
    let cases: &[(&[(u64, u64)], bool)] = &[
        (&[(0, 0)], false),
        (&[(END, 0)], false),
        (&[(0, END)], false),
        (&[(END, END)], false),
        (&[(END, 1)], false),
        (&[(1, END)], true),
        (&[(1, 2)], false),
        (&[(1, SECOND)], true),
        (&[(2 * SECOND, SECOND)], false),
        (&[(YEAR_2262, YEAR_2262 + 1)], false),
        (&[(YEAR_2262 - SECOND, YEAR_2262 + SECOND)], true),
        (&[(END, 1), (1, 1)], true),
        (&[(0, END), (1, 0)], true),
        (&[(0, SECOND), (END, 0)], false),
    ];
    let running = Running::start(config(SLOW)).await;
    for (trace, (spans, _)) in (1..).zip(cases) {
        let spans = (1..).zip(*spans).map(|(id, (start, end))| Span {
            start_time_unix_nano: *start,
            end_time_unix_nano: *end,
            ..span(trace, id, None)
        });
        running.accept(spans.collect()).await;
    }
    let metrics = running.at_rest().await;
    assert!(metrics.0.values().all(|value| value.is_finite()), "{:#?}", metrics.nonzero());
    let kept = running.traces();
    for (trace, (spans, is_slow)) in (1..).zip(cases) {
        let id = trace_id(trace);
        assert_eq!(kept.contains_key(&id), *is_slow, "{spans:?}");
        let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let (status, body) =
            get(running.service.admin_address, &format!("/-/decisions/{hex}")).await;
        let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        let duration = body["duration_ms"].as_f64();
        assert!(status == 200 && duration.is_some_and(|millis| millis >= 0.0), "{body}");
    }
    running.stop().await;
}
