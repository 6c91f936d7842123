use opentelemetry_proto::tonic::{
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, Status},
};
use prost::Message as _;

use super::*;
use crate::{
    otlp::{Contexts, walk::Walked, wire},
    testing::{self, attribute, text},
};

const SERVER: u8 = 1 << 2;

fn settings(style: Style) -> Settings {
    Settings {
        style,
        kinds: SERVER,
        dimensions: Vec::new(),
        max_series: 100,
        stale_after: Duration::from_secs(60),
        exemplars: true,
    }
}

fn with_dimensions(names: &[&str]) -> Settings {
    let dimensions =
        names.iter().map(|name| Dimension { attribute: (*name).to_owned(), label: label_of(name) });
    Settings { dimensions: dimensions.collect(), ..settings(Style::Tempo) }
}

fn span(name: &str, millis: u64) -> Span {
    let start = 1_700_000_000_000_000_000;
    Span {
        trace_id: vec![7; 16],
        span_id: vec![1; 8],
        name: name.to_owned(),
        kind: 2,
        start_time_unix_nano: start,
        end_time_unix_nano: start + millis * 1_000_000,
        ..Span::default()
    }
}

fn request(resource: Vec<KeyValue>, spans: Vec<Span>) -> Vec<u8> {
    testing::request(resource, spans).encode_to_vec()
}

/// Span metrics, and the contexts of the requests that they count.
struct Counting {
    metrics: Arc<SpanMetrics>,
    contexts: Contexts,
    budget: Arc<Budget>,
    now: Millis,
}

impl Counting {
    fn new(settings: Settings) -> Self {
        Self::within(settings, 1 << 30)
    }

    fn within(settings: Settings, bytes: usize) -> Self {
        let budget = Budget::new(bytes);
        let metrics = Arc::new(SpanMetrics::new(settings, &budget));
        Counting { metrics, contexts: Contexts::new(Arc::clone(&budget)), budget, now: Millis(0) }
    }

    /// Counts a request, and returns its spans as if they were kept.
    fn count(&self, request: &[u8]) -> Vec<KeptSpan> {
        let mut walked = Walked::default();
        walk::walk(request, &self.contexts, &(), &mut walked).expect("valid");
        let (spans, contexts) = (walked.spans.iter(), &walked.contexts);
        self.metrics.count(self.now, request, contexts, spans, &mut Vec::new());
        let spans = walked.spans.iter().map(|span| KeptSpan {
            bytes: request[span.offset as usize..][..span.len as usize].to_vec().into(),
            context: Arc::clone(&contexts[span.context as usize]),
        });
        spans.collect()
    }

    fn spans(&self, spans: Vec<Span>) -> Vec<KeptSpan> {
        self.count(&request(vec![text("service.name", "shop")], spans))
    }

    fn scrape(&self, format: Format) -> String {
        Exposition::new(&self.metrics, format).collect()
    }

    /// The calls by labels, without the labels that every series has.
    fn calls(&self) -> Vec<(String, u64)> {
        let scrape = self.scrape(Format::Text);
        let calls = scrape.lines().filter_map(|line| line.split_once("_calls_total{"));
        let calls = calls.filter(|(start, _)| !start.starts_with('#')).map(|(_, rest)| {
            let (labels, value) = rest.rsplit_once("} ").expect("a value");
            let always = ",span_kind=\"SPAN_KIND_SERVER\",status_code=\"STATUS_CODE_UNSET\"";
            (labels.replace(always, ""), value.parse().expect("a number"))
        });
        let mut calls: Vec<_> = calls.collect();
        calls.sort();
        calls
    }

    fn sum(&self) -> u64 {
        self.calls().iter().map(|(_, calls)| calls).sum()
    }
}

#[test]
fn tempo_style() {
    let counting = Counting::new(settings(Style::Tempo));
    let error = Some(Status { code: 2, ..Status::default() });
    let spans = [Span { status: error, ..span("GET /", 3) }, Span { kind: 3, ..span("call", 3) }];
    let bytes = spans[0].encoded_len();
    counting.spans(spans.to_vec());
    let labels = "service=\"shop\",span_name=\"GET /\",span_kind=\"SPAN_KIND_SERVER\",\
                  status_code=\"STATUS_CODE_ERROR\"";
    let bounds = [
        "0.002", "0.004", "0.008", "0.016", "0.032", "0.064", "0.128", "0.256", "0.512", "1.024",
        "2.048", "4.096", "8.192", "16.384", "+Inf",
    ];
    let buckets: String = bounds
        .iter()
        .enumerate()
        .map(|(index, le)| {
            let count = u8::from(index > 0);
            format!("traces_spanmetrics_latency_bucket{{{labels},le=\"{le}\"}} {count}\n")
        })
        .collect();
    let expected = format!(
        "# HELP traces_spanmetrics_calls_total Accepted spans, whether kept or dropped.\n\
         # TYPE traces_spanmetrics_calls_total counter\n\
         traces_spanmetrics_calls_total{{{labels}}} 1\n\
         # HELP traces_spanmetrics_latency Durations of spans in seconds.\n\
         # TYPE traces_spanmetrics_latency histogram\n\
         {buckets}\
         traces_spanmetrics_latency_sum{{{labels}}} 0.003\n\
         traces_spanmetrics_latency_count{{{labels}}} 1\n\
         # HELP traces_spanmetrics_size_total Encoded bytes of spans as received.\n\
         # TYPE traces_spanmetrics_size_total counter\n\
         traces_spanmetrics_size_total{{{labels}}} {bytes}\n"
    );
    assert_eq!(counting.scrape(Format::Text), expected);
    let openmetrics = expected
        .replace("calls_total Accepted", "calls Accepted")
        .replace("calls_total counter", "calls counter")
        .replace("size_total Encoded", "size Encoded")
        .replace("size_total counter", "size counter");
    assert_eq!(counting.scrape(Format::OpenMetrics), openmetrics + "# EOF\n");
}

#[test]
fn connector_style() {
    let counting = Counting::new(settings(Style::Connector));
    let kept = counting.spans(vec![span("GET /", 900)]);
    counting.metrics.kept(&kept, 1_700_000_001_007);
    let scrape = counting.scrape(Format::OpenMetrics);
    let labels = "service_name=\"shop\",span_name=\"GET /\",span_kind=\"SPAN_KIND_SERVER\",\
                  status_code=\"STATUS_CODE_UNSET\"";
    let exemplar = " # {trace_id=\"07070707070707070707070707070707\"} 0.9 1700000001.007";
    for line in [
        "# TYPE traces_span_metrics_calls counter".to_owned(),
        format!("traces_span_metrics_calls_total{{{labels}}} 1"),
        "# TYPE traces_span_metrics_duration_seconds histogram".to_owned(),
        format!("traces_span_metrics_duration_seconds_bucket{{{labels},le=\"0.8\"}} 0"),
        format!("traces_span_metrics_duration_seconds_bucket{{{labels},le=\"1.0\"}} 1{exemplar}"),
        format!("traces_span_metrics_duration_seconds_bucket{{{labels},le=\"15.0\"}} 1"),
        format!("traces_span_metrics_duration_seconds_bucket{{{labels},le=\"+Inf\"}} 1"),
        format!("traces_span_metrics_duration_seconds_sum{{{labels}}} 0.9"),
    ] {
        assert!(scrape.lines().any(|other| other == line), "{line}\n{scrape}");
    }
    assert!(!scrape.contains("size"));
}

#[test]
fn hostile_values_are_cut_repaired_and_escaped() {
    let counting = Counting::new(with_dimensions(&["x"]));
    let long = "é".repeat(30_000);
    let values = ["a\"b\\c\nd", "nul\0", &long, &format!("{}b", &long[..long.len() - 1_000])];
    for value in values {
        let attributes = vec![text("x", value)];
        counting.spans(vec![Span { attributes, ..span(value, 1) }]);
    }
    // A name of 3 bytes that are not UTF-8.
    let name = request(vec![], vec![span("???", 1)]);
    let at = name.windows(3).position(|bytes| bytes == b"???").expect("the name");
    let mut not_utf8 = name.clone();
    not_utf8[at..at + 3].copy_from_slice(b"a\xe9b");
    counting.count(&not_utf8);
    let cut = "é".repeat(127);
    let labels = |value: &str| format!("service=\"shop\",span_name=\"{value}\",x=\"{value}\"");
    let mut expected = vec![
        ("service=\"\",span_name=\"a\u{fffd}b\"".to_owned(), 1),
        (labels("a\\\"b\\\\c\\nd"), 1),
        (labels("nul\u{fffd}"), 1),
        (labels(&cut), 2),
    ];
    expected.sort();
    assert_eq!(counting.calls(), expected);
}

#[test]
fn the_last_name_counts_wherever_it_is() {
    let field = |number, bytes: &[u8]| {
        let mut field = Vec::new();
        wire::put_length_delimited(&mut field, number, bytes.len());
        field.extend_from_slice(bytes);
        field
    };
    let counting = Counting::new(settings(Style::Tempo));
    let long = Span { attributes: vec![text("long", "x".repeat(300))], ..span("first", 5) };
    for (name, span) in [("near", span("first", 5)), ("far", long)] {
        let span = [span.encode_to_vec(), field(5, name.as_bytes())].concat();
        counting.count(&field(1, &field(2, &field(2, &span))));
    }
    let calls = |name| (format!("service=\"\",span_name=\"{name}\""), 1);
    assert_eq!(counting.calls(), [calls("far"), calls("near")]);
}

#[test]
fn dimensions_are_of_the_span_or_else_of_the_resource() {
    let counting = Counting::new(with_dimensions(&["http.route", "zone", "n"]));
    let resource = || vec![text("service.name", "s"), text("zone", "z"), text("http.route", "r")];
    let both = vec![text("other", "o"), text("http.route", "/a"), text("http.route", "/b")];
    let list = attribute("n", Value::ArrayValue(Default::default()));
    let spans = vec![
        Span { attributes: both, ..span("a", 1) },
        Span {
            attributes: vec![attribute("n", Value::IntValue(-7)), text("zone", "")],
            ..span("b", 1)
        },
        Span { attributes: vec![attribute("n", Value::BoolValue(true))], ..span("c", 1) },
        Span { attributes: vec![attribute("n", Value::DoubleValue(1.5))], ..span("d", 1) },
        Span { attributes: vec![attribute("n", Value::DoubleValue(1e308))], ..span("f", 1) },
        Span { attributes: vec![list], ..span("e", 1) },
    ];
    counting.count(&request(resource(), spans.clone()));
    counting.count(&request(resource(), spans[..1].to_vec()));
    let calls = |name: &str, more: &str| format!("service=\"s\",span_name=\"{name}\",{more}");
    let expected = vec![
        (calls("a", "http_route=\"/a\",zone=\"z\""), 2),
        (calls("b", "http_route=\"r\",zone=\"z\",n=\"-7\""), 1),
        (calls("c", "http_route=\"r\",zone=\"z\",n=\"true\""), 1),
        (calls("d", "http_route=\"r\",zone=\"z\",n=\"1.5\""), 1),
        (calls("e", "http_route=\"r\",zone=\"z\""), 1),
        (calls("f", "http_route=\"r\",zone=\"z\",n=\"1e308\""), 1),
    ];
    assert_eq!(counting.calls(), expected);
}

#[test]
fn keys_without_room_count_in_one_series() {
    let counting = Counting::new(Settings { max_series: 2, ..settings(Style::Tempo) });
    for round in 0..3 {
        let kept = counting.spans((0..5).map(|n| span(&format!("{n}"), 1)).collect());
        counting.metrics.kept(&kept, round);
    }
    let series = |n| (format!("service=\"shop\",span_name=\"{n}\""), 3);
    let overflow = ("metric_overflow=\"true\"".to_owned(), 9);
    assert_eq!(counting.calls(), [overflow, series(0), series(1)]);
    let totals = counting.metrics.totals();
    assert_eq!((totals.spans, totals.series, totals.overflow_spans), (15, 2, 9));
    assert!(
        counting.scrape(Format::OpenMetrics).contains(
            "traces_spanmetrics_latency_bucket{metric_overflow=\"true\",le=\"0.002\"} 9\n"
        )
    );
}

#[test]
fn series_take_a_sixteenth_of_the_memory_limit() {
    let counting =
        Counting::within(Settings { max_series: usize::MAX, ..settings(Style::Tempo) }, 16 << 20);
    for n in 0..20 {
        counting
            .spans((0..100).map(|m| span(&format!("{n} {m}{}", "x".repeat(9_000)), 1)).collect());
        counting.spans((0..100).map(|m| span(&format!("{n} {m}"), 1)).collect());
    }
    let totals = counting.metrics.totals();
    assert!(totals.series > 700 && totals.series < 2_000, "{totals:?}");
    assert_eq!((totals.spans, counting.sum()), (4_000, 4_000));
    let held = counting.budget.held(crate::budget::Holder::SpanMetrics);
    assert!(held <= 1 << 20 && held > (1 << 20) - 2_000, "{held}");
    let Counting { metrics, budget, contexts, .. } = counting;
    drop((metrics, contexts));
    assert_eq!(budget.used(), 0);
}

#[test]
fn stale_series_leave_with_their_counts() {
    let mut counting = Counting::new(settings(Style::Tempo));
    counting.spans(vec![span("old", 1), span("old", 1), span("new", 1)]);
    let held = counting.budget.held(crate::budget::Holder::SpanMetrics);
    counting.now = Millis(59_000);
    counting.spans(vec![span("new", 1)]);
    // The scrape begins before the change and is read after it.
    let scrape = Exposition::new(&counting.metrics, Format::Text);
    for round in 0..8 {
        assert_eq!(counting.metrics.totals().stale, [0, 0], "{round}");
        counting.metrics.sweep(Millis(59_999));
    }
    for _ in 0..8 {
        counting.metrics.sweep(Millis(60_000));
    }
    let new = |calls| ("service=\"shop\",span_name=\"new\"".to_owned(), calls);
    assert_eq!(counting.calls(), [new(2)]);
    let totals = counting.metrics.totals();
    assert_eq!((totals.spans, totals.series, totals.stale), (4, 1, [1, 2]));
    let held_now = counting.budget.held(crate::budget::Holder::SpanMetrics);
    assert!(held_now < held && held_now > 0);
    counting.spans(vec![span("old", 1)]);
    assert_eq!(counting.calls(), [new(2), ("service=\"shop\",span_name=\"old\"".to_owned(), 1)]);
    assert!(!scrape.collect::<String>().contains("old"), "it would be there twice");
}

#[test]
fn exemplars_are_the_newest_kept_spans_of_their_buckets() {
    let counting = Counting::new(settings(Style::Tempo));
    let of = |trace: u8, millis| Span { trace_id: vec![trace; 16], ..span("a", millis) };
    let kept = counting.spans(vec![of(1, 1), of(2, 1), of(3, 100), of(4, 100_000)]);
    counting.metrics.kept(&kept[..2], 5_000);
    counting.metrics.kept(&kept[3..], 6_001);
    // The series does not exist: nothing was counted in it.
    let other = Counting::new(settings(Style::Tempo)).spans(vec![span("b", 1)]);
    counting.metrics.kept(&other, 7_000);
    let scrape = counting.scrape(Format::OpenMetrics);
    let exemplars: Vec<_> = scrape.lines().filter_map(|line| line.split_once(" # ")).collect();
    let told: Vec<_> = exemplars.iter().map(|(_, exemplar)| *exemplar).collect();
    assert_eq!(
        told,
        [
            "{traceID=\"02020202020202020202020202020202\"} 0.001 5.000",
            "{traceID=\"04040404040404040404040404040404\"} 100 6.001",
        ]
    );
    assert!(exemplars[0].0.contains("le=\"0.002\"") && exemplars[1].0.contains("le=\"+Inf\""));
    assert!(!counting.scrape(Format::Text).contains("traceID"));
}

#[test]
fn times_that_make_no_sense_are_durations_all_the_same() {
    let counting = Counting::new(settings(Style::Tempo));
    let times = [(0, 5), (5, 0), (9, 5), (0, 0), (1, u64::MAX), (1, u64::MAX)];
    counting.spans(
        times
            .iter()
            .map(|&(start_time_unix_nano, end_time_unix_nano)| Span {
                start_time_unix_nano,
                end_time_unix_nano,
                ..span("a", 0)
            })
            .collect(),
    );
    let scrape = counting.scrape(Format::Text);
    let value = |name: &str| {
        let line = scrape.lines().find(|line| line.starts_with(name)).expect("there");
        line.rsplit(' ').next().expect("a value").to_owned()
    };
    assert_eq!(value("traces_spanmetrics_latency_count"), "6");
    assert_eq!(value("traces_spanmetrics_latency_bucket"), "4");
    assert_eq!(value("traces_spanmetrics_latency_sum").split('.').next(), Some("36893488147"));
}

#[test]
fn a_large_table_comes_in_chunks() {
    let counting = Counting::new(Settings { max_series: 5_000, ..settings(Style::Connector) });
    for n in 0..50 {
        counting.spans((0..100).map(|m| span(&format!("{n} {m}"), 1)).collect());
    }
    let longest = Exposition::new(&counting.metrics, Format::OpenMetrics).map(|text| text.len());
    assert!(longest.max().expect("chunks") < 128 << 10);
    assert_eq!((counting.calls().len(), counting.sum()), (5_000, 5_000));
}
