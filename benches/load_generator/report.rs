//! Prints the table, its summary over rounds and the warnings that make it void, and writes the
//! JSON file.

use std::{fs, path::Path};

use humantime::format_duration;
use serde_json::json;

use crate::{
    Result,
    measure::{Measurement, Memory},
    plan::{Plan, Target},
};

/// A set of rounds is void if the floor's own range is wider than this share of its median.
const FLOOR_SPREAD_MAX: f64 = 0.15;
/// A rate below this share of the wanted one makes a measurement void.
const RATE_SHARE_MIN: f64 = 0.98;
/// The kept and the expected share may differ by this many percentage points, because of chance and
/// of one tick at each end of the interval.
const KEPT_DIFFERENCE_MAX: f64 = 0.6;

/// The pairs of targets that are compared, the first over the second.
const PAIRS: [(Target, Target); 8] = [
    (Target::Tailwater, Target::Floor),
    (Target::TailwaterBudget, Target::Tailwater),
    (Target::TailwaterMetrics, Target::Tailwater),
    (Target::Beside, Target::Tailwater),
    (Target::Process, Target::Tailwater),
    (Target::Power, Target::Tailwater),
    (Target::Collector, Target::Tailwater),
    (Target::CollectorSharded, Target::Tailwater),
];

const MIB: f64 = (1 << 20) as f64;

/// Prints the description of the run and the head of the table.
pub(crate) fn print_head(plan: &Plan) {
    println!(
        "{} spans/s in batches of {}, decision_wait {}, after root {}, root after {}, {} measured, \
         {} connections x {} in flight, {} resources, {} cores here",
        plan.rate,
        plan.traffic.batch(),
        format_duration(plan.window),
        format_duration(plan.after_root),
        format_duration(plan.root_after),
        format_duration(plan.measured),
        plan.connections,
        plan.in_flight,
        plan.resources,
        std::thread::available_parallelism().map_or(0, usize::from),
    );
    println!(
        "{:<19} {:>5} {:>9} {:>7} {:>7} {:>6} {:>7} {:>7} {:>8} {:>7} {:>8} {:>6} {:>8} {:>7}",
        "target",
        "round",
        "spans/s",
        "CPU-s/M",
        "x floor",
        "cores",
        "p50 ms",
        "p99 ms",
        "RSS MiB",
        "/window",
        "/traffic",
        "kept %",
        "ready ms",
        "load/M"
    );
}

/// Prints one measurement; `before` has the earlier ones, for the ratio to the round's floor.
pub(crate) fn print_row(row: &Measurement, before: &[Measurement]) {
    let floor = before.iter().find(|other| other.round == row.round && is(other, Target::Floor));
    let ratio = floor.map(|floor| row.cpu_seconds_per_million / floor.cpu_seconds_per_million);
    let ratio = if is(row, Target::Floor) { Some(1.0) } else { ratio };
    println!(
        "{:<19} {:>5} {:>9.0} {:>7.3} {:>7} {:>6.2} {:>7.2} {:>7.2} {:>8.0} {:>7} {:>8} {:>6} \
         {:>8.0} {:>7.3}",
        row.target,
        row.round,
        row.spans_per_second,
        row.cpu_seconds_per_million,
        optional(ratio, 2),
        row.cores,
        row.load.ack_p50_ms,
        row.load.ack_p99_ms,
        rss_bytes(row) as f64 / MIB,
        optional(over_window(row), 3),
        optional(over_traffic(row), 3),
        optional(row.kept.map(|kept| kept.percent), 2),
        row.ready_ms,
        row.load_cpu_seconds_per_million,
    );
    for warning in warnings(row) {
        println!("  VOID: {} round {}: {warning}", row.target, row.round);
    }
}

/// Prints medians and ranges, if there was more than one round.
pub(crate) fn print_summary(plan: &Plan, all: &[Measurement]) {
    println!();
    for target in &plan.targets {
        let rows: Vec<_> = all.iter().filter(|row| is(row, *target)).collect();
        let of = |figure: fn(&Measurement) -> f64| Spread::of(rows.iter().map(|row| figure(row)));
        let name = target.name();
        println!("{name}: CPU-s per million spans {}", of(|row| row.cpu_seconds_per_million));
        println!("{name}: ack p99 ms {}", of(|row| row.load.ack_p99_ms));
        if *target == Target::Tailwater {
            println!("{name}: RSS over window bytes {}", of(|row| over_window(row).unwrap_or(0.0)));
        }
        if *target != Target::Floor {
            let held = format_duration(plan.held());
            let over = of(|row| over_traffic(row).unwrap_or(0.0));
            println!("{name}: RSS over the encoded bytes of {held} of traffic {over}");
        }
    }
    for (over, under) in PAIRS {
        let cpu = ratios(all, (over, under), |row| row.cpu_seconds_per_million);
        if !cpu.is_empty() {
            let (over, under) = (over.name(), under.name());
            println!("{over} over {under}, round by round: CPU {}", Spread::of(cpu.into_iter()));
        }
        let memory = ratios(all, (over, under), |row| rss_bytes(row) as f64);
        if under == Target::Tailwater && !memory.is_empty() {
            let (over, under) = (over.name(), under.name());
            println!("{over} over {under}, round by round: RSS {}", Spread::of(memory.into_iter()));
        }
    }
    if let Some(spread) = floor_spread(all).filter(|spread| *spread > FLOOR_SPREAD_MAX) {
        println!("VOID: the floor's own range is {:.0} % of its median", spread * 100.0);
    }
}

/// Writes every figure.
pub(crate) fn write_json(path: &Path, plan: &Plan, all: &[Measurement]) -> Result<()> {
    let voids: Vec<_> = all
        .iter()
        .flat_map(|row| warnings(row).into_iter().map(move |why| (row.target, row.round, why)))
        .collect();
    let report = json!({
        "rate": plan.rate,
        "decision_wait_seconds": plan.window.as_secs_f64(),
        "decision_wait_after_root_received_seconds": plan.after_root.as_secs_f64(),
        "root_after_seconds": plan.root_after.as_secs_f64(),
        "held_seconds": plan.held().as_secs_f64(),
        "connections": plan.connections,
        "in_flight": plan.in_flight,
        "resources": plan.resources,
        "ratios_to_floor": ratios(all, PAIRS[0], |row| row.cpu_seconds_per_million),
        "floor_spread": floor_spread(all),
        "void": voids,
        "measurements": all,
    });
    Ok(fs::write(path, serde_json::to_vec_pretty(&report)?)?)
}

/// Reasons why a measurement is void.
fn warnings(row: &Measurement) -> Vec<String> {
    let mut warnings = Vec::new();
    if row.spans_per_second < RATE_SHARE_MIN * row.rate_wanted as f64 {
        warnings.push(format!("only {:.0} spans/s of {}", row.spans_per_second, row.rate_wanted));
    }
    if row.load.failed_requests > 0 {
        let last = row.load.last_failure.as_deref().unwrap_or("");
        warnings.push(format!("{} requests failed, last: {last}", row.load.failed_requests));
    }
    if let Some(kept) = row.kept {
        if (kept.percent - kept.expected_percent).abs() > KEPT_DIFFERENCE_MAX {
            let expected = kept.expected_percent;
            warnings.push(format!(
                "kept {:.2} % instead of the expected {expected:.2} %",
                kept.percent
            ));
        }
        if kept.sink.malformed > 0 {
            warnings.push(format!("{} exported requests are malformed", kept.sink.malformed));
        }
    }
    if !row.stopped_cleanly {
        warnings.push("it did not exit with 0 on SIGTERM".into());
    }
    warnings
}

/// The ratio of one target's figure to another's, for each round that has both.
fn ratios(
    all: &[Measurement],
    (over, under): (Target, Target),
    figure: fn(&Measurement) -> f64,
) -> Vec<f64> {
    let of_target = |target: Target| all.iter().filter(move |row| is(row, target));
    of_target(under)
        .filter_map(|base| {
            let row = of_target(over).find(|row| row.round == base.round)?;
            Some(figure(row) / figure(base))
        })
        .collect()
}

fn floor_spread(all: &[Measurement]) -> Option<f64> {
    let floors: Vec<_> = all.iter().filter(|row| is(row, Target::Floor)).collect();
    let spread = Spread::of(floors.iter().map(|row| row.cpu_seconds_per_million));
    (floors.len() > 1).then(|| (spread.highest - spread.lowest) / spread.median)
}

fn rss_bytes(row: &Measurement) -> u64 {
    row.memory.iter().map(|memory| memory.rss_bytes).max().unwrap_or(0)
}

fn over_window(row: &Measurement) -> Option<f64> {
    highest(row, |memory| Some(memory.rss_bytes as f64 / memory.window_bytes?))
}

fn over_traffic(row: &Measurement) -> Option<f64> {
    let is_held = !is(row, Target::Floor);
    highest(row, |memory| is_held.then_some(memory.rss_bytes as f64 / memory.sent_bytes))
}

/// The higher of the two readings of memory.
fn highest(row: &Measurement, figure: impl Fn(&Memory) -> Option<f64>) -> Option<f64> {
    row.memory.iter().filter_map(figure).max_by(f64::total_cmp)
}

fn is(row: &Measurement, target: Target) -> bool {
    row.target == target.name()
}

fn optional(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.digits$}"))
}

/// Median and range of a few rounds.
struct Spread {
    median: f64,
    lowest: f64,
    highest: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<_> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let last = values.len().saturating_sub(1);
        let median = f64::midpoint(at(last / 2), at(last.div_ceil(2)));
        Self { median, lowest: at(0), highest: at(last) }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "median {:.3} ({:.3} to {:.3})", self.median, self.lowest, self.highest)
    }
}
