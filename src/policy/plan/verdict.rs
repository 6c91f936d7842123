//! The input and the result of a decision.

use super::PolicyId;
use crate::{
    policy::limit::Candidate,
    trace::{Facts, Randomness, Threshold, TraceId},
};

/// The input of a decision.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The id of the trace. A decision depends on it only if a rare policy has granted the trace.
    pub trace_id: TraceId,
    /// The facts of the whole trace.
    pub facts: &'a Facts,
    /// The bits of the leaves that hold for any span; as many words as the plan needs.
    pub bits: &'a [u64],
    /// The randomness, which is compared with the threshold.
    pub randomness: Randomness,
    /// Whether the decision is early. Conditions that can still change do not veto then.
    pub forced: bool,
}

impl Evidence<'_> {
    /// The trace as a candidate of a limit.
    pub(in crate::policy) fn candidate(&self) -> Candidate {
        let costs = [self.facts.spans, self.facts.bytes];
        Candidate { randomness: self.randomness, kind: 0, costs }
    }
}

/// The result of the policies for a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the trace is kept.
    pub kept: bool,
    /// The policy that proposed the lowest threshold (the first in the file, if several did), or
    /// the policy that vetoed.
    pub policy: PolicyId,
    /// The lowest proposed threshold; [`Threshold::NEVER`] if none was proposed or a policy vetoed.
    pub threshold: Threshold,
}

impl Verdict {
    /// Dropped because no policy matched.
    pub(crate) const NONE: Verdict =
        Verdict { kept: false, policy: PolicyId::NONE, threshold: Threshold::NEVER };
}

/// The change that a shadow policy would have made to a trace that it matches, if it had been in
/// force with the policies that decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// The trace was dropped and would have been kept.
    Kept = 0,
    /// The trace was kept and would have been dropped.
    Dropped = 1,
    /// No change.
    None = 2,
}

/// A shadow policy that matched, and the change it would have made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shadowed {
    /// The policy.
    pub policy: PolicyId,
    /// The change it would have made.
    pub effect: Effect,
}
