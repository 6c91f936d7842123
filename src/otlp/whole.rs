//! Encodes the spans of one trace as they arrived, for recordings: nothing is cleaned, stamped or
//! repaired.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    encode::KeptSpan,
    wire::{length_delimited_len, put_length_delimited},
};

/// The most bytes of a tag and a length.
const PREFIX_BYTES_MAX: usize = 6;

/// The spans as requests of at most `bytes_max` each. Sorts them by context; spans of one context
/// stay in their order. `None` if a span, with its resource and scope, does not fit into a request.
pub(crate) fn requests(spans: &mut [KeptSpan], bytes_max: usize) -> Option<Vec<Bytes>> {
    spans.sort_by_key(|span| {
        let context = &span.context;
        (Arc::as_ptr(context.resource()).addr(), Arc::as_ptr(context).addr())
    });
    let mut requests = Vec::new();
    let mut rest = &spans[..];
    while !rest.is_empty() {
        let (now, later) = rest.split_at(fitting(rest, bytes_max));
        if now.is_empty() {
            return None;
        }
        requests.push(request(now));
        rest = later;
    }
    Some(requests)
}

/// The least number of bytes that the requests of these spans take.
pub(crate) fn bytes_of(spans: &[KeptSpan]) -> usize {
    spans.iter().map(|span| span.bytes.len()).sum()
}

/// The number of spans that fit into one request.
fn fitting(spans: &[KeptSpan], bytes_max: usize) -> usize {
    let mut bytes = 0;
    for (index, span) in spans.iter().enumerate() {
        let last = index.checked_sub(1).map(|last| &spans[last]);
        bytes += PREFIX_BYTES_MAX + span.bytes.len();
        if !last.is_some_and(|last| same_context(last, span)) {
            bytes += PREFIX_BYTES_MAX + span.context.scope().len();
        }
        if !last.is_some_and(|last| same_resource(last, span)) {
            bytes += PREFIX_BYTES_MAX + span.context.resource().arrived().len();
        }
        if bytes > bytes_max {
            return index;
        }
    }
    spans.len()
}

fn request(spans: &[KeptSpan]) -> Bytes {
    let resource_len = |spans: &[KeptSpan]| {
        let scopes = spans.chunk_by(same_context);
        let scopes_len: usize = scopes.map(|spans| length_delimited_len(2, scope_len(spans))).sum();
        spans[0].context.resource().arrived().len() + scopes_len
    };
    let of_resources = || spans.chunk_by(same_resource);
    let length = of_resources().map(|spans| length_delimited_len(1, resource_len(spans))).sum();
    let mut body = Vec::with_capacity(length);
    for of_resource in of_resources() {
        put_length_delimited(&mut body, 1, resource_len(of_resource));
        body.extend_from_slice(of_resource[0].context.resource().arrived());
        for of_scope in of_resource.chunk_by(same_context) {
            put_length_delimited(&mut body, 2, scope_len(of_scope));
            body.extend_from_slice(of_scope[0].context.scope());
            for span in of_scope {
                put_length_delimited(&mut body, 2, span.bytes.len());
                body.extend_from_slice(&span.bytes);
            }
        }
    }
    debug_assert_eq!(body.len(), length, "the lengths are those written");
    body.into()
}

/// The length of a `ScopeSpans`.
fn scope_len(spans: &[KeptSpan]) -> usize {
    let spans_len: usize = spans.iter().map(|span| length_delimited_len(2, span.bytes.len())).sum();
    spans[0].context.scope().len() + spans_len
}

fn same_context(one: &KeptSpan, other: &KeptSpan) -> bool {
    Arc::ptr_eq(&one.context, &other.context)
}

fn same_resource(one: &KeptSpan, other: &KeptSpan) -> bool {
    Arc::ptr_eq(one.context.resource(), other.context.resource())
}
