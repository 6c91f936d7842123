//! Which spans of a log an earlier process has dealt with, so that a replay passes over them.
//!
//! A trace that the earlier process decided has all its spans below one position in the decision.
//! Above it, the spans of single requests were part of the decision, or followed it as late spans.
//! The rest of its spans are late spans still.

use std::collections::HashMap;

use crate::trace::TraceId;

/// What was taken of one trace.
#[derive(Clone, Debug, Default)]
struct OfTrace {
    below: u64,
    /// Positions at or above `below`.
    at: Vec<u64>,
}

/// The spans of decided traces that a replay passes over.
#[derive(Debug, Default)]
pub struct Passed {
    traces: HashMap<TraceId, OfTrace, foldhash::fast::RandomState>,
    positions: usize,
}

impl Passed {
    /// The spans of a trace below a position, and at one more, were part of its decision. A trace
    /// that was decided again was forgotten before, and everything of it below was dealt with.
    pub fn decided(&mut self, trace_id: TraceId, below: u64, at: Option<u64>) {
        let of_trace = self.traces.entry(trace_id).or_default();
        of_trace.below = of_trace.below.max(below);
        if let Some(at) = at.filter(|&at| at >= below) {
            of_trace.at.push(at);
            self.positions += 1;
        }
    }

    /// The late spans of a trace at a position have left.
    pub fn followed(&mut self, trace_id: TraceId, at: u64) {
        self.decided(trace_id, 0, Some(at));
    }

    /// Whether a replay passes over the spans of a trace at a position.
    pub(crate) fn covers(&self, trace_id: TraceId, position: u64) -> bool {
        self.traces
            .get(&trace_id)
            .is_some_and(|taken| position < taken.below || taken.at.contains(&position))
    }

    /// The bytes that it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.traces.capacity() * (size_of::<(TraceId, OfTrace)>() + 1) + self.positions * 16
    }
}
