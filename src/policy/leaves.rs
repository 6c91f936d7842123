//! Leaves: the conditions that are one bit each, set while a span is walked.
//!
//! Conditions that are written alike share a bit. The keys that any condition reads stand in one
//! hash table, so an attribute costs one look-up whatever the number of policies, and a wanted
//! value one more ([`super::texts`]); only bounds on numbers are tried one by one. A value is read
//! from its bytes only when its key is wanted, name, flags and tracestate only when some condition
//! asks for them.
//!
//! A span's bits begin as those of its resource and get those of its attributes. When all are
//! there, `same_span` evaluates its expression on them, and sets a bit of its own.

use std::collections::HashMap;

use super::{
    node::Node,
    number::{Number, NumberRange},
    spec::StringMatch,
    texts::{Texts, TextsBuilder, Written, set},
};
use crate::{
    otlp::{
        conditions::{Attribute, AttributeValue, Conditions, SpanFields},
        tracestate,
        wire::Malformed,
    },
    trace::Facts,
};

/// The resource attribute that `service_name` compares.
const SERVICE_NAME: &[u8] = b"service.name";

type ByKey<T> = HashMap<Box<[u8]>, T, foldhash::fast::RandomState>;

/// The compiled leaves.
#[derive(Debug, Default)]
pub struct Leaves {
    attributes: ByKey<Attributes>,
    /// The [`key_bit`] of each key: nearly all attributes that no policy names are told by it,
    /// without hashing them.
    key_bits: u64,
    service_names: Texts,
    fields: Fields,
    count: u32,
}

/// The conditions on attributes of one key.
#[derive(Debug, Default)]
struct Attributes {
    texts: Texts,
    values: Values,
}

/// The bits of conditions on values that are no texts.
#[derive(Debug, Default)]
struct Values {
    numbers: Vec<(NumberRange, u32)>,
    /// Of false and of true.
    booleans: [Option<u32>; 2],
}

/// The conditions on what a span is beside its attributes.
#[derive(Debug, Default)]
struct Fields {
    names: Texts,
    trace_states: ByKey<Texts>,
    sampled: Option<u32>,
    same_spans: Vec<(Node, u32)>,
    /// Whether there is any.
    are_read: bool,
}

impl Conditions for Leaves {
    fn words(&self) -> usize {
        (self.count as usize).div_ceil(64)
    }

    #[inline(always)]
    fn reads_attributes(&self) -> bool {
        self.key_bits != 0
    }

    #[inline(always)]
    fn reads_fields(&self) -> bool {
        self.fields.are_read
    }

    #[inline(always)]
    fn test_attribute(&self, attribute: Attribute<'_>, bits: &mut [u64]) -> Result<(), Malformed> {
        if self.key_bits & key_bit(attribute.key) == 0 {
            return Ok(());
        }
        self.test_key(attribute, bits)
    }

    fn test_resource_attribute(
        &self,
        attribute: Attribute<'_>,
        bits: &mut [u64],
    ) -> Result<(), Malformed> {
        if attribute.key == SERVICE_NAME && !self.service_names.is_empty() {
            attribute.value()?.each(&mut |value| {
                if let AttributeValue::String(name) = value {
                    self.service_names.test(name, bits);
                }
            })?;
        }
        self.test_attribute(attribute, bits)
    }

    fn test_span(&self, span: &SpanFields<'_>, bits: &mut [u64]) {
        let fields = &self.fields;
        fields.names.test(span.name, bits);
        if let Some(bit) = fields.sampled.filter(|_| span.flags & 1 == 1) {
            set(bit, bits);
        }
        if !fields.trace_states.is_empty() {
            for (key, value) in tracestate::pairs(span.trace_state) {
                if let Some(values) = fields.trace_states.get(key.as_bytes()) {
                    values.test(value.as_bytes(), bits);
                }
            }
        }
        let facts = Facts { status_mask: span.status_mask, ..Facts::default() };
        for (node, bit) in &fields.same_spans {
            if node.evaluate(&facts, bits, false).matches() {
                set(*bit, bits);
            }
        }
    }
}

impl Leaves {
    fn test_key(&self, attribute: Attribute<'_>, bits: &mut [u64]) -> Result<(), Malformed> {
        let Some(leaves) = self.attributes.get(attribute.key) else { return Ok(()) };
        attribute.value()?.each(&mut |value| leaves.test(value, bits))
    }
}

impl Attributes {
    #[inline]
    fn test(&self, value: AttributeValue<'_>, bits: &mut [u64]) {
        match value {
            AttributeValue::String(text) => self.texts.test(text, bits),
            AttributeValue::Int(number) => self.values.test(Number::Int(number), bits),
            AttributeValue::Double(number) => self.values.test(Number::Double(number), bits),
            AttributeValue::Bool(value) => {
                self.values.booleans[usize::from(value)].iter().for_each(|&bit| set(bit, bits));
            }
            AttributeValue::List(_) | AttributeValue::Other => {}
        }
    }
}

impl Values {
    fn test(&self, number: Number, bits: &mut [u64]) {
        for (range, bit) in &self.numbers {
            if range.contains(number) {
                set(*bit, bits);
            }
        }
    }
}

/// One of 64 bits for a key, by its length and both ends.
#[inline(always)]
fn key_bit(key: &[u8]) -> u64 {
    let [first, last] = [key.first(), key.last()].map(|end| end.map_or(0, |&end| u32::from(end)));
    1u64.wrapping_shl((key.len() as u32).wrapping_add(3 * first + 5 * last))
}

/// A leaf as it was given to the builder.
#[derive(Debug)]
pub(super) enum Leaf<'b> {
    Text(Text<'b>, &'b Written),
    Number(&'b str, NumberRange),
    SameSpan(&'b Node),
    /// One that has nothing to compare: equal ones share a bit.
    Other,
}

impl Leaf<'_> {
    /// Whether the other holds wherever this one does, as far as one can tell by looking at them.
    pub(super) fn implies(&self, other: &Leaf<'_>) -> bool {
        match (self, other) {
            (Leaf::Text(what, written), Leaf::Text(other, others)) => {
                what == other && written.implies(others)
            }
            (Leaf::Number(key, range), Leaf::Number(other, wider)) => {
                key == other && range.is_within(wider)
            }
            _ => false,
        }
    }
}

/// What a text is compared as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Text<'k> {
    /// The value of this attribute of a span or its resource.
    Attribute(&'k str),
    /// The value of this key of tracestate.
    TraceState(&'k str),
    /// The name of a span.
    SpanName,
    /// `service.name` of a resource.
    ServiceName,
}

/// Collects the conditions while policies are compiled. Each method returns the condition's bit.
#[derive(Debug, Default)]
pub(super) struct LeavesBuilder {
    attributes: HashMap<String, TextsBuilder>,
    values: HashMap<String, Values>,
    trace_states: HashMap<String, TextsBuilder>,
    names: TextsBuilder,
    service_names: TextsBuilder,
    sampled: Option<u32>,
    same_spans: Vec<(Node, u32)>,
    count: u32,
}

impl LeavesBuilder {
    /// "It is one of these."
    pub(super) fn text(&mut self, what: Text<'_>, values: &StringMatch) -> u32 {
        let texts = match what {
            Text::Attribute(key) => self.attributes.entry(key.to_owned()).or_default(),
            Text::TraceState(key) => self.trace_states.entry(key.to_owned()).or_default(),
            Text::SpanName => &mut self.names,
            Text::ServiceName => &mut self.service_names,
        };
        texts.bit(values, &mut self.count)
    }

    /// "A span or its resource has `key` with a number in this range."
    pub(super) fn number(&mut self, key: &str, range: NumberRange) -> u32 {
        let values = self.values.entry(key.to_owned()).or_default();
        shared(&mut values.numbers, range, &mut self.count)
    }

    /// "A span or its resource has `key` with this boolean."
    pub(super) fn boolean(&mut self, key: &str, value: bool) -> u32 {
        let values = self.values.entry(key.to_owned()).or_default();
        *values.booleans[usize::from(value)].get_or_insert_with(|| next(&mut self.count))
    }

    /// "A span has the sampled flag."
    pub(super) fn sampled(&mut self) -> u32 {
        *self.sampled.get_or_insert_with(|| next(&mut self.count))
    }

    /// "The expression holds on a single span." Its own bits have been given out before.
    pub(super) fn same_span(&mut self, node: Node) -> u32 {
        shared(&mut self.same_spans, node, &mut self.count)
    }

    /// What has been collected, by bit.
    pub(super) fn leaves(&self) -> Vec<Leaf<'_>> {
        let mut leaves = Vec::new();
        let texts = self.attributes.iter().map(|(key, texts)| (Text::Attribute(key), texts));
        let states = self.trace_states.iter().map(|(key, texts)| (Text::TraceState(key), texts));
        let names = [(Text::SpanName, &self.names), (Text::ServiceName, &self.service_names)];
        for (what, texts) in texts.chain(states).chain(names) {
            leaves.extend(texts.written().map(|(written, bit)| (bit, Leaf::Text(what, written))));
        }
        for (key, Values { numbers, booleans }) in &self.values {
            leaves.extend(numbers.iter().map(|(range, bit)| (*bit, Leaf::Number(key, *range))));
            leaves.extend(booleans.iter().flatten().map(|bit| (*bit, Leaf::Other)));
        }
        leaves.extend(self.sampled.map(|bit| (bit, Leaf::Other)));
        leaves.extend(self.same_spans.iter().map(|(node, bit)| (*bit, Leaf::SameSpan(node))));
        leaves.sort_unstable_by_key(|(bit, _)| *bit);
        leaves.into_iter().map(|(_, leaf)| leaf).collect()
    }

    pub(super) fn build(self) -> Leaves {
        let mut attributes = ByKey::<Attributes>::default();
        for (key, texts) in self.attributes {
            attributes.entry(boxed(key)).or_default().texts = texts.build();
        }
        for (key, values) in self.values {
            attributes.entry(boxed(key)).or_default().values = values;
        }
        let trace_states = self.trace_states.into_iter();
        let mut fields = Fields {
            names: self.names.build(),
            trace_states: trace_states.map(|(key, texts)| (boxed(key), texts.build())).collect(),
            sampled: self.sampled,
            same_spans: self.same_spans,
            are_read: false,
        };
        fields.are_read = !fields.names.is_empty()
            || !fields.trace_states.is_empty()
            || fields.sampled.is_some()
            || !fields.same_spans.is_empty();
        Leaves {
            key_bits: attributes.keys().fold(0, |bits, key| bits | key_bit(key)),
            attributes,
            service_names: self.service_names.build(),
            fields,
            count: self.count,
        }
    }
}

/// The bit of what was given one before, else a new one.
fn shared<T: PartialEq>(known: &mut Vec<(T, u32)>, new: T, count: &mut u32) -> u32 {
    if let Some((_, bit)) = known.iter().find(|(old, _)| *old == new) {
        return *bit;
    }
    let bit = next(count);
    known.push((new, bit));
    bit
}

fn next(count: &mut u32) -> u32 {
    *count += 1;
    *count - 1
}

fn boxed(key: String) -> Box<[u8]> {
    key.into_bytes().into()
}
