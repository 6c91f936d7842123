//! The laws of the algebra, checked on random rules and traces, and the bits that leaves share.

use fastrand::Rng;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span::Event},
};
use prost::Message as _;
use regex::bytes::RegexSet;
use std::ops::Bound::{Included, Unbounded};

use super::*;
use crate::{
    budget::Budget,
    otlp::{
        Contexts,
        conditions::Conditions as _,
        walk::{self, Walked},
    },
    testing::{attribute, text},
    trace::{Facts, Randomness, SpanKind, StatusCode, Threshold, TraceId},
};

const ROUNDS: u64 = 400;

/// Service names and spans.
type Trace = Vec<(&'static str, Span)>;

fn rule(kind: RuleKind) -> RuleSpec {
    RuleSpec { kind, sampling_percentage: 100.0 }
}

fn at(sampling_percentage: f64, kind: RuleKind) -> RuleSpec {
    RuleSpec { kind, sampling_percentage }
}

fn and(parts: &[&RuleSpec]) -> RuleSpec {
    rule(RuleKind::And(parts.iter().copied().cloned().collect()))
}

fn or(parts: &[&RuleSpec]) -> RuleSpec {
    rule(RuleKind::Or(parts.iter().copied().cloned().collect()))
}

fn not(part: &RuleSpec) -> RuleSpec {
    rule(RuleKind::Not(Box::new(part.clone())))
}

fn same_span(parts: &[&RuleSpec]) -> RuleSpec {
    rule(RuleKind::SameSpan(parts.iter().copied().cloned().collect()))
}

fn policy(name: &str, rule: &RuleSpec) -> PolicySpec {
    PolicySpec::new(name, rule.clone())
}

fn drop_rule(part: &RuleSpec) -> RuleSpec {
    rule(RuleKind::Drop(vec![part.clone()]))
}

fn exact(values: &[&str]) -> StringMatch {
    StringMatch::Exact(values.iter().map(|value| (*value).to_owned()).collect())
}

fn regex(patterns: &[&str]) -> StringMatch {
    StringMatch::Regex(RegexSet::new(patterns).expect("valid"))
}

fn string(key: &str, values: StringMatch, invert: bool) -> RuleSpec {
    rule(RuleKind::StringAttribute { key: key.to_owned(), scope: Scope::Any, values, invert })
}

fn numeric(key: &str, min: i64, invert: bool) -> RuleSpec {
    let range = NumberRange { lower: Included(Number::Int(min)), upper: Unbounded };
    rule(RuleKind::NumericAttribute { key: key.to_owned(), scope: Scope::Any, range, invert })
}

fn boolean(key: &str, invert: bool) -> RuleSpec {
    let (key, scope) = (key.to_owned(), Scope::Any);
    rule(RuleKind::BooleanAttribute { key, scope, value: true, invert })
}

fn event(names: &[&str], key: Option<&str>, values: &[&str], invert: bool) -> RuleSpec {
    let listed = |values: &[&str]| (!values.is_empty()).then(|| exact(values));
    let (names, values) = (listed(names), listed(values));
    rule(RuleKind::SpanEvent { names, key: key.map(str::to_owned), values, invert })
}

/// A condition on a single span.
fn leaf_of_one_span(random: &mut Rng) -> RuleSpec {
    let invert = random.bool();
    let scope = [Scope::Any, Scope::Span, Scope::Resource][random.usize(0..3)];
    match random.u8(0..13) {
        0 => rule(RuleKind::StatusCode { codes: vec![StatusCode::Error] }),
        1 => string("route", exact(&[["/a", "/b"][random.usize(0..2)]]), invert),
        2 => string("route", regex(&["^/"]), invert),
        3 => numeric("size", random.i64(0..3), invert),
        4 => boolean("hit", invert),
        5 => rule(RuleKind::TraceFlags),
        6 => rule(RuleKind::SpanName { values: exact(&["get"]), invert }),
        7 => rule(RuleKind::AttributeExists { key: "route".to_owned(), scope, invert }),
        8 => rule(RuleKind::SpanKind {
            kinds: [SpanKind::Server, SpanKind::Client][random.usize(0..2)..].to_vec(),
        }),
        9 => rule(RuleKind::RootSpan),
        10 => rule(RuleKind::SpanDuration {
            threshold_ms: random.u64(0..3),
            upper_threshold_ms: random.bool().then_some(3),
        }),
        11 => {
            let names = [&["retry"][..], &[]][random.usize(0..2)];
            event(names, Some("why"), &["timeout", "reset"][..random.usize(0..3)], invert)
        }
        _ => rule(RuleKind::ServiceName { values: exact(&["shop"]), invert }),
    }
}

fn leaf(random: &mut Rng) -> RuleSpec {
    let from = random.u32(0..4);
    match random.u8(0..8) {
        0 => rule(RuleKind::AlwaysSample),
        1 => rule(RuleKind::Latency { threshold_ms: 1, upper_threshold_ms: Some(3) }),
        2 => rule(RuleKind::SpanCount { min_spans: from, max_spans: Some(from + 1) }),
        3 => same_span(&[&leaf_of_one_span(random), &leaf_of_one_span(random)]),
        _ => leaf_of_one_span(random),
    }
}

/// A rule without probability, made of leaves from `leaf`.
fn condition(random: &mut Rng, depth: u8, leaf: &impl Fn(&mut Rng) -> RuleSpec) -> RuleSpec {
    if depth == 0 {
        return leaf(random);
    }
    let mut part = || condition(random, depth - 1, leaf);
    let (one, other) = (part(), part());
    match random.u8(0..4) {
        0 => and(&[&one, &other]),
        1 => or(&[&one, &other]),
        2 => not(&one),
        _ => one,
    }
}

/// Any rule but `drop`, with percentages on some parts.
fn probabilistic(random: &mut Rng, depth: u8) -> RuleSpec {
    let percentage = [100.0, 100.0, 50.0, 10.0, 0.0][random.usize(0..5)];
    if depth == 0 {
        return RuleSpec { sampling_percentage: percentage, ..condition(random, 1, &leaf) };
    }
    let parts = vec![probabilistic(random, depth - 1), probabilistic(random, depth - 1)];
    at(percentage, if random.bool() { RuleKind::And(parts) } else { RuleKind::Or(parts) })
}

fn span(name: &str, attributes: Vec<KeyValue>) -> Span {
    Span {
        trace_id: vec![1; 16],
        span_id: vec![1; 8],
        name: name.to_owned(),
        start_time_unix_nano: 1_000_000_000,
        end_time_unix_nano: 1_000_000_000,
        attributes,
        ..Default::default()
    }
}

fn event_of_span(random: &mut Rng) -> Event {
    let why = text("why", ["timeout", "reset", "x"][random.usize(0..3)]);
    let name = ["retry", "done"][random.usize(0..2)].to_owned();
    let attributes = [why].into_iter().filter(|_| random.bool()).collect();
    Event { name, attributes, ..Default::default() }
}

fn trace(random: &mut Rng, spans: usize) -> Trace {
    let spans = (0..spans).map(|_| {
        let pairs = [
            text("route", ["/a", "/b", "c"][random.usize(0..3)]),
            attribute("size", Value::IntValue(random.i64(0..4))),
            attribute("size", Value::DoubleValue(1.5)),
            attribute("hit", Value::BoolValue(random.bool())),
        ];
        let attributes = pairs.into_iter().filter(|_| random.u8(0..3) == 0).collect();
        let mut span = span(["get", "put"][random.usize(0..2)], attributes);
        span.end_time_unix_nano += random.u64(0..5) * 1_000_000;
        span.flags = random.u32(0..2);
        span.kind = random.i32(1..4);
        span.parent_span_id = vec![random.u8(0..2); 8];
        span.events = (0..random.u8(0..3)).map(|_| event_of_span(random)).collect();
        span.status = Some(Status { code: random.i32(0..3), message: String::new() });
        (["shop", "pay"][random.usize(0..2)], span)
    });
    spans.collect()
}

/// The verdict of policies with these rules on a trace whose randomness is 1.
fn decide(rules: &[RuleSpec], trace: &Trace, forced: bool) -> Verdict {
    let named = |(n, rule): (usize, &RuleSpec)| PolicySpec::new(format!("p{n}"), rule.clone());
    let plan = Plan::compile(&rules.iter().enumerate().map(named).collect::<Vec<_>>());
    let of_span = |(service, span): &(&str, Span)| {
        let attributes = vec![text("service.name", *service)];
        let scope = ScopeSpans { spans: vec![span.clone()], ..Default::default() };
        ResourceSpans {
            resource: Some(Resource { attributes, ..Default::default() }),
            scope_spans: vec![scope],
            ..Default::default()
        }
    };
    let resource_spans = trace.iter().map(of_span).collect();
    let request = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
    let mut walked = Walked::default();
    let contexts = Contexts::new(Budget::new(1 << 20));
    walk::walk(&request, &contexts, plan.leaves(), &mut walked).expect("sound");
    let mut bits = vec![0; plan.leaves().words()];
    for of_span in walked.bits.chunks(bits.len().max(1)) {
        bits.iter_mut().zip(of_span).for_each(|(all, word)| *all |= word);
    }
    let facts = Facts {
        start_unix_nano: walked.spans.iter().map(|s| s.start_unix_nano).min().unwrap_or(0),
        end_unix_nano: walked.spans.iter().map(|s| s.end_unix_nano).max().unwrap_or(0),
        spans: walked.spans.len() as u32,
        status_mask: walked.spans.iter().fold(0, |mask, span| mask | span.status_mask),
        ..Facts::default()
    };
    let evidence = Evidence {
        trace_id: TraceId([1; 16]),
        facts: &facts,
        bits: &bits,
        randomness: Randomness(1),
        forced,
    };
    plan.decide(&evidence, &mut Vec::new())
}

fn proposed(rule: &RuleSpec, trace: &Trace) -> Threshold {
    decide(std::slice::from_ref(rule), trace, false).threshold
}

/// Holds for any randomness, so it is checked for the first few.
fn for_many(holds: impl Fn(&mut Rng)) {
    for seed in 0..ROUNDS {
        holds(&mut Rng::with_seed(seed));
    }
}

#[track_caller]
fn assert_equal(one: &RuleSpec, other: &RuleSpec, trace: &Trace) {
    assert_eq!(proposed(one, trace), proposed(other, trace), "{one:?}\n{other:?}\n{trace:?}");
}

#[test]
fn and_and_or_are_a_distributive_lattice() {
    for_many(|random| {
        let [p, q, r] = [(); 3].map(|()| probabilistic(random, 2));
        let spans = random.usize(1..4);
        let trace = trace(random, spans);
        let equal = |one: &RuleSpec, other: &RuleSpec| assert_equal(one, other, &trace);
        equal(&and(&[&p, &p]), &p);
        equal(&or(&[&p, &p]), &p);
        equal(&and(&[&p, &q, &r]), &and(&[&r, &and(&[&q, &p])]));
        equal(&or(&[&p, &q, &r]), &or(&[&r, &or(&[&q, &p])]));
        equal(&and(&[&p, &or(&[&p, &q])]), &p);
        equal(&or(&[&p, &and(&[&p, &q])]), &p);
        equal(&and(&[&p, &or(&[&q, &r])]), &or(&[&and(&[&p, &q]), &and(&[&p, &r])]));
        equal(&or(&[&p, &and(&[&q, &r])]), &and(&[&or(&[&p, &q]), &or(&[&p, &r])]));
        let (all, nothing) = (rule(RuleKind::AlwaysSample), at(0.0, RuleKind::AlwaysSample));
        equal(&and(&[&p, &all]), &p);
        equal(&or(&[&p, &nothing]), &p);
        equal(&and(&[&p, &nothing]), &nothing);
        equal(&or(&[&p, &all]), &all);
        equal(&RuleSpec { sampling_percentage: 30.0, ..and(&[&p]) }, &{
            let third = at(30.0, RuleKind::AlwaysSample);
            and(&[&p, &third])
        });
        // The set of policies is an `or` of them.
        assert_eq!(
            decide(&[p.clone(), q.clone()], &trace, false).threshold,
            proposed(&or(&[&p, &q]), &trace)
        );
    });
}

#[test]
fn not_follows_de_morgan() {
    for_many(|random| {
        let [c, d] = [(); 2].map(|()| condition(random, 2, &leaf));
        let spans = random.usize(1..4);
        let trace = trace(random, spans);
        let equal = |one: &RuleSpec, other: &RuleSpec| assert_equal(one, other, &trace);
        equal(&not(&and(&[&c, &d])), &or(&[&not(&c), &not(&d)]));
        equal(&not(&or(&[&c, &d])), &and(&[&not(&c), &not(&d)]));
        equal(&not(&not(&c)), &c);
        equal(&or(&[&c, &not(&c)]), &rule(RuleKind::AlwaysSample));
        equal(&and(&[&c, &not(&c)]), &not(&rule(RuleKind::AlwaysSample)));
    });
}

#[test]
fn same_span_holds_if_all_its_parts_hold_on_one_span_alone() {
    for_many(|random| {
        let [c, d] = [(); 2].map(|()| condition(random, 2, &leaf_of_one_span));
        let spans = random.usize(1..5);
        let trace = trace(random, spans);
        let together = same_span(&[&c, &d]);
        let on_one_alone =
            trace.iter().any(|span| proposed(&and(&[&c, &d]), &vec![span.clone()]).matches());
        assert_eq!(proposed(&together, &trace).matches(), on_one_alone, "{together:?}\n{trace:?}");
        assert_equal(&together, &same_span(&[&and(&[&d, &c])]), &trace);
    });
}

#[test]
fn a_forced_veto_is_one_that_stands_whatever_comes() {
    let mut vetoes = 0;
    for seed in 0..4 * ROUNDS {
        let mut random = Rng::with_seed(seed);
        let veto = drop_rule(&condition(&mut random, 2, &leaf));
        let rules = [rule(RuleKind::AlwaysSample), veto];
        let all = trace(&mut random, 4);
        let early = all[..random.usize(1..4)].to_vec();
        if !decide(&rules, &early, true).kept {
            vetoes += 1;
            assert!(!decide(&rules, &early, false).kept, "{rules:?}\n{early:?}");
            assert!(!decide(&rules, &all, false).kept, "{rules:?}\n{all:?}");
            assert!(!decide(&rules, &all, true).kept, "{rules:?}\n{all:?}");
        }
    }
    assert!(vetoes > 50, "only {vetoes}");
}

#[test]
fn a_condition_that_can_still_turn_does_not_veto_when_forced() {
    let slow = |upper_threshold_ms| rule(RuleKind::Latency { threshold_ms: 1, upper_threshold_ms });
    let spans = |max_spans| rule(RuleKind::SpanCount { min_spans: 1, max_spans });
    let error = rule(RuleKind::StatusCode { codes: vec![StatusCode::Error] });
    let get = |invert| rule(RuleKind::SpanName { values: exact(&["get"]), invert });
    let put = |invert| rule(RuleKind::ServiceName { values: exact(&["other"]), invert });
    let hit = |invert| boolean("hit", invert);
    let rising = [
        slow(None),
        spans(None),
        error.clone(),
        get(false),
        numeric("size", 2, false),
        string("route", exact(&["/a"]), false),
        same_span(&[&error, &not(&hit(false)), &put(true)]),
        not(&put(false).clone()),
    ];
    let falling = [
        slow(Some(10)),
        spans(Some(2)),
        put(true),
        hit(true),
        numeric("size", 3, true),
        string("route", regex(&["b"]), true),
        not(&same_span(&[&hit(false)])),
    ];
    let attributes = vec![text("route", "/a"), attribute("size", Value::IntValue(2))];
    let mut failed = span("get", attributes);
    failed.status = Some(Status { code: 2, message: String::new() });
    failed.end_time_unix_nano += 5_000_000;
    let trace = vec![("shop", failed)];
    let vetoed = |part: &RuleSpec, forced| {
        !decide(&[rule(RuleKind::AlwaysSample), drop_rule(part)], &trace, forced).kept
    };
    for part in &rising[..7] {
        assert!(vetoed(part, false) && vetoed(part, true), "{part:?}");
    }
    for part in falling.iter().chain(&rising[7..]) {
        assert!(vetoed(part, false) && !vetoed(part, true), "{part:?}");
        // If the rule only keeps, the facts count as they are.
        assert!(decide(std::slice::from_ref(part), &trace, true).kept, "{part:?}");
    }
}

/// Checks the findings of a review of two policies against a trace. Returns whether there were any.
fn assert_review(rules: &[RuleSpec; 2], trace: &Trace) -> bool {
    let named = |(n, rule): (usize, &RuleSpec)| policy(&format!("p{n}"), rule);
    let specs: Vec<_> = rules.iter().enumerate().map(named).collect();
    let remarks = review(&specs);
    for (index, remark) in &remarks {
        let alone = proposed(&rules[*index], trace);
        let credited = decide(rules, trace, false).policy;
        match remark {
            Remark::NeverMatches => assert!(!alone.matches(), "{rules:?}\n{trace:?}"),
            Remark::CoveredBy(other) => {
                assert!(
                    !alone.matches() || usize::from(credited.0) == *other,
                    "{rules:?}\n{trace:?}"
                );
            }
            Remark::DropsEverything => panic!("no rule is a veto: {rules:?}"),
        }
    }
    !remarks.is_empty()
}

#[test]
fn a_review_is_true_of_every_trace() {
    let mut remarks = 0;
    for seed in 0..20 * ROUNDS {
        let mut random = Rng::with_seed(seed);
        let depth = random.u8(0..2);
        let rules = [(); 2].map(|()| probabilistic(&mut random, depth));
        for spans in 1..5 {
            let trace = trace(&mut random, spans);
            remarks += u32::from(assert_review(&rules, &trace));
        }
    }
    assert!(remarks > 1_000, "only {remarks}");
}

#[test]
fn the_upper_bound_of_latency_is_inclusive_and_of_the_whole_trace() {
    let between = rule(RuleKind::Latency { threshold_ms: 100, upper_threshold_ms: Some(200) });
    let lasting = |nanos: u64| {
        let mut span = span("get", Vec::new());
        span.end_time_unix_nano += nanos;
        ("shop", span)
    };
    for (nanos, matches) in
        [(100_000_000, false), (100_000_001, true), (200_000_000, true), (200_000_001, false)]
    {
        // A part of the trace whose duration is between the bounds does not count.
        let trace = vec![lasting(150_000_000.min(nanos)), lasting(nanos)];
        assert_eq!(proposed(&between, &trace).matches(), matches, "{nanos}");
    }
}

/// The number of bits that these rules need. The plan only gives its number of words, so the last
/// word is filled up until one more bit is too many.
fn bits_of(rules: &[RuleSpec]) -> i64 {
    let is_too_much = |fillers: &i64| {
        let fillers = (0..*fillers).map(|n| numeric("filler", n, false));
        let policy = |rule| PolicySpec::new("p", rule);
        let specs: Vec<_> = fillers.chain(rules.iter().cloned()).map(policy).collect();
        Plan::compile(&specs).leaves().words() > 1
    };
    65 - (1..=64).find(is_too_much).expect("there is one bit at least")
}

#[test]
fn equal_conditions_share_a_bit() {
    let a = string("k", exact(&["a", "b"]), false);
    let b = string("k", exact(&["b", "a", "a"]), true);
    let patterns = string("k", regex(&["a", "b"]), false);
    let five = numeric("k", 5, false);
    let float = rule(RuleKind::NumericAttribute {
        key: "k".to_owned(),
        scope: Scope::Any,
        range: NumberRange { lower: Included(Number::Double(5.0)), upper: Unbounded },
        invert: true,
    });
    assert_eq!(bits_of(&[a.clone(), b.clone(), not(&a)]), 1);
    assert_eq!(bits_of(&[a.clone(), patterns.clone()]), 2);
    assert_eq!(bits_of(&[five.clone(), float, numeric("other", 5, false)]), 2);
    let together = || same_span(&[&a, &five]);
    assert_eq!(bits_of(&[together(), not(&together()), a.clone()]), 3);
    let on_name = rule(RuleKind::SpanName { values: exact(&["a", "b"]), invert: false });
    let on_service = rule(RuleKind::ServiceName { values: exact(&["a", "b"]), invert: false });
    assert_eq!(bits_of(&[a, on_name, on_service]), 3);
    assert_eq!(bits_of(&[rule(RuleKind::TraceFlags), rule(RuleKind::TraceFlags)]), 1);
    assert_eq!(bits_of(&[rule(RuleKind::RootSpan), not(&rule(RuleKind::RootSpan))]), 1);
    // The bit of the condition, and the bits of its conditions on one event.
    let both = |invert| event(&["n"], Some("k"), &[], invert);
    assert_eq!(bits_of(&[both(false), both(true), event(&["n"], None, &[], false)]), 4);
}

#[test]
fn many_policies_on_one_key_find_what_lists_the_value() {
    let value = |n: usize| format!("value {n}");
    // 256 policies with 40 values each; every value is in two of them, and some also have an
    // expression.
    let listing = |n: usize| {
        let values: Vec<_> = (n * 20..n * 20 + 40).map(value).collect();
        string("k", StringMatch::Exact(values), false)
    };
    let expression = |n: usize| string("k", regex(&[&format!("^value {n}$"), "^none$"]), false);
    let mut rules: Vec<_> = (0..256).map(listing).collect();
    rules.extend((0..50).map(expression));
    let named = |(n, rule)| PolicySpec::new(format!("p{n}"), rule);
    let plan = Plan::compile(&rules.into_iter().enumerate().map(named).collect::<Vec<_>>());
    let matched = |text: &[u8]| {
        let mut bits = vec![0; plan.leaves().words()];
        let pair = [&[0x0a, 1, b'k', 0x12, text.len() as u8 + 2, 0x0a, text.len() as u8], text];
        let attribute = [&[9 << 3 | 2, text.len() as u8 + 7], &pair.concat()[..]].concat();
        let ids = [&[0x0a, 16][..], &[1; 16], &[0x12, 8], &[1; 8]].concat();
        let span = [ids, attribute].concat();
        let nested = |tag: u8, inner: Vec<u8>| [&[tag, inner.len() as u8], &inner[..]].concat();
        let request = nested(0x0a, nested(0x12, nested(0x12, span)));
        let contexts = Contexts::new(Budget::new(1 << 20));
        let mut walked = Walked::default();
        walk::walk(&request, &contexts, plan.leaves(), &mut walked).expect("sound");
        bits.copy_from_slice(&walked.bits);
        let (facts, mut matched) = (Facts::default(), Vec::new());
        let evidence = Evidence {
            trace_id: TraceId([1; 16]),
            facts: &facts,
            bits: &bits,
            randomness: Randomness(0),
            forced: false,
        };
        plan.decide(&evidence, &mut matched);
        matched.iter().map(|id| id.0).collect::<Vec<_>>()
    };
    assert_eq!(matched(b"value 0"), [0, 256]);
    assert_eq!(matched(b"value 20"), [0, 1, 276]);
    assert_eq!(matched(b"value 5000"), [249, 250]);
    assert_eq!(matched(b"none"), (256..306).collect::<Vec<_>>());
    assert_eq!(matched(b"value"), [0u16; 0]);
    assert_eq!(matched(b"value 20\xff"), [0u16; 0]);
}

#[test]
fn texts_that_are_not_utf_8_are_bytes() {
    let mut builder = texts::TextsBuilder::default();
    let mut count = 0;
    let listed = builder.bit(&exact(&["caf\u{fffd}", "é"]), &mut count);
    let found = builder.bit(&regex(&["^caf"]), &mut count);
    assert_eq!((listed, found, count), (0, 1, 2));
    let texts = builder.build();
    let bits = |text: &[u8]| {
        let mut bits = [0];
        texts.test(text, &mut bits);
        bits[0]
    };
    assert_eq!(bits("é".as_bytes()), 0b01);
    // The replacement character appears only after the repair, when the span is exported.
    assert_eq!(bits(b"caf\xe9"), 0b10);
    assert_eq!(bits("caf\u{fffd}".as_bytes()), 0b11);
}

#[test]
fn a_policy_that_has_ended_matches_nothing() {
    let ending = |rule: &RuleSpec, expires| PolicySpec { expires, ..policy("p", rule) };
    let always = rule(RuleKind::AlwaysSample);
    let facts = Facts { spans: 1, ..Facts::default() };
    let evidence = Evidence {
        trace_id: TraceId([1; 16]),
        facts: &facts,
        bits: &[],
        randomness: Randomness(0),
        forced: false,
    };
    let decides = |plan: &Plan| {
        let mut matched = Vec::new();
        let verdict = plan.decide(&evidence, &mut matched);
        assert_eq!(verdict.kept, matched.contains(&PolicyId(0)));
        verdict.kept
    };
    let plan = Plan::compile(&[ending(&always, Some(1_000))]);
    assert_eq!(plan.expiries(), [(PolicyId(0), 1_000)]);
    assert_eq!(plan.expire(999), []);
    assert!(decides(&plan));
    // A successor with the same end shares the flag, whichever plan gets the time.
    let same = plan.successor(&[ending(&always, Some(1_000))]).expect("few names");
    let later = plan.successor(&[ending(&always, Some(1_001))]).expect("few names");
    assert_eq!(same.expire(1_000), [PolicyId(0)]);
    assert_eq!(plan.expire(1_000), []);
    assert!(!decides(&plan) && !decides(&same) && decides(&later));
    // The clock is set back.
    assert_eq!(plan.expire(999), []);
    assert!(decides(&plan) && decides(&same));
    assert_eq!(plan.expire(5_000), [PolicyId(0)]);

    let veto = Plan::compile(&[policy("keeps", &always), ending(&drop_rule(&always), Some(7))]);
    assert!(!veto.decide(&evidence, &mut Vec::new()).kept);
    assert_eq!(veto.expire(7), [PolicyId(1)]);
    assert!(veto.decide(&evidence, &mut Vec::new()).kept);
}
