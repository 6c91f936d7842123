//! The parts of a span and of a resource that become labels: name and attributes.
//!
//! It is called for spans that the walker has accepted, so it refuses nothing. It stops at the
//! first bytes that it cannot read; the walker did not need those bytes.

use super::{
    conditions::Attribute,
    wire::{BYTES, Malformed, Reader, tag},
};

const NAME: u32 = tag(5, BYTES);
const ATTRIBUTE: u32 = tag(9, BYTES);
/// The tag of the resource in a `ResourceSpans`, and of an attribute in a resource.
const FIRST: u32 = tag(1, BYTES);

/// The name of a span, possibly not UTF-8. `at` is its place as the walker noted it
/// (`SpanMeta::name_at`).
#[inline]
pub(crate) fn name(span: &[u8], at: u8) -> &[u8] {
    if at != 0 {
        let mut reader = Reader::new(&span[usize::from(at)..]);
        return reader.bytes().unwrap_or_default();
    }
    let mut name = &[][..];
    let mut read = || -> Result<(), Malformed> {
        let mut reader = Reader::new(span);
        while let Some(tag) = reader.next_tag()? {
            match tag {
                NAME => name = reader.bytes()?,
                _ => reader.skip(tag)?,
            }
        }
        Ok(())
    };
    let _ = read();
    name
}

/// Calls `attribute` with each attribute of a span.
#[inline]
pub(crate) fn attributes<'a>(span: &'a [u8], mut attribute: impl FnMut(Attribute<'a>)) {
    let mut read = || -> Result<(), Malformed> {
        let mut reader = Reader::new(span);
        while let Some(tag) = reader.next_tag()? {
            if tag != ATTRIBUTE {
                reader.skip(tag)?;
                continue;
            }
            loop {
                attribute(Attribute::read(reader.bytes()?)?);
                if !reader.next_is(ATTRIBUTE as u8) {
                    break;
                }
            }
        }
        Ok(())
    };
    let _ = read();
}

/// Calls `attribute` with each attribute of a resource, given the fields of its `ResourceSpans`.
pub(crate) fn resource<'a>(fields: &'a [u8], mut attribute: impl FnMut(Attribute<'a>)) {
    let mut read = || -> Result<(), Malformed> {
        let mut reader = Reader::new(fields);
        while let Some(tag) = reader.next_tag()? {
            if tag != FIRST {
                reader.skip(tag)?;
                continue;
            }
            let mut attributes = Reader::new(reader.bytes()?);
            while let Some(tag) = attributes.next_tag()? {
                match tag {
                    FIRST => attribute(Attribute::read(attributes.bytes()?)?),
                    _ => attributes.skip(tag)?,
                }
            }
        }
        Ok(())
    };
    let _ = read();
}
