//! Each policy type: its converted form, and each difference in meaning.

use super::{convert, convert_policy, of_type};

/// The type and keys of the policy that a block becomes.
fn rule(kind: &str, block: &str) -> String {
    let converted = of_type(kind, block);
    assert_eq!(converted.errors(), Vec::<&str>::new(), "{kind} {block}");
    converted.policies().lines().skip(2).collect::<Vec<_>>().join(" ")
}

/// Type, block, and the policy that it becomes.
const CONDITIONS: [(&str, &str, &str); 25] = [
    ("always_sample", "{}", "type = \"always_sample\""),
    ("trace_flags", "{}", "type = \"trace_flags\""),
    ("latency", "{threshold_ms: 500}", "type = \"latency\" threshold_ms = 500"),
    // Numbers are those of YAML 1.1.
    ("latency", "{threshold_ms: 0500}", "type = \"latency\" threshold_ms = 320"),
    ("latency", "{threshold_ms: 1e3}", "type = \"latency\" threshold_ms = 1000"),
    ("latency", "{threshold_ms: '500'}", "type = \"latency\" threshold_ms = 500"),
    ("status_code", "{status_codes: ERROR}", "type = \"status_code\" status_codes = [\"ERROR\"]"),
    (
        "string_attribute",
        "{key: k, values: 'a,b'}",
        "type = \"string_attribute\" key = \"k\" values = [\"a\", \"b\"]",
    ),
    ("ottl_condition", "{error_mode: IGNORE, span: IsRootSpan()}", "type = \"root_span\""),
    (
        "latency",
        "{threshold_ms: 5, upper_threshold_ms: 9}",
        "type = \"latency\" threshold_ms = 5 upper_threshold_ms = 9",
    ),
    (
        "status_code",
        "{status_codes: [ERROR, OK]}",
        "type = \"status_code\" status_codes = [\"ERROR\", \"OK\"]",
    ),
    (
        "string_attribute",
        "{key: k, values: [a, \"b\\\"c\"], invert_match: true}",
        "type = \"string_attribute\" key = \"k\" values = [\"a\", 'b\"c'] invert_match = true",
    ),
    (
        "string_attribute",
        "{key: k, values: ['^/v\\d'], enabled_regex_matching: true, cache_max_size: 10}",
        "type = \"string_attribute\" key = \"k\" values = [\"^/v[0-9]\"] enabled_regex_matching \
        = true",
    ),
    (
        "numeric_attribute",
        "{key: k, min_value: -5, max_value: 9}",
        "type = \"numeric_attribute\" key = \"k\" min_value = -5 max_value = 9",
    ),
    (
        "numeric_attribute",
        "{key: k, max_value: 9}",
        "type = \"numeric_attribute\" key = \"k\" max_value = 9",
    ),
    (
        "boolean_attribute",
        "{key: k, value: true}",
        "type = \"boolean_attribute\" key = \"k\" value = true",
    ),
    (
        "span_count",
        "{min_spans: 2, max_spans: 9}",
        "type = \"span_count\" min_spans = 2 max_spans = 9",
    ),
    ("span_count", "{min_spans: -1}", "type = \"span_count\" min_spans = 0"),
    (
        "trace_state",
        "{key: k, values: [a, '']}",
        "type = \"trace_state\" key = \"k\" values = [\"a\"]",
    ),
    (
        "probabilistic",
        "{sampling_percentage: 12.5}",
        "type = \"probabilistic\" sampling_percentage = 12.5",
    ),
    (
        "probabilistic",
        "{sampling_percentage: 150}",
        "type = \"probabilistic\" sampling_percentage = 100",
    ),
    (
        "probabilistic",
        "{sampling_percentage: -0.0}",
        "type = \"probabilistic\" sampling_percentage = 0",
    ),
    ("probabilistic", "{hash_salt: x}", "type = \"probabilistic\" sampling_percentage = 0"),
    (
        "rate_limiting",
        "{spans_per_second: 35}",
        "type = \"always_sample\" limit = { spans_per_second = 35 }",
    ),
    (
        "bytes_limiting",
        "{bytes_per_second: 1_000, burst_capacity: 9}",
        "type = \"always_sample\" limit = { bytes_per_second = 1000, burst_capacity = 9 }",
    ),
];

#[test]
fn conditions_become_those_of_the_same_name() {
    for (kind, block, wanted) in CONDITIONS {
        assert_eq!(rule(kind, block), wanted, "{kind} {block}");
    }
}

#[test]
fn every_difference_is_noted() {
    for (kind, block, words) in [
        ("latency", "{threshold_ms: 1}", "the Collector truncates durations to whole milliseconds"),
        (
            "latency",
            "{threshold_ms: 1, upper_threshold_ms: 2}",
            "span by span, in the order of arrival",
        ),
        ("status_code", "{status_codes: [UNSET]}", "`UNSET` keeps nearly every trace"),
        (
            "string_attribute",
            "{key: k, values: [a], invert_match: true}",
            "`invert_match` keeps every trace",
        ),
        ("string_attribute", "{key: k, values: [a, '']}", "the Collector ignores empty `values`"),
        (
            "string_attribute",
            "{key: k, values: [true, 500]}",
            "this has no quotes, so the Collector refuses it; converted as a string",
        ),
        (
            "string_attribute",
            "{key: k, values: [], invert_match: true}",
            "the policy always matches",
        ),
        ("string_attribute", "{key: k, values: [a]}", "test each element of a list"),
        (
            "string_attribute",
            "{key: k, values: ['.*'], enabled_regex_matching: true}",
            "the expression matches the empty string",
        ),
        (
            "string_attribute",
            "{key: k, values: [a], cache_max_size: 5}",
            "6:63: note: `cache_max_size` has no counterpart",
        ),
        ("latency", "{threshold_ms: '5'}", "6:31: note: this is in quotes"),
        ("boolean_attribute", "{key: k, value: 'true'}", "this is in quotes"),
        ("ottl_condition", "{error_mode: silent, span: [IsRootSpan()]}", "`error_mode` has no"),
        ("trace_state", "{key: k, values: [a, 'b=c']}", "that no tracestate can have are left out"),
        ("numeric_attribute", "{key: k, min_value: 1}", "doubles count as numbers"),
        ("boolean_attribute", "{key: k, value: false}", "values that are not booleans as `false`"),
        (
            "boolean_attribute",
            "{key: k, value: true, invert_match: true}",
            "in which no span has the value",
        ),
        (
            "probabilistic",
            "{sampling_percentage: 1}",
            "the same share of traces, but different ones",
        ),
        ("rate_limiting", "{spans_per_second: 1}", "highest randomness of each tick"),
        ("trace_state", "{key: k, values: [a]}", "an invalid entry matches nothing"),
    ] {
        let converted = of_type(kind, block);
        assert_eq!(converted.errors(), Vec::<&str>::new(), "{kind} {block}");
        assert!(converted.says(words), "{kind} {block}: {:?}", converted.said);
    }
}

#[test]
fn combinations_keep_their_parts() {
    let converted = convert_policy(
        "- name: a\n  type: and\n  and:\n    and_sub_policy:\n    - {name: x, type: \
        trace_flags}\n    \
         - {name: y, type: not, not: {not_sub_policy: {name: z, type: status_code, \
         status_code: {status_codes: [OK]}}}}\n    \
         - {name: r, type: rate_limiting, rate_limiting: {spans_per_second: 5}}\n\
         - name: d\n  type: drop\n  drop:\n    drop_sub_policy:\n    - name: s\n      \
         type: string_attribute\n      \
         string_attribute: {key: k, values: [v], invert_match: true}",
    );
    assert_eq!(converted.errors(), Vec::<&str>::new());
    assert_eq!(
        converted.policies(),
        "[[policy]]\nname = \"a\"\ntype = \"and\"\npolicies = [\n  { type = \"trace_flags\" },\n  \
         { type = \"not\", policy = { type = \"status_code\", status_codes = [\"OK\"] } },\n]\n\
         limit = { spans_per_second = 5 }\n\
         [[policy]]\nname = \"d\"\ntype = \"drop\"\npolicies = [\n  \
         { type = \"string_attribute\", key = \"k\", values = [\"v\"], invert_match = true },\n]\n"
    );
    assert!(
        !converted.says("`invert_match` keeps"),
        "inside `drop` it removes the intended traces"
    );
}

#[test]
fn a_rate_limit_inside_of_and_is_the_limit_of_the_whole() {
    let and = |parts: &str| {
        convert_policy(&format!("- name: p\n  type: and\n  and: {{and_sub_policy: [{parts}]}}"))
    };
    let limit = "{name: r, type: rate_limiting, rate_limiting: {spans_per_second: 5}}";
    let always = "{name: s, type: always_sample}";
    let flags = "{name: f, type: trace_flags}";
    let words = "even if a later part does not match";
    let first = and(&format!("{limit}, {flags}"));
    assert!(first.says(words) && first.says("6:30: note"), "{:?}", first.said);
    assert!(!and(&format!("{flags}, {limit}")).says(words));
    // The list of remaining parts is never empty.
    for parts in [format!("{always}, {limit}"), limit.to_owned()] {
        let policies = and(&parts).policies();
        assert!(policies.contains("{ type = \"always_sample\" }"), "{policies}");
        assert!(policies.ends_with("limit = { spans_per_second = 5 }\n"), "{policies}");
    }
    let twice = and(&format!("{limit}, {limit}"));
    assert_eq!(twice.errors().len(), 1, "{:?}", twice.said);
}

#[test]
fn settings_are_written_out() {
    for (settings, wanted) in [
        ("", ["30s", "0s", "16"]),
        ("decision_wait: 10s", ["10s", "0s", "16"]),
        ("decision_wait: 1m30s", ["90s", "0s", "16"]),
        ("decision_wait: 5000000000", ["5s", "0s", "16"]),
        ("decision_wait: 10", ["1s", "0s", "16"]),
        ("decision_wait: 0s", ["1s", "0s", "16"]),
        ("decision_wait: ~", ["30s", "0s", "16"]),
        ("decision_wait: 2.5s", ["2s", "0s", "16"]),
        ("decision_wait_after_root_received: 300ms", ["30s", "1s", "16"]),
        ("maximum_trace_size_bytes: 5000000", ["30s", "0s", "5"]),
        ("{num_traces: 5, sample_on_first_match: true}", ["30s", "0s", "16"]),
        ("{num_traces: 1e5, num_shards: ~, tail_storage: file_storage}", ["30s", "0s", "16"]),
        ("{num_traces: '${env:TRACES}', block_on_overflow: '${B}'}", ["30s", "0s", "16"]),
        ("{decision_cache: ~, sampling_strategy: ~}", ["30s", "0s", "16"]),
        ("decision_cache: '${file:cache.yaml}'", ["30s", "0s", "16"]),
        ("decision_wait: 1.001s", ["1s", "0s", "16"]),
    ] {
        let settings = settings.trim_matches(['{', '}']).replace(", ", "\n  ");
        let text = format!(
            "tail_sampling:\n  {settings}\n  policies: [{{name: a, type: always_sample}}]\n"
        );
        let converted = convert(&text);
        assert_eq!(converted.errors(), Vec::<&str>::new(), "{settings}");
        let [wait, root, mib] = wanted;
        for line in [
            format!("decision_wait = \"{wait}\""),
            format!("decision_wait_after_root_received = \"{root}\""),
            format!("max_trace_bytes_mib = {mib}"),
        ] {
            assert!(converted.toml.lines().any(|found| found == line), "{settings}: {line}");
        }
    }
}

#[test]
fn names_are_unique_and_short() {
    let long = "x".repeat(80);
    let converted = convert_policy(&format!(
        "- {{name: a b, type: always_sample}}\n- {{name: a b, type: always_sample}}\n\
         - {{name: none, type: always_sample}}\n- {{name: {long}, type: always_sample}}\n\
         - {{name: {long}, type: always_sample}}\n- {{name: '${{env:X}}', type: always_sample}}"
    ));
    let policies = converted.policies();
    let names = policies.lines().filter_map(|line| line.strip_prefix("name = "));
    let (cut, second) = ("x".repeat(64), "x".repeat(62) + "-2");
    let wanted = ["a-b", "a-b-2", "none-", &cut, &second, "--env-X-"];
    assert_eq!(names.collect::<Vec<_>>(), wanted.map(|name| format!("\"{name}\"")));
    assert!(converted.says("4:7: note: named `a-b`"), "{:?}", converted.said);
}

#[test]
fn notes_about_the_whole_file_are_given_once() {
    let converted = convert_policy(
        "- {name: a, type: string_attribute, string_attribute: {key: k, values: [v]}}\n\
         - {name: b, type: boolean_attribute, boolean_attribute: {key: k, value: true}}",
    );
    let lists = converted.said.iter().filter(|said| said.contains("element of a list"));
    assert_eq!(lists.count(), 1, "{:?}", converted.said);
}

#[test]
fn salts_that_differ_are_noted_and_refused_where_they_multiply() {
    let percentage = |name: &str, salt: &str| {
        format!(
            "{{name: {name}, type: probabilistic, probabilistic: {{sampling_percentage: 5{salt}}}}}"
        )
    };
    let (plain, salted) = (percentage("a", ""), percentage("b", ", hash_salt: x"));
    let words = "percentages with different salts select traces independently";
    assert!(convert_policy(&format!("- {plain}\n- {salted}")).says(words));
    assert!(!convert_policy(&format!("- {salted}\n- {salted}")).says(words));
    let both = format!("- name: p\n  type: and\n  and: {{and_sub_policy: [{plain}, {salted}]}}");
    assert_eq!(
        convert_policy(&both).errors(),
        ["6:103: error: in the Collector, percentages with different salts multiply; here both \
          would use the same randomness of the trace"]
    );
}

#[test]
fn files_that_the_collector_refuses_are_noted() {
    let twice = convert_policy("- {name: a, type: trace_flags}\n- {name: a, type: always_sample}");
    assert!(
        twice.says("5:14: note: another policy has the same name, which the Collector refuses")
    );
    let ingest = convert(
        "tail_sampling:\n  sampling_strategy: span-ingest\n  policies:\n  \
         - {name: a, type: span_count, span_count: {max_spans: 5}}\n",
    );
    assert!(ingest.says("4:45: note: the Collector refuses this policy together with"));
}
