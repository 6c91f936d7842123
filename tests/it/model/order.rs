//! Properties that a decision must not depend on.

use std::collections::HashMap;

use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use proptest::prelude::*;
use tailwater::{policy::PolicySpec, sampler::Which};

use super::{encode, strategies};
use crate::builders::{self, Fixture};

proptest! {
    #![proptest_config(builders::cases(128))]

    /// Scenario: the same spans arrive in another order, in other batches, on another number of
    /// shards, and are decided by the same policies in another order.
    /// Guarantees: the same traces are kept at the same threshold, with the same spans.
    #[test]
    fn order_batching_and_shards_decide_nothing(
        policies in strategies::policies(),
        seed in any::<u64>(),
        request in strategies::request_of_any_ids(),
    ) {
        let mut random = fastrand::Rng::with_seed(seed);
        let singles: Vec<_> = request.iter().flat_map(single_spans).collect();
        let plain = outcomes(&policies, std::slice::from_ref(&request), 1);
        let mut shuffled = singles.clone();
        random.shuffle(&mut shuffled);
        let batches = shuffled.chunks(random.usize(1..5)).map(<[_]>::to_vec).collect::<Vec<_>>();
        let shards = [2, 8, 32][random.usize(0..3)];
        prop_assert_eq!(&plain, &outcomes(&policies, &batches, shards));

        let mut reordered = policies.clone();
        random.shuffle(&mut reordered);
        let without_credit = |outcomes: HashMap<_, Outcome>| -> HashMap<[u8; 16], Outcome> {
            let bare = |outcome: Outcome| Outcome { policy: String::new(), ..outcome };
            outcomes.into_iter().map(|(id, outcome)| (id, bare(outcome))).collect()
        };
        let reordered = outcomes(&reordered, &batches, shards);
        prop_assert_eq!(without_credit(plain), without_credit(reordered));
    }
}

/// A decision without its circumstances.
#[derive(Debug, PartialEq)]
struct Outcome {
    kept: bool,
    policy: String,
    threshold: u64,
    randomness: u64,
    /// Sorted.
    matched: Vec<String>,
    /// Sorted; empty if dropped.
    spans: Vec<Vec<u8>>,
}

fn outcomes(
    policies: &[PolicySpec],
    requests: &[Vec<ResourceSpans>],
    shards: usize,
) -> HashMap<[u8; 16], Outcome> {
    let mut fixture = Fixture::new(policies, builders::limits(), shards);
    for request in requests {
        fixture.ingest(0, &encode(request));
    }
    let mut outcomes = HashMap::new();
    for decided in fixture.decide(30_000, Which::Due) {
        let mut spans = decided.spans.iter().map(|span| span.bytes.to_vec());
        for record in &decided.decisions.records {
            let verdict = record.decision.verdict;
            let plan = fixture.sampler.plan();
            let matched = decided.decisions.matched(record).iter();
            let mut matched: Vec<_> = matched.map(|&id| plan.name(id).to_owned()).collect();
            matched.sort();
            let kept = if verdict.kept { record.spans as usize } else { 0 };
            let mut spans: Vec<_> = spans.by_ref().take(kept).collect();
            spans.sort();
            let outcome = Outcome {
                kept: verdict.kept,
                policy: plan.name(verdict.policy).to_owned(),
                threshold: verdict.threshold.bits(),
                randomness: record.randomness.0,
                matched,
                spans,
            };
            outcomes.insert(record.trace_id.0, outcome);
        }
    }
    fixture.assert_ledger();
    outcomes
}

/// The spans of a request, each with its own resource and scope around it.
fn single_spans(of_resource: &ResourceSpans) -> Vec<ResourceSpans> {
    let alone = |of_scope: &ScopeSpans, span: &Span| ResourceSpans {
        scope_spans: vec![ScopeSpans { spans: vec![span.clone()], ..of_scope.clone() }],
        ..of_resource.clone()
    };
    let of_scope = |scope: &ScopeSpans| -> Vec<_> {
        scope.spans.iter().map(|span| alone(scope, span)).collect()
    };
    of_resource.scope_spans.iter().flat_map(of_scope).collect()
}
