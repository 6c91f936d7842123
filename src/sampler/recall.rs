//! Restores the decisions of an earlier process to the decision cache at the start, before the
//! replay.

use std::collections::HashMap;

use super::{Sampler, Scratch};
use crate::{decisions::Decision, otlp::walk::Unwalked, policy::PolicyId, trace::TraceId, window};

impl Sampler {
    /// Adds a decision of an earlier process to the decision cache, for late spans and look-ups.
    /// The caller calls [`Self::settle_remembered`] after every few thousand decisions.
    pub fn remember(&self, trace_id: TraceId, decision: &Decision) {
        let hash = window::hash_of(&self.hasher, trace_id);
        self.lock(self.shard_of(hash)).remembered.remember(hash, decision);
    }

    /// The decision about a trace, if it is in the decision cache.
    fn remembered(&self, trace_id: TraceId) -> Option<Decision> {
        let hash = window::hash_of(&self.hasher, trace_id);
        self.lock(self.shard_of(hash)).remembered.recall(hash)
    }

    /// Adds exported bytes to a trace in the decision cache, for its cap.
    pub(crate) fn remember_bytes(&self, trace_id: TraceId, bytes: u64) {
        let Some(cap) = self.limits.kept_bytes_max else { return };
        let hash = window::hash_of(&self.hasher, trace_id);
        let mut state = self.lock(self.shard_of(hash));
        let used = state.remembered.used_bytes(hash);
        // Spans beyond the cap were dropped.
        state.remembered.use_bytes(hash, (used + bytes).min(cap));
    }

    /// Charges the memory of the decision cache, and forgets the oldest decisions if it takes too
    /// much.
    pub(crate) fn settle_remembered(&self) {
        for index in 0..self.shards.len() {
            let mut state = self.lock(index);
            let now = state.window.now();
            state.remembered.rotate(now);
        }
    }

    /// The number of spans of an encoded request for each policy that kept their traces, according
    /// to the decision cache.
    ///
    /// # Errors
    /// [`Unwalked`] if the bytes are not a request.
    pub(crate) fn credits(
        &self,
        request: &[u8],
        scratch: &mut Scratch,
    ) -> Result<HashMap<PolicyId, u64>, Unwalked> {
        self.prepare(request, scratch)?;
        let mut credits = HashMap::new();
        for run in scratch.spans().chunk_by(|a, b| a.trace_id == b.trace_id) {
            let decision = self.remembered(run[0].trace_id);
            let policy = decision.map_or(PolicyId::NONE, |decision| decision.verdict.policy);
            *credits.entry(policy).or_default() += run.len() as u64;
        }
        scratch.clear();
        Ok(credits)
    }
}
