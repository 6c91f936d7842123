//! The sink's check: each kept trace arrives whole, with no span twice, and no trace with an error
//! and no slow trace is missing.
//!
//! The shop registers each trace before it is sent; the sink notes every span that arrives. A trace
//! is judged and forgotten [`SETTLED_AFTER`] its registration, or at the end. So a demo of any
//! length holds only the last minute: 15,000 traces, about 3 MB. Spans of traces that the shop did
//! not make come from other senders and are only counted.
//!
//! One lock protects the state. The shop takes it once per trace, the sink once per request;
//! nothing waits while it is held.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, trace::v1::Span,
};

use super::shop::{Kind, Trace};
use crate::{testing::spans_of, trace::TraceId};

/// Longer than the demo needs to decide and export a trace, including retries on a busy machine.
const SETTLED_AFTER: Duration = Duration::from_secs(60);

/// The result of the check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// Kept traces that were judged, or are already complete.
    pub(super) checked: u64,
    /// Kept traces that lack spans, or have spans twice, or have spans that the shop did not make.
    pub(super) broken: u64,
    /// Traces with an error, and slow ones, that arrived.
    pub(super) errors: u64,
    pub(super) slow: u64,
    /// Traces with an error, and slow ones, that did not arrive.
    pub(super) lost: u64,
    /// Traces that the receiver did not take completely, and that cannot be judged.
    pub(super) excused: u64,
    /// Spans from other senders.
    pub(super) foreign_spans: u64,
    /// A broken or lost trace that the user can look up.
    pub(super) culprit: Option<TraceId>,
    /// The last trace with an error that arrived whole.
    pub(super) example: Option<TraceId>,
}

impl Report {
    /// Whether everything that arrived is whole, and everything that had to arrive has arrived.
    pub(super) fn is_fine(&self) -> bool {
        self.broken == 0 && self.lost == 0
    }
}

#[derive(Debug, Default)]
pub(super) struct Verifier {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<TraceId, Expected>,
    /// When each open trace was registered, the oldest first.
    by_age: VecDeque<(Duration, TraceId)>,
    report: Report,
}

#[derive(Debug)]
struct Expected {
    kind: Kind,
    /// Span ids that have not arrived.
    missing: Vec<[u8; 8]>,
    has_arrived: bool,
    /// Whether a span arrived twice, or a span arrived that the shop did not make.
    has_surplus: bool,
    is_excused: bool,
}

impl Verifier {
    /// Registers a trace at `now`, and judges the traces that are older than [`SETTLED_AFTER`].
    pub(super) fn expect(&self, now: Duration, trace: &Trace) {
        let expected = Expected {
            kind: trace.kind,
            missing: trace.spans.iter().filter_map(|(_, span)| span_id(span)).collect(),
            has_arrived: false,
            has_surplus: false,
            is_excused: false,
        };
        let mut state = self.lock();
        state.open.insert(trace.id, expected);
        state.by_age.push_back((now, trace.id));
        while let Some(id) = state.settled(now) {
            state.judge(id);
        }
    }

    /// No longer expects these traces: some of their spans were never taken.
    pub(super) fn excuse(&self, traces: impl IntoIterator<Item = TraceId>) {
        let mut state = self.lock();
        for id in traces {
            if let Some(expected) = state.open.get_mut(&id) {
                expected.is_excused = true;
            }
        }
    }

    /// Notes the spans that arrived at the sink.
    pub(super) fn receive(&self, request: &ExportTraceServiceRequest) {
        let mut state = self.lock();
        for span in spans_of(request) {
            state.receive(span);
        }
    }

    /// The report so far, for the live table. It leaves out traces that are still arriving.
    pub(super) fn so_far(&self) -> Report {
        let state = self.lock();
        let mut report = state.report.clone();
        let complete = |expected: &&Expected| expected.missing.is_empty();
        report.checked += state.open.values().filter(complete).count() as u64;
        report
    }

    /// Judges all remaining traces. Called when nothing will arrive any more.
    pub(super) fn finish(&self) -> Report {
        let mut state = self.lock();
        while let Some((_, id)) = state.by_age.pop_front() {
            state.judge(id);
        }
        state.report.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave a change half done, so the state is still valid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn settled(&mut self, now: Duration) -> Option<TraceId> {
        let (_, id) = self.by_age.pop_front_if(|(since, _)| *since + SETTLED_AFTER <= now)?;
        Some(id)
    }

    fn receive(&mut self, span: &Span) {
        let id = <[u8; 16]>::try_from(&span.trace_id[..]).ok().map(TraceId);
        let Some((id, expected)) = id.and_then(|id| Some((id, self.open.get_mut(&id)?))) else {
            self.report.foreign_spans += 1;
            return;
        };
        expected.has_arrived = true;
        let place = expected.missing.iter().position(|missing| Some(*missing) == span_id(span));
        let Some(place) = place else {
            expected.has_surplus = true;
            return;
        };
        expected.missing.swap_remove(place);
        if expected.missing.is_empty() && expected.kind == Kind::Error {
            self.report.example = Some(id);
        }
    }

    fn judge(&mut self, id: TraceId) {
        let Some(expected) = self.open.remove(&id) else { return };
        let report = &mut self.report;
        let is_whole = expected.missing.is_empty() && !expected.has_surplus;
        if expected.is_excused {
            report.excused += 1;
        } else if expected.has_arrived {
            report.checked += 1;
            report.broken += u64::from(!is_whole);
            report.errors += u64::from(expected.kind == Kind::Error);
            report.slow += u64::from(expected.kind == Kind::Slow);
        } else if expected.kind != Kind::Plain {
            report.lost += 1;
        } else {
            // The trace was dropped, as most are.
            return;
        }
        if !is_whole && !expected.is_excused {
            report.culprit = Some(id);
        }
    }
}

fn span_id(span: &Span) -> Option<[u8; 8]> {
    span.span_id[..].try_into().ok()
}

#[cfg(test)]
mod tests;
