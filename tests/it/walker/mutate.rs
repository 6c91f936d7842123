//! Generates requests that use every variation that protobuf allows, from a seed.

use fastrand::Rng;
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
use proptest::prelude::*;
use prost::Message as _;
use tailwater::otlp::wire::{self, Reader, Value as Wire};

use crate::builders::START;

/// A request whose fields are mutated, but mostly still valid.
pub(crate) fn request(seed: u64) -> Vec<u8> {
    let mut rng = Rng::with_seed(seed);
    let bytes = any_request(&mut rng).encode_to_vec();
    liberties(&bytes, Kind::Request, &mut rng)
}

/// A request in which every field is used from time to time.
pub(crate) fn any_request(rng: &mut Rng) -> ExportTraceServiceRequest {
    let resource_spans = (0..rng.usize(1..4)).map(|_| resource_spans(rng)).collect();
    ExportTraceServiceRequest { resource_spans }
}

/// A mutated request with some wrong bytes.
pub(crate) fn damaged(seed: u64) -> Vec<u8> {
    damage(request(seed), &mut Rng::with_seed(!seed))
}

/// A mutated span, with some wrong bytes if `is_damaged`.
pub(crate) fn span(seed: u64, is_damaged: bool) -> Vec<u8> {
    let mut rng = Rng::with_seed(seed);
    let bytes = random_span(&mut rng).encode_to_vec();
    let bytes = liberties(&bytes, Kind::Span, &mut rng);
    if is_damaged { damage(bytes, &mut rng) } else { bytes }
}

/// One member of a `tracestate` list.
pub(crate) fn member() -> impl Strategy<Value = String> {
    let pair = prop_oneof![
        3 => "th:[0-9a-f]{1,14}",
        1 => "th:[0-9a-gA]{0,16}",
        1 => "[ \\t]?(th|rv)[ \\t]?:?[0-9a-f]{0,2}",
        3 => "rv:[0-9a-f]{14}",
        1 => "rv:[0-9a-gA]{12,16}",
        1 => "[a-z]:[a-z]{0,140}",
        1 => Just(String::new()),
    ];
    let ot = prop::collection::vec(pair, 0..4).prop_map(|pairs| format!("ot={}", pairs.join(";")));
    prop_oneof![3 => ot, 2 => "[a-z@]{1,3}=[ -+--~é]{0,5}", 1 => "[a-z]?",
        1 => "ot[ \\t]?=?[a-z:]?", 1 => many_members()]
}

fn many_members() -> impl Strategy<Value = String> {
    (28..34usize).prop_map(|count| vec!["k=v"; count].join(","))
}

fn damage(mut bytes: Vec<u8>, rng: &mut Rng) -> Vec<u8> {
    for _ in 0..rng.usize(1..4) {
        if bytes.is_empty() {
            break;
        }
        let at = rng.usize(..bytes.len());
        match rng.u8(..6) {
            0 => bytes.truncate(at),
            1 => drop(bytes.remove(at)),
            2 => bytes.insert(at, rng.u8(..)),
            3 => bytes[at] = rng.u8(..),
            _ => bytes[at] ^= 1 << rng.u8(..8),
        }
    }
    bytes
}

/// The messages whose fields are taken apart; a field with another content is a leaf.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Request,
    ResourceSpans,
    Resource,
    ScopeSpans,
    Scope,
    Span,
    Event,
    Link,
    Status,
    Pair,
    Any,
    Array,
    Map,
}

fn inner(kind: Kind, number: u32) -> Option<Kind> {
    Some(match (kind, number) {
        (Kind::Request, 1) => Kind::ResourceSpans,
        (Kind::ResourceSpans, 1) => Kind::Resource,
        (Kind::ResourceSpans, 2 | 1000) => Kind::ScopeSpans,
        (Kind::ScopeSpans, 1) => Kind::Scope,
        (Kind::ScopeSpans, 2) => Kind::Span,
        (Kind::Span, 11) => Kind::Event,
        (Kind::Span, 13) => Kind::Link,
        (Kind::Span, 15) => Kind::Status,
        (Kind::Resource | Kind::Map, 1)
        | (Kind::Scope | Kind::Event, 3)
        | (Kind::Span, 9)
        | (Kind::Link, 4) => Kind::Pair,
        (Kind::Pair, 2) | (Kind::Array, 1) => Kind::Any,
        (Kind::Any, 5) => Kind::Array,
        (Kind::Any, 6) => Kind::Map,
        _ => return None,
    })
}

/// `ResourceSpans.instrumentation_library_spans` of OTLP 0.15.
const FORMER_SCOPES: u32 = 1000;

/// Encodes a message again with fields repeated, moved, split and added.
fn liberties(message: &[u8], kind: Kind, rng: &mut Rng) -> Vec<u8> {
    let mut fields: Vec<Vec<u8>> = Vec::new();
    // Some senders write the spans of a resource to the former field of OTLP, and some to both.
    let has_former_scopes = kind == Kind::ResourceSpans && rng.u8(..4) == 0;
    let mut reader = Reader::new(message);
    while let Some(field) = reader.next_field().expect("encoded by prost") {
        let raw = field.raw.to_vec();
        let (Wire::Bytes(content), Some(inner)) = (&field.value, inner(kind, field.number)) else {
            if rng.u8(..20) == 0 {
                fields.push(another_value(field.number, &field.value, rng));
            }
            fields.push(raw);
            continue;
        };
        let payload = liberties(content, inner, rng);
        let mut number = field.number;
        if has_former_scopes && inner == Kind::ScopeSpans {
            number = FORMER_SCOPES;
            if rng.u8(..4) == 0 {
                fields.push(delimited(field.number, &payload, rng));
            }
        }
        if rng.u8(..12) == 0 {
            let (first, second) = halves(&payload, rng);
            fields.push(delimited(number, &first, rng));
            fields.push(delimited(number, &second, rng));
        } else {
            fields.push(delimited(number, &payload, rng));
        }
    }
    if rng.u8(..6) == 0 && !fields.is_empty() {
        let copy = fields[rng.usize(..fields.len())].clone();
        fields.insert(rng.usize(..=fields.len()), copy);
    }
    if kind == Kind::Any && rng.u8(..4) == 0 {
        fields.push(any(rng, 1).encode_to_vec());
    }
    if rng.u8(..6) == 0 {
        rng.shuffle(&mut fields);
    }
    for _ in 0..rng.u8(..12).saturating_sub(9) {
        fields.insert(rng.usize(..=fields.len()), unknown(rng));
    }
    fields.concat()
}

/// The same scalar field with another value.
fn another_value(number: u32, value: &Wire, rng: &mut Rng) -> Vec<u8> {
    let mut out = Vec::new();
    let wire_type = match value {
        Wire::Varint(_) => 0,
        Wire::Fixed64(_) => 1,
        Wire::Bytes(_) => 2,
        Wire::Group => return out,
        Wire::Fixed32(_) => 5,
    };
    varint(&mut out, u64::from(number << 3 | wire_type), rng);
    match value {
        Wire::Varint(_) => varint(&mut out, rng.u64(..) >> rng.u8(..64), rng),
        Wire::Fixed64(_) => out.extend(rng.u64(..).to_le_bytes()),
        Wire::Fixed32(_) => out.extend(rng.u32(..).to_le_bytes()),
        _ => {
            let len = *rng.choice(&[0u8, 8, 16, 5]).expect("not empty");
            varint(&mut out, u64::from(len), rng);
            out.extend((0..len).map(|_| rng.alphanumeric() as u8));
        }
    }
    out
}

/// Cuts a message between two of its fields.
fn halves(message: &[u8], rng: &mut Rng) -> (Vec<u8>, Vec<u8>) {
    let mut cuts = vec![0];
    let mut reader = Reader::new(message);
    while let Ok(Some(field)) = reader.next_field() {
        cuts.push(cuts[cuts.len() - 1] + field.raw.len());
    }
    let cut = cuts[rng.usize(..cuts.len())];
    (message[..cut].to_vec(), message[cut..].to_vec())
}

fn delimited(number: u32, payload: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut out = Vec::new();
    varint(&mut out, u64::from(number << 3 | 2), rng);
    varint(&mut out, payload.len() as u64, rng);
    out.extend_from_slice(payload);
    out
}

/// A varint, sometimes longer than necessary.
fn varint(out: &mut Vec<u8>, number: u64, rng: &mut Rng) {
    let start = out.len();
    wire::put_varint(out, number);
    if rng.u8(..25) == 0 {
        for _ in 0..rng.usize(1..=10usize.saturating_sub(out.len() - start).max(1)) {
            if out.len() - start == 10 {
                break;
            }
            *out.last_mut().expect("at least a byte") |= 0x80;
            out.push(0);
        }
    }
}

/// A field that no version of OTLP has, or a whole group.
fn unknown(rng: &mut Rng) -> Vec<u8> {
    let number = *rng.choice(&[17u32, 100, 999, 536_870_911]).expect("not empty");
    let mut out = Vec::new();
    match rng.u8(..5) {
        0 => {
            varint(&mut out, u64::from(number << 3), rng);
            varint(&mut out, rng.u64(..), rng);
        }
        1 => {
            varint(&mut out, u64::from(number << 3 | 1), rng);
            out.extend(rng.u64(..).to_le_bytes());
        }
        2 => {
            varint(&mut out, u64::from(number << 3 | 5), rng);
            out.extend(rng.u32(..).to_le_bytes());
        }
        3 => out = delimited(number, &[0xff, 0x0b, 0x00][..rng.usize(..4)], rng),
        _ => {
            let depth = rng.usize(1..5);
            (0..depth).for_each(|_| varint(&mut out, u64::from(number << 3 | 3), rng));
            out.extend(delimited(1, b"inside", rng));
            (0..depth).for_each(|_| varint(&mut out, u64::from(number << 3 | 4), rng));
        }
    }
    out
}

fn resource_spans(rng: &mut Rng) -> ResourceSpans {
    let entity = EntityRef {
        schema_url: word(rng),
        r#type: word(rng),
        id_keys: vec![word(rng)],
        description_keys: (0..rng.usize(..3)).map(|_| word(rng)).collect(),
    };
    let resource = Resource {
        attributes: pairs(rng),
        dropped_attributes_count: rng.u32(..2),
        entity_refs: (0..rng.usize(..2)).map(|_| entity.clone()).collect(),
    };
    let scope_spans = (0..rng.usize(..3)).map(|_| ScopeSpans {
        scope: rng.bool().then(|| InstrumentationScope {
            name: word(rng),
            version: word(rng),
            attributes: pairs(rng),
            dropped_attributes_count: rng.u32(..2),
        }),
        spans: (0..rng.usize(..5)).map(|_| random_span(rng)).collect(),
        schema_url: word(rng),
    });
    let scope_spans = scope_spans.collect();
    let resource = rng.bool().then_some(resource);
    ResourceSpans { resource, scope_spans, schema_url: word(rng) }
}

fn random_span(rng: &mut Rng) -> Span {
    let start = if rng.u8(..8) == 0 { 0 } else { START + rng.u64(..1_000) };
    let lists = ["", "", "a=b", "ot=rv:e6666666666666", "ot=th:8;rv:00000000000001 , c=d"];
    let code = rng.i32(-1..4);
    Span {
        trace_id: id(16, rng),
        span_id: id(8, rng),
        parent_span_id: if rng.bool() { Vec::new() } else { id(8, rng) },
        trace_state: (*rng.choice(&lists).expect("not empty")).to_owned(),
        name: word(rng),
        kind: rng.i32(..7),
        flags: rng.u32(..),
        start_time_unix_nano: start,
        end_time_unix_nano: if rng.u8(..8) == 0 { 0 } else { START + rng.u64(..1_000) },
        attributes: pairs(rng),
        events: (0..rng.usize(..2))
            .map(|_| Event {
                time_unix_nano: START + rng.u64(..1_000),
                name: word(rng),
                attributes: pairs(rng),
                dropped_attributes_count: rng.u32(..2),
            })
            .collect(),
        links: (0..rng.usize(..3))
            .map(|_| Link {
                trace_id: id(16, rng),
                span_id: id(8, rng),
                trace_state: (*rng.choice(&lists).expect("not empty")).to_owned(),
                attributes: pairs(rng),
                dropped_attributes_count: rng.u32(..2),
                flags: rng.u32(..0x400),
            })
            .collect(),
        status: rng.bool().then(|| Status { code, message: word(rng) }),
        dropped_attributes_count: rng.u32(..2),
        dropped_events_count: rng.u32(..2),
        dropped_links_count: rng.u32(..) >> rng.u8(..32),
    }
}

/// An id, sometimes of a wrong length or all zero.
fn id(len: usize, rng: &mut Rng) -> Vec<u8> {
    match rng.u8(..24) {
        0 => vec![0; len],
        1 => vec![1; len - 1],
        2 => vec![1; len + 1],
        _ => (0..len).map(|_| rng.u8(..)).collect(),
    }
}

fn word(rng: &mut Rng) -> String {
    (*rng.choice(&["", "shop", "käse", "k"]).expect("not empty")).to_owned()
}

fn pairs(rng: &mut Rng) -> Vec<KeyValue> {
    (0..rng.usize(..4)).map(|_| pair(rng, 3)).collect()
}

fn pair(rng: &mut Rng, depth: usize) -> KeyValue {
    let value = rng.bool().then(|| any(rng, depth));
    KeyValue { key: word(rng), value, key_strindex: rng.i32(..2) }
}

fn any(rng: &mut Rng, depth: usize) -> AnyValue {
    let kinds = if depth == 0 { 8 } else { 10 };
    let value = match rng.u8(..kinds) {
        0 => None,
        1 | 2 => Some(Value::StringValue(word(rng))),
        3 => Some(Value::BoolValue(rng.bool())),
        4 => Some(Value::IntValue(rng.i64(..))),
        5 => Some(Value::DoubleValue(f64::from_bits(rng.u64(..)))),
        6 => Some(Value::BytesValue(vec![rng.u8(..)])),
        7 => Some(Value::StringValueStrindex(rng.i32(..))),
        8 => Some(Value::ArrayValue(ArrayValue {
            values: (0..rng.usize(..3)).map(|_| any(rng, depth - 1)).collect(),
        })),
        _ => Some(Value::KvlistValue(KeyValueList {
            values: (0..rng.usize(..3)).map(|_| pair(rng, depth - 1)).collect(),
        })),
    };
    AnyValue { value }
}
