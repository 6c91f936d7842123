//! The command line: arguments, the runtime, signals and exit codes.

use std::{io, path::PathBuf, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};
use tailwater::{
    commands::{
        Format, check, complain, completions, convert, demo, explain, health, log, print, record,
        replay, tail, test, top, trial,
    },
    config::{self, Config},
    logging::Log,
    notify,
    service::Service,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{Level, error, info, warn};

/// musl's own allocator has one lock for all threads. With glibc, its own allocator is as fast.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A tail-based trace sampler between OpenTelemetry and Grafana Tempo.
#[derive(Parser)]
#[command(version = env!("TAILWATER_VERSION"), about, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the service
    Run {
        /// Configuration file; without it, the built-in defaults and policies
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Run everything in one process: generated traffic, the sampler and a sink
    Demo(demo::Options),
    /// Convert a Collector's tail_sampling to Tailwater policies, and report every difference
    Convert(convert::Options),
    /// Test policies against traces written in test files
    Test(test::Options),
    /// Decide recorded traces, and report what each policy would keep
    Replay(replay::Options),
    /// Explain why a running instance kept or dropped a trace
    Explain(explain::Options),
    /// Follow the decisions of a running instance as they are made
    Tail(tail::Options),
    /// Watch the state of a running instance in the terminal
    Top(top::Options),
    /// Try other policies on the traffic of a running instance, and report what would change
    Try(trial::Options),
    /// Record a share of whole traces from a running instance, for replay
    Record(record::Options),
    /// Show the content of the [durability] logs, and any damage
    Log(log::Options),
    /// Validate configuration and policy files and report every problem
    Check {
        /// Files to validate
        #[arg(required_unless_present = "schema", value_name = "FILE")]
        files: Vec<PathBuf>,
        /// The format of the report; JSON is
        /// `{"diagnostics": [{"file", "line", "column", "severity", "message", "hint"}]}`
        #[arg(long, value_enum, default_value_t)]
        format: Format,
        /// Print the JSON Schema of the configuration, for editors, and validate nothing
        #[arg(long, conflicts_with = "files")]
        schema: bool,
    },
    /// Ask a running instance whether it is ready
    Health(health::Options),
    /// Print the completion script for a shell
    Completions(completions::Options),
    /// Write the manual pages
    Man(completions::ManOptions),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Check { schema: true, .. } => exit_code(print(config::SCHEMA)),
        Command::Check { files, format, .. } => {
            let report = check::check(&files, format);
            exit_code(print(&report.text) && !report.has_errors)
        }
        Command::Run { config } => {
            let loaded = config::load_or_embedded(config.as_deref());
            let level = loaded.config.as_ref().map_or(Level::INFO, |c| c.telemetry.log_level);
            exit_code(logging(level, loaded.log_json, |log| {
                log.tell(&loaded.diagnostics);
                loaded.config.is_some_and(|config| on_runtime(run(config)))
            }))
        }
        Command::Convert(options) => exit_code(convert::run(&options)),
        Command::Test(options) => exit_code(test::run(&options)),
        Command::Replay(options) => exit_code(replay::run(&options)),
        Command::Log(options) => exit_code(log::run(&options)),
        Command::Explain(options) => exit_code(explain::run(&options)),
        Command::Tail(options) => exit_code(tail::run(&options)),
        Command::Top(options) => exit_code(top::run(&options)),
        Command::Health(options) => exit_code(on_runtime(health::run(options))),
        Command::Completions(options) => {
            exit_code(completions::run(Arguments::command(), &options))
        }
        Command::Man(options) => exit_code(completions::man(Arguments::command(), &options)),
        Command::Try(options) => exit_code(trial::run(&options)),
        Command::Record(options) => exit_code(record::run(&options)),
        Command::Demo(options) => {
            exit_code(logging(Level::WARN, false, |_| on_runtime(demo::run(options))))
        }
    }
}

fn exit_code(is_fine: bool) -> ExitCode {
    if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs `work` with logging set up. The last lines are written before this returns.
fn logging(level: Level, is_json: bool, work: impl FnOnce(&Log) -> bool) -> bool {
    match Log::start(level, is_json) {
        Ok(log) => work(&log),
        Err(problem) => {
            complain(&format!("error: cannot start the thread of the log: {problem}\n"));
            false
        }
    }
}

fn on_runtime(work: impl Future<Output = bool>) -> bool {
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let is_fine = runtime.block_on(work);
            // Tasks that are still running were cut off on purpose, by a deadline or a second
            // signal.
            runtime.shutdown_background();
            is_fine
        }
        Err(problem) => {
            error!(%problem, "cannot start the runtime");
            false
        }
    }
}

/// Runs the service until a signal, then shuts down. Returns whether everything was delivered.
async fn run(config: Config) -> bool {
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(problem) => {
            error!(%problem, "cannot listen for signals");
            return false;
        }
    };
    let started = tokio::select! {
        // A signal comes first: replaying the logs may take a while, and the data on disk stays
        // there.
        biased;
        () = signals.stop() => return true,
        started = Service::start(&config) => started,
    };
    let service = match started {
        Ok(service) => service,
        Err(problem) => {
            error!("{problem}");
            return false;
        }
    };
    notify::ready();
    let supervisor = service.supervisor();
    let has_failed = tokio::select! {
        // Either event ends the service. A failure comes first, because it says more about the
        // cause. Feeding the watchdog ends nothing.
        biased;
        () = service.failure() => true,
        () = signals.stop_or_reload(&service) => false,
        () = notify::feed_watchdog(|| supervisor.rounds()) => true,
    };
    info!("shutting down");
    notify::stopping(config.shutdown_timeout);
    tokio::select! {
        // A second signal comes first: its sender does not want to wait any longer.
        biased;
        () = signals.stop() => {
            warn!("stopped at once by a second signal");
            false
        }
        undelivered = service.shutdown() => undelivered == 0 && !has_failed,
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Reloads on each SIGHUP, until a signal asks the service to stop.
    async fn stop_or_reload(&mut self, service: &Service) {
        let Signals { terminate, interrupt, hangup } = self;
        let reloads = async {
            while hangup.recv().await.is_some() {
                notify::reloading();
                service.reload().await;
                notify::ready();
            }
        };
        tokio::select! {
            // Stopping comes first: after it, new policies are of no use. A reload in progress is
            // not waited for.
            biased;
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = reloads => {}
        }
    }

    /// Waits for a signal that asks the service to stop.
    async fn stop(&mut self) {
        tokio::select! {
            // Both signals mean the same.
            biased;
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
