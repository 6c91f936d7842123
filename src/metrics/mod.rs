//! Every metric: its name, labels and meaning, and the handles that stages count with.
//!
//! One recorder a service, not the process's global one, so that services that share a test binary
//! keep their ledgers apart. All series exist at 0 from the start, but for the end of certificates,
//! of which there may be none; no label takes a value that traffic can choose. Stages add up
//! locally and count once a request or a chunk of decisions.
//!
//! Histograms are kept here as bucket arrays and written after what the exporter crate renders: its
//! own would queue every sample until the next scrape, and render summaries unless told otherwise.

#![expect(clippy::disallowed_macros, reason = "this is the module that names every metric")]

mod codes;
mod connections;
mod expiries;
mod histogram;
mod policies;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use metrics::{
    Counter, Gauge, counter, describe_counter, describe_gauge, gauge, with_local_recorder,
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

pub use self::{
    codes::ExportCode,
    connections::{Closed, Transport},
};
use self::{
    connections::{Connections, TRANSPORTS},
    expiries::Expiries,
    histogram::Histogram,
    policies::Policies,
};
use crate::{
    clock,
    grpc::{code_name, codes},
    otlp::encode::Faults,
    policy::Plan,
    sampler::{Buffered, Decided, Ingested},
    supervise::Task,
    trace::Trigger,
};

const SECONDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const TRACE_SECONDS: [f64; 17] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    120.0, 300.0,
];
const TRACE_SPANS: [f64; 16] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0,
    16384.0, 32768.0,
];

/// HTTP answers that are counted; any other is counted as 500.
const HTTP_CODES: [u16; 10] = [200, 204, 400, 401, 404, 405, 413, 415, 500, 503];

/// Why a whole request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedBecause {
    /// The memory limit.
    Memory = 0,
    /// The sending queue is nearly full.
    QueueFull = 1,
    /// The service is shutting down.
    Draining = 2,
    /// Larger than a message may be.
    TooLarge = 3,
    /// Undecodable.
    Malformed = 4,
    /// Missing or wrong credentials.
    Unauthenticated = 5,
    /// Its body, or the turn that a large one waits for, did not come in time.
    Timeout = 6,
    /// More headers or gRPC metadata than is taken.
    HeadersTooLarge = 7,
}

const REFUSED: [&str; 8] = [
    "memory",
    "queue_full",
    "draining",
    "too_large",
    "malformed",
    "unauthenticated",
    "timeout",
    "headers_too_large",
];

/// Why spans were refused of a request that was taken: `too_large` are those whose resource or
/// scope is larger than one may be.
const REFUSED_SPANS: [&str; 2] = ["invalid_id", "too_large"];

/// Why kept spans did not reach the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailedBecause {
    /// The sending queue was full, with `overflow = "drop"`.
    QueueFull = 0,
    /// The backend refused them for good.
    Rejected = 1,
    /// The backend took the request but not these.
    PartialSuccess = 2,
    /// They cannot be made valid.
    Malformed = 3,
    /// The backend calls the request too large.
    TooLarge = 4,
    /// `max_elapsed_time` ran out.
    RetryExpired = 5,
    /// The service stopped first.
    Shutdown = 6,
}

const FAILED: [&str; 7] = [
    "queue_full",
    "rejected",
    "partial_success",
    "malformed",
    "too_large",
    "retry_expired",
    "shutdown",
];

/// Values that are read when scraped.
#[derive(Clone, Copy, Debug, Default)]
pub struct Readings {
    /// What the window holds.
    pub buffered: Buffered,
    /// Bytes held, the limit, and the overhead.
    pub memory: [usize; 3],
    /// Spans waiting to be exported or being retried.
    pub queue_spans: u64,
    /// Their bytes, and the most there may be.
    pub queue_bytes: (usize, usize),
    /// Panics by task.
    pub panics: [u64; Task::ALL.len()],
    /// How long the process did not run, longer than a moment at a time.
    pub stalled: Duration,
    /// Lines of the log that could not be written.
    pub log_lines_lost: u64,
}

/// The handles.
pub struct Metrics {
    /// Registers the series of policies that come with a reload.
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
    accepted: [Counter; 2],
    refused_spans: [[Counter; 2]; 2],
    refused_requests: [[Counter; REFUSED.len()]; 2],
    empty_requests: [Counter; 2],
    connections: Connections,
    grpc_requests: Vec<Counter>,
    not_grpc_requests: Counter,
    handshake_failures: [Counter; 2],
    http_requests: Vec<Counter>,
    policies: Policies,
    triggers: [Counter; 5],
    late_spans: [Counter; 2],
    late_errors: [Counter; 2],
    sent: Counter,
    failed: [Counter; 7],
    failed_in_all: AtomicU64,
    retries: Vec<Counter>,
    faults: [Counter; 4],
    panics: [Counter; Task::ALL.len()],
    stalled: Counter,
    log_lines_lost: Counter,
    forgotten: Counter,
    gauges: Gauges,
    expiries: Expiries,
    lag: Histogram,
    duration: Histogram,
    spans: Histogram,
    request_duration: Vec<Histogram>,
}

struct Gauges {
    window: [Gauge; 3],
    memory: [Gauge; 3],
    queue: [Gauge; 3],
    /// Whether the last one succeeded, and when one last did.
    reload: [Gauge; 2],
    credentials: Gauge,
}

impl Metrics {
    /// All series of a service with these policies, at 0.
    pub fn new(policies: &[String]) -> Self {
        let recorder = Arc::new(PrometheusBuilder::new().build_recorder());
        let metrics = with_local_recorder(&*recorder, || {
            describe();
            Metrics::register(Arc::clone(&recorder))
        });
        metrics.add_policies(policies);
        metrics.reloaded(true);
        metrics.credentials_in_force(true);
        metrics
    }

    fn register(recorder: Arc<PrometheusRecorder>) -> Self {
        let per_transport = |name: &'static str| {
            TRANSPORTS.map(|transport| counter!(name, "transport" => transport))
        };
        gauge!("tailwater_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        let by_decision =
            |name: &'static str| ["kept", "dropped"].map(|d| counter!(name, "decision" => d));
        Metrics {
            handle: recorder.handle(),
            recorder,
            accepted: per_transport("tailwater_receiver_accepted_spans_total"),
            refused_spans: TRANSPORTS.map(|transport| {
                let name = "tailwater_receiver_refused_spans_total";
                REFUSED_SPANS.map(|why| counter!(name, "transport" => transport, "reason" => why))
            }),
            refused_requests: TRANSPORTS.map(|transport| {
                let name = "tailwater_receiver_refused_requests_total";
                REFUSED.map(|why| counter!(name, "transport" => transport, "reason" => why))
            }),
            empty_requests: per_transport("tailwater_receiver_empty_requests_total"),
            connections: Connections::register(),
            grpc_requests: codes().map(|code| requests("grpc", code_name(code).into())).collect(),
            not_grpc_requests: requests("grpc", "415".into()),
            handshake_failures: per_transport("tailwater_receiver_tls_handshake_failures_total"),
            http_requests: HTTP_CODES.map(|code| requests("http", code.to_string())).into(),
            policies: Policies::register(),
            triggers: Trigger::ALL
                .map(|t| counter!("tailwater_decisions_total", "trigger" => t.as_str())),
            late_spans: by_decision("tailwater_late_spans_total"),
            late_errors: by_decision("tailwater_late_error_spans_total"),
            sent: counter!("tailwater_exporter_sent_spans_total"),
            failed: FAILED
                .map(|why| counter!("tailwater_exporter_failed_spans_total", "reason" => why)),
            failed_in_all: AtomicU64::new(0),
            retries: ExportCode::all()
                .map(|c| counter!("tailwater_exporter_retries_total", "code" => c.as_str()))
                .collect(),
            faults: [
                counter!("tailwater_unstamped_spans_total"),
                counter!("tailwater_inconsistent_threshold_spans_total"),
                counter!("tailwater_repaired_strings_total"),
                counter!("tailwater_removed_links_total"),
            ],
            panics: Task::ALL
                .map(|task| counter!("tailwater_task_restarts_total", "task" => task.as_str())),
            stalled: counter!("tailwater_stalled_seconds_total"),
            log_lines_lost: counter!("tailwater_log_lines_lost_total"),
            forgotten: counter!("tailwater_decisions_forgotten_early_total"),
            gauges: Gauges::register(),
            expiries: Expiries::default(),
            lag: Histogram::new("decision_lag_seconds", "", &SECONDS),
            duration: Histogram::new("trace_duration_seconds", "", &TRACE_SECONDS),
            spans: Histogram::new("trace_spans", "", &TRACE_SPANS),
            request_duration: ExportCode::all()
                .map(|c| Histogram::new("exporter_request_duration_seconds", c.as_str(), &SECONDS))
                .collect(),
        }
    }

    /// The series of policies that are new among all names since the start, at 0.
    pub fn add_policies(&self, names: &[String]) {
        with_local_recorder(&*self.recorder, || self.policies.add(names));
    }

    /// The plan that is about to decide: adds the series of what is new in it.
    pub fn policies_in_force(&self, plan: &Plan) {
        self.add_policies(plan.names());
        with_local_recorder(&*self.recorder, || {
            self.policies.add_shadows(plan.shadows(), plan.names());
        });
        self.expiries.set(plan);
    }

    /// The policies were loaded, at the start or again, or could not be.
    pub fn reloaded(&self, successful: bool) {
        self.gauges.reload[0].set(f64::from(u8::from(successful)));
        if successful {
            self.gauges.reload[1].set(clock::unix_millis() as f64 / 1e3);
        }
    }

    /// Whether the certificates, keys and tokens in force are those of the files.
    pub fn credentials_in_force(&self, all: bool) {
        self.gauges.credentials.set(f64::from(u8::from(all)));
    }

    /// The last second of a certificate that the service shows: as `receiver` or `exporter`. The
    /// series is there only where a certificate is, since 0 would be long ago.
    pub fn certificate_expires(&self, of: &'static str, unix_seconds: u64) {
        let name = "tailwater_tls_certificate_expiry_timestamp_seconds";
        let gauge = with_local_recorder(&*self.recorder, || gauge!(name, "certificate" => of));
        gauge.set(unix_seconds as f64);
    }

    /// A connection of a sender that is served.
    pub fn connection_opened(&self, transport: Transport) {
        self.connections.opened(transport);
    }

    /// The end of a connection that was served.
    pub fn connection_closed(&self, transport: Transport, why: Closed) {
        self.connections.closed(transport, why);
    }

    /// A connection that was closed at once, since too many are open.
    pub fn connection_turned_away(&self, transport: Transport) {
        self.connections.turned_away(transport, Closed::MaxConnections);
    }

    /// A connection that never became a TLS connection.
    pub fn handshake_failed(&self, transport: Transport) {
        self.handshake_failures[transport as usize].increment(1);
    }

    /// A request that was taken.
    pub fn accepted(&self, transport: Transport, ingested: &Ingested) {
        self.accepted[transport as usize].increment(ingested.accepted);
        let outsized = ingested.outsized.as_ref().map_or(0, |outsized| outsized.spans);
        let refused = &self.refused_spans[transport as usize];
        for (counter, spans) in refused.iter().zip([ingested.rejected, outsized]) {
            if spans > 0 {
                counter.increment(spans);
            }
        }
    }

    /// A request of which nothing was taken.
    pub fn refused(&self, transport: Transport, because: RefusedBecause) {
        self.refused_requests[transport as usize][because as usize].increment(1);
    }

    /// A request that was taken and carried bytes but no span.
    pub fn empty(&self, transport: Transport) {
        self.empty_requests[transport as usize].increment(1);
    }

    /// A request that was answered over gRPC.
    pub fn answered_grpc(&self, code: tonic::Code) {
        self.grpc_requests[code as usize].increment(1);
    }

    /// A request to the gRPC receiver that was not gRPC, answered 415.
    pub fn answered_not_grpc(&self) {
        self.not_grpc_requests.increment(1);
    }

    /// A request that was answered over HTTP.
    pub fn answered_http(&self, code: u16) {
        let place = |wanted| HTTP_CODES.iter().position(|&known| known == wanted);
        if let Some(index) = place(code).or_else(|| place(500)) {
            self.http_requests[index].increment(1);
        }
    }

    /// What was decided under one lock or while a request was taken in.
    pub fn decided(&self, decided: &Decided) {
        self.forgotten.increment(decided.forgotten);
        if decided.decisions.records.is_empty() && decided.late.is_empty() {
            return;
        }
        self.policies.count(decided);
        let mut triggers = [0; 5];
        for record in &decided.decisions.records {
            triggers[record.decision.trigger as usize] += 1;
        }
        for late in &decided.late {
            let place = usize::from(!late.verdict.kept);
            self.late_spans[place].increment(late.spans);
            self.late_errors[place].increment(late.errors);
        }
        for (counter, count) in self.triggers.iter().zip(triggers) {
            counter.increment(count);
        }
        let records = &decided.decisions.records;
        self.lag.observe(records.iter().map(|r| f64::from(r.lag_millis) / 1e3));
        self.duration.observe(records.iter().map(|r| r.duration_nanos as f64 / 1e9));
        self.spans.observe(records.iter().map(|r| f64::from(r.spans)));
    }

    /// What happened to kept spans while they were encoded.
    pub fn encoded(&self, faults: &Faults) {
        self.failed(FailedBecause::Malformed, faults.malformed_spans);
        let counts = [
            faults.unstamped_spans,
            faults.inconsistent_spans,
            faults.repaired_strings,
            faults.removed_links,
        ];
        for (counter, count) in self.faults.iter().zip(counts) {
            counter.increment(count);
        }
    }

    /// Spans that the backend has.
    pub fn sent(&self, spans: u64) {
        self.sent.increment(spans);
    }

    /// Kept spans that the backend will never have.
    pub fn failed(&self, because: FailedBecause, spans: u64) {
        self.failed[because as usize].increment(spans);
        self.failed_in_all.fetch_add(spans, Relaxed);
    }

    /// Kept spans that the backend will never have, for whatever reason.
    pub fn failed_in_all(&self) -> u64 {
        self.failed_in_all.load(Relaxed)
    }

    /// One attempt to export.
    pub fn exported(&self, code: ExportCode, took: Duration) {
        self.request_duration[code.index()].observe([took.as_secs_f64()]);
    }

    /// An attempt that will be made again.
    pub fn retried(&self, code: ExportCode) {
        self.retries[code.index()].increment(1);
    }

    /// The exposition format, version 0.0.4.
    pub fn render(&self, readings: &Readings) -> String {
        self.gauges.set(readings);
        for (counter, panics) in self.panics.iter().zip(readings.panics) {
            counter.absolute(panics);
        }
        self.stalled.absolute(readings.stalled.as_secs());
        self.log_lines_lost.absolute(readings.log_lines_lost);
        let mut text = self.handle.render();
        self.expiries.write(&mut text);
        for histogram in [&self.lag, &self.duration, &self.spans] {
            histogram.write_help(&mut text);
            histogram.write(&mut text);
        }
        self.request_duration[0].write_help(&mut text);
        for histogram in &self.request_duration {
            histogram.write(&mut text);
        }
        text
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").field("policies", &self.policies.len()).finish_non_exhaustive()
    }
}

fn requests(transport: &'static str, code: String) -> Counter {
    counter!("tailwater_receiver_requests_total", "transport" => transport, "code" => code)
}

impl Gauges {
    fn register() -> Self {
        Gauges {
            window: [
                gauge!("tailwater_window_traces"),
                gauge!("tailwater_window_spans"),
                gauge!("tailwater_window_bytes"),
            ],
            memory: [
                gauge!("tailwater_memory_used_bytes"),
                gauge!("tailwater_memory_limit_bytes"),
                gauge!("tailwater_memory_overhead_bytes"),
            ],
            queue: [
                gauge!("tailwater_exporter_queue_spans"),
                gauge!("tailwater_exporter_queue_bytes"),
                gauge!("tailwater_exporter_queue_capacity_bytes"),
            ],
            reload: [
                gauge!("tailwater_config_last_reload_successful"),
                gauge!("tailwater_config_last_reload_success_timestamp_seconds"),
            ],
            credentials: gauge!("tailwater_credentials_last_reload_successful"),
        }
    }

    fn set(&self, readings: &Readings) {
        let window = readings.buffered;
        let values = [window.traces, window.spans, window.bytes];
        let set = |gauges: &[Gauge], values: &[f64]| {
            gauges.iter().zip(values).for_each(|(gauge, value)| gauge.set(*value));
        };
        set(&self.window, &values.map(|value| value as f64));
        set(&self.memory, &readings.memory.map(|bytes| bytes as f64));
        let (bytes, capacity) = readings.queue_bytes;
        set(&self.queue, &[readings.queue_spans as f64, bytes as f64, capacity as f64]);
    }
}

#[rustfmt::skip]
fn describe() {
    describe_counter!("tailwater_receiver_accepted_spans_total", "Spans acknowledged, without those rejected.");
    describe_counter!("tailwater_receiver_refused_spans_total", "Spans rejected inside an accepted request: with a malformed id, or a resource or scope over a quarter of max_request_size_kib.");
    describe_counter!("tailwater_receiver_refused_requests_total", "Requests of which nothing was consumed.");
    describe_counter!("tailwater_receiver_empty_requests_total", "Requests answered with success that carry bytes but no span.");
    describe_counter!("tailwater_receiver_requests_total", "Requests answered, by gRPC code or HTTP status.");
    describe_counter!("tailwater_receiver_tls_handshake_failures_total", "Connections that never became TLS connections.");
    describe_counter!("tailwater_traces_kept_total", "Traces kept, by the policy that is credited.");
    describe_counter!("tailwater_traces_dropped_total", "Traces dropped, by the policy that is credited.");
    describe_counter!("tailwater_spans_kept_total", "Spans kept, late ones under the policy of their trace.");
    describe_counter!("tailwater_spans_dropped_total", "Spans dropped: with their trace, after it, or over its byte cap.");
    describe_counter!("tailwater_policy_matches_total", "Decided traces that a policy matched, credited or not.");
    describe_counter!("tailwater_shadow_traces_total", "Decided traces that a shadow policy matched, by what it would have changed.");
    describe_counter!("tailwater_shadow_spans_total", "Spans of traces that a shadow policy matched, late ones included, by what it would have changed.");
    describe_counter!("tailwater_decisions_total", "Decisions, by what made the trace be decided then.");
    describe_counter!("tailwater_late_spans_total", "Spans that came after their trace's decision, by that decision.");
    describe_counter!("tailwater_late_error_spans_total", "Late spans with the status ERROR, by the decision they follow.");
    describe_counter!("tailwater_exporter_sent_spans_total", "Spans that the backend has accepted.");
    describe_counter!("tailwater_exporter_failed_spans_total", "Kept spans that will never reach the backend, by reason.");
    describe_counter!("tailwater_exporter_retries_total", "Export attempts that are made again, by the code that made them fail.");
    describe_counter!("tailwater_unstamped_spans_total", "Kept spans whose tracestate could not be stamped: it left as it came, repaired where it was not UTF-8.");
    describe_counter!("tailwater_inconsistent_threshold_spans_total", "Kept spans whose incoming ot=th contradicted the randomness and was erased.");
    describe_counter!("tailwater_repaired_strings_total", "Strings in kept spans that were not UTF-8 and were repaired.");
    describe_counter!("tailwater_removed_links_total", "Span links with ids of wrong length, removed from kept spans.");
    describe_counter!("tailwater_task_restarts_total", "Panics that were contained, by task.");
    describe_counter!("tailwater_log_lines_lost_total", "Log lines that could not be written to standard error.");
    describe_counter!("tailwater_decisions_forgotten_early_total", "Decisions forgotten before decision_cache_ttl, since all of them may take a quarter of the memory limit.");
    describe_counter!("tailwater_stalled_seconds_total", "Time in which the process did not run, which traces do not age by.");
    describe_gauge!("tailwater_window_traces", "Undecided traces.");
    describe_gauge!("tailwater_window_spans", "Spans of undecided traces.");
    describe_gauge!("tailwater_window_bytes", "Encoded bytes of the spans of undecided traces.");
    describe_gauge!("tailwater_memory_used_bytes", "Bytes held, of all kinds that count towards the limit.");
    describe_gauge!("tailwater_memory_limit_bytes", "The memory limit.");
    describe_gauge!("tailwater_memory_overhead_bytes", "Resident memory beyond what is held, at most a fifth of the limit; thresholds leave room for it.");
    describe_gauge!("tailwater_exporter_queue_spans", "Kept spans that wait to be exported, those being retried included.");
    describe_gauge!("tailwater_exporter_queue_bytes", "Their encoded bytes.");
    describe_gauge!("tailwater_exporter_queue_capacity_bytes", "The most bytes the sending queue takes.");
    describe_gauge!("tailwater_config_last_reload_successful", "Whether the last load of the policies succeeded.");
    describe_gauge!("tailwater_config_last_reload_success_timestamp_seconds", "When the policies were last loaded, in Unix seconds.");
    describe_gauge!("tailwater_credentials_last_reload_successful", "Whether the certificates, keys and tokens in force are those of the files.");
    describe_gauge!("tailwater_tls_certificate_expiry_timestamp_seconds", "When a certificate that is shown to others ends, in Unix seconds.");
    describe_gauge!("tailwater_build_info", "1, with the version of this binary.");
}
