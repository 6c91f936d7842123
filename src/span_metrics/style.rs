//! The two styles: names of metrics and labels, and bounds of buckets.
//!
//! Sources: `modules/generator/processor/spanmetrics` of grafana/tempo; the connector `spanmetrics`
//! of opentelemetry-collector-contrib, with the unit `s`, under the names that the Collector's
//! Prometheus exporters give its metrics.

/// The style of names, labels and buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Tempo's metrics-generator.
    Tempo,
    /// The Collector's `spanmetrics` connector.
    Connector,
}

/// The most buckets of a histogram, including the bucket above the last bound.
pub(super) const BUCKETS_MAX: usize = 17;

/// 2 ms, doubled 13 times.
const TEMPO: [u64; 14] = [2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192, 16_384];
const CONNECTOR: [u64; 16] =
    [2, 4, 6, 8, 10, 50, 100, 200, 400, 800, 1_000, 1_400, 2_000, 5_000, 10_000, 15_000];

/// A metric of a style.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Calls,
    Durations,
    Sizes,
}

impl Style {
    /// The labels that every series has: service, name, kind and status.
    pub(crate) fn labels(self) -> [&'static str; 4] {
        match self {
            Style::Tempo => ["service", "span_name", "span_kind", "status_code"],
            Style::Connector => ["service_name", "span_name", "span_kind", "status_code"],
        }
    }

    /// The label of an exemplar.
    pub(super) fn exemplar_label(self) -> &'static str {
        match self {
            Style::Tempo => "traceID",
            Style::Connector => "trace_id",
        }
    }

    /// The metrics in the order in which they are shown. The connector has no metric of sizes.
    pub(super) fn families(self) -> &'static [Family] {
        match self {
            Style::Tempo => &[Family::Calls, Family::Durations, Family::Sizes],
            Style::Connector => &[Family::Calls, Family::Durations],
        }
    }

    /// The name of a metric, without the `_total` of counters.
    pub(super) fn name(self, family: Family) -> &'static str {
        match (self, family) {
            (Style::Tempo, Family::Calls) => "traces_spanmetrics_calls",
            (Style::Tempo, Family::Durations) => "traces_spanmetrics_latency",
            (_, Family::Sizes) => "traces_spanmetrics_size",
            (Style::Connector, Family::Calls) => "traces_span_metrics_calls",
            (Style::Connector, Family::Durations) => "traces_span_metrics_duration_seconds",
        }
    }

    /// The upper bounds of the buckets in milliseconds, without the last bucket, which has none.
    pub(super) fn bounds_millis(self) -> &'static [u64] {
        match self {
            Style::Tempo => &TEMPO,
            Style::Connector => &CONNECTOR,
        }
    }

    /// The index of the bucket for a duration.
    pub(super) fn bucket(self, nanos: u64) -> usize {
        self.bounds_millis().partition_point(|millis| millis * 1_000_000 < nanos)
    }
}

/// The label for an attribute: characters that a label cannot have, such as dots, become
/// underscores, and `key_` is added before a leading digit, as in OpenTelemetry's rules for
/// Prometheus.
pub(crate) fn label_of(attribute: &str) -> String {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let label: String = attribute.chars().map(|c| if is_fine(c) { c } else { '_' }).collect();
    if label.starts_with(|c: char| c.is_ascii_digit()) { format!("key_{label}") } else { label }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_belong_to_the_bucket_below() {
        let nanos = [0, 2_000_000, 2_000_001, 4_000_000, 16_384_000_000, 16_384_000_001, u64::MAX];
        assert_eq!(nanos.map(|nanos| Style::Tempo.bucket(nanos)), [0, 0, 1, 1, 13, 14, 14]);
        assert_eq!(Style::Connector.bucket(15_000_000_001), 16);
        for style in [Style::Tempo, Style::Connector] {
            assert!(style.bounds_millis().len() < BUCKETS_MAX);
            assert!(style.bounds_millis().is_sorted());
        }
    }

    #[test]
    fn attributes_become_labels() {
        let labels = ["http.route", "a-b/c", "2xx", "größe", "ok_1"].map(label_of);
        assert_eq!(labels, ["http_route", "a_b_c", "key_2xx", "gr__e", "ok_1"]);
    }
}
