use std::fmt::Write as _;

use super::{
    super::{
        keys::{Key, Kind, Need},
        load,
        types::{PolicyType, TYPES},
    },
    POLICY, config, each_has_one_problem, each_policy_has_one_problem, policy, problems,
};
use crate::{
    policy::{PolicySpec, RuleKind, Scope, StringMatch},
    trace::StatusCode,
};

#[track_caller]
fn spec(lines: &str) -> PolicySpec {
    config(&policy(lines)).policies.remove(0)
}

#[test]
fn the_embedded_file_has_no_problem() {
    let embedded = load::embedded().policies;
    let names: Vec<_> = embedded.iter().map(|policy| policy.name.as_str()).collect();
    assert_eq!(names, ["errors", "slow", "baseline"]);
}

/// A policy of this type with only its required keys.
fn least(kind: &PolicyType) -> String {
    let is_needed =
        |key: &&Key| key.need == Need::Required || kind.any_of.first() == Some(&key.name);
    let needed = kind.parameters.iter().filter(is_needed).map(|key| {
        let value = match &key.kind {
            Kind::Text { .. } => "'x'".to_owned(),
            Kind::Strings { .. } => "['x']".to_owned(),
            Kind::Words(words) => format!("['{}']", words[0]),
            Kind::Truth => "true".to_owned(),
            Kind::Number | Kind::AboveZero => "1".to_owned(),
            Kind::Integer { min, .. } => min.to_string(),
            Kind::Policy => "{ type = 'trace_flags' }".to_owned(),
            Kind::Policies => "[{ type = 'trace_flags' }]".to_owned(),
            other => panic!("{}: a value for {other:?}", key.name),
        };
        format!("\n{} = {value}", key.name)
    });
    let mut least = format!("type = '{}'{}", kind.name, needed.collect::<String>());
    if kind.name == "probabilistic" {
        least += "\nsampling_percentage = 50";
    }
    least
}

#[test]
fn every_type_has_the_same_name_in_the_specification() {
    for kind in TYPES {
        let spec = spec(&least(kind));
        assert_eq!(spec.type_name, kind.name);
        // A probability is not a condition, so no report names it.
        let expected = if kind.name == "probabilistic" { "always_sample" } else { kind.name };
        assert_eq!(spec.rule.kind.type_name(), expected);
    }
}

#[test]
fn every_type_becomes_its_specification() {
    let kind = |lines| spec(lines).rule.kind;
    assert!(matches!(kind("type = 'always_sample'"), RuleKind::AlwaysSample));
    let RuleKind::StatusCode { codes } =
        kind("type = 'status_code'\nstatus_codes = ['ERROR', 'OK', 'UNSET']")
    else {
        panic!("status_code");
    };
    assert_eq!(codes, [StatusCode::Error, StatusCode::Ok, StatusCode::Unset]);
    assert!(matches!(
        kind("type = 'latency'\nthreshold_ms = 5\nupper_threshold_ms = 9"),
        RuleKind::Latency { threshold_ms: 5, upper_threshold_ms: Some(9) }
    ));
    assert!(matches!(
        kind("type = 'latency'\nthreshold_ms = 0"),
        RuleKind::Latency { threshold_ms: 0, upper_threshold_ms: None }
    ));

    // Policies have no environment variables: the string is used as written.
    let RuleKind::StringAttribute {
        key,
        scope: Scope::Any,
        values: StringMatch::Exact(values),
        invert: true,
    } = kind(
        "type = 'string_attribute'\nkey = 'k'\nvalues = ['', '${env:PORT}']\ninvert_match = true",
    )
    else {
        panic!("string_attribute");
    };
    assert_eq!(
        (key.as_str(), values.as_slice()),
        ("k", ["", "${env:PORT}"].map(String::from).as_slice())
    );
    let RuleKind::StringAttribute { values: StringMatch::Regex(set), invert: false, .. } = kind(
        "type = 'string_attribute'\nkey = 'k'\nvalues = ['^a', 'é']\nenabled_regex_matching = true",
    ) else {
        panic!("regex");
    };
    assert!(set.is_match("xé".as_bytes()) && !set.is_match(b"ba"));

    let rule = spec("type = 'probabilistic'\nsampling_percentage = 2.5").rule;
    assert!(matches!(rule.kind, RuleKind::AlwaysSample));
    assert_eq!(rule.sampling_percentage, 2.5);
    let RuleKind::And(parts) = kind(
        "type = 'and'\npolicies = [{ type = 'always_sample', sampling_percentage = 50 }, \
         { type = 'or', policies = [{ type = 'not', policy = { type = 'trace_flags' } }] }]",
    ) else {
        panic!("and");
    };
    assert_eq!((parts[0].sampling_percentage, parts[1].sampling_percentage), (50.0, 100.0));
    let RuleKind::Or(parts) = &parts[1].kind else { panic!("or") };
    assert!(matches!(parts[0].kind, RuleKind::Not(_)));
    assert!(matches!(
        kind("type = 'drop'\npolicies = [{ type = 'trace_flags', sampling_percentage = 100 }]"),
        RuleKind::Drop(parts) if parts.len() == 1
    ));
}

#[test]
fn names() {
    let named = |name: &str| format!("[[policy]]\nname = '{name}'\ntype = 'always_sample'\n");
    let longest = "x".repeat(64);
    for good in ["a", "A.b_c-9", longest.as_str()] {
        assert_eq!(config(&named(good)).policies[0].name, good);
    }
    let too_long = "x".repeat(65);
    for (bad, quoted) in
        [("", ""), ("a b", "a b"), ("é", "é"), (&too_long, &format!("{:x<60}…", ""))]
    {
        let message = format!(
            "2:8: error: `{quoted}` is not a policy name \
             | names are 1 to 64 letters, digits, `_`, `.` and `-`"
        );
        assert_eq!(problems(&named(bad)), [message]);
    }
    each_has_one_problem(&[
        (
            &named("none"),
            "2:8: error: the name `none` is reserved | it stands for traces that no policy matches",
        ),
        (
            &format!("{POLICY}{POLICY}"),
            "5:8: error: the name `p` is taken by the policy at t.toml:2:8",
        ),
        ("[[policy]]\ntype = 'always_sample'", "1:1: error: the policy has no `name`"),
        (
            "[[policy]]\nnmae = 'x'\ntype = 'always_sample'",
            "2:1: error: unknown key `nmae` in a policy of type `always_sample` | did you mean \
             `name`?",
        ),
        (
            "[[policy]]\nname = 3\ntype = 'always_sample'",
            "2:8: error: `name` must be a string, found an integer",
        ),
        (
            "policy = [{ name = 'p', type = 'always_sample' }, 3]",
            "1:51: error: `policy` must be a list of tables, found an integer \
             | write [[policy]], with two brackets",
        ),
        (
            "[policy]\nname = 'p'",
            "1:1: error: `policy` must be a list of tables, found a table \
             | write [[policy]], with two brackets",
        ),
    ]);
}

#[test]
fn types() {
    each_policy_has_one_problem(&[
        ("threshold_ms = 3", "1:1: error: the policy has no `type`"),
        (
            "tpye = 'latency'\nthreshold_ms = 3",
            "3:1: error: unknown key `tpye` in a policy | did you mean `type`?",
        ),
        (
            "type = 'latncy'\nthreshold_ms = 3",
            "3:8: error: unknown policy type `latncy` | did you mean `latency`?",
        ),
        (
            "type = 'xyz'\nx = 3",
            "3:8: error: unknown policy type `xyz` | the types are always_sample, status_code, \
             latency, string_attribute, numeric_attribute, boolean_attribute, attribute_exists, \
             probabilistic, span_count, trace_state, trace_flags, span_name, service_name, \
             span_kind, root_span, span_duration, span_event, and, or, not, drop, same_span, \
             budget, rare",
        ),
        ("type = 3", "3:8: error: `type` must be a string, found an integer"),
        (
            "type = 'numeric_atribute'\nkey = 'k'",
            "3:8: error: unknown policy type `numeric_atribute` | did you mean \
             `numeric_attribute`?",
        ),
        (
            "type = 'composite'\nmax_total_spans_per_second = 3",
            "3:8: error: there is no policy type `composite` \
             | give each policy its own `sampling_percentage`",
        ),
        (
            "type = 'status_code'\nstatus_codes = ['OK']\nthreshold_ms = 5",
            "5:1: error: unknown key `threshold_ms` in a policy of type `status_code` | the \
             keys here are \
             `name`, `type`, `status_codes`, `sampling_percentage`, `limit`, `expires`, `shadow`",
        ),
    ]);
}

#[test]
fn status_codes() {
    each_policy_has_one_problem(&[
        ("type = 'status_code'", "1:1: error: the policy has no `status_codes`"),
        (
            "type = 'status_code'\nstatus_codes = []",
            "4:16: error: `status_codes` is empty: the policy can never match",
        ),
        (
            "type = 'status_code'\nstatus_codes = 'ERROR'",
            "4:16: error: `status_codes` must be a list of strings, found a string \
             | write [\"...\"]",
        ),
        (
            "type = 'status_code'\nstatus_codes = ['STATUS_CODE_ERROR']",
            "4:17: error: `status_codes` must be one of `OK`, `ERROR`, `UNSET`, found \
             `STATUS_CODE_ERROR` | did you mean `ERROR`?",
        ),
        (
            "type = 'status_code'\nstatus_codes = ['OK', 'error']",
            "4:23: error: `status_codes` must be one of `OK`, `ERROR`, `UNSET`, found `error` \
             | did you mean `ERROR`?",
        ),
    ]);
}

#[test]
fn latencies_and_attributes() {
    each_policy_has_one_problem(&[
        ("type = 'latency'", "1:1: error: `latency` has no `threshold_ms`"),
        (
            "type = 'latency'\ntreshold_ms = 5",
            "4:1: error: unknown key `treshold_ms` in a policy of type `latency` | did you mean \
             `threshold_ms`?",
        ),
        (
            "type = 'latency'\nthreshold_ms = '5s'",
            "4:16: error: `threshold_ms` must be an integer, found a string \
             | write 5000, in milliseconds and without quotes",
        ),
        (
            "type = 'latency'\nthreshold_ms = -1",
            "4:16: error: `threshold_ms` must be between 0 and 31536000000, found `-1`",
        ),
        (
            "type = 'latency'\nthreshold_ms = 5\nupper_threshold_ms = 0",
            "5:22: error: `upper_threshold_ms` is 0, and no trace is that short \
             | for no upper bound leave the key out",
        ),
        (
            "type = 'latency'\nthreshold_ms = 5\nupper_threshold_ms = 5",
            "5:22: error: the policy can never match: `upper_threshold_ms`, 5, is not above \
             `threshold_ms`, 5",
        ),
        (
            "type = 'string_attribute'\nvalues = ['x']",
            "1:1: error: `string_attribute` has no `key`",
        ),
        ("type = 'string_attribute'\nkey = ''\nvalues = ['x']", "4:7: error: `key` is empty"),
        (
            "type = 'string_attribute'\nkey = 'k'\nvalues = []",
            "5:10: error: `values` is empty: the policy can never match",
        ),
        (
            "type = 'string_attribute'\nkey = 'k'\nvalues = ['a', 1]",
            "5:16: error: `values` must be a list of strings, found an integer \
             | write it in quotes; `numeric_attribute` is for attributes that are numbers",
        ),
        (
            "type = 'string_attribute'\nkey = 'k'\nenabled_regex_matching = true\nvalues = \
             ['(', 'a']",
            "6:11: error: invalid regular expression `(`: unclosed group",
        ),
        (
            "type = 'string_attribute'\nkey = 'k'\nenabled_regex_matching = true\n\
             values = ['\\pL{1000}']",
            "6:11: error: invalid regular expression `\\pL{1000}`: \
             compiled it takes more than 1048576 bytes",
        ),
        // A value is only compiled as an expression if that is enabled.
        (
            "type = 'string_attribute'\nkey = 'k'\nenabled_regex_matching = 1\nvalues = ['(']",
            "5:26: error: `enabled_regex_matching` must be true or false, found an integer",
        ),
    ]);
    let two = policy(
        "type = 'string_attribute'\nkey = 'k'\nenabled_regex_matching = true\nvalues = ['(', \
         'a', '[']",
    );
    assert_eq!(
        problems(&two),
        [
            "6:11: error: invalid regular expression `(`: unclosed group",
            "6:21: error: invalid regular expression `[`: unclosed character class",
        ]
    );
}

#[test]
fn percentages() {
    each_policy_has_one_problem(&[
        (
            "type = 'probabilistic'",
            "1:1: error: a `probabilistic` policy needs a `sampling_percentage`",
        ),
        (
            "type = 'probabilistic'\nsampling_percent = 5",
            "4:1: error: unknown key `sampling_percent` in a policy of type `probabilistic` \
             | did you mean `sampling_percentage`?",
        ),
        (
            "type = 'probabilistic'\nsampling_percentage = '10 %'",
            "4:23: error: `sampling_percentage` must be a number, found a string | write 10 \
             without quotes",
        ),
        (
            "type = 'probabilistic'\nsampling_percentage = 100.1",
            "4:23: error: `sampling_percentage` must be between 0 and 100",
        ),
        (
            "type = 'probabilistic'\nsampling_percentage = nan",
            "4:23: error: `sampling_percentage` must be between 0 and 100",
        ),
        (
            "type = 'probabilistic'\nsampling_percentage = 0",
            "4:23: warning: with 0 % the policy never matches | remove it, or give it a \
             percentage above 0",
        ),
        (
            "type = 'always_sample'\nsampling_percentage = 1e-18",
            "4:23: warning: with 0.000000000000000001 % the policy never matches \
             | remove it, or give it a percentage above 0",
        ),
        (
            "type = 'drop'\npolicies = [{ type = 'always_sample' }]\nsampling_percentage = 100",
            "5:1: error: `drop` has no `sampling_percentage`: a veto is certain",
        ),
    ]);
}

/// Short names, and parameters in the places where the Collector has them.
#[test]
fn keys_that_mean_another() {
    each_policy_has_one_problem(&[
        (
            "type = 'probabilistic'\npercentage = 5",
            "4:1: error: unknown key `percentage` in a policy of type `probabilistic` \
             | did you mean `sampling_percentage`?",
        ),
        (
            "type = 'numeric_attribute'\nkey = 'k'\nmin = 5",
            "5:1: error: unknown key `min` in a policy of type `numeric_attribute` \
             | did you mean `min_value`?",
        ),
        (
            "type = 'latency'\nlatency = { threshold_ms = 5 }",
            "4:1: error: unknown key `latency` in a policy of type `latency` \
             | write its keys next to `type`, not in a table of their own",
        ),
        (
            "type = 'status_code'\n[policy.status_code]\nstatus_codes = ['OK']",
            "4:9: error: unknown key `status_code` in a policy of type `status_code` \
             | write its keys next to `type`, not in a table of their own",
        ),
    ]);
    let plural = POLICY.replace("policy", "policies");
    each_has_one_problem(&[(
        &plural,
        "1:3: error: unknown key `policies` | did you mean `policy`?",
    )]);
}

#[test]
fn combinations() {
    each_policy_has_one_problem(&[
        ("type = 'and'", "1:1: error: the combination has no `policies`"),
        ("type = 'or'\npolicies = []", "4:12: error: `policies` is empty"),
        (
            "type = 'and'\npolicies = { type = 'latency' }",
            "4:12: error: `policies` must be a list of tables, found a table | write [{ ... }]",
        ),
        (
            "type = 'and'\npolicies = [{ name = 'x', type = 'always_sample' }]",
            "4:15: error: a nested policy has no `name` | only the [[policy]] around it is named",
        ),
        (
            "type = 'not'",
            "1:1: error: `not` has no `policy` \
             | `not` takes a single nameless policy: policy = { type = ... }",
        ),
        (
            "type = 'not'\npolicies = [{ type = 'always_sample' }]",
            "4:1: error: unknown key `policies` in a policy of type `not` | did you mean `policy`?",
        ),
        (
            "type = 'not'\npolicy = [{ type = 'always_sample' }]",
            "4:10: error: `policy` must be a table, found an array \
             | `not` takes a single nameless policy: policy = { type = ... }",
        ),
        (
            "type = 'and'\npolicies = [{ type = 'drop', policies = [{ type = 'always_sample' }] }]",
            "4:22: error: `drop` is only allowed at the top level \
             | it vetoes whole traces; to exclude something from one policy use `not`",
        ),
        (
            "type = 'not'\npolicy = { type = 'probabilistic', sampling_percentage = 5 }",
            "4:19: error: nothing inside `not` may be probabilistic \
             | put the percentage on a policy of its own",
        ),
        (
            "type = 'drop'\npolicies = [{ type = 'or', policies = [{ type = 'always_sample', \
             sampling_percentage = 99 }] }]",
            "4:88: error: nothing inside `drop` may be probabilistic \
             | put the percentage on a policy of its own",
        ),
        (
            "type = 'and'\npolicies = [{ type = 'latency', threshold_ms = 1 }, { type = \
             'latency' }]",
            "4:53: error: `latency` has no `threshold_ms`",
        ),
        (
            "type = 'and'\npolicies = [{ tpye = 'latency', threshold_ms = 1 }]",
            "4:15: error: unknown key `tpye` in a nested policy | did you mean `type`?",
        ),
    ]);
}

#[test]
fn there_are_bounds() {
    let mut many = String::new();
    for i in 0..1001 {
        let key = format!("type = 'boolean_attribute', key = '{i}', value = true");
        let _ = writeln!(many, "  {{ name = 'p{i}', {key} }},");
    }
    let many = format!("policy = [\n{many}]");
    assert_eq!(problems(&many), ["1002:3: error: there are more than 1,000 policies"]);

    let parts = "{ type = 'always_sample' },\n".repeat(10_001);
    let many = policy(&format!("type = 'or'\npolicies = [\n{parts}]"));
    assert_eq!(problems(&many), ["10005:1: error: there are more than 10,000 conditions"]);

    let nested = |depth: usize| {
        let inner = "policy = { type = 'not', ".repeat(depth - 2);
        let ends = "}".repeat(depth - 1);
        policy(&format!("type = 'not'\n{inner}policy = {{ type = 'trace_flags' {ends}"))
    };
    assert_eq!(config(&nested(64)).policies.len(), 1);
    let message = "4:1585: error: policies are nested more than 64 levels deep";
    assert_eq!(problems(&nested(65)), [message]);
}
