//! Runs one measurement after the other: starts the processes, warms up, measures exactly the
//! interval, and stops.
//!
//! CPU times, laps of the load generator and laps of the sink are read back to back at both ends of
//! the interval. Memory is read in its middle and at its end, together with tailwater's own gauges.
//! The scrape in the middle is included in the cost, because users scrape too.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::{
    Result,
    control::{Listening, LoadLap, Loaded, ServerLap},
    plan::{Keep, Plan, Target},
    process::{self, Process},
    report,
    target::Server,
};

/// The load lasts this much longer than the measurement, in case laps take long.
const LOAD_MARGIN: Duration = Duration::from_secs(60);
/// The longest time for encoding the corpus: half a minute of CPU if a million spans are compressed
/// in advance, and many minutes on a busy machine.
const CORPUS_MAX: Duration = Duration::from_secs(1800);
/// The load generator waits up to ten seconds for answers; the sink ends at once.
const STOP_MAX: Duration = Duration::from_secs(15);

/// All figures of one target in one round.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Measurement {
    pub(crate) target: &'static str,
    pub(crate) round: u32,
    pub(crate) rate_wanted: u64,
    pub(crate) spans_per_second: f64,
    pub(crate) cpu_seconds_per_million: f64,
    pub(crate) cores: f64,
    pub(crate) load: LoadLap,
    pub(crate) load_cpu_seconds_per_million: f64,
    pub(crate) bytes_per_span: f64,
    pub(crate) ready_ms: f64,
    /// At the middle and at the end of the interval.
    pub(crate) memory: Vec<Memory>,
    /// `None` if no spans are kept.
    pub(crate) kept: Option<Kept>,
    pub(crate) stopped_cleanly: bool,
}

/// Resident memory at one time, and the figures to compare it with.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Memory {
    pub(crate) rss_bytes: u64,
    pub(crate) window_spans: Option<f64>,
    pub(crate) window_bytes: Option<f64>,
    /// Encoded bytes sent in the time for which a span is held, by the load generator's count.
    pub(crate) sent_bytes: f64,
}

/// The spans that reached the sink.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Kept {
    pub(crate) sink: ServerLap,
    pub(crate) sink_cpu_seconds_per_million: f64,
    /// Spans exported in the interval, in percent of those acknowledged in it.
    pub(crate) percent: f64,
    pub(crate) expected_percent: f64,
}

/// Runs the whole plan, and prints and writes the results.
pub(crate) fn run(options: crate::plan::Options) -> Result<()> {
    let plan = Plan::new(options)?;
    process::watch_signals()?;
    report::print_head(&plan);
    let mut all = Vec::new();
    for round in 1..=plan.rounds {
        for target in &plan.targets {
            let measurement = measure(*target, round, &plan)?;
            report::print_row(&measurement, &all);
            all.push(measurement);
        }
    }
    report::print_summary(&plan, &all);
    plan.json.as_ref().map_or(Ok(()), |path| report::write_json(path, &plan, &all))
}

/// The processes of one measurement; dropping it kills them.
struct Bench {
    sink: Process,
    server: Server,
    load: Process,
    loaded: Loaded,
}

impl Bench {
    fn start(target: Target, plan: &Plan) -> Result<Self> {
        let sink = Process::subcommand("sink", &[])?;
        let server = Server::start(target, plan, sink.answer::<Listening>()?.address)?;
        let max = plan.warm_up(target) + plan.measured + LOAD_MARGIN;
        let mut arguments = vec![
            format!("--target={}", server.receiver),
            format!("--rate={}", plan.rate),
            format!("--max-seconds={}", max.as_secs()),
            format!("--connections={}", plan.connections),
            format!("--in-flight={}", plan.in_flight),
            format!("--root-after={}ms", plan.root_after.as_millis()),
            format!("--resources={}", plan.resources),
            format!("--requests={}", plan.requests(target)),
        ];
        arguments.extend(plan.traffic.arguments());
        let load = Process::subcommand("load", &arguments)?;
        let loaded = load.answer_within(CORPUS_MAX)?;
        Ok(Self { sink, server, load, loaded })
    }

    /// CPU seconds of server, generator and sink.
    fn cpu_seconds(&self) -> Result<[f64; 3]> {
        let server = self.server.process.cpu_seconds()?;
        Ok([server, self.load.cpu_seconds()?, self.sink.cpu_seconds()?])
    }

    fn memory(&self, held: Duration, plan: &Plan) -> Result<Memory> {
        let rss_bytes = self.server.process.rss_bytes()?;
        let window = self.server.window()?;
        Ok(Memory {
            rss_bytes,
            window_spans: window.map(|window| window.spans),
            window_bytes: window.map(|window| window.bytes),
            sent_bytes: held.as_secs_f64() * plan.rate as f64 * self.loaded.bytes_per_span,
        })
    }

    /// Stops the load generator first, so that nothing is sent to a stopping server; then the
    /// server, then its sink.
    fn stop(self) -> Result<bool> {
        self.load.terminate(STOP_MAX)?;
        let clean = self.server.stop()?;
        self.sink.terminate(STOP_MAX)?;
        Ok(clean)
    }
}

fn measure(target: Target, round: u32, plan: &Plan) -> Result<Measurement> {
    let mut bench = Bench::start(target, plan)?;
    process::pause(plan.warm_up(target))?;

    let _warm_up: (LoadLap, ServerLap) = (bench.load.lap()?, bench.sink.lap()?);
    let (begin, cpu_before) = (Instant::now(), bench.cpu_seconds()?);
    process::pause(plan.measured / 2)?;
    let middle = bench.memory(plan.held(), plan)?;
    process::pause(plan.measured.saturating_sub(begin.elapsed()))?;
    let (load, sink): (LoadLap, ServerLap) = (bench.load.lap()?, bench.sink.lap()?);
    let cpu_after = bench.cpu_seconds()?;
    let end = bench.memory(plan.held(), plan)?;

    if load.spans == 0 {
        let why = load.last_failure.unwrap_or_else(|| "no answer at all".into());
        return Err(format!("{} acknowledged nothing: {why}", target.name()).into());
    }
    let cpu: [f64; 3] = std::array::from_fn(|index| cpu_after[index] - cpu_before[index]);
    let millions = load.spans as f64 / 1e6;
    let kept = (target != Target::Floor).then(|| Kept {
        sink,
        sink_cpu_seconds_per_million: cpu[2] / millions,
        percent: 100.0 * sink.spans as f64 / load.spans as f64,
        expected_percent: match plan.keep {
            Keep::None => 0.0,
            Keep::Tenth => bench.loaded.expected_kept_percent,
            Keep::All => 100.0,
        },
    });
    Ok(Measurement {
        target: target.name(),
        round,
        rate_wanted: plan.rate,
        spans_per_second: load.spans as f64 / load.seconds,
        cpu_seconds_per_million: cpu[0] / millions,
        cores: cpu[0] / load.seconds,
        load_cpu_seconds_per_million: cpu[1] / millions,
        bytes_per_span: bench.loaded.bytes_per_span,
        ready_ms: bench.server.ready_ms,
        memory: vec![middle, end],
        kept,
        load,
        stopped_cleanly: bench.stop()?,
    })
}
