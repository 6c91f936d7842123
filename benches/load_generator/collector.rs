//! The Collector's configuration for this traffic, with the settings that suit it best.
//!
//! It has the same window and the same four policies. `num_traces` is large enough for every trace
//! of the window, because the Collector evicts undecided traces beyond it. Its receiver takes
//! messages of 64 MiB, as Tailwater's does: by default it refuses a batch of 8,192 diverse spans,
//! which has more than 4 MiB. It remembers decisions as long as Tailwater, and makes batches in the
//! exporter's queue, which its documentation recommends over the `batch` processor. It has no
//! `memory_limiter`, no debug logging and no metrics endpoint, because these would cost CPU.

use std::net::SocketAddr;

use crate::{
    plan::Plan,
    traffic::{BASELINE_PERCENT, SLOW_MS, TIER_KEY, TIER_WANTED},
};

/// The configuration as YAML.
pub(crate) fn yaml(plan: &Plan, receiver: SocketAddr, sink: SocketAddr, shards: u32) -> String {
    let window_ms = plan.window.as_millis();
    format!(
        r#"
receivers:
  otlp:
    protocols:
      grpc:
        endpoint: "{receiver}"
        max_recv_msg_size_mib: 64
processors:
  tail_sampling:
    decision_wait: {window_ms}ms
    num_traces: 3000000
    num_shards: {shards}
    decision_cache:
      sampled_cache_size: 100000
      non_sampled_cache_size: 1000000
    policies:
      - {{name: errors, type: status_code, status_code: {{status_codes: [ERROR]}}}}
      - {{name: slow, type: latency, latency: {{threshold_ms: {SLOW_MS}}}}}
      - name: premium
        type: string_attribute
        string_attribute: {{key: "{TIER_KEY}", values: ["{TIER_WANTED}"]}}
      - name: baseline
        type: probabilistic
        probabilistic: {{sampling_percentage: {BASELINE_PERCENT}}}
exporters:
  otlp_grpc:
    endpoint: "{sink}"
    compression: none
    tls: {{insecure: true}}
    sending_queue:
      queue_size: 100000000
      sizer: bytes
      batch: {{flush_timeout: 200ms, min_size: 1000000, max_size: 3500000, sizer: bytes}}
service:
  telemetry:
    logs: {{level: warn}}
    metrics: {{level: none}}
  pipelines:
    traces:
      receivers: [otlp]
      processors: [tail_sampling]
      exporters: [otlp_grpc]
"#
    )
}
