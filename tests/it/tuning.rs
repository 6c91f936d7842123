//! `tailwater test` and `tailwater replay` on the command line and in CI.

mod alike;

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

use crate::{
    cli::tailwater,
    harness::{Directory, request, span},
};

const POLICIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/policies");

fn out(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("UTF-8")
}

fn err(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("UTF-8")
}

fn as_json(output: &Output) -> Value {
    serde_json::from_str(out(output)).unwrap_or_else(|_| panic!("{}{}", out(output), err(output)))
}

/// The shipped test files.
fn shipped() -> Vec<String> {
    let entries = fs::read_dir(POLICIES).expect("readable");
    let paths = entries.map(|entry| entry.expect("readable").path().display().to_string());
    let mut files: Vec<_> = paths.filter(|path| path.ends_with(".test.toml")).collect();
    files.sort();
    files
}

/// Scenario: the tests of every shipped policy file, together and separately.
/// Guarantees: they pass, credit every policy, and see each condition true and false.
#[test]
fn shipped_policies_are_tested_completely() {
    let files = shipped();
    assert!(files.len() > 10, "{files:?}");
    let single = files.iter().map(|file| vec![file.as_str()]);
    let all: Vec<&str> = files.iter().map(String::as_str).collect();
    for files in single.chain([all]) {
        let arguments = ["test", "--coverage", "--format", "json"];
        let output = tailwater(&[&arguments[..], &files].concat());
        let answer = as_json(&output);
        assert_eq!(err(&output), "", "{files:?}");
        assert_eq!((output.status.code(), &answer["failed"]), (Some(0), &json!(0)), "{answer:#}");
        assert_ne!(answer["passed"], json!(0), "{files:?}");
        let nothing = json!({ "never_credited": [], "never_true": [], "never_false": [] });
        assert_eq!(answer["coverage"], nothing, "{files:?}");
    }
}

const TESTS: &str = r#"
[[policy]]
name = "slow"
type = "latency"
threshold_ms = 500
[[policy]]
name = "baseline"
type = "probabilistic"
sampling_percentage = 10
[[test]]
name = "slow is kept"
spans = [
  { id = "a", service = "gateway", name = "GET /", kind = "SERVER", ms = [0, 900], attributes = { "http.route" = "/" } },
  { parent = "a", service = "payment", name = "charge", ms = [40, 840], status = "ERROR" },
]
percentage = 100
policy = "slow"
matched = ["slow", "baseline"]
[[test]]
name = "fast is kept"
spans = [{}]
kept = true
"#;

/// Scenario: a file with a passing and a failing test, in each format; a file with a mistake; a
/// missing file; no file.
/// Guarantees: results go to standard output, diagnostics to standard error, and the exit code
/// tells them apart.
#[test]
fn tests_are_reported_in_each_format() {
    let directory = Directory::new();
    let file = directory.file("t.test.toml", TESTS);
    let text = tailwater(&["test", &file]);
    assert_eq!((text.status.code(), err(&text)), (Some(1), ""));
    let expected = format!(
        "{file}:19: error: test \"fast is kept\": expected 100 %, got 10 %\n    slow: did not match\n    \
         baseline: matched\ntest result: FAILED. 1 passed; 1 failed\n"
    );
    assert_eq!(out(&text), expected);

    let answer = as_json(&tailwater(&["test", "--format", "json", &file]));
    let expected = json!({
        "tests": [
            { "file": file, "line": 10, "name": "slow is kept", "passed": true, "percentage": 100,
              "policy": "slow", "matched": ["slow", "baseline"] },
            { "file": file, "line": 19, "name": "fast is kept", "passed": false, "percentage": 10,
              "policy": "baseline", "matched": ["baseline"] },
        ],
        "passed": 1,
        "failed": 1,
        "errors": [],
    });
    assert_eq!(answer, expected);

    let junit = tailwater(&["test", "--format", "junit", &file]);
    let suites = "<testsuites name=\"tailwater\" tests=\"2\" failures=\"1\" errors=\"0\">";
    assert!(out(&junit).contains(suites), "{}", out(&junit));
    assert_eq!(out(&junit).matches("<testcase ").count(), 2);

    let fine = directory.file("fine.test.toml", &TESTS.replace("kept = true", "percentage = 10.0"));
    let output = tailwater(&["test", &fine]);
    assert_eq!(
        (output.status.code(), out(&output)),
        (Some(0), "test result: ok. 2 passed; 0 failed\n")
    );

    let wrong = directory.file("wrong.test.toml", &TESTS.replace("kept = true", "keep = true"));
    let output = tailwater(&["test", &fine, &wrong]);
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).starts_with(&format!("{wrong}:22:1: error: unknown key `keep`")));
    assert!(
        out(&output).starts_with("test result: FAILED. 2 passed; 0 failed"),
        "{}",
        out(&output)
    );
    let output = tailwater(&["test", "--format", "json", &fine, &wrong]);
    let answer = as_json(&output);
    let expected = format!("{wrong}:22:1: error: unknown key `keep` in a test");
    assert_eq!(answer["errors"], json!([expected]));
    assert_eq!((&answer["passed"], output.status.code()), (&json!(2), Some(1)));
    // `check` takes test files, too.
    let output = tailwater(&["check", &fine]);
    assert_eq!((output.status.code(), out(&output)), (Some(0), &*format!("{fine}: ok, 2 tests\n")));
    assert_eq!(tailwater(&["check", &wrong]).status.code(), Some(1));
    assert_eq!(tailwater(&["test", "/absent.test.toml"]).status.code(), Some(1));
    assert_eq!(tailwater(&["test"]).status.code(), Some(2));
}

/// The input of the tests below: traces 1 to 4, of which the first fails and the second is slow.
fn requests() -> Vec<Vec<u8>> {
    let traces = (1..=4).map(|number| {
        let mut span = span(number, 1, None);
        span.status = if number == 1 { crate::harness::error() } else { None };
        let millis = if number == 2 { 900 } else { 5 };
        span.end_time_unix_nano = span.start_time_unix_nano + millis * 1_000_000;
        prost::Message::encode_to_vec(&request("shop", vec![span]))
    });
    traces.collect()
}

/// Frames the requests as the Collector's file exporter does.
fn framed(requests: &[Vec<u8>]) -> Vec<u8> {
    let length = |request: &Vec<u8>| u32::try_from(request.len()).expect("short").to_be_bytes();
    requests.iter().flat_map(|request| [&length(request)[..], request].concat()).collect()
}

fn with_input(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tailwater"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("spawned");
    child.stdin.take().expect("piped").write_all(input).expect("read");
    child.wait_with_output().expect("ended")
}

/// Scenario: four traces as a file, on standard input, as one request, compressed.
/// Guarantees: the report is the same and complete; nothing but the report is printed.
#[test]
fn a_replay_says_what_is_kept_by_policy() {
    let directory = Directory::new();
    let frames = framed(&requests());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&frames).expect("written");
    let inputs = [
        ("frames", frames.clone()),
        ("request", requests().concat()),
        ("frames.gz", gzip.finish().expect("finished")),
        ("frames.zst", zstd::encode_all(&frames[..], 1).expect("compressed")),
    ];
    let default = format!("{POLICIES}/default.toml");
    let against = directory.file(
        "all.toml",
        "[[policy]]\nname = \"fast\"\ntype = \"latency\"\nthreshold_ms = 0\nupper_threshold_ms = 5\n",
    );
    for (name, bytes) in inputs {
        let path = directory.0.join(name);
        fs::write(&path, &bytes).expect("written");
        let path = path.display().to_string();
        let json = ["replay", "--format", "json"];
        let from_file = tailwater(&[&json[..], &[&path]].concat());
        let named = tailwater(&[&json[..], &["--config", &default, &path]].concat());
        let from_stdin = with_input(&[&json[..], &["-"]].concat(), &bytes);
        for output in [&from_file, &named, &from_stdin] {
            assert_eq!((output.status.code(), err(output)), (Some(0), ""), "{name}");
            assert_eq!(out(output), out(&from_file), "{name}");
        }
        let answer = as_json(&from_file);
        assert_eq!(
            (&answer["input"]["traces"], &answer["input"]["skipped"]),
            (&json!(4), &json!(0))
        );
        assert_eq!(answer["input"]["weighted"], json!(false));
        assert!(answer.get("against").is_none() && answer.get("changed").is_none());
        let policies = answer["result"]["policies"].as_array().expect("a list");
        let rows: Vec<_> = policies
            .iter()
            .map(|row| (row["policy"].as_str().expect("a name"), row["matched_traces"].clone()))
            .collect();
        let expected =
            [("errors", json!(1)), ("slow", json!(1)), ("baseline", json!(4)), ("none", json!(0))];
        assert_eq!(rows, expected);
        // The ids of these traces are unlucky: only traces kept at 100 % are kept.
        assert_eq!(answer["result"]["traces"], json!(2));

        let both = as_json(&tailwater(&[&json[..], &["--against", &against, &path]].concat()));
        assert_eq!(both["result"], answer["result"]);
        assert_eq!(both["against"]["traces"], json!(3));
        let examples = |change: &str| both["changed"][change]["examples"].as_array().map(Vec::len);
        assert_eq!(both["changed"]["newly_kept"]["traces"], json!(2), "{both:#}");
        assert_eq!(both["changed"]["newly_dropped"]["traces"], json!(1));
        assert_eq!((examples("newly_kept"), examples("newly_dropped")), (Some(2), Some(1)));
    }
}

/// Scenario: a file with a broken frame between valid ones, a missing file, a file without traces,
/// and unusable configurations.
/// Guarantees: each is named with its place and counted; the rest is decided; the exit code is 1.
#[test]
fn unreadable_parts_are_named_and_skipped() {
    let directory = Directory::new();
    let mut requests = requests();
    // The length of the resource in a ResourceSpans exceeds the ResourceSpans.
    let second = requests[1].len();
    requests[1][if second < 130 { 3 } else { 4 }] = 0x7f;
    let at = 4 + requests[0].len();
    let path = directory.0.join("frames");
    fs::write(&path, framed(&requests)).expect("written");
    let path = path.display().to_string();
    let other = directory.file("other", "neither traces\n");
    let output = tailwater(&["replay", "--format", "json", &path, "/absent", &other]);
    assert_eq!(output.status.code(), Some(1));
    let answer = as_json(&output);
    assert_eq!((&answer["input"]["traces"], &answer["input"]["skipped"]), (&json!(3), &json!(3)));
    let lines: Vec<_> = err(&output).lines().collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[0].starts_with(&format!("{path}: byte {at}: ")), "{lines:?}");
    assert!(lines[1].starts_with("/absent: cannot be read"), "{lines:?}");
    assert!(lines[2].starts_with(&format!("{other}:1: ")), "{lines:?}");

    let wrong = directory.file("wrong.toml", "[[policy]]\nname = \"a\"\n");
    let output = tailwater(&["replay", "--config", &wrong, &path]);
    assert_eq!((output.status.code(), out(&output)), (Some(1), ""));
    assert!(err(&output).starts_with(&format!("{wrong}:1:1: error: ")), "{}", err(&output));
    assert_eq!(tailwater(&["replay"]).status.code(), Some(2));
    assert_eq!(tailwater(&["replay", "--memory-limit-mib", "0", &path]).status.code(), Some(2));
}

/// Scenario: the examples of the book's page about tuning.
/// Guarantees: they work as written.
#[test]
fn the_examples_of_the_book_work() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/src/tuning.md");
    let page = fs::read_to_string(page).expect("readable");
    let block = |heading: &str, kind: &str| {
        let (_, rest) = page.split_once(heading).unwrap_or_else(|| panic!("no {heading}"));
        let (_, rest) = rest.split_once(&format!("```{kind}\n")).expect("a block");
        rest.split_once("\n```").expect("its end").0.to_owned()
    };
    let directory = Directory::new();
    directory.file("shop.toml", &block("## Test policies", "toml"));
    let tests = directory.file("shop.test.toml", &block("## Test policies", "toml,fragment"));
    let output = tailwater(&["test", "--coverage", &tests]);
    assert_eq!((output.status.code(), err(&output)), (Some(0), ""), "{}", out(&output));
    let said = block("## Test policies", "text");
    assert_eq!(out(&output).trim_end(), said);
}
