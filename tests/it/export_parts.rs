//! Requests that the backend refuses because they are too large, or because of a span in them.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use tailwater::{
    budget::Budget,
    clock::Clock,
    config::Config,
    exporter::{Consumer, Queue},
    metrics::Metrics as Counters,
    otlp::encode::EncodedRequest,
    supervise::{Supervisor, Task},
};
use tokio::sync::watch;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    export::{backend_client, roots, waiting},
    harness::{Answer, Metrics, Running, config, sink, spans_of},
};

/// Keeps everything, and sends it in one request, by one consumer.
fn at_once() -> Config {
    let mut config = waiting();
    config.exporter.queue.num_consumers = 1;
    config.exporter.max_request_bytes = 64 << 20;
    config.sampling.memory_limit_bytes = 512 << 20;
    config.exporter.queue.queue_bytes_max = 256 << 20;
    config.grpc.max_recv_msg_bytes = 64 << 20;
    config
}

fn ids(request: &ExportTraceServiceRequest) -> impl Iterator<Item = u64> {
    spans_of(request).map(|span| u64::from_be_bytes(span.span_id[..].try_into().expect("8 bytes")))
}

/// Refuses requests that contain one of these spans; also returns the number of requests received.
fn refusing(bad: &'static [u64], code: Code) -> (Arc<AtomicUsize>, Answer) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    let answer = move |request: &ExportTraceServiceRequest| {
        counter.fetch_add(1, Relaxed);
        match ids(request).find(|id| bad.contains(id)) {
            Some(id) => Err(Status::new(code, format!("span {id} is not valid"))),
            None => Ok(Bytes::new()),
        }
    };
    (calls, Box::new(answer))
}

/// Accepts requests of at most `limit` bytes; refuses others with these words, in which `{size}` is
/// the size of the request.
fn bounded(limit: usize, code: Code, words: &'static str) -> Answer {
    Box::new(move |request| {
        let size = request.encoded_len();
        if size <= limit {
            return Ok(Bytes::new());
        }
        let words = words.replace("{size}", &size.to_string());
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(1)));
        Err(Status::with_error_details(code, words, details))
    })
}

fn attempts(metrics: &Metrics, code: &str) -> f64 {
    metrics.get(&format!("exporter_request_duration_seconds_count{{code=\"{code}\"}}"))
}

fn failed(metrics: &Metrics, reason: &str) -> f64 {
    metrics.get(&format!("exporter_failed_spans_total{{reason=\"{reason}\"}}"))
}

/// Delivers these spans, each the root of its trace, in one request at the shutdown. Returns the
/// metrics and the distinct ids that arrived.
async fn deliver(config: Config, answer: Answer, spans: u64, bytes: usize) -> (Metrics, Vec<u64>) {
    let running = Running::start_with(config, answer).await;
    running.accept(roots(spans, bytes)).await;
    let received = Arc::clone(&running.received);
    let (metrics, _) = running.stop().await;
    let arrived: Vec<_> = received.lock().expect("no panic").iter().flat_map(ids).collect();
    let unique: BTreeSet<_> = arrived.iter().copied().collect();
    assert_eq!(unique.len(), arrived.len(), "no span arrives twice");
    (metrics, unique.into_iter().collect())
}

/// Scenario: a backend on tonic with its limit of 4 MiB, which answers OUT_OF_RANGE, a retryable
/// code, and twice 10 MB in one request.
/// Guarantees: nothing is lost, the limit is learnt from one refusal, and later requests stay
/// within it.
#[tokio::test]
async fn a_request_larger_than_the_backend_takes_is_cut() {
    let mut config = at_once();
    config.sampling.decision_wait_after_root_received = Some(Duration::from_millis(300));
    let running = Running::start_with(config, Box::new(|_| Ok(Bytes::new()))).await;
    running.accept(roots(1_000, 10_000)).await;
    running.at_rest().await;
    running
        .accept(
            roots(1_000, 10_000)
                .into_iter()
                .map(|mut span| {
                    span.trace_id[0] = 1;
                    span
                })
                .collect(),
        )
        .await;
    running.until("all", |metrics| metrics.sum("exporter_sent_spans_total") == 2_000.0).await;
    let metrics = running.at_rest().await;
    assert_eq!(attempts(&metrics, "OUT_OF_RANGE"), 1.0, "{:#?}", metrics.nonzero());
    assert_eq!(metrics.sum("exporter_retries_total"), 0.0);
    assert_eq!(running.traces().len(), 2_000);
    assert_eq!(running.spans().len(), 2_000);
    running.stop().await;
}

/// Scenario: a limit of 64 KiB, reported as by grpc-go, grpc-java, tonic, Tempo's rate limiter
/// (retryably) and Envoy (without a number).
/// Guarantees: each is understood: nothing is lost and nothing is retried.
#[tokio::test]
async fn every_way_to_say_too_large_is_understood() {
    let said = [
        (Code::ResourceExhausted, "grpc: received message larger than max ({size} vs. 65536)"),
        (Code::ResourceExhausted, "gRPC message exceeds maximum size 65536: {size}"),
        (
            Code::OutOfRange,
            "Error, decoded message length too large: found {size} bytes, the limit is: 65536 bytes",
        ),
        (
            Code::ResourceExhausted,
            "RATE_LIMITED: batch size ({size} bytes) exceeds ingestion limit (local: 65536 bytes/s)",
        ),
        (Code::Unknown, "Payload Too Large"),
    ];
    for (code, words) in said {
        let answer = bounded(64 << 10, code, words);
        let (metrics, arrived) = deliver(at_once(), answer, 400, 1_000).await;
        assert_eq!(arrived, (1..=400).collect::<Vec<_>>(), "{words}");
        assert_eq!(metrics.sum("exporter_retries_total"), 0.0, "{words}");
        let refused =
            metrics.sum("exporter_request_duration_seconds_count") - attempts(&metrics, "OK");
        assert!((1.0..=4.0).contains(&refused), "{words}: {refused}");
    }
}

/// Scenario: among small spans, one that is larger than the backend accepts.
/// Guarantees: it fails alone, counted as `too_large`.
#[tokio::test]
async fn a_span_that_is_too_large_fails_alone() {
    let limit = 64 << 10;
    let words = "grpc: received message larger than max ({size} vs. 65536)";
    let running =
        Running::start_with(at_once(), bounded(limit, Code::ResourceExhausted, words)).await;
    running.accept([roots(199, 1_000), roots(200, 100_000).split_off(199)].concat()).await;
    let received = Arc::clone(&running.received);
    let (metrics, lost) = running.stop().await;
    assert_eq!((lost, failed(&metrics, "too_large")), (1, 1.0));
    assert_eq!(metrics.sum("exporter_sent_spans_total"), 199.0);
    let received = received.lock().expect("no panic");
    assert!(received.iter().flat_map(ids).all(|id| id < 200));
}

/// Scenario: the backend refuses one span of a thousand as invalid, then three, with the codes of a
/// validator, of Tempo and of a Go handler.
/// Guarantees: exactly those are lost, counted as `rejected`, in a bounded number of requests.
#[tokio::test]
async fn spans_that_the_backend_refuses_are_lost_alone() {
    for code in [Code::InvalidArgument, Code::Internal, Code::Unknown, Code::FailedPrecondition] {
        for (bad, most) in [(&[617][..], 24), (&[1, 500, 999], 64)] {
            let (calls, answer) = refusing(bad, code);
            let (metrics, arrived) = deliver(at_once(), answer, 1_000, 0).await;
            assert_eq!(failed(&metrics, "rejected"), bad.len() as f64);
            assert!(arrived.iter().copied().eq((1..=1_000).filter(|id| !bad.contains(id))));
            assert!(calls.load(Relaxed) <= most, "{}", calls.load(Relaxed));
            assert_eq!(metrics.sum("exporter_retries_total"), 0.0);
        }
    }
}

/// Scenario: a backend that answers INTERNAL to fifty requests of a hundred spans each; then it
/// accepts everything except one span.
/// Guarantees: it gets one search of 64 refusals, then each request once; when it accepts requests
/// again, the exporter searches for refused spans again.
#[tokio::test]
async fn a_backend_that_refuses_everything_is_not_flooded() {
    let is_broken = Arc::new(AtomicBool::new(true));
    let broken = Arc::clone(&is_broken);
    let answer = move |request: &ExportTraceServiceRequest| {
        let is_bad = broken.load(Relaxed) || ids(request).any(|id| id == 7_000);
        if is_bad { Err(Status::internal("broken")) } else { Ok(Bytes::new()) }
    };
    let mut config = config(crate::harness::ALL);
    config.exporter.queue.num_consumers = 1;
    config.exporter.max_request_bytes = 10_000;
    let running = Running::start_with(config, Box::new(answer)).await;
    running.accept(roots(5_000, 0)).await;
    let metrics = running.at_rest().await;
    assert_eq!(failed(&metrics, "rejected"), 5_000.0);
    let requests = attempts(&metrics, "INTERNAL");
    assert!((70.0..=250.0).contains(&requests), "{requests}");

    is_broken.store(false, Relaxed);
    running.accept(roots(5_001, 0).split_off(5_000)).await;
    running.until("taken", |metrics| metrics.sum("exporter_sent_spans_total") == 1.0).await;
    running.accept(roots(7_100, 0).split_off(6_900)).await;
    let all = |metrics: &Metrics| metrics.sum("exporter_sent_spans_total") == 200.0;
    running.until("all but one", all).await;
    let metrics = running.at_rest().await;
    assert_eq!(failed(&metrics, "rejected"), 5_001.0);
    running.stop().await;
}

/// Scenario: RESOURCE_EXHAUSTED with a delay of 0, without end, for requests of more than ten spans
/// and for the last span of the first half.
/// Guarantees: requests are halved until they fit, the one span is given up as `retry_expired`, and
/// the spans after it arrive, though no time is left for it.
#[tokio::test]
async fn exhaustion_for_ever_costs_one_span() {
    let bad = OnceLock::new();
    let answer: Answer = Box::new(move |request| {
        let spans = ids(request).count();
        if spans <= 60 {
            bad.get_or_init(|| ids(request).last().expect("a span"));
        }
        if spans <= 10 && ids(request).all(|id| Some(&id) != bad.get()) {
            return Ok(Bytes::new());
        }
        let details = ErrorDetails::with_retry_info(Some(Duration::ZERO));
        Err(Status::with_error_details(Code::ResourceExhausted, "RATE_LIMITED", details))
    });
    let mut config = at_once();
    config.sampling.decision_wait_after_root_received = Some(Duration::from_millis(300));
    config.exporter.retry.initial_interval = Duration::from_millis(1);
    config.exporter.retry.max_interval = Duration::from_millis(2);
    // Long enough for a busy machine to find that span.
    config.exporter.retry.max_elapsed_time = Some(Duration::from_secs(4));
    let running = Running::start_with(config, answer).await;
    running.accept(roots(100, 0)).await;
    running.until("settled", |metrics| metrics.sum("exporter_sent_spans_total") == 99.0).await;
    let metrics = running.at_rest().await;
    assert_eq!(failed(&metrics, "retry_expired"), 1.0);
    running.stop().await;
}

/// Scenario: a backend that accepts one half of a request and then nothing, and a shutdown.
/// Guarantees: the half is sent, the rest is counted as `shutdown`.
#[tokio::test]
async fn a_shutdown_amid_the_parts_counts_what_is_left() {
    let taken = AtomicBool::new(false);
    let answer: Answer = Box::new(move |request| match ids(request).count() {
        100 => Err(Status::invalid_argument("no")),
        _ if !taken.swap(true, Relaxed) => Ok(Bytes::new()),
        _ => Err(Status::unavailable("down")),
    });
    let mut config = at_once();
    config.shutdown_timeout = Duration::from_secs(1);
    let (metrics, arrived) = deliver(config, answer, 100, 0).await;
    assert!((40..=60).contains(&arrived.len()), "{}", arrived.len());
    assert_eq!(metrics.sum("exporter_sent_spans_total"), arrived.len() as f64);
    assert_eq!(failed(&metrics, "shutdown"), (100 - arrived.len()) as f64);
}

/// Scenario: a queued request that claims to have three spans but cannot be cut, which only a bug
/// can cause; the backend refuses it, and is honest later.
/// Guarantees: the panic is contained and counted, so are the spans, and the consumer goes on.
#[tokio::test]
async fn spans_lost_in_a_panic_are_counted() {
    let seen = Arc::new(Mutex::new(0));
    let calls = Arc::clone(&seen);
    let answer: Answer = Box::new(move |_| {
        *calls.lock().expect("no panic") += 1;
        Err(Status::invalid_argument("no"))
    });
    let (sink, _) = sink("127.0.0.1:0", answer).await;
    let mut config = at_once();
    config.exporter.endpoint = sink.url();
    let (queue, metrics) = (Queue::new(1_000, &Budget::new(1_000)), Arc::new(Counters::new(&[])));
    let (give_up, gives_up) = watch::channel(false);
    let supervisor = Arc::<Supervisor>::default();
    let consumer = Consumer {
        client: backend_client(&config),
        queue: Arc::clone(&queue),
        retry: config.exporter.retry,
        metrics: Arc::clone(&metrics),
        clock: Clock::start(),
        give_up: gives_up,
        leaves: false,
        supervisor: Arc::clone(&supervisor),
    };
    for spans in [3, 1] {
        let request = EncodedRequest { body: Bytes::from_static(&[0x7a, 0]), spans };
        queue.place(request.body.len()).expect("room").fill(request);
    }
    queue.close();
    consumer.run().await;
    drop(give_up);
    assert_eq!((queue.held(), *seen.lock().expect("no panic")), ((0, 0), 2));
    let metrics = Metrics::parse(&metrics.render(&Default::default()));
    assert_eq!((failed(&metrics, "malformed"), failed(&metrics, "rejected")), (3.0, 1.0));
    assert_eq!(supervisor.panics()[Task::Exporter as usize], 1);
    sink.stop().await;
}
