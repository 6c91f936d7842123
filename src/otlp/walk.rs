//! The walker: one lazy pass over an `ExportTraceServiceRequest` that yields one [`SpanMeta`] per
//! span.
//!
//! The receiver's connection tasks call it for each request, before they take any lock. It reads
//! the framing down to the span, the ids, the times, the status, the kind, and `tracestate` if
//! present, and notes where the name is. It reads attribute keys, flags and events, and compares
//! names, only if a policy does ([`Conditions`]). All other bytes pass unchanged.
//!
//! The caller lends a [`Walked`] (`walked.rs`), which keeps its capacity from request to request
//! and charges its growth. A request with more spans than it may hold is walked twice: first to the
//! end, to be sure that it is decodable, and then piece by piece ([`walk_in_pieces`]).
//!
//! The rules are those of protobuf: of repeated scalar fields the last one wins, repeated messages
//! merge, and unknown fields and groups are skipped. A property test and a fuzz target compare the
//! results with prost's. An error means that the whole request is undecodable and no part of it may
//! be used. A span with an id of the wrong length is left out alone and counted. The former
//! `instrumentation_library_spans` are read if a resource has no spans in `scope_spans`, and are
//! exported as `scope_spans`.
//!
//! Full decoding with prost costs 15 to 23 times as much. A recursive check of the fields that no
//! policy reads would double the cost of this pass, so it is left to [`super::clean`], which sees a
//! tenth of the spans.

pub use super::walked::Walked;
use super::{
    conditions::{Attribute, Conditions, Event, SpanFields},
    context::Contexts,
    schema, tracestate,
    wire::{BYTES, Malformed, Reader, VARINT, tag},
};
#[cfg(doc)]
use crate::trace::SpanKind;
use crate::trace::{Facts, Randomness, StatusCode, TraceId};

/// The data of a span that later stages need. The span's bytes stay in the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanMeta {
    /// The trace it belongs to.
    pub trace_id: TraceId,
    /// Start in Unix nanoseconds; 0 if there is none.
    pub start_unix_nano: u64,
    /// End in Unix nanoseconds, never before the start; 0 if there is none.
    pub end_unix_nano: u64,
    /// Explicit randomness from `tracestate: ot=rv:`.
    pub explicit_randomness: Option<Randomness>,
    /// The offset of the span message in the request. Requests are at most 1 GiB.
    pub offset: u32,
    /// Its encoded length in bytes.
    pub len: u32,
    /// Index into [`Walked::contexts`].
    pub context: u32,
    /// [`StatusCode::mask`] of its status; 0 for codes that OTLP does not define.
    pub status_mask: u8,
    /// Whether it has no parent.
    pub is_root: bool,
    /// [`SpanKind::mask`] of its kind; 0 for kinds that OTLP does not define.
    pub kind_mask: u8,
    /// The position in the span where the length of its name begins; 0 if it has none or it is not
    /// among the first 255 bytes (`parts::name`).
    pub name_at: u8,
}

impl SpanMeta {
    /// Adds the span to the facts of its trace. A start or end of zero is ignored.
    #[inline]
    pub(crate) fn add_to(&self, facts: &mut Facts) {
        if self.start_unix_nano != 0
            && (facts.start_unix_nano == 0 || self.start_unix_nano < facts.start_unix_nano)
        {
            facts.start_unix_nano = self.start_unix_nano;
        }
        facts.end_unix_nano = facts.end_unix_nano.max(self.end_unix_nano);
        facts.spans = facts.spans.saturating_add(1);
        facts.bytes = facts.bytes.saturating_add(self.len);
        facts.status_mask |= self.status_mask;
        facts.root_seen |= self.is_root;
    }
}

/// The reason why the walk of a request stopped before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unwalked {
    /// The bytes are not framed as a request down to the spans.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The memory needed to walk and buffer the request, which may be many times its length,
    /// exceeds the memory limit.
    #[error("not enough memory: the request needs {bytes} bytes in addition to its own")]
    NoRoom {
        /// The bytes needed, including those that the request already had.
        bytes: usize,
    },
}

/// Walks one request into `walked`, which must be clear. If the request has more spans than
/// `walked` may hold ([`Walked::is_whole`] is false), the spans in it must not be used, and
/// [`walk_in_pieces`] has to follow.
///
/// # Errors
/// [`Unwalked`]: `walked` must not be used then.
pub fn walk<C: Conditions>(
    request: &[u8],
    contexts: &Contexts,
    conditions: &C,
    walked: &mut Walked,
) -> Result<(), Unwalked> {
    if u32::try_from(request.len()).is_err() {
        return Err(Malformed("request of 4 GiB or more").into());
    }
    walked.prepare(contexts, conditions.words());
    let mut walk =
        Walk { request, contexts: Some(contexts), conditions, next_context: 0, piece: &mut |_| {} };
    walk.request(walked)
}

/// Walks a request again after [`walk`] with the same `walked`, and calls `piece` with as many
/// spans at a time as fit.
pub(crate) fn walk_in_pieces<C: Conditions>(
    request: &[u8],
    conditions: &C,
    walked: &mut Walked,
    piece: &mut dyn FnMut(&Walked),
) {
    walked.begin_again();
    let mut walk = Walk { request, contexts: None, conditions, next_context: 0, piece };
    walk.request(walked).expect("the same bytes were walked with the same room");
    (walk.piece)(walked);
}

const RESOURCE_SPANS: u32 = tag(1, BYTES);
/// The scopes of a resource, and the spans of a scope.
const CHILDREN: u32 = tag(2, BYTES);
/// The scopes of a resource in their former field. OTLP 0.15 gave it a number of its own, and OTLP
/// 1.0 removed it. The resource, the scopes and the spans inside have their current numbers.
const FORMER_SCOPES: u32 = tag(schema::FORMER_SCOPES, BYTES);

/// The state of a walk.
struct Walk<'a, C> {
    request: &'a [u8],
    /// `None` in a second walk, which uses the contexts that the first walk left in
    /// [`Walked::contexts`].
    contexts: Option<&'a Contexts>,
    conditions: &'a C,
    /// The index of the context whose spans are being walked.
    next_context: u32,
    /// Takes the spans when there is no room for more.
    piece: &'a mut dyn FnMut(&Walked),
}

impl<C: Conditions> Walk<'_, C> {
    fn request(&mut self, walked: &mut Walked) -> Result<(), Unwalked> {
        let mut reader = Reader::new(self.request);
        while let Some(tag) = reader.next_tag()? {
            match tag {
                RESOURCE_SPANS => self.resource_spans(reader.bytes()?, walked)?,
                _ => reader.skip_unless(tag, &[1])?,
            }
        }
        Ok(())
    }

    fn resource_spans(&mut self, message: &[u8], walked: &mut Walked) -> Result<(), Unwalked> {
        // The resource may come after its spans, so its fields are collected first. Skipping the
        // spans costs one length per block.
        walked.begin_resource();
        let has_former_scopes = collect_resource(message, walked)?;
        let before = walked.spans_met();
        self.scopes(message, CHILDREN, walked)?;
        // A sender may write the same spans to both fields; only one of them counts.
        if has_former_scopes && walked.spans_met() == before {
            self.scopes(message, FORMER_SCOPES, walked)?;
        }
        Ok(())
    }

    /// The scopes of a `ResourceSpans` in the fields with this tag.
    fn scopes(&mut self, message: &[u8], scopes: u32, walked: &mut Walked) -> Result<(), Unwalked> {
        let (mut resource, mut is_resource_read) = (None, false);
        let mut reader = Reader::new(message);
        while let Some(tag) = reader.next_tag()? {
            if tag != scopes {
                reader.skip(tag)?;
                continue;
            }
            let scope_spans = reader.bytes()?;
            if !is_resource_read && has_spans(scope_spans)? {
                is_resource_read = true;
                let (fields, bits) = walked.resource_and_bits();
                bits.clear();
                bits.resize(self.conditions.words(), 0);
                read_resource(self.conditions, fields, bits)?;
            }
            walked.refuse_outsized(scope_spans)?;
            let spans_before = walked.spans_seen();
            if self.conditions.reads_fields() {
                self.spans::<true>(scope_spans, walked)?;
            } else {
                self.spans::<false>(scope_spans, walked)?;
            }
            // Interned only for accepted spans, so a scope without spans, or with refused ones
            // only, costs nothing.
            if walked.spans_seen() == spans_before {
                continue;
            }
            if let Some(contexts) = self.contexts {
                walked.intern(contexts, &mut resource)?;
            }
            self.next_context =
                self.next_context.checked_add(1).ok_or(Malformed("too many scopes"))?;
        }
        Ok(())
    }

    /// Walks the spans of one scope. `scope` gets the raw bytes of its other fields. Compiled
    /// twice, so the fields cost nothing if no condition reads them (`FIELDS`).
    fn spans<const FIELDS: bool>(
        &mut self,
        scope_spans: &[u8],
        walked: &mut Walked,
    ) -> Result<(), Unwalked> {
        let context = self.next_context;
        walked.begin_scope();
        let mut reader = Reader::new(scope_spans);
        let mut rest = scope_spans;
        while let Some(tag) = reader.next_tag()? {
            if tag != CHILDREN {
                reader.skip_unless(tag, &[2])?;
                walked.add_to_scope(&rest[..rest.len() - reader.remaining()])?;
                rest = &rest[rest.len() - reader.remaining()..];
                continue;
            }
            if walked.is_full() {
                self.make_room(walked)?;
            }
            let bits = walked.bits_of_next_span();
            let span = reader.bytes()?;
            rest = &rest[rest.len() - reader.remaining()..];
            // A span is a part of its request, and a request is shorter than 4 GiB.
            let offset = (span.as_ptr().addr() - self.request.as_ptr().addr()) as u32;
            match read_span::<FIELDS, _>(self.conditions, span, bits)? {
                Some(span) => walked.add_span(SpanMeta { offset, context, ..span }),
                None => walked.reject(),
            }
        }
        Ok(())
    }

    /// Makes room for more spans, or starts the next piece.
    #[cold]
    fn make_room(&mut self, walked: &mut Walked) -> Result<(), Unwalked> {
        if !walked.grow()? {
            (self.piece)(walked);
            walked.begin_piece();
        }
        Ok(())
    }
}

/// Sets the bits of the conditions that a resource meets, given the fields of its `ResourceSpans`.
pub(super) fn read_resource<C: Conditions>(
    conditions: &C,
    fields: &[u8],
    bits: &mut [u64],
) -> Result<(), Malformed> {
    if bits.is_empty() {
        return Ok(());
    }
    let mut reader = Reader::new(fields);
    while let Some(field) = reader.next_field()? {
        if field.number != 1 {
            continue;
        }
        let mut attributes = Reader::new(field.value.bytes()?);
        while let Some(field) = attributes.next_field()? {
            if field.number == 1 {
                let attribute = Attribute::read(field.value.bytes()?)?;
                conditions.test_resource_attribute(attribute, bits)?;
            }
        }
    }
    Ok(())
}

/// Reads one span and sets the bits of the conditions that it meets. `None` if an id is malformed.
/// The caller sets the offset and the context.
#[inline]
pub(super) fn read_span<const FIELDS: bool, C: Conditions>(
    conditions: &C,
    span: &[u8],
    bits: &mut [u64],
) -> Result<Option<SpanMeta>, Malformed> {
    let (mut trace_id, mut span_id, mut parent, mut trace_state) =
        (&[][..], &[][..], &[][..], &[][..]);
    let (mut start, mut end, mut code) = (0, 0, 0);
    let (mut name, mut name_at, mut kind, mut flags) = (&[][..], 0, 0, 0);
    let mut reader = Reader::new(span);
    while let Some(tag) = reader.next_tag()? {
        match tag {
            span_tag::TRACE_ID => trace_id = reader.bytes()?,
            span_tag::SPAN_ID => span_id = reader.bytes()?,
            span_tag::TRACE_STATE => trace_state = reader.bytes()?,
            span_tag::PARENT => parent = reader.bytes()?,
            span_tag::START => start = reader.fixed64()?,
            span_tag::END => end = reader.fixed64()?,
            span_tag::ATTRIBUTE if conditions.reads_attributes() => loop {
                let attribute = Attribute::read(reader.bytes()?)?;
                conditions.test_attribute(attribute, bits)?;
                // They follow each other, and expecting the next one is faster than dispatching on
                // it.
                if !reader.next_is(span_tag::ATTRIBUTE as u8) {
                    break;
                }
            },
            span_tag::STATUS => read_status(reader.bytes()?, &mut code)?,
            // If no condition reads attributes, they are skipped like any field that is not read.
            span_tag::ATTRIBUTE => reader.skip(tag)?,
            span_tag::NAME => {
                name_at = span.len() - reader.remaining();
                name = reader.bytes()?;
            }
            // Truncated to 32 bits, like the status.
            span_tag::KIND => kind = reader.varint()? as i32,
            span_tag::FLAGS if FIELDS => flags = reader.fixed32()?,
            span_tag::EVENT if FIELDS && conditions.reads_events() => {
                conditions.test_event(Event(reader.bytes()?), bits)?;
            }
            span_tag::EVENT if FIELDS => reader.skip(tag)?,
            _ if FIELDS => reader.skip_unless(tag, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 15, 16])?,
            _ => reader.skip_unless(tag, &[1, 2, 3, 4, 7, 8, 9, 15])?,
        }
    }
    let Some((trace_id, is_root)) = sound_ids(trace_id, span_id, parent) else { return Ok(None) };
    let status_mask = status_mask(code);
    let end = if end == 0 { 0 } else { end.max(start) };
    let kind_mask = kind_mask(kind);
    let fields = SpanFields {
        name,
        trace_state,
        flags,
        status_mask,
        kind_mask,
        is_root,
        start_unix_nano: start,
        duration_nanos: (start != 0 && end != 0).then(|| end - start),
    };
    if FIELDS {
        conditions.test_span(&fields, bits);
    }
    conditions.describe_span(&fields, bits);
    Ok(Some(SpanMeta {
        trace_id,
        start_unix_nano: start,
        end_unix_nano: end,
        explicit_randomness: tracestate::randomness(trace_state),
        offset: 0,
        len: span.len() as u32,
        context: 0,
        status_mask,
        is_root,
        kind_mask,
        name_at: u8::try_from(name_at).unwrap_or(0),
    }))
}

/// The first kind field of a span, as a [`SpanKind::mask`]; 0 if there is none. The rest of the
/// span is not read. Nearly every span has at most one such field, which is then its kind.
pub(crate) fn first_kind_mask(span: &[u8]) -> u8 {
    let mut reader = Reader::new(span);
    while let Ok(Some(tag)) = reader.next_tag() {
        if tag == span_tag::KIND {
            return reader.varint().map_or(0, |kind| kind_mask(kind as i32));
        }
        if reader.skip(tag).is_err() {
            break;
        }
    }
    0
}

/// The same [`SpanMeta`] that [`walk`] would produce for a span, but without its place in a
/// request. `None` if the span cannot be read.
pub(crate) fn span_meta(span: &[u8]) -> Option<SpanMeta> {
    read_span::<false, _>(&(), span, &mut []).ok().flatten()
}

/// The trace id, and whether the span is a root; `None` if an id is malformed.
#[inline(always)]
fn sound_ids(trace_id: &[u8], span_id: &[u8], parent: &[u8]) -> Option<(TraceId, bool)> {
    let trace_id = <[u8; 16]>::try_from(trace_id).ok()?;
    let is_root = match parent {
        [] | [0, 0, 0, 0, 0, 0, 0, 0] => true,
        id if id.len() == 8 => false,
        _ => return None,
    };
    let is_sound = trace_id != [0; 16] && span_id.len() == 8 && span_id != [0; 8];
    is_sound.then_some((TraceId(trace_id), is_root))
}

/// The fields of a `Span` that the walker reads.
mod span_tag {
    use crate::otlp::wire::{BYTES, FIXED32, FIXED64, VARINT, tag};

    pub(super) const TRACE_ID: u32 = tag(1, BYTES);
    pub(super) const SPAN_ID: u32 = tag(2, BYTES);
    pub(super) const TRACE_STATE: u32 = tag(3, BYTES);
    pub(super) const PARENT: u32 = tag(4, BYTES);
    pub(super) const NAME: u32 = tag(5, BYTES);
    pub(super) const KIND: u32 = tag(6, VARINT);
    pub(super) const START: u32 = tag(7, FIXED64);
    pub(super) const END: u32 = tag(8, FIXED64);
    pub(super) const ATTRIBUTE: u32 = tag(9, BYTES);
    pub(super) const EVENT: u32 = tag(11, BYTES);
    pub(super) const STATUS: u32 = tag(15, BYTES);
    pub(super) const FLAGS: u32 = tag(16, FIXED32);
}

/// Collects the raw bytes of all fields of a `ResourceSpans` except scopes. Returns whether there
/// are scopes in the former field.
fn collect_resource(message: &[u8], walked: &mut Walked) -> Result<bool, Unwalked> {
    let mut has_former_scopes = false;
    let mut reader = Reader::new(message);
    while let Some(field) = reader.next_field()? {
        match field.number {
            2 => _ = field.value.bytes()?,
            // Backends that still know this field must not get it, not even as an unknown field of
            // the resource or with another wire type.
            schema::FORMER_SCOPES => {
                field.value.bytes()?;
                has_former_scopes = true;
            }
            _ => walked.add_to_resource(field.raw)?,
        }
    }
    Ok(has_former_scopes)
}

/// The bytes of all fields of a `ScopeSpans` except its spans.
pub(super) fn scope_bytes(scope_spans: &[u8]) -> Result<usize, Malformed> {
    let mut reader = Reader::new(scope_spans);
    let (mut bytes, mut before) = (0, scope_spans.len());
    while let Some(tag) = reader.next_tag()? {
        reader.skip(tag)?;
        if tag != CHILDREN {
            bytes += before - reader.remaining();
        }
        before = reader.remaining();
    }
    Ok(bytes)
}

/// Whether a `ScopeSpans` has any span.
fn has_spans(scope_spans: &[u8]) -> Result<bool, Malformed> {
    let mut reader = Reader::new(scope_spans);
    while let Some(tag) = reader.next_tag()? {
        if tag == CHILDREN {
            return Ok(true);
        }
        reader.skip_unless(tag, &[2])?;
    }
    Ok(false)
}

fn read_status(status: &[u8], code: &mut i32) -> Result<(), Malformed> {
    let mut reader = Reader::new(status);
    while let Some(tag) = reader.next_tag()? {
        match tag {
            STATUS_CODE => {
                // Protobuf enums have 32 bits. Longer varints are truncated, as in every
                // implementation.
                *code = reader.varint()? as i32;
            }
            _ => reader.skip_unless(tag, &[3])?,
        }
    }
    Ok(())
}

const STATUS_CODE: u32 = tag(3, VARINT);

fn kind_mask(kind: i32) -> u8 {
    if (0..=5).contains(&kind) { 1 << kind } else { 0 }
}

fn status_mask(code: i32) -> u8 {
    match code {
        0 => StatusCode::Unset.mask(),
        1 => StatusCode::Ok.mask(),
        2 => StatusCode::Error.mask(),
        _ => 0,
    }
}
