//! The command line: arguments, logging, the runtime, signals and exit codes.

use std::{
    fs,
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use tailwater::{
    check,
    commands::{convert, replay, test},
    config::{self, Config},
    demo,
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
        Command::Check { schema: true, .. } => {
            print!("{}", config::SCHEMA);
            ExitCode::SUCCESS
        }
        Command::Check { files, format, .. } => {
            let report = check::check(&files, format);
            print!("{}", report.text);
            exit_code(!report.has_errors)
        }
        Command::Convert(options) => exit_code(convert(&options)),
        Command::Test(options) => {
            let tested = test::test(&options);
            tell(&tested.diagnostics.to_string());
            print(&tested.text);
            exit_code(tested.is_fine)
        }
        Command::Replay(options) => {
            let replayed = replay::replay(&options, &mut tell);
            print(&replayed.text);
            exit_code(replayed.is_fine)
        }
        Command::Run { config } => match load(config) {
            Some(config) => {
                start_logging(config.telemetry.log_level, config.telemetry.log_json);
                exit_code(on_runtime(run(config)))
            }
            None => exit_code(false),
        },
        Command::Demo(options) => {
            start_logging(Level::WARN, false);
            exit_code(on_runtime(demo::run(options)))
        }
    }
}

/// Whether all was converted and written.
fn convert(options: &convert::Options) -> bool {
    let conversion = convert::convert(&options.file, options.processor.as_deref());
    eprint!("{}", conversion.diagnostics);
    let is_written = match &options.output {
        Some(file) if !conversion.toml.is_empty() => match fs::write(file, &conversion.toml) {
            Ok(()) => true,
            Err(problem) => {
                eprintln!("error: cannot write {}: {problem}", file.display());
                false
            }
        },
        _ => {
            print!("{}", conversion.toml);
            true
        }
    };
    is_written && !conversion.diagnostics.has_errors()
}

/// Writes to standard output. Whoever has closed it wants to read no more.
fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

/// Writes to standard error.
fn tell(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

fn exit_code(is_fine: bool) -> ExitCode {
    if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The configuration, or `None` once every problem with it is on standard error.
fn load(file: Option<PathBuf>) -> Option<Config> {
    let loaded = config::load_or_embedded(file.as_deref());
    eprint!("{}", loaded.diagnostics);
    loaded.config
}

fn start_logging(level: Level, is_json: bool) {
    let logging = tracing_subscriber::fmt().with_max_level(level).with_writer(io::stderr);
    let logging = logging.with_ansi(io::stderr().is_terminal());
    if is_json {
        logging.json().init();
    } else {
        logging.init();
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
            eprintln!("error: cannot start the runtime: {problem}");
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
