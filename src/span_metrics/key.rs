//! The key of a series: the values of its labels in one string of bytes.
//!
//! A key is the kind and the status, a byte each, then each value after its length: the span's
//! name, the service, the dimensions. Values are cut and repaired before they are compared, so two
//! series never show the same labels: a value of more than 255 bytes is cut at a character, and
//! zero bytes and invalid UTF-8 become U+FFFD. So a series with hostile values costs 4 KiB at most,
//! and values that differ only after their first 255 bytes share a series.

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

/// Writes the key of a span into `key`, a scratch buffer.
#[inline]
pub(super) fn write(
    settings: &Settings,
    (span, context): (&[u8], &Context),
    (kind_mask, status_mask): (u8, u8),
    key: &mut Vec<u8>,
) {
    let resource = context.resource().labels(|fields| of_resource(settings, fields));
    key.clear();
    key.extend_from_slice(&[kind_mask, status(status_mask)]);
    if settings.dimensions.is_empty() {
        let name = parts::span(span, None::<fn(Attribute<'_>)>);
        put(key, name);
        key.extend_from_slice(resource);
    } else {
        write_with_dimensions(settings, span, resource, key);
    }
}

/// A status that OTLP does not define counts as unset.
fn status(mask: u8) -> u8 {
    if mask == 0 { StatusCode::Unset.mask() } else { mask }
}

fn write_with_dimensions(settings: &Settings, span: &[u8], resource: &[u8], key: &mut Vec<u8>) {
    let mut found: [Option<Attribute<'_>>; DIMENSIONS_MAX] = [None; DIMENSIONS_MAX];
    let name = parts::span(span, Some(|attribute| note(settings, attribute, &mut found)));
    put(key, name);
    let mut of_resource = values(resource);
    put_raw(key, of_resource.next().unwrap_or_default());
    for attribute in &found[..settings.dimensions.len()] {
        let before = key.len();
        put_attribute(key, attribute.as_ref());
        let of_resource = of_resource.next().unwrap_or_default();
        if key.len() == before + 1 {
            key.truncate(before);
            put_raw(key, of_resource);
        }
    }
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
#[inline]
fn put(key: &mut Vec<u8>, value: &[u8]) {
    // Prometheus ends a scrape at a zero byte.
    let is_fine = |value: &[u8]| std::str::from_utf8(value).is_ok() && !value.contains(&0);
    if value.len() <= VALUE_BYTES_MAX && is_fine(value) {
        return put_raw(key, value);
    }
    // One byte more, so that a cut within a character is noticed.
    let some = &value[..value.len().min(VALUE_BYTES_MAX + 1)];
    let repaired = String::from_utf8_lossy(some).replace('\0', "\u{fffd}");
    put_raw(key, &repaired.as_bytes()[..repaired.floor_char_boundary(VALUE_BYTES_MAX)]);
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
