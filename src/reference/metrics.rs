//! Writes `docs/src/reference/metrics.md`: every metric with its labels.

use std::fmt::Write as _;

use super::hold;
use crate::metrics::{
    Metrics, Readings,
    described::{self, Label, MetricKind},
};

const HEADER: &str = "\
# Metrics reference

`/metrics` on the telemetry port; [`/metrics/spans`](#metrics-from-all-spans) is below. Every series
exists at 0 from the start, those of new policies from their reload on; no label takes a value that
traffic can choose. Series of policies that are gone stay until a restart.

The ledger, exact when traffic rests, in spans:

    accepted = kept + dropped + window_spans
    kept = sent + failed + queue_spans

where accepted is `receiver_accepted_spans_total`, kept `spans_kept_total`, dropped
`spans_dropped_total`, sent `exporter_sent_spans_total`, failed `exporter_failed_spans_total` and
queue_spans `exporter_queue_spans`, each summed over its labels.

`code` is the name of a gRPC code such as `OK` or `UNAVAILABLE`, or an HTTP status such as `503`
(`other` for rare ones). An attempt to export that got no answer is `UNAVAILABLE` or
`DEADLINE_EXCEEDED` over both protocols. The policy `none` stands for traces that no policy matches.

Metrics whose name begins with `process_` are those that the client libraries of Prometheus have.
Metrics that the operating system does not report are missing.

| metric | type | labels | unit | meaning |
|---|---|---|---|---|
";

const SPANS: &str = "
## Metrics from all spans

`/metrics/spans` on the telemetry port, while `enabled = true` in `[span_metrics]`; otherwise it
answers 404. It is in the OpenMetrics format for a scraper that asks for it, and in the Prometheus
text format for others. [Metrics from all spans](../span-metrics.md) explains them.

| style | metric | type | meaning |
|---|---|---|---|
| `tempo` | `traces_spanmetrics_calls_total` | counter | spans |
| `tempo` | `traces_spanmetrics_latency` | histogram | durations in seconds, \
14 buckets from 0.002 by doubling |
| `tempo` | `traces_spanmetrics_size_total` | counter | encoded bytes as received |
| `connector` | `traces_span_metrics_calls_total` | counter | spans |
| `connector` | `traces_span_metrics_duration_seconds` | histogram | durations in seconds, \
16 buckets from 0.002 to 15 |

Labels are `service` (`service_name` with `connector`), `span_name`, `span_kind` such as
`SPAN_KIND_SERVER`, `status_code` such as `STATUS_CODE_ERROR`, and the `dimensions`. The series
`metric_overflow=\"true\"` counts the spans whose set of labels had no room. The ledger, exact
when traffic rests, in spans, each summed over its labels:

    tailwater_span_metrics_spans_total = calls_total + tailwater_span_metrics_stale_spans_total

If all six `kinds` are chosen, this is also `tailwater_receiver_accepted_spans_total`, without
`transport=\"replay\"`: spans that come back after a restart were counted before it.
";

#[test]
fn the_page_of_the_metrics_is_what_the_code_says() {
    let mut page = HEADER.to_owned();
    for metric in described::all() {
        let kind = match metric.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        let labels: Vec<String> = metric.labels.iter().map(label).collect();
        let _ = writeln!(
            page,
            "| `{}` | {kind} | {} | {} | {} |",
            metric.name,
            labels.join("; "),
            metric.unit,
            metric.help,
        );
    }
    page.push_str(SPANS);
    hold("docs/src/reference/metrics.md", &page);
}

fn label(label: &Label) -> String {
    let values: Vec<String> = label.values.iter().map(|value| format!("`{value}`")).collect();
    match values.as_slice() {
        [] => format!("`{}`", label.name),
        values => format!("`{}`: {}", label.name, values.join(" ")),
    }
}

#[test]
fn every_described_metric_is_in_a_scrape_and_no_other() {
    let text = Metrics::new(&["p".to_owned()]).render(&Readings::default());
    let scraped = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let scraped: Vec<&str> = scraped.filter_map(|line| line.split(' ').next()).collect();
    for name in &scraped {
        assert!(described::all().any(|metric| metric.name == *name), "{name} is not described");
    }
    // These exist only if there is a certificate, a shadow policy, a policy that expires, or a
    // policy with kinds of traces.
    let may_lack = ["tls_certificate_expiry", "shadow_", "policy_expiry", "_budget_", "_rare_"];
    for metric in described::all() {
        let is_there = scraped.contains(&metric.name);
        let may_lack = may_lack.iter().any(|part| metric.name.contains(part));
        assert!(is_there || may_lack, "{} is not in a scrape", metric.name);
    }
}
