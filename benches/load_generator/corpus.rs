//! One cycle of requests, encoded once. In each further cycle only the trace ids change, in place.
//!
//! Generating and encoding spans costs more CPU than dropping them, and the generator shares the
//! machine with the measured process. So a cycle of requests is encoded at the start. A request
//! that is sent again gets new trace ids written over the old ones: 16 bytes a span, without a
//! copy.
//!
//! **Placement.** The corpus is a ring of requests. In each request, 128 traces begin. They have 2
//! to 14 spans, and 1024 spans together; with another trace length, all traces have that length. A
//! trace has up to three parts: in its own request, and `stride` and 2 x `stride` requests later,
//! with the root in the last. One span of every sixteenth trace may arrive even later. The parts of
//! the traces of one request have the same sizes for every request, so each has exactly 1024 spans.
//! Parts that wrap around the end of the ring belong to traces of an earlier cycle; each slot
//! stores how many cycles earlier (`age`).
//!
//! **Compression.** Compressed bytes cannot be patched. So a compressed corpus is one cycle that
//! lasts for the whole run. Its ids are written before it is compressed, and the load ends when the
//! corpus is used up.
//!
//! **Ids.** The bijective finalizer of splitmix64 over a counter of traces: the low 64 bits never
//! repeat within a run, and the low 56 bits are the trace's randomness, so they must look random.

use std::{
    io::Write as _,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::{BufMut, Bytes, BytesMut};
use fastrand::Rng;
use flate2::write::GzEncoder;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    trace::v1::{ResourceSpans, Span},
};
use prost::Message;

use crate::{
    Result, framing,
    traffic::{self, Kind, Size, Trace},
};

/// Spans in every request, unless an option sets another number.
pub(crate) const SPANS_PER_REQUEST: u64 = 1024;
/// The trace length that stands for 2 to 14 spans, eight on average.
const MIXED_TRACES: u64 = 8;
/// One trace in this many has a late span.
const LATE_ONE_IN: u64 = 16;
/// Spans of a request that share a resource. If the corpus has more resources, the requests use
/// them in turn.
const SPANS_PER_RESOURCE: u64 = 100;
/// A gRPC message's prefix: not compressed, then its length in four bytes.
pub(crate) const GRPC_PREFIX_BYTES: usize = 5;
/// Prost writes the trace id first: tag and length are two bytes, then 16 bytes of id.
const ID_OFFSET: usize = 2;

/// The shape of the traffic.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// Spans in every request.
    pub(crate) spans: u64,
    /// Requests in one cycle.
    pub(crate) requests: usize,
    /// Different resources in the corpus.
    pub(crate) resources: usize,
    /// Requests from one part of a trace to the next.
    pub(crate) stride: u64,
    /// Spans of a trace, a power of two; 8 stands for 2 to 14.
    pub(crate) trace_spans: u64,
    /// The size of spans.
    pub(crate) size: Size,
    /// Whether half of a request's spans belong to its first resource, half of the rest to its
    /// second, and so on.
    pub(crate) is_skewed: bool,
    /// How many requests later one span of every sixteenth trace is sent; 0 means that no span is
    /// late.
    pub(crate) late: u64,
    /// How bodies are compressed.
    pub(crate) compression: Compression,
}

impl Shape {
    /// Ten resources, traces of eight spans in neighbouring requests.
    pub(crate) fn plain(requests: usize) -> Self {
        Shape {
            spans: SPANS_PER_REQUEST,
            requests,
            resources: 10,
            stride: 1,
            trace_spans: MIXED_TRACES,
            size: Size::Medium,
            is_skewed: false,
            late: 0,
            compression: Compression::None,
        }
    }

    /// The number of traces that begin in each request.
    pub(crate) fn traces_per_request(&self) -> u64 {
        self.spans / self.trace_spans
    }

    /// Mixed traces have 2 to 14 spans in pairs that add up to 16, the same for every request.
    fn spans_of_trace(&self, number: u64) -> u64 {
        if self.trace_spans != MIXED_TRACES {
            return self.trace_spans;
        }
        let number = number % self.traces_per_request();
        if number + 1 == self.traces_per_request() && number.is_multiple_of(2) {
            return MIXED_TRACES;
        }
        let difference = number / 2 % 7;
        if number.is_multiple_of(2) { 8 - difference } else { 8 + difference }
    }
}

/// How bodies are compressed.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Compression {
    None,
    /// Level 6, as the SDKs do.
    Gzip,
    /// Level 3, its own default.
    Zstd,
}

impl Compression {
    /// The value of `grpc-encoding`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "identity",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    fn compress(self, message: &[u8]) -> std::io::Result<Vec<u8>> {
        match self {
            Self::None => Ok(message.to_vec()),
            Self::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(6));
                encoder.write_all(message)?;
                encoder.finish()
            }
            Self::Zstd => zstd::encode_all(message, 3),
        }
    }
}

/// The ring of requests.
pub(crate) struct Corpus {
    requests: Vec<Request>,
    is_compressed: bool,
    traces: u64,
    first_counter: u64,
    /// The average encoded bytes of a request, without the gRPC prefix.
    pub(crate) bytes_per_request: f64,
    /// The share of the spans that the bench's policies keep, in percent.
    pub(crate) expected_kept_percent: f64,
    /// Requests that had to be copied, because they were still being written when they were needed
    /// again.
    pub(crate) copies: u64,
}

#[derive(Default)]
struct Request {
    body: Bytes,
    ids: Vec<IdSlot>,
}

/// The place of a trace id, and the trace it belongs to.
struct IdSlot {
    offset: u32,
    trace: u32,
    /// Cycles since the trace began.
    age: u32,
}

impl Corpus {
    /// Builds and encodes one cycle. It is deterministic, except for the ids and the wall time of
    /// the spans.
    pub(crate) fn build(shape: &Shape) -> Result<Self> {
        let mut rng = Rng::with_seed(7);
        let start_ns = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let start_ns = u64::try_from(start_ns)?;
        let traces = shape.requests as u64 * shape.traces_per_request();
        let mut corpus = Self {
            traces,
            is_compressed: shape.compression != Compression::None,
            first_counter: fastrand::u64(..),
            bytes_per_request: 0.0,
            expected_kept_percent: 0.0,
            copies: 0,
            requests: Vec::new(),
        };
        corpus.requests.resize_with(shape.requests, Request::default);
        let mut spans: Vec<Vec<Span>> = Vec::new();
        spans.resize_with(shape.requests, Vec::new);
        // Spans of traces from the end of the ring go to the first requests.
        let first = (2 * shape.stride).max(shape.late).min(shape.requests as u64) as usize;
        let (mut kept, mut all, mut bytes) = (0.0, 0.0, 0);
        for number in 0..traces {
            let trace = Trace::new(number, start_ns, shape.size, &mut rng);
            let size = shape.spans_of_trace(number);
            let keep = if trace.kind == Kind::Ordinary { traffic::BASELINE_PERCENT } else { 100.0 };
            kept += keep * size as f64;
            all += size as f64;
            place(number, &trace, shape, &mut spans, &mut rng);
            // A request is encoded as soon as it is complete: all spans of a run that is compressed
            // in advance would take gigabytes.
            let index = (number / shape.traces_per_request()) as usize;
            if (number + 1).is_multiple_of(shape.traces_per_request()) && index >= first {
                bytes += corpus.encode(index, std::mem::take(&mut spans[index]), shape)?;
            }
        }
        for (index, spans) in spans.into_iter().take(first).enumerate() {
            bytes += corpus.encode(index, spans, shape)?;
        }
        corpus.expected_kept_percent = kept / all;
        corpus.bytes_per_request = bytes as f64 / corpus.requests.len() as f64;
        Ok(corpus)
    }

    /// Encodes a request. Returns the length of its message before it is compressed.
    fn encode(&mut self, index: usize, spans: Vec<Span>, shape: &Shape) -> Result<usize> {
        let mut request = Request::encode(index, spans, shape)?;
        let bytes = request.body.len() - GRPC_PREFIX_BYTES;
        if self.is_compressed {
            let body = self.stamped(&mut request, 0);
            request.body = compressed(&body[GRPC_PREFIX_BYTES..], shape.compression)?;
            request.ids = Vec::new();
        }
        self.requests[index] = request;
        Ok(bytes)
    }

    /// The body of the request numbered `sequence` from the start of the load, with its prefix;
    /// `None` once a compressed corpus is used up.
    pub(crate) fn body(&mut self, sequence: u64) -> Option<Bytes> {
        let ring = self.requests.len() as u64;
        let (cycle, place) = (sequence / ring, (sequence % ring) as usize);
        if self.is_compressed {
            return (cycle == 0).then(|| self.requests[place].body.clone());
        }
        let mut request = std::mem::take(&mut self.requests[place]);
        let body = self.stamped(&mut request, cycle);
        self.requests[place] = request;
        Some(body)
    }

    /// The request with the ids of this cycle.
    fn stamped(&mut self, request: &mut Request, cycle: u64) -> Bytes {
        let mut body = std::mem::take(&mut request.body).try_into_mut().unwrap_or_else(|in_use| {
            self.copies += 1;
            BytesMut::from(&in_use[..])
        });
        for slot in &request.ids {
            let began = cycle.wrapping_sub(u64::from(slot.age));
            let counter = began.wrapping_mul(self.traces).wrapping_add(u64::from(slot.trace));
            let id = trace_id(self.first_counter.wrapping_add(counter));
            body[slot.offset as usize..][..16].copy_from_slice(&id);
        }
        request.body = body.freeze();
        request.body.clone()
    }
}

impl Request {
    fn encode(index: usize, spans: Vec<Span>, shape: &Shape) -> Result<Self> {
        let resources = shape.resources;
        let in_request = (shape.spans / SPANS_PER_RESOURCE).max(1) as usize;
        let mut groups: Vec<_> = (0..in_request.min(resources))
            .map(|group| ResourceSpans {
                resource: Some(traffic::resource(
                    (index * in_request + group) % resources,
                    shape.size,
                )),
                scope_spans: vec![traffic::scope()],
                schema_url: "https://opentelemetry.io/schemas/1.37.0".into(),
            })
            .collect();
        let count = groups.len();
        for (position, span) in spans.into_iter().enumerate() {
            let doubling = (position + 1).trailing_zeros() as usize;
            let group = if shape.is_skewed { doubling } else { position };
            groups[group % count].scope_spans[0].spans.push(span);
        }
        let message = ExportTraceServiceRequest { resource_spans: groups };
        let length = message.encoded_len();
        let mut body = BytesMut::with_capacity(GRPC_PREFIX_BYTES + length);
        body.put_u8(0);
        body.put_u32(u32::try_from(length)?);
        message.encode(&mut body)?;
        let ids = find_ids(&body, shape.spans)?;
        Ok(Self { body: body.freeze(), ids })
    }
}

fn compressed(message: &[u8], compression: Compression) -> Result<Bytes> {
    let message = compression.compress(message)?;
    let mut body = BytesMut::with_capacity(GRPC_PREFIX_BYTES + message.len());
    body.put_u8(1);
    body.put_u32(u32::try_from(message.len())?);
    body.put_slice(&message);
    Ok(body.freeze())
}

/// Puts the spans of one trace into the requests of its parts.
fn place(number: u64, trace: &Trace, shape: &Shape, spans: &mut [Vec<Span>], rng: &mut Rng) {
    let ring = shape.requests as u64;
    let size = shape.spans_of_trace(number);
    let (first, last) = (size.div_ceil(3), (size + 1) / 3);
    let has_late = shape.late > 0 && size > 1 && number.is_multiple_of(LATE_ONE_IN);
    for position in 0..size {
        let part = if position < first { 0 } else { 1 + u64::from(position >= size - last) };
        let is_late = has_late && position == 0;
        let later = if is_late { shape.late } else { part * shape.stride };
        let request = number / shape.traces_per_request() + later;
        let placeholder = placeholder(number, request / ring);
        let span = if position + 1 == size {
            trace.root(placeholder, size == 1, rng)
        } else {
            trace.child(placeholder, position + 2 == size, rng)
        };
        spans[(request % ring) as usize].push(span);
    }
}

/// The placeholder of trace `number` in the encoded request, until its first ids are written.
fn placeholder(number: u64, age: u64) -> [u8; 16] {
    ((u128::from(number) << 64) | u128::from(age)).to_be_bytes()
}

fn find_ids(body: &[u8], spans: u64) -> Result<Vec<IdSlot>> {
    let mut slots = Vec::new();
    let mut broken = false;
    framing::for_each_span(&body[GRPC_PREFIX_BYTES..], |span| {
        let offset = GRPC_PREFIX_BYTES + span.start + ID_OFFSET;
        match slot_at(body, offset) {
            Some(slot) => slots.push(slot),
            None => broken = true,
        }
    })
    .ok_or("the corpus has broken framing")?;
    if broken || slots.len() as u64 != spans {
        return Err(format!("a request of the corpus has {} spans", slots.len()).into());
    }
    Ok(slots)
}

fn slot_at(body: &[u8], offset: usize) -> Option<IdSlot> {
    let (tag, id) = body.get(offset - ID_OFFSET..offset + 16)?.split_at(ID_OFFSET);
    if tag != [0x0a, 16] {
        return None;
    }
    let placeholder = u128::from_be_bytes(id.try_into().ok()?);
    Some(IdSlot {
        offset: u32::try_from(offset).ok()?,
        trace: u32::try_from(placeholder >> 64).ok()?,
        age: u32::try_from(placeholder & u128::from(u64::MAX)).ok()?,
    })
}

fn trace_id(counter: u64) -> [u8; 16] {
    let (high, low) = (mix(counter ^ 0xa076_1d64_78bd_642f), mix(counter));
    ((u128::from(high) << 64) | u128::from(low)).to_be_bytes()
}

/// The finalizer of splitmix64: a bijection, so a counter never gives the same id twice.
fn mix(counter: u64) -> u64 {
    let z = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
