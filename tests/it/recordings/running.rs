//! Recordings of a running service, through the control API.

use std::{collections::BTreeMap, time::Duration};

use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::Value;
use tailwater::{
    commands::{Format, replay},
    config::Config,
    control::{
        GetStatusRequest, RecordRequest, RecordResponse, TryPoliciesRequest,
        decision::State,
        record_response::{End, Event, Part, Summary},
    },
    trace_files::RecordFile,
};
use tonic::{Code, Status, Streaming};

use crate::{
    harness::{
        ALL, Directory, ERRORS_AND_HALF, HIGH, LOW, Running, config, error, span, spans_of, string,
    },
    trials::running::control,
};

type Parts = Streaming<RecordResponse>;

fn recording(policies: &str) -> Config {
    let mut config = config(policies);
    config.telemetry.enable_recording = true;
    config
}

fn whole(seconds: i64) -> RecordRequest {
    let duration = Some(prost_types::Duration { seconds, nanos: 0 });
    RecordRequest { percentage: None, duration, max_bytes: 0 }
}

async fn record(running: &Running, request: RecordRequest) -> Result<Parts, Status> {
    control(running).await.record(request).await.map(tonic::Response::into_inner)
}

/// The traces of a recording that ends by itself, as parts, and its summary.
async fn read(parts: &mut Parts) -> (Vec<Vec<Part>>, Summary) {
    let (mut traces, mut trace) = (Vec::new(), Vec::new());
    loop {
        let message = tokio::time::timeout(Duration::from_secs(60), parts.message());
        let message = message.await.expect("in time").expect("no error").expect("not the end");
        match message.event.expect("always there") {
            Event::Part(part) => {
                assert!(part.request.len() < 7 << 19);
                assert_eq!(part.decision.is_some(), trace.is_empty(), "on the first part");
                let is_last = part.is_last_of_trace;
                trace.push(part);
                if is_last {
                    traces.push(std::mem::take(&mut trace));
                }
            }
            Event::Summary(summary) => {
                assert!(trace.is_empty(), "no trace is torn");
                assert_eq!(parts.message().await.expect("no error"), None, "nothing follows");
                return (traces, summary);
            }
        }
    }
}

/// Traces that policies keep, drop, or keep by chance, some with a large span.
fn traffic(traces: u64) -> Vec<Vec<Span>> {
    let of = |number: u64| {
        let randomness = [LOW, HIGH][number as usize % 2];
        let child = |id| {
            let status = if number.is_multiple_of(5) && id == 3 { error() } else { None };
            let text = "x".repeat(if number.is_multiple_of(7) { 50_000 } else { 10 });
            let attributes = vec![string("text", &text)];
            Span { status, attributes, ..span(randomness | (number + 1), id, Some(1)) }
        };
        [span(randomness | (number + 1), 1, None)].into_iter().chain((2..5).map(child)).collect()
    };
    (0..traces).map(of).collect()
}

/// Scenario: a recording of everything, while traces are kept and dropped by two policies.
/// Guarantees: it has the traces as they arrived, each with the service's decision; a `replay` with
/// the same policies keeps what the service kept, by policy.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_of_a_recording_keeps_what_the_service_kept() {
    let running = Running::start(recording(ERRORS_AND_HALF)).await;
    let mut parts = record(&running, whole(6)).await.expect("begins");
    let status = control(&running).await.get_status(GetStatusRequest {}).await.expect("answers");
    assert_eq!(status.into_inner().activity.expect("always there").recordings, 1);
    let sent = traffic(70);
    for spans in &sent {
        running.accept(spans.clone()).await;
    }
    let (traces, summary) = read(&mut parts).await;
    assert_eq!(summary.end(), End::Duration);
    assert_eq!((summary.traces, summary.spans, summary.skipped_traces), (70, 280, 0));
    let bytes: usize = traces.iter().flatten().map(|part| part.request.len()).sum();
    assert_eq!(summary.bytes, bytes as u64);
    let metrics = running.at_rest().await;

    let mut by_id: BTreeMap<_, _> =
        sent.into_iter().map(|spans| (spans[0].trace_id.clone(), spans)).collect();
    let directory = Directory::new();
    let path = directory.0.join("traffic.rec");
    let mut file = RecordFile::create(&path, 100.0).expect("created");
    let mut kept = 0;
    for trace in &traces {
        for part in trace {
            file.add(&part.request);
            let request = Message::decode(&part.request[..]).expect("a request");
            let spans: Vec<_> = spans_of(&request).cloned().collect();
            let id = spans[0].trace_id.clone();
            assert_eq!(by_id.remove(&id).expect("once"), spans, "as they came");
        }
        file.end_trace().expect("written");
        let decision = trace[0].decision.as_ref().expect("on the first part");
        kept += u64::from(decision.state() == State::Kept);
    }
    assert_eq!(kept as f64, metrics.sum("traces_kept_total"));
    let policies = directory.file("policies.toml", ERRORS_AND_HALF);
    let options = replay::Options {
        config: Some(policies.into()),
        against: None,
        format: Format::Json,
        memory_limit_mib: 64,
        inputs: vec![path],
    };
    let replayed = replay::replay(&options, &mut |line| panic!("{line}"));
    let answer: Value = serde_json::from_str(&replayed.text).expect("JSON");
    assert_eq!(answer["input"]["traces"], 70);
    assert_eq!(answer["result"]["traces"], kept);
    for policy in ["errors", "half"] {
        let policies = answer["result"]["policies"].as_array().expect("a list");
        let of = policies.iter().find(|of| of["policy"] == policy).expect("listed");
        let series = format!("traces_kept_total{{policy=\"{policy}\"}}");
        assert_eq!(of["kept_traces"].as_f64(), Some(metrics.get(&series)), "{policy}");
    }
    running.stop().await;
}

/// Scenario: a service without `enable_recording`; invalid shares and times; ten recordings; a
/// limit in bytes; a share of a tenth.
/// Guarantees: each refusal has its code and its reason; four recordings run; a limit is met with
/// whole traces; a tenth is about a tenth.
#[tokio::test(flavor = "multi_thread")]
async fn recordings_are_bounded() {
    let running = Running::start(config(ALL)).await;
    let refused = record(&running, whole(1)).await.expect_err("off");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("enable_recording"), "{refused}");
    running.stop().await;

    let mut config = recording(ERRORS_AND_HALF);
    config.sampling.decision_wait_after_root_received = Some(Duration::from_millis(10));
    let running = Running::start(config).await;
    let percentages = [0.0, -1.0, 100.1, f64::NAN, f64::INFINITY];
    let shares = percentages.map(|p| RecordRequest { percentage: Some(p), ..whole(1) });
    for request in shares.into_iter().chain([0, -1, 3601, i64::MAX].map(whole)) {
        let refused = record(&running, request).await.expect_err("nonsense");
        assert_eq!(refused.code(), Code::InvalidArgument, "{request:?}");
    }
    let mut all = Vec::new();
    for number in 0..10 {
        match record(&running, whole(3600)).await {
            Ok(parts) => all.push(parts),
            Err(status) => {
                assert_eq!((status.code(), number >= 4), (Code::ResourceExhausted, true));
            }
        }
    }
    assert_eq!(all.len(), 4);
    drop(all);
    let begun = async |request| loop {
        match record(&running, request).await {
            Ok(parts) => break parts,
            Err(status) => assert_eq!(status.code(), Code::ResourceExhausted),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let bounded = RecordRequest { max_bytes: 5_000, ..whole(3600) };
    let mut bounded = tokio::time::timeout(Duration::from_secs(30), begun(bounded)).await.unwrap();
    let tenth = RecordRequest { percentage: Some(10.0), ..whole(8) };
    let mut tenth = tokio::time::timeout(Duration::from_secs(30), begun(tenth)).await.unwrap();
    let spans = (1..=3_000).map(|trace| span(trace, 1, None));
    for spans in spans.collect::<Vec<_>>().chunks(500) {
        running.accept(spans.to_vec()).await;
    }
    let (traces, summary) = read(&mut bounded).await;
    assert_eq!((summary.end(), summary.traces), (End::MaxBytes, traces.len() as u64));
    assert!((4_000..=5_000).contains(&summary.bytes), "{summary:?}");
    let (traces, summary) = read(&mut tenth).await;
    assert_eq!(summary.end(), End::Duration);
    // Six standard deviations.
    assert!((200..=400).contains(&traces.len()), "{}", traces.len());
    assert_eq!(summary.skipped_traces, 0);
    running.at_rest().await;
    running.stop().await;
}

/// Scenario: four recordings that are not read and a trial with a limit and a veto, while far more
/// traffic arrives than their buffers hold, memory exceeds its soft limit, and the service stops.
/// Guarantees: nothing is lost, refused or delayed; the summary of a recording that is read again
/// says how many traces are missing.
#[tokio::test(flavor = "multi_thread")]
async fn readers_that_do_not_read_cost_only_themselves() {
    let mut config = recording(ERRORS_AND_HALF);
    config.telemetry.enable_lifecycle = true;
    config.sampling.memory_limit_bytes = 48 << 20;
    config.sampling.decision_wait_after_root_received = Some(Duration::from_millis(50));
    let running = Running::start(config).await;
    let mut all = Vec::new();
    for _ in 0..4 {
        all.push(record(&running, whole(3600)).await.expect("few run"));
    }
    let policies = format!(
        "{ALL}limit = {{ spans_per_second = 50 }}\n[[policy]]\nname = \"veto\"\ntype = \"drop\"\n\
         policies = [{{ type = \"attribute_exists\", key = \"text\" }}]\n"
    );
    let request = TryPoliciesRequest { policies, duration: whole(3600).duration };
    let mut tried =
        control(&running).await.try_policies(request).await.expect("begins").into_inner();
    let mut sent = 0;
    for round in 0..600u64 {
        let text = "x".repeat(100_000);
        let of = |id, parent| Span {
            attributes: vec![string("text", &text)],
            ..span(HIGH | (round + 1), id, parent)
        };
        let request = crate::harness::request("shop", vec![of(1, None), of(2, Some(1))]);
        // Memory may be short for a moment, as without recordings.
        while running.export(&request).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        sent += 1;
    }
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("traces_kept_total"), f64::from(sent));
    let stopped = tokio::spawn(async move { running.stop().await });
    let (traces, summary) = read(&mut all[0]).await;
    assert_eq!(summary.end(), End::Shutdown);
    assert!(summary.skipped_traces > 0);
    assert_eq!(traces.len() as u64 + summary.skipped_traces, u64::from(sent as u32));
    let mut decided = 0;
    while let Ok(Some(response)) = tried.message().await {
        let current = response.current.expect("always there");
        decided = current.decided_traces;
        assert_eq!(response.candidate.expect("always there").kept_traces, 0, "vetoed");
    }
    assert_eq!(decided, u64::from(sent as u32));
    assert_eq!(stopped.await.expect("no panic").1, 0, "everything is delivered");
}
