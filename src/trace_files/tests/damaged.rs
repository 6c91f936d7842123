//! Damaged files: each damage is named with its place, and what follows it is read.

use super::{document, framed, gzip, protobuf, read, recorded, resource_spans, zstd};

/// The names of spans, and the unreadable parts without their reasons.
fn places(bytes: &[u8]) -> (Vec<String>, Vec<String>) {
    let (names, unreadable) = read(bytes);
    let place = |text: &String| {
        let of_byte = usize::from(text.starts_with("t: byte "));
        text.split(": ").take(1 + of_byte).collect::<Vec<_>>().join(": ")
    };
    (names, unreadable.iter().map(place).collect())
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn a_damaged_frame_is_one_unreadable_part() {
    let [a, b] = ["a", "b"].map(|name| protobuf(&[name]));
    let lines = format!("{}\nbroken\n{}\n", document(&["a"]), document(&["a"]));
    let half = |whole: Vec<u8>| whole[..whole.len() / 2].to_vec();
    for damaged in [
        half(gzip(&a)),
        half(zstd(&a)),
        gzip(&a)[..5].to_vec(),
        zstd(&a)[..5].to_vec(),
        b"TAILWATER RECORD 1\n{}\n".to_vec(),
        b"\x01\x02".to_vec(),
    ] {
        let at = 4 + a.len();
        let bytes = framed(&[a.clone(), damaged.clone(), b.clone()]);
        for bytes in [bytes.clone(), gzip(&bytes)] {
            let (names, unreadable) = read(&bytes);
            assert_eq!(names, ["a 0a", "b 0a"], "{damaged:?}: {unreadable:?}");
            assert_eq!(unreadable.len(), 1, "{damaged:?}: {unreadable:?}");
            let place = format!("t: byte {at}: in its frame, byte ");
            assert!(unreadable[0].starts_with(&place), "{unreadable:?}");
        }
    }
    let mut garbled = gzip(&a);
    let checksum = garbled.len() - 8;
    garbled[checksum] ^= 1;
    let (names, unreadable) = read(&framed(&[garbled, b.clone()]));
    assert_eq!(names, ["a 0a", "b 0a"]);
    let place = format!("t: byte 0: in its frame, byte {}: cannot read further: ", a.len());
    assert!(unreadable.len() == 1 && unreadable[0].starts_with(&place), "{unreadable:?}");

    let (names, unreadable) = read(&framed(&[a.clone(), gzip(lines.as_bytes()), b]));
    assert_eq!(names, ["a 0a", "a 0a", "a 0a", "b 0a"]);
    let expected = format!("t: byte {}: in its frame, line 2: this is not JSON", 4 + a.len());
    assert_eq!(unreadable, [expected]);
}

#[test]
fn places_in_a_recording_count_from_its_beginning() {
    let mut bytes = recorded(100.0, &[&[protobuf(&["a"])]]);
    let at = bytes.len();
    bytes.extend(framed(&[b"\x01\x02".to_vec(), protobuf(&["b"])]));
    bytes.extend([0, 0]);
    let (names, unreadable) = read(&bytes);
    assert_eq!(names, ["a 0a", "b 0a"]);
    let [damaged, cut] = unreadable.as_slice() else { panic!("{unreadable:?}") };
    assert!(damaged.starts_with(&format!("t: byte {at}: in its frame, byte 0: ")), "{damaged}");
    assert_eq!(cut, &format!("t: byte {}: the file ends within a length", bytes.len() - 2));
}

/// Damage of the compression itself ends the file, with the place up to which it was read.
#[test]
fn a_damaged_compression_has_a_place() {
    // Without compression, so that all lines come before the damage.
    let lines = format!("{}\n", document(&["a"])).repeat(3);
    let stored = |bytes: &[u8]| {
        use std::io::Write as _;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
        encoder.write_all(bytes).expect("to write");
        encoder.finish().expect("to finish")
    };
    let cut = |whole: Vec<u8>, by: usize| whole[..whole.len() - by].to_vec();
    let a = protobuf(&["a"]);
    let frames = framed(&[a.clone(), a.clone()]);
    let second = format!("t: byte {}", 4 + a.len());
    for (bytes, names, place) in [
        (cut(stored(lines.as_bytes()), 8), 3, "t:4"),
        (cut(stored(lines.as_bytes()), 20), 2, "t:3"),
        (cut(stored(document(&["a", "b", "c"]).as_bytes()), 30), 2, "t:1"),
        (cut(stored(&frames), 20), 1, second.as_str()),
        (gzip(lines.as_bytes())[..5].to_vec(), 0, "t: byte 0"),
        (zstd(lines.as_bytes())[..5].to_vec(), 0, "t: byte 0"),
        (b"TAILWATER RECORD 1\n{\"percentage\":0}\n".to_vec(), 0, "t: byte 0"),
        (gzip(&gzip(&gzip(&a))), 0, "t: byte 0"),
    ] {
        let (found, unreadable) = places(&bytes);
        assert_eq!((found.len(), unreadable), (names, vec![place.to_owned()]));
    }
    let (_, unreadable) = read(&cut(stored(&a), 20));
    assert!(unreadable[0].starts_with("t: byte 2: cannot read further: "), "{unreadable:?}");
}

/// What stands in a list in place of an element is reported once, and the elements around it are
/// read.
#[test]
fn strays_in_a_list_are_reported() {
    let [a, b] = ["a", "b"].map(resource_spans);
    for (list, names, strays) in [
        ("5".to_owned(), "", 1),
        ("5, 6".to_owned(), "", 2),
        ("\"text with , and { and [ in it\"".to_owned(), "", 1),
        ("nul".to_owned(), "", 1),
        ("nul, nulls, null null, nulk".to_owned(), "", 4),
        ("true false 1 2 3".to_owned(), "", 1),
        (format!("{a} garbage "), "a", 1),
        (format!("{a} garbage more garbage, {b}"), "ab", 1),
        (format!("garbage {a}, {b}"), "ab", 1),
        (format!("garbage {a} garbage, {b}"), "ab", 1),
        (format!("{a}, \"x\", {b}"), "ab", 1),
        (format!("{a}: {b}"), "ab", 1),
        ("null".to_owned(), "", 0),
        (format!(" null,{a} , null , {b},"), "ab", 0),
        (String::new(), "", 0),
        (format!("[], {a}"), "a", 1),
    ] {
        for key in ["resourceSpans", "batches"] {
            let names: Vec<String> = names.chars().map(|name| format!("{name} 0a")).collect();
            let text = format!("{{\"{key}\":[{list}]}}");
            let expected = (names, vec!["t:1".to_owned(); strays]);
            assert_eq!(places(text.as_bytes()), expected, "{text}");
            // The first document has more than one line, so that all documents may.
            let pretty = format!("{{\n\"{key}\":[\n{list}\n]}}\n{}\n", document(&["c"]));
            let (mut names, _) = expected;
            names.push("c 0a".to_owned());
            assert_eq!(
                places(pretty.as_bytes()),
                (names, vec!["t:3".to_owned(); strays]),
                "{text}"
            );
        }
    }
    let traces = r#"{"data":[7,{"spans":[]},null]}"#;
    assert_eq!(places(traces.as_bytes()), (Vec::new(), strings(&["t:1"])));
}

/// Text around the list and around documents does not vanish either.
#[test]
fn strays_in_and_between_documents_are_reported() {
    let list = format!("\"resourceSpans\":[{}]", resource_spans("a"));
    for text in [
        format!("{{{list} garbage}}"),
        format!("{{garbage {list}}}"),
        format!("{{\"total\":1 x, {list}}}"),
        format!("{{\"trace\":{{{list} garbage}}}}"),
        format!("{{{list}}} garbage"),
        format!("{{{list}}} \"text\""),
        format!("{{{list}}} : 5"),
        format!("{{{list}}},"),
        format!("{{{list}}} null"),
    ] {
        let text = format!("{text}\n{}\n", document(&["b"]));
        let expected = (strings(&["a 0a", "b 0a"]), strings(&["t:1"]));
        assert_eq!(places(text.as_bytes()), expected, "{text}");
    }
    let text = format!("\"text\"\n{}\n", document(&["b"]));
    assert_eq!(places(text.as_bytes()), (strings(&["b 0a"]), strings(&["t:1"])));
    // A document that has something else instead of a list is reported once.
    assert_eq!(places(b"{garbage}"), (Vec::new(), strings(&["t:1"])));
    let scalars = format!(r#"{{"a":null,"b":-1.5e3,"c":true,"d":{{"e":null}},"f":["x"],{list}}}"#);
    assert_eq!(places(scalars.as_bytes()), (strings(&["a 0a"]), Vec::new()));
}

/// protobuf's JSON writes an empty list as `null`, or not at all.
#[test]
fn empty_documents_are_no_errors() {
    for empty in [
        "{}",
        "{ }",
        r#"{"resourceSpans":null}"#,
        r#"{"resourceSpans": null , "other": 5}"#,
        r#"{"resource_spans":null}"#,
        r#"{"resourceSpans":[]}"#,
        r#"{"batches":null}"#,
        r#"{"trace":{"resourceSpans":null}}"#,
        r#"{"trace":{},"metrics":{}}"#,
        r#"{"result":{}}"#,
    ] {
        assert_eq!(read(empty.as_bytes()), (Vec::new(), Vec::new()), "{empty}");
        let lines = format!("{empty}\n{}\n{empty}\n{}", document(&["a"]), document(&["b"]));
        assert_eq!(read(lines.as_bytes()), (strings(&["a 0a", "b 0a"]), Vec::new()), "{empty}");
    }
    for other in [
        r#"{"resourceSpans":nul}"#,
        r#"{"resourceSpans":nulls}"#,
        r#"{"resourceSpans":5}"#,
        r#"{"resourceSpans":"null"}"#,
        r#"{"resourceSpans":{}}"#,
        r#"{"metrics":{}}"#,
        r#"{"data":null}"#,
    ] {
        assert_eq!(places(other.as_bytes()), (Vec::new(), strings(&["t:1"])), "{other}");
    }
}
