//! What only a look inside can arrange: a request that was walked before a reload and comes after.

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message as _;

use super::*;
use crate::policy::{PolicyId, PolicySpec, RuleKind, RuleSpec, StringMatch};

fn policy(name: &str) -> PolicySpec {
    let values = StringMatch::Exact(vec![name.to_owned()]);
    let kind = RuleKind::StringAttribute { key: "k".into(), values, invert: false };
    PolicySpec {
        name: name.to_owned(),
        rule: RuleSpec { kind, sampling_percentage: 100.0 },
        limit: None,
    }
}

fn request(value: &str) -> Vec<u8> {
    let value = AnyValue { value: Some(Value::StringValue(value.to_owned())) };
    let attribute = KeyValue { key: "k".into(), value: Some(value), ..KeyValue::default() };
    let span = Span {
        trace_id: vec![1; 16],
        span_id: vec![1; 8],
        attributes: vec![attribute],
        ..Span::default()
    };
    let scope = ScopeSpans { spans: vec![span], ..ScopeSpans::default() };
    let resource = ResourceSpans { scope_spans: vec![scope], ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![resource] }.encode_to_vec()
}

/// Decides the one trace that is buffered; by which policy.
fn decide(sampler: &Sampler) -> PolicyId {
    let mut decided = Decided::default();
    let which = Which::Oldest(crate::trace::Trigger::Memory);
    sampler.decide(0, Millis(0), which, usize::MAX, &mut decided);
    assert_eq!(decided.decisions.records.len(), 1);
    decided.decisions.records[0].decision.verdict.policy
}

#[test]
fn a_request_walked_with_another_plan_is_walked_again() {
    let limits = Limits {
        waits: Waits { decision_wait: 10, after_root: None },
        max_trace_spans: 10,
        max_trace_bytes: 1 << 10,
        kept_bytes_max: None,
        decision_ttl_millis: 10,
        decision_log_traces: 0,
    };
    // The bit of "a" under the one is that of "b" under the other, or there is no such word at all.
    let many: Vec<_> = (0..100).map(|n| policy(&format!("n{n}"))).collect();
    let (a, b) = (policy("a"), policy("b"));
    let sets = [vec![a.clone()], vec![b.clone(), a.clone()], [many, vec![b, a]].concat(), vec![]];
    for old in &sets {
        for new in &sets {
            let before = Arc::new(Plan::compile(old));
            let sampler = Sampler::new(Arc::clone(&before), limits, &Budget::new(1 << 30), 1);
            let plan = Arc::new(before.successor(new).expect("few"));
            sampler.reload(&plan, |_| {});
            *sampler.plan.write().expect("no panic") = before;
            let mut decided = Decided::default();
            let taken =
                sampler.ingest(Millis(0), &request("a"), &mut Scratch::default(), &mut decided);
            assert_eq!(taken.map(|taken| taken.accepted), Ok(1));
            let expected = if new.is_empty() { "none" } else { "a" };
            assert_eq!(plan.name(decide(&sampler)), expected);
        }
    }
}
