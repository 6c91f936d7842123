//! The places where a processor may be in a file, and the places of the diagnostics about it.

use super::{convert, convert_one};

const WRONG: &str = "tail_sampling:\n  policies:\n  - name: p\n    type: wrong\n";

fn indented(text: &str, spaces: usize) -> String {
    text.lines().map(|line| format!("{:spaces$}{line}\n", "")).collect()
}

#[test]
fn it_is_found_at_any_depth() {
    let processors = indented(WRONG, 2);
    let collector = format!(
        "receivers: {{}}\nprocessors:\n{processors}service:\n  pipelines:\n    traces:\n      \
         processors: [tail_sampling]\n"
    );
    for (text, line, column) in [
        (WRONG.to_owned(), 4, 11),
        (collector.clone(), 6, 13),
        (format!("mode: deployment\nconfig:\n{}", indented(&collector, 2)), 8, 15),
        (
            format!("kind: OpenTelemetryCollector\nspec:\n  config:\n{}", indented(&collector, 4)),
            9,
            17,
        ),
        (format!("a: 1\n---\n{collector}"), 8, 13),
        (format!("\u{feff}{collector}"), 6, 13),
        (collector.replace('\n', "\r\n"), 6, 13),
        ("{processors: {tail_sampling: {policies: [{name: ü, type: wrong}]}}}".to_owned(), 1, 58),
    ] {
        let place = format!("{line}:{column}: error: the Collector has no policy type `wrong`");
        assert_eq!(convert(&text).errors(), [place], "{text}");
    }
}

#[test]
fn it_is_found_in_a_block_of_text() {
    let config_map = |text: &str| {
        format!(
            "kind: ConfigMap\ndata:\n  other: |\n    a: [tail_sampling]\n  relay: |\n{}",
            indented(text, 4)
        )
    };
    for (text, line, column) in [
        (config_map(WRONG), 9, 15),
        (config_map(&format!("# tail_sampling\n\n{WRONG}")), 11, 15),
        (config_map(&format!("inner: |-\n{}", indented(WRONG, 2))), 10, 17),
        (config_map(WRONG).replace('\n', "\r\n"), 9, 15),
        ("- relay: |\n    tail_sampling: {}\n".to_owned(), 2, 20),
    ] {
        let converted = convert(&text);
        let errors = converted.errors();
        let place = format!("{line}:{column}: error: ");
        assert!(errors.len() == 1 && errors[0].starts_with(&place), "{text}\n{errors:?}");
    }
    // A text in quotes has no lines of its own in the file.
    let quoted = format!("data:\n  relay: {:?}\n", WRONG);
    assert_eq!(
        convert(&quoted).errors(),
        ["2:10: error: the Collector has no policy type `wrong`"]
    );
}

#[test]
fn places_inside_of_a_condition_hold_in_a_block_of_text() {
    let text = "tail_sampling:\n  policies:\n  - name: p\n    type: ottl_condition\n    \
                ottl_condition: {span: ['name == \"a\" and Len(name) > 3']}\n";
    assert_eq!(
        convert(text).errors(),
        ["5:46: error: the function `Len` has no counterpart in Tailwater"]
    );
    let block = format!("data:\n  relay: |\n{}", indented(text, 4));
    assert_eq!(
        convert(&block).errors(),
        ["7:50: error: the function `Len` has no counterpart in Tailwater"]
    );
    let plain = text.replace("{span: ['", "\n      span:\n      - ").replace("']}", "");
    assert_eq!(
        convert(&plain).errors(),
        ["7:25: error: the function `Len` has no counterpart in Tailwater"]
    );
}

#[test]
fn a_second_block_is_read_like_the_first() {
    // Nodes of an earlier text must not be mistaken for those of the next one.
    let blocks: String = (0..50)
        .map(|n| {
            format!(
                "  k{n}: |\n    service: {{pipelines: {{traces: {{processors: \
            [tail_sampling]}}}}}}\n"
            )
        })
        .collect();
    let text = format!("data:\n{blocks}  last: |\n{}", indented(WRONG, 4));
    assert_eq!(convert(&text).errors().len(), 1);
}

#[test]
fn a_template_is_told_from_a_file_without_a_processor() {
    let template = "data:\n  relay: |\n    tail_sampling:\n      {{- toYaml .Values.policies \
        }}\n      \
                    decision_wait: 5s\n";
    let converted = convert(template);
    let errors = converted.errors();
    assert_eq!(errors[0], "1:1: error: there is no `tail_sampling` in this file");
    assert!(errors[1].starts_with("4:9: error: the text is not YAML: "), "{errors:?}");
    assert_eq!(converted.toml, "");
}

#[test]
fn one_of_several_is_named() {
    let text = "processors:\n  tail_sampling/a: {policies: [{name: a, type: always_sample}]}\n  \
                tail_sampling/b: {policies: [{name: b, type: always_sample}]}\n";
    let converted = convert(text);
    assert_eq!(
        converted.errors(),
        ["1:1: error: the file has several processors: choose one with --processor: \
          `tail_sampling/a`, `tail_sampling/b`"]
    );
    assert_eq!(converted.toml, "");
    let converted = convert_one(text, Some("tail_sampling/b"));
    assert_eq!(converted.errors(), Vec::<&str>::new());
    assert!(converted.toml.contains("name = \"b\""));
    assert_eq!(
        convert_one(text, Some("tail_sampling")).errors(),
        ["1:1: error: there is no `tail_sampling` in this file, but `tail_sampling/a`, \
            `tail_sampling/b`"]
    );
    assert_eq!(
        convert_one("a: 1", Some("tail_sampling")).errors(),
        ["1:1: error: there is no `tail_sampling` in this file"]
    );
    let twice = format!("{text}---\n{text}");
    assert_eq!(
        convert_one(&twice, Some("tail_sampling/a")).errors(),
        ["1:1: error: `tail_sampling/a` is in the file 2 times: leave only one"]
    );
}

#[test]
fn anchors_and_merges_are_followed() {
    let text = "x: &slow\n  name: slow\n  type: latency\n  latency: &l {threshold_ms: 5}\n\
                tail_sampling:\n  policies:\n  - *slow\n  - <<: *slow\n    name: slower\n    \
                latency: {<<: *l, upper_threshold_ms: 9}\n";
    let converted = convert(text);
    assert_eq!(converted.errors(), Vec::<&str>::new());
    assert_eq!(
        converted.policies(),
        "[[policy]]\nname = \"slow\"\ntype = \"latency\"\nthreshold_ms = 5\n[[policy]]\n\
         name = \"slower\"\ntype = \"latency\"\nthreshold_ms = 5\nupper_threshold_ms = 9\n"
    );
}

#[test]
fn dollars_and_other_notations() {
    let text = "tail_sampling:\n  policies:\n  - name: p\n    type: string_attribute\n    \
                string_attribute:\n      key: \"a$$b\"\n      \
                values: ['^/x$$', \"\\u00e9\", 'it''s', \
                '$${not_a_variable}']\n";
    let converted = convert(text);
    assert_eq!(converted.errors(), Vec::<&str>::new());
    assert!(
        converted.policies().contains(
            "key = \"a$b\"\nvalues = [\"^/x$\", \"é\", \"it's\", \"${not_a_variable}\"]\n"
        ),
        "{}",
        converted.policies()
    );
}
