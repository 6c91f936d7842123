//! The values that tell kinds of traces apart, taken while spans are walked.
//!
//! A trace is described by one span: its root, otherwise the span that starts first. Each value has
//! a word after the bits of the span, with the hash of the value or 0 if there is none. The words
//! of a span start as those of its resource, and its attributes replace them. A word before them
//! ranks the span; when spans are merged into a trace, the words with the highest rank stay
//! ([`Words`]).
//!
//! A trace keeps 8 bytes for each value, however long the value is. The hash has no secret key, so
//! that a reload, a replay and a simulation find the same kinds. Somebody who constructs values
//! with equal hashes only merges kinds of their own.

use std::hash::{BuildHasher as _, Hasher as _};

use foldhash::fast::FixedState;

use crate::otlp::{
    conditions::{Attribute, AttributeValue, SpanFields, Words},
    wire::Malformed,
};

/// Keys that stand for a field of the span and not for an attribute.
pub(crate) const FIELDS: [&str; 3] = ["span.name", "span.kind", "status.code"];

/// The words of values of one span.
#[derive(Debug, Default)]
pub(super) struct KindValues {
    /// The number of values.
    count: usize,
    /// The word with the rank of the span.
    rank: usize,
    /// The words of [`FIELDS`].
    fields: [Option<usize>; 3],
}

impl KindValues {
    /// Assigns a word to each key, in the order of the keys' numbers, after the words that hold
    /// `bits` bits. Returns the keys that are attributes, with their words.
    pub(super) fn take_keys(&mut self, keys: Vec<String>, bits: u32) -> Vec<(String, usize)> {
        self.count = keys.len();
        self.rank = (bits as usize).div_ceil(64);
        let mut attributes = Vec::new();
        for (word, key) in (self.rank + 1..).zip(keys) {
            match FIELDS.iter().position(|field| *field == key) {
                Some(field) => self.fields[field] = Some(word),
                None => attributes.push((key, word)),
            }
        }
        attributes
    }

    pub(super) fn add_to(&self, bits: Words) -> Words {
        let words = if self.count == 0 { 0 } else { 1 + self.count };
        bits.and_of_one_span(words)
    }

    /// Stores the rank and the fields of a span in its words.
    #[inline(always)]
    pub(super) fn note_span(&self, span: &SpanFields<'_>, words: &mut [u64]) {
        if self.count == 0 {
            return;
        }
        words[self.rank] = rank(span);
        let [name, kind, status] = self.fields;
        if let Some(word) = name {
            words[word] = hash(|hasher| add(AttributeValue::String(span.name), hasher));
        }
        if let Some(word) = kind {
            words[word] = u64::from(span.kind_mask) + 1;
        }
        if let Some(word) = status {
            words[word] = u64::from(span.status_mask) + 1;
        }
    }

    /// The word of the first value.
    pub(super) fn first(&self) -> usize {
        self.rank + 1
    }
}

/// The kind of a trace: a hash of the values with these numbers, which the builder has assigned.
pub(super) fn kind(values: &[u32], first: usize, words: &[u64]) -> u64 {
    if values.is_empty() {
        return 0;
    }
    let words = values.iter().map(|value| words[first + *value as usize]);
    hash(|hasher| words.for_each(|word| hasher.write_u64(word)))
}

/// The rank of a span. Roots rank above other spans. Among equals, an earlier start ranks above a
/// later one, and a missing start ranks lowest.
fn rank(span: &SpanFields<'_>) -> u64 {
    const LAST: u64 = u64::MAX >> 1;
    let start = if span.start_unix_nano == 0 { u64::MAX } else { span.start_unix_nano };
    u64::from(span.is_root) << 63 | (LAST - start.min(LAST - 1))
}

/// Stores the hash of an attribute's value in `word`, if the attribute has a word.
#[inline]
pub(super) fn note(
    word: Option<usize>,
    attribute: Attribute<'_>,
    words: &mut [u64],
) -> Result<(), Malformed> {
    let Some(word) = word else { return Ok(()) };
    let mut outcome = Ok(());
    words[word] = hash(|hasher| {
        let each = |value: AttributeValue<'_>| value.each(&mut |value| add(value, hasher));
        outcome = attribute.value().and_then(each);
    });
    outcome
}

/// Adds a value to the hash. A list adds its elements. All maps and byte strings count as equal.
fn add(value: AttributeValue<'_>, hasher: &mut impl std::hash::Hasher) {
    match value {
        AttributeValue::String(text) => {
            hasher.write_u8(1);
            hasher.write(text);
        }
        AttributeValue::Int(number) => {
            hasher.write_u8(2);
            hasher.write_i64(number);
        }
        AttributeValue::Double(number) => {
            hasher.write_u8(3);
            hasher.write_u64(number.to_bits());
        }
        AttributeValue::Bool(value) => hasher.write_u8(4 + u8::from(value)),
        AttributeValue::List(_) | AttributeValue::Other => hasher.write_u8(6),
    }
}

/// A hash that is never 0, because 0 stands for no value.
fn hash(write: impl FnOnce(&mut foldhash::fast::FoldHasher<'static>)) -> u64 {
    let mut hasher = FixedState::with_seed(0).build_hasher();
    write(&mut hasher);
    hasher.finish().max(1)
}
