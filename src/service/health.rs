//! `grpc.health.v1` of both ports. It follows readiness: NOT_SERVING until the service is ready,
//! and again from the beginning of a shutdown to its end.

use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{admin::CONTROL_SERVICE, grpc::TRACE_SERVICE};

/// The services of a receiver; the empty name is the whole.
pub(super) const OF_RECEIVERS: &[&str] = &["", TRACE_SERVICE];
/// The services that the telemetry port answers for.
pub(super) const OF_TELEMETRY: &[&str] = &["", TRACE_SERVICE, CONTROL_SERVICE];

/// A reporter for services that do not serve yet.
pub(super) async fn not_serving(services: &[&str]) -> HealthReporter {
    let health = HealthReporter::new();
    set(&health, services, ServingStatus::NotServing).await;
    health
}

/// Says that the services are serving.
pub(super) async fn serve(health: &HealthReporter, services: &[&str]) {
    set(health, services, ServingStatus::Serving).await;
}

/// Says that the services are not serving any more, and ends the streams of watchers, which would
/// hold their connections open.
pub(super) async fn stop(health: &HealthReporter, services: &[&str]) {
    set(health, services, ServingStatus::NotServing).await;
    end_streams(health, services).await;
    // Checks are still answered.
    set(health, services, ServingStatus::NotServing).await;
}

/// Ends the streams of watchers. The services are unknown from then on.
pub(super) async fn end_streams(health: &HealthReporter, services: &[&str]) {
    let mut health = health.clone();
    for service in services {
        health.clear_service_status(service).await;
    }
}

async fn set(health: &HealthReporter, services: &[&str], status: ServingStatus) {
    for service in services {
        health.set_service_status(service, status).await;
    }
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Request, codegen::tokio_stream::Stream};
    use tonic_health::{
        pb::{HealthCheckRequest, health_server::Health as _},
        server::HealthService,
    };

    use super::*;

    #[tokio::test]
    async fn checks_are_answered_from_the_start_to_the_end() {
        let health = not_serving(OF_RECEIVERS).await;
        let service = HealthService::from_health_reporter(health.clone());
        let request = |service: &str| Request::new(HealthCheckRequest { service: service.into() });
        let statuses = async || {
            let mut statuses = Vec::new();
            for name in OF_RECEIVERS {
                let answer = service.check(request(name)).await.expect("known");
                statuses.push(answer.into_inner().status().as_str_name());
            }
            statuses
        };
        assert_eq!(statuses().await, ["NOT_SERVING"; 2]);
        let unknown = service.check(request(CONTROL_SERVICE)).await.expect_err("not here");
        assert_eq!(unknown.code(), Code::NotFound);
        serve(&health, OF_RECEIVERS).await;
        assert_eq!(statuses().await, ["SERVING"; 2]);

        let watched = service.watch(request("")).await.expect("known").into_inner();
        stop(&health, OF_RECEIVERS).await;
        assert_eq!(statuses().await, ["NOT_SERVING"; 2]);
        let mut watched = std::pin::pin!(watched);
        let mut next = async || {
            let next = std::future::poll_fn(|context| watched.as_mut().poll_next(context)).await;
            next.map(|answer| answer.expect("no error").status().as_str_name())
        };
        assert_eq!(next().await, Some("NOT_SERVING"));
        assert_eq!(next().await, None, "the stream has ended");
    }
}
