//! The command line: arguments, the runtime, signals and exit codes.

use std::{io, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use tailwater::{
    commands::{check, complain, convert, demo, print, replay, test},
    config::{self, Config},
    logging::Log,
    service::Service,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{Level, error, info, warn};

/// A tail-based trace sampler between OpenTelemetry and Grafana Tempo.
#[derive(Parser)]
#[command(version, about, disable_help_subcommand = true)]
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
    /// Show the whole path in one process: generated traffic, the sampler, a sink
    Demo(demo::Options),
    /// Turn a Collector's tail_sampling into policies, and name every difference
    Convert(convert::Options),
    /// Run policy tests: what policies make of traces that are written down
    Test(test::Options),
    /// Decide recorded traces, and say what would be kept of them, by policy
    Replay(replay::Options),
    /// Validate configuration and policy files and report every problem
    Check {
        /// Files to validate
        #[arg(required_unless_present = "schema", value_name = "FILE")]
        files: Vec<PathBuf>,
        /// How to report
        #[arg(long, value_enum, default_value_t)]
        format: check::Format,
        /// Print the JSON Schema of the configuration, for editors, and validate nothing
        #[arg(long, conflicts_with = "files")]
        schema: bool,
    },
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
        Command::Demo(options) => {
            exit_code(logging(Level::WARN, false, |_| on_runtime(demo::run(options))))
        }
    }
}

fn exit_code(is_fine: bool) -> ExitCode {
    if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Works with the log open. The last lines are written when this returns.
fn logging(level: Level, is_json: bool, work: impl FnOnce(&Log) -> bool) -> bool {
    match Log::start(level, is_json) {
        Ok(log) => work(&log),
        Err(problem) => {
            complain(&format!("error: cannot start the thread that logs: {problem}\n"));
            false
        }
    }
}

fn on_runtime(work: impl Future<Output = bool>) -> bool {
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let is_fine = runtime.block_on(work);
            // Whatever still runs was cut on purpose, by a deadline or a second signal.
            runtime.shutdown_background();
            is_fine
        }
        Err(problem) => {
            error!(%problem, "cannot start the runtime");
            false
        }
    }
}

/// Runs until a signal, then shuts down. Whether everything was delivered.
async fn run(config: Config) -> bool {
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(problem) => {
            error!(%problem, "cannot listen for signals");
            return false;
        }
    };
    let service = match Service::start(&config).await {
        Ok(service) => service,
        Err(problem) => {
            error!("{problem}");
            return false;
        }
    };
    let has_failed = tokio::select! {
        // Either ends it; a failure says more about why.
        biased;
        () = service.failure() => true,
        () = signals.stop_or_reload(&service) => false,
    };
    info!("shutting down");
    tokio::select! {
        // A second signal comes first: whoever sends it does not want to wait any longer.
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

    /// Reloads whenever someone wants it, until someone wants the service to stop.
    async fn stop_or_reload(&mut self, service: &Service) {
        let Signals { terminate, interrupt, hangup } = self;
        let reloads = async {
            while hangup.recv().await.is_some() {
                service.reload().await;
            }
        };
        tokio::select! {
            // Stopping comes first: whoever wants it does not want new policies any more. A reload
            // under way is not waited for.
            biased;
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = reloads => {}
        }
    }

    /// Waits until someone wants the service to stop.
    async fn stop(&mut self) {
        tokio::select! {
            // Either is as good as the other.
            biased;
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
