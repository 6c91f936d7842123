//! Spans in the form of Jaeger's user interface that Jaeger's own receivers wrote.

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, trace::v1::Span,
};
use prost::Message as _;

use super::{Piece, TraceFile};

const ID: &str = "0af7651916cd43dd8448eb211c80319c";

/// The span of a trace with one span, which has these members besides its ids.
fn span(members: &str) -> Span {
    let text = format!(
        r#"{{"data":[{{"traceID":"{ID}","spans":[{{"traceID":"{ID}","spanID":"1",{members},
        "processID":"p1"}}],"processes":{{"p1":{{"serviceName":"s","tags":null}}}}}}]}}"#
    );
    let mut file = TraceFile::open("t", text.as_bytes()).expect("to open");
    let piece = file.next_piece();
    let Some(Piece::Request(request)) = piece else { panic!("{members}: {piece:?}") };
    let request = ExportTraceServiceRequest::decode(request.as_slice()).expect("protobuf");
    request.resource_spans[0].scope_spans[0].spans[0].clone()
}

fn reference(kind: &str, trace: &str, span: u8) -> String {
    format!(r#"{{"refType":"{kind}","traceID":"{trace}","spanID":"{span:016x}"}}"#)
}

/// As `Span.ParentSpanID` of Jaeger's model.
#[test]
fn a_span_that_follows_from_another_is_its_child() {
    let other = "1bf7651916cd43dd8448eb211c80319c";
    let (follows, child) = ("FOLLOWS_FROM", "CHILD_OF");
    for (references, parent, links) in [
        (vec![reference(follows, ID, 7)], Some(7), vec![]),
        (vec![reference(follows, other, 7)], None, vec![7]),
        (vec![reference(follows, ID, 7), reference(child, ID, 8)], Some(8), vec![7]),
        (vec![reference(follows, ID, 7), reference(follows, ID, 8)], Some(7), vec![8]),
        (vec![reference(child, ID, 7), reference(child, ID, 8)], Some(7), vec![8]),
        (vec![reference(child, other, 7), reference(follows, ID, 8)], Some(8), vec![7]),
        (vec![], None, vec![]),
    ] {
        let members = format!(r#""references":[{}]"#, references.join(","));
        let span = span(&members);
        assert_eq!(span.parent_span_id.last().copied(), parent, "{members}");
        let found: Vec<_> = span.links.iter().filter_map(|link| link.span_id.last()).collect();
        assert_eq!(found, links.iter().collect::<Vec<_>>(), "{members}");
    }
}

/// As the Collector's translation of Jaeger's spans: the code counts only if there is no error.
#[test]
fn the_tag_error_wins_over_the_code() {
    let error = r#"{"key":"error","type":"bool","value":true}"#;
    let fine = r#"{"key":"error","type":"bool","value":false}"#;
    let code =
        |code: &str| format!(r#"{{"key":"otel.status_code","type":"string","value":"{code}"}}"#);
    for (tags, wanted) in [
        (format!("{},{error}", code("OK")), 2),
        (format!("{error},{}", code("UNSET")), 2),
        (format!("{fine},{}", code("OK")), 1),
        (format!("{fine},{}", code("ERROR")), 2),
        (fine.to_owned(), 0),
    ] {
        let span = span(&format!(r#""tags":[{tags}]"#));
        assert_eq!(span.status.map(|status| status.code), Some(wanted), "{tags}");
    }
}

/// Go writes a list without elements as `null`.
#[test]
fn lists_may_be_null() {
    let span =
        self::span(r#""references":null,"tags":null,"logs":[{"timestamp":1,"fields":null}]"#);
    assert!(span.parent_span_id.is_empty() && span.events.len() == 1, "{span:?}");
    let span = self::span(r#""references":null,"tags":null,"logs":null"#);
    assert!(span.events.is_empty() && span.attributes.is_empty(), "{span:?}");
}
