//! `tailwater explain TRACE_ID`: why a running instance kept or dropped a trace, in sentences.

use std::{fmt::Write as _, time::Duration};

use clap::Args;
use prost_types::Timestamp;
use tonic::Code;

use super::{
    complain,
    instance::{self, Instance, soon},
    print,
};
use crate::{
    clock,
    control::{
        Decision, ExplainRequest,
        decision::{Details, State, Trigger},
    },
};

/// Says why a trace was kept or dropped.
#[derive(Args, Debug)]
pub struct Options {
    /// The id of the trace, as any tool shows it
    trace_id: String,
    #[command(flatten)]
    instance: Instance,
}

/// Asks the instance and prints its answer. Returns whether the trace is known.
pub fn run(options: &Options) -> bool {
    instance::run(async {
        let mut asked = options.instance.client()?;
        let request = ExplainRequest { trace_id: options.trace_id.clone() };
        match asked.client.explain(soon(request)).await {
            Ok(answer) => {
                let decision = answer.into_inner().decision.unwrap_or_default();
                Ok(print(&explain(&decision, clock::unix_millis())))
            }
            Err(status) if status.code() == Code::NotFound => {
                complain(UNKNOWN);
                Ok(false)
            }
            Err(status) => Err(asked.failure(&status)),
        }
    })
}

const UNKNOWN: &str = "\
error: the instance does not know this trace
Its spans went to another instance, have not arrived yet, or its decision is no longer remembered \
(sampling.decision_cache_ttl).
";

/// The answer in sentences. `now` is in Unix milliseconds.
fn explain(decision: &Decision, now: u64) -> String {
    let mut text = format!("The trace {} ", decision.trace_id);
    match decision.state() {
        State::Pending => text.push_str("is not decided yet.\n"),
        State::Kept => kept(decision, &mut text),
        State::Dropped | State::Unspecified => dropped(decision, &mut text),
    }
    let Some(details) = &decision.details else {
        text.push_str(
            "The details of the decision are no longer in the decision log \
             (sampling.decision_log_size).\n",
        );
        why_then(decision.trigger(), None, &mut text);
        return text;
    };
    if decision.state() == State::Pending {
        pending(details, now, &mut text);
    } else {
        others(decision, details, &mut text);
        why_then(decision.trigger(), details.decision_time.as_ref(), &mut text);
    }
    contents(decision.state(), details, &mut text);
    text
}

fn kept(decision: &Decision, text: &mut String) {
    let Decision { policy, percentage, .. } = decision;
    let _ = writeln!(
        text,
        "was kept by the policy `{policy}`, which keeps {percentage} % of such traces."
    );
    if *percentage < 100.0 {
        chance(decision, "is at or above", text);
    }
}

fn dropped(decision: &Decision, text: &mut String) {
    let Decision { policy, percentage, threshold, .. } = decision;
    let _ = match threshold {
        None if policy == "none" => writeln!(text, "was dropped: no policy matched it."),
        None => writeln!(
            text,
            "was dropped by the policy `{policy}`, which drops every trace that it matches."
        ),
        Some(_) => writeln!(
            text,
            "was dropped: of the policies that matched, `{policy}` keeps most, {percentage} % of \
             such traces, and this one was not among them."
        ),
    };
    if threshold.is_some() {
        chance(decision, "is below", text);
    }
}

/// The two numbers that were compared.
fn chance(decision: &Decision, relation: &str, text: &mut String) {
    if let Decision { threshold: Some(threshold), randomness, .. } = decision {
        let _ = writeln!(text, "Its randomness {randomness} {relation} the threshold {threshold}.");
    }
}

/// The policies that matched besides the one that is credited.
fn others(decision: &Decision, details: &Details, text: &mut String) {
    let matched = details.matched.iter().filter(|name| **name != decision.policy);
    if let Some(names) = listed(matched) {
        let _ = writeln!(text, "{names} matched as well.");
    }
    if let Some(names) = listed(details.shadow_matched.iter()) {
        let _ = writeln!(text, "In the shadow, {names} matched, and decided nothing.");
    }
}

fn pending(details: &Details, now: u64, text: &mut String) {
    let _ = match listed(details.matched.iter()) {
        Some(names) => writeln!(text, "So far {names} would match."),
        None => writeln!(text, "So far no policy would match."),
    };
    if let Some(names) = listed(details.shadow_matched.iter()) {
        let _ = writeln!(text, "In the shadow, {names} would match.");
    }
    if let Some(due) = &details.due_time {
        let left = Duration::from_millis(millis(due).saturating_sub(now));
        let _ = writeln!(
            text,
            "It will be decided in {:.1} s at the latest, at {}.",
            left.as_secs_f64(),
            time(due)
        );
    }
}

/// When it was decided, and why at that moment.
fn why_then(trigger: Trigger, at: Option<&Timestamp>, text: &mut String) {
    let why = match trigger {
        Trigger::DecisionWait => "decision_wait had passed since its first span",
        Trigger::RootReceived => {
            "decision_wait_after_root_received had passed since its root span arrived"
        }
        Trigger::Memory => "memory was short, and it was among the oldest traces",
        Trigger::TraceLimit => "it had reached the largest size of a trace",
        Trigger::Shutdown => "the service was stopping",
        Trigger::Unspecified => return,
    };
    let _ = match at {
        Some(at) => writeln!(text, "It was decided at {}, because {why}.", time(at)),
        None => writeln!(text, "It was decided because {why}."),
    };
}

/// What had arrived.
fn contents(state: State, details: &Details, text: &mut String) {
    let Details { spans, bytes, root_received, .. } = details;
    let (had, until) = match state {
        State::Pending => ("has", "so far"),
        _ => ("had", "by then"),
    };
    let spans = span_count(*spans);
    let duration = details.duration.and_then(|lasted| Duration::try_from(lasted).ok());
    let millis = duration.unwrap_or_default().as_secs_f64() * 1e3;
    let root = if *root_received { "with" } else { "without" };
    let _ = writeln!(
        text,
        "It {had} {spans} of {bytes} bytes {until}, {root} a root span, over {millis} ms."
    );
}

/// Names in a sentence: `a`, `b` and `c`.
fn listed<'a>(names: impl Iterator<Item = &'a String>) -> Option<String> {
    let names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
    let (last, first) = names.split_last()?;
    Some(if first.is_empty() { last.clone() } else { format!("{} and {last}", first.join(", ")) })
}

fn millis(at: &Timestamp) -> u64 {
    let seconds = u64::try_from(at.seconds).unwrap_or_default();
    let millis = u64::try_from(at.nanos / 1_000_000).unwrap_or_default();
    seconds.saturating_mul(1_000).saturating_add(millis)
}

/// A number of spans in words.
pub(super) fn span_count(spans: u64) -> String {
    if spans == 1 { "1 span".to_owned() } else { format!("{spans} spans") }
}

/// A moment as RFC 3339.
pub(super) fn time(at: &Timestamp) -> String {
    let since = Duration::from_millis(millis(at));
    let at = std::time::UNIX_EPOCH.checked_add(since).unwrap_or(std::time::UNIX_EPOCH);
    humantime::format_rfc3339_millis(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Option<Timestamp> {
        Some(Timestamp { seconds, nanos: 250_000_000 })
    }

    fn details() -> Details {
        Details {
            matched: vec!["errors".into(), "half".into(), "slow".into()],
            shadow_matched: vec!["try".into()],
            spans: 7,
            bytes: 3_482,
            duration: Some(prost_types::Duration { seconds: 1, nanos: 12_500_000 }),
            decision_time: at(1_700_000_000),
            root_received: true,
            due_time: None,
        }
    }

    #[test]
    fn a_kept_trace() {
        let decision = Decision {
            trace_id: "0af7651916cd43dd8448eb211c80319c".into(),
            state: State::Kept.into(),
            policy: "half".into(),
            trigger: Trigger::RootReceived.into(),
            threshold: Some("80000000000000".into()),
            percentage: 50.0,
            randomness: "eb211c80319c00".into(),
            details: Some(details()),
        };
        assert_eq!(
            explain(&decision, 0),
            "The trace 0af7651916cd43dd8448eb211c80319c was kept by the policy `half`, which keeps \
             50 % of such traces.\n\
             Its randomness eb211c80319c00 is at or above the threshold 80000000000000.\n\
             `errors` and `slow` matched as well.\n\
             In the shadow, `try` matched, and decided nothing.\n\
             It was decided at 2023-11-14T22:13:20.250Z, because \
             decision_wait_after_root_received had passed since its root span arrived.\n\
             It had 7 spans of 3482 bytes by then, with a root span, over 1012.5 ms.\n"
        );
        let forgotten = Decision { details: None, percentage: 100.0, ..decision };
        let text = explain(&forgotten, 0);
        assert!(text.contains("no longer in the decision log"), "{text}");
        assert!(!text.contains("randomness"), "nothing is left to chance: {text}");
    }

    #[test]
    fn dropped_traces() {
        let dropped = |policy: &str, threshold: Option<&str>| {
            let decision = Decision {
                state: State::Dropped.into(),
                policy: policy.into(),
                threshold: threshold.map(str::to_owned),
                percentage: if threshold.is_some() { 12.5 } else { 0.0 },
                ..Decision::default()
            };
            explain(&decision, 0)
        };
        assert!(dropped("none", None).contains("was dropped: no policy matched it."));
        assert!(dropped("noise", None).contains("by the policy `noise`, which drops every trace"));
        let unlucky = dropped("some", Some("e0000000000000"));
        assert!(unlucky.contains("`some` keeps most, 12.5 % of such traces"), "{unlucky}");
        assert!(unlucky.contains("is below the threshold e0000000000000"), "{unlucky}");
    }

    #[test]
    fn a_pending_trace() {
        let details =
            Details { due_time: at(1_700_000_005), spans: 1, shadow_matched: vec![], ..details() };
        let decision = Decision {
            state: State::Pending.into(),
            details: Some(details),
            ..Decision::default()
        };
        let text = explain(&decision, 1_700_000_000_000);
        assert!(text.contains("So far `errors`, `half` and `slow` would match."), "{text}");
        assert!(
            text.contains("decided in 5.2 s at the latest, at 2023-11-14T22:13:25.250Z"),
            "{text}"
        );
        assert!(text.contains("It has 1 span of 3482 bytes so far"), "{text}");
    }
}
