//! Every metric: its name, labels and meaning, and the handles that stages count with.
//!
//! Each service has its own recorder instead of the process's global one, so that services in one
//! test binary keep separate ledgers. All series exist at 0 from the start, except the expiry of
//! certificates, since there may be none. No label takes a value that traffic can choose. Stages
//! add up locally and count once per request or per chunk of decisions.
//!
//! Histograms are kept here as bucket arrays and written after the output of the exporter crate:
//! its own histograms would queue every sample until the next scrape, and are rendered as summaries
//! by default.

mod codes;
mod connections;
mod count;
pub(crate) mod described;
mod expiries;
mod gauges;
mod histogram;
mod kafka;
mod kinds;
mod policies;
mod process;
mod reasons;

use std::{sync::Arc, time::Duration};

use metrics::{Counter, with_local_recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

pub use self::{codes::ExportCode, reasons::FailedBecause};
pub(crate) use self::{
    connections::{Closed, Transport},
    kafka::{Kafka, Shown},
    policies::PolicyCounts,
    reasons::RefusedBecause,
};
use self::{
    connections::{Connections, ORIGINS, SENT_BY, TRANSPORTS},
    count::Count,
    described::Metric,
    expiries::Expiries,
    gauges::Gauges,
    histogram::Histogram,
    policies::Policies,
    reasons::{FAILED, REFUSED, REFUSED_SPANS},
};
use crate::{
    clock,
    grpc::{code_name, codes},
    otlp::encode::Faults,
    policy::{KindsReading, Overflowed, Plan, PolicyId},
    sampler::{Buffered, Decided, Ingested},
    span_metrics,
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

const LOGS: [&str; 3] = ["intake", "outbox", "decisions"];

/// The HTTP statuses that are counted; any other status is counted as 500.
const HTTP_CODES: [u16; 10] = [200, 204, 400, 401, 404, 405, 413, 415, 500, 503];

/// Values that are read at a scrape.
#[derive(Clone, Debug, Default)]
pub struct Readings {
    /// When the service started, in Unix milliseconds.
    pub started_at: u64,
    /// Whether requests are accepted.
    pub is_ready: bool,
    /// The content of the window.
    pub buffered: Buffered,
    /// Bytes in use, the limit, and the overhead.
    pub memory: [usize; 3],
    /// Spans that wait to be exported or are being retried.
    pub queue_spans: u64,
    /// Their bytes, and the limit.
    pub queue_bytes: (usize, usize),
    /// Panics by task.
    pub panics: [u64; Task::ALL.len()],
    /// How long the process did not run, without short pauses.
    pub stalled: Duration,
    /// Log lines that could not be written.
    pub log_lines_lost: u64,
    /// The figures of budgets and rare policies, by name.
    pub kinds: Vec<(String, KindsReading)>,
    /// The totals of the metrics from all spans.
    pub span_metrics: span_metrics::Totals,
    /// Bytes on disk and errors of the logs of `[durability]`, and their damaged records.
    pub durability: ([u64; 3], [u64; 3], u64),
}

/// The sums of the ledger: spans since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Acknowledged to the sender.
    pub accepted: u64,
    /// Kept by a decision.
    pub kept: u64,
    /// Dropped by a decision, as late spans of a dropped trace, or above a trace's cap.
    pub dropped: u64,
    /// Undecided when their partition of the Kafka topic left this instance.
    pub handed_over: u64,
    /// Accepted by the backend.
    pub sent: u64,
    /// Kept, but lost on the way to the backend.
    pub failed: u64,
}

/// The handles of all metrics.
pub struct Metrics {
    /// Registers the series of policies that a reload adds.
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
    accepted: [Count; 3],
    refused_spans: [[Counter; 2]; 2],
    kafka: Kafka,
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
    sent: Count,
    failed: [Count; 7],
    retries: Vec<Counter>,
    faults: [Counter; 4],
    panics: [Counter; Task::ALL.len()],
    stalled: Counter,
    log_lines_lost: Counter,
    forgotten: Counter,
    span_metrics: [Counter; 4],
    gauges: Gauges,
    expiries: Expiries,
    lag: Histogram,
    duration: Histogram,
    spans: Histogram,
    request_duration: Vec<Histogram>,
    sync: Histogram,
    disk_errors: [Counter; 3],
    damaged: Counter,
}

impl Metrics {
    /// Makes all series of a service with these policies, at 0.
    pub fn new(policies: &[String]) -> Self {
        let recorder = Arc::new(PrometheusBuilder::new().build_recorder());
        let metrics = with_local_recorder(&*recorder, || {
            described::describe();
            Metrics::register(Arc::clone(&recorder))
        });
        metrics.add_policies(policies);
        metrics.reloaded(true);
        metrics.credentials_in_force(true);
        metrics
    }

    fn register(recorder: Arc<PrometheusRecorder>) -> Self {
        let per_transport =
            |metric: Metric| TRANSPORTS.map(|transport| metric.counter([transport]));
        let by_decision = |metric: Metric| ["kept", "dropped"].map(|kept| metric.counter([kept]));
        let by_reason =
            |transport, reason| described::REFUSED_REQUESTS.counter([transport, reason]);
        let requests = |transport, code: &str| described::REQUESTS.counter([transport, code]);
        let accepted =
            |origin: &'static str| Count::new(described::ACCEPTED_SPANS.counter([origin]));
        let refused_spans = |transport: &'static str| {
            REFUSED_SPANS.map(|why| described::REFUSED_SPANS_TOTAL.counter([transport, why]))
        };
        let histogram = |metric, bounds| Histogram::new(metric, "", bounds);
        described::BUILD_INFO.gauge([env!("CARGO_PKG_VERSION")]).set(1.0);
        Metrics {
            handle: recorder.handle(),
            recorder,
            accepted: [ORIGINS[0], ORIGINS[1], ORIGINS[2]].map(accepted),
            refused_spans: TRANSPORTS.map(refused_spans),
            kafka: Kafka::register(accepted(ORIGINS[3]), refused_spans(SENT_BY[2])),
            refused_requests: TRANSPORTS
                .map(|transport| REFUSED.map(|why| by_reason(transport, why))),
            empty_requests: per_transport(described::EMPTY_REQUESTS),
            connections: Connections::register(),
            grpc_requests: codes().map(|code| requests("grpc", code_name(code))).collect(),
            not_grpc_requests: requests("grpc", "415"),
            handshake_failures: per_transport(described::HANDSHAKE_FAILURES),
            http_requests: HTTP_CODES.map(|code| requests("http", &code.to_string())).into(),
            policies: Policies::register(),
            triggers: Trigger::ALL.map(|trigger| described::DECISIONS.counter([trigger.as_str()])),
            late_spans: by_decision(described::LATE_SPANS),
            late_errors: by_decision(described::LATE_ERROR_SPANS),
            sent: Count::new(described::SENT_SPANS.counter([])),
            failed: FAILED.map(|why| Count::new(described::FAILED_SPANS.counter([why]))),
            retries: ExportCode::all().map(|c| described::RETRIES.counter([c.as_str()])).collect(),
            faults: [
                described::UNSTAMPED_SPANS,
                described::INCONSISTENT_SPANS,
                described::REPAIRED_STRINGS,
                described::REMOVED_LINKS,
            ]
            .map(|metric| metric.counter([])),
            panics: Task::ALL.map(|task| described::TASK_RESTARTS.counter([task.as_str()])),
            stalled: described::STALLED.counter([]),
            log_lines_lost: described::LOG_LINES_LOST.counter([]),
            forgotten: described::DECISIONS_FORGOTTEN.counter([]),
            span_metrics: [
                described::SPAN_METRICS_SPANS,
                described::SPAN_METRICS_OVERFLOW,
                described::SPAN_METRICS_STALE_SERIES,
                described::SPAN_METRICS_STALE_SPANS,
            ]
            .map(|metric| metric.counter([])),
            gauges: Gauges::register(),
            expiries: Expiries::default(),
            lag: histogram(described::DECISION_LAG, &SECONDS[..]),
            duration: histogram(described::TRACE_DURATION, &TRACE_SECONDS),
            spans: histogram(described::TRACE_SPANS, &TRACE_SPANS),
            request_duration: ExportCode::all()
                .map(|c| Histogram::new(described::REQUEST_DURATION, c.as_str(), &SECONDS))
                .collect(),
            sync: histogram(described::DURABILITY_SYNC, &SECONDS),
            disk_errors: LOGS.map(|log| described::DURABILITY_ERRORS.counter([log])),
            damaged: described::DURABILITY_DAMAGED.counter([]),
        }
    }

    /// Adds the series of new policies, at 0.
    pub(crate) fn add_policies(&self, names: &[String]) {
        with_local_recorder(&*self.recorder, || self.policies.add(names));
    }

    /// Adds the series of a plan that is about to decide.
    pub(crate) fn policies_in_force(&self, plan: &Plan) {
        self.add_policies(plan.names());
        with_local_recorder(&*self.recorder, || {
            self.policies.add_shadows(plan.shadows(), plan.names());
            self.policies.add_kinds(&plan.kinds(), plan.names());
        });
        self.expiries.set(plan);
    }

    /// Counts traces that found no room in this plan's tables of kinds.
    pub(crate) fn overflowed(&self, overflowed: &[Overflowed]) {
        self.policies.count_overflowed(overflowed);
    }

    /// Records that the policies were loaded, or could not be.
    pub(crate) fn reloaded(&self, successful: bool) {
        self.gauges.reload[0].set(f64::from(u8::from(successful)));
        if successful {
            self.gauges.reload[1].set(clock::unix_millis() as f64 / 1e3);
        }
    }

    /// Records whether the certificates, keys and tokens in force are those of the files.
    pub(crate) fn credentials_in_force(&self, all: bool) {
        self.gauges.credentials.set(f64::from(u8::from(all)));
    }

    /// Records when a certificate of the service expires: of `receiver`, `exporter` or `telemetry`.
    /// The series exists only if there is a certificate, because 0 would mean 1970.
    pub(crate) fn certificate_expires(&self, of: &'static str, unix_seconds: u64) {
        let gauge =
            with_local_recorder(&*self.recorder, || described::CERTIFICATE_EXPIRY.gauge([of]));
        gauge.set(unix_seconds as f64);
    }

    /// Counts a sender's connection that is served.
    pub(crate) fn connection_opened(&self, transport: Transport) {
        self.connections.opened(transport);
    }

    /// Counts the end of a connection that was served.
    pub(crate) fn connection_closed(&self, transport: Transport, why: Closed) {
        self.connections.closed(transport, why);
    }

    /// Counts a connection that was closed at once, because too many are open.
    pub(crate) fn connection_turned_away(&self, transport: Transport) {
        self.connections.turned_away(transport, Closed::MaxConnections);
    }

    /// Counts a connection whose TLS handshake failed.
    pub(crate) fn handshake_failed(&self, transport: Transport) {
        self.handshake_failures[transport as usize].increment(1);
    }

    /// Counts a request that was accepted.
    pub(crate) fn accepted(&self, transport: Transport, ingested: &Ingested) {
        self.accepted[transport as usize].add(ingested.accepted);
        let outsized = ingested.outsized.as_ref().map_or(0, |outsized| outsized.spans);
        let refused = &self.refused_spans[transport as usize];
        for (counter, spans) in refused.iter().zip([ingested.rejected, outsized]) {
            if spans > 0 {
                counter.increment(spans);
            }
        }
    }

    /// The counters of the Kafka receiver.
    pub fn kafka(&self) -> &Kafka {
        &self.kafka
    }

    /// Counts spans that were replayed from the logs of an earlier process.
    pub(crate) fn replayed(&self, spans: u64) {
        self.accepted[2].add(spans);
    }

    /// Counts spans that an earlier process kept by a policy and did not deliver.
    pub(crate) fn kept_before(&self, policy: PolicyId, spans: u64) {
        self.replayed(spans);
        self.policies.kept_before(policy, spans);
    }

    /// Records the time of a sync of the logs of `[durability]`.
    pub(crate) fn synced(&self, took: Duration) {
        self.sync.observe([took.as_secs_f64()]);
    }

    /// Counts a request that was refused as a whole.
    pub(crate) fn refused(&self, transport: Transport, because: RefusedBecause) {
        self.refused_requests[transport as usize][because as usize].increment(1);
    }

    /// Counts a request that was accepted and carried bytes but no span.
    pub(crate) fn empty(&self, transport: Transport) {
        self.empty_requests[transport as usize].increment(1);
    }

    /// Counts a request that was answered over gRPC.
    pub(crate) fn answered_grpc(&self, code: tonic::Code) {
        self.grpc_requests[code as usize].increment(1);
    }

    /// Counts a request to the gRPC receiver that was not gRPC, answered 415.
    pub(crate) fn answered_not_grpc(&self) {
        self.not_grpc_requests.increment(1);
    }

    /// Counts a request that was answered over HTTP.
    pub(crate) fn answered_http(&self, code: u16) {
        let place = |wanted| HTTP_CODES.iter().position(|&known| known == wanted);
        if let Some(index) = place(code).or_else(|| place(500)) {
            self.http_requests[index].increment(1);
        }
    }

    /// Counts the decisions made under one lock or while one request was accepted.
    pub(crate) fn decided(&self, decided: &Decided) {
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

    /// Counts the repairs of kept spans while they were encoded.
    pub(crate) fn encoded(&self, faults: &Faults) {
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

    /// Counts spans that the backend has accepted.
    pub(crate) fn sent(&self, spans: u64) {
        self.sent.add(spans);
    }

    /// Counts kept spans that will never reach the backend.
    pub fn failed(&self, because: FailedBecause, spans: u64) {
        self.failed[because as usize].add(spans);
    }

    /// Kept spans that will never reach the backend, for any reason.
    pub(crate) fn failed_in_all(&self) -> u64 {
        self.failed.iter().map(Count::get).sum()
    }

    /// The counted sums of the ledger, over all policies and reasons.
    pub(crate) fn totals(&self) -> Totals {
        // Read in the order of the flow: a span that moves on meanwhile is counted twice, never
        // missed.
        let accepted: u64 = self.accepted.iter().map(Count::get).sum();
        let (kept, dropped) = self.policies.spans();
        Totals {
            accepted: accepted + self.kafka.accepted.get(),
            kept,
            dropped,
            handed_over: self.kafka.handed_over.get(),
            sent: self.sent.get(),
            failed: self.failed_in_all(),
        }
    }

    /// Kept spans that will never reach the backend, by reason; without reasons that have not
    /// occurred.
    pub(crate) fn failed_by_reason(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counted = FAILED.into_iter().zip(self.failed.iter().map(Count::get));
        counted.filter(|(_, spans)| *spans > 0)
    }

    /// The counts of these policies since the start.
    pub(crate) fn of_policies(&self, ids: impl Iterator<Item = PolicyId>) -> Vec<PolicyCounts> {
        self.policies.counts(ids)
    }

    /// Records one export attempt.
    pub(crate) fn exported(&self, code: ExportCode, took: Duration) {
        self.request_duration[code.index()].observe([took.as_secs_f64()]);
    }

    /// Counts an attempt that will be repeated.
    pub(crate) fn retried(&self, code: ExportCode) {
        self.retries[code.index()].increment(1);
    }

    /// Renders all metrics in the exposition format, version 0.0.4.
    pub fn render(&self, readings: &Readings) -> String {
        self.gauges.set(readings);
        self.accepted.iter().chain(&self.failed).chain([&self.sent]).for_each(Count::show);
        self.kafka.accepted.show();
        self.kafka.handed_over.show();
        self.policies.show();
        let set = |counters: &[Counter], counts: &[u64]| {
            counters.iter().zip(counts).for_each(|(counter, &count)| counter.absolute(count));
        };
        set(&self.panics, &readings.panics);
        self.stalled.absolute(readings.stalled.as_secs());
        self.log_lines_lost.absolute(readings.log_lines_lost);
        let span_metrics::Totals { spans, overflow_spans, stale, .. } = readings.span_metrics;
        let (_, errors, damaged) = readings.durability;
        self.damaged.absolute(damaged);
        set(&self.span_metrics, &[spans, overflow_spans, stale[0], stale[1]]);
        set(&self.disk_errors, &errors);
        let mut text = self.handle.render();
        self.expiries.write(&mut text);
        kinds::write(&readings.kinds, &mut text);
        process::write(&mut text, readings.started_at);
        for histogram in [&self.lag, &self.duration, &self.spans, &self.sync] {
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
