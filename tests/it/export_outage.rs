//! A backend that is silent, slow, down or being replaced, in virtual time: minutes cost
//! milliseconds.
//!
//! Only the exporter runs, on one thread with a paused clock, which advances when nothing is left
//! to do. Peers run on the same thread and on the loopback, so their data arrives at once.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::Incoming;
use prost::Message as _;
use tailwater::{
    budget::Budget,
    clock::Clock,
    config::Config,
    exporter::{Consumer, Queue},
    metrics::{FailedBecause, Metrics as Counters, Readings},
    net::listen,
    otlp::encode::EncodedRequest,
    testing::Sink,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::Instant,
};

use crate::{
    export::{backend_client, roots, serve_raw},
    harness::{ALL, Metrics, Received, Running, config, request, sink},
};

/// The exporter of a configuration, as the service starts it.
pub struct Exporter {
    queue: Arc<Queue>,
    metrics: Arc<Counters>,
    consumers: JoinSet<()>,
    _give_up: watch::Sender<bool>,
    kept: u64,
}

impl Exporter {
    pub fn start(config: &Config) -> Self {
        let budget = Budget::new(1 << 30);
        let queue = Queue::new(config.exporter.queue.queue_bytes_max, &budget);
        let metrics = Arc::new(Counters::new(&[]));
        let (give_up, gives_up) = watch::channel(false);
        let consumer = Consumer {
            client: backend_client(config),
            queue: Arc::clone(&queue),
            retry: config.exporter.retry.clone(),
            metrics: Arc::clone(&metrics),
            clock: Clock::start(),
            give_up: gives_up,
            leaves: false,
            supervisor: Arc::default(),
        };
        let mut consumers = JoinSet::new();
        for _ in 0..config.exporter.queue.num_consumers {
            consumers.spawn(consumer.clone().run());
        }
        Exporter { queue, metrics, consumers, _give_up: give_up, kept: 0 }
    }

    /// Queues a request of this many spans, as with `overflow = "drop"`.
    pub fn push(&mut self, spans: u64) {
        let body: Bytes = request("shop", roots(spans, 100)).encode_to_vec().into();
        self.kept += spans;
        match self.queue.place_within(body.len()) {
            Some(place) => place.fill(EncodedRequest { body, spans }),
            None => self.metrics.failed(FailedBecause::QueueFull, spans),
        }
    }

    fn metrics(&self) -> Metrics {
        let queue_spans = self.queue.held().1;
        Metrics::parse(&self.metrics.render(&Readings { queue_spans, ..Readings::default() }))
    }

    /// Checks that `kept = sent + failed + queued`.
    fn assert_ledger(&self) -> Metrics {
        let metrics = self.metrics();
        let left = metrics.sum("exporter_sent_spans_total")
            + metrics.sum("exporter_failed_spans_total")
            + metrics.sum("exporter_queue_spans");
        assert_eq!(self.kept as f64, left, "{:#?}", metrics.nonzero());
        metrics
    }

    /// Waits until nothing is queued, and ends the consumers.
    pub async fn stop(mut self) -> Metrics {
        self.queue.drained().await;
        self.queue.close();
        while let Some(ended) = self.consumers.join_next().await {
            ended.expect("no panic");
        }
        self.assert_ledger()
    }
}

/// The default waits, not the shortened ones of other tests.
pub fn defaults() -> Config {
    let mut config = config(ALL);
    config.exporter.retry.initial_interval = Duration::from_secs(1);
    config
}

/// Forwards connections; when `holes` changes, open ones go silent but stay open.
struct Proxy {
    address: SocketAddr,
    target: watch::Sender<SocketAddr>,
    holes: watch::Sender<()>,
    connections: Arc<AtomicUsize>,
}

impl Proxy {
    async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port 0");
        let address = listener.local_addr().expect("bound");
        let (target, targets) = watch::channel(target);
        let (holes, made) = watch::channel(());
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                counter.fetch_add(1, Relaxed);
                let (target, mut made) = (*targets.borrow(), made.clone());
                made.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(mut server) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        biased;
                        Ok(()) = made.changed() => std::future::pending().await,
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                    }
                });
            }
        });
        Proxy { address, target, holes, connections }
    }
}

async fn taking(endpoint: &str) -> (Sink, Received) {
    sink(endpoint, Box::new(|_| Ok(Bytes::new()))).await
}

async fn until(what: &str, wanted: impl Fn() -> bool) {
    let started = Instant::now();
    while !wanted() {
        assert!(started.elapsed() < Duration::from_secs(3_600), "not within an hour: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.expect("port 0").local_addr().expect("bound")
}

/// Scenario: the packets of an open connection vanish, with one request waiting for its answer and
/// others coming; a new connection would reach the backend, or its replacement.
/// Guarantees: this is noticed within 30 s, whether there is much to send or little; a new
/// connection is made; nothing is lost.
#[tokio::test(start_paused = true)]
async fn a_black_hole_is_noticed_within_thirty_seconds() {
    for pushes_a_second in [1, 20] {
        let (first, _) = taking("127.0.0.1:0").await;
        let (second, received) = taking("127.0.0.1:0").await;
        let proxy = Proxy::start(first.address).await;
        let mut config = defaults();
        config.exporter.endpoint = format!("http://{}", proxy.address);
        let mut exporter = Exporter::start(&config);
        exporter.push(1);
        exporter.queue.drained().await;

        proxy.target.send_replace(second.address);
        proxy.holes.send_replace(());
        let silent = Instant::now();
        while received.lock().expect("no panic").is_empty() {
            assert!(silent.elapsed() < Duration::from_secs(30), "{pushes_a_second} a second");
            exporter.push(1);
            tokio::time::sleep(Duration::from_secs(1) / pushes_a_second).await;
        }
        assert_eq!(proxy.connections.load(Relaxed), 2);
        let metrics = exporter.stop().await;
        assert_eq!(metrics.sum("exporter_failed_spans_total"), 0.0);
        first.stop().await;
        second.stop().await;
    }
}

/// Scenario: a single request, sent into a black hole.
/// Guarantees: it arrives within 35 s: the time of the ping, and one retry delay.
#[tokio::test(start_paused = true)]
async fn a_single_request_gets_out_of_a_black_hole() {
    let (sink, received) = taking("127.0.0.1:0").await;
    let proxy = Proxy::start(sink.address).await;
    let mut config = defaults();
    config.exporter.endpoint = format!("http://{}", proxy.address);
    let mut exporter = Exporter::start(&config);
    exporter.push(1);
    exporter.queue.drained().await;
    proxy.holes.send_replace(());
    let silent = Instant::now();
    exporter.push(1);
    let metrics = exporter.stop().await;
    assert!(silent.elapsed() < Duration::from_secs(35), "{:?}", silent.elapsed());
    assert_eq!(metrics.sum("exporter_failed_spans_total"), 0.0);
    assert_eq!(received.lock().expect("no panic").len(), 2);
    sink.stop().await;
}

/// Scenario: a backend that answers after 30 s, with a timeout of 5 s and then of a minute.
/// Guarantees: attempts end at the timeout until they are given up; with the longer timeout, the
/// spans arrive.
#[tokio::test(start_paused = true)]
async fn a_backend_slower_than_the_timeout_is_retried() {
    let url = slow_backend(Duration::from_secs(30)).await;
    for (timeout, sent) in [(5, 0.0), (60, 1.0)] {
        let mut config = defaults();
        config.exporter.endpoint = url.clone();
        config.exporter.timeout = Duration::from_secs(timeout);
        let mut exporter = Exporter::start(&config);
        exporter.push(1);
        let metrics = exporter.stop().await;
        assert_eq!(metrics.sum("exporter_sent_spans_total"), sent);
        let lost = metrics.get("exporter_failed_spans_total{reason=\"retry_expired\"}");
        assert_eq!(lost, 1.0 - sent);
    }
}

/// The URL of a backend that accepts everything, but answers only after this time.
async fn slow_backend(delay: Duration) -> String {
    let listener = listen::bind("slow", "127.0.0.1:0").await.expect("port 0");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let answer = move |_: http::Request<Incoming>| async move {
        tokio::time::sleep(delay).await;
        let response = http::Response::builder().header("grpc-status", "0");
        response.body(Empty::<Bytes>::new()).expect("valid")
    };
    serve_raw(listener, answer);
    url
}

/// Scenario: a backend that is down for five minutes at one request per second, then back.
/// Guarantees: nothing is lost; the first attempt comes within 30 s; at twice the rate or more, the
/// queue is empty again within three minutes; the number of retries meanwhile is bounded.
#[tokio::test(start_paused = true)]
async fn five_minutes_of_outage_lose_nothing() {
    let address = nobody().await;
    let mut config = defaults();
    config.exporter.endpoint = format!("http://{address}");
    let mut exporter = Exporter::start(&config);
    let down = Instant::now();
    while down.elapsed() < Duration::from_secs(300) {
        exporter.push(10);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let metrics = exporter.assert_ledger();
    assert_eq!(metrics.sum("exporter_queue_spans"), 3_000.0, "{:#?}", metrics.nonzero());
    let retries = metrics.sum("exporter_retries_total");
    assert!((100.0..=250.0).contains(&retries), "{retries} in five minutes by ten consumers");

    let (sink, received) = taking(&address.to_string()).await;
    let back = Instant::now();
    until("something arrives", || !received.lock().expect("no panic").is_empty()).await;
    assert!(back.elapsed() <= Duration::from_secs(30), "{:?}", back.elapsed());
    exporter.push(10);
    let metrics = exporter.stop().await;
    assert!(back.elapsed() <= Duration::from_secs(180), "{:?}", back.elapsed());
    assert_eq!(metrics.sum("exporter_sent_spans_total"), 3_010.0);
    assert_eq!(metrics.sum("exporter_failed_spans_total"), 0.0);
    sink.stop().await;
}

/// Scenario: a backend that is down for an hour, with a queue for five minutes and `overflow =
/// "drop"`.
/// Guarantees: the queue never exceeds its size; spans that do not fit are counted as `queue_full`,
/// spans retried for `max_elapsed_time` as `retry_expired`, and spans still queued when the backend
/// is back arrive.
#[tokio::test(start_paused = true)]
async fn an_hour_of_outage_is_counted() {
    let address = nobody().await;
    let mut config = defaults();
    config.exporter.endpoint = format!("http://{address}");
    let one = request("shop", roots(10, 100)).encoded_len();
    config.exporter.queue.queue_bytes_max = 300 * one;
    let mut exporter = Exporter::start(&config);
    let down = Instant::now();
    while down.elapsed() < Duration::from_secs(3_600) {
        exporter.push(10);
        assert!(exporter.queue.held().0 <= 300 * one);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let metrics = exporter.assert_ledger();
    let lost = |metrics: &Metrics, reason: &str| {
        metrics.get(&format!("exporter_failed_spans_total{{reason=\"{reason}\"}}"))
    };
    assert!(metrics.sum("exporter_queue_spans") >= 2_900.0);
    // Ten consumers each give up a request every five minutes; connecting takes real time, in which
    // the clock runs on if the machine is busy.
    assert!(
        (700.0..=1_300.0).contains(&lost(&metrics, "retry_expired")),
        "{:#?}",
        metrics.nonzero()
    );
    let (sink, _) = taking(&address.to_string()).await;
    let metrics = exporter.stop().await;
    assert!(metrics.sum("exporter_sent_spans_total") >= 2_800.0, "{:#?}", metrics.nonzero());
    assert!(lost(&metrics, "queue_full") > 30_000.0);
    sink.stop().await;
}

/// Scenario: a backend that is down for an hour, with `max_elapsed_time = "0s"`, which means for
/// ever.
/// Guarantees: the queued spans are still there an hour later.
#[tokio::test(start_paused = true)]
async fn for_ever_is_for_ever() {
    let address = nobody().await;
    let mut config = defaults();
    config.exporter.endpoint = format!("http://{address}");
    config.exporter.retry.max_elapsed_time = None;
    let mut exporter = Exporter::start(&config);
    (0..100).for_each(|_| exporter.push(10));
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    let (sink, _) = taking(&address.to_string()).await;
    let metrics = exporter.stop().await;
    assert_eq!(metrics.sum("exporter_sent_spans_total"), 1_000.0);
    sink.stop().await;
}

/// Scenario: under load, the backend is stopped as in a rolling restart (GOAWAY, requests in flight
/// are answered), and started at the same address; then another backend is started elsewhere, the
/// address leads there, and the old one stops.
/// Guarantees: no span is lost, and nothing panics.
#[tokio::test]
async fn a_rolling_restart_of_the_backend_loses_nothing() {
    let (mut backend, mut received) = taking("127.0.0.1:0").await;
    let proxy = Proxy::start(backend.address).await;
    let mut config = config(ALL);
    config.exporter.endpoint = format!("http://{}", proxy.address);
    config.exporter.max_request_bytes = 1_000;
    let running = Running::start_to(config).await;
    let (mut sent, mut arrived) = (0, 0);
    for round in 0..6 {
        for part in 0..10 {
            let mut spans = roots(20, 100);
            spans.iter_mut().for_each(|span| span.trace_id[..2].copy_from_slice(&[round, part]));
            sent += spans.len() as u64;
            running.accept(spans).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let address = backend.address;
        if round % 2 == 0 {
            backend.stop().await;
            arrived += spans_in(&received);
            (backend, received) = taking(&address.to_string()).await;
        } else {
            let (next, received_next) = taking("127.0.0.1:0").await;
            proxy.target.send_replace(next.address);
            std::mem::replace(&mut backend, next).stop().await;
            arrived += spans_in(&received);
            received = received_next;
        }
    }
    let all = |metrics: &Metrics| metrics.sum("exporter_sent_spans_total") == sent as f64;
    running.until("everything is sent", all).await;
    let metrics = running.at_rest().await;
    arrived += spans_in(&received);
    assert!(arrived >= sent, "{arrived} of {sent}");
    assert_eq!(metrics.sum("exporter_failed_spans_total"), 0.0);
    assert_eq!(metrics.sum("task_restarts_total"), 0.0);
    running.stop().await;
    backend.stop().await;
}

fn spans_in(received: &Received) -> u64 {
    let received = received.lock().expect("no panic");
    received.iter().map(|request| crate::harness::spans_of(request).count() as u64).sum()
}
