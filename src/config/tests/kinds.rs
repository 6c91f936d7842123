use super::{config, each_policy_has_one_problem, policy};
use crate::policy::{BudgetSpec, KindsSpec, LimitSpec, RareSpec, Rate, RuleKind};

fn kind(lines: &str) -> RuleKind {
    config(&policy(lines)).policies.remove(0).rule.kind
}

fn kinds(keys: &[&str], kinds_max: usize) -> KindsSpec {
    KindsSpec { keys: keys.iter().map(|key| (*key).to_owned()).collect(), kinds_max }
}

#[test]
fn a_budget_is_a_rate_and_keys() {
    let RuleKind::Budget(parts, budget) =
        kind("type = 'budget'\nspans_per_second = 500\nkeys = ['service.name']")
    else {
        panic!("another type");
    };
    let rate = Some(Rate { per_second: 500.0, burst: 200.0 });
    let rate = LimitSpec { spans: rate, bytes: None };
    assert!(parts.is_empty());
    assert_eq!(budget, BudgetSpec { rate, kinds: kinds(&["service.name"], 4096), power: 0.0 });
    let RuleKind::Budget(parts, budget) = kind(
        "type = 'budget'\nbytes_per_second = 0.5\nkeys = ['a', 'span.name']\nmax_keys = 7\n\
         power = 1\npolicies = [{ type = 'root_span' }]",
    ) else {
        panic!("another type");
    };
    assert!(budget.rate.spans.is_none() && budget.rate.bytes.is_some() && parts.len() == 1);
    assert_eq!((budget.kinds, budget.power), (kinds(&["a", "span.name"], 7), 1.0));
}

#[test]
fn a_rare_policy_has_an_interval() {
    let RuleKind::Rare(parts, rare) = kind("type = 'rare'\nkeys = ['a']") else {
        panic!("another type");
    };
    assert!(parts.is_empty());
    assert_eq!(
        rare,
        RareSpec { kinds: kinds(&["a"], 65_536), interval_millis: 900_000, traces: 1 }
    );
    let RuleKind::Rare(_, rare) =
        kind("type = 'rare'\nkeys = ['a']\ninterval = '1h'\ntraces = 3\nmax_keys = 9")
    else {
        panic!("another type");
    };
    assert_eq!((rare.interval_millis, rare.traces), (3_600_000, 3));
}

/// Policies have no environment variables, also if they are set, as `PORT` is.
#[test]
fn no_variable_is_replaced_in_a_policy() {
    each_policy_has_one_problem(&[
        (
            "type = 'rare'\nkeys = ['a']\ninterval = '${env:PORT}'",
            "5:12: error: `interval` must be a duration, found `${env:PORT}`: expected number at 0 \
             | write a number and its unit, such as \"500ms\", \"30s\" or \"5m\"",
        ),
        (
            "type = 'rare'\nkeys = ['a']\ninterval = '${env:MISSING:-5m}'",
            "5:12: error: `interval` must be a duration, found `${env:MISSING:-5m}`: expected \
             number at 0 | write a number and its unit, such as \"500ms\", \"30s\" or \"5m\"",
        ),
        (
            "type = 'rare'\nkeys = ['a']\ninterval = 5",
            "5:12: error: `interval` must be a duration in quotes, found an integer \
             | write a number and its unit, such as \"500ms\" or \"30s\"",
        ),
    ]);
    let RuleKind::Rare(_, rare) = kind("type = 'rare'\nkeys = ['${env:PORT}']") else {
        panic!("another type");
    };
    assert_eq!(rare.kinds.keys, ["${env:PORT}"]);
}

#[test]
fn problems_of_budgets_and_rare_policies() {
    each_policy_has_one_problem(&[
        (
            "type = 'budget'\nkeys = ['a']",
            "1:1: error: the budget has no rate \
             | write spans_per_second = 500, or bytes_per_second",
        ),
        (
            "type = 'budget'\nkeys = ['a']\nspans_per_second = 1\nbytes_per_second = 1",
            "6:20: error: a budget can only have one rate \
             | keep `spans_per_second` or `bytes_per_second`",
        ),
        (
            "type = 'budget'\nspans_per_second = 0\nkeys = ['a']",
            "4:20: error: `spans_per_second` must be above 0 \
             | to keep nothing, use sampling_percentage = 0",
        ),
        (
            "type = 'budget'\nspans_per_second = 1",
            "1:1: error: the policy has no `keys` | write keys = [\"service.name\"]",
        ),
        ("type = 'rare'\nkeys = []", "4:8: error: `keys` has 0 keys | name 1 to 16"),
        ("type = 'rare'\nkeys = ['a', '']", "4:14: error: a key is empty"),
        ("type = 'rare'\nkeys = ['a', 'a']", "4:14: error: `keys` has `a` twice"),
        (
            "type = 'budget'\nspans_per_second = 1\nkeys = ['a']\npower = 1.5",
            "6:9: error: `power` must be between 0 and 1 \
             | 0 gives equal shares, 1 shares in proportion to traffic",
        ),
        (
            "type = 'budget'\nspans_per_second = 1\nkeys = ['a']\nsampling_percentage = 5",
            "6:1: error: `budget` has no `sampling_percentage`: its rate sets it",
        ),
        (
            "type = 'budget'\nspans_per_second = 1\nkeys = ['a']\nlimit = { spans_per_second = 5 }",
            "6:1: error: `budget` has no `limit`: it is one | write the rate beside its `keys`",
        ),
        (
            "type = 'and'\npolicies = [{ type = 'rare', keys = ['a'] }]",
            "4:22: error: `rare` is only allowed at the top level \
             | give it a [[policy]] of its own, and conditions in its `policies`",
        ),
        ("type = 'rare'\nkeys = ['a']\npolicies = []", "5:12: error: `policies` is empty"),
    ]);
}

#[test]
fn keys_that_look_like_ids_are_warned_about() {
    let warns = |key: &str| {
        let text = policy(&format!("type = 'rare'\nkeys = ['{key}']"));
        let problems = super::problems(&text);
        assert!(
            problems.iter().all(|problem| problem.contains("looks like an id")),
            "{problems:?}"
        );
        !problems.is_empty()
    };
    for key in [
        "user.id",
        "session_id",
        "trace-id",
        "order.uuid",
        "enduser.id",
        "messaging.message.id",
        "url.full",
        "http.target",
        "db.query.text",
        "client.address",
        "http.request.header.email",
        "customerId",
        "cartID",
        "app.checkout.orderUUID",
        "userEmail",
        "SessionId",
        "shop.order2Id",
        "traceId",
        "TraceID",
        "ID",
    ] {
        assert!(warns(key), "{key}");
    }
    for key in [
        "service.name",
        "http.route",
        "tenant.id",
        "cloud.account.id",
        "span.name",
        "status.code",
        "deployment.environment.name",
        "rpc.method",
        "tenantId",
        "app.accountID",
        "GRID",
        "isValid",
        "paymentKind",
        "valid",
        "paid",
        "kind",
    ] {
        assert!(!warns(key), "{key}");
    }
}
