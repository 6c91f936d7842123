//! Every result of `convert` passes `check`, and every error belongs to a refused policy.

use proptest::prelude::*;

use super::convert;

/// Valid and invalid values.
fn value() -> impl Strategy<Value = String> {
    let words: &'static [&'static str] = &[
        "0",
        "1",
        "-1",
        "5",
        "500",
        "1.5",
        "1e300",
        "-0.0",
        "100",
        "1_000",
        "0x10",
        "\"7\"",
        "true",
        "False",
        "~",
        "''",
        "x",
        "'a(b'",
        "'^/v\\d+$$'",
        "'[[]&&]'",
        "'${env:X}'",
        "'$${x}'",
        "[]",
        "[a]",
        "[a, '', true, ~]",
        "[ERROR]",
        "[ERROR, UNSET]",
        "[error]",
        "{}",
        "9223372036854775807",
        "99999999999999999999",
        "4294967296",
        "'\\u0007'",
        "\"\\u0007\\t\"",
        "['a,b', c=d, 'e ']",
        "[GET, 'it''s \"q\"']",
        "31536000001",
    ];
    prop::sample::select(words).prop_map(str::to_owned)
}

fn condition() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec![
        "name == \"a\"",
        "attributes[\"a\"] != \"\"",
        "attributes[\"n\"] >= 0.5",
        "resource.attributes[\"n\"] < -5",
        "attributes[\"b\"] == false",
        "attributes[\"b\"] == nil",
        "IsMatch(name, \"^a\\\\d$$\")",
        "IsRootSpan()",
        "kind == SPAN_KIND_SERVER",
        "status.code != 2",
        "end_time - start_time <= Duration(\"5s\")",
        "true",
        "Len(name) > 5",
    ]);
    leaf.prop_map(str::to_owned).prop_recursive(4, 20, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} and {b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} or {b})")),
            inner.prop_map(|a| format!("not ({a})")),
        ]
    })
}

fn leaf() -> impl Strategy<Value = String> {
    let kinds: &'static [(&'static str, &'static [&'static str])] = &[
        ("always_sample", &[]),
        ("latency", &["threshold_ms", "upper_threshold_ms"]),
        ("numeric_attribute", &["min_value", "max_value", "invert_match"]),
        ("probabilistic", &["sampling_percentage", "hash_salt"]),
        ("status_code", &["status_codes"]),
        ("string_attribute", &["values", "enabled_regex_matching", "invert_match"]),
        ("rate_limiting", &["spans_per_second", "burst_capacity"]),
        ("bytes_limiting", &["bytes_per_second", "burst_capacity"]),
        ("span_count", &["min_spans", "max_spans"]),
        ("trace_state", &["values"]),
        ("boolean_attribute", &["value", "invert_match"]),
    ];
    let plain = (prop::sample::select(kinds), prop::collection::vec(value(), 3), value()).prop_map(
        |((kind, keys), values, name)| {
            let mut pairs: Vec<_> =
                keys.iter().zip(values).map(|(key, value)| format!("{key}: {value}")).collect();
            if kind.ends_with("attribute") || kind == "trace_state" {
                pairs.push("key: k".to_owned());
            }
            format!("{{name: {name}, type: {kind}, {kind}: {{{}}}}}", pairs.join(", "))
        },
    );
    let ottl = condition().prop_map(|condition| {
        let condition = condition.replace('\'', "''");
        format!("{{name: o, type: ottl_condition, ottl_condition: {{span: ['{condition}']}}}}")
    });
    prop_oneof![4 => plain, 1 => ottl]
}

fn policy() -> impl Strategy<Value = String> {
    let list = || prop::collection::vec(leaf(), 1..4).prop_map(|parts| parts.join(", "));
    let composite = (list(), value()).prop_map(|(parts, total)| {
        format!(
            "{{name: c, type: composite, composite: {{max_total_spans_per_second: {total}, \
             composite_sub_policy: [{parts}]}}}}"
        )
    });
    prop_oneof![
        3 => leaf(),
        1 => list().prop_map(|parts| format!("{{name: a, type: and, and: {{and_sub_policy: \
            [{parts}]}}}}")),
        1 => list().prop_map(|parts| format!("{{name: d, type: drop, drop: {{drop_sub_policy: \
            [{parts}]}}}}")),
        1 => leaf().prop_map(|part| format!("{{name: n, type: not, not: {{not_sub_policy: \
            {part}}}}}")),
        1 => composite,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn converted_files_pass_check(
        policies in prop::collection::vec(policy(), 1..5),
        wait in value(),
    ) {
        let list: String = policies.iter().map(|policy| format!("  - {policy}\n")).collect();
        // In these tests, `convert` checks that a result with a policy passes `check`.
        let converted = convert(&format!("tail_sampling:\n  decision_wait: {wait}\n  \
            policies:\n{list}"));
        let refused = converted.toml.matches("# Not converted").count();
        let of_policies = converted.errors().iter().filter(|e| !e.starts_with("2:")).count();
        prop_assert_eq!(refused == 0, of_policies == 0, "{:?}", converted.said);
        prop_assert!(!converted.toml.is_empty());
    }

    #[test]
    fn any_text_ends_in_an_answer(text in "[ -~\n\t]{0,60}", cut in 0usize..200) {
        let whole = format!("{text}\ntail_sampling:\n  policies:\n  - {{name: a, type: \
            ottl_condition, \
            ottl_condition: {{span: ['{}']}}}}\n", text.replace(['\'', '\n'], ""));
        let cut = whole.floor_char_boundary(cut);
        for text in [&whole, &whole[..cut]] {
            let converted = convert(text);
            prop_assert!(!converted.said.is_empty() || converted.toml.contains("[[policy]]"));
        }
    }
}
