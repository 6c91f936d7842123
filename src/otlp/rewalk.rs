//! Walks spans again: computes the bits of spans that have been taken in, for other [`Conditions`]
//! than they were walked with.
//!
//! A reload calls it for every buffered span. It runs without the shard's lock, except for spans
//! that arrived during the second pass; it also runs under the lock for requests that were walked
//! just before the reload. It refuses nothing. A value that cannot be read (no condition needed it
//! when its request was accepted) meets no condition; of a list, the elements before the unreadable
//! one count.

use std::collections::HashMap;

use super::{
    conditions::{Attribute, Conditions, Event, SpanFields, Words},
    context::{Context, Resource},
    walk::{read_resource, read_span},
    wire::Malformed,
};

/// The most words of resource bits that are cached: 1 MiB. When the cache is full, it is cleared.
const REMEMBERED_WORDS: usize = 128 << 10;

/// Computes the bits of spans for one set of conditions. Caches the bits of each resource.
#[derive(Debug)]
pub(crate) struct Rewalk<'a, C> {
    conditions: Lenient<'a, C>,
    /// The start of a resource's bits in `of_resources`, by resource id.
    starts: HashMap<u64, usize, foldhash::fast::RandomState>,
    of_resources: Vec<u64>,
    /// The resource of the last span, because consecutive spans usually have the same resource.
    last: Option<(u64, usize)>,
    of_span: Vec<u64>,
}

impl<'a, C: Conditions> Rewalk<'a, C> {
    /// Starts with an empty cache of resources.
    pub(crate) fn new(conditions: &'a C) -> Self {
        Rewalk {
            conditions: Lenient(conditions),
            starts: HashMap::default(),
            of_resources: Vec::new(),
            last: None,
            of_span: vec![0; conditions.words()],
        }
    }

    /// Adds the bits of a span and its resource to `bits`, which has as many words as the
    /// conditions need.
    pub(crate) fn add(&mut self, context: &Context, span: &[u8], bits: &mut [u64]) {
        let start = self.start_of(context.resource());
        let words = self.of_span.len();
        self.of_span.copy_from_slice(&self.of_resources[start..start + words]);
        // Bytes after an invalid field are not read, as in a resource.
        let _ = if self.conditions.reads_fields() {
            read_span::<true, _>(&self.conditions, span, &mut self.of_span)
        } else {
            read_span::<false, _>(&self.conditions, span, &mut self.of_span)
        };
        self.conditions.shape().merge(bits, &self.of_span);
    }

    fn start_of(&mut self, resource: &Resource) -> usize {
        let id = resource.id();
        if let Some((_, start)) = self.last.filter(|(last, _)| *last == id) {
            return start;
        }
        // Senders control the number of resources, and the bits of a resource may be larger than
        // the resource.
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

/// The same conditions, except that unreadable values meet none of them.
#[derive(Debug)]
struct Lenient<'a, C>(&'a C);

impl<C: Conditions> Conditions for Lenient<'_, C> {
    fn words(&self) -> usize {
        self.0.words()
    }

    fn shape(&self) -> Words {
        self.0.shape()
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

    #[inline(always)]
    fn describe_span(&self, fields: &SpanFields<'_>, words: &mut [u64]) {
        self.0.describe_span(fields, words);
    }
}
