//! `shadow` of a policy.

use super::{config, each_policy_has_one_problem, policy, problems};

const ALWAYS: &str = "type = 'always_sample'";

#[test]
fn a_shadow_policy_is_read_as_one() {
    let both = |lines: &str| format!("{}[[policy]]\nname = 'q'\n{ALWAYS}\n", policy(lines));
    for (lines, shadow) in [
        (format!("{ALWAYS}\nshadow = true"), true),
        (format!("{ALWAYS}\nshadow = false\nsampling_percentage = 5"), false),
        ("type = 'drop'\npolicies = [{ type = 'trace_flags' }]\nshadow = true".to_owned(), true),
    ] {
        let specs = problems(&both(&lines));
        // If it is not a shadow policy, there is a warning that the other one never decides.
        assert_eq!(specs.len(), usize::from(!shadow), "{specs:?}");
    }
    let specs = config(&both(&format!("{ALWAYS}\nshadow = true"))).policies;
    assert_eq!(specs.iter().map(|spec| spec.shadow).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn problems_of_shadow() {
    each_policy_has_one_problem(&[
        (
            "type = 'always_sample'\nshadow = 'true'",
            "4:10: error: `shadow` must be true or false, found a string | write true without \
             quotes",
        ),
        (
            "type = 'always_sample'\nshadw = true",
            "4:1: error: unknown key `shadw` in a policy of type `always_sample` | did you mean \
             `shadow`?",
        ),
        (
            "type = 'not'\npolicy = { type = 'trace_flags', shadow = true }",
            "4:34: error: a nested policy has no `shadow` \
             | only the [[policy]] around it can be one",
        ),
        (
            "type = 'always_sample'\nshadow = true",
            "2:8: warning: all policies are shadow policies: every trace is dropped | remove \
             `shadow` from the policies that should decide",
        ),
    ]);
}

/// A `drop` of everything that does not decide, or no longer, drops nothing.
#[test]
fn a_shadow_policy_drops_nothing() {
    let veto = "type = 'drop'\npolicies = [{ type = 'always_sample' }]";
    let of = |lines: &str| {
        let both = policy(&format!("{veto}\n{lines}"));
        problems(&format!("{both}[[policy]]\nname = 'q'\n{ALWAYS}\n"))
    };
    let warning = |words: &str| {
        format!(
            "2:8: warning: the policy `p` {words} every trace | give it a condition that not every \
             trace meets"
        )
    };
    assert_eq!(of("shadow = true"), [warning("would drop")]);
    assert_eq!(of("shadow = false"), [warning("drops")]);
    assert_eq!(of("expires = 2100-01-01T00:00:00Z"), [warning("drops")]);
    assert_eq!(of("expires = 2020-01-01T00:00:00Z")[0], warning("would drop"));
}

/// A shadow policy decides nothing, so it neither makes another policy redundant nor is redundant.
#[test]
fn a_shadow_policy_covers_nothing_and_is_not_covered() {
    let named = |name: &str, shadow: bool| {
        format!("[[policy]]\nname = '{name}'\n{ALWAYS}\nshadow = {shadow}\n")
    };
    assert_eq!(problems(&(named("a", true) + &named("b", false))), [""; 0]);
    assert_eq!(problems(&(named("a", false) + &named("b", true))), [""; 0]);
    assert_eq!(problems(&(named("a", false) + &named("b", false))).len(), 1);
}
