//! Converts span durations in OTTL, and durations in Go's notation.

use super::{
    conditions::{Refusal, negated, refuse},
    ottl::{Expression, Kind, Operator},
    rule::Rule,
};

const MILLISECOND_NANOS: i64 = 1_000_000;

/// The longest duration that a Tailwater policy can compare with: a year.
pub(super) const YEAR_MILLIS: i64 = 31_536_000_000;

/// `(end_time_unix_nano - start_time_unix_nano) > N`, or with `end_time`, `start_time` and
/// `Duration("…")`.
pub(super) fn duration(
    difference: &Expression,
    operator: Operator,
    limit: &Expression,
) -> Result<Rule, Refusal> {
    let Kind::Arithmetic(end, '-', start) = &difference.kind else {
        return refuse(
            &difference.span,
            "the only difference that can be converted is the duration of the span",
        );
    };
    let is_nanos = match (time(end), time(start)) {
        (Some("end_time_unix_nano"), Some("start_time_unix_nano")) => true,
        (Some("end_time"), Some("start_time")) => false,
        _ => {
            return refuse(
                &difference.span,
                "the only difference that can be converted is end - start of the span",
            );
        }
    };
    let nanos = match &limit.kind {
        Kind::Integer(_) | Kind::Arithmetic(..) if is_nanos => match constant(limit) {
            Some(nanos) => nanos,
            None => return refuse(&limit.span, "only numbers can be calculated here"),
        },
        Kind::Call(name, arguments) if name == "Duration" && !is_nanos => {
            match arguments.as_slice() {
                [Expression { kind: Kind::Text(text), .. }] => go_duration(text),
                _ => None,
            }
            .ok_or_else(|| Refusal {
                span: limit.span.clone(),
                reason: "the duration cannot be read".to_owned(),
            })?
        }
        _ => {
            return refuse(
                &limit.span,
                "the duration must be compared with a number or a Duration",
            );
        }
    };
    // `>= N` is `> N - 1`, in nanoseconds.
    let (above, is_negated) = match operator {
        Operator::Greater => (nanos, false),
        Operator::GreaterOrEqual => (nanos.saturating_sub(1), false),
        Operator::LessOrEqual => (nanos, true),
        Operator::Less => (nanos.saturating_sub(1), true),
        _ => return refuse(&limit.span, "a duration can only be above or below a limit"),
    };
    if above < 0 || above % MILLISECOND_NANOS != 0 {
        return refuse(
            &limit.span,
            "`span_duration` compares with whole milliseconds, and excludes the limit itself",
        );
    }
    let millis = above / MILLISECOND_NANOS;
    if millis > YEAR_MILLIS {
        return refuse(&limit.span, "a duration is at most a year");
    }
    let rule = Rule::new("span_duration").with("threshold_ms", millis.to_string());
    Ok(if is_negated { negated(rule) } else { rule })
}

/// The value of an integer, or of arithmetic on integers.
fn constant(expression: &Expression) -> Option<i64> {
    match &expression.kind {
        Kind::Integer(number) => Some(*number),
        Kind::Arithmetic(left, sign, right) => {
            let (left, right) = (constant(left)?, constant(right)?);
            match sign {
                '+' => left.checked_add(right),
                '-' => left.checked_sub(right),
                '*' => left.checked_mul(right),
                _ => left.checked_div(right),
            }
        }
        _ => None,
    }
}

/// The name of a time of the span.
fn time(expression: &Expression) -> Option<&str> {
    let Kind::Path(path) = &expression.kind else { return None };
    if path.key.is_some() || path.is_deeper {
        return None;
    }
    match path.names.as_slice() {
        [name] => Some(name),
        [span, name] if span == "span" => Some(name),
        _ => None,
    }
}

/// Parses a duration in Go's notation, to nanoseconds. `None` if it cannot be read or does not fit.
///
/// Source: `ParseDuration` of Go's package `time`, including its rounding of fractions.
pub(super) fn go_duration(text: &str) -> Option<i64> {
    let (mut rest, is_negative) = match text.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (text.strip_prefix('+').unwrap_or(text), false),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanos = 0_i64;
    while !rest.is_empty() {
        let whole = digits(&mut rest);
        let fraction = match rest.strip_prefix('.') {
            Some(after) => {
                rest = after;
                digits(&mut rest)
            }
            None => "",
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = unit_nanos(&rest[..end])?;
        rest = &rest[end..];
        let whole = if whole.is_empty() { 0 } else { whole.parse::<i64>().ok()? };
        let of_unit = whole.checked_mul(unit)?.checked_add(fraction_nanos(fraction, unit))?;
        nanos = nanos.checked_add(of_unit)?;
    }
    Some(if is_negative { -nanos } else { nanos })
}

/// The nanoseconds of a fraction of a unit, given as digits after the point. Digits that do not fit
/// are too small to matter.
fn fraction_nanos(digits: &str, unit: i64) -> i64 {
    let (mut fraction, mut scale) = (0_i64, 1.0);
    for digit in digits.bytes().map(|digit| i64::from(digit - b'0')) {
        let next = fraction.checked_mul(10).and_then(|tens| tens.checked_add(digit));
        let Some(next) = next else { break };
        fraction = next;
        scale *= 10.0;
    }
    // Powers of ten divide the units up to a second exactly, so whole nanoseconds stay whole.
    (fraction as f64 * (unit as f64 / scale)) as i64
}

/// Cuts the leading digits off a text.
fn digits<'t>(text: &mut &'t str) -> &'t str {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    *text = rest;
    digits
}

fn unit_nanos(unit: &str) -> Option<i64> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => MILLISECOND_NANOS,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::go_duration;

    #[test]
    fn durations_have_the_nanoseconds_that_go_reads() {
        for (text, nanos) in [
            ("0", 0),
            ("+0", 0),
            ("0s", 0),
            ("1.001s", 1_001_000_000),
            ("4.035s", 4_035_000_000),
            ("1.005ms", 1_005_000),
            ("0.1h", 360_000_000_000),
            ("1h15m30.918273645s", 4_530_918_273_645),
            ("-1.5h", -5_400_000_000_000),
            (".5s", 500_000_000),
            ("5.s", 5_000_000_000),
            ("1.5us", 1_500),
            ("2µs3μs", 5_000),
            ("1.9ns", 1),
            ("0.100000000000000000000h", 360_000_000_000),
            ("0.9223372036854775807h", 3_320_413_933_267),
            ("2562047h47m16.854775807s", i64::MAX),
        ] {
            assert_eq!(go_duration(text), Some(nanos), "{text}");
        }
        // Every number of milliseconds is exact.
        for millis in 0..20_000_i64 {
            let text = format!("{}.{:03}s", millis / 1000, millis % 1000);
            assert_eq!(go_duration(&text), Some(millis * 1_000_000), "{text}");
        }
    }

    #[test]
    fn what_go_refuses_is_no_duration() {
        for text in [
            "",
            "+",
            "-",
            "3",
            "s",
            ".",
            ".s",
            "+.s",
            "1e3s",
            "5 s",
            "5d",
            "1s2",
            "--5s",
            "1..5s",
            "9223372036854775808ns",
            "2562047h47m16.854775808s",
            "9223372036.9s",
            "1000000000h",
            "99999999999999999999s",
        ] {
            assert_eq!(go_duration(text), None, "{text}");
        }
    }
}
