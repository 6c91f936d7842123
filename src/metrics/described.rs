//! The description of every metric: name, kind, labels, unit, help.
//!
//! Metrics that start with `process_` have the names that Prometheus client libraries use.
//!
//! Registration takes names and help from here, and `crate::reference` writes the reference page
//! from it. To add a metric, add one line here and its handle in `Metrics`. A test fails if a
//! described metric is missing from a scrape.

#![expect(clippy::disallowed_macros, reason = "handles are made of descriptions here alone")]
#![cfg_attr(
    not(test),
    expect(dead_code, reason = "units and values of labels are for the reference page")
)]

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

use super::{
    connections::{CLOSED, ORIGINS, SENT_BY, TRANSPORTS},
    policies::{DROPPED, EFFECTS},
    reasons::{FAILED, REFUSED, REFUSED_SPANS},
};

/// The description of a metric.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Metric {
    /// The name, with the prefix.
    pub(crate) name: &'static str,
    pub(crate) kind: MetricKind,
    pub(crate) labels: &'static [Label],
    /// The unit or the thing counted, such as `spans`; empty if the name says it.
    pub(crate) unit: &'static str,
    pub(crate) help: &'static str,
}

/// A label and its possible values; empty if the configuration names them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Label {
    pub(crate) name: &'static str,
    pub(crate) values: &'static [&'static str],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

impl Metric {
    /// The counter with these label values, at 0.
    pub(super) fn counter<const N: usize>(&self, values: [&str; N]) -> Counter {
        counter!(self.name, self.labelled(values))
    }

    /// The gauge with these label values.
    pub(super) fn gauge<const N: usize>(&self, values: [&str; N]) -> Gauge {
        gauge!(self.name, self.labelled(values))
    }

    fn labelled<const N: usize>(&self, values: [&str; N]) -> Vec<metrics::Label> {
        assert_eq!(self.labels.len(), N, "{} has a value for each label", self.name);
        let labels = self.labels.iter().zip(values);
        labels.map(|(label, value)| metrics::Label::new(label.name, value.to_owned())).collect()
    }
}

/// Registers the help of all counters and gauges with the current recorder.
pub(super) fn describe() {
    for Metric { name, kind, help, .. } in all() {
        match kind {
            MetricKind::Counter => describe_counter!(*name, *help),
            MetricKind::Gauge => describe_gauge!(*name, *help),
            MetricKind::Histogram => {}
        }
    }
}

/// Every metric, in the order in which they are shown.
pub(crate) fn all() -> impl Iterator<Item = &'static Metric> {
    TAILWATER.iter().chain(PROCESS)
}

/// Defines the metrics with one prefix as constants, and a list of them.
macro_rules! metrics {
    ($list:ident $prefix:literal
     $($id:ident = $kind:ident $name:literal [$($label:expr),*] $unit:literal $help:literal;)*) => {
        $(pub(super) const $id: Metric = Metric {
            name: concat!($prefix, $name),
            kind: MetricKind::$kind,
            labels: &[$($label),*],
            unit: $unit,
            help: $help,
        };)*
        const $list: &[Metric] = &[$($id),*];
    };
}

const TRANSPORT: Label = Label { name: "transport", values: &TRANSPORTS };
const SENDER: Label = Label { name: "transport", values: &SENT_BY };
const ORIGIN: Label = Label { name: "transport", values: &ORIGINS };
const LOG: Label = Label { name: "log", values: &["intake", "outbox", "decisions"] };
const POLICY: Label = Label { name: "policy", values: &[] };
const CODE: Label = Label { name: "code", values: &[] };
const DECISION: Label = Label { name: "decision", values: &["kept", "dropped"] };
const TRIGGER: Label = Label {
    name: "trigger",
    values: &["decision_wait", "root_received", "memory", "trace_limit", "shutdown"],
};
const TASK: Label = Label { name: "task", values: &[] };
const VERSION: Label = Label { name: "version", values: &[] };
const CERTIFICATE: Label =
    Label { name: "certificate", values: &["receiver", "exporter", "telemetry"] };

const fn reason(values: &'static [&'static str]) -> Label {
    Label { name: "reason", values }
}

#[rustfmt::skip]
metrics! {
    TAILWATER "tailwater_"
    ACCEPTED_SPANS = Counter "receiver_accepted_spans_total" [ORIGIN] "spans"
        "Spans acknowledged to senders, without rejected ones; spans replayed after a restart \
         (replay); and spans read from Kafka above the commit (kafka).";
    REFUSED_SPANS_TOTAL = Counter "receiver_refused_spans_total"
        [SENDER, reason(&REFUSED_SPANS)] "spans"
        "Spans rejected inside an accepted request: with a malformed id, or a resource or scope \
         over a quarter of max_request_size_kib.";
    REFUSED_REQUESTS = Counter "receiver_refused_requests_total"
        [TRANSPORT, reason(&REFUSED)] "requests"
        "Requests refused as a whole: none of their spans was accepted.";
    EMPTY_REQUESTS = Counter "receiver_empty_requests_total" [TRANSPORT] "requests"
        "Requests answered with success that carry bytes but no span.";
    REQUESTS = Counter "receiver_requests_total" [TRANSPORT, CODE] "requests"
        "Requests answered, by gRPC code or HTTP status.";
    CONNECTIONS = Gauge "receiver_connections" [TRANSPORT] "connections"
        "Open connections of senders.";
    CONNECTIONS_CLOSED = Counter "receiver_connections_closed_total"
        [TRANSPORT, reason(&CLOSED)] "connections"
        "Connections of senders that were closed, by reason.";
    HANDSHAKE_FAILURES = Counter "receiver_tls_handshake_failures_total" [TRANSPORT] "connections"
        "Connections whose TLS handshake failed or did not finish in time.";
    TRACES_KEPT = Counter "traces_kept_total" [POLICY] "traces"
        "Traces kept, by the credited policy.";
    TRACES_DROPPED = Counter "traces_dropped_total" [POLICY] "traces"
        "Traces dropped, by the credited policy.";
    SPANS_KEPT = Counter "spans_kept_total" [POLICY] "spans"
        "Spans kept; late spans count for the policy of their trace.";
    SPANS_DROPPED = Counter "spans_dropped_total" [POLICY, reason(&DROPPED)] "spans"
        "Spans dropped: with their trace, as late spans of a dropped trace, or above the byte cap \
         of a trace.";
    POLICY_MATCHES = Counter "policy_matches_total" [POLICY] "traces"
        "Decided traces that a policy matched, credited or not.";
    SHADOW_TRACES = Counter "shadow_traces_total"
        [POLICY, Label { name: "effect", values: &EFFECTS }] "traces"
        "Decided traces that a shadow policy matched, by what it would have changed.";
    SHADOW_SPANS = Counter "shadow_spans_total"
        [POLICY, Label { name: "effect", values: &EFFECTS }] "spans"
        "Spans of traces that a shadow policy matched, late ones included, by what it would have \
         changed.";
    POLICY_EXPIRY = Gauge "policy_expiry_timestamp_seconds" [POLICY] "Unix seconds"
        "When a policy expires, in Unix seconds; only for policies with `expires`.";
    BUDGET_KEYS = Gauge "budget_keys" [POLICY] "kinds"
        "Kinds of traces that a budget currently distinguishes.";
    BUDGET_LIMIT_SPANS = Gauge "budget_limit_spans_per_second" [POLICY] "spans per second"
        "The rate that a budget in spans allows all kinds together: its `spans_per_second`.";
    BUDGET_LIMIT_BYTES = Gauge "budget_limit_bytes_per_second" [POLICY] "bytes per second"
        "The rate that a budget in bytes allows all kinds together: its `bytes_per_second`.";
    BUDGET_LEVEL_SPANS = Gauge "budget_level_spans_per_second" [POLICY] "spans per second"
        "The rate that a budget in spans allows each kind; the whole budget if no kind is held \
         back.";
    BUDGET_LEVEL_BYTES = Gauge "budget_level_bytes_per_second" [POLICY] "bytes per second"
        "The rate that a budget in bytes allows each kind; the whole budget if no kind is held \
         back.";
    BUDGET_OVERFLOW = Counter "budget_overflow_traces_total" [POLICY] "traces"
        "Traces that share one kind, because the table of kinds of a budget was full.";
    RARE_KINDS = Gauge "rare_kinds" [POLICY] "kinds"
        "Kinds of traces whose interval is running, for policies of type rare.";
    RARE_OVERFLOW = Counter "rare_overflow_traces_total" [POLICY] "traces"
        "Traces without a guarantee, because the table of kinds of a rare policy was full.";
    DECISIONS = Counter "decisions_total" [TRIGGER] "traces"
        "Decisions, by what triggered them.";
    LATE_SPANS = Counter "late_spans_total" [DECISION] "spans"
        "Spans that came after their trace's decision, by that decision.";
    LATE_ERROR_SPANS = Counter "late_error_spans_total" [DECISION] "spans"
        "Late spans with the status ERROR, by the decision they follow.";
    DECISION_LAG = Histogram "decision_lag_seconds" [] "seconds"
        "Time from the moment a trace was due to its decision.";
    TRACE_DURATION = Histogram "trace_duration_seconds" [] "seconds"
        "Latest end minus earliest start of decided traces.";
    TRACE_SPANS = Histogram "trace_spans" [] "spans"
        "Spans of decided traces.";
    WINDOW_TRACES = Gauge "window_traces" [] "traces"
        "Undecided traces.";
    WINDOW_SPANS = Gauge "window_spans" [] "spans"
        "Spans of undecided traces.";
    WINDOW_BYTES = Gauge "window_bytes" [] "bytes"
        "Encoded bytes of the spans of undecided traces.";
    MEMORY_USED = Gauge "memory_used_bytes" [] "bytes"
        "Memory in use that counts towards the limit.";
    MEMORY_LIMIT = Gauge "memory_limit_bytes" [] "bytes"
        "The memory limit.";
    MEMORY_OVERHEAD = Gauge "memory_overhead_bytes" [] "bytes"
        "Resident memory that memory_used_bytes does not count, at most a fifth of the limit; the \
         thresholds leave room for it.";
    DECISIONS_FORGOTTEN = Counter "decisions_forgotten_early_total" [] "traces"
        "Decisions forgotten before decision_cache_ttl, because the decision cache had reached a \
         quarter of the memory limit.";
    SPAN_METRICS_SPANS = Counter "span_metrics_spans_total" [] "spans"
        "Accepted spans that were counted in [span_metrics]: those of the chosen kinds. Spans that \
         come back after a restart (transport replay) are not counted again.";
    SPAN_METRICS_SERIES = Gauge "span_metrics_series" [] "sets of labels"
        "Sets of labels in [span_metrics].";
    SPAN_METRICS_OVERFLOW = Counter "span_metrics_overflow_spans_total" [] "spans"
        "Spans counted in the series metric_overflow, because there was no room for their set of \
         labels.";
    SPAN_METRICS_STALE_SERIES = Counter "span_metrics_stale_series_total" [] "sets of labels"
        "Sets of labels that were removed, because they got no span for stale_after.";
    SPAN_METRICS_STALE_SPANS = Counter "span_metrics_stale_spans_total" [] "spans"
        "Spans of sets of labels that were removed.";
    STALLED = Counter "stalled_seconds_total" [] "seconds"
        "Time in which the process did not run. Traces do not age during this time.";
    SENT_SPANS = Counter "exporter_sent_spans_total" [] "spans"
        "Spans that the backend has accepted.";
    FAILED_SPANS = Counter "exporter_failed_spans_total" [reason(&FAILED)] "spans"
        "Kept spans that will never reach the backend, by reason.";
    QUEUE_SPANS = Gauge "exporter_queue_spans" [] "spans"
        "Kept spans that wait to be exported, including those being retried.";
    QUEUE_BYTES = Gauge "exporter_queue_bytes" [] "bytes"
        "Encoded bytes of the kept spans that wait to be exported.";
    QUEUE_CAPACITY = Gauge "exporter_queue_capacity_bytes" [] "bytes"
        "The size limit of the export queue.";
    REQUEST_DURATION = Histogram "exporter_request_duration_seconds" [CODE] "seconds"
        "Time from sending a request to the backend to its answer, by gRPC code or HTTP status.";
    RETRIES = Counter "exporter_retries_total" [CODE] "requests"
        "Failed export attempts that are retried, by their code.";
    UNSTAMPED_SPANS = Counter "unstamped_spans_total" [] "spans"
        "Kept spans whose tracestate could not be stamped: it was sent unchanged, except for \
         repairs of invalid UTF-8.";
    INCONSISTENT_SPANS = Counter "inconsistent_threshold_spans_total" [] "spans"
        "Kept spans whose incoming ot=th contradicted the randomness and was erased.";
    REPAIRED_STRINGS = Counter "repaired_strings_total" [] "strings"
        "Strings in kept spans that were not UTF-8 and were repaired.";
    REMOVED_LINKS = Counter "removed_links_total" [] "links"
        "Span links with ids of wrong length, removed from kept spans.";
    READY = Gauge "ready" [] "0 or 1"
        "Whether requests are accepted, as for /-/ready.";
    RELOAD_SUCCESSFUL = Gauge "config_last_reload_successful" [] "0 or 1"
        "Whether the last load of the policies succeeded.";
    RELOAD_TIME = Gauge "config_last_reload_success_timestamp_seconds" [] "Unix seconds"
        "When the policies were last loaded, in Unix seconds.";
    CREDENTIALS_SUCCESSFUL = Gauge "credentials_last_reload_successful" [] "0 or 1"
        "Whether the certificates, keys and tokens in force are those of the files.";
    CERTIFICATE_EXPIRY = Gauge "tls_certificate_expiry_timestamp_seconds"
        [CERTIFICATE] "Unix seconds"
        "When a certificate of the service expires, in Unix seconds.";
    DURABILITY_BYTES = Gauge "durability_bytes" [LOG] "bytes"
        "Bytes that the logs of [durability] take on disk.";
    DURABILITY_ERRORS = Counter "durability_errors_total" [LOG] "errors"
        "Writes, syncs and removals that failed in the directory of [durability].";
    DURABILITY_DAMAGED = Counter "durability_damaged_records_total" [] "records"
        "Records in the directory of [durability] that could not be read at the start, and \
         places where files are missing.";
    DURABILITY_SYNC = Histogram "durability_sync_seconds" [] "seconds"
        "Duration of a sync of the [durability] logs; only with mode = power.";
    HANDED_OVER = Counter "spans_handed_over_total" [] "spans"
        "Undecided spans that left with their partition of the Kafka topic: the next owner reads \
         them again.";
    KAFKA_RECORDS = Counter "kafka_records_total" [] "records"
        "Records read from Kafka, including those that are read again.";
    KAFKA_UNDECODABLE = Counter "kafka_undecodable_records_total" [] "records"
        "Records that were skipped: null, undecodable, or too large for the memory limit.";
    KAFKA_LOST = Counter "kafka_lost_records_total" [] "records"
        "Records that retention had removed before they were read.";
    KAFKA_PARTITIONS = Gauge "kafka_partitions" [] "partitions"
        "Partitions that this instance reads.";
    KAFKA_LAG = Gauge "kafka_lag_records" [] "records"
        "Records in these partitions that are not read yet.";
    KAFKA_COMMIT_AGE = Gauge "kafka_commit_age_seconds" [] "seconds"
        "The longest time for which the commit of a partition has been behind without moving.";
    KAFKA_REBALANCES = Counter "kafka_rebalances_total" [] "rebalances"
        "Changes of the partitions of this instance.";
    KAFKA_ERRORS = Counter "kafka_errors_total" [] "errors"
        "Errors that the Kafka client has reported: connections, credentials, a missing topic, \
         commits.";
    TASK_RESTARTS = Counter "task_restarts_total" [TASK] "panics"
        "Panics that were contained, by task.";
    LOG_LINES_LOST = Counter "log_lines_lost_total" [] "lines"
        "Log lines that could not be written to standard error.";
    BUILD_INFO = Gauge "build_info" [VERSION] "1"
        "1, with the version of this binary.";
}

#[rustfmt::skip]
metrics! {
    PROCESS "process_"
    CPU = Counter "cpu_seconds_total" [] "seconds"
        "CPU time of the process, user and system.";
    RESIDENT = Gauge "resident_memory_bytes" [] "bytes"
        "Resident memory of the process.";
    OPEN_FDS = Gauge "open_fds" [] "descriptors"
        "Open file descriptors.";
    MAX_FDS = Gauge "max_fds" [] "descriptors"
        "The most file descriptors that may be open.";
    START_TIME = Gauge "start_time_seconds" [] "Unix seconds"
        "When the service started, in Unix seconds.";
}
