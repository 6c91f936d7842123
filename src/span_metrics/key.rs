//! The key of a series: the values of its labels in one string of bytes.
//!
//! A key is the kind and the status, a byte each, then each value after its length: the span's
//! name, the service, the dimensions. Values are cut and repaired before they are compared, so two
//! series never show the same labels: a value of more than 255 bytes is cut at a character, and
//! zero bytes and invalid UTF-8 become U+FFFD. So a series with hostile values costs 4 KiB at most,
//! and values that differ only after their first 255 bytes share a series.

use std::{
    borrow::Cow,
    hash::{BuildHasher, Hasher as _},
};

use crate::{
    otlp::{
        Context,
        conditions::{Attribute, AttributeValue},
        parts,
    },
    trace::StatusCode,
};

use super::{DIMENSIONS_MAX, Settings};

/// The longest value of a label in bytes.
const VALUE_BYTES_MAX: usize = 255;

/// The labels of a span where they lie: a key that is not written yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Labels<'a> {
    /// The kind and the status.
    head: [u8; 2],
    /// The name as it is in the span.
    name: &'a [u8],
    /// The rest of the key, from the service on.
    rest: &'a [u8],
}

impl<'a> Labels<'a> {
    /// The labels of a span. `rest` is a scratch buffer.
    #[inline]
    pub(super) fn new(
        settings: &Settings,
        (span, name_at, context): (&'a [u8], u8, &'a Context),
        (kind_mask, status_mask): (u8, u8),
        rest: &'a mut Vec<u8>,
    ) -> Self {
        let resource = context.resource().labels(|fields| of_resource(settings, fields));
        let dimensions = !settings.dimensions.is_empty();
        let has_own = dimensions && write_dimensions(settings, span, resource, rest);
        Labels {
            head: [kind_mask, status(status_mask)],
            name: parts::name(span, name_at),
            rest: if has_own { rest } else { resource },
        }
    }

    /// The same with the name as it is in keys, cut and repaired. `name` keeps it.
    pub(super) fn repaired(self, name: &'a mut Cow<'a, [u8]>) -> Self {
        *name = fine(self.name);
        Labels { name, ..self }
    }

    #[inline]
    pub(super) fn hash(&self, hasher: &impl BuildHasher) -> u64 {
        let mut hasher = hasher.build_hasher();
        hasher.write(self.rest);
        hasher.write(self.name);
        hasher.write_u16(u16::from_le_bytes(self.head));
        hasher.finish()
    }

    /// Whether this is the key. Keys have repaired names.
    #[inline]
    pub(super) fn is(&self, key: &[u8]) -> bool {
        let Some(([kind, status, len], values)) = key.split_first_chunk() else { return false };
        let is_alike = [*kind, *status] == self.head && usize::from(*len) == self.name.len();
        is_alike && values.split_at_checked(self.name.len()) == Some((self.name, self.rest))
    }

    /// The key. The name must be repaired.
    pub(super) fn to_key(self) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.head.len() + 1 + self.name.len() + self.rest.len());
        key.extend_from_slice(&self.head);
        put_raw(&mut key, self.name);
        key.extend_from_slice(self.rest);
        key
    }
}

/// A status that OTLP does not define counts as unset.
fn status(mask: u8) -> u8 {
    if mask == 0 { StatusCode::Unset.mask() } else { mask }
}

/// Writes the service and the dimensions if the span has one of them. Returns whether it has.
fn write_dimensions(settings: &Settings, span: &[u8], resource: &[u8], rest: &mut Vec<u8>) -> bool {
    let mut found = [None; DIMENSIONS_MAX];
    parts::attributes(span, |attribute| note(settings, attribute, &mut found));
    let found = &found[..settings.dimensions.len()];
    if found.iter().all(Option::is_none) {
        return false;
    }
    rest.clear();
    let mut of_resource = values(resource);
    put_raw(rest, of_resource.next().unwrap_or_default());
    for attribute in found {
        let before = rest.len();
        put_attribute(rest, attribute.as_ref());
        let of_resource = of_resource.next().unwrap_or_default();
        if rest.len() == before + 1 {
            rest.truncate(before);
            put_raw(rest, of_resource);
        }
    }
    true
}

/// The part of a key that comes from a resource: the service, then the dimensions.
fn of_resource(settings: &Settings, fields: &[u8]) -> Box<[u8]> {
    let mut service = None;
    let mut found = [None; DIMENSIONS_MAX];
    parts::resource(fields, |attribute| {
        if attribute.key == b"service.name" {
            service.get_or_insert(attribute);
        }
        note(settings, attribute, &mut found);
    });
    let mut part = Vec::new();
    put_attribute(&mut part, service.as_ref());
    for attribute in &found[..settings.dimensions.len()] {
        put_attribute(&mut part, attribute.as_ref());
    }
    part.into()
}

/// Records an attribute if it is a dimension. If a key occurs more than once, the first one counts.
fn note<'a>(
    settings: &Settings,
    attribute: Attribute<'a>,
    found: &mut [Option<Attribute<'a>>; DIMENSIONS_MAX],
) {
    for (dimension, found) in settings.dimensions.iter().zip(found) {
        if attribute.key == dimension.attribute.as_bytes() {
            found.get_or_insert(attribute);
        }
    }
}

/// Strings, numbers and booleans are written as text; other and unreadable values are empty.
fn put_attribute(key: &mut Vec<u8>, attribute: Option<&Attribute<'_>>) {
    let value = attribute.and_then(|attribute| attribute.value().ok());
    match value {
        Some(AttributeValue::String(text)) => put(key, text),
        Some(AttributeValue::Int(number)) => put(key, number.to_string().as_bytes()),
        Some(AttributeValue::Double(number)) => put(key, decimal(number).as_bytes()),
        Some(AttributeValue::Bool(value)) => put(key, value.to_string().as_bytes()),
        Some(AttributeValue::List(_) | AttributeValue::Other) | None => key.push(0),
    }
}

/// Writes very large and very small numbers with an exponent: in full they have hundreds of digits.
fn decimal(number: f64) -> String {
    match number.abs() {
        1e-6..1e16 | 0.0 => number.to_string(),
        _ => format!("{number:e}"),
    }
}

/// Adds a value, cut and repaired.
fn put(key: &mut Vec<u8>, value: &[u8]) {
    put_raw(key, &fine(value));
}

/// A value as it is in keys, cut and repaired.
fn fine(value: &[u8]) -> Cow<'_, [u8]> {
    // Prometheus ends a scrape at a zero byte.
    let is_fine = |value: &[u8]| std::str::from_utf8(value).is_ok() && !value.contains(&0);
    if value.len() <= VALUE_BYTES_MAX && is_fine(value) {
        return Cow::Borrowed(value);
    }
    // One byte more, so that a cut within a character is noticed.
    let some = &value[..value.len().min(VALUE_BYTES_MAX + 1)];
    let mut repaired = String::from_utf8_lossy(some).replace('\0', "\u{fffd}");
    repaired.truncate(repaired.floor_char_boundary(VALUE_BYTES_MAX));
    Cow::Owned(repaired.into_bytes())
}

#[inline]
fn put_raw(key: &mut Vec<u8>, value: &[u8]) {
    key.push(value.len() as u8);
    key.extend_from_slice(value);
}

/// The consecutive values in a part of a key.
pub(super) fn values(mut part: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (&len, rest) = part.split_first()?;
        let (value, rest) = rest.split_at_checked(usize::from(len))?;
        part = rest;
        Some(value)
    })
}
