//! The parameters of single conditions, and what may stand in `same_span`.

use super::{config, each_policy_has_one_problem, policy, problems};
use crate::policy::{Number, NumberRange, RuleKind, StringMatch};

#[track_caller]
fn kind(lines: &str) -> RuleKind {
    config(&policy(lines)).policies.remove(0).rule.kind
}

#[test]
fn every_condition_becomes_its_specification() {
    let range = |lines: &str| {
        let lines = format!("type = 'numeric_attribute'\nkey = 'k'\n{lines}");
        let RuleKind::NumericAttribute { key, range, invert } = kind(&lines) else {
            panic!("numeric_attribute");
        };
        assert_eq!(key, "k");
        (range, invert)
    };
    let (int, double) = (Number::Int, Number::Double);
    let (max, min) = (i64::MAX, i64::MIN);
    for (lines, min, max, invert) in [
        (
            &format!("min_value = {min}\nmax_value = {max}")[..],
            Some(int(min)),
            Some(int(max)),
            false,
        ),
        ("max_value = 0", None, Some(int(0)), false),
        ("min_value = -0.5\ninvert_match = true", Some(double(-0.5)), None, true),
        ("min_value = 0x1F\nmax_value = 31.0", Some(int(31)), Some(double(31.0)), false),
        ("min_value = 1_000.5e1", Some(double(10_005.0)), None, false),
    ] {
        assert_eq!(range(lines), (NumberRange { min, max }, invert), "{lines}");
    }
    // Not rounded on the way: the same as a double would be one less.
    let (exact, _) = range("min_value = 9007199254740993");
    assert!(!exact.contains(int(9_007_199_254_740_992)));

    assert!(matches!(
        kind("type = 'boolean_attribute'\nkey = 'k'\nvalue = false\ninvert_match = true"),
        RuleKind::BooleanAttribute { key, value: false, invert: true } if key == "k"
    ));
    assert!(matches!(
        kind("type = 'span_count'\nmin_spans = 2\nmax_spans = 2"),
        RuleKind::SpanCount { min_spans: 2, max_spans: Some(2) }
    ));
    assert!(matches!(
        kind("type = 'span_count'\nmin_spans = 0"),
        RuleKind::SpanCount { min_spans: 0, max_spans: None }
    ));
    let RuleKind::TraceState { key, values } =
        kind("type = 'trace_state'\nkey = 'ot@x'\nvalues = ['a=b', ' c', '']")
    else {
        panic!("trace_state");
    };
    assert_eq!((key.as_str(), &values[..]), ("ot@x", &["a=b", " c", ""].map(String::from)[..]));
    assert!(matches!(kind("type = 'trace_flags'"), RuleKind::TraceFlags));
    assert!(matches!(
        kind("type = 'span_name'\nvalues = ['a']\nenabled_regex_matching = true"),
        RuleKind::SpanName { values: StringMatch::Regex(_), invert: false }
    ));
    assert!(matches!(
        kind("type = 'service_name'\nvalues = ['a']\ninvert_match = true"),
        RuleKind::ServiceName { values: StringMatch::Exact(one), invert: true } if one == ["a"]
    ));
    let RuleKind::SameSpan(parts) = kind(
        "type = 'same_span'\nsampling_percentage = 10\npolicies = [{ type = 'trace_flags' }, \
         { type = 'not', policy = { type = 'or', policies = [{ type = 'span_name', values = ['a'] \
         }, { type = 'status_code', status_codes = ['OK'] }] } }]",
    ) else {
        panic!("same_span");
    };
    assert!(matches!(parts[..], [ref flags, ref not]
        if matches!(flags.kind, RuleKind::TraceFlags) && matches!(not.kind, RuleKind::Not(_))));
}

#[test]
fn numbers() {
    each_policy_has_one_problem(&[
        (
            "type = 'numeric_attribute'\nmin_value = 1",
            "1:1: error: `numeric_attribute` has no `key`",
        ),
        ("type = 'numeric_attribute'\nkey = ''\nmin_value = 1", "4:7: error: `key` is empty"),
        (
            "type = 'numeric_attribute'\nkey = 'k'",
            "1:1: error: `numeric_attribute` has no `min_value` and no `max_value` \
             | give one or both",
        ),
        (
            "type = 'numeric_attribute'\nkey = 'k'\nmax_valu = 1",
            "5:1: error: unknown key `max_valu` in a policy of type `numeric_attribute` \
             | did you mean `max_value`?",
        ),
        (
            "type = 'numeric_attribute'\nkey = 'k'\nmin_value = '5'",
            "5:13: error: `min_value` must be a number, found a string \
             | write 5 without quotes",
        ),
        (
            "type = 'numeric_attribute'\nkey = 'k'\nmin_value = true",
            "5:13: error: `min_value` must be a number, found a boolean",
        ),
        (
            "type = 'numeric_attribute'\nkey = 'k'\nmin_value = nan",
            "5:13: error: `min_value` must be a finite number, found `nan` \
             | for no bound leave the key out",
        ),
        (
            "type = 'numeric_attribute'\nkey = 'k'\nmin_value = 1\nmax_value = +inf",
            "6:13: error: `max_value` must be a finite number, found `+inf` \
             | for no bound leave the key out",
        ),
        (
            "type = 'numeric_attribute'\nkey = 'k'\nmax_value = 1e999",
            "5:13: error: `max_value` must be a finite number, found `1e999` \
             | for no bound leave the key out",
        ),
        (
            "type = 'numeric_attribute'\nkey = 'k'\nmax_value = 9223372036854775808",
            "5:13: error: `max_value` must be between -9223372036854775808 and \
             9223372036854775807, found `9223372036854775808`",
        ),
        (
            "type = 'numeric_attribute'\nkey = 'k'\nmin_value = 9007199254740993\n\
             max_value = 9007199254740992.0",
            "6:13: error: the policy can never match: `max_value`, 9007199254740992.0, is below \
             `min_value`, 9007199254740993",
        ),
        (
            "type = 'numeric_attribute'\nkey = 'k'\nmin_value = 400\nmax_value = 0",
            "6:13: error: the policy can never match: `max_value`, 0, is below `min_value`, 400 \
             | for no upper bound leave the key out",
        ),
        ("type = 'boolean_attribute'\nkey = 'k'", "1:1: error: `boolean_attribute` has no `value`"),
        (
            "type = 'boolean_attribute'\nkey = 'k'\nvalue = 'true'",
            "5:9: error: `value` must be true or false, found a string | write true without quotes",
        ),
        (
            "type = 'boolean_attribute'\nkey = 'k'\nvalues = [true]",
            "5:1: error: unknown key `values` in a policy of type `boolean_attribute` \
             | did you mean `value`?",
        ),
    ]);
}

#[test]
fn counts_names_and_tracestate() {
    each_policy_has_one_problem(&[
        ("type = 'span_count'", "1:1: error: `span_count` has no `min_spans`"),
        (
            "type = 'span_count'\nmin_spans = -1",
            "4:13: error: `min_spans` must be between 0 and 4294967295, found `-1`",
        ),
        (
            "type = 'span_count'\nmin_spans = 2\nmax_spans = 0",
            "5:13: error: `max_spans` is 0, and no trace has no spans \
             | for no upper bound leave the key out",
        ),
        (
            "type = 'span_count'\nmin_spans = 3\nmax_spans = 2",
            "5:13: error: the policy can never match: `max_spans`, 2, is below `min_spans`, 3",
        ),
        ("type = 'span_name'", "1:1: error: the policy has no `values`"),
        (
            "type = 'service_name'\nvalues = []",
            "4:10: error: `values` is empty: the policy can never match",
        ),
        (
            "type = 'service_name'\nkey = 'service.name'\nvalues = ['shop']",
            "4:1: error: unknown key `key` in a policy of type `service_name` | the keys here are \
             `name`, `type`, `enabled_regex_matching`, `invert_match`, `values`, \
             `sampling_percentage`, `limit`",
        ),
        (
            "type = 'span_name'\nvalues = ['(']\nenabled_regex_matching = true",
            "4:11: error: invalid regular expression `(`: unclosed group",
        ),
        ("type = 'trace_state'\nvalues = ['a']", "1:1: error: `trace_state` has no `key`"),
        ("type = 'trace_state'\nkey = ''\nvalues = ['a']", "4:7: error: `key` is empty"),
        (
            "type = 'trace_state'\nkey = 'a=b'\nvalues = ['a']",
            "4:7: error: `a=b` is not a key of tracestate \
             | it is what stands before the `=`, such as `vendor`",
        ),
        (
            "type = 'trace_state'\nkey = 'a'\nvalues = ['a', 'b ']",
            "5:16: error: `b ` is not a value of tracestate \
             | a value has no comma and no white space at its end",
        ),
        (
            "type = 'trace_flags'\nvalues = ['01']",
            "4:1: error: unknown key `values` in a policy of type `trace_flags` | the keys here \
             are `name`, `type`, `sampling_percentage`, `limit`",
        ),
        (
            "type = 'string_attribute'\nkey = 'k'\nvalues = ['x']\ncache_max_size = 10",
            "6:1: error: unknown key `cache_max_size` in a policy of type `string_attribute` \
             | leave it out: expressions run in linear time and nothing is cached",
        ),
    ]);
}

#[test]
fn same_span_takes_what_one_span_can_meet() {
    let hint = "`same_span` takes conditions on attributes, status, name, service, flags and \
                tracestate; put the rest beside it in an `and`";
    for (part, name) in [
        ("{ type = 'latency', threshold_ms = 5 }", "latency"),
        ("{ type = 'span_count', min_spans = 5 }", "span_count"),
        ("{ type = 'always_sample' }", "always_sample"),
        ("{ type = 'same_span', policies = [{ type = 'trace_flags' }] }", "same_span"),
    ] {
        let message = format!("4:22: error: `{name}` is not about a single span | {hint}");
        let alone = policy(&format!("type = 'same_span'\npolicies = [{part}]"));
        assert_eq!(problems(&alone), [message], "{part}");
        let nested = policy(&format!(
            "type = 'same_span'\npolicies = [{{ type = 'not', policy = {{ type = 'or', policies = \
             [{part}] }} }}]"
        ));
        let message = format!("4:74: error: `{name}` is not about a single span | {hint}");
        assert_eq!(problems(&nested), [message], "{part}");
    }
    each_policy_has_one_problem(&[
        ("type = 'same_span'", "1:1: error: the combination has no `policies`"),
        ("type = 'same_span'\npolicies = []", "4:12: error: `policies` is empty"),
        (
            "type = 'same_span'\npolicies = [{ type = 'probabilistic', sampling_percentage = 5 }]",
            "4:22: error: nothing inside `same_span` may be probabilistic \
             | put the percentage on a policy of its own",
        ),
        (
            "type = 'same_span'\npolicies = [{ type = 'trace_flags', sampling_percentage = 5 }]",
            "4:59: error: nothing inside `same_span` may be probabilistic \
             | put the percentage on a policy of its own",
        ),
        (
            "type = 'same_span'\npolicies = [{ type = 'drop', policies = [{ type = 'trace_flags' \
             }] }]",
            "4:22: error: `drop` stands only at the top level \
             | it vetoes whole traces; to exclude something from one policy use `not`",
        ),
        (
            "type = 'samespan'\npolicies = [{ type = 'trace_flags' }]",
            "3:8: error: unknown policy type `samespan` | did you mean `same_span`?",
        ),
    ]);
}

#[test]
fn same_span_is_no_condition_but_its_parts_are() {
    let parts = "{ type = 'trace_flags' },\n".repeat(10_000);
    let full = policy(&format!("type = 'same_span'\npolicies = [\n{parts}]"));
    assert_eq!(problems(&full), [""; 0]);
    let parts = "{ type = 'trace_flags' },\n".repeat(10_001);
    let over = policy(&format!("type = 'same_span'\npolicies = [\n{parts}]"));
    assert_eq!(problems(&over), ["10005:1: error: there are more than 10,000 conditions"]);
}
