//! `tailwater replay INPUT...`: reports which recorded traces policies would keep.
//!
//! Inputs are read one after the other, piece by piece. Traces are held as facts and bits, without
//! their bytes (`commands::traces`). When all inputs are read, or memory is full, traces are
//! decided in the order of their time (`decide`), counted and weighted (`totals`), and reported
//! (`report`).
//!
//! Parts that cannot be read are named on standard error and skipped.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use clap::Args;

use self::{decide::Replay, progress::Progress};
use super::Format;
use crate::{
    clock, config,
    policy::PolicySpec,
    trace_files::{Piece, TraceFile},
};

mod decide;
mod progress;
mod report;
#[cfg(test)]
mod tests;
mod totals;

/// Options of `replay`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Configuration or policy file; without it, the built-in policies
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Second file, to report what it would change
    #[arg(long, value_name = "FILE")]
    pub against: Option<PathBuf>,
    /// Format of the report; JSON is `{"input": {...}, "result": {...}}`
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Memory for undecided traces; when it is full, the oldest are decided early
    #[arg(long, value_name = "MIB", default_value_t = 1024,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub memory_limit_mib: u32,
    /// Recorded traces in any form, compressed or not; `-` is standard input
    #[arg(required = true, value_name = "INPUT")]
    pub inputs: Vec<PathBuf>,
}

/// The result of a replay.
#[derive(Debug)]
pub struct Replayed {
    /// The text to print, unchanged; empty if a configuration cannot be used.
    pub text: String,
    /// Whether everything could be read.
    pub is_fine: bool,
}

/// Replays and prints. Returns whether everything could be read.
pub fn run(options: &Options) -> bool {
    let replayed = replay(options, &mut super::complain);
    super::print(&replayed.text) && replayed.is_fine
}

/// Reads and decides all inputs. Meanwhile, passes messages for the user to `tell`, each of one
/// line or more. Blocks on the file system and on standard input.
pub fn replay(options: &Options, tell: &mut dyn FnMut(&str)) -> Replayed {
    let mut sets = Vec::new();
    let files = [Some(options.config.as_deref()), options.against.as_deref().map(Some)];
    for file in files.into_iter().flatten() {
        match policies(file, tell) {
            Some(policies) => sets.push(policies),
            None => return Replayed { text: String::new(), is_fine: false },
        }
    }
    let memory = (options.memory_limit_mib as usize) << 20;
    let mut replay = Replay::new(&sets, memory);
    let mut progress = Progress::of(&options.inputs);
    let mut skipped = 0;
    let mut skip = |progress: &mut Progress, message: String| {
        skipped += 1;
        progress.clear();
        tell(&format!("{}\n", config::visible(&message)));
    };
    for input in &options.inputs {
        if let Err(message) = read(input, &mut replay, &mut progress, &mut skip) {
            skip(&mut progress, message);
        }
    }
    progress.clear();
    let outcome = replay.finish(skipped);
    Replayed { text: report::print(&outcome, options.format), is_fine: skipped == 0 }
}

/// The policies of a file that are in force. `None` if it has errors; all problems go to `tell`.
fn policies(file: Option<&Path>, tell: &mut dyn FnMut(&str)) -> Option<Vec<PolicySpec>> {
    let loaded = config::load_or_embedded(file);
    if !loaded.diagnostics.is_empty() {
        tell(&loaded.diagnostics.to_string());
    }
    let in_force = super::in_force(clock::unix_millis());
    Some(loaded.config?.policies.into_iter().filter(in_force).collect())
}

/// Reads one input. Calls `skip` for each part that is skipped.
fn read(
    input: &Path,
    replay: &mut Replay,
    progress: &mut Progress,
    skip: &mut dyn FnMut(&mut Progress, String),
) -> Result<(), String> {
    let is_stdin = input == Path::new("-");
    let name = if is_stdin { "standard input".to_owned() } else { input.display().to_string() };
    let cannot = |error: io::Error| format!("{name}: cannot be read: {error}");
    let opened: Box<dyn Read> = match is_stdin {
        true => Box::new(io::stdin().lock()),
        false => Box::new(File::open(input).map_err(cannot)?),
    };
    let counted = progress.counted(opened);
    let mut file = TraceFile::open(&name, counted).map_err(cannot)?;
    while let Some(piece) = file.next_piece() {
        progress.show();
        let left_out = match piece {
            Piece::Request(request) => replay.add(&request, file.share()),
            Piece::Unreadable(message) => {
                skip(progress, message);
                continue;
            }
        };
        let place = file.place();
        match left_out {
            Ok(0) => {}
            Ok(_) => skip(progress, format!("{place}: spans without valid ids are left out")),
            Err(error) => skip(progress, format!("{place}: {error}")),
        }
    }
    Ok(())
}
