//! `expires` of a policy. The tests' time is 2026-11-21T00:00:00Z.

use super::{config, each_policy_has_one_problem, policy, problems};

const ALWAYS: &str = "type = 'always_sample'";

#[test]
fn an_instant_is_one_whatever_its_offset() {
    for (written, unix_millis) in [
        ("2026-12-24T18:00:00Z", 1_798_135_200_000),
        ("2026-12-24 18:00:00z", 1_798_135_200_000),
        ("2026-12-24T19:30:00+01:30", 1_798_135_200_000),
        ("2026-12-24T08:00:00-10:00", 1_798_135_200_000),
        ("2026-12-24T18:00:00.0625Z", 1_798_135_200_062),
        ("2026-12-24T18:00Z", 1_798_135_200_000),
        ("2028-02-29T00:00:00Z", 1_835_395_200_000),
    ] {
        let spec = config(&policy(&format!("{ALWAYS}\nexpires = {written}"))).policies.remove(0);
        assert_eq!(spec.expires, Some(unix_millis), "{written}");
    }
    let drop =
        "type = 'drop'\npolicies = [{ type = 'trace_flags' }]\nexpires = 2027-01-01T00:00:00Z";
    assert!(config(&policy(drop)).policies[0].expires.is_some());
    assert_eq!(config(&policy(ALWAYS)).policies[0].expires, None);
}

#[test]
fn problems_of_expires() {
    let cases = [
        (
            "2026-12-24T18:00:00",
            "`expires` has no offset from UTC: 2026-12-24T18:00:00 is another time in each zone \
             | write 2026-12-24T18:00:00Z for UTC, or an offset such as 2026-12-24T18:00:00+01:00",
        ),
        (
            "2026-12-24",
            "`expires` must be a date and time with an offset from UTC, found a date \
             | write expires = 2026-12-24T18:00:00Z",
        ),
        (
            "18:00:00",
            "`expires` must be a date and time with an offset from UTC, found a date \
             | write expires = 2026-12-24T18:00:00Z",
        ),
        (
            "'2027-01-01T00:00:00Z'",
            "`expires` must be a date and time with an offset from UTC, found a string \
             | write 2027-01-01T00:00:00Z without quotes",
        ),
        (
            "'30d'",
            "`expires` must be a date and time with an offset from UTC, found a string \
             | write expires = 2026-12-24T18:00:00Z",
        ),
        ("1969-12-31T23:59:59Z", "`expires` must be after 1970, found 1969-12-31T23:59:59Z"),
    ];
    for (written, problem) in cases {
        let lines = format!("{ALWAYS}\nexpires = {written}");
        each_policy_has_one_problem(&[(&lines, &format!("4:11: error: {problem}"))]);
    }
    each_policy_has_one_problem(&[
        (
            "type = 'and'\npolicies = [{ type = 'trace_flags', expires = 2027-01-01T00:00:00Z }]",
            "4:37: error: a nested policy has no `expires` | only the [[policy]] around it ends",
        ),
        (
            "type = 'always_sample'\nexpire = 2027-01-01T00:00:00Z",
            "4:1: error: unknown key `expire` in a policy of type `always_sample` | did you mean \
             `expires`?",
        ),
        (
            "type = 'always_sample'\nexpires = 2026-11-21T00:00:00Z",
            "4:11: warning: the policy has expired: it matches nothing any more \
             | remove it, or set a later time",
        ),
    ]);
    assert_eq!(
        problems(&policy(&format!("{ALWAYS}\nexpires = 2026-11-21T00:00:00.001Z"))),
        [""; 0]
    );
}

/// A policy that expires earlier does not make another policy redundant.
#[test]
fn a_policy_covers_only_what_ends_no_later() {
    let policy = |name: &str, end: &str| {
        let expires = if end.is_empty() { String::new() } else { format!("expires = {end}") };
        format!("[[policy]]\nname = '{name}'\n{ALWAYS}\n{expires}\n")
    };
    let (soon, later) = ("2027-01-01T00:00:00Z", "2027-01-02T00:00:00Z");
    for (first, second, is_covered) in [
        ("", soon, true),
        (later, soon, true),
        (soon, soon, true),
        (soon, later, false),
        (soon, "", false),
    ] {
        let told = problems(&(policy("a", first) + &policy("b", second)));
        assert_eq!(!told.is_empty(), is_covered, "{first:?} {second:?}: {told:?}");
    }
}
