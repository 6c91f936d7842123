//! Requests whose first bytes look like another form than they have.

use opentelemetry_proto::tonic::{
    common::v1::KeyValue,
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message as _;

use super::{Piece, TraceFile, document, framed, gzip, protobuf, read};

/// A request with one `ResourceSpans` of this length, whose resource has the other length and
/// consists of attributes with keys of this letter. `None` if there is none.
fn request(length: usize, of_resource: usize, letter: char) -> Option<Vec<u8>> {
    let attribute = |bytes: usize| {
        let key = letter.to_string().repeat(bytes.checked_sub(4)?);
        Some(KeyValue { key, ..KeyValue::default() })
    };
    let attributes = if of_resource == 0 { Vec::new() } else { vec![attribute(of_resource)?] };
    let resource = Resource { attributes, ..Resource::default() };
    let of = |padding: usize| {
        let span = Span { name: "a".repeat(padding), ..Span::default() };
        let scope_spans = vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }];
        ResourceSpans { resource: Some(resource.clone()), scope_spans, ..ResourceSpans::default() }
    };
    let of = (0..length).map(of).find(|of| of.encoded_len() == length)?;
    Some([&[0x0a, u8::try_from(length).ok()?], of.encode_to_vec().as_slice()].concat())
}

/// Scenario: requests whose first `ResourceSpans` has the length of a bracket, with resources of
/// every length that fits, and attributes that begin with what JSON may have there.
/// Guarantees: none is taken for JSON, neither as a file nor in a frame.
#[test]
fn a_length_is_never_taken_for_a_bracket() {
    let mut tried = 0;
    for length in [usize::from(b'['), usize::from(b'{')] {
        for of_resource in 0..length {
            for letter in ['a', '0', '"', '{', '}', '[', '-', ' ', '\t'] {
                let Some(request) = request(length, of_resource, letter) else { continue };
                tried += 1;
                let framed = framed(std::slice::from_ref(&request));
                for bytes in [request.clone(), gzip(&request), framed] {
                    let mut file = TraceFile::open("t", bytes.as_slice()).expect("to open");
                    let piece = file.next_piece();
                    let shown = format!("{length} {of_resource} {letter:?}: {piece:?}");
                    assert_eq!(piece, Some(Piece::Request(request.clone())), "{shown}");
                    assert_eq!(file.next_piece(), None, "{shown}");
                }
            }
        }
    }
    assert!(tried > 9 * 170, "only {tried}");
}

#[test]
fn json_after_an_empty_line_is_json() {
    let pretty = document(&["a"]).replace('{', "{\n  ").replace(',', ",\n");
    for text in [format!("\n{pretty}"), format!("\n{}", document(&["a"])), format!("\n\n {pretty}")]
    {
        assert_eq!(read(text.as_bytes()), (vec!["a 0a".to_owned()], Vec::new()), "{text}");
        let frames = framed(&[text.into_bytes(), protobuf(&["b"])]);
        assert_eq!(read(&frames), (vec!["a 0a".to_owned(), "b 0a".to_owned()], Vec::new()));
    }
    assert_eq!(read(b"\n{}\n"), (Vec::new(), Vec::new()));
    assert_eq!(read(b"\n{\n}\n"), (Vec::new(), Vec::new()));
    let (names, unreadable) = read(b"\n[1, 2]");
    assert_eq!((names.len(), unreadable.len()), (0, 1), "{unreadable:?}");
}

/// An attribute may be called like a trace id.
#[test]
fn the_form_of_ids_is_told_by_a_member() {
    let attribute = r#"{"key":"traceId","value":{"stringValue":"x"}}"#;
    let tempo = format!(
        r#"{{"resource":{{"attributes":[{attribute}]}},"scopeSpans":[{{"spans":[{{"name":"a",
        "traceId" : "CvdlGRbNQ92ESOshHIAxnA==","spanId":"t61rcWkgMzE="}}]}}]}}"#
    );
    for text in [
        format!(r#"{{"batches":[{tempo}]}}"#),
        format!(r#"{{"resourceSpans":[{}]}}"#, tempo.replace('\n', "")),
    ] {
        assert_eq!(read(text.as_bytes()), (vec!["a 0a".to_owned()], Vec::new()), "{text}");
    }
}
