//! Metrics from all accepted spans, before anything is dropped: calls, durations and sizes by
//! service, name, kind, status and chosen attributes.
//!
//! The sampler calls [`SpanMetrics::count`] once per hold of a shard's lock, after releasing it,
//! with exactly the spans that it has taken. So a span counts once, however often its request was
//! walked, and a span of a refused request is never counted. A span of a chosen kind costs one
//! look-up under one lock of a 64th of the table, and, with dimensions, one parse of its
//! attributes.
//!
//! Exemplars are set when a trace is decided: the decider and the receivers hand over the spans
//! that are about to be exported ([`SpanMetrics::kept`]), including late spans of kept traces.
//! Their series are looked up a second time, so no candidates are stored between arrival and
//! decision, and an exemplar never names a trace that was dropped or a span that was cut off its
//! trace. Most spans are dropped, so the second look-up is rare, whereas a candidate would have to
//! be stored for every span.
//!
//! Limits: `max_series` sets of labels, which together take at most a sixteenth of the memory
//! limit. Spans with further sets count in one series, `metric_overflow="true"`, so the sum over
//! all series is exact. A series that got no span for `stale_after` is removed with its counts, as
//! in any client library: moved to another series, they would count twice in `rate()`. The spans of
//! removed series are counted, so that `counted spans = calls of all series + spans of removed
//! series` always holds at rest.

mod exposition;
mod key;
mod style;
mod table;
#[cfg(test)]
mod tests;

use std::{
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

pub(crate) use self::style::label_of;
pub use self::{
    exposition::{Exposition, Format},
    style::Style,
};
use self::{
    key::Labels,
    style::BUCKETS_MAX,
    table::{Exemplar, Observed, Sums, Table},
};
use crate::{
    budget::Budget,
    clock::Millis,
    otlp::{
        Context,
        encode::KeptSpan,
        walk::{self, SpanMeta},
    },
    trace::SpanKind,
};

/// The most dimensions.
pub(crate) const DIMENSIONS_MAX: usize = 16;
/// The only label of the series that counts spans without room for their own series.
pub(crate) const OVERFLOW_LABEL: &str = "metric_overflow";
/// All series may take the memory limit divided by this.
const SHARE: usize = 16;

/// The number of series that fit into this memory limit, if their labels have the usual length.
pub(crate) fn series_fitting(limit_bytes: usize, exemplars: bool) -> usize {
    const LABEL_BYTES: usize = 100;
    limit_bytes / SHARE / (table::series_bytes(exemplars) + LABEL_BYTES)
}

/// `[span_metrics]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `style`.
    pub style: Style,
    /// `kinds`, as a mask of [`SpanKind::mask`].
    pub kinds: u8,
    /// `dimensions`, at most [`DIMENSIONS_MAX`].
    pub dimensions: Vec<Dimension>,
    /// `max_series`.
    pub max_series: usize,
    /// `stale_after`.
    pub stale_after: Duration,
    /// `exemplars`.
    pub exemplars: bool,
}

/// An attribute that becomes a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dimension {
    /// The key of the attribute.
    pub attribute: String,
    /// The name of the label.
    pub label: String,
}

/// Totals for `/metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Spans that were counted.
    pub spans: u64,
    /// The number of series.
    pub series: usize,
    /// Spans that were counted in the overflow series.
    pub overflow_spans: u64,
    /// The number of removed series, and of the spans in them.
    pub stale: [u64; 2],
}

/// The metrics of one service.
#[derive(Debug)]
pub struct SpanMetrics {
    settings: Settings,
    stale_millis: u32,
    table: Table,
    spans: AtomicU64,
}

impl SpanMetrics {
    /// Makes the table, without any series.
    pub fn new(settings: Settings, budget: &Arc<Budget>) -> Self {
        let max = (settings.max_series, budget.limit() / SHARE);
        SpanMetrics {
            stale_millis: u32::try_from(settings.stale_after.as_millis()).unwrap_or(u32::MAX / 2),
            table: Table::new(budget, max, settings.exemplars),
            spans: AtomicU64::new(0),
            settings,
        }
    }

    /// The settings, which do not change while the service runs.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Counts the accepted spans of a request whose kinds are chosen. `scratch` is a buffer.
    pub(crate) fn count<'a>(
        &self,
        now: Millis,
        request: &[u8],
        contexts: &[Arc<Context>],
        spans: impl Iterator<Item = &'a SpanMeta>,
        scratch: &mut Vec<u8>,
    ) {
        let (mut counted, mut overflow) = (0, None::<Sums>);
        for span in spans.filter(|span| self.is_chosen(span.kind_mask)) {
            counted += 1;
            let bytes = &request[span.offset as usize..][..span.len as usize];
            let labels = self.labels(bytes, &contexts[span.context as usize], span, scratch);
            let observed = self.observe(span);
            if !self.table.add(labels, now, &observed) {
                overflow.get_or_insert_default().add(&observed);
            }
        }
        if counted > 0 {
            self.spans.fetch_add(counted, Relaxed);
        }
        if let Some(sums) = overflow {
            self.table.overflow(&sums);
        }
    }

    /// Makes kept spans the exemplars of their series, at this wall-clock time in milliseconds.
    pub fn kept(&self, spans: &[KeptSpan], now_millis: u64) {
        let Some(set_at_millis) = NonZeroU64::new(now_millis) else { return };
        if spans.is_empty() || !self.settings.exemplars {
            return;
        }
        let mut scratch = Vec::new();
        for KeptSpan { bytes, context } in spans {
            // Most spans are of a kind that is not chosen, and their bytes are no longer in the CPU
            // cache.
            if !self.is_chosen(walk::first_kind_mask(bytes)) {
                continue;
            }
            let meta = walk::span_meta(bytes).filter(|meta| self.is_chosen(meta.kind_mask));
            let Some(meta) = meta else { continue };
            let labels = self.labels(bytes, context, &meta, &mut scratch);
            let Observed { bucket, nanos, .. } = self.observe(&meta);
            let exemplar = Exemplar { trace_id: meta.trace_id, nanos, set_at_millis };
            self.table.set_exemplar(labels, bucket, exemplar);
        }
    }

    /// Removes series that got no span for `stale_after`. Called once per tick; each call checks an
    /// eighth of them.
    pub(crate) fn sweep(&self, now: Millis) {
        self.table.sweep(now, self.stale_millis);
    }

    /// The totals now.
    pub fn totals(&self) -> Totals {
        Totals {
            spans: self.spans.load(Relaxed),
            series: self.table.series(),
            overflow_spans: self.table.overflowed().calls(),
            stale: self.table.stale(),
        }
    }

    fn is_chosen(&self, kind_mask: u8) -> bool {
        kind_of(kind_mask) & self.settings.kinds != 0
    }

    #[inline]
    fn labels<'a>(
        &self,
        bytes: &'a [u8],
        context: &'a Context,
        meta: &SpanMeta,
        scratch: &'a mut Vec<u8>,
    ) -> Labels<'a> {
        let masks = (kind_of(meta.kind_mask), meta.status_mask);
        Labels::new(&self.settings, (bytes, meta.name_at, context), masks, scratch)
    }

    /// The values of a span. The duration of a span without a start or an end is 0 s.
    #[inline]
    fn observe(&self, meta: &SpanMeta) -> Observed {
        let nanos = match (meta.start_unix_nano, meta.end_unix_nano) {
            (0, _) | (_, 0) => 0,
            (start, end) => end - start,
        };
        Observed { bucket: self.settings.style.bucket(nanos), nanos, bytes: meta.len }
    }
}

/// A kind that OTLP does not define counts as unspecified.
fn kind_of(mask: u8) -> u8 {
    if mask == 0 { SpanKind::Unspecified.mask() } else { mask }
}
