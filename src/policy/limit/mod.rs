//! Limits: a policy's kept spans held to a rate by raising its threshold.
//!
//! A limit has one threshold at a time. A decision tick sets it, over all shards, from the
//! candidates of the policy that are due in it; the sampler decides all of them before it begins
//! the next tick. Decisions outside a tick use the same threshold. What is kept is charged to the
//! bucket, which may go into debt.
//!
//! Where the bucket holds all candidates, the threshold is 0. Where it holds some, they are ordered
//! from the highest randomness down and taken while the bucket lasts, and the threshold is just
//! above the first one that does not fit: that of the last one that fits would bias the counts.
//! Where it holds only a few, or one of them would not even fit alone, every candidate gets the
//! same chance, the rate over the demand ([`bucket`]). A cut would leave large traces without any
//! chance then, and nothing would stand for what was dropped.
//!
//! Invariants: the threshold never depends on the randomness of a trace that it keeps. It leaves
//! every candidate a chance. A tick lists at most [`CANDIDATES_MAX`] candidates over all limits, 1
//! MiB; limits with more use the chance.
//!
//! Knows no clock: the caller says how much time has passed.
//! Sources: the threshold of the first item left out is that of priority sampling (Duffield, Lund,
//! Thorup 2007); which thresholds may be treated as fixed, Ting, "Adaptive Threshold Sampling"
//! (2022).

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

/// Candidates that a tick lists.
pub(super) const CANDIDATES_MAX: usize = 1 << 16;

/// A due trace that a limited policy would keep if it were not limited.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// Compared with the threshold.
    pub(super) randomness: Randomness,
    /// Its spans, and their encoded bytes.
    pub(super) costs: [u32; 2],
}

/// The candidates of one limit in one tick.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// All of them, or nothing where there were too many.
    listed: Vec<Candidate>,
    are_too_many: bool,
    /// Of all of them.
    asked: [Cost; 2],
}

impl Candidates {
    /// Adds one; `room` is how many more the tick may list.
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

/// What happened since the last tick.
#[derive(Debug, Default)]
struct Since {
    /// Spans and bytes that were kept.
    spent: [f64; 2],
    /// Of candidates that were decided outside a tick.
    outside: [Cost; 2],
    was_outside: bool,
}

/// The limit of one policy, and what is left of it.
#[derive(Debug)]
pub(super) struct Limit {
    spec: LimitSpec,
    /// Of the last tick.
    threshold: AtomicU64,
    /// There was a tick.
    has_begun: AtomicBool,
    since: Mutex<Since>,
    /// Of spans and of bytes.
    buckets: Mutex<[Option<Bucket>; 2]>,
}

impl Limit {
    /// With full buckets.
    pub(super) fn new(spec: LimitSpec) -> Self {
        Limit {
            spec,
            threshold: AtomicU64::new(Threshold::ALWAYS.bits()),
            has_begun: AtomicBool::new(false),
            since: Mutex::default(),
            buckets: Mutex::new(spec.rates().map(|rate| rate.map(Bucket::new))),
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

    /// Whether there was a tick.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun.load(Relaxed)
    }

    /// Takes what a kept trace costs.
    pub(super) fn charge(&self, costs: [u32; 2]) {
        let mut since = lock(&self.since);
        for (spent, cost) in since.spent.iter_mut().zip(costs) {
            *spent += f64::from(cost);
        }
    }

    /// Notes a candidate that is decided outside a tick, kept or not.
    pub(super) fn note_outside(&self, costs: [u32; 2]) {
        let mut since = lock(&self.since);
        add_costs(&mut since.outside, costs);
        since.was_outside = true;
    }

    /// Begins a tick, this long after the last one.
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
    // Nothing can panic while it is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn add_costs(sums: &mut [Cost; 2], costs: [u32; 2]) {
    for (sum, cost) in sums.iter_mut().zip(costs) {
        sum.add(cost);
    }
}

/// `expects_more` where candidates were decided outside the last tick, as more of them may be in
/// this one.
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

/// Just above the first candidate that does not fit, from the highest randomness down.
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
