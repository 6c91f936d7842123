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

/// Parses a duration in Go's notation, to nanoseconds.
pub(super) fn go_duration(text: &str) -> Option<i64> {
    let (text, sign) = match text.strip_prefix('-') {
        Some(rest) => (rest, -1.0),
        None => (text.strip_prefix('+').unwrap_or(text), 1.0),
    };
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut nanos = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        nanos += number
            * match &rest[..unit] {
                "ns" => 1.0,
                "us" | "µs" | "μs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    let is_readable = !text.is_empty() && nanos < 9e18;
    is_readable.then_some((sign * nanos) as i64)
}
