//! The figures of budgets and rare policies that metrics show.

use super::{Plan, Policy, PolicyId};
use crate::policy::limit::BudgetReading;

/// The figures of a budget or a rare policy that metrics show.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KindsReading {
    /// A budget.
    Budget(BudgetReading),
    /// The number of kinds that a rare policy knows.
    Rare(usize),
}

impl KindsReading {
    /// The figures of a budget.
    pub(crate) fn budget(&self) -> Option<BudgetReading> {
        match self {
            KindsReading::Budget(budget) => Some(*budget),
            KindsReading::Rare(_) => None,
        }
    }

    /// The number of kinds of a rare policy.
    pub(crate) fn rare(&self) -> Option<usize> {
        match self {
            KindsReading::Rare(kinds) => Some(*kinds),
            KindsReading::Budget(_) => None,
        }
    }
}

/// The number of traces of a policy that found no room in its table of kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflowed {
    /// The policy whose table it is.
    pub policy: PolicyId,
    /// Whether the policy is `rare`, and not a budget.
    pub is_rare: bool,
    /// Their number since the last call.
    pub traces: u64,
}

impl Plan {
    /// The figures of all budgets and rare policies.
    pub fn kinds(&self) -> Vec<(PolicyId, KindsReading)> {
        let reading = |policy: &Policy| {
            let budget = policy.limit.and_then(|limit| self.limits[limit].reading());
            let rare = policy.rare.map(|rare| KindsReading::Rare(self.rares[rare].kinds()));
            Some((policy.id, budget.map(KindsReading::Budget).or(rare)?))
        };
        self.all().filter_map(reading).collect()
    }

    /// The number of traces, by policy, that found no room in its table of kinds since the last
    /// call.
    pub fn take_overflowed(&self) -> Vec<Overflowed> {
        let overflowed = |policy: &Policy| {
            let of_limit = policy.limit.map(|limit| self.limits[limit].take_overflowed());
            let of_rare = policy.rare.map(|rare| self.rares[rare].take_overflowed());
            let (policy, is_rare) = (policy.id, of_rare.is_some());
            Some(Overflowed { policy, is_rare, traces: of_limit.or(of_rare)? })
        };
        self.all().filter_map(overflowed).filter(|of| of.traces > 0).collect()
    }

    /// The bytes that the tables of kinds take, those of a trial included.
    pub(crate) fn kinds_bytes(&self) -> usize {
        let of_limits = self.limits.iter().map(|limit| limit.bytes());
        let own: usize = of_limits.chain(self.rares.iter().map(|rare| rare.bytes())).sum();
        own + self.candidate().map_or(0, |plan| plan.kinds_bytes())
    }
}
