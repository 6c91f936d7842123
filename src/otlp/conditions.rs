//! The interface between policies and the walker: [`Conditions`], which have one bit each, and the
//! parts of a span that they see: attributes (whose values are read only if a key is wanted),
//! events and a few fields.

use super::wire::{BYTES, Malformed, Reader, Value, tag};
#[cfg(doc)]
use crate::trace::{SpanKind, StatusCode};

/// Values nested this deep are exported unchanged; deeper values are not.
const LEVELS_MAX: usize = 64;

/// The conditions of the compiled policies, as the walker sees them. Each condition is a bit, and a
/// span's bits are set while it is walked.
pub trait Conditions {
    /// The number of 64-bit words of bits per span.
    fn words(&self) -> usize;

    /// The layout of these words: how many describe the whole trace, and how many a single span.
    fn shape(&self) -> Words {
        Words::of_bits(self.words())
    }

    /// Whether any attribute of a span must be read.
    fn reads_attributes(&self) -> bool;

    /// Whether [`Self::test_span`] must be called, so flags must be read.
    fn reads_fields(&self) -> bool;

    /// Whether [`Self::test_event`] must be called, so events must be read. Only true if
    /// [`Self::reads_fields`] is true.
    fn reads_events(&self) -> bool;

    /// Sets the bits of the conditions that one attribute of a span meets.
    ///
    /// # Errors
    /// [`Malformed`] if its value is needed and cannot be read.
    fn test_attribute(&self, attribute: Attribute<'_>, bits: &mut [u64]) -> Result<(), Malformed>;

    /// Sets the bits of the conditions that one attribute of a resource meets. Called once for each
    /// resource of a request; the bits of its spans start as these bits.
    ///
    /// # Errors
    /// [`Malformed`] if its value is needed and cannot be read.
    fn test_resource_attribute(
        &self,
        attribute: Attribute<'_>,
        bits: &mut [u64],
    ) -> Result<(), Malformed>;

    /// Sets the bits of the conditions that one event of a span meets.
    ///
    /// # Errors
    /// [`Malformed`] if the event cannot be read.
    fn test_event(&self, event: Event<'_>, bits: &mut [u64]) -> Result<(), Malformed>;

    /// Sets the bits of the conditions on a span as a whole. Called after the bits of all its
    /// attributes and events and of its resource are set.
    fn test_span(&self, fields: &SpanFields<'_>, bits: &mut [u64]);

    /// Writes the words that describe the span itself. Called last, for every span; the flags are
    /// read only if [`Self::reads_fields`] is true.
    fn describe_span(&self, fields: &SpanFields<'_>, words: &mut [u64]);
}

/// The layout of the condition words of a span or a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words {
    all: usize,
    /// The number of words at the end that describe one span of the trace. The words before them
    /// combine the bits of all its spans.
    of_one_span: usize,
}

impl Words {
    /// A layout of `words` words of bits that combine all spans.
    pub(crate) fn of_bits(words: usize) -> Self {
        Words { all: words, of_one_span: 0 }
    }

    /// Adds words that describe one span. The first of them is the rank of that span: a trace keeps
    /// the words of its span with the highest rank. All of them are 0 while there is no such span.
    pub(crate) fn and_of_one_span(self, words: usize) -> Self {
        Words { all: self.all + words, of_one_span: self.of_one_span + words }
    }

    /// The number of words.
    pub(crate) fn all(self) -> usize {
        self.all
    }

    /// Adds the words of a span to the words of its trace. The result does not depend on the order
    /// of the spans: of two spans with the same rank, the trace keeps the words that compare
    /// higher.
    #[inline]
    pub(crate) fn merge(self, known: &mut [u64], added: &[u64]) {
        let bits = self.all - self.of_one_span;
        let (known_bits, known_one) = known.split_at_mut(bits);
        let (added_bits, added_one) = added.split_at(bits);
        known_bits.iter_mut().zip(added_bits).for_each(|(word, added)| *word |= added);
        if added_one > &*known_one {
            known_one.copy_from_slice(added_one);
        }
    }
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

    fn reads_events(&self) -> bool {
        false
    }

    fn test_attribute(&self, _: Attribute<'_>, _: &mut [u64]) -> Result<(), Malformed> {
        Ok(())
    }

    fn test_resource_attribute(&self, _: Attribute<'_>, _: &mut [u64]) -> Result<(), Malformed> {
        Ok(())
    }

    fn test_event(&self, _: Event<'_>, _: &mut [u64]) -> Result<(), Malformed> {
        Ok(())
    }

    fn test_span(&self, _: &SpanFields<'_>, _: &mut [u64]) {}

    fn describe_span(&self, _: &SpanFields<'_>, _: &mut [u64]) {}
}

/// The fields of a span that conditions can compare.
#[derive(Clone, Copy, Debug)]
pub struct SpanFields<'a> {
    /// The span's name; possibly not UTF-8.
    pub name: &'a [u8],
    /// The `tracestate`; possibly not UTF-8.
    pub trace_state: &'a [u8],
    /// W3C trace flags in the low 8 bits.
    pub flags: u32,
    /// [`StatusCode::mask`] of its status; 0 for codes that OTLP does not define.
    pub status_mask: u8,
    /// [`SpanKind::mask`] of its kind; 0 for kinds that OTLP does not define.
    pub kind_mask: u8,
    /// Whether it has no parent.
    pub is_root: bool,
    /// Start in Unix nanoseconds; 0 if there is none.
    pub start_unix_nano: u64,
    /// The time from its start to its end; 0 if the end is before the start; `None` if either is
    /// missing.
    pub duration_nanos: Option<u64>,
}

/// An event of a span in its encoded form, read only on demand.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a>(pub(super) &'a [u8]);

impl<'a> Event<'a> {
    /// Calls `test` with each attribute and returns the name, which is possibly not UTF-8.
    ///
    /// # Errors
    /// [`Malformed`] if the event cannot be read, or the error of `test`.
    pub fn read(
        self,
        mut test: impl FnMut(Attribute<'a>) -> Result<(), Malformed>,
    ) -> Result<&'a [u8], Malformed> {
        let mut name = &[][..];
        let mut reader = Reader::new(self.0);
        while let Some(tag) = reader.next_tag()? {
            match tag {
                EVENT_NAME => name = reader.bytes()?,
                EVENT_ATTRIBUTE => test(Attribute::read(reader.bytes()?)?)?,
                _ => reader.skip_unless(tag, &[2, 3])?,
            }
        }
        Ok(name)
    }
}

/// A key-value pair in its encoded form. Its value is read only on demand.
#[derive(Clone, Copy, Debug)]
pub struct Attribute<'a> {
    /// The bytes of the key; possibly not UTF-8.
    pub key: &'a [u8],
    pair: &'a [u8],
}

/// The value of an attribute, as far as policies compare values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AttributeValue<'a> {
    /// A string; possibly not UTF-8.
    String(&'a [u8]),
    /// A boolean.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A double.
    Double(f64),
    /// A list. Its elements are read only on demand.
    List(List<'a>),
    /// Absent, a map, or bytes.
    Other,
}

impl<'a> AttributeValue<'a> {
    /// Calls `test` with the value or, if it is a list, with each of its elements, at any depth.
    /// Values nested deeper than `LEVELS_MAX` levels are not exported unchanged and count as
    /// [`AttributeValue::Other`].
    ///
    /// # Errors
    /// [`Malformed`] if an element cannot be read.
    #[inline]
    pub fn each(self, test: &mut impl FnMut(AttributeValue<'a>)) -> Result<(), Malformed> {
        match self {
            AttributeValue::List(list) => list.each(1, test),
            value => {
                test(value);
                Ok(())
            }
        }
    }
}

/// The elements of a list in their encoded form.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct List<'a> {
    place: Place<'a>,
    /// The number of values that came before the list and that the list replaced.
    replaced: u32,
}

/// The location of a value.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Place<'a> {
    message: &'a [u8],
    /// Whether the message is a key-value pair. In a pair, a value may consist of several parts,
    /// which protobuf merges. Otherwise the message is an element of a list, and is the whole
    /// value.
    is_pair: bool,
}

impl<'a> Attribute<'a> {
    #[inline(always)]
    pub(super) fn read(pair: &'a [u8]) -> Result<Self, Malformed> {
        // Nearly every pair is a short key followed by a short value and nothing else.
        if let [KEY_BYTE, key_len @ 0..0x80, rest @ ..] = pair
            && let Some((key, [VALUE_BYTE, value_len @ 0..0x80, value @ ..])) =
                rest.split_at_checked(usize::from(*key_len))
            && value.len() == usize::from(*value_len)
        {
            return Ok(Attribute { key, pair });
        }
        Ok(Attribute { key: last_key(pair)?, pair })
    }

    /// The value. If there are several, the last one that is set, as protobuf merges a oneof.
    ///
    /// # Errors
    /// [`Malformed`] if the value cannot be read.
    #[inline]
    pub fn value(&self) -> Result<AttributeValue<'a>, Malformed> {
        // Nearly every pair is a short key followed by a short text and nothing else.
        if let [KEY_BYTE, key_len @ 0..0x80, rest @ ..] = self.pair
            && let Some((_, [VALUE_BYTE, value_len @ 2..0x80, TEXT_BYTE, text_len, text @ ..])) =
                rest.split_at_checked(usize::from(*key_len))
            && *text_len == *value_len - 2
            && text.len() == usize::from(*text_len)
        {
            return Ok(AttributeValue::String(text));
        }
        self.any_value()
    }

    #[inline(never)]
    fn any_value(&self) -> Result<AttributeValue<'a>, Malformed> {
        Place { message: self.pair, is_pair: true }.value()
    }
}

impl<'a> Place<'a> {
    #[inline]
    fn value(self) -> Result<AttributeValue<'a>, Malformed> {
        let (mut last, mut count) = (AttributeValue::Other, 0);
        self.each_part(|part| read_any_value(part, self, &mut last, &mut count))?;
        Ok(last)
    }

    /// The parts of the value, usually one.
    #[inline]
    fn each_part(
        self,
        mut read: impl FnMut(&'a [u8]) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        if !self.is_pair {
            return read(self.message);
        }
        let mut reader = Reader::new(self.message);
        while let Some(tag) = reader.next_tag()? {
            match tag {
                VALUE => read(reader.bytes()?)?,
                _ => reader.skip_unless(tag, &[2])?,
            }
        }
        Ok(())
    }
}

impl<'a> List<'a> {
    fn each(
        self,
        level: usize,
        test: &mut impl FnMut(AttributeValue<'a>),
    ) -> Result<(), Malformed> {
        if level == LEVELS_MAX {
            test(AttributeValue::Other);
            return Ok(());
        }
        let mut count = 0;
        self.place.each_part(|part| {
            let mut reader = Reader::new(part);
            while let Some(field) = reader.next_field()? {
                let is_set = u32::from(matches!(field.number, 1..=8));
                count += is_set;
                if is_set == 1 && count > self.replaced {
                    each_element(field.value.bytes()?, level, test)?;
                }
            }
            Ok(())
        })
    }
}

/// The elements of an `ArrayValue` at this nesting level.
fn each_element<'a>(
    array: &'a [u8],
    level: usize,
    test: &mut impl FnMut(AttributeValue<'a>),
) -> Result<(), Malformed> {
    let mut reader = Reader::new(array);
    while let Some(tag) = reader.next_tag()? {
        match tag {
            ELEMENT => match (Place { message: reader.bytes()?, is_pair: false }).value()? {
                AttributeValue::List(list) => list.each(level + 1, test)?,
                value => test(value),
            },
            _ => reader.skip_unless(tag, &[1])?,
        }
    }
    Ok(())
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
const EVENT_NAME: u32 = tag(2, BYTES);
const EVENT_ATTRIBUTE: u32 = tag(3, BYTES);
/// An element of a list.
const ELEMENT: u32 = tag(1, BYTES);
const KEY_BYTE: u8 = KEY as u8;
const VALUE_BYTE: u8 = VALUE as u8;
/// The tag of a text in a value.
const TEXT_BYTE: u8 = tag(1, BYTES) as u8;

/// Reads one part of the value at `place`. `count` values were set before it.
fn read_any_value<'a>(
    part: &'a [u8],
    place: Place<'a>,
    last: &mut AttributeValue<'a>,
    count: &mut u32,
) -> Result<(), Malformed> {
    let mut reader = Reader::new(part);
    while let Some(field) = reader.next_field()? {
        *last = match (field.number, field.value) {
            (1, Value::Bytes(text)) => AttributeValue::String(text),
            (2, Value::Varint(number)) => AttributeValue::Bool(number != 0),
            (3, Value::Varint(number)) => AttributeValue::Int(number.cast_signed()),
            (4, Value::Fixed64(bits)) => AttributeValue::Double(f64::from_bits(bits)),
            // A list that follows a list is appended to it.
            (5, Value::Bytes(_)) => match *last {
                AttributeValue::List(list) => AttributeValue::List(list),
                _ => AttributeValue::List(List { place, replaced: *count }),
            },
            (6 | 7, Value::Bytes(_)) | (8, Value::Varint(_)) => AttributeValue::Other,
            (1..=8, _) => return Err(Malformed("wrong wire type in an attribute value")),
            _ => continue,
        };
        *count += 1;
    }
    Ok(())
}
