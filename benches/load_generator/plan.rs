//! The meaning of the orchestrator's arguments: scenarios, their defaults, and the resolved plan of
//! a run.

use std::{path::PathBuf, time::Duration};

use clap::ValueEnum;
use humantime::parse_duration;

use crate::{Result, corpus::Compression, load::TrafficOptions, traffic::Size};

/// The time under load after the window has filled and before the measured interval begins.
const SETTLE: Duration = Duration::from_secs(3);
/// The floor has no window to fill.
const FLOOR_WARM_UP: Duration = Duration::from_secs(3);
/// Extra time for which compressed requests must suffice, beyond the measured interval.
const COMPRESSED_MARGIN: Duration = Duration::from_secs(5);
/// Requests in a cycle that is repeated.
const REQUESTS: usize = 128;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The scenario to measure; the options below override its defaults
    #[arg(long, value_enum, default_value_t = Scenario::Steady)]
    scenario: Scenario,
    /// Measures one target only
    #[arg(long, value_enum)]
    only: Option<Target>,
    /// Rounds, in each of which the targets take turns
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// Spans per second [default: 300000; memory30: 100000; budget, span-metrics: 200000; peer,
    /// collectors: 50000]
    #[arg(long)]
    rate: Option<u64>,
    /// decision_wait [default: 5s; memory30: 30s; collectors: 2s]
    #[arg(long, value_parser = parse_duration)]
    window: Option<Duration>,
    /// decision_wait_after_root_received [default: 0s, which turns it off; memory30: 5s]
    #[arg(long, value_parser = parse_duration)]
    after_root: Option<Duration>,
    /// How long after a trace's first spans its root is sent [default: 0s; memory30: 1s]
    #[arg(long, value_parser = parse_duration)]
    root_after: Option<Duration>,
    /// Load before the measured interval [default: window + 3s; memory30: 45s]
    #[arg(long, value_parser = parse_duration)]
    warm_up: Option<Duration>,
    /// Seconds measured
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// [default: 4; collectors: 8]
    #[arg(long)]
    connections: Option<usize>,
    /// Requests in flight on each connection
    #[arg(long, default_value_t = 4)]
    in_flight: usize,
    /// The number of different resources in the traffic [default: 10; collectors: 240;
    /// span-metrics: 330]
    #[arg(long)]
    resources: Option<usize>,
    /// Requests that the load generator encodes once and sends in turn, 0.7 MB each [default: 128,
    /// or as many as the run needs if they are compressed]
    #[arg(long)]
    requests: Option<usize>,
    #[command(flatten)]
    traffic: TrafficOptions,
    #[arg(long, default_value_t = 6000)]
    memory_limit_mib: u64,
    /// Which traces tailwater's policies keep
    #[arg(long, value_enum, default_value_t = Keep::Tenth)]
    keep: Keep,
    /// The number of additional policies, of four conditions each, that keep nothing
    #[arg(long, default_value_t = 0)]
    more_policies: usize,
    /// The kinds that [span_metrics] counts, where it is measured, with one dimension; 330 or 120
    /// resources give about 2,000 series
    #[arg(long, value_enum, default_value_t = SpanKinds::Server)]
    span_metrics: SpanKinds,
    /// Worker threads of tailwater [default: one a core]
    #[arg(long)]
    workers: Option<usize>,
    /// The binary to measure
    #[arg(long, default_value = env!("CARGO_BIN_EXE_tailwater"))]
    tailwater: PathBuf,
    /// Another build of it, which is measured in turn with the other targets
    #[arg(long)]
    beside: Option<PathBuf>,
    /// A Collector with tail_sampling, as `tests/peer/build.sh` builds it
    #[arg(long)]
    collector: Option<PathBuf>,
    /// Where logs of durable targets are written [default: the folder for temporary files]
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Write every figure of every run to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

/// The kinds of spans that are counted.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SpanKinds {
    Server,
    All,
}

/// A traffic shape and the configuration that goes with it.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// A fixed window that every span stays in: CPU, latency and memory at once
    Steady,
    /// decision_wait 30 s with roots after 1 s and 5 s after the root: memory over 6 s of traffic
    Memory30,
    /// Tailwater without durability, with `mode = "process"`, and with `"power"`, in turn
    Durable,
    /// The same policies with and without a budget of three keys, in turn
    Budget,
    /// The same with and without [span_metrics], in turn; --span-metrics says for which kinds
    SpanMetrics,
    /// Tailwater and the Collector's tail_sampling, in turn, at a rate that the Collector can
    /// sustain
    Peer,
    /// The same, with what eight Collectors send by default: gzip, large batches, spans of many
    /// kinds
    Collectors,
}

/// The values of a scenario that no option overrides.
struct Defaults {
    targets: &'static [Target],
    rate: u64,
    connections: usize,
    resources: usize,
    window: Duration,
    after_root: Duration,
    root_after: Duration,
    /// `None`: until the window is full, and [`SETTLE`].
    warm_up: Option<Duration>,
}

impl Scenario {
    fn defaults(self) -> Defaults {
        match self {
            Self::Steady => Defaults {
                targets: &[Target::Floor, Target::Tailwater],
                rate: 300_000,
                connections: 4,
                resources: 10,
                window: Duration::from_secs(5),
                after_root: Duration::ZERO,
                root_after: Duration::ZERO,
                warm_up: None,
            },
            // The floor holds nothing, so it has no memory to compare with. Both waits are the
            // product's defaults, and 45 s are one and a half times the longest one.
            Self::Memory30 => Defaults {
                targets: &[Target::Tailwater],
                rate: 100_000,
                window: Duration::from_secs(30),
                after_root: Duration::from_secs(5),
                root_after: Duration::from_secs(1),
                warm_up: Some(Duration::from_secs(45)),
                ..Self::Steady.defaults()
            },
            Self::Budget => Defaults {
                targets: &[Target::Floor, Target::Tailwater, Target::TailwaterBudget],
                rate: 200_000,
                ..Self::Steady.defaults()
            },
            Self::SpanMetrics => Defaults {
                targets: &[Target::Floor, Target::Tailwater, Target::TailwaterMetrics],
                rate: 200_000,
                resources: 330,
                ..Self::Steady.defaults()
            },
            Self::Durable => Defaults {
                targets: &[Target::Tailwater, Target::Process, Target::Power],
                ..Self::Steady.defaults()
            },
            // The Collector takes some 120,000 spans/s on two cores, load generator included.
            Self::Peer => Defaults {
                targets: &[
                    Target::Floor,
                    Target::Tailwater,
                    Target::Collector,
                    Target::CollectorSharded,
                ],
                rate: 50_000,
                ..Self::Steady.defaults()
            },
            Self::Collectors => Defaults {
                targets: &[Target::Floor, Target::Tailwater, Target::Collector],
                rate: 50_000,
                window: Duration::from_secs(2),
                connections: 8,
                resources: 240,
                ..Self::Steady.defaults()
            },
        }
    }
}

/// The share of spans that the policies keep.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Keep {
    /// No span
    None,
    /// A tenth of them, by four policies
    Tenth,
    /// Every span
    All,
}

/// A target of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    Floor,
    Tailwater,
    /// The same with `[durability] mode = "process"`.
    Process,
    /// The same with `mode = "power"`.
    Power,
    /// The same with a budget.
    TailwaterBudget,
    /// The same with `[span_metrics]`.
    TailwaterMetrics,
    /// Another build.
    #[value(skip)]
    Beside,
    /// tail_sampling with one shard, its default.
    Collector,
    /// tail_sampling with two shards, one per core.
    CollectorSharded,
}

impl Target {
    /// The name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Tailwater => "tailwater",
            Self::Process => "tailwater, process",
            Self::Power => "tailwater, power",
            Self::TailwaterBudget => "tailwater, budget",
            Self::TailwaterMetrics => "tailwater, metrics",
            Self::Beside => "the other build",
            Self::Collector => "collector",
            Self::CollectorSharded => "collector, 2 shards",
        }
    }
}

/// A run with all values resolved.
pub(crate) struct Plan {
    pub(crate) targets: Vec<Target>,
    pub(crate) rounds: u32,
    pub(crate) rate: u64,
    pub(crate) window: Duration,
    pub(crate) after_root: Duration,
    pub(crate) root_after: Duration,
    warm_up: Option<Duration>,
    pub(crate) measured: Duration,
    pub(crate) connections: usize,
    pub(crate) in_flight: usize,
    pub(crate) resources: usize,
    requests: Option<usize>,
    pub(crate) traffic: TrafficOptions,
    pub(crate) memory_limit_mib: u64,
    pub(crate) keep: Keep,
    pub(crate) more_policies: usize,
    pub(crate) span_metrics: SpanKinds,
    pub(crate) workers: Option<usize>,
    pub(crate) directory: Option<PathBuf>,
    pub(crate) tailwater: PathBuf,
    pub(crate) beside: Option<PathBuf>,
    pub(crate) collector: Option<PathBuf>,
    pub(crate) json: Option<PathBuf>,
}

impl Plan {
    /// Fills in the scenario's defaults.
    pub(crate) fn new(options: Options) -> Result<Self> {
        let defaults = options.scenario.defaults();
        let rate = options.rate.unwrap_or(defaults.rate);
        let traffic = match options.scenario {
            Scenario::Collectors => TrafficOptions {
                batch: options.traffic.batch.or(Some(8192)),
                span_size: options.traffic.span_size.or(Some(Size::Diverse)),
                compression: options.traffic.compression.or(Some(Compression::Gzip)),
                ..options.traffic
            },
            _ => options.traffic,
        };
        if options.rounds == 0 || options.seconds == 0 || rate < traffic.batch() {
            return Err("--rounds and --seconds must be at least 1, --rate at least --batch".into());
        }
        let mut targets = defaults.targets.to_vec();
        if let Some(only) = options.only {
            targets = vec![only];
        }
        if options.beside.is_some() {
            targets.push(Target::Beside);
        }
        Ok(Self {
            targets,
            rounds: options.rounds,
            rate,
            window: options.window.unwrap_or(defaults.window),
            after_root: options.after_root.unwrap_or(defaults.after_root),
            root_after: options.root_after.unwrap_or(defaults.root_after),
            warm_up: options.warm_up.or(defaults.warm_up),
            measured: Duration::from_secs(options.seconds),
            connections: options.connections.unwrap_or(defaults.connections),
            in_flight: options.in_flight,
            resources: options.resources.unwrap_or(defaults.resources),
            requests: options.requests,
            traffic,
            memory_limit_mib: options.memory_limit_mib,
            keep: options.keep,
            more_policies: options.more_policies,
            span_metrics: options.span_metrics,
            workers: options.workers,
            directory: options.directory,
            tailwater: options.tailwater,
            beside: options.beside,
            collector: options.collector,
            json: options.json,
        })
    }

    /// How long `target` is loaded before the measurement.
    pub(crate) fn warm_up(&self, target: Target) -> Duration {
        match target {
            Target::Floor => FLOOR_WARM_UP,
            _ => self.warm_up.unwrap_or(self.window + SETTLE),
        }
    }

    /// Requests in the load generator's cycle; a compressed cycle must last for the whole run.
    pub(crate) fn requests(&self, target: Target) -> usize {
        let load = self.warm_up(target) + self.measured + COMPRESSED_MARGIN;
        let requests = load.as_secs_f64() * self.rate as f64 / self.traffic.batch() as f64;
        let needed = if self.traffic.is_compressed() { requests as usize } else { REQUESTS };
        self.requests.unwrap_or(needed)
    }

    /// How long the first spans of a trace are held: the denominator of memory over traffic.
    pub(crate) fn held(&self) -> Duration {
        if self.after_root.is_zero() {
            return self.window;
        }
        self.window.min(self.root_after + self.after_root)
    }
}
