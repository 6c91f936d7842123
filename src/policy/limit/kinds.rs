//! The kinds of traces that share a budget, and the share of each.
//!
//! For each kind there is an estimate of the cost of its candidates per second, kept or not. The
//! water level solves `sum of min(demand, weight * level) = rate` (max-min fairness): kinds below
//! their part keep everything, and each other kind keeps the part `weight * level / demand` of its
//! traces, its share. None of this depends on the randomness of any trace.
//!
//! The demand of a kind is decayed with a half-life of [`HALF_LIFE_SECONDS`] and includes the
//! candidates of this tick. The average of a new kind rises too slowly, so the demand is at least
//! the average over the age of the kind. That average leaves out the first trace: one trace says
//! nothing about a rate, and a kind with one trace in minutes must not look like one with ten a
//! second.
//!
//! The table holds at most `kinds_max` kinds, about 100 bytes each. Traces of further kinds share
//! one kind. A kind is forgotten [`REMEMBERED_SECONDS`] after its last trace.
//!
//! Sources: Stoica, Shenker, Zhang, "Core-Stateless Fair Queueing" (1998), for fair shares by
//! dropping with the probability 1 - level / rate; Bankier, "Power Allocations" (1988), for the
//! weights.

use std::collections::HashMap;

use super::{
    bucket::{HALF_LIFE_SECONDS, TICK_SECONDS_MIN},
    cut::Share,
};

/// A kind is forgotten this long after its last trace.
const REMEMBERED_SECONDS: f64 = 60.0;
/// The bytes that a kind takes: its entry in the table, which may be half empty, and its place in
/// two lists.
const KIND_BYTES: usize = 2 * (8 + size_of::<Kind>()) + 2 * size_of::<Demand>();

#[derive(Debug, Default)]
struct Kind {
    /// The cost of candidates since the last tick, and the part of it that is not the first trace.
    asked: f64,
    asked_later: f64,
    /// The decayed cost per second, of all traces and of all but the first.
    per_second: f64,
    later: f64,
    /// The weight of the average: it rises to 1 with the age of the kind.
    weight: f64,
    idle_seconds: f64,
    share: Option<Share>,
}

impl Kind {
    fn ask(&mut self, cost: f64) {
        let is_first = self.weight == 0.0 && self.asked == 0.0;
        self.asked += cost;
        self.asked_later += if is_first { 0.0 } else { cost };
        self.idle_seconds = 0.0;
    }

    /// `fades` is the weight that the past keeps after these seconds.
    fn begin_tick(&mut self, seconds: f64, fades: f64) {
        let comes = (1.0 - fades) / seconds;
        self.per_second = self.per_second * fades + self.asked * comes;
        self.later = self.later * fades + std::mem::take(&mut self.asked_later) * comes;
        self.weight = self.weight * fades + 1.0 - fades;
        self.idle_seconds += seconds;
    }

    fn demand(&self) -> f64 {
        self.per_second.max(self.later / self.weight)
    }
}

/// A kind in the order of demands.
#[derive(Clone, Copy, Debug)]
struct Demand {
    per_second: f64,
    /// `None` for the kind of the traces that found the table full.
    kind: Option<u64>,
    /// The cost of its candidates in this tick.
    asked: f64,
}

/// All kinds of a budget.
#[derive(Debug)]
pub(super) struct Kinds {
    kinds_max: usize,
    /// 0 means equal shares; 1 means shares in proportion to the demand.
    power: f64,
    table: HashMap<u64, Kind, foldhash::fast::RandomState>,
    /// The highest number of kinds since the table was last shrunk.
    room: usize,
    /// The kind of the traces that found the table full.
    other: Kind,
    /// Kinds with a demand, the largest shares first.
    demands: Vec<Demand>,
    mean: f64,
    level: Option<f64>,
    /// The level that a share of 1 stands for.
    base: f64,
    overflowed: u64,
}

impl Kinds {
    pub(super) fn new(kinds_max: usize, power: f64) -> Self {
        Kinds {
            kinds_max,
            power,
            table: HashMap::default(),
            room: 0,
            other: Kind::default(),
            demands: Vec::new(),
            mean: 0.0,
            level: None,
            base: 1.0,
            overflowed: 0,
        }
    }

    /// Adds a candidate of the next tick.
    pub(super) fn ask(&mut self, kind: u64, cost: f64) {
        let has_room = self.table.len() < self.kinds_max;
        let known = match self.table.get_mut(&kind) {
            Some(known) => known,
            None if has_room => self.table.entry(kind).or_default(),
            None => {
                self.overflowed += 1;
                &mut self.other
            }
        };
        known.ask(cost);
    }

    /// Sets the shares of a tick that begins `seconds` after the last one.
    pub(super) fn begin_tick(&mut self, seconds: f64, rate: f64) {
        let seconds = seconds.max(TICK_SECONDS_MIN);
        let fades = (-seconds / HALF_LIFE_SECONDS).exp2();
        self.table.retain(|_, kind| {
            kind.begin_tick(seconds, fades);
            kind.idle_seconds <= REMEMBERED_SECONDS
        });
        self.other.begin_tick(seconds, fades);
        if self.other.idle_seconds > REMEMBERED_SECONDS {
            self.other = Kind::default();
        }
        self.room = self.room.max(self.table.len());
        if self.table.len() < self.room / 8 {
            self.room = 2 * self.table.len();
            self.table.shrink_to(self.room);
            self.demands.shrink_to(self.room);
        }
        self.list();
        let amounts = self.demands.iter().map(|demand| (demand.per_second, self.ratio(demand)));
        self.level = factor_for(rate, amounts);
        let whole = self.demands.last().map_or(1.0, |largest| 1.0 / self.ratio(largest));
        self.base = self.level.unwrap_or(whole);
        let known = self.table.iter_mut().map(|(kind, known)| (Some(*kind), known));
        for (_, kind) in known.chain([(None, &mut self.other)]) {
            let demand = Some(kind.demand()).filter(|demand| *demand > 0.0);
            let share = |demand| Share::of(ratio(demand, self.mean, self.power) * self.base);
            kind.share = demand.map(share);
            kind.asked = 0.0;
        }
    }

    /// Lists the demands in their order. Sums are computed in that order, so that a run with the
    /// same traces gives the same numbers.
    fn list(&mut self) {
        self.demands.clear();
        let known = self.table.iter().map(|(kind, known)| (Some(*kind), known));
        let all = known.chain([(None, &self.other)]).map(|(kind, known)| Demand {
            per_second: known.demand(),
            kind,
            asked: known.asked,
        });
        self.demands.extend(all.filter(|demand| demand.per_second > 0.0));
        self.demands.sort_unstable_by(|a, b| {
            a.per_second.total_cmp(&b.per_second).then(a.kind.cmp(&b.kind))
        });
        let total: f64 = self.demands.iter().map(|demand| demand.per_second).sum();
        self.mean = total / self.demands.len().max(1) as f64;
    }

    fn ratio(&self, demand: &Demand) -> f64 {
        ratio(demand.per_second, self.mean, self.power)
    }

    /// The share of a kind. An unknown kind gets the share of a kind with one trace of this cost.
    pub(super) fn share(&self, kind: u64, cost: f64) -> Share {
        let known = self.table.get(&kind);
        let known = known.or_else(|| (self.table.len() >= self.kinds_max).then_some(&self.other));
        known.and_then(|kind| kind.share).unwrap_or_else(|| {
            let demand = cost.max(1.0) * std::f64::consts::LN_2 / HALF_LIFE_SECONDS;
            let mean = if self.mean > 0.0 { self.mean } else { demand };
            Share::of(ratio(demand, mean, self.power) * self.base)
        })
    }

    /// The multiple of the shares that spends this rate in the long run, and at most `at_once` on
    /// the candidates of this tick.
    pub(super) fn times(&self, rate: f64, at_once: f64) -> f64 {
        let share = |demand: &Demand| self.ratio(demand) * self.base;
        let demands = self.demands.iter().map(|demand| (demand.per_second, share(demand)));
        let asked = self.demands.iter().map(|demand| (demand.asked, share(demand)));
        let long = factor_for(rate, demands).unwrap_or(f64::MAX);
        long.min(factor_for(at_once, asked).unwrap_or(f64::MAX))
    }

    /// The water level; `None` if every kind is below it.
    pub(super) fn level(&self) -> Option<f64> {
        self.level
    }

    /// The number of kinds in the table.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// The number of traces that have found the table full since the last call.
    pub(super) fn take_overflowed(&mut self) -> u64 {
        std::mem::take(&mut self.overflowed)
    }

    /// The bytes that the table may take with the kinds that it has. The actual capacity depends on
    /// where the keys lie, and would differ when a run is repeated.
    pub(super) fn bytes(&self) -> usize {
        self.room.max(self.table.len()) * KIND_BYTES
    }
}

/// The weight of a kind divided by its demand.
fn ratio(demand: f64, mean: f64, power: f64) -> f64 {
    if power == 0.0 { 1.0 / demand } else { (demand / mean).powf(power) / demand }
}

/// The factor that solves `sum of amount * min(1, factor * part) = room`, for parts in falling
/// order; `None` if the amounts fit whole.
fn factor_for(room: f64, amounts: impl Iterator<Item = (f64, f64)> + Clone) -> Option<f64> {
    let mut rest = room;
    let mut shared: f64 = amounts.clone().map(|(amount, part)| amount * part).sum();
    for (amount, part) in amounts {
        if rest * part < shared {
            // A difference of sums may come out a little below 0.
            return Some((rest / shared).max(0.0));
        }
        rest -= amount;
        shared -= amount * part;
    }
    None
}
