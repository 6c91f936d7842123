//! Test files: the result of reading them, and every mistake with its place.

use std::path::Path;

use super::*;
use crate::config::{memory::MemoryLimit, tests::files::Directory};

const ERRORS: &str =
    "[[policy]]\nname = \"errors\"\ntype = \"status_code\"\nstatus_codes = [\"ERROR\"]\n";

fn parsed(text: &str) -> LoadedTests {
    let host = Host { variable: |_| Err(std::env::VarError::NotPresent), ..host() };
    parse(&Source::new(Path::new("t.test.toml"), text), Path::new("t.test.toml"), host)
}

fn host() -> Host {
    // 2026-01-01T00:00:00Z.
    let now = 1_767_225_600_000;
    Host { variable: |name| std::env::var(name), memory_default: MemoryLimit::detect(), now }
}

/// `line:column: message` of each problem.
fn problems(text: &str) -> Vec<String> {
    let loaded = parsed(text);
    assert_eq!(loaded.file.is_none(), loaded.diagnostics.has_errors(), "{text}");
    let problem = |d: &Diagnostic| format!("{}:{}: {}", d.line, d.column, d.message);
    loaded.diagnostics.iter().map(problem).collect()
}

fn test(lines: &str) -> String {
    format!("{ERRORS}[[test]]\nname = \"t\"\n{lines}\n")
}

#[test]
fn a_span_is_short_where_there_is_nothing_to_say() {
    let loaded = parsed(&test(
        r#"spans = [
  {},
  { id = "a", parent = "b", service = "s", name = "n", kind = "CLIENT", ns = [-1, 7],
    status = "ERROR", status_message = "m", tracestate = "x=y", flags = 1,
    attributes = { "k" = [1, 2.5, true, "x"] }, resource = { "r" = 1 },
    events = [{ name = "e", attributes = { "a" = "b" } }] },
]
percentage = 12.5
policy = "none"
matched = []
trigger = "memory""#,
    ));
    let test = &loaded.file.expect("no mistake").tests[0];
    assert_eq!((test.name.as_str(), test.place.line, test.trigger), ("t", 5, Trigger::Memory));
    let expected = Expected {
        percentage: Some(12.5),
        policy: Some("none".to_owned()),
        matched: Some(Vec::new()),
    };
    assert_eq!(test.expected, expected);
    let TestedTrace::Spans(spans) = &test.trace else { panic!("{test:?}") };
    assert_eq!((spans[0].kind, spans[0].nanos), (crate::trace::SpanKind::Internal, [0, 1_000_000]));
    assert_eq!((spans[0].status, spans[0].parent.as_deref()), (None, None));
    let list = AttributeValue::List(vec![
        AttributeValue::Int(1),
        AttributeValue::Double(2.5),
        AttributeValue::Bool(true),
        AttributeValue::String("x".to_owned()),
    ]);
    assert_eq!(spans[1].attributes, [("k".to_owned(), list)]);
    assert_eq!((spans[1].nanos, spans[1].flags), ([-1, 7], 1));
}

#[test]
fn every_mistake_has_its_place() {
    for (lines, expected) in [
        ("kept = true", "5:1: the test has no `spans` and no `file`"),
        ("spans = []\nkept = true", "7:9: `spans` is empty"),
        ("spans = [{}]", "5:1: the test expects nothing"),
        (
            "spans = [{}]\nkept = true\npercentage = 100",
            "8:8: `kept` cannot be combined with `percentage`",
        ),
        ("spans = [{}]\nkept = \"yes\"", "8:8: `kept` must be true or false, found a string"),
        ("spans = [{}]\npercentage = 101", "8:14: `percentage` must be between 0 and 100"),
        ("spans = [{}]\npolicy = \"error\"", "8:10: there is no policy `error`"),
        ("spans = [{}]\nmatched = [\"errors\", \"x\"]", "8:22: there is no policy `x`"),
        ("spans = [{}]\nmatched = [\"none\"]", "8:12: there is no policy `none`"),
        (
            "spans = [{}]\nkept = true\ntrigger = \"root\"",
            "9:11: `trigger` must be one of `decision_wait`, `root_received`, `memory`, \
             `trace_limit`, `shutdown`, found `root`",
        ),
        ("spans = [{}]\nkept = true\ntraceid = \"1\"", "9:1: unknown key `traceid` in a test"),
        ("spans = [{}]\nkept = true\ntrace_id = \"1\"", "9:1: `trace_id` belongs to `file`"),
        ("file = \"a\"\nkept = true\ntrace_id = \"x\"", "9:12: `x` is not the id of a trace"),
        ("spans = [{}]\nfile = \"a\"\nkept = true", "8:8: `file` cannot be combined with `spans`"),
        ("spans = [{ servce = \"a\" }]\nkept = true", "7:12: unknown key `servce` in a span"),
        (
            "spans = [{ kind = \"SERVR\" }]\nkept = true",
            "7:19: `kind` must be one of `INTERNAL`, `SERVER`, `CLIENT`, `PRODUCER`, `CONSUMER`, \
             `UNSPECIFIED`, found `SERVR`",
        ),
        (
            "spans = [{ status = \"FAIL\" }]\nkept = true",
            "7:21: `status` must be one of `UNSET`, `OK`, `ERROR`, found `FAIL`",
        ),
        ("spans = [{ ms = [0] }]\nkept = true", "7:17: `ms` must be a list of two numbers"),
        (
            "spans = [{ ms = 5 }]\nkept = true",
            "7:17: `ms` must be a list of two numbers, found an integer",
        ),
        (
            "spans = [{ ms = [0, 1], ns = [0, 1] }]\nkept = true",
            "7:30: `ns` cannot be combined with `ms`",
        ),
        (
            "spans = [{ ms = [0, 1e300] }]\nkept = true",
            "7:17: `ms` must be within ten years from the trace's beginning",
        ),
        (
            "spans = [{ attributes = { http.route = \"/\" } }]\nkept = true",
            "7:27: `http` must be a string, a number, a boolean or a list, found a table",
        ),
        (
            "spans = [{ id = \"a\" }, { id = \"a\" }]\nkept = true",
            "7:31: two spans of the test have the id `a`",
        ),
        (
            "spans = [{ service = \"a\", resource = { \"service.name\" = \"b\" } }]\nkept = true",
            "7:12: `service` is also given as `service.name` in `resource`",
        ),
        (
            "spans = [{ events = [{ nme = \"a\" }] }]\nkept = true",
            "7:24: unknown key `nme` in an event",
        ),
    ] {
        assert_eq!(problems(&test(lines)), [expected], "{lines}");
    }
}

#[test]
fn every_mistake_outside_of_a_test_has_its_place() {
    assert_eq!(problems(ERRORS), ["1:1: the file has no [[test]]"]);
    let nameless = format!("{ERRORS}[[test]]\nspans = [{{}}]\nkept = true\n");
    assert_eq!(problems(&nameless), ["5:1: the test has no `name`"]);
    let none = "[[test]]\nname = \"t\"\nspans = [{}]\nkept = true\n";
    let expected = "1:1: there is no policy, so that every trace would be dropped";
    assert_eq!(problems(none), [expected]);
    let single = test("spans = [{}]\nkept = true").replace("[[test]]", "[test]");
    let expected = "5:1: `test` must be a list of tables, found a table";
    assert_eq!(problems(&single), [expected]);
}

/// A test that names a policy that takes no part cannot pass. The others are not affected.
#[test]
fn policies_that_take_no_part_are_not_expected() {
    let text = test("spans = [{}]\npolicy = \"errors\"")
        + "[[test]]\nname = \"u\"\nspans = [{}]\nmatched = [\"all\", \"errors\"]\n"
        + "[[test]]\nname = \"v\"\nspans = [{}]\npolicy = \"all\"\n";
    let text = format!("[[policy]]\nname = \"all\"\ntype = \"always_sample\"\n{text}");
    for (line, why) in [
        ("shadow = true", "`errors` is a shadow policy and takes no part in tests"),
        (
            "expires = 2025-01-01T00:00:00Z",
            "the policy `errors` has expired and takes no part in tests",
        ),
    ] {
        let text = text.replacen("status_codes", &format!("{line}\nstatus_codes"), 1);
        let loaded = parsed(&text);
        assert!(!loaded.diagnostics.has_errors(), "{}", loaded.diagnostics);
        let tests = loaded.file.expect("no mistake").tests;
        let unmet: Vec<_> = tests.iter().map(|test| test.unmet.as_deref()).collect();
        assert_eq!(unmet, [Some(why), Some(why), None]);
    }
    let unknown = parsed(&text.replacen("\"errors\"]", "\"error\"]", 1));
    assert!(unknown.file.is_none(), "an unknown policy is a mistake");
}

#[test]
fn unknown_policies_have_hints_that_help() {
    for (expects, hint) in [
        ("matched = [\"none\"]", Some("write matched = [] if no policy matches")),
        ("matched = [\"non\"]", None),
        ("matched = [\"error\"]", Some("did you mean `errors`?")),
        ("policy = \"non\"", Some("did you mean `none`?")),
    ] {
        let loaded = parsed(&test(&format!("spans = [{{}}]\n{expects}")));
        let hints: Vec<_> = loaded.diagnostics.iter().map(|d| d.hint.as_deref()).collect();
        assert_eq!(hints, [hint], "{expects}");
    }
}

#[test]
fn policies_come_from_files_or_from_a_configuration() {
    let dir = Directory::new();
    dir.write("policies/a.toml", ERRORS);
    dir.write("policies/a.test.toml", "this is no TOML");
    dir.write("tailwater.toml", "[sampling]\npolicy_files = [\"policies/*.toml\"]\n");
    let expects = "[[test]]\nname = \"t\"\nspans = [{}]\npolicy = \"none\"\n";
    for (source, fine) in [
        ("policy_files = [\"policies/*.toml\"]", true),
        ("config = \"tailwater.toml\"", true),
        ("policy_files = [\"policies/*.toml\"]\nconfig = \"tailwater.toml\"", false),
        ("config = \"absent.toml\"", false),
        ("policy_files = [\"absent.toml\"]", false),
        ("policy_files = [\"absent/*.toml\"]", false),
    ] {
        let file = dir.write("policies.test.toml", format!("{source}\n{expects}"));
        let loaded = load_tests(&file);
        assert_eq!(loaded.file.is_some(), fine, "{source}: {}", loaded.diagnostics);
        let first = loaded.diagnostics.iter().next();
        assert!(first.is_none_or(|d| d.line <= 2), "{source}: {}", loaded.diagnostics);
        if let Some(tests) = loaded.file {
            let (spec, place) = &tests.policies[0];
            assert_eq!((spec.name.as_str(), place.line), ("errors", 2));
            assert!(place.file.ends_with("policies/a.toml"), "{}", place.file);
        }
    }
}

#[test]
fn trace_ids_are_read_as_tools_show_them() {
    let id = TraceId::from_hex("0af7651916cd43dd8448eb211c80319c");
    for text in [
        "0af7651916cd43dd8448eb211c80319c",
        "0AF7651916CD43DD8448EB211C80319C",
        "af7651916cd43dd8448eb211c80319c",
        "0af76519-16cd-43dd-8448-eb211c80319c",
        "CvdlGRbNQ92ESOshHIAxnA==",
        "CvdlGRbNQ92ESOshHIAxnA",
    ] {
        assert_eq!(trace_id(text), id, "{text}");
    }
    for text in ["", "0", "xyz", "0af7651916cd43dd8448eb211c80319c0", "CvdlGRbN"] {
        assert_eq!(trace_id(text), None, "{text}");
    }
}
