//! Short files that could cause long output: the result is bounded.

use super::convert;

const PROCESSOR: &str = "tail_sampling:\n  policies: ";

/// The last error, when a limit is reached.
fn last_error(text: &str) -> String {
    let converted = convert(text);
    assert!(converted.toml.len() < 8 << 20, "{} bytes", converted.toml.len());
    assert!(converted.said.len() <= 1_000);
    converted.errors().last().map_or_else(String::new, |error| (*error).to_owned())
}

#[test]
fn an_alias_bomb_ends_at_once() {
    let mut text = "a0: &a0 {name: x, type: always_sample}\n".to_owned();
    for n in 1..40 {
        let last = n - 1;
        text += &format!("a{n}: &a{n} [*a{last}, *a{last}, *a{last}, *a{last}, *a{last}]\n");
    }
    text += PROCESSOR;
    text += "*a39\n";
    let error = last_error(&text);
    assert!(error.contains("a policy is a mapping"), "{error}");
}

#[test]
fn a_bomb_of_merges_ends_at_once() {
    let mut text = "a0: &a0 {x: 1}\n".to_owned();
    for n in 1..60 {
        let last = n - 1;
        text += &format!("a{n}: &a{n} {{<<: [*a{last}, *a{last}, *a{last}, *a{last}], y{n}: 1}}\n");
    }
    text += PROCESSOR;
    text += "[*a59]\n";
    assert!(last_error(&text).contains("the policy has no `name`"));
}

#[test]
fn values_policies_and_parts_are_bounded() {
    let values = "v, ".repeat(50_000);
    let policy = |name: &str| {
        format!(
            "{{name: {name}, type: string_attribute, string_attribute: {{key: k, values: *v}}}}"
        )
    };
    let aliases = "*p, ".repeat(100_000);
    let list = format!("v: &v [{values}]\np: &p {}\n{PROCESSOR}[{aliases}]\n", policy("p"));
    assert!(convert(&list).toml.contains("\n# The conversion ends here.\n"));
    let parts = format!(
        "v: &v [{values}]\np: &p {}\n{PROCESSOR}[{{name: a, type: and, and: {{and_sub_policy: \
        [{aliases}]}}}}]\n",
        policy("p")
    );
    assert!(last_error(&parts).contains("exceed 4 MiB"));
    let small = format!(
        "p: &p {{name: x, type: trace_flags}}\n{PROCESSOR}[{{name: a, type: and, and: \
        {{and_sub_policy: [{aliases}]}}}}]\n"
    );
    assert!(last_error(&small).contains("more than 10,000 conditions"));
    let many = format!("p: &p {{name: x, type: trace_flags}}\n{PROCESSOR}[{aliases}]\n");
    assert!(convert(&many).toml.contains("\n# The conversion ends here.\n"));
}

/// The parts of a composite become policies, so they count as such.
#[test]
fn parts_of_composites_are_bounded() {
    let composite = |parts: usize| {
        format!(
            "{{name: c, type: composite, composite: {{max_total_spans_per_second: 100000, \
             composite_sub_policy: [{}]}}}}",
            "*p, ".repeat(parts)
        )
    };
    let policies: String =
        (0..990).map(|n| format!("{{name: a{n}, type: trace_flags}}, ")).collect();
    for (list, count) in [
        (format!("{policies}{}", composite(10)), 1_000),
        (format!("{policies}{}", composite(11)), 990),
        (format!("{}, *p", composite(1_001)), 0),
    ] {
        let text = format!("p: &p {{name: x, type: trace_flags}}\n{PROCESSOR}[{list}]\n");
        let converted = convert(&text);
        assert_eq!(converted.toml.matches("[[policy]]").count(), count);
        let is_cut = converted.toml.contains("\n# The conversion ends here.\n");
        assert_eq!((is_cut, converted.errors().is_empty()), (count < 1_000, count == 1_000));
    }
}

/// A condition in OTTL becomes several rules. The last policy of a file counts as well.
#[test]
fn the_rules_of_the_last_policy_are_bounded() {
    let condition = "name == \"c\" and kind == SPAN_KIND_SERVER and status.code == 2";
    let conditions = format!("'{condition}', ").repeat(3_000);
    let text = format!(
        "{PROCESSOR}[{{name: o, type: ottl_condition, ottl_condition: {{span: [{conditions}]}}}}]\n"
    );
    let converted = convert(&text);
    assert!(converted.toml.ends_with("\n# The conversion ends here.\n"));
    assert!(converted.errors().last().is_some_and(|said| said.contains("ends here")));
}

/// A key of YAML may contain anything, and the comment at the beginning of the result names it.
#[test]
fn no_text_of_the_file_leaves_its_comment() {
    let name = "tail_sampling/x\\nmax_trace_spans = 1\\r[[policy]]\\u2028\\e[m";
    let text = format!(
        "\"{name}\":\n  policies:\n  - {{name: a, type: always_sample}}\n\
         \x20 - {{name: \"b\\nc\", type: \"d\\ne\"}}\n\
         \x20 - {{name: \"f\", type: drop, drop: {{\"g\\nh\": i}}}}\n"
    );
    let converted = convert(&text);
    assert_eq!(converted.toml.matches("\n[[policy]]\n").count(), 1);
    let is_odd = |line: &&str| {
        let known = ["#", "[", "name = ", "type = ", "decision_wait", "max_trace_"];
        !line.is_empty() && !known.iter().any(|known| line.starts_with(known))
    };
    assert_eq!(converted.toml.lines().find(is_odd), None, "{}", converted.toml);
    assert_eq!(converted.toml.lines().filter(|line| *line == "max_trace_spans = 32000").count(), 1);
    assert!(!converted.toml.contains(|c: char| c.is_control() && c != '\n'), "{}", converted.toml);
}

#[test]
fn diagnostics_are_bounded() {
    let keys: String = (0..80_000).map(|n| format!("k{n}: 1, ")).collect();
    let text = format!("tail_sampling: {{{keys}policies: [{{name: a, type: always_sample}}]}}\n");
    let converted = convert(&text);
    assert_eq!(converted.said.len(), 1_000);
    assert!(converted.says("there are more than 1,000 diagnostics"));
}

#[test]
fn expressions_are_bounded() {
    let expressions = "*r, ".repeat(3_000);
    let text = format!(
        "r: &r '(a{{90}}){{90}}'\n{PROCESSOR}[{{name: a, type: string_attribute, \
         string_attribute: {{key: k, enabled_regex_matching: true, values: [{expressions}]}}}}]\n"
    );
    assert!(last_error(&text).contains("the regular expression cannot be used"));
    let more = text.replace(&expressions, &expressions.repeat(2));
    assert!(last_error(&more).contains("exceed 4 MiB"));
}
