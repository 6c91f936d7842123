//! Metrics from all spans: each accepted span counts once, whatever happens to its trace; the
//! output for scrapers; and exemplars that lead to kept traces.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use opentelemetry_proto::tonic::trace::v1::{Span, Status};
use proptest::prelude::*;
use tailwater::{
    budget::{Budget, Holder},
    config,
    policy::Plan,
    sampler::{Decided, Sampler, Scratch, Which},
    span_metrics::{Format, Settings, SpanMetrics, Style},
    window::Millis,
};

use crate::{
    builders::{ANY_ROOM, cases, child, limits, policy, probabilistic, request, resource_spans},
    harness::{
        ALL, Directory, ERRORS_AND_HALF, HIGH, LOW, Metrics, Running, all_kinds, config as quick,
        error, span, span_metrics, trace_id,
    },
    wire,
};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Calls, calls of at most 4 ms, seconds and bytes of a series, as exposed.
#[derive(Clone, Debug, Default, PartialEq)]
struct Sums {
    calls: u64,
    fast: u64,
    nanos: u64,
    bytes: u64,
}

/// The series of an exposition by their labels.
fn parse(text: &str) -> BTreeMap<String, Sums> {
    let mut all = BTreeMap::<_, Sums>::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').expect("a value");
        let (name, labels) = series.strip_suffix('}').expect("labels").split_once('{').expect("{");
        let number: f64 = value.parse().expect("a number");
        let (labels, le) = match labels.split_once(",le=") {
            Some((labels, le)) => (labels, Some(le)),
            None => (labels, None),
        };
        let sums = all.entry(labels.to_owned()).or_default();
        match (name.trim_start_matches("traces_spanmetrics_"), le) {
            ("calls_total", None) => sums.calls = number as u64,
            ("latency_sum", None) => sums.nanos = (number * 1e9).round() as u64,
            ("size_total", None) => sums.bytes = number as u64,
            ("latency_bucket", Some("\"0.004\"")) => sums.fast = number as u64,
            ("latency_bucket", Some("\"+Inf\"")) | ("latency_count", None) => {
                assert_eq!(number as u64, sums.calls, "{line}");
            }
            ("latency_bucket", Some(_)) => {}
            _ => panic!("{line}"),
        }
    }
    all
}

/// Trace, name, kind, status and duration in milliseconds.
type Drawn = (u64, u8, i32, i32, u64);

/// A request of the property test: blocks of spans by service, and its fault.
#[derive(Clone, Debug)]
struct Sent {
    blocks: Vec<(u8, Vec<Drawn>)>,
    fault: Fault,
    /// How often each block is repeated.
    copies: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// The last bytes are cut off.
    Torn,
    /// The first span has no span id.
    BadId,
    /// Nothing more fits into memory.
    NoRoom,
}

impl Sent {
    fn spans(&self) -> impl Iterator<Item = (String, Span)> {
        let blocks = (0..self.copies).flat_map(|_| &self.blocks);
        let spans =
            blocks.flat_map(|(service, spans)| spans.iter().map(move |span| (service, span)));
        spans.enumerate().map(|(index, (service, &(trace, name, kind, code, millis)))| {
            let mut span = child(trace, index as u64);
            span.name = format!("n{name}");
            span.kind = kind;
            span.status = (code != 0).then(|| Status { code, ..Status::default() });
            span.end_time_unix_nano = span.start_time_unix_nano + millis * 1_000_000;
            if self.fault == Fault::BadId && index == 0 {
                span.span_id = Vec::new();
            }
            (format!("s{service}"), span)
        })
    }

    fn bytes(&self) -> Vec<u8> {
        let mut blocks: Vec<(String, Vec<Span>)> = Vec::new();
        for (service, span) in self.spans() {
            match blocks.last_mut().filter(|(last, _)| *last == service) {
                Some((_, spans)) => spans.push(span),
                None => blocks.push((service, vec![span])),
            }
        }
        let blocks = blocks.into_iter().map(|(service, spans)| resource_spans(&service, spans));
        let mut bytes = request(blocks.collect());
        if self.fault == Fault::Torn {
            bytes.truncate(bytes.len() - 1);
        }
        bytes
    }
}

fn sent() -> impl Strategy<Value = Sent> {
    let span = (0..6u64, 0..4u8, 0..7i32, 0..4i32, 0..9u64);
    let block = (0..3u8, prop::collection::vec(span, 1..6));
    let fault = prop_oneof![
        6 => Just(Fault::None),
        1 => Just(Fault::Torn),
        1 => Just(Fault::BadId),
        1 => Just(Fault::NoRoom),
    ];
    // The many copies make a request that is walked in more than one piece.
    let copies = prop_oneof![9 => Just(1), 1 => Just(3_500)];
    (prop::collection::vec(block, 1..4), fault, copies).prop_map(|(blocks, fault, copies)| Sent {
        blocks,
        fault,
        copies,
    })
}

/// The kind of a span; kinds that OTLP does not define are unspecified.
fn kind(span: &Span) -> usize {
    if span.kind > 5 { 0 } else { span.kind as usize }
}

/// The labels of a span in the model.
fn labels((service, span): &(String, Span)) -> String {
    let kinds = ["UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"];
    let status = match span.status.as_ref().map_or(0, |status| status.code) {
        1 => "OK",
        2 => "ERROR",
        _ => "UNSET",
    };
    format!(
        "service=\"{service}\",span_name=\"{}\",span_kind=\"SPAN_KIND_{}\",\
         status_code=\"STATUS_CODE_{status}\"",
        span.name,
        kinds[kind(span)]
    )
}

proptest! {
    #![proptest_config(cases(48))]

    /// Scenario: requests with spans of all kinds, some truncated, some with a bad span, some too
    /// large for one piece of walking, some for which there is no memory; decisions and reloads
    /// between them, so that spans are late.
    /// Guarantees: calls, durations and bytes of every series match the accepted spans of the
    /// chosen kinds.
    #[test]
    fn series_are_those_of_a_naive_model(
        requests in prop::collection::vec((sent(), any::<bool>(), any::<bool>()), 1..12),
        kinds in 1..64u8,
    ) {
        let budget = Budget::new(16 << 20);
        let plan = Arc::new(Plan::compile(&[probabilistic(50.0)]));
        let metrics = Arc::new(SpanMetrics::new(Settings { kinds, ..all_kinds() }, &budget));
        let sampler = Sampler::new(plan, limits(), &budget, 2).with_span_metrics(Some(metrics));
        let (mut scratch, mut decided) = (Scratch::default(), Decided::default());
        let (mut model, mut accepted) = (BTreeMap::<String, Sums>::new(), 0);
        for (round, (sent, decides, reloads)) in requests.iter().enumerate() {
            let full = (sent.fault == Fault::NoRoom).then(|| budget.hold(Holder::Export, 16 << 20));
            let taken = sampler.ingest(Millis(0), &sent.bytes(), &mut scratch, &mut decided);
            drop(full);
            // A small request whose contexts are already known may fit even now.
            let is_taken = taken.is_ok();
            prop_assert!(is_taken || matches!(sent.fault, Fault::Torn | Fault::NoRoom));
            let sound = sent.spans().filter(|(_, span)| !span.span_id.is_empty());
            for labelled in sound.filter(|_| is_taken) {
                let span = &labelled.1;
                accepted += 1;
                if kinds & (1 << kind(span)) == 0 {
                    continue;
                }
                let sums = model.entry(labels(&labelled)).or_default();
                let nanos = span.end_time_unix_nano - span.start_time_unix_nano;
                sums.calls += 1;
                sums.fast += u64::from(nanos <= 4_000_000);
                sums.nanos += nanos;
                sums.bytes += prost::Message::encoded_len(span) as u64;
            }
            if *decides {
                for shard in 0..sampler.shards() {
                    let now = Millis(60_000 * (round as u32 + 1));
                    sampler.decide(shard, now, Which::Due, ANY_ROOM, &mut decided);
                }
            }
            if *reloads {
                let specs = [policy("names", config_rule(round))];
                let plan = Arc::new(sampler.plan().successor(&specs).expect("few names"));
                sampler.reload(&plan, |_| {});
            }
            decided.clear();
        }
        let text = span_metrics(&sampler, Format::Text).expect("they are on");
        let mut exposed = parse(&text);
        // There are more sets of labels than series, so some spans are in the overflow series.
        if let Some(overflow) = exposed.remove("metric_overflow=\"true\"") {
            let missing: Vec<_> =
                model.keys().filter(|labels| !exposed.contains_key(*labels)).cloned().collect();
            let mut sum = Sums::default();
            for labels in missing {
                let more = model.remove(&labels).expect("there");
                sum.calls += more.calls;
                sum.fast += more.fast;
                sum.nanos += more.nanos;
                sum.bytes += more.bytes;
            }
            prop_assert_eq!(overflow, sum);
            prop_assert_eq!(exposed.len(), all_kinds().max_series);
        }
        prop_assert_eq!(exposed, model);
        prop_assert!(sampler.span_metrics().expect("on").totals().spans <= accepted);
    }
}

/// A rule that reads names in every other round.
fn config_rule(round: usize) -> tailwater::policy::RuleSpec {
    use tailwater::policy::{RuleKind, RuleSpec, StringMatch};
    let values = StringMatch::Exact(vec!["n1".to_owned()]);
    let kind = match round % 2 {
        0 => RuleKind::SpanName { values, invert: false },
        _ => RuleKind::AlwaysSample,
    };
    RuleSpec { kind, sampling_percentage: 100.0 }
}

async fn scrape(running: &Running, accept: &str) -> (u16, String, String) {
    let head = format!(
        "GET /metrics/spans HTTP/1.1\r\nhost: t\r\naccept: {accept}\r\nconnection: close\r\n\r\n"
    );
    let answer = wire::http1(running.service.admin_address, head.as_bytes()).await;
    let content_type = answer.header("content-type").to_owned();
    (answer.status, content_type, String::from_utf8(answer.body).expect("UTF-8"))
}

/// The trace ids of the exemplars of a scrape.
fn exemplars(scrape: &str) -> Vec<String> {
    let exemplars = scrape.lines().filter_map(|line| line.split_once(" # {traceID=\""));
    exemplars.map(|(_, rest)| rest[..32].to_owned()).collect()
}

fn hex(trace: u64) -> String {
    trace_id(trace).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Scenario: the metrics are off, the default.
/// Guarantees: 404 with a body that says how to turn them on.
#[tokio::test]
async fn off_means_not_found() {
    let mut config = quick(ALL);
    config.span_metrics = None;
    let running = Running::start(config).await;
    running.accept(vec![span(HIGH | 1, 1, None)]).await;
    let (status, _, body) = scrape(&running, "*/*").await;
    assert_eq!(
        (status, body.as_str()),
        (404, "span metrics are off; set `enabled = true` in [span_metrics]\n")
    );
    let metrics = running.at_rest().await;
    assert_eq!(metrics.get("span_metrics_spans_total"), 0.0);
    running.stop().await;
}

/// Scenario: a dropped trace, a kept one, late spans of both, and a span with a bad id.
/// Guarantees: all accepted spans count, the refused one does not; only the kept trace becomes an
/// exemplar, once it is decided, and its late span at once; a scraper that does not ask for
/// OpenMetrics gets text without exemplars.
#[tokio::test]
async fn all_spans_count_and_exemplars_are_of_kept_traces() {
    let running = Running::start(quick(ERRORS_AND_HALF)).await;
    let slow = |trace, id, millis: u64| {
        let mut span = span(trace, id, None);
        span.name = "GET /".into();
        span.end_time_unix_nano = span.start_time_unix_nano + millis * 1_000_000;
        span
    };
    let bad = Span { span_id: vec![1], ..slow(HIGH | 1, 9, 1) };
    let kept = Span { status: error(), ..slow(LOW | 1, 1, 700) };
    running
        .export(&crate::harness::request("shop", vec![kept, slow(LOW | 2, 2, 1), bad]))
        .await
        .expect("taken");
    let (_, content_type, body) = scrape(&running, OPENMETRICS).await;
    assert_eq!(content_type, OPENMETRICS);
    assert!(body.ends_with("# EOF\n") && exemplars(&body).is_empty(), "{body}");
    running.at_rest().await;
    let (_, _, body) = scrape(&running, OPENMETRICS).await;
    assert_eq!(exemplars(&body), [hex(LOW | 1)], "{body}");

    running.accept(vec![slow(LOW | 1, 3, 5), slow(LOW | 2, 4, 5)]).await;
    let (_, _, body) = scrape(&running, OPENMETRICS).await;
    assert_eq!(exemplars(&body), [hex(LOW | 1), hex(LOW | 1)], "{body}");
    let late = body.lines().find(|line| line.contains("} 0.005 ")).expect("the late span");
    assert!(late.contains("STATUS_CODE_UNSET\",le=\"0.008\"} 3 # {traceID="), "{late}");

    let (status, content_type, body) = scrape(&running, "text/plain;q=0.5, */*;q=0.1").await;
    assert_eq!((status, content_type.as_str()), (200, TEXT));
    assert!(!body.contains("traceID") && !body.contains("EOF"));
    let labels = |status: &str| {
        format!(
            "service=\"shop\",span_name=\"GET /\",span_kind=\"SPAN_KIND_SERVER\",\
             status_code=\"STATUS_CODE_{status}\""
        )
    };
    let series = parse(&body);
    assert_eq!(series.len(), 2, "{body}");
    assert_eq!((series[&labels("ERROR")].calls, series[&labels("UNSET")].calls), (1, 3));
    let head = b"HEAD /metrics/spans HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n";
    let answer = wire::http1(running.service.admin_address, head).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, TEXT));
    assert!(answer.body.is_empty());
    running.stop().await;
}

/// Scenario: a series gets no span for longer than `stale_after`, and then one again.
/// Guarantees: it is removed, its spans are counted as removed, and it begins anew.
#[tokio::test]
async fn a_series_leaves_and_comes_back() {
    let mut config = quick(ALL);
    let stale_after = Duration::from_secs(1);
    config.span_metrics = Some(Settings { stale_after, style: Style::Connector, ..all_kinds() });
    let running = Running::start(config).await;
    running.accept(vec![span(HIGH | 1, 1, None), span(HIGH | 1, 2, Some(1))]).await;
    let left = |metrics: &Metrics| metrics.sum("span_metrics_stale_series_total") == 2.0;
    let metrics = running.until("both series leave", left).await;
    assert_eq!(metrics.get("span_metrics_stale_spans_total"), 2.0);
    assert_eq!(metrics.get("span_metrics_series"), 0.0);
    running.accept(vec![span(HIGH | 2, 1, None)]).await;
    let (_, _, body) = scrape(&running, TEXT).await;
    assert!(body.contains("traces_span_metrics_calls_total{service_name=\"shop\","), "{body}");
    running.stop().await;
}

/// Scenario: a file that turns the metrics on, and one that changes their style.
/// Guarantees: the first one stays in force; the change is reported to need a restart.
#[test]
fn a_reload_does_not_change_them() {
    let directory = Directory::new();
    let load = |text: &str| {
        let file = directory.file("t.toml", &format!("{text}\n{ALL}"));
        let loaded = config::load(file.as_ref());
        assert!(!loaded.diagnostics.has_errors(), "{}", loaded.diagnostics);
        loaded.config.expect("no errors")
    };
    let tempo = load("[span_metrics]\nenabled = true");
    let settings = tempo.span_metrics.clone().expect("on");
    assert_eq!((settings.kinds, settings.max_series), (1 << 2 | 1 << 5, 10_000));
    assert_eq!((settings.style, settings.exemplars), (Style::Tempo, true));
    assert_eq!(settings.stale_after, Duration::from_secs(900));
    let connector = load("[span_metrics]\nenabled = true\nstyle = \"connector\"");
    assert_eq!(tempo.differences(&connector), ["[span_metrics]"]);
    assert_eq!(load("[span_metrics]\nmax_series = 5").span_metrics, None);
}
