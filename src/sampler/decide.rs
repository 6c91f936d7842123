//! Decides traces: takes their bits and facts, and returns decisions and the spans of kept traces.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
};

use super::{Cut, Sampler, ShardState, cap::Since, partition::HeldBack};
use crate::{
    decisions::{Decision, DecisionRecord, Decisions},
    otlp::encode::KeptSpan,
    policy::{Evidence, Plan, Shadowed, Verdict},
    recording::Chosen,
    trace::{Facts, Randomness, StatusCode, TraceId, Trigger},
    window::{self, Due, Freed, Millis, Position, Run, Shard, Taken},
};

/// The most traces that are decided in one hold of the lock. A longer hold delays acknowledgements.
const TRACES_PER_LOCK: usize = 256;
/// The number of entries that each list of a [`Decided`] keeps room for when it is cleared.
const SPARE_ENTRIES: usize = 16 << 10;
/// After this many kept or recorded spans, no further trace is decided in the same hold of the
/// lock, because each of these spans takes 40 bytes in addition to its own until it is encoded.
const KEPT_SPANS_PER_LOCK: usize = 8 << 10;

/// The decisions of one hold of the lock, or of one request. The buffers are reused: call `clear`.
#[derive(Debug, Default)]
pub struct Decided {
    /// The decisions, kept and dropped.
    pub decisions: Decisions,
    /// The traces, or late parts of traces, whose spans will be exported.
    pub kept: Vec<KeptTrace>,
    /// Their spans, in the same order.
    pub spans: Vec<KeptSpan>,
    /// The encoded bytes of those spans.
    pub kept_bytes: usize,
    /// Spans that arrived after the decision of their trace.
    pub late: Vec<Late>,
    /// The number of late spans that shadow policies would have treated differently. The counts are
    /// sums, because each late span of a request may belong to another trace.
    pub late_shadowed: HashMap<Shadowed, u64, foldhash::fast::RandomState>,
    /// Spans of kept traces beyond the cap. They are not in `spans`.
    pub cut: Vec<Cut>,
    /// Traces that were dropped because a policy panicked.
    pub panics: u64,
    /// Traces that recordings have chosen.
    pub chosen: Chosen,
    /// Decisions that were forgotten before their time to live was over.
    pub forgotten: u64,
    /// If the sampler keeps positions: every span of the decided traces below this position is part
    /// of their decisions.
    pub taken_below: Option<u64>,
    /// The position of the request that caused the decisions. Its spans of these traces are part of
    /// the decisions, or followed them as late spans.
    pub position: Option<u64>,
    /// If the sampler keeps positions: the kept traces that got late spans, with the encoded bytes
    /// of these spans.
    pub late_kept: Vec<(TraceId, u64)>,
    /// Spans of a replayed request that were skipped, because an earlier process had dealt with
    /// them.
    pub passed_over: u64,
    /// Kept traces of this hold of the lock of which some spans have left before.
    pub(super) held_back: Vec<HeldBack>,
    /// Records of this hold of the lock that say dropped, and what late spans follow instead.
    pub(super) guessed: Vec<(usize, Decision)>,
    /// Traces decided in this hold of the lock whose records are not removed yet.
    pub(super) taken: Vec<Taken>,
    /// Spans beyond the cap. They are dropped outside the lock, because the last span of a segment
    /// frees it.
    pub(super) unfit: Vec<KeptSpan>,
    /// Segments to drop outside the lock.
    freed: Freed,
}

impl Decided {
    /// Clears everything and frees the segments that the window has given up. Room that only an
    /// unusual request needed is not kept.
    pub fn clear(&mut self) {
        self.decisions.records.clear();
        self.decisions.matched.clear();
        self.decisions.shadowed.clear();
        self.late_shadowed.clear();
        self.kept.clear();
        self.spans.clear();
        self.kept_bytes = 0;
        self.late.clear();
        self.cut.clear();
        self.panics = 0;
        self.chosen.give_up();
        self.forgotten = 0;
        self.taken_below = None;
        self.position = None;
        self.late_kept.clear();
        self.passed_over = 0;
        self.unfit.clear();
        self.freed.clear();
        self.decisions.records.shrink_to(SPARE_ENTRIES);
        self.decisions.matched.shrink_to(SPARE_ENTRIES);
        self.kept.shrink_to(SPARE_ENTRIES);
        self.spans.shrink_to(SPARE_ENTRIES);
        self.late.shrink_to(SPARE_ENTRIES);
    }

    /// Notes the position below which all requests have been taken in. Called under the shard's
    /// lock. Later calls change nothing: the first position is the lowest.
    pub(super) fn note_taken(&mut self, state: &mut ShardState) {
        if state.positions.is_some() {
            self.taken_below.get_or_insert(state.taken_below());
        }
    }

    /// Notes what is only a guess about the next record, which says dropped instead: the owner
    /// before has decided this trace by other thresholds, and has delivered what it kept. Late
    /// spans follow the guess.
    fn guess(&mut self, decision: Decision) -> Decision {
        self.guessed.push((self.decisions.records.len(), decision));
        let verdict = Verdict { kept: false, ..decision.verdict };
        Decision { verdict, ..decision }
    }

    /// The number of spans that have left the window or never entered it, whether kept or not.
    pub(super) fn left_spans(&self) -> u64 {
        let decided = self.decisions.records.iter().map(|record| u64::from(record.spans));
        decided.sum::<u64>() + self.late.iter().map(|late| late.spans).sum::<u64>()
    }

    /// Called after a panic. Discards data that may be incomplete and returns the number of kept
    /// spans that are lost with it. The decisions stay, so they are counted.
    pub(crate) fn give_up(&mut self) -> u64 {
        self.kept.clear();
        self.spans.clear();
        self.kept_bytes = 0;
        self.held_back.clear();
        self.guessed.clear();
        self.taken.clear();
        self.chosen.give_up();
        let records = self.decisions.records.iter().filter(|record| record.decision.verdict.kept);
        let late = self.late.iter().filter(|late| late.verdict.kept);
        let kept = records.map(|record| u64::from(record.spans)).sum::<u64>();
        let kept = kept + late.map(|late| late.spans).sum::<u64>();
        kept - self.cut.iter().map(|cut| cut.spans).sum::<u64>()
    }
}

/// A kept trace, or the late part of one, that will be exported.
#[derive(Clone, Copy, Debug)]
pub struct KeptTrace {
    /// The deciding policy and its threshold.
    pub verdict: Verdict,
    /// The reason for the decision; `None` for late spans, which do not get the policy's stamp.
    pub trigger: Option<Trigger>,
    /// The randomness that was compared with the threshold.
    pub randomness: Randomness,
    /// Whether the randomness came from an `rv`.
    pub is_explicit: bool,
    /// The number of spans in [`Decided::spans`] that belong to it.
    pub spans: usize,
}

/// Late spans of one trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late {
    /// The decision they follow.
    pub verdict: Verdict,
    /// The number of spans.
    pub spans: u64,
    /// The number of them with the status ERROR.
    pub errors: u64,
}

/// Selects the traces to decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Traces that are due.
    Due,
    /// The oldest traces, due or not, with this trigger.
    Oldest(Trigger),
    /// The oldest traces that arrived by this time, with this trigger.
    ArrivedBy(Millis, Trigger),
}

/// The result of one call of [`Sampler::decide`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// No trace is left to decide, and no segment to compact.
    Done,
    /// The lock was released; there may be more to do.
    More,
    /// The next trace is larger than the remaining room. It was not judged.
    NoRoom,
}

impl Sampler {
    /// Decides up to 256 traces of one shard at `now`. The spans of kept traces take at most `room`
    /// bytes, unless the first trace alone is larger.
    pub fn decide(
        &self,
        shard: usize,
        now: Millis,
        which: Which,
        room: usize,
        out: &mut Decided,
    ) -> Progress {
        let mut state = self.lock(shard);
        out.note_taken(&mut state);
        Sampler::advance(&mut state, now);
        let now = state.time();
        let by = self.limited_to_tick(&state, now);
        let mut progress = Progress::More;
        let since = Since::now(out);
        let (mut kept_traces, mut kept_spans) = (out.kept.len(), 0);
        for _ in 0..TRACES_PER_LOCK {
            if kept_spans + out.chosen.spans() >= KEPT_SPANS_PER_LOCK {
                break;
            }
            let early = |(position, _), trigger| Due { position, trigger, at: now };
            let due = match which {
                Which::Due => by.and_then(|by| state.window.next_due(by)),
                Which::Oldest(trigger) => {
                    state.window.oldest().map(|oldest| early(oldest, trigger))
                }
                Which::ArrivedBy(by, trigger) => {
                    let oldest = state.window.oldest().filter(|(_, arrived)| arrived.is_due(by));
                    oldest.map(|oldest| early(oldest, trigger))
                }
            };
            let Some(due) = due else {
                progress = Progress::Done;
                break;
            };
            if self.decide_trace(&mut state, due, room, out).is_break() {
                progress = Progress::NoRoom;
                break;
            }
            if let Some(trace) = out.kept.last().filter(|_| out.kept.len() > kept_traces) {
                kept_traces = out.kept.len();
                kept_spans += trace.spans;
            }
        }
        self.conclude(&mut state, since, out);
        if which == Which::Due && state.window.compact(&mut out.freed) && progress == Progress::Done
        {
            progress = Progress::More;
        }
        state.window.settle();
        out.forgotten += state.remembered.rotate(now);
        progress
    }

    /// Decides one trace and takes it out of the window; [`Self::conclude`] has to follow. Breaks,
    /// and leaves the trace there, if there is no room for it. The trace is not judged in that
    /// case: otherwise a trace that one tick's threshold kept, and that had to wait for room, would
    /// be judged again by another threshold, which would bias the counts of limited policies.
    pub(super) fn decide_trace(
        &self,
        state: &mut ShardState,
        due: Due,
        room: usize,
        out: &mut Decided,
    ) -> ControlFlow<()> {
        let facts = state.window.facts(due.position);
        let bytes = facts.bytes as usize;
        if out.kept_bytes > 0 && out.kept_bytes + bytes > room {
            return ControlFlow::Break(());
        }
        let (now, below) = (state.time(), state.take_below(due.position));
        let window = &mut state.window;
        let trace_id = window.trace_id(due.position);
        let explicit_randomness = window.explicit_randomness(due.position);
        let evidence = evidence(window, due.position, &facts, due.trigger.is_forced());
        let randomness = evidence.randomness;
        let matched_start = out.decisions.matched.len() as u32;
        let (verdict, is_charged) = judge(&state.plan, &evidence, out);
        let decision = Decision { verdict, trigger: due.trigger, explicit_randomness };
        if below.spans == facts.spans {
            out.decisions.matched.truncate(matched_start as usize);
            self.decide_again(state, due.position, &decision, out);
            return ControlFlow::Continue(());
        }
        let is_guess = below.spans > 0 && verdict.kept && state.plan.depends_on_others(&evidence);
        let (decision, is_charged) =
            if is_guess { (out.guess(decision), false) } else { (decision, is_charged) };
        let verdict = decision.verdict;
        let has_shadows = state.plan.shadows().len() > 0;
        // For a dropped trace, only the limits of shadow policies could be charged.
        if state.plan.has_limits() && (is_charged || has_shadows) {
            state.plan.charge(&evidence);
        }
        let shadowed_start = out.decisions.shadowed.len() as u32;
        if has_shadows {
            shadow(&state.plan, &evidence, &verdict, out);
        }
        if let Some(trial) = state.plan.trial() {
            let matched = &out.decisions.matched[matched_start as usize..];
            let decide = || trial.decide(trace_id, &evidence, &verdict, matched);
            // After a panic, only the trial misses the trace.
            out.panics += u64::from(catch_unwind(AssertUnwindSafe(decide)).is_err());
        }
        if self.recordings.running() > 0 {
            let record = out.decisions.records.len();
            let share = |spans: &mut Vec<KeptSpan>| window.share(due.position, spans);
            self.recordings.choose(&mut out.chosen, record, facts.spans, share);
        }
        out.taken.push(window.take(due.position, verdict.kept));
        out.decisions.records.push(DecisionRecord {
            trace_id,
            decision,
            randomness,
            spans: facts.spans - below.spans,
            bytes: facts.bytes - below.bytes,
            duration_nanos: facts.duration_nanos(),
            lag_millis: now.since(due.at),
            root_received: facts.root_seen,
            matched: matched_start..out.decisions.matched.len() as u32,
            shadowed: shadowed_start..out.decisions.shadowed.len() as u32,
        });
        if verdict.kept {
            out.kept_bytes += bytes;
            out.kept.push(KeptTrace {
                verdict,
                trigger: Some(due.trigger),
                randomness,
                is_explicit: explicit_randomness.is_some(),
                spans: facts.spans as usize,
            });
            out.note_below(below);
        }
        ControlFlow::Continue(())
    }

    /// Stores the decisions made `since` in the decision cache and moves the spans of the traces
    /// out of the window. Called before the lock is released and before anything else is added to
    /// `out`. It does each step for all traces before the next step, because the memory reads of
    /// many traces overlap and take about as long as those of one trace.
    pub(super) fn conclude(&self, state: &mut ShardState, since: Since, out: &mut Decided) {
        let mut guessed = out.guessed.drain(..).peekable();
        for (index, record) in out.decisions.records.iter().enumerate().skip(since.record()) {
            let hash = window::hash_of(&self.hasher, record.trace_id);
            let guess = guessed.next_if(|(of, _)| *of == index).map(|(_, guess)| guess);
            state.remembered.remember(hash, &guess.unwrap_or(record.decision));
            state.remembered.remember_shadowed(hash, out.decisions.shadowed(record));
        }
        drop(guessed);
        state.window.empty(&mut out.taken, &mut out.spans, &mut out.freed);
        if !out.held_back.is_empty() {
            Sampler::hold_back(since, out);
        }
        self.cut(state, since, out);
        out.held_back.clear();
    }

    /// Late spans follow the decision of their trace.
    pub(super) fn follow(
        &self,
        state: &mut ShardState,
        decision: &Decision,
        run: &Run<'_>,
        out: &mut Decided,
    ) {
        let trace_id = run.spans[run.order[0] as usize].trace_id;
        let verdict = decision.verdict;
        let spans = || run.order.iter().map(|&index| &run.spans[index as usize]);
        let bytes = || spans().map(|span| u64::from(span.len)).sum();
        if state.is_below_commit() {
            let hash = window::hash_of(&self.hasher, trace_id);
            return self.use_below(state, hash, decision, bytes());
        }
        let is_error = |status_mask: u8| status_mask & StatusCode::Error.mask() != 0;
        out.late.push(Late {
            verdict,
            spans: run.order.len() as u64,
            errors: spans().filter(|span| is_error(span.status_mask)).count() as u64,
        });
        let hash = window::hash_of(&self.hasher, trace_id);
        for shadowed in state.remembered.recall_shadowed(hash) {
            *out.late_shadowed.entry(*shadowed).or_default() += run.order.len() as u64;
        }
        if !verdict.kept {
            return;
        }
        if out.position.is_some() {
            out.late_kept.push((trace_id, bytes()));
        }
        for span in spans() {
            // Copied, so one late span does not keep its whole request in memory.
            let bytes = &run.request[span.offset as usize..][..span.len as usize];
            let context = run.contexts[span.context as usize].clone();
            out.kept_bytes += bytes.len();
            out.spans.push(KeptSpan { bytes: bytes::Bytes::copy_from_slice(bytes), context });
        }
        out.kept.push(KeptTrace {
            verdict,
            trigger: None,
            randomness: decision.explicit_randomness.unwrap_or_else(|| trace_id.randomness()),
            is_explicit: decision.explicit_randomness.is_some(),
            spans: run.order.len(),
        });
        self.cut_late(state, hash, out);
    }
}

/// The verdict of the policies, and whether the trace is charged to limits that keep it.
fn judge(plan: &Plan, evidence: &Evidence<'_>, out: &mut Decided) -> (Verdict, bool) {
    let matched = &mut out.decisions.matched;
    let matched_start = matched.len();
    // A panic drops this trace. Otherwise it would stay the next due trace and panic again and
    // again.
    let verdict = catch_unwind(AssertUnwindSafe(|| plan.decide(evidence, matched)));
    let is_charged = verdict.as_ref().is_ok_and(|verdict| verdict.kept || evidence.forced);
    let verdict = verdict.unwrap_or_else(|_| {
        out.panics += 1;
        out.decisions.matched.truncate(matched_start);
        Verdict::NONE
    });
    (verdict, is_charged)
}

/// Compares the shadow policies with the verdict.
fn shadow(plan: &Plan, evidence: &Evidence<'_>, verdict: &Verdict, out: &mut Decided) {
    let shadowed = &mut out.decisions.shadowed;
    let before = shadowed.len();
    let compare = AssertUnwindSafe(|| plan.shadow(evidence, verdict, shadowed));
    // After a panic, only the verdicts of the shadow policies are lost.
    if catch_unwind(compare).is_err() {
        out.panics += 1;
        out.decisions.shadowed.truncate(before);
    }
}

/// The facts and bits of an undecided trace.
pub(super) fn evidence<'a>(
    window: &'a Shard,
    position: Position,
    facts: &'a Facts,
    forced: bool,
) -> Evidence<'a> {
    let (trace_id, explicit) = (window.trace_id(position), window.explicit_randomness(position));
    let randomness = explicit.unwrap_or_else(|| trace_id.randomness());
    Evidence { trace_id, facts, bits: window.bits(position), randomness, forced }
}
