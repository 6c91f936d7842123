//! A backend that is down for an hour while traffic continues.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tailwater::config::Overflow;
use tokio::time::{sleep, timeout};

use crate::{
    harness::Metrics,
    in_virtual_time,
    journal::Journal,
    run::{self, World},
    senders,
    setup::Setup,
};

const BEFORE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const STEP: Duration = Duration::from_secs(1);

/// Keeps every trace. The backend accepts spans for a minute, then none for an hour, then the rest.
async fn an_hour_without_backend(setup: Setup) -> Metrics {
    let mut rng = fastrand::Rng::with_seed(29);
    fastrand::seed(29);
    let journal = Arc::new(Journal::new(false));
    journal.decide_by(setup.set);
    let mut world = World::start(&setup, &journal, &mut rng).await;
    let traffic = senders::traffic(&mut rng, setup.shape);
    world.send(traffic, &mut rng);
    let watch = world.watch(STEP, run::slack(&setup));
    let outage = async {
        sleep(BEFORE).await;
        world.backend.crash();
        sleep(HOUR).await;
    };
    let _ = timeout(BEFORE + HOUR, async { tokio::join!(watch, outage) }).await;
    let admin = world.service.admin();
    journal.check(admin.is_ready.load(Relaxed), || "not ready without a backend".into());
    let (queued, capacity) = (admin.queue.held().0, admin.queue.capacity_bytes());
    // The decider checks for free space by the bytes of spans; contexts and stamps come on top.
    journal.check((capacity / 2..capacity + capacity / 20).contains(&queued), || {
        format!("{queued} bytes queued of {capacity}")
    });
    world.backend.restart();
    world.drain().await;
    world.stop(&setup).await
}

fn run(overflow: Overflow, max_elapsed_time: Option<Duration>) -> Metrics {
    in_virtual_time(an_hour_without_backend(Setup::steady(overflow, max_elapsed_time)))
}

/// Scenario: `overflow = "block"`, with endless retries.
/// Guarantees: the queue fills to its size and hardly further, then senders are told to come back;
/// no acknowledged span is lost; the service is ready all the time; it is drained within a minute
/// of the last span, once the backend is back.
#[test]
fn an_hour_of_outage_loses_nothing_that_was_acknowledged() {
    let metrics = run(Overflow::Block, None);
    let refused = "receiver_refused_requests_total{transport=\"grpc\",reason=\"queue_full\"}";
    assert!(metrics.get(refused) > 100.0, "{:#?}", metrics.nonzero());
    assert_eq!(metrics.sum("exporter_failed_spans_total"), 0.0);
    let sent = metrics.sum("exporter_sent_spans_total");
    assert_eq!(sent, metrics.sum("receiver_accepted_spans_total"));
    println!("refused requests: {}, sent spans: {sent}", metrics.get(refused));
}

/// Scenario: `overflow = "block"`, and the exporter gives up after five minutes, as by default.
/// Guarantees: the spans given up are counted as such, and no other span is lost.
#[test]
fn an_hour_of_outage_expires_what_is_not_retried_for_ever() {
    let metrics = run(Overflow::Block, Some(Duration::from_secs(300)));
    let expired = metrics.get("exporter_failed_spans_total{reason=\"retry_expired\"}");
    assert!(expired > 0.0 && expired == metrics.sum("exporter_failed_spans_total"));
    println!("expired spans: {expired}, sent: {}", metrics.sum("exporter_sent_spans_total"));
}

/// Scenario: `overflow = "drop"`, with endless retries.
/// Guarantees: no sender is refused; spans that do not fit into the queue are counted as such;
/// those in the queue arrive.
#[test]
fn an_hour_of_outage_drops_what_does_not_fit() {
    let metrics = run(Overflow::Drop, None);
    let full = metrics.get("exporter_failed_spans_total{reason=\"queue_full\"}");
    assert!(full > 0.0 && full == metrics.sum("exporter_failed_spans_total"));
    let unavailable = "receiver_requests_total{transport=\"grpc\",code=\"UNAVAILABLE\"}";
    assert_eq!(metrics.get(unavailable), 0.0);
    println!("dropped spans: {full}, sent: {}", metrics.sum("exporter_sent_spans_total"));
}
