//! The parameters of single conditions, and the conditions allowed in `same_span`.

use super::{config, each_policy_has_one_problem, policy, problems};
use std::ops::Bound::{Excluded, Included, Unbounded};

use crate::{
    policy::{Number, NumberRange, RuleKind, Scope, StringMatch},
    trace::SpanKind,
};

#[track_caller]
fn kind(lines: &str) -> RuleKind {
    config(&policy(lines)).policies.remove(0).rule.kind
}

#[test]
fn every_condition_becomes_its_specification() {
    let range = |lines: &str| {
        let lines = format!("type = 'numeric_attribute'\nkey = 'k'\n{lines}");
        let RuleKind::NumericAttribute { key, scope: Scope::Any, range, invert } = kind(&lines)
        else {
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
        let (lower, upper) = (min.map_or(Unbounded, Included), max.map_or(Unbounded, Included));
        assert_eq!(range(lines), (NumberRange { lower, upper }, invert), "{lines}");
    }
    for (lines, lower, upper) in [
        ("above = 5", Excluded(int(5)), Unbounded),
        ("below = 0.5", Unbounded, Excluded(double(0.5))),
        ("above = 1\nmax_value = 2", Excluded(int(1)), Included(int(2))),
        ("min_value = 1\nbelow = 2", Included(int(1)), Excluded(int(2))),
    ] {
        assert_eq!(range(lines), (NumberRange { lower, upper }, false), "{lines}");
    }
    // The integer is not rounded: as a double, it would be one less.
    let (exact, _) = range("min_value = 9007199254740993");
    assert!(!exact.contains(int(9_007_199_254_740_992)));
}

#[test]
fn conditions_on_traces_and_spans_become_their_specification() {
    assert!(matches!(
        kind("type = 'boolean_attribute'\nkey = 'k'\nvalue = false\ninvert_match = true"),
        RuleKind::BooleanAttribute { key, scope: Scope::Any, value: false, invert: true }
            if key == "k"
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
            "1:1: error: `numeric_attribute` has no `min_value`, `above`, `max_value` or `below` \
             | give a lower bound, an upper one, or both",
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
fn conditions_on_single_spans_become_their_specification() {
    for (scope, expected) in [
        ("", Scope::Any),
        ("any", Scope::Any),
        ("span", Scope::Span),
        ("resource", Scope::Resource),
    ] {
        let scope = if scope.is_empty() { String::new() } else { format!("scope = '{scope}'") };
        for rest in [
            "type = 'string_attribute'\nvalues = ['a']",
            "type = 'numeric_attribute'\nabove = 1",
            "type = 'boolean_attribute'\nvalue = true",
            "type = 'attribute_exists'",
        ] {
            let (RuleKind::StringAttribute { scope: found, .. }
            | RuleKind::NumericAttribute { scope: found, .. }
            | RuleKind::BooleanAttribute { scope: found, .. }
            | RuleKind::AttributeExists { scope: found, .. }) =
                kind(&format!("{rest}\nkey = 'k'\n{scope}"))
            else {
                panic!("{rest}");
            };
            assert_eq!(found, expected, "{rest}");
        }
    }
    assert!(matches!(
        kind("type = 'attribute_exists'\nkey = 'k'\ninvert_match = true"),
        RuleKind::AttributeExists { key, invert: true, .. } if key == "k"
    ));
    let RuleKind::SpanKind { kinds } =
        kind("type = 'span_kind'\nkinds = ['CONSUMER', 'UNSPECIFIED', 'SERVER']")
    else {
        panic!("span_kind");
    };
    assert_eq!(kinds, [SpanKind::Consumer, SpanKind::Unspecified, SpanKind::Server]);
    assert!(matches!(kind("type = 'root_span'"), RuleKind::RootSpan));
    assert!(matches!(
        kind("type = 'span_duration'\nthreshold_ms = 5\nupper_threshold_ms = 6"),
        RuleKind::SpanDuration { threshold_ms: 5, upper_threshold_ms: Some(6) }
    ));
    assert!(matches!(
        kind("type = 'span_event'\nnames = ['exception']"),
        RuleKind::SpanEvent {
            names: Some(StringMatch::Exact(_)),
            key: None,
            values: None,
            invert: false
        }
    ));
    assert!(matches!(
        kind("type = 'span_event'\nkey = 'k'\ninvert_match = true"),
        RuleKind::SpanEvent { names: None, key: Some(_), values: None, invert: true }
    ));
    assert!(matches!(
        kind(
            "type = 'span_event'\nnames = ['a']\nkey = 'k'\nvalues = ['b']\n\
             enabled_regex_matching = true"
        ),
        RuleKind::SpanEvent {
            names: Some(StringMatch::Regex(_)),
            key: Some(_),
            values: Some(StringMatch::Regex(_)),
            invert: false
        }
    ));
}

#[test]
fn scopes_and_exclusive_bounds() {
    each_policy_has_one_problem(&[
        (
            "type = 'attribute_exists'\nkey = 'k'\nscope = 'ressource'",
            "5:9: error: `scope` must be one of `any`, `span`, `resource`, found `ressource` \
             | did you mean `resource`?",
        ),
        (
            "type = 'attribute_exists'\nkey = 'k'\nscope = '${env:SCOPE}'",
            "5:9: error: `scope` must be one of `any`, `span`, `resource`, found `${env:SCOPE}`",
        ),
        (
            "type = 'attribute_exists'\nkey = 'k'\nvalues = ['x']",
            "5:1: error: unknown key `values` in a policy of type `attribute_exists` | the keys \
             here are `name`, `type`, `key`, `scope`, `invert_match`, `sampling_percentage`, \
             `limit`, `expires`, `shadow`",
        ),
        ("type = 'attribute_exists'", "1:1: error: `attribute_exists` has no `key`"),
        (
            "type = 'service_name'\nvalues = ['a']\nscope = 'resource'",
            "5:1: error: unknown key `scope` in a policy of type `service_name` | the keys here \
             are `name`, `type`, `enabled_regex_matching`, `invert_match`, `values`, \
             `sampling_percentage`, `limit`, `expires`, `shadow`",
        ),
        (
            "type = 'numeric_attribute'\nkey = 'k'\nmin_value = 1\nabove = 2",
            "6:9: error: `min_value` and `above` are two lower bounds \
             | keep one: `min_value` includes its number, `above` does not",
        ),
        (
            "type = 'numeric_attribute'\nkey = 'k'\nbelow = 1\nmax_value = 2",
            "5:9: error: `max_value` and `below` are two upper bounds \
             | keep one: `max_value` includes its number, `below` does not",
        ),
        (
            "type = 'numeric_attribute'\nkey = 'k'\nabove = 5\nbelow = 5",
            "6:9: error: the policy can never match: `below`, 5, is not above `above`, 5",
        ),
        (
            "type = 'numeric_attribute'\nkey = 'k'\nmin_value = 5\nbelow = 5",
            "6:9: error: the policy can never match: `below`, 5, is not above `min_value`, 5",
        ),
        (
            "type = 'numeric_attribute'\nkey = 'k'\nabove = 5\nmax_value = 5.0",
            "6:13: error: the policy can never match: `max_value`, 5.0, is not above `above`, 5",
        ),
        (
            "type = 'numeric_attribute'\nkey = 'k'\nabove = '5'",
            "5:9: error: `above` must be a number, found a string | write 5 without quotes",
        ),
    ]);
}

#[test]
fn kinds_durations_and_events() {
    each_policy_has_one_problem(&[
        ("type = 'span_kind'", "1:1: error: the policy has no `kinds`"),
        (
            "type = 'span_kind'\nkinds = []",
            "4:9: error: `kinds` is empty: the policy can never match",
        ),
        (
            "type = 'span_kind'\nkinds = ['CLIENT', 'SPAN_KIND_SERVER']",
            "4:20: error: `kinds` must be one of `INTERNAL`, `SERVER`, `CLIENT`, `PRODUCER`, \
             `CONSUMER`, `UNSPECIFIED`, found `SPAN_KIND_SERVER` | did you mean `SERVER`?",
        ),
        (
            "type = 'span_kind'\nkind = ['CLIENT']",
            "4:1: error: unknown key `kind` in a policy of type `span_kind` | did you mean \
             `kinds`?",
        ),
        (
            "type = 'root_span'\nvalue = true",
            "4:1: error: unknown key `value` in a policy of type `root_span` | the keys here are \
             `name`, `type`, `sampling_percentage`, `limit`, `expires`, `shadow`",
        ),
        ("type = 'span_duration'", "1:1: error: `span_duration` has no `threshold_ms`"),
        (
            "type = 'span_duration'\nthreshold_ms = 5\nupper_threshold_ms = 0",
            "5:22: error: `upper_threshold_ms` is 0, and no span is that short \
             | for no upper bound leave the key out",
        ),
        (
            "type = 'span_duration'\nthreshold_ms = 5\nupper_threshold_ms = 5",
            "5:22: error: the policy can never match: `upper_threshold_ms`, 5, is not above \
             `threshold_ms`, 5",
        ),
        (
            "type = 'span_event'",
            "1:1: error: `span_event` has no `names` and no `key` | give one or both",
        ),
        (
            "type = 'span_event'\nvalues = ['a']",
            "1:1: error: `span_event` has no `names` and no `key` | give one or both",
        ),
        (
            "type = 'span_event'\nnames = ['a']\nvalues = ['b']",
            "1:1: error: `values` needs `key`, the attribute that has the values \
             | names of events go into `names`",
        ),
        (
            "type = 'span_event'\nnames = ['a']\nkeys = 'k'\nvalues = ['b']",
            "5:1: error: unknown key `keys` in a policy of type `span_event` | did you mean \
             `key`?",
        ),
        (
            "type = 'span_event'\nnames = []",
            "4:9: error: `names` is empty: the policy can never match",
        ),
        (
            "type = 'span_event'\nnames = ['(']\nenabled_regex_matching = true",
            "4:10: error: invalid regular expression `(`: unclosed group",
        ),
        (
            "type = 'span_event'\nkey = 'k'\nvalues = [5]",
            "5:11: error: `values` must be a list of strings, found an integer \
             | write it in quotes; `numeric_attribute` is for attributes that are numbers",
        ),
        (
            "type = 'spanevent'\nnames = ['a']",
            "3:8: error: unknown policy type `spanevent` | did you mean `span_event`?",
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
             `sampling_percentage`, `limit`, `expires`, `shadow`",
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
             | it is the text before the `=`, such as `vendor`",
        ),
        (
            "type = 'trace_state'\nkey = 'a'\nvalues = ['a', 'b ']",
            "5:16: error: `b ` is not a value of tracestate \
             | a value has no comma and no white space at its end",
        ),
        (
            "type = 'trace_flags'\nvalues = ['01']",
            "4:1: error: unknown key `values` in a policy of type `trace_flags` | the keys here \
             are `name`, `type`, `sampling_percentage`, `limit`, `expires`, `shadow`",
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
    let hint = "`same_span` takes conditions on attributes, status, name, kind, duration, events, \
                service, flags and tracestate; put the rest beside it in an `and`";
    for (part, name) in [
        ("{ type = 'latency', threshold_ms = 5 }", "latency"),
        ("{ type = 'span_count', min_spans = 5 }", "span_count"),
        ("{ type = 'always_sample' }", "always_sample"),
        ("{ type = 'same_span', policies = [{ type = 'trace_flags' }] }", "same_span"),
    ] {
        let message = format!("4:22: error: `{name}` is not a condition on a single span | {hint}");
        let alone = policy(&format!("type = 'same_span'\npolicies = [{part}]"));
        assert_eq!(problems(&alone), [message], "{part}");
        let nested = policy(&format!(
            "type = 'same_span'\npolicies = [{{ type = 'not', policy = {{ type = 'or', policies = \
             [{part}] }} }}]"
        ));
        let message = format!("4:74: error: `{name}` is not a condition on a single span | {hint}");
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
            "4:22: error: `drop` is only allowed at the top level \
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
