//! Builders of spans and requests as opentelemetry-proto types, for every module of this binary.

use std::sync::Arc;

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status},
};
use proptest::test_runner::Config as ProptestConfig;
use prost::Message as _;
pub(crate) use tailwater::testing::text;
use tailwater::{
    budget::Budget,
    policy::{Plan, PolicySpec, RuleKind, RuleSpec},
    sampler::{Decided, Limits, Progress, Sampler, Scratch, Which},
    span_metrics::{Format, SpanMetrics},
    window::{Millis, Waits},
};

use crate::harness::{all_kinds, calls, span_metrics};

/// Unix nanoseconds at which built spans start.
pub(crate) const START: u64 = 1_700_000_000_000_000_000;
/// No limit on what a decision may keep.
pub(crate) const ANY_ROOM: usize = usize::MAX;

/// The number of cases that `PROPTEST_CASES` sets, or `default`.
pub(crate) fn cases(default: u32) -> ProptestConfig {
    let mut config = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = default;
    }
    config
}

/// The id of the `n`th trace; its low 56 bits, the randomness, are spread evenly over the traces.
pub(crate) fn trace_id(n: u64) -> [u8; 16] {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&n.wrapping_add(1).to_be_bytes());
    id[8..].copy_from_slice(&(n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    id
}

/// A child span of one millisecond with valid ids and no attributes.
pub(crate) fn child(trace: u64, span: u64) -> Span {
    Span {
        trace_id: trace_id(trace).to_vec(),
        span_id: (span + 1).to_be_bytes().to_vec(),
        parent_span_id: vec![7; 8],
        name: format!("operation {span}"),
        start_time_unix_nano: START,
        end_time_unix_nano: START + 1_000_000,
        ..Default::default()
    }
}

/// The same without a parent.
pub(crate) fn root(trace: u64, span: u64) -> Span {
    Span { parent_span_id: Vec::new(), ..child(trace, span) }
}

/// A status of this code.
pub(crate) fn status(code: i32) -> Option<Status> {
    Some(Status { code, message: String::new() })
}

/// An attribute with a value, or without one.
pub(crate) fn attribute(key: &str, value: Option<Value>) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value }), ..Default::default() }
}

/// Spans of one resource and scope.
pub(crate) fn resource_spans(service: &str, spans: Vec<Span>) -> ResourceSpans {
    let attributes = vec![text("service.name", service)];
    ResourceSpans {
        resource: Some(Resource { attributes, ..Default::default() }),
        scope_spans: vec![ScopeSpans {
            scope: Some(InstrumentationScope { name: "lib".to_owned(), ..Default::default() }),
            spans,
            schema_url: "https://scope.example/1".to_owned(),
        }],
        schema_url: "https://resource.example/1".to_owned(),
    }
}

/// An encoded request.
pub(crate) fn request(resource_spans: Vec<ResourceSpans>) -> Vec<u8> {
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

/// An encoded request with spans of one service.
pub(crate) fn request_of(spans: Vec<Span>) -> Vec<u8> {
    request(vec![resource_spans("shop", spans)])
}

/// A policy of one rule.
pub(crate) fn policy(name: &str, rule: RuleSpec) -> PolicySpec {
    PolicySpec::new(name, rule)
}

/// The policy that keeps this many per cent of all traces.
pub(crate) fn probabilistic(sampling_percentage: f64) -> PolicySpec {
    policy("baseline", RuleSpec { kind: RuleKind::AlwaysSample, sampling_percentage })
}

/// 30 s after the first span, 5 s after the root, and caps that no test reaches by accident.
pub(crate) fn limits() -> Limits {
    Limits {
        waits: Waits { decision_wait: 30_000, after_root: Some(5_000) },
        max_trace_spans: u32::MAX,
        max_trace_bytes: u32::MAX,
        context_bytes_max: usize::MAX,
        kept_bytes_max: None,
        decision_ttl_millis: 120_000,
        decision_log_traces: 0,
    }
}

/// A sampler with everything needed to drive it by hand, and the ledger of what it was given.
#[derive(Debug)]
pub(crate) struct Fixture {
    pub(crate) budget: Arc<Budget>,
    pub(crate) sampler: Sampler,
    pub(crate) scratch: Scratch,
    pub(crate) accepted: u64,
    pub(crate) kept: u64,
    pub(crate) dropped: u64,
}

impl Fixture {
    pub(crate) fn new(policies: &[PolicySpec], limits: Limits, shards: usize) -> Self {
        let budget = Budget::new(1 << 30);
        let plan = Arc::new(Plan::compile(policies));
        // It has a memory budget of its own, so that tests can check what the rest takes.
        let span_metrics = Arc::new(SpanMetrics::new(all_kinds(), &Budget::new(1 << 30)));
        let sampler = Sampler::new(plan, limits, &budget, shards);
        let sampler = sampler.with_span_metrics(Some(span_metrics));
        Fixture { budget, sampler, scratch: Scratch::default(), accepted: 0, kept: 0, dropped: 0 }
    }

    /// Ingests a valid request.
    pub(crate) fn ingest(&mut self, now: u32, request: &[u8]) -> Decided {
        let mut decided = Decided::default();
        let taken = self
            .sampler
            .ingest(Millis(now), request, &mut self.scratch, &mut decided)
            .expect("a sound request");
        self.accepted += taken.accepted;
        self.book(&decided);
        decided
    }

    /// Decides all shards at `now`, and returns the decisions of each lock hold.
    pub(crate) fn decide(&mut self, now: u32, which: Which) -> Vec<Decided> {
        let mut all = Vec::new();
        for shard in 0..self.sampler.shards() {
            loop {
                let mut decided = Decided::default();
                let progress =
                    self.sampler.decide(shard, Millis(now), which, ANY_ROOM, &mut decided);
                self.book(&decided);
                all.push(decided);
                if progress == Progress::Done {
                    break;
                }
            }
        }
        all
    }

    /// Adds decisions to the ledger, and checks that it balances.
    pub(crate) fn book(&mut self, decided: &Decided) {
        for record in &decided.decisions.records {
            let spans = u64::from(record.spans);
            *self.side(record.decision.verdict.kept) += spans;
        }
        for late in &decided.late {
            *self.side(late.verdict.kept) += late.spans;
        }
        let leaving: usize = decided.kept.iter().map(|trace| trace.spans).sum();
        assert_eq!(leaving, decided.spans.len(), "every span that leaves belongs to a trace");
    }

    /// `accepted = kept + dropped + buffered`, in spans, and every accepted span is in the metrics.
    pub(crate) fn assert_ledger(&self) {
        let buffered = self.sampler.buffered().spans;
        assert_eq!(self.accepted, self.kept + self.dropped + buffered, "the ledger balances");
        let text = span_metrics(&self.sampler, Format::Text).expect("they are on");
        assert_eq!(calls(&text), self.accepted as f64, "{text}");
    }

    fn side(&mut self, kept: bool) -> &mut u64 {
        if kept { &mut self.kept } else { &mut self.dropped }
    }
}
