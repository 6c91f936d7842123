//! The simulation: senders, the whole of Tailwater and a backend on one thread, over a network in
//! memory and in virtual time, under faults that a seed decides. The same seed gives the same run.
//!
//! `SIM_SEEDS` sets the number of seeds; `SIM_SEED` runs one seed alone and prints every event. Two
//! things are not repeated by a seed, and are therefore left out of the comparison: which of two
//! real threads is faster (there is only one, as the admin thread is never asked), and wall time.
//! h2 remembers at most 50 reset streams, for a second of the real clock. The run of a seed has
//! fewer and is shorter; the hours in `outage` have thousands of refusals, and differ a little.

#![allow(
    unreachable_pub,
    reason = "helpers are public to the modules of this binary, and to no one else"
)]

mod backend;
mod check;
mod consumers;
mod fleet;
#[allow(dead_code, reason = "shared with the integration tests, which use all of it")]
#[path = "../it/harness.rs"]
mod harness;
mod journal;
mod network;
mod outage;
mod policies;
mod run;
mod senders;
mod setup;
mod storm;
mod topic;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

const SEEDS: u64 = 200;
/// The number of seeds that are run twice.
const REPEATED: u64 = 8;

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {value}")))
}

/// Runs a future in virtual time, which passes when nothing else is left to do.
fn in_virtual_time<F: Future>(future: F) -> F::Output {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(future)
}

/// Scenario: senders that crash, step their clocks and send malformed spans; links that delay,
/// clog and break; a backend that crashes, hangs, refuses, throttles and rejects; valid and invalid
/// reloads; little memory; small queues; a shutdown during all that. The mixture differs for each
/// seed.
/// Guarantees: the ledger holds at every step; it contains everything acknowledged and nothing
/// refused; each trace is decided once while its decision is remembered, as a naive model decides;
/// the backend has no span of a dropped trace, and of a kept trace every span not counted as
/// failed; memory is bounded, and all of it is released; everything is drained once the faults
/// stop; the shutdown keeps its time.
#[test]
fn seeds() {
    run_seeds("seeds", SEEDS, |seed, is_printed| in_virtual_time(run::run(seed, is_printed)));
}

/// Runs a test with this many seeds or those of `SIM_SEEDS`, or with the one of `SIM_SEED`.
fn run_seeds(test: &str, seeds: u64, run: impl Fn(u64, bool) -> u64 + Sync) {
    if let Some(seed) = number("SIM_SEED") {
        println!("seed {seed}: {:016x}", run(seed, true));
        return;
    }
    let seeds = number("SIM_SEEDS").unwrap_or(seeds);
    let (next, failed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    // More than there are cores, because a shutdown waits for a thread in real time.
    let threads = 3 * std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    if catch_unwind(AssertUnwindSafe(|| run(seed, false))).is_err() {
                        eprintln!("repeat with: SIM_SEED={seed} cargo test --test sim {test}");
                        failed.lock().expect("no panic").push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no panic");
    assert!(failed.is_empty(), "{} of {seeds} seeds failed: {failed:?}", failed.len());
}

/// Scenario: some seeds are run twice.
/// Guarantees: the same events happen, to the millisecond.
#[test]
fn a_seed_repeats_itself() {
    for seed in 0..REPEATED {
        let [first, second] = [(); 2].map(|()| in_virtual_time(run::run(seed, false)));
        assert_eq!(first, second, "seed {seed}");
    }
}
