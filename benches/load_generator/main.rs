//! The load generator: measures what one span costs end to end, with separate processes.
//!
//! Isolates: CPU, resident memory and acknowledgement latency of the whole `tailwater` process
//! under steady OTLP/gRPC traffic: it receives, walks, holds for the window, decides, and exports
//! about 10 %. Compared with: `floor`, the same server stack (hyper's HTTP/2, tonic's gRPC framing,
//! 2 workers, the same flow control windows), which reads every message and drops its bytes. The
//! same load generator loads both, one after the other in each round; only ratios within a run are
//! claimed.
//!
//! One binary is executed again for each process: the orchestrator (no subcommand), `load`, `sink`
//! and `floor`. Everything listens on 127.0.0.1 and ends by itself. `benches/README.md` has the
//! commands, the meaning of each column and the reasons why the comparison is fair.
//!
//! Reading order: `traffic` and `diverse` (the spans), `corpus` (requests and new ids for each
//! cycle), `load`, `server` (floor and sink), then `plan`, `process`, `target`, `measure` and
//! `report`.

#![allow(
    clippy::disallowed_methods,
    reason = "a load generator reads the real clock and sleeps; the bans protect the service"
)]

mod check;
mod collector;
mod control;
mod corpus;
mod diverse;
mod framing;
mod load;
mod measure;
mod plan;
mod process;
mod report;
mod server;
mod target;
mod traffic;

use clap::{Parser, Subcommand};

/// Errors end a run with their text; no code matches on them.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[derive(Parser)]
#[command(
    name = "load_generator",
    about = "Measures tailwater against a server that drops the bytes"
)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: plan::Options,
    /// `cargo bench` passes this to every bench; without it, and without arguments, nothing runs.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Sends traffic at a fixed rate and reports acknowledgements
    Load(load::Options),
    /// Counts the requests, bytes and spans that it receives
    Sink(server::Options),
    /// Reads requests, drops their bytes and answers OK
    Floor(server::Options),
    /// Tests the traffic itself: ids, roots, spans and the share that the policies keep
    Check,
}

fn main() -> Result<()> {
    // `cargo test --all-targets` starts benches without arguments: a test must not run minutes of
    // load.
    if std::env::args_os().len() == 1 {
        println!("nothing measured: use `cargo bench --bench load_generator -- [OPTIONS]`");
        return Ok(());
    }
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Load(options)) => load::run(options),
        Some(Command::Sink(options)) => server::run(server::Role::Sink, options),
        Some(Command::Floor(options)) => server::run(server::Role::Floor, options),
        Some(Command::Check) => check::run(),
        None => measure::run(cli.run),
    }
}
