//! Converts the cases to policy tests, if their spans can be written there.

use std::{fs, path::Path};

use tailwater::{
    commands::test::{Format, Options, test},
    trace::Threshold,
};
use toml::{Table, Value};

use super::case::{Case, cases};
use crate::harness::Directory;

/// Keys of a span that have the same meaning in a policy test.
const KEYS: [&str; 11] = [
    "name",
    "service",
    "resource",
    "attributes",
    "ms",
    "ns",
    "status",
    "tracestate",
    "flags",
    "kind",
    "events",
];

/// The span as written in a policy test; `None` if that is not possible.
fn span(written: &Table) -> Option<Table> {
    let mut span = written.clone();
    if let Some(child) = span.remove("child") {
        assert!(child.as_bool().is_some(), "{written:?}");
        span.insert("parent".into(), "absent".into());
    }
    // A case without a kind means unspecified.
    span.entry("kind").or_insert("UNSPECIFIED".into());
    let is_known = |(key, value): (&String, &Value)| match key.as_str() {
        "parent" => true,
        "kind" | "status" => value.is_str(),
        "attributes" | "resource" => value.as_table().is_some_and(are_plain),
        "events" => value.as_array().is_some_and(|events| {
            events.iter().all(|event| match event.get("attributes") {
                Some(pairs) => pairs.as_table().is_some_and(are_plain),
                None => true,
            })
        }),
        key => KEYS.contains(&key),
    };
    span.iter().all(is_known).then_some(span)
}

/// Whether there are only values that a policy test can have: no maps, bytes or empty values.
fn are_plain(pairs: &Table) -> bool {
    fn is_plain(value: &Value) -> bool {
        match value {
            Value::Table(_) => false,
            Value::Array(values) => values.iter().all(is_plain),
            _ => true,
        }
    }
    pairs.values().all(is_plain)
}

/// A trace of a case as a test; `None` if one of its spans cannot be written.
fn as_test(case: &Case, trace: &Table) -> Option<Table> {
    let spans = trace["spans"].as_array()?.iter();
    let spans: Vec<_> = spans.map(|written| span(written.as_table()?)).collect::<Option<_>>()?;
    let kept = trace["kept"].as_bool()?;
    let threshold = match trace.get("th").and_then(Value::as_str) {
        None if kept => Threshold::ALWAYS,
        None | Some("never") => Threshold::NEVER,
        Some(digits) => {
            let bits = u64::from_str_radix(&format!("{digits:0<14}"), 16).expect("hexadecimal");
            Threshold::from_bits(bits)
        }
    };
    let by = trace.get("by").and_then(Value::as_str);
    let by = by.unwrap_or(if kept { super::case::ONLY } else { "none" });
    let mut test = Table::new();
    test.insert("name".into(), case.name.clone().into());
    test.insert("spans".into(), spans.into());
    test.insert("percentage".into(), threshold.percentage().into());
    test.insert("policy".into(), by.into());
    test.extend(trace.get("matched").map(|matched| ("matched".to_owned(), matched.clone())));
    test.extend(case.forced.as_ref().map(|forced| ("trigger".to_owned(), forced.clone().into())));
    Some(test)
}

fn as_toml(value: &Value) -> String {
    match value {
        // TOML has the same escapes as JSON.
        Value::String(text) => serde_json::to_string(text).expect("a string"),
        Value::Float(number) if number.is_nan() => "nan".to_owned(),
        Value::Float(number) => format!("{number:?}"),
        Value::Integer(number) => number.to_string(),
        Value::Boolean(value) => value.to_string(),
        Value::Datetime(time) => time.to_string(),
        Value::Array(values) => {
            format!("[{}]", values.iter().map(as_toml).collect::<Vec<_>>().join(", "))
        }
        Value::Table(table) => {
            let pair = |(key, value): (&String, &Value)| {
                let key = serde_json::to_string(key).expect("a string");
                format!("{key} = {}", as_toml(value))
            };
            format!("{{ {} }}", table.iter().map(pair).collect::<Vec<_>>().join(", "))
        }
    }
}

/// Scenario: every case of every policy type whose spans can be written in a policy test.
/// Guarantees: `tailwater test` reports the same decision for each trace as the sampler.
#[test]
fn cases_are_policy_tests() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance");
    let directory = Directory::new();
    let (mut run, mut left_out) = (0, 0);
    for case in cases(&folder).into_iter().filter(|case| case.refused.is_none()) {
        let text = fs::read_to_string(folder.join(&case.file)).expect("readable");
        let file: Table = toml::from_str(&text).expect("TOML");
        let written = file["case"].as_array().expect("cases").iter();
        let mut written = written.filter(|other| other["name"].as_str() == Some(&case.name));
        let traces = written.next().expect("the case")["traces"].as_array().expect("traces");
        let traces = traces.iter().map(|trace| as_test(&case, trace.as_table().expect("a table")));
        let tests: Vec<_> = traces.collect();
        left_out += tests.iter().filter(|test| test.is_none()).count();
        let tests: Vec<Value> = tests.into_iter().flatten().map(Value::Table).collect();
        if tests.is_empty() {
            continue;
        }
        run += tests.len();
        directory.file("policies.toml", &case.policies);
        let tests = as_toml(&tests.into());
        let text = format!("policy_files = [\"policies.toml\"]\ntest = {tests}\n");
        let files = vec![directory.file("case.test.toml", &text).into()];
        let tested = test(&Options { format: Format::Text, coverage: false, files });
        let at = format!("{}: {}", case.file, case.name);
        assert!(tested.is_fine, "{at}: {}{}\n{text}", tested.diagnostics, tested.text);
    }
    assert!(run > 5 * left_out, "{run} were run and {left_out} left out");
}
