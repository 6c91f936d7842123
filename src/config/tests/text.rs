//! Syntax, rendering, and texts that are meant to break the reader.

use proptest::prelude::*;

use super::{POLICY, config, each_has_one_problem, parse, problems};

#[test]
fn several_mistakes_give_exactly_that_many_diagnostics_in_order() {
    let text = "\
shutdown_timeout = 30
[receiver.grpc]
endpoint = localhost
max_connections = 0
[samplng]
decision_wait = '1s'
[sampling]
decision_wait = '1s'
decision_wait = '2s'
[[policy]]
name = 'errors'
type = 'status_code'
status_codes = ['ERR', 'OKAY']
[[policy]]
name = 'errors'
type = 'latency'
treshold_ms = 500
[[policy]]
name = 'x y'
type = 'probabilistic'
sampling_percentage = 101
";
    assert_eq!(
        problems(text),
        [
            "1:20: error: `shutdown_timeout` must be a duration in quotes, found an integer \
             | write a number and its unit, such as \"500ms\" or \"30s\"",
            "3:12: error: string values must be quoted, expected literal string",
            "4:19: error: `max_connections` must be between 1 and 100000, found `0`",
            "5:2: error: unknown key `samplng` | did you mean `sampling`?",
            "9:1: error: duplicate key `decision_wait`",
            "13:17: error: `status_codes` must be one of `OK`, `ERROR`, `UNSET`, found `ERR` \
             | did you mean `ERROR`?",
            "13:24: error: `status_codes` must be one of `OK`, `ERROR`, `UNSET`, found `OKAY` \
             | did you mean `OK`?",
            "15:8: error: the name `errors` is taken by the policy at t.toml:11:8",
            "17:1: error: unknown key `treshold_ms` in a policy of type `latency` \
             | did you mean `threshold_ms`?",
            "19:8: error: `x y` is not a policy name \
             | names are 1 to 64 letters, digits, `_`, `.` and `-`",
            "21:23: error: `sampling_percentage` must be between 0 and 100",
        ]
    );
}

#[test]
fn one_syntax_error_is_one_diagnostic() {
    let with = |text: &str| format!("{text}\n{POLICY}");
    for (text, expected) in [
        ("shutdown_timeout = ", "1:20: error: a value is missing here"),
        ("shutdown_timeout '3s'", "1:18: error: key with no value, expected `=`"),
        ("shutdown_timeout = '3s", "1:23: error: invalid literal string, expected `'`"),
        ("shutdown_timeout = \"\"\"3s", "1:20: error: this string is never closed"),
        ("[sampling\ndecision_wait = '1s'", "1:10: error: unclosed table, expected `]`"),
        ("[sampling]]", "1:11: error: unexpected key or value, expected newline, `#`"),
        ("sampling.policy_files = [", "1:25: error: this `[` is never closed"),
        ("sampling.policy_files = ['a]", "1:29: error: invalid literal string, expected `'`"),
        ("receiver.grpc = {", "1:17: error: this `{` is never closed"),
        (
            "exporter.otlp.headers = { a = , b = 1 }",
            "1:31: error: extra comma in inline table, expected value",
        ),
        ("sampling.max_trace_spans = 0xZZ", "1:30: error: invalid hexadecimal number"),
        ("sampling.stamp.tracestate = TRUE", "1:29: error: invalid boolean, expected `true`"),
        ("[sampling]\n[sampling]", "2:2: error: duplicate key `sampling`"),
    ] {
        each_has_one_problem(&[(&with(text), expected)]);
    }
    // The part of a file that still makes sense is checked too.
    assert_eq!(
        problems("shutdown_timeout = 3s\n[[policy]]\nname = 'p'\ntype = 'latency'\n"),
        [
            "1:20: error: string values must be quoted, expected literal string",
            "2:1: error: `latency` has no `threshold_ms`",
        ]
    );
}

#[test]
fn files_without_a_policy() {
    let message = "1:1: error: there is no policy, so that every trace would be dropped \
                   | add a [[policy]], or name files that have one in `policy_files`";
    each_has_one_problem(&[
        ("", message),
        ("\u{feff}", message),
        ("\r\n# nothing\r\n", message),
        ("policy = []", message),
    ]);
}

#[test]
fn columns_are_characters() {
    let text = format!("exporter.otlp.headers = {{ 'x' = 'é日本', 'y' = 1 }}\n{POLICY}");
    assert_eq!(
        problems(&text),
        [
            "1:33: error: the value of `x` must be visible ASCII, without spaces around it",
            "1:46: error: `y` must be a string, found an integer",
        ]
    );
}

#[test]
fn a_byte_order_mark_and_carriage_returns_count_as_nothing() {
    let text = format!("\u{feff}shutdown_timeout = 3\r\n{}", POLICY.replace('\n', "\r\n"));
    let (loaded, _) = parse(&text);
    assert_eq!(
        loaded.diagnostics.to_string(),
        "t.toml:1:20: error: `shutdown_timeout` must be a duration in quotes, found an integer\n  \
           |\n\
         1 | shutdown_timeout = 3\n  \
           |                    ^\n\
         help: write a number and its unit, such as \"500ms\" or \"30s\"\n"
    );
    assert_eq!(config(&text.replace(" 3\r", " '3s'\r")).policies.len(), 1);
}

#[test]
fn rendering_as_text_and_json() {
    let (loaded, _) =
        parse(&format!("{POLICY}\n\n\n\n\n\n\tsampling_percentage\t=\t'10\u{1b}[31m'\n"));
    let message = "invalid literal string, expected non-single-quote visible characters";
    assert_eq!(
        loaded.diagnostics.to_string(),
        format!(
            "t.toml:10:27: error: {message}\n   |\n\
                 10 |  sampling_percentage = '10\\u{{1b}}[31m'\n   \
                    |                           ^^^^^^\n"
        )
    );
    let json = serde_json::to_value(&loaded.diagnostics).expect("json");
    assert_eq!(
        json,
        serde_json::json!({"diagnostics": [{
            "file": "t.toml", "line": 10, "column": 27, "severity": "error",
            "message": message, "hint": null,
        }]})
    );
}

#[test]
fn long_lines_are_cut_around_the_place() {
    let text =
        format!("sampling.policy_files = ['{}', 1, '{}']", "a".repeat(5000), "b".repeat(5000));
    let (loaded, _) = parse(&format!("{text}\n{POLICY}"));
    let rendered = loaded.diagnostics.to_string();
    let at = rendered.find("t.toml:1:5030: error: `policy_files`").expect("found");
    let lines: Vec<_> = rendered[at..].lines().collect();
    assert_eq!(lines[2].len(), "1 | ".len() + 140);
    assert_eq!(lines[3], format!("  | {:40}^", ""));
}

#[test]
fn control_characters_reach_no_terminal() {
    let hostile = "\u{1b}]0;x\u{7}\u{9b}31m\u{202e}";
    let text = format!("\"{hostile}\" = 1\n[[policy]]\nname = \"{hostile}\"\ntype = '{hostile}'\n");
    let (loaded, _) = parse(&text);
    let json = serde_json::to_string(&loaded.diagnostics).expect("json");
    for out in [loaded.diagnostics.to_string(), json] {
        assert!(out.chars().all(|c| c == '\n' || (!c.is_control() && c != '\u{202e}')), "{out:?}");
    }
}

#[test]
fn nesting_bombs_are_refused() {
    assert_eq!(
        problems(&format!("x = {}", "[".repeat(100_000))),
        ["1:85: error: cannot recurse further; max recursion depth met"]
    );
    let (loaded, _) = parse(&format!("{} = 1", ["x"; 1000].join(".")));
    assert!(loaded.config.is_none());
    let (loaded, _) = parse(&format!("[{}]", ["x"; 1000].join(".")));
    assert!(loaded.config.is_none());

    // The deepest tree that the parser allows, once where it is read and once where it is dropped.
    let dotted = ["x"; 79].join(".");
    let bomb = format!("{}1{}", format!("{{{dotted} = ").repeat(79), "}".repeat(79));
    let text = format!("policy = [{bomb}]\n");
    assert_eq!(
        problems(&text),
        ["1:11: error: the policy has no `name`", "1:11: error: the policy has no `type`"]
    );
    let (loaded, _) = parse(&format!("x = {bomb}\nx = {bomb}\n{POLICY}"));
    assert!(loaded.config.is_none());
}

#[test]
fn diagnostics_are_bounded() {
    let (loaded, _) = parse(&"[[policy]]\n".repeat(1_000));
    assert_eq!(loaded.diagnostics.iter().count(), 1_000);
    assert!(loaded.diagnostics.to_string().ends_with("\n\n... and 1000 more\n"));
}

/// Pieces of files that mostly make sense but have mistakes.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "[sampling]\n",
        "[exporter.otlp]\n",
        "[[policy]]\n",
        "[[policy.policies]]\n",
        "[policy.policy]\n",
        "decision_wait",
        "headers",
        "name",
        "type",
        "policies",
        "policy",
        "status_codes",
        "values",
        "key",
        "enabled_regex_matching",
        "sampling_percentage",
        "threshold_ms",
        " = ",
        "=",
        ".",
        ",",
        "\n",
        "\r\n",
        "[",
        "]",
        "{",
        "}",
        "'",
        "\"",
        "'''",
        "\"\"\"",
        "\\",
        "#",
        "'and'",
        "'or'",
        "'not'",
        "'drop'",
        "'latency'",
        "'string_attribute'",
        "'ERROR'",
        "true",
        "1",
        "0x",
        "-1",
        "1e9",
        "nan",
        "1979-05-27",
        "'${env:PORT}'",
        "${env:",
        "é",
        "\u{feff}",
        "\u{0}",
        "\u{1b}",
        " ",
    ]);
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_text_panics(text in prop_oneof![any::<String>(), pieces()]) {
        let (loaded, _) = parse(&text);
        prop_assert_eq!(loaded.config.is_none(), loaded.diagnostics.has_errors());
        let rendered = loaded.diagnostics.to_string();
        prop_assert!(rendered.chars().all(|c| c == '\n' || !c.is_control()));
    }
}
