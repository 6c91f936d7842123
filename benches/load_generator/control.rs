//! The protocol between the orchestrator and the processes that it starts: for each line on stdin,
//! a process answers with a line of JSON.
//!
//! A child prints one line when it is ready. Each line on its stdin asks for a lap: the counts
//! since the last lap. The end of stdin, or SIGTERM, asks for the last lap and ends the child, so
//! children do not outlive an orchestrator that was killed.

use std::{
    io::{BufRead, Write},
    net::SocketAddr,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use crate::Result;

/// The first line of `sink` and `floor`.
#[derive(Serialize, Deserialize)]
pub(crate) struct Listening {
    pub(crate) address: SocketAddr,
}

/// The first line of `load`, printed when its connections are open and before its first request.
#[derive(Serialize, Deserialize)]
pub(crate) struct Loaded {
    /// Encoded bytes of a span, with its share of resource and scope.
    pub(crate) bytes_per_span: f64,
    pub(crate) expected_kept_percent: f64,
}

/// The figures of `load` since the last lap.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LoadLap {
    pub(crate) seconds: f64,
    /// Requests that were acknowledged with OK and without rejected spans.
    pub(crate) requests: u64,
    pub(crate) spans: u64,
    pub(crate) failed_requests: u64,
    /// Requests that were sent again, with `--retry`.
    pub(crate) retries: u64,
    /// Status and message of the last failure.
    pub(crate) last_failure: Option<String>,
    /// From the time when a request was due, not when it was sent, to its acknowledgement.
    pub(crate) ack_p50_ms: f64,
    pub(crate) ack_p99_ms: f64,
    pub(crate) ack_max_ms: f64,
    /// Requests that were copied, because the same request of the last cycle was still being
    /// written.
    pub(crate) copies: u64,
}

/// The figures of `sink` or `floor` since the last lap; the floor counts no spans.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct ServerLap {
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    pub(crate) spans: u64,
    /// Requests with broken framing.
    pub(crate) malformed: u64,
}

/// The child's side of the protocol.
pub(crate) struct Control {
    lines: mpsc::Receiver<()>,
    sigterm: Signal,
}

/// A question of the orchestrator.
#[derive(PartialEq, Eq)]
pub(crate) enum Ask {
    Lap,
    End,
}

impl Control {
    /// Starts to read stdin; must be called within a runtime, because of the signal.
    pub(crate) fn new() -> Result<Self> {
        let (sender, lines) = mpsc::channel(1);
        // A thread of its own, since a blocked read of stdin cannot be cancelled. It ends with the
        // process.
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines() {
                if line.is_err() || sender.blocking_send(()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { lines, sigterm: signal(SignalKind::terminate())? })
    }

    /// Waits for the next question.
    pub(crate) async fn next(&mut self) -> Ask {
        tokio::select! {
            // The order does not matter: after a signal the orchestrator asks nothing more.
            biased;
            _ = self.sigterm.recv() => Ask::End,
            line = self.lines.recv() => if line.is_some() { Ask::Lap } else { Ask::End },
        }
    }
}

/// Prints one answer.
pub(crate) fn say(answer: &impl Serialize) -> Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, answer)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// Reads one answer.
pub(crate) fn parse<T: DeserializeOwned>(line: &str) -> Result<T> {
    serde_json::from_str(line).map_err(|error| format!("{error} in answer {line:?}").into())
}
