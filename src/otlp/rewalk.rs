//! Walking again: the bits of spans that are taken in already, by other [`Conditions`] than they
//! were walked with.
//!
//! Called when policies are reloaded for every buffered span, without the shard's lock but for what
//! came during the second pass, and under the lock for requests that were walked just before.
//! Nothing is refused any more: a value that cannot be read, because nothing asked for it when its request was accepted, meets no condition;
//! of a list, the elements before the one that cannot be read count.

use std::collections::HashMap;

use super::{
    conditions::{Attribute, Conditions, Event, SpanFields},
    context::{Context, Resource},
    walk::{read_resource, read_span},
    wire::Malformed,
};

/// Words of bits of resources that are remembered, 1 MiB; then they are computed anew.
const REMEMBERED_WORDS: usize = 128 << 10;

/// Computes bits by some conditions, those of each resource once.
#[derive(Debug)]
pub struct Rewalk<'a, C> {
    conditions: Lenient<'a, C>,
    /// Where in `of_resources` the bits of a resource begin, by its id.
    starts: HashMap<u64, usize, foldhash::fast::RandomState>,
    of_resources: Vec<u64>,
    /// Of the last span: spans of one resource mostly come together.
    last: Option<(u64, usize)>,
    of_span: Vec<u64>,
}

impl<'a, C: Conditions> Rewalk<'a, C> {
    /// Knows no resource yet.
    pub fn new(conditions: &'a C) -> Self {
        Rewalk {
            conditions: Lenient(conditions),
            starts: HashMap::default(),
            of_resources: Vec::new(),
            last: None,
            of_span: vec![0; conditions.words()],
        }
    }

    /// Adds the bits of a span with its resource to `bits`, which are as many words as the
    /// conditions ask for.
    pub fn add(&mut self, context: &Context, span: &[u8], bits: &mut [u64]) {
        let start = self.start_of(context.resource());
        let words = self.of_span.len();
        self.of_span.copy_from_slice(&self.of_resources[start..start + words]);
        // What stands behind something that is no field is not read, as with a resource.
        let _ = if self.conditions.reads_fields() {
            read_span::<true, _>(&self.conditions, span, &mut self.of_span)
        } else {
            read_span::<false, _>(&self.conditions, span, &mut self.of_span)
        };
        bits.iter_mut().zip(&self.of_span).for_each(|(all, word)| *all |= word);
    }

    fn start_of(&mut self, resource: &Resource) -> usize {
        let id = resource.id();
        if let Some((_, start)) = self.last.filter(|(last, _)| *last == id) {
            return start;
        }
        // Resources are many where senders want it, and the bits of one may be larger than itself.
        if self.of_resources.len() >= REMEMBERED_WORDS {
            self.of_resources.clear();
            self.starts.clear();
        }
        let start = *self.starts.entry(id).or_insert_with(|| {
            let start = self.of_resources.len();
            self.of_resources.resize(start + self.of_span.len(), 0);
            let bits = &mut self.of_resources[start..];
            let _ = read_resource(&self.conditions, resource.arrived(), bits);
            start
        });
        self.last = Some((id, start));
        start
    }
}

/// The same conditions, met by nothing that cannot be read.
#[derive(Debug)]
struct Lenient<'a, C>(&'a C);

impl<C: Conditions> Conditions for Lenient<'_, C> {
    fn words(&self) -> usize {
        self.0.words()
    }

    #[inline(always)]
    fn reads_attributes(&self) -> bool {
        self.0.reads_attributes()
    }

    #[inline(always)]
    fn reads_fields(&self) -> bool {
        self.0.reads_fields()
    }

    #[inline(always)]
    fn reads_events(&self) -> bool {
        self.0.reads_events()
    }

    #[inline(always)]
    fn test_attribute(&self, attribute: Attribute<'_>, bits: &mut [u64]) -> Result<(), Malformed> {
        let _ = self.0.test_attribute(attribute, bits);
        Ok(())
    }

    fn test_resource_attribute(
        &self,
        attribute: Attribute<'_>,
        bits: &mut [u64],
    ) -> Result<(), Malformed> {
        let _ = self.0.test_resource_attribute(attribute, bits);
        Ok(())
    }

    fn test_event(&self, event: Event<'_>, bits: &mut [u64]) -> Result<(), Malformed> {
        let _ = self.0.test_event(event, bits);
        Ok(())
    }

    fn test_span(&self, fields: &SpanFields<'_>, bits: &mut [u64]) {
        self.0.test_span(fields, bits);
    }
}
