//! Spans that arrive after their trace's decision, and the cost of remembering decisions.

use std::sync::Arc;

use prost::Message as _;
use tailwater::{
    budget::{Budget, Holder},
    policy::Plan,
    sampler::{Decided, Limits, Sampler, Scratch, Which},
    window::{Millis, Waits},
};

use crate::harness::{ERRORS_AND_HALF, HIGH, LOW, config, error, request, span};

const WINDOW: u32 = 1_000;
const TTL_WINDOWS: u32 = 11;

fn sampler(budget: &Arc<Budget>) -> Sampler {
    let limits = Limits {
        waits: Waits { decision_wait: WINDOW, after_root: None },
        max_trace_spans: 1_000,
        max_trace_bytes: 1 << 20,
        context_bytes_max: usize::MAX,
        kept_bytes_max: None,
        decision_ttl_millis: TTL_WINDOWS * WINDOW,
        decision_log_traces: 0,
    };
    Sampler::new(Arc::new(Plan::compile(&config(ERRORS_AND_HALF).policies)), limits, budget, 4)
}

/// Scenario: an error trace is kept, a trace of low randomness dropped; spans of both arrive 1, 2
/// and 10 windows late, an error among them, and again after everything is forgotten.
/// Guarantees: each follows its trace's decision while that is remembered; then it is a new trace,
/// which the same randomness decides as before.
#[test]
fn late_spans_follow_for_as_long_as_decisions_are_remembered() {
    for windows in [1, 2, 10, 30] {
        let budget = Budget::new(1 << 30);
        let sampler = sampler(&budget);
        let (mut scratch, mut decided) = (Scratch::default(), Decided::default());
        let failed = |trace: u64, id| {
            let mut span = span(trace, id, Some(1));
            span.status = error();
            span
        };
        let mut ingest = |at, spans, decided: &mut Decided| {
            decided.clear();
            let bytes = request("shop", spans).encode_to_vec();
            sampler.ingest(Millis(at), &bytes, &mut scratch, decided).expect("valid");
        };
        let tick = |at, decided: &mut Decided| {
            decided.clear();
            for shard in 0..sampler.shards() {
                sampler.decide(shard, Millis(at), Which::Due, usize::MAX, decided);
            }
        };
        ingest(0, vec![failed(LOW | 1, 1), span(LOW | 2, 1, None)], &mut decided);
        for at in (0..=(1 + windows) * WINDOW).step_by(100) {
            tick(at, &mut decided);
        }
        let at = (1 + windows) * WINDOW;
        ingest(at, vec![span(LOW | 1, 2, Some(1)), failed(LOW | 2, 2)], &mut decided);
        let mut late: Vec<_> = decided.late.iter().map(|l| (l.verdict.kept, l.errors)).collect();
        late.sort_unstable();
        if windows < TTL_WINDOWS {
            assert_eq!(late, [(false, 1), (true, 0)], "{windows}");
            assert_eq!(decided.spans.len(), 1, "{windows}");
        } else {
            assert_eq!((late.len(), sampler.buffered().traces), (0, 2));
            tick(at + WINDOW, &mut decided);
            let records = &decided.decisions.records;
            assert_eq!(records.iter().filter(|r| r.decision.verdict.kept).count(), 1);
        }
    }
}

/// Scenario: 16,000 traces in each of 60 windows, decided and remembered for 11 windows. At this
/// number, no table is about to grow by chance.
/// Guarantees: the memory for remembered decisions stops growing, at 40 bytes per trace at most.
#[test]
fn remembered_decisions_are_bounded() {
    const TRACES: u64 = 16_000;
    let budget = Budget::new(1 << 30);
    let sampler = sampler(&budget);
    let (mut scratch, mut decided) = (Scratch::default(), Decided::default());
    let mut held = Vec::new();
    for window in 0..60 {
        let first = u64::from(window) * TRACES;
        let spans = (first..first + TRACES).map(|trace| span(HIGH | trace, 1, None)).collect();
        let bytes = request("shop", spans).encode_to_vec();
        let at = Millis(window * WINDOW);
        sampler.ingest(at, &bytes, &mut scratch, &mut decided).expect("valid");
        for shard in 0..sampler.shards() {
            let mut progress = tailwater::sampler::Progress::More;
            while progress == tailwater::sampler::Progress::More {
                progress = sampler.decide(shard, at, Which::Due, usize::MAX, &mut decided);
            }
        }
        decided.clear();
        held.push(budget.held(Holder::Decisions));
    }
    let (early, later) = held.split_at(2 * TTL_WINDOWS as usize + 2);
    let most = *later.iter().max().expect("windows");
    assert!(most <= *early.iter().max().expect("windows"), "{held:?}");
    let remembered = 2 * TTL_WINDOWS as usize * TRACES as usize;
    assert!(most > 9 * remembered && most < 40 * remembered, "{most} for {remembered}");
}
