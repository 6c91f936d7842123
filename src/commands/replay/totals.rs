//! Counts decided traces, each weighted by the traffic that it stands for.
//!
//! A trace with `ot=th` was sampled before: a trace that was kept with probability p stands for 1 /
//! p traces. Policies keep a trace of the original traffic at their own threshold T; the recorded
//! traces are those with R >= th. So a trace that they keep counts 1 if T is the higher threshold,
//! and (1 - T) / (1 - th) if th is. The expected value of each sum is that of the original traffic.

use crate::{
    policy::Verdict,
    trace::{Threshold, TraceId},
};

/// The most trace ids that a report gives as examples.
const EXAMPLES_MAX: usize = 5;

/// Traces, their spans and their bytes, weighted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sum {
    pub(super) traces: f64,
    pub(super) spans: f64,
    pub(super) bytes: f64,
}

impl Sum {
    pub(super) fn add(&mut self, trace: &Weighed, weight: f64) {
        self.traces += weight;
        self.spans += weight * trace.spans as f64;
        self.bytes += weight * trace.bytes as f64;
    }
}

/// A trace with the weight that it has in the input.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weighed {
    pub(super) id: TraceId,
    pub(super) spans: u64,
    pub(super) bytes: u64,
    /// The number of traces of the original traffic that it stands for.
    pub(super) weight: f64,
    /// The threshold by which it was kept before.
    sampled_at: Threshold,
    share: f64,
}

impl Weighed {
    pub(super) fn new(trace: &super::super::traces::Trace) -> Self {
        let sampled_at = trace.sampled_at.unwrap_or(Threshold::ALWAYS);
        Weighed {
            id: trace.id,
            spans: trace.facts.spans.into(),
            bytes: trace.bytes,
            weight: 1.0 / probability(sampled_at) / trace.share,
            sampled_at,
            share: trace.share,
        }
    }

    /// How many of the traces that it stands for are kept by this verdict.
    pub(super) fn kept(&self, verdict: &Verdict) -> f64 {
        if !verdict.kept {
            return 0.0;
        }
        let higher = verdict.threshold.max(self.sampled_at);
        probability(verdict.threshold) / probability(higher) / self.share
    }
}

/// The probability that a trace is kept at this threshold.
fn probability(threshold: Threshold) -> f64 {
    (Threshold::NEVER.bits() - threshold.bits()) as f64 / Threshold::NEVER.bits() as f64
}

/// The totals of one policy.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct OfPolicy {
    pub(super) name: String,
    pub(super) matched_traces: f64,
    /// Kept traces that are credited to it.
    pub(super) kept: Sum,
    /// Dropped traces that are credited to it.
    pub(super) dropped_traces: f64,
}

/// The totals of one set of policies.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Totals {
    pub(super) kept: Sum,
    /// The policies in their order, then `none`.
    pub(super) policies: Vec<OfPolicy>,
}

impl Totals {
    pub(super) fn of(names: &[String]) -> Self {
        let names = names.iter().cloned().chain(["none".to_owned()]);
        let policies = names.map(|name| OfPolicy { name, ..OfPolicy::default() });
        Totals { kept: Sum::default(), policies: policies.collect() }
    }

    /// Counts a decided trace. `matched` and `credited` are indices of policies.
    pub(super) fn add(
        &mut self,
        trace: &Weighed,
        verdict: &Verdict,
        matched: impl Iterator<Item = usize>,
    ) {
        let none = self.policies.len() - 1;
        let kept = trace.kept(verdict);
        let mut any = false;
        for policy in matched {
            any = true;
            self.policies[policy].matched_traces += trace.weight;
        }
        if !any {
            self.policies[none].matched_traces += trace.weight;
        }
        let credited = &mut self.policies[usize::from(verdict.policy.0).min(none)];
        credited.kept.add(trace, kept);
        credited.dropped_traces += trace.weight - kept;
        self.kept.add(trace, kept);
    }
}

/// Traces that the second set of policies decides differently.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Change {
    pub(super) sum: Sum,
    pub(super) examples: Vec<TraceId>,
}

impl Change {
    /// Adds a trace. `more` is the additional share of it that one set keeps.
    pub(super) fn add(&mut self, trace: &Weighed, more: f64, has_changed: bool) {
        self.sum.add(trace, more.max(0.0));
        if has_changed && self.examples.len() < EXAMPLES_MAX {
            self.examples.push(trace.id);
        }
    }
}
