//! The expected counts of a trial, by the naive model.

use std::sync::Arc;

use tailwater::{
    policy::{Change, OfPolicy, Outcome, PolicySpec, Report, Sum, Trial},
    trace::{TraceId, Trigger},
};

use super::{
    evaluation::{Verdict, verdict},
    naive::{Expected, bytes_of},
};

/// A running trial, and its report according to the model.
pub(super) struct Tried {
    trial: Arc<Trial>,
    candidate: Vec<PolicySpec>,
    expected: Report,
}

/// Removes shadow policies, which take no part in a trial.
pub(super) fn without_shadows(policies: &[PolicySpec]) -> Vec<PolicySpec> {
    policies.iter().filter(|policy| !policy.shadow).cloned().collect()
}

impl Tried {
    pub(super) fn new(trial: Arc<Trial>, current: &[PolicySpec], candidate: &[PolicySpec]) -> Self {
        let expected = Report {
            current: nothing_decided(current),
            candidate: nothing_decided(candidate),
            newly_kept: Change::default(),
            newly_dropped: Change::default(),
        };
        Tried { trial, candidate: without_shadows(candidate), expected }
    }

    /// Counts a decided trace.
    pub(super) fn note(&mut self, id: TraceId, expected: &Expected) {
        let spans = &expected.trace.spans;
        let sum = Sum { traces: 1, spans: spans.len() as u64, bytes: bytes_of(spans) as u64 };
        let forced =
            matches!(expected.trigger, Trigger::Memory | Trigger::TraceLimit | Trigger::Shutdown);
        let tried = verdict(&self.candidate, id.0, spans, forced);
        let Report { current, candidate, newly_kept, newly_dropped } = &mut self.expected;
        note(current, sum, &expected.verdict);
        note(candidate, sum, &tried);
        let change = match (expected.verdict.kept, tried.kept) {
            (false, true) => newly_kept,
            (true, false) => newly_dropped,
            _ => return,
        };
        add(&mut change.sum, sum);
        change.examples.push(id);
        change.examples.truncate(5);
    }

    pub(super) fn compare(&self) {
        assert_eq!(self.trial.report(), self.expected);
    }
}

fn nothing_decided(policies: &[PolicySpec]) -> Outcome {
    let names = without_shadows(policies).into_iter().map(|policy| policy.name);
    let policies = names.chain(["none".to_owned()]).map(|name| (name, OfPolicy::default()));
    Outcome { decided: Sum::default(), kept: Sum::default(), policies: policies.collect() }
}

fn note(outcome: &mut Outcome, trace: Sum, verdict: &Verdict) {
    add(&mut outcome.decided, trace);
    for (name, of_policy) in &mut outcome.policies {
        let is_none = name == "none" && verdict.matched.is_empty();
        of_policy.matched_traces += u64::from(is_none || verdict.matched.contains(name));
        if verdict.kept && *name == verdict.policy {
            add(&mut of_policy.kept, trace);
        }
    }
    if verdict.kept {
        add(&mut outcome.kept, trace);
    }
}

fn add(sum: &mut Sum, trace: Sum) {
    sum.traces += trace.traces;
    sum.spans += trace.spans;
    sum.bytes += trace.bytes;
}
