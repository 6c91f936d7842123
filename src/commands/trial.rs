//! `tailwater try FILE`: reports how other policies would decide the live traffic of a running
//! instance.
//!
//! For a while, the instance also decides by the policies in FILE and reports the difference once a
//! second (`TryPolicies`). Its decisions do not change. The command prints the last message, at the
//! end or when Ctrl-C ends it early.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use clap::Args;
use prost::Message as _;
use tokio::signal::ctrl_c;
use tonic::{Status, Streaming};

use super::{
    Format,
    aligned::aligned,
    complain,
    instance::{self, Failure, Instance},
    print,
};
use crate::{
    config,
    control::{
        self, Diagnostic, Diagnostics, TryPoliciesRequest, TryPoliciesResponse,
        diagnostic::Severity,
        figures::{bytes, count, length},
        try_policies_response::{Change, Outcome, PolicyOutcome},
    },
};

/// The end of the type URL of the status details that list mistakes.
const DIAGNOSTICS: &str = "/tailwater.control.v1.Diagnostics";

/// Options of `try`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Length of the trial in seconds
    #[arg(long, value_name = "N", default_value_t = 30,
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Format of the report; JSON is the last `TryPolicies` message in protobuf's JSON form
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Policy file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    instance: Instance,
}

/// The progress line, shown on a terminal.
struct Progress {
    is_shown: bool,
    seconds: u32,
}

impl Progress {
    fn show(&self, response: &TryPoliciesResponse) {
        if !self.is_shown {
            return;
        }
        let kept = |outcome: &Option<Outcome>| outcome.as_ref().map_or(0, |o| o.kept_traces);
        let decided = response.current.as_ref().map_or(0, |current| current.decided_traces);
        // An error is ignored: the line is only for a terminal.
        let _ = write!(
            io::stderr(),
            "\r{} of {} s: {} traces decided, {} kept now, {} kept by the candidate\x1b[K",
            elapsed(response).as_secs(),
            self.seconds,
            count(decided),
            count(kept(&response.current)),
            count(kept(&response.candidate)),
        );
    }

    fn clear(&self) {
        if self.is_shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// How long the trial has run.
fn elapsed(response: &TryPoliciesResponse) -> Duration {
    response.elapsed.as_ref().and_then(length).unwrap_or_default()
}

/// The difference as text. `file` has the policies that were tried.
fn text(response: &TryPoliciesResponse, file: &Path) -> String {
    let nothing = Outcome::default();
    let current = response.current.as_ref().unwrap_or(&nothing);
    let candidate = response.candidate.as_ref().unwrap_or(&nothing);
    let mut text = format!(
        "tried for {:.0} s: {} traces decided, {} spans\n",
        elapsed(response).as_secs_f64(),
        count(current.decided_traces),
        count(current.decided_spans),
    );
    let file = config::visible(&file.display().to_string());
    for (name, outcome) in [("kept now", current), (&format!("kept by {file}"), candidate)] {
        let share = match outcome.decided_traces {
            0 => String::new(),
            all => {
                let share = outcome.kept_traces as f64 / all as f64 * 100.0;
                format!(" ({share:.2} % of the traces)")
            }
        };
        let sums = [outcome.kept_traces, outcome.kept_spans, outcome.kept_bytes];
        let _ = writeln!(text, "\n{name}: {}{share}", line(sums));
        text.push_str(&table(outcome));
    }
    text.push('\n');
    let nothing = Change::default();
    for (name, change) in
        [("newly kept", &response.newly_kept), ("newly dropped", &response.newly_dropped)]
    {
        let change = change.as_ref().unwrap_or(&nothing);
        let _ = writeln!(text, "{name}: {}", line([change.traces, change.spans, change.bytes]));
        for id in &change.examples {
            let _ = writeln!(text, "    {id}");
        }
    }
    text
}

fn line([traces, spans, size]: [u64; 3]) -> String {
    format!("{} traces, {} spans, {}", count(traces), count(spans), bytes(size))
}

fn table(outcome: &Outcome) -> String {
    let header = ["policy", "matched traces", "kept traces", "kept spans", "kept"];
    let row = |policy: &PolicyOutcome| {
        [
            policy.policy.clone(),
            count(policy.matched_traces),
            count(policy.kept_traces),
            count(policy.kept_spans),
            bytes(policy.kept_bytes),
        ]
    };
    let header = header.map(str::to_owned);
    let rows: Vec<_> = std::iter::once(header).chain(outcome.policies.iter().map(row)).collect();
    aligned(&rows)
}

/// Runs the trial to its end or to Ctrl-C, and reports. Returns whether there was no error.
pub fn run(options: &Options) -> bool {
    instance::run(try_policies(options))
}

async fn try_policies(options: &Options) -> Result<bool, Failure> {
    let &Options { seconds, format, ref file, ref instance } = options;
    let policies = match config::read_text(file) {
        Ok(source) => source.text().to_owned(),
        Err(diagnostics) => {
            complain(&diagnostics.to_string());
            return Ok(false);
        }
    };
    let mut asked = instance.client()?;
    let duration = Some(prost_types::Duration { seconds: seconds.into(), nanos: 0 });
    let request = TryPoliciesRequest { policies, duration };
    let progress = Progress { is_shown: io::stderr().is_terminal(), seconds };
    let mut last = nothing();
    // The same future from the beginning, so that no signal is missed between two messages.
    let mut interrupted = pin!(ctrl_c());
    let begun = tokio::select! {
        // Ctrl-C comes first: a person who wants to stop does not wait for the answer.
        biased;
        _ = &mut interrupted => None,
        begun = asked.client.try_policies(request) => Some(begun),
    };
    let ended = match begun {
        None => Ok(()),
        Some(Ok(begun)) => {
            let mut responses = begun.into_inner();
            let followed = follow(&mut responses, &mut last, &progress);
            tokio::select! {
                // As above.
                biased;
                _ = &mut interrupted => Ok(()),
                followed = followed => followed.map_err(|status| asked.failure(&status)),
            }
        }
        Some(Err(status)) => {
            let Some(problems) = problems(&status, file) else {
                return Err(asked.failure(&status));
            };
            complain(&problems);
            return Ok(false);
        }
    };
    progress.clear();
    if last.is_last && elapsed(&last).as_secs_f64().round() < f64::from(seconds) {
        complain(
            "note: the trial ended early: the instance reloaded its policies or is stopping\n",
        );
    }
    let report = match format {
        Format::Text => text(&last, file),
        Format::Json => control::to_json("TryPoliciesResponse", &last),
    };
    let is_printed = print(&report);
    ended.map(|()| is_printed)
}

/// The report of a trial that has not begun.
fn nothing() -> TryPoliciesResponse {
    TryPoliciesResponse {
        elapsed: Some(prost_types::Duration::default()),
        is_last: false,
        current: Some(Outcome::default()),
        candidate: Some(Outcome::default()),
        newly_kept: Some(Change::default()),
        newly_dropped: Some(Change::default()),
    }
}

/// Keeps the last message of a trial, and shows each, until the trial ends.
async fn follow(
    responses: &mut Streaming<TryPoliciesResponse>,
    last: &mut TryPoliciesResponse,
    progress: &Progress,
) -> Result<(), Status> {
    while let Some(response) = responses.message().await? {
        *last = response;
        progress.show(last);
    }
    Ok(())
}

/// The mistakes in the policies, if the instance reports any.
fn problems(status: &Status, file: &Path) -> Option<String> {
    let details = tonic_types::Status::decode(status.details()).ok()?;
    let is_ours = |any: &&prost_types::Any| any.type_url.ends_with(DIAGNOSTICS);
    let found = details.details.iter().find(is_ours)?;
    let found = Diagnostics::decode(&found.value[..]).ok()?;
    let mut text = String::new();
    let file = file.display().to_string();
    for diagnostic in &found.diagnostics {
        // A remark about the whole list has no place.
        let file = if diagnostic.line > 0 { file.as_str() } else { "" };
        text.push_str(&told(file, diagnostic));
    }
    Some(text)
}

/// A mistake as a line, and its hint as a second one. `file` is the file with the mistake, or
/// empty.
pub(super) fn told(file: &str, diagnostic: &Diagnostic) -> String {
    let Diagnostic { line, column, severity, message, hint, .. } = diagnostic;
    let severity = match Severity::try_from(*severity) {
        Ok(Severity::Warning) => "warning",
        Ok(Severity::Note) => "note",
        _ => "error",
    };
    let place = match config::visible(file) {
        file if file.is_empty() => file,
        file => format!("{file}:{line}:{column}: "),
    };
    let mut text = format!("{place}{severity}: {}\n", config::visible(message));
    if !hint.is_empty() {
        let _ = writeln!(text, "help: {}", config::visible(hint));
    }
    text
}
