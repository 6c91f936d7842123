//! The abuse bench: measures the harm that hostile senders do to a server, and to an honest sender
//! on another connection.
//!
//! It starts a fresh process for each abuse: Tailwater, or an OpenTelemetry Collector with
//! comparable settings. An honest client exports 200 requests a second over h2: first alone, then
//! under the attack, then until the server has calmed down. Every acknowledged span must arrive at
//! a sink. The bench prints a row of a Markdown table for each abuse, and exits with 1 if Tailwater
//! breaks a promise of RELIABILITY.md. Latencies are printed, never judged.
//!
//! Attackers are threads over `TcpStream` that write frames themselves (`frames`), since libraries
//! refuse to misbehave. Reading order: `attacks` (the list), `flood`, `hold` and `data` (the three
//! kinds), `honest`, `target`, `measure`. It needs Linux, since it reads `/proc`.

#![allow(
    clippy::disallowed_methods,
    reason = "attackers read the real clock and sleep; the bans protect the service"
)]

mod attacks;
mod data;
mod flood;
#[allow(dead_code, reason = "the rest is for tests/it/abuse.rs")]
mod frames;
mod hold;
mod honest;
mod measure;
mod target;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;

/// Errors end a run with their text; no code matches on them.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Attacks Tailwater or a Collector, and prints the outcome
#[derive(Parser)]
#[command(name = "abuse")]
struct Options {
    /// The binary of Tailwater
    #[arg(long, required_unless_present = "collector", conflicts_with = "collector")]
    tailwater: Option<PathBuf>,
    /// The binary of a Collector with tail_sampling
    #[arg(long)]
    collector: Option<PathBuf>,
    /// Only these abuses, such as 4 or 4b; may be repeated
    #[arg(long)]
    test: Vec<String>,
    /// How long each attack lasts
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// How long the server may take to calm down afterwards
    #[arg(long, default_value_t = 5.0)]
    calm_seconds: f64,
    /// `cargo bench` passes this to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<ExitCode> {
    // `cargo test --all-targets` starts benches without arguments.
    if std::env::args_os().len() == 1 {
        println!("nothing attacked: see `cargo bench --bench abuse -- --help`");
        return Ok(ExitCode::SUCCESS);
    }
    let options = Options::parse();
    // The attackers hold tens of thousands of connections.
    tailwater::net::descriptors::connections_max(1);
    let server = match (&options.tailwater, &options.collector) {
        (Some(binary), _) => target::Server::Tailwater(binary.clone()),
        (None, Some(binary)) => target::Server::Collector(binary.clone()),
        (None, None) => return Err("no server".into()),
    };
    let plan = measure::Plan {
        server,
        attack: Duration::from_secs_f64(options.seconds),
        calm: Duration::from_secs_f64(options.calm_seconds),
    };
    measure::print_head();
    let mut broken = Vec::new();
    for abuse in attacks::all() {
        let group = abuse.number.trim_end_matches(char::is_alphabetic);
        let is_wanted = |number: &String| number == abuse.number || number == group;
        if options.test.is_empty() || options.test.iter().any(is_wanted) {
            broken.extend(measure::run(&plan, &abuse)?);
        }
    }
    broken.iter().for_each(|broken| eprintln!("broken: {broken}"));
    Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
