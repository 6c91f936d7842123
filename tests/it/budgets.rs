//! Budgets: the rate, fair shares and unbiased counts, in the four phases of the bench `budget`.

use std::collections::BTreeMap;

use fastrand::Rng;
use tailwater::{policy::KindsReading, trace::Randomness};

use self::{
    ours::Budget,
    traffic::{CHANGE, KINDS, OfKind, Outcome, Phase},
};

#[path = "../../benches/budget/ours.rs"]
mod ours;
#[path = "../../benches/budget/traffic.rs"]
mod traffic;

const PER_SECOND: f64 = 100.0;

fn run(phase: Phase, seconds: u32, seed: u64) -> Outcome {
    traffic::run(&mut Budget::new(PER_SECOND), phase, seconds, PER_SECOND, seed)
}

fn reading(budget: &Budget) -> tailwater::policy::BudgetReading {
    match budget.plan.kinds()[..] {
        [(_, KindsReading::Budget(reading))] => reading,
        ref other => panic!("{other:?}"),
    }
}

/// Scenario: steady traffic; 400 new kinds for 15 s; one quiet kind grows a thousandfold; all
/// traffic triples.
/// Guarantees: at most 105 % of the budget is kept in any 10 s from the fifth second on, and at
/// least 98 % of it in any 60 s.
#[test]
fn a_budget_is_kept_whatever_happens() {
    for phase in Phase::ALL {
        for seed in 1..=3 {
            let outcome = run(phase, 75, seed);
            let worst = outcome.worst_ten();
            assert!(worst <= 1.05, "{phase:?}, seed {seed}: {worst} in ten seconds");
            for first in 0..=15 {
                let mean = outcome.mean(first..first + 60);
                assert!(mean >= 0.98, "{phase:?}, seed {seed}: {mean} from second {first}");
            }
        }
    }
}

/// Scenario: budgets for traces of one to forty spans, from five to a hundred traces per second,
/// with forty times as much traffic of ten kinds.
/// Guarantees: at most 110 % is kept in any 10 s, and at least 95 % in any 60 s, even if a tick has
/// room for only a few traces; with five traces per second, ten traces more.
#[test]
fn a_budget_is_kept_for_large_traces() {
    for spans in [1, 5, 20, 40] {
        for traces_per_second in [5, 20, 100] {
            let per_second = f64::from(spans * traces_per_second);
            let budget = Budget { spans, ..Budget::new(per_second) };
            let mut rng = Rng::with_seed(u64::from(spans * traces_per_second));
            let mut kept = Vec::new();
            for _ in 0..90 {
                let mut of_second = 0.0;
                for _ in 0..10 {
                    let traces: Vec<_> = (0..4 * traces_per_second)
                        .map(|_| (rng.u64(..10), Randomness(rng.u64(..1 << 56)), spans))
                        .collect();
                    of_second += budget.decide(&traces).iter().flatten().count() as f64;
                }
                kept.push(of_second / f64::from(traces_per_second));
            }
            let mean = |from: usize, seconds: usize| {
                kept[from..from + seconds].iter().sum::<f64>() / seconds as f64
            };
            let worst = (5..=80).map(|from| mean(from, 10)).fold(0.0, f64::max);
            let least = (5..=30).map(|from| mean(from, 60)).fold(f64::MAX, f64::min);
            println!("{spans} spans, {traces_per_second}/s: {worst} in 10 s, {least} in 60 s");
            let most = if traces_per_second == 5 { 1.2 } else { 1.1 };
            assert!(worst <= most, "{spans} spans, {traces_per_second}/s: {worst}");
            assert!(least >= 0.95, "{spans} spans, {traces_per_second}/s: {least}");
        }
    }
}

/// Scenario: sixty kinds, from 490 traces per second down to 8; then a fortieth of that traffic,
/// which is less than the budget.
/// Guarantees: all kinds get the same share; when everything fits, everything is kept, except at
/// the transition.
#[test]
fn shares_are_fair() {
    let mut budget = Budget::new(PER_SECOND);
    let outcome = traffic::run(&mut budget, Phase::Quiet, 90, PER_SECOND, 2);
    let fair = PER_SECOND * f64::from(CHANGE) / KINDS as f64;
    for (kind, OfKind { kept, .. }) in &outcome.kinds[0] {
        assert!((0.5 * fair..1.5 * fair).contains(kept), "{kind}: {kept} of {fair}");
    }
    let [quiet, all] = [outcome.kinds[1].values(), outcome.kinds[1].values()];
    let kept: f64 = quiet.map(|kind| kind.kept).sum();
    let traces: f64 = all.map(|kind| kind.traces).sum();
    assert!(kept >= 0.99 * traces, "{kept} of {traces}");
    let reading = reading(&budget);
    assert_eq!((reading.kinds, reading.level), (60, PER_SECOND), "no kind is held back");
}

/// Scenario: kinds of 300, 100 and 3 traces per second share a rate of 100: equally, in proportion
/// to the traffic, and half way between.
/// Guarantees: with equal shares the small kind is kept whole; each power gives its shares.
#[test]
fn the_power_sets_the_shares() {
    let rates = [300.0_f64, 100.0, 3.0];
    for power in [0.0, 0.5, 1.0] {
        let budget = Budget::with(PER_SECOND, 4096, power);
        let mut rng = Rng::with_seed(7);
        let mut kept = [0.0; 3];
        for tick in 0..1000 {
            let mut traces = Vec::new();
            for (kind, rate) in (0..).zip(rates) {
                let count = (rate / 10.0) as u64 + u64::from(rng.f64() < (rate / 10.0).fract());
                let trace = |_| (kind, Randomness(rng.u64(..1 << 56)), 1);
                traces.extend((0..count).map(trace));
            }
            let decided = budget.decide(&traces);
            for (&(kind, ..), _) in
                traces.iter().zip(decided).filter(|(_, kept)| kept.is_some() && tick >= 200)
            {
                kept[kind as usize] += 1.0 / 80.0;
            }
        }
        // sum of min(rate, level * rate^power) = 100.
        let sum = |level: f64| -> f64 {
            rates.map(|rate| rate.min(level * rate.powf(power))).iter().sum()
        };
        let level = (0..1_000_000).map(|n| f64::from(n) / 1e4).find(|level| sum(*level) >= 100.0);
        let level = level.expect("less than everything");
        for (rate, kept) in rates.into_iter().zip(kept) {
            let expected = rate.min(level * rate.powf(power));
            let off = (kept - expected).abs();
            assert!(off <= 0.1 * expected + 0.2, "power {power}: {kept} of {rate}, not {expected}");
        }
    }
}

/// Scenario: twelve runs of each phase.
/// Guarantees: the counts estimated from the thresholds match the traffic within three sigma: of
/// all kinds together, of the largest, of the smallest, and of the new ones. The errors of single
/// kinds match their variance.
#[test]
fn a_budget_is_unbiased() {
    for phase in Phase::ALL {
        let mut sums: BTreeMap<u64, OfKind> = BTreeMap::new();
        for seed in 1..=12 {
            let outcome = run(phase, 50, 100 + seed);
            for (kind, of_kind) in outcome.kinds.iter().flatten() {
                // Each new kind has few traces in a run.
                sums.entry(*kind.min(&KINDS)).or_default().add(of_kind);
            }
        }
        for kinds in [0..=KINDS, 0..=2, 3..=9, 10..=29, 30..=KINDS - 1, KINDS..=KINDS] {
            let mut sum = OfKind::default();
            sums.range(kinds.clone()).for_each(|(_, of_kind)| sum.add(of_kind));
            println!("{phase:?}, {kinds:?}: {:.2} sigma", sum.sigma());
            assert!(sum.sigma().abs() <= 3.0, "{phase:?}, kinds {kinds:?}: {sum:?}");
        }
        let squares: f64 = sums.values().map(|kind| kind.sigma() * kind.sigma()).sum();
        let mean = squares / sums.len() as f64;
        assert!((0.5..=1.6).contains(&mean), "{phase:?}: {mean}");
    }
}

/// Scenario: a hundred kinds and a table with room for ten; later, ten other kinds.
/// Guarantees: the kinds without room share one kind, and are counted; a kind is forgotten about a
/// minute after its last trace.
#[test]
fn kinds_beyond_the_table_share_one() {
    let budget = Budget::with(PER_SECOND, 10, 0.0);
    let mut rng = Rng::with_seed(1);
    let mut kept = [0.0; 2];
    let mut run = |kinds: std::ops::Range<u64>, ticks: u32| {
        for tick in 0..ticks {
            let traces: Vec<_> =
                kinds.clone().map(|kind| (kind, Randomness(rng.u64(..1 << 56)), 1)).collect();
            for (&(kind, ..), p) in traces.iter().zip(budget.decide(&traces)) {
                let is_late = tick >= 100 && p.is_some();
                kept[usize::from(kind >= 10)] += f64::from(u8::from(is_late)) / 50.0;
            }
        }
    };
    run(0..100, 600);
    let [known, others] = std::mem::take(&mut kept);
    assert!((85.0..=95.0).contains(&known) && (7.0..=12.0).contains(&others), "{known} {others}");
    let overflowed: u64 = budget.plan.take_overflowed().iter().map(|of| of.traces).sum();
    assert_eq!((reading(&budget).kinds, overflowed), (10, 90 * 600));
    let none = |ticks: u32| (0..ticks).for_each(|_| drop(budget.decide(&[])));
    none(590);
    assert_eq!(reading(&budget).kinds, 10);
    none(20);
    assert_eq!(reading(&budget).kinds, 0);
}

/// Scenario: ids as keys: a million traces, each of its own kind, within a second.
/// Guarantees: the table of kinds stays bounded, traces without room in it are counted, and the
/// rate holds from the first second on, but for the burst.
#[test]
fn a_million_kinds_at_once_are_bounded() {
    let budget = Budget::new(PER_SECOND);
    let mut rng = Rng::with_seed(1);
    let mut kept = 0;
    for tick in 0..10 {
        let kinds = tick * 100_000..(tick + 1) * 100_000;
        let traces: Vec<_> = kinds.map(|kind| (kind, Randomness(rng.u64(..1 << 56)), 1)).collect();
        kept += budget.decide(&traces).iter().flatten().count();
    }
    let overflowed: u64 = budget.plan.take_overflowed().iter().map(|of| of.traces).sum();
    assert_eq!((reading(&budget).kinds, overflowed), (4096, 1_000_000 - 4096));
    assert!(kept <= 150, "{kept} with a rate of 100, and 40 in the bucket");
}
