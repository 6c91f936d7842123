//! The limits, budgets and rare policies that a trace counts towards, and their charges.

use super::{Evidence, Plan, Policy};
use crate::{policy::limit::Candidate, trace::Threshold};

/// The limits and rare policies that a trace counts towards.
#[derive(Debug, Default)]
pub(in crate::policy) struct Asked {
    /// Limits and budgets, each with the threshold that its policy proposes without it.
    pub(in crate::policy) limits: Vec<(Claim, Threshold)>,
    pub(in crate::policy) rares: Vec<Claim>,
}

/// A trace that counts towards a limit or a rare policy.
#[derive(Clone, Copy, Debug)]
pub(in crate::policy) struct Claim {
    /// The index in the limits, or in the rares, of the plan.
    pub(in crate::policy) index: usize,
    /// The kind of the trace for this policy.
    pub(in crate::policy) kind: u64,
    pub(in crate::policy) is_shadow: bool,
}

impl Plan {
    /// Charges a trace to the limits whose thresholds keep it. A trace that is decided early was
    /// not a candidate in a tick; it is noted, kept or not, so that the thresholds of the next
    /// ticks expect others like it.
    pub fn charge(&self, evidence: &Evidence<'_>) {
        let mut asked = Asked::default();
        self.asked(evidence, &mut asked);
        let Asked { limits, rares } = asked;
        let is_granted = rares
            .iter()
            .any(|rare| !rare.is_shadow && self.rares[rare.index].has_granted(evidence.trace_id));
        // A granted trace costs no limit anything.
        if is_granted {
            return;
        }
        for (Claim { index, kind, .. }, proposed) in limits {
            let limit = &self.limits[index];
            let candidate = Candidate { kind, ..evidence.candidate() };
            if limit.threshold(&candidate).max(proposed).keeps(evidence.randomness) {
                limit.charge(candidate.costs);
            }
            if evidence.forced {
                limit.note_outside(&candidate);
            }
        }
    }

    /// Finds what a trace counts towards; `asked` is overwritten. The limits are those of policies
    /// that would keep it, unless a policy vetoes it or another policy without a limit keeps it
    /// anyway. The rare policies are those whose conditions it meets, unless a policy vetoes it. A
    /// shadow policy counts only towards its own limit, under the same rules.
    pub(in crate::policy) fn asked(&self, evidence: &Evidence<'_>, asked: &mut Asked) {
        asked.limits.clear();
        asked.rares.clear();
        let mut is_kept = false;
        for policy in &self.policies {
            let proposed = policy.propose(evidence);
            if policy.is_veto && proposed.matches() {
                asked.limits.clear();
                asked.rares.clear();
                return;
            }
            is_kept |= policy.limit.is_none()
                && policy.rare.is_none()
                && !policy.is_veto
                && proposed == Threshold::ALWAYS;
            self.ask(policy, proposed, evidence, asked);
        }
        let first_shadow = asked.rares.len();
        for shadow in &self.shadows {
            self.ask(shadow, shadow.propose(evidence), evidence, asked);
        }
        asked.rares[first_shadow..].iter_mut().for_each(|claim| claim.is_shadow = true);
        if is_kept {
            asked.limits.clear();
        }
    }

    fn ask(&self, policy: &Policy, proposed: Threshold, of: &Evidence<'_>, asked: &mut Asked) {
        if !proposed.keeps(of.randomness) {
            return;
        }
        let claim = |index| Claim { index, kind: self.kind(policy, of), is_shadow: false };
        asked.limits.extend(policy.limit.map(|limit| (claim(limit), proposed)));
        let rare = policy.rare.map(claim);
        // Most kinds have used up their grants, so this check drops most claims.
        asked
            .rares
            .extend(rare.filter(|rare| self.rares[rare.index].may_grant(rare.kind, of.trace_id)));
    }
}
