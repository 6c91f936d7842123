//! Every metric, described once: name, kind, labels, unit, help.
//!
//! Those that start with `process_` have the names that the client libraries of Prometheus use.
//!
//! Registration takes names and help from here, and the reference page is written from it by
//! `crate::reference`. To add a metric: one line here, and its handle in `Metrics`. A test fails
//! where a described metric is not in a scrape.

#![expect(clippy::disallowed_macros, reason = "handles are made of descriptions here alone")]
#![cfg_attr(
    not(test),
    expect(dead_code, reason = "units and values of labels are for the reference page")
)]

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

use super::{
    connections::{CLOSED, ORIGINS, TRANSPORTS},
    policies::{DROPPED, EFFECTS},
    reasons::{FAILED, REFUSED, REFUSED_SPANS},
};

/// A metric.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Metric {
    /// With the prefix.
    pub(crate) name: &'static str,
    pub(crate) kind: MetricKind,
    pub(crate) labels: &'static [Label],
    /// What is counted or measured, such as `spans`; empty where the name says it.
    pub(crate) unit: &'static str,
    pub(crate) help: &'static str,
}

/// A label and the values that it can have; none where they are named by the configuration.
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
    /// The counter with these values of its labels, at 0.
    pub(super) fn counter<const N: usize>(&self, values: [&str; N]) -> Counter {
        counter!(self.name, self.labelled(values))
    }

    /// The gauge with these values of its labels.
    pub(super) fn gauge<const N: usize>(&self, values: [&str; N]) -> Gauge {
        gauge!(self.name, self.labelled(values))
    }

    fn labelled<const N: usize>(&self, values: [&str; N]) -> Vec<metrics::Label> {
        assert_eq!(self.labels.len(), N, "{} has a value for each label", self.name);
        let labels = self.labels.iter().zip(values);
        labels.map(|(label, value)| metrics::Label::new(label.name, value.to_owned())).collect()
    }
}

/// Tells the recorder in force the help of all counters and gauges.
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

/// Constants, and a list of those with one prefix.
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
        "Spans acknowledged, without those rejected; and those that came back after a restart \
         (replay).";
    REFUSED_SPANS_TOTAL = Counter "receiver_refused_spans_total"
        [TRANSPORT, reason(&REFUSED_SPANS)] "spans"
        "Spans rejected inside an accepted request: with a malformed id, or a resource or scope \
         over a quarter of max_request_size_kib.";
    REFUSED_REQUESTS = Counter "receiver_refused_requests_total"
        [TRANSPORT, reason(&REFUSED)] "requests"
        "Requests of which nothing was consumed.";
    EMPTY_REQUESTS = Counter "receiver_empty_requests_total" [TRANSPORT] "requests"
        "Requests answered with success that carry bytes but no span.";
    REQUESTS = Counter "receiver_requests_total" [TRANSPORT, CODE] "requests"
        "Requests answered, by gRPC code or HTTP status.";
    CONNECTIONS = Gauge "receiver_connections" [TRANSPORT] "connections"
        "Open connections of senders.";
    CONNECTIONS_CLOSED = Counter "receiver_connections_closed_total"
        [TRANSPORT, reason(&CLOSED)] "connections"
        "Connections of senders that were closed, by what closed them.";
    HANDSHAKE_FAILURES = Counter "receiver_tls_handshake_failures_total" [TRANSPORT] "connections"
        "Connections that never became TLS connections.";
    TRACES_KEPT = Counter "traces_kept_total" [POLICY] "traces"
        "Traces kept, by the policy that is credited.";
    TRACES_DROPPED = Counter "traces_dropped_total" [POLICY] "traces"
        "Traces dropped, by the policy that is credited.";
    SPANS_KEPT = Counter "spans_kept_total" [POLICY] "spans"
        "Spans kept, late ones under the policy of their trace.";
    SPANS_DROPPED = Counter "spans_dropped_total" [POLICY, reason(&DROPPED)] "spans"
        "Spans dropped: with their trace, after it, or over its byte cap.";
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
        "When a policy stops matching anything, in Unix seconds; only of policies with `expires`.";
    BUDGET_KEYS = Gauge "budget_keys" [POLICY] "kinds"
        "Kinds of traces that a budget tells apart now.";
    BUDGET_LIMIT_SPANS = Gauge "budget_limit_spans_per_second" [POLICY] "spans per second"
        "What a budget in spans lets all kinds together keep: its `spans_per_second`.";
    BUDGET_LIMIT_BYTES = Gauge "budget_limit_bytes_per_second" [POLICY] "bytes per second"
        "What a budget in bytes lets all kinds together keep: its `bytes_per_second`.";
    BUDGET_LEVEL_SPANS = Gauge "budget_level_spans_per_second" [POLICY] "spans per second"
        "What a budget in spans lets each kind keep; the whole budget if no kind is held back.";
    BUDGET_LEVEL_BYTES = Gauge "budget_level_bytes_per_second" [POLICY] "bytes per second"
        "What a budget in bytes lets each kind keep; the whole budget if no kind is held back.";
    BUDGET_OVERFLOW = Counter "budget_overflow_traces_total" [POLICY] "traces"
        "Traces that found the table of kinds of a budget full, and share one kind.";
    RARE_KINDS = Gauge "rare_kinds" [POLICY] "kinds"
        "Kinds of traces in their interval, of a policy that is rare.";
    RARE_OVERFLOW = Counter "rare_overflow_traces_total" [POLICY] "traces"
        "Traces that found the table of kinds of a rare policy full, and got no guarantee.";
    DECISIONS = Counter "decisions_total" [TRIGGER] "traces"
        "Decisions, by what made the trace be decided then.";
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
        "Bytes held, of all kinds that count towards the limit.";
    MEMORY_LIMIT = Gauge "memory_limit_bytes" [] "bytes"
        "The memory limit.";
    MEMORY_OVERHEAD = Gauge "memory_overhead_bytes" [] "bytes"
        "Resident memory beyond what is held, at most a fifth of the limit; thresholds leave \
         room for it.";
    DECISIONS_FORGOTTEN = Counter "decisions_forgotten_early_total" [] "traces"
        "Decisions forgotten before decision_cache_ttl, since all of them may take a quarter of \
         the memory limit.";
    SPAN_METRICS_SPANS = Counter "span_metrics_spans_total" [] "spans"
        "Accepted spans that were counted in [span_metrics]: those of the chosen kinds.";
    SPAN_METRICS_SERIES = Gauge "span_metrics_series" [] "sets of labels"
        "Sets of labels in [span_metrics].";
    SPAN_METRICS_OVERFLOW = Counter "span_metrics_overflow_spans_total" [] "spans"
        "Spans counted in the series metric_overflow, since there was no room for their labels.";
    SPAN_METRICS_STALE_SERIES = Counter "span_metrics_stale_series_total" [] "sets of labels"
        "Sets of labels that left, since they got no span for stale_after.";
    SPAN_METRICS_STALE_SPANS = Counter "span_metrics_stale_spans_total" [] "spans"
        "Spans in sets of labels that have left.";
    STALLED = Counter "stalled_seconds_total" [] "seconds"
        "Time in which the process did not run, which traces do not age by.";
    SENT_SPANS = Counter "exporter_sent_spans_total" [] "spans"
        "Spans that the backend has accepted.";
    FAILED_SPANS = Counter "exporter_failed_spans_total" [reason(&FAILED)] "spans"
        "Kept spans that will never reach the backend, by reason.";
    QUEUE_SPANS = Gauge "exporter_queue_spans" [] "spans"
        "Kept spans that wait to be exported, those being retried included.";
    QUEUE_BYTES = Gauge "exporter_queue_bytes" [] "bytes"
        "Encoded bytes of the kept spans that wait to be exported.";
    QUEUE_CAPACITY = Gauge "exporter_queue_capacity_bytes" [] "bytes"
        "The most bytes the export queue takes.";
    REQUEST_DURATION = Histogram "exporter_request_duration_seconds" [CODE] "seconds"
        "Time from sending a request to the backend to its answer, by gRPC code or HTTP status.";
    RETRIES = Counter "exporter_retries_total" [CODE] "requests"
        "Export attempts that are made again, by the code that made them fail.";
    UNSTAMPED_SPANS = Counter "unstamped_spans_total" [] "spans"
        "Kept spans whose tracestate could not be stamped: it left as it came, repaired where it \
         was not UTF-8.";
    INCONSISTENT_SPANS = Counter "inconsistent_threshold_spans_total" [] "spans"
        "Kept spans whose incoming ot=th contradicted the randomness and was erased.";
    REPAIRED_STRINGS = Counter "repaired_strings_total" [] "strings"
        "Strings in kept spans that were not UTF-8 and were repaired.";
    REMOVED_LINKS = Counter "removed_links_total" [] "links"
        "Span links with ids of wrong length, removed from kept spans.";
    READY = Gauge "ready" [] "0 or 1"
        "Whether requests are taken, as /-/ready says.";
    RELOAD_SUCCESSFUL = Gauge "config_last_reload_successful" [] "0 or 1"
        "Whether the last load of the policies succeeded.";
    RELOAD_TIME = Gauge "config_last_reload_success_timestamp_seconds" [] "Unix seconds"
        "When the policies were last loaded, in Unix seconds.";
    CREDENTIALS_SUCCESSFUL = Gauge "credentials_last_reload_successful" [] "0 or 1"
        "Whether the certificates, keys and tokens in force are those of the files.";
    CERTIFICATE_EXPIRY = Gauge "tls_certificate_expiry_timestamp_seconds"
        [CERTIFICATE] "Unix seconds"
        "When a certificate that is shown to others ends, in Unix seconds.";
    DURABILITY_BYTES = Gauge "durability_bytes" [LOG] "bytes"
        "Bytes that the logs of [durability] take on disk.";
    DURABILITY_ERRORS = Counter "durability_errors_total" [LOG] "errors"
        "Writes, syncs and removals that failed in the directory of [durability].";
    DURABILITY_DAMAGED = Counter "durability_damaged_records_total" [] "records"
        "Records in the directory of [durability] that could not be read at the start, and \
         places where files are missing.";
    DURABILITY_SYNC = Histogram "durability_sync_seconds" [] "seconds"
        "Time that a sync of the logs of [durability] took; only with mode = power.";
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
