//! Converts single TOML values to the types of the configuration.
//!
//! Each function takes the key for its error message, which says what would be valid: the bounds,
//! the unit, the alternatives.

use std::{
    fmt::Display,
    ops::RangeInclusive,
    time::{Duration, UNIX_EPOCH},
};

use http::{HeaderName, HeaderValue, uri::PathAndQuery};
use toml::{
    de::{DeInteger, DeValue},
    value::{Datetime, Offset},
};

use super::diagnostics::{Problem, did_you_mean, quote};
use crate::policy::Number;

/// The problem "`key` must be ..., found ...".
pub(super) fn wrong_type(key: &str, wanted: &str, found: &DeValue<'_>) -> Problem {
    let found = match found {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    };
    Problem::new(format!("`{key}` must be {wanted}, found {found}"))
}

pub(super) fn boolean(key: &str, value: &DeValue<'_>) -> Result<bool, Problem> {
    match value {
        DeValue::Boolean(value) => Ok(*value),
        DeValue::String(text) if *text == "true" || *text == "false" => {
            Err(wrong_type(key, "true or false", value)
                .hint(format!("write {text} without quotes")))
        }
        _ => Err(wrong_type(key, "true or false", value)),
    }
}

pub(super) fn string<'v>(key: &str, value: &'v DeValue<'_>) -> Result<&'v str, Problem> {
    value.as_str().ok_or_else(|| wrong_type(key, "a string", value))
}

/// An integer within `range`, in any of TOML's notations.
pub(super) fn integer<T>(
    key: &str,
    value: &DeValue<'_>,
    range: RangeInclusive<T>,
) -> Result<T, Problem>
where
    T: TryFrom<i128> + PartialOrd + Display,
{
    let DeValue::Integer(written) = value else {
        let fits = |n: i128| T::try_from(n).is_ok_and(|n| range.contains(&n));
        let (min, max) = (range.start(), range.end());
        let hint = value.as_str().map(|text| {
            plain_number(key, text, fits).unwrap_or_else(|| {
                format!("write a number between {min} and {max}, without quotes or unit")
            })
        });
        return Err(wrong_type(key, "an integer", value).maybe_hint(hint));
    };
    as_i128(written).and_then(|n| T::try_from(n).ok()).filter(|n| range.contains(n)).ok_or_else(
        || {
            let (min, max) = (range.start(), range.end());
            let digits = quote(written.as_str());
            Problem::new(format!("`{key}` must be between {min} and {max}, found {digits}"))
        },
    )
}

/// How to write a quoted number correctly, if it would be valid.
fn plain_number(key: &str, text: &str, fits: impl Fn(i128) -> bool) -> Option<String> {
    if let Some(duration) = humantime::parse_duration(text).ok().filter(|_| key.ends_with("_ms")) {
        let millis = duration.as_millis();
        return i128::try_from(millis)
            .is_ok_and(fits)
            .then(|| format!("write {millis}, in milliseconds and without quotes"));
    }
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let fits = text[..end].parse().is_ok_and(fits);
    fits.then(|| "write the number without quotes or unit".to_owned())
}

fn as_i128(integer: &DeInteger<'_>) -> Option<i128> {
    i128::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// An integer or a float, in the type in which it is written.
pub(super) fn number(key: &str, value: &DeValue<'_>) -> Result<Number, Problem> {
    match value {
        DeValue::Integer(_) => integer(key, value, i64::MIN..=i64::MAX).map(Number::Int),
        DeValue::Float(float) => match float.as_str().parse() {
            Ok(number) if f64::is_finite(number) => Ok(Number::Double(number)),
            _ => {
                let found = quote(float.as_str());
                let message = format!("`{key}` must be a finite number, found {found}");
                Err(Problem::new(message).hint("for no bound leave the key out"))
            }
        },
        _ => {
            let number = value.as_str().and_then(|text| text.trim().parse::<f64>().ok());
            let number = number.filter(|number| number.is_finite());
            // Parsed as TOML does: beyond 64 bits only with an exponent.
            let hint = number.map(|number| match number.abs() < 1e15 {
                true => format!("write {number} without quotes"),
                false => format!("write {number:e} without quotes"),
            });
            Err(wrong_type(key, "a number", value).maybe_hint(hint))
        }
    }
}

/// A percentage: an integer or a float within 0..=100.
pub(super) fn percentage(key: &str, value: &DeValue<'_>) -> Result<f64, Problem> {
    let written = match value {
        DeValue::Integer(integer) => as_i128(integer).map(|n| n as f64),
        DeValue::Float(float) => float.as_str().parse().ok(),
        DeValue::String(text) => {
            let number = text.trim().trim_end_matches('%').trim_end();
            let number = number.parse::<f64>().ok().filter(|n| (0.0..=100.0).contains(n));
            let hint = number.map(|n| format!("write {} without quotes", n + 0.0));
            return Err(wrong_type(key, "a number", value).maybe_hint(hint));
        }
        _ => return Err(wrong_type(key, "a number", value)),
    };
    // Adding zero turns -0.0 into 0.0.
    written
        .filter(|n| (0.0..=100.0).contains(n))
        .map(|n| n + 0.0)
        .ok_or_else(|| Problem::new(format!("`{key}` must be between 0 and 100")))
}

/// The text of a duration.
pub(super) fn duration_text<'v>(key: &str, value: &'v DeValue<'_>) -> Result<&'v str, Problem> {
    value.as_str().ok_or_else(|| {
        wrong_type(key, "a duration in quotes", value)
            .hint(r#"write a number and its unit, such as "500ms" or "30s""#)
    })
}

/// A duration within `range`, as text such as "500ms" or "1m 30s".
pub(super) fn duration(
    key: &str,
    text: &str,
    range: RangeInclusive<Duration>,
) -> Result<Duration, Problem> {
    let parsed = humantime::parse_duration(text).map_err(|error| {
        Problem::new(format!("`{key}` must be a duration, found {}: {error}", quote(text)))
            .hint(r#"write a number and its unit, such as "500ms", "30s" or "5m""#)
    })?;
    if range.contains(&parsed) {
        return Ok(parsed);
    }
    let min = humantime::format_duration(*range.start());
    let max = humantime::format_duration(*range.end());
    Err(Problem::new(format!("`{key}` must be between {min} and {max}, found {}", quote(text))))
}

/// A date-time with an offset, as Unix milliseconds.
pub(super) fn instant(key: &str, value: &DeValue<'_>) -> Result<u64, Problem> {
    let wanted = |value| wrong_type(key, "a date and time with an offset from UTC", value);
    let written = match value {
        DeValue::Datetime(written) => written,
        DeValue::String(text) if text.parse::<Datetime>().is_ok() => {
            return Err(wanted(value).hint(format!("write {text} without quotes")));
        }
        _ => return Err(wanted(value).hint(format!("write {key} = 2026-12-24T18:00:00Z"))),
    };
    let (Some(date), Some(time)) = (written.date, written.time) else {
        return Err(wanted(value).hint(format!("write {key} = 2026-12-24T18:00:00Z")));
    };
    let Some(offset) = written.offset else {
        let message =
            format!("`{key}` has no offset from UTC: {written} is another time in each zone");
        return Err(Problem::new(message)
            .hint(format!("write {written}Z for UTC, or an offset such as {written}+01:00")));
    };
    let minutes = match offset {
        Offset::Z => 0,
        Offset::Custom { minutes } => i64::from(minutes),
    };
    // TOML allows leaving out the seconds.
    let seconds = time.second.unwrap_or(0);
    let as_utc = format!("{date}T{:02}:{:02}:{seconds:02}Z", time.hour, time.minute);
    let millis = humantime::parse_rfc3339(&as_utc).ok().and_then(|as_utc| {
        let since = as_utc.duration_since(UNIX_EPOCH).ok()?.as_millis();
        let fraction = i64::from(time.nanosecond.unwrap_or(0) / 1_000_000);
        let millis = i64::try_from(since).ok()? + fraction - minutes * 60_000;
        u64::try_from(millis).ok()
    });
    millis.ok_or_else(|| Problem::new(format!("`{key}` must be after 1970, found {written}")))
}

/// One of a few words.
pub(super) fn choice<T: Copy>(
    key: &str,
    text: &str,
    choices: &[(&'static str, T)],
) -> Result<T, Problem> {
    if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let words: Vec<String> = choices.iter().map(|(word, _)| format!("`{word}`")).collect();
    let message = format!("`{key}` must be one of {}, found {}", words.join(", "), quote(text));
    Err(Problem::new(message).maybe_hint(did_you_mean(text, choices.iter().map(|(word, _)| *word))))
}

/// The path of a URL.
pub(super) fn url_path(key: &str, text: &str) -> Result<String, Problem> {
    let wanted = || Problem::new(format!("`{key}` must be a path, found {}", quote(text)));
    if text.contains("://") {
        return Err(wanted().hint("leave the scheme and the host out: \"/v1/traces\""));
    }
    if !text.starts_with('/') {
        return Err(wanted().hint(format!("begin with a slash: \"/{text}\"")));
    }
    match text.parse::<PathAndQuery>() {
        Ok(parsed) if parsed.path() == text => Ok(text.to_owned()),
        _ => Err(wanted().hint("percent-encode special characters, and leave `?` and `#` out")),
    }
}

/// An origin as browsers send it, with at most one `*` for any characters.
pub(super) fn origin(text: &str) -> Result<(), Problem> {
    let wanted = || {
        let message = format!("an origin must be https://host:port or `*`, found {}", quote(text));
        Problem::new(message)
    };
    if text == "*" {
        return Ok(());
    }
    let Some((scheme, host)) = text.split_once("://").filter(|(scheme, _)| !scheme.is_empty())
    else {
        return Err(wanted().hint(format!("add the scheme: \"https://{text}\"")));
    };
    if text.matches('*').count() > 1 {
        return Err(wanted().hint("an origin may have one `*`, which stands for any characters"));
    }
    if let Some((host, _)) = host.split_once('/') {
        return Err(wanted().hint(format!("origins have no path: \"{scheme}://{host}\"")));
    }
    let is_good = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'@' | b',');
    if host.is_empty() || !text.bytes().all(is_good) {
        return Err(wanted());
    }
    Ok(())
}

/// The name of a header that browsers may send, or `*`.
pub(super) fn allowed_header(text: &str) -> Result<(), Problem> {
    // A name with `*` would also be a valid header name.
    if text == "*" || !text.contains('*') && HeaderName::from_bytes(text.as_bytes()).is_ok() {
        return Ok(());
    }
    let message = format!("{} is not the name of a header", quote(text));
    Err(Problem::new(message).hint("names are ASCII letters, digits, `-` and `_`; `*` is all"))
}

/// The name of an exported header, lower-cased as HTTP/2 wants it.
pub(super) fn header_name(text: &str) -> Result<String, Problem> {
    let Ok(name) = HeaderName::from_bytes(text.as_bytes()) else {
        let message = format!("{} is not the name of a header", quote(text));
        return Err(Problem::new(message).hint("names are ASCII letters, digits, `-` and `_`"));
    };
    let name = name.as_str();
    // The protocols set these headers. A duplicate makes servers refuse or misread the request.
    let owned = [
        "content-type",
        "content-encoding",
        "content-length",
        "te",
        "host",
        "connection",
        "transfer-encoding",
    ];
    if owned.contains(&name) || name.starts_with("grpc-") || name.ends_with("-bin") {
        return Err(Problem::new(format!("the header {} is the protocol's own", quote(text))));
    }
    Ok(name.to_owned())
}

/// The value of an exported header. It may be a secret, so that no message quotes it.
pub(super) fn header_value(name: &str, text: &str) -> Result<String, Problem> {
    let visible = text.bytes().all(|b| (b' '..=b'~').contains(&b));
    if !visible || HeaderValue::from_str(text).is_err() || text != text.trim() {
        let message =
            format!("the value of {} must be visible ASCII, without spaces around it", quote(name));
        return Err(Problem::new(message));
    }
    Ok(text.to_owned())
}
