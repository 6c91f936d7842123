//! Hints that suggest a text: using it must not lead to another mistake.

use proptest::prelude::*;

use super::{POLICY, parse, policy, problems};

/// The text that the hint of a file's only problem suggests, as written in the file.
fn suggestion(text: &str) -> Option<String> {
    let (loaded, _) = parse(text);
    let problem = loaded.diagnostics.iter().next()?;
    let hint = problem.hint.as_deref()?;
    let between = |open: &str, close: &str| {
        let start = hint.find(open)? + open.len();
        let end = start + hint[start..].rfind(close)?;
        Some(hint[start..end].to_owned())
    };
    if let Some(shown) = between(": \"", "\"") {
        return Some(format!("\"{shown}\""));
    }
    if let Some(shown) = between("write '", "'") {
        return Some(format!("'{shown}'"));
    }
    if let Some(word) = between("did you mean `", "`?") {
        return Some(format!("'{word}'"));
    }
    let shown = between("write ", ", in ").or_else(|| between("write ", " without quotes"))?;
    shown.parse::<f64>().is_ok().then_some(shown)
}

/// A file with a mistake, in which `{}` stands for the value.
fn assert_applies(file: &str, value: &str) -> bool {
    let Some(suggestion) = suggestion(&file.replacen("{}", value, 1)) else { return false };
    let mended = file.replacen("{}", &suggestion, 1);
    let left = problems(&mended);
    assert!(left.iter().all(|left| left.contains(": warning: ")), "{value}: {mended}\n{left:?}");
    true
}

fn file(line: &str) -> String {
    format!("{line}\n{POLICY}")
}

#[test]
fn hints_are_valid() {
    let regex = policy("type = 'span_name'\nenabled_regex_matching = true\nvalues = [{}]");
    let latency = policy("type = 'latency'\nthreshold_ms = {}");
    let numeric = policy("type = 'numeric_attribute'\nkey = 'k'\nmin_value = {}");
    let percentage = policy("type = 'always_sample'\nsampling_percentage = {}");
    for (file, values) in [
        (&regex, &[r#""\d+""#, r#""\/api""#, r#""^a\.b$""#, r#""\p{L}\s""#, r#""""\w+""""#][..]),
        (&latency, &["'5s'", "'1500ms'"]),
        (&numeric, &["'5'", "'.5'", "'5.'", "'-1e300'", "' 7 '", "'123456789012345678901'"]),
        (&percentage, &["'10 %'", "'1e-7'", "'100'", "'-0'"]),
        (&file("exporter.otlp.endpoint = {}"), &["'tempo'", "'http://tempo'", "'https://t/v1'"]),
        (&file("receiver.http.endpoint = {}"), &["'localhost'", "'http://h/x'", "':4318'"]),
        (&file("exporter.otlp.compression = {}"), &["'gzp'", "'GZIP'"]),
    ] {
        for value in values {
            assert!(assert_applies(file, value), "{value} has no hint: {file}");
        }
    }
    // There is no suggestion if no valid value is known.
    for (file, value) in [
        (&regex, r#""\\d'\d""#),
        (&latency, "'100 years'"),
        (&numeric, "'nan'"),
        (&numeric, "'1e999'"),
        (&percentage, "'150 %'"),
        (&file("exporter.otlp.endpoint = {}"), "'127.0.0.1'"),
        (&file("receiver.http.endpoint = {}"), "'http://127.0.0.1:4317'"),
        (&file("receiver.http.endpoint = {}"), "'[::1'"),
    ] {
        assert_eq!(suggestion(&file.replacen("{}", value, 1)), None, "{value}");
        assert!(!problems(&file.replacen("{}", value, 1)).is_empty(), "{value}");
    }
}

#[test]
fn expressions_of_other_engines() {
    for (value, hint) in [
        ("'(?!health)x'", "`invert_match = true`"),
        ("'(?<=a)b'", "`invert_match = true`"),
        (r"'(a)\1'", "alternatives"),
        (r#""\bword\b""#, "single quotes"),
    ] {
        let lines =
            format!("type = 'span_name'\nenabled_regex_matching = true\nvalues = [{value}]");
        let found = problems(&policy(&lines));
        assert!(found.len() == 1 && found[0].contains(hint), "{value}: {found:?}");
    }
    let inverted = "type = 'span_name'\nenabled_regex_matching = true\nvalues = ['^health']\n\
                    invert_match = true";
    assert_eq!(problems(&policy(inverted)), [""; 0]);
}

fn pieces(of: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(of), 0..6).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn whatever_address_a_hint_shows_can_be_written(
        address in pieces(&[
            "http", "https", "grpc", "://", "/", ":", "::1", "[", "]", "4317", "0", "70000",
            "127.0.0.1", "300.1.1.1", "tempo", "a b", "é", "@", ".", "?", "-", "v1", "9464",
        ]),
    ) {
        for key in ["exporter.otlp.endpoint", "receiver.http.endpoint", "telemetry.endpoint"] {
            assert_applies(&file(&format!("{key} = {{}}")), &format!("'{address}'"));
        }
    }

    #[test]
    fn whatever_number_a_hint_shows_can_be_written(
        number in pieces(&["1", "0", "99", ".", "-", "+", "e", "inf", "%", " ", "ms", "s", "_"]),
    ) {
        for lines in [
            "type = 'latency'\nthreshold_ms = {}",
            "type = 'numeric_attribute'\nkey = 'k'\nmin_value = {}",
            "type = 'always_sample'\nsampling_percentage = {}",
            "type = 'always_sample'\nlimit = { spans_per_second = {} }",
        ] {
            if !(lines.contains("limit") && number.trim().parse::<f64>().is_ok_and(|n| n <= 0.0)) {
                assert_applies(&policy(lines), &format!("'{number}'"));
            }
        }
    }

    #[test]
    fn whatever_expression_a_hint_shows_can_be_written(
        expression in pieces(&[
            r"\d", r"\/", r"\.", "a", r"\w+", "[a-z]", r"\p{L}", "'", r"\\", " ",
        ]),
    ) {
        let lines = "type = 'span_name'\nenabled_regex_matching = true\nvalues = [{}]";
        assert_applies(&policy(lines), &format!("\"{expression}\""));
    }
}
