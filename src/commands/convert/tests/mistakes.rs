//! Common mistakes: each is reported at its place, its policy becomes a comment, the rest is
//! converted.

use super::{convert, convert_policy};

/// Policies, and the errors in them.
const POLICIES: [(&str, &[&str]); 39] = [
    ("- name: p\n  type: or\n  or: {}", &["5:13: error: the Collector has no policy type `or`"]),
    ("- {name: p, type: service}", &["4:23: error: the Collector has no policy type `service`"]),
    (
        "- {name: p, type: span_event}",
        &["4:23: error: the Collector has no policy type `span_event`"],
    ),
    ("- name: p", &["4:7: error: the policy `p` has no `type`"]),
    ("- type: always_sample", &["4:7: error: the policy has no `name`"]),
    ("- {name: '', type: always_sample}", &["4:7: error: the policy has no `name`"]),
    ("- always_sample", &["4:7: error: a policy is a mapping with `name` and `type`"]),
    ("- {name: p, type: latency}", &["4:7: error: the policy `p` has no block `latency`"]),
    ("- {name: p, type: latency, latency: 500}", &["4:41: error: `latency` is not a mapping"]),
    (
        "- name: p\n  type: latency\n  latency: {threshold_ms: 5}\n  status_code: {status_codes: \
        [ERROR]}",
        &["7:7: error: the policy is of type `latency` and has a block `status_code`, which \
            the Collector ignores"],
    ),
    (
        "- name: p\n  type: always_sample\n  decision: drop",
        &["6:7: error: the Collector has no option `decision` in a policy"],
    ),
    (
        "- name: p\n  type: string_attribute\n  string_attribute: {key: k, values: [v], \
        span_properties: x}",
        &["6:47: error: the Collector has no option `span_properties` here"],
    ),
    (
        "- name: p\n  type: latency\n  latency:\n    threshold_ms: \"${SAMPLING_LATENCY}\"",
        &["7:23: error: this comes from a variable, whose value is not known here, and \
            policies have no variables"],
    ),
    (
        "- name: p\n  type: latency\n  latency:\n    threshold_ms: 500ms",
        &["7:23: error: `threshold_ms` is not an integer"],
    ),
    (
        "- {name: p, type: latency, latency: {threshold_ms: -1}}",
        &["4:41: error: a duration is at least 0 and at most a year"],
    ),
    (
        "- name: p\n  type: probabilistic\n  probabilistic:\n    sampling_percentage: ${env:P}",
        &["7:30: error: this comes from a variable, whose value is not known here, and \
            policies have no variables"],
    ),
    (
        "- name: p\n  type: probabilistic\n  probabilistic: {sampling_percentage: 5%}",
        &["6:44: error: `sampling_percentage` is not a number"],
    ),
    (
        "- name: p\n  type: string_attribute\n  string_attribute: {key: k, values: \"${list}\"}",
        &["6:42: error: `values` comes from a variable, whose value is not known here"],
    ),
    (
        "- name: p\n  type: string_attribute\n  string_attribute: {key: k, values: {v: w}}",
        &["6:42: error: `values` is not a list"],
    ),
    (
        "- name: p\n  type: string_attribute\n  string_attribute: {key: k, values: ['${env:A}', \
        b]}",
        &["6:43: error: this comes from a variable, whose value is not known here, and \
            policies have no variables"],
    ),
    (
        "- name: p\n  type: string_attribute\n  string_attribute: {values: [v]}",
        &["6:25: error: `key` is missing or empty"],
    ),
    (
        "- name: p\n  type: string_attribute\n  string_attribute:\n    key: k\n    values: \
        ['a(']\n    enabled_regex_matching: true",
        &["8:18: error: the regular expression cannot be used: unclosed group"],
    ),
    (
        "- name: p\n  type: string_attribute\n  string_attribute: {key: k, values: [v], \
        invert_match: yes}",
        &["6:61: error: `invert_match` is not true or false"],
    ),
    (
        "- {name: p, type: status_code, status_code: {status_codes: [ERROR, error]}}",
        &["4:72: error: `error` is not a status code: OK, ERROR or UNSET"],
    ),
    (
        "- {name: p, type: numeric_attribute, numeric_attribute: {key: k, min_value: 5, \
        max_value: 2}}",
        &["4:61: error: no number is above `min_value` and below `max_value`"],
    ),
    (
        "- {name: p, type: numeric_attribute, numeric_attribute: {key: k, max_value: 0}}",
        &["4:61: error: without a bound other than 0 the Collector crashes at its first decision"],
    ),
    (
        "- {name: p, type: trace_state, trace_state: {key: sampling.priority, values: [a]}}",
        &["4:49: error: no tracestate can have this key: the policy never matches"],
    ),
    (
        "- {name: p, type: span_count, span_count: {min_spans: 2147483648}}",
        &["4:47: error: the Collector counts at most 2,147,483,647 spans"],
    ),
    (
        "- {name: p, type: span_count, span_count: {min_spans: 3, max_spans: 2}}",
        &["4:47: error: no trace has that many spans"],
    ),
    (
        "- {name: p, type: span_count, span_count: {max_spans: -1}}",
        &["4:47: error: no trace has that many spans"],
    ),
    (
        "- {name: p, type: span_count, span_count: {min_spans: -2, max_spans: -1}}",
        &["4:47: error: no trace has that many spans"],
    ),
    (
        "- name: p\n  type: string_attribute\n  string_attribute: {key: k, values: ['{{ .t }}']}",
        &["6:43: error: this comes from a variable, whose value is not known here, and \
            policies have no variables"],
    ),
    (
        "- {name: p, type: ottl_condition, ottl_condition: {span: 'IsMatch(name, \"a\")'}}",
        &["4:62: error: `span` is not a list of conditions, and the Collector splits it at its \
            commas"],
    ),
    (
        "- {name: p, type: ottl_condition, ottl_condition: {span: [true]}}",
        &["4:63: error: the Collector refuses a condition that is not a string"],
    ),
    (
        "- {name: p, type: rate_limiting, rate_limiting: {spans_per_second: 0}}",
        &["4:53: error: `spans_per_second` must be above 0"],
    ),
    (
        "- {name: p, type: not, not: {not_sub_policy: {name: q, type: probabilistic, \
        probabilistic: {sampling_percentage: 5}}}}",
        &["4:50: error: a percentage or a limit cannot be inside `not`"],
    ),
    (
        "- name: p\n  type: and\n  and:\n    and_sub_policy:\n    - {name: q, type: and, and: {}}",
        &["8:11: error: the Collector does not allow a policy of type `and` inside this one"],
    ),
    (
        "- name: p\n  type: latency\n  latency: {threshold_ms: 5, threshold_ms: 6}",
        &["6:34: error: the key `threshold_ms` is given twice"],
    ),
    (
        "- {name: p, type: ottl_condition, ottl_condition: {error_mode: panic, span: ['true']}}",
        &["4:68: error: the Collector has no such `error_mode`"],
    ),
];

#[test]
fn a_wrong_policy_is_a_comment_and_the_rest_is_converted() {
    for (policy, errors) in POLICIES {
        let converted = convert_policy(&format!("{policy}\n- {{name: rest, type: always_sample}}"));
        assert_eq!(converted.errors(), errors, "{policy}");
        let policies = converted.policies();
        assert!(policies.starts_with("# Not converted: the policy `"), "{policy}: {policies}");
        let rest = "[[policy]]\nname = \"rest\"\ntype = \"always_sample\"\n";
        assert!(policies.ends_with(rest), "{policy}: {policies}");
        assert_eq!(policies.matches("[[policy]]").count(), 1, "{policy}: {policies}");
    }
}

#[test]
fn a_drop_that_is_missing_is_told_in_the_file() {
    let converted = convert_policy(
        "- name: d\n  type: drop\n  drop:\n    drop_sub_policy:\n    - {name: q, type: latency}\n\
         - {name: rest, type: always_sample}",
    );
    assert!(converted.policies().starts_with(
        "# Not converted: the policy `d`.\n\
         # Without it, Tailwater keeps traces that the Collector drops.\n\
         # line 8: the policy `q` has no block `latency`\n"
    ));
}

#[test]
fn options_of_the_processor_are_checked() {
    let text = "tail_sampling:\n  metric_labels: x\n  decision_wait: ${env:WAIT}\n  num_traces: \
        5\n  \
                sampling_strategy: guess\n  policies: [{name: a, type: always_sample}]\n";
    let converted = convert(text);
    assert_eq!(
        converted.errors(),
        [
            "2:3: error: the Collector has no option `metric_labels` here",
            "3:18: error: this comes from a variable, whose value is not known here",
            "5:22: error: the Collector has no such sampling strategy",
        ]
    );
    assert!(converted.says("4:3: note: `num_traces` has no counterpart"));
    assert!(converted.toml.contains("decision_wait = \"30s\"\n"));
    for (settings, error) in [
        ("decision_wait: -5s", "2:18: error: this is not a duration"),
        ("decision_wait: '10'", "2:18: error: this is not a duration"),
        ("decision_cache: {sampled: 5}", "2:20: error: the Collector has no option `sampled` here"),
        (
            "sampling_strategy: ${env:X}",
            "2:22: error: this comes from a variable, whose value is not known here, and policies \
             have no variables",
        ),
        ("num_traces: abc", "2:15: error: `num_traces` is not a number of at least 0"),
        ("num_traces: -1", "2:15: error: `num_traces` is not a number of at least 0"),
        ("num_traces: [5]", "2:15: error: `num_traces` is not a number of at least 0"),
        ("num_traces: 5s", "2:15: error: `num_traces` is not a number of at least 0"),
        (
            "expected_new_traces_per_sec: true",
            "2:32: error: `expected_new_traces_per_sec` is not a number of at least 0",
        ),
        ("num_shards: many", "2:15: error: `num_shards` is not a number of at least 0"),
        ("block_on_overflow: 1", "2:22: error: `block_on_overflow` is not true or false"),
        ("mutates_data: {}", "2:17: error: `mutates_data` is not true or false"),
        ("sample_on_first_match: yes", "2:26: error: `sample_on_first_match` is not true or false"),
        (
            "drop_pending_traces_on_shutdown: 5s",
            "2:36: error: `drop_pending_traces_on_shutdown` is not true or false",
        ),
        ("tail_storage: {a: b}", "2:17: error: `tail_storage` is not a name"),
        ("decision_cache: 5", "2:19: error: `decision_cache` is not a mapping"),
        ("decision_cache: [a]", "2:19: error: `decision_cache` is not a mapping"),
        (
            "decision_cache: {sampled_cache_size: many}",
            "2:40: error: `sampled_cache_size` is not a number of at least 0",
        ),
        ("maximum_trace_size_bytes: -1", "2:29: error: a size is at least 0"),
        (
            "maximum_trace_size_bytes: 5MiB",
            "2:29: error: `maximum_trace_size_bytes` is not an integer",
        ),
        ("sampling_strategy: 5", "2:22: error: the Collector has no such sampling strategy"),
        ("decision_wait: 2h", "2:18: error: Tailwater waits for at most an hour"),
        (
            "decision_wait: 5s\n  decision_wait: 6s",
            "3:3: error: the key `decision_wait` is given twice",
        ),
    ] {
        let text =
            format!("tail_sampling:\n  {settings}\n  policies: [{{name: a, type: always_sample}}]");
        assert_eq!(convert(&text).errors(), [error]);
    }
}

#[test]
fn without_policies_there_is_nothing_to_convert() {
    for (policies, error) in [
        ("{}", "1:16: error: there is no list of `policies`"),
        ("{policies: []}", "1:27: error: there is no list of `policies`"),
        ("{policies: '${file:p.yaml}'}", "1:27: error: the policies come from a variable"),
        ("", "1:14: error: there is no list of `policies`"),
    ] {
        let converted = convert(&format!("tail_sampling: {policies}\n"));
        assert_eq!(converted.errors(), [error]);
        assert!(!converted.toml.contains("[[policy]]"));
    }
}
