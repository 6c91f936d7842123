//! Explains a decision in sentences, for `tailwater explain` and the page.

use std::{fmt::Write as _, time::Duration};

use prost_types::Timestamp;

use super::{
    Decision,
    decision::{Details, State, Trigger},
    figures::{length, millis, moment_exact, percentage, spans_of},
};

impl Decision {
    /// Explains whether the trace was kept, by which policy, what else matched, when it was
    /// decided, and why at that time. One sentence per line. `now` is in Unix milliseconds.
    pub(crate) fn explained(&self, now: u64) -> String {
        explain(self, now)
    }
}

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
    let policy = &decision.policy;
    let share = percentage(decision.percentage);
    let _ =
        writeln!(text, "was kept by the policy `{policy}`, which keeps {share} of such traces.");
    if decision.percentage < 100.0 {
        chance(decision, "is at or above", text);
    }
}

fn dropped(decision: &Decision, text: &mut String) {
    let Decision { policy, threshold, .. } = decision;
    let share = percentage(decision.percentage);
    let _ = match threshold {
        None if policy == "none" => writeln!(text, "was dropped: no policy matched it."),
        None => writeln!(
            text,
            "was dropped by the policy `{policy}`, which drops every trace that it matches."
        ),
        Some(_) => writeln!(
            text,
            "was dropped: of the policies that matched, `{policy}` keeps most, {share} of \
             such traces, and this one was not among them."
        ),
    };
    if threshold.is_some() {
        chance(decision, "is below", text);
    }
}

/// The randomness and the threshold that were compared.
fn chance(decision: &Decision, relation: &str, text: &mut String) {
    if let Decision { threshold: Some(threshold), randomness, .. } = decision {
        let _ = writeln!(text, "Its randomness {randomness} {relation} the threshold {threshold}.");
    }
}

/// The other policies that matched.
fn others(decision: &Decision, details: &Details, text: &mut String) {
    let matched = details.matched.iter().filter(|name| **name != decision.policy);
    if let Some(names) = listed(matched) {
        let _ = writeln!(text, "{names} matched as well.");
    }
    if let Some(names) = listed(details.shadow_matched.iter()) {
        let _ = writeln!(text, "As a shadow policy, {names} matched and decided nothing.");
    }
}

fn pending(details: &Details, now: u64, text: &mut String) {
    let _ = match listed(details.matched.iter()) {
        Some(names) => writeln!(text, "So far {names} would match."),
        None => writeln!(text, "So far no policy would match."),
    };
    if let Some(names) = listed(details.shadow_matched.iter()) {
        let _ = writeln!(text, "As a shadow policy, {names} would match.");
    }
    if let Some(due) = &details.due_time {
        let left = Duration::from_millis(millis(due).saturating_sub(now));
        let _ = writeln!(
            text,
            "It will be decided in {:.1} s at the latest, at {}.",
            left.as_secs_f64(),
            moment_exact(due)
        );
    }
}

/// When the trace was decided, and why at that time.
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
        Some(at) => writeln!(text, "It was decided at {}, because {why}.", moment_exact(at)),
        None => writeln!(text, "It was decided because {why}."),
    };
}

/// The number and size of the spans that had arrived, and whether a root span was among them.
fn contents(state: State, details: &Details, text: &mut String) {
    let Details { spans, bytes, root_received, .. } = details;
    let (had, until) = match state {
        State::Pending => ("has", "so far"),
        _ => ("had", "by then"),
    };
    let spans = spans_of(*spans);
    let duration = details.duration.as_ref().and_then(length);
    // Not through seconds, which would show 0.123 ms as 0.12300000000000001.
    let millis = duration.unwrap_or_default().as_nanos() as f64 / 1e6;
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
            duration: Some(prost_types::Duration { seconds: 1, nanos: 12_123_000 }),
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
            decision.explained(0),
            "The trace 0af7651916cd43dd8448eb211c80319c was kept by the policy `half`, which keeps \
             50 % of such traces.\n\
             Its randomness eb211c80319c00 is at or above the threshold 80000000000000.\n\
             `errors` and `slow` matched as well.\n\
             As a shadow policy, `try` matched and decided nothing.\n\
             It was decided at 2023-11-14T22:13:20.250Z, because \
             decision_wait_after_root_received had passed since its root span arrived.\n\
             It had 7 spans of 3482 bytes by then, with a root span, over 1012.123 ms.\n"
        );
        let forgotten = Decision { details: None, percentage: 100.0, ..decision };
        let text = forgotten.explained(0);
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
            decision.explained(0)
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
        let text = decision.explained(1_700_000_000_000);
        assert!(text.contains("So far `errors`, `half` and `slow` would match."), "{text}");
        assert!(
            text.contains("decided in 5.2 s at the latest, at 2023-11-14T22:13:25.250Z"),
            "{text}"
        );
        assert!(text.contains("It has 1 span of 3482 bytes so far"), "{text}");
    }
}
