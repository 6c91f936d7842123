//! The values that are read at a scrape, not counted.

use metrics::Gauge;

use super::{
    LOGS, Readings,
    described::{self, Metric},
};

pub(super) struct Gauges {
    window: [Gauge; 3],
    memory: [Gauge; 3],
    queue: [Gauge; 3],
    ready: Gauge,
    /// Whether the last reload succeeded, and the time of the last successful one.
    pub(super) reload: [Gauge; 2],
    pub(super) credentials: Gauge,
    span_metrics_series: Gauge,
    durability: [Gauge; 3],
}

impl Gauges {
    pub(super) fn register() -> Self {
        let gauge = |metric: Metric| metric.gauge([]);
        Gauges {
            window: [described::WINDOW_TRACES, described::WINDOW_SPANS, described::WINDOW_BYTES]
                .map(gauge),
            memory: [described::MEMORY_USED, described::MEMORY_LIMIT, described::MEMORY_OVERHEAD]
                .map(gauge),
            queue: [described::QUEUE_SPANS, described::QUEUE_BYTES, described::QUEUE_CAPACITY]
                .map(gauge),
            ready: gauge(described::READY),
            reload: [described::RELOAD_SUCCESSFUL, described::RELOAD_TIME].map(gauge),
            credentials: gauge(described::CREDENTIALS_SUCCESSFUL),
            span_metrics_series: gauge(described::SPAN_METRICS_SERIES),
            durability: LOGS.map(|log| described::DURABILITY_BYTES.gauge([log])),
        }
    }

    pub(super) fn set(&self, readings: &Readings) {
        self.ready.set(f64::from(u8::from(readings.is_ready)));
        let window = readings.buffered;
        let values = [window.traces, window.spans, window.bytes];
        let set = |gauges: &[Gauge], values: &[f64]| {
            gauges.iter().zip(values).for_each(|(gauge, value)| gauge.set(*value));
        };
        set(&self.window, &values.map(|value| value as f64));
        set(&self.memory, &readings.memory.map(|bytes| bytes as f64));
        set(&self.durability, &readings.durability.0.map(|bytes| bytes as f64));
        let (bytes, capacity) = readings.queue_bytes;
        self.span_metrics_series.set(readings.span_metrics.series as f64);
        set(&self.queue, &[readings.queue_spans as f64, bytes as f64, capacity as f64]);
    }
}
