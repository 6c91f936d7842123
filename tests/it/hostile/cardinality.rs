//! Too much of something: chosen trace ids, spans of one trace, names.

use std::collections::BTreeSet;

use tailwater::{
    sampler::{Decided, Limits, Progress, Which},
    trace::Trigger,
    window::{Millis, SEGMENT_BYTES},
};

use super::field;
use crate::{
    builders::{ANY_ROOM, Fixture, limits, probabilistic, request_of, root},
    harness::{Running, config},
};

/// A request of root spans that have nothing but their ids.
fn bare(trace_ids: impl Iterator<Item = [u8; 16]>) -> Vec<u8> {
    let mut spans = Vec::new();
    for id in trace_ids {
        spans.extend([0x12, 28, 0x0a, 16]);
        spans.extend(id);
        spans.extend([0x12, 8, 1, 1, 1, 1, 1, 1, 1, 1]);
    }
    field(1, &field(2, &spans))
}

/// Decides everything; returns how many traces each shard had.
fn decided_by_shard(fixture: &mut Fixture, now: u32) -> Vec<usize> {
    let shards = 0..fixture.sampler.shards();
    let decide = |shard| {
        let mut traces = 0;
        loop {
            let mut decided = Decided::default();
            let due = Which::Due;
            let progress = fixture.sampler.decide(shard, Millis(now), due, ANY_ROOM, &mut decided);
            fixture.book(&decided);
            traces += decided.decisions.records.len();
            if progress == Progress::Done {
                return traces;
            }
        }
    };
    shards.map(decide).collect()
}

/// Scenario: a million trace ids that differ only in their low half, only in their high half, in
/// their top bits, by one, and in the bits that a hash table with another hash would ignore.
/// Guarantees: none is mistaken for another, no shard has 5 % more of them than its share, and
/// remembering them takes no more memory than for random ids.
#[test]
fn chosen_ids_spread_like_random_ones() {
    const IDS: u64 = 200_000;
    const SHARDS: usize = 8;
    let random = |n: u64| u128::from(n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    let sets: [(&str, &dyn Fn(u64) -> u128); 5] = [
        ("random", &random),
        ("the same low half", &|n| u128::from(n + 1) << 64 | 7),
        ("the same high half, counting", &|n| 7_u128 << 64 | u128::from(n + 1)),
        ("only in the top bits", &|n| u128::from(n + 1) << 104 | 7),
        ("both halves equal", &|n| u128::from(n + 1) << 64 | u128::from(n + 1)),
    ];
    let mut of_random = 0;
    for (set, id) in sets {
        let mut fixture = Fixture::new(&[probabilistic(0.0)], limits(), SHARDS);
        for first in (0..IDS).step_by(10_000) {
            let ids = (first..first + 10_000).map(|n| id(n).to_be_bytes());
            drop(fixture.ingest(0, &bare(ids)));
        }
        assert_eq!(fixture.sampler.buffered().traces, IDS, "{set}");
        let memory = fixture.sampler.memory_used();
        if of_random == 0 {
            of_random = memory;
        }
        assert!(memory < of_random + of_random / 10, "{set}: {memory} bytes, not {of_random}");
        let shards = decided_by_shard(&mut fixture, 60_000);
        fixture.assert_ledger();
        assert_eq!(shards.iter().sum::<usize>() as u64, IDS, "{set}");
        let fullest = shards.into_iter().max().unwrap_or_default();
        let share = IDS as usize / SHARDS;
        assert!(fullest < share + share / 20, "{set}: {fullest} of a share of {share}");
    }
}

/// Scenario: a trace of two million spans that does not end, beside traces of one span; kept and
/// dropped.
/// Guarantees: it is decided once, with as many spans as it may have; later spans follow that
/// decision and take no memory; every other trace is decided at its own time.
#[test]
fn a_trace_without_end_is_decided_at_its_limit() {
    const SPANS: u64 = 20_000;
    const REQUESTS: u32 = 100;
    for percentage in [100.0, 0.0] {
        let limits = Limits { max_trace_spans: 32_000, ..limits() };
        let mut fixture = Fixture::new(&[probabilistic(percentage)], limits, 4);
        let endless = bare((0..SPANS).map(|_| [9; 16]));
        let (mut decisions, mut late) = (Vec::new(), 0);
        for round in 0..REQUESTS {
            drop(fixture.ingest(round * 10, &request_of(vec![root(u64::from(round), 0)])));
            let decided = fixture.ingest(round * 10, &endless);
            decisions.extend(decided.decisions.records.iter().map(|record| {
                assert_eq!(record.decision.trigger, Trigger::TraceLimit);
                record.spans
            }));
            late += decided.late.iter().map(|late| late.spans).sum::<u64>();
            drop(decided);
            fixture.assert_ledger();
            let most = 2 * endless.len() + 12 * SEGMENT_BYTES;
            assert!(
                fixture.sampler.memory_used() < most,
                "{} bytes",
                fixture.sampler.memory_used()
            );
        }
        assert_eq!(decisions, [32_000]);
        assert_eq!(late, u64::from(REQUESTS) * SPANS - 32_000);
        assert_eq!(fixture.sampler.buffered().traces, u64::from(REQUESTS));
        assert_eq!(decided_by_shard(&mut fixture, 4_999).iter().sum::<usize>(), 0);
        assert_eq!(decided_by_shard(&mut fixture, 6_000).iter().sum::<usize>(), REQUESTS as usize);
        fixture.assert_ledger();
    }
}

/// A request with this many resources, each with its own service and span name.
fn distinct(first: u64, count: u64) -> Vec<u8> {
    let mut request = Vec::new();
    for n in first..first + count {
        let value = field(2, &field(1, format!("service {n}").as_bytes()));
        let attribute = field(1, &[field(1, b"service.name"), value].concat());
        let ids = [field(1, &u128::from(n / 100 + 1).to_be_bytes()), field(2, &[1; 8])].concat();
        let span = field(2, &[ids, field(5, format!("operation {n}").as_bytes())].concat());
        let of_resource = [field(1, &attribute), field(2, &span)].concat();
        request.extend(field(1, &of_resource));
    }
    request
}

/// Scenario: a million services, each with its own resource and span name.
/// Guarantees: there are no more series than before, and their memory is released.
#[tokio::test]
async fn a_million_names_add_no_series() {
    let errors =
        "[[policy]]\nname = \"errors\"\ntype = \"status_code\"\nstatus_codes = [\"ERROR\"]\n";
    let running = Running::start(config(errors)).await;
    let before = running.metrics().await;
    let series =
        |metrics: &crate::harness::Metrics| -> BTreeSet<_> { metrics.0.keys().cloned().collect() };
    for round in 0..50 {
        running.export_bytes(distinct(round * 20_000, 20_000)).await.expect("accepted");
    }
    let after = running.at_rest().await;
    assert_eq!(after.sum("receiver_accepted_spans_total"), 1_000_000.0);
    assert_eq!(series(&after), series(&before));
    // Each shard keeps an open segment and some spare ones, and every decision is remembered.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let rest = (cores * 4 * 3 * SEGMENT_BYTES + (4 << 20)) as f64;
    let limit = before.get("memory_used_bytes") + rest;
    running.until("memory is back", |m| m.get("memory_used_bytes") <= limit).await;
    running.stop().await;
}
