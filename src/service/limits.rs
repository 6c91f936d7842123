//! Converts the configuration to the limits of the stages and to the span metrics.

use std::{sync::Arc, time::Duration};

use tracing::warn;

use crate::{
    budget::Budget,
    config::Config,
    net::{listen, windows::Windows},
    receiver::{cors::Cors, http::Settings},
    sampler::Limits,
    span_metrics::SpanMetrics,
    window::Waits,
};

/// The longest tick; a short wait has a tick of a tenth of it.
const TICK_MAX: Duration = Duration::from_millis(100);
/// Connections that one HTTP listener may have.
const HTTP_CONNECTIONS_MAX: usize = 1024;

/// A quarter of the smallest `max_request_size_kib`.
const CONTEXT_BYTES_MIN: usize = 4 << 10;

/// Cores that the process may use.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The period of the decider.
pub(super) fn tick(config: &Config) -> Duration {
    TICK_MAX.min(config.sampling.decision_wait / 10)
}

/// The limits of traces, in the window and after it.
pub(super) fn limits(config: &Config) -> Limits {
    let sampling = &config.sampling;
    let millis = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX / 2);
    Limits {
        waits: Waits {
            decision_wait: millis(sampling.decision_wait),
            after_root: sampling.decision_wait_after_root_received.map(millis),
        },
        max_trace_spans: sampling.max_trace_spans,
        max_trace_bytes: sampling.max_trace_bytes,
        context_bytes_max: (config.exporter.max_request_bytes / 4).max(CONTEXT_BYTES_MIN),
        kept_bytes_max: config.exporter.max_trace_bytes,
        decision_ttl_millis: millis(sampling.decision_cache_ttl),
        decision_log_traces: sampling.decision_log_size,
    }
}

/// The span metrics, if they are turned on.
pub(super) fn span_metrics(config: &Config, budget: &Arc<Budget>) -> Option<Arc<SpanMetrics>> {
    let settings = config.span_metrics.clone()?;
    Some(Arc::new(SpanMetrics::new(settings, budget)))
}

/// The limits of connections to the gRPC receiver, lowered to the number that file descriptors
/// allow.
pub(super) fn grpc_limits(
    config: &Config,
    connections_max: usize,
    budget: &Arc<Budget>,
) -> listen::Limits {
    let wanted = config.grpc.max_connections;
    if connections_max < wanted {
        warn!(
            connections_max,
            wanted,
            "the limit of open files lowers receiver.grpc.max_connections: raise that limit"
        );
    }
    listen::Limits {
        max_connections: wanted.min(connections_max),
        max_age: config.grpc.max_connection_age,
        max_concurrent_streams: config.grpc.max_concurrent_streams,
        windows: Windows::new(budget.limit() / 8, Some(budget)),
        http2_only: true,
        keep_alive: Duration::from_secs(60),
    }
}

/// The limits of connections to the HTTP receiver. Both receivers grant flow control from one
/// eighth of the memory limit.
pub(super) fn http_limits(
    config: &Config,
    grpc: &listen::Limits,
    connections_max: usize,
) -> listen::Limits {
    listen::Limits {
        max_connections: HTTP_CONNECTIONS_MAX.min(connections_max),
        max_age: config.http.max_connection_age,
        http2_only: false,
        ..grpc.clone()
    }
}

/// The settings of the HTTP receiver.
pub(super) fn http_settings(config: &Config) -> Settings {
    let http = &config.http;
    Settings {
        max_body_bytes: http.max_request_body_bytes,
        traces_path: http.traces_url_path.clone(),
        cors: Cors::new(&http.cors.allowed_origins, &http.cors.allowed_headers),
    }
}
