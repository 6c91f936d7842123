//! `${env:NAME}` and `${env:NAME:-default}` inside string values.
//!
//! Variables are replaced after parsing, so that a variable can never change the structure of the
//! file, and only once: the value of a variable is not searched again. As in the Collector, the
//! default is used if the variable is not set; a variable that is set but empty is empty.

use std::env::VarError;

use super::diagnostics::{Problem, quote};

/// How a variable is looked up: `std::env::var`, or a fixed set in tests.
pub(super) type Variable = fn(&str) -> Result<String, VarError>;

/// The hint for a problem of a text in which variables were replaced.
pub(super) const HIDDEN: &str =
    "the values of environment variables are not shown: they may be secrets";

const OPENING: &str = "${env:";

/// `text` with every placeholder replaced.
pub(super) fn expand(text: &str, variable: Variable) -> Result<String, Problem> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(OPENING) {
        let Some((inside, after)) = after.split_once('}') else {
            return Err(Problem::new(format!("`{OPENING}` is never closed"))
                .hint("write `${env:NAME}` or `${env:NAME:-default}`"));
        };
        out.push_str(before);
        out.push_str(&value(inside, variable)?);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn value(inside: &str, variable: Variable) -> Result<String, Problem> {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let named = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(named)
    {
        return Err(Problem::new(format!("{} is not the name of a variable", quote(name)))
            .hint("names hold letters, digits and `_`, and do not start with a digit"));
    }
    match (variable(name), default) {
        (Ok(value), _) => Ok(value),
        (Err(VarError::NotPresent), Some(default)) => Ok(default.to_owned()),
        (Err(VarError::NotPresent), None) => {
            Err(Problem::new(format!("the environment variable {} is not set", quote(name)))
                .hint(format!("set it, or give a default: `${{env:{name}:-default}}`")))
        }
        (Err(VarError::NotUnicode(_)), _) => {
            Err(Problem::new(format!("the environment variable {} is not UTF-8", quote(name))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(name: &str) -> Result<String, VarError> {
        match name {
            "HOST" => Ok("tempo".to_owned()),
            "EMPTY" => Ok(String::new()),
            "NESTED" => Ok("${env:HOST}".to_owned()),
            "BYTES" => Err(VarError::NotUnicode("x".into())),
            _ => Err(VarError::NotPresent),
        }
    }

    #[test]
    fn placeholders_are_replaced_once() {
        for (text, expected) in [
            ("plain $HOST ${HOST}", "plain $HOST ${HOST}"),
            ("http://${env:HOST}:4317", "http://tempo:4317"),
            ("${env:HOST}${env:HOST}", "tempotempo"),
            ("${env:MISSING:-fall:-back}", "fall:-back"),
            ("${env:MISSING:-}", ""),
            ("[${env:EMPTY:-unused}]", "[]"),
            ("${env:NESTED}", "${env:HOST}"),
        ] {
            assert_eq!(expand(text, variable), Ok(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn missing_variables_are_errors() {
        for (text, message) in [
            ("a ${env:HOST", "`${env:` is never closed"),
            ("${env:MISSING}", "the environment variable `MISSING` is not set"),
            ("${env:BYTES:-x}", "the environment variable `BYTES` is not UTF-8"),
            ("${env:}", "`` is not the name of a variable"),
            ("${env:1A}", "`1A` is not the name of a variable"),
            ("${env:A B}", "`A B` is not the name of a variable"),
        ] {
            assert_eq!(expand(text, variable).expect_err(text).message, message);
        }
    }
}
