//! Makes a kept span safe for backends: decodable to the last field, valid UTF-8 in every string,
//! values nested at most [`NESTING_MAX`] levels, and links with ids of the right length.
//!
//! A span is checked once, when it is exported, so the nine tenths of spans that are dropped cost
//! nothing. Strings are repaired with U+FFFD and bad links are removed; both are counted. Any other
//! fault makes the span unfit. Without this check one bad span would poison a batch, because Tempo
//! and the Collector refuse the whole request.
//!
//! The message types are data (`schema.rs`), and unknown fields pass unchanged. Recursion is
//! bounded by the schema and by the nesting limit.

use std::borrow::Cow;

use super::{
    message::Message,
    schema::{Kind, RESOURCE_SPANS, Role, SCOPE_SPANS, SPAN, Schema},
    wire::{self, Malformed, Reader, Value},
};

/// The deepest nesting of values that is exported. An `AnyValue` inside an `AnyValue` is one level.
pub(crate) const NESTING_MAX: usize = 64;

/// The message cannot be made valid: it is undecodable, or nested too deep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("undecodable or nested over {NESTING_MAX} levels")]
pub struct Unfit;

/// The repairs made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repairs {
    /// The number of strings that were not UTF-8.
    pub strings: u64,
    /// The number of links removed because an id was not 16 or 8 bytes.
    pub links: u64,
}

/// A message that may be exported. It holds bytes of its own only if it was repaired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cleaned {
    repaired: Option<Box<[u8]>>,
    /// The repairs that were made to it.
    pub(crate) repairs: Repairs,
}

impl Cleaned {
    /// The bytes to export, given the bytes that arrived.
    pub fn bytes<'a>(&'a self, arrived: &'a [u8]) -> &'a [u8] {
        self.repaired.as_deref().unwrap_or(arrived)
    }

    /// The number of bytes held here; 0 if nothing had to be repaired.
    pub(crate) fn repaired_bytes(&self) -> usize {
        self.repaired.as_deref().map_or(0, <[u8]>::len)
    }
}

/// Cleans a `Span`. The result is borrowed if nothing had to be repaired.
///
/// # Errors
/// [`Unfit`] if the span cannot be made valid.
pub fn span(arrived: &[u8]) -> Result<(Cow<'_, [u8]>, Repairs), Unfit> {
    let repairs = check(arrived, &SPAN, 0)?;
    if repairs == Repairs::default() {
        return Ok((Cow::Borrowed(arrived), repairs));
    }
    Ok((Cow::Owned(rewritten(arrived, &SPAN)?), repairs))
}

/// Cleans the fields of a `ResourceSpans` other than its spans.
///
/// # Errors
/// [`Unfit`] if they cannot be made valid.
pub fn resource(arrived: &[u8]) -> Result<Cleaned, Unfit> {
    message(arrived, &RESOURCE_SPANS)
}

/// Cleans the fields of a `ScopeSpans` other than its spans.
///
/// # Errors
/// [`Unfit`] if they cannot be made valid.
pub fn scope(arrived: &[u8]) -> Result<Cleaned, Unfit> {
    message(arrived, &SCOPE_SPANS)
}

fn message(arrived: &[u8], schema: &Schema) -> Result<Cleaned, Unfit> {
    let repairs = check(arrived, schema, 0)?;
    let repaired = if repairs == Repairs::default() {
        None
    } else {
        Some(rewritten(arrived, schema)?.into_boxed_slice())
    };
    Ok(Cleaned { repaired, repairs })
}

impl From<Malformed> for Unfit {
    fn from(_: Malformed) -> Self {
        Unfit
    }
}

/// Finds the faults to repair. `values` is the number of `AnyValue`s around this message.
fn check(message: &[u8], schema: &Schema, values: usize) -> Result<Repairs, Unfit> {
    if schema.role == Role::AnyValue && values > NESTING_MAX {
        return Err(Unfit);
    }
    let values = values + usize::from(schema.role == Role::AnyValue);
    let mut repairs = Repairs::default();
    let mut reader = Reader::new(message);
    while let Some(tag) = reader.next_tag()? {
        let expected = schema.kind(tag >> 3);
        if expected.wire_type().is_some_and(|wire_type| wire_type != tag & 7) {
            return Err(Unfit);
        }
        match expected {
            Kind::Text => {
                let text = reader.bytes()?;
                // Most strings are short and ASCII, which is faster to check than UTF-8.
                let is_valid = text.is_ascii() || std::str::from_utf8(text).is_ok();
                repairs.strings += u64::from(!is_valid);
            }
            Kind::Message(schema) => {
                let inner = reader.bytes()?;
                if schema.role == Role::KeyValue && is_plain_pair(inner) {
                    continue;
                }
                let inner = check(inner, schema, values)?;
                repairs.strings += inner.strings;
                repairs.links += inner.links;
            }
            _ => reader.skip(tag)?,
        }
    }
    if schema.role == Role::Link && !link_is_sound(message)? {
        // Its strings are removed with it, so only the removal counts.
        return Ok(Repairs { strings: 0, links: 1 });
    }
    Ok(repairs)
}

/// Whether it is one short key and one short string, number or boolean, with all text in ASCII, as
/// in most attributes. Such an attribute needs no repair and no further check.
#[inline]
fn is_plain_pair(pair: &[u8]) -> bool {
    let [KEY, key_len @ 0..0x80, rest @ ..] = pair else { return false };
    let Some((key, [VALUE, value_len, value @ ..])) = rest.split_at_checked(usize::from(*key_len))
    else {
        return false;
    };
    if value.len() != usize::from(*value_len) {
        return false;
    }
    match value {
        // The ASCII check includes the lengths, because a length of two bytes is not ASCII.
        [TEXT, text_len, text @ ..] => text.len() == usize::from(*text_len) && pair.is_ascii(),
        // One varint of at most nine bytes, which always fits into 64 bits.
        [BOOL | INT, more @ .., 0..0x80] => {
            more.len() < 9 && more.iter().all(|byte| *byte >= 0x80) && key.is_ascii()
        }
        _ => false,
    }
}

/// The tags of `KeyValue.key`, `KeyValue.value`, and the common values of an `AnyValue`.
const KEY: u8 = wire::tag(1, wire::BYTES) as u8;
const VALUE: u8 = wire::tag(2, wire::BYTES) as u8;
const TEXT: u8 = wire::tag(1, wire::BYTES) as u8;
const BOOL: u8 = wire::tag(2, wire::VARINT) as u8;
const INT: u8 = wire::tag(3, wire::VARINT) as u8;

fn link_is_sound(link: &[u8]) -> Result<bool, Unfit> {
    let (mut trace_id, mut span_id) = (&[][..], &[][..]);
    let mut reader = Reader::new(link);
    while let Some(field) = reader.next_field()? {
        match (field.number, field.value) {
            (1, Value::Bytes(id)) => trace_id = id,
            (2, Value::Bytes(id)) => span_id = id,
            _ => {}
        }
    }
    Ok(trace_id.len() == 16 && span_id.len() == 8)
}

/// Writes a checked message again with its repairs. Each byte is written once, however deep it is
/// nested, so a value at the nesting limit does not need a hundred buffers of its size.
fn rewritten(message: &[u8], schema: &Schema) -> Result<Vec<u8>, Unfit> {
    let mut out = Message::with_capacity(message.len() + 16);
    rewrite(message, schema, &mut out)?;
    Ok(out.finish())
}

fn rewrite(message: &[u8], schema: &Schema, out: &mut Message) -> Result<(), Unfit> {
    let mut reader = Reader::new(message);
    while let Some(field) = reader.next_field()? {
        match (schema.kind(field.number), field.value) {
            (Kind::Text, Value::Bytes(text)) => {
                out.put_bytes(field.number, String::from_utf8_lossy(text).as_bytes());
            }
            (Kind::Message(schema), Value::Bytes(inner)) => {
                if schema.role == Role::Link && !link_is_sound(inner)? {
                    continue;
                }
                let begun = out.begin(field.number);
                rewrite(inner, schema, out)?;
                out.end(&begun);
            }
            _ => out.put_raw(field.raw),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::{
        common::v1::{AnyValue, ArrayValue, KeyValue, any_value},
        trace::v1::{Span, span::Link},
    };
    use prost::Message as _;

    use super::*;

    fn put_field(out: &mut Vec<u8>, number: u32, payload: &[u8]) {
        wire::put_length_delimited(out, number, payload.len());
        out.extend_from_slice(payload);
    }

    fn nested(levels: usize) -> Span {
        let mut value = AnyValue { value: Some(any_value::Value::IntValue(7)) };
        for _ in 0..levels {
            let array = ArrayValue { values: vec![value] };
            value = AnyValue { value: Some(any_value::Value::ArrayValue(array)) };
        }
        let attribute = KeyValue { key: "k".into(), value: Some(value), ..Default::default() };
        Span { attributes: vec![attribute], ..Default::default() }
    }

    #[test]
    fn a_sound_span_is_borrowed() {
        let link = Link { trace_id: vec![1; 16], span_id: vec![2; 8], ..Default::default() };
        let bytes = Span { name: "päge".into(), links: vec![link], ..nested(3) }.encode_to_vec();
        let (clean, repairs) = span(&bytes).expect("fit");
        assert!(matches!(clean, Cow::Borrowed(_)));
        assert_eq!(repairs, Repairs::default());
    }

    #[test]
    fn nesting_ends_at_64_levels() {
        assert!(span(&nested(NESTING_MAX).encode_to_vec()).is_ok());
        assert_eq!(span(&nested(NESTING_MAX + 1).encode_to_vec()), Err(Unfit));
    }

    #[test]
    fn a_string_at_the_deepest_level_is_repaired_in_one_buffer() {
        let mut bytes = nested(NESTING_MAX).encode_to_vec();
        let mut text = vec![0xe9; 1 << 20];
        text.push(b'!');
        let mut value = Vec::new();
        put_field(&mut value, 1, &text);
        for _ in 0..NESTING_MAX {
            let (mut array, mut outer) = (Vec::new(), Vec::new());
            put_field(&mut array, 1, &value);
            put_field(&mut outer, 5, &array);
            value = outer;
        }
        let (mut pair, mut attribute) = (Vec::new(), Vec::new());
        put_field(&mut pair, 2, &value);
        put_field(&mut attribute, 9, &pair);
        bytes.extend(attribute);
        let (clean, repairs) = span(&bytes).expect("fit");
        assert_eq!(repairs, Repairs { strings: 1, links: 0 });
        // prost stops at 100 levels of messages, so the test searches the bytes instead of decoding
        // them.
        let end = "\u{fffd}\u{fffd}!".as_bytes();
        assert!(clean.ends_with(end) && clean.len() > 3 << 20 && clean.len() < (3 << 20) + 4_096);
        assert_eq!(span(&clean).expect("fit").1, Repairs::default(), "framed as it was");
    }

    #[test]
    fn a_million_levels_do_not_overflow_the_stack() {
        let mut value = vec![0x18, 7];
        for _ in 0..20_000 {
            let mut array = Vec::new();
            put_field(&mut array, 1, &value);
            value.clear();
            put_field(&mut value, 5, &array);
        }
        let mut pair = Vec::new();
        put_field(&mut pair, 2, &value);
        let mut bytes = Vec::new();
        put_field(&mut bytes, 9, &pair);
        let small_stack = std::thread::Builder::new().stack_size(256 << 10);
        let result = small_stack.spawn(move || span(&bytes).map(|_| ())).expect("thread").join();
        assert_eq!(result.expect("no overflow"), Err(Unfit));
    }

    #[test]
    fn strings_are_repaired_and_bad_links_removed() {
        let good = Link { trace_id: vec![1; 16], span_id: vec![2; 8], ..Default::default() };
        let bad = Link { trace_id: vec![1; 15], ..good.clone() };
        let whole = Span { links: vec![good.clone(), bad], ..nested(1) };
        let mut bytes = whole.encode_to_vec();
        put_field(&mut bytes, 5, b"caf\xe9");
        put_field(&mut bytes, 99, b"unknown \xff stays");
        let (clean, repairs) = span(&bytes).expect("fit");
        assert_eq!(repairs, Repairs { strings: 1, links: 1 });
        let decoded = Span::decode(&clean[..]).expect("valid");
        assert_eq!(decoded.name, "caf\u{fffd}");
        assert_eq!(decoded.links, vec![good]);
        assert_eq!(decoded.attributes, whole.attributes);
        assert!(clean.windows(15).any(|window| window == b"unknown \xff stays"));
    }

    #[test]
    fn a_known_field_of_another_wire_type_is_unfit() {
        assert_eq!(span(&[0x28, 1]), Err(Unfit)); // name as a varint
        assert_eq!(span(&[0x4a, 2, 0x12, 5]), Err(Unfit)); // an attribute value cut short
        assert_eq!(resource(&[0x0a, 1]), Err(Unfit));
        assert!(scope(&[0x0a, 3, 0x0a, 1, 0xff]).expect("fit").repairs.strings == 1);
    }
}
