//! Leaves: the conditions that have one bit each, which is set while a span is walked.
//!
//! Equal conditions share a bit ([`super::builder`]). The keys that conditions read are in one
//! table ([`super::keys`]), so an attribute costs one look-up regardless of the number of policies,
//! and a value that is compared costs one more ([`super::texts`]). Only bounds on numbers are tried
//! one by one. A value is read from its bytes only if a condition names its key. Name, kind, flags,
//! tracestate and events are read only if a condition needs them.
//!
//! The bits of a span start as the bits of its resource; its attributes and events add theirs. When
//! all are set, `same_span` evaluates its expression on them and sets its own bit.
//!
//! `span_event` works the same way within an event. The event's name and attributes set bits; at
//! the end of the event the expression is evaluated on them, and they are cleared for the next
//! event. They are stored among the bits of the span, so they need no extra buffer.
//!
//! Budgets and rare policies also need values of one span of the trace ([`super::kinds`]). Their
//! words follow the bits.

use super::{
    keys::{ByKey, Keys},
    kinds::{self, KindValues},
    node::Node,
    number::{Number, NumberRange},
    texts::{Texts, set},
};
use crate::{
    otlp::{
        conditions::{Attribute, AttributeValue, Conditions, Event, SpanFields, Words},
        tracestate,
        wire::Malformed,
    },
    trace::Facts,
};

/// The compiled leaves.
#[derive(Debug, Default)]
pub struct Leaves {
    pub(super) attributes: Keys,
    pub(super) fields: Fields,
    pub(super) events: Events,
    pub(super) values: KindValues,
    pub(super) count: u32,
}

/// The conditions on attributes of one key, by the owner of the attribute.
#[derive(Debug, Default)]
pub(super) struct Attributes {
    pub(super) of_any: Option<Tests>,
    pub(super) of_spans: Option<Tests>,
    pub(super) of_resources: Option<Tests>,
    /// The word of its value, if that tells kinds of traces apart.
    pub(super) word: Option<usize>,
}

impl Attributes {
    /// Whether attributes of spans are read.
    pub(super) fn are_of_spans(&self) -> bool {
        self.of_any.is_some() || self.of_spans.is_some() || self.word.is_some()
    }
}

/// Conditions on an attribute.
#[derive(Debug, Default)]
pub(super) struct Tests {
    /// The bit of the condition that the attribute exists.
    pub(super) exists: Option<u32>,
    pub(super) texts: Texts,
    pub(super) values: Values,
    /// Whether there are conditions other than existence.
    pub(super) values_are_read: bool,
}

/// The bits of conditions on values that are not text.
#[derive(Debug, Default)]
pub(super) struct Values {
    pub(super) numbers: Vec<(NumberRange, u32)>,
    /// The bits for false and for true.
    pub(super) booleans: [Option<u32>; 2],
}

/// The conditions on the fields of a span other than its attributes and events.
#[derive(Debug, Default)]
pub(super) struct Fields {
    pub(super) names: Texts,
    pub(super) trace_states: ByKey<Texts>,
    pub(super) sampled: Option<u32>,
    pub(super) root: Option<u32>,
    /// Masks of kinds.
    pub(super) kinds: Vec<(u8, u32)>,
    pub(super) durations: Vec<(DurationRange, u32)>,
    pub(super) same_spans: Vec<(Node, u32)>,
    /// Whether there is any condition on these fields or on events.
    pub(super) are_read: bool,
}

/// The conditions on events.
#[derive(Debug, Default)]
pub(super) struct Events {
    pub(super) names: Texts,
    pub(super) attributes: ByKey<Tests>,
    /// Expressions over the bits of one event, each with the bit of the span that it sets.
    pub(super) same_events: Vec<(Node, u32)>,
    /// The bits about one event among the bits of its span, by word.
    pub(super) own_bits: Vec<u64>,
}

/// Bounds on a duration in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DurationRange {
    /// Exclusive.
    pub(super) over: u64,
    /// Inclusive.
    pub(super) up_to: Option<u64>,
}

impl Conditions for Leaves {
    fn words(&self) -> usize {
        self.shape().all()
    }

    fn shape(&self) -> Words {
        let bits = Words::of_bits((self.count as usize).div_ceil(64));
        self.values.add_to(bits)
    }

    #[inline(always)]
    fn reads_attributes(&self) -> bool {
        !self.attributes.are_of_resources_only()
    }

    #[inline(always)]
    fn reads_fields(&self) -> bool {
        self.fields.are_read
    }

    #[inline(always)]
    fn reads_events(&self) -> bool {
        !self.events.same_events.is_empty()
    }

    #[inline(always)]
    fn test_attribute(&self, attribute: Attribute<'_>, bits: &mut [u64]) -> Result<(), Malformed> {
        if self.attributes.may_read(attribute.key) {
            self.test_key(attribute, bits)
        } else {
            Ok(())
        }
    }

    fn test_resource_attribute(
        &self,
        attribute: Attribute<'_>,
        bits: &mut [u64],
    ) -> Result<(), Malformed> {
        let Some(tests) = self.attributes.of_resource(attribute.key) else { return Ok(()) };
        kinds::note(tests.word, attribute, bits)?;
        test([&tests.of_any, &tests.of_resources], attribute, bits)
    }

    fn test_event(&self, event: Event<'_>, bits: &mut [u64]) -> Result<(), Malformed> {
        let outcome = self.events.test(event, bits);
        // Cleared after an error too, because the span may have other events.
        bits.iter_mut().zip(&self.events.own_bits).for_each(|(word, own)| *word &= !own);
        outcome
    }

    fn test_span(&self, span: &SpanFields<'_>, bits: &mut [u64]) {
        let fields = &self.fields;
        fields.names.test(span.name, bits);
        if let Some(bit) = fields.sampled.filter(|_| span.flags & 1 == 1) {
            set(bit, bits);
        }
        if let Some(bit) = fields.root.filter(|_| span.is_root) {
            set(bit, bits);
        }
        for (_, bit) in fields.kinds.iter().filter(|(mask, _)| mask & span.kind_mask != 0) {
            set(*bit, bits);
        }
        if let Some(nanos) = span.duration_nanos {
            for (_, bit) in fields.durations.iter().filter(|(range, _)| range.contains(nanos)) {
                set(*bit, bits);
            }
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

    #[inline(always)]
    fn describe_span(&self, span: &SpanFields<'_>, words: &mut [u64]) {
        self.values.note_span(span, words);
    }
}

impl Leaves {
    /// The word of the first value that tells kinds of traces apart.
    pub(super) fn first_value(&self) -> usize {
        self.values.first()
    }

    fn test_key(&self, attribute: Attribute<'_>, bits: &mut [u64]) -> Result<(), Malformed> {
        let Some(tests) = self.attributes.of_span(attribute.key) else { return Ok(()) };
        kinds::note(tests.word, attribute, bits)?;
        test([&tests.of_any, &tests.of_spans], attribute, bits)
    }
}

impl Events {
    fn test(&self, event: Event<'_>, bits: &mut [u64]) -> Result<(), Malformed> {
        let name = event.read(|attribute| match self.attributes.get(attribute.key) {
            Some(tests) => tests.test_attribute(attribute, bits),
            None => Ok(()),
        })?;
        self.names.test(name, bits);
        // Most events meet no condition, and a request may have millions of events.
        if bits.iter().zip(&self.own_bits).all(|(word, own)| word & own == 0) {
            return Ok(());
        }
        for (node, bit) in &self.same_events {
            if node.evaluate(&Facts::default(), bits, false).matches() {
                set(*bit, bits);
            }
        }
        Ok(())
    }
}

/// Sets the bits of the conditions that an attribute meets. Most keys are used in one scope only,
/// so the value is read once.
#[inline]
fn test(
    tests: [&Option<Tests>; 2],
    attribute: Attribute<'_>,
    bits: &mut [u64],
) -> Result<(), Malformed> {
    tests.into_iter().flatten().try_for_each(|tests| tests.test_attribute(attribute, bits))
}

impl Tests {
    #[inline]
    fn test_attribute(&self, attribute: Attribute<'_>, bits: &mut [u64]) -> Result<(), Malformed> {
        if let Some(bit) = self.exists {
            set(bit, bits);
        }
        if !self.values_are_read {
            return Ok(());
        }
        attribute.value()?.each(&mut |value| self.test(value, bits))
    }

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
    pub(super) fn are_none(&self) -> bool {
        self.numbers.is_empty() && self.booleans == [None; 2]
    }

    fn test(&self, number: Number, bits: &mut [u64]) {
        for (range, bit) in &self.numbers {
            if range.contains(number) {
                set(*bit, bits);
            }
        }
    }
}

impl DurationRange {
    fn contains(&self, nanos: u64) -> bool {
        nanos > self.over && self.up_to.is_none_or(|most| nanos <= most)
    }

    /// Whether `other` contains every duration that this range contains.
    pub(super) fn is_within(&self, other: &DurationRange) -> bool {
        self.over >= other.over
            && other.up_to.is_none_or(|bound| self.up_to.is_some_and(|most| most <= bound))
    }
}
