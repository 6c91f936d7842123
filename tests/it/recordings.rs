//! Recordings: whole traces as they arrived, kept and dropped alike; nothing waits for them.

mod running;

use std::collections::{BTreeMap, BTreeSet};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, trace::v1::Span,
};
use prost::Message as _;
use tailwater::{
    budget::Holder,
    recording::{PART_BYTES_MAX, RECORDINGS_MAX, RecordedTrace, Recorder},
    sampler::{Limits, Which},
};

use crate::{
    builders::{self, Fixture},
    harness::spans_of,
};

/// Everything that waits to be read.
async fn read(mut recorder: Recorder) -> Vec<RecordedTrace> {
    recorder.end();
    let mut traces = Vec::new();
    while let Some(trace) = recorder.next().await {
        traces.push(trace);
    }
    traces
}

fn requests(trace: &RecordedTrace) -> Vec<ExportTraceServiceRequest> {
    let decode = |request: &bytes::Bytes| ExportTraceServiceRequest::decode(&request[..]);
    trace.requests().iter().map(|request| decode(request).expect("a request")).collect()
}

/// Decides everything at `now` and passes it on, like the decider.
fn decide(fixture: &mut Fixture, now: u32, which: Which) {
    for mut decided in fixture.decide(now, which) {
        fixture.sampler.publish(&mut decided, 1);
    }
    fixture.assert_ledger();
}

/// Scenario: traces of several services, kept and dropped, of one request and of several, with
/// bytes that are not UTF-8 and a late span; two recordings of everything.
/// Guarantees: each recording has every trace once, with its decision, and its spans under their
/// resources and scopes, unchanged and in their order; no byte stays charged.
#[tokio::test]
async fn whole_traces_are_recorded_as_they_came() {
    let mut fixture = Fixture::new(&[builders::probabilistic(50.0)], builders::limits(), 4);
    let begin = || fixture.sampler.recordings().begin(1.0).expect("few run");
    let both = [begin(), begin()];
    let span = |trace: u64, number: u64| Span {
        trace_state: "ot=th:c;vendor".to_owned(),
        ..builders::child(trace, number)
    };
    let request = |number: u64| {
        let of = |service, n: u64| {
            let spans = (0..20).map(|trace| span(trace, 10 * number + n)).collect();
            builders::resource_spans(service, spans)
        };
        builders::request(vec![of("shop", 0), of("läden", 1), of("shop", 2)])
    };
    for number in 0..3 {
        fixture.ingest(0, &request(number));
    }
    decide(&mut fixture, 40_000, Which::Due);
    let mut late = fixture.ingest(40_001, &request(4));
    fixture.sampler.publish(&mut late, 1);
    assert!(fixture.budget.held(Holder::Recordings) > 0);
    for recorder in both {
        assert_eq!(recorder.skipped(), 0);
        let traces = read(recorder).await;
        let ids: BTreeSet<_> = traces.iter().map(|trace| trace.decision.record.trace_id).collect();
        assert_eq!((ids.len(), traces.len()), (20, 20), "each once");
        let kept = |trace: &RecordedTrace| trace.decision.record.decision.verdict.kept;
        assert!((5..15).contains(&traces.iter().filter(|trace| kept(trace)).count()));
        for trace in &traces {
            let [request] = &requests(trace)[..] else { panic!("small traces have one part") };
            let mut by_service = BTreeMap::new();
            for of_resource in &request.resource_spans {
                let resource = of_resource.resource.clone().expect("sent");
                let value = resource.attributes[0].value.clone().expect("sent");
                let scope = &of_resource.scope_spans[0];
                assert_eq!(scope.schema_url, "https://scope.example/1");
                by_service.insert(format!("{value:?}"), scope.spans.clone());
            }
            let n = |numbers: [u64; 6]| -> Vec<_> {
                let trace = u64::from_be_bytes(request_id(request)[..8].try_into().expect("8"));
                numbers.into_iter().map(|number| span(trace - 1, number)).collect()
            };
            let mut services: Vec<_> = by_service.into_values().collect();
            services.sort_by_key(Vec::len);
            assert_eq!(services.len(), 2);
            assert_eq!(services[1], n([0, 2, 10, 12, 20, 22]));
            assert_eq!(services[0], n([1, 11, 21, 0, 0, 0])[..3]);
        }
    }
    assert_eq!(fixture.budget.held(Holder::Recordings), 0);
    assert_eq!(fixture.sampler.recordings().running(), 0);
}

fn request_id(request: &ExportTraceServiceRequest) -> &[u8] {
    &spans_of(request).next().expect("a span").trace_id
}

/// Scenario: a recording of a tenth beside one of everything, of 4,000 traces.
/// Guarantees: the share is right, also among kept and among dropped traces: the recording does not
/// use the randomness of the decision.
#[tokio::test]
async fn the_chance_of_a_recording_is_its_own() {
    let mut fixture = Fixture::new(&[builders::probabilistic(10.0)], builders::limits(), 2);
    let tenth = fixture.sampler.recordings().begin(0.1).expect("few run");
    for request in 0..8 {
        let spans = (0..500).map(|n| builders::root(request * 500 + n, 0)).collect();
        fixture.ingest(0, &builders::request_of(spans));
    }
    decide(&mut fixture, 40_000, Which::Due);
    let kept = fixture.kept;
    let traces = read(tenth).await;
    let is_kept = |trace: &&RecordedTrace| trace.decision.record.decision.verdict.kept;
    let recorded_kept = traces.iter().filter(is_kept).count();
    // Five standard deviations.
    assert!((305..=495).contains(&traces.len()), "{} of 4,000", traces.len());
    assert!((9..=71).contains(&recorded_kept), "{recorded_kept} of {kept} kept ones");
}

/// Scenario: more recordings than allowed; a recording that is not read while far more arrives than
/// its buffer holds; a trace of several parts; a span larger than a part; memory above its soft
/// limit; a trace that reaches its limit on a connection.
/// Guarantees: the buffer is bounded, and traces that do not fit are counted; parts stay below
/// their size; traces that cannot be recorded are counted; everything else is as without
/// recordings.
#[tokio::test]
async fn traces_that_do_not_fit_are_counted_and_nothing_waits() {
    let limits = Limits { max_trace_spans: 40, ..builders::limits() };
    let mut fixture = Fixture::new(&[builders::probabilistic(50.0)], limits, 1);
    let begin = |fixture: &Fixture| fixture.sampler.recordings().begin(1.0);
    let all: Vec<_> = (0..RECORDINGS_MAX).map(|_| begin(&fixture).expect("few run")).collect();
    assert!(begin(&fixture).is_none());
    drop(all);

    let large =
        |trace, number, bytes| Span { name: "x".repeat(bytes), ..builders::child(trace, number) };
    let slow = begin(&fixture).expect("room again");
    for trace in 0..60 {
        fixture.ingest(0, &builders::request_of(vec![large(trace, 0, 1 << 20)]));
    }
    decide(&mut fixture, 40_000, Which::Due);
    let held = fixture.budget.held(Holder::Recordings);
    assert!((16 << 20..18 << 20).contains(&held), "{held}");
    let skipped = slow.skipped();
    let recorded = read(slow).await.len() as u64;
    assert_eq!((recorded + skipped, recorded), (60, 16));

    let parts = begin(&fixture).expect("room");
    for number in 0..40 {
        let mut decided =
            fixture.ingest(50_000, &builders::request_of(vec![large(100, number, 250_000)]));
        fixture.sampler.publish(&mut decided, 1);
    }
    let traces = read(parts).await;
    let requests = requests(&traces[0]);
    assert_eq!((traces.len(), requests.len()), (1, 3));
    assert_eq!(requests.iter().flat_map(spans_of).count(), 40);
    assert!(traces[0].requests().iter().all(|request| request.len() < PART_BYTES_MAX));

    drop(traces);

    let too_large = begin(&fixture).expect("room");
    fixture.ingest(60_000, &builders::request_of(vec![large(200, 0, PART_BYTES_MAX)]));
    decide(&mut fixture, 100_000, Which::Due);
    assert_eq!(too_large.skipped(), 1);
    let _hold = fixture.budget.hold(Holder::Segments, fixture.budget.limit() / 5 * 4);
    fixture.ingest(100_000, &builders::request_of(vec![builders::root(300, 0)]));
    decide(&mut fixture, 140_000, Which::Due);
    assert_eq!(too_large.skipped(), 2, "memory is short");
    assert_eq!(read(too_large).await.len(), 0);
    assert_eq!(fixture.budget.held(Holder::Recordings), 0);
}
