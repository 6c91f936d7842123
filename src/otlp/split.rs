//! Splits an encoded request in two, for a backend that finds it too large or refuses one of its
//! spans.
//!
//! The exporter calls it; it has only encoded bytes. Spans are copied unchanged. If spans of a
//! resource or scope are on both sides, both halves get it, with its schema URL and unknown fields.
//! The rules of reading are those of [`super::wire`]. A property test and a fuzz target check that
//! both halves together equal what prost reads from the whole.
//!
//! It runs rarely, so the code is simple: two passes, with one copy per level of nesting.

use std::ops::Range;

use super::{
    encode::EncodedRequest,
    wire::{self, Field, Malformed, Reader},
};

/// The fields that lead to the spans: the resources of the request, their scopes, and their spans.
const PATH: [u32; 3] = [1, 2, 2];

/// Splits between two spans, so that both halves have about the same number of bytes. `None` if
/// there are fewer than two spans.
///
/// # Errors
/// [`Malformed`] if the bytes are not framed as a request down to the spans.
pub fn halves(request: &[u8]) -> Result<Option<[EncodedRequest; 2]>, Malformed> {
    let mut lengths = Vec::new();
    span_lengths(request, &PATH, &mut lengths)?;
    if lengths.len() < 2 {
        return Ok(None);
    }
    let cut = middle(&lengths);
    let half = |spans: Range<usize>| {
        let mut body = Vec::with_capacity(request.len() / 2);
        write(request, &PATH, &spans, &mut 0, &mut body)?;
        Ok(EncodedRequest { body: body.into(), spans: spans.len() as u64 })
    };
    Ok(Some([half(0..cut)?, half(cut..lengths.len())?]))
}

/// The number of spans before the split: at least one, and not all of them.
fn middle(lengths: &[usize]) -> usize {
    let half = lengths.iter().sum::<usize>() / 2;
    let mut before = 0;
    let fits = |length: &&usize| {
        before += **length;
        before <= half
    };
    lengths.iter().take_while(fits).count().clamp(1, lengths.len() - 1)
}

fn span_lengths(message: &[u8], path: &[u32], lengths: &mut Vec<usize>) -> Result<(), Malformed> {
    let mut reader = Reader::new(message);
    while let Some(field) = reader.next_field()? {
        match path {
            [number, deeper @ ..] if *number == field.number => match deeper {
                [] => lengths.push(field.value.bytes()?.len()),
                _ => span_lengths(field.value.bytes()?, deeper, lengths)?,
            },
            _ => {}
        }
    }
    Ok(())
}

/// Appends `message` with only those of its spans whose numbers are in `wanted`. `next` is the
/// number of its first span, and afterwards the number after its last one.
fn write(
    message: &[u8],
    path: &[u32],
    wanted: &Range<usize>,
    next: &mut usize,
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    let mut reader = Reader::new(message);
    while let Some(field) = reader.next_field()? {
        match path {
            [number, deeper @ ..] if *number == field.number => {
                write_nested(&field, deeper, wanted, next, out)?;
            }
            _ => out.extend_from_slice(field.raw),
        }
    }
    Ok(())
}

fn write_nested(
    field: &Field<'_>,
    deeper: &[u32],
    wanted: &Range<usize>,
    next: &mut usize,
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    if deeper.is_empty() {
        if wanted.contains(next) {
            out.extend_from_slice(field.raw);
        }
        *next += 1;
        return Ok(());
    }
    let (first, mut nested) = (*next, Vec::new());
    write(field.value.bytes()?, deeper, wanted, next, &mut nested)?;
    // A resource or scope without any wanted spans is left out.
    if first.max(wanted.start) < (*next).min(wanted.end) {
        wire::put_length_delimited(out, field.number, nested.len());
        out.extend_from_slice(&nested);
    }
    Ok(())
}
