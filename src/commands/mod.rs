//! The commands of the command line, one file or folder each.
//!
//! Results go to standard output, through [`print()`]; diagnostics go to standard error, through
//! [`complain`]. A command does not fail because the reader has closed the pipe.

use std::io::{self, Write as _};

use clap::ValueEnum;

use crate::policy::PolicySpec;

mod aligned;
pub mod check;
pub mod completions;
pub mod convert;
pub mod demo;
pub mod explain;
pub mod health;
mod instance;
pub mod log;
pub mod record;
pub mod replay;
pub mod tail;
pub mod test;
pub mod top;
mod traces;
pub mod trial;

/// The format of a command's report. The structure of the JSON is up to the command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For tools.
    Json,
}

/// Whether a policy takes part in decisions at this time, in Unix milliseconds: it is not a shadow
/// policy and has not expired.
fn in_force(now: u64) -> impl Fn(&PolicySpec) -> bool {
    move |policy| !policy.shadow && policy.expires.is_none_or(|at| at > now)
}

/// Prints to standard output. Returns whether that succeeded; a reader that has closed the pipe,
/// such as `head`, is not a failure.
pub fn print(text: &str) -> bool {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(problem) if problem.kind() != io::ErrorKind::BrokenPipe => {
            complain(&format!("error: cannot write to standard output: {problem}\n"));
            false
        }
        _ => true,
    }
}

/// Writes to standard error, and ignores errors.
pub fn complain(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}
