//! Finds the spans of an encoded `ExportTraceServiceRequest` by its framing alone.
//!
//! The sink uses it to count spans, and the corpus to find the bytes to patch. It reads tags and
//! lengths down to the spans but nothing inside them, so counting costs almost nothing compared
//! with receiving. It deliberately does not use the sampler's walker: a measurement must not share
//! code with the measured program.

use std::ops::Range;

const RESOURCE_SPANS: u64 = 1;
const SCOPE_SPANS: u64 = 2;
const SPANS: u64 = 2;

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH_DELIMITED: u64 = 2;
const FIXED32: u64 = 5;

/// Calls `span` with the range of each span's body in `request`; `None` if the framing is broken.
pub(crate) fn for_each_span(request: &[u8], mut span: impl FnMut(Range<usize>)) -> Option<()> {
    each_field(request, 0..request.len(), RESOURCE_SPANS, &mut |resource_spans| {
        each_field(request, resource_spans, SCOPE_SPANS, &mut |scope_spans| {
            each_field(request, scope_spans, SPANS, &mut |body| {
                span(body);
                Some(())
            })
        })
    })
}

/// The number of spans in `request`; `None` if the framing is broken.
pub(crate) fn count_spans(request: &[u8]) -> Option<u64> {
    let mut spans = 0;
    for_each_span(request, |_| spans += 1)?;
    Some(spans)
}

/// Calls `visit` with each length-delimited field numbered `wanted` of the message at `range`.
fn each_field(
    bytes: &[u8],
    range: Range<usize>,
    wanted: u64,
    visit: &mut impl FnMut(Range<usize>) -> Option<()>,
) -> Option<()> {
    let mut at = range.start;
    while at < range.end {
        let tag = varint(bytes, &mut at)?;
        let length = match tag & 7 {
            VARINT => {
                varint(bytes, &mut at)?;
                0
            }
            FIXED64 => 8,
            FIXED32 => 4,
            LENGTH_DELIMITED => usize::try_from(varint(bytes, &mut at)?).ok()?,
            _ => return None,
        };
        let end = at.checked_add(length).filter(|end| *end <= range.end)?;
        if tag >> 3 == wanted && tag & 7 == LENGTH_DELIMITED {
            visit(at..end)?;
        }
        at = end;
    }
    Some(())
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
