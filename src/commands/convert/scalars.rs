//! Reads YAML scalars as the Collector does: its parser follows YAML 1.1 for numbers, so `0500` is
//! 320, and YAML 1.2 for booleans, so `yes` is a string.
//!
//! Source: resolve.go of go.yaml.in/yaml/v3.

use super::yaml::Scalar;

/// A scalar by its type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Null,
    Boolean(bool),
    Integer(i64),
    Float(f64),
    /// A date, as in `2026-01-31`.
    Date,
    Text,
}

impl Scalar {
    /// The value that the Collector reads.
    pub(super) fn kind(&self) -> Kind {
        if self.is_plain { kind(&self.text) } else { Kind::Text }
    }

    /// The value that the Collector would read if the scalar had no quotes.
    pub(super) fn unquoted(&self) -> Kind {
        kind(&self.text)
    }
}

fn kind(text: &str) -> Kind {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Kind::Null,
        "true" | "True" | "TRUE" => Kind::Boolean(true),
        "false" | "False" | "FALSE" => Kind::Boolean(false),
        ".nan" | ".NaN" | ".NAN" => Kind::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => Kind::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => Kind::Float(f64::NEG_INFINITY),
        _ if !text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) => Kind::Text,
        _ if is_date(text) => Kind::Date,
        _ => number(&text.replace('_', "")),
    }
}

fn number(text: &str) -> Kind {
    let unsigned = text.trim_start_matches(['+', '-']);
    if text.len() - unsigned.len() > 1 {
        return Kind::Text;
    }
    let sign = if text.starts_with('-') { -1 } else { 1 };
    let (digits, base) = match unsigned.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&unsigned[2..], 16),
        [b'0', b'o' | b'O', ..] => (&unsigned[2..], 8),
        [b'0', b'b' | b'B', ..] => (&unsigned[2..], 2),
        [b'0', _, ..] => (&unsigned[1..], 8),
        _ => (unsigned, 10),
    };
    let is_number = digits.starts_with(|c: char| c.is_ascii_alphanumeric());
    let parsed = is_number.then(|| i128::from_str_radix(digits, base).ok()).flatten();
    match parsed.and_then(|number| i64::try_from(sign * number).ok()) {
        Some(number) => Kind::Integer(number),
        None if is_float(unsigned) => text.parse().map_or(Kind::Text, Kind::Float),
        None => Kind::Text,
    }
}

/// Digits with at most one point, and an exponent.
fn is_float(unsigned: &str) -> bool {
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => {
            (mantissa, exponent.strip_prefix(['+', '-']).unwrap_or(exponent))
        }
        None => (unsigned, "0"),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    let are_digits = |text: &str| text.bytes().all(|c| c.is_ascii_digit());
    let has_digits = !whole.is_empty() || !fraction.is_empty();
    has_digits
        && are_digits(whole)
        && are_digits(fraction)
        && !exponent.is_empty()
        && are_digits(exponent)
}

/// `2026-1-31`, with or without a time after it.
fn is_date(text: &str) -> bool {
    let mut parts = text.splitn(3, '-');
    let mut digits = |least: usize, most: usize, is_last: bool| {
        let part = parts.next().unwrap_or_default();
        let count = part.bytes().take_while(u8::is_ascii_digit).count();
        let ends =
            part[count..].is_empty() || is_last && part[count..].starts_with(['T', 't', ' ']);
        (least..=most).contains(&count) && ends
    };
    digits(4, 4, false) && digits(1, 2, false) && digits(1, 2, true)
}

#[cfg(test)]
mod tests {
    use super::{Kind, kind};

    #[test]
    fn scalars_have_the_types_that_the_collector_gives_them() {
        for (text, wanted) in [
            ("500", Kind::Integer(500)),
            ("+5", Kind::Integer(5)),
            ("-5", Kind::Integer(-5)),
            ("0", Kind::Integer(0)),
            ("0500", Kind::Integer(320)),
            ("-010", Kind::Integer(-8)),
            ("0o500", Kind::Integer(320)),
            ("0x1F4", Kind::Integer(500)),
            ("0b101", Kind::Integer(5)),
            ("1_000", Kind::Integer(1000)),
            ("-9223372036854775808", Kind::Integer(i64::MIN)),
            ("0900", Kind::Float(900.0)),
            ("1e3", Kind::Float(1000.0)),
            (".5", Kind::Float(0.5)),
            ("5.", Kind::Float(5.0)),
            ("9223372036854775808", Kind::Float(9_223_372_036_854_775_808.0)),
            (".inf", Kind::Float(f64::INFINITY)),
            ("True", Kind::Boolean(true)),
            ("~", Kind::Null),
            ("2026-01-31", Kind::Date),
            ("2026-1-3 10:00:00", Kind::Date),
        ] {
            assert_eq!(kind(text), wanted, "{text}");
        }
        for text in [
            "yes", "on", "5s", "0x", "1-2", "--5", "+-5", ".", "e5", "1e", "tRUE", "inf",
            "2026-01", "4..",
        ] {
            assert_eq!(kind(text), Kind::Text, "{text}");
        }
    }
}
