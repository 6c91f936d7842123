//! Composites: each part becomes a policy with a limit.

use super::{Converted, convert_policy};

fn composite(more: &str, parts: &str) -> Converted {
    convert_policy(&format!(
        "- name: c\n  type: composite\n  composite:\n    max_total_spans_per_second: 1000\n    \
        {more}\n    \
         composite_sub_policy: [{parts}]"
    ))
}

fn limits(converted: &Converted) -> Vec<String> {
    assert_eq!(converted.errors(), Vec::<&str>::new());
    let policies = converted.policies();
    let limits = policies.lines().filter_map(|line| line.strip_prefix("limit = "));
    limits.map(str::to_owned).collect()
}

const PARTS: &str =
    "{name: a, type: trace_flags}, {name: b, type: always_sample}, {name: d, type: trace_flags}";

#[test]
fn shares_become_limits() {
    for (allocation, wanted) in [
        ("policy_order: [a, b, d]", [333, 333, 333]),
        ("rate_allocation: [{policy: a, percent: 50}]", [500, 333, 333]),
        ("rate_allocation: [{policy: a, percent: 0}, {policy: b, percent: 25}]", [333, 250, 333]),
        ("rate_allocation: [{policy: d, percent: 200}]", [333, 333, 1000]),
        // The last share of a part counts.
        ("rate_allocation: [{policy: a, percent: 50}, {policy: a, percent: 10}]", [100, 333, 333]),
    ] {
        let converted = composite(allocation, PARTS);
        let wanted = wanted.map(|rate| format!("{{ spans_per_second = {rate} }}"));
        assert_eq!(limits(&converted), wanted, "{allocation}");
        assert!(
            converted.says("7:9: note: each part becomes a policy with its own limit"),
            "{:?}",
            converted.said
        );
        assert!(converted.policies().contains("name = \"c.a\""));
    }
}

#[test]
fn a_limit_of_a_part_and_its_share_both_hold() {
    for (limit, wanted) in [
        ("rate_limiting: {spans_per_second: 5}", "{ spans_per_second = 5 }"),
        ("rate_limiting: {spans_per_second: 5000}", "{ spans_per_second = 1000 }"),
        (
            "rate_limiting: {spans_per_second: 5, burst_capacity: 7}",
            "{ spans_per_second = 5, burst_capacity = 7 }",
        ),
        (
            "rate_limiting: {spans_per_second: 5000, burst_capacity: 7000}",
            "{ spans_per_second = 1000, burst_capacity = 2000 }",
        ),
        (
            "bytes_limiting: {bytes_per_second: 512}",
            "{ bytes_per_second = 512, spans_per_second = 1000 }",
        ),
        (
            "bytes_limiting: {bytes_per_second: 512, burst_capacity: 1024}",
            "{ bytes_per_second = 512, spans_per_second = 1000 }",
        ),
    ] {
        let kind = limit.split(':').next().unwrap_or_default();
        let alone = format!("{{name: r, type: {kind}, {limit}}}");
        let inside = format!(
            "{{name: x, type: and, and: {{and_sub_policy: [{{name: f, type: trace_flags}}, \
            {alone}]}}}}"
        );
        for part in [alone, inside] {
            assert_eq!(limits(&composite("policy_order: []", &part)), [wanted], "{limit}");
        }
    }
    let burst =
        "{name: r, type: bytes_limiting, bytes_limiting: {bytes_per_second: 5, burst_capacity: 7}}";
    assert_eq!(
        composite("policy_order: []", burst).errors(),
        ["9:32: error: a burst in bytes cannot be combined with a share of spans: a limit on \
             both allows bursts of twice its rates"]
    );
}

#[test]
fn strangers_and_what_cannot_stand_inside_are_refused() {
    for (more, parts, error) in [
        (
            "policy_order: [a, x]",
            PARTS,
            "8:27: error: `policy_order` names `x`, which is not a part of the composite",
        ),
        (
            "rate_allocation: [{policy: x, percent: 5}]",
            PARTS,
            "8:27: error: `rate_allocation` names `x`, which is not a part of the composite",
        ),
        (
            "rate_allocation: {policy: a, percent: 5}",
            PARTS,
            "8:26: error: `rate_allocation` is not a list",
        ),
        (
            "rate_allocation: [{policy: a, percent_allocation: 5}]",
            PARTS,
            "8:39: error: the Collector has no option `percent_allocation` here",
        ),
        (
            "policy_order: []",
            "{name: a, type: not, not: {not_sub_policy: {name: b, type: trace_flags}}}",
            "9:32: error: the Collector does not allow a policy of type `not` inside this one",
        ),
        (
            "policy_order: []",
            "{name: a, type: composite, composite: {}}",
            "9:32: error: the Collector does not allow a policy of type `composite` inside this \
             one",
        ),
        (
            "policy_order: []",
            "{name: a, type: latency}",
            "9:32: error: the policy `a` has no block `latency`",
        ),
        ("rate_allocation: []", "{name: a}", "9:32: error: the policy `a` has no `type`"),
        ("decision: drop", PARTS, "8:9: error: the Collector has no option `decision` here"),
    ] {
        let converted = composite(more, parts);
        assert_eq!(converted.errors(), [error], "{more} {parts}");
        assert!(converted.policies().starts_with("# Not converted: the policy `c`."));
    }
    let without =
        convert_policy("- name: c\n  type: composite\n  composite: {composite_sub_policy: []}");
    assert_eq!(without.errors(), ["6:18: error: `max_total_spans_per_second` must be above 0"]);
}
