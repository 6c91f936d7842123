//! The sampler against a naive model of it, step by step.

mod evaluation;
mod naive;
mod order;
pub(crate) mod strategies;
mod tried;

use std::{collections::HashMap, sync::Arc};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use proptest::prelude::*;
use prost::Message as _;
use tailwater::{
    budget::Holder,
    otlp::encode::KeptSpan,
    policy::{Effect, PolicySpec, Shadowed, Verdict},
    sampler::{Buffered, Decided, Hold, Limits, Lookup, Progress, Which},
    trace::{TraceId, Trigger},
    window::Millis,
};

use self::{
    naive::{Effects, Expected, Naive, Stored, bytes_of, code, duration},
    strategies::{Run, Step},
    tried::Tried,
};
use crate::builders::{self, ANY_ROOM, Fixture};

/// A sampler, its model, and the current time.
struct Pair {
    fixture: Fixture,
    naive: Naive,
    base: u32,
    now: u64,
    /// Whether all shards have seen `now`, so that an older time must change nothing.
    all_have_seen_now: bool,
    sent: Vec<Vec<ResourceSpans>>,
    tried: Option<Tried>,
}

impl Pair {
    fn new(run: &Run) -> Self {
        let fixture = Fixture::new(&run.policies, run.limits, run.shards);
        let naive = Naive::new(run.policies.clone(), run.limits);
        let (sent, tried) = (Vec::new(), None);
        let mut pair =
            Pair { fixture, naive, base: 0, now: 0, all_have_seen_now: true, sent, tried };
        // A service ticks on the way to a later time.
        for quarter in 1..=4 {
            pair.base = (u64::from(run.base) * quarter / 4) as u32;
            pair.tick(ANY_ROOM);
        }
        pair
    }

    fn millis(&self) -> Millis {
        Millis(self.base.wrapping_add(self.now as u32))
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Ingest { advance, stale, request } => {
                let age = if *stale && self.all_have_seen_now { 700 } else { 0 };
                if age == 0 && *advance > 0 {
                    self.now += advance;
                    self.all_have_seen_now = false;
                }
                self.sent.push(request.clone());
                self.ingest(request, age);
            }
            Step::Repeat { which } if !self.sent.is_empty() => {
                let request = self.sent[which % self.sent.len()].clone();
                self.ingest(&request, 0);
            }
            Step::Repeat { .. } => {}
            Step::Garbage { request } => self.garbage(request),
            Step::Tick { advance, room } => {
                self.now += advance;
                self.tick(room.unwrap_or(ANY_ROOM));
            }
            Step::Reload { policies, request } => self.reload(policies, request.as_ref()),
            Step::Try { candidate } => self.try_policies(candidate.as_deref()),
            Step::Force { trigger } => self.force(*trigger),
            Step::Age => {
                self.now += u64::from(self.naive.limits.decision_ttl_millis / 2);
                self.tick(ANY_ROOM);
            }
            Step::Forget => self.forget(),
        }
        self.compare_what_is_buffered();
        if let Some(tried) = &self.tried {
            tried.compare();
        }
    }

    fn ingest(&mut self, request: &[ResourceSpans], age: u32) {
        let mut decided = Decided::default();
        let now = Millis(self.millis().0.wrapping_sub(age));
        let taken = self
            .fixture
            .sampler
            .ingest(now, &encode(request), &mut self.fixture.scratch, &mut decided)
            .expect("a sound request");
        let effects = self.naive.ingest(self.now, &stored(request));
        assert_eq!((taken.accepted, taken.rejected), (effects.accepted, effects.rejected));
        self.fixture.accepted += taken.accepted;
        self.fixture.book(&decided);
        self.compare(&decided, effects);
    }

    /// Changes the policies from now on. A request that arrives while only some shards have them,
    /// or while it is being walked, counts as arriving afterwards, unless a trace reaches a cap:
    /// either set may then decide it.
    fn reload(&mut self, policies: &[PolicySpec], request: Option<&(usize, Vec<ResourceSpans>)>) {
        let Fixture { sampler, scratch, accepted, .. } = &mut self.fixture;
        let plan = Arc::new(sampler.plan().successor(policies).expect("few names"));
        let fills_none = |request: &[ResourceSpans]| {
            self.naive.clone().ingest(self.now, &stored(request)).decided.is_empty()
        };
        let request = request.filter(|(_, request)| fills_none(request));
        let now = Millis(self.base.wrapping_add(self.now as u32));
        let mut visited = 0;
        let mut during = None;
        sampler.reload(&plan, |hold| {
            if hold == Hold::Begins {
                return;
            }
            if let Some((_, request)) = request.filter(|(after, _)| *after == visited) {
                let mut decided = Decided::default();
                let taken = sampler.ingest(now, &encode(request), scratch, &mut decided);
                during = Some((request, taken.expect("a sound request"), decided));
            }
            visited += 1;
        });
        self.naive.policies = policies.to_vec();
        self.tried = None;
        if let Some((request, taken, decided)) = during {
            *accepted += taken.accepted;
            self.sent.push(request.clone());
            self.fixture.book(&decided);
            let effects = self.naive.ingest(self.now, &stored(request));
            self.compare(&decided, effects);
        }
    }

    /// From now on, a second set of policies decides too, or no longer.
    fn try_policies(&mut self, candidate: Option<&[PolicySpec]>) {
        let (before, policies) = (self.fixture.sampler.plan(), &self.naive.policies);
        let plan = Arc::new(match candidate {
            Some(candidate) => before.with_trial(policies, &tried::without_shadows(candidate)),
            None => before.without_trial(policies),
        });
        assert_eq!(plan.names(), before.names(), "a candidate's names are its own");
        self.fixture.sampler.reload(&plan, |_| {});
        self.tried = plan
            .trial()
            .zip(candidate)
            .map(|(trial, candidate)| Tried::new(Arc::clone(trial), policies, candidate));
    }

    /// Checks that nothing of a request that ends within a field is accepted.
    fn garbage(&mut self, request: &[ResourceSpans]) {
        let mut bytes = encode(request);
        bytes.extend([0x0a, 200]);
        let mut decided = Decided::default();
        let contexts = self.fixture.sampler.contexts();
        let taken = self.fixture.sampler.ingest(
            self.millis(),
            &bytes,
            &mut self.fixture.scratch,
            &mut decided,
        );
        assert!(taken.is_err());
        assert!(decided.decisions.records.is_empty() && decided.late.is_empty());
        assert_eq!(
            self.fixture.sampler.contexts(),
            contexts,
            "a refused request holds no contexts"
        );
    }

    /// Decides the due traces of all shards, with this much room for each.
    fn tick(&mut self, room: usize) {
        self.all_have_seen_now = true;
        let mut stuck = false;
        for shard in 0..self.fixture.sampler.shards() {
            loop {
                let mut decided = Decided::default();
                let progress = self.fixture.sampler.decide(
                    shard,
                    self.millis(),
                    Which::Due,
                    room,
                    &mut decided,
                );
                self.fixture.book(&decided);
                let expected = self.expected(&decided, None);
                assert!(decided.kept_bytes <= room || decided.kept.len() == 1, "room is kept to");
                self.compare(&decided, expected);
                stuck |= progress == Progress::NoRoom;
                if progress != Progress::More {
                    break;
                }
            }
        }
        let due = |(_, trace)| self.naive.due(trace).0 <= self.now;
        assert_eq!(self.naive.all_buffered().any(due), stuck, "everything due is decided");
        self.forget_what_may_be_forgotten();
    }

    /// Between one and two times its time to live, a decision may be forgotten or not: the model
    /// follows the sampler.
    fn forget_what_may_be_forgotten(&mut self) {
        let ttl = u64::from(self.naive.limits.decision_ttl_millis);
        let old = |id: &[u8; 16]| self.naive.decided(id).is_some_and(|d| self.now - d.at >= ttl);
        let unknown = |id: &[u8; 16]| self.look_up(*id) == Lookup::Unknown;
        let forgotten = self.naive.remembered().into_iter().filter(|id| old(id) && unknown(id));
        let forgotten: Vec<_> = forgotten.collect();
        self.naive.forget(&forgotten);
    }

    fn look_up(&self, id: [u8; 16]) -> Lookup {
        self.fixture.sampler.look_up(self.millis(), TraceId(id))
    }

    fn force(&mut self, trigger: Trigger) {
        self.all_have_seen_now = true;
        for decided in self.fixture.decide(self.millis().0, Which::Oldest(trigger)) {
            let arrivals: Vec<_> = decided
                .decisions
                .records
                .iter()
                .map(|record| self.naive.buffered(&record.trace_id.0).map(|trace| trace.arrived))
                .collect();
            assert!(arrivals.is_sorted(), "the oldest of a shard first");
            let expected = self.expected(&decided, Some(trigger));
            self.compare(&decided, expected);
        }
        assert_eq!(self.naive.all_buffered().count(), 0, "everything is decided");
    }

    fn forget(&mut self) {
        let ttl = u64::from(self.naive.limits.decision_ttl_millis);
        self.now += ttl;
        self.tick(ANY_ROOM);
        let old = self.naive.remembered();
        self.now += ttl;
        self.tick(ANY_ROOM);
        self.naive.forget(&old);
    }

    /// The model's decisions about the traces that the sampler has decided. Checks that the sampler
    /// may decide them now, and for that reason.
    fn expected(&mut self, decided: &Decided, forced: Option<Trigger>) -> Effects {
        let mut effects = Effects::default();
        for record in &decided.decisions.records {
            let id = record.trace_id.0;
            let trace = self.naive.buffered(&id).expect("only buffered traces are decided");
            let (at, trigger) = self.naive.due(trace);
            let (trigger, lag) = match forced {
                Some(trigger) => (trigger, 0),
                None => {
                    assert!(at <= self.now, "decided before its time");
                    (trigger, self.now - at)
                }
            };
            effects.decided.insert(id, self.naive.decide(id, trigger, self.now, lag));
        }
        effects
    }

    /// Compares everything in `decided` with the model.
    fn compare(&mut self, decided: &Decided, effects: Effects) {
        let records = &decided.decisions.records;
        assert_eq!(records.len(), effects.decided.len());
        for record in records {
            let expected = &effects.decided[&record.trace_id.0];
            if let Some(tried) = &mut self.tried {
                tried.note(record.trace_id, expected);
            }
            self.compare_verdict(&record.decision.verdict, &expected.verdict);
            assert_eq!(record.decision.trigger, expected.trigger);
            assert_eq!(record.randomness.0, expected.verdict.randomness);
            assert_eq!(
                record.decision.explicit_randomness.map(|randomness| randomness.0),
                expected.verdict.explicit
            );
            assert_eq!(record.spans as usize, expected.trace.spans.len());
            assert_eq!(record.bytes as usize, bytes_of(&expected.trace.spans));
            assert_eq!(record.duration_nanos, duration(&expected.trace.spans));
            assert_eq!(u64::from(record.lag_millis), expected.lag);
            let plan = self.fixture.sampler.plan();
            let matched: Vec<_> =
                decided.decisions.matched(record).iter().map(|&id| plan.name(id)).collect();
            assert_eq!(matched, expected.verdict.matched);
            let shadowed = decided.decisions.shadowed(record).iter();
            let shadowed: Vec<_> =
                shadowed.map(|s| (plan.name(s.policy).to_owned(), s.effect)).collect();
            assert_eq!(shadowed, expected.verdict.shadowed);
        }
        self.compare_late(decided, &effects);
        self.compare_kept(decided, &effects);
        self.fixture.sampler.log().push(&decided.decisions, 1);
    }

    fn compare_verdict(&self, verdict: &Verdict, expected: &evaluation::Verdict) {
        let plan = self.fixture.sampler.plan();
        let policy = plan.name(verdict.policy);
        assert_eq!(
            (verdict.kept, policy, verdict.threshold.bits()),
            (expected.kept, &expected.policy[..], expected.threshold)
        );
    }

    fn compare_late(&self, decided: &Decided, effects: &Effects) {
        let mut seen: HashMap<(bool, &str, u64), (u64, u64)> = HashMap::new();
        let plan = self.fixture.sampler.plan();
        for late in &decided.late {
            let policy = plan.name(late.verdict.policy);
            let key = (late.verdict.kept, policy, late.verdict.threshold.bits());
            let sum = seen.entry(key).or_default();
            *sum = (sum.0 + late.spans, sum.1 + late.errors);
        }
        let mut expected: HashMap<(bool, &str, u64), (u64, u64)> = HashMap::new();
        for late in effects.late.values() {
            let verdict = &late.decided.verdict;
            let key = (verdict.kept, &verdict.policy[..], verdict.threshold);
            let sum = expected.entry(key).or_default();
            let errors = late.spans.iter().filter(|stored| code(&stored.span) == 2).count();
            *sum = (sum.0 + late.spans.len() as u64, sum.1 + errors as u64);
        }
        assert_eq!(seen, expected);
        self.compare_late_shadowed(decided, effects);
    }

    /// Compares what shadow policies would have changed about late spans.
    fn compare_late_shadowed(&self, decided: &Decided, effects: &Effects) {
        let plan = self.fixture.sampler.plan();
        let mut seen: HashMap<(String, Effect), u64> = HashMap::new();
        for (Shadowed { policy, effect }, spans) in &decided.late_shadowed {
            *seen.entry((plan.name(*policy).to_owned(), *effect)).or_default() += spans;
        }
        let mut expected: HashMap<(String, Effect), u64> = HashMap::new();
        for late in effects.late.values() {
            for shadowed in &late.decided.verdict.shadowed {
                *expected.entry(shadowed.clone()).or_default() += late.spans.len() as u64;
            }
        }
        assert_eq!(seen, expected);
    }

    /// Compares the exported spans: those of each kept trace in the order of their arrival, late
    /// ones separately.
    fn compare_kept(&self, decided: &Decided, effects: &Effects) {
        let mut at_decision: HashMap<[u8; 16], Vec<&KeptSpan>> = HashMap::new();
        let mut late: HashMap<[u8; 16], Vec<&KeptSpan>> = HashMap::new();
        let mut spans = &decided.spans[..];
        for trace in &decided.kept {
            let (own, rest) = spans.split_at(trace.spans);
            spans = rest;
            let id = Span::decode(&own[0].bytes[..]).expect("sound").trace_id;
            let id = <[u8; 16]>::try_from(id).expect("16 bytes");
            let known = match trace.trigger {
                Some(trigger) => {
                    assert!(at_decision.insert(id, own.iter().collect()).is_none());
                    assert_eq!(trigger, effects.decided[&id].trigger);
                    &effects.decided[&id].verdict
                }
                None => {
                    late.entry(id).or_default().extend(own);
                    &effects.late[&id].decided.verdict
                }
            };
            self.compare_verdict(&trace.verdict, known);
            assert_eq!(trace.randomness.0, known.randomness);
            assert_eq!(trace.is_explicit, known.explicit.is_some());
        }
        let kept = |expected: &&Expected| expected.verdict.kept;
        assert_eq!(at_decision.len(), effects.decided.values().filter(kept).count());
        for (id, spans) in at_decision {
            compare_spans(&spans, &effects.decided[&id].trace.spans);
        }
        let kept = |late: &&naive::Late| late.decided.verdict.kept;
        assert_eq!(late.len(), effects.late.values().filter(kept).count());
        for (id, spans) in late {
            compare_spans(&spans, &effects.late[&id].spans);
        }
        let bytes: usize = decided.spans.iter().map(|span| span.bytes.len()).sum();
        assert_eq!(decided.kept_bytes, bytes);
    }

    /// Compares the ledger, the buffered spans, and the look-up of every trace.
    fn compare_what_is_buffered(&self) {
        self.fixture.assert_ledger();
        let mut expected = Buffered::default();
        for (id, trace) in self.naive.all_buffered() {
            expected.traces += 1;
            expected.spans += trace.spans.len() as u64;
            expected.bytes += bytes_of(&trace.spans) as u64;
            let Lookup::Pending(pending) = self.look_up(id) else {
                panic!("a buffered trace can be looked up");
            };
            assert_eq!(pending.facts.spans as usize, trace.spans.len());
            let due_in = self.naive.due(trace).0.saturating_sub(self.now);
            assert_eq!(u64::from(pending.due_in_millis), due_in);
        }
        assert_eq!(self.fixture.sampler.buffered(), expected);
        for id in self.naive.remembered() {
            let expected = self.naive.decided(&id).expect("remembered");
            let Lookup::Decided(decision, logged) = self.look_up(id) else {
                panic!("a remembered decision can be looked up");
            };
            self.compare_verdict(&decision.verdict, &expected.verdict);
            assert_eq!(decision.trigger, expected.trigger);
            let logged = logged.expect("in the log");
            assert_eq!(logged.record.decision, decision, "the newest decision of the trace");
            assert_eq!(logged.matched.len(), expected.verdict.matched.len());
            assert_eq!(logged.shadow_matched.len(), expected.verdict.shadowed.len());
        }
        for id in self.sent_ids() {
            if self.naive.buffered(&id).is_none() && self.naive.decided(&id).is_none() {
                assert_eq!(self.look_up(id), Lookup::Unknown);
            }
        }
    }

    fn sent_ids(&self) -> impl Iterator<Item = [u8; 16]> {
        self.sent
            .iter()
            .flat_map(|request| stored(request))
            .filter_map(|s| naive::sound_id(&s.span))
    }

    /// Decides everything and drops the sampler: no byte and no context may remain.
    fn finish(mut self) {
        self.force(Trigger::Shutdown);
        self.compare_what_is_buffered();
        let budget = Arc::clone(&self.fixture.budget);
        let held = |holder| budget.held(holder);
        let others = [Holder::Index, Holder::Decisions, Holder::DecisionLog, Holder::Walking];
        let others = others.into_iter().map(held).sum::<usize>();
        assert_eq!(
            self.fixture.sampler.memory_used(),
            others,
            "no segment and no context is in use"
        );
        assert_eq!(self.fixture.sampler.contexts(), 0);
        drop(self.fixture);
        assert_eq!(budget.used(), 0, "{budget:?}");
    }
}

fn encode(request: &[ResourceSpans]) -> Vec<u8> {
    ExportTraceServiceRequest { resource_spans: request.to_vec() }.encode_to_vec()
}

/// The spans of a request, in its order.
fn stored(request: &[ResourceSpans]) -> Vec<Stored> {
    let mut all = Vec::new();
    for of_resource in request {
        let resource = ResourceSpans { scope_spans: Vec::new(), ..of_resource.clone() };
        let attributes = resource.resource.iter().flat_map(|resource| resource.attributes.clone());
        let attributes: Vec<_> = attributes.collect();
        for of_scope in &of_resource.scope_spans {
            let scope = ScopeSpans { spans: Vec::new(), ..of_scope.clone() };
            all.extend(of_scope.spans.iter().map(|span| Stored {
                span: span.clone(),
                bytes: span.encode_to_vec(),
                resource: attributes.clone(),
                context: (resource.encode_to_vec(), scope.encode_to_vec()),
            }));
        }
    }
    all
}

fn compare_spans(kept: &[&KeptSpan], expected: &[Stored]) {
    assert_eq!(kept.len(), expected.len());
    for (kept, expected) in kept.iter().zip(expected) {
        assert!(kept.bytes == expected.bytes, "the bytes that arrived leave, in their order");
        assert_eq!(kept.context.resource().arrived(), expected.context.0);
        assert_eq!(kept.context.scope(), expected.context.1);
    }
}

proptest! {
    #![proptest_config(builders::cases(96))]

    /// Scenario: random policies and limits; requests with spans of a few traces, duplicates, late
    /// spans and malformed ids arrive, time passes, shards decide, with and without room, early,
    /// and forget; policies are reloaded, sometimes while a request arrives; trials of other
    /// policies begin and end.
    /// Guarantees: after every step the ledger balances, and every decision, kept byte, late span
    /// and look-up matches the naive model; a trial counts what the model decides by its policies,
    /// and changes nothing; at the end no byte of the memory budget is in use.
    #[test]
    fn the_sampler_does_what_the_model_does(run in strategies::run()) {
        let mut pair = Pair::new(&run);
        for step in &run.steps {
            pair.step(step);
        }
        pair.finish();
    }
}

/// Scenario: traces that reach `max_trace_spans` or `max_trace_bytes` exactly, or stay one below,
/// and continue.
/// Guarantees: at the cap, and not before it, a trace is decided with the spans that it has; the
/// rest is late.
#[test]
fn a_trace_is_decided_when_it_reaches_a_cap() {
    let span = |number| builders::child(0, number);
    let bytes: usize = (0..3).map(|number| span(number).encoded_len()).sum();
    let bytes = u32::try_from(bytes).expect("small");
    let unlimited = builders::limits();
    let caps = [(3, u32::MAX), (u32::MAX, bytes), (u32::MAX, bytes - 1), (3, bytes)];
    for (max_trace_spans, max_trace_bytes) in caps {
        let limits = Limits { max_trace_spans, max_trace_bytes, ..unlimited };
        let mut fixture = Fixture::new(&[builders::probabilistic(100.0)], limits, 1);
        let two = fixture.ingest(0, &builders::request_of(vec![span(0), span(1)]));
        assert!(two.decisions.records.is_empty(), "not before");
        let all = fixture.ingest(1, &builders::request_of(vec![span(2), span(3), span(4)]));
        let record = &all.decisions.records[0];
        assert_eq!((record.spans, record.decision.trigger), (3, Trigger::TraceLimit));
        assert_eq!(all.late.iter().map(|late| late.spans).collect::<Vec<_>>(), [2]);
        assert_eq!(all.spans.len(), 5);
        fixture.assert_ledger();
    }
}
