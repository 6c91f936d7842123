//! Compares the parsers with prost, on any bytes. The fuzz targets include this file, so it refers
//! to nothing else of this binary.

use std::borrow::Cow;

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::{DecodeError, Message};
use tailwater::{
    budget::Budget,
    otlp::{
        Contexts, clean,
        conditions::{Attribute, AttributeValue, Conditions, Event, SpanFields},
        json,
        tracestate::{self, Stamp},
        walk::{self, SpanMeta, Walked},
        wire::{Malformed, Reader},
    },
    trace::{Randomness, Threshold},
};

/// Words of bits per span: enough that two attributes rarely share a bit.
const WORDS: usize = 4;

/// The part of a request that the walker must read: the messages down to the span, and the fields
/// that policies compare. Strings are bytes, since the walker does not check them.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<OfResource>,
}

#[derive(Clone, PartialEq, Message)]
struct OfResource {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<OfScope>,
    #[prost(message, repeated, tag = "1000")]
    former_scopes: Vec<OfScope>,
}

impl OfResource {
    /// The scopes that count: today's, or the former ones if today's have no spans.
    fn scopes(&self) -> &[OfScope] {
        let has_spans = self.scope_spans.iter().any(|of_scope| !of_scope.spans.is_empty());
        if has_spans { &self.scope_spans } else { &self.former_scopes }
    }
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<Pair>,
}

#[derive(Clone, PartialEq, Message)]
struct OfScope {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<ReadSpan>,
}

#[derive(Clone, PartialEq, Message)]
struct ReadSpan {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    trace_state: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    name: Vec<u8>,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start: u64,
    #[prost(fixed64, tag = "8")]
    end: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<Pair>,
    #[prost(message, repeated, tag = "11")]
    events: Vec<ReadEvent>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
    #[prost(fixed32, tag = "16")]
    flags: u32,
}

#[derive(Clone, PartialEq, Message)]
struct ReadEvent {
    #[prost(bytes = "vec", tag = "2")]
    name: Vec<u8>,
    #[prost(message, repeated, tag = "3")]
    attributes: Vec<Pair>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Pair {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "AnyOf", tags = "1, 2, 3, 4, 5, 6, 7, 8")]
    value: Option<AnyOf>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum AnyOf {
    #[prost(bytes, tag = "1")]
    Text(Vec<u8>),
    #[prost(bool, tag = "2")]
    Bool(bool),
    #[prost(int64, tag = "3")]
    Int(i64),
    /// The bits of the double, so that NaN equals itself.
    #[prost(fixed64, tag = "4")]
    Double(u64),
    #[prost(message, tag = "5")]
    Array(Array),
    #[prost(bytes, tag = "6")]
    Map(Vec<u8>),
    #[prost(bytes, tag = "7")]
    Bytes(Vec<u8>),
    #[prost(int32, tag = "8")]
    Index(i32),
}

/// A whole request with the field that OTLP 0.15 still had for scopes.
#[derive(Clone, PartialEq, Message)]
struct Former {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<FormerOfResource>,
}

#[derive(Clone, PartialEq, Message)]
struct FormerOfResource {
    #[prost(message, optional, tag = "1")]
    resource: Option<resource::v1::Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
    #[prost(string, tag = "3")]
    schema_url: String,
    #[prost(message, repeated, tag = "1000")]
    former_scopes: Vec<ScopeSpans>,
}

/// Decodes a request of any OTLP version to the equivalent request of today.
pub(crate) fn decode(bytes: &[u8]) -> Result<ExportTraceServiceRequest, DecodeError> {
    let today = |of_resource: FormerOfResource| {
        let FormerOfResource { resource, scope_spans, schema_url, former_scopes } = of_resource;
        let has_spans = scope_spans.iter().any(|of_scope| !of_scope.spans.is_empty());
        let is_former = !has_spans && !former_scopes.is_empty();
        let scope_spans = if is_former { former_scopes } else { scope_spans };
        ResourceSpans { resource, scope_spans, schema_url }
    };
    let resource_spans = Former::decode(bytes)?.resource_spans.into_iter().map(today).collect();
    Ok(ExportTraceServiceRequest { resource_spans })
}

#[derive(Clone, PartialEq, Message)]
struct Array {
    #[prost(message, repeated, tag = "1")]
    values: Vec<AnyValue>,
}

/// The framing alone, which everything that the walker accepts must have.
#[derive(Clone, PartialEq, Message)]
struct Framing {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<FramingOfResource>,
}

#[derive(Clone, PartialEq, Message)]
struct FramingOfResource {
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<OfScope>,
    #[prost(bytes = "vec", repeated, tag = "1000")]
    former_scopes: Vec<Vec<u8>>,
}

/// Walks any bytes. The walker must accept every request that prost accepts, and read the same from
/// it. Returns whether prost accepts the bytes as a request.
pub(crate) fn walk(bytes: &[u8]) -> bool {
    let budget = Budget::new(1 << 30);
    let contexts = Contexts::new(budget.clone());
    let mut walked = Walked::default();
    let accepted = walk::walk(bytes, &contexts, &Everything, &mut walked).is_ok();
    match Request::decode(bytes) {
        Ok(request) => {
            assert!(accepted, "prost reads what the walker must read, but the walker refuses it");
            compare_read(bytes, &request, &walked);
        }
        Err(_) if accepted => assert_framing(bytes),
        Err(_) => {}
    }
    let request = decode(bytes);
    if let Ok(request) = &request {
        assert!(accepted, "prost accepts it, but the walker refuses it");
        compare_whole(bytes, request, &walked);
        let mut without = Walked::default();
        let accepted = walk::walk(bytes, &contexts, &(), &mut without);
        assert_eq!(accepted, Ok(()));
        assert_eq!((&without.spans, without.rejected), (&walked.spans, walked.rejected));
    }
    drop(walked);
    assert!(contexts.is_empty(), "contexts go with their last user");
    assert_eq!(budget.used(), 0);
    request.is_ok()
}

fn assert_framing(bytes: &[u8]) {
    let assert_excused = |error: DecodeError| {
        let is_excused = is_too_deep(&error) || is_in_list(&error);
        assert!(is_excused, "the walker accepts what is not framed as a request: {error}");
    };
    match Framing::decode(bytes) {
        Ok(framing) => {
            for of_resource in framing.resource_spans {
                let has_spans = of_resource.scope_spans.iter().any(|all| !all.spans.is_empty());
                // If they do not count, their content is not checked.
                let former = of_resource.former_scopes.iter().filter(|_| !has_spans);
                former
                    .filter_map(|bytes| OfScope::decode(&bytes[..]).err())
                    .for_each(assert_excused);
            }
        }
        Err(error) => assert_excused(error),
    }
}

/// prost counts unknown groups and known messages together, and has a lower limit of depth.
fn is_too_deep(error: &DecodeError) -> bool {
    error.to_string().contains("recursion limit")
}

/// The walker does not read a list if a later value of the same attribute replaces it.
fn is_in_list(error: &prost::DecodeError) -> bool {
    error.to_string().contains("Array.values: ")
}

/// Conditions that ask for everything and set a bit for each match.
pub(crate) struct Everything;

impl Conditions for Everything {
    fn words(&self) -> usize {
        WORDS
    }

    fn reads_attributes(&self) -> bool {
        true
    }

    fn reads_fields(&self) -> bool {
        true
    }

    fn reads_events(&self) -> bool {
        true
    }

    fn test_attribute(&self, attribute: Attribute<'_>, bits: &mut [u64]) -> Result<(), Malformed> {
        let value = attribute.value()?;
        if matches!(value, AttributeValue::List(_)) {
            put_bit(attribute.key, b"list", bits);
        }
        value.each(&mut |value| {
            let value = match value {
                AttributeValue::String(value) => [&b"s"[..], value].concat(),
                AttributeValue::Bool(value) => vec![b'b', u8::from(value)],
                AttributeValue::Int(value) => [&b"i"[..], &value.to_le_bytes()].concat(),
                AttributeValue::Double(value) => {
                    [&b"d"[..], &value.to_bits().to_le_bytes()].concat()
                }
                AttributeValue::List(_) => panic!("its elements instead"),
                AttributeValue::Other => b"o".to_vec(),
            };
            put_bit(attribute.key, &value, bits);
        })
    }

    fn test_resource_attribute(
        &self,
        attribute: Attribute<'_>,
        bits: &mut [u64],
    ) -> Result<(), Malformed> {
        put_bit(attribute.key, b"of a resource", bits);
        self.test_attribute(attribute, bits)
    }

    fn test_event(&self, event: Event<'_>, bits: &mut [u64]) -> Result<(), Malformed> {
        let name = event.read(|attribute| {
            put_bit(attribute.key, b"of an event", bits);
            self.test_attribute(attribute, bits)
        })?;
        put_bit(b"event", name, bits);
        Ok(())
    }

    fn test_span(&self, fields: &SpanFields<'_>, bits: &mut [u64]) {
        let nanos = fields.duration_nanos.map_or(vec![], |nanos| nanos.to_le_bytes().to_vec());
        put_bit(b"duration", &nanos, bits);
        put_bit(b"kind", &[fields.kind_mask, u8::from(fields.is_root)], bits);
        put_bit(b"name", fields.name, bits);
        put_bit(b"trace_state", fields.trace_state, bits);
        put_bit(b"flags", &fields.flags.to_le_bytes(), bits);
        put_bit(b"status", &[fields.status_mask], bits);
    }

    fn describe_span(&self, fields: &SpanFields<'_>, words: &mut [u64]) {
        put_bit(b"start", &fields.start_unix_nano.to_le_bytes(), words);
    }
}

fn expect_bit(pair: &Pair, bits: &mut [u64]) {
    if let Some(AnyValue { value: Some(AnyOf::Array(_)) }) = &pair.value {
        put_bit(&pair.key, b"list", bits);
    }
    expect_value(&pair.key, pair.value.as_ref(), bits);
}

fn expect_events_and_more(span: &ReadSpan, bits: &mut [u64]) {
    for event in &span.events {
        put_bit(b"event", &event.name, bits);
        for pair in &event.attributes {
            put_bit(&pair.key, b"of an event", bits);
            expect_bit(pair, bits);
        }
    }
    let has_duration = span.start != 0 && span.end != 0;
    let nanos = (span.end.max(span.start) - span.start).to_le_bytes();
    put_bit(b"duration", if has_duration { &nanos } else { &[] }, bits);
    let kind = if (0..=5).contains(&span.kind) { 1 << span.kind } else { 0 };
    let is_root = span.parent_span_id.iter().all(|&byte| byte == 0);
    put_bit(b"kind", &[kind, u8::from(is_root)], bits);
}

fn expect_value(key: &[u8], value: Option<&AnyValue>, bits: &mut [u64]) {
    let value = match value.and_then(|value| value.value.as_ref()) {
        Some(AnyOf::Text(value)) => [&b"s"[..], value].concat(),
        Some(AnyOf::Bool(value)) => vec![b'b', u8::from(*value)],
        Some(AnyOf::Int(value)) => [&b"i"[..], &value.to_le_bytes()].concat(),
        Some(AnyOf::Double(bits)) => [&b"d"[..], &bits.to_le_bytes()].concat(),
        Some(AnyOf::Array(list)) => {
            return list.values.iter().for_each(|value| expect_value(key, Some(value), bits));
        }
        _ => b"o".to_vec(),
    };
    put_bit(key, &value, bits);
}

fn put_bit(key: &[u8], value: &[u8], bits: &mut [u64]) {
    let hash =
        key.iter().chain(b"=").chain(value).fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let bit = (hash >> 32) as usize % (64 * bits.len());
    bits[bit / 64] |= 1 << (bit % 64);
}

fn compare_read(bytes: &[u8], request: &Request, walked: &Walked) {
    let mut metas = walked.spans.iter().zip(walked.bits.chunks(WORDS));
    let mut rejected = 0;
    for of_resource in &request.resource_spans {
        let mut resource_bits = [0; WORDS];
        let resource = of_resource.resource.iter().flat_map(|resource| &resource.attributes);
        resource.for_each(|pair| {
            put_bit(&pair.key, b"of a resource", &mut resource_bits);
            expect_bit(pair, &mut resource_bits);
        });
        for span in of_resource.scopes().iter().flat_map(|of_scope| &of_scope.spans) {
            if !ids_are_sound(span) {
                rejected += 1;
                continue;
            }
            let (meta, bits) = metas.next().expect("as many spans as prost reads");
            compare_meta(span, meta);
            let mut expected = resource_bits;
            span.attributes.iter().for_each(|pair| expect_bit(pair, &mut expected));
            expect_events_and_more(span, &mut expected);
            put_bit(b"name", &span.name, &mut expected);
            put_bit(b"trace_state", &span.trace_state, &mut expected);
            put_bit(b"flags", &span.flags.to_le_bytes(), &mut expected);
            put_bit(b"status", &[meta.status_mask], &mut expected);
            put_bit(b"start", &span.start.to_le_bytes(), &mut expected);
            assert_eq!(bits, expected, "what conditions get to see");
            let own = &bytes[meta.offset as usize..][..meta.len as usize];
            assert_eq!(ReadSpan::decode(own).as_ref(), Ok(span), "the range of the span");
        }
    }
    assert!(metas.next().is_none(), "no more spans than prost reads");
    assert_eq!(walked.rejected, rejected);
}

fn ids_are_sound(span: &ReadSpan) -> bool {
    let set = |id: &[u8], len: usize| id.len() == len && id.iter().any(|&byte| byte != 0);
    set(&span.trace_id, 16) && set(&span.span_id, 8) && matches!(span.parent_span_id.len(), 0 | 8)
}

fn compare_meta(span: &ReadSpan, meta: &SpanMeta) {
    let end = if span.end == 0 { 0 } else { span.end.max(span.start) };
    assert_eq!(meta.trace_id.0[..], span.trace_id);
    assert_eq!((meta.start_unix_nano, meta.end_unix_nano), (span.start, end));
    let mask = match span.status.as_ref().map_or(0, |status| status.code) {
        code @ 0..=2 => 1 << code,
        _ => 0,
    };
    assert_eq!(meta.status_mask, mask);
    assert_eq!(meta.is_root, span.parent_span_id.iter().all(|&byte| byte == 0));
    let trace_state = std::str::from_utf8(&span.trace_state).unwrap_or_default();
    assert_eq!(meta.explicit_randomness.map(|randomness| randomness.0), rv(trace_state));
}

/// Compares every span with its resource, scope and schema URLs as read by prost.
fn compare_whole(bytes: &[u8], request: &ExportTraceServiceRequest, walked: &Walked) {
    let mut metas = walked.spans.iter();
    for of_resource in &request.resource_spans {
        let resource = ResourceSpans { scope_spans: Vec::new(), ..of_resource.clone() };
        for of_scope in &of_resource.scope_spans {
            let scope = ScopeSpans { spans: Vec::new(), ..of_scope.clone() };
            for span in &of_scope.spans {
                let encoded = span.encode_to_vec();
                if !ids_are_sound(&ReadSpan::decode(&encoded[..]).expect("just encoded")) {
                    continue;
                }
                let meta = metas.next().expect("as many spans as prost reads");
                let own = &bytes[meta.offset as usize..][..meta.len as usize];
                let again = Span::decode(own).expect("prost has read it").encode_to_vec();
                assert_eq!(again, encoded, "the same span, NaN included");
                let context = &walked.contexts[meta.context as usize];
                let seen =
                    ResourceSpans::decode(context.resource().arrived()).expect("prost has read it");
                assert_eq!(seen.encode_to_vec(), resource.encode_to_vec());
                let seen = ScopeSpans::decode(context.scope()).expect("prost has read it");
                assert_eq!(seen.encode_to_vec(), scope.encode_to_vec());
            }
        }
    }
    assert!(metas.next().is_none());
}

/// Reads any bytes as OTLP/JSON. The result must be a request that prost and the walker can read,
/// and must not be longer than the input. Returns whether the input is accepted.
pub(crate) fn json(bytes: &[u8]) -> bool {
    let Ok(protobuf) = json::to_protobuf(bytes) else { return false };
    assert!(protobuf.len() <= bytes.len(), "{} from {}", protobuf.len(), bytes.len());
    if let Err(error) = Request::decode(&protobuf[..]) {
        let is_excused = is_too_deep(&error) || is_in_list(&error);
        assert!(is_excused, "not framed as a request: {error}");
    }
    let is_whole = walk(&protobuf);
    if let Err(error) = decode(&protobuf[..]) {
        let is_string = error.to_string().contains("UTF-8");
        assert!(!is_whole && (is_string || is_too_deep(&error)), "{error}");
    }
    true
}

/// The explicit randomness that a `tracestate` carries.
pub(crate) fn rv(trace_state: &str) -> Option<u64> {
    let mut ot = others_and_ot(trace_state).1;
    if ot.len() != 1 {
        return None;
    }
    ot.remove(0).split(';').find_map(|pair| hex(pair.strip_prefix("rv:")?, 14..=14))
}

fn others_and_ot(list: &str) -> (Vec<&str>, Vec<&str>) {
    let (ot, others): (Vec<_>, Vec<_>) =
        members(list).partition(|member| member.starts_with("ot="));
    (others, ot.into_iter().map(|member| &member[3..]).collect())
}

fn members(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(blank).filter(|member| !member.is_empty())
}

fn blank(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

/// Whether a pair has this key, for a reader that ignores white space and a missing value.
fn has_key(pair: &str, separator: char, key: &str) -> bool {
    blank(pair.split_once(separator).map_or(pair, |(key, _)| key)) == key
}

fn hex(digits: &str, lengths: std::ops::RangeInclusive<usize>) -> Option<u64> {
    let valid = lengths.contains(&digits.len())
        && digits.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c));
    valid.then(|| u64::from_str_radix(digits, 16).expect("at most 14 digits"))
}

/// Stamps any list; the first 16 bytes choose the stamp.
pub(crate) fn tracestate(bytes: &[u8]) {
    let Some((seed, list)) = bytes.split_first_chunk::<16>() else { return };
    let number = |at: usize| {
        let bytes = seed[at..].first_chunk().expect("16 bytes");
        u64::from_le_bytes(*bytes) & ((1 << 56) - 1)
    };
    let (a, b) = (number(0), number(8));
    // Only kept traces are stamped: T <= R.
    let stamp = Stamp {
        threshold: Threshold::from_bits(a.min(b)),
        randomness: Randomness(a.max(b)),
        explicit: seed[7] & 1 == 1,
    };
    let text = std::str::from_utf8(list);
    let expected_rv = text.ok().and_then(rv);
    assert_eq!(tracestate::randomness(list).map(|randomness| randomness.0), expected_rv);
    let mut out = String::from("left over");
    let stamped = tracestate::stamp(list, &stamp, &mut out);
    let expected = text.ok().and_then(|text| naive_stamp(text, &stamp));
    assert_eq!(stamped.is_ok(), expected.is_some(), "{text:?}");
    if let (Ok(inconsistent), Some(expected)) = (stamped, expected) {
        assert_eq!((&out, inconsistent), (&expected.0, expected.1));
        let mut again = String::new();
        assert_eq!(tracestate::stamp(out.as_bytes(), &stamp, &mut again), Ok(false));
        // White space within an `ot` is kept, but trimmed if it ends up at the end.
        let ot = out.split(',').next().unwrap_or_default();
        assert!(again == out || ot.contains([' ', '\t']), "a stamp is stable: {again} {out}");
    }
}

/// Moves `ot` to the front with the higher threshold and keeps everything else; `None` if the list
/// must not change.
fn naive_stamp(list: &str, stamp: &Stamp) -> Option<(String, bool)> {
    let (others, ot) = others_and_ot(list);
    if ot.len() > 1 || others.iter().any(|member| has_key(member, '=', "ot")) {
        return None;
    }
    let pairs: Vec<_> =
        ot.iter().flat_map(|ot| ot.split(';')).filter(|pair| !pair.is_empty()).collect();
    let ths: Vec<_> = pairs.iter().filter(|pair| has_key(pair, ':', "th")).collect();
    let incoming = match ths[..] {
        [] => 0,
        [pair] => {
            let digits = pair.strip_prefix("th:")?;
            hex(digits, 1..=14)? << (4 * (14 - digits.len()))
        }
        _ => return None,
    };
    let inconsistent = incoming > stamp.randomness.0;
    let incoming = if inconsistent { 0 } else { incoming };
    let threshold = stamp.threshold.bits().max(incoming);
    let digits = format!("{threshold:014x}");
    let digits = digits.trim_end_matches('0');
    let mut value = format!("th:{}", if digits.is_empty() { "0" } else { digits });
    let randomness = rv(list).or(stamp.explicit.then_some(stamp.randomness.0));
    if let Some(randomness) = randomness {
        value.push_str(&format!(";rv:{randomness:014x}"));
    }
    let stays = |pair: &&&str| {
        !(pair.starts_with("th:") || randomness.is_some() && has_key(pair, ':', "rv"))
    };
    for pair in pairs.iter().filter(stays) {
        value.push_str(&format!(";{pair}"));
    }
    if value.len() > 256 || others.len() + 1 > 32 {
        return None;
    }
    let ot = format!("ot={value}");
    Some(([&[&ot[..]], &others[..]].concat().join(","), inconsistent))
}

/// Cleans any bytes as a span, as a resource and as a scope.
pub(crate) fn clean(bytes: &[u8]) {
    let cleaned = clean::span(bytes);
    if let Ok(mut span) = Span::decode(bytes) {
        let (_, repairs) = cleaned.as_ref().expect("what prost reads can be made valid");
        let links = span.links.len();
        span.links.retain(|link| link.trace_id.len() == 16 && link.span_id.len() == 8);
        assert_eq!((repairs.strings, repairs.links), (0, (links - span.links.len()) as u64));
        let cleaned = cleaned.as_ref().map(|(bytes, _)| Span::decode(&bytes[..]));
        let cleaned = cleaned.expect("cleaned").expect("valid");
        assert_eq!(cleaned.encode_to_vec(), span.encode_to_vec());
    }
    if let Ok((cleaned, repairs)) = cleaned {
        assert_eq!(matches!(cleaned, Cow::Owned(_)), repairs != clean::Repairs::default());
        assert_valid::<Span>(&cleaned);
        let again = clean::span(&cleaned);
        assert!(matches!(again, Ok((Cow::Borrowed(_), _))), "nothing is left to clean");
    }
    if has_field_2(bytes) {
        return;
    }
    if let Ok(cleaned) = clean::resource(bytes) {
        assert_valid::<ResourceSpans>(cleaned.bytes(bytes));
    } else {
        assert!(ResourceSpans::decode(bytes).is_err());
    }
    if let Ok(cleaned) = clean::scope(bytes) {
        assert_valid::<ScopeSpans>(cleaned.bytes(bytes));
    } else {
        assert!(ScopeSpans::decode(bytes).is_err());
    }
}

fn assert_valid<M: Message + Default>(cleaned: &[u8]) {
    if let Err(error) = M::decode(cleaned) {
        assert!(is_too_deep(&error), "not valid after cleaning: {error}");
    }
}

/// Contexts are cut out around field 2, so the cleaned bytes never contain it.
fn has_field_2(bytes: &[u8]) -> bool {
    let mut reader = Reader::new(bytes);
    while let Ok(Some(field)) = reader.next_field() {
        if field.number == 2 {
            return true;
        }
    }
    false
}
