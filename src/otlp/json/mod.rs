//! Converts OTLP/JSON to protobuf once, in the receiver. After that, the request is handled like
//! any other.
//!
//! The connection tasks of the HTTP listener and `tailwater replay` call it. `plain.rs` reads what
//! nearly all senders write, serde_json everything else; `schema.rs` describes the members, and
//! `message.rs` writes. Nothing is built in between, and the output is never longer than the input.
//! The rules are OTLP's: names in lowerCamelCase, ids in hexadecimal of either case, enums as
//! numbers, unknown members ignored. It also accepts the forms of protobuf's JSON mapping: names as
//! in the proto files, enums by name, integers as numbers or strings, `"NaN"` and `"Infinity"`,
//! base64 of either alphabet, and `null` for absent values (the Node SDK writes NaN as
//! `{"doubleValue": null}`). The former `instrumentationLibrarySpans` are written to their former
//! protobuf field, which the walker reads. A request with an unknown enum name is refused, as in
//! the Collector and in protobuf's own parsers.
//!
//! Faults that protobuf can carry are passed on. An id that is not hexadecimal becomes an id of one
//! byte, so only its span is rejected or its link removed. Strings that are not valid Unicode pass
//! and are repaired at export. A value that is nested too deep for export is cut off one level
//! further down, and its span is counted as malformed if it is kept. A member of the wrong type
//! makes the whole request undecodable.
//!
//! Recursion ends at [`NESTING_MAX`] values; serde_json's own limit of 128 levels of JSON would end
//! it at 40. Ignored members are skipped without recursion. Sources: OTLP specification, "JSON
//! Protobuf Encoding"; protobuf.dev, "ProtoJSON Format".

use std::fmt;

use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::{
    clean::NESTING_MAX,
    message::Message,
    schema::{Field, Kind, REQUEST, Role, Schema},
};

mod plain;

/// The input is not the JSON of an `ExportTraceServiceRequest`. The text names the fault and its
/// location, and never quotes the input.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct InvalidJson(#[from] serde_json::Error);

/// Converts a request in JSON to protobuf. It needs up to twice the length of the JSON while it
/// runs, and returns at most that length.
///
/// # Errors
/// [`InvalidJson`]: no part of the request may be used then.
pub fn to_protobuf(json: &[u8]) -> Result<Vec<u8>, InvalidJson> {
    if u32::try_from(json.len()).is_err() {
        return Err(InvalidJson(Error::custom("a request of 4 GiB or more")));
    }
    let json = without_mark(json);
    let Some(request) = plain::convert(json) else { return convert(json) };
    debug_assert!(convert(json).ok().as_ref() == Some(&request), "serde_json reads it otherwise");
    Ok(request)
}

/// Converts any request.
fn convert(json: &[u8]) -> Result<Vec<u8>, InvalidJson> {
    let mut message = Message::with_capacity(json.len());
    let mut reader = serde_json::Deserializer::from_slice(json);
    reader.disable_recursion_limit();
    reader.deserialize_any(Request(&mut message))?;
    reader.end()?;
    Ok(message.finish())
}

/// The text after an optional byte order mark.
pub(super) fn without_mark(json: &[u8]) -> &[u8] {
    json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json)
}

/// The outermost object.
struct Request<'a>(&'a mut Message);

impl<'de> Visitor<'de> for Request<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    /// serde's own error for a string would quote the whole string.
    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Err(E::custom("expected an object"))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        read_members(map, &REQUEST, self.0, 0)
    }
}

/// Reads the members of an object. `values` is the number of `AnyValue`s around it.
fn read_members<'de, A: MapAccess<'de>>(
    mut map: A,
    schema: &Schema,
    message: &mut Message,
    values: usize,
) -> Result<(), A::Error> {
    while let Some(named) = map.next_key_seed(Name(schema))? {
        match named {
            Some((number, field)) => {
                let place = if field.is_repeated { Place::List } else { Place::Member };
                map.next_value_seed(Value { field, number, place, message, values })?;
            }
            None => _ = map.next_value::<IgnoredAny>()?,
        }
    }
    Ok(())
}

/// The name of a member: its field, if the schema has one.
struct Name<'a>(&'a Schema);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Option<(u32, &'static Field)>;

    fn deserialize<D: Deserializer<'de>>(self, name: D) -> Result<Self::Value, D::Error> {
        name.deserialize_bytes(self)
    }
}

impl<'de> Visitor<'de> for Name<'_> {
    type Value = Option<(u32, &'static Field)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_bytes<E>(self, name: &[u8]) -> Result<Self::Value, E> {
        Ok(self.0.named(name))
    }
}

/// The role of a value in its field.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// The only value of its field; `null` omits it.
    Member,
    /// All values of its field; `null` omits them.
    List,
    /// One of several values; `null` is an empty value, so the others keep their places.
    Element,
}

/// The value of a field.
struct Value<'a> {
    field: &'static Field,
    number: u32,
    place: Place,
    message: &'a mut Message,
    values: usize,
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<(), D::Error> {
        match self.field.kind {
            // Text is requested as bytes, because it need not be valid Unicode.
            Kind::Text | Kind::Id | Kind::Bytes if self.place != Place::List => {
                value.deserialize_option(self)
            }
            Kind::Message(schema)
                if schema.role == Role::AnyValue
                    && self.values > NESTING_MAX
                    && self.place != Place::List =>
            {
                self.message.put_bytes(self.number, b"");
                value.deserialize_ignored_any(IgnoredAny).map(drop)
            }
            _ => value.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expected = match self.field.kind {
            _ if self.place == Place::List => "an array",
            Kind::Unknown => "nothing",
            Kind::Bool => "true or false",
            Kind::Int32 => "a 32-bit integer",
            Kind::Enum(_) => "a 32-bit integer or the name of a value",
            Kind::Int64 => "a 64-bit integer",
            Kind::Uint32 | Kind::Fixed32 => "an unsigned 32-bit integer",
            Kind::Fixed64 => "an unsigned 64-bit integer",
            Kind::Double => "a number",
            Kind::Id => "a string of hexadecimal digits",
            Kind::Bytes => "a string in base64",
            Kind::Text => "a string",
            Kind::Message(_) => "an object",
        };
        write!(f, "{expected} as {}", self.field.name)
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        if self.place == Place::Element {
            self.message.put_bytes(self.number, b"");
        }
        Ok(())
    }

    fn visit_none<E: Error>(self) -> Result<(), E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, text: D) -> Result<(), D::Error> {
        text.deserialize_bytes(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        let Kind::Message(schema) = self.field.kind else { return Err(self.unexpected()) };
        if self.place == Place::List {
            return Err(self.unexpected());
        }
        let values = self.values + usize::from(schema.role == Role::AnyValue);
        let begun = self.message.begin(self.number);
        read_members(map, schema, self.message, values)?;
        self.message.end(&begun);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        if self.place != Place::List {
            return Err(self.unexpected());
        }
        let Value { field, number, values, message, .. } = self;
        let place = Place::Element;
        while elements
            .next_element_seed(Value { field, number, place, message: &mut *message, values })?
            .is_some()
        {}
        Ok(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        match self.field.kind {
            Kind::Bool if self.place != Place::List => {
                self.message.put_varint(self.number, u64::from(value));
                Ok(())
            }
            _ => Err(self.unexpected()),
        }
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.integer(i128::from(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.integer(i128::from(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        match self.field.kind {
            Kind::Double => {
                self.message.put_fixed64(self.number, value.to_bits());
                Ok(())
            }
            // 1.7e18 is an integer too. A value that is too large saturates in the cast and is
            // refused afterwards.
            _ if value.fract() == 0.0 => self.integer(value as i128),
            _ => Err(self.unexpected()),
        }
    }

    /// A number in a string, or the name of an enum value.
    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        match self.field.kind {
            // This accepts "NaN" and "Infinity" too.
            Kind::Double => match text.parse() {
                Ok(value) => self.visit_f64(value),
                Err(_) => Err(self.unexpected()),
            },
            kind => match named_value(kind, text.as_bytes()).or_else(|| text.parse().ok()) {
                Some(value) => self.integer(value),
                None => Err(self.unexpected()),
            },
        }
    }

    fn visit_bytes<E: Error>(self, text: &[u8]) -> Result<(), E> {
        let put = put_text(self.message, self.field.kind, self.number, text);
        put.ok_or_else(|| self.unexpected())
    }
}

impl Value<'_> {
    fn integer<E: Error>(self, value: i128) -> Result<(), E> {
        let put = put_integer(self.message, self.field.kind, self.number, value);
        put.ok_or_else(|| self.unexpected())
    }

    fn unexpected<E: Error>(&self) -> E {
        E::custom(format_args!("expected {}", self as &dyn serde::de::Expected))
    }
}

/// The number of an enum value, by its name.
fn named_value(kind: Kind, name: &[u8]) -> Option<i128> {
    let Kind::Enum(names) = kind else { return None };
    (0..).zip(names).find(|(_, known)| known.as_bytes() == name).map(|(number, _)| number)
}

/// Writes a number that is an integer. `None` if the field cannot have it.
fn put_integer(message: &mut Message, kind: Kind, number: u32, value: i128) -> Option<()> {
    match kind {
        Kind::Int32 | Kind::Enum(_) => {
            let value = i32::try_from(value).ok()?;
            message.put_varint(number, i64::from(value).cast_unsigned());
        }
        Kind::Int64 => message.put_varint(number, i64::try_from(value).ok()?.cast_unsigned()),
        Kind::Uint32 => message.put_varint(number, u64::from(u32::try_from(value).ok()?)),
        Kind::Fixed32 => message.put_fixed32(number, u32::try_from(value).ok()?),
        Kind::Fixed64 => message.put_fixed64(number, u64::try_from(value).ok()?),
        Kind::Double => message.put_fixed64(number, (value as f64).to_bits()),
        _ => return None,
    }
    Some(())
}

/// Writes a string. `None` if the field cannot have it.
fn put_text(message: &mut Message, kind: Kind, number: u32, text: &[u8]) -> Option<()> {
    match kind {
        Kind::Text => message.put_bytes(number, text),
        Kind::Id => put_id(message, number, text),
        Kind::Bytes => message.put_bytes(number, &decode_base64(text).ok()?),
        _ => return None,
    }
    Some(())
}

/// Writes an id. An id that is not hexadecimal is written as one byte, a length that no valid id
/// has.
fn put_id(message: &mut Message, number: u32, text: &[u8]) {
    let is_hexadecimal = text.iter().all(u8::is_ascii_hexdigit);
    if !is_hexadecimal || !text.len().is_multiple_of(2) {
        return message.put_bytes(number, &[0]);
    }
    let value = |digit: u8| (digit & 0xf) + 9 * (digit >> 6);
    let bytes = text.chunks_exact(2).map(|pair| value(pair[0]) << 4 | value(pair[1]));
    message.put_each(number, bytes);
}

/// Either alphabet, with or without padding, as in protobuf's JSON mapping.
fn decode_base64(text: &[u8]) -> Result<Vec<u8>, base64::DecodeError> {
    const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    const STANDARD: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, LENIENT);
    const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::URL_SAFE, LENIENT);
    let is_url_safe = text.iter().any(|digit| matches!(digit, b'-' | b'_'));
    base64::Engine::decode(if is_url_safe { &URL_SAFE } else { &STANDARD }, text)
}

#[cfg(test)]
mod tests;
