//! Limits: a policy's kept spans held to a rate by raising its threshold.
//!
//! Once a decision tick, over all shards, the candidates of a limited policy are ordered from the
//! highest randomness down and taken while its bucket lasts; the threshold is just above the first
//! one that does not fit. Not the randomness of the last one that does: a threshold that depends on
//! a kept trace's own randomness would bias the adjusted counts. Until the next tick that threshold
//! holds for every decision of the policy, which charges the bucket and may leave it in debt.
//!
//! Knows no clock: the caller says how much time has passed.
//! Source: the bottom-k estimator of priority sampling (Duffield, Lund, Thorup 2007), whose
//! threshold is that of the first item left out.

use std::{
    cmp::Reverse,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::spec::LimitSpec;
use crate::trace::{Randomness, Threshold};

/// A due trace that a limited policy would keep if it were not limited.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Compared with the threshold.
    pub randomness: Randomness,
    /// Its spans.
    pub spans: u32,
    /// Their encoded bytes.
    pub bytes: u32,
}

/// The limit of one policy, and what is left of it.
#[derive(Debug)]
pub(super) struct Limit {
    spec: LimitSpec,
    /// Of the last tick.
    threshold: AtomicU64,
    /// Spans and bytes since the last tick.
    spent: [AtomicU64; 2],
    /// What the buckets of spans and bytes hold, below 0 in debt.
    levels: Mutex<[f64; 2]>,
}

impl Limit {
    /// With full buckets.
    pub(super) fn new(spec: LimitSpec) -> Self {
        let levels = spec.rates().map(|rate| rate.map_or(0.0, |rate| rate.burst));
        Limit {
            spec,
            threshold: AtomicU64::new(Threshold::ALWAYS.bits()),
            spent: Default::default(),
            levels: Mutex::new(levels),
        }
    }

    /// As it is written.
    pub(super) fn spec(&self) -> &LimitSpec {
        &self.spec
    }

    /// The threshold of the last tick.
    pub(super) fn threshold(&self) -> Threshold {
        Threshold::from_bits(self.threshold.load(Relaxed))
    }

    /// Takes what a kept trace costs.
    pub(super) fn charge(&self, spans: u32, bytes: u32) {
        for (spent, cost) in self.spent.iter().zip([spans, bytes]) {
            spent.fetch_add(u64::from(cost), Relaxed);
        }
    }

    /// Begins a tick, this long after the last one. Sorts the candidates.
    pub(super) fn begin_tick(&self, seconds: f64, candidates: &mut [Candidate]) {
        candidates.sort_unstable_by_key(|candidate| Reverse(candidate.randomness));
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        for ((level, rate), spent) in levels.iter_mut().zip(self.spec.rates()).zip(&self.spent) {
            let Some(rate) = rate else { continue };
            let filled = *level - spent.swap(0, Relaxed) as f64 + rate.per_second * seconds;
            *level = filled.min(rate.burst);
        }
        // Copied: candidates are charged when they are decided, and not all of them may be.
        let threshold = self.threshold_of(candidates, *levels);
        self.threshold.store(threshold.bits(), Relaxed);
    }

    fn threshold_of(&self, candidates: &[Candidate], mut levels: [f64; 2]) -> Threshold {
        for candidate in candidates {
            let costs = [f64::from(candidate.spans), f64::from(candidate.bytes)];
            for ((level, rate), cost) in levels.iter_mut().zip(self.spec.rates()).zip(costs) {
                let Some(rate) = rate else { continue };
                // What is larger than the whole bucket takes all of it and leaves a debt.
                if *level < cost.min(rate.burst) {
                    return Threshold::from_bits(candidate.randomness.0 + 1);
                }
                *level -= cost;
            }
        }
        Threshold::ALWAYS
    }
}

#[cfg(test)]
mod tests {
    use super::{super::spec::Rate, *};

    fn limit(per_second: f64, burst: f64) -> Limit {
        Limit::new(LimitSpec { spans: Some(Rate { per_second, burst }), bytes: None })
    }

    fn candidates(of: &[(u64, u32)]) -> Vec<Candidate> {
        let candidate = |&(randomness, spans): &(u64, u32)| Candidate {
            randomness: Randomness(randomness),
            spans,
            bytes: 0,
        };
        of.iter().map(candidate).collect()
    }

    #[test]
    fn the_threshold_is_just_above_the_first_that_does_not_fit() {
        let limit = limit(10.0, 10.0);
        limit.begin_tick(0.1, &mut candidates(&[(5, 4), (9, 4), (7, 4), (3, 1)]));
        assert_eq!(limit.threshold().bits(), 6);
        limit.begin_tick(0.1, &mut candidates(&[(5, 4), (9, 4)]));
        assert_eq!(limit.threshold(), Threshold::ALWAYS);
    }

    #[test]
    fn a_trace_larger_than_the_bucket_takes_all_of_it_and_leaves_a_debt() {
        let limit = limit(10.0, 10.0);
        limit.begin_tick(0.1, &mut candidates(&[(5, 25)]));
        assert_eq!(limit.threshold(), Threshold::ALWAYS);
        limit.charge(25, 0);
        for _ in 0..24 {
            limit.begin_tick(0.1, &mut candidates(&[(5, 10)]));
            assert_eq!(limit.threshold().bits(), 6, "the debt is not paid back yet");
        }
        limit.begin_tick(0.15, &mut candidates(&[(5, 10)]));
        assert_eq!(limit.threshold(), Threshold::ALWAYS);
    }

    #[test]
    fn of_two_rates_the_scarcer_one_decides() {
        let rate = |burst| Some(Rate { per_second: 1.0, burst });
        let limit = Limit::new(LimitSpec { spans: rate(100.0), bytes: rate(1_000.0) });
        let mut large = candidates(&[(9, 1), (8, 1), (7, 1)]);
        large.iter_mut().for_each(|candidate| candidate.bytes = 400);
        limit.begin_tick(0.1, &mut large);
        assert_eq!(limit.threshold().bits(), 8);
    }
}
