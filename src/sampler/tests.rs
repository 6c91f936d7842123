//! Tests that need access to the inside: a request that was walked before a reload and is taken in
//! after it, and bugs.

use opentelemetry_proto::tonic::trace::v1::Span;
use std::panic::{AssertUnwindSafe, catch_unwind};

use prost::Message as _;

use super::*;
use crate::{
    otlp::walk::Unwalked,
    policy::{
        LimitSpec, PolicyId, PolicySpec, Rate, RuleKind, RuleSpec, Scope, StringMatch, Verdict,
    },
    testing::{self, text},
    trace::Trigger,
};

fn policy(name: &str) -> PolicySpec {
    let values = StringMatch::Exact(vec![name.to_owned()]);
    let (key, scope) = ("k".into(), Scope::Any);
    let kind = RuleKind::StringAttribute { key, scope, values, invert: false };
    PolicySpec::new(name, RuleSpec { kind, sampling_percentage: 100.0 })
}

fn request(value: &str) -> Vec<u8> {
    request_of(value, 1..=1)
}

/// A request with a span of each of these traces.
fn request_of(value: &str, traces: std::ops::RangeInclusive<u8>) -> Vec<u8> {
    let span = |trace| Span {
        trace_id: vec![trace; 16],
        span_id: vec![1; 8],
        attributes: vec![text("k", value)],
        ..Span::default()
    };
    testing::request(Vec::new(), traces.map(span).collect()).encode_to_vec()
}

/// Decides the only buffered trace and returns the deciding policy.
fn decide(sampler: &Sampler) -> PolicyId {
    let mut decided = Decided::default();
    let which = Which::Oldest(crate::trace::Trigger::Memory);
    sampler.decide(0, Millis(0), which, usize::MAX, &mut decided);
    assert_eq!(decided.decisions.records.len(), 1);
    decided.decisions.records[0].decision.verdict.policy
}

const LIMITS: Limits = Limits {
    waits: Waits { decision_wait: 10, after_root: None },
    max_trace_spans: 10,
    max_trace_bytes: 1 << 10,
    context_bytes_max: usize::MAX,
    kept_bytes_max: None,
    decision_ttl_millis: 10,
    decision_log_traces: 0,
};

#[test]
fn a_request_walked_with_another_plan_is_walked_again() {
    // The bit of "a" under one plan is the bit of "b" under the other, or the word does not exist.
    let many: Vec<_> = (0..100).map(|n| policy(&format!("n{n}"))).collect();
    let (a, b) = (policy("a"), policy("b"));
    let sets = [vec![a.clone()], vec![b.clone(), a.clone()], [many, vec![b, a]].concat(), vec![]];
    for old in &sets {
        for new in &sets {
            let before = Arc::new(Plan::compile(old));
            let sampler = Sampler::new(Arc::clone(&before), LIMITS, &Budget::new(1 << 30), 1);
            let plan = Arc::new(before.successor(new).expect("few"));
            sampler.reload(&plan, |_| {});
            *sampler.plan.write().expect("no panic") = before;
            let mut decided = Decided::default();
            let taken =
                sampler.ingest(Millis(0), &request("a"), &mut Scratch::default(), &mut decided);
            assert_eq!(taken.map(|taken| taken.accepted), Ok(1));
            let expected = if new.is_empty() { "none" } else { "a" };
            assert_eq!(plan.name(decide(&sampler)), expected);
        }
    }
}

/// Provokes a bug: the plan of a shard has this many policies, but its traces have the bits of one.
fn with_wrong_plan(shard: usize, policies: usize) -> Sampler {
    let plan = |policies: usize| {
        let policies: Vec<_> = (0..policies).map(|n| policy(&format!("n{n}"))).collect();
        Arc::new(Plan::compile(&policies))
    };
    let sampler = Sampler::new(plan(1), LIMITS, &Budget::new(1 << 30), 4);
    sampler.lock(shard).plan = plan(policies);
    sampler
}

#[test]
fn a_panic_amid_a_request_leaves_the_ledger_exact() {
    for shard in 0..4 {
        let sampler = with_wrong_plan(shard, 0);
        let (mut scratch, mut decided) = (Scratch::default(), Decided::default());
        let bytes = request_of("n0", 1..=200);
        let ingest = || sampler.ingest(Millis(0), &bytes, &mut scratch, &mut decided);
        assert!(catch_unwind(AssertUnwindSafe(ingest)).is_err());
        // The shards before it have taken in their spans, and this one its first.
        let taken = scratch.taken();
        assert!(taken > 0 && taken < 200, "{taken}");
        assert_eq!(sampler.buffered().spans, taken);
        for shard in 0..4 {
            let which = Which::Oldest(Trigger::Shutdown);
            sampler.decide(shard, Millis(0), which, usize::MAX, &mut decided);
        }
        assert_eq!((decided.left_spans(), sampler.buffered().spans), (taken, 0));
    }
}

#[test]
fn a_trace_that_makes_a_policy_panic_is_dropped_and_no_other() {
    // 100 policies need a second word of bits.
    let sampler = with_wrong_plan(2, 100);
    let (mut scratch, mut decided) = (Scratch::default(), Decided::default());
    let bytes = request_of("n0", 1..=200);
    sampler.ingest(Millis(0), &bytes, &mut scratch, &mut decided).expect("valid");
    let spans = sampler.buffered().spans;
    for shard in 0..4 {
        let which = Which::Oldest(Trigger::Shutdown);
        sampler.decide(shard, Millis(0), which, usize::MAX, &mut decided);
    }
    let records = &decided.decisions.records;
    let of_none = records.iter().filter(|record| record.decision.verdict == Verdict::NONE).count();
    assert!(decided.panics > 0 && of_none == decided.panics as usize, "{}", decided.panics);
    assert_eq!((decided.left_spans(), spans, sampler.buffered().spans), (200, 200, 0));
    assert_eq!(decided.kept.len() + of_none, records.len());
}

/// Imitates a reload that has reached only the first of four shards.
#[test]
fn a_reload_in_progress_leaves_no_shard_out_of_a_tick() {
    let rate = Rate { per_second: 1.0, burst: 20.0 };
    let limit = Some(LimitSpec { spans: Some(rate), bytes: None });
    let limited = PolicySpec { limit, ..policy("n0") };
    let before = Arc::new(Plan::compile(std::slice::from_ref(&limited)));
    let sampler = Sampler::new(Arc::clone(&before), LIMITS, &Budget::new(1 << 30), 4);
    let (mut scratch, mut decided) = (Scratch::default(), Decided::default());
    let bytes = request_of("n0", 1..=200);
    sampler.ingest(Millis(0), &bytes, &mut scratch, &mut decided).expect("valid");
    let plan = Arc::new(before.successor(&[limited, policy("n1")]).expect("few"));
    *sampler.plan.write().expect("no panic") = Arc::clone(&plan);
    sampler.reload_shard(0, &plan, &mut |_| {});
    sampler.begin_tick(Millis(20), 0.1);
    for shard in 0..4 {
        while sampler.decide(shard, Millis(20), Which::Due, usize::MAX, &mut decided)
            == Progress::More
        {}
    }
    assert_eq!((decided.left_spans(), decided.kept.len()), (200, 20));
}

#[test]
fn a_trace_without_room_is_not_judged() {
    let plan = Arc::new(Plan::compile(&[policy("a")]));
    let sampler = Sampler::new(plan, LIMITS, &Budget::new(1 << 30), 1);
    let (mut scratch, mut decided) = (Scratch::default(), Decided::default());
    let mut take = |value: &str, trace: u8| {
        let bytes = request_of(value, trace..=trace);
        sampler.ingest(Millis(0), &bytes, &mut scratch, &mut Decided::default()).expect("valid");
    };
    // The second trace would be dropped, but it still waits: whether a trace waits for room must
    // not depend on its verdict.
    take("a", 1);
    take("b", 2);
    let which = Which::Oldest(Trigger::Memory);
    let bytes = sampler.buffered().bytes as usize / 2;
    assert_eq!(sampler.decide(0, Millis(0), which, bytes, &mut decided), Progress::NoRoom);
    assert_eq!((decided.decisions.records.len(), sampler.buffered().traces), (1, 1));
    assert!(decided.decisions.matched.len() == 1 && decided.kept.len() == 1);
    decided.clear();
    assert_eq!(sampler.decide(0, Millis(0), which, bytes, &mut decided), Progress::Done);
    assert_eq!((decided.decisions.records.len(), sampler.buffered().traces), (1, 0));
}

/// A request with this many spans of 30 bytes, each of its own trace.
fn bare_spans(count: u128) -> Vec<u8> {
    let span = |id: u128| Span {
        trace_id: id.to_be_bytes().into(),
        span_id: vec![1; 8],
        ..Span::default()
    };
    testing::request(Vec::new(), (1..=count).map(span).collect()).encode_to_vec()
}

#[test]
fn a_giant_request_is_taken_whole_in_pieces_or_not_at_all() {
    // 640 conditions need ten words per span.
    let policies: Vec<_> = (0..640).map(|n| policy(&format!("n{n}"))).collect();
    let plan = Arc::new(Plan::compile(&policies));
    let request = bare_spans(50_000);
    for (mib, is_taken) in [(4, false), (64, true)] {
        let budget = Budget::new(mib << 20);
        let sampler = Sampler::new(Arc::clone(&plan), LIMITS, &budget, 4);
        let (mut scratch, mut decided) = (Scratch::default(), Decided::default());
        let kept_bytes = sampler.bounds.kept_bytes;
        for round in 1..=2 {
            let taken = sampler.ingest(Millis(0), &request, &mut scratch, &mut decided);
            match taken {
                Ok(taken) if is_taken => assert_eq!(taken.accepted, 50_000),
                Err(Unwalked::NoRoom { bytes }) => {
                    assert!(!is_taken && bytes + request.len() > mib << 20, "{bytes}");
                    assert_eq!(sampler.buffered().spans, 0);
                }
                other => panic!("{mib} MiB: {other:?}"),
            }
            assert!(budget.held(Holder::Walking) <= kept_bytes, "given back");
            for shard in 0..4 {
                let which = Which::Oldest(Trigger::Shutdown);
                while sampler.decide(shard, Millis(0), which, usize::MAX, &mut decided)
                    == Progress::More
                {
                    decided.clear();
                }
            }
            decided.clear();
            assert_eq!(sampler.buffered().spans, 0, "round {round}");
        }
    }
}

#[test]
fn memory_returns_to_the_same_figure_at_rest() {
    let budget = Budget::new(64 << 20);
    // 1,000 conditions: the bits of a thousand ring entries would take 128 KB.
    let policies: Vec<_> = (0..1_000).map(|n| policy(&format!("n{n}"))).collect();
    let sampler = Sampler::new(Arc::new(Plan::compile(&policies)), LIMITS, &budget, 4);
    let (mut scratch, mut decided) = (Scratch::default(), Decided::default());
    let mut at_rest = Vec::new();
    for (round, count) in (1_u32..).zip([1_000, 10, 3_000, 1, 1_000]) {
        let now = Millis(round * 1_000_000);
        sampler.ingest(now, &bare_spans(count), &mut scratch, &mut decided).expect("fits");
        let which = Which::Oldest(Trigger::Shutdown);
        for _ in 0..3 {
            for shard in 0..4 {
                while sampler.decide(shard, now, which, usize::MAX, &mut decided) == Progress::More
                {
                }
                decided.clear();
            }
        }
        sampler.trim(now);
        sampler.trim(Millis(now.0 + 20_000));
        sampler.trim(Millis(now.0 + 40_000));
        at_rest.push((budget.held(Holder::Index), budget.held(Holder::Segments)));
    }
    let most = at_rest.iter().map(|(index, _)| *index).max().expect("some");
    assert!(most <= 4 * (256 << 10), "{at_rest:?}");
    assert!(at_rest.iter().all(|(_, segments)| *segments == 0), "{at_rest:?}");
}
