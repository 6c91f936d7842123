//! Panics in every task of a running service: what is lost, what is counted, and when the service
//! gives up. Debug builds only: release builds have no way to make a task panic.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tailwater::{
    config::Config,
    supervise::{PANICS_MAX, Scope, Task},
};

use bytes::Bytes;
use tonic::Status;
use tracing::{Event, Level, Metadata, Subscriber, span as tracing_span, span::Id};

use crate::harness::{ALL, HIGH, Metrics, Running, client, config, get, request, span};

/// Keeps everything, and decides by time.
fn quick() -> Config {
    let mut config = config(ALL);
    config.telemetry.enable_lifecycle = true;
    config
}

fn restarts(task: Task) -> String {
    format!("task_restarts_total{{task=\"{}\"}}", task.as_str())
}

/// Sends one root at a time, each on a new connection, until the task has panicked `times` times.
async fn until_panicked(running: &Running, task: Task, times: f64) -> Metrics {
    for trace in 1..=500 {
        // Any answer, or none, is fine: accepted spans are in the ledger.
        let mut client = client(&running.service);
        let bytes = prost::Message::encode_to_vec(&request("shop", vec![span(trace, 1, None)]));
        let export = crate::harness::send(&mut client, bytes);
        let _ = tokio::time::timeout(Duration::from_millis(100), export).await;
        // Not by a request for /metrics, which may be what panics.
        let metrics = Metrics::parse(&running.service.admin().scrape());
        if metrics.get(&restarts(task)) >= times {
            return metrics;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{task:?} has not panicked");
}

/// Scenario: a panic in the loop of each task, under traffic.
/// Guarantees: it is counted once and nothing else is lost; the service stays ready and continues.
#[tokio::test]
async fn a_task_that_panics_goes_on() {
    for task in [Task::Receiver, Task::Decider, Task::Exporter, Task::Admin] {
        let running = Running::start(quick()).await;
        running.service.supervisor().arm(task, Scope::Loop, 1);
        if task == Task::Admin {
            // The loop of this task only runs when a client connects.
            let _ = get(running.service.admin_address, "/-/healthy").await;
        }
        let metrics = until_panicked(&running, task, 1.0).await;
        assert_eq!(metrics.get(&restarts(task)), 1.0);
        running.accept(vec![span(HIGH | 1, 1, None)]).await;
        assert_eq!(get(running.service.admin_address, "/-/ready").await.0, 200);
        let metrics = running.at_rest().await;
        assert_eq!(metrics.sum("task_restarts_total"), 1.0, "{task:?}");
        assert!(running.traces().contains_key(&crate::harness::trace_id(HIGH | 1)), "{task:?}");
        assert_eq!(running.stop().await.1, 0, "{task:?}");
    }
}

/// Scenario: a panic on one request, before and while it is buffered, and on one export.
/// Guarantees: it costs this item, which is counted, and nothing else, not even its connection.
#[tokio::test]
async fn an_item_that_panics_costs_itself() {
    let running = Running::start(quick()).await;
    running.accept(vec![span(HIGH | 1, 1, None)]).await;
    running.at_rest().await;
    for scope in [Scope::Item, Scope::Now] {
        running.service.supervisor().arm(Task::Receiver, scope, 1);
        let status = running.export(&request("shop", vec![span(HIGH | 2, 1, None)])).await;
        let status = status.expect_err("panicked");
        assert_eq!(status.code(), tonic::Code::Internal, "{scope:?}: {status:?}");
        running.accept(vec![span(HIGH | 3, 1, None)]).await;
    }
    running.at_rest().await;
    running.service.supervisor().arm(Task::Exporter, Scope::Item, 1);
    running.accept(vec![span(HIGH | 4, 1, None)]).await;
    let metrics = running.at_rest().await;
    assert_eq!(metrics.get("receiver_accepted_spans_total{transport=\"grpc\"}"), 4.0);
    assert_eq!(metrics.get("exporter_failed_spans_total{reason=\"malformed\"}"), 1.0);
    assert_eq!(metrics.get(&restarts(Task::Receiver)), 2.0);
    assert_eq!(metrics.get(&restarts(Task::Exporter)), 1.0);
    running.stop().await;
}

/// Scenario: a panic while the policies are reloaded, and twenty on requests.
/// Guarantees: that reload is refused and the next one is not; panics on requests do not stop the
/// service.
#[tokio::test]
async fn items_never_stop_the_service() {
    let running = Running::start(quick()).await;
    running.service.supervisor().arm(Task::Reload, Scope::Now, 1);
    let post =
        "POST /-/reload HTTP/1.1\r\nhost: t\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let admin = running.service.admin_address;
    let reload = async || crate::wire::http1(admin, post.as_bytes()).await.status;
    assert_eq!(reload().await, 500);
    running.service.supervisor().arm(Task::Receiver, Scope::Now, 20);
    for trace in 0..20 {
        assert!(running.export(&request("shop", vec![span(trace, 1, None)])).await.is_err());
    }
    running.accept(vec![span(HIGH | 1, 1, None)]).await;
    let metrics = running.at_rest().await;
    assert_eq!(metrics.get(&restarts(Task::Receiver)), 20.0);
    assert_eq!(metrics.get(&restarts(Task::Reload)), 1.0);
    assert_eq!(get(admin, "/-/ready").await.0, 200);
    assert_eq!(running.service.supervisor().failed(), None);
    running.stop().await;
}

/// Scenario: a task that panics again and again, with traces in the window.
/// Guarantees: not ready, with the reason; the service reports that it has failed; its shutdown
/// ends, counts the remaining spans, and the ledger holds.
#[tokio::test]
async fn a_task_that_keeps_panicking_ends_the_service() {
    for task in [Task::Decider, Task::Exporter, Task::Receiver] {
        let mut config = quick();
        config.shutdown_timeout = Duration::from_secs(2);
        let running = Running::start(config).await;
        running.accept(vec![span(HIGH | 1, 1, None)]).await;
        running.service.supervisor().arm(task, Scope::Loop, 1_000);
        until_panicked(&running, task, PANICS_MAX as f64 + 1.0).await;
        running.service.failure().await;
        let why = format!("not ready: the task `{}` keeps panicking\n", task.as_str());
        assert_eq!(get(running.service.admin_address, "/-/ready").await, (503, why));
        let admin = Arc::clone(running.service.admin());
        assert_eq!(Metrics::parse(&admin.scrape()).get("ready"), 0.0);
        let undelivered = running.service.shutdown().await;
        let metrics = Metrics::parse(&admin.scrape());
        metrics.assert_ledger();
        let left = metrics.sum("window_spans") + metrics.sum("exporter_queue_spans");
        let failed = metrics.sum("exporter_failed_spans_total");
        assert_eq!(undelivered as f64, left + failed, "{task:?}: {:?}", metrics.nonzero());
        running.sink.stop().await;
    }
}

/// A log writer that panics.
struct PanickingLog;

impl Subscriber for PanickingLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("tailwater") && *metadata.level() <= Level::WARN
    }

    fn new_span(&self, _: &tracing_span::Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &tracing_span::Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {
        panic!("a line of the log");
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Scenario: every warning panics while the backend is down, for longer than the first one takes.
/// Guarantees: the spans in hand are counted, and no task ends: later spans are delivered, the
/// service is ready, and the ledger holds.
#[tokio::test]
async fn a_log_that_panics_ends_no_task() {
    let _log = tracing::subscriber::set_default(PanickingLog);
    let is_back = Arc::new(AtomicBool::new(false));
    let answer = Arc::clone(&is_back);
    let answer = move |_: &_| match answer.load(Relaxed) {
        true => Ok(Bytes::new()),
        false => Err(Status::unavailable("away")),
    };
    let mut config = quick();
    config.exporter.queue.num_consumers = 1;
    config.exporter.retry.max_interval = Duration::from_millis(50);
    let running = Running::start_with(config, Box::new(answer)).await;
    running.accept(vec![span(HIGH | 1, 1, None)]).await;
    let panicked = |metrics: &Metrics| metrics.get(&restarts(Task::Exporter)) > 0.0;
    let metrics = running.until("a warning panicked", panicked).await;
    assert_eq!(metrics.get("exporter_failed_spans_total{reason=\"malformed\"}"), 1.0);
    is_back.store(true, Relaxed);
    running.accept(vec![span(HIGH | 2, 1, None)]).await;
    let metrics = running.at_rest().await;
    assert_eq!(metrics.get("exporter_sent_spans_total"), 1.0);
    assert_eq!(get(running.service.admin_address, "/-/ready").await.0, 200);
    assert_eq!(running.stop().await.1, 0);
}

/// Scenario: a task ends without being told to: the test removes it from the runtime.
/// Guarantees: not ready, with the reason; the service reports that it has failed; its shutdown
/// delivers the remaining spans.
#[tokio::test]
async fn a_task_that_ends_ends_the_service() {
    let running = Running::start(quick()).await;
    running.accept(vec![span(HIGH | 1, 1, None)]).await;
    drop(running.service.supervisor().vital(Task::Exporter));
    running.service.failure().await;
    let why = "not ready: the task `exporter` has ended\n".to_owned();
    assert_eq!(get(running.service.admin_address, "/-/ready").await, (503, why));
    let received = Arc::clone(&running.received);
    assert_eq!(running.stop().await.1, 0);
    assert_eq!(received.lock().expect("no panic").len(), 1);
}
