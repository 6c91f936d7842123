//! Reads the JSON that nearly all senders write, in a fraction of serde_json's time.
//!
//! It gives up on everything unusual: unknown members, `null`, integers written as floats, halves
//! of surrogate pairs, deep nesting, and every mistake. Then serde_json reads the request again,
//! and it alone defines the meaning. Builds with debug assertions compare the two for every
//! request, so the tests and the fuzz target `json` do.
//!
//! A span of 14 attributes has 86 strings, names included, and serde_json with a visitor takes 400
//! instructions for each. Here, names are compared where they stand with the next ones of the
//! schema, and the end of a string is searched for in place.

use super::{Field, Kind, Message, REQUEST, Role, Schema, named_value, put_integer, put_text};

/// The deepest nesting of `AnyValue`s that is read here.
const VALUES_MAX: usize = 8;

/// How many words of eight bytes are looked at before memchr searches for the end of a string. Most
/// strings are not longer, and a call of memchr takes as long as these words.
const SHORT_WORDS: usize = 4;

/// Digits that fit into 64 bits whatever they are.
const DIGITS_MAX: usize = 19;

/// Converts a request. `None` if it is not plain.
pub(super) fn convert(json: &[u8]) -> Option<Vec<u8>> {
    let mut message = Message::with_capacity(json.len());
    let mut text = Text { json, at: 0, unescaped: Vec::new() };
    text.object(&REQUEST, &mut message, 0)?;
    text.peek().is_none().then(|| message.finish())
}

/// JSON that is being read.
struct Text<'j> {
    json: &'j [u8],
    /// The index of the next byte.
    at: usize,
    /// The last string with escapes, after they were resolved.
    unescaped: Vec<u8>,
}

impl<'j> Text<'j> {
    /// Reads an object. `values` is the number of `AnyValue`s around its members.
    fn object(&mut self, schema: &Schema, message: &mut Message, values: usize) -> Option<()> {
        self.take(b'{')?;
        if self.peek()? == b'}' {
            self.at += 1;
            return Some(());
        }
        let mut number = 0;
        loop {
            let field = self.name(schema, &mut number)?;
            self.take(b':')?;
            if field.is_repeated {
                self.list(field, number, message, values)?;
            } else {
                self.value(field, number, message, values)?;
            }
            if !self.goes_on(b'}')? {
                return Some(());
            }
        }
    }

    fn list(
        &mut self,
        field: &Field,
        number: u32,
        message: &mut Message,
        values: usize,
    ) -> Option<()> {
        self.take(b'[')?;
        if self.peek()? == b']' {
            self.at += 1;
            return Some(());
        }
        loop {
            self.value(field, number, message, values)?;
            if !self.goes_on(b']')? {
                return Some(());
            }
        }
    }

    fn value(
        &mut self,
        field: &Field,
        number: u32,
        message: &mut Message,
        values: usize,
    ) -> Option<()> {
        match field.kind {
            Kind::Message(schema) => {
                let values = values + usize::from(schema.role == Role::AnyValue);
                if values > VALUES_MAX {
                    return None;
                }
                let begun = message.begin(number);
                self.object(schema, message, values)?;
                message.end(&begun);
            }
            Kind::Text | Kind::Id | Kind::Bytes => {
                self.take(b'"')?;
                put_text(message, field.kind, number, self.string()?)?;
            }
            Kind::Bool => message.put_varint(number, self.is_true()?.into()),
            Kind::Double => {
                let value: f64 = if self.peek()? == b'"' {
                    self.at += 1;
                    str::from_utf8(self.until_quote()?).ok()?.parse().ok()?
                } else {
                    serde_json::from_slice(self.number()?).ok()?
                };
                message.put_fixed64(number, value.to_bits());
            }
            kind => {
                let value = if self.peek()? == b'"' {
                    self.at += 1;
                    let text = self.until_quote()?;
                    named_value(kind, text).or_else(|| whole(text))
                } else {
                    self.number().and_then(whole)
                };
                put_integer(message, kind, number, value?)?;
            }
        }
        Some(())
    }

    fn is_true(&mut self) -> Option<bool> {
        self.peek()?;
        let rest = &self.json[self.at..];
        let is_true = rest.starts_with(b"true");
        if !is_true && !rest.starts_with(b"false") {
            return None;
        }
        self.at += if is_true { 4 } else { 5 };
        Some(is_true)
    }

    /// Reads the name of a member. `number` is that of the member before it.
    fn name(&mut self, schema: &Schema, number: &mut u32) -> Option<&'static Field> {
        self.take(b'"')?;
        let rest = &self.json[self.at..];
        let ahead = schema.fields.get(*number as usize..).unwrap_or_default();
        for (field, its) in ahead.iter().zip(*number + 1..) {
            let length = field.name.len();
            // The quote is compared first, because it rules out most fields. A number that is not
            // in use has an empty name.
            let ends_here = length > 0 && rest.get(length) == Some(&b'"');
            if ends_here && rest.starts_with(field.name.as_bytes()) {
                self.at += length + 1;
                *number = its;
                return Some(field);
            }
        }
        let (its, field) = schema.named(self.until_quote()?)?;
        *number = its;
        Some(field)
    }

    /// The next byte that is not white space.
    #[inline]
    fn peek(&mut self) -> Option<u8> {
        let byte = *self.json.get(self.at)?;
        if byte > b' ' {
            return Some(byte);
        }
        self.peek_behind_space()
    }

    #[cold]
    fn peek_behind_space(&mut self) -> Option<u8> {
        while let b' ' | b'\t' | b'\r' | b'\n' = self.json.get(self.at)? {
            self.at += 1;
        }
        Some(self.json[self.at])
    }

    /// Takes this byte, if it is the next one that is not white space.
    #[inline]
    fn take(&mut self, byte: u8) -> Option<()> {
        if self.peek()? != byte {
            return None;
        }
        self.at += 1;
        Some(())
    }

    /// Takes what follows a member or an element: whether there is another one.
    #[inline]
    fn goes_on(&mut self, end: u8) -> Option<bool> {
        let byte = self.peek()?;
        self.at += 1;
        match byte {
            b',' => Some(true),
            _ if byte == end => Some(false),
            _ => None,
        }
    }

    /// The rest of a string without escapes.
    fn until_quote(&mut self) -> Option<&'j [u8]> {
        let rest = &self.json[self.at..];
        let end = quote_or_escape(rest)?;
        if rest[end] != b'"' {
            return None;
        }
        self.at += end + 1;
        Some(&rest[..end])
    }

    /// The rest of a string.
    fn string(&mut self) -> Option<&[u8]> {
        let rest = &self.json[self.at..];
        let end = quote_or_escape(rest)?;
        if rest[end] == b'"' {
            self.at += end + 1;
            return Some(&rest[..end]);
        }
        self.string_with_escapes()
    }

    fn string_with_escapes(&mut self) -> Option<&[u8]> {
        self.unescaped.clear();
        loop {
            let rest = &self.json[self.at..];
            let end = quote_or_escape(rest)?;
            self.unescaped.extend_from_slice(&rest[..end]);
            self.at += end + 1;
            if rest[end] == b'"' {
                return Some(&self.unescaped);
            }
            self.escape()?;
        }
    }

    /// Resolves an escape whose backslash was taken.
    fn escape(&mut self) -> Option<()> {
        let kind = *self.json.get(self.at)?;
        self.at += 1;
        let byte = match kind {
            b'"' | b'\\' | b'/' => kind,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let digits = self.json.get(self.at..self.at + 4)?;
                self.at += 4;
                let code = digits
                    .iter()
                    .try_fold(0, |code, &digit| Some(code << 4 | char::from(digit).to_digit(16)?));
                let char = char::from_u32(code?)?;
                self.unescaped.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
                return Some(());
            }
            _ => return None,
        };
        self.unescaped.push(byte);
        Some(())
    }

    /// The text of a number. It may be wrong, except that it has no superfluous zeros.
    fn number(&mut self) -> Option<&'j [u8]> {
        let rest = &self.json[self.at..];
        let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        let end = rest.iter().position(|byte| !is_part(byte))?;
        self.at += end;
        let number = &rest[..end];
        let digits = number.strip_prefix(b"-").unwrap_or(number);
        (!matches!(digits, [b'0', b'0'..=b'9', ..])).then_some(number)
    }
}

/// The place of the first quote or backslash.
fn quote_or_escape(text: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::MAX / 0xff;
    /// The highest bit of each byte that is zero, and perhaps of bytes behind the first of them.
    const fn zeros(bytes: u64) -> u64 {
        bytes.wrapping_sub(ONES) & !bytes & (ONES << 7)
    }
    let (words, _) = text.as_chunks::<8>();
    let mut at = 0;
    for word in words.iter().take(SHORT_WORDS) {
        let word = u64::from_le_bytes(*word);
        let found = zeros(word ^ (ONES * b'"' as u64)) | zeros(word ^ (ONES * b'\\' as u64));
        if found != 0 {
            return Some(at + found.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    Some(at + memchr::memchr2(b'"', b'\\', &text[at..])?)
}

/// A decimal number of up to [`DIGITS_MAX`] digits.
fn whole(text: &[u8]) -> Option<i128> {
    let (is_negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    if digits.is_empty() || digits.len() > DIGITS_MAX {
        return None;
    }
    let value = digits.iter().try_fold(0_u64, |value, digit| {
        let digit = digit.wrapping_sub(b'0');
        (digit < 10).then(|| value * 10 + u64::from(digit))
    });
    let value = i128::from(value?);
    Some(if is_negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;

    /// A line of the Collector's file exporter, written by pdata 1.65.
    const COLLECTOR: &str = include_str!("../../../fuzz/corpus/json/collector-line");

    /// The same as a person would write it: in another order, with space, and names of before.
    const WRITTEN: &str = r#" {
        "resource_spans": [ { "scopeSpans": [ { "spans": [ {
            "name" : "\ud7ff\u00e9\/\b\f\r" , "kind": "SPAN_KIND_CLIENT", "trace_id": "5B8E",
            "attributes": [ { "value": { "doubleValue": -1.5e-3 }, "key": "k" }, { },
                { "value": { "doubleValue": "-Infinity" } }, { "value": { "intValue": -7 } } ],
            "startTimeUnixNano": 1544712660000000000, "events": [ ], "status": { "code": "2" }
        } ], "instrumentationLibrary": { } } ] } ]
    } "#;

    fn careful(json: &[u8]) -> Option<Vec<u8>> {
        super::super::convert(json).ok()
    }

    #[test]
    fn what_nearly_all_senders_write_is_plain() {
        for json in [COLLECTOR, WRITTEN, "{}", "{\"resourceSpans\":[]}"] {
            let request = convert(json.as_bytes());
            assert!(request.is_some(), "{json}");
            assert_eq!(request, careful(json.as_bytes()), "{json}");
        }
    }

    /// Each number, as a member of a span, means the same here, or is left to serde_json.
    #[test]
    fn numbers_mean_the_same() {
        let numbers = [
            "0",
            "-0",
            "00",
            "01",
            "-01",
            "-",
            "",
            "+1",
            "1.",
            "1.0",
            "1e2",
            "1E400",
            "1-2",
            "7 ",
            "2147483648",
            "9223372036854775808",
            "18446744073709551615",
            "99999999999999999999",
            "0.1",
            "-1",
            "nan",
            "inf",
            "Infinity",
            "1_0",
            "SPAN_KIND_SERVER",
        ];
        let mut plain_ones = 0;
        for number in
            numbers.iter().flat_map(|number| [(*number).to_owned(), format!("\"{number}\"")])
        {
            for member in ["kind", "flags", "endTimeUnixNano", "droppedLinksCount"] {
                let json = format!("\"{member}\":{number}");
                plain_ones += usize::from(compare(&json));
            }
            for member in ["intValue", "doubleValue", "boolValue", "stringValueStrindex"] {
                let json = format!("\"attributes\":[{{\"value\":{{\"{member}\":{number}}}}}]");
                plain_ones += usize::from(compare(&json));
            }
        }
        assert!(plain_ones > 80, "{plain_ones}");
    }

    /// Compares a span of these members, and returns whether it is plain.
    fn compare(members: &str) -> bool {
        let json =
            format!("{{\"resourceSpans\":[{{\"scopeSpans\":[{{\"spans\":[{{{members}}}]}}]}}]}}");
        let request = convert(json.as_bytes());
        assert!(request.is_none() || request == careful(json.as_bytes()), "{json}");
        request.is_some()
    }

    /// Scenario: documents in which a few bytes were replaced, removed, added or repeated.
    /// Guarantees: they mean what serde_json reads, or they are left to it.
    #[test]
    fn changed_documents_mean_the_same() {
        const PIECES: [&str; 16] = [
            "\"", "\\", "\\u00e9", "\\ud800", "{", "}", "[", "]", ",", ":", "null", "\"a\":1,",
            " ", "0", "\u{1}", "é",
        ];
        let mut rng = Rng::with_seed(7);
        let mut plain_ones = 0;
        for _ in 0..4_000 {
            let mut json = rng.choice([COLLECTOR, WRITTEN]).unwrap_or_default().as_bytes().to_vec();
            for _ in 0..rng.usize(1..3) {
                let at = rng.usize(..json.len());
                let end = json.len().min(at + rng.usize(..4));
                let piece = match rng.u8(..4) {
                    0 => vec![rng.u8(..)],
                    1 => json[at..end].repeat(2),
                    2 => Vec::new(),
                    _ => rng.choice(PIECES).unwrap_or_default().as_bytes().to_vec(),
                };
                json.splice(at..end, piece);
            }
            let request = convert(&json);
            let text = String::from_utf8_lossy(&json);
            assert!(request.is_none() || request == careful(&json), "{text}");
            plain_ones += usize::from(request.is_some());
        }
        assert!(plain_ones > 400, "{plain_ones}");
    }
}
