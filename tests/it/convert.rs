//! `tailwater convert` as people run it: exit codes, outputs, several processors, missing files.

use std::{fs, process::Output};

use crate::{cli::tailwater, harness::Directory};

const GOOD: &str = "processors:\n  tail_sampling:\n    decision_wait: 10s\n    policies:\n    - \
    name: errors\n      \
                    type: status_code\n      status_code: {status_codes: [ERROR]}\n";
const TWO: &str = "processors:\n  tail_sampling/a: {policies: [{name: one, type: \
    always_sample}]}\n  \
                   tail_sampling/b: {policies: [{name: two, type: wrong}, \
                   {name: rest, type: trace_flags}]}\n";

fn told(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    (output.status.code().expect("an exit code"), text(&output.stdout), text(&output.stderr))
}

fn convert(directory: &Directory, text: &str, more: &[&str]) -> (i32, String, String) {
    let file = directory.file("c.yaml", text);
    let mut arguments = vec!["convert", &file];
    arguments.extend(more);
    told(&tailwater(&arguments))
}

/// Scenario: a processor that can be converted whole.
/// Guarantees: TOML and nothing else on standard output, notes on standard error, exit code 0, and
/// `check` takes the TOML.
#[test]
fn a_whole_conversion_succeeds() {
    let directory = Directory::new();
    let (code, out, errors) = convert(&directory, GOOD, &[]);
    assert_eq!(code, 0, "{errors}");
    assert!(out.contains("decision_wait = \"10s\"\n") && out.contains("name = \"errors\"\n"));
    assert!(errors.contains("c.yaml:3:5: note: ") && !errors.contains("error:"), "{errors}");
    let name = directory.file("made.toml", "");
    let (code, out_to_file, _) = convert(&directory, GOOD, &["--output", &name]);
    assert_eq!((code, out_to_file.as_str()), (0, ""));
    assert_eq!(fs::read_to_string(&name).expect("written"), out);
    let (code, _, errors) = told(&tailwater(&["check", &name]));
    assert_eq!(code, 0, "{errors}");
}

/// Scenario: a policy of a type that the Collector does not have, beside one that it has.
/// Guarantees: exit code 1, the error at its line, the rest converted.
#[test]
fn a_refused_policy_is_told_by_the_exit_code() {
    let directory = Directory::new();
    let (code, out, errors) = convert(&directory, TWO, &["--processor", "tail_sampling/b"]);
    assert_eq!(code, 1);
    assert!(
        errors.contains("c.yaml:3:50: error: the Collector has no policy type `wrong`"),
        "{errors}"
    );
    let summary = "c.yaml: policies: 1 converted, 1 not; see the errors above\n";
    assert!(errors.ends_with(summary), "{errors}");
    assert!(out.contains("# Not converted: the policy `two`.\n"), "{out}");
    assert!(out.contains("name = \"rest\"\ntype = \"trace_flags\"\n"), "{out}");
}

/// Scenario: several processors, none, a file that is missing, one that cannot be written, bad
/// arguments.
/// Guarantees: exit code 1 or 2, words that name what is wrong, and nothing on standard output.
#[test]
fn impossible_conversions_are_reported() {
    let directory = Directory::new();
    let (code, out, errors) = convert(&directory, TWO, &[]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(errors.contains("--processor: `tail_sampling/a`, `tail_sampling/b`"), "{errors}");
    let (code, out, errors) = convert(&directory, "a: [1\n", &[]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(errors.contains("c.yaml:2:1: error: "), "{errors}");
    let missing = directory.file("c.yaml", "") + ".missing.yaml";
    let (code, out, errors) = told(&tailwater(&["convert", &missing]));
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(errors.contains("missing.yaml"), "{errors}");
    let nowhere = directory.file("c.yaml", "") + "/folder.toml";
    let (code, _, errors) = convert(&directory, GOOD, &["--output", &nowhere]);
    assert_eq!(code, 1);
    assert!(errors.contains("error: cannot write ") && errors.contains("folder.toml"), "{errors}");
    assert_eq!(told(&tailwater(&["convert"])).0, 2);
    assert_eq!(told(&tailwater(&["convert", "--wrong", "x"])).0, 2);
}
