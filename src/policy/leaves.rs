//! Attribute conditions: one bit each, set while a span is walked.
//!
//! Conditions that are written alike share a bit. The keys that any condition reads stand in one
//! hash table, so an attribute that no policy names costs one look-up whatever the number of
//! policies. A value is read from its bytes only when its key is wanted.

use std::collections::{HashMap, HashSet};

use regex::bytes::RegexSet;

use super::spec::StringMatch;
use crate::otlp::{
    walk::{Attribute, AttributeValue},
    wire::Malformed,
};

/// The compiled attribute conditions.
#[derive(Debug, Default)]
pub struct Leaves {
    by_key: HashMap<Box<[u8]>, Vec<Leaf>, foldhash::fast::RandomState>,
    /// One bit for each length of a key, those of 63 and more together: most attributes that no
    /// policy names are told by it, without hashing them.
    key_lengths: u64,
    count: u32,
}

#[derive(Debug)]
struct Leaf {
    bit: u32,
    test: StringTest,
}

#[derive(Debug)]
enum StringTest {
    OneOf(HashSet<Box<[u8]>, foldhash::fast::RandomState>),
    Regex(RegexSet),
}

impl Leaves {
    /// 64-bit words that the bits of all conditions need; 0 where no policy reads an attribute.
    pub fn words(&self) -> usize {
        (self.count as usize).div_ceil(64)
    }

    /// Sets the bits of the conditions that one attribute of a span or its resource meets.
    ///
    /// # Errors
    /// [`Malformed`] where the value of a key that a policy names cannot be read.
    #[inline(always)]
    pub fn test(&self, attribute: Attribute<'_>, bits: &mut [u64]) -> Result<(), Malformed> {
        if self.key_lengths & length_bit(attribute.key) == 0 {
            return Ok(());
        }
        self.test_key(attribute, bits)
    }

    fn test_key(&self, attribute: Attribute<'_>, bits: &mut [u64]) -> Result<(), Malformed> {
        let Some(leaves) = self.by_key.get(attribute.key) else { return Ok(()) };
        let AttributeValue::String(value) = attribute.value()? else { return Ok(()) };
        for leaf in leaves {
            if leaf.test.matches(value) {
                bits[leaf.bit as usize / 64] |= 1 << (leaf.bit % 64);
            }
        }
        Ok(())
    }
}

fn length_bit(key: &[u8]) -> u64 {
    1 << key.len().min(63)
}

impl StringTest {
    fn matches(&self, value: &[u8]) -> bool {
        match self {
            StringTest::OneOf(values) => values.contains(value),
            StringTest::Regex(set) => set.is_match(value),
        }
    }
}

/// Collects the conditions while policies are compiled.
#[derive(Debug, Default)]
pub(super) struct LeavesBuilder {
    leaves: Leaves,
    /// Bit by what was written, so that equal conditions share one.
    written: HashMap<(String, bool, Vec<String>), u32>,
}

impl LeavesBuilder {
    /// The bit of "a span or its resource has `key` with one of these strings".
    pub(super) fn string(&mut self, key: &str, values: &StringMatch) -> u32 {
        let (is_regex, mut patterns) = match values {
            StringMatch::Exact(values) => (false, values.clone()),
            StringMatch::Regex(set) => (true, set.patterns().to_vec()),
        };
        patterns.sort_unstable();
        let leaves = &mut self.leaves;
        *self.written.entry((key.to_owned(), is_regex, patterns)).or_insert_with(|| {
            let bit = leaves.count;
            leaves.count += 1;
            let test = match values {
                StringMatch::Exact(values) => {
                    StringTest::OneOf(values.iter().map(|value| value.as_bytes().into()).collect())
                }
                StringMatch::Regex(set) => StringTest::Regex(set.clone()),
            };
            leaves.key_lengths |= length_bit(key.as_bytes());
            leaves.by_key.entry(key.as_bytes().into()).or_default().push(Leaf { bit, test });
            bit
        })
    }

    pub(super) fn build(self) -> Leaves {
        self.leaves
    }
}
