//! A decision in sentences, for the page and for `tailwater explain`.

use super::{
    Decision,
    decision::{Details, State, Trigger},
    figures::{bytes, count, duration, moment, percentage},
};

impl Decision {
    /// Why the trace was kept or dropped, what else matched, when it was decided, and why then.
    pub fn sentences(&self) -> Vec<String> {
        let mut sentences = vec![self.outcome()];
        match &self.details {
            Some(details) => {
                sentences.extend(self.others(details));
                sentences.push(self.moment(details));
                sentences.push(self.size(details));
            }
            None if self.state() != State::Pending => sentences.push(
                "The decision log no longer has its details: what else matched, and when it was \
                 decided."
                    .into(),
            ),
            None => {}
        }
        sentences
    }

    fn outcome(&self) -> String {
        let Decision { trace_id, policy, .. } = self;
        let share = percentage(self.percentage);
        match self.state() {
            State::Kept => {
                format!("Trace {trace_id} was kept by policy \"{policy}\" (keeps {share}).")
            }
            State::Dropped if policy == "none" => {
                format!("Trace {trace_id} was dropped: no policy matched it.")
            }
            State::Dropped if self.threshold.is_some() => format!(
                "Trace {trace_id} was dropped: policy \"{policy}\" keeps {share} of such traces, \
                 and the randomness of this one is below the threshold."
            ),
            State::Dropped => format!(
                "Trace {trace_id} was dropped by policy \"{policy}\", which keeps no such trace."
            ),
            State::Pending => format!("Trace {trace_id} is not decided yet."),
            State::Unspecified => format!("Nothing is known about trace {trace_id}."),
        }
    }

    /// The policies that matched besides the one that is credited.
    fn others(&self, details: &Details) -> Option<String> {
        let others: Vec<_> = details.matched.iter().filter(|name| **name != self.policy).collect();
        let quoted: Vec<_> = others.iter().map(|name| format!("\"{name}\"")).collect();
        let names = quoted.join(", ");
        Some(match (self.state(), others.len()) {
            (_, 0) => return None,
            (State::Pending, _) => format!("Policies that match so far: {names}."),
            (_, 1) => format!("Policy {names} matched too."),
            _ => format!("Policies {names} matched too."),
        })
    }

    fn moment(&self, details: &Details) -> String {
        let at = |when: &Option<prost_types::Timestamp>| match when {
            Some(when) => format!(" at {}", moment(when)),
            None => String::new(),
        };
        if self.state() == State::Pending {
            return format!("It will be decided{} at the latest.", at(&details.due_time));
        }
        let why = match self.trigger() {
            Trigger::DecisionWait => "because decision_wait had passed since its first span",
            Trigger::RootReceived => {
                "because decision_wait_after_root_received had passed since its root span"
            }
            Trigger::Memory => "early, because memory in use was above the soft limit",
            Trigger::TraceLimit => {
                "early, because it had reached max_trace_spans or max_trace_bytes_mib"
            }
            Trigger::Shutdown => "because the instance was shutting down",
            Trigger::Unspecified => "for an unknown reason",
        };
        format!("It was decided{}, {why}.", at(&details.decision_time))
    }

    fn size(&self, details: &Details) -> String {
        let spans = match details.spans {
            1 => "1 span".into(),
            spans => format!("{} spans", count(spans)),
        };
        let lasted = details.duration.and_then(|lasted| lasted.try_into().ok());
        let lasted = lasted.map_or_else(String::new, |it| format!(" over {}", duration(it)));
        let root = if details.root_received { "" } else { " not" };
        let (had, then) = match self.state() {
            State::Pending => ("has", "so far"),
            _ => ("had", "then"),
        };
        let size = bytes(details.bytes);
        format!("It {had} {spans} ({size}){lasted} {then}; the root span was{root} among them.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(state: State, policy: &str, threshold: Option<&str>, percentage: f64) -> Decision {
        Decision {
            trace_id: "00".into(),
            state: state.into(),
            policy: policy.into(),
            trigger: Trigger::RootReceived.into(),
            threshold: threshold.map(str::to_owned),
            percentage,
            ..Decision::default()
        }
    }

    #[test]
    fn each_outcome_has_its_sentence() {
        let first = |decision: Decision| decision.sentences().remove(0);
        let kept = decided(State::Kept, "errors", Some("0"), 100.0);
        assert_eq!(first(kept), "Trace 00 was kept by policy \"errors\" (keeps 100 %).");
        let unlucky = first(decided(State::Dropped, "base", Some("e"), 12.5));
        assert!(unlucky.contains("policy \"base\" keeps 12.5 % of such traces"), "{unlucky}");
        let vetoed = first(decided(State::Dropped, "health", None, 0.0));
        assert!(vetoed.ends_with("dropped by policy \"health\", which keeps no such trace."));
        let unmatched = first(decided(State::Dropped, "none", None, 0.0));
        assert_eq!(unmatched, "Trace 00 was dropped: no policy matched it.");
    }

    #[test]
    fn details_say_what_else_matched_when_and_why_then() {
        let details = Details {
            matched: ["errors", "slow", "base"].map(str::to_owned).into(),
            spans: 1,
            bytes: 2048,
            decision_time: Some(prost_types::Timestamp { seconds: 90, nanos: 0 }),
            duration: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
            root_received: true,
            ..Details::default()
        };
        let kept =
            Decision { details: Some(details), ..decided(State::Kept, "errors", Some("0"), 100.0) };
        let expected = [
            "Policies \"slow\", \"base\" matched too.",
            "It was decided at 1970-01-01T00:01:30Z, because decision_wait_after_root_received \
             had passed since its root span.",
            "It had 1 span (2.0 KiB) over 2s then; the root span was among them.",
        ];
        assert_eq!(kept.sentences()[1..], expected);
        let forgotten = Decision { details: None, ..kept };
        assert!(forgotten.sentences()[1].starts_with("The decision log no longer has"));
    }
}
