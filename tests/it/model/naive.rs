//! The naive model: whole traces of decoded spans, decided by [`super::evaluation`].

use std::collections::HashMap;

use opentelemetry_proto::tonic::{common::v1::KeyValue, trace::v1::Span};
use tailwater::{policy::PolicySpec, sampler::Limits, trace::Trigger};

use super::evaluation::{Verdict, verdict};

/// A span in the model: decoded, with its encoding and its context.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) span: Span,
    pub(super) bytes: Vec<u8>,
    pub(super) resource: Vec<KeyValue>,
    /// The encoded resource and scope, without their spans.
    pub(super) context: (Vec<u8>, Vec<u8>),
}

/// An undecided trace.
#[derive(Clone, Debug)]
pub(super) struct Buffered {
    pub(super) arrived: u64,
    root_arrived: Option<u64>,
    pub(super) spans: Vec<Stored>,
}

#[derive(Clone, Debug)]
pub(super) struct Decided {
    pub(super) verdict: Verdict,
    pub(super) trigger: Trigger,
    pub(super) at: u64,
}

#[derive(Clone, Debug)]
enum State {
    Buffered(Buffered),
    Decided(Decided),
}

/// A decision that the sampler must have made.
#[derive(Debug)]
pub(super) struct Expected {
    pub(super) verdict: Verdict,
    pub(super) trigger: Trigger,
    pub(super) lag: u64,
    pub(super) trace: Buffered,
}

/// Spans of one trace that arrived after its decision.
#[derive(Debug)]
pub(super) struct Late {
    pub(super) decided: Decided,
    pub(super) spans: Vec<Stored>,
}

/// The expected effects of a request.
#[derive(Debug, Default)]
pub(super) struct Effects {
    pub(super) decided: HashMap<[u8; 16], Expected>,
    pub(super) late: HashMap<[u8; 16], Late>,
    pub(super) rejected: u64,
    pub(super) accepted: u64,
}

#[derive(Clone)]
pub(super) struct Naive {
    pub(super) policies: Vec<PolicySpec>,
    pub(super) limits: Limits,
    traces: HashMap<[u8; 16], State>,
}

impl Naive {
    pub(super) fn new(policies: Vec<PolicySpec>, limits: Limits) -> Self {
        Naive { policies, limits, traces: HashMap::new() }
    }

    pub(super) fn ingest(&mut self, now: u64, spans: &[Stored]) -> Effects {
        let mut effects = Effects::default();
        for stored in spans {
            let Some(id) = sound_id(&stored.span) else {
                effects.rejected += 1;
                continue;
            };
            effects.accepted += 1;
            let new =
                || State::Buffered(Buffered { arrived: now, root_arrived: None, spans: vec![] });
            match self.traces.entry(id).or_insert_with(new) {
                State::Decided(decided) => {
                    let none = || Late { decided: decided.clone(), spans: Vec::new() };
                    effects.late.entry(id).or_insert_with(none).spans.push(stored.clone());
                }
                State::Buffered(trace) => {
                    trace.spans.push(stored.clone());
                    if is_root(&stored.span) {
                        trace.root_arrived.get_or_insert(now);
                    }
                    let bytes = bytes_of(&trace.spans);
                    if trace.spans.len() >= self.limits.max_trace_spans as usize
                        || bytes >= self.limits.max_trace_bytes as usize
                    {
                        let expected = self.decide(id, Trigger::TraceLimit, now, 0);
                        effects.decided.insert(id, expected);
                    }
                }
            }
        }
        effects
    }

    /// When an undecided trace is due, and why.
    pub(super) fn due(&self, trace: &Buffered) -> (u64, Trigger) {
        let waits = &self.limits.waits;
        let by_wait = trace.arrived + u64::from(waits.decision_wait);
        let by_root =
            trace.root_arrived.zip(waits.after_root).map(|(at, wait)| at + u64::from(wait));
        match by_root {
            Some(at) if at < by_wait => (at, Trigger::RootReceived),
            _ => (by_wait, Trigger::DecisionWait),
        }
    }

    /// Decides a buffered trace, for any trigger.
    pub(super) fn decide(
        &mut self,
        id: [u8; 16],
        trigger: Trigger,
        now: u64,
        lag: u64,
    ) -> Expected {
        let Some(State::Buffered(trace)) = self.traces.remove(&id) else {
            panic!("{id:02x?} was decided but is not buffered");
        };
        let forced = matches!(trigger, Trigger::Memory | Trigger::TraceLimit | Trigger::Shutdown);
        let verdict = verdict(&self.policies, id, &trace.spans, forced);
        let decided = Decided { verdict: verdict.clone(), trigger, at: now };
        self.traces.insert(id, State::Decided(decided));
        Expected { verdict, trigger, lag, trace }
    }

    pub(super) fn buffered(&self, id: &[u8; 16]) -> Option<&Buffered> {
        match self.traces.get(id)? {
            State::Buffered(trace) => Some(trace),
            State::Decided(_) => None,
        }
    }

    pub(super) fn decided(&self, id: &[u8; 16]) -> Option<&Decided> {
        match self.traces.get(id)? {
            State::Buffered(_) => None,
            State::Decided(decided) => Some(decided),
        }
    }

    pub(super) fn all_buffered(&self) -> impl Iterator<Item = ([u8; 16], &Buffered)> {
        self.traces.iter().filter_map(|(id, state)| match state {
            State::Buffered(trace) => Some((*id, trace)),
            State::Decided(_) => None,
        })
    }

    /// The ids of remembered decisions.
    pub(super) fn remembered(&self) -> Vec<[u8; 16]> {
        let decided = |state: &State| matches!(state, State::Decided(_));
        self.traces.iter().filter(|(_, state)| decided(state)).map(|(id, _)| *id).collect()
    }

    pub(super) fn forget(&mut self, ids: &[[u8; 16]]) {
        self.traces.retain(|id, _| !ids.contains(id));
    }
}

pub(super) fn bytes_of(spans: &[Stored]) -> usize {
    spans.iter().map(|stored| stored.bytes.len()).sum()
}

/// The trace id of a span, if all its ids are valid.
pub(super) fn sound_id(span: &Span) -> Option<[u8; 16]> {
    let id = <[u8; 16]>::try_from(&span.trace_id[..]).ok().filter(|id| *id != [0; 16])?;
    let span_is_sound = span.span_id.len() == 8 && span.span_id != [0; 8];
    let parent_is_sound = matches!(span.parent_span_id.len(), 0 | 8);
    (span_is_sound && parent_is_sound).then_some(id)
}

pub(super) fn is_root(span: &Span) -> bool {
    span.parent_span_id.iter().all(|&byte| byte == 0)
}

/// The OTLP number of the status code; a span without a status is UNSET.
pub(super) fn code(span: &Span) -> i32 {
    span.status.as_ref().map_or(0, |status| status.code)
}

/// Latest end minus earliest start; zeros are ignored, and an end before its start counts as the
/// start.
pub(super) fn duration(spans: &[Stored]) -> u64 {
    let spans = || spans.iter().map(|stored| &stored.span);
    let starts = spans().map(|span| span.start_time_unix_nano).filter(|&start| start != 0);
    let ends = spans()
        .filter(|span| span.end_time_unix_nano != 0)
        .map(|span| span.end_time_unix_nano.max(span.start_time_unix_nano));
    match (starts.min(), ends.max()) {
        (Some(start), Some(end)) => end.saturating_sub(start),
        _ => 0,
    }
}
