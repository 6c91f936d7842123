//! The sampler alone: the bits of buffered traces under policies that are loaded later, and of
//! spans that arrive meanwhile.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use regex::bytes::RegexSet;
use tailwater::{
    policy::{
        POLICY_NAMES_MAX, Plan, PolicyId, PolicySpec, RuleKind, RuleSpec, Scope, StringMatch,
    },
    sampler::{Decided, Hold, Sampler, Scratch, Which},
    window::Millis,
};

use crate::builders::{
    ANY_ROOM, Fixture, child, limits, policy, probabilistic, request_of, root, text,
};

fn certain(kind: RuleKind) -> RuleSpec {
    RuleSpec { kind, sampling_percentage: 100.0 }
}

fn exact(value: &str) -> StringMatch {
    StringMatch::Exact(vec![value.to_owned()])
}

fn has(key: &str, value: &str) -> RuleSpec {
    let (key, scope) = (key.into(), Scope::Any);
    certain(RuleKind::StringAttribute { key, scope, values: exact(value), invert: false })
}

fn gold() -> PolicySpec {
    policy("gold", has("tier", "gold"))
}

/// This many policies, on values that no span has.
fn idle(policies: usize) -> Vec<PolicySpec> {
    let idle = |n: usize| policy(&format!("idle{n}"), has("tier", &format!("none {n}")));
    (0..policies).map(idle).collect()
}

fn reload(sampler: &Sampler, policies: &[PolicySpec], watch: impl FnMut(Hold)) {
    sampler.reload(&Arc::new(sampler.plan().successor(policies).expect("few names")), watch);
}

/// Decides everything; returns the credited policy of each kept trace, by the trace's number.
fn kept(fixture: &mut Fixture, traces: u64) -> BTreeMap<u64, String> {
    let number = |id: &[u8]| (0..traces).find(|&n| child(n, 0).trace_id == id).expect("known");
    let mut kept = BTreeMap::new();
    for decided in fixture.decide(30_000, Which::Due) {
        let plan = fixture.sampler.plan();
        for record in &decided.decisions.records {
            let verdict = record.decision.verdict;
            if verdict.kept {
                kept.insert(number(&record.trace_id.0), plan.name(verdict.policy).to_owned());
            }
        }
    }
    fixture.assert_ledger();
    kept
}

/// Scenario: traces of two spans each, buffered under a set that reads nothing of them; then a set
/// that reads attributes of spans and of resources, names, and conditions on one span, among up to
/// 200 other policies, so that bits take one word or several.
/// Guarantees: each trace is decided by the new set.
#[test]
fn leaves_that_are_new_see_what_is_buffered() {
    let name = |pattern: &str| StringMatch::Regex(RegexSet::new([pattern]).expect("valid"));
    let both = vec![has("tier", "gold"), has("user", "a")];
    let new = [
        policy("same", certain(RuleKind::SameSpan(both))),
        policy("service", certain(RuleKind::ServiceName { values: exact("pay"), invert: false })),
        policy("name", certain(RuleKind::SpanName { values: name("^GET"), invert: false })),
        policy("user", has("user", "b")),
    ];
    for others in [0, 60, 61, 200] {
        let mut fixture = Fixture::new(&[probabilistic(0.0)], limits(), 2);
        let with = |trace, span, pairs: &[(&str, &str)]| Span {
            attributes: pairs.iter().map(|(key, value)| text(key, *value)).collect(),
            ..child(trace, span)
        };
        let gold = with(1, 0, &[("tier", "gold")]);
        fixture.ingest(0, &request_of(vec![child(0, 0), gold, with(2, 0, &[("user", "b")])]));
        let both = with(3, 0, &[("tier", "gold"), ("user", "a")]);
        fixture.ingest(0, &request_of(vec![with(1, 1, &[("user", "a")]), both, child(3, 1)]));
        fixture.ingest(0, &request_of(vec![Span { name: "GET /".into(), ..child(4, 0) }]));
        let pay = crate::builders::resource_spans("pay", vec![child(5, 0), child(2, 1)]);
        fixture.ingest(0, &crate::builders::request(vec![pay]));
        reload(&fixture.sampler, &[&idle(others)[..], &new].concat(), |_| {});
        let expected = [(2, "service"), (3, "same"), (4, "name"), (5, "service")];
        let expected = expected.map(|(trace, policy)| (trace, policy.to_owned()));
        assert_eq!(kept(&mut fixture, 6), BTreeMap::from(expected), "beside {others}");
    }
}

/// Scenario: the bits of a trace take three words, then none, then one, and between the reloads its
/// spans arrive.
/// Guarantees: spans that arrived under any set count under the last one.
#[test]
fn bits_grow_and_shrink() {
    let mut fixture = Fixture::new(&[gold()], limits(), 1);
    let user = policy("user", has("user", "a"));
    let sets = [idle(130), vec![probabilistic(0.0)], vec![user.clone(), gold()], vec![]];
    for (span, set) in (0..).zip(&sets) {
        let pair = if span == 1 { text("user", "a") } else { text("other", "x") };
        fixture.ingest(0, &request_of(vec![Span { attributes: vec![pair], ..child(0, span) }]));
        fixture.ingest(0, &request_of(vec![child(1, span)]));
        reload(&fixture.sampler, set, |_| {});
    }
    reload(&fixture.sampler, &[&idle(70)[..], &[user]].concat(), |_| {});
    assert_eq!(kept(&mut fixture, 2), BTreeMap::from([(0, "user".to_owned())]));
}

/// Scenario: during a reload, after each of its locks, spans arrive of a trace that was already
/// walked for it and of a new trace, and other traces are decided.
/// Guarantees: the new set sees them, whenever they arrive.
#[test]
fn spans_that_come_during_a_reload_are_seen() {
    let wanted = |span: Span| Span { attributes: vec![text("tier", "gold")], ..span };
    for set in [vec![gold()], [idle(100), vec![gold()]].concat()] {
        for moment in 0..3 {
            let mut fixture = Fixture::new(&[probabilistic(0.0)], limits(), 1);
            fixture.ingest(0, &request_of(vec![root(3, 0), child(0, 0), child(1, 0)]));
            let Fixture { sampler, scratch, .. } = &mut fixture;
            let (mut decided, mut locks) = (Decided::default(), 0);
            reload(sampler, &set, |hold| {
                if hold == Hold::Ended && locks == moment {
                    let spans = vec![wanted(child(0, 1)), wanted(child(2, 0)), child(1, 1)];
                    let now = Millis(6_000);
                    sampler.decide(0, now, Which::Due, ANY_ROOM, &mut decided);
                    let taken = sampler.ingest(now, &request_of(spans), scratch, &mut decided);
                    assert_eq!(taken.expect("sound").accepted, 3);
                }
                locks += usize::from(hold == Hold::Ended);
            });
            fixture.accepted += 3;
            fixture.book(&decided);
            assert_eq!((locks, fixture.dropped), (3, 1));
            let mut gold: Vec<_> = kept(&mut fixture, 4).into_keys().collect();
            fixture.decide(36_000, Which::Due).iter().for_each(|decided| {
                let kept = decided.kept.len();
                gold.extend((kept > 0).then_some(2));
            });
            assert_eq!(gold, [0, 2], "after lock {moment}");
            fixture.assert_ledger();
        }
    }
}

/// Scenario: an attribute whose value has a wrong wire type is accepted, because no policy reads
/// it; then one does.
/// Guarantees: the trace meets no condition on it, but those on its other attributes.
#[test]
fn unreadable_values_match_nothing() {
    let mut fixture = Fixture::new(&[probabilistic(0.0)], limits(), 1);
    let mut span = child(0, 0).encode_to_vec();
    // A KeyValue of key "tier" whose AnyValue has field 1, a string, as a varint.
    span.extend([0x4a, 10, 0x0a, 4, b't', b'i', b'e', b'r', 0x12, 2, 0x08, 1]);
    span.extend(Span { attributes: vec![text("user", "a")], ..Span::default() }.encode_to_vec());
    let nested = |tag: u8, inner: Vec<u8>| [&[tag, inner.len() as u8], &inner[..]].concat();
    assert!(span.len() < 120, "lengths are one byte");
    let request = nested(0x0a, nested(0x12, nested(0x12, span)));
    fixture.ingest(0, &request);
    reload(&fixture.sampler, &[gold(), policy("user", has("user", "a"))], |_| {});
    assert_eq!(kept(&mut fixture, 1), BTreeMap::from([(0, "user".to_owned())]));
    let again =
        fixture.sampler.ingest(Millis(0), &request, &mut fixture.scratch, &mut Decided::default());
    assert!(again.is_err(), "asked for, it refuses the request");
}

/// Scenario: an event with an unreadable attribute and a readable event are accepted, because no
/// policy reads events; then policies do.
/// Guarantees: the first meets no condition, not even with its readable parts; the other and the
/// rest of the span do.
#[test]
fn an_event_that_cannot_be_read_meets_nothing() {
    let event = |name: &str, key: Option<&str>| {
        let (names, key, values) = (Some(exact(name)), key.map(str::to_owned), None);
        certain(RuleKind::SpanEvent { names, key, values, invert: false })
    };
    let named = |values| certain(RuleKind::SpanName { values, invert: false });
    let mut fixture = Fixture::new(&[probabilistic(0.0)], limits(), 1);
    let mut span = child(0, 0).encode_to_vec();
    // An event with the attribute "k" and then one whose key is a number, and the name "a".
    span.extend([0x5a, 12, 0x1a, 3, 0x0a, 1, b'k', 0x1a, 2, 0x08, 1, 0x12, 1, b'a']);
    // An event of the name "b".
    span.extend([0x5a, 3, 0x12, 1, b'b']);
    let nested = |tag: u8, inner: Vec<u8>| [&[tag, inner.len() as u8], &inner[..]].concat();
    assert!(span.len() < 120, "lengths are one byte");
    let request = nested(0x0a, nested(0x12, nested(0x12, span)));
    fixture.ingest(0, &request);
    let sets = [
        ("a", event("a", None)),
        ("k of b", event("b", Some("k"))),
        ("b", event("b", None)),
        ("name", named(exact("operation 0"))),
    ];
    let sets = sets.map(|(name, rule)| policy(name, rule));
    reload(&fixture.sampler, &sets, |_| {});
    let decided = fixture.decide(30_000, Which::Due);
    let plan = fixture.sampler.plan();
    let matched = decided.iter().flat_map(|decided| &decided.decisions.matched);
    assert_eq!(matched.map(|&id| plan.name(id)).collect::<Vec<_>>(), ["b", "name"]);
    let again =
        fixture.sampler.ingest(Millis(0), &request, &mut fixture.scratch, &mut Decided::default());
    assert!(again.is_err(), "asked for, it refuses the request");
}

/// Scenario: three threads send traces of two parts while a fourth reloads sets without bits, with
/// one word and with two; the last set keeps traces by both parts together.
/// Guarantees: whatever set a request was walked with, every trace is decided by the last set.
#[test]
fn requests_that_race_with_reloads_are_right() {
    const SENDERS: u64 = 3;
    const TRACES: u64 = 3_000;
    let last = [gold(), policy("user", has("user", "a"))];
    let sets = [vec![probabilistic(0.0)], last.to_vec(), [idle(70), last.to_vec()].concat()];
    let mut fixture = Fixture::new(&sets[0], limits(), 4);
    let sampler = &fixture.sampler;
    let next = &AtomicU64::new(0);
    let send = || {
        let mut scratch = Scratch::default();
        loop {
            let trace = next.fetch_add(1, Relaxed);
            if trace >= TRACES {
                break;
            }
            for (span, key) in [(0, "tier"), (1, "user")] {
                let pair = match (trace % 3, key) {
                    (0, "tier") => text("tier", "gold"),
                    (1, "user") => text("user", "a"),
                    _ => text(key, "none"),
                };
                let request =
                    request_of(vec![Span { attributes: vec![pair], ..child(trace, span) }]);
                let mut decided = Decided::default();
                sampler.ingest(Millis(0), &request, &mut scratch, &mut decided).expect("sound");
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..SENDERS {
            scope.spawn(send);
        }
        for number in 0.. {
            reload(sampler, &sets[number % 3], |_| {});
            if next.load(Relaxed) >= TRACES && number % 3 == 2 {
                break;
            }
        }
    });
    fixture.accepted = 2 * TRACES;
    let decided = fixture.decide(30_000, Which::Due);
    let plan = fixture.sampler.plan();
    let mut by_policy = BTreeMap::<_, u64>::new();
    for record in decided.iter().flat_map(|decided| &decided.decisions.records) {
        *by_policy.entry(plan.name(record.decision.verdict.policy)).or_default() += 1;
    }
    let expected = ["gold", "none", "user"].map(|policy| (policy, TRACES / 3));
    assert_eq!(by_policy, BTreeMap::from(expected));
    fixture.assert_ledger();
}

/// Scenario: a sequence of plans, with names that are removed and return, up to the limit.
/// Guarantees: a name keeps its id; a plan with one name too many is refused.
#[test]
fn names_keep_their_ids() {
    let set = |names: &[&str]| -> Vec<_> {
        names.iter().map(|name| policy(name, has("tier", name))).collect()
    };
    let first = Plan::compile(&set(&["a", "b"]));
    let second = first.successor(&set(&["c", "b"])).expect("few");
    let third = second.successor(&set(&["d", "a"])).expect("few");
    assert_eq!(third.names(), ["a", "b", "c", "d"]);
    assert_eq!((third.name(PolicyId(2)), third.name(PolicyId::NONE)), ("c", "none"));
    let numbered = |n: usize| policy(&format!("n{n}"), certain(RuleKind::AlwaysSample));
    let many: Vec<_> = (0..POLICY_NAMES_MAX - 4).map(numbered).collect();
    let full = third.successor(&many).expect("just as many");
    assert!(full.successor(&set(&["a", "d"])).is_ok());
    assert!(full.successor(&set(&["a", "e"])).is_err());
}
