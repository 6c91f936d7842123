//! Limits: they hold the kept spans of a policy to a rate by raising its threshold.
//!
//! A limit has one threshold at a time. A decision tick sets it, over all shards, from the due
//! candidates of the policy. The sampler decides all of them before it begins the next tick.
//! Decisions outside a tick use the same threshold. Kept traces are charged to the bucket, which
//! may go into debt.
//!
//! If the bucket holds all candidates, the threshold is 0. If it holds some of them, they are taken
//! from the highest randomness down until the bucket is empty, and the threshold is just above the
//! randomness of the first candidate that does not fit. The randomness of the last one that fits
//! would bias the counts. If the bucket holds only a few candidates, or one of them would not fit
//! even alone, every candidate gets the same chance: the rate divided by the demand ([`bucket`]). A
//! cut would then leave large traces without any chance, and nothing would represent the dropped
//! ones.
//!
//! Invariants: the threshold never depends on the randomness of a trace that it keeps. It leaves
//! every candidate a chance. A tick lists at most [`CANDIDATES_MAX`] candidates over all limits
//! (1 MiB); limits with more use the chance.
//!
//! The caller passes the elapsed time; this module reads no clock. Sources: the threshold of the
//! first item left out is that of priority sampling (Duffield, Lund, Thorup 2007); Ting, "Adaptive
//! Threshold Sampling" (2022), shows which thresholds may be treated as fixed.

mod bucket;
#[cfg(test)]
mod tests;

use std::{
    cmp::Reverse,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use self::bucket::{Bucket, Cost};
use super::spec::LimitSpec;
use crate::trace::{Randomness, Threshold};

/// The most candidates that a tick lists.
pub(super) const CANDIDATES_MAX: usize = 1 << 16;

/// A due trace that a limited policy would keep without its limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// The randomness, which is compared with the threshold.
    pub(super) randomness: Randomness,
    /// Its number of spans, and their encoded bytes.
    pub(super) costs: [u32; 2],
}

/// The candidates of one limit in one tick.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// All candidates, or empty if there were too many to list.
    listed: Vec<Candidate>,
    are_too_many: bool,
    /// The cost of all candidates.
    asked: [Cost; 2],
}

impl Candidates {
    /// Adds a candidate; `room` is the number that the tick may still list.
    pub(super) fn add(&mut self, candidate: Candidate, room: &mut usize) {
        add_costs(&mut self.asked, candidate.costs);
        if *room == 0 && !self.are_too_many {
            self.are_too_many = true;
            *room += self.listed.len();
            self.listed = Vec::new();
        }
        if !self.are_too_many {
            *room -= 1;
            self.listed.push(candidate);
        }
    }
}

/// Costs since the last tick.
#[derive(Debug, Default)]
struct Since {
    /// The kept spans and bytes.
    spent: [f64; 2],
    /// The cost of candidates that were decided outside a tick.
    outside: [Cost; 2],
    was_outside: bool,
}

/// The limit of one policy and the state of its buckets.
#[derive(Debug)]
pub(super) struct Limit {
    spec: LimitSpec,
    /// The threshold of the last tick.
    threshold: AtomicU64,
    /// Whether there has been a tick.
    has_begun: AtomicBool,
    since: Mutex<Since>,
    /// The buckets of spans and of bytes.
    buckets: Mutex<[Option<Bucket>; 2]>,
}

impl Limit {
    /// A limit with full buckets.
    pub(super) fn new(spec: LimitSpec) -> Self {
        Limit {
            spec,
            threshold: AtomicU64::new(Threshold::ALWAYS.bits()),
            has_begun: AtomicBool::new(false),
            since: Mutex::default(),
            buckets: Mutex::new(spec.rates().map(|rate| rate.map(Bucket::new))),
        }
    }

    /// The limit as it is written.
    pub(super) fn spec(&self) -> &LimitSpec {
        &self.spec
    }

    /// The threshold of the last tick.
    pub(super) fn threshold(&self) -> Threshold {
        Threshold::from_bits(self.threshold.load(Relaxed))
    }

    /// Whether there has been a tick.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun.load(Relaxed)
    }

    /// Charges a kept trace.
    pub(super) fn charge(&self, costs: [u32; 2]) {
        let mut since = lock(&self.since);
        for (spent, cost) in since.spent.iter_mut().zip(costs) {
            *spent += f64::from(cost);
        }
    }

    /// Notes a candidate that is decided outside a tick, whether kept or not.
    pub(super) fn note_outside(&self, costs: [u32; 2]) {
        let mut since = lock(&self.since);
        add_costs(&mut since.outside, costs);
        since.was_outside = true;
    }

    /// Begins a tick, `seconds` after the last one.
    pub(super) fn begin_tick(&self, seconds: f64, candidates: Candidates) {
        let since = std::mem::take(&mut *lock(&self.since));
        let mut buckets = lock(&self.buckets);
        for (index, bucket) in buckets.iter_mut().enumerate() {
            if let Some(bucket) = bucket {
                let asked = [candidates.asked[index], since.outside[index]];
                bucket.begin_tick(seconds, since.spent[index], asked);
            }
        }
        let threshold = threshold_of(&buckets, candidates, since.was_outside);
        self.threshold.store(threshold.bits(), Relaxed);
        self.has_begun.store(true, Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds this lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn add_costs(sums: &mut [Cost; 2], costs: [u32; 2]) {
    for (sum, cost) in sums.iter_mut().zip(costs) {
        sum.add(cost);
    }
}

/// With `expects_more`, candidates were decided outside the last tick, so this one may have more of
/// them.
fn threshold_of(
    buckets: &[Option<Bucket>; 2],
    candidates: Candidates,
    expects_more: bool,
) -> Threshold {
    let Candidates { listed, are_too_many, asked } = candidates;
    let all = |holds: fn(&Bucket, Cost) -> bool| {
        let mut both = buckets.iter().zip(asked);
        both.all(|(bucket, asked)| bucket.as_ref().is_none_or(|bucket| holds(bucket, asked)))
    };
    if !expects_more && all(Bucket::holds) {
        return Threshold::ALWAYS;
    }
    if !expects_more && !are_too_many && all(Bucket::may_cut) {
        return cut(buckets, listed);
    }
    let chances = buckets.iter().flatten().zip(asked).map(|(bucket, asked)| bucket.chance(asked));
    let chance = chances.fold(1.0, f64::min);
    let threshold = Threshold::from_percentage(chance * 100.0);
    threshold.min(Threshold::from_bits(Threshold::NEVER.bits() - 1))
}

/// A threshold just above the first candidate that does not fit, from the highest randomness down.
fn cut(buckets: &[Option<Bucket>; 2], mut candidates: Vec<Candidate>) -> Threshold {
    candidates.sort_unstable_by_key(|candidate| Reverse(candidate.randomness));
    // Candidates are charged when they are decided.
    let mut left = buckets.each_ref().map(|bucket| bucket.as_ref().map_or(0.0, Bucket::level));
    for candidate in candidates {
        for ((left, bucket), cost) in left.iter_mut().zip(buckets).zip(candidate.costs) {
            let Some(bucket) = bucket else { continue };
            if !bucket.fits(*left, f64::from(cost)) {
                return Threshold::from_bits(candidate.randomness.0 + 1);
            }
            *left -= f64::from(cost);
        }
    }
    Threshold::ALWAYS
}
