//! Compares a budget with two other algorithms under four kinds of traffic: kept spans per second,
//! the worst second, the worst ten seconds, and the bias of counts over twelve seeds.
//!
//! It measures no time: traffic, ticks and results are the same in every run. The numbers are in
//! BENCHMARKS.md. Run `cargo bench --bench budget`.

mod ours;
mod rivals;
mod traffic;

use self::{
    ours::Budget,
    rivals::{EmaThroughput, Windowed},
    traffic::{CHANGE, OfKind, Outcome, Phase, Sampler},
};

/// Runs a phase.
type Run = fn(Phase) -> Outcome;

const PER_SECOND: f64 = 1000.0;
const SECONDS: u32 = 75;
const SEEDS: u64 = 12;

fn main() {
    let samplers: [(&str, Run); 3] = [
        ("EMAThroughput", |phase| run(EmaThroughput::new(PER_SECOND), phase, 1)),
        ("WindowedThroughput", |phase| run(Windowed::new(PER_SECOND), phase, 1)),
        ("budget", |phase| run(Budget::new(PER_SECOND), phase, 1)),
    ];
    println!(
        "budget: {PER_SECOND} spans/s. Kept in the 15 s after the change, worst second there,"
    );
    println!("worst 10 s from the fifth second on, last 60 s, in spans/s.\n");
    for phase in Phase::ALL.into_iter().chain([Phase::Quiet]) {
        println!("{}", name(phase));
        for (name, run) in samplers {
            let outcome = run(phase);
            let change = CHANGE as usize..CHANGE as usize + 15;
            let last = SECONDS as usize - 60..SECONDS as usize;
            println!(
                "  {name:<20} {:6.0} {:6.0} {:6.0} {:6.0}",
                PER_SECOND * outcome.mean(change.clone()),
                PER_SECOND * worst(&outcome.kept[change]),
                PER_SECOND * outcome.worst_ten(),
                PER_SECOND * outcome.mean(last),
            );
        }
    }
    println!("\nbias of counts over {SEEDS} seeds, in per cent, and in sigma\n");
    for phase in Phase::ALL {
        let bias = |run: &dyn Fn(u64) -> Outcome| {
            let mut sum = OfKind::default();
            for outcome in (1..=SEEDS).map(run) {
                outcome.kinds.iter().flat_map(|kinds| kinds.values()).for_each(|k| sum.add(k));
            }
            let bias = 100.0 * (sum.estimate - sum.traces) / sum.traces;
            format!("{bias:+.2} % ({:+.1} sigma)", sum.sigma())
        };
        let ours = bias(&|seed| run(Budget::new(PER_SECOND), phase, seed));
        let ema = bias(&|seed| run(EmaThroughput::new(PER_SECOND), phase, seed));
        println!("{:<30} budget {ours}, EMAThroughput {ema}", name(phase));
    }
}

fn run(mut sampler: impl Sampler, phase: Phase, seed: u64) -> Outcome {
    traffic::run(&mut sampler, phase, SECONDS, PER_SECOND, seed)
}

fn worst(seconds: &[f64]) -> f64 {
    seconds.iter().copied().fold(0.0, f64::max)
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Steady => "steady, 23 times the budget",
        Phase::NewKinds => "400 new kinds for 15 s",
        Phase::OneGrows => "one quiet kind times 1000",
        Phase::Triples => "everything times 3",
        Phase::Quiet => "less than the budget",
    }
}
