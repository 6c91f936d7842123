//! Two other algorithms that hold many kinds of traces to a rate, for comparison only. They are
//! written from the descriptions of `EMAThroughput` and `WindowedThroughput` in dynsampler-go.
//!
//! Both keep one in N traces of a kind, by the randomness of the trace. N is an integer that is
//! computed from past counts.

use std::collections::{BTreeMap, HashMap, VecDeque};

use tailwater::trace::Randomness;

use super::traffic::{Sampler, TICKS_PER_SECOND};

/// Keeps one in `rate` traces of a kind.
fn by_rate(rate: f64, randomness: Randomness) -> Option<f64> {
    let p = 1.0 / rate.max(1.0);
    (randomness.0 as f64 / (1u64 << 56) as f64 >= 1.0 - p).then_some(p)
}

/// Every 15 s, updates an average count of each kind, in which the new count has the weight 0.5.
/// Divides the goal among the kinds in proportion to the logarithms of their averages. The part
/// that a kind does not need goes to the kinds after it, in the order of names. After three
/// intervals, an update starts early if the counts exceed twice the averages.
pub(crate) struct EmaThroughput {
    goal_per_second: f64,
    ticks: usize,
    intervals: usize,
    counts: BTreeMap<u64, f64>,
    averages: BTreeMap<u64, f64>,
    rates: HashMap<u64, f64>,
}

impl EmaThroughput {
    const INTERVAL_SECONDS: usize = 15;

    pub(crate) fn new(goal_per_second: f64) -> Self {
        EmaThroughput {
            goal_per_second,
            ticks: 0,
            intervals: 0,
            counts: BTreeMap::new(),
            averages: BTreeMap::new(),
            rates: HashMap::new(),
        }
    }

    fn update(&mut self) {
        self.ticks = 0;
        self.intervals += 1;
        let counts = std::mem::take(&mut self.counts);
        for average in self.averages.values_mut() {
            *average *= 0.5;
        }
        for (kind, count) in counts {
            *self.averages.entry(kind).or_default() += 0.5 * count;
        }
        self.averages.retain(|_, average| *average >= 0.5);
        let goal = self.goal_per_second * Self::INTERVAL_SECONDS as f64;
        let logarithm = |average: f64| average.max(1.0).log10();
        let logarithms: f64 = self.averages.values().map(|&average| logarithm(average)).sum();
        let mut left_over = 0.0;
        let mut kinds_left = self.averages.len() as f64;
        self.rates.clear();
        for (&kind, &average) in &self.averages {
            let extra = left_over / kinds_left;
            let goal = (goal * logarithm(average) / logarithms).max(1.0) + extra;
            left_over -= extra;
            kinds_left -= 1.0;
            if average <= goal {
                left_over += goal - average;
            }
            self.rates.insert(kind, (average / goal).ceil());
        }
    }
}

impl Sampler for EmaThroughput {
    fn tick(&mut self, traces: &[(u64, Randomness)]) -> Vec<Option<f64>> {
        let unknown = if self.intervals == 0 { 10.0 } else { 1.0 };
        let mut decided = Vec::with_capacity(traces.len());
        for &(kind, randomness) in traces {
            *self.counts.entry(kind).or_default() += 1.0;
            decided.push(by_rate(self.rates.get(&kind).copied().unwrap_or(unknown), randomness));
        }
        self.ticks += 1;
        let sum = |counts: &BTreeMap<u64, f64>| counts.values().sum::<f64>();
        let is_burst = self.intervals >= 3 && sum(&self.counts) > 2.0 * sum(&self.averages);
        if self.ticks == Self::INTERVAL_SECONDS * TICKS_PER_SECOND || is_burst {
            self.update();
        }
        decided
    }
}

/// Every second, gives each kind of the last 30 s an equal share of the goal. The part that a kind
/// does not need stays unused. All traces of an unknown kind are kept.
pub(crate) struct Windowed {
    goal_per_second: f64,
    ticks: usize,
    seconds: VecDeque<HashMap<u64, f64>>,
    counts: HashMap<u64, f64>,
    rates: HashMap<u64, f64>,
}

impl Windowed {
    const LOOK_BACK_SECONDS: usize = 30;

    pub(crate) fn new(goal_per_second: f64) -> Self {
        Windowed {
            goal_per_second,
            ticks: 0,
            seconds: VecDeque::new(),
            counts: HashMap::new(),
            rates: HashMap::new(),
        }
    }
}

impl Sampler for Windowed {
    fn tick(&mut self, traces: &[(u64, Randomness)]) -> Vec<Option<f64>> {
        let mut decided = Vec::with_capacity(traces.len());
        for &(kind, randomness) in traces {
            *self.counts.entry(kind).or_default() += 1.0;
            decided.push(by_rate(self.rates.get(&kind).copied().unwrap_or(1.0), randomness));
        }
        self.ticks += 1;
        if self.ticks.is_multiple_of(TICKS_PER_SECOND) {
            self.seconds.push_back(std::mem::take(&mut self.counts));
            if self.seconds.len() > Self::LOOK_BACK_SECONDS {
                self.seconds.pop_front();
            }
            let mut sums: HashMap<u64, f64> = HashMap::new();
            for (kind, count) in self.seconds.iter().flatten() {
                *sums.entry(*kind).or_default() += count;
            }
            let share = self.goal_per_second * self.seconds.len() as f64 / sums.len().max(1) as f64;
            let rate = |(kind, count): (u64, f64)| (kind, (count / share).trunc().max(1.0));
            self.rates = sums.into_iter().map(rate).collect();
        }
        decided
    }
}
