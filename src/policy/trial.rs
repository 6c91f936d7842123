//! A trial: a second set of policies, the candidate, decides the same traces beside the policies in
//! force. It changes nothing; it counts the difference.
//!
//! The sampler calls [`Trial::decide`] for each decided trace, under the lock of the trace's shard,
//! after the policies in force have decided. Both sides are counted together under one mutex, so a
//! [`Report`] is exact at any moment. The mutex is held for one trace, or for copying the counts
//! once a second.
//!
//! The candidate is a [`Plan`] of its own, except that its conditions are among the leaves of the
//! plan in force, so a span is walked once. Its limits are new, so their buckets begin full, and
//! they tick together with the others. Its names are its own: they enter neither the names of the
//! process nor the metrics. Spans that arrive after the decision of their trace are not counted.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use super::plan::{Evidence, Plan, PolicyId, Verdict};
use crate::trace::TraceId;

/// The number of trace ids that a [`Change`] names at most.
const EXAMPLES_MAX: usize = 5;

/// A second set of policies, and how its decisions differ so far.
#[derive(Debug)]
pub struct Trial {
    current: Names,
    candidate: Arc<Plan>,
    candidate_names: Names,
    counts: Mutex<Counts>,
    /// Set when no shard decides by it any more.
    is_over: AtomicBool,
}

/// Numbers of traces, of their spans at the decision, and of the encoded bytes of these spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Traces.
    pub traces: u64,
    /// Spans.
    pub spans: u64,
    /// Encoded bytes of the spans.
    pub bytes: u64,
}

/// The decisions of both sets since the trial began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// By the policies in force.
    pub current: Outcome,
    /// By the candidate.
    pub candidate: Outcome,
    /// Traces that only the candidate keeps.
    pub newly_kept: Change,
    /// Traces that only the policies in force keep.
    pub newly_dropped: Change,
}

/// The decisions of one set of policies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// All decided traces.
    pub decided: Sum,
    /// The kept ones.
    pub kept: Sum,
    /// Each policy in the order of the files; last `none`, for traces that no policy matches.
    pub policies: Vec<(String, OfPolicy)>,
}

/// The decisions of one policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OfPolicy {
    /// Traces that it matches.
    pub matched_traces: u64,
    /// Kept traces that are credited to it.
    pub kept: Sum,
}

/// Traces that the two sets decide differently.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// All of them.
    pub sum: Sum,
    /// The first five.
    pub examples: Vec<TraceId>,
}

/// The policies of one set, and the place of each in [`Side::policies`].
#[derive(Debug)]
struct Names {
    names: Vec<String>,
    places: HashMap<PolicyId, usize, foldhash::fast::RandomState>,
}

#[derive(Clone, Debug, Default)]
struct Counts {
    decided: Sum,
    current: Side,
    candidate: Side,
    newly_kept: Change,
    newly_dropped: Change,
    /// A buffer for the policies of the candidate that match a trace.
    matched: Vec<PolicyId>,
}

#[derive(Clone, Debug, Default)]
struct Side {
    kept: Sum,
    policies: Vec<OfPolicy>,
}

impl Sum {
    fn add(&mut self, trace: Sum) {
        self.traces += trace.traces;
        self.spans += trace.spans;
        self.bytes += trace.bytes;
    }
}

impl Names {
    fn of(plan: &Plan) -> Self {
        let ids: Vec<_> = plan.deciding().collect();
        let names = ids.iter().map(|&id| plan.name(id)).chain(["none"]);
        Names {
            names: names.map(str::to_owned).collect(),
            places: ids.into_iter().zip(0..).collect(),
        }
    }

    fn side(&self) -> Side {
        Side { kept: Sum::default(), policies: vec![OfPolicy::default(); self.names.len()] }
    }

    /// The place of a policy; the last one for no policy.
    fn place(&self, id: PolicyId) -> usize {
        self.places.get(&id).copied().unwrap_or(self.names.len() - 1)
    }

    fn count(&self, side: &mut Side, trace: Sum, verdict: &Verdict, matched: &[PolicyId]) {
        for &id in if matched.is_empty() { &[PolicyId::NONE] } else { matched } {
            side.policies[self.place(id)].matched_traces += 1;
        }
        if verdict.kept {
            side.kept.add(trace);
            side.policies[self.place(verdict.policy)].kept.add(trace);
        }
    }

    fn outcome(&self, decided: Sum, side: Side) -> Outcome {
        let policies = self.names.iter().cloned().zip(side.policies).collect();
        Outcome { decided, kept: side.kept, policies }
    }
}

impl Change {
    fn add(&mut self, trace_id: TraceId, trace: Sum) {
        self.sum.add(trace);
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(trace_id);
        }
    }
}

impl Trial {
    /// A trial of `candidate`, whose conditions have bits among those of `current`.
    pub(super) fn new(current: &Plan, candidate: Plan) -> Self {
        let (current, candidate_names) = (Names::of(current), Names::of(&candidate));
        let (sides, is_over) = ([current.side(), candidate_names.side()], AtomicBool::new(false));
        let [of_current, of_candidate] = sides;
        let counts = Counts { current: of_current, candidate: of_candidate, ..Counts::default() };
        let (candidate, counts) = (Arc::new(candidate), Mutex::new(counts));
        Trial { current, candidate, candidate_names, counts, is_over }
    }

    /// The second set of policies.
    pub(super) fn candidate(&self) -> &Arc<Plan> {
        &self.candidate
    }

    /// Decides a trace that the policies in force have decided, and counts both decisions.
    /// `matched` are the policies in force that match it.
    pub(crate) fn decide(
        &self,
        trace_id: TraceId,
        evidence: &Evidence<'_>,
        verdict: &Verdict,
        matched: &[PolicyId],
    ) {
        let mut counts = self.lock();
        counts.matched.clear();
        // If it panics, nothing of this trace has been counted, and the counts stay consistent.
        let tried = self.candidate.decide(evidence, &mut counts.matched);
        if self.candidate.has_limits() && (tried.kept || evidence.forced) {
            self.candidate.charge(evidence);
        }
        let (spans, bytes) = (evidence.facts.spans.into(), evidence.facts.bytes.into());
        let trace = Sum { traces: 1, spans, bytes };
        let Counts {
            decided,
            current,
            candidate,
            newly_kept,
            newly_dropped,
            matched: by_candidate,
        } = &mut *counts;
        decided.add(trace);
        self.current.count(current, trace, verdict, matched);
        self.candidate_names.count(candidate, trace, &tried, by_candidate);
        match (verdict.kept, tried.kept) {
            (false, true) => newly_kept.add(trace_id, trace),
            (true, false) => newly_dropped.add(trace_id, trace),
            _ => {}
        }
    }

    /// The counts at this moment.
    pub fn report(&self) -> Report {
        let Counts { decided, current, candidate, newly_kept, newly_dropped, .. } =
            self.lock().clone();
        Report {
            current: self.current.outcome(decided, current),
            candidate: self.candidate_names.outcome(decided, candidate),
            newly_kept,
            newly_dropped,
        }
    }

    /// Whether it has ended, so that the counts no longer change.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Relaxed)
    }

    /// Called when no shard decides by it any more.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        // A panic of a policy comes before the counts of its trace change.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
