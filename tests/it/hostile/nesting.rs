//! Values nested as deep as a message allows, in every place where OTLP has values.

use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tailwater::{
    otlp::{
        encode::{Batch, Faults, TraceStamp},
        tracestate::Stamp,
        wire,
    },
    policy::{PolicySpec, RuleKind, RuleSpec, Scope, StringMatch},
    sampler::{Decided, Which},
    trace::TraceId,
};

use super::field;
use crate::{
    builders::{Fixture, limits, policy, probabilistic, root, trace_id},
    harness::{ALL, Running, config, span},
    http::{POST, send},
};

const PLACES: [&str; 5] = ["attributes", "events", "links", "scope", "resource"];

/// A value inside this many arrays. Lengths are computed from the inside out and bytes written from
/// the outside in, so that a million levels cost no more than their bytes.
fn value(levels: usize) -> Vec<u8> {
    let mut headers = Vec::with_capacity(2 * levels);
    let mut length = 2;
    for _ in 0..levels {
        for tag in [0x0a, 0x2a] {
            headers.push((tag, length));
            length += 1 + wire::varint_len(length as u64);
        }
    }
    let mut out = Vec::with_capacity(length);
    for (tag, length) in headers.into_iter().rev() {
        out.push(tag);
        wire::put_varint(&mut out, length as u64);
    }
    out.extend([0x18, 7]);
    out
}

/// A request with this span, and the value in this place.
fn request(place: &str, levels: usize, span: &Span) -> Vec<u8> {
    let pair = [field(1, b"deep"), field(2, &value(levels))].concat();
    let span = span.encode_to_vec();
    let more = match place {
        "attributes" => field(9, &pair),
        "events" => field(11, &field(3, &pair)),
        "links" => {
            let ids = [field(1, &[1; 16]), field(2, &[2; 8])].concat();
            field(13, &[ids, field(4, &pair)].concat())
        }
        _ => Vec::new(),
    };
    let mut of_scope = field(2, &[span, more].concat());
    if place == "scope" {
        of_scope.extend(field(1, &field(3, &pair)));
    }
    let mut of_resource = field(2, &of_scope);
    if place == "resource" {
        of_resource.extend(field(1, &field(1, &pair)));
    }
    field(1, &of_resource)
}

/// Cleans, stamps and encodes the kept spans.
fn leave(decided: Vec<Decided>) -> (Vec<u8>, Faults) {
    let mut batch = Batch::default();
    for decided in decided {
        let mut spans = decided.spans.into_iter();
        for trace in &decided.kept {
            let tracestate = Stamp {
                threshold: trace.verdict.threshold,
                randomness: trace.randomness,
                explicit: trace.is_explicit,
            };
            let stamp = TraceStamp {
                tracestate: Some(tracestate),
                policy_and_trigger: Some(("policy", "trigger")),
            };
            batch.push_trace(spans.by_ref().take(trace.spans), &stamp);
        }
    }
    let mut requests = Vec::new();
    while let Some(next) = batch.next(4 << 20) {
        requests.push(next.encode());
    }
    let bodies: Vec<_> = requests.iter().map(|request| &request.body[..]).collect();
    (bodies.concat(), batch.take_faults())
}

/// Policies that keep, that drop, and that keep by a condition on the nested attribute.
fn policies() -> [(PolicySpec, bool); 3] {
    let kind = RuleKind::StringAttribute {
        key: "deep".to_owned(),
        scope: Scope::Any,
        values: StringMatch::Exact(vec!["x".to_owned()]),
        invert: true,
    };
    let reads = policy("reads", RuleSpec { kind, sampling_percentage: 100.0 });
    [(probabilistic(100.0), true), (probabilistic(0.0), false), (reads, true)]
}

/// Ingests a request with the value in this place, decides it, and exports it.
fn pass(place: &str, levels: usize) {
    let deep = request(place, levels, &root(1, 0));
    let plain = field(1, &field(2, &field(2, &root(2, 0).encode_to_vec())));
    for (policy, is_kept) in policies() {
        let mut fixture = Fixture::new(&[policy], limits(), 2);
        drop(fixture.ingest(0, &[&deep[..], &plain].concat()));
        let (body, faults) = leave(fixture.decide(60_000, Which::Due));
        fixture.assert_ledger();
        assert_eq!((fixture.kept, fixture.dropped), if is_kept { (2, 0) } else { (0, 2) });
        let is_lost = is_kept && levels > 64;
        assert_eq!(faults.malformed_spans, u64::from(is_lost), "{place} {levels}");
        let sent = |trace: u64| body.windows(16).any(|id| *id == trace_id(trace));
        assert_eq!((sent(1), sent(2)), (is_kept && !is_lost, is_kept), "{place} {levels}");
        let _ = fixture.sampler.look_up(Default::default(), TraceId(trace_id(1)));
    }
}

/// Scenario: values nested 10 to a million levels deep in attributes, events, links, scope and
/// resource are ingested, matched, decided, logged, dropped and exported, on a stack of 256 KiB.
/// Guarantees: up to 64 levels are exported unchanged; deeper ones cost their span and no other.
#[test]
fn no_depth_overflows_a_small_stack() {
    let all = || {
        for place in PLACES {
            for levels in [10, 64, 65, 100, 10_000, 1_000_000] {
                pass(place, levels);
            }
        }
    };
    let small_stack = std::thread::Builder::new().stack_size(256 << 10);
    small_stack.spawn(all).expect("a thread").join().expect("no overflow");
}

/// The request of [`request`] in JSON, with a root span.
fn json(place: &str, levels: usize, trace: u64) -> String {
    let open = "{\"arrayValue\":{\"values\":[".repeat(levels);
    let close = "]}}".repeat(levels);
    let attributes = format!("\"attributes\":[{{\"key\":\"deep\",\"value\":{open}{close}}}]");
    let member = |name: &str| if place == name { attributes.clone() } else { String::new() };
    let ids = format!("\"traceId\":\"{:032x}\",\"spanId\":\"00000000000000ff\"", 1 << 60 | trace);
    let span_members = match place {
        "attributes" => format!(",{attributes}"),
        "events" => format!(",\"events\":[{{{attributes}}}]"),
        "links" => format!(",\"links\":[{{{ids},{attributes}}}]"),
        "unknown" => format!(",\"unknown\":{}{}", "[".repeat(levels), "]".repeat(levels)),
        _ => String::new(),
    };
    format!(
        "{{\"resourceSpans\":[{{\"resource\":{{{}}},\"scopeSpans\":[{{\"scope\":{{{}}},\
         \"spans\":[{{{ids}{span_members}}}]}}]}}]}}",
        member("resource"),
        member("scope"),
    )
}

/// Scenario: the same over both receivers, in protobuf and in JSON, and deep inside unknown fields.
/// Guarantees: all are accepted; spans with too deep values are counted as malformed when kept, the
/// rest arrives.
#[tokio::test]
async fn both_receivers_take_depth() {
    let mut config = config(ALL);
    // Resources and scopes of megabytes are only accepted if requests may be larger still.
    config.exporter.max_request_bytes = 256 << 20;
    let running = Running::start(config).await;
    for (trace, place) in (1..).zip(PLACES) {
        let deep = request(place, 1_000_000, &span(trace, 1, None));
        running.export_bytes(deep).await.expect("accepted");
    }
    let content_type = "content-type: application/json";
    let in_json = PLACES.map(|place| (place, 10_000));
    for (trace, (place, levels)) in
        (11..).zip(in_json.into_iter().chain([("attributes", 1_000_000), ("unknown", 1_000_000)]))
    {
        let body = json(place, levels, trace);
        let answer = send(&running, POST, &[content_type], body.as_bytes()).await;
        assert_eq!((answer.status, &answer.body[..]), (200, &b"{}"[..]), "{place}");
    }
    running.accept(vec![span(100, 1, None)]).await;
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 13.0);
    assert_eq!(metrics.get("exporter_failed_spans_total{reason=\"malformed\"}"), 11.0);
    assert_eq!(metrics.get("exporter_sent_spans_total"), 2.0);
    running.stop().await;
}
