//! The result of a walk, in buffers that are reused from request to request and charged as they
//! grow.
//!
//! There is one per worker thread. A span takes 76 bytes, including its hash and its place in the
//! sampler's order, and 8 for each 64 conditions. This is more than the shortest span itself. Up to
//! `piece_bytes` are held during a request; a request that needs more is walked in pieces. Up to
//! `kept_bytes` are kept from one request to the next. The resource and scope that are being
//! assembled are charged beyond 64 KiB. Memory stays charged while it is kept, so a request that
//! needs no more than earlier requests does not touch the counters.

use std::sync::Arc;

use super::{
    context::{Context, Contexts, Resource},
    outsized::Outsized,
    walk::{self, SpanMeta, Unwalked},
    wire::Malformed,
};
use crate::budget::{Hold, Holder};

/// The bytes of a span in a piece: its [`SpanMeta`], and its hash and its place in the order, which
/// the sampler stores for each span.
const SPAN_BYTES: usize = size_of::<SpanMeta>() + 8 + 4;
/// The bytes of a context of a request: the reference, and its index in the segment, which the
/// sampler stores.
const CONTEXT_BYTES: usize = 8 + 16;
/// The number of spans that the first allocation has room for.
const SPANS_MIN: usize = 64;
/// The bytes of a resource or scope, and the number of contexts, that are held without a charge.
const UNCHARGED_BYTES: usize = 64 << 10;
const UNCHARGED_CONTEXTS: usize = 4 << 10;

/// The result of one walk.
#[derive(Debug, Default)]
pub struct Walked {
    /// The spans in the order of the request, without those with malformed ids.
    pub spans: Vec<SpanMeta>,
    /// The bits of the conditions that hold for each span with its resource: `words` words per
    /// span.
    pub bits: Vec<u64>,
    /// The contexts that the spans refer to.
    pub contexts: Vec<Arc<Context>>,
    /// The number of spans left out because an id was malformed.
    pub rejected: u64,
    /// Spans left out because their resource or scope is too large.
    pub outsized: Option<Box<Outsized>>,
    /// The most bytes that a resource or scope may have.
    context_bytes_max: usize,
    /// Whether the current resource or scope is larger, so its spans are left out.
    is_outsized: bool,
    /// The totals of the previous pieces.
    passed: Seen,
    /// The bytes of contexts and resources that this request was the first to intern.
    interned: usize,
    words: usize,
    /// The number of spans that `spans` and `bits` have room for, which `hold` has charged.
    room: usize,
    bounds: Option<Bounds>,
    hold: Option<Hold>,
    /// The charge beyond the memory that is kept: contexts, resource and scope.
    extra: Option<Hold>,
    /// Scratch buffers for the resource and the scope to intern.
    resource: Vec<u8>,
    scope: Vec<u8>,
    key: Vec<u8>,
    /// A scratch buffer for the bits of the resource, from which the bits of its spans start.
    resource_bits: Vec<u64>,
}

/// Totals of the walked part of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The number of spans that were not rejected.
    pub(crate) spans: u64,
    /// Their encoded bytes.
    pub(crate) bytes: u64,
    /// The number of spans whose trace differs from that of the previous span, which is at least
    /// the number of traces.
    pub(crate) runs: u64,
}

/// The memory that the spans of a [`Walked`] may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// While a request is walked. A request with more spans is walked in pieces.
    pub(crate) piece_bytes: usize,
    /// Between two requests.
    pub(crate) kept_bytes: usize,
}

impl Walked {
    /// Limits the memory for the spans of later requests. Without this call there is no limit.
    pub(crate) fn bound(&mut self, bounds: Bounds) {
        self.bounds = Some(bounds);
    }

    /// Whether all spans of the request are here.
    pub(crate) fn is_whole(&self) -> bool {
        self.passed.spans == 0
    }

    /// The totals of the walked part of the request. Reads every span of the piece.
    pub(crate) fn seen(&self) -> Seen {
        let bytes: u64 = self.spans.iter().map(|span| u64::from(span.len)).sum();
        let runs = self.spans.chunk_by(|a, b| a.trace_id == b.trace_id).count() as u64;
        Seen {
            spans: self.spans_seen(),
            bytes: self.passed.bytes + bytes,
            runs: self.passed.runs + runs,
        }
    }

    /// The number of words of bits per span.
    pub(crate) fn words(&self) -> usize {
        self.words
    }

    /// The number of spans that there is room for.
    pub(crate) fn room(&self) -> usize {
        self.room
    }

    /// The bytes that it has charged, including new contexts.
    pub(crate) fn charged(&self) -> usize {
        let held = [&self.hold, &self.extra].into_iter().flatten().map(Hold::bytes);
        self.interned + held.sum::<usize>()
    }

    /// Clears the request and frees memory that is not kept for the next one.
    pub fn clear(&mut self) {
        self.spans.clear();
        self.bits.clear();
        self.contexts.clear();
        self.rejected = 0;
        self.outsized = None;
        self.passed = Seen::default();
        self.interned = 0;
        if self.bounds.is_some_and(|bounds| self.room * self.span_bytes() > bounds.kept_bytes) {
            self.give_up_spans();
        }
        self.contexts.shrink_to(UNCHARGED_CONTEXTS);
        for scratch in [&mut self.resource, &mut self.scope, &mut self.key] {
            scratch.clear();
            scratch.shrink_to(UNCHARGED_BYTES);
        }
        self.extra = None;
    }

    fn span_bytes(&self) -> usize {
        SPAN_BYTES + 8 * self.words
    }

    fn give_up_spans(&mut self) {
        (self.spans, self.bits, self.room, self.hold) = Default::default();
    }

    /// Prepares a walk that charges the budget of `contexts`, with this many words of bits per
    /// span.
    pub(super) fn prepare(&mut self, contexts: &Contexts, words: usize) {
        self.context_bytes_max = contexts.bytes_max();
        let budget = contexts.budget();
        if self.words != words || self.hold.as_ref().is_none_or(|hold| !hold.is_of(budget)) {
            self.give_up_spans();
            self.words = words;
            self.hold = Some(budget.hold(Holder::Walking, 0));
        }
    }

    /// Prepares another walk of the same request.
    pub(super) fn begin_again(&mut self) {
        self.spans.clear();
        self.bits.clear();
        self.rejected = 0;
        self.outsized = None;
        self.passed = Seen::default();
    }

    /// Clears the spans of a piece.
    pub(super) fn begin_piece(&mut self) {
        self.passed = self.seen();
        self.spans.clear();
        self.bits.clear();
    }

    pub(super) fn begin_resource(&mut self) {
        self.resource.clear();
    }

    pub(super) fn begin_scope(&mut self) {
        self.scope.clear();
    }

    #[inline]
    pub(super) fn spans_seen(&self) -> u64 {
        self.passed.spans + self.spans.len() as u64
    }

    /// The number of spans read so far, including those that were left out.
    pub(super) fn spans_met(&self) -> u64 {
        let outsized = self.outsized.as_ref().map_or(0, |outsized| outsized.spans);
        self.spans_seen() + self.rejected + outsized
    }

    /// Leaves out the spans of a scope if the scope or its resource is too large. A scope is
    /// measured only if it is larger than allowed with its spans included.
    pub(super) fn refuse_outsized(&mut self, scope_spans: &[u8]) -> Result<(), Malformed> {
        let bytes_max = self.context_bytes_max;
        let mut bytes = self.resource.len();
        if scope_spans.len() > bytes_max {
            bytes = bytes.max(walk::scope_bytes(scope_spans)?);
        }
        self.is_outsized = bytes > bytes_max;
        if self.is_outsized {
            let outsized = self.outsized.get_or_insert_default();
            outsized.note(bytes, bytes_max, &self.resource);
        }
        Ok(())
    }

    /// Adds the span whose bits were requested last.
    #[inline(always)]
    pub(super) fn add_span(&mut self, span: SpanMeta) {
        if !self.is_outsized {
            self.spans.push(span);
            return;
        }
        self.bits.truncate(self.bits.len() - self.resource_bits.len());
        self.outsized.get_or_insert_default().spans += 1;
    }

    /// The fields of the resource, and the bits that it sets.
    pub(super) fn resource_and_bits(&mut self) -> (&[u8], &mut Vec<u64>) {
        (&self.resource, &mut self.resource_bits)
    }

    pub(super) fn add_to_resource(&mut self, field: &[u8]) -> Result<(), Unwalked> {
        if self.resource.len() + field.len() > self.resource.capacity().max(UNCHARGED_BYTES) {
            // The existing bytes are copied into the larger buffer.
            let grown = (2 * self.resource.capacity()).max(self.resource.len() + field.len());
            self.charge_extra(grown)?;
            self.resource.reserve_exact(grown - self.resource.len());
        }
        self.resource.extend_from_slice(field);
        Ok(())
    }

    #[inline]
    pub(super) fn add_to_scope(&mut self, field: &[u8]) -> Result<(), Unwalked> {
        if self.scope.len() + field.len() > self.scope.capacity().max(UNCHARGED_BYTES) {
            let grown = (2 * self.scope.capacity()).max(self.scope.len() + field.len());
            // It is copied once more for the look-up of its context.
            self.charge_extra(2 * grown)?;
            self.scope.reserve_exact(grown - self.scope.len());
        }
        self.scope.extend_from_slice(field);
        Ok(())
    }

    /// Adds the context of the scope and its resource. The resource is interned with its first
    /// context.
    pub(super) fn intern(
        &mut self,
        contexts: &Contexts,
        resource: &mut Option<Arc<Resource>>,
    ) -> Result<(), Unwalked> {
        if self.contexts.len() >= self.contexts.capacity().max(UNCHARGED_CONTEXTS) {
            let grown = 2 * self.contexts.len();
            self.charge_extra(grown * CONTEXT_BYTES)?;
            self.contexts.reserve_exact(grown - self.contexts.len());
        }
        let of_resource = if resource.is_none() { self.resource.len() } else { 0 };
        if !contexts.has_room_for(of_resource + self.scope.len()) {
            return Err(self.no_room(of_resource + self.scope.len()));
        }
        let resource = resource.get_or_insert_with(|| contexts.resource(&self.resource));
        if Arc::strong_count(resource) == 1 {
            self.interned += resource.cost_bytes();
        }
        let context = contexts.context(resource, &self.scope, &mut self.key);
        if Arc::strong_count(&context) == 1 {
            self.interned += context.cost_bytes();
        }
        self.contexts.push(context);
        Ok(())
    }

    #[inline(always)]
    pub(super) fn is_full(&self) -> bool {
        self.spans.len() == self.room
    }

    /// The bits of the next span, which start as those of its resource.
    #[inline(always)]
    pub(super) fn bits_of_next_span(&mut self) -> &mut [u64] {
        let start = self.bits.len();
        self.bits.extend_from_slice(&self.resource_bits);
        &mut self.bits[start..]
    }

    /// Leaves out the span whose bits were requested last.
    pub(super) fn reject(&mut self) {
        self.bits.truncate(self.bits.len() - self.resource_bits.len());
        self.rejected += 1;
    }

    /// Makes room for more spans. Returns false if the limit is reached.
    pub(super) fn grow(&mut self) -> Result<bool, Unwalked> {
        let span_bytes = self.span_bytes();
        let most = self.bounds.map_or(usize::MAX, |bounds| bounds.piece_bytes / span_bytes);
        let grown = (2 * self.room).max(SPANS_MIN).min(most.max(SPANS_MIN));
        if grown <= self.room {
            return Ok(false);
        }
        let hold = self.hold.as_mut().expect("a walk begins with it");
        // The existing spans are copied into the larger buffer, so for a moment both exist.
        if !hold.try_grow(grown * span_bytes) {
            return Err(self.no_room(grown * span_bytes));
        }
        self.spans.reserve_exact(grown - self.spans.len());
        self.bits.reserve_exact(grown * self.words - self.bits.len());
        let before = std::mem::replace(&mut self.room, grown);
        self.hold.as_mut().expect("a walk begins with it").shrink(before * span_bytes);
        Ok(true)
    }

    fn charge_extra(&mut self, bytes: usize) -> Result<(), Unwalked> {
        let hold = self.hold.as_ref().expect("a walk begins with it");
        let extra = self.extra.get_or_insert_with(|| hold.another());
        if extra.try_grow(bytes) { Ok(()) } else { Err(self.no_room(bytes)) }
    }

    /// Refuses a request that needs this many bytes in addition to those it has.
    fn no_room(&self, bytes: usize) -> Unwalked {
        Unwalked::NoRoom { bytes: self.charged() + bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;

    /// A request of resources with these numbers of spans. Each span has 30 bytes with its framing.
    fn request(resources: &[u32]) -> Vec<u8> {
        let mut request = Vec::new();
        let put = |out: &mut Vec<u8>, number, bytes: &[u8]| {
            crate::otlp::wire::put_length_delimited(out, number, bytes.len());
            out.extend_from_slice(bytes);
        };
        for (resource, &spans) in (0_u8..).zip(resources) {
            let (mut of_resource, mut scope) = (Vec::new(), Vec::new());
            // A schema URL.
            put(&mut of_resource, 3, &[b'a' + resource]);
            for span in 1..=spans {
                let id = u128::from(span).to_be_bytes();
                let mut fields = Vec::new();
                put(&mut fields, 1, &id);
                put(&mut fields, 2, &id[8..]);
                put(&mut scope, 2, &fields);
            }
            put(&mut of_resource, 2, &scope);
            put(&mut request, 1, &of_resource);
        }
        request
    }

    #[test]
    fn pieces_are_what_one_walk_finds_and_take_no_more_than_they_may() {
        let budget = Budget::new(1 << 30);
        let contexts = Contexts::new(Arc::clone(&budget));
        let bounds = Bounds { piece_bytes: 100 * SPAN_BYTES, kept_bytes: 100 * SPAN_BYTES };
        for resources in [&[1][..], &[100], &[101], &[99, 1, 1], &[0, 250, 0, 130, 1], &[1000]] {
            let request = request(resources);
            let mut whole = Walked::default();
            walk::walk(&request, &contexts, &(), &mut whole).expect("sound");
            let mut walked = Walked::default();
            walked.bound(bounds);
            walk::walk(&request, &contexts, &(), &mut walked).expect("sound");
            let (seen, all) = (walked.seen(), whole.seen());
            assert_eq!((seen.spans, seen.bytes), (all.spans, all.bytes));
            assert!((all.runs..=all.runs + 11).contains(&seen.runs), "a piece may cut a run");
            assert_eq!(walked.contexts.len(), whole.contexts.len());
            let mut spans = Vec::new();
            if walked.is_whole() {
                spans.clone_from(&walked.spans);
            } else {
                walk::walk_in_pieces(&request, &(), &mut walked, &mut |piece| {
                    spans.extend_from_slice(&piece.spans);
                    assert!(piece.charged() - piece.interned <= bounds.piece_bytes);
                });
            }
            assert!(spans == whole.spans, "{resources:?}");
            assert_eq!(walked.is_whole(), spans.len() <= 100);
            walked.clear();
            assert!(walked.charged() <= bounds.kept_bytes);
        }
        assert_eq!(budget.used(), 0, "dropping a walk returns its memory");
    }

    #[test]
    fn a_walk_that_finds_no_room_says_what_it_needs() {
        let budget = Budget::new(64 << 10);
        let contexts = Contexts::new(Arc::clone(&budget));
        let mut walked = Walked::default();
        let walk =
            |walked: &mut Walked, spans| walk::walk(&request(&[spans]), &contexts, &(), walked);
        let refused = walk(&mut walked, 1000).expect_err("more than there is");
        assert!(matches!(refused, Unwalked::NoRoom { bytes } if bytes > 512 * SPAN_BYTES));
        walked.clear();
        assert_eq!(walk(&mut walked, 100), Ok(()));
        drop(walked);
        assert_eq!(budget.used(), 0);
    }
}
