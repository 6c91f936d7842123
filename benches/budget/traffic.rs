//! The traffic of the four phases, and the results of a sampler for it. The traffic is seeded; time
//! is counted in ticks.
//!
//! Sixty kinds of traces, whose rates follow Zipf's law, add up to 23 times the budget. Later in
//! the run, the traffic changes according to its phase. A trace has one span. `scale` is the budget
//! in spans per second.

use std::collections::BTreeMap;

use tailwater::trace::Randomness;

pub(crate) const TICKS_PER_SECOND: usize = 10;
pub(crate) const KINDS: u64 = 60;
const NEW_KINDS: u64 = 400;
/// The traffic changes after this second.
pub(crate) const CHANGE: u32 = 30;
/// The 400 new kinds end after this many seconds.
pub(crate) const FLOOD_SECONDS: u32 = 15;
/// The rate of the traffic, as a multiple of the budget.
const OFFERED: f64 = 23.0;

/// The change of the traffic after [`CHANGE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing.
    Steady,
    /// 400 new kinds arrive for a while, with as many spans as all others together.
    NewKinds,
    /// The rate of the smallest kind grows a thousandfold.
    OneGrows,
    /// The rates of all kinds triple.
    Triples,
    /// Not one of the four: the rates of all kinds fall to a 40th, which is less than the budget.
    Quiet,
}

impl Phase {
    pub(crate) const ALL: [Phase; 4] =
        [Phase::Steady, Phase::NewKinds, Phase::OneGrows, Phase::Triples];

    /// Traces per second of a kind, as a multiple of the budget.
    fn rate(self, kind: u64, second: u32) -> f64 {
        let has_changed = second >= CHANGE;
        if kind >= KINDS {
            let is_there = has_changed && second < CHANGE + FLOOD_SECONDS;
            let is_there = is_there && self == Phase::NewKinds;
            return if is_there { OFFERED / NEW_KINDS as f64 } else { 0.0 };
        }
        let harmonic: f64 = (1..=KINDS).map(|kind| 1.0 / kind as f64).sum();
        let usual = OFFERED / harmonic / (kind + 1) as f64;
        match self {
            Phase::OneGrows if has_changed && kind == KINDS - 1 => 1_000.0 * usual,
            Phase::Triples if has_changed => 3.0 * usual,
            Phase::Quiet if has_changed => usual / 40.0,
            _ => usual,
        }
    }
}

/// An algorithm that decides which traces are kept.
pub(crate) trait Sampler {
    /// Decides the traces of a tick. Returns, for each trace, the probability with which it was
    /// kept; `None` if it was dropped.
    fn tick(&mut self, traces: &[(u64, Randomness)]) -> Vec<Option<f64>>;
}

/// The sums of one kind.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OfKind {
    pub(crate) traces: f64,
    pub(crate) kept: f64,
    /// The number of traces that the kept ones stand for, and its variance.
    pub(crate) estimate: f64,
    pub(crate) variance: f64,
}

impl OfKind {
    pub(crate) fn add(&mut self, other: &OfKind) {
        self.traces += other.traces;
        self.kept += other.kept;
        self.estimate += other.estimate;
        self.variance += other.variance;
    }

    /// The error of the estimate in standard deviations; 0 if everything was kept.
    pub(crate) fn sigma(&self) -> f64 {
        let error = self.estimate - self.traces;
        if self.variance == 0.0 { error } else { error / self.variance.sqrt() }
    }
}

/// The result of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// Kept traces in each second, as a multiple of the budget.
    pub(crate) kept: Vec<f64>,
    /// The sums before [`CHANGE`] and after it, by kind.
    pub(crate) kinds: [BTreeMap<u64, OfKind>; 2],
}

impl Outcome {
    /// The mean of `kept` over these seconds.
    pub(crate) fn mean(&self, seconds: std::ops::Range<usize>) -> f64 {
        let count = seconds.len() as f64;
        self.kept[seconds].iter().sum::<f64>() / count
    }

    /// The highest mean of any ten seconds from the fifth second on.
    pub(crate) fn worst_ten(&self) -> f64 {
        (5..=self.kept.len() - 10).map(|first| self.mean(first..first + 10)).fold(0.0, f64::max)
    }
}

/// Runs a phase for `seconds` against a budget of `scale` spans per second.
pub(crate) fn run(
    sampler: &mut impl Sampler,
    phase: Phase,
    seconds: u32,
    scale: f64,
    seed: u64,
) -> Outcome {
    // Small seeds give similar streams.
    let mut rng = fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut outcome = Outcome::default();
    for second in 0..seconds {
        let mut kept = 0.0;
        for _ in 0..TICKS_PER_SECOND {
            let mut traces = Vec::new();
            for kind in 0..KINDS + NEW_KINDS {
                let expected = phase.rate(kind, second) * scale / TICKS_PER_SECOND as f64;
                let count = expected as u64 + u64::from(rng.f64() < expected.fract());
                traces.extend((0..count).map(|_| (kind, Randomness(rng.u64(..1 << 56)))));
            }
            // The order of arrival.
            rng.shuffle(&mut traces);
            for (&(kind, _), probability) in traces.iter().zip(sampler.tick(&traces)) {
                let half = &mut outcome.kinds[usize::from(second >= CHANGE)];
                let of_kind = half.entry(kind).or_default();
                of_kind.traces += 1.0;
                if let Some(p) = probability {
                    kept += 1.0;
                    of_kind.kept += 1.0;
                    of_kind.estimate += 1.0 / p;
                    of_kind.variance += (1.0 - p) / (p * p);
                }
            }
        }
        outcome.kept.push(kept / scale);
    }
    outcome
}
