//! The counters of each policy. A reload can add policies, but counters are never removed: those of
//! a policy that is gone stay until the process ends, and go on counting if the policy comes back.

use std::sync::{PoisonError, RwLock};

use metrics::Counter;

use super::{
    count::Count,
    described::{self, Metric},
};

use crate::{
    decisions::DecisionRecord,
    policy::{Effect, KindsReading, Overflowed, PolicyId, Shadowed},
    sampler::{Decided, Late},
};

/// The reasons for which spans were dropped, in the order of the handles.
pub(super) const DROPPED: [&str; 3] = ["decision", "late", "trace_bytes"];

/// The changes that a shadow policy would have made, in the order of its counters.
pub(super) const EFFECTS: [&str; 3] = ["kept", "dropped", "none"];

/// The counters of `none`, then those of each policy by its id. Locked for reading once per group
/// of decisions, for writing once per reload.
pub(super) struct Policies(RwLock<Vec<PolicyCounters>>);

impl Policies {
    /// Registers with the current recorder, which is also used for all later policies.
    pub(super) fn register() -> Self {
        Policies(RwLock::new(vec![PolicyCounters::register("none")]))
    }

    /// Adds counters, at 0, for those of `names` (by id) that have none yet.
    pub(super) fn add(&self, names: &[String]) {
        let known = self.read(|counters| counters.len()) - 1;
        let new = names.get(known..).unwrap_or_default();
        let mut new = new.iter().map(|name| PolicyCounters::register(name)).collect();
        self.0.write().unwrap_or_else(PoisonError::into_inner).append(&mut new);
    }

    /// Adds the shadow counters, at 0, of policies that already have the common ones.
    pub(super) fn add_shadows(&self, shadows: impl Iterator<Item = PolicyId>, names: &[String]) {
        let mut counters = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for policy in shadows {
            let counters = &mut counters[index(policy)].shadow;
            counters.get_or_insert_with(|| ShadowCounters::register(&names[usize::from(policy.0)]));
        }
    }

    /// Adds the counters of kinds, at 0, of policies that already have the common ones.
    pub(super) fn add_kinds(&self, kinds: &[(PolicyId, KindsReading)], names: &[String]) {
        let mut counters = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for (policy, reading) in kinds {
            let name = &names[usize::from(policy.0)];
            let is_rare = reading.rare().is_some();
            let overflowed = &mut counters[index(*policy)].overflowed[usize::from(is_rare)];
            overflowed.get_or_insert_with(|| OVERFLOWED[usize::from(is_rare)].counter([name]));
        }
    }

    /// Counts traces that found no room in a table of kinds.
    pub(super) fn count_overflowed(&self, overflowed: &[Overflowed]) {
        self.read(|counters| {
            for Overflowed { policy, is_rare, traces } in overflowed {
                let counter = &counters[index(*policy)].overflowed[usize::from(*is_rare)];
                counter.iter().for_each(|counter| counter.increment(*traces));
            }
        });
    }

    /// The number of policies, without `none`.
    pub(super) fn len(&self) -> usize {
        self.read(|counters| counters.len()) - 1
    }

    /// Counts spans that an earlier process kept.
    pub(super) fn kept_before(&self, policy: PolicyId, spans: u64) {
        self.read(|counters| counters[index(policy)].spans_kept.add(spans));
    }

    /// Counts a group of decisions.
    pub(super) fn count(&self, decided: &Decided) {
        self.read(|counters| {
            let mut tally = vec![PolicyTally::default(); counters.len()];
            for record in &decided.decisions.records {
                tally[index(record.decision.verdict.policy)].add(record);
            }
            for late in &decided.late {
                tally[index(late.verdict.policy)].add_late(late);
            }
            for cut in &decided.cut {
                tally[index(cut.policy)].cut(cut.spans);
            }
            for &policy in &decided.decisions.matched {
                tally[index(policy)].matches += 1;
            }
            for record in &decided.decisions.records {
                for Shadowed { policy, effect } in decided.decisions.shadowed(record) {
                    let [traces, spans] = &mut tally[index(*policy)].shadow[*effect as usize];
                    *traces += 1;
                    *spans += u64::from(record.spans);
                }
            }
            for (Shadowed { policy, effect }, spans) in &decided.late_shadowed {
                tally[index(*policy)].shadow[*effect as usize][1] += spans;
            }
            for (counters, tally) in counters.iter().zip(&tally) {
                counters.add(tally);
            }
        });
    }

    /// Kept and dropped spans, over all policies.
    pub(super) fn spans(&self) -> (u64, u64) {
        self.read(|counters| {
            let kept = counters.iter().map(|counters| counters.spans_kept.get()).sum();
            (kept, counters.iter().map(PolicyCounters::dropped).sum())
        })
    }

    /// The counts of these policies.
    pub(super) fn counts(&self, ids: impl Iterator<Item = PolicyId>) -> Vec<PolicyCounts> {
        self.read(|counters| ids.map(|id| counters[index(id)].counts()).collect())
    }

    /// Copies the counts to the series.
    pub(super) fn show(&self) {
        self.read(|counters| counters.iter().for_each(PolicyCounters::show));
    }

    fn read<T>(&self, read: impl FnOnce(&[PolicyCounters]) -> T) -> T {
        read(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn index(policy: PolicyId) -> usize {
    if policy == PolicyId::NONE { 0 } else { usize::from(policy.0) + 1 }
}

/// The counts of one policy since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PolicyCounts {
    /// Traces that it matched.
    pub(crate) matched_traces: u64,
    /// Traces that were kept by it.
    pub(crate) kept_traces: u64,
    /// Traces that were dropped by it.
    pub(crate) dropped_traces: u64,
    /// Spans that were kept by it.
    pub(crate) kept_spans: u64,
    /// Spans that were dropped by it.
    pub(crate) dropped_spans: u64,
    /// Dropped traces that it would have kept as a shadow policy.
    pub(crate) shadow_kept_traces: u64,
    /// Kept traces that it would have dropped as a shadow policy.
    pub(crate) shadow_dropped_traces: u64,
}

struct PolicyCounters {
    traces_kept: Count,
    traces_dropped: Count,
    spans_kept: Count,
    spans_dropped: [Count; 3],
    matches: Count,
    /// Present if it is, or once was, a shadow policy.
    shadow: Option<ShadowCounters>,
    /// In the order of [`OVERFLOWED`]; present if it is, or once was, such a policy.
    overflowed: [Option<Counter>; 2],
}

/// The overflow counters of a budget and of a rare policy.
const OVERFLOWED: [Metric; 2] = [described::BUDGET_OVERFLOW, described::RARE_OVERFLOW];

/// The counters of a shadow policy, in the order of [`EFFECTS`].
struct ShadowCounters {
    traces: [Count; 3],
    spans: [Count; 3],
}

impl ShadowCounters {
    fn register(policy: &str) -> Self {
        let by_effect =
            |metric: Metric| EFFECTS.map(|effect| Count::new(metric.counter([policy, effect])));
        ShadowCounters {
            traces: by_effect(described::SHADOW_TRACES),
            spans: by_effect(described::SHADOW_SPANS),
        }
    }

    fn add(&self, tally: &[[u64; 2]; 3]) {
        for ((traces, spans), tally) in self.traces.iter().zip(&self.spans).zip(tally) {
            traces.add(tally[0]);
            spans.add(tally[1]);
        }
    }
}

/// The counts of one policy in one chunk of decisions.
#[derive(Clone, Default, PartialEq)]
struct PolicyTally {
    traces: [u64; 2],
    spans_kept: u64,
    /// In the order of [`DROPPED`].
    spans_dropped: [u64; 3],
    matches: u64,
    /// Traces and spans, in the order of [`EFFECTS`].
    shadow: [[u64; 2]; 3],
}

impl PolicyTally {
    fn add(&mut self, record: &DecisionRecord) {
        let kept = record.decision.verdict.kept;
        self.traces[usize::from(!kept)] += 1;
        let spans = if kept { &mut self.spans_kept } else { &mut self.spans_dropped[0] };
        *spans += u64::from(record.spans);
    }

    fn add_late(&mut self, late: &Late) {
        let kept = late.verdict.kept;
        let spans = if kept { &mut self.spans_kept } else { &mut self.spans_dropped[1] };
        *spans += late.spans;
    }

    /// Moves spans from kept to dropped, because they are above the trace's cap.
    fn cut(&mut self, spans: u64) {
        self.spans_kept -= spans;
        self.spans_dropped[2] += spans;
    }
}

impl PolicyCounters {
    fn register(policy: &str) -> Self {
        let by_policy = |metric: Metric| Count::new(metric.counter([policy]));
        let dropped = |why| Count::new(described::SPANS_DROPPED.counter([policy, why]));
        PolicyCounters {
            traces_kept: by_policy(described::TRACES_KEPT),
            traces_dropped: by_policy(described::TRACES_DROPPED),
            spans_kept: by_policy(described::SPANS_KEPT),
            spans_dropped: DROPPED.map(dropped),
            matches: by_policy(described::POLICY_MATCHES),
            shadow: None,
            overflowed: [None, None],
        }
    }

    fn add(&self, tally: &PolicyTally) {
        // In a large set, most policies take no part in a group of decisions.
        if *tally == PolicyTally::default() {
            return;
        }
        self.traces_kept.add(tally.traces[0]);
        self.traces_dropped.add(tally.traces[1]);
        self.spans_kept.add(tally.spans_kept);
        for (counter, &spans) in self.spans_dropped.iter().zip(&tally.spans_dropped) {
            counter.add(spans);
        }
        self.matches.add(tally.matches);
        if let Some(shadow) = &self.shadow {
            shadow.add(&tally.shadow);
        }
    }

    fn dropped(&self) -> u64 {
        self.spans_dropped.iter().map(Count::get).sum()
    }

    fn counts(&self) -> PolicyCounts {
        let shadow = |effect: Effect| {
            self.shadow.as_ref().map_or(0, |shadow| shadow.traces[effect as usize].get())
        };
        PolicyCounts {
            matched_traces: self.matches.get(),
            kept_traces: self.traces_kept.get(),
            dropped_traces: self.traces_dropped.get(),
            kept_spans: self.spans_kept.get(),
            dropped_spans: self.dropped(),
            shadow_kept_traces: shadow(Effect::Kept),
            shadow_dropped_traces: shadow(Effect::Dropped),
        }
    }

    fn show(&self) {
        let counts = [&self.traces_kept, &self.traces_dropped, &self.spans_kept, &self.matches];
        counts.into_iter().chain(&self.spans_dropped).for_each(Count::show);
        if let Some(shadow) = &self.shadow {
            shadow.traces.iter().chain(&shadow.spans).for_each(Count::show);
        }
    }
}
