//! `Record`: a recording for one client.
//!
//! Each recording has a task that passes traces from the recording's buffer to the stream. The task
//! waits for the client to read, but filling the buffer never waits: traces that do not fit are
//! left out and counted. The recording ends after its duration, at `max_bytes`, when the service
//! stops, and when the client disconnects. The client then has a few seconds to read the rest.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tonic::Status;
use tracing::info;

use super::{
    Admin,
    trial::{LAST_WAIT, duration},
};
use crate::{
    control::{
        RecordRequest, RecordResponse,
        record_response::{End, Event, Part, Summary},
    },
    recording::{RECORDINGS_MAX, RecordedTrace, Recorder},
    supervise::Task,
};

/// The duration of a recording if the request gives none.
const DURATION: Duration = Duration::from_secs(60);
/// How long a client may read the rest while the service stops.
const STOP_WAIT: Duration = Duration::from_secs(2);

/// The messages of a stream.
type Answers = mpsc::Sender<Result<RecordResponse, Status>>;

impl Admin {
    /// Starts a recording, and returns the stream of its messages.
    pub(super) fn record(
        self: &Arc<Self>,
        request: &RecordRequest,
    ) -> Result<mpsc::Receiver<Result<RecordResponse, Status>>, Status> {
        if !self.enable_recording {
            let message = "recording is off; set `enable_recording = true` in [telemetry]";
            return Err(Status::permission_denied(message));
        }
        self.permit_stream()?;
        let percentage = request.percentage.unwrap_or(100.0);
        // Written so that NaN is refused too.
        if !(percentage > 0.0 && percentage <= 100.0) {
            return Err(Status::invalid_argument("percentage: must be above 0 and at most 100"));
        }
        let duration = duration(request.duration, DURATION)?;
        let recorder = self.sampler.recordings().begin(percentage / 100.0).ok_or_else(|| {
            let message = format!("{RECORDINGS_MAX} recordings are running, which is the limit");
            Status::resource_exhausted(message)
        })?;
        info!(percentage, ?duration, request.max_bytes, "recording began");
        let (answers, stream) = mpsc::channel(1);
        let recording = Recording {
            admin: Arc::clone(self),
            recorder,
            answers,
            bytes_max: request.max_bytes,
            sending: None,
            summary: Summary::default(),
        };
        let supervisor = Arc::clone(&self.supervisor);
        tokio::spawn(async move {
            // A panic is counted, and ends the recording.
            let _ = supervisor.contained(Task::Admin, recording.run(duration)).await;
        });
        Ok(stream)
    }
}

/// A recording in progress.
struct Recording {
    admin: Arc<Admin>,
    recorder: Recorder,
    answers: Answers,
    bytes_max: u64,
    /// The trace that is being sent, and how many of its requests were sent.
    sending: Option<(RecordedTrace, usize)>,
    summary: Summary,
}

/// The outcome of one step of a recording.
enum Step {
    Sent,
    /// Nothing is left.
    Done,
    /// The next trace would exceed `max_bytes`.
    Full,
    /// The client has disconnected.
    Gone,
}

impl Recording {
    /// Passes traces to the client until the recording ends.
    async fn run(mut self, duration: Duration) {
        let end = self.pass_on(duration).await;
        self.recorder.end();
        self.summary.skipped_traces += self.recorder.skipped();
        let Summary { traces, spans, bytes, skipped_traces, .. } = self.summary;
        let reason = end.map_or("CLIENT_GONE", |end| end.as_str_name());
        info!(reason, traces, spans, bytes, skipped_traces, "recording ended");
        let Some(end) = end else { return };
        let event = Some(Event::Summary(Summary { end: end.into(), ..self.summary }));
        let _ = timeout(LAST_WAIT, self.answers.send(Ok(RecordResponse { event }))).await;
    }

    /// Passes traces on for `duration`. `None` if the client has disconnected.
    async fn pass_on(&mut self, duration: Duration) -> Option<End> {
        let mut stops = self.admin.streams_end.subscribe();
        let client = self.answers.clone();
        let deadline = Instant::now() + duration;
        let (end, rest) = loop {
            let step = tokio::select! {
                // The ends of the recording are checked before more traces.
                biased;
                _ = stops.wait_for(|stops| *stops) => break (End::Shutdown, STOP_WAIT),
                () = sleep_until(deadline) => break (End::Duration, LAST_WAIT),
                () = client.closed() => return None,
                step = self.step() => step,
            };
            match step {
                Step::Sent => {}
                Step::Full => return Some(End::MaxBytes),
                Step::Done | Step::Gone => return None,
            }
        };
        self.recorder.end();
        let until = Instant::now() + rest;
        loop {
            match timeout_at(until, self.step()).await {
                Ok(Step::Sent) => {}
                Ok(Step::Done | Step::Full) => return Some(end),
                Ok(Step::Gone) => return None,
                Err(_) => break,
            }
        }
        self.summary.skipped_traces += u64::from(self.sending.is_some());
        self.summary.skipped_traces += self.recorder.discard();
        Some(end)
    }

    /// Takes the next trace, or sends the next part of the current one. Cancel-safe.
    async fn step(&mut self) -> Step {
        let Some((trace, sent)) = &mut self.sending else {
            let Some(trace) = self.recorder.next().await else { return Step::Done };
            if self.bytes_max > 0 && self.summary.bytes + bytes(&trace) > self.bytes_max {
                return Step::Full;
            }
            self.sending = Some((trace, 0));
            return Step::Sent;
        };
        let Ok(place) = self.answers.reserve().await else { return Step::Gone };
        let requests = trace.requests();
        let part = Part {
            request: requests[*sent].clone(),
            decision: (*sent == 0).then(|| self.admin.decided(&trace.decision)),
            is_last_of_trace: *sent + 1 == requests.len(),
        };
        *sent += 1;
        if part.is_last_of_trace {
            self.summary.traces += 1;
            self.summary.spans += u64::from(trace.decision.record.spans);
            self.summary.bytes += bytes(trace);
            self.sending = None;
        }
        place.send(Ok(RecordResponse { event: Some(Event::Part(part)) }));
        Step::Sent
    }
}

fn bytes(trace: &RecordedTrace) -> u64 {
    trace.requests().iter().map(|request| request.len() as u64).sum()
}
