use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{Span, span::Link},
};
use prost::Message as _;

use super::*;
use crate::otlp::clean;

/// A request with one span that has these members.
fn request(members: &str) -> String {
    format!("{{\"resourceSpans\":[{{\"scopeSpans\":[{{\"spans\":[{{{members}}}]}}]}}]}}")
}

/// The span of such a request.
fn converted(members: &str) -> Result<Span, InvalidJson> {
    let json = request(members);
    let bytes = to_protobuf(json.as_bytes())?;
    assert!(bytes.len() <= json.len());
    let mut request = ExportTraceServiceRequest::decode(&bytes[..]).expect("valid");
    Ok(request.resource_spans.remove(0).scope_spans.remove(0).spans.remove(0))
}

fn span(members: &str) -> Span {
    converted(members).unwrap_or_else(|error| panic!("{members}: {error}"))
}

/// The value of an attribute.
fn value(json: &str) -> Option<Value> {
    let mut span = span(&format!("\"attributes\":[{{\"key\":\"k\",\"value\":{json}}}]"));
    span.attributes.remove(0).value.and_then(|value| value.value)
}

#[test]
fn numbers_come_as_numbers_and_as_strings() {
    for (json, expected) in [
        ("\"kind\":2,\"flags\":257,\"droppedLinksCount\":3", (2, 257, 3)),
        ("\"kind\":\"-1\",\"flags\":\"4294967295\"", (-1, u32::MAX, 0)),
        ("\"kind\":2.0,\"flags\":1e2,\"droppedLinksCount\":\"0\"", (2, 100, 0)),
        ("\"kind\":null,\"flags\":null,\"droppedLinksCount\":null", (0, 0, 0)),
        ("\"kind\":1,\"kind\":3", (3, 0, 0)),
        ("\"kind\":\"SPAN_KIND_SERVER\",\"flags\":1", (2, 1, 0)),
        ("\"kind\":\"SPAN_KIND_UNSPECIFIED\"", (0, 0, 0)),
        ("\"kind\":\"\\u0053PAN_KIND_CLIENT\",\"dropped_links_count\":4", (3, 0, 4)),
    ] {
        let span = span(json);
        assert_eq!((span.kind, span.flags, span.dropped_links_count), expected, "{json}");
    }
    let span = span("\"startTimeUnixNano\":\"1544712660000000000\",\"endTimeUnixNano\":1.5e18");
    assert_eq!(span.start_time_unix_nano, 1_544_712_660_000_000_000);
    assert_eq!(span.end_time_unix_nano, 1_500_000_000_000_000_000);
    let least = Some(Value::IntValue(i64::MIN));
    assert_eq!(value("{\"intValue\":\"-9223372036854775808\"}"), least);
    assert_eq!(value("{\"intValue\":-9223372036854775808}"), least);
    assert_eq!(value("{\"intValue\":0}"), Some(Value::IntValue(0)));
}

#[test]
fn names_as_in_the_proto_files_are_read() {
    let span = span(
        "\"trace_id\":\"00112233445566778899aabbccddeeff\",\"start_time_unix_nano\":\"5\",\
         \"attributes\":[{\"key\":\"k\",\"value\":{\"array_value\":{\"values\":[]}}}],\
         \"status\":{\"code\":\"STATUS_CODE_ERROR\"}",
    );
    assert_eq!((span.trace_id[1], span.start_time_unix_nano), (0x11, 5));
    let value = span.attributes[0].value.as_ref().and_then(|value| value.value.as_ref());
    assert!(matches!(value, Some(Value::ArrayValue(_))));
    assert_eq!(span.status.map(|status| status.code), Some(2));
}

#[test]
fn every_kind_of_value_is_read() {
    let double = |number| Some(Value::DoubleValue(number));
    assert_eq!(value("{\"doubleValue\":0.1}"), double(0.1));
    assert_eq!(value("{\"doubleValue\":\"-Infinity\"}"), double(f64::NEG_INFINITY));
    assert_eq!(value("{\"doubleValue\":5e-324}"), double(5e-324));
    assert_eq!(value("{\"doubleValue\":9007199254740993}"), double(9_007_199_254_740_992.0));
    assert!(
        matches!(value("{\"doubleValue\":\"NaN\"}"), Some(Value::DoubleValue(n)) if n.is_nan())
    );
    assert_eq!(value("{\"doubleValue\":null}"), None);
    assert_eq!(value("{}"), None);
    assert_eq!(value("{\"boolValue\":false}"), Some(Value::BoolValue(false)));
    assert_eq!(value("{\"stringValue\":\"\\u00e9\\ud83d\\ude00\"}"), text("é😀"));
    for base64 in ["+/A=", "-_A=", "+/A", "-_A"] {
        let expected = Some(Value::BytesValue(vec![0xfb, 0xf0]));
        assert_eq!(value(&format!("{{\"bytesValue\":\"{base64}\"}}")), expected);
    }
    let Some(Value::ArrayValue(array)) =
        value("{\"arrayValue\":{\"values\":[{\"intValue\":1},null]}}")
    else {
        panic!("an array")
    };
    let one = AnyValue { value: Some(Value::IntValue(1)) };
    assert_eq!(array.values, [one, AnyValue { value: None }]);
    let map = "{\"kvlistValue\":{\"values\":[{\"key\":\"a\",\"value\":{\"stringValue\":\"b\"}}]}}";
    let Some(Value::KvlistValue(map)) = value(map) else { panic!("a map") };
    let pair = KeyValue {
        key: "a".into(),
        value: Some(AnyValue { value: text("b") }),
        ..Default::default()
    };
    assert_eq!(map.values, [pair]);
}

fn text(text: &str) -> Option<Value> {
    Some(Value::StringValue(text.into()))
}

#[test]
fn ids_that_are_not_hexadecimal_are_of_no_valid_length() {
    let good = span("\"traceId\":\"5B8EFFF798038103d269b633813fc60c\",\"parentSpanId\":\"\"");
    assert_eq!(good.trace_id, 0x5b8e_fff7_9803_8103_d269_b633_813f_c60c_u128.to_be_bytes());
    assert_eq!(good.parent_span_id, b"");
    for id in ["abc", "zz", "W47/95gDgQPSabYzgT/GDA==", "é0", " 0", "+1"] {
        let link = format!("{{\"traceId\":\"{id}\",\"spanId\":\"{id}\"}}");
        let bad =
            span(&format!("\"traceId\":\"{id}\",\"parentSpanId\":\"{id}\",\"links\":[{link}]"));
        assert_eq!((&bad.trace_id[..], &bad.parent_span_id[..]), (&[0][..], &[0][..]), "{id}");
        let link = Link { trace_id: vec![0], span_id: vec![0], ..Default::default() };
        assert_eq!(bad.links, [link]);
    }
}

#[test]
fn unknown_and_missing_members_are_skipped() {
    let expected = Span { name: "n".into(), ..Default::default() };
    for members in [
        "\"unknown\":{\"a\":[1,{}],\"b\":null},\"name\":\"n\",\"\":0",
        "\"start_Time_unix_nano\":5,\"Name\":\"N\",\"name\":\"n\",\"trace_id_\":\"00\"",
        "\"name\":\"n\",\"attributes\":null,\"events\":null,\"status\":null,\"traceId\":null",
        "\"name\":\"n\",\"\\ud800\":1,\"links\":[]",
    ] {
        assert_eq!(span(members), expected, "{members}");
    }
    assert_eq!(span("\"name\":\"n\",\"status\":{}").status, Some(Default::default()));
    assert!(to_protobuf(b"\xef\xbb\xbf {}\n").expect("valid").is_empty());
}

#[test]
fn strings_that_are_no_unicode_pass_to_be_repaired() {
    let json = b"{\"resourceSpans\":[{\"schemaUrl\":\"\\ud800 \xe9\n\"}]}";
    let bytes = to_protobuf(json).expect("accepted");
    let repaired = clean::resource(&bytes[2..]).expect("fit");
    assert_eq!(repaired.repairs.strings, 1);
}

#[test]
fn other_types_and_syntax_are_refused_without_quoting() {
    for members in [
        "\"name\":5",
        "\"name\":[\"secret\"]",
        "\"name\":{}",
        "\"traceId\":5",
        "\"kind\":\"SECRET\"",
        "\"kind\":\"span_kind_server\"",
        "\"kind\":\"STATUS_CODE_ERROR\"",
        "\"kind\":\"\"",
        "\"status\":{\"code\":\"ERROR\"}",
        "\"kind\":2147483648",
        "\"kind\":1.5",
        "\"kind\":true",
        "\"flags\":-1",
        "\"flags\":{}",
        "\"startTimeUnixNano\":18446744073709551616",
        "\"startTimeUnixNano\":\"0x10\"",
        "\"startTimeUnixNano\":[]",
        "\"attributes\":{}",
        "\"attributes\":\"secret\"",
        "\"attributes\":[5]",
        "\"attributes\":[\"secret\"]",
        "\"attributes\":[[]]",
        "\"status\":\"secret\"",
        "\"status\":[{}]",
        "\"attributes\":[{\"value\":{\"boolValue\":\"true\"}}]",
        "\"attributes\":[{\"value\":{\"boolValue\":1}}]",
        "\"attributes\":[{\"value\":{\"doubleValue\":\"secret\"}}]",
        "\"attributes\":[{\"value\":{\"bytesValue\":\"secret!\"}}]",
        "\"attributes\":[{\"value\":{\"intValue\":9223372036854775808}}]",
        "\"name\":\"n",
        "\"name\"",
        "\"unknown\":[1,",
    ] {
        let error = converted(members).expect_err(members).to_string();
        assert!(error.contains(" at line 1 column "), "{error}");
        assert!(!error.to_lowercase().contains("secret"), "{error}");
    }
    for json in ["", "[]", "5", "\"secret\"", "{} {}", "{", "null", "{\"resourceSpans\":5}"] {
        let error = to_protobuf(json.as_bytes()).expect_err(json).to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}

/// A value inside this many arrays or maps.
fn nested(levels: usize, is_map: bool) -> String {
    let (open, close) = if is_map {
        ("{\"kvlistValue\":{\"values\":[{\"key\":\"k\",\"value\":", "}]}}")
    } else {
        ("{\"arrayValue\":{\"values\":[", "]}}")
    };
    [&open.repeat(levels), "{\"intValue\":7}", &close.repeat(levels)].concat()
}

#[test]
fn nesting_is_cut_off_below_what_may_leave() {
    for is_map in [false, true] {
        for (levels, is_fit) in [(64, true), (65, false), (66, false), (1_000, false)] {
            let value = nested(levels, is_map);
            let attribute = format!("{{\"key\":\"k\",\"value\":{value}}}");
            let json = format!(
                "{{\"resourceSpans\":[{{\"resource\":{{\"attributes\":[{attribute}]}}}}]}}"
            );
            let bytes = to_protobuf(json.as_bytes()).expect("accepted");
            let resource = &bytes[1 + varint_len(&bytes[1..])..];
            assert_eq!(clean::resource(resource).is_ok(), is_fit, "{levels}");
        }
    }
}

fn varint_len(bytes: &[u8]) -> usize {
    1 + bytes.iter().take_while(|byte| **byte >= 0x80).count()
}

#[test]
fn a_million_levels_do_not_overflow_the_stack() {
    let in_unknown = [&"[".repeat(1 << 20)[..], &"]".repeat(1 << 20)].concat();
    let in_values = nested(1 << 20, false);
    let unclosed = "{\"arrayValue\":{\"values\":[".repeat(1 << 20);
    // 32 KiB are enough for optimized code. The service's threads have 2 MiB.
    let stack_bytes = if cfg!(debug_assertions) { 640 << 10 } else { 32 << 10 };
    let small_stack = std::thread::Builder::new().stack_size(stack_bytes);
    let work = move || {
        let attribute = |value: &str| format!("\"attributes\":[{{\"value\":{value}}}]");
        let is_taken = |members: &str| to_protobuf(request(members).as_bytes()).is_ok();
        assert!(is_taken(&format!("\"unknown\":{in_unknown}")));
        assert!(is_taken(&attribute(&in_values)));
        assert!(is_taken(&attribute(&nested(64, true))));
        assert!(!is_taken(&attribute(&unclosed)));
    };
    small_stack.spawn(work).expect("thread").join().expect("no overflow");
}
