//! Records which spans of a log an earlier process has dealt with, so that a replay skips them.
//!
//! For a trace that the earlier process decided, all spans below one position were part of the
//! decision. At or above that position, the spans of some requests were part of the decision or
//! followed it as late spans. The replay takes in its other spans, as late spans.

use std::collections::HashMap;

use crate::trace::TraceId;

/// The spans of one trace that were dealt with, as positions.
#[derive(Clone, Debug, Default)]
struct OfTrace {
    below: u64,
    /// Single positions at or above `below`.
    at: Vec<u64>,
}

/// The spans of decided traces that a replay skips.
#[derive(Debug, Default)]
pub struct Passed {
    traces: HashMap<TraceId, OfTrace, foldhash::fast::RandomState>,
    positions: usize,
}

impl Passed {
    /// Records that the spans of a trace below position `below`, and those at position `at`, were
    /// part of its decision. If a trace was decided twice, its first decision had been forgotten,
    /// and all its spans below the higher position were dealt with.
    pub fn decided(&mut self, trace_id: TraceId, below: u64, at: Option<u64>) {
        let of_trace = self.traces.entry(trace_id).or_default();
        of_trace.below = of_trace.below.max(below);
        if let Some(at) = at.filter(|&at| at >= below) {
            of_trace.at.push(at);
            self.positions += 1;
        }
    }

    /// Records that the late spans of a trace at a position followed its decision.
    pub fn followed(&mut self, trace_id: TraceId, at: u64) {
        self.decided(trace_id, 0, Some(at));
    }

    /// Whether a replay skips the spans of a trace at a position.
    pub(crate) fn covers(&self, trace_id: TraceId, position: u64) -> bool {
        self.traces
            .get(&trace_id)
            .is_some_and(|taken| position < taken.below || taken.at.contains(&position))
    }

    /// The memory that it takes, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.traces.capacity() * (size_of::<(TraceId, OfTrace)>() + 1) + self.positions * 16
    }
}
