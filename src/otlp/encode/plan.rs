//! Computes the contents of an export request before any of it is written.
//!
//! The spans of a resource are contiguous, and so are the spans of a scope within a resource, so
//! each context is written once per request. A context with spans in several requests is repeated
//! in each of them. A context takes at most half of a request (`Contexts::bytes_max`), so the rest
//! has room for spans.

use super::{CLEAN, Outgoing};
use crate::otlp::wire::{self, length_delimited_len};

/// The spans that fit into one request, and the lengths that its framing needs.
#[derive(Debug, Default)]
pub(super) struct RequestPlan {
    resources: Vec<ResourceGroup>,
    /// The number of spans.
    pub(super) spans: usize,
    /// The length of the request.
    pub(super) bytes: usize,
}

/// Consecutive spans of one resource in one request.
#[derive(Debug)]
struct ResourceGroup {
    scopes: Vec<ScopeGroup>,
    spans: usize,
    resource_len: usize,
    scopes_len: usize,
}

/// Consecutive spans of one scope of that resource.
#[derive(Debug)]
struct ScopeGroup {
    spans: usize,
    spans_len: usize,
    scope_len: usize,
}

impl RequestPlan {
    /// Plans a request of as many of the first `spans` as fit, at least one. The spans are sorted
    /// by context.
    pub(super) fn of(spans: &[Outgoing], max_request_bytes: usize) -> Self {
        let mut plan = RequestPlan::default();
        for of_resource in spans.chunk_by(Outgoing::same_resource) {
            let room = max_request_bytes.saturating_sub(plan.bytes);
            let group = ResourceGroup::of(of_resource, room, plan.spans == 0);
            if group.spans == 0 {
                break;
            }
            plan.spans += group.spans;
            plan.bytes += length_delimited_len(1, group.len());
            let is_full = group.spans < of_resource.len();
            plan.resources.push(group);
            if is_full {
                break;
            }
        }
        plan
    }

    /// Writes the planned request for the first of `spans`.
    pub(super) fn write(
        &self,
        spans: &[Outgoing],
        tails: &[u8],
        repaired_strings: &mut u64,
        body: &mut Vec<u8>,
    ) {
        let mut rest = spans;
        for group in &self.resources {
            let resource = rest[0].context.resource();
            let cleaned = resource.cleaned().expect(CLEAN);
            *repaired_strings += cleaned.repairs.strings;
            wire::put_length_delimited(body, 1, group.len());
            body.extend_from_slice(cleaned.bytes(resource.arrived()));
            for scope in &group.scopes {
                let (now, later) = rest.split_at(scope.spans);
                rest = later;
                let context = &now[0].context;
                let cleaned = context.cleaned().expect(CLEAN);
                *repaired_strings += cleaned.repairs.strings;
                wire::put_length_delimited(body, 2, scope.len());
                body.extend_from_slice(cleaned.bytes(context.scope()));
                for span in now {
                    span.write(tails, body);
                }
            }
        }
        debug_assert_eq!(body.len(), self.bytes, "the plan's lengths are those written");
    }
}

impl ResourceGroup {
    /// Plans as many of `spans`, all of one resource, as fit into `room` with their framing. If
    /// `is_first`, the first span of the request is always included.
    fn of(spans: &[Outgoing], room: usize, is_first: bool) -> Self {
        let resource = spans[0].context.resource();
        let resource_len = resource.cleaned().expect(CLEAN).bytes(resource.arrived()).len();
        let mut group = ResourceGroup { scopes: Vec::new(), spans: 0, resource_len, scopes_len: 0 };
        for of_scope in spans.chunk_by(Outgoing::same_context) {
            let context = &of_scope[0].context;
            let scope_len = context.cleaned().expect(CLEAN).bytes(context.scope()).len();
            let mut scope = ScopeGroup { spans: 0, spans_len: 0, scope_len };
            for span in of_scope {
                let added = length_delimited_len(2, span.body_len());
                let with_it = length_delimited_len(2, scope.len() + added);
                let is_forced = is_first && group.spans + scope.spans == 0;
                if length_delimited_len(1, group.len() + with_it) > room && !is_forced {
                    break;
                }
                scope.spans_len += added;
                scope.spans += 1;
            }
            if scope.spans == 0 {
                break;
            }
            group.spans += scope.spans;
            group.scopes_len += length_delimited_len(2, scope.len());
            let is_full = scope.spans < of_scope.len();
            group.scopes.push(scope);
            if is_full {
                break;
            }
        }
        group
    }

    fn len(&self) -> usize {
        self.resource_len + self.scopes_len
    }
}

impl ScopeGroup {
    fn len(&self) -> usize {
        self.scope_len + self.spans_len
    }
}
