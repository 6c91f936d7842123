//! Reads a trace downloaded from Jaeger's user interface: `spans`, `processes`, microseconds.
//!
//! Status comes from `error` or `otel.status_code`, the kind from `span.kind`, as Jaeger writes
//! them for spans that came by OTLP. Ids may be of 64 bits and are padded on the left.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status, span, span::SpanKind, status::StatusCode,
    },
};
use prost::Message as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

const MICROSECOND_NANOS: u64 = 1_000;

#[derive(Deserialize)]
struct Trace {
    #[serde(default, deserialize_with = "or_empty")]
    spans: Vec<JaegerSpan>,
    #[serde(default, deserialize_with = "or_empty")]
    processes: BTreeMap<String, Process>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JaegerSpan {
    #[serde(rename = "traceID")]
    trace_id: String,
    #[serde(rename = "spanID")]
    span_id: String,
    #[serde(default, rename = "parentSpanID")]
    parent_id: String,
    #[serde(default)]
    operation_name: String,
    #[serde(default, deserialize_with = "or_empty")]
    references: Vec<Reference>,
    #[serde(default)]
    start_time: u64,
    #[serde(default)]
    duration: u64,
    #[serde(default, deserialize_with = "or_empty")]
    tags: Vec<Tag>,
    #[serde(default, deserialize_with = "or_empty")]
    logs: Vec<Log>,
    #[serde(default, rename = "processID")]
    process_id: String,
    #[serde(default)]
    flags: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    #[serde(default)]
    ref_type: String,
    #[serde(default, rename = "traceID")]
    trace_id: String,
    #[serde(default, rename = "spanID")]
    span_id: String,
}

#[derive(Deserialize)]
struct Tag {
    key: String,
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    value: Value,
}

#[derive(Deserialize)]
struct Log {
    #[serde(default)]
    timestamp: u64,
    #[serde(default, deserialize_with = "or_empty")]
    fields: Vec<Tag>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Process {
    #[serde(default)]
    service_name: String,
    #[serde(default, deserialize_with = "or_empty")]
    tags: Vec<Tag>,
}

/// A list, empty if it is `null`, as Go writes an empty one.
fn or_empty<'de, D: Deserializer<'de>, L: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<L, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Converts a trace to a request.
pub(super) fn read(trace: &[u8]) -> Result<Vec<u8>, String> {
    let Trace { spans, processes } =
        serde_json::from_slice(trace).map_err(|error| error.to_string())?;
    let mut by_process: BTreeMap<String, Vec<JaegerSpan>> = BTreeMap::new();
    for span in spans {
        by_process.entry(span.process_id.clone()).or_default().push(span);
    }
    let resource_spans = by_process.into_iter().map(|(id, spans)| {
        let scope_spans = spans.into_iter().map(scope_of).collect();
        let resource = processes.get(&id).map(resource);
        ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }
    });
    let request = ExportTraceServiceRequest { resource_spans: resource_spans.collect() };
    Ok(request.encode_to_vec())
}

fn resource(process: &Process) -> Resource {
    let name = Tag {
        key: "service.name".to_owned(),
        kind: "string".to_owned(),
        value: Value::String(process.service_name.clone()),
    };
    let attributes = std::iter::once(&name).chain(&process.tags).map(attribute).collect();
    Resource { attributes, ..Resource::default() }
}

/// Converts a span, and wraps it in the scope that its tags name.
fn scope_of(span: JaegerSpan) -> ScopeSpans {
    let tag = |key: &str| {
        let tag = span.tags.iter().find(|tag| tag.key == key);
        tag.and_then(|tag| tag.value.as_str()).map(str::to_owned)
    };
    let name = tag("otel.scope.name").or_else(|| tag("otel.library.name"));
    let version = tag("otel.scope.version").or_else(|| tag("otel.library.version"));
    let scope = name.map(|name| InstrumentationScope {
        name,
        version: version.unwrap_or_default(),
        ..InstrumentationScope::default()
    });
    ScopeSpans { scope, spans: vec![converted(span)], ..ScopeSpans::default() }
}

/// Tags that become fields of their own in OTLP.
const MOVED: [&str; 9] = [
    "span.kind",
    "otel.status_code",
    "otel.status_description",
    "otel.scope.name",
    "otel.scope.version",
    "otel.library.name",
    "otel.library.version",
    "w3c.tracestate",
    "internal.span.format",
];

fn converted(span: JaegerSpan) -> Span {
    let text = |key: &str| {
        let tag = span.tags.iter().find(|tag| tag.key == key);
        tag.and_then(|tag| tag.value.as_str()).unwrap_or_default()
    };
    let parent = parent(&span);
    let is_link = |(index, _): &(usize, &Reference)| Some(*index) != parent;
    let links = span.references.iter().enumerate().filter(is_link).map(|(_, reference)| reference);
    let parent = parent.map_or(&span.parent_id, |index| &span.references[index].span_id);
    let start = span.start_time.saturating_mul(MICROSECOND_NANOS);
    Span {
        trace_id: id(&span.trace_id, 32),
        span_id: id(&span.span_id, 16),
        parent_span_id: if parent.is_empty() { Vec::new() } else { id(parent, 16) },
        name: span.operation_name.clone(),
        kind: kind(text("span.kind")) as i32,
        start_time_unix_nano: start,
        end_time_unix_nano: start.saturating_add(span.duration.saturating_mul(MICROSECOND_NANOS)),
        attributes: {
            let own = span.tags.iter().filter(|tag| !MOVED.contains(&tag.key.as_str()));
            own.map(attribute).collect()
        },
        events: span.logs.iter().map(event).collect(),
        links: links.map(link).collect(),
        trace_state: text("w3c.tracestate").to_owned(),
        flags: span.flags.unwrap_or_default(),
        status: Some(Status {
            code: status(&span.tags, text("otel.status_code")) as i32,
            message: text("otel.status_description").to_owned(),
        }),
        ..Span::default()
    }
}

/// The index of the reference to the parent: the first of the type CHILD_OF in the same trace, or
/// else the first FOLLOWS_FROM, as in Jaeger's `Span.ParentSpanID`.
fn parent(span: &JaegerSpan) -> Option<usize> {
    let of_type = |ref_type: &str| {
        span.references.iter().position(|reference| {
            reference.ref_type == ref_type
                && padded(&reference.trace_id, 32) == padded(&span.trace_id, 32)
        })
    };
    of_type("CHILD_OF").or_else(|| of_type("FOLLOWS_FROM"))
}

fn kind(text: &str) -> SpanKind {
    match text {
        "server" => SpanKind::Server,
        "client" => SpanKind::Client,
        "producer" => SpanKind::Producer,
        "consumer" => SpanKind::Consumer,
        "internal" => SpanKind::Internal,
        _ => SpanKind::Unspecified,
    }
}

fn status(tags: &[Tag], code: &str) -> StatusCode {
    let is_error = tags.iter().any(|tag| {
        tag.key == "error" && (tag.value == Value::Bool(true) || tag.value.as_str() == Some("true"))
    });
    match code {
        // Jaeger's own translator believes the tag `error` more than the code.
        _ if is_error => StatusCode::Error,
        "ERROR" => StatusCode::Error,
        "OK" => StatusCode::Ok,
        _ => StatusCode::Unset,
    }
}

fn event(log: &Log) -> span::Event {
    let name = log.fields.iter().find(|tag| tag.key == "event").and_then(|tag| tag.value.as_str());
    let own = log.fields.iter().filter(|tag| tag.key != "event");
    span::Event {
        time_unix_nano: log.timestamp.saturating_mul(MICROSECOND_NANOS),
        name: name.unwrap_or_default().to_owned(),
        attributes: own.map(attribute).collect(),
        ..span::Event::default()
    }
}

fn link(reference: &Reference) -> span::Link {
    span::Link {
        trace_id: id(&reference.trace_id, 32),
        span_id: id(&reference.span_id, 16),
        ..span::Link::default()
    }
}

fn attribute(tag: &Tag) -> KeyValue {
    use any_value::Value as Any;
    let text = || match &tag.value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let number = |value: &Value| value.as_i64().or_else(|| value.as_str()?.parse().ok());
    let value = match (tag.kind.as_str(), &tag.value) {
        ("bool", Value::Bool(value)) => Any::BoolValue(*value),
        ("int64", value) => number(value).map_or_else(|| Any::StringValue(text()), Any::IntValue),
        ("float64", value) => match value.as_f64() {
            Some(value) => Any::DoubleValue(value),
            None => Any::StringValue(text()),
        },
        _ => Any::StringValue(text()),
    };
    KeyValue {
        key: tag.key.clone(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

/// Pads hexadecimal digits on the left.
fn padded(digits: &str, length: usize) -> String {
    format!("{digits:0>length$}")
}

/// The bytes of an id. An id that is not hexadecimal becomes too short, so its span is rejected.
fn id(digits: &str, length: usize) -> Vec<u8> {
    let digits = padded(digits, length);
    let pairs = (0..digits.len()).step_by(2).map(|at| digits.get(at..at + 2));
    let bytes = pairs.map(|pair| pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()));
    bytes.collect::<Option<Vec<u8>>>().filter(|id| id.len() == length / 2).unwrap_or(vec![0])
}
