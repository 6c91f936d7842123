//! `tailwater record --output FILE`: records a share of whole traces, kept and dropped alike, from
//! a running instance, for `replay`.
//!
//! Each trace is written when it is complete, so the file can be read however the recording ends:
//! by time, by size, by Ctrl-C, by the end of the instance or the connection, or by a full disk.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    pin::{Pin, pin},
};

use clap::Args;
use tokio::{
    signal::ctrl_c,
    time::{Duration, Instant},
};
use tonic::{Status, Streaming};

use super::{
    complain,
    instance::{self, Failure, Instance},
    print,
};
use crate::{
    config,
    control::{
        RecordRequest, RecordResponse,
        figures::{bytes, count},
        record_response::{Event, Part, Summary},
    },
    trace_files::RecordFile,
};

/// Options of `record`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// File to write; an existing file is replaced
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Share of all traces in per cent, above 0 and at most 100
    #[arg(long, value_name = "P", default_value_t = 100.0, value_parser = percentage)]
    percentage: f64,
    /// Length of the recording in seconds
    #[arg(long, value_name = "N", default_value_t = 60,
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Most MiB of traces to record
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_mib: Option<u32>,
    #[command(flatten)]
    instance: Instance,
}

fn percentage(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| *number > 0.0 && *number <= 100.0);
    number.ok_or_else(|| "a number over 0, at most 100".to_owned())
}

/// A recording that is being received.
struct Arriving {
    file: RecordFile,
    traces: u64,
    spans: u64,
    bytes: u64,
    /// Spans so far of the trace that is being received.
    trace_spans: u64,
    trace_bytes: u64,
    shown_at: Option<Instant>,
}

impl Arriving {
    fn new(file: RecordFile) -> Self {
        Arriving {
            file,
            traces: 0,
            spans: 0,
            bytes: 0,
            trace_spans: 0,
            trace_bytes: 0,
            shown_at: None,
        }
    }

    fn part(&mut self, part: &Part) -> io::Result<()> {
        self.file.add(&part.request);
        self.trace_bytes += part.request.len() as u64;
        if let Some(details) = part.decision.as_ref().and_then(|it| it.details.as_ref()) {
            self.trace_spans = details.spans;
        }
        if part.is_last_of_trace {
            self.file.end_trace()?;
            self.traces += 1;
            self.spans += std::mem::take(&mut self.trace_spans);
            self.bytes += std::mem::take(&mut self.trace_bytes);
        }
        Ok(())
    }

    fn sums(&self) -> String {
        let (traces, spans) = (count(self.traces), count(self.spans));
        format!("{traces} traces, {spans} spans, {}", bytes(self.bytes))
    }

    /// Shows the progress on a terminal, a few times a second.
    fn show(&mut self) {
        const PERIOD: Duration = Duration::from_millis(200);
        if !io::stderr().is_terminal() || self.shown_at.is_some_and(|at| at.elapsed() < PERIOD) {
            return;
        }
        self.shown_at = Some(Instant::now());
        // An error is ignored: the line is only for a terminal.
        let _ = write!(io::stderr(), "\rrecorded {}\x1b[K", self.sums());
    }

    fn clear(&self) {
        if self.shown_at.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }

    /// Writes the parts that arrive, until the recording ends or `interrupted` does.
    async fn take(
        &mut self,
        parts: &mut Streaming<RecordResponse>,
        mut interrupted: Pin<&mut impl Future>,
    ) -> Ended {
        loop {
            let message = tokio::select! {
                // Ctrl-C comes first: a person who wants to stop does not wait for more parts.
                biased;
                _ = &mut interrupted => return Ended::Early,
                message = parts.message() => message,
            };
            match message.map(|message| message.and_then(|message| message.event)) {
                Ok(Some(Event::Part(part))) => {
                    if let Err(problem) = self.part(&part) {
                        return Ended::Unwritten(problem);
                    }
                    self.show();
                }
                Ok(Some(Event::Summary(summary))) => return Ended::With(summary),
                Ok(None) => return Ended::Failed(Status::unavailable("the summary is missing")),
                Err(status) => return Ended::Failed(status),
            }
        }
    }

    /// Notes missing traces in the file, so that estimates from it are correct.
    fn correct(&mut self, percentage: f64, summary: &Summary) -> io::Result<()> {
        let skipped = summary.skipped_traces;
        if skipped == 0 || self.traces == 0 {
            return Ok(());
        }
        let percentage = percentage * self.traces as f64 / (self.traces + skipped) as f64;
        complain(&format!(
            "warning: {skipped} traces are missing, because they came faster than they were read, \
             because memory was short, or because a span is too large. The file says that it has \
             {percentage:.3} % of all traces\n"
        ));
        self.file.correct(percentage)
    }
}

/// How a recording has ended.
enum Ended {
    /// By itself.
    With(Summary),
    /// By Ctrl-C.
    Early,
    /// The instance or the connection has failed.
    Failed(Status),
    /// The file cannot be written.
    Unwritten(io::Error),
}

/// Records until the end or Ctrl-C. Returns whether all went well.
pub fn run(options: &Options) -> bool {
    instance::run(record(options))
}

async fn record(options: &Options) -> Result<bool, Failure> {
    let &Options { ref output, percentage, seconds, max_mib, ref instance } = options;
    let mut asked = instance.client()?;
    let request = RecordRequest {
        percentage: Some(percentage),
        duration: Some(prost_types::Duration { seconds: seconds.into(), nanos: 0 }),
        max_bytes: u64::from(max_mib.unwrap_or(0)) << 20,
    };
    // The same future from the beginning, so that no signal is missed between two messages.
    let mut interrupted = pin!(ctrl_c());
    let begun = tokio::select! {
        // Ctrl-C comes first: a person who wants to stop does not wait for the answer.
        biased;
        _ = &mut interrupted => {
            return Ok(print("recorded nothing: the instance had not answered yet\n"));
        }
        begun = asked.client.record(request) => begun,
    };
    let mut parts = begun.map_err(|status| asked.failure(&status))?.into_inner();
    let name = config::visible(&output.display().to_string());
    let cannot_write = |problem: io::Error| {
        complain(&format!("error: cannot write {name}: {problem}\n"));
    };
    // Created only after the instance has agreed, because this replaces an existing recording.
    let mut arriving = match RecordFile::create(output, percentage) {
        Ok(file) => Arriving::new(file),
        Err(problem) => {
            cannot_write(problem);
            return Ok(false);
        }
    };
    let ended = arriving.take(&mut parts, interrupted).await;
    arriving.clear();
    let corrected = match &ended {
        Ended::With(summary) => arriving.correct(percentage, summary),
        _ => Ok(()),
    };
    let is_printed = print(&format!("recorded {} to {name}\n", arriving.sums()));
    let ended = corrected.map_or_else(Ended::Unwritten, |()| ended);
    match ended {
        Ended::With(_) | Ended::Early => Ok(is_printed),
        Ended::Failed(status) => Err(asked.failure(&status)),
        Ended::Unwritten(problem) => {
            cannot_write(problem);
            Ok(false)
        }
    }
}
