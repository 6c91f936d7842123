//! The state of the service in one message, for GetStatus, `/-/status`, the page and `top`.
//!
//! Everything is read at the time of the request, except the rates (`history`). The window is read
//! shard by shard, as for a scrape. A span that moves on meanwhile is counted twice, never missed;
//! at rest, the sums of the ledger are exact, and equal to those of /metrics.

use super::{Admin, describe::timestamp};
use crate::{
    control::{
        Activity, Backend, Configuration, Decision, GetStatusResponse, Kafka, Ledger, Memory,
        PolicyStatus, Queue, Window, backend::State,
    },
    exporter::Standing,
    sampler::Buffered,
    trace::Threshold,
};

/// The number of recent decisions in a status.
const RECENT_DECISIONS: usize = 20;

impl Admin {
    /// The state of the service now.
    pub fn status(&self) -> GetStatusResponse {
        let buffered = self.sampler.buffered();
        let (queue_bytes, queue_spans) = self.queue.held();
        GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            start_time: Some(timestamp(self.started_at)),
            ready: self.is_ready(),
            configuration: Some(self.configuration()),
            ledger: Some(self.ledger(&buffered, queue_spans)),
            rates: Some(self.history.rates()),
            window: Some(Window {
                traces: buffered.traces,
                spans: buffered.spans,
                bytes: buffered.bytes,
            }),
            memory: Some(Memory {
                used_bytes: self.budget.used() as u64,
                soft_limit_bytes: self.budget.soft_limit() as u64,
                limit_bytes: self.budget.limit() as u64,
            }),
            queue: Some(Queue {
                spans: queue_spans,
                bytes: queue_bytes as u64,
                capacity_bytes: self.queue.capacity_bytes() as u64,
            }),
            backend: Some(self.backend()),
            policies: self.policies(),
            recent_decisions: self.recent_decisions(),
            activity: Some(Activity {
                trial_running: self.sampler.plan().trial().is_some(),
                recordings: self.sampler.recordings().running() as u32,
                watchers: self.watchers.count() as u32,
            }),
            kafka: self.metrics.kafka().shown().map(|shown| Kafka {
                partitions: shown.partitions as u32,
                lag_records: shown.lag,
                commit_age_seconds: shown.commit_age,
            }),
        }
    }

    fn configuration(&self) -> Configuration {
        let loaded = self.reload.loaded();
        let file = self.reload.file().map(|file| file.display().to_string());
        Configuration {
            file: file.unwrap_or_default(),
            hash: loaded.hash,
            policies_load_time: Some(timestamp(loaded.at)),
            last_reload_successful: loaded.last_reload_successful,
        }
    }

    fn ledger(&self, buffered: &Buffered, queued: u64) -> Ledger {
        let totals = self.metrics.totals();
        let by_reason = self.metrics.failed_by_reason();
        Ledger {
            accepted: totals.accepted,
            kept: totals.kept,
            dropped: totals.dropped,
            buffered: buffered.spans,
            handed_over: totals.handed_over,
            sent: totals.sent,
            failed: totals.failed,
            queued,
            failed_by_reason: by_reason.map(|(why, spans)| (why.to_owned(), spans)).collect(),
        }
    }

    fn backend(&self) -> Backend {
        let endpoint = self.backend_endpoint.clone();
        let Some(Standing { error, since }) = self.backend.standing() else {
            let state = State::Unused.into();
            let state_start_time = Some(timestamp(self.started_at));
            return Backend { endpoint, state, error: String::new(), state_start_time };
        };
        let state = if error.is_some() { State::Failing } else { State::Taking };
        Backend {
            endpoint,
            state: state.into(),
            error: error.unwrap_or_default(),
            state_start_time: Some(timestamp(since)),
        }
    }

    fn policies(&self) -> Vec<PolicyStatus> {
        let plan = self.sampler.plan();
        let counts = self.metrics.of_policies(plan.in_force().map(|policy| policy.id));
        let both = plan.in_force().zip(counts);
        let status = both.map(|(policy, counts)| PolicyStatus {
            name: policy.name.to_owned(),
            r#type: policy.type_name.to_owned(),
            shadow: policy.is_shadow,
            expire_time: policy.expires.map(timestamp),
            matched_traces: counts.matched_traces,
            kept_traces: counts.kept_traces,
            dropped_traces: counts.dropped_traces,
            kept_spans: counts.kept_spans,
            dropped_spans: counts.dropped_spans,
            shadow_kept_traces: counts.shadow_kept_traces,
            shadow_dropped_traces: counts.shadow_dropped_traces,
            percentage: policy.threshold.map(Threshold::percentage),
        });
        status.collect()
    }

    fn recent_decisions(&self) -> Vec<Decision> {
        let newest = self.sampler.log().newest(RECENT_DECISIONS);
        newest.iter().map(|logged| self.decided(logged)).collect()
    }
}
