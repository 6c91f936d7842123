//! Writes the exposition for a scraper, in chunks of some tens of KiB, so that the text of a large
//! table is never in memory as a whole. A series that changes meanwhile is consistent in itself:
//! all its lines in a metric come from one copy.
//!
//! The format is OpenMetrics 1.0 or the Prometheus text format 0.0.4. No client library fits: they
//! hold their own series, write the whole text at once, or support only one of the two formats.

use std::{fmt::Write as _, sync::Arc};

use super::{
    BUCKETS_MAX, OVERFLOW_LABEL, SpanMetrics, Sums, key,
    style::Family,
    table::{Exemplars, Place, Shown},
};
use crate::trace::{SpanKind, StatusCode};

/// A chunk is sent when it has reached this length.
const CHUNK_BYTES: usize = 32 << 10;

/// The format of a scrape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0, with exemplars.
    OpenMetrics,
    /// The Prometheus text format 0.0.4, which has no exemplars.
    Text,
}

impl Format {
    /// The content type.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// One scrape, as an iterator over chunks of its text.
#[derive(Debug)]
pub struct Exposition {
    metrics: Arc<SpanMetrics>,
    format: Format,
    /// The number of series made before the scrape. Later ones are left to the next scrape.
    births: u64,
    /// The index of the metric that is being written; one past the last means the end.
    family: usize,
    place: Place,
    has_begun: bool,
    is_over: bool,
    shown: Vec<Shown>,
}

impl Exposition {
    /// Starts a scrape.
    pub fn new(metrics: &Arc<SpanMetrics>, format: Format) -> Self {
        Exposition {
            metrics: Arc::clone(metrics),
            format,
            births: metrics.table.births(),
            family: 0,
            place: Place::default(),
            has_begun: false,
            is_over: false,
            shown: Vec::new(),
        }
    }

    /// Writes the next few series, or at the end of a metric goes on to the next one.
    fn step(&mut self, text: &mut String) {
        let style = self.metrics.settings.style;
        let Some(&family) = style.families().get(self.family) else {
            if self.format == Format::OpenMetrics {
                text.push_str("# EOF\n");
            }
            self.is_over = true;
            return;
        };
        if !self.has_begun {
            self.has_begun = true;
            self.begin(family, text);
        }
        let mut shown = std::mem::take(&mut self.shown);
        let has_more = self.metrics.table.next(&mut self.place, self.births, &mut shown);
        for Shown { key, sums, exemplars } in shown.drain(..) {
            let labels = self.labels(&key);
            self.series(family, &labels, &sums, exemplars.as_deref(), text);
        }
        self.shown = shown;
        if !has_more {
            let overflow = self.metrics.table.overflowed();
            if overflow.calls() > 0 {
                let labels = format!("{OVERFLOW_LABEL}=\"true\"");
                self.series(family, &labels, &overflow, None, text);
            }
            (self.family, self.place, self.has_begun) = (self.family + 1, Place::default(), false);
        }
    }

    fn begin(&self, family: Family, text: &mut String) {
        let name = self.name(family);
        let (kind, help) = match family {
            Family::Calls => ("counter", "Accepted spans, whether kept or dropped."),
            Family::Durations => ("histogram", "Durations of spans in seconds."),
            Family::Sizes => ("counter", "Encoded bytes of spans as received."),
        };
        // Here OpenMetrics names a counter without its `_total`.
        let total = match (kind, self.format) {
            ("counter", Format::Text) => "_total",
            _ => "",
        };
        let _ = writeln!(text, "# HELP {name}{total} {help}\n# TYPE {name}{total} {kind}");
    }

    fn name(&self, family: Family) -> &'static str {
        self.metrics.settings.style.name(family)
    }

    /// The labels of a key, without braces.
    fn labels(&self, key: &[u8]) -> String {
        let settings = &self.metrics.settings;
        let [of_service, of_name, of_kind, of_status] = settings.style.labels();
        let (head, values) = key.split_at_checked(2).unwrap_or_default();
        let mut values = key::values(values);
        let [name, service] = [(); 2].map(|()| values.next().unwrap_or_default());
        let (kind, status) = match head {
            &[kind, status] => (kind_name(kind), status_name(status)),
            _ => ("", ""),
        };
        let mut labels = String::new();
        put_label(&mut labels, of_service, service);
        put_label(&mut labels, of_name, name);
        put_label(&mut labels, of_kind, kind.as_bytes());
        put_label(&mut labels, of_status, status.as_bytes());
        for (dimension, value) in settings.dimensions.iter().zip(values) {
            // An empty label is the same as no label.
            if !value.is_empty() {
                put_label(&mut labels, &dimension.label, value);
            }
        }
        labels
    }

    fn series(
        &self,
        family: Family,
        labels: &str,
        sums: &Sums,
        exemplars: Option<&Exemplars>,
        text: &mut String,
    ) {
        let name = self.name(family);
        let _ = match family {
            Family::Calls => writeln!(text, "{name}_total{{{labels}}} {}", sums.calls()),
            Family::Sizes => writeln!(text, "{name}_total{{{labels}}} {}", sums.bytes),
            Family::Durations => {
                self.buckets(labels, sums, exemplars, text);
                let seconds = sums.nanos as f64 / 1e9;
                let _ = writeln!(text, "{name}_sum{{{labels}}} {seconds}");
                writeln!(text, "{name}_count{{{labels}}} {}", sums.calls())
            }
        };
    }

    fn buckets(&self, labels: &str, sums: &Sums, exemplars: Option<&Exemplars>, text: &mut String) {
        let style = self.metrics.settings.style;
        let exemplars = exemplars.filter(|_| self.format == Format::OpenMetrics);
        let exemplars = exemplars.unwrap_or(&[None; BUCKETS_MAX]);
        let name = self.name(Family::Durations);
        let bounds = style.bounds_millis().iter().map(|millis| Some(*millis as f64 / 1e3));
        let mut total = 0;
        for ((bound, count), exemplar) in bounds.chain([None]).zip(sums.buckets).zip(exemplars) {
            total += count;
            let _ = match (bound, self.format) {
                (None, _) => write!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {total}"),
                (Some(bound), Format::Text) => {
                    write!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {total}")
                }
                // OpenMetrics requires `1.0` instead of `1`.
                (Some(bound), Format::OpenMetrics) => {
                    write!(text, "{name}_bucket{{{labels},le=\"{bound:?}\"}} {total}")
                }
            };
            if let Some(exemplar) = exemplar {
                let (label, trace_id) = (style.exemplar_label(), exemplar.trace_id);
                let seconds = exemplar.nanos as f64 / 1e9;
                let at = exemplar.set_at_millis.get();
                let (at, millis) = (at / 1_000, at % 1_000);
                let _ = write!(text, " # {{{label}=\"{trace_id}\"}} {seconds} {at}.{millis:03}");
            }
            text.push('\n');
        }
    }
}

impl Iterator for Exposition {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        if self.is_over {
            return None;
        }
        let mut text = String::new();
        while text.len() < CHUNK_BYTES && !self.is_over {
            self.step(&mut text);
        }
        Some(text)
    }
}

/// Adds a label with its value escaped.
fn put_label(labels: &mut String, name: &str, value: &[u8]) {
    if !labels.is_empty() {
        labels.push(',');
    }
    let _ = write!(labels, "{name}=\"");
    // Keys contain only UTF-8.
    for c in String::from_utf8_lossy(value).chars() {
        match c {
            '\\' => labels.push_str("\\\\"),
            '"' => labels.push_str("\\\""),
            '\n' => labels.push_str("\\n"),
            c => labels.push(c),
        }
    }
    labels.push('"');
}

fn kind_name(mask: u8) -> &'static str {
    const KINDS: [(SpanKind, &str); 6] = [
        (SpanKind::Unspecified, "SPAN_KIND_UNSPECIFIED"),
        (SpanKind::Internal, "SPAN_KIND_INTERNAL"),
        (SpanKind::Server, "SPAN_KIND_SERVER"),
        (SpanKind::Client, "SPAN_KIND_CLIENT"),
        (SpanKind::Producer, "SPAN_KIND_PRODUCER"),
        (SpanKind::Consumer, "SPAN_KIND_CONSUMER"),
    ];
    KINDS.iter().find(|(kind, _)| kind.mask() == mask).map_or("", |(_, name)| name)
}

fn status_name(mask: u8) -> &'static str {
    const CODES: [(StatusCode, &str); 3] = [
        (StatusCode::Unset, "STATUS_CODE_UNSET"),
        (StatusCode::Ok, "STATUS_CODE_OK"),
        (StatusCode::Error, "STATUS_CODE_ERROR"),
    ];
    CODES.iter().find(|(code, _)| code.mask() == mask).map_or("", |(_, name)| name)
}
