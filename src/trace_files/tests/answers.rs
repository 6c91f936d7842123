//! The answers of a real Jaeger 1.76 for a trace that was sent to it by OTLP
//! (`tests/peer/jaeger.py`).

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{InstrumentationScope, KeyValue, any_value::Value},
    trace::v1::{Span, span, status::StatusCode},
};
use prost::Message as _;

use crate::{
    testing::attribute,
    trace_files::{Piece, TraceFile},
};

/// `/api/traces/ID`.
const TRACE: &[u8] = include_bytes!("jaeger-trace.json");
/// `/api/traces?service=shop`.
const SEARCH: &[u8] = include_bytes!("jaeger-search.json");
/// `/api/v3/traces/ID`.
const V3: &[u8] = include_bytes!("jaeger-v3-trace.json");

type Attributes = Vec<KeyValue>;

/// Each span with its resource and scope, ordered by start time; attributes ordered by key.
fn spans(bytes: &[u8]) -> Vec<(Attributes, Option<InstrumentationScope>, Span)> {
    let mut file = TraceFile::open("t", bytes).expect("to open");
    let mut found = Vec::new();
    while let Some(piece) = file.next_piece() {
        let Piece::Request(request) = piece else { panic!("{piece:?}") };
        let request = ExportTraceServiceRequest::decode(request.as_slice()).expect("a request");
        for of in request.resource_spans {
            let resource = sorted(of.resource.expect("a resource").attributes);
            for scope in of.scope_spans {
                found.extend(scope.spans.into_iter().map(|span| {
                    let attributes = sorted(span.attributes);
                    (resource.clone(), scope.scope.clone(), Span { attributes, ..span })
                }));
            }
        }
    }
    found.sort_by_key(|(.., span)| span.start_time_unix_nano);
    found
}

fn sorted(mut attributes: Attributes) -> Attributes {
    attributes.sort_by(|one, other| one.key.cmp(&other.key));
    attributes
}

fn text(text: &str) -> Value {
    Value::StringValue(text.to_owned())
}

#[test]
fn the_third_api_gives_back_what_was_sent() {
    let found = spans(V3);
    let [(shop, scope, root), (cart, _, child)] = found.as_slice() else { panic!("{found:?}") };
    let replica = attribute("replica", Value::IntValue(3));
    assert_eq!(shop, &[replica.clone(), attribute("service.name", text("shop"))]);
    assert_eq!(cart, &[replica, attribute("service.name", text("cart"))]);
    let scope = scope.as_ref().expect("a scope");
    assert_eq!((scope.name.as_str(), scope.version.as_str()), ("http", "1.2"));

    assert_eq!((root.name.as_str(), root.trace_state.as_str()), ("GET /cart", "vendor=a"));
    assert_eq!((root.kind(), root.flags), (span::SpanKind::Server, 0x101));
    assert_eq!(root.start_time_unix_nano, 1_700_000_000_000_001_000);
    assert_eq!(root.end_time_unix_nano, root.start_time_unix_nano + 2_500_000);
    assert_eq!(root.status.as_ref().map(|status| status.code()), Some(StatusCode::Ok));
    let keys: Vec<&str> = root.attributes.iter().map(|one| one.key.as_str()).collect();
    assert_eq!(keys, ["cached", "header", "http.route", "http.status_code", "ratio"]);

    assert_eq!((child.kind(), &child.parent_span_id), (span::SpanKind::Client, &root.span_id));
    let status = child.status.as_ref().expect("a status");
    assert_eq!((status.code(), status.message.as_str()), (StatusCode::Error, "timed out"));
    let exception = attribute("exception.type", text("Timeout"));
    assert_eq!(child.events[0].name, "exception");
    assert_eq!(child.events[0].attributes, [exception]);
    assert_eq!(child.links[0].trace_id[0], 0x1b);
}

/// The form of the user interface has the same content, except flags, lists, and an attribute that
/// Jaeger adds to spans with errors.
#[test]
fn the_user_interface_has_nearly_the_same() {
    let mut wanted = spans(V3);
    let [(.., root), (.., child)] = wanted.as_mut_slice() else { panic!("{wanted:?}") };
    root.flags = 0;
    for one in &mut root.attributes {
        if one.key == "header" {
            *one = attribute("header", text(r#"["a","b"]"#));
        }
    }
    child.attributes.push(attribute("error", Value::BoolValue(true)));
    assert_eq!(spans(TRACE), wanted);
    assert_eq!(spans(SEARCH), wanted);
}
