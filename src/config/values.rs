//! What a single value may be: conversions from TOML to the types of the configuration.
//!
//! Each takes the key it stands under, for the message, and says in it what would be right: the
//! bounds, the unit, the alternatives.

use std::{
    fmt::Display,
    net::{Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    time::Duration,
};

use http::{HeaderName, HeaderValue, uri::PathAndQuery};
use toml::de::{DeInteger, DeValue};

use super::diagnostics::{Problem, did_you_mean, quote};
use crate::policy::Number;

/// "`key` must be ..., found ...".
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
        return Err(wrong_type(key, "an integer", value).maybe_hint(plain_number(key, value)));
    };
    as_i128(written).and_then(|n| T::try_from(n).ok()).filter(|n| range.contains(n)).ok_or_else(
        || {
            let (min, max) = (range.start(), range.end());
            let digits = quote(written.as_str());
            Problem::new(format!("`{key}` must be between {min} and {max}, found {digits}"))
        },
    )
}

/// How to write a number that stands in quotes.
fn plain_number(key: &str, value: &DeValue<'_>) -> Option<String> {
    let text = value.as_str()?;
    match humantime::parse_duration(text) {
        Ok(duration) if key.ends_with("_ms") => {
            Some(format!("write {}, in milliseconds and without quotes", duration.as_millis()))
        }
        _ => Some("write the number without quotes or unit".to_owned()),
    }
}

fn as_i128(integer: &DeInteger<'_>) -> Option<i128> {
    i128::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// An integer or a float, of the type in which it is written.
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
            let is_quoted = value.as_str().is_some_and(|text| text.parse::<f64>().is_ok());
            let hint = is_quoted.then(|| "write the number without quotes".to_owned());
            Err(wrong_type(key, "a number", value).maybe_hint(hint))
        }
    }
}

/// Per cent: an integer or a float within 0..=100.
pub(super) fn percentage(key: &str, value: &DeValue<'_>) -> Result<f64, Problem> {
    let written = match value {
        DeValue::Integer(integer) => as_i128(integer).map(|n| n as f64),
        DeValue::Float(float) => float.as_str().parse().ok(),
        DeValue::String(text) => {
            let number = text.trim().trim_end_matches('%').trim_end();
            let hint = number.parse::<f64>().ok().map(|n| format!("write {n} without quotes"));
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

/// host:port to listen on; port 0 lets the system choose.
pub(super) fn listener(key: &str, text: &str) -> Result<String, Problem> {
    let wanted = format!("`{key}` must be host:port, found {}", quote(text));
    match text.split_once("://") {
        Some((_, rest)) => {
            Err(Problem::new(wanted).hint(format!("leave the scheme out: \"{rest}\"")))
        }
        None => host_and_port(text)
            .map(|_| text.to_owned())
            .map_err(|hint| Problem::new(wanted).hint(hint)),
    }
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
        _ => Err(wanted().hint("percent-encode what is no letter, and leave `?` and `#` out")),
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
    // `*` would be a name as well.
    if text == "*" || !text.contains('*') && HeaderName::from_bytes(text.as_bytes()).is_ok() {
        return Ok(());
    }
    let message = format!("{} is not the name of a header", quote(text));
    Err(Problem::new(message).hint("names are ASCII letters, digits, `-` and `_`; `*` is all"))
}

/// http://host:port, or https://, to export to.
pub(super) fn exporter_endpoint(key: &str, text: &str) -> Result<String, Problem> {
    let wanted =
        || Problem::new(format!("`{key}` must be http://host:port, found {}", quote(text)));
    let Some((scheme, address)) = text.split_once("://") else {
        return Err(wanted().hint(format!("add the scheme: \"http://{text}\"")));
    };
    if !matches!(scheme, "http" | "https") {
        return Err(wanted());
    }
    match address.split_once('/') {
        Some((address, _)) => {
            Err(wanted().hint(format!("OTLP/gRPC has no path: \"{scheme}://{address}\"")))
        }
        None => match host_and_port(address) {
            Ok(0) => Err(wanted().hint("port 0 cannot be connected to")),
            Ok(_) => Ok(text.to_owned()),
            Err(hint) => Err(wanted().hint(hint)),
        },
    }
}

/// The port of a valid host:port, else a hint.
fn host_and_port(text: &str) -> Result<u16, String> {
    let Some((host, port)) = text.rsplit_once(':').filter(|(host, _)| !has_open_bracket(host))
    else {
        return Err(format!("add the port, such as \"{text}:4317\""));
    };
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let Some(port) = port.parse().ok().filter(|_| digits) else {
        return Err("the port is a number between 0 and 65535".to_owned());
    };
    if host.is_empty() {
        return Err(format!("for every address of this machine write \"0.0.0.0:{port}\""));
    }
    if host.parse::<Ipv6Addr>().is_ok() {
        return Err(format!("an IPv6 address stands in brackets: \"[{host}]:{port}\""));
    }
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) if address.parse::<Ipv6Addr>().is_ok() => Ok(port),
        None if is_host(host) => Ok(port),
        _ => Err("the host is a name, an IPv4 address, or an IPv6 address in brackets".to_owned()),
    }
}

fn has_open_bracket(host: &str) -> bool {
    host.starts_with('[') && !host.ends_with(']')
}

/// A host name or an IPv4 address.
fn is_host(host: &str) -> bool {
    // A name whose last label is all digits can only be an attempt at an IPv4 address (RFC 3696,
    // 2).
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|b| b.is_ascii_digit()) {
        return host.parse::<Ipv4Addr>().is_ok();
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    host.len() <= 253 && host.bytes().all(allowed) && !host.starts_with(['.', '-'])
}

/// The name of an exported header, lower-cased as HTTP/2 wants it.
pub(super) fn header_name(text: &str) -> Result<String, Problem> {
    let Ok(name) = HeaderName::from_bytes(text.as_bytes()) else {
        let message = format!("{} is not the name of a header", quote(text));
        return Err(Problem::new(message).hint("names are ASCII letters, digits, `-` and `_`"));
    };
    let name = name.as_str();
    // gRPC owns these: a second one makes requests that servers refuse or read differently.
    let of_grpc =
        ["content-type", "content-length", "te", "host", "connection", "transfer-encoding"];
    if of_grpc.contains(&name) || name.starts_with("grpc-") || name.ends_with("-bin") {
        return Err(Problem::new(format!("the header {} is gRPC's own", quote(text))));
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
