//! Limits and budgets: they hold the kept spans of a policy to a rate by raising its threshold.
//!
//! A limit has one threshold at a time; a budget has one for each kind of traces. A decision tick
//! sets them, over all shards, from the due candidates of the policy. The sampler decides all of
//! them before it begins the next tick. Decisions outside a tick use the same thresholds. Kept
//! traces are charged to the bucket, which may go into debt.
//!
//! In a budget each kind has a share ([`kinds`]): the part of its traces that it may keep. A limit
//! is a budget with a single kind, whose share is 1.
//!
//! If the bucket holds all candidates, the threshold is 0. If it holds some of them, they are taken
//! in the order of their luck, which is the randomness divided by the share ([`cut`]), until the
//! bucket is empty, and the threshold is just above the first candidate that does not fit. The
//! randomness of the last one that fits would bias the counts. Candidates beyond their share get
//! only the part of the bucket above a reserve, so that a burst of a small kind finds room. If the
//! bucket holds only a few candidates, or one of them would not fit even alone, every candidate
//! gets the same multiple of its share: the rate divided by the demand ([`bucket`]). A cut would
//! then leave large traces without any chance, and nothing would represent the dropped ones.
//!
//! Invariants: the threshold never depends on the randomness of a trace that it keeps. It leaves
//! every candidate a chance. A tick lists at most [`CANDIDATES_MAX`] candidates over all limits
//! (1.5 MiB); limits with more use the chance.
//!
//! The caller passes the elapsed time; this module reads no clock. Sources: the threshold of the
//! first item left out is that of priority sampling (Duffield, Lund, Thorup 2007); Ting, "Adaptive
//! Threshold Sampling" (2022), shows which thresholds may be treated as fixed.

mod bucket;
mod cut;
mod kinds;
#[cfg(test)]
mod tests;

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use self::{
    bucket::{Bucket, Cost},
    cut::{Bar, Luck, Share},
    kinds::Kinds,
};
use super::spec::{BudgetSpec, LimitSpec};
use crate::trace::{Randomness, Threshold};

/// The most candidates that a tick lists.
pub(super) const CANDIDATES_MAX: usize = 1 << 16;
/// The candidates that a cut sorts first.
const SORTED_FIRST: usize = 64;

/// A due trace that a limited policy would keep without its limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// The randomness, which is compared with the threshold.
    pub(super) randomness: Randomness,
    /// The kind of trace; any number for a limit.
    pub(super) kind: u64,
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

/// The policy as it is written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Spec {
    Limit(LimitSpec),
    Budget(BudgetSpec),
}

impl Spec {
    fn rates(&self) -> &LimitSpec {
        match self {
            Spec::Limit(limit) => limit,
            Spec::Budget(budget) => &budget.rate,
        }
    }
}

/// The limit of one policy and the state of its buckets, or a budget.
#[derive(Debug)]
pub(super) struct Limit {
    spec: Spec,
    /// The threshold of the last tick. A budget has `shares` instead.
    threshold: AtomicU64,
    /// Whether there has been a tick.
    has_begun: AtomicBool,
    since: Mutex<Since>,
    /// The buckets of spans and of bytes. Locked before `shares`.
    buckets: Mutex<[Option<Bucket>; 2]>,
    /// `None` for a limit.
    shares: Option<Mutex<Shares>>,
}

/// The kinds of a budget.
#[derive(Debug)]
struct Shares {
    kinds: Kinds,
    /// The bar of the last tick.
    bar: Bar,
    /// The index of the cost that counts: 0 for spans, 1 for bytes.
    unit: usize,
    rate: f64,
}

impl Shares {
    fn new(budget: &BudgetSpec) -> Self {
        let (unit, rate) = match budget.rate {
            LimitSpec { bytes: Some(rate), .. } => (1, rate.per_second),
            LimitSpec { spans, .. } => (0, spans.map_or(0.0, |rate| rate.per_second)),
        };
        let kinds = Kinds::new(budget.kinds.kinds_max, budget.power);
        Shares { kinds, bar: Bar::None, unit, rate }
    }

    fn cost(&self, candidate: &Candidate) -> f64 {
        f64::from(candidate.costs[self.unit])
    }

    fn share(&self, candidate: &Candidate) -> Share {
        self.kinds.share(candidate.kind, self.cost(candidate))
    }
}

/// The figures of a budget that metrics show.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BudgetReading {
    /// The number of kinds in the table.
    pub kinds: usize,
    /// The amount that all kinds together may keep per second.
    pub limit: f64,
    /// The amount that a kind may keep per second; the whole limit if no kind is held back.
    pub level: f64,
    /// Whether both are in bytes and not in spans.
    pub is_bytes: bool,
}

impl Limit {
    /// A limit or a budget with full buckets.
    pub(super) fn new(spec: Spec) -> Self {
        let shares = match &spec {
            Spec::Limit(_) => None,
            Spec::Budget(budget) => Some(Mutex::new(Shares::new(budget))),
        };
        Limit {
            threshold: AtomicU64::new(Threshold::ALWAYS.bits()),
            has_begun: AtomicBool::new(false),
            since: Mutex::default(),
            buckets: Mutex::new(spec.rates().rates().map(|rate| rate.map(Bucket::new))),
            shares,
            spec,
        }
    }

    /// The limit as it is written.
    pub(super) fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The threshold of the last tick for this trace. It does not depend on its randomness.
    pub(super) fn threshold(&self, candidate: &Candidate) -> Threshold {
        match &self.shares {
            None => Threshold::from_bits(self.threshold.load(Relaxed)),
            Some(shares) => {
                let shares = lock(shares);
                shares.bar.threshold(shares.share(candidate))
            }
        }
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

    /// Adds a candidate of the next tick to the demand of its kind.
    pub(super) fn ask(&self, candidate: &Candidate) {
        if let Some(shares) = &self.shares {
            let mut shares = lock(shares);
            let cost = shares.cost(candidate);
            shares.kinds.ask(candidate.kind, cost);
        }
    }

    /// Notes a candidate that is decided outside a tick, whether kept or not.
    pub(super) fn note_outside(&self, candidate: &Candidate) {
        let mut since = lock(&self.since);
        add_costs(&mut since.outside, candidate.costs);
        since.was_outside = true;
        drop(since);
        self.ask(candidate);
    }

    /// Begins a tick, `seconds` after the last one. Each candidate must have been passed to
    /// [`Self::ask`] before.
    pub(super) fn begin_tick(&self, seconds: f64, candidates: Candidates) {
        let since = std::mem::take(&mut *lock(&self.since));
        let mut buckets = lock(&self.buckets);
        for (index, bucket) in buckets.iter_mut().enumerate() {
            if let Some(bucket) = bucket {
                let asked = [candidates.asked[index], since.outside[index]];
                bucket.begin_tick(seconds, since.spent[index], asked);
            }
        }
        let mut shares = self.shares.as_ref().map(lock);
        if let Some(shares) = &mut shares {
            let rate = shares.rate;
            shares.kinds.begin_tick(seconds, rate);
        }
        let bar = bar_of(&buckets, shares.as_deref(), candidates, since.was_outside);
        match &mut shares {
            Some(shares) => shares.bar = bar,
            None => self.threshold.store(bar.threshold(Share::WHOLE).bits(), Relaxed),
        }
        self.has_begun.store(true, Relaxed);
    }

    /// The figures of a budget; `None` for a limit.
    pub(super) fn reading(&self) -> Option<BudgetReading> {
        let shares = lock(self.shares.as_ref()?);
        let limit = shares.rate;
        let level = shares.kinds.level().map_or(limit, |level| level.min(limit));
        Some(BudgetReading { kinds: shares.kinds.len(), limit, level, is_bytes: shares.unit == 1 })
    }

    /// The number of traces that have found the table of kinds full since the last call.
    pub(super) fn take_overflowed(&self) -> u64 {
        self.shares.as_ref().map_or(0, |shares| lock(shares).kinds.take_overflowed())
    }

    /// The bytes that the table of kinds takes.
    pub(super) fn bytes(&self) -> usize {
        self.shares.as_ref().map_or(0, |shares| lock(shares).kinds.bytes())
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

/// The bar for the candidates of a tick. `expects_more` says that candidates were decided outside
/// the last tick, so that more may be decided outside this one.
fn bar_of(
    buckets: &[Option<Bucket>; 2],
    shares: Option<&Shares>,
    candidates: Candidates,
    expects_more: bool,
) -> Bar {
    let Candidates { listed, are_too_many, asked } = candidates;
    let all = |holds: fn(&Bucket, Cost) -> bool| {
        let mut both = buckets.iter().zip(asked);
        both.all(|(bucket, asked)| bucket.as_ref().is_none_or(|bucket| holds(bucket, asked)))
    };
    let may_cut = !expects_more && !are_too_many && all(Bucket::may_cut);
    // A budget makes a cut even if everything fits, so that kinds beyond their share leave a
    // reserve.
    if !expects_more && all(Bucket::holds) && !(may_cut && shares.is_some()) {
        return Bar::None;
    }
    if may_cut {
        return cut(buckets, shares, &listed, asked);
    }
    let times = buckets.iter().zip(asked).filter_map(|(bucket, asked)| {
        let bucket = bucket.as_ref()?;
        Some(match shares {
            None => bucket.chance(asked),
            Some(shares) => shares.kinds.times(bucket.steered_rate(), bucket.at_once(asked)),
        })
    });
    Bar::Times(times.fold(f64::MAX, f64::min))
}

/// The bar at the first candidate that does not fit, taken in order of luck, the luckiest first.
fn cut(
    buckets: &[Option<Bucket>; 2],
    shares: Option<&Shares>,
    listed: &[Candidate],
    asked: [Cost; 2],
) -> Bar {
    let luck = |candidate: &Candidate| {
        let share = shares.map_or(Share::WHOLE, |shares| shares.share(candidate));
        (Luck::of(candidate.randomness, share), candidate.costs)
    };
    let (mut within, mut beyond): (Vec<_>, Vec<_>) =
        listed.iter().map(luck).partition(|(luck, _)| luck.is_in_share());
    // Candidates are charged when they are decided.
    let mut left = buckets.each_ref().map(|bucket| bucket.as_ref().map_or(0.0, Bucket::level));
    // All candidates within their shares are luckier than all others.
    if let Some(luck) = first_unfit(&mut within, &mut left, buckets) {
        return Bar::Cut(luck);
    }
    // Whether all candidates are within their shares depends on their randomness. The bar must not,
    // so the reserve is required even if none is beyond.
    if !leave_reserve(&mut left, buckets, asked) {
        return Bar::Shares;
    }
    first_unfit(&mut beyond, &mut left, buckets).map_or(Bar::None, Bar::Cut)
}

/// The luckiest candidate that does not fit into what is left, if they are taken in order of luck.
/// Subtracts the cost of those before it.
fn first_unfit(
    candidates: &mut [(Luck, [u32; 2])],
    left: &mut [f64; 2],
    buckets: &[Option<Bucket>; 2],
) -> Option<Luck> {
    let mut after_all = *left;
    for (_, costs) in &*candidates {
        for ((left, bucket), cost) in after_all.iter_mut().zip(buckets).zip(costs) {
            *left -= bucket.as_ref().map_or(0.0, |_| f64::from(*cost));
        }
    }
    if after_all.iter().all(|left| *left >= 0.0) {
        *left = after_all;
        return None;
    }
    // Often few of many fit, so the luckiest ones are sorted first.
    let by_luck = |a: &(Luck, _), b: &(Luck, _)| a.0.cmp(b.0);
    let (mut rest, mut luckiest) = (candidates, SORTED_FIRST);
    while !rest.is_empty() {
        if luckiest < rest.len() {
            rest.select_nth_unstable_by(luckiest, by_luck);
        }
        let (first, later) = rest.split_at_mut(luckiest.min(rest.len()));
        first.sort_unstable_by(by_luck);
        for (luck, costs) in first {
            for ((left, bucket), cost) in left.iter_mut().zip(buckets).zip(costs) {
                let Some(bucket) = bucket else { continue };
                if !bucket.fits(*left, f64::from(*cost)) {
                    return Some(*luck);
                }
                *left -= f64::from(*cost);
            }
        }
        (rest, luckiest) = (later, 4 * luckiest);
    }
    None
}

/// Subtracts the reserve from the rest. Returns false if the rest is smaller.
fn leave_reserve(left: &mut [f64; 2], of: &[Option<Bucket>; 2], asked: [Cost; 2]) -> bool {
    let mut is_left = true;
    for ((left, bucket), asked) in left.iter_mut().zip(of).zip(asked) {
        // Without a reserve, candidates beyond their share are treated like the others.
        let reserve = bucket.as_ref().map_or(0.0, |bucket| bucket.reserve(asked));
        is_left &= reserve == 0.0 || *left >= reserve;
        *left -= reserve;
    }
    is_left
}
