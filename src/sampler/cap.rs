//! `max_trace_bytes_kib`: the largest number of bytes that a kept trace may have over its whole
//! life.
//!
//! Backends with a limit on the size of a trace refuse or cut a trace that exceeds it. Here the
//! spans beyond the limit are dropped and counted instead. Spans are kept in order of arrival, each
//! if it still fits. The decision cache stores the bytes that a trace has used, so the limit also
//! applies to its late spans.

use super::{Decided, KeptTrace, Sampler, ShardState};
use crate::{policy::PolicyId, window};

/// The spans of a kept trace that were dropped because the trace is too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The policy that keeps the other spans.
    pub(crate) policy: PolicyId,
    /// The number of spans.
    pub(crate) spans: u64,
}

impl Sampler {
    /// Applies the cap to the traces that were kept since these positions in `out`.
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

    /// Applies the rest of the cap to the last trace of `out`, which holds late spans of the trace
    /// with this hash.
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

/// Lengths of the lists of a [`Decided`] at one moment.
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
