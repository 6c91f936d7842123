//! `TryPolicies`: a trial for one client, which reports the counts once a second.
//!
//! Each trial has a task. It never waits for the client to read: each message has all counts since
//! the trial began, so a message that does not fit is left out. The trial ends after its duration,
//! when a reload ends it, when the client disconnects, and when the service stops.

use std::{sync::Arc, time::Duration};

use prost::Message as _;
use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout},
};
use tonic::{Code, Status};

use super::Admin;
use crate::{
    control::{
        Diagnostic, Diagnostics, TryPoliciesRequest, TryPoliciesResponse, figures,
        try_policies_response::{self, PolicyOutcome},
    },
    reload::{Change, NoTrial, Outcome, Trial, describe_listed, left_out},
    supervise::Task,
};

/// The duration of a trial if the request gives none.
const DURATION: Duration = Duration::from_secs(30);
/// The longest duration of a trial or a recording.
const DURATION_MAX: Duration = Duration::from_secs(3600);
/// The time between two messages.
const PERIOD: Duration = Duration::from_secs(1);
/// The interval of checks whether a reload has ended the trial.
const LOOK: Duration = Duration::from_millis(100);
/// How long the last message of a stream may wait for the client to read.
pub(super) const LAST_WAIT: Duration = Duration::from_secs(5);
/// The most bytes of mistakes in status details. They are sent in a header, and some clients refuse
/// headers of more than 8 KiB.
const DETAILS_BYTES_MAX: usize = 4 << 10;
const MESSAGE_CHARS_MAX: usize = 300;

/// The messages of a stream.
type Answers = mpsc::Sender<Result<TryPoliciesResponse, Status>>;

impl Admin {
    /// Checks that a trial or a recording may start.
    pub(super) fn permit_stream(&self) -> Result<(), Status> {
        if *self.streams_end.borrow() {
            return Err(Status::unavailable("the service is shutting down"));
        }
        Ok(())
    }

    /// Starts a trial, and returns the stream of its messages.
    pub(super) async fn try_policies(
        self: &Arc<Self>,
        request: TryPoliciesRequest,
    ) -> Result<mpsc::Receiver<Result<TryPoliciesResponse, Status>>, Status> {
        self.permit_lifecycle()?;
        self.permit_stream()?;
        let duration = duration(request.duration, DURATION)?;
        let (answers, stream) = mpsc::channel(1);
        let (begun, outcome) = oneshot::channel();
        // A task from the start, so that a trial also ends if the client disconnects while it
        // begins.
        let admin = Arc::clone(self);
        tokio::spawn(async move {
            let supervisor = Arc::clone(&admin.supervisor);
            let trying = admin.try_out(request.policies, duration, begun, answers);
            // A panic is counted. The trial then stays until the next reload.
            let _ = supervisor.contained(Task::Admin, trying).await;
        });
        outcome.await.unwrap_or_else(|_| Err(Status::internal("internal error")))?;
        Ok(stream)
    }

    async fn try_out(
        self: Arc<Self>,
        policies: String,
        duration: Duration,
        begun: oneshot::Sender<Result<(), Status>>,
        answers: Answers,
    ) {
        let reload = Arc::clone(&self.reload);
        let trial = spawn_blocking(move || reload.begin_trial(&policies)).await;
        let trial = match trial.unwrap_or(Err(NoTrial::Panicked)) {
            Ok(trial) => trial,
            Err(refused) => {
                // Fails if the client has disconnected.
                let _ = begun.send(Err(status(&refused)));
                return;
            }
        };
        let _ = begun.send(Ok(()));
        let began = Instant::now();
        let is_stopping = self.tell(&trial, (began, duration), &answers).await;
        // While the service stops, walking the whole window once more is not worth it.
        if !is_stopping {
            let (reload, trial) = (Arc::clone(&self.reload), Arc::clone(&trial));
            let _ = spawn_blocking(move || reload.end_trial(&trial)).await;
        }
        let last = response(&trial, began.elapsed(), true);
        let _ = timeout(LAST_WAIT, answers.send(Ok(last))).await;
    }

    /// Reports the counts until the trial ends. Returns whether the service is stopping.
    async fn tell(
        &self,
        trial: &Trial,
        (began, duration): (Instant, Duration),
        answers: &Answers,
    ) -> bool {
        let mut stops = self.streams_end.subscribe();
        let mut periods = interval_at(began + PERIOD, PERIOD);
        let mut looks = interval_at(began + LOOK, LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // The ends of the trial are checked before sending messages.
                biased;
                _ = stops.wait_for(|stops| *stops) => return true,
                () = sleep_until(began + duration) => return false,
                () = answers.closed() => return false,
                _ = looks.tick() => if trial.is_over() {
                    return false;
                },
                _ = periods.tick() => {
                    let _ = answers.try_send(Ok(response(trial, began.elapsed(), false)));
                }
            }
        }
    }
}

/// The duration that a request asks for, or the default.
pub(super) fn duration(
    named: Option<prost_types::Duration>,
    default: Duration,
) -> Result<Duration, Status> {
    let Some(named) = named else { return Ok(default) };
    let duration = figures::length(&named).filter(|it| !it.is_zero() && *it <= DURATION_MAX);
    duration
        .ok_or_else(|| Status::invalid_argument("duration: must be above 0 and at most an hour"))
}

fn status(refused: &NoTrial) -> Status {
    match refused {
        NoTrial::Invalid(diagnostics) => {
            invalid(describe_listed(diagnostics), diagnostics.omitted())
        }
        NoTrial::Running => Status::failed_precondition(refused.to_string()),
        NoTrial::Panicked => Status::internal(refused.to_string()),
    }
}

/// The answer to policies with errors, with as many of their problems as fit. `omitted` more were
/// found and not listed.
fn invalid(mut diagnostics: Vec<Diagnostic>, omitted: usize) -> Status {
    // If only some fit, errors come before warnings.
    diagnostics.sort_by_key(|diagnostic| diagnostic.severity);
    let first = diagnostics.first().map_or_else(String::new, |first| {
        let Diagnostic { file, line, column, message, .. } = first;
        format!("{file}:{line}:{column}: {message}")
    });
    let first: String = first.chars().take(MESSAGE_CHARS_MAX).collect();
    let message = format!("the policies have errors; the first is {first}");
    let found = diagnostics.len() + omitted;
    let mut room = DETAILS_BYTES_MAX - left_out(usize::MAX).encoded_len() - 4;
    diagnostics.retain(|diagnostic| {
        let left = room.checked_sub(diagnostic.encoded_len() + 4);
        room = left.unwrap_or(0);
        left.is_some()
    });
    diagnostics.sort_by_key(|diagnostic| (diagnostic.line, diagnostic.column));
    if diagnostics.len() < found {
        diagnostics.push(left_out(found - diagnostics.len()));
    }
    let details = tonic_types::Status {
        code: Code::InvalidArgument.into(),
        message: message.clone(),
        details: vec![prost_types::Any {
            type_url: "type.googleapis.com/tailwater.control.v1.Diagnostics".to_owned(),
            value: Diagnostics { diagnostics }.encode_to_vec(),
        }],
    };
    Status::with_details(Code::InvalidArgument, message, details.encode_to_vec().into())
}

fn response(trial: &Trial, elapsed: Duration, is_last: bool) -> TryPoliciesResponse {
    let report = trial.report();
    TryPoliciesResponse {
        elapsed: elapsed.try_into().ok(),
        is_last,
        current: Some(outcome(report.current)),
        candidate: Some(outcome(report.candidate)),
        newly_kept: Some(change(&report.newly_kept)),
        newly_dropped: Some(change(&report.newly_dropped)),
    }
}

fn outcome(outcome: Outcome) -> try_policies_response::Outcome {
    let policies = outcome.policies.into_iter().map(|(policy, of_policy)| PolicyOutcome {
        policy,
        matched_traces: of_policy.matched_traces,
        kept_traces: of_policy.kept.traces,
        kept_spans: of_policy.kept.spans,
        kept_bytes: of_policy.kept.bytes,
    });
    try_policies_response::Outcome {
        decided_traces: outcome.decided.traces,
        decided_spans: outcome.decided.spans,
        kept_traces: outcome.kept.traces,
        kept_spans: outcome.kept.spans,
        kept_bytes: outcome.kept.bytes,
        policies: policies.collect(),
    }
}

fn change(change: &Change) -> try_policies_response::Change {
    try_policies_response::Change {
        traces: change.sum.traces,
        spans: change.sum.spans,
        bytes: change.sum.bytes,
        examples: change.examples.iter().map(ToString::to_string).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(status: &Status) -> Vec<Diagnostic> {
        let details = tonic_types::Status::decode(status.details()).expect("details");
        assert!(details.details[0].value.len() <= DETAILS_BYTES_MAX);
        Diagnostics::decode(&details.details[0].value[..]).expect("decodes").diagnostics
    }

    #[test]
    fn details_say_how_many_problems_are_left_out() {
        let problem = |line| Diagnostic { line, message: "x".repeat(100), ..Diagnostic::default() };
        for (found, omitted) in [(1, 0), (20, 0), (100, 0), (1_000, 7), (1, 3)] {
            let status = invalid((1..=found).map(problem).collect(), omitted);
            let mut listed = listed(&status);
            let note = listed.pop_if(|last| last.line == 0);
            let rest = found as usize + omitted - listed.len();
            let said = note.map(|note| note.message);
            let expected = (rest > 0).then(|| format!("problems that are not listed here: {rest}"));
            assert_eq!(said, expected, "{found} {omitted}");
        }
    }
}
