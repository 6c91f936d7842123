//! Collects leaves while policies are compiled. Equal conditions share a bit, and the builder
//! records enough about each leaf to tell which other leaves it implies.

use std::collections::HashMap;

use super::{
    keys::{ByKey, Keys},
    leaves::{Attributes, DurationRange, Events, Fields, Leaves, Tests, Values},
    node::Node,
    number::NumberRange,
    spec::{Scope, StringMatch},
    texts::{TextsBuilder, Written, set},
};

/// The owner of an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Bearer {
    /// A span or a resource, by the scope of the condition.
    Scope(Scope),
    /// An event.
    Event,
}

impl Bearer {
    /// Whether every attribute of this bearer is also an attribute of `other`.
    fn is_within(self, other: Bearer) -> bool {
        let is_any = other == Bearer::Scope(Scope::Any) && self != Bearer::Event;
        self == other || is_any
    }
}

/// A leaf in the form in which it was given to the builder.
#[derive(Debug)]
pub(super) enum Leaf<'b> {
    Text(Text<'b>, &'b Written),
    Number(Key<'b>, NumberRange),
    Boolean(Key<'b>, bool),
    Exists(Key<'b>),
    /// The mask of kinds.
    Kinds(u8),
    Duration(DurationRange),
    SameSpan(&'b Node),
    SameEvent(&'b Node),
    /// A leaf without anything to compare; equal ones share a bit.
    Other,
}

/// The owner and the key of an attribute.
pub(super) type Key<'k> = (Bearer, &'k str);

/// The text that a condition compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Text<'k> {
    /// The value of this attribute.
    Attribute(Key<'k>),
    /// The value of this key of tracestate.
    TraceState(&'k str),
    /// The name of a span.
    SpanName,
    /// The name of an event.
    EventName,
}

impl Leaf<'_> {
    /// Whether `other` holds wherever this leaf holds, as far as their shapes tell.
    pub(super) fn implies(&self, other: &Leaf<'_>) -> bool {
        let of_same_key = match (self.key(), other.key()) {
            (Some((bearer, key)), Some((other, same))) => key == same && bearer.is_within(other),
            (None, None) => true,
            _ => false,
        };
        of_same_key
            && match (self, other) {
                (
                    Leaf::Text(Text::Attribute(_), written),
                    Leaf::Text(Text::Attribute(_), others),
                ) => written.implies(others),
                (Leaf::Text(what, written), Leaf::Text(other, others)) => {
                    what == other && written.implies(others)
                }
                (Leaf::Number(_, range), Leaf::Number(_, wider)) => range.is_within(wider),
                (Leaf::Boolean(_, value), Leaf::Boolean(_, other)) => value == other,
                (_, Leaf::Exists(_)) => true,
                (Leaf::Kinds(mask), Leaf::Kinds(wider)) => mask & !wider == 0,
                (Leaf::Duration(range), Leaf::Duration(wider)) => range.is_within(wider),
                _ => false,
            }
    }

    fn key(&self) -> Option<Key<'_>> {
        match self {
            Leaf::Text(Text::Attribute(key), _)
            | Leaf::Number(key, _)
            | Leaf::Boolean(key, _)
            | Leaf::Exists(key) => Some(*key),
            _ => None,
        }
    }
}

/// The conditions on one attribute, while they are collected.
#[derive(Debug, Default)]
struct TestsBuilder {
    exists: Option<u32>,
    texts: TextsBuilder,
    values: Values,
}

impl TestsBuilder {
    fn build(self) -> Tests {
        let texts = self.texts.build();
        let values_are_read = !texts.is_empty() || !self.values.are_none();
        Tests { exists: self.exists, texts, values: self.values, values_are_read }
    }
}

/// Collects the conditions while policies are compiled. Each method returns the condition's bit.
#[derive(Debug, Default)]
pub(super) struct LeavesBuilder {
    attributes: HashMap<(Bearer, String), TestsBuilder>,
    trace_states: HashMap<String, TextsBuilder>,
    names: TextsBuilder,
    event_names: TextsBuilder,
    sampled: Option<u32>,
    root: Option<u32>,
    kinds: Vec<(u8, u32)>,
    durations: Vec<(DurationRange, u32)>,
    same_spans: Vec<(Node, u32)>,
    same_events: Vec<(Node, u32)>,
    /// The keys whose values tell kinds of traces apart.
    values: Vec<String>,
    count: u32,
}

impl LeavesBuilder {
    /// The number of the value of this key, for `kinds::kind`. Equal keys share a value.
    pub(super) fn value(&mut self, key: &str) -> u32 {
        let known = self.values.iter().position(|known| known == key);
        let index = known.unwrap_or_else(|| {
            self.values.push(key.to_owned());
            self.values.len() - 1
        });
        // A policy has few keys, and there are at most 1,000 policies.
        index as u32
    }

    /// Condition: the text is one of these.
    pub(super) fn text(&mut self, what: Text<'_>, values: &StringMatch) -> u32 {
        let texts = match what {
            Text::Attribute((bearer, key)) => {
                &mut self.attributes.entry((bearer, key.to_owned())).or_default().texts
            }
            Text::TraceState(key) => self.trace_states.entry(key.to_owned()).or_default(),
            Text::SpanName => &mut self.names,
            Text::EventName => &mut self.event_names,
        };
        texts.bit(values, &mut self.count)
    }

    /// Condition: `key` has a number in this range.
    pub(super) fn number(&mut self, (bearer, key): Key<'_>, range: NumberRange) -> u32 {
        let tests = self.attributes.entry((bearer, key.to_owned())).or_default();
        shared(&mut tests.values.numbers, range, &mut self.count)
    }

    /// Condition: `key` has this boolean.
    pub(super) fn boolean(&mut self, (bearer, key): Key<'_>, value: bool) -> u32 {
        let tests = self.attributes.entry((bearer, key.to_owned())).or_default();
        let bit = &mut tests.values.booleans[usize::from(value)];
        *bit.get_or_insert_with(|| next(&mut self.count))
    }

    /// Condition: `key` exists.
    pub(super) fn exists(&mut self, (bearer, key): Key<'_>) -> u32 {
        let tests = self.attributes.entry((bearer, key.to_owned())).or_default();
        *tests.exists.get_or_insert_with(|| next(&mut self.count))
    }

    /// Condition: a span has the sampled flag.
    pub(super) fn sampled(&mut self) -> u32 {
        *self.sampled.get_or_insert_with(|| next(&mut self.count))
    }

    /// Condition: a span has no parent.
    pub(super) fn root(&mut self) -> u32 {
        *self.root.get_or_insert_with(|| next(&mut self.count))
    }

    /// Condition: the kind of a span is in this mask.
    pub(super) fn kinds(&mut self, mask: u8) -> u32 {
        shared(&mut self.kinds, mask, &mut self.count)
    }

    /// Condition: the duration of a span is in this range.
    pub(super) fn duration(&mut self, range: DurationRange) -> u32 {
        shared(&mut self.durations, range, &mut self.count)
    }

    /// Condition: the expression holds on a single span. The bits in the expression must exist
    /// already.
    pub(super) fn same_span(&mut self, node: Node) -> u32 {
        shared(&mut self.same_spans, node, &mut self.count)
    }

    /// Condition: the expression holds on a single event. The bits in the expression must exist
    /// already, and all must be about events.
    pub(super) fn same_event(&mut self, node: Node) -> u32 {
        shared(&mut self.same_events, node, &mut self.count)
    }

    /// The collected leaves, by bit.
    pub(super) fn leaves(&self) -> Vec<Leaf<'_>> {
        let mut leaves = Vec::new();
        for ((bearer, key), TestsBuilder { exists, texts, values }) in &self.attributes {
            let key: Key<'_> = (*bearer, key);
            let Values { numbers, booleans } = values;
            leaves.extend(exists.map(|bit| (bit, Leaf::Exists(key))));
            let text = |(written, bit)| (bit, Leaf::Text(Text::Attribute(key), written));
            leaves.extend(texts.written().map(text));
            leaves.extend(numbers.iter().map(|(range, bit)| (*bit, Leaf::Number(key, *range))));
            for (value, bit) in [false, true].into_iter().zip(booleans) {
                leaves.extend(bit.map(|bit| (bit, Leaf::Boolean(key, value))));
            }
        }
        let states = self.trace_states.iter().map(|(key, texts)| (Text::TraceState(key), texts));
        let names = [(Text::SpanName, &self.names), (Text::EventName, &self.event_names)];
        for (what, texts) in states.chain(names) {
            leaves.extend(texts.written().map(|(written, bit)| (bit, Leaf::Text(what, written))));
        }
        leaves.extend(self.sampled.into_iter().chain(self.root).map(|bit| (bit, Leaf::Other)));
        leaves.extend(self.kinds.iter().map(|(mask, bit)| (*bit, Leaf::Kinds(*mask))));
        leaves.extend(self.durations.iter().map(|(range, bit)| (*bit, Leaf::Duration(*range))));
        leaves.extend(self.same_spans.iter().map(|(node, bit)| (*bit, Leaf::SameSpan(node))));
        leaves.extend(self.same_events.iter().map(|(node, bit)| (*bit, Leaf::SameEvent(node))));
        leaves.sort_unstable_by_key(|(bit, _)| *bit);
        leaves.into_iter().map(|(_, leaf)| leaf).collect()
    }

    pub(super) fn build(self) -> Leaves {
        let own_bits = self.bits_of_events();
        let mut leaves = Leaves { count: self.count, ..Leaves::default() };
        let (mut of_events, mut attributes) = (ByKey::default(), HashMap::default());
        for ((bearer, key), tests) in self.attributes {
            let tests = tests.build();
            let Bearer::Scope(scope) = bearer else {
                of_events.insert(boxed(key), tests);
                continue;
            };
            let of_key: &mut Attributes = attributes.entry(key).or_default();
            match scope {
                Scope::Any => of_key.of_any = Some(tests),
                Scope::Span => of_key.of_spans = Some(tests),
                Scope::Resource => of_key.of_resources = Some(tests),
            }
        }
        let trace_states = self.trace_states.into_iter();
        let mut fields = Fields {
            names: self.names.build(),
            trace_states: trace_states.map(|(key, texts)| (boxed(key), texts.build())).collect(),
            sampled: self.sampled,
            root: self.root,
            kinds: self.kinds,
            durations: self.durations,
            same_spans: self.same_spans,
            are_read: false,
        };
        fields.are_read = !fields.names.is_empty()
            || !fields.trace_states.is_empty()
            || fields.sampled.is_some()
            || fields.root.is_some()
            || !fields.kinds.is_empty()
            || !fields.durations.is_empty()
            || !fields.same_spans.is_empty()
            || !self.same_events.is_empty();
        for (key, word) in leaves.values.take_keys(self.values, self.count) {
            attributes.entry(key).or_default().word = Some(word);
        }
        leaves.attributes = Keys::new(attributes);
        leaves.events = Events {
            names: self.event_names.build(),
            attributes: of_events,
            same_events: self.same_events,
            own_bits,
        };
        Leaves { fields, ..leaves }
    }

    /// The bits that are about single events, by word.
    fn bits_of_events(&self) -> Vec<u64> {
        let mut bits = vec![0; (self.count as usize).div_ceil(64)];
        for (bit, leaf) in (0..).zip(self.leaves()) {
            let is_of_event = match leaf {
                Leaf::Text(Text::EventName, _) => true,
                leaf => leaf.key().is_some_and(|(bearer, _)| bearer == Bearer::Event),
            };
            if is_of_event {
                set(bit, &mut bits);
            }
        }
        bits
    }
}

/// The bit of an equal leaf if there is one, otherwise a new bit.
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
