//! One rate of a limit: the level of its bucket, the demand for it, and the chance that each trace
//! gets when the bucket cannot hold all candidates.
//!
//! The bucket fills at the rate, up to the burst or [`TICKS_MIN`] ticks of the rate, whichever is
//! more: a tick must be able to spend its own share, even if the burst is small. Kept traces are
//! charged and may leave a debt.
//!
//! The demand is the cost of all candidates per second, kept or not, decayed with a half-life of
//! [`HALF_LIFE_SECONDS`]. It does not depend on the randomness of any trace.

use super::super::spec::Rate;

/// The half-life of past demand.
pub(super) const HALF_LIFE_SECONDS: f64 = 5.0;
/// The shortest time over which demand is spread, for ticks that follow each other at once.
pub(super) const TICK_SECONDS_MIN: f64 = 0.001;
/// The longest time for which a single tick may spend the rate, in addition to the burst. A tick
/// lasts longer while the export queue is full.
const TICK_SECONDS_MAX: f64 = 1.0;
/// A bucket holds at least this many ticks of the rate.
const TICKS_MIN: f64 = 2.0;
/// A cut needs room for this many traces of the largest size. With n kept traces, the variance of
/// the counts is 1 / (n - 1) of their square under a cut and 1 / n under a fixed chance. For one
/// trace that is unbounded; for eight it is 14 % more.
const CUT_TRACES_MIN: f64 = 8.0;
/// The level is steered within this many traces of the usual size. With fewer, the chances jump
/// from tick to tick; with more, the level takes longer to return to the rate.
const STEERING_TRACES: f64 = 4.0;
/// The lowest and highest factor by which steering changes the chance.
const STEERING: (f64, f64) = (0.125, 2.0);

/// The cost of traces in one unit, spans or bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::policy) struct Cost {
    total: f64,
    /// The sum of the squared costs.
    squares: f64,
    largest: f64,
}

impl Cost {
    /// The cost with one more trace.
    pub(super) fn add(&mut self, cost: u32) {
        let cost = f64::from(cost);
        self.total += cost;
        self.squares += cost * cost;
        self.largest = self.largest.max(cost);
    }
}

/// The decayed cost of candidates per second.
#[derive(Debug, Default)]
struct Demand {
    per_second: f64,
    /// The same for the squared costs.
    squares: f64,
    /// The weight of the average: less than 1 in the first seconds of a process.
    weight: f64,
}

impl Demand {
    fn add(&mut self, seconds: f64, cost: Cost) {
        let seconds = seconds.max(TICK_SECONDS_MIN);
        let fades = (-seconds / HALF_LIFE_SECONDS).exp2();
        let comes = (1.0 - fades) / seconds;
        self.per_second = self.per_second * fades + cost.total * comes;
        self.squares = self.squares * fades + cost.squares * comes;
        self.weight = self.weight * fades + 1.0 - fades;
    }

    /// The mean size of a trace, weighted by size: that of a randomly chosen span or byte. Without
    /// demand it is 0.
    fn trace_cost(&self) -> f64 {
        if self.per_second > 0.0 { self.squares / self.per_second } else { 0.0 }
    }
}

/// The bucket and the demand of one rate.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: Rate,
    /// The level; below 0 it is a debt.
    level: f64,
    demand: Demand,
    /// The amount that the rate adds in this tick.
    step: f64,
}

impl Bucket {
    /// A full bucket.
    pub(super) fn new(rate: Rate) -> Self {
        Bucket { rate, level: rate.burst, demand: Demand::default(), step: 0.0 }
    }

    /// Begins a tick, `seconds` after the last one. `spent` is the cost of the traces kept since
    /// then. `asked` is the cost of all candidates since then: those of this tick, and those
    /// decided outside a tick.
    pub(super) fn begin_tick(&mut self, seconds: f64, spent: f64, asked: [Cost; 2]) {
        self.step = self.rate.per_second * seconds.min(TICK_SECONDS_MAX);
        let filled = self.level - spent + self.rate.per_second * seconds;
        self.level = filled.min(self.capacity());
        let [tick, outside] = asked;
        let both = Cost {
            total: tick.total + outside.total,
            squares: tick.squares + outside.squares,
            largest: tick.largest.max(outside.largest),
        };
        self.demand.add(seconds, both);
    }

    fn capacity(&self) -> f64 {
        self.rate.burst.max(TICKS_MIN * self.step)
    }

    /// The level of the bucket.
    pub(super) fn level(&self) -> f64 {
        self.level
    }

    /// Whether the bucket holds the whole of this cost.
    pub(super) fn holds(&self, asked: Cost) -> bool {
        asked.total <= self.level
    }

    /// Whether a cut at the end of the bucket is allowed: each of these traces would fit if it came
    /// first, and either the bucket is full or enough of them will fit.
    pub(super) fn may_cut(&self, asked: Cost) -> bool {
        self.level >= self.capacity() || CUT_TRACES_MIN * asked.largest <= self.level
    }

    /// Whether a trace of this cost fits into the remaining level. A trace larger than a full
    /// bucket takes all of it and leaves a debt.
    pub(super) fn fits(&self, left: f64, cost: f64) -> bool {
        left >= cost.min(self.capacity())
    }

    /// The chance, above 0, to keep each of these traces, so that kept traces use the rate in the
    /// long run.
    pub(super) fn chance(&self, asked: Cost) -> f64 {
        let by_demand = self.steered_rate() * self.demand.weight / self.demand.per_second;
        // Without demand or candidates, these values are infinite or NaN.
        by_demand.min(self.at_once(asked) / asked.total).min(1.0)
    }

    /// The rate to spend, steered by the level. Steering holds the level a few traces below the
    /// amount that a tick adds (for low rates, at a debt). So the level rises far enough for all
    /// candidates to fit only if there is less to keep than the rate.
    pub(super) fn steered_rate(&self) -> f64 {
        let scale = (STEERING_TRACES * self.demand.trace_cost()).max(TICKS_MIN * self.step);
        let off = self.level - self.step + scale;
        let steering = if scale > 0.0 { (off / scale).exp2() } else { 1.0 };
        self.rate.per_second * steering.clamp(STEERING.0, STEERING.1)
    }

    /// The most to spend on the candidates of this tick. The demand lags behind a burst, so the
    /// chance is also bounded by the level.
    pub(super) fn at_once(&self, asked: Cost) -> f64 {
        self.level.max(asked.largest).max(TICKS_MIN * self.step)
    }

    /// The part of the bucket that candidates beyond their share leave for others. There is none if
    /// the bucket has room for only a few candidates: such a bucket is cut only when it is full.
    pub(super) fn reserve(&self, asked: Cost) -> f64 {
        if CUT_TRACES_MIN * asked.largest <= self.level { self.capacity() / 2.0 } else { 0.0 }
    }
}
