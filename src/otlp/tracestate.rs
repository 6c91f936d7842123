//! The `ot` member of `tracestate`: reads `rv` and `th`, and writes the stamp of a kept span.
//!
//! Members of other vendors are never removed, changed or reordered among themselves. `ot` moves to
//! the front, as W3C requires for a changed member. A list that cannot be parsed is exported
//! unchanged: a wrong threshold would skew every count that is computed from it, while a missing
//! one is only counted.
//!
//! Sources: OpenTelemetry specification, "TraceState Handling" (`ot`, at most 256 characters) and
//! "TraceState: Probability Sampling" (`th`: 1 to 14 hexadecimal digits, `rv`: exactly 14); W3C
//! Trace Context (32 members).

use std::fmt::Write as _;

use crate::trace::{Randomness, Threshold};

const OT_CHARS_MAX: usize = 256;
const MEMBERS_MAX: usize = 32;

/// The list or its `ot` member violates the specifications, or would violate them after stamping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tracestate cannot be stamped")]
pub struct Unstampable;

/// The stamp of a kept span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The threshold that kept the trace.
    pub threshold: Threshold,
    /// The randomness that was compared with the threshold.
    pub randomness: Randomness,
    /// Whether the randomness came from an `rv`, so spans without an `rv` get it.
    pub explicit: bool,
}

/// The parts of the `ot` member.
#[derive(Debug, Default)]
struct OtMember<'a> {
    threshold: Option<Threshold>,
    randomness: Option<Randomness>,
    /// Sub-members other than a `th` and the first valid `rv`.
    others: Vec<&'a str>,
}

/// The explicit randomness of a span: its `ot=rv`, if there is exactly one `ot` and its `rv` is
/// valid.
#[inline]
pub fn randomness(trace_state: &[u8]) -> Option<Randomness> {
    // Nearly all spans have no tracestate, and most of the others have no `rv`.
    if trace_state.len() < "ot=rv:".len() + 14 {
        return None;
    }
    only_ot(trace_state)?.split(';').find_map(|pair| parse_randomness(pair.strip_prefix("rv:")?))
}

/// The threshold of a span that was sampled before: its `ot=th`, if the list has exactly one valid
/// `ot` member.
pub(crate) fn threshold(trace_state: &[u8]) -> Option<Threshold> {
    if trace_state.len() < "ot=th:0".len() {
        return None;
    }
    parse_ot(only_ot(trace_state)?).ok()?.threshold
}

/// The value of `ot`, if there is exactly one.
fn only_ot(trace_state: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(trace_state).ok()?;
    let mut found = members(text).filter_map(ot_value);
    let value = found.next()?;
    found.next().is_none().then_some(value)
}

/// Clears `out` and writes the stamped list to it. Returns whether an incoming `th` above the
/// trace's randomness had to be erased.
///
/// # Errors
/// [`Unstampable`] if the list has to be exported unchanged.
pub fn stamp(trace_state: &[u8], stamp: &Stamp, out: &mut String) -> Result<bool, Unstampable> {
    out.clear();
    let text = std::str::from_utf8(trace_state).map_err(|_| Unstampable)?;
    let mut ot = None;
    let mut count = 1;
    for member in members(text) {
        if !is_ot(member) {
            count += 1;
            continue;
        }
        let value = ot_value(member).ok_or(Unstampable)?;
        if ot.replace(parse_ot(value)?).is_some() {
            return Err(Unstampable);
        }
    }
    let ot = ot.unwrap_or_default();
    let incoming = ot.threshold.unwrap_or(Threshold::ALWAYS);
    let inconsistent = !incoming.keeps(stamp.randomness);
    let threshold = if inconsistent { stamp.threshold } else { stamp.threshold.max(incoming) };
    let randomness = ot.randomness.or(stamp.explicit.then_some(stamp.randomness));
    // Writing to a String cannot fail.
    let _ = write!(out, "ot=th:{threshold}");
    if let Some(randomness) = randomness {
        let _ = write!(out, ";rv:{randomness}");
    }
    // An invalid `rv` is kept like other sub-members, unless a valid one replaces it.
    for other in ot.others.iter().filter(|o| randomness.is_none() || key_of(o, ':') != "rv") {
        let _ = write!(out, ";{other}");
    }
    if out.len() - "ot=".len() > OT_CHARS_MAX || count > MEMBERS_MAX {
        return Err(Unstampable);
    }
    for member in members(text).filter(|member| !is_ot(member)) {
        out.push(',');
        out.push_str(member);
    }
    Ok(inconsistent)
}

/// The keys of a list with their values, both without the white space that W3C allows around a
/// member. Members without `=`, and lists that are not UTF-8, yield nothing.
pub(crate) fn pairs(trace_state: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    let text = std::str::from_utf8(trace_state).unwrap_or_default();
    members(text).filter_map(|member| member.split_once('='))
}

/// The members of a list, without white space and without the empty members that W3C allows.
fn members(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(|member| member.trim_matches([' ', '\t'])).filter(|m| !m.is_empty())
}

/// Whether a member is `ot`, even if it has no value or has white space around its key. Lenient
/// readers would otherwise see a stamp beside it as a second `ot`.
fn is_ot(member: &str) -> bool {
    key_of(member, '=') == "ot"
}

/// The key of a pair, without the white space around it; the whole pair if there is no separator.
fn key_of(pair: &str, separator: char) -> &str {
    pair.split(separator).next().unwrap_or_default().trim_matches([' ', '\t'])
}

fn ot_value(member: &str) -> Option<&str> {
    member.strip_prefix("ot=")
}

fn parse_ot(value: &str) -> Result<OtMember<'_>, Unstampable> {
    let mut ot = OtMember::default();
    for pair in value.split(';').filter(|pair| !pair.is_empty()) {
        if key_of(pair, ':') == "th" {
            let digits = pair.strip_prefix("th:").ok_or(Unstampable)?;
            let threshold = parse_threshold(digits).ok_or(Unstampable)?;
            if ot.threshold.replace(threshold).is_some() {
                return Err(Unstampable);
            }
            continue;
        }
        match pair.strip_prefix("rv:").and_then(parse_randomness) {
            Some(randomness) if ot.randomness.is_none() => ot.randomness = Some(randomness),
            // Each sub-member takes more than one character, so a valid value cannot hold this
            // many.
            _ if ot.others.len() >= OT_CHARS_MAX => return Err(Unstampable),
            _ => ot.others.push(pair),
        }
    }
    Ok(ot)
}

fn parse_threshold(digits: &str) -> Option<Threshold> {
    if digits.is_empty() || digits.len() > 14 {
        return None;
    }
    let missing = 4 * (14 - digits.len());
    Some(Threshold::from_bits(lower_hex(digits)? << missing))
}

fn parse_randomness(digits: &str) -> Option<Randomness> {
    if digits.len() != 14 {
        return None;
    }
    lower_hex(digits).map(Randomness)
}

fn lower_hex(digits: &str) -> Option<u64> {
    if !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const R: Randomness = Randomness(0x00ef_0000_0000_0000);

    fn stamped(list: &str, percentage: f64, explicit: bool) -> Result<(String, bool), Unstampable> {
        let threshold = Threshold::from_percentage(percentage);
        let mut out = String::new();
        let by = Stamp { threshold, randomness: R, explicit };
        stamp(list.as_bytes(), &by, &mut out).map(|inconsistent| (out, inconsistent))
    }

    #[test]
    fn a_stamp_goes_to_the_front_and_others_stay() {
        for (list, percentage, explicit, expected) in [
            ("", 100.0, false, "ot=th:0"),
            ("", 10.0, false, "ot=th:e6666666666666"),
            ("", 10.0, true, "ot=th:e6666666666666;rv:ef000000000000"),
            ("a=1, b=2 ,,c=3", 50.0, false, "ot=th:8,a=1,b=2,c=3"),
            (
                "a=1,ot=th:c;rv:ef000000000000;x:y,b=2",
                50.0,
                true,
                "ot=th:c;rv:ef000000000000;x:y,a=1,b=2",
            ),
            ("ot=th:4", 50.0, false, "ot=th:8"),
            ("ot=rv:bad", 50.0, false, "ot=th:8;rv:bad"),
            ("ot=rv:bad", 50.0, true, "ot=th:8;rv:ef000000000000"),
            ("ot=rv", 50.0, false, "ot=th:8;rv"),
            ("ot=rv;x:y", 50.0, true, "ot=th:8;rv:ef000000000000;x:y"),
            ("ot=rv:f0000000000000", 50.0, true, "ot=th:8;rv:f0000000000000"),
        ] {
            assert_eq!(stamped(list, percentage, explicit), Ok((expected.into(), false)), "{list}");
        }
    }

    #[test]
    fn the_threshold_of_a_span_is_read_where_it_is_certain() {
        for (list, expected) in [
            ("ot=th:8", Some(1 << 55)),
            ("a=1, ot=rv:ef000000000000;th:c ,b=2", Some(3 << 54)),
            ("ot=th:0", Some(0)),
            ("", None),
            ("ot=rv:ef000000000000", None),
            ("not=th:8", None),
            ("ot=th:8,ot=th:8", None),
            ("ot=th:8;th:8", None),
            ("ot=th:", None),
            ("ot=th:100000000000000", None),
            ("ot=th:G", None),
        ] {
            assert_eq!(threshold(list.as_bytes()).map(Threshold::bits), expected, "{list}");
        }
        assert_eq!(threshold(b"ot=th:8,\xff"), None);
    }

    #[test]
    fn an_inconsistent_threshold_is_erased() {
        assert_eq!(stamped("ot=th:f", 50.0, false), Ok(("ot=th:8".into(), true)));
    }

    #[test]
    fn unreadable_or_too_long_states_stay_unchanged() {
        let long = format!("ot=x:{}", "y".repeat(248));
        let many = (0..32).map(|i| format!("k{i}=v")).collect::<Vec<_>>().join(",");
        for list in [
            "ot=th:",
            "ot=th",
            "a=1,ot=rv:ef000000000000;th",
            "ot=th;th:0",
            "ot=th:0; th",
            "ot= th:0",
            "ot=th :0",
            "ot",
            "ot,ot=th:0",
            "ot =th:0",
            "ot=th:G",
            "ot=th:123456789012345",
            "ot=th:0;th:0",
            "ot=th:1,ot=th:1",
            &long,
            &many,
        ] {
            assert_eq!(stamped(list, 10.0, false), Err(Unstampable), "{list}");
        }
        assert_eq!(
            stamp(
                b"a=\xff",
                &Stamp { threshold: Threshold::ALWAYS, randomness: R, explicit: false },
                &mut String::new()
            ),
            Err(Unstampable)
        );
        let fits = (0..31).map(|i| format!("k{i}=v")).collect::<Vec<_>>().join(",");
        assert!(stamped(&fits, 10.0, false).is_ok());
    }

    #[test]
    fn explicit_randomness_is_exactly_fourteen_lower_digits() {
        let rv = |list: &str| randomness(list.as_bytes());
        assert_eq!(rv("ot=rv:ef000000000000"), Some(R));
        assert_eq!(rv("a=b , ot=th:8;rv:ef000000000000;z:1"), Some(R));
        assert_eq!(rv("ot=th:zzz;rv:ef000000000000"), Some(R));
        assert_eq!(rv("ot=rv:EF000000000000"), None);
        assert_eq!(rv("ot=rv:ef0000000000000"), None);
        assert_eq!(rv("xot=rv:ef000000000000"), None);
        assert_eq!(rv("ot=rv:ef000000000000,ot=th:0"), None);
    }
}
