use super::{config, each_policy_has_one_problem, policy};
use crate::policy::{LimitSpec, Rate};

fn limit(written: &str) -> LimitSpec {
    let lines = format!("type = 'always_sample'\nlimit = {written}");
    config(&policy(&lines)).policies.remove(0).limit.expect("a limit")
}

fn rate(per_second: f64, burst: f64) -> Option<Rate> {
    Some(Rate { per_second, burst })
}

#[test]
fn a_limit_is_a_rate_of_spans_or_bytes_with_a_burst() {
    let of = |spans, bytes| LimitSpec { spans, bytes };
    assert_eq!(limit("{ spans_per_second = 500 }"), of(rate(500.0, 1_000.0), None));
    assert_eq!(limit("{ bytes_per_second = 0.5 }"), of(None, rate(0.5, 1.0)));
    assert_eq!(
        limit("{ spans_per_second = 500, burst_capacity = 50 }"),
        of(rate(500.0, 50.0), None)
    );
    assert_eq!(
        limit("{ spans_per_second = 5, bytes_per_second = 7 }"),
        of(rate(5.0, 10.0), rate(7.0, 14.0))
    );
    let unlimited = config(&policy("type = 'always_sample'")).policies.remove(0);
    assert_eq!(unlimited.limit, None);
}

#[test]
fn problems_of_limits() {
    each_policy_has_one_problem(&[
        (
            "type = 'always_sample'\nlimit = 5",
            "4:9: error: `limit` must be a table, found an integer \
             | write limit = { spans_per_second = 500 }, bytes_per_second, or both",
        ),
        (
            "type = 'always_sample'\nlimit = {}",
            "4:9: error: the limit has no rate \
             | write limit = { spans_per_second = 500 }, bytes_per_second, or both",
        ),
        (
            "type = 'always_sample'\nlimit = { spans_per_secnd = 5 }",
            "4:11: error: unknown key `spans_per_secnd` in a limit \
             | did you mean `spans_per_second`?",
        ),
        (
            "type = 'always_sample'\nlimit = { spans_per_second = 0 }",
            "4:30: error: `spans_per_second` must be above 0 \
             | to keep nothing, use sampling_percentage = 0",
        ),
        (
            "type = 'always_sample'\nlimit = { spans_per_second = '5' }",
            "4:30: error: `spans_per_second` must be a number, found a string \
             | write 5 without quotes",
        ),
        (
            "type = 'always_sample'\n\
             limit = { spans_per_second = 5, bytes_per_second = 5, burst_capacity = 5 }",
            "4:72: error: `burst_capacity` with two rates is ambiguous \
             | leave it out: each burst is twice its rate",
        ),
        (
            "type = 'drop'\npolicies = [{ type = 'always_sample' }]\n\
             limit = { spans_per_second = 5 }",
            "5:1: error: `drop` keeps nothing that a `limit` could bound",
        ),
        (
            "type = 'or'\npolicies = [\n\
             { type = 'always_sample', limit = { spans_per_second = 5 } }]",
            "5:27: error: a nested policy has no `limit` \
             | only the [[policy]] around it is limited",
        ),
    ]);
}
