//! Checks that the generated traffic has the properties that the tables claim.
//!
//! Benches without the test harness have no `#[test]`, and a generator that repeats ids or forgets
//! roots would make the results look better. So `check` generates several cycles without sending
//! them, decodes them with prost and evaluates the policies in a simple way.

use std::collections::HashMap;

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::any_value::Value,
    trace::v1::{Span, status::StatusCode},
};
use prost::Message;

use crate::{
    Result,
    corpus::{Corpus, GRPC_PREFIX_BYTES, Shape},
    framing,
    traffic::{BASELINE_PERCENT, SLOW_MS, Size, TIER_KEY, TIER_WANTED},
};

const CYCLES: u64 = 8;
const REQUESTS: usize = 32;
/// The largest allowed difference between the kept share and the expected share, in standard
/// deviations.
const DEVIATIONS_MAX: f64 = 5.0;

/// Checks the traffic for each kind of option.
pub(crate) fn run() -> Result<()> {
    let plain = Shape::plain(REQUESTS);
    let shapes = [
        ("plain", plain),
        ("parts further apart than one cycle", Shape { stride: 49, ..plain }),
        ("1,000 resources, skewed", Shape { resources: 1000, is_skewed: true, ..plain }),
        ("late spans", Shape { late: 70, ..plain }),
        ("one span a trace", Shape { trace_spans: 1, ..plain }),
        ("64 spans a trace", Shape { trace_spans: 64, ..plain }),
        ("1,024 spans a trace", Shape { trace_spans: 1024, requests: 400, ..plain }),
        ("small spans", Shape { size: Size::Small, ..plain }),
        ("large spans", Shape { size: Size::Large, ..plain }),
        ("diverse spans", Shape { size: Size::Diverse, resources: 240, ..plain }),
        ("8,192 spans a request", Shape { spans: 8192, ..plain }),
        ("200 spans a request", Shape { spans: 200, resources: 40, ..plain }),
    ];
    for (name, shape) in shapes {
        let (kept, bytes) = check(&shape).map_err(|problem| format!("{name}: {problem}"))?;
        println!("{name}: fine, {kept:.2} % of the spans kept, {bytes:.0} bytes a span");
    }
    Ok(())
}

/// The facts about one trace that a sampler would see.
struct Seen {
    first_request: u64,
    last_request: u64,
    root_request: Option<u64>,
    spans: u64,
    roots: u64,
    start_ns: u64,
    end_ns: u64,
    wanted: bool,
}

fn check(shape: &Shape) -> Result<(f64, f64)> {
    let mut corpus = Corpus::build(shape)?;
    let total = shape.requests as u64 * CYCLES;
    let mut traces: HashMap<Vec<u8>, Seen> = HashMap::new();
    for sequence in 0..total {
        let body = corpus.body(sequence).ok_or("it ends")?;
        let message = &body[GRPC_PREFIX_BYTES..];
        if framing::count_spans(message) != Some(shape.spans) {
            return Err("the framing walk counts other spans".into());
        }
        let request = ExportTraceServiceRequest::decode(message)?;
        let scopes = request.resource_spans.into_iter().flat_map(|group| group.scope_spans);
        for span in scopes.flat_map(|scope| scope.spans) {
            see(&mut traces, sequence, &span);
        }
    }
    // Traces that began before the first request or end after the last are incomplete.
    let reach = (2 * shape.stride).max(shape.late);
    let root_after = if shape.trace_spans == 1 { 0 } else { 2 * shape.stride };
    let began = move |seen: &Seen| seen.root_request?.checked_sub(root_after);
    let complete =
        || traces.iter().filter(|(_, seen)| began(seen).is_some_and(|b| b < total - reach));
    let spans: u64 = complete().map(|(_, seen)| seen.spans).sum();
    if complete().count() as u64 != (total - reach) * shape.traces_per_request() {
        return Err("ids repeat, or roots are missing".into());
    }
    if spans != (total - reach) * shape.spans {
        return Err("spans of complete traces are missing".into());
    }
    let is_in_time = |seen: &Seen| {
        began(seen).is_some_and(|b| seen.first_request >= b && seen.last_request <= b + reach)
    };
    if complete().any(|(_, seen)| seen.roots != 1 || !is_in_time(seen)) {
        return Err("a trace has two roots, or spans at another time".into());
    }
    let kept: u64 = complete().filter(|(id, s)| keeps(id, s)).map(|(_, seen)| seen.spans).sum();
    let percent = 100.0 * kept as f64 / spans as f64;
    // Only the baseline depends on chance, trace by trace.
    let (share, traces) = (BASELINE_PERCENT / 100.0, complete().count() as f64);
    let deviation = 100.0 * (share * (1.0 - share) / traces).sqrt();
    if (percent - corpus.expected_kept_percent).abs() > DEVIATIONS_MAX * deviation {
        return Err(
            format!("{percent:.2} % kept, not {:.2} %", corpus.expected_kept_percent).into()
        );
    }
    Ok((percent, corpus.bytes_per_request / shape.spans as f64))
}

fn see(traces: &mut HashMap<Vec<u8>, Seen>, sequence: u64, span: &Span) {
    let seen = traces.entry(span.trace_id.clone()).or_insert(Seen {
        first_request: sequence,
        last_request: sequence,
        root_request: None,
        spans: 0,
        roots: 0,
        start_ns: u64::MAX,
        end_ns: 0,
        wanted: false,
    });
    seen.last_request = sequence;
    seen.spans += 1;
    if span.parent_span_id.is_empty() {
        seen.roots += 1;
        seen.root_request = Some(sequence);
    }
    seen.start_ns = seen.start_ns.min(span.start_time_unix_nano);
    seen.end_ns = seen.end_ns.max(span.end_time_unix_nano);
    let failed = span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error);
    seen.wanted |= failed || is_premium(span);
}

fn is_premium(span: &Span) -> bool {
    span.attributes.iter().filter(|attribute| attribute.key == TIER_KEY).any(|attribute| {
        let value = attribute.value.as_ref().and_then(|value| value.value.as_ref());
        matches!(value, Some(Value::StringValue(text)) if text == TIER_WANTED)
    })
}

/// Whether the bench's policies keep a trace, by the product's contract.
fn keeps(id: &[u8], seen: &Seen) -> bool {
    let randomness = id[9..].iter().fold(0_u64, |low, byte| low << 8 | u64::from(*byte));
    let threshold = (1.0 - BASELINE_PERCENT / 100.0) * (1_u64 << 56) as f64;
    let slow = seen.end_ns - seen.start_ns > SLOW_MS * 1_000_000;
    seen.wanted || slow || randomness as f64 >= threshold
}
