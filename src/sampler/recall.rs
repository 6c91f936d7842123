//! What an earlier process has decided: remembered again at the start, before the replay.

use std::collections::HashMap;

use super::{Sampler, Scratch};
use crate::{decisions::Decision, otlp::walk::Unwalked, policy::PolicyId, trace::TraceId, window};

impl Sampler {
    /// Remembers a decision that an earlier process made, for late spans and look-ups.
    /// [`Self::settle_remembered`] has to follow after every few thousand.
    pub fn remember(&self, trace_id: TraceId, decision: &Decision) {
        let hash = window::hash_of(&self.hasher, trace_id);
        self.lock(self.shard_of(hash)).remembered.remember(hash, decision);
    }

    /// The decision about a trace, if it is remembered.
    fn remembered(&self, trace_id: TraceId) -> Option<Decision> {
        let hash = window::hash_of(&self.hasher, trace_id);
        self.lock(self.shard_of(hash)).remembered.recall(hash)
    }

    /// Adds to what a remembered trace has used of its cap.
    pub(crate) fn remember_bytes(&self, trace_id: TraceId, bytes: u64) {
        let Some(cap) = self.limits.kept_bytes_max else { return };
        let hash = window::hash_of(&self.hasher, trace_id);
        let mut state = self.lock(self.shard_of(hash));
        let used = state.remembered.used_bytes(hash);
        // What did not fit was dropped.
        state.remembered.use_bytes(hash, (used + bytes).min(cap));
    }

    /// Charges what is remembered, and forgets the oldest of it if it is too much.
    pub(crate) fn settle_remembered(&self) {
        for index in 0..self.shards.len() {
            let mut state = self.lock(index);
            let now = state.window.now();
            state.remembered.rotate(now);
        }
    }

    /// The policies that the traces of an encoded request are remembered to be kept by, each with
    /// the number of its spans.
    ///
    /// # Errors
    /// [`Unwalked`] if it is no request.
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
