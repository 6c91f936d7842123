//! One cycle of requests, encoded once; each time round only the trace ids change, in place.
//!
//! Generating and encoding spans costs more CPU than dropping them does, and the generator shares
//! the machine with what is measured. So a cycle of requests is encoded at the start, and a request
//! that is sent again gets new trace ids written over the old ones: 16 bytes a span, nothing is
//! copied.
//!
//! **Placement.** The corpus is a ring of requests. 128 traces begin in each, with 2 to 14 spans
//! and 1024 together. A trace has up to three parts, in its own request and `stride` and 2 x
//! `stride` requests later, the root in the last. The parts of 128 traces add up to the same
//! figures in every group, so every request has exactly 1024 spans. Where the ring closes a part
//! belongs to the cycle before; each slot knows by how many cycles (`age`).
//!
//! **Ids.** The bijective finalizer of splitmix64 over a counter of traces: the low 64 bits never
//! repeat within a run, and the low 56 bits are the trace's randomness, so they have to look
//! random.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};
use fastrand::Rng;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    trace::v1::{ResourceSpans, Span},
};
use prost::Message;

use crate::{
    Result, framing,
    traffic::{self, Kind, Trace},
};

/// Spans in every request.
pub(crate) const SPANS_PER_REQUEST: u64 = 1024;
/// Traces that begin in each request, eight spans each on average.
pub(crate) const TRACES_PER_REQUEST: u64 = 128;
/// Resources in one request; with more in the corpus, requests take turns.
const RESOURCES_PER_REQUEST: usize = 10;
/// A gRPC message's prefix: not compressed, then its length in four bytes.
pub(crate) const GRPC_PREFIX_BYTES: usize = 5;
/// Prost writes the trace id first: tag and length are two bytes, then 16 bytes of id.
const ID_OFFSET: usize = 2;

/// What to make.
pub(crate) struct Shape {
    /// Requests in one cycle.
    pub(crate) requests: usize,
    /// Different resources in the corpus.
    pub(crate) resources: usize,
    /// Requests from one part of a trace to the next.
    pub(crate) stride: u64,
}

/// The ring of requests.
pub(crate) struct Corpus {
    requests: Vec<Request>,
    traces: u64,
    first_counter: u64,
    /// Encoded bytes of a request without the gRPC prefix, on average.
    pub(crate) bytes_per_request: f64,
    /// Share of the spans that the rig's policies keep, in percent.
    pub(crate) expected_kept_percent: f64,
    /// Requests that were still being written when their turn came again, and had to be copied.
    pub(crate) copies: u64,
}

struct Request {
    body: Bytes,
    ids: Vec<IdSlot>,
}

/// Where a trace id stands, and whose.
struct IdSlot {
    offset: u32,
    trace: u32,
    /// Cycles since the trace began.
    age: u32,
}

impl Corpus {
    /// Builds and encodes one cycle. Deterministic but for the ids and the wall time of the spans.
    pub(crate) fn build(shape: &Shape) -> Result<Self> {
        let mut rng = Rng::with_seed(7);
        let start_ns = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let start_ns = u64::try_from(start_ns)?;
        let ring = shape.requests as u64;
        let mut spans: Vec<Vec<Span>> = Vec::new();
        spans.resize_with(shape.requests, Vec::new);
        let (mut kept, mut all) = (0.0, 0.0);
        for number in 0..ring * TRACES_PER_REQUEST {
            let trace = Trace::new(number, start_ns, &mut rng);
            let size = spans_of_trace(number);
            let keep = if trace.kind == Kind::Ordinary { traffic::BASELINE_PERCENT } else { 100.0 };
            kept += keep * size as f64;
            all += size as f64;
            place(number, &trace, shape, &mut spans, &mut rng);
        }
        let requests = spans
            .into_iter()
            .enumerate()
            .map(|(index, spans)| Request::encode(index, spans, shape.resources))
            .collect::<Result<Vec<_>>>()?;
        let bytes: usize = requests.iter().map(|r| r.body.len() - GRPC_PREFIX_BYTES).sum();
        Ok(Self {
            traces: ring * TRACES_PER_REQUEST,
            first_counter: fastrand::u64(..),
            bytes_per_request: bytes as f64 / requests.len() as f64,
            expected_kept_percent: kept / all,
            copies: 0,
            requests,
        })
    }

    /// The body of the request numbered `sequence`, counted from the start of the load, with its
    /// prefix.
    pub(crate) fn body(&mut self, sequence: u64) -> Bytes {
        let ring = self.requests.len() as u64;
        let cycle = sequence / ring;
        let request = &mut self.requests[(sequence % ring) as usize];
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
    fn encode(index: usize, spans: Vec<Span>, resources: usize) -> Result<Self> {
        let mut groups: Vec<_> = (0..RESOURCES_PER_REQUEST.min(resources))
            .map(|group| ResourceSpans {
                resource: Some(traffic::resource(
                    (index * RESOURCES_PER_REQUEST + group) % resources,
                )),
                scope_spans: vec![traffic::scope()],
                schema_url: "https://opentelemetry.io/schemas/1.37.0".into(),
            })
            .collect();
        let count = groups.len();
        for (position, span) in spans.into_iter().enumerate() {
            groups[position % count].scope_spans[0].spans.push(span);
        }
        let message = ExportTraceServiceRequest { resource_spans: groups };
        let length = message.encoded_len();
        let mut body = BytesMut::with_capacity(GRPC_PREFIX_BYTES + length);
        body.put_u8(0);
        body.put_u32(u32::try_from(length)?);
        message.encode(&mut body)?;
        let ids = find_ids(&body)?;
        Ok(Self { body: body.freeze(), ids })
    }
}

/// Puts the spans of one trace into the requests of its parts.
fn place(number: u64, trace: &Trace, shape: &Shape, spans: &mut [Vec<Span>], rng: &mut Rng) {
    let ring = shape.requests as u64;
    let size = spans_of_trace(number);
    let (first, last) = (size.div_ceil(3), (size + 1) / 3);
    for position in 0..size {
        let part = if position < first { 0 } else { 1 + u64::from(position >= size - last) };
        let request = number / TRACES_PER_REQUEST + part * shape.stride;
        let placeholder = placeholder(number, request / ring);
        let span = if position + 1 == size {
            trace.root(placeholder, rng)
        } else {
            trace.child(placeholder, position + 2 == size, rng)
        };
        spans[(request % ring) as usize].push(span);
    }
}

/// 2 to 14, in pairs that add up to 16, the same for each group of [`TRACES_PER_REQUEST`].
fn spans_of_trace(number: u64) -> u64 {
    let number = number % TRACES_PER_REQUEST;
    let difference = number / 2 % 7;
    if number.is_multiple_of(2) { 8 - difference } else { 8 + difference }
}

/// Stands for the id of trace `number` in the encoded request until its first ids are written.
fn placeholder(number: u64, age: u64) -> [u8; 16] {
    ((u128::from(number) << 64) | u128::from(age)).to_be_bytes()
}

fn find_ids(body: &[u8]) -> Result<Vec<IdSlot>> {
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
    if broken || slots.len() as u64 != SPANS_PER_REQUEST {
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
