//! Builds the control API's descriptions of decisions.

use prost_types::{Duration, Timestamp};

use super::Admin;
use crate::{
    clock,
    control::{
        self,
        decision::{Details, State},
    },
    decisions::{Decision, Logged},
    sampler::{Lookup, Pending},
    trace::{Randomness, TraceId, Trigger},
};

/// A wall-clock time, from Unix milliseconds.
pub(super) fn timestamp(millis: u64) -> Timestamp {
    Timestamp {
        seconds: i64::try_from(millis / 1_000).unwrap_or(i64::MAX),
        nanos: (millis % 1_000 * 1_000_000) as i32,
    }
}

fn duration(nanos: u64) -> Option<Duration> {
    std::time::Duration::from_nanos(nanos).try_into().ok()
}

fn trigger(trigger: Trigger) -> control::decision::Trigger {
    use control::decision::Trigger as Shown;
    match trigger {
        Trigger::DecisionWait => Shown::DecisionWait,
        Trigger::RootReceived => Shown::RootReceived,
        Trigger::Memory => Shown::Memory,
        Trigger::TraceLimit => Shown::TraceLimit,
        Trigger::Shutdown => Shown::Shutdown,
    }
}

/// A decision without its details. `name` is the name of the credited policy.
fn decision(
    trace_id: TraceId,
    made: &Decision,
    randomness: Randomness,
    name: &str,
) -> control::Decision {
    let verdict = made.verdict;
    let state = if verdict.kept { State::Kept } else { State::Dropped };
    control::Decision {
        trace_id: trace_id.to_string(),
        state: state.into(),
        policy: name.to_owned(),
        trigger: trigger(made.trigger).into(),
        threshold: verdict
            .threshold
            .matches()
            .then(|| format!("{:014x}", verdict.threshold.bits())),
        percentage: verdict.threshold.percentage(),
        randomness: randomness.to_string(),
        details: None,
    }
}

impl Admin {
    /// A logged decision with its details.
    pub(super) fn decided(&self, logged: &Logged) -> control::Decision {
        // The plan is read after the decision was logged, so it has the decision's policies.
        let plan = self.sampler.plan();
        let Logged { record, matched, shadow_matched, decided_at } = logged;
        let names = |policies: &[_]| -> Vec<_> {
            policies.iter().map(|&policy| plan.name(policy).to_owned()).collect()
        };
        let details = Details {
            matched: names(matched),
            shadow_matched: names(shadow_matched),
            spans: record.spans.into(),
            bytes: record.bytes.into(),
            duration: duration(record.duration_nanos),
            decision_time: Some(timestamp(*decided_at)),
            root_received: record.root_received,
            due_time: None,
        };
        let name = plan.name(record.decision.verdict.policy);
        let described = decision(record.trace_id, &record.decision, record.randomness, name);
        control::Decision { details: Some(details), ..described }
    }

    /// The knowledge about a trace; `None` if there is none.
    pub(super) fn explain(&self, trace_id: TraceId) -> Option<control::Decision> {
        let looked_up = self.sampler.look_up(self.clock.now(), trace_id);
        Some(match looked_up {
            Lookup::Unknown => return None,
            Lookup::Pending(pending) => self.pending(trace_id, &pending),
            Lookup::Decided(made, None) => {
                let plan = self.sampler.plan();
                let randomness = made.explicit_randomness.unwrap_or_else(|| trace_id.randomness());
                decision(trace_id, &made, randomness, plan.name(made.verdict.policy))
            }
            Lookup::Decided(_, Some(logged)) => self.decided(&logged),
        })
    }

    fn pending(&self, trace_id: TraceId, pending: &Pending) -> control::Decision {
        let Pending { facts, randomness, matched, shadow_matched, due_in_millis } = pending;
        let plan = self.sampler.plan();
        let names = |policies: &[_]| -> Vec<_> {
            policies.iter().map(|&policy| plan.name(policy).to_owned()).collect()
        };
        let details = Details {
            matched: names(matched),
            shadow_matched: names(shadow_matched),
            spans: facts.spans.into(),
            bytes: facts.bytes.into(),
            duration: duration(facts.duration_nanos()),
            decision_time: None,
            root_received: facts.root_seen,
            due_time: Some(timestamp(clock::unix_millis() + u64::from(*due_in_millis))),
        };
        control::Decision {
            trace_id: trace_id.to_string(),
            state: State::Pending.into(),
            randomness: randomness.to_string(),
            details: Some(details),
            ..control::Decision::default()
        }
    }
}
