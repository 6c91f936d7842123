//! Policy tests: their results, reports and coverage.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use serde_json::{Value, json};

use super::{Format, Options, Tested, test};

/// A folder of this test, with these files.
fn folder(files: &[(&str, &str)]) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("tailwater-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
    let folder = std::env::temp_dir().join(name);
    fs::create_dir_all(&folder).expect("created");
    for (name, text) in files {
        fs::write(folder.join(name), text).expect("written");
    }
    folder
}

fn run(files: &[(&str, &str)], format: Format, names: &[&str]) -> Tested {
    let folder = folder(files);
    let files = names.iter().map(|name| folder.join(name)).collect();
    let tested = test(&Options { format, coverage: true, files });
    fs::remove_dir_all(folder).expect("removed");
    tested
}

/// The report in JSON for one file.
fn answer(text: &str) -> Value {
    let tested = run(&[("t.test.toml", text)], Format::Json, &["t.test.toml"]);
    assert!(!tested.diagnostics.has_errors(), "{}", tested.diagnostics);
    serde_json::from_str(&tested.text).expect("JSON")
}

/// A condition of each type, once at the top level and once on a single span.
const ALL: &str = r#"
[[policy]]
name = "trace"
type = "or"
sampling_percentage = 25
policies = [
  { type = "status_code", status_codes = ["ERROR"] },
  { type = "latency", threshold_ms = 500 },
  { type = "string_attribute", key = "s", values = ["x"] },
  { type = "numeric_attribute", key = "n", min_value = 5 },
  { type = "boolean_attribute", key = "b", value = true },
  { type = "attribute_exists", key = "e" },
  { type = "span_count", min_spans = 3 },
  { type = "trace_state", key = "ts", values = ["1"] },
  { type = "trace_flags" },
  { type = "span_name", values = ["name"] },
  { type = "service_name", values = ["service"] },
  { type = "span_kind", kinds = ["CLIENT"] },
  { type = "root_span" },
  { type = "span_duration", threshold_ms = 100 },
  { type = "span_event", names = ["event"], key = "k" },
]
[[policy]]
name = "span"
type = "same_span"
policies = [
  { type = "not", policy = { type = "status_code", status_codes = ["ERROR"] } },
  { type = "span_kind", kinds = ["SERVER"] },
]
[[policy]]
name = "veto"
type = "drop"
policies = [{ type = "string_attribute", key = "drop", values = ["yes"] }]
[[policy]]
name = "rest"
type = "probabilistic"
sampling_percentage = 10
"#;

#[test]
fn coverage_says_what_no_test_has_seen() {
    let everything = r#"
[[test]]
name = "each condition is true"
spans = [
  { id = "a", service = "service", name = "name", ms = [0, 600], tracestate = "ts=1", flags = 1,
    attributes = { s = "x", n = 5, b = true, e = 1 } },
  { kind = "CLIENT", status = "ERROR" },
  { kind = "CLIENT", events = [{ name = "event", attributes = { k = 1 } }] },
]
percentage = 25
policy = "trace"
"#;
    let of_nothing = answer(&format!("{ALL}{everything}"));
    assert_eq!(of_nothing["passed"], json!(1), "{of_nothing}");
    let coverage = &of_nothing["coverage"];
    assert_eq!(coverage["never_credited"], json!(["span", "veto", "rest"]));
    assert_eq!(coverage["never_true"], json!(["span: span_kind", "veto: string_attribute drop"]));
    let never_false = [
        "status_code",
        "latency",
        "string_attribute s",
        "numeric_attribute n",
        "boolean_attribute b",
        "attribute_exists e",
        "span_count",
        "trace_state ts",
        "trace_flags",
        "span_name",
        "service_name",
        "span_kind",
        "root_span",
        "span_duration",
        "span_event k",
    ];
    let never_false: Vec<_> = never_false.iter().map(|label| format!("trace: {label}")).collect();
    assert_eq!(coverage["never_false"], json!(never_false));

    let others = r#"
[[test]]
name = "a server"
spans = [{ parent = "absent", kind = "SERVER" }]
kept = true
policy = "span"
[[test]]
name = "vetoed"
spans = [{ parent = "absent", attributes = { drop = "yes" } }]
kept = false
policy = "veto"
matched = ["veto", "rest"]
[[test]]
name = "the rest"
spans = [{ parent = "absent" }]
percentage = 10
policy = "rest"
matched = ["rest"]
"#;
    let whole = answer(&format!("{ALL}{everything}{others}"));
    assert_eq!((&whole["passed"], &whole["failed"]), (&json!(4), &json!(0)), "{whole}");
    let nothing = json!({ "never_credited": [], "never_true": [], "never_false": [] });
    assert_eq!(whole["coverage"], nothing);
}

#[test]
fn two_files_may_test_the_same_policies() {
    let policies = "[[policy]]\nname = \"p\"\ntype = \"trace_flags\"\n";
    let first = "policy_files = [\"p.toml\"]\n[[test]]\nname = \"t\"\nspans = [{}]\nkept = false\n";
    let second = first.replace("[{}]\nkept = false", "[{ flags = 1 }]\nkept = true");
    let second = second.replace("p.toml", "./p.toml");
    let files = [("p.toml", policies), ("a.test.toml", first), ("b.test.toml", second.as_str())];
    let tested = run(&files, Format::Text, &["a.test.toml", "b.test.toml"]);
    let expected = "coverage: each policy is credited, each condition is true and false\n\
                    test result: ok. 2 passed; 0 failed\n";
    assert_eq!((tested.text.as_str(), tested.is_fine), (expected, true), "{}", tested.diagnostics);
}

#[test]
fn a_trigger_before_its_time_decides_as_it_would() {
    let text = r#"
[[policy]]
name = "veto"
type = "drop"
policies = [{ type = "attribute_exists", key = "a", invert_match = true }]
[[policy]]
name = "all"
type = "always_sample"
limit = { spans_per_second = 1 }
"#;
    let with = |trigger: &str, kept: bool| {
        format!(
            "[[test]]\nname = \"{trigger}\"\nspans = [{{}}]\n\
             trigger = \"{trigger}\"\nkept = {kept}\n"
        )
    };
    let tests: String = [("decision_wait", false), ("root_received", false), ("memory", true)]
        .into_iter()
        .chain([("trace_limit", true), ("shutdown", true)])
        .map(|(trigger, kept)| with(trigger, kept))
        .collect();
    let answer = answer(&format!("{text}{tests}"));
    assert_eq!((&answer["passed"], &answer["failed"]), (&json!(5), &json!(0)), "{answer}");
}

#[test]
fn failures_name_all_policies() {
    let text = r#"
[[policy]]
name = "errors"
type = "status_code"
status_codes = ["ERROR"]
[[policy]]
name = "hidden"
type = "always_sample"
shadow = true
[[policy]]
name = "rest"
type = "probabilistic"
sampling_percentage = 33.3
[[test]]
name = "a <b> & \"c\""
spans = [{}]
kept = true
policy = "errors"
matched = ["errors"]
"#;
    let name = "t.test.toml";
    let tested = run(&[(name, text)], Format::Text, &[name]);
    let line = "t.test.toml:14: error: test \"a <b> & \"c\"\": expected 100 %, got 33.3 %; \
                expected policy `errors`, got `rest`; expected matched [errors], got [rest]\n    \
                errors: did not match\n    rest: matched\n";
    assert!(tested.text.contains(line), "{}", tested.text);
    assert!(tested.text.ends_with("test result: FAILED. 0 passed; 1 failed\n"), "{}", tested.text);
    assert!(!tested.is_fine);
    let junit = run(&[(name, text)], Format::Junit, &[name, "absent.test.toml"]);
    let suites = "<testsuites name=\"tailwater\" tests=\"2\" failures=\"1\" errors=\"1\">";
    for part in [suites, "a &lt;b&gt; &amp; &quot;c&quot;", "<failure message=\"expected 100 %"] {
        assert!(junit.text.contains(part), "{}", junit.text);
    }
    assert!(junit.diagnostics.has_errors(), "the absent file is diagnosed");
}

#[test]
fn a_recorded_trace_is_picked_by_its_id() {
    let span = |id: &str, code: u8| {
        format!(r#"{{"traceId":"{id}","spanId":"b7ad6b7169203331","status":{{"code":{code}}}}}"#)
    };
    let document = |spans: &[String]| {
        format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{}]}}]}}]}}"#, spans.join(","))
    };
    let (a, b) = ("0af7651916cd43dd8448eb211c80319c", "00000000000000000000000000000bad");
    let one = document(&[span(a, 2)]);
    let two = document(&[span(a, 2), span(b, 1)]);
    let broken = format!("{one}\nbroken\n");
    let policy =
        "[[policy]]\nname = \"errors\"\ntype = \"status_code\"\nstatus_codes = [\"ERROR\"]\n";
    let test = |file: &str, id: &str, kept: bool| {
        format!("{policy}[[test]]\nname = \"t\"\nfile = \"{file}\"\n{id}\nkept = {kept}\n")
    };
    let run = |text: &str| {
        let files = [("one.json", &one), ("two.json", &two), ("broken.json", &broken)];
        let files = files.map(|(name, text)| (name, text.as_str()));
        let files = [&files[..], &[("t.test.toml", text), ("empty.json", "")]].concat();
        run(&files, Format::Json, &["t.test.toml"])
    };
    for (file, id, kept) in [
        ("one.json", "", true),
        ("two.json", "trace_id = \"0AF7651916CD43DD8448EB211C80319C\"", true),
        ("two.json", "trace_id = \"bad\"", false),
    ] {
        let tested = run(&test(file, id, kept));
        assert!(tested.is_fine, "{file} {id}: {} {}", tested.diagnostics, tested.text);
    }
    for (file, id, expected) in [
        ("two.json", "", "has more than one trace"),
        ("one.json", "trace_id = \"bad\"", "has no trace 00000000000000000000000000000bad"),
        ("absent.json", "", "cannot read"),
        ("broken.json", "", "broken.json:2: this is not JSON"),
        ("empty.json", "", "has no spans"),
    ] {
        let tested = run(&test(file, id, true));
        let first = tested.diagnostics.iter().next().expect("a diagnostic");
        assert!(first.message.contains(expected), "{file}: {}", first.message);
        assert_eq!((first.line, first.column), (7, 8), "{file}");
        let answer: Value = serde_json::from_str(&tested.text).expect("JSON");
        assert_eq!((&answer["failed"], tested.is_fine), (&json!(1), false));
    }
}

/// A test that names a policy that takes no part fails by itself.
#[test]
fn a_test_that_names_an_expired_policy_fails_alone() {
    let text = r#"
[[policy]]
name = "incident"
type = "always_sample"
expires = 2020-01-01T00:00:00Z
[[policy]]
name = "trial"
type = "always_sample"
shadow = true
[[policy]]
name = "rest"
type = "probabilistic"
sampling_percentage = 10
[[test]]
name = "of the incident"
spans = [{}]
policy = "incident"
[[test]]
name = "of the trial"
spans = [{}]
matched = ["trial", "rest"]
[[test]]
name = "of the rest"
spans = [{}]
percentage = 10
policy = "rest"
"#;
    let name = "t.test.toml";
    let tested = run(&[(name, text)], Format::Text, &[name]);
    for line in [
        "t.test.toml:14: error: test \"of the incident\": the policy `incident` has expired and \
         takes no part in tests\n    rest: matched\n",
        "t.test.toml:18: error: test \"of the trial\": `trial` is a shadow policy and takes no \
         part in tests\n    rest: matched\n",
    ] {
        assert!(tested.text.contains(line), "{}", tested.text);
    }
    assert!(tested.text.ends_with("test result: FAILED. 1 passed; 2 failed\n"), "{}", tested.text);
    assert!(!tested.is_fine && !tested.diagnostics.has_errors(), "{}", tested.diagnostics);
}

/// A file that cannot be used is named in every format.
#[test]
fn mistakes_in_a_test_file_are_in_the_report() {
    let policy = "[[policy]]\nname = \"p\"\ntype = \"always_sample\"\n";
    let fine = format!("{policy}[[test]]\nname = \"t\"\nspans = [{{}}]\nkept = true\n");
    let wrong = format!("{fine}matched = [\"q\"]\npolcy = 5\n");
    let files = [("fine.test.toml", fine.as_str()), ("wrong.test.toml", &wrong)];
    let names = ["fine.test.toml", "wrong.test.toml", "absent.test.toml"];
    let tested = run(&files, Format::Json, &names);
    let answer: Value = serde_json::from_str(&tested.text).expect("JSON");
    assert_eq!((&answer["passed"], &answer["failed"]), (&json!(1), &json!(0)), "{answer}");
    let errors = answer["errors"].as_array().expect("a list");
    let errors: Vec<_> = errors.iter().filter_map(Value::as_str).collect();
    assert!(errors.len() == 2 && errors[0].contains("absent.test.toml:1:1: error: "), "{errors:?}");
    let unknown = "wrong.test.toml:9:1: error: unknown key `polcy` in a test";
    assert!(errors[1].ends_with(unknown), "{errors:?}");
    assert!(!tested.is_fine);
    let of_fine = run(&files, Format::Json, &names[..1]);
    let of_fine: Value = serde_json::from_str(&of_fine.text).expect("JSON");
    assert_eq!(of_fine["errors"], json!([]));

    let junit = run(&files, Format::Junit, &names).text;
    assert!(junit.contains(&format!("{unknown}</error>")), "{junit}");
}
