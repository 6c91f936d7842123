//! The export: OTLP's rules for answers, sizes, and a backend that is slow, down or hostile.

use std::{
    collections::HashSet,
    future::ready,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
    },
    trace::v1::{
        Span,
        span::{Event, Link},
    },
};
use prost::Message as _;
use tailwater::{
    config::{Compression, Config, Overflow},
    exporter::{Client, Connector},
    grpc::{code_name, codes},
    net::listen,
    testing,
};
use tokio::{net::TcpListener, sync::watch};
use tonic::{Code, Status};
use tonic_types::{StatusExt as _, pb};

use crate::harness::{
    ALL, Answer, HIGH, Metrics, Running, attribute, config, request, sink, span, spans_of, string,
};

/// Keeps everything; each span is sent in a request of its own, because every span is larger than
/// the limit.
pub fn one_by_one() -> Config {
    let mut config = config(ALL);
    config.exporter.max_request_bytes = 1;
    config
}

/// Keeps everything, and decides only when it has to.
pub fn waiting() -> Config {
    let mut config = config(ALL);
    config.sampling.decision_wait = Duration::from_secs(600);
    config.sampling.decision_wait_after_root_received = None;
    config
}

/// Roots of as many traces, with an attribute of this length.
pub fn roots(traces: u64, attribute_bytes: usize) -> Vec<Span> {
    let filler = string("filler", "x".repeat(attribute_bytes));
    let root = |n| Span { attributes: vec![filler.clone()], ..span(HIGH | n, n, None) };
    (1..=traces).map(root).collect()
}

fn id_of(request: &ExportTraceServiceRequest) -> u64 {
    let id = &spans_of(request).next().expect("a span").span_id;
    u64::from_be_bytes(id[..].try_into().expect("8 bytes"))
}

/// Answers with `first` the first time a span id is seen, then accepts it.
fn once(first: impl Fn(u64) -> Status + Send + Sync + 'static) -> Answer {
    let seen = Mutex::new(HashSet::new());
    Box::new(move |request| {
        let id = id_of(request);
        if seen.lock().expect("no panic").insert(id) { Err(first(id)) } else { Ok(Bytes::new()) }
    })
}

/// Accepts nothing until the flag is set.
pub fn gate() -> (Arc<AtomicBool>, Answer) {
    let is_up = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&is_up);
    let down = || Status::unavailable("down");
    (is_up, Box::new(move |_| gate.load(Relaxed).then(Bytes::new).ok_or_else(down)))
}

pub type Seen = Arc<Mutex<Vec<(HeaderMap, Bytes)>>>;
pub type Trailers = &'static [(&'static str, &'static str)];

pub const OK: Trailers = &[("grpc-status", "0")];

/// The exporter's client, made as in the service.
pub fn backend_client(config: &Config) -> Client {
    let connector = Connector::new(&config.exporter, None);
    Client::with_connector(&config.exporter, connector).expect("valid")
}

/// Serves answers made by hand until the test's runtime ends.
pub fn serve_raw<A, F, B>(listener: TcpListener, answer: A)
where
    A: Fn(http::Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (stop, stops) = watch::channel(false);
    tokio::spawn(async move {
        listen::serve(listener, testing::terms(), answer, stops).await;
        // Dropping the sender would end the server.
        drop(stop);
    });
}

/// A backend made by hand: the n-th answer has the n-th trailers, or the last ones. Returns its URL
/// and the bytes that it received, with headers and gRPC framing.
pub async fn raw_backend(answers: &'static [Trailers]) -> (String, Seen) {
    let listener = listen::bind("raw", "127.0.0.1:0").await.expect("port 0");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let (seen, next) = (Seen::default(), Arc::new(AtomicUsize::new(0)));
    let recorder = Arc::clone(&seen);
    let answer = move |request: http::Request<Incoming>| {
        let trailers = answers[next.fetch_add(1, Relaxed).min(answers.len() - 1)];
        let recorder = Arc::clone(&recorder);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.expect("a whole body").to_bytes();
            recorder.lock().expect("no panic").push((head.headers, body));
            let map = trailers.iter().map(|&(k, v)| (k.parse().expect("a name"), v));
            let map = map.map(|(k, v)| (k, HeaderValue::from_static(v))).collect();
            let message: &[u8] = if trailers == OK { &[0; 5] } else { &[] };
            let body = Full::new(Bytes::from_static(message));
            let body = body.with_trailers(ready(Some(Ok(map))));
            let response = Response::builder().header("content-type", "application/grpc");
            response.body(body).expect("valid")
        }
    };
    serve_raw(listener, answer);
    (url, seen)
}

/// Scenario: the backend answers with each gRPC code once, then accepts everything.
/// Guarantees: OTLP's table decides which spans are sent again. Spans are also sent again after
/// codes that say nothing about them: a missing permission, another service. The others are counted
/// as `rejected`.
#[tokio::test]
async fn each_code_is_retried_or_final_as_otlp_says() {
    let code_of = |id: u64| Code::from_i32(i32::try_from(id).expect("small"));
    let answer = once(move |id| Status::new(code_of(id), "no"));
    let running = Running::start_with(one_by_one(), answer).await;
    running.accept(roots(16, 0)).await;
    let metrics = running.at_rest().await;
    let retried: HashSet<_> = [1, 4, 7, 10, 11, 12, 14, 15, 16].map(code_of).into();
    for code in codes().skip(1) {
        let series = format!("exporter_retries_total{{code=\"{}\"}}", code_name(code));
        assert_eq!(metrics.get(&series), f64::from(u8::from(retried.contains(&code))), "{code:?}");
        let took = "exporter_request_duration_seconds_count";
        assert_eq!(metrics.get(&format!("{took}{{code=\"{}\"}}", code_name(code))), 1.0);
    }
    assert_eq!(metrics.get("exporter_sent_spans_total"), 9.0);
    assert_eq!(metrics.get("exporter_failed_spans_total{reason=\"rejected\"}"), 7.0);
    assert_eq!(running.spans().len(), 9);
    running.stop().await;
}

/// A status with RetryInfo of this delay.
fn retry_info(code: Code, seconds: i64, nanos: i32) -> Status {
    let retry_delay = Some(prost_types::Duration { seconds, nanos });
    let info = prost_types::Any {
        type_url: "type.googleapis.com/google.rpc.RetryInfo".into(),
        value: pb::RetryInfo { retry_delay }.encode_to_vec(),
    };
    let (code_number, message) = (code as i32, String::new());
    let status = pb::Status { code: code_number, message, details: vec![info] };
    Status::with_details(code, "", status.encode_to_vec().into())
}

/// Scenario: each code once with a RetryInfo of 0, of a negative delay, of the smallest number, of
/// invalid nanoseconds, and of ten years.
/// Guarantees: RetryInfo makes RESOURCE_EXHAUSTED retryable and no other code; invalid delays are
/// ignored; a delay beyond the end of the retries ends them.
#[tokio::test]
async fn absurd_retry_info_is_bounded() {
    const DELAYS: [(i64, i32); 5] =
        [(0, 0), (-5, 0), (i64::MIN, i32::MIN), (0, i32::MIN), (315_360_000, 0)];
    let part = |id: u64| (i32::try_from((id - 1) % 16 + 1).expect("small"), (id - 1) / 16);
    let answer = once(move |id| {
        let (code, delay) = part(id);
        let (seconds, nanos) = DELAYS[usize::try_from(delay).expect("small")];
        retry_info(Code::from_i32(code), seconds, nanos)
    });
    let mut config = one_by_one();
    config.exporter.retry.max_elapsed_time = Some(Duration::from_secs(60));
    let running = Running::start_with(config, answer).await;
    running.accept(roots(16 * DELAYS.len() as u64, 0)).await;
    let metrics = running.at_rest().await;
    let retried = [1, 4, 7, 8, 10, 11, 12, 14, 15, 16].map(Code::from_i32);
    for code in codes().skip(1) {
        let series = format!("exporter_retries_total{{code=\"{}\"}}", code_name(code));
        let expected = if retried.contains(&code) { 4.0 } else { 0.0 };
        assert_eq!(metrics.get(&series), expected, "{code:?}");
    }
    assert_eq!(metrics.sum("exporter_sent_spans_total"), 40.0);
    assert_eq!(metrics.get("exporter_failed_spans_total{reason=\"retry_expired\"}"), 10.0);
    assert_eq!(metrics.get("exporter_failed_spans_total{reason=\"rejected\"}"), 30.0);
    assert_eq!(metrics.sum("task_restarts_total"), 0.0);
    running.stop().await;
}

/// Scenario: RESOURCE_EXHAUSTED with a delay of 300 ms.
/// Guarantees: the request is retried, but not sooner.
#[tokio::test]
async fn the_delay_of_retry_info_is_honoured() {
    let first_refused = Arc::new(Mutex::new(None));
    let refused_at = Arc::clone(&first_refused);
    let answer = once(move |_| {
        refused_at.lock().expect("no panic").get_or_insert_with(tokio::time::Instant::now);
        retry_info(Code::ResourceExhausted, 0, 300_000_000)
    });
    let running = Running::start_with(one_by_one(), answer).await;
    running.accept(roots(1, 0)).await;
    let metrics = running.at_rest().await;
    let refused_at = first_refused.lock().expect("no panic").expect("refused once");
    assert!(refused_at.elapsed() >= Duration::from_millis(300));
    assert_eq!(metrics.get("exporter_retries_total{code=\"RESOURCE_EXHAUSTED\"}"), 1.0);
    assert_eq!(metrics.sum("exporter_sent_spans_total"), 1.0);
    running.stop().await;
}

/// Scenario: the backend is down at first, then it starts.
/// Guarantees: nothing is lost, and the retries are counted.
#[tokio::test]
async fn a_backend_that_was_down_gets_everything() {
    let address = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("port 0");
        listener.local_addr().expect("bound").to_string()
    };
    let mut config = config(ALL);
    config.exporter.endpoint = format!("http://{address}");
    let mut running = Running::start_to(config).await;
    running.accept(roots(50, 0)).await;
    let retried = "exporter_retries_total{code=\"UNAVAILABLE\"}";
    running.until("retries", |metrics| metrics.get(retried) >= 2.0).await;
    (running.sink, running.received) = sink(&address, Box::new(|_| Ok(Bytes::new()))).await;
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("exporter_sent_spans_total"), 50.0);
    assert_eq!(running.traces().len(), 50);
    assert_eq!(running.spans().len(), 50);
    running.stop().await;
}

/// Scenario: a backend that accepts connections and never answers.
/// Guarantees: attempts end after `timeout`, retries after `max_elapsed_time`, and the spans are
/// counted.
#[tokio::test]
async fn a_backend_that_hangs_costs_its_timeout() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port 0");
    let mut config = config(ALL);
    config.exporter.endpoint = format!("http://{}", silent.local_addr().expect("bound"));
    config.exporter.timeout = Duration::from_millis(100);
    config.exporter.retry.max_elapsed_time = Some(Duration::from_millis(300));
    let running = Running::start_to(config).await;
    running.accept(roots(5, 0)).await;
    let metrics = running.at_rest().await;
    assert!(metrics.get("exporter_retries_total{code=\"DEADLINE_EXCEEDED\"}") >= 1.0);
    assert_eq!(metrics.get("exporter_failed_spans_total{reason=\"retry_expired\"}"), 5.0);
    running.stop().await;
}

/// Scenario: partial success with one rejected span, with more than were sent, with a negative
/// number, and an empty one.
/// Guarantees: rejected spans are counted, the rest counts as sent, and nothing is sent twice.
#[tokio::test]
async fn partial_success_is_counted_and_never_retried() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    let answer: Answer = Box::new(move |request| {
        counter.fetch_add(1, Relaxed);
        let rejected_spans = [0, 1, 1_000, -7][usize::try_from(id_of(request) - 1).expect("small")];
        let partial = ExportTracePartialSuccess { rejected_spans, error_message: String::new() };
        let answer = ExportTraceServiceResponse { partial_success: Some(partial) };
        // An empty message must still be present.
        let empty = Bytes::from_static(&[0x0a, 0]);
        Ok(if rejected_spans == 0 { empty } else { answer.encode_to_vec().into() })
    });
    let running = Running::start_with(one_by_one(), answer).await;
    running.accept(roots(4, 0)).await;
    let metrics = running.at_rest().await;
    assert_eq!(metrics.get("exporter_failed_spans_total{reason=\"partial_success\"}"), 2.0);
    assert_eq!(metrics.get("exporter_sent_spans_total"), 2.0);
    assert_eq!(metrics.sum("exporter_retries_total"), 0.0);
    assert_eq!(calls.load(Relaxed), 4);
    running.stop().await;
}

/// Scenario: a backend that says "larger than max" about one span.
/// Guarantees: that span is counted as `too_large`, the others arrive.
#[tokio::test]
async fn too_large_is_counted_apart() {
    let answer: Answer = Box::new(|request| match id_of(request) {
        1 => Err(Status::resource_exhausted("grpc: received message larger than max (9 vs. 4)")),
        _ => Ok(Bytes::new()),
    });
    let running = Running::start_with(one_by_one(), answer).await;
    running.accept(roots(3, 0)).await;
    let metrics = running.at_rest().await;
    assert_eq!(metrics.get("exporter_failed_spans_total{reason=\"too_large\"}"), 1.0);
    assert_eq!(metrics.get("exporter_sent_spans_total"), 2.0);
    running.stop().await;
}

/// Scenario: export with gzip and with zstd.
/// Guarantees: the backend decodes what was sent.
#[tokio::test]
async fn compressed_exports_are_decoded() {
    for compression in [Compression::Gzip, Compression::Zstd] {
        let mut config = waiting();
        config.exporter.compression = compression;
        let running = Running::start(config).await;
        running.accept(roots(20, 500)).await;
        let received = Arc::clone(&running.received);
        assert_eq!(running.stop().await.1, 0);
        assert_eq!(received.lock().expect("no panic").iter().flat_map(spans_of).count(), 20);
    }
}

/// A length-delimited field, with a number below 16.
fn nest(field: u8, inner: &[u8]) -> Vec<u8> {
    let mut nested = vec![field << 3 | 2];
    prost::encode_length_delimiter(inner.len(), &mut nested).expect("a Vec has room");
    [&nested, inner].concat()
}

/// Scenario: configured headers, and a span with links, events, schema URLs and unknown fields.
/// Guarantees: the headers arrive; the span is sent with every byte that it arrived with, followed
/// by the stamp.
#[tokio::test]
async fn headers_arrive_and_bytes_leave_as_they_came() {
    let (url, seen) = raw_backend(&[OK]).await;
    let mut config = waiting();
    config.exporter.endpoint = url;
    config.exporter.headers = [("x-scope-orgid".into(), "team-a".into())].into();
    let running = Running::start_to(config).await;
    let link = Link { trace_id: vec![7; 16], span_id: vec![8; 8], ..Link::default() };
    let event = Event { time_unix_nano: 5, name: "event".into(), ..Event::default() };
    let whole = Span { links: vec![link], events: vec![event], ..span(HIGH | 1, 1, None) };
    let mut bytes = whole.encode_to_vec();
    // Field 1000 with four bytes.
    bytes.extend_from_slice(b"\xc2\x3e\x04newf");
    let resource =
        request("shop", vec![]).resource_spans.remove(0).resource.expect("there").encode_to_vec();
    let scope = [nest(2, &bytes), nest(3, b"scope-schema"), nest(15, b"new")].concat();
    let body = [nest(1, &resource), nest(2, &scope), nest(3, b"resource-schema")].concat();
    running.export_bytes(nest(1, &body)).await.expect("accepted");
    assert_eq!(running.stop().await.1, 0);

    let seen = seen.lock().expect("no panic");
    let (headers, body) = &seen[0];
    assert_eq!(headers["x-scope-orgid"], "team-a");
    assert!(headers["user-agent"].to_str().expect("text").starts_with("tailwater/"));
    for unchanged in [&bytes[..], &nest(15, b"new")] {
        assert!(body.windows(unchanged.len()).any(|window| window == unchanged), "{unchanged:?}");
    }
    let decoded = ExportTraceServiceRequest::decode(&body[5..]).expect("a request");
    assert_eq!(decoded.resource_spans[0].schema_url, "resource-schema");
    assert_eq!(decoded.resource_spans[0].scope_spans[0].schema_url, "scope-schema");
    let left = spans_of(&decoded).next().expect("a span");
    assert_eq!((&left.links, &left.events), (&whole.links, &whole.events));
    assert_eq!(attribute(left, "tailwater.policy"), Some("all"));
}

/// Scenario: spans of one tick, and of one trace, that do not fit into one request.
/// Guarantees: every request is within the limit, and together they contain each span once.
#[tokio::test]
async fn requests_stay_within_their_size() {
    let mut config = waiting();
    config.exporter.max_request_bytes = 4_000;
    let running = Running::start(config).await;
    let filler = string("filler", "x".repeat(300));
    let child = |n| Span { attributes: vec![filler.clone()], ..span(HIGH, n, Some(1)) };
    running.accept((1..=40).map(child).collect()).await;
    running.accept(roots(10, 300)).await;
    let received = Arc::clone(&running.received);
    assert_eq!(running.stop().await.1, 0);
    let received = received.lock().expect("no panic");
    let sizes: Vec<_> = received.iter().map(prost::Message::encoded_len).collect();
    assert!(sizes.iter().all(|&size| size <= 4_000), "{sizes:?}");
    assert!((6..=12).contains(&sizes.len()), "{sizes:?}");
    let ids: HashSet<_> = received
        .iter()
        .flat_map(spans_of)
        .map(|span| (span.trace_id.clone(), span.span_id.clone()))
        .collect();
    assert_eq!((ids.len(), received.iter().flat_map(spans_of).count()), (50, 50));
}

/// Scenario: traces that cross two services, decided together.
/// Guarantees: a request names each resource once.
#[tokio::test]
async fn spans_are_grouped_by_resource_across_traces() {
    let running = Running::start(waiting()).await;
    for n in 1..=10 {
        for (service, id, parent) in [("gateway", 1, None), ("cart", 2, Some(1))] {
            let request = request(service, vec![span(HIGH | n, id, parent)]);
            running.export(&request).await.expect("accepted");
        }
    }
    let received = Arc::clone(&running.received);
    assert_eq!(running.stop().await.1, 0);
    let received = received.lock().expect("no panic");
    assert_eq!(received.len(), 1);
    let groups = received[0].resource_spans.iter();
    let sizes: Vec<_> = groups.map(|group| group.scope_spans[0].spans.len()).collect();
    assert_eq!(sizes, [10, 10]);
}

/// Scenario: a full queue with `overflow = "drop"`, and a backend that is down, then up.
/// Guarantees: the newest kept spans are dropped and counted, decisions go on, and queued spans
/// arrive.
#[tokio::test]
async fn a_full_queue_drops_the_newest() {
    let (is_up, answer) = gate();
    let mut config = one_by_one();
    config.exporter.queue.overflow = Overflow::Drop;
    config.exporter.queue.queue_bytes_max = 2_000;
    let running = Running::start_with(config, answer).await;
    running.accept(roots(20, 200)).await;
    let decided = |metrics: &Metrics| {
        metrics.sum("traces_kept_total") == 20.0 && metrics.sum("window_spans") == 0.0
    };
    let metrics = running.until("all are decided", decided).await;
    assert_eq!(metrics.sum("receiver_refused_requests_total"), 0.0);
    is_up.store(true, Relaxed);
    let metrics = running.at_rest().await;
    let lost = metrics.get("exporter_failed_spans_total{reason=\"queue_full\"}");
    let sent = metrics.sum("exporter_sent_spans_total");
    assert!(lost > 0.0 && sent > 0.0 && lost + sent == 20.0, "{lost} lost, {sent} sent");
    running.stop().await;
}

/// Scenario: a full queue with `overflow = "block"`, and a backend that is down, then up.
/// Guarantees: due traces wait in the window, senders are told to retry later, and nothing is lost.
#[tokio::test]
async fn a_full_queue_blocks_deciding_and_intake() {
    let (is_up, answer) = gate();
    let mut config = one_by_one();
    config.exporter.queue.queue_bytes_max = 2_000;
    let running = Running::start_with(config, answer).await;
    running.accept(roots(20, 200)).await;
    let full = |m: &Metrics| m.sum("exporter_queue_bytes") >= 1_800.0;
    running.until("the queue is full", full).await;
    // Two ticks of the window later, nothing more has been decided.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let metrics = running.metrics().await;
    assert!(metrics.sum("window_spans") >= 5.0, "{:#?}", metrics.nonzero());
    assert_eq!(metrics.sum("exporter_queue_capacity_bytes"), 2_000.0);
    assert!(metrics.sum("exporter_queue_bytes") <= 3_000.0);
    assert!(metrics.sum("exporter_queue_spans") >= 5.0);
    let refused = running.export(&request("shop", roots(1, 0))).await.expect_err("refused");
    assert_eq!(refused.code(), Code::Unavailable);
    let delay = refused.get_details_retry_info().and_then(|info| info.retry_delay);
    assert!((1..=8).contains(&delay.expect("RetryInfo").as_secs()), "{delay:?}");
    is_up.store(true, Relaxed);
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("exporter_sent_spans_total"), 20.0);
    let refused = "receiver_refused_requests_total{transport=\"grpc\",reason=\"queue_full\"}";
    assert_eq!(metrics.get(refused), 1.0);
    running.stop().await;
}

/// Scenario: status details that are not base64, details that claim a gigabyte, then a valid
/// answer.
/// Guarantees: each costs one attempt and nothing panics; the spans are delivered.
#[tokio::test]
async fn a_hostile_backend_costs_one_attempt() {
    const HOSTILE: Trailers = &[("grpc-status", "14"), ("grpc-status-details-bin", "!not base64!")];
    const CLAIMS: Trailers = &[("grpc-status", "14"), ("grpc-status-details-bin", "GoCAgIAE")];
    let (url, seen) = raw_backend(&[HOSTILE, CLAIMS, OK]).await;
    let mut config = config(ALL);
    config.exporter.endpoint = url;
    let running = Running::start_to(config).await;
    running.accept(roots(1, 0)).await;
    running.at_rest().await;
    running.accept(vec![span(HIGH | 2, 1, None)]).await;
    running.until("both", |metrics| metrics.sum("exporter_sent_spans_total") == 2.0).await;
    let metrics = running.at_rest().await;
    assert_eq!(metrics.get("task_restarts_total{task=\"exporter\"}"), 0.0);
    assert_eq!(metrics.get("exporter_retries_total{code=\"UNAVAILABLE\"}"), 2.0);
    assert_eq!(metrics.sum("exporter_failed_spans_total"), 0.0);
    assert_eq!(seen.lock().expect("no panic").len(), 4);
    running.stop().await;
}

/// Scenario: a backend that answers OK without a message.
/// Guarantees: the spans are sent, once.
#[tokio::test]
async fn an_answer_without_a_message_is_an_answer() {
    const BARE: Trailers = &[("grpc-status", "0"), ("grpc-message", "")];
    let (url, seen) = raw_backend(&[BARE]).await;
    let mut config = config(ALL);
    config.exporter.endpoint = url;
    let running = Running::start_to(config).await;
    running.accept(roots(1, 0)).await;
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("exporter_sent_spans_total"), 1.0);
    assert_eq!(seen.lock().expect("no panic").len(), 1);
    running.stop().await;
}

/// Scenario: a shutdown with spans in the queue and in the window while the backend is down.
/// Guarantees: it ends within `shutdown_timeout`, and returns how many spans could not be
/// delivered.
#[tokio::test]
async fn a_shutdown_without_a_backend_ends_in_time() {
    let mut config = one_by_one();
    config.shutdown_timeout = Duration::from_secs(2);
    config.exporter.queue.queue_bytes_max = 2_000;
    let nobody = SocketAddr::from(([127, 0, 0, 1], 9));
    config.exporter.endpoint = format!("http://{nobody}");
    let running = Running::start_to(config).await;
    running.accept(roots(30, 200)).await;
    running.until("queued", |metrics| metrics.sum("exporter_queue_spans") >= 5.0).await;
    // It gives up after 1.9 s, though retries would last for 5 minutes; the rest is for a machine
    // that is busy with other tests.
    let stopped = tokio::time::timeout(Duration::from_secs(60), running.stop()).await;
    let (metrics, undelivered) = stopped.expect("ended in time");
    assert_eq!(undelivered, 30);
    assert_eq!(metrics.get("exporter_failed_spans_total{reason=\"shutdown\"}"), 30.0);
}

/// Scenario: a shutdown with many more pending spans than the queue holds, and a healthy backend.
/// Guarantees: the queue is filled again and again until everything has arrived.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_fills_a_small_queue_until_all_is_delivered() {
    let mut config = waiting();
    config.exporter.queue.queue_bytes_max = 2_000;
    config.exporter.max_request_bytes = 500;
    let running = Running::start(config).await;
    running.accept(roots(500, 200)).await;
    let (metrics, undelivered) = running.stop().await;
    assert_eq!((undelivered, metrics.sum("exporter_sent_spans_total")), (0, 500.0));
}
