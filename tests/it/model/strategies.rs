//! Random policies, spans, requests and schedules.

use std::ops::Bound;

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, ArrayValue, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, span::Event},
};
use proptest::{
    collection::{btree_set, vec},
    option,
    prelude::*,
    sample::select,
};
use regex::bytes::RegexSet;
use tailwater::{
    policy::{Number, NumberRange, PolicySpec, RuleKind, RuleSpec, Scope, StringMatch},
    sampler::Limits,
    trace::{SpanKind, StatusCode, Trigger},
    window::Waits,
};

use crate::builders::{START, attribute, status};

/// The number of traces in a run; few, so that their spans meet.
const TRACES: usize = 7;
const KEYS: [&str; 3] = ["http.route", "user", "service.name"];
const TEXTS: [&str; 5] = ["/api/cart", "/api/cart/1", "shop", "", "läden"];
const PATTERNS: [&str; 4] = ["^/api", "cart$", "h.p", "^$"];

/// Integers near bounds, zero, and the first ones that a double cannot distinguish.
const INTS: [i64; 9] = [0, 7, 8, -7, 1 << 53, (1 << 53) + 1, i64::MAX - 1, i64::MAX, i64::MIN];
const DOUBLES: [f64; 9] = [
    0.0,
    -0.0,
    7.0,
    7.5,
    -7.0,
    9_007_199_254_740_992.0,
    9_223_372_036_854_775_808.0,
    f64::INFINITY,
    f64::NAN,
];

/// One event in the life of a sampler.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// A request arrives; `stale` says that its sender read the clock long before.
    Ingest { advance: u64, stale: bool, request: Vec<ResourceSpans> },
    /// An earlier request arrives again.
    Repeat { which: usize },
    /// An undecodable request arrives.
    Garbage { request: Vec<ResourceSpans> },
    /// All shards decide their due traces.
    Tick { advance: u64, room: Option<usize> },
    /// Other policies decide from now on. If there is a request, it arrives during the reload,
    /// after this many locks: three per shard.
    Reload { policies: Vec<PolicySpec>, request: Option<(usize, Vec<ResourceSpans>)> },
    /// From now on, a second set of policies decides too, or none does.
    Try { candidate: Option<Vec<PolicySpec>> },
    /// All shards decide everything.
    Force { trigger: Trigger },
    /// Half of the shortest time passes for which a decision is remembered.
    Age,
    /// Time passes until every decision is forgotten.
    Forget,
}

/// A whole run.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) policies: Vec<PolicySpec>,
    pub(super) limits: Limits,
    pub(super) shards: usize,
    /// Milliseconds at the beginning, chosen so that they wrap in some runs.
    pub(super) base: u32,
    pub(super) steps: Vec<Step>,
}

pub(super) fn run() -> impl Strategy<Value = Run> {
    let shards = select(vec![1, 2, 8]);
    let base = select(vec![0, 12_345, u32::MAX - 3_000]);
    let ids = vec(any::<[u8; 16]>(), TRACES);
    (policies(), limits(), shards, base, ids).prop_flat_map(
        |(policies, limits, shards, base, ids)| {
            vec(step(ids), 1..30).prop_map(move |steps| Run {
                policies: policies.clone(),
                limits,
                shards,
                base,
                steps,
            })
        },
    )
}

fn limits() -> impl Strategy<Value = Limits> {
    let after_root = option::of(select(vec![1, 200, 500, 999, 1_000, 5_000]));
    let max_trace_spans = select(vec![1, 3, 8, 20, u32::MAX]);
    let max_trace_bytes = select(vec![200, 1_500, 100_000, 400_000, u32::MAX]);
    (after_root, max_trace_spans, max_trace_bytes).prop_map(
        |(after_root, max_trace_spans, max_trace_bytes)| Limits {
            waits: Waits { decision_wait: 1_000, after_root },
            max_trace_spans,
            max_trace_bytes,
            context_bytes_max: usize::MAX,
            kept_bytes_max: None,
            decision_ttl_millis: 60_000,
            decision_log_traces: 1_000,
        },
    )
}

fn step(ids: Vec<[u8; 16]>) -> impl Strategy<Value = Step> {
    let advance = || prop_oneof![Just(0), 1..120u64, select(vec![200, 500, 999, 1_000])];
    let request = request(ids);
    prop_oneof![
        10 => (advance(), any::<bool>(), request.clone())
            .prop_map(|(advance, stale, request)| Step::Ingest { advance, stale, request }),
        2 => (0..30usize).prop_map(|which| Step::Repeat { which }),
        1 => request.clone().prop_map(|request| Step::Garbage { request }),
        6 => (advance(), option::weighted(0.3, select(vec![1, 500, 3_000])))
            .prop_map(|(advance, room)| Step::Tick { advance, room }),
        3 => (policies(), option::of((0..24usize, request)))
            .prop_map(|(policies, request)| Step::Reload { policies, request }),
        3 => option::weighted(0.8, policies()).prop_map(|candidate| Step::Try { candidate }),
        1 => select(vec![Trigger::Memory, Trigger::Shutdown])
            .prop_map(|trigger| Step::Force { trigger }),
        1 => Just(Step::Age),
        1 => Just(Step::Forget),
    ]
}

/// A request about a few traces of any randomness.
pub(super) fn request_of_any_ids() -> impl Strategy<Value = Vec<ResourceSpans>> {
    vec(any::<[u8; 16]>(), 4).prop_flat_map(request)
}

pub(crate) fn request(ids: Vec<[u8; 16]>) -> impl Strategy<Value = Vec<ResourceSpans>> + Clone {
    let spans = vec(span(ids), 0..6);
    let scope = (spans, select(vec!["", "https://scope.example/2"])).prop_map(|(spans, url)| {
        ScopeSpans { spans, schema_url: url.to_owned(), ..Default::default() }
    });
    let resource = option::of(vec(pair(), 0..3)).prop_map(|attributes| {
        attributes.map(|attributes| Resource { attributes, ..Default::default() })
    });
    let of_resource = (resource, vec(scope, 0..3)).prop_map(|(resource, scope_spans)| {
        ResourceSpans { resource, scope_spans, schema_url: String::new() }
    });
    vec(of_resource, 0..4)
}

fn pair() -> impl Strategy<Value = KeyValue> + Clone {
    let flat = vec(scalar(), 0..4).prop_map(list);
    let nested = vec(vec(scalar(), 0..3).prop_map(list), 0..3).prop_map(list);
    let value = prop_oneof![12 => scalar(), 2 => flat, 1 => nested];
    (select(&KEYS[..]), value).prop_map(|(key, value)| attribute(key, value))
}

/// A value that is not a list with elements.
fn scalar() -> impl Strategy<Value = Option<Value>> + Clone {
    let string = select(&TEXTS[..]).prop_map(|text| Some(Value::StringValue(text.to_owned())));
    let int = select(&INTS[..]).prop_map(|number| Some(Value::IntValue(number)));
    let double = select(&DOUBLES[..]).prop_map(|number| Some(Value::DoubleValue(number)));
    let bool = any::<bool>().prop_map(|value| Some(Value::BoolValue(value)));
    let other = select(vec![
        None,
        Some(Value::BytesValue(b"shop".to_vec())),
        Some(Value::ArrayValue(ArrayValue::default())),
        Some(Value::StringValue("7".to_owned())),
        Some(Value::StringValue("true".to_owned())),
    ]);
    prop_oneof![7 => string, 2 => int, 2 => double, 2 => bool, 1 => other]
}

fn list(values: Vec<Option<Value>>) -> Option<Value> {
    let values = values.into_iter().map(|value| AnyValue { value }).collect();
    Some(Value::ArrayValue(ArrayValue { values }))
}

fn trace_state() -> impl Strategy<Value = String> + Clone {
    let lists = [
        "ot=rv:00000000000001",
        "ot=th:8;rv:ffffffffffffff",
        "a=b, ot=rv:e6666666666666;x:y ,c=d",
        "ot=rv:e6666666666665",
        "ot=rv:E6666666666666",
        "ot=rv:1,ot=rv:00000000000001",
        "ot=rv:00000000000001,ot=th:0",
        "not=rv:00000000000001",
        "ot=rv:000000000000001",
        "vendor=a",
        " vendor=a\t, vendor=b",
        "vendor=b ,vendor,=a,other=a",
        "vendor= a",
        "vendor=a=b",
    ];
    prop_oneof![3 => Just(String::new()), 1 => select(lists.map(str::to_owned).to_vec())]
}

fn times() -> impl Strategy<Value = (u64, u64)> + Clone {
    let millis = || prop_oneof![0..3_000u64, select(vec![0, 100, 500, 1_000])];
    let nanos = || select(vec![0, 0, 1]);
    (millis(), nanos(), millis(), nanos(), 0..12u8).prop_map(|(start, a, length, b, odd)| {
        let start = START + start * 1_000_000 + a;
        let end = start + length * 1_000_000 + b;
        match odd {
            0 => (0, end),
            1 => (start, 0),
            2 => (0, 0),
            3 => (end, start),
            _ => (start, end),
        }
    })
}

fn span(ids: Vec<[u8; 16]>) -> impl Strategy<Value = Span> + Clone {
    let id = prop_oneof![
        30 => select(ids).prop_map(|id| id.to_vec()),
        1 => select(vec![vec![0; 16], vec![], vec![1; 15], vec![1; 17]]),
    ];
    let span_id = prop_oneof![
        30 => any::<[u8; 8]>().prop_map(|id| id.to_vec()),
        1 => select(vec![vec![0; 8], vec![], vec![1; 7], vec![1; 9]]),
    ];
    let parent = prop_oneof![
        6 => Just(vec![9; 8]),
        3 => select(vec![vec![], vec![0; 8]]),
        1 => select(vec![vec![0; 7], vec![1; 9]]),
    ];
    let code = option::of(select(vec![0, 0, 1, 2, 2, 3, -1]));
    let padding = prop_oneof![20 => Just(0), 20 => 0..200usize, 3 => 20_000..60_000usize, 1 => 250_000..300_000usize];
    let ids = (id, span_id, parent);
    let flags = select(vec![0, 0, 1, 2, 0x101, 0x300, u32::MAX]);
    let name = (select(&TEXTS[..]), padding).prop_map(|(name, n)| name.to_owned() + &"x".repeat(n));
    let kind = select(vec![0, 1, 2, 3, 4, 5, 6, -1]);
    let rest = (times(), trace_state(), vec(pair(), 0..4), vec(event(), 0..3));
    (ids, code, name, flags, kind, rest).prop_map(
        |(ids, code, name, flags, kind, (times, trace_state, attributes, events))| Span {
            trace_id: ids.0,
            span_id: ids.1,
            parent_span_id: ids.2,
            trace_state,
            name,
            kind,
            events,
            flags,
            start_time_unix_nano: times.0,
            end_time_unix_nano: times.1,
            attributes,
            status: code.and_then(status),
            ..Default::default()
        },
    )
}

fn event() -> impl Strategy<Value = Event> + Clone {
    (select(&TEXTS[..]), vec(pair(), 0..3)).prop_map(|(name, attributes)| Event {
        time_unix_nano: START,
        name: name.to_owned(),
        attributes,
        dropped_attributes_count: 0,
    })
}

pub(crate) fn policies() -> impl Strategy<Value = Vec<PolicySpec>> {
    let veto = vec(condition(), 1..3)
        .prop_map(|parts| RuleSpec { kind: RuleKind::Drop(parts), sampling_percentage: 100.0 });
    let rule = prop_oneof![5 => probabilistic(), 1 => veto];
    let rule = (rule, prop::bool::weighted(0.25));
    (vec(rule, 1..6), 0..4usize).prop_map(|(rules, first)| {
        let named = |(n, (rule, shadow))| PolicySpec {
            shadow,
            ..PolicySpec::new(format!("p{}", first + n), rule)
        };
        rules.into_iter().enumerate().map(named).collect()
    })
}

/// Any rule but `drop`, percentages included.
fn probabilistic() -> impl Strategy<Value = RuleSpec> {
    let with = |(kind, sampling_percentage)| RuleSpec { kind, sampling_percentage };
    let not = condition().prop_map(|part| RuleKind::Not(Box::new(part)));
    let leaf = (prop_oneof![4 => leaf(), 1 => not], percentage()).prop_map(with);
    leaf.prop_recursive(3, 12, 3, move |inner| (combination(inner), percentage()).prop_map(with))
}

/// A rule that is not probabilistic.
fn condition() -> impl Strategy<Value = RuleSpec> {
    let with = |kind| RuleSpec { kind, sampling_percentage: 100.0 };
    leaf().prop_map(with).prop_recursive(3, 10, 3, move |inner| {
        let not = inner.clone().prop_map(|part| RuleKind::Not(Box::new(part)));
        prop_oneof![2 => combination(inner), 1 => not].prop_map(with)
    })
}

fn combination(part: impl Strategy<Value = RuleSpec> + Clone) -> impl Strategy<Value = RuleKind> {
    prop_oneof![
        vec(part.clone(), 1..4).prop_map(RuleKind::And),
        vec(part, 1..4).prop_map(RuleKind::Or),
    ]
}

fn percentage() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => Just(100.0),
        2 => select(vec![0.0, 1e-15, 0.1, 10.0, 33.3, 50.0, 90.0, 99.999_999]),
        1 => 0.0..100.0f64,
    ]
}

fn leaf() -> impl Strategy<Value = RuleKind> {
    let upper = option::of(select(vec![100, 500, 1_500, u64::MAX]));
    let latency = (select(vec![0, 100, 500, 1_000, u64::MAX]), upper).prop_map(
        |(threshold_ms, upper_threshold_ms)| RuleKind::Latency { threshold_ms, upper_threshold_ms },
    );
    let more = option::of(select(vec![0, 1, 2, u32::MAX - 4]));
    let span_count = (0..5u32, more).prop_map(|(min_spans, more)| RuleKind::SpanCount {
        min_spans,
        max_spans: more.map(|more| min_spans + more),
    });
    let with = |kind| RuleSpec { kind, sampling_percentage: 100.0 };
    let part = leaf_of_one_span().prop_map(with).prop_recursive(2, 6, 3, move |inner| {
        let not = inner.clone().prop_map(|part| RuleKind::Not(Box::new(part)));
        prop_oneof![1 => combination(inner), 1 => not].prop_map(with)
    });
    prop_oneof![
        1 => Just(RuleKind::AlwaysSample),
        2 => latency,
        2 => span_count,
        4 => vec(part, 1..4).prop_map(RuleKind::SameSpan),
        9 => leaf_of_one_span(),
    ]
}

/// A condition that a single span can meet.
fn leaf_of_one_span() -> impl Strategy<Value = RuleKind> {
    let codes = btree_set(0..3usize, 1..3).prop_map(|codes| {
        let all = [StatusCode::Unset, StatusCode::Ok, StatusCode::Error];
        RuleKind::StatusCode { codes: codes.into_iter().map(|code| all[code]).collect() }
    });
    let key = || select(&KEYS[..]).prop_map(str::to_owned);
    let scope = || select(vec![Scope::Any, Scope::Any, Scope::Span, Scope::Resource]);
    let string =
        (key(), scope(), string_match(), any::<bool>()).prop_map(|(key, scope, values, invert)| {
            RuleKind::StringAttribute { key, scope, values, invert }
        });
    let numeric =
        (key(), scope(), range(), any::<bool>()).prop_map(|(key, scope, range, invert)| {
            RuleKind::NumericAttribute { key, scope, range, invert }
        });
    let boolean =
        (key(), scope(), any::<bool>(), any::<bool>()).prop_map(|(key, scope, value, invert)| {
            RuleKind::BooleanAttribute { key, scope, value, invert }
        });
    let exists = (key(), scope(), any::<bool>())
        .prop_map(|(key, scope, invert)| RuleKind::AttributeExists { key, scope, invert });
    let values = vec(select(vec!["a", "b", " a", "a=b", "", "x"]), 1..3);
    let trace_state = (select(vec!["vendor", "other"]), values).prop_map(|(key, values)| {
        let values = values.into_iter().map(str::to_owned).collect();
        RuleKind::TraceState { key: key.to_owned(), values }
    });
    let span_name = (string_match(), any::<bool>())
        .prop_map(|(values, invert)| RuleKind::SpanName { values, invert });
    let service_name = (string_match(), any::<bool>())
        .prop_map(|(values, invert)| RuleKind::ServiceName { values, invert });
    prop_oneof![
        2 => codes,
        2 => string,
        2 => numeric,
        1 => boolean,
        1 => exists,
        1 => kinds(),
        1 => Just(RuleKind::RootSpan),
        1 => span_duration(),
        2 => span_event(),
        1 => trace_state,
        1 => Just(RuleKind::TraceFlags),
        1 => span_name,
        1 => service_name,
    ]
}

fn kinds() -> impl Strategy<Value = RuleKind> {
    let all = [
        SpanKind::Unspecified,
        SpanKind::Internal,
        SpanKind::Server,
        SpanKind::Client,
        SpanKind::Producer,
        SpanKind::Consumer,
    ];
    vec(select(all.to_vec()), 1..3).prop_map(|kinds| RuleKind::SpanKind { kinds })
}

fn span_duration() -> impl Strategy<Value = RuleKind> {
    let upper = option::of(select(vec![100, 500, 1_500, u64::MAX]));
    (select(vec![0, 100, 500, 1_000, u64::MAX]), upper).prop_map(
        |(threshold_ms, upper_threshold_ms)| RuleKind::SpanDuration {
            threshold_ms,
            upper_threshold_ms,
        },
    )
}

fn span_event() -> impl Strategy<Value = RuleKind> {
    let key = select(&KEYS[..]).prop_map(str::to_owned);
    let of_key = (key, option::of(string_match()));
    (option::of(string_match()), of_key, any::<bool>(), any::<bool>()).prop_map(
        |(names, (key, values), has_key, invert)| {
            if names.is_some() && !has_key {
                return RuleKind::SpanEvent { names, key: None, values: None, invert };
            }
            RuleKind::SpanEvent { names, key: Some(key), values, invert }
        },
    )
}

fn string_match() -> impl Strategy<Value = StringMatch> {
    let exact = vec(select(&TEXTS[..]), 1..3)
        .prop_map(|values| StringMatch::Exact(values.into_iter().map(str::to_owned).collect()));
    let regex = vec(select(&PATTERNS[..]), 1..3)
        .prop_map(|patterns| StringMatch::Regex(RegexSet::new(patterns).expect("valid")));
    prop_oneof![exact, regex]
}

fn range() -> impl Strategy<Value = NumberRange> {
    let bound = || {
        let double = select(&DOUBLES[..]).prop_filter("a bound is finite", |n| n.is_finite());
        prop_oneof![
            2 => select(&INTS[..]).prop_map(Number::Int),
            1 => double.prop_map(Number::Double),
        ]
    };
    let bound = || {
        (bound(), any::<bool>()).prop_map(|(number, is_included)| {
            if is_included { Bound::Included(number) } else { Bound::Excluded(number) }
        })
    };
    let other = prop_oneof![Just(Bound::Unbounded), bound()];
    (bound(), other, any::<bool>()).prop_map(|(one, other, is_lower)| {
        let (lower, upper) = if is_lower { (one, other) } else { (other, one) };
        NumberRange { lower, upper }
    })
}
