//! `max_trace_bytes_kib`: what a kept trace may come to over its whole life.
//!
//! Backends that bound a trace refuse or cut it where it passes the bound; here the spans beyond it
//! are dropped and counted instead. In the order of arrival, each span that still fits is kept.
//! What a trace has used is remembered as long as its decision, for its late spans.

use super::{Decided, KeptTrace, Sampler, ShardState};
use crate::{policy::PolicyId, window};

/// Spans of a kept trace that were dropped because it is too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The policy that keeps the rest.
    pub policy: PolicyId,
    /// How many.
    pub spans: u64,
}

impl Sampler {
    /// Cuts the traces that were kept since these positions in `out` to the cap.
    pub(super) fn cut(&self, state: &mut ShardState, since: Since, out: &mut Decided) {
        let Some(cap) = self.limits.kept_bytes_max else { return };
        let records = &out.decisions.records[since.record..];
        let kept_records = records.iter().filter(|record| record.decision.verdict.kept);
        let mut spans = out.spans.split_off(since.span).into_iter();
        for (trace, record) in out.kept[since.kept..].iter_mut().zip(kept_records) {
            let mut used = 0;
            let before = out.spans.len();
            for span in spans.by_ref().take(trace.spans) {
                if fits(&mut used, span.bytes.len(), cap) {
                    out.spans.push(span);
                } else {
                    out.kept_bytes -= span.bytes.len();
                    out.unfit.push(span);
                }
            }
            let fitting = out.spans.len() - before;
            note_cut(&mut out.cut, trace, trace.spans - fitting);
            trace.spans = fitting;
            let hash = window::hash_of(&self.hasher, record.trace_id);
            state.remembered.use_bytes(hash, used);
        }
    }

    /// Cuts the last trace of `out`, late spans of the trace of this hash, to what is left of it.
    pub(super) fn cut_late(&self, state: &mut ShardState, hash: u64, out: &mut Decided) {
        let Some(cap) = self.limits.kept_bytes_max else { return };
        let Some(trace) = out.kept.last_mut() else { return };
        let mut used = state.remembered.used_bytes(hash);
        let late = out.spans.split_off(out.spans.len() - trace.spans);
        let before = out.spans.len();
        out.kept_bytes -= late.iter().map(|span| span.bytes.len()).sum::<usize>();
        for span in late {
            let target = if fits(&mut used, span.bytes.len(), cap) {
                &mut out.spans
            } else {
                &mut out.unfit
            };
            target.push(span);
        }
        out.kept_bytes += out.spans[before..].iter().map(|span| span.bytes.len()).sum::<usize>();
        let fitting = out.spans.len() - before;
        note_cut(&mut out.cut, trace, trace.spans - fitting);
        trace.spans = fitting;
        state.remembered.use_bytes(hash, used);
    }
}

/// Where in a [`Decided`] something began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Since {
    record: usize,
    kept: usize,
    span: usize,
}

impl Since {
    pub(super) fn now(out: &Decided) -> Self {
        Since { record: out.decisions.records.len(), kept: out.kept.len(), span: out.spans.len() }
    }

    pub(super) fn record(self) -> usize {
        self.record
    }
}

fn fits(used: &mut u64, bytes: usize, cap: u64) -> bool {
    let with_it = *used + bytes as u64;
    let fits = with_it <= cap;
    if fits {
        *used = with_it;
    }
    fits
}

fn note_cut(cut: &mut Vec<Cut>, trace: &KeptTrace, spans: usize) {
    if spans > 0 {
        cut.push(Cut { policy: trace.verdict.policy, spans: spans as u64 });
    }
}
