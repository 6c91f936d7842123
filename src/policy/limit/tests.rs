use super::{
    super::spec::{KindsSpec, Rate},
    *,
};

fn limit(per_second: f64, burst: f64) -> Limit {
    Limit::new(Spec::Limit(LimitSpec { spans: Some(Rate { per_second, burst }), bytes: None }))
}

fn candidates(of: &[Candidate]) -> Candidates {
    let mut candidates = Candidates::default();
    let mut room = CANDIDATES_MAX;
    of.iter().for_each(|candidate| candidates.add(*candidate, &mut room));
    candidates
}

/// Candidates with these randomness values and spans.
fn of_spans(of: &[(u64, u32)]) -> Candidates {
    let candidate = |&(randomness, spans): &(u64, u32)| Candidate {
        randomness: Randomness(randomness),
        kind: 0,
        costs: [spans, 0],
    };
    candidates(&of.iter().map(candidate).collect::<Vec<_>>())
}

/// The threshold of a limit, which is the same for every trace.
fn threshold(limit: &Limit) -> Threshold {
    limit.threshold(&Candidate { randomness: Randomness(0), kind: 0, costs: [1, 1] })
}

/// The share of traces that a threshold keeps.
fn share(threshold: Threshold) -> f64 {
    1.0 - threshold.bits() as f64 / (1u64 << 56) as f64
}

#[test]
fn the_threshold_is_just_above_the_first_that_does_not_fit() {
    let limit = limit(10.0, 10.0);
    limit.begin_tick(0.1, of_spans(&[(5, 4), (9, 4), (7, 4), (3, 1)]));
    assert_eq!(threshold(&limit).bits(), 6);
    limit.begin_tick(0.1, of_spans(&[(5, 4), (9, 4)]));
    assert_eq!(threshold(&limit), Threshold::ALWAYS);
}

#[test]
fn a_trace_larger_than_the_bucket_takes_all_of_it_and_leaves_a_debt() {
    let limit = limit(10.0, 10.0);
    limit.begin_tick(0.1, of_spans(&[(5, 25)]));
    assert_eq!(threshold(&limit), Threshold::ALWAYS);
    limit.charge([25, 0]);
    for _ in 0..24 {
        limit.begin_tick(0.1, of_spans(&[(5, 10)]));
        let share = share(threshold(&limit));
        assert!(share > 0.0 && share < 0.5, "{share} while there is a debt");
    }
    limit.begin_tick(0.15, of_spans(&[(5, 10)]));
    assert_eq!(threshold(&limit), Threshold::ALWAYS);
}

#[test]
fn the_scarcer_of_two_rates_decides() {
    let rate = |burst| Some(Rate { per_second: 1.0, burst });
    let limit = Limit::new(Spec::Limit(LimitSpec { spans: rate(100.0), bytes: rate(1_000.0) }));
    let candidate =
        |randomness| Candidate { kind: 0, randomness: Randomness(randomness), costs: [1, 400] };
    limit.begin_tick(0.1, candidates(&[9, 8, 7].map(candidate)));
    assert_eq!(threshold(&limit).bits(), 8);
}

#[test]
fn without_room_for_a_trace_each_candidate_has_a_chance() {
    let limit = limit(1.0, 2.0);
    // A hundred traces per second for ten seconds; at first none are kept.
    limit.charge([12, 0]);
    for _ in 0..100 {
        limit.begin_tick(0.1, of_spans(&(0..10).map(|n| (n, 1)).collect::<Vec<_>>()));
        let share = share(threshold(&limit));
        assert!((0.001..=0.02).contains(&share), "{share} for a hundredth");
    }
}

#[test]
fn a_tick_lists_no_more_than_it_may() {
    let limit = limit(1_000.0, 1_000.0);
    let mut room = CANDIDATES_MAX;
    let mut many = Candidates::default();
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..=CANDIDATES_MAX {
        let randomness = Randomness(rng.u64(..1 << 56));
        many.add(Candidate { randomness, kind: 0, costs: [1, 1] }, &mut room);
    }
    assert_eq!((room, many.listed.capacity()), (CANDIDATES_MAX, 0));
    limit.begin_tick(0.1, many);
    let expected = share(threshold(&limit)) * CANDIDATES_MAX as f64;
    assert!((100.0..=2_000.0).contains(&expected), "{expected} traces for a bucket of 1,000");
}

/// Runs ticks of random candidates and charges, the same for the same seed, then the tick of
/// `last`. Every second history is that of a budget.
fn after_a_history(seed: u64, last: &[Candidate]) -> Limit {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut rate = |factor: f64| Rate {
        per_second: factor * f64::from(rng.u32(1..300)),
        burst: factor * f64::from(rng.u32(1..300)),
    };
    let (spans, bytes) = (rate(1.0), rate(100.0));
    let rate = LimitSpec { spans: Some(spans), bytes: rng.bool().then_some(bytes) };
    let limit = Limit::new(if seed.is_multiple_of(2) {
        Spec::Limit(rate)
    } else {
        let kinds_max = rng.usize(1..12);
        let kinds = KindsSpec { keys: vec!["kind".to_owned()], kinds_max };
        let power = [0.0, 0.5, 1.0][rng.usize(..3)];
        let rate = LimitSpec { bytes: None, ..rate };
        Spec::Budget(BudgetSpec { rate, kinds, power })
    });
    for _ in 0..rng.u32(..5) {
        tick(&limit, &random_candidates(&mut rng));
        let spans = rng.u32(..60);
        limit.charge([spans, 100 * spans]);
    }
    if rng.u32(..10) == 0 {
        let costs = [rng.u32(..60), 100];
        limit.note_outside(&Candidate { randomness: Randomness(0), kind: 0, costs });
    }
    tick(&limit, last);
    limit
}

fn tick(limit: &Limit, of: &[Candidate]) {
    of.iter().for_each(|candidate| limit.ask(candidate));
    limit.begin_tick(0.1, candidates(of));
}

fn random_candidates(rng: &mut fastrand::Rng) -> Vec<Candidate> {
    let large = 1 << rng.u32(..8);
    let kinds = 1 << rng.u32(..5);
    let candidate = |rng: &mut fastrand::Rng| {
        let spans = rng.u32(1..=large);
        Candidate {
            randomness: Randomness(rng.u64(..1 << 56)),
            // The lower the number, the more traces.
            kind: rng.u64(..kinds) & rng.u64(..kinds),
            costs: [spans, spans * rng.u32(50..150)],
        }
    };
    (0..rng.u32(..40)).map(|_| candidate(rng)).collect()
}

#[test]
fn the_threshold_depends_on_no_trace_that_it_keeps() {
    let mut compared = [[0; 2]; 2];
    for seed in 0..2_000 {
        let mut rng = fastrand::Rng::with_seed(!seed);
        let candidates = random_candidates(&mut rng);
        let limit = after_a_history(seed, &candidates);
        let thresholds = |limit: &Limit| -> Vec<_> {
            candidates.iter().map(|candidate| limit.threshold(candidate)).collect()
        };
        let before = thresholds(&limit);
        for (index, threshold) in before.iter().enumerate() {
            assert!(threshold.matches(), "seed {seed}: no chance");
            if !threshold.keeps(candidates[index].randomness) {
                continue;
            }
            // All thresholds must be the same for the luckiest trace and for one that is just kept.
            let counts = &mut compared[seed as usize % 2];
            for (count, randomness) in counts.iter_mut().zip([(1 << 56) - 1, threshold.bits()]) {
                let mut other = candidates.clone();
                other[index].randomness = Randomness(randomness);
                let after = thresholds(&after_a_history(seed, &other));
                assert_eq!(after, before, "seed {seed}, {index}");
                *count += u32::from(*threshold != Threshold::ALWAYS);
            }
        }
    }
    assert!(compared.iter().flatten().all(|&count| count > 1_000), "{compared:?}");
}

#[test]
fn each_candidate_has_a_chance() {
    for seed in 0..2_000 {
        let mut rng = fastrand::Rng::with_seed(!seed);
        let mut candidates = random_candidates(&mut rng);
        for index in 0..candidates.len() {
            let luckiest = Randomness((1 << 56) - 1);
            let before = std::mem::replace(&mut candidates[index].randomness, luckiest);
            let threshold = after_a_history(seed, &candidates).threshold(&candidates[index]);
            assert!(threshold.keeps(luckiest), "seed {seed}, {index}");
            candidates[index].randomness = before;
        }
    }
}

#[test]
fn a_kind_below_its_share_is_whole_and_the_others_share_the_rest() {
    let rate = Rate { per_second: 100.0, burst: 40.0 };
    let kinds = KindsSpec { keys: vec!["kind".to_owned()], kinds_max: 10 };
    let rate = LimitSpec { spans: Some(rate), bytes: None };
    let limit = Limit::new(Spec::Budget(BudgetSpec { rate, kinds, power: 0.0 }));
    let mut rng = fastrand::Rng::with_seed(1);
    let mut kept = [0_u32; 3];
    for number in 0..600 {
        // 20 traces per second, 500, and 2,000.
        let traces: Vec<_> = [(0, 2), (1, 50), (2, 200)]
            .into_iter()
            .flat_map(|(kind, traces)| std::iter::repeat_n(kind, traces))
            .map(|kind| Candidate {
                randomness: Randomness(rng.u64(..1 << 56)),
                kind,
                costs: [1, 1],
            })
            .collect();
        tick(&limit, &traces);
        for trace in traces.iter().filter(|t| limit.threshold(t).keeps(t.randomness)) {
            limit.charge(trace.costs);
            kept[trace.kind as usize] += u32::from(number >= 100);
        }
    }
    // Over 50 seconds.
    assert_eq!(kept[0], 1_000, "{kept:?}");
    assert!(kept[1..].iter().all(|kept| (1_850..=2_150).contains(kept)), "{kept:?}");
    let reading = limit.reading().expect("a budget");
    assert!(reading.kinds == 3 && (39.0..=41.0).contains(&reading.level), "{reading:?}");
}

/// The first unfit candidate, found by sorting all of them.
fn first_unfit_of_a_sort(
    mut candidates: Vec<(Luck, [u32; 2])>,
    left: &mut [f64; 2],
    buckets: &[Option<Bucket>; 2],
) -> Option<Luck> {
    candidates.sort_by(|a, b| a.0.cmp(b.0));
    for (luck, costs) in candidates {
        for ((left, bucket), cost) in left.iter_mut().zip(buckets).zip(costs) {
            let Some(bucket) = bucket else { continue };
            if !bucket.fits(*left, f64::from(cost)) {
                return Some(luck);
            }
            *left -= f64::from(cost);
        }
    }
    None
}

#[test]
fn the_first_unfit_candidate_is_that_of_a_sort() {
    let mut rng = fastrand::Rng::with_seed(9);
    for round in 0..400 {
        let burst = f64::from(rng.u32(1..4_000));
        let bucket = || Some(Bucket::new(Rate { per_second: 10.0, burst }));
        let buckets = [bucket(), rng.bool().then(bucket).flatten()];
        let candidate = |_| {
            let share = Share::of(f64::from(rng.u32(1..20)) / 10.0);
            (Luck::of(Randomness(rng.u64(..1 << 56)), share), [rng.u32(1..9), rng.u32(1..99)])
        };
        let candidates: Vec<_> = (0..round * 3).map(candidate).collect();
        let left = [burst, burst / 2.0];
        let (mut expected, mut got) = (left, left);
        let unfit = first_unfit_of_a_sort(candidates.clone(), &mut expected, &buckets);
        let found = first_unfit(&mut candidates.clone(), &mut got, &buckets);
        let order = |luck: Option<Luck>| luck.map(|luck| Bar::Cut(luck).threshold(Share::WHOLE));
        assert_eq!(order(found), order(unfit), "round {round}");
        let is_same = got.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-6);
        assert!(is_same, "round {round}: {got:?} is left, not {expected:?}");
    }
}
