//! Each form, whole and cut into pieces of any size, and broken files.

use std::io::{self, Read, Write as _};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::KeyValue,
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message as _;

use super::{PIECE_BYTES_MAX, Piece, RecordFile, TraceFile};

mod answers;
mod damaged;
mod jaeger;
mod told;

/// A reader that returns a few bytes at a time.
struct Crumbs<'b>(&'b [u8], usize);

impl Read for Crumbs<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let step = self.1.min(self.0.len()).min(buffer.len());
        buffer[..step].copy_from_slice(&self.0[..step]);
        self.0 = &self.0[step..];
        Ok(step)
    }
}

/// The names of spans in the order of the file, and the unreadable parts; the same for any cuts.
fn read(bytes: &[u8]) -> (Vec<String>, Vec<String>) {
    let whole = read_in_steps_of(bytes, usize::MAX);
    for step in [1, 7] {
        assert_eq!(read_in_steps_of(bytes, step), whole, "{step}");
    }
    whole
}

fn read_in_steps_of(bytes: &[u8], step: usize) -> (Vec<String>, Vec<String>) {
    let mut file = TraceFile::open("t", Crumbs(bytes, step)).expect("to open");
    let (mut names, mut unreadable) = (Vec::new(), Vec::new());
    while let Some(piece) = file.next_piece() {
        match piece {
            Piece::Request(request) => {
                let request = ExportTraceServiceRequest::decode(request.as_slice());
                let resources = request.expect("a request").resource_spans;
                let scopes = resources.into_iter().flat_map(|resource| resource.scope_spans);
                let spans = scopes.flat_map(|scope| scope.spans);
                names.extend(spans.map(|span| format!("{} {:02x?}", span.name, span.trace_id[0])));
            }
            Piece::Unreadable(reason) => unreadable.push(reason),
        }
    }
    (names, unreadable)
}

/// One `ResourceSpans` in JSON with one span.
fn resource_spans(name: &str) -> String {
    format!(
        r#"{{"scopeSpans":[{{"spans":[{{"traceId":"0af7651916cd43dd8448eb211c80319c",
        "spanId":"b7ad6b7169203331","name":"{name}","kind":2}}]}}]}}"#
    )
    .replace("\n        ", "")
}

fn document(names: &[&str]) -> String {
    let all: Vec<String> = names.iter().map(|name| resource_spans(name)).collect();
    format!(r#"{{"resourceSpans":[{}]}}"#, all.join(","))
}

fn protobuf(names: &[&str]) -> Vec<u8> {
    crate::otlp::json::to_protobuf(document(names).as_bytes()).expect("JSON")
}

fn framed(bodies: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for body in bodies {
        bytes.extend((body.len() as u32).to_be_bytes());
        bytes.extend(body);
    }
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("to write");
    encoder.finish().expect("to finish")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).expect("to compress")
}

const ABC: [&str; 3] = ["a 0a", "b 0a", "c 0a"];

#[test]
fn otlp_in_every_form_is_the_same() {
    let lines = format!("{}\n{}\n", document(&["a"]), document(&["b", "c"]));
    let pretty = document(&["a", "b", "c"]).replace('{', "{\n  ").replace(',', ",\n");
    let frames = framed(&[protobuf(&["a"]), protobuf(&["b", "c"])]);
    let of_json = framed(&[document(&["a"]).into_bytes(), document(&["b", "c"]).into_bytes()]);
    let compressed = framed(&[zstd(&protobuf(&["a"])), zstd(document(&["b", "c"]).as_bytes())]);
    let v3 = format!(r#"{{"result":{}}}"#, document(&["a", "b", "c"]));
    for (form, bytes) in [
        ("one document", document(&["a", "b", "c"]).into_bytes()),
        ("pretty", pretty.into_bytes()),
        ("lines", lines.clone().into_bytes()),
        ("protobuf", protobuf(&["a", "b", "c"])),
        ("frames", frames.clone()),
        ("frames of JSON", of_json),
        ("frames compressed inside", compressed),
        ("frames compressed outside", zstd(&frames)),
        ("lines in gzip", gzip(lines.as_bytes())),
        ("Jaeger v3", v3.into_bytes()),
    ] {
        let (names, unreadable) = read(&bytes);
        assert_eq!(
            (names.as_slice(), unreadable.len()),
            (&ABC.map(str::to_owned)[..], 0),
            "{form}"
        );
    }
}

/// Scenario: protobuf requests of many lengths, including those whose first bytes are a line feed
/// and a bracket.
/// Guarantees: none of them is taken for JSON, alone or in a frame; JSON is recognized.
#[test]
fn the_length_of_a_request_is_no_bracket() {
    for length in 0..200 {
        let request = protobuf(&[&"x".repeat(length)]);
        let name = format!("{} 0a", "x".repeat(length));
        for bytes in [request.clone(), framed(&[request])] {
            assert_eq!(read(&bytes), (vec![name.clone()], Vec::new()), "{length}");
        }
    }
    for space in ["\n", "\n\t ", "\r\n"] {
        let text = format!("{space}{}", document(&["a"]).replacen('{', &format!("{{{space}"), 1));
        assert_eq!(read(text.as_bytes()).0, ["a 0a"]);
    }
}

#[test]
fn tempo_writes_ids_in_base64_and_enums_as_names() {
    let batch = r#"{"resource":{},"scopeSpans":[{"spans":[{"traceId":"CvdlGRbNQ92ESOshHIAxnA==",
        "spanId":"t61rcWkgMzE=","name":"NAME","kind":"SPAN_KIND_SERVER",
        "startTimeUnixNano":"5"}]}]}"#;
    let batches = ["a", "b", "c"].map(|name| batch.replace("NAME", name)).join(",");
    for text in [
        format!(r#"{{"batches":[{batches}]}}"#),
        format!(r#"{{"trace":{{"resourceSpans":[{batches}]}},"metrics":{{}}}}"#),
    ] {
        assert_eq!(read(text.as_bytes()), (ABC.map(str::to_owned).to_vec(), Vec::new()), "{text}");
    }
}

/// What stands in place of an object makes its element unreadable, and nothing else.
#[test]
fn tempo_with_other_values_than_objects_is_skipped() {
    let id = r#""traceId":"CvdlGRbNQ92ESOshHIAxnA==""#;
    let batches = [
        format!("[{{{id}}}]"),
        format!(r#"{{"scopeSpans":[5,{{"spans":[{{{id}}}]}}]}}"#),
        format!(r#"{{"scopeSpans":[{{"spans":["x",{{{id}}}]}}]}}"#),
        format!(r#"{{"scopeSpans":[{{"spans":[{{{id},"links":[7]}}]}}]}}"#),
        format!(r#"{{"scopeSpans":[{{"spans":[{{{id},"name":"a"}}]}}]}}"#),
    ];
    let (names, unreadable) = read(format!(r#"{{"batches":[{}]}}"#, batches.join(",")).as_bytes());
    assert_eq!(names, ["a 0a"]);
    assert_eq!(unreadable.len(), 4, "{unreadable:?}");
    assert!(unreadable.iter().all(|reason| reason.starts_with("t:1: ")), "{unreadable:?}");
}

#[test]
fn jaeger_is_read_with_its_kinds_status_and_parents() {
    let text = r#"{"data":[{"traceID":"af7651916cd43dd8448eb211c80319c","spans":[
        {"traceID":"af7651916cd43dd8448eb211c80319c","spanID":"b7ad6b7169203331",
         "operationName":"root","references":[],"startTime":1000000,"duration":2000,
         "tags":[{"key":"span.kind","type":"string","value":"server"},
                 {"key":"error","type":"bool","value":true},
                 {"key":"n","type":"int64","value":7}],
         "logs":[{"timestamp":1000001,
                  "fields":[{"key":"event","type":"string","value":"exception"}]}],
         "processID":"p1"},
        {"traceID":"af7651916cd43dd8448eb211c80319c","spanID":"1","operationName":"child",
         "references":[{"refType":"CHILD_OF","traceID":"af7651916cd43dd8448eb211c80319c",
                        "spanID":"b7ad6b7169203331"}],
         "startTime":1000100,"duration":50,
         "tags":[{"key":"otel.status_code","type":"string","value":"OK"}],"processID":"p2"}
      ],"processes":{"p1":{"serviceName":"gateway","tags":[]},
                     "p2":{"serviceName":"cart","tags":[]}}}],"total":0}"#;
    let mut file = TraceFile::open("t", text.as_bytes()).expect("to open");
    let Some(Piece::Request(request)) = file.next_piece() else { panic!("no request") };
    assert_eq!(file.next_piece(), None);
    let request = ExportTraceServiceRequest::decode(request.as_slice()).expect("protobuf");
    let spans: Vec<_> =
        request.resource_spans.iter().map(|of| &of.scope_spans[0].spans[0]).collect();
    assert_eq!(spans[0].trace_id[0], 0x0a);
    assert_eq!((spans[0].kind, spans[0].status.as_ref().map(|s| s.code)), (2, Some(2)));
    assert_eq!(
        (spans[0].start_time_unix_nano, spans[0].end_time_unix_nano),
        (1_000_000_000, 1_002_000_000,)
    );
    assert_eq!(spans[0].events[0].name, "exception");
    assert!(spans[0].parent_span_id.is_empty());
    assert_eq!(spans[1].parent_span_id, spans[0].span_id);
    assert_eq!(spans[1].span_id, [0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(spans[1].status.as_ref().map(|s| s.code), Some(1));
}

#[test]
fn broken_parts_are_named_and_skipped() {
    let broken = format!(
        "{}\n{{\"resourceSpans\":[{{\n{}\n{{\"metrics\":[]}}\n\
         {{\"resourceSpans\":[{{\"scopeSpans\":5}}]}}\n{}",
        document(&["a"]),
        document(&["b"]),
        document(&["c"])
    );
    let (names, unreadable) = read(broken.as_bytes());
    assert_eq!(names, ABC.map(str::to_owned));
    let places: Vec<&str> =
        unreadable.iter().map(|text| text.split(": ").next().expect("a place")).collect();
    assert_eq!(places, ["t:2", "t:4", "t:5"], "{unreadable:?}");

    // A broken part is reported once, however long it is.
    let [a, b, c] = ["a", "b", "c"].map(|name| document(&[name]));
    let crossed = a.replacen("\"spans\":[{", "\"spans\":[{]", 1);
    for (text, places) in [
        (format!("{a}\nno JSON at all\n\u{1}\u{2}\n{b}\n{c}"), &["t:2", "t:3"][..]),
        (format!("{}\n{a}\n{b}\n{c}\n", &a[40..]), &["t:1"]),
        (format!("{}\n{a}\n{b}\n{c}\n", &a[..40]), &["t:1"]),
        (format!("{a}\n{crossed}\n{b}\n{c}\n"), &["t:2"]),
        (format!("\u{feff}{a}\n{b}\n[1, 2]\n{c}\n"), &["t:3"]),
    ] {
        let (names, unreadable) = read(text.as_bytes());
        let found: Vec<&str> = unreadable.iter().map(|text| &text[..text.len().min(3)]).collect();
        let wanted: Vec<&str> = places.iter().map(|place| &place[..3]).collect();
        assert_eq!((names.len(), found), (3, wanted), "{text}: {unreadable:?}");
    }

    // A line that begins with a space is scanned, one without is converted whole if it can be.
    let half = a.replacen("\"scopeSpans\":[", "\"scopeSpans\":[5,", 1);
    let two = document(&["a", "b"]).replacen("\"name\":\"a\"", "\"name\":[]", 1);
    for lines in [&[&a, &b, &c][..], &[&a, &half, &b], &[&two, &c], &[&half, &two, &a]] {
        for end in ["\n", ""] {
            let whole: Vec<&str> = lines.iter().map(|line| line.as_str()).collect();
            let text = whole.join("\n") + end;
            let scanned = format!(" {}", whole.join("\n ")) + end;
            let places = |(names, unreadable): (Vec<String>, Vec<String>)| {
                let places = unreadable.iter().map(|text| text[..3].to_owned());
                (names, places.collect::<Vec<_>>())
            };
            assert_eq!(places(read(text.as_bytes())), places(read(scanned.as_bytes())), "{text}");
        }
    }

    let mut cut = framed(&[protobuf(&["a"]), protobuf(&["b"])]);
    cut.truncate(cut.len() - 1);
    let (names, unreadable) = read(&cut);
    assert_eq!(names, ["a 0a"]);
    assert!(unreadable[0].starts_with("t: byte "), "{unreadable:?}");

    for text in ["hello", "\u{1}\u{2}", "[1, 2]", "{", "{\"metrics\":{}}", "{\"data\":null}"] {
        let (names, unreadable) = read(text.as_bytes());
        assert_eq!((names.len(), unreadable.len()), (0, 1), "{text:?}: {unreadable:?}");
    }
    assert_eq!(read(b""), (Vec::new(), Vec::new()));
    assert_eq!(read(b"\n \n"), (Vec::new(), Vec::new()));
}

/// A frame of a few KB that inflates to more parts than may be held is cut, and what follows it is
/// read.
#[test]
fn a_frame_that_inflates_without_end_is_cut() {
    let many = protobuf(&["a"; 200]).repeat(6_000);
    let bomb = zstd::encode_all(many.as_slice(), 3).expect("compressed");
    assert!(bomb.len() < many.len() / 1_000, "{} of {}", bomb.len(), many.len());
    let bytes = framed(&[bomb, protobuf(&["b"])]);
    let mut file = TraceFile::open("t", bytes.as_slice()).expect("to open");
    let (mut requested, mut unreadable) = (Vec::new(), Vec::new());
    while let Some(piece) = file.next_piece() {
        match piece {
            Piece::Request(request) => requested.push(request.len()),
            Piece::Unreadable(reason) => unreadable.push(reason),
        }
    }
    assert!(requested.len() <= PIECE_BYTES_MAX / 128, "{} of 1.2 million", requested.len());
    assert_eq!(requested.last(), Some(&protobuf(&["b"]).len()));
    assert!(unreadable.len() == 1 && unreadable[0].contains("128 MiB"), "{unreadable:?}");
}

#[test]
fn recordings_of_other_versions_are_named() {
    for version in ["0", "2", "10"] {
        let bytes = format!("TAILWATER RECORD {version}\n{{\"percentage\":1}}\n");
        let (names, unreadable) = read(bytes.as_bytes());
        assert!(names.is_empty());
        assert_eq!(unreadable.len(), 1, "{unreadable:?}");
        assert!(unreadable[0].contains("another version of Tailwater"), "{unreadable:?}");
    }
}

/// A recording of a percentage that has been written to a file, and the bytes of that file.
fn recorded(percentage: f64, traces: &[&[Vec<u8>]]) -> Vec<u8> {
    let name = format!("tailwater-record-{}-{:x}", std::process::id(), fastrand::u64(..));
    let path = std::env::temp_dir().join(name);
    let mut file = RecordFile::create(&path, 12.5).expect("a new file");
    file.correct(percentage).expect("written");
    for trace in traces {
        trace.iter().for_each(|request| file.add(request));
        file.end_trace().expect("written");
    }
    // An incomplete trace is not written to the file.
    file.add(&protobuf(&["torn"]));
    let bytes = std::fs::read(&path).expect("written");
    std::fs::remove_file(&path).expect("removed");
    bytes
}

#[test]
fn recordings_are_read_back() {
    let traces: [&[Vec<u8>]; 2] = [&[protobuf(&["a"]), protobuf(&["b"])], &[protobuf(&["c"])]];
    for percentage in [100.0, 10.0, 0.1 + 0.2, 1e-9] {
        let bytes = recorded(percentage, &traces);
        let file = TraceFile::open("t", bytes.as_slice()).expect("to open");
        assert!((file.share() * 100.0 / percentage - 1.0).abs() < 1e-12);
        assert_eq!(read(&bytes).0, ABC.map(str::to_owned));
        assert_eq!(read(&gzip(&bytes)).0, ABC.map(str::to_owned));
    }
}

/// A request begins with the byte of a line feed and a length, and so does the resource in it. With
/// these lengths, both look like the beginning of JSON.
#[test]
fn a_recorded_request_is_never_taken_for_json() {
    let attribute = KeyValue { key: "0".repeat(0x30 - 4), ..KeyValue::default() };
    let resource = Resource { attributes: vec![attribute], ..Resource::default() };
    assert_eq!(resource.encoded_len(), 0x30);
    let of = |padding: usize| ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource.clone()),
            scope_spans: vec![ScopeSpans {
                spans: vec![Span { name: "a".repeat(padding), ..Span::default() }],
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    };
    let request = (0..99).map(|padding| of(padding).encode_to_vec());
    let request = request.into_iter().find(|request| request[..4] == *b"\n{\n0").expect("one");
    let bytes = recorded(100.0, &[&[request]]);
    let mut file = TraceFile::open("t", bytes.as_slice()).expect("to open");
    assert!(matches!(file.next_piece(), Some(Piece::Request(_))));
    assert_eq!(file.next_piece(), None);
}

#[test]
fn a_recording_says_which_share_it_is() {
    let mut bytes = b"TAILWATER RECORD 1\n{\"percentage\":10.0}\n".to_vec();
    bytes.extend(framed(&[protobuf(&["a"]), protobuf(&["b"]), protobuf(&["c"])]));
    let file = TraceFile::open("t", bytes.as_slice()).expect("to open");
    assert!((file.share() - 0.1).abs() < 1e-12);
    assert_eq!(read(&bytes).0, ABC.map(str::to_owned));
}
