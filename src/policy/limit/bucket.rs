//! One rate of a limit: what its bucket holds, what is asked of it, and the chance that a trace
//! gets where the bucket cannot serve it whole.
//!
//! The bucket fills at the rate up to the burst, and at least up to [`TICKS_MIN`] ticks of the
//! rate: what a tick adds is there to be spent in it, however small the burst is. Kept traces are
//! charged and may leave a debt.
//!
//! The demand is the cost of all candidates a second, kept or not, decayed with a half-life of
//! [`HALF_LIFE_SECONDS`]. It does not depend on any trace's randomness.

use super::super::spec::Rate;

/// How fast past demand loses its weight.
const HALF_LIFE_SECONDS: f64 = 5.0;
/// The shortest time that demand is spread over, for ticks that follow at once.
const TICK_SECONDS_MIN: f64 = 0.001;
/// The longest time that a single tick may spend the rate of, beyond the burst. A tick takes longer
/// while the sending queue is full.
const TICK_SECONDS_MAX: f64 = 1.0;
/// Ticks of the rate that a bucket holds at least.
const TICKS_MIN: f64 = 2.0;
/// The cut needs room for this many traces of the largest size. With n kept traces the variance of
/// the counts is 1 / (n - 1) of their square under a cut and 1 / n under a fixed chance: without
/// bound for one trace, 14 % more for eight.
const CUT_TRACES_MIN: f64 = 8.0;
/// How many traces of the usual size the level is steered within. Fewer make the chances jump from
/// tick to tick; more take longer to find back to the rate.
const STEERING_TRACES: f64 = 4.0;
/// What steering makes of the chance at most, down and up.
const STEERING: (f64, f64) = (0.125, 2.0);

/// What traces cost in one unit, spans or bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::policy) struct Cost {
    total: f64,
    /// The sum of the squares.
    squares: f64,
    largest: f64,
}

impl Cost {
    /// With one more trace.
    pub(super) fn add(&mut self, cost: u32) {
        let cost = f64::from(cost);
        self.total += cost;
        self.squares += cost * cost;
        self.largest = self.largest.max(cost);
    }
}

/// The decayed cost of candidates.
#[derive(Debug, Default)]
struct Demand {
    per_second: f64,
    /// The same of the squares.
    squares: f64,
    /// How much of a whole average this is: less than 1 in the first seconds of a process.
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

    /// The size of the trace that a span or byte usually belongs to; 0 without demand.
    fn trace_cost(&self) -> f64 {
        if self.per_second > 0.0 { self.squares / self.per_second } else { 0.0 }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: Rate,
    /// Below 0 in debt.
    level: f64,
    demand: Demand,
    /// What the rate comes to in this tick.
    step: f64,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(rate: Rate) -> Self {
        Bucket { rate, level: rate.burst, demand: Demand::default(), step: 0.0 }
    }

    /// Begins a tick, this long after the last one, in which so much was spent. `asked` is what all
    /// candidates since the last tick cost, those of this one included.
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

    /// What it holds.
    pub(super) fn level(&self) -> f64 {
        self.level
    }

    /// Whether it holds what these cost together.
    pub(super) fn holds(&self, asked: Cost) -> bool {
        asked.total <= self.level
    }

    /// Whether these may be cut where the bucket is empty: each of them would fit if it came first,
    /// and either the bucket is full or enough of them are going to fit.
    pub(super) fn may_cut(&self, asked: Cost) -> bool {
        self.level >= self.capacity() || CUT_TRACES_MIN * asked.largest <= self.level
    }

    /// Whether a trace of this cost fits into what is left. One larger than a full bucket takes all
    /// of it and leaves a debt.
    pub(super) fn fits(&self, left: f64, cost: f64) -> bool {
        left >= cost.min(self.capacity())
    }

    /// The chance of each of these traces, above 0, that spends the rate in the long run: the rate
    /// over the demand, steered by the level. The level is held a few traces below what a tick
    /// adds, in debt for low rates, so that it rises to where everything fits only when there is
    /// less to keep than the rate.
    pub(super) fn chance(&self, asked: Cost) -> f64 {
        let scale = (STEERING_TRACES * self.demand.trace_cost()).max(TICKS_MIN * self.step);
        let off = self.level - self.step + scale;
        let steering = if scale > 0.0 { (off / scale).exp2() } else { 1.0 };
        let rate = self.rate.per_second * steering.clamp(STEERING.0, STEERING.1);
        let by_demand = rate * self.demand.weight / self.demand.per_second;
        // The demand lags behind a burst.
        let at_once = self.level.max(asked.largest).max(TICKS_MIN * self.step);
        // Without demand, or without candidates, these are infinite or no number.
        by_demand.min(at_once / asked.total).min(1.0)
    }
}
