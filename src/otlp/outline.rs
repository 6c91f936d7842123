//! The top level of a message: the members of a JSON object, or the fields of a protobuf message.
//! The log line about a request without spans shows it, so that the operator sees what was sent
//! instead.
//!
//! Receivers call it rarely, with untrusted input. An outline is one line of printable ASCII with
//! at most `NAMES_MAX` names of at most `NAME_CHARS_MAX` characters. Nothing is allocated for
//! further names.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::{json::without_mark, wire::Reader};

/// The most names in an outline.
const NAMES_MAX: usize = 8;
/// The most characters shown of a name.
const NAME_CHARS_MAX: usize = 40;

/// The field numbers of a protobuf message, up to the first byte that is not a field.
pub(crate) fn of_protobuf(message: &[u8]) -> String {
    let mut numbers = Vec::new();
    let mut reader = Reader::new(message);
    while let Ok(Some(field)) = reader.next_field()
        && numbers.len() <= NAMES_MAX
    {
        if !numbers.contains(&field.number) {
            numbers.push(field.number);
        }
    }
    line(numbers.iter().map(|number| format!("field {number}")))
}

/// The member names of a JSON object, up to the first byte that is not JSON.
pub(crate) fn of_json(json: &[u8]) -> String {
    let mut names = Names::default();
    let mut reader = serde_json::Deserializer::from_slice(without_mark(json));
    reader.disable_recursion_limit();
    // The names read before an error are still shown.
    let _ = reader.deserialize_any(&mut names);
    line(names.0.iter().map(|name| format!("\"{name}\"")))
}

fn line(names: impl Iterator<Item = String>) -> String {
    let mut names: Vec<_> = names.collect();
    if names.is_empty() {
        return "nothing".to_owned();
    }
    if names.len() > NAMES_MAX {
        names[NAMES_MAX] = "and more".to_owned();
    }
    names.join(", ")
}

/// The distinct names of an object's members in their printed form, at most one more than is shown.
#[derive(Default)]
struct Names(Vec<String>);

impl Names {
    fn add(&mut self, name: &[u8]) {
        let is_known = |known: &String| known.chars().eq(shown(name));
        if self.0.len() <= NAMES_MAX && !self.0.iter().any(is_known) {
            self.0.push(shown(name).collect());
        }
    }
}

/// The beginning of a name. Characters that could break out of the log line become question marks.
fn shown(name: &[u8]) -> impl Iterator<Item = char> {
    let harmless = |byte: &u8| match byte {
        b'"' | b'\\' => '?',
        b' ' | b'!'..=b'~' => char::from(*byte),
        _ => '?',
    };
    let cut = if name.len() > NAME_CHARS_MAX { "..." } else { "" };
    name.iter().take(NAME_CHARS_MAX).map(harmless).chain(cut.chars())
}

impl<'de> Visitor<'de> for &mut Names {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while members.next_key_seed(Name(self))?.is_some() {
            members.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

/// The name of one member.
struct Name<'a>(&'a mut Names);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, name: D) -> Result<(), D::Error> {
        // Read as bytes, because the name need not be valid Unicode.
        name.deserialize_bytes(self)
    }
}

impl<'de> Visitor<'de> for Name<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_bytes<E>(self, name: &[u8]) -> Result<(), E> {
        self.0.add(name);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_an_object_are_shown_once() {
        for (json, expected) in [
            ("{\"data\":{\"resourceSpans\":[{}]},\"meta\":1}", "\"data\", \"meta\""),
            ("{\"a\":1,\"a\":2,\"b\":null}", "\"a\", \"b\""),
            ("\u{feff}{\"a\":1}", "\"a\""),
            ("{\"\":0}", "\"\""),
            ("{}", "nothing"),
            ("[{\"a\":1}]", "nothing"),
            ("{\"a\":[1,2", "\"a\""),
        ] {
            assert_eq!(of_json(json.as_bytes()), expected, "{json}");
        }
        let many: Vec<_> = (0..20).map(|n| format!("\"k{n}\":0")).collect();
        let outline = of_json(format!("{{{}}}", many.join(",")).as_bytes());
        assert_eq!(outline.matches("\"k").count(), NAMES_MAX);
        assert!(outline.ends_with("\"k7\", and more"), "{outline}");
        let exactly = of_json(format!("{{{}}}", many[..NAMES_MAX].join(",")).as_bytes());
        assert!(exactly.ends_with("\"k7\""), "{exactly}");
    }

    #[test]
    fn names_stay_in_their_place_and_are_cut() {
        let hostile = "{\"x\\r\\n2026 ERROR \\u001b[31m\\\"<\\u202e\\ud800\\\\\":0}";
        let outline = of_json(hostile.as_bytes());
        assert!(outline.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{outline}");
        assert_eq!(outline.matches('"').count(), 2, "{outline}");
        let long = of_json(format!("{{\"{}\":0}}", "x".repeat(1 << 20)).as_bytes());
        assert_eq!(long, format!("\"{}...\"", "x".repeat(NAME_CHARS_MAX)));
    }

    #[test]
    fn the_numbers_of_a_message_are_shown_once() {
        for (message, expected) in [
            (&[0x0a, 0, 0x0a, 1, 7, 0x10, 1][..], "field 1, field 2"),
            (&[0xc2, 0x3e, 0], "field 1000"),
            (&[0x0a, 9], "nothing"),
            (&[], "nothing"),
        ] {
            assert_eq!(of_protobuf(message), expected);
        }
        let many: Vec<u8> = (1..16).flat_map(|number| [number << 3, 0]).collect();
        assert!(of_protobuf(&many).ends_with("field 8, and more"), "{}", of_protobuf(&many));
    }
}
