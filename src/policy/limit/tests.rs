use super::{super::spec::Rate, *};

fn limit(per_second: f64, burst: f64) -> Limit {
    Limit::new(LimitSpec { spans: Some(Rate { per_second, burst }), bytes: None })
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
        costs: [spans, 0],
    };
    candidates(&of.iter().map(candidate).collect::<Vec<_>>())
}

/// The share of traces that a threshold keeps.
fn share(threshold: Threshold) -> f64 {
    1.0 - threshold.bits() as f64 / (1u64 << 56) as f64
}

#[test]
fn the_threshold_is_just_above_the_first_that_does_not_fit() {
    let limit = limit(10.0, 10.0);
    limit.begin_tick(0.1, of_spans(&[(5, 4), (9, 4), (7, 4), (3, 1)]));
    assert_eq!(limit.threshold().bits(), 6);
    limit.begin_tick(0.1, of_spans(&[(5, 4), (9, 4)]));
    assert_eq!(limit.threshold(), Threshold::ALWAYS);
}

#[test]
fn a_trace_larger_than_the_bucket_takes_all_of_it_and_leaves_a_debt() {
    let limit = limit(10.0, 10.0);
    limit.begin_tick(0.1, of_spans(&[(5, 25)]));
    assert_eq!(limit.threshold(), Threshold::ALWAYS);
    limit.charge([25, 0]);
    for _ in 0..24 {
        limit.begin_tick(0.1, of_spans(&[(5, 10)]));
        let share = share(limit.threshold());
        assert!(share > 0.0 && share < 0.5, "{share} while there is a debt");
    }
    limit.begin_tick(0.15, of_spans(&[(5, 10)]));
    assert_eq!(limit.threshold(), Threshold::ALWAYS);
}

#[test]
fn of_two_rates_the_scarcer_one_decides() {
    let rate = |burst| Some(Rate { per_second: 1.0, burst });
    let limit = Limit::new(LimitSpec { spans: rate(100.0), bytes: rate(1_000.0) });
    let candidate = |randomness| Candidate { randomness: Randomness(randomness), costs: [1, 400] };
    limit.begin_tick(0.1, candidates(&[9, 8, 7].map(candidate)));
    assert_eq!(limit.threshold().bits(), 8);
}

#[test]
fn without_room_for_a_trace_each_candidate_has_a_chance() {
    let limit = limit(1.0, 2.0);
    // A hundred traces per second for ten seconds; at first none are kept.
    limit.charge([12, 0]);
    for _ in 0..100 {
        limit.begin_tick(0.1, of_spans(&(0..10).map(|n| (n, 1)).collect::<Vec<_>>()));
        let share = share(limit.threshold());
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
        many.add(Candidate { randomness, costs: [1, 1] }, &mut room);
    }
    assert_eq!((room, many.listed.capacity()), (CANDIDATES_MAX, 0));
    limit.begin_tick(0.1, many);
    let expected = share(limit.threshold()) * CANDIDATES_MAX as f64;
    assert!((100.0..=2_000.0).contains(&expected), "{expected} traces for a bucket of 1,000");
}

/// Runs ticks of random candidates and charges, the same for the same seed, then the tick of
/// `last`.
fn after_a_history(seed: u64, last: &[Candidate]) -> Threshold {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut rate = |factor: f64| Rate {
        per_second: factor * f64::from(rng.u32(1..300)),
        burst: factor * f64::from(rng.u32(1..300)),
    };
    let (spans, bytes) = (rate(1.0), rate(100.0));
    let limit = Limit::new(LimitSpec { spans: Some(spans), bytes: rng.bool().then_some(bytes) });
    for _ in 0..rng.u32(..5) {
        limit.begin_tick(0.1, candidates(&random_candidates(&mut rng)));
        let spans = rng.u32(..60);
        limit.charge([spans, 100 * spans]);
    }
    if rng.u32(..10) == 0 {
        limit.note_outside([rng.u32(..60), 100]);
    }
    limit.begin_tick(0.1, candidates(last));
    limit.threshold()
}

fn random_candidates(rng: &mut fastrand::Rng) -> Vec<Candidate> {
    let large = 1 << rng.u32(..8);
    let candidate = |rng: &mut fastrand::Rng| {
        let spans = rng.u32(1..=large);
        Candidate {
            randomness: Randomness(rng.u64(..1 << 56)),
            costs: [spans, spans * rng.u32(50..150)],
        }
    };
    (0..rng.u32(..40)).map(|_| candidate(rng)).collect()
}

#[test]
fn the_threshold_depends_on_no_trace_that_it_keeps() {
    let mut compared = [0; 2];
    for seed in 0..1_000 {
        let mut rng = fastrand::Rng::with_seed(!seed);
        let candidates = random_candidates(&mut rng);
        let threshold = after_a_history(seed, &candidates);
        assert!(threshold.matches(), "seed {seed}: nobody has a chance");
        for index in 0..candidates.len() {
            if !threshold.keeps(candidates[index].randomness) {
                continue;
            }
            // The threshold must be the same for the luckiest trace and for one that is just kept.
            for (count, randomness) in compared.iter_mut().zip([(1 << 56) - 1, threshold.bits()]) {
                let mut other = candidates.clone();
                other[index].randomness = Randomness(randomness);
                assert_eq!(after_a_history(seed, &other), threshold, "seed {seed}, {index}");
                *count += u32::from(threshold != Threshold::ALWAYS);
            }
        }
    }
    assert!(compared.iter().all(|&count| count > 1_000), "{compared:?}");
}

#[test]
fn each_candidate_has_a_chance() {
    for seed in 0..1_000 {
        let mut rng = fastrand::Rng::with_seed(!seed);
        let mut candidates = random_candidates(&mut rng);
        for index in 0..candidates.len() {
            let before =
                std::mem::replace(&mut candidates[index].randomness, Randomness((1 << 56) - 1));
            let threshold = after_a_history(seed, &candidates);
            assert!(threshold.keeps(candidates[index].randomness), "seed {seed}, {index}");
            candidates[index].randomness = before;
        }
    }
}
