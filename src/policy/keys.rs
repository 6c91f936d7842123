//! The conditions on attributes, by key.
//!
//! The walker asks for every attribute of every span, and policies name few keys. Each key has one
//! of 64 places, computed from its length and its ends. Nearly all keys that no policy names have a
//! place that is empty, and cost a bit of a mask. A key that is alone in its place is compared, and
//! only keys that share a place are hashed.

use std::collections::HashMap;

use super::leaves::Attributes;

pub(super) type ByKey<T> = HashMap<Box<[u8]>, T, foldhash::fast::RandomState>;

/// The number of places.
const PLACES: usize = 64;
/// In [`Keys::alone`]: several keys share the place.
const SHARED: u32 = u32::MAX;

/// The conditions on attributes.
#[derive(Debug)]
pub(super) struct Keys {
    all: Vec<(Box<[u8]>, Attributes)>,
    /// Indices of `all`.
    by_key: ByKey<u32>,
    /// The places of all keys that conditions on spans read.
    of_spans: u64,
    /// For each of these places, the index of its only key, or [`SHARED`].
    alone: [u32; PLACES],
}

impl Default for Keys {
    fn default() -> Self {
        Keys { all: Vec::new(), by_key: ByKey::default(), of_spans: 0, alone: [SHARED; PLACES] }
    }
}

impl Keys {
    pub(super) fn new(attributes: HashMap<String, Attributes>) -> Self {
        let mut keys = Keys::default();
        for (index, (key, attributes)) in (0..).zip(attributes) {
            let key: Box<[u8]> = key.into_bytes().into();
            if attributes.are_of_spans() {
                let (place, bit) = (place(&key), 1 << place(&key));
                keys.alone[place] = if keys.of_spans & bit == 0 { index } else { SHARED };
                keys.of_spans |= bit;
            }
            keys.by_key.insert(key.clone(), index);
            keys.all.push((key, attributes));
        }
        keys
    }

    /// Whether no key of spans is read.
    #[inline(always)]
    pub(super) fn are_of_resources_only(&self) -> bool {
        self.of_spans == 0
    }

    /// Whether conditions on spans may read this key.
    #[inline(always)]
    pub(super) fn may_read(&self, key: &[u8]) -> bool {
        self.of_spans & 1 << place(key) != 0
    }

    /// The conditions on a key for which [`Self::may_read`] is true.
    pub(super) fn of_span(&self, key: &[u8]) -> Option<&Attributes> {
        match self.alone[place(key)] {
            SHARED => self.of_resource(key),
            index => {
                let (known, attributes) = &self.all[index as usize];
                (**known == *key).then_some(attributes)
            }
        }
    }

    /// The conditions on a key of a resource.
    pub(super) fn of_resource(&self, key: &[u8]) -> Option<&Attributes> {
        self.by_key.get(key).map(|index| &self.all[*index as usize].1)
    }
}

/// The place of a key.
#[inline(always)]
fn place(key: &[u8]) -> usize {
    let [first, last] = [key.first(), key.last()].map(|end| end.map_or(0, |&end| usize::from(end)));
    (key.len().wrapping_add(3 * first + 5 * last)) % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_is_found_and_no_other() {
        let key =
            |number: usize| format!("{}.key", "abc".repeat(number % 40) + &number.to_string());
        for count in [0, 1, 2, 20, 500] {
            let word = |number| Attributes { word: Some(number), ..Attributes::default() };
            let keys = Keys::new((0..count).map(|number| (key(number), word(number))).collect());
            assert_eq!(keys.are_of_resources_only(), count == 0);
            for number in 0..1_000 {
                let key = key(number);
                let expected = Some(number).filter(|number| *number < count);
                let of_span = keys.of_span(key.as_bytes()).and_then(|found| found.word);
                let of_resource = keys.of_resource(key.as_bytes()).and_then(|found| found.word);
                assert_eq!((of_span, of_resource), (expected, expected), "{key} of {count}");
                assert!(keys.may_read(key.as_bytes()) || expected.is_none(), "{key} of {count}");
            }
        }
    }
}
