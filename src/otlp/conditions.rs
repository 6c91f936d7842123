//! What is asked of spans while they are walked: [`Conditions`], each of which is a bit, and what
//! they are shown, attributes whose values are read only when a key is wanted, and a few fields.

use super::wire::{BYTES, Malformed, Reader, Value, tag};
#[cfg(doc)]
use crate::trace::StatusCode;

/// What the compiled policies ask of spans, as the walker sees it: each condition is a bit, and a
/// span's bits are set while it is walked.
pub trait Conditions {
    /// 64-bit words of bits per span.
    fn words(&self) -> usize;

    /// Whether any attribute of a span needs to be read.
    fn reads_attributes(&self) -> bool;

    /// Whether [`Self::test_span`] is to be called, so that name and flags need to be read.
    fn reads_fields(&self) -> bool;

    /// Sets the bits of the conditions that one attribute of a span meets.
    ///
    /// # Errors
    /// [`Malformed`] where its value is wanted and cannot be read.
    fn test_attribute(&self, attribute: Attribute<'_>, bits: &mut [u64]) -> Result<(), Malformed>;

    /// The same for an attribute of a resource. Called once for each resource of a request; its
    /// spans begin with these bits.
    ///
    /// # Errors
    /// [`Malformed`] where its value is wanted and cannot be read.
    fn test_resource_attribute(
        &self,
        attribute: Attribute<'_>,
        bits: &mut [u64],
    ) -> Result<(), Malformed>;

    /// Sets the bits of the conditions that a span meets as a whole. Comes last: `bits` has those
    /// of all its attributes and of its resource.
    fn test_span(&self, fields: &SpanFields<'_>, bits: &mut [u64]);
}

/// No conditions: spans have no bits, and their attributes are not read.
impl Conditions for () {
    fn words(&self) -> usize {
        0
    }

    fn reads_attributes(&self) -> bool {
        false
    }

    fn reads_fields(&self) -> bool {
        false
    }

    fn test_attribute(&self, _: Attribute<'_>, _: &mut [u64]) -> Result<(), Malformed> {
        Ok(())
    }

    fn test_resource_attribute(&self, _: Attribute<'_>, _: &mut [u64]) -> Result<(), Malformed> {
        Ok(())
    }

    fn test_span(&self, _: &SpanFields<'_>, _: &mut [u64]) {}
}

/// The fields of one span that conditions may compare.
#[derive(Clone, Copy, Debug)]
pub struct SpanFields<'a> {
    /// Not checked to be UTF-8.
    pub name: &'a [u8],
    /// Not checked to be UTF-8.
    pub trace_state: &'a [u8],
    /// W3C trace flags in the low 8 bits.
    pub flags: u32,
    /// [`StatusCode::mask`] of its status; 0 for codes that OTLP does not define.
    pub status_mask: u8,
}

/// A key-value pair as it stands in the bytes; its value is read only when asked for.
#[derive(Clone, Copy, Debug)]
pub struct Attribute<'a> {
    /// The key's bytes, not checked to be UTF-8.
    pub key: &'a [u8],
    pair: &'a [u8],
}

/// The value of an attribute as far as policies compare it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AttributeValue<'a> {
    /// Not checked to be UTF-8.
    String(&'a [u8]),
    /// A boolean.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A double.
    Double(f64),
    /// Absent, an array, a map or bytes.
    Other,
}

impl<'a> Attribute<'a> {
    #[inline(always)]
    pub(super) fn read(pair: &'a [u8]) -> Result<Self, Malformed> {
        // Nearly every pair is one short key followed by one short value and nothing else.
        if let [KEY_BYTE, key_len @ 0..0x80, rest @ ..] = pair
            && let Some((key, [VALUE_BYTE, value_len @ 0..0x80, value @ ..])) =
                rest.split_at_checked(usize::from(*key_len))
            && value.len() == usize::from(*value_len)
        {
            return Ok(Attribute { key, pair });
        }
        Ok(Attribute { key: last_key(pair)?, pair })
    }

    /// The value: of several, the last one set, as protobuf merges a oneof.
    ///
    /// # Errors
    /// [`Malformed`] where it cannot be read.
    pub fn value(&self) -> Result<AttributeValue<'a>, Malformed> {
        let mut last = AttributeValue::Other;
        let mut reader = Reader::new(self.pair);
        while let Some(tag) = reader.next_tag()? {
            match tag {
                VALUE => read_any_value(reader.bytes()?, &mut last)?,
                _ => reader.skip_unless(tag, &[2])?,
            }
        }
        Ok(last)
    }
}

#[inline(never)]
fn last_key(pair: &[u8]) -> Result<&[u8], Malformed> {
    let mut key = &[][..];
    let mut reader = Reader::new(pair);
    while let Some(tag) = reader.next_tag()? {
        match tag {
            KEY => key = reader.bytes()?,
            _ => reader.skip_unless(tag, &[1])?,
        }
    }
    Ok(key)
}

const KEY: u32 = tag(1, BYTES);
const VALUE: u32 = tag(2, BYTES);
const KEY_BYTE: u8 = KEY as u8;
const VALUE_BYTE: u8 = VALUE as u8;

fn read_any_value<'a>(any_value: &'a [u8], last: &mut AttributeValue<'a>) -> Result<(), Malformed> {
    let mut reader = Reader::new(any_value);
    while let Some(field) = reader.next_field()? {
        *last = match (field.number, field.value) {
            (1, Value::Bytes(text)) => AttributeValue::String(text),
            (2, Value::Varint(number)) => AttributeValue::Bool(number != 0),
            (3, Value::Varint(number)) => AttributeValue::Int(number.cast_signed()),
            (4, Value::Fixed64(bits)) => AttributeValue::Double(f64::from_bits(bits)),
            (5..=7, Value::Bytes(_)) | (8, Value::Varint(_)) => AttributeValue::Other,
            (1..=8, _) => return Err(Malformed("wrong wire type in an attribute value")),
            _ => *last,
        };
    }
    Ok(())
}
