//! Writes requests as JSON with every variation that OTLP/JSON allows, from a seed.

use fastrand::Rng;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, EntityRef, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status,
        span::{Event, Link},
    },
};

/// A request as JSON.
pub(crate) fn request(request: &ExportTraceServiceRequest, rng: &mut Rng) -> String {
    let resource_spans = list(&request.resource_spans, resource_spans, rng);
    object(vec![("resourceSpans", resource_spans)], rng)
}

const KINDS: [&str; 6] = [
    "SPAN_KIND_UNSPECIFIED",
    "SPAN_KIND_INTERNAL",
    "SPAN_KIND_SERVER",
    "SPAN_KIND_CLIENT",
    "SPAN_KIND_PRODUCER",
    "SPAN_KIND_CONSUMER",
];
const CODES: [&str; 3] = ["STATUS_CODE_UNSET", "STATUS_CODE_OK", "STATUS_CODE_ERROR"];

/// A member and its value; `None` if it may be left out or be null.
type Member = (&'static str, Option<String>);

/// An object with its members in any order, between unknown members.
fn object(members: Vec<Member>, rng: &mut Rng) -> String {
    let mut written = Vec::new();
    for (name, value) in members {
        let name = if rng.u8(..6) == 0 { snake_case(name) } else { name.to_owned() };
        match value {
            Some(value) => written.push(format!("\"{name}\"{}:{value}", space(rng))),
            None if rng.u8(..4) == 0 => written.push(format!("\"{name}\":null")),
            None => {}
        }
    }
    rng.shuffle(&mut written);
    if rng.u8(..8) == 0 {
        let unknown = [
            "\"unknown\":{\"a\":[1,[{}]]}",
            "\"traceid\":\"00\"",
            "\"trace__id\":\"00\"",
            "\"Name\":-1.5e-3",
            "\"\\u00e9\":true",
        ];
        let unknown = (*rng.choice(&unknown).expect("not empty")).to_owned();
        written.insert(rng.usize(..=written.len()), unknown);
    }
    format!("{{{}{}}}", space(rng), written.join(&format!("{},{}", space(rng), space(rng))))
}

/// A name as in the proto files.
fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for char in name.chars() {
        if char.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(char.to_ascii_lowercase());
    }
    out
}

/// The value of an enum, by number or name; `names` is in the order of the numbers.
fn value_of(value: i32, names: &[&str], rng: &mut Rng) -> Option<String> {
    let name = usize::try_from(value).ok().and_then(|place| names.get(place));
    match name.filter(|_| rng.bool()) {
        Some(name) => Some(format!("\"{name}\"")),
        None => count(value, rng),
    }
}

fn space(rng: &mut Rng) -> &'static str {
    rng.choice(&["", "", "", "", " ", "\n\t", "\r\n"]).expect("not empty")
}

fn list<T: Default + PartialEq>(
    items: &[T],
    write: impl Fn(&T, &mut Rng) -> String,
    rng: &mut Rng,
) -> Option<String> {
    if items.is_empty() && rng.bool() {
        return None;
    }
    let items: Vec<_> = items
        .iter()
        .map(|item| {
            let is_null = *item == T::default() && rng.bool();
            if is_null { "null".to_owned() } else { write(item, rng) }
        })
        .collect();
    Some(format!("[{}]", items.join(&format!(",{}", space(rng)))))
}

/// A scalar, which is sometimes left out if it is the default.
fn unless(is_default: bool, value: String, rng: &mut Rng) -> Option<String> {
    (!is_default || rng.u8(..3) == 0).then_some(value)
}

fn text(text: &str, rng: &mut Rng) -> String {
    let mut out = String::from("\"");
    for char in text.chars() {
        if rng.u8(..6) == 0 {
            let mut units = [0; 2];
            for unit in char.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            out.push(char);
        }
    }
    out.push('"');
    out
}

fn string(value: &str, rng: &mut Rng) -> Option<String> {
    let written = text(value, rng);
    unless(value.is_empty(), written, rng)
}

fn id(id: &[u8], rng: &mut Rng) -> Option<String> {
    let is_upper = rng.bool();
    let digits: String = id
        .iter()
        .map(|byte| if is_upper { format!("{byte:02X}") } else { format!("{byte:02x}") })
        .collect();
    unless(id.is_empty(), format!("\"{digits}\""), rng)
}

fn integer(value: impl Into<i128>, rng: &mut Rng) -> String {
    let value = value.into();
    match rng.u8(..5) {
        0 | 1 => format!("\"{value}\""),
        2 if value.abs() < 1 << 53 => format!("{:?}", value as f64),
        _ => value.to_string(),
    }
}

fn count(value: impl Into<i128>, rng: &mut Rng) -> Option<String> {
    let value = value.into();
    let written = integer(value, rng);
    unless(value == 0, written, rng)
}

fn double(value: f64, rng: &mut Rng) -> String {
    if value.is_nan() {
        "\"NaN\"".to_owned()
    } else if value.is_infinite() {
        (if value > 0.0 { "\"Infinity\"" } else { "\"-Infinity\"" }).to_owned()
    } else if rng.u8(..4) == 0 {
        format!("\"{value:?}\"")
    } else {
        format!("{value:?}")
    }
}

fn base64(bytes: &[u8], rng: &mut Rng) -> String {
    let alphabet: &[u8; 64] = if rng.bool() {
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    } else {
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    };
    let mut out = String::from("\"");
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - chunk.len()));
        for index in 0..=chunk.len() {
            out.push(char::from(alphabet[(bits >> (18 - 6 * index)) as usize % 64]));
        }
    }
    while rng.bool() && !(out.len() - 1).is_multiple_of(4) {
        out.push_str(&"=".repeat(4 - (out.len() - 1) % 4));
    }
    out.push('"');
    out
}

fn resource_spans(value: &ResourceSpans, rng: &mut Rng) -> String {
    let is_former = rng.u8(..4) == 0;
    let scopes = if is_former { "instrumentationLibrarySpans" } else { "scopeSpans" };
    let members = vec![
        ("resource", value.resource.as_ref().map(|value| resource(value, rng))),
        (scopes, list(&value.scope_spans, scope_spans, rng)),
        ("schemaUrl", string(&value.schema_url, rng)),
    ];
    object(members, rng)
}

fn resource(value: &Resource, rng: &mut Rng) -> String {
    let members = vec![
        ("attributes", list(&value.attributes, pair, rng)),
        ("droppedAttributesCount", count(value.dropped_attributes_count, rng)),
        ("entityRefs", list(&value.entity_refs, entity, rng)),
    ];
    object(members, rng)
}

fn entity(value: &EntityRef, rng: &mut Rng) -> String {
    let key = |key: &String, rng: &mut Rng| text(key, rng);
    let members = vec![
        ("schemaUrl", string(&value.schema_url, rng)),
        ("type", string(&value.r#type, rng)),
        ("idKeys", list(&value.id_keys, key, rng)),
        ("descriptionKeys", list(&value.description_keys, key, rng)),
    ];
    object(members, rng)
}

fn scope_spans(value: &ScopeSpans, rng: &mut Rng) -> String {
    let scope_name = if rng.u8(..4) == 0 { "instrumentationLibrary" } else { "scope" };
    let members = vec![
        (scope_name, value.scope.as_ref().map(|value| scope(value, rng))),
        ("spans", list(&value.spans, span, rng)),
        ("schemaUrl", string(&value.schema_url, rng)),
    ];
    object(members, rng)
}

fn scope(value: &InstrumentationScope, rng: &mut Rng) -> String {
    let members = vec![
        ("name", string(&value.name, rng)),
        ("version", string(&value.version, rng)),
        ("attributes", list(&value.attributes, pair, rng)),
        ("droppedAttributesCount", count(value.dropped_attributes_count, rng)),
    ];
    object(members, rng)
}

fn span(value: &Span, rng: &mut Rng) -> String {
    let members = vec![
        ("traceId", id(&value.trace_id, rng)),
        ("spanId", id(&value.span_id, rng)),
        ("traceState", string(&value.trace_state, rng)),
        ("parentSpanId", id(&value.parent_span_id, rng)),
        ("flags", count(value.flags, rng)),
        ("name", string(&value.name, rng)),
        ("kind", value_of(value.kind, &KINDS, rng)),
        ("startTimeUnixNano", count(value.start_time_unix_nano, rng)),
        ("endTimeUnixNano", count(value.end_time_unix_nano, rng)),
        ("attributes", list(&value.attributes, pair, rng)),
        ("droppedAttributesCount", count(value.dropped_attributes_count, rng)),
        ("events", list(&value.events, event, rng)),
        ("droppedEventsCount", count(value.dropped_events_count, rng)),
        ("links", list(&value.links, link, rng)),
        ("droppedLinksCount", count(value.dropped_links_count, rng)),
        ("status", value.status.as_ref().map(|value| status(value, rng))),
    ];
    object(members, rng)
}

fn event(value: &Event, rng: &mut Rng) -> String {
    let members = vec![
        ("timeUnixNano", count(value.time_unix_nano, rng)),
        ("name", string(&value.name, rng)),
        ("attributes", list(&value.attributes, pair, rng)),
        ("droppedAttributesCount", count(value.dropped_attributes_count, rng)),
    ];
    object(members, rng)
}

fn link(value: &Link, rng: &mut Rng) -> String {
    let members = vec![
        ("traceId", id(&value.trace_id, rng)),
        ("spanId", id(&value.span_id, rng)),
        ("traceState", string(&value.trace_state, rng)),
        ("attributes", list(&value.attributes, pair, rng)),
        ("droppedAttributesCount", count(value.dropped_attributes_count, rng)),
        ("flags", count(value.flags, rng)),
    ];
    object(members, rng)
}

fn status(value: &Status, rng: &mut Rng) -> String {
    let code = value_of(value.code, &CODES, rng);
    let members = vec![("message", string(&value.message, rng)), ("code", code)];
    object(members, rng)
}

fn pair(value: &KeyValue, rng: &mut Rng) -> String {
    let members = vec![
        ("key", string(&value.key, rng)),
        ("value", value.value.as_ref().map(|value| any(value, rng))),
        ("keyStrindex", count(value.key_strindex, rng)),
    ];
    object(members, rng)
}

fn any(value: &AnyValue, rng: &mut Rng) -> String {
    let (name, value) = match &value.value {
        None => ("doubleValue", None),
        Some(Value::StringValue(value)) => ("stringValue", Some(text(value, rng))),
        Some(Value::BoolValue(value)) => ("boolValue", Some(value.to_string())),
        Some(Value::IntValue(value)) => ("intValue", Some(integer(*value, rng))),
        Some(Value::DoubleValue(value)) => ("doubleValue", Some(double(*value, rng))),
        Some(Value::BytesValue(value)) => ("bytesValue", Some(base64(value, rng))),
        Some(Value::StringValueStrindex(value)) => {
            ("stringValueStrindex", Some(integer(*value, rng)))
        }
        Some(Value::ArrayValue(array)) => {
            let values = list(&array.values, any, rng);
            ("arrayValue", Some(object(vec![("values", values)], rng)))
        }
        Some(Value::KvlistValue(map)) => {
            let values = list(&map.values, pair, rng);
            ("kvlistValue", Some(object(vec![("values", values)], rng)))
        }
    };
    object(vec![(name, value)], rng)
}
