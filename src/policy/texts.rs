//! The conditions on one kind of text, such as the values of an attribute. They map a text to the
//! bits of all conditions that it meets.
//!
//! Listed values are in one hash table and all expressions in one set, so a text costs one look-up
//! and one search, regardless of the number of conditions. Texts are bytes. A listed value is
//! compared byte by byte, and expressions also search text that is not UTF-8. Such text arrives now
//! and then and is repaired only when its span is exported.
//!
//! A set of 1,000 simple expressions costs a text no more than one expression. With 10,000 on one
//! key, the expression engine exceeds its cache, and a text costs as much as trying each expression
//! (0.2 ms).

use std::collections::{BTreeMap, HashMap};

use regex::bytes::{RegexSet, RegexSetBuilder};

use super::spec::StringMatch;

/// The bits that one value or expression sets.
type Bits = Vec<u32>;

/// The compiled conditions on one kind of text.
#[derive(Debug, Default)]
pub(super) struct Texts {
    listed: HashMap<Box<[u8]>, Bits, foldhash::fast::RandomState>,
    expressions: Option<Expressions>,
}

#[derive(Debug)]
struct Expressions {
    set: RegexSet,
    /// The bits of each expression of the set.
    bits: Vec<Bits>,
    /// The bit that all expressions set, if they belong to one condition.
    only: Option<u32>,
}

impl Texts {
    /// Sets the bits of the conditions that `text` meets.
    pub(super) fn test(&self, text: &[u8], bits: &mut [u64]) {
        if let Some(listed) = self.listed.get(text) {
            set_all(listed, bits);
        }
        if let Some(expressions) = &self.expressions {
            expressions.test(text, bits);
        }
    }

    /// Whether there are no conditions.
    pub(super) fn is_empty(&self) -> bool {
        self.listed.is_empty() && self.expressions.is_none()
    }
}

impl Expressions {
    fn test(&self, text: &[u8], bits: &mut [u64]) {
        // Most texts match nothing; this check allocates nothing.
        if !self.set.is_match(text) {
            return;
        }
        match self.only {
            Some(bit) => set(bit, bits),
            None => {
                for expression in self.set.matches(text) {
                    set_all(&self.bits[expression], bits);
                }
            }
        }
    }
}

/// Sets one bit.
pub(super) fn set(bit: u32, bits: &mut [u64]) {
    bits[bit as usize / 64] |= 1 << (bit % 64);
}

fn set_all(set_these: &Bits, bits: &mut [u64]) {
    set_these.iter().for_each(|&bit| set(bit, bits));
}

/// Collects conditions on one kind of text.
#[derive(Debug, Default)]
pub(super) struct TextsBuilder {
    /// The known conditions, so that equal ones share a bit.
    written: HashMap<Written, u32>,
}

/// A condition on a text, in the form in which it was written.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Written {
    is_regex: bool,
    /// Sorted, without duplicates.
    patterns: Vec<String>,
}

impl Written {
    /// Whether every text that meets this condition also meets `other`. Only lists are compared;
    /// testing each value against the expressions would cost more than it is worth.
    pub(super) fn implies(&self, other: &Written) -> bool {
        let listed = |pattern| other.patterns.binary_search(pattern).is_ok();
        self.is_regex == other.is_regex
            && self.patterns.len() <= other.patterns.len()
            && self.patterns.iter().all(listed)
    }
}

impl TextsBuilder {
    /// The bit of the condition. A new condition takes the next bit from `count`.
    pub(super) fn bit(&mut self, values: &StringMatch, count: &mut u32) -> u32 {
        let (is_regex, mut patterns) = match values {
            StringMatch::Exact(values) => (false, values.clone()),
            StringMatch::Regex(set) => (true, set.patterns().to_vec()),
        };
        patterns.sort_unstable();
        patterns.dedup();
        *self.written.entry(Written { is_regex, patterns }).or_insert_with(|| {
            *count += 1;
            *count - 1
        })
    }

    /// Every condition with its bit.
    pub(super) fn written(&self) -> impl Iterator<Item = (&Written, u32)> {
        self.written.iter().map(|(written, bit)| (written, *bit))
    }

    pub(super) fn build(self) -> Texts {
        let mut listed = HashMap::<Box<[u8]>, Bits, _>::default();
        let mut expressions = BTreeMap::<String, Bits>::new();
        for (Written { is_regex, patterns }, bit) in self.written {
            for pattern in patterns {
                if is_regex {
                    expressions.entry(pattern).or_default().push(bit);
                } else {
                    listed.entry(pattern.into_bytes().into()).or_default().push(bit);
                }
            }
        }
        Texts { listed, expressions: Expressions::compile(expressions) }
    }
}

impl Expressions {
    fn compile(expressions: BTreeMap<String, Bits>) -> Option<Self> {
        let first = *expressions.values().next()?.first()?;
        let is_only = expressions.values().all(|bits| *bits == [first]);
        // The configuration reader has already checked the compiled size of each condition and
        // would have reported it.
        let set = RegexSetBuilder::new(expressions.keys())
            .size_limit(usize::MAX)
            .build()
            .expect("each condition's expressions have been compiled before");
        Some(Expressions {
            set,
            bits: expressions.into_values().collect(),
            only: is_only.then_some(first),
        })
    }
}
