//! The encoding of exports: stamped, grouped by context, in requests of bounded size, always valid.

use std::sync::Arc;

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, ArrayValue, any_value::Value},
    trace::v1::{ResourceSpans, Span, span::Link},
};
use proptest::prelude::*;
use prost::Message as _;
use tailwater::{
    budget::Budget,
    otlp::{
        Context, Contexts,
        encode::{Batch, EncodedRequest, Faults, KeptSpan, TraceStamp},
        tracestate::Stamp,
        walk::{self, Walked},
        wire,
    },
    trace::{Randomness, Threshold},
};

use crate::{
    builders::{attribute, child, request_of, resource_spans, root, text},
    differential,
    harness::attribute as attribute_of,
    walker::mutate,
};

const NO_STAMP: TraceStamp<'static> = TraceStamp { tracestate: None, policy_and_trigger: None };

/// The stamp of a trace kept at ten per cent.
fn stamp(explicit: bool) -> TraceStamp<'static> {
    let tracestate = Stamp {
        threshold: Threshold::from_percentage(10.0),
        randomness: Randomness(0xff_0000_0000_0000),
        explicit,
    };
    TraceStamp {
        tracestate: Some(tracestate),
        policy_and_trigger: Some(("errors", "root_received")),
    }
}

/// The spans of a request as the window stores them.
fn kept(request: &[u8]) -> Vec<KeptSpan> {
    let contexts = Contexts::new(Budget::new(1 << 30));
    let mut walked = Walked::default();
    walk::walk(request, &contexts, &(), &mut walked).expect("a sound request");
    let span = |meta: &walk::SpanMeta| KeptSpan {
        bytes: request[meta.offset as usize..][..meta.len as usize].to_vec().into(),
        context: Arc::clone(&walked.contexts[meta.context as usize]),
    };
    walked.spans.iter().map(span).collect()
}

fn encode(batch: &mut Batch, max_request_bytes: usize) -> Vec<EncodedRequest> {
    let mut out = Vec::new();
    while let Some(next) = batch.next(max_request_bytes) {
        let (bytes, request) = (next.bytes(), next.encode());
        assert_eq!(request.body.len(), bytes, "as long as it was said to become");
        out.push(request);
    }
    assert!(batch.is_empty() && batch.body_bytes() == 0, "nothing waits any more");
    out
}

fn decode(request: &EncodedRequest) -> Vec<ResourceSpans> {
    let decoded = ExportTraceServiceRequest::decode(&request.body[..]).expect("a valid request");
    let spans = spans_of(&decoded.resource_spans).len();
    assert_eq!(request.spans, spans as u64, "as many spans as it says");
    decoded.resource_spans
}

fn spans_of(request: &[ResourceSpans]) -> Vec<Span> {
    let scopes = request.iter().flat_map(|of_resource| &of_resource.scope_spans);
    scopes.flat_map(|of_scope| of_scope.spans.clone()).collect()
}

/// Encodes one trace into one request and reads it back.
fn round_trip(spans: Vec<KeptSpan>, stamp: &TraceStamp<'_>) -> (Vec<ResourceSpans>, Faults) {
    let mut batch = Batch::default();
    batch.push_trace(spans.into_iter(), stamp);
    let requests = encode(&mut batch, usize::MAX);
    let decoded = requests.iter().flat_map(decode).collect();
    (decoded, batch.take_faults())
}

/// Resource, scope and span as one key, to compare received with exported spans.
fn flatten(request: &[ResourceSpans]) -> Vec<(Vec<u8>, Vec<u8>, Vec<u8>)> {
    let mut flat = Vec::new();
    for of_resource in request {
        let resource = ResourceSpans { scope_spans: Vec::new(), ..of_resource.clone() };
        for of_scope in &of_resource.scope_spans {
            let mut scope = of_scope.clone();
            let spans = std::mem::take(&mut scope.spans);
            let (resource, scope) = (resource.encode_to_vec(), scope.encode_to_vec());
            let with_context = |span: Span| (resource.clone(), scope.clone(), span.encode_to_vec());
            flat.extend(spans.into_iter().map(with_context));
        }
    }
    flat.sort();
    flat
}

proptest! {
    /// Scenario: requests with every variation that protobuf allows arrive, and their spans are
    /// exported unstamped, as many traces, under limits of any size.
    /// Guarantees: exactly those spans are exported with their resources and scopes, each context
    /// once per request, and no request is larger than the limit unless it has a single span.
    #[test]
    fn spans_leave_as_they_arrived(
        seeds in prop::collection::vec(any::<u64>(), 1..4),
        max_request_bytes in prop_oneof![1..2_000usize, Just(usize::MAX)],
        traces in 1..5usize,
    ) {
        let mut batch = Batch::default();
        let mut arrived = Vec::new();
        let mut count = 0;
        for seed in seeds {
            let request = mutate::request(seed);
            let Ok(decoded) = differential::decode(&request) else { continue };
            let spans = kept(&request);
            count += spans.len();
            spans.chunks(spans.len().div_ceil(traces).max(1)).for_each(|trace| {
                batch.push_trace(trace.iter().cloned(), &NO_STAMP);
            });
            arrived.extend(without_bad_ids(decoded.resource_spans));
        }
        let bytes = batch.body_bytes();
        let requests = encode(&mut batch, max_request_bytes);
        let faults = batch.take_faults();
        prop_assert_eq!((faults.malformed_spans, faults.repaired_strings), (0, 0));
        let left: Vec<_> = requests.iter().flat_map(decode).collect();
        prop_assert_eq!(spans_of(&left).len(), count);
        prop_assert_eq!(flatten(&left), flatten(&arrived));
        for request in &requests {
            prop_assert!(request.body.len() <= max_request_bytes || request.spans == 1);
        }
        if max_request_bytes == usize::MAX {
            prop_assert!(requests.len() <= 1);
        }
        prop_assert!(requests.iter().map(|request| request.body.len()).sum::<usize>() >= bytes);
    }

    /// Scenario: the same, stamped.
    /// Guarantees: only `tracestate` and the two attributes of the stamped span differ from the
    /// received spans.
    #[test]
    fn stamping_changes_nothing_else(seed in any::<u64>()) {
        let request = mutate::request(seed);
        let Ok(decoded) = differential::decode(&request) else { return Ok(()) };
        let spans = kept(&request);
        let any_span = !spans.is_empty();
        let (left, faults) = round_trip(spans, &stamp(false));
        prop_assert_eq!(faults.unstamped_spans, 0);
        let stamped = spans_of(&left);
        let bears = |span: &&Span| attribute_of(span, "tailwater.policy").is_some();
        prop_assert_eq!(stamped.iter().filter(bears).count(), usize::from(any_span));
        let has_threshold = |span: &Span| span.trace_state.starts_with("ot=th:e6666666666666");
        prop_assert!(stamped.iter().all(has_threshold));
        let bare = |mut request: Vec<ResourceSpans>| {
            for span in request.iter_mut().flat_map(|of_resource| &mut of_resource.scope_spans)
                .flat_map(|of_scope| &mut of_scope.spans)
            {
                span.trace_state.clear();
                span.attributes.retain(|pair| !pair.key.starts_with("tailwater."));
            }
            flatten(&request)
        };
        prop_assert_eq!(bare(left), bare(without_bad_ids(decoded.resource_spans)));
    }
}

/// Removes spans and links with malformed ids, as the receiver and the cleaner do.
fn without_bad_ids(mut request: Vec<ResourceSpans>) -> Vec<ResourceSpans> {
    for of_scope in request.iter_mut().flat_map(|of_resource| &mut of_resource.scope_spans) {
        of_scope.spans.retain(|span| {
            let set = |id: &[u8], len| id.len() == len && id.iter().any(|&byte| byte != 0);
            set(&span.trace_id, 16)
                && set(&span.span_id, 8)
                && matches!(span.parent_span_id.len(), 0 | 8)
        });
        for span in &mut of_scope.spans {
            span.links.retain(|link| link.trace_id.len() == 16 && link.span_id.len() == 8);
        }
    }
    request
}

/// Scenario: two traces over three services, their spans interleaved.
/// Guarantees: one request with each resource once, and the spans of a resource in the order of
/// their arrival.
#[test]
fn spans_are_grouped_by_context_across_traces() {
    let trace = |trace: u64| {
        let of = |service: &str, span| resource_spans(service, vec![child(trace, span)]);
        let spans = [of("cart", 0), of("shop", 1), of("pay", 2), of("cart", 3), of("shop", 4)];
        crate::builders::request(spans.to_vec())
    };
    let contexts = Contexts::new(Budget::new(1 << 20));
    let mut batch = Batch::default();
    for number in 0..2 {
        let request = trace(number);
        let mut walked = Walked::default();
        walk::walk(&request, &contexts, &(), &mut walked).expect("sound");
        let spans = walked.spans.iter().map(|meta| KeptSpan {
            bytes: request[meta.offset as usize..][..meta.len as usize].to_vec().into(),
            context: Arc::clone(&walked.contexts[meta.context as usize]),
        });
        batch.push_trace(spans, &NO_STAMP);
    }
    let requests = encode(&mut batch, usize::MAX);
    let decoded = decode(&requests[0]);
    assert_eq!((requests.len(), decoded.len()), (1, 3));
    for of_resource in &decoded {
        assert_eq!(of_resource.schema_url, "https://resource.example/1");
        assert_eq!(of_resource.scope_spans.len(), 1);
        assert_eq!(of_resource.scope_spans[0].schema_url, "https://scope.example/1");
        let spans = &of_resource.scope_spans[0].spans;
        assert!(spans.is_sorted_by_key(|span| (span.trace_id[..8].to_vec(), span.span_id.clone())));
    }
}

/// Scenario: a trace of a hundred spans and a limit that a tenth of it reaches, then a single span
/// above the limit.
/// Guarantees: the trace is split over full requests within the limit; the large span is sent
/// alone.
#[test]
fn a_trace_is_split_where_it_must_be() {
    let one = root(0, 0).encoded_len();
    let limit = 10 * one;
    let mut batch = Batch::default();
    let spans: Vec<_> = (0..100).map(|span| child(0, span)).collect();
    batch.push_trace(kept(&request_of(spans)).into_iter(), &stamp(false));
    let requests = encode(&mut batch, limit);
    assert!(requests.len() < 25, "requests are filled: {}", requests.len());
    assert!(requests.iter().all(|request| request.body.len() <= limit));
    let spans: usize = requests.iter().map(|request| spans_of(&decode(request)).len()).sum();
    assert_eq!(spans, 100);

    let large = Span { name: "x".repeat(limit), ..child(0, 1) };
    let spans = vec![child(0, 0), large, child(0, 2)];
    batch.push_trace(kept(&request_of(spans)).into_iter(), &NO_STAMP);
    let requests = encode(&mut batch, limit);
    let counts: Vec<_> = requests.iter().map(|request| request.spans).collect();
    assert_eq!(counts, [1, 1, 1]);
}

/// Scenario: a kept trace whose root arrives last; one without a root; one with two roots.
/// Guarantees: `tailwater.policy` and `tailwater.trigger` are on one span: the root, or otherwise
/// the first received span; with two roots, the first one.
#[test]
fn the_root_bears_the_policy_else_the_earliest() {
    let cases = [
        (vec![child(0, 0), child(0, 1), root(0, 2)], 2),
        (vec![child(0, 5), child(0, 1)], 5),
        (vec![child(0, 0), root(0, 3), root(0, 1)], 3),
        (vec![child(0, 0), Span { parent_span_id: vec![0; 8], ..root(0, 4) }], 4),
    ];
    for (spans, bearer) in cases {
        let (left, _) = round_trip(kept(&request_of(spans)), &stamp(false));
        for span in spans_of(&left) {
            let bears = span.name == format!("operation {bearer}");
            assert_eq!(attribute_of(&span, "tailwater.policy"), bears.then_some("errors"));
            assert_eq!(attribute_of(&span, "tailwater.trigger"), bears.then_some("root_received"));
        }
    }
}

/// Scenario: spans with every kind of `tracestate`, in a trace with randomness ff000000000000 from
/// an `rv`, kept at ten per cent.
/// Guarantees: the higher threshold is at the front; inconsistent ones are erased and counted;
/// spans without an `rv` get it; members of other vendors stay; a list that cannot be parsed is
/// sent unchanged and counted.
#[test]
fn every_span_leaves_with_its_threshold() {
    let many = (0..32).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
    let cases = [
        ("", "ot=th:e6666666666666;rv:ff000000000000"),
        ("a=b,c=d", "ot=th:e6666666666666;rv:ff000000000000,a=b,c=d"),
        ("a=b,ot=th:8", "ot=th:e6666666666666;rv:ff000000000000,a=b"),
        ("ot=th:f;rv:ff000000000000", "ot=th:f;rv:ff000000000000"),
        ("ot=th:ff00000000000", "ot=th:ff;rv:ff000000000000"),
        ("ot=th:ff0000000000001", "ot=th:ff0000000000001"),
        ("ot=th:ff000000000001", "ot=th:e6666666666666;rv:ff000000000000"),
        ("ot=th:0;x:y", "ot=th:e6666666666666;rv:ff000000000000;x:y"),
        ("ot=th:0,ot=th:0", "ot=th:0,ot=th:0"),
        ("ot=th:xyz", "ot=th:xyz"),
        ("a=b,ot=th", "a=b,ot=th"),
        ("ot=th;rv:ff000000000000", "ot=th;rv:ff000000000000"),
        ("ot,a=b", "ot,a=b"),
        (&many, &many),
    ];
    let spans = cases.iter().map(|(list, _)| Span { trace_state: (*list).into(), ..child(0, 0) });
    let (left, faults) = round_trip(kept(&request_of(spans.collect())), &stamp(true));
    let lists: Vec<_> = spans_of(&left).into_iter().map(|span| span.trace_state).collect();
    assert_eq!(lists, cases.map(|(_, expected)| expected));
    assert_eq!((faults.unstamped_spans, faults.inconsistent_spans), (7, 1));
    let always = TraceStamp {
        tracestate: Some(Stamp {
            threshold: Threshold::ALWAYS,
            randomness: Randomness(0),
            explicit: false,
        }),
        policy_and_trigger: None,
    };
    let (left, _) = round_trip(kept(&request_of(vec![child(0, 0)])), &always);
    assert_eq!(spans_of(&left)[0].trace_state, "ot=th:0");
}

/// Scenario: a span with two `tracestate` fields.
/// Guarantees: the last one counts, is stamped, and is still the last.
#[test]
fn the_last_of_two_tracestates_is_stamped() {
    let mut span = Span { trace_state: "ot=th:f".into(), ..child(0, 0) }.encode_to_vec();
    wire::put_length_delimited(&mut span, 3, 3);
    span.extend(b"a=b");
    let context = kept(&request_of(vec![child(0, 0)])).remove(0).context;
    let (left, _) = round_trip(vec![KeptSpan { bytes: span.into(), context }], &stamp(false));
    assert_eq!(spans_of(&left)[0].trace_state, "ot=th:e6666666666666,a=b");
}

/// Scenario: spans whose `tracestate` is not UTF-8, which hides an `rv` and a `th` from the walker;
/// a span whose first `tracestate` is not UTF-8 but whose last one is; with and without stamps.
/// Guarantees: they are sent repaired, because the backend accepts nothing else, and never with a
/// stamp beside the original members; each is counted; the last `tracestate` is the one that
/// matters.
#[test]
fn a_tracestate_that_is_no_text_is_repaired_and_not_stamped() {
    let context = kept(&request_of(vec![child(0, 0)])).remove(0).context;
    let span = |lists: &[&[u8]]| {
        let mut bytes = child(0, 0).encode_to_vec();
        for list in lists {
            wire::put_length_delimited(&mut bytes, 3, list.len());
            bytes.extend_from_slice(list);
        }
        KeptSpan { bytes: bytes.into(), context: Arc::clone(&context) }
    };
    let spans = vec![
        span(&[b"ot=rv:00000000000001,vendor=caf\xe9"]),
        span(&[b"\xff"]),
        span(&[b"a=\xff", b"a=b"]),
        span(&[]),
    ];
    let (left, faults) = round_trip(spans.clone(), &stamp(true));
    let lists: Vec<_> = spans_of(&left).into_iter().map(|span| span.trace_state).collect();
    let stamped = "ot=th:e6666666666666;rv:ff000000000000";
    let expected = [
        "ot=rv:00000000000001,vendor=caf\u{fffd}".to_owned(),
        "\u{fffd}".to_owned(),
        format!("{stamped},a=b"),
        stamped.to_owned(),
    ];
    assert_eq!(lists, expected);
    assert_eq!((faults.unstamped_spans, faults.repaired_strings), (2, 3));
    let (left, faults) = round_trip(spans, &NO_STAMP);
    assert_eq!(spans_of(&left)[0].trace_state, expected[0]);
    assert_eq!(faults.unstamped_spans, 0);
}

/// Scenario: traces that another instance has stamped: on the root, which this instance stamps too,
/// twice and between other attributes; on a span that this instance does not stamp; with stamps
/// off.
/// Guarantees: on the stamped span, the new attributes replace the old ones and nothing else
/// changes; other spans keep their attributes, as do all spans if stamps are off.
#[test]
fn the_attributes_of_an_instance_before_are_replaced() {
    let old = |value: &str| {
        [text("tailwater.policy", value), text("a", "b"), text("tailwater.trigger", value)]
    };
    let stamped = |span: Span| Span { attributes: [old("x"), old("y")].concat(), ..span };
    let arrived = vec![stamped(child(0, 0)), stamped(root(0, 1)), child(0, 2)];
    let (left, _) = round_trip(kept(&request_of(arrived.clone())), &stamp(false));
    let left = spans_of(&left);
    let mut expected = arrived.clone();
    expected[1].attributes = vec![
        text("a", "b"),
        text("a", "b"),
        text("tailwater.policy", "errors"),
        text("tailwater.trigger", "root_received"),
    ];
    for span in &mut expected {
        span.trace_state = "ot=th:e6666666666666".to_owned();
    }
    assert_eq!(left, expected);
    let (left, _) = round_trip(kept(&request_of(arrived.clone())), &NO_STAMP);
    assert_eq!(spans_of(&left), arrived);
}

/// Scenario: a stamped span whose attributes end with an old stamp, followed by a `tracestate` that
/// is stamped too.
/// Guarantees: both are replaced.
#[test]
fn a_replaced_attribute_does_not_move_the_tracestate() {
    let mut bytes =
        Span { attributes: vec![text("a", "b"), text("tailwater.policy", "old")], ..root(0, 0) }
            .encode_to_vec();
    wire::put_length_delimited(&mut bytes, 3, 3);
    bytes.extend(b"c=d");
    let context = kept(&request_of(vec![child(0, 0)])).remove(0).context;
    let (left, faults) = round_trip(vec![KeptSpan { bytes: bytes.into(), context }], &stamp(false));
    let span = spans_of(&left).remove(0);
    assert_eq!(span.trace_state, "ot=th:e6666666666666,c=d");
    let keys: Vec<_> = span.attributes.iter().map(|pair| pair.key.as_str()).collect();
    assert_eq!(keys, ["a", "tailwater.policy", "tailwater.trigger"]);
    assert_eq!(attribute_of(&span, "tailwater.policy"), Some("errors"));
    assert_eq!(faults, Faults::default());
}

/// Scenario: strings that are not UTF-8 in the span, its resource and its scope; values nested 64
/// and 65 levels deep; a link with a short id; an undecodable span that no policy looked at; an
/// undecodable resource.
/// Guarantees: everything that can be repaired is repaired, the rest is left out, and all of it is
/// counted.
#[test]
fn only_valid_data_leaves() {
    let context = kept(&request_of(vec![child(0, 0)])).remove(0).context;
    let span = |bytes: Vec<u8>| KeptSpan { bytes: bytes.into(), context: Arc::clone(&context) };
    let mut latin1 = child(0, 1).encode_to_vec();
    wire::put_length_delimited(&mut latin1, 5, 4);
    latin1.extend(b"caf\xe9");
    let nested = |levels| Span { attributes: vec![attribute("k", nest(levels))], ..child(0, 2) };
    let link = Link { trace_id: vec![1; 15], span_id: vec![1; 8], ..Default::default() };
    let linked = Span { links: vec![link], ..child(0, 4) };
    let broken = [child(0, 5).encode_to_vec(), vec![0x52, 0]].concat();
    let spans = [
        latin1,
        nested(40).encode_to_vec(),
        nested(65).encode_to_vec(),
        linked.encode_to_vec(),
        broken,
    ];
    let (left, faults) = round_trip(spans.into_iter().map(span).collect(), &stamp(false));
    let expected =
        Faults { malformed_spans: 2, repaired_strings: 1, removed_links: 1, ..Default::default() };
    assert_eq!(faults, expected);
    let left = spans_of(&left);
    let names: Vec<_> = left.iter().map(|span| &span.name[..]).collect();
    assert_eq!(names, ["caf\u{fffd}", "operation 2", "operation 4"]);
    assert!(
        attribute_of(&left[0], "tailwater.policy").is_some(),
        "the earliest of those that leave"
    );
    assert!(left[2].links.is_empty());
}

/// A value inside this many arrays; `levels` counts values inside values.
fn nest(levels: usize) -> Option<Value> {
    let mut value = Value::IntValue(7);
    for _ in 0..levels {
        value = Value::ArrayValue(ArrayValue { values: vec![AnyValue { value: Some(value) }] });
    }
    Some(value)
}

/// Scenario: resources and scopes that are not UTF-8, nested too deep or undecodable, with one span
/// each.
/// Guarantees: strings are repaired and counted once for each request that contains them; the spans
/// of the other contexts are counted as malformed and do not hold up anything.
#[test]
fn contexts_are_cleaned_too() {
    let mut batch = Batch::default();
    for context in [latin1_context(), deep_context(), sound_context()] {
        let span = KeptSpan { bytes: child(0, 0).encode_to_vec().into(), context };
        batch.push_trace([span].into_iter(), &NO_STAMP);
    }
    let requests = encode(&mut batch, usize::MAX);
    let faults = batch.take_faults();
    assert_eq!((faults.malformed_spans, faults.repaired_strings), (1, 1));
    let left = decode(&requests[0]);
    assert_eq!(left.len(), 2);
    let urls: Vec<_> = left.iter().map(|of_resource| &of_resource.schema_url[..]).collect();
    assert!(urls.contains(&"https://resource.example/1") && urls.contains(&"\u{fffd}"));
}

fn context_of(of_resource: &[u8]) -> Arc<Context> {
    let mut request = Vec::new();
    wire::put_length_delimited(&mut request, 1, of_resource.len());
    request.extend_from_slice(of_resource);
    kept(&request).remove(0).context
}

fn sound_context() -> Arc<Context> {
    context_of(&resource_spans("shop", vec![child(0, 0)]).encode_to_vec())
}

fn latin1_context() -> Arc<Context> {
    let mut bytes = resource_spans("shop", vec![child(0, 0)]).encode_to_vec();
    wire::put_length_delimited(&mut bytes, 3, 1);
    bytes.push(0xe9);
    context_of(&bytes)
}

fn deep_context() -> Arc<Context> {
    let mut deep = resource_spans("shop", vec![child(0, 0)]);
    let resource = deep.resource.as_mut().expect("has one");
    resource.attributes = vec![attribute("k", nest(65)), text("a", "b")];
    context_of(&deep.encode_to_vec())
}

/// Scenario: unknown fields and groups in the request's resource, scope and span.
/// Guarantees: they are sent byte for byte.
#[test]
fn unknown_fields_are_retained() {
    let unknown = |name: &str| {
        let mut field = Vec::new();
        wire::put_length_delimited(&mut field, 1001, name.len());
        [&field[..], name.as_bytes(), &[0x8b, 0x3f, 0x08, 0x01, 0x8c, 0x3f]].concat()
    };
    let message = |number, parts: &[&[u8]]| {
        let payload = parts.concat();
        let mut out = Vec::new();
        wire::put_length_delimited(&mut out, number, payload.len());
        [out, payload].concat()
    };
    let span = message(2, &[&child(0, 0).encode_to_vec(), &unknown("of the span")]);
    let of_scope = message(2, &[&unknown("of the scope"), &span]);
    let of_resource = message(1, &[&of_scope, &unknown("of the resource")]);
    let mut batch = Batch::default();
    batch.push_trace(kept(&of_resource).into_iter(), &stamp(false));
    let body = encode(&mut batch, usize::MAX).remove(0).body;
    for name in ["of the span", "of the scope", "of the resource"] {
        let field = unknown(name);
        assert!(body.windows(field.len()).any(|window| window == field), "{name}");
    }
}
