//! `tailwater tail`: follows the decisions of a running instance.
//!
//! As text, each decision is a line; as JSON, each is an object on a line: `WatchDecisionsResponse`
//! in protobuf's JSON form. Ctrl-C and a closed pipe end the command successfully.

use std::io::{self, Write as _};

use clap::Args;
use tonic::Request;

use super::{
    Format, complain,
    instance::{self, Asked, Failure, Instance},
};
use crate::control::{
    self, Decision, WatchDecisionsRequest, WatchDecisionsResponse,
    decision::State,
    figures::{moment_exact, spans_of},
};

/// Options of `tail`.
#[derive(Args, Debug)]
pub struct Options {
    /// Only traces that are kept
    #[arg(long, conflicts_with = "dropped")]
    kept: bool,
    /// Only traces that are dropped
    #[arg(long)]
    dropped: bool,
    /// Only decisions of this policy; repeat it for several
    #[arg(long, value_name = "NAME")]
    policy: Vec<String>,
    /// The most decisions a second; the next line says how many were left out
    #[arg(
        long,
        value_name = "N",
        default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    max_per_second: u32,
    /// Format of the output; JSON is one object per line
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    instance: Instance,
}

/// Follows decisions until Ctrl-C. Returns whether it ended without an error.
pub fn run(options: &Options) -> bool {
    instance::run(async {
        let asked = options.instance.client()?;
        tokio::select! {
            // Ctrl-C comes first, because another decision may always be ready.
            biased;
            interrupted = tokio::signal::ctrl_c() => {
                if let Err(problem) = interrupted {
                    complain(&format!("error: cannot listen for Ctrl-C: {problem}\n"));
                    return Ok(false);
                }
                Ok(true)
            }
            followed = follow(asked, options) => followed,
        }
    })
}

async fn follow(mut asked: Asked, options: &Options) -> Result<bool, Failure> {
    let states = match (options.kept, options.dropped) {
        (true, _) => vec![State::Kept.into()],
        (_, true) => vec![State::Dropped.into()],
        _ => Vec::new(),
    };
    let request = WatchDecisionsRequest {
        states,
        policies: options.policy.clone(),
        max_per_second: Some(options.max_per_second),
    };
    let watching = asked.client.watch_decisions(Request::new(request)).await;
    let mut watching = watching.map_err(|status| asked.failure(&status))?.into_inner();
    loop {
        let next = watching.message().await.map_err(|status| asked.failure(&status))?;
        let Some(seen) = next else { return Ok(true) };
        let line = match options.format {
            Format::Text => line(&seen),
            Format::Json => control::to_json("WatchDecisionsResponse", &seen),
        };
        let mut out = io::stdout().lock();
        match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => {}
            Err(problem) if problem.kind() == io::ErrorKind::BrokenPipe => return Ok(true),
            Err(problem) => {
                complain(&format!("error: cannot write to standard output: {problem}\n"));
                return Ok(false);
            }
        }
    }
}

/// Formats a decision as a line, after a line with the number of decisions left out, if any.
fn line(seen: &WatchDecisionsResponse) -> String {
    let mut line = match seen.skipped {
        0 => String::new(),
        skipped => format!("... {skipped} more\n"),
    };
    let Some(Decision { trace_id, policy, percentage, details, .. }) = &seen.decision else {
        return line;
    };
    let is_kept = seen.decision.as_ref().is_some_and(|made| made.state() == State::Kept);
    let fate = if is_kept { "kept   " } else { "dropped" };
    let at = details.as_ref().and_then(|details| details.decision_time.as_ref()).map(moment_exact);
    let at = at.unwrap_or_default();
    line += &format!("{at} {fate} {trace_id} {policy} {percentage} %");
    if let Some(details) = details {
        let (spans, bytes) = (spans_of(details.spans), details.bytes);
        line += &format!(", {spans}, {bytes} bytes, matched: {}", details.matched.join(" "));
    }
    line + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::decision::Details;

    #[test]
    fn a_line_has_what_a_person_looks_for() {
        let details = Details {
            matched: vec!["errors".into(), "half".into()],
            spans: 2,
            bytes: 300,
            decision_time: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
            ..Details::default()
        };
        let decision = Decision {
            trace_id: "0af7651916cd43dd8448eb211c80319c".into(),
            state: State::Kept.into(),
            policy: "errors".into(),
            percentage: 100.0,
            details: Some(details),
            ..Decision::default()
        };
        let seen = WatchDecisionsResponse { decision: Some(decision), skipped: 3 };
        assert_eq!(
            line(&seen),
            "... 3 more\n\
             2023-11-14T22:13:20.000Z kept    0af7651916cd43dd8448eb211c80319c errors 100 %, \
             2 spans, 300 bytes, matched: errors half\n"
        );
    }
}
