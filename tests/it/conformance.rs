//! The cases of `tests/conformance/*.toml`: policies as a user writes them, traces, and the
//! expected outcome of each. The README in that directory describes how to write a case.
//!
//! Every case goes through the configuration loader and the sampler three times: with its spans in
//! one request, with one request per span, and with one request per span in reverse order. No
//! decision may depend on this.

mod as_tests;
mod case;

use std::{collections::BTreeMap, fs, path::Path};

use opentelemetry_proto::tonic::trace::v1::ResourceSpans;
use tailwater::{
    config,
    policy::PolicySpec,
    sampler::{Decided, Which},
    trace::{TraceId, Trigger},
    window::Millis,
};

use self::case::{Case, Trace, cases};
use crate::{
    builders::{Fixture, limits, request},
    harness::tempfile,
};

const CASES_MIN: usize = 150;
const CASES_A_TYPE_MIN: usize = 4;

/// Every policy type.
const TYPES: &[&str] = &[
    "always_sample",
    "status_code",
    "latency",
    "string_attribute",
    "numeric_attribute",
    "boolean_attribute",
    "attribute_exists",
    "probabilistic",
    "span_count",
    "trace_state",
    "trace_flags",
    "span_name",
    "service_name",
    "span_kind",
    "root_span",
    "span_duration",
    "span_event",
    "and",
    "or",
    "not",
    "drop",
    "same_span",
    "budget",
    "rare",
];

/// How the spans of a case arrive.
#[derive(Clone, Copy, Debug)]
enum Arrival {
    Together,
    OneByOne,
    Backwards,
}

/// The outcome of a trace, as expected by a case or as observed.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    kept: bool,
    by: String,
    th: String,
    /// All policies that matched, if the case lists them.
    matched: Option<Vec<String>>,
}

/// Scenario: every case, in every order of arrival.
/// Guarantees: each trace is kept or dropped by the expected policy at the expected threshold, and
/// invalid policies are refused with the expected words. All failures are reported together.
#[test]
fn cases_come_out_as_written() {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance");
    let failures: Vec<_> = cases(&files).iter().flat_map(failures_of).collect();
    assert!(failures.is_empty(), "{} failures\n\n{}", failures.len(), failures.join("\n\n"));
}

/// Scenario: the files themselves.
/// Guarantees: there are at least 150 cases, some for every policy type, and the names in a file
/// are unique.
#[test]
fn every_policy_type_has_cases() {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance");
    let cases = cases(&files);
    let traces: usize = cases.iter().map(|case| case.traces.len()).sum();
    println!("{} conformance cases with {traces} traces", cases.len());
    assert!(cases.len() >= CASES_MIN, "only {} cases", cases.len());
    for kind in TYPES {
        let named = format!("type = \"{kind}\"");
        let count = cases.iter().filter(|case| case.policies.contains(&named)).count();
        assert!(count >= CASES_A_TYPE_MIN, "only {count} cases with `{kind}`");
    }
    let mut names = BTreeMap::new();
    for case in &cases {
        let twice = names.insert((&case.file, &case.name), ()).is_some();
        assert!(!twice, "{}: two cases are named {:?}", case.file, case.name);
    }
}

fn failures_of(case: &Case) -> Vec<String> {
    let title = format!("{}: {}", case.file, case.name);
    let told = |what: String| format!("{title}\n  {what}");
    match (load(&case.policies), &case.refused) {
        (Ok(_), Some(words)) => vec![told(format!("must be refused with {words:?}"))],
        (Err(text), Some(words)) if text.contains(words.as_str()) => Vec::new(),
        (Err(text), Some(words)) => vec![told(format!("refused without {words:?}:\n{text}"))],
        (Err(text), None) => vec![told(format!("refused:\n{text}"))],
        (Ok(policies), None) => {
            // The first arrival that fails is enough: the others mostly fail too.
            let arrivals = [Arrival::Together, Arrival::OneByOne, Arrival::Backwards];
            let failures = arrivals.iter().map(|arrival| run(case, &policies, *arrival));
            failures.into_iter().find(|found| !found.is_empty()).unwrap_or_default()
        }
    }
}

/// The policies as `tailwater run` loads them, or its diagnostics.
fn load(policies: &str) -> Result<Vec<PolicySpec>, String> {
    let file = tempfile(policies);
    let loaded = config::load(&file);
    fs::remove_file(&file).expect("removed");
    match loaded.config {
        Some(config) => Ok(config.policies),
        None => Err(loaded.diagnostics.to_string()),
    }
}

fn run(case: &Case, policies: &[PolicySpec], arrival: Arrival) -> Vec<String> {
    let mut fixture = Fixture::new(policies, limits(), 4);
    for request in requests(case, arrival) {
        fixture.ingest(0, &request);
    }
    let which = match case.forced.as_deref() {
        None => Which::Due,
        Some("memory") => Which::Oldest(Trigger::Memory),
        Some("shutdown") => Which::Oldest(Trigger::Shutdown),
        Some(other) => panic!("{}: {}: `forced` is {other:?}", case.file, case.name),
    };
    let now = limits().waits.decision_wait;
    fixture.sampler.begin_tick(Millis(now), 0.1);
    let decided = fixture.decide(now, which);
    fixture.assert_ledger();
    let seen = outcomes(&fixture, &decided);
    let mut failures = Vec::new();
    for (index, trace) in case.traces.iter().enumerate() {
        let seen = seen.get(&case.trace_id(index));
        let expected = expected(trace);
        let same = seen.is_some_and(|seen| {
            let matched_as_wanted = expected.matched.is_none() || expected.matched == seen.matched;
            (seen.kept, &seen.by, &seen.th) == (expected.kept, &expected.by, &expected.th)
                && matched_as_wanted
        });
        if !same {
            failures.push(format!(
                "{}: {}\n  trace {} ({arrival:?})\n  expected {expected:?}\n  seen     {}",
                case.file,
                case.name,
                index + 1,
                seen.map_or("no decision".to_owned(), |seen| format!("{seen:?}")),
            ));
        }
    }
    failures
}

/// The encoded requests of a case.
fn requests(case: &Case, arrival: Arrival) -> Vec<Vec<u8>> {
    let mut spans: Vec<ResourceSpans> = Vec::new();
    for (index, trace) in case.traces.iter().enumerate() {
        spans.extend(trace.resource_spans(case.trace_id(index)));
    }
    match arrival {
        Arrival::Together => vec![request(spans)],
        Arrival::OneByOne => spans.into_iter().map(|one| request(vec![one])).collect(),
        Arrival::Backwards => spans.into_iter().rev().map(|one| request(vec![one])).collect(),
    }
}

fn expected(trace: &Trace) -> Outcome {
    let by = trace.by.as_deref().unwrap_or(if trace.kept { case::ONLY } else { "none" });
    let th = trace.th.as_deref().unwrap_or(if trace.kept { "0" } else { "never" });
    Outcome {
        kept: trace.kept,
        by: by.to_owned(),
        th: th.to_owned(),
        matched: trace.matched.clone(),
    }
}

/// The outcome of each trace. Also checks that each kept trace is exported with all of its spans.
fn outcomes(fixture: &Fixture, decided: &[Decided]) -> BTreeMap<TraceId, Outcome> {
    let mut outcomes = BTreeMap::new();
    let name = |id| fixture.sampler.plan().name(id).to_owned();
    for decided in decided {
        let mut leaving = 0;
        for record in &decided.decisions.records {
            let verdict = record.decision.verdict;
            leaving += if verdict.kept { record.spans as usize } else { 0 };
            let matched = record.matched.start as usize..record.matched.end as usize;
            let matched = decided.decisions.matched[matched].iter().map(|id| name(*id)).collect();
            let th = verdict.threshold;
            let outcome = Outcome {
                kept: verdict.kept,
                by: name(verdict.policy),
                th: if th.matches() { th.to_string() } else { "never".to_owned() },
                matched: Some(matched),
            };
            assert!(outcomes.insert(record.trace_id, outcome).is_none(), "decided twice");
        }
        assert_eq!(decided.spans.len(), leaving, "a kept trace leaves whole");
    }
    outcomes
}
