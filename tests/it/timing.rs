//! Deadlines to the millisecond, with time as an argument instead of sleeping. The tests decide at
//! every moment; in the service, deadlines are exact to a tick.

use std::sync::Arc;

use prost::Message as _;
use tailwater::{
    budget::Budget,
    policy::Plan,
    sampler::{Decided, Ingested, Limits, Sampler, Scratch, Which},
    trace::Trigger,
    window::{Millis, Waits},
};

use crate::harness::{ALL, HIGH, Running, config, request, span, trace_id};

const WAITS: Waits = Waits { decision_wait: 1_000, after_root: Some(100) };
const TTL_MILLIS: u32 = 500;

/// A sampler with these policies, and its time.
pub struct Core {
    sampler: Sampler,
    scratch: Scratch,
    pub decided: Decided,
}

impl Core {
    pub fn new(policies: &str, waits: Waits) -> Self {
        let limits = Limits {
            waits,
            max_trace_spans: 1_000,
            max_trace_bytes: 1 << 20,
            context_bytes_max: usize::MAX,
            kept_bytes_max: None,
            decision_ttl_millis: TTL_MILLIS,
            decision_log_traces: 100,
        };
        let plan = Arc::new(Plan::compile(&config(policies).policies));
        let sampler = Sampler::new(plan, limits, &Budget::new(1 << 30), 4);
        Core { sampler, scratch: Scratch::default(), decided: Decided::default() }
    }

    /// Ingests spans at this time.
    pub fn ingest(
        &mut self,
        at: u32,
        spans: Vec<opentelemetry_proto::tonic::trace::v1::Span>,
    ) -> Ingested {
        let bytes = request("shop", spans).encode_to_vec();
        let Core { sampler, scratch, decided } = self;
        sampler.ingest(Millis(at), &bytes, scratch, decided).expect("valid")
    }

    /// Decides at this time; returns the low bits of the trace's number and the trigger of each
    /// decision.
    pub fn decide(&mut self, at: u32, which: Which) -> Vec<(u8, Trigger)> {
        self.decided.clear();
        for shard in 0..self.sampler.shards() {
            self.sampler.decide(shard, Millis(at), which, usize::MAX, &mut self.decided);
        }
        let records = self.decided.decisions.records.iter();
        let mut found: Vec<_> =
            records.map(|record| (record.trace_id.0[15], record.decision.trigger)).collect();
        found.sort_by_key(|found| found.0);
        found
    }

    fn due(&mut self, at: u32) -> Vec<(u8, Trigger)> {
        self.decide(at, Which::Due)
    }
}

/// Scenario: traces without a root, whose spans keep arriving; the counter of milliseconds passes
/// 2^32 meanwhile.
/// Guarantees: each is decided exactly `decision_wait` after its first span, not a millisecond
/// sooner.
#[test]
fn decision_wait_counts_from_the_first_span() {
    for start in [0, 5_000, u32::MAX - 500] {
        let mut core = Core::new(ALL, WAITS);
        let at = |millis: u32| start.wrapping_add(millis);
        // Time is read every tick; two readings are never half of its range apart.
        core.due(start / 2);
        core.ingest(at(0), vec![span(HIGH | 1, 2, Some(1))]);
        core.ingest(at(10), vec![span(HIGH | 2, 2, Some(1))]);
        core.ingest(at(990), vec![span(HIGH | 1, 3, Some(1))]);
        assert_eq!(core.due(at(999)), []);
        assert_eq!(core.due(at(1_000)), [(1, Trigger::DecisionWait)]);
        assert_eq!(core.decided.spans.len(), 2);
        assert_eq!(core.due(at(1_009)), []);
        assert_eq!(core.due(at(1_010)), [(2, Trigger::DecisionWait)]);
        assert_eq!(core.due(at(100_000)), []);
    }
}

/// Scenario: roots that arrive early, twice, together with the end of the wait, and after it.
/// Guarantees: `decision_wait_after_root_received` counts from the first root and never makes it
/// later.
#[test]
fn a_root_only_ever_makes_the_decision_earlier() {
    let mut core = Core::new(ALL, WAITS);
    for trace in 1..=4 {
        core.ingest(0, vec![span(HIGH | trace, 2, Some(1))]);
    }
    core.ingest(300, vec![span(HIGH | 1, 1, None)]);
    core.ingest(350, vec![span(HIGH | 1, 3, None)]);
    assert_eq!(core.due(399), []);
    assert_eq!(core.due(400), [(1, Trigger::RootReceived)]);
    core.ingest(899, vec![span(HIGH | 2, 1, None)]);
    core.ingest(900, vec![span(HIGH | 3, 1, None)]);
    core.ingest(950, vec![span(HIGH | 4, 1, None)]);
    assert_eq!(core.due(998), []);
    assert_eq!(core.due(999), [(2, Trigger::RootReceived)]);
    assert_eq!(core.due(1_000), [(3, Trigger::DecisionWait), (4, Trigger::DecisionWait)]);
    assert_eq!(core.due(10_000), []);
}

/// Scenario: the wait after the root is turned off, and a request with an older clock reading
/// arrives after another one.
/// Guarantees: only `decision_wait` counts, and time in a shard never goes back.
#[test]
fn a_late_clock_reading_makes_nothing_late() {
    let mut core = Core::new(ALL, Waits { after_root: None, ..WAITS });
    core.due(100);
    core.ingest(40, vec![span(HIGH | 1, 1, None)]);
    assert_eq!(core.due(1_099), []);
    assert_eq!(core.due(1_100), [(1, Trigger::DecisionWait)]);
}

/// Scenario: late spans up to the last moment of `decision_cache_ttl`, for decisions at any time.
/// Guarantees: they follow the decision; after twice that time, a span begins a new trace.
#[test]
fn decisions_are_remembered_for_their_time() {
    for decided_at in (1_000..2_000).step_by(50) {
        let mut core = Core::new(ALL, WAITS);
        core.ingest(decided_at - 1_000, vec![span(HIGH | 1, 2, Some(1))]);
        assert_eq!(core.due(decided_at).len(), 1);
        for tick in (0..TTL_MILLIS).step_by(25) {
            core.due(decided_at + tick);
        }
        core.ingest(decided_at + TTL_MILLIS - 1, vec![span(HIGH | 1, 3, Some(1))]);
        assert_eq!(core.decided.late.len(), 1, "decided at {decided_at}");
        for tick in (0..=2 * TTL_MILLIS).step_by(25) {
            core.due(decided_at + TTL_MILLIS + tick);
        }
        core.ingest(decided_at + 3 * TTL_MILLIS, vec![span(HIGH | 1, 4, Some(1))]);
        assert_eq!((core.decided.late.len(), core.sampler.buffered().traces), (0, 1));
    }
}

/// Scenario: a trace without a root and one with a root, in the running service.
/// Guarantees: neither is exported before its time.
#[tokio::test]
async fn the_service_waits_as_configured() {
    let running = Running::start(config(ALL)).await;
    let started = tokio::time::Instant::now();
    running.accept(vec![span(HIGH | 1, 2, Some(1)), span(HIGH | 2, 1, None)]).await;
    let of = |trace: u64| {
        move |running: &Running| running.traces().contains_key(&trace_id(HIGH | trace))
    };
    let (waits, has_root) = (of(1), of(2));
    running.until("the root's trace", |m| m.sum("exporter_sent_spans_total") >= 1.0).await;
    assert!(has_root(&running) && started.elapsed().as_millis() >= 100);
    running.until("the other", |m| m.sum("exporter_sent_spans_total") == 2.0).await;
    assert!(waits(&running) && started.elapsed().as_millis() >= 500);
    let metrics = running.at_rest().await;
    assert_eq!(metrics.get("decisions_total{trigger=\"root_received\"}"), 1.0);
    assert_eq!(metrics.get("decisions_total{trigger=\"decision_wait\"}"), 1.0);
    running.stop().await;
}
