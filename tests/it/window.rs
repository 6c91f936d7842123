//! The window's memory: what it holds, when it is released, and that no span is lost.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
};

use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tailwater::{
    budget::Holder,
    otlp::encode::KeptSpan,
    sampler::{Buffered, Decided, Limits, Progress, Scratch, Which},
    trace::Trigger,
    window::{Millis, SEGMENT_BYTES, Waits},
};

use crate::builders::{ANY_ROOM, Fixture, child, limits, probabilistic, request_of, root};

const TICK_MILLIS: u32 = 100;

/// A sampler that keeps everything.
fn keeping(limits: Limits, shards: usize) -> Fixture {
    Fixture::new(&[probabilistic(100.0)], limits, shards)
}

/// A sampler that drops everything.
fn dropping(limits: Limits, shards: usize) -> Fixture {
    Fixture::new(&[probabilistic(0.0)], limits, shards)
}

fn padded(span: Span, bytes: usize) -> Span {
    Span { name: "x".repeat(bytes.saturating_sub(span.encoded_len())), ..span }
}

/// Bytes of segments that are not spare.
fn segments_in_use(fixture: &Fixture) -> usize {
    let held = |holder| fixture.budget.held(holder);
    assert_eq!((held(Holder::Receiving), held(Holder::Export)), (0, 0));
    let others = [Holder::Index, Holder::Contexts, Holder::Decisions, Holder::DecisionLog];
    let others = others.into_iter().map(held).sum::<usize>() + held(Holder::Walking);
    fixture.sampler.memory_used() - others
}

/// Visits every shard like the decider, until nothing is due.
fn tick(fixture: &mut Fixture, now: u32) {
    drop(fixture.decide(now, Which::Due));
    fixture.sampler.trim(Millis(now));
    fixture.assert_ledger();
}

/// The spans of each trace, in the order in which they are exported.
fn names(decided: &[Decided]) -> HashMap<Vec<u8>, Vec<String>> {
    let mut names: HashMap<_, Vec<_>> = HashMap::new();
    for span in decided.iter().flat_map(|decided| &decided.spans) {
        let span = Span::decode(&span.bytes[..]).expect("sound");
        names.entry(span.trace_id).or_default().push(span.name);
    }
    names
}

/// Runs `seconds` of steady traffic in which every twentieth trace has no root, and returns the
/// worst ratio of segments in use to live bytes after the first decisions.
fn worst_ratio(shards: usize, traces_per_tick: u64, spans: u64, span_bytes: usize) -> f64 {
    let mut fixture = dropping(limits(), shards);
    let mut worst = 0.0_f64;
    for round in 0..400u64 {
        let now = round as u32 * TICK_MILLIS;
        for number in 0..traces_per_tick {
            let trace = round * traces_per_tick + number;
            let first = if trace.is_multiple_of(20) { child(trace, 0) } else { root(trace, 0) };
            let rest = (1..spans).map(|span| child(trace, span));
            let of_trace = std::iter::once(first).chain(rest);
            let of_trace = of_trace.map(|span| padded(span, span_bytes)).collect();
            fixture.ingest(now, &request_of(of_trace));
        }
        tick(&mut fixture, now);
        if now > 8_000 {
            let open = shards * SEGMENT_BYTES;
            let live = fixture.sampler.buffered().bytes as f64;
            worst = worst.max(segments_in_use(&fixture).saturating_sub(open) as f64 / live);
        }
    }
    worst
}

/// Scenario: 40 s of small spans. One trace in twenty never gets its root and waits 30 s, while the
/// others are decided after 5 s.
/// Guarantees: the segments in use stay close to the bytes of undecided traces.
#[test]
fn early_decisions_give_memory_back() {
    let ratio = worst_ratio(2, 40, 4, 680);
    assert!(ratio < 1.6, "{ratio:.2} times the live bytes are held");
}

/// Scenario: the same at 26 MB/s in one shard, ten segments per tick.
/// Guarantees: compaction keeps up with the rate at which segments become empty.
#[test]
fn compaction_keeps_up_with_a_high_rate() {
    let ratio = worst_ratio(1, 260, 1, 10_000);
    assert!(ratio < 1.6, "{ratio:.2} times the live bytes are held");
}

/// Scenario: 100 traces without a root, each with 20 records among those of traces that are decided
/// after 5 s, so that every segment has records of 30 of them.
/// Guarantees: the first segment is not emptied under one lock, because 30 whole traces move with
/// it: no call moves more than a segment and a trace. In the end, all segments are emptied.
#[test]
fn compaction_gives_the_lock_up() {
    let mut fixture = dropping(limits(), 1);
    for round in 0..20 {
        let long = (0..100).map(|trace| padded(child(trace, round), 2_000));
        let short = (0..100).map(|n| padded(root(1_000 + 100 * round + n, 0), 6_000));
        let spans = long.zip(short).flat_map(|(long, short)| [long, short]);
        fixture.ingest(0, &request_of(spans.collect()));
    }
    tick(&mut fixture, 5_000);
    let before = segments_in_use(&fixture);
    let (mut calls, mut decided) = (0, Decided::default());
    loop {
        let held = segments_in_use(&fixture);
        let progress = fixture.sampler.decide(0, Millis(6_000), Which::Due, ANY_ROOM, &mut decided);
        // The freed segments are still in `decided`.
        let opened = segments_in_use(&fixture).saturating_sub(held);
        assert!(opened <= 2 * SEGMENT_BYTES, "{opened} bytes under one lock, call {calls}");
        decided.clear();
        calls += 1;
        if progress != Progress::More {
            break;
        }
    }
    let live = fixture.sampler.buffered().bytes as usize;
    assert!(calls > live / SEGMENT_BYTES, "{calls} calls");
    let after = segments_in_use(&fixture);
    assert!(after < before / 2 && after < 2 * live, "{before} to {after} bytes, {live} live");
}

/// Scenario: four traces of a segment each; the ones in the middle get their root and are decided
/// first.
/// Guarantees: their segments are free at once, whatever older segments hold.
#[test]
fn segments_are_freed_in_any_order() {
    let mut fixture = dropping(limits(), 1);
    let large = |span| padded(span, SEGMENT_BYTES - 100);
    for trace in 0..4 {
        let span = if trace == 1 || trace == 2 { root(trace, 0) } else { child(trace, 0) };
        fixture.ingest(0, &request_of(vec![large(span)]));
    }
    fixture.ingest(0, &request_of(vec![child(4, 0)]));
    assert_eq!(segments_in_use(&fixture), 5 * SEGMENT_BYTES);
    tick(&mut fixture, 5_000);
    assert_eq!((fixture.dropped, segments_in_use(&fixture)), (2, 3 * SEGMENT_BYTES));
    tick(&mut fixture, 30_000);
    assert_eq!((fixture.dropped, segments_in_use(&fixture)), (5, 0));
}

/// Scenario: spans of 1 B, a segment, a segment and a byte, and a megabyte, among small ones.
/// Guarantees: all are exported whole and in order; each is charged with the memory it takes, which
/// is released.
#[test]
fn a_span_may_be_larger_than_a_segment() {
    let mut fixture = keeping(limits(), 1);
    let sizes = [1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 1, 1 << 20, 1, SEGMENT_BYTES - 46, 7];
    let spans: Vec<_> =
        sizes.iter().map(|&bytes| Span { name: "x".repeat(bytes), ..child(0, 0) }).collect();
    let bytes: usize = spans.iter().map(prost::Message::encoded_len).sum();
    fixture.ingest(0, &request_of(spans));
    let in_use = segments_in_use(&fixture);
    assert!(in_use >= bytes && in_use < bytes + 5 * SEGMENT_BYTES, "{in_use} for {bytes}");
    let decided = fixture.decide(30_000, Which::Due);
    let lens: Vec<_> = names(&decided).remove(&child(0, 0).trace_id).expect("kept");
    assert_eq!(lens.iter().map(String::len).collect::<Vec<_>>(), sizes);
    drop(decided);
    assert_eq!(segments_in_use(&fixture), 0);
    fixture.assert_ledger();
}

/// Scenario: on each shard, a trace arrives and is decided whose only span, or whose resource, has
/// two megabytes; then no request is admitted any more.
/// Guarantees: an open segment without live records keeps neither its bytes nor its contexts, so
/// that deciding everything always releases the memory.
#[test]
fn memory_comes_back_without_another_request() {
    let mut fixture = dropping(limits(), 4);
    for trace in 0..16 {
        fixture.ingest(0, &request_of(vec![padded(root(trace, 0), 2 << 20)]));
        let service = format!("{trace}").repeat(1 << 20);
        let of_resource = crate::builders::resource_spans(&service, vec![root(100 + trace, 0)]);
        fixture.ingest(0, &crate::builders::request(vec![of_resource]));
    }
    assert!(fixture.budget.used() >= (16 * 3) << 20);
    drop(fixture.decide(1, Which::Oldest(Trigger::Memory)));
    fixture.assert_ledger();
    assert_eq!((segments_in_use(&fixture), fixture.sampler.contexts()), (0, 0));
    assert!(fixture.sampler.memory_used() < 1 << 20);
}

/// Scenario: a trace of 3,000 spans, each in its own request and record, among others that are
/// decided early, so that it is moved several times.
/// Guarantees: it is exported whole, in the order of its arrival.
#[test]
fn a_giant_chain_is_moved_and_leaves_in_order() {
    let mut fixture = keeping(limits(), 1);
    let mut in_between = Vec::new();
    for number in 0..3_000u64 {
        let now = number as u32 * 9;
        let others = (0..2).map(|other| padded(root(1 + 2 * number + other, 0), 1_000));
        fixture.ingest(now, &request_of(std::iter::once(child(0, number)).chain(others).collect()));
        if number % 10 == 0 {
            in_between.extend(fixture.decide(now, Which::Due));
            in_between.clear();
        }
    }
    let live = fixture.sampler.buffered().bytes as usize;
    assert!(segments_in_use(&fixture) < live * 2 + 4 * SEGMENT_BYTES, "it has been moved");
    let decided = fixture.decide(30_000, Which::Due);
    let left = names(&decided).remove(&child(0, 0).trace_id).expect("kept");
    assert!(
        left.iter()
            .eq((0..3_000).map(|number| format!("operation {number}")).collect::<Vec<_>>().iter())
    );
    fixture.assert_ledger();
}

/// Scenario: two thousand traces without a root, each spread over many segments with several
/// contexts, while the traces between them are decided early.
/// Guarantees: after compaction, each remaining trace has exactly its own spans, under their own
/// resources.
#[test]
fn survivors_of_compaction_keep_their_spans_and_contexts() {
    let mut fixture = keeping(limits(), 2);
    for round in 0..60u64 {
        let now = round as u32 * TICK_MILLIS;
        let groups = (0..6u64).map(|service| {
            let waiting = (0..10).map(|trace| Span {
                name: format!("{round} of service {service}"),
                ..child(trace * 6 + service, round)
            });
            let short =
                (0..10).map(|n| padded(root(1_000 + (round * 6 + service) * 10 + n, 0), 2_000));
            crate::builders::resource_spans(
                &format!("service {service}"),
                waiting.chain(short).collect(),
            )
        });
        fixture.ingest(now, &crate::builders::request(groups.collect()));
        tick(&mut fixture, now);
    }
    for now in (6_000..14_000).step_by(TICK_MILLIS as usize) {
        tick(&mut fixture, now);
    }
    let live = fixture.sampler.buffered();
    assert_eq!((live.traces, live.spans), (60, 3_600));
    assert!(segments_in_use(&fixture) < 2 * live.bytes as usize + 2 * SEGMENT_BYTES);
    let decided = fixture.decide(36_000, Which::Due);
    for span in decided.iter().flat_map(|decided| &decided.spans) {
        let service = Span::decode(&span.bytes[..]).expect("sound").name;
        let (_, service) = service.split_once(" of ").expect("a name as built");
        let resource = span.context.resource().arrived();
        assert!(resource.windows(service.len()).any(|window| window == service.as_bytes()));
    }
    let names = names(&decided);
    assert_eq!(names.len(), 60);
    for left in names.values() {
        let rounds: Vec<u64> = left
            .iter()
            .map(|name| name.split(' ').next().and_then(|n| n.parse().ok()).expect("a round"))
            .collect();
        assert_eq!(rounds, (0..60).collect::<Vec<_>>());
    }
    fixture.assert_ledger();
}

/// Scenario: a request reads the clock, waits for the lock, and comes after one with a later time.
/// Guarantees: its trace is due after those before it, at the shard's own time.
#[test]
fn time_never_goes_back() {
    let mut fixture = keeping(limits(), 1);
    fixture.ingest(10_000, &request_of(vec![child(0, 0)]));
    fixture.ingest(9_000, &request_of(vec![child(1, 0)]));
    drop(fixture.decide(39_999, Which::Due));
    assert_eq!(fixture.kept, 0);
    drop(fixture.decide(10_000, Which::Due));
    assert_eq!(fixture.kept, 0, "nor at a tick that comes late");
    drop(fixture.decide(40_000, Which::Due));
    assert_eq!(fixture.kept, 2);
}

/// Scenario: the millisecond counter wraps while traces wait.
/// Guarantees: they are decided when their time has come.
#[test]
fn time_may_wrap() {
    let mut fixture = keeping(limits(), 4);
    for quarter in 1..=4u32 {
        tick(&mut fixture, (u32::MAX / 4) * quarter);
    }
    let start = u32::MAX - 2;
    fixture.ingest(start, &request_of(vec![child(0, 0), root(1, 0)]));
    tick(&mut fixture, start.wrapping_add(4_999));
    assert_eq!(fixture.kept, 0);
    tick(&mut fixture, start.wrapping_add(5_000));
    assert_eq!(fixture.kept, 1);
    tick(&mut fixture, start.wrapping_add(29_999));
    assert_eq!(fixture.kept, 1);
    tick(&mut fixture, start.wrapping_add(30_000));
    assert_eq!(fixture.kept, 2);
}

/// Scenario: a burst of 12 MB, all decided; then half a minute of silence.
/// Guarantees: its buffers stay as spares, are charged, and are returned to the allocator after ten
/// quiet seconds.
#[test]
fn spare_buffers_are_given_back() {
    let mut fixture = dropping(limits(), 2);
    for trace in 0..600 {
        fixture.ingest(0, &request_of(vec![padded(root(trace, 0), 20_000)]));
    }
    let held = fixture.budget.held(Holder::Segments);
    assert!(held >= 12_000_000);
    tick(&mut fixture, 5_000);
    assert_eq!(fixture.budget.held(Holder::Segments), held, "spare buffers are held");
    assert_eq!(segments_in_use(&fixture), 0);
    for now in (5_100..30_000).step_by(TICK_MILLIS as usize) {
        tick(&mut fixture, now);
    }
    assert_eq!(fixture.budget.held(Holder::Segments), 0);
}

/// Scenario: the same burst; then memory is short because another holder uses it.
/// Guarantees: spare buffers are released at once.
#[test]
fn spare_buffers_never_hold_memory_that_is_short() {
    let mut fixture = dropping(limits(), 2);
    for trace in 0..600 {
        fixture.ingest(0, &request_of(vec![padded(root(trace, 0), 20_000)]));
    }
    let others = fixture.budget.hold(Holder::Index, fixture.budget.soft_limit());
    drop(fixture.decide(5_000, Which::Due));
    fixture.sampler.trim(Millis(5_001));
    drop(others);
    assert_eq!(fixture.budget.held(Holder::Segments), 0);
}

/// Scenario: a hundred thousand traces with explicit randomness in a burst, decided, then ten ticks
/// of silence.
/// Guarantees: index and decision cache grow with them; the index shrinks again, and remembered
/// decisions are removed after their time to live.
#[test]
fn index_and_decisions_shrink_after_a_burst() {
    let mut fixture = dropping(limits(), 2);
    let trace_state = "ot=rv:e6666666666666".to_owned();
    let traced = |trace| Span { trace_state: trace_state.clone(), ..root(trace, 0) };
    for first in (0..100_000u64).step_by(1_000) {
        fixture.ingest(0, &request_of((first..first + 1_000).map(traced).collect()));
    }
    let index = fixture.budget.held(Holder::Index);
    assert!(index >= 100_000 * 64, "{index}");
    tick(&mut fixture, 5_000);
    tick(&mut fixture, 30_000);
    assert!(
        fixture.budget.held(Holder::Index) < index / 10,
        "{}",
        fixture.budget.held(Holder::Index)
    );
    assert!(fixture.budget.held(Holder::Decisions) >= 100_000 * 18);
    for now in [150_000, 270_000, 390_000, 510_000] {
        tick(&mut fixture, now);
    }
    let decisions = fixture.budget.held(Holder::Decisions);
    assert!(decisions < 10_000, "{decisions}");
    let budget = fixture.budget.clone();
    drop(fixture);
    assert_eq!(budget.used(), 0);
}

/// Scenario: due traces are kept, but there is room for only some of them.
/// Guarantees: a trace that does not fit stays buffered, whole, and is decided when there is room,
/// with the spans it has then; a trace larger than any room is exported when it is the first.
#[test]
fn a_trace_without_room_waits() {
    let mut fixture = keeping(limits(), 1);
    for trace in 0..3 {
        fixture.ingest(trace as u32, &request_of(vec![padded(child(trace, 0), 1_000)]));
    }
    let decide = |fixture: &mut Fixture, now, room| {
        let mut decided = Decided::default();
        let progress = fixture.sampler.decide(0, Millis(now), Which::Due, room, &mut decided);
        fixture.book(&decided);
        fixture.assert_ledger();
        (progress, decided.spans.len())
    };
    assert_eq!(decide(&mut fixture, 30_010, 2_500), (Progress::NoRoom, 2));
    fixture.ingest(30_011, &request_of(vec![child(2, 1)]));
    assert_eq!(decide(&mut fixture, 30_012, 1), (Progress::Done, 2));
    assert_eq!(decide(&mut fixture, 30_013, ANY_ROOM), (Progress::Done, 0));
}

/// Scenario: memory is short, and a shard decides its oldest traces 256 at a time.
/// Guarantees: the oldest are decided first, and their segments are released.
#[test]
fn deciding_the_oldest_frees_their_memory() {
    let mut fixture = dropping(limits(), 1);
    for trace in 0..600u64 {
        fixture.ingest(trace as u32, &request_of(vec![padded(child(trace, 0), 10_000)]));
    }
    let before = segments_in_use(&fixture);
    let mut decided = Decided::default();
    let which = Which::Oldest(Trigger::Memory);
    let progress = fixture.sampler.decide(0, Millis(600), which, ANY_ROOM, &mut decided);
    fixture.book(&decided);
    let oldest: Vec<_> = (0..256).map(|trace| child(trace, 0).trace_id).collect();
    let ids = decided.decisions.records.iter().map(|record| record.trace_id.0.to_vec());
    assert_eq!((progress, ids.collect::<Vec<_>>()), (Progress::More, oldest));
    drop(decided);
    assert!(segments_in_use(&fixture) <= before - 256 * 10_000 + SEGMENT_BYTES);
    fixture.assert_ledger();
}

/// Scenario: four threads send spans of the same traces while a fifth decides due and oldest traces
/// all the time.
/// Guarantees: every span is exported exactly once, before or after its trace's decision; no memory
/// stays in use.
#[test]
fn concurrent_senders_lose_nothing() {
    const SENDERS: u64 = 4;
    const REQUESTS: u64 = 150;
    let short = Limits { waits: Waits { decision_wait: 20, after_root: Some(5) }, ..limits() };
    let fixture = keeping(short, 8);
    let (sampler, clock) = (&fixture.sampler, &AtomicU32::new(0));
    let send = |sender: u64| {
        let (mut scratch, mut left) = (Scratch::default(), Vec::new());
        for number in 0..REQUESTS {
            let spans = (0..10).map(|span| {
                let id = (sender * REQUESTS + number) * 10 + span;
                padded(if span == 9 { root(number, id) } else { child(number / 2 + span, id) }, 300)
            });
            let request = request_of(spans.collect());
            let now = Millis(clock.fetch_add(1, Relaxed));
            let mut decided = Decided::default();
            let taken = sampler.ingest(now, &request, &mut scratch, &mut decided);
            assert_eq!(taken.map(|taken| taken.accepted), Ok(10));
            left.extend(decided.spans);
        }
        left
    };
    let decide = |until: &AtomicBool| {
        let mut left = Vec::new();
        for round in 0.. {
            let is_last = until.load(Relaxed);
            let which = match (is_last, round % 50) {
                (true, _) => Which::Oldest(Trigger::Shutdown),
                (false, 49) => Which::Oldest(Trigger::Memory),
                (false, _) => Which::Due,
            };
            for shard in 0..sampler.shards() {
                let mut decided = Decided::default();
                let now = Millis(clock.load(Relaxed));
                while sampler.decide(shard, now, which, ANY_ROOM, &mut decided) != Progress::Done {}
                left.extend(std::mem::take(&mut decided.spans));
            }
            if is_last {
                break;
            }
        }
        left
    };
    let done = AtomicBool::new(false);
    let left: Vec<KeptSpan> = std::thread::scope(|scope| {
        let decider = scope.spawn(|| decide(&done));
        let senders: Vec<_> = (0..SENDERS).map(|n| scope.spawn(move || send(n))).collect();
        let join = |sender: std::thread::ScopedJoinHandle<'_, _>| sender.join().expect("no panic");
        let mut left: Vec<_> = senders.into_iter().flat_map(join).collect();
        done.store(true, Relaxed);
        left.extend(decider.join().expect("no panic"));
        left
    });
    let id = |span: &KeptSpan| Span::decode(&span.bytes[..]).expect("sound").span_id;
    let ids: HashSet<_> = left.iter().map(id).collect();
    assert_eq!(
        (left.len() as u64, ids.len() as u64),
        (SENDERS * REQUESTS * 10, SENDERS * REQUESTS * 10)
    );
    assert_eq!(sampler.buffered(), Buffered::default());
    drop(left);
    let budget = fixture.budget.clone();
    assert_eq!((segments_in_use(&fixture), fixture.sampler.contexts()), (0, 0));
    drop(fixture);
    assert_eq!(budget.used(), 0);
}
