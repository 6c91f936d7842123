//! A shutdown as senders, watchers and operators see it.

use std::{sync::Arc, time::Duration};

use prost::Message as _;
use tailwater::grpc::TRACE_SERVICE;
use tonic::{Code, Status, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::harness::{ALL, Metrics, Running, config, get, request, send, span};

/// Scenario: requests are sent one after the other while the service shuts down.
/// Guarantees: each is accepted and delivered, or answered UNAVAILABLE; none is lost.
#[tokio::test]
async fn while_draining_senders_are_sent_elsewhere() {
    let running = Running::start(config(ALL)).await;
    let (mut client, received) = (running.client.clone(), Arc::clone(&running.received));
    running.accept(vec![span(1, 1, None)]).await;
    let again = request("shop", vec![span(2, 1, None)]).encode_to_vec();
    let sender = async move {
        let mut accepted = 1;
        loop {
            match send(&mut client, again.clone()).await {
                Ok(_) => accepted += 1,
                Err(status) => break (accepted, status),
            }
        }
    };
    let ((accepted, status), (metrics, undelivered)) = tokio::join!(sender, running.stop());
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert_eq!(undelivered, 0);
    assert_eq!(metrics.get("exporter_sent_spans_total"), f64::from(accepted));
    let received = received.lock().expect("no panic");
    let spans = received.iter().flat_map(|request| &request.resource_spans);
    let spans = spans.flat_map(|spans| &spans.scope_spans).map(|scope| scope.spans.len());
    assert_eq!(spans.sum::<usize>(), accepted as usize);
}

/// Scenario: health checks by name, then a shutdown while a client watches.
/// Guarantees: SERVING, and NOT_FOUND for other names; the watcher gets NOT_SERVING and does not
/// delay the shutdown.
#[tokio::test]
async fn health_is_served_until_the_drain() {
    let running = Running::start(config(ALL)).await;
    let url = format!("http://{}", running.service.grpc_address);
    let channel = Channel::from_shared(url).expect("a url").connect_lazy();
    let mut health = HealthClient::new(channel);
    let named = |service: &str| HealthCheckRequest { service: service.into() };
    for service in ["", TRACE_SERVICE] {
        let answer = health.check(named(service)).await.expect("answered").into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let unknown = health.check(named("payment")).await.expect_err("unknown");
    assert_eq!(unknown.code(), Code::NotFound);
    let mut watched = health.watch(named("")).await.expect("watching").into_inner();
    let mut next = async || watched.message().await.expect("no error").map(|m| m.status());
    assert_eq!(next().await, Some(ServingStatus::Serving));
    let watcher = async {
        assert_eq!(next().await, Some(ServingStatus::NotServing));
        assert_eq!(next().await, None);
    };
    let stop = tokio::time::timeout(Duration::from_secs(2), running.stop());
    tokio::join!(watcher, stop).1.expect("stopped at once");
}

/// Scenario: health checks during a shutdown that takes long because the backend is down.
/// Guarantees: the service is healthy but not ready until the end, also over gRPC; metrics are
/// served meanwhile.
#[tokio::test]
async fn while_draining_it_is_healthy_and_not_ready() {
    let mut config = config(ALL);
    config.shutdown_timeout = Duration::from_secs(1);
    let running = Running::start_with(config, Box::new(|_| Err(Status::unavailable("no")))).await;
    running.accept(vec![span(1, 1, None)]).await;
    let address = running.service.admin_address;
    let prober = async {
        while get(address, "/-/ready").await.0 == 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(get(address, "/-/ready").await, (503, "not ready\n".to_owned()));
        assert_eq!(get(address, "/-/healthy").await.0, 200);
        let url = format!("http://{address}");
        let mut health =
            HealthClient::new(Channel::from_shared(url).expect("a url").connect_lazy());
        for service in ["", TRACE_SERVICE] {
            let request = HealthCheckRequest { service: service.into() };
            let answer = health.check(request).await.expect("answered").into_inner();
            assert_eq!(answer.status(), ServingStatus::NotServing, "{service}");
        }
        Metrics::parse(&get(address, "/metrics").await.1)
    };
    let (draining, (_, undelivered)) = tokio::join!(prober, running.stop());
    assert_eq!(draining.sum("receiver_accepted_spans_total"), 1.0);
    assert_eq!(draining.get("ready"), 0.0);
    assert_eq!(undelivered, 1);
}
