//! The commands that a person runs, one file or folder each.
//!
//! What people read goes to standard output, through [`print()`]; diagnostics go to standard error,
//! through [`complain`]. Neither fails a command because nobody reads any more.

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

/// How a command reports. What JSON looks like is the command's own affair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For tools.
    Json,
}

/// Whether a policy decides at this time, in Unix milliseconds: neither as a shadow nor once it has
/// expired.
fn in_force(now: u64) -> impl Fn(&PolicySpec) -> bool {
    move |policy| !policy.shadow && policy.expires.is_none_or(|at| at > now)
}

/// Prints to standard output. Whether that went well; a reader that has read enough and gone away,
/// such as `head`, is no failure.
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

/// Writes to standard error, where nobody may listen.
pub fn complain(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}
