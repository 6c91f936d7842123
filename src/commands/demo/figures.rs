//! The figures that the demo shows. They are read from the text of /metrics, so they are the
//! figures that every user sees.
//!
//! Only counters and gauges with whole values are read. The first word of a line names the series.
//! The labels in braces are compared as text, since no label of Tailwater needs escaping.

/// The outcome of the traces that one policy was credited with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PolicyFigures {
    pub(super) name: String,
    pub(super) traces_kept: u64,
    pub(super) traces_dropped: u64,
    pub(super) spans_kept: u64,
    pub(super) spans_dropped: u64,
}

/// One reading of the metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    /// In the order of the file, `none` last.
    pub(super) policies: Vec<PolicyFigures>,
    pub(super) accepted_spans: u64,
    pub(super) buffered_traces: u64,
    pub(super) buffered_spans: u64,
    pub(super) sent_spans: u64,
    pub(super) failed_spans: u64,
    pub(super) queued_spans: u64,
    pub(super) memory_used_bytes: u64,
    pub(super) memory_limit_bytes: u64,
    /// The kinds of traces that share the budget.
    pub(super) budget_keys: u64,
}

impl Figures {
    /// Reads an exposition; `policies` gives the rows and their order. A missing series counts as
    /// 0.
    pub(super) fn read(exposition: &str, policies: &[String]) -> Self {
        let named = |name: &String| PolicyFigures { name: name.clone(), ..Default::default() };
        let policies = policies.iter().map(named).collect();
        let mut figures = Figures { policies, ..Default::default() };
        for (series, value) in exposition.lines().filter_map(sample) {
            figures.add(series, value);
        }
        figures
    }

    fn add(&mut self, series: &str, value: u64) {
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let Some(name) = name.strip_prefix("tailwater_") else { return };
        let total = match name {
            "receiver_accepted_spans_total" => &mut self.accepted_spans,
            "window_traces" => &mut self.buffered_traces,
            "window_spans" => &mut self.buffered_spans,
            "exporter_sent_spans_total" => &mut self.sent_spans,
            "exporter_failed_spans_total" => &mut self.failed_spans,
            "exporter_queue_spans" => &mut self.queued_spans,
            "memory_used_bytes" => &mut self.memory_used_bytes,
            "memory_limit_bytes" => &mut self.memory_limit_bytes,
            "budget_keys" => &mut self.budget_keys,
            _ => return self.add_to_policy(name, labels, value),
        };
        *total += value;
    }

    fn add_to_policy(&mut self, name: &str, labels: &str, value: u64) {
        let Some(wanted) = label(labels, "policy") else { return };
        let Some(policy) = self.policies.iter_mut().find(|p| p.name == wanted) else { return };
        let total = match name {
            "traces_kept_total" => &mut policy.traces_kept,
            "traces_dropped_total" => &mut policy.traces_dropped,
            "spans_kept_total" => &mut policy.spans_kept,
            // Three series, one per reason.
            "spans_dropped_total" => &mut policy.spans_dropped,
            _ => return,
        };
        *total += value;
    }

    /// The sum over all policies.
    pub(super) fn total(&self) -> PolicyFigures {
        let mut total = PolicyFigures { name: "total".to_owned(), ..Default::default() };
        for policy in &self.policies {
            total.traces_kept += policy.traces_kept;
            total.traces_dropped += policy.traces_dropped;
            total.spans_kept += policy.spans_kept;
            total.spans_dropped += policy.spans_dropped;
        }
        total
    }

    /// Whether every accepted span was kept, dropped or is in the window.
    pub(super) fn accounts_for_accepted(&self) -> bool {
        let total = self.total();
        self.accepted_spans == total.spans_kept + total.spans_dropped + self.buffered_spans
    }

    /// Whether every kept span was sent, has failed or is queued.
    pub(super) fn accounts_for_kept(&self) -> bool {
        self.total().spans_kept == self.sent_spans + self.failed_spans + self.queued_spans
    }
}

/// The series and the value of one line; `None` for comments and for values that are not whole.
fn sample(line: &str) -> Option<(&str, u64)> {
    let (series, value) = line.rsplit_once(' ')?;
    Some((series, value.parse().ok()?))
}

/// The value of one label of `a="x",b="y"}`.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels
        .trim_end_matches('}')
        .split(',')
        .filter_map(|label| label.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn series_are_read_and_summed_by_policy() {
        let text = r#"
# HELP tailwater_receiver_accepted_spans_total Spans acknowledged, without those rejected.
# TYPE tailwater_receiver_accepted_spans_total counter
tailwater_receiver_accepted_spans_total{transport="grpc"} 90
tailwater_receiver_accepted_spans_total{transport="http"} 10

tailwater_spans_dropped_total{policy="baseline",reason="decision"} 60
tailwater_spans_dropped_total{policy="baseline",reason="late"} 3
tailwater_spans_kept_total{policy="errors"} 30
tailwater_traces_kept_total{policy="errors"} 4
tailwater_traces_dropped_total{policy="baseline"} 8
tailwater_traces_dropped_total{policy="unheard_of"} 1
tailwater_window_spans 7
tailwater_window_traces 1
tailwater_exporter_sent_spans_total 29
tailwater_exporter_failed_spans_total{reason="rejected"} 1
tailwater_exporter_queue_spans 0
tailwater_decision_lag_seconds_sum 0.25
tailwater_memory_used_bytes 4096
other_window_spans 5
"#;
        let figures = Figures::read(text, &names(&["errors", "baseline", "none"]));
        let [errors, baseline, none] = &figures.policies[..] else { panic!("three rows") };
        assert_eq!((errors.traces_kept, errors.spans_kept), (4, 30));
        assert_eq!((baseline.traces_dropped, baseline.spans_dropped), (8, 63));
        assert_eq!(none, &PolicyFigures { name: "none".into(), ..Default::default() });
        assert_eq!((figures.accepted_spans, figures.buffered_spans), (100, 7));
        assert_eq!((figures.buffered_traces, figures.memory_used_bytes), (1, 4096));
        assert!(figures.accounts_for_accepted() && figures.accounts_for_kept());
        assert!(!Figures { queued_spans: 1, ..figures.clone() }.accounts_for_kept());
        assert!(!Figures { accepted_spans: 99, ..figures }.accounts_for_accepted());
    }

    #[test]
    fn the_metrics_of_the_service_are_read() {
        use crate::{
            metrics::{FailedBecause, Metrics, Readings, Transport},
            sampler::Ingested,
        };
        let policies = names(&["errors", "none"]);
        let metrics = Metrics::new(&policies[..1]);
        let taken = |accepted, rejected| Ingested { accepted, rejected, outsized: None };
        metrics.accepted(Transport::Grpc, &taken(5, 1));
        metrics.accepted(Transport::Http, &taken(2, 0));
        metrics.sent(3);
        metrics.failed(FailedBecause::Rejected, 2);
        let readings =
            Readings { memory: [8 << 30, 16 << 30, 0], queue_spans: 4, ..Default::default() };
        let figures = Figures::read(&metrics.render(&readings), &policies);
        let expected = Figures {
            policies: Figures::read("", &policies).policies,
            accepted_spans: 7,
            sent_spans: 3,
            failed_spans: 2,
            queued_spans: 4,
            memory_used_bytes: 8 << 30,
            memory_limit_bytes: 16 << 30,
            budget_keys: 0,
            ..Default::default()
        };
        assert_eq!(figures, expected);
    }
}
