//! `test`, `replay` and the running service decide alike.

use std::{collections::BTreeMap, fmt::Write as _, fs, ops::Bound};

use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use proptest::{collection::vec, prelude::*};
use serde_json::Value;
use tailwater::{
    commands::{Format, replay, test},
    config,
    policy::{Number, PolicySpec, RuleKind, RuleSpec, Scope, StringMatch},
    sampler::Which,
    trace::{SpanKind, StatusCode},
};

use super::framed;
use crate::{
    builders::{self, Fixture, limits},
    harness::Directory,
    model::strategies,
};

/// The counts of a policy: matched traces, and credited ones that were kept and dropped.
type Counts = BTreeMap<String, [u64; 3]>;

/// Rules as a user writes them. The caller leaves out rules that the loader refuses.
fn toml(rule: &RuleSpec) -> String {
    let RuleSpec { kind, sampling_percentage } = rule;
    let mut text = format!("type = {:?}", kind.type_name());
    let mut put = |key: &str, value: String| {
        let _ = write!(text, ", {key} = {value}");
    };
    if *sampling_percentage != 100.0 {
        put("sampling_percentage", format!("{sampling_percentage:?}"));
    }
    if let Some(key) = kind.key() {
        put("key", format!("{key:?}"));
    }
    match kind {
        RuleKind::Not(part) => put("policy", format!("{{ {} }}", toml(part))),
        kind if kind.parts().is_some() => {
            let parts = kind.parts().into_iter().flatten();
            let parts: Vec<_> = parts.map(|part| format!("{{ {} }}", toml(part))).collect();
            put("policies", format!("[{}]", parts.join(", ")));
        }
        RuleKind::StatusCode { codes } => {
            let name = |code: &StatusCode| ["UNSET", "OK", "ERROR"][*code as usize];
            put("status_codes", format!("{:?}", codes.iter().map(name).collect::<Vec<_>>()));
        }
        RuleKind::Latency { threshold_ms, upper_threshold_ms }
        | RuleKind::SpanDuration { threshold_ms, upper_threshold_ms } => {
            put("threshold_ms", threshold_ms.to_string());
            upper_threshold_ms.iter().for_each(|ms| put("upper_threshold_ms", ms.to_string()));
        }
        RuleKind::SpanCount { min_spans, max_spans } => {
            put("min_spans", min_spans.to_string());
            max_spans.iter().for_each(|spans| put("max_spans", spans.to_string()));
        }
        RuleKind::NumericAttribute { range, .. } => {
            let number = |number: &Number| match number {
                Number::Int(number) => number.to_string(),
                Number::Double(number) => format!("{number:?}"),
            };
            for (bound, keys) in
                [(&range.lower, ["min_value", "above"]), (&range.upper, ["max_value", "below"])]
            {
                match bound {
                    Bound::Included(bound) => put(keys[0], number(bound)),
                    Bound::Excluded(bound) => put(keys[1], number(bound)),
                    Bound::Unbounded => {}
                }
            }
        }
        RuleKind::BooleanAttribute { value, .. } => put("value", value.to_string()),
        RuleKind::TraceState { values, .. } => put("values", format!("{values:?}")),
        RuleKind::SpanKind { kinds } => {
            let names = ["UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"];
            let name = |kind: &SpanKind| names[*kind as usize];
            put("kinds", format!("{:?}", kinds.iter().map(name).collect::<Vec<_>>()));
        }
        RuleKind::SpanEvent { names, values, .. } => {
            names.iter().for_each(|names| texts("names", names, &mut put));
            values.iter().for_each(|values| texts("values", values, &mut put));
        }
        RuleKind::StringAttribute { values, .. }
        | RuleKind::SpanName { values, .. }
        | RuleKind::ServiceName { values, .. } => texts("values", values, &mut put),
        _ => {}
    }
    in_common(kind, &mut put);
    text
}

/// Writes the keys that conditions of several types may have.
fn in_common(kind: &RuleKind, put: &mut impl FnMut(&str, String)) {
    if is_inverted(kind) {
        put("invert_match", "true".to_owned());
    }
    if let RuleKind::StringAttribute { scope, .. }
    | RuleKind::NumericAttribute { scope, .. }
    | RuleKind::BooleanAttribute { scope, .. }
    | RuleKind::AttributeExists { scope, .. } = kind
    {
        let name = match scope {
            Scope::Any => "any",
            Scope::Span => "span",
            Scope::Resource => "resource",
        };
        put("scope", format!("{name:?}"));
    }
}

fn texts(key: &str, values: &StringMatch, put: &mut impl FnMut(&str, String)) {
    match values {
        StringMatch::Exact(values) => put(key, format!("{values:?}")),
        StringMatch::Regex(set) => {
            put(key, format!("{:?}", set.patterns()));
            put("enabled_regex_matching", "true".to_owned());
        }
    }
}

fn is_inverted(kind: &RuleKind) -> bool {
    matches!(
        kind,
        RuleKind::StringAttribute { invert: true, .. }
            | RuleKind::NumericAttribute { invert: true, .. }
            | RuleKind::BooleanAttribute { invert: true, .. }
            | RuleKind::AttributeExists { invert: true, .. }
            | RuleKind::SpanName { invert: true, .. }
            | RuleKind::ServiceName { invert: true, .. }
            | RuleKind::SpanEvent { invert: true, .. }
    )
}

fn table(spec: &PolicySpec) -> String {
    let PolicySpec { name, rule, shadow, .. } = spec;
    format!("{{ name = {name:?}, shadow = {shadow}, {} }}", toml(rule))
}

/// Writes the policies that the loader accepts to a file; `None` if it accepts none.
fn policy_file(directory: &Directory, specs: &[PolicySpec]) -> Option<String> {
    let mut tables = Vec::new();
    for spec in specs {
        let table = table(spec);
        let file = directory.file("one.toml", &format!("policy = [{table}]\n"));
        if config::load(file.as_ref()).config.is_some() {
            tables.push(table);
        }
    }
    let text = format!("policy = [{}]\n", tables.join(", "));
    (!tables.is_empty()).then(|| directory.file("policies.toml", &text))
}

/// Removes spans without valid ids, and thresholds, which would be weights in a replay.
fn cleaned(mut request: Vec<ResourceSpans>) -> Vec<u8> {
    let is_valid = |span: &Span| {
        let has_ids = span.trace_id.len() == 16 && span.span_id.len() == 8;
        has_ids
            && span.trace_id.iter().chain([&0]).any(|byte| *byte != 0)
            && span.span_id.iter().any(|byte| *byte != 0)
            && [0, 8].contains(&span.parent_span_id.len())
    };
    for resource in &mut request {
        for scope in &mut resource.scope_spans {
            scope.spans.retain(is_valid);
            for span in &mut scope.spans {
                span.trace_state = span.trace_state.replace("th:", "tx:");
            }
        }
    }
    builders::request(request)
}

/// The service's result for the requests: counts, and a test for each trace.
fn served(policies: &[PolicySpec], requests: &[Vec<u8>], tests: &mut String) -> Counts {
    let mut fixture = Fixture::new(policies, limits(), 4);
    let plan = fixture.sampler.plan();
    let mut counts = Counts::new();
    for request in requests {
        fixture.ingest(0, request);
    }
    for decided in fixture.decide(30_000, Which::Due) {
        for record in &decided.decisions.records {
            let verdict = record.decision.verdict;
            let matched = decided.decisions.matched(record);
            let names: Vec<_> = matched.iter().map(|policy| plan.name(*policy)).collect();
            for name in names.iter().chain(names.is_empty().then_some(&"none")) {
                counts.entry((*name).to_owned()).or_default()[0] += 1;
            }
            let policy = plan.name(verdict.policy);
            counts.entry(policy.to_owned()).or_default()[if verdict.kept { 1 } else { 2 }] += 1;
            let _ = writeln!(
                tests,
                "[[test]]\nname = \"t\"\nfile = \"traces\"\ntrace_id = \"{}\"\npercentage = {:?}\n\
                 policy = {policy:?}\nmatched = {names:?}",
                record.trace_id,
                verdict.threshold.percentage(),
            );
        }
    }
    fixture.assert_ledger();
    counts
}

fn replayed(policies: &str, traces: &str) -> Counts {
    let options = replay::Options {
        config: Some(policies.into()),
        against: None,
        format: Format::Json,
        memory_limit_mib: 64,
        inputs: vec![traces.into()],
    };
    let mut told = String::new();
    let replayed = replay::replay(&options, &mut |text| told.push_str(text));
    assert!(replayed.is_fine, "{told}");
    let answer: Value = serde_json::from_str(&replayed.text).expect("JSON");
    let rows = answer["result"]["policies"].as_array().expect("a list");
    let count = |row: &Value, key: &str| row[key].as_u64().expect("a whole number");
    let row = |row: &Value| {
        let keys = ["matched_traces", "kept_traces", "dropped_traces"];
        (row["policy"].as_str().expect("a name").to_owned(), keys.map(|key| count(row, key)))
    };
    rows.iter().map(row).filter(|(_, counts)| *counts != [0; 3]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Scenario: random policies as a user writes them, and random requests, through a sampler, a
    /// replay, and a test for each trace.
    /// Guarantees: all of them decide each trace alike: threshold, policy, and all matching
    /// policies.
    #[test]
    fn test_replay_and_the_service_decide_alike(
        specs in strategies::policies(),
        requests in vec(any::<[[u8; 16]; 5]>(), 1).prop_flat_map(|ids| {
            vec(strategies::request(ids[0].to_vec()), 1..8)
        }),
    ) {
        let directory = Directory::new();
        let policies = policy_file(&directory, &specs);
        prop_assume!(policies.is_some());
        let policies = policies.expect("assumed");
        let loaded = config::load(policies.as_ref()).config.expect("each is taken").policies;
        let requests: Vec<_> = requests.into_iter().map(cleaned).collect();
        let traces = directory.0.join("traces").display().to_string();
        fs::write(&traces, framed(&requests)).expect("written");
        let mut tests = "policy_files = [\"policies.toml\"]\n".to_owned();
        let served = served(&loaded, &requests, &mut tests);
        prop_assert_eq!(replayed(&policies, &traces), served.clone());
        if !served.is_empty() {
            let file = directory.file("t.test.toml", &tests);
            let options = test::Options { format: test::Format::Text, coverage: false, files: vec![file.into()] };
            let tested = test::test(&options);
            prop_assert!(tested.is_fine, "{}{}", tested.diagnostics, tested.text);
        }
    }
}
