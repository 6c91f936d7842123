//! Encodes a test's trace as the OTLP request that a sender would have sent.

use std::collections::HashMap;

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, ArrayValue, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span::Event},
};
use prost::Message as _;

use crate::{
    config::{AttributeValue, TestSpan},
    trace::TraceId,
};

/// The time at which the traces of tests begin, in Unix nanoseconds: 2024-01-01T00:00:00Z.
const BEGINNING: i64 = 1_704_067_200_000_000_000;

/// The trace id of traces written in a test file.
const TRACE_ID: TraceId = TraceId([7; 16]);

/// An encoded request with all spans, each with a resource of its own.
pub(super) fn request(spans: &[TestSpan]) -> Vec<u8> {
    let mut ids = HashMap::new();
    for (span, number) in spans.iter().zip(1u64..) {
        ids.extend(span.id.as_deref().map(|id| (id, number)));
    }
    let mut absent = spans.len() as u64;
    let mut parents = Vec::with_capacity(spans.len());
    for (index, span) in spans.iter().enumerate() {
        parents.push(match span.parent.as_deref() {
            None if index == 0 => None,
            None => Some(1),
            // A parent that is named but not in the trace was not received.
            Some(parent) => Some(*ids.entry(parent).or_insert_with(|| {
                absent += 1;
                absent
            })),
        });
    }
    let spans = spans.iter().zip(parents).zip(1u64..);
    let resource_spans = spans.map(|((span, parent), id)| resource_spans(span, id, parent));
    ExportTraceServiceRequest { resource_spans: resource_spans.collect() }.encode_to_vec()
}

fn resource_spans(span: &TestSpan, id: u64, parent: Option<u64>) -> ResourceSpans {
    let mut attributes = pairs(&span.resource);
    let service = span.service.clone().map(AttributeValue::String);
    attributes.extend(service.map(|service| pair("service.name", &service)));
    let resource = Resource { attributes, ..Resource::default() };
    let spans = vec![encoded(span, id, parent)];
    ResourceSpans {
        resource: Some(resource).filter(|resource| !resource.attributes.is_empty()),
        scope_spans: vec![ScopeSpans { spans, ..ScopeSpans::default() }],
        ..ResourceSpans::default()
    }
}

fn encoded(span: &TestSpan, id: u64, parent: Option<u64>) -> Span {
    let [start, end] = span.nanos.map(|nanos| BEGINNING.saturating_add(nanos).cast_unsigned());
    let has_status = span.status.is_some() || !span.status_message.is_empty();
    let status = Status {
        code: span.status.map_or(0, |code| code as i32),
        message: span.status_message.clone(),
    };
    let event = |event: &crate::config::TestEvent| Event {
        time_unix_nano: start,
        name: event.name.clone(),
        attributes: pairs(&event.attributes),
        ..Event::default()
    };
    Span {
        trace_id: TRACE_ID.0.to_vec(),
        span_id: id.to_be_bytes().to_vec(),
        parent_span_id: parent.map(|id| id.to_be_bytes().to_vec()).unwrap_or_default(),
        trace_state: span.tracestate.clone(),
        flags: span.flags,
        name: span.name.clone(),
        kind: span.kind as i32,
        start_time_unix_nano: start,
        end_time_unix_nano: end,
        attributes: pairs(&span.attributes),
        events: span.events.iter().map(event).collect(),
        status: has_status.then_some(status),
        ..Span::default()
    }
}

fn pairs(attributes: &[(String, AttributeValue)]) -> Vec<KeyValue> {
    attributes.iter().map(|(key, value)| pair(key, value)).collect()
}

fn pair(key: &str, value: &AttributeValue) -> KeyValue {
    let value = Some(AnyValue { value: Some(any(value)) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

fn any(value: &AttributeValue) -> Value {
    match value {
        AttributeValue::String(text) => Value::StringValue(text.clone()),
        AttributeValue::Int(number) => Value::IntValue(*number),
        AttributeValue::Double(number) => Value::DoubleValue(*number),
        AttributeValue::Bool(value) => Value::BoolValue(*value),
        AttributeValue::List(values) => {
            let values = values.iter().map(|value| AnyValue { value: Some(any(value)) });
            Value::ArrayValue(ArrayValue { values: values.collect() })
        }
    }
}
