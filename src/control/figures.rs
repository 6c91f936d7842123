//! Formats figures for people.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;

/// An integer with commas between thousands.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A rate per second: an integer from ten on, with one decimal below.
pub(crate) fn rate(per_second: f64) -> String {
    match per_second {
        r if r > 0.0 && r < 9.95 => format!("{r:.1}"),
        r => count(r.round() as u64),
    }
}

/// Bytes in the largest binary unit in which the number is at least 1.
pub(crate) fn bytes(bytes: u64) -> String {
    let units = [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} B"),
    }
}

/// A percentage from 0 to 100. Small ones keep two significant digits; only exactly 0 and 100 are
/// written as `0 %` and `100 %`.
pub(crate) fn percentage(percentage: f64) -> String {
    if percentage <= 0.0 || percentage >= 100.0 {
        return format!("{percentage:.0} %");
    }
    let rounded = match percentage {
        p if p < 1.0 => format!("{:.*}", (1.0 - p.log10().floor()).min(15.0) as usize, p),
        p => format!("{p:.1}"),
    };
    let rounded = rounded.trim_end_matches('0').trim_end_matches('.');
    // A share of 99.99 must not be shown as 100 %.
    if rounded == "100" { "99.9 %".into() } else { format!("{rounded} %") }
}

/// The share of a part in a whole, as a percentage.
pub(crate) fn share(part: u64, whole: u64) -> String {
    if whole == 0 { "–".into() } else { percentage(part as f64 / whole as f64 * 100.0) }
}

/// A duration in its two largest units.
pub(crate) fn duration(duration: Duration) -> String {
    let duration = match duration {
        d if d >= Duration::from_secs(10) => Duration::from_secs(d.as_secs()),
        d if d >= Duration::from_millis(1) => Duration::from_millis(d.as_millis() as u64),
        d => d,
    };
    let text = humantime::format_duration(duration).to_string();
    let units: Vec<_> = text.split(' ').take(2).collect();
    units.join(" ")
}

/// A time in Unix milliseconds; 0 before 1970.
pub(crate) fn millis(moment: &Timestamp) -> u64 {
    let Ok(seconds) = u64::try_from(moment.seconds) else { return 0 };
    seconds.saturating_mul(1_000).saturating_add(moment.nanos.max(0) as u64 / 1_000_000)
}

/// The time that has passed since `then`, in its two largest units; `now` is in Unix milliseconds.
/// "0s" if `then` is unknown or in the future.
pub(crate) fn since(then: Option<&Timestamp>, now: u64) -> String {
    let passed = then.map_or(0, |then| now.saturating_sub(millis(then)));
    duration(Duration::from_secs(passed / 1_000))
}

/// A time in RFC 3339, in UTC.
pub(crate) fn moment(then: &Timestamp) -> String {
    match SystemTime::try_from(*then) {
        Ok(then) => humantime::format_rfc3339_seconds(then).to_string(),
        Err(_) => "unknown".into(),
    }
}

/// Converts a duration, unless it is negative or not normalized. The conversion of prost-types
/// panics on the smallest numbers.
pub(crate) fn length(of: &prost_types::Duration) -> Option<Duration> {
    let nanos = u32::try_from(of.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(u64::try_from(of.seconds).ok()?, nanos))
}

/// A time in RFC 3339 with milliseconds, in UTC.
pub(crate) fn moment_exact(at: &Timestamp) -> String {
    let at = UNIX_EPOCH.checked_add(Duration::from_millis(millis(at))).unwrap_or(UNIX_EPOCH);
    humantime::format_rfc3339_millis(at).to_string()
}

/// A number of spans in words.
pub(crate) fn spans_of(number: u64) -> String {
    if number == 1 { "1 span".to_owned() } else { format!("{number} spans") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_rounded_and_never_promise_more() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0.0, 9.94, 9.96, 1234.4].map(rate), ["0", "9.9", "10", "1,234"]);
        assert_eq!([1023, 1 << 10, 3 << 29].map(bytes), ["1023 B", "1.0 KiB", "1.5 GiB"]);
        let percentages = [0.0, 0.0123, 0.5, 10.0, 33.333, 99.99, 100.0].map(percentage);
        let expected = ["0 %", "0.012 %", "0.5 %", "10 %", "33.3 %", "99.9 %", "100 %"];
        assert_eq!(percentages, expected);
        assert_eq!([share(1, 0), share(1, 8)], ["–", "12.5 %"]);
        let durations = [90_061, 1_500].map(|millis| duration(Duration::from_millis(millis)));
        assert_eq!(durations, ["1m 30s", "1s 500ms"]);
    }
}
