//! What it costs to convert OTLP/JSON to protobuf. The requests are those of the other stages,
//! written as the Collector's file exporter writes them: members in the order of pdata's marshaler,
//! defaults left out, integers of 64 bits as strings.

use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{InstrumentationScope, KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span::Event},
};
use prost::Message as _;
use tailwater::otlp::json::to_protobuf;

use crate::{
    ENDED, Result,
    corpus::{Corpus, GRPC_PREFIX_BYTES, SPANS_PER_REQUEST},
    measured, report,
};

/// Requests that are converted in turn. They are held as text, of twice the size of protobuf.
const REQUESTS: u64 = 16;

/// Measures the conversion.
pub(crate) fn convert(corpus: &mut Corpus, requests: u64) -> Result<()> {
    let bodies = (0..REQUESTS).map(|sequence| corpus.body(sequence));
    let bodies: Vec<Bytes> = bodies.collect::<Option<_>>().ok_or(ENDED)?;
    let mut lines = Vec::new();
    for body in &bodies {
        lines.push(written(&ExportTraceServiceRequest::decode(&body[GRPC_PREFIX_BYTES..])?));
    }
    let mut time = Duration::ZERO;
    for line in lines.iter().cycle().take(requests as usize) {
        let converted = measured::json(&mut time, || to_protobuf(line.as_bytes()))?;
        std::hint::black_box(converted);
    }
    let spans = requests * SPANS_PER_REQUEST;
    report("json", time, spans);
    let bytes: usize = lines.iter().map(String::len).sum();
    println!("  {} bytes of JSON a span", bytes as u64 / (REQUESTS * SPANS_PER_REQUEST));
    Ok(())
}

fn written(request: &ExportTraceServiceRequest) -> String {
    object([member("resourceSpans", list(&request.resource_spans, of_resource))])
}

/// An object of the members that are not left out.
fn object<const N: usize>(members: [Option<String>; N]) -> String {
    format!("{{{}}}", members.into_iter().flatten().collect::<Vec<_>>().join(","))
}

fn member(name: &str, value: impl std::fmt::Display) -> Option<String> {
    Some(format!("\"{name}\":{value}"))
}

fn text(name: &str, value: &str) -> Option<String> {
    member(name, serde_json::Value::from(value)).filter(|_| !value.is_empty())
}

fn list<T>(items: &[T], write: fn(&T) -> String) -> String {
    format!("[{}]", items.iter().map(write).collect::<Vec<_>>().join(","))
}

fn attributes(pairs: &[KeyValue]) -> Option<String> {
    member("attributes", list(pairs, attribute)).filter(|_| !pairs.is_empty())
}

fn id(name: &str, id: &[u8]) -> Option<String> {
    let digits: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    text(name, &digits)
}

fn of_resource(value: &ResourceSpans) -> String {
    let pairs = value.resource.as_ref().map_or(&[][..], |resource| &resource.attributes);
    object([
        member("resource", object([attributes(pairs)])),
        member("scopeSpans", list(&value.scope_spans, of_scope)),
        text("schemaUrl", &value.schema_url),
    ])
}

fn of_scope(value: &ScopeSpans) -> String {
    let scope = |scope: &InstrumentationScope| {
        object([text("name", &scope.name), text("version", &scope.version)])
    };
    object([
        member("scope", value.scope.as_ref().map_or("{}".to_owned(), scope)),
        member("spans", list(&value.spans, span)),
        text("schemaUrl", &value.schema_url),
    ])
}

fn span(value: &Span) -> String {
    let status = |status: &Status| {
        let code = member("code", status.code).filter(|_| status.code != 0);
        object([text("message", &status.message), code])
    };
    object([
        id("traceId", &value.trace_id),
        id("spanId", &value.span_id),
        id("parentSpanId", &value.parent_span_id),
        text("name", &value.name),
        member("kind", value.kind),
        text("startTimeUnixNano", &value.start_time_unix_nano.to_string()),
        text("endTimeUnixNano", &value.end_time_unix_nano.to_string()),
        attributes(&value.attributes),
        member("events", list(&value.events, event)).filter(|_| !value.events.is_empty()),
        member("status", value.status.as_ref().map_or("{}".to_owned(), status)),
    ])
}

fn event(value: &Event) -> String {
    object([text("name", &value.name), attributes(&value.attributes)])
}

fn attribute(pair: &KeyValue) -> String {
    let value = match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(value)) => member("stringValue", serde_json::Value::from(&**value)),
        Some(Value::BoolValue(value)) => member("boolValue", value),
        Some(Value::IntValue(value)) => text("intValue", &value.to_string()),
        Some(Value::DoubleValue(value)) => member("doubleValue", value),
        other => unreachable!("the traffic has no {other:?}"),
    };
    object([text("key", &pair.key), member("value", object([value]))])
}
