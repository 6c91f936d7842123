//! Measures the stages one by one, in one thread and in process: the cost of a span to walk,
//! intern, take in, append, decide, encode and export; how the cost grows with the policies, and
//! with the workers (`cores`); the cost of span metrics, of a budget, of inflating and of OTLP/JSON;
//! how long a reload locks a shard of a large window; and the cost of hostile ids and tokens. Isolates
//! Tailwater's own code from sockets, HTTP/2 and the runtime, except in `export`. Compare a stage
//! with itself before and after a change, in alternation on the same machine, or by the
//! instructions that `benches/instructions.sh` counts.
//!
//! Traffic and policies are those of the load generator (684-byte spans, 10 % kept). Time is
//! virtual: a request every 3.4 ms, a window of one second, a tick of 100 ms. `cargo bench --bench
//! stages` runs all stages, `cargo bench --bench stages -- walk decide` some; a number sets how
//! many requests each stage runs.

#[path = "../load_generator/corpus.rs"]
#[expect(dead_code, reason = "the load generator uses the rest of it")]
mod corpus;
#[path = "../load_generator/diverse.rs"]
mod diverse;
#[path = "../load_generator/framing.rs"]
#[expect(dead_code, reason = "the load generator uses the rest of it")]
mod framing;
#[path = "../load_generator/traffic.rs"]
mod traffic;
mod beside;
mod cores;
mod inflating;
mod json;
mod measured;
mod parts;

use std::{
    ops::Bound::{Included, Unbounded},
    sync::Arc,
    time::{Duration, Instant},
};

use corpus::{Corpus, GRPC_PREFIX_BYTES, SPANS_PER_REQUEST, Shape};
use regex::bytes::RegexSet;
use tailwater::{
    budget::Budget,
    otlp::{
        Contexts,
        encode::{Batch, TraceStamp},
        tracestate::Stamp,
        walk::{self, Walked},
    },
    policy::{Number, NumberRange, Plan, PolicySpec, RuleKind, RuleSpec, Scope, StringMatch},
    sampler::{Decided, Hold, Limits, Progress, Sampler, Scratch, Which},
    trace::{StatusCode, Trigger},
    window::{Millis, Waits},
};

/// The result type of this bench, which the modules of the load generator expect in their crate.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Returned when a corpus is used up, which happens only to compressed ones.
const ENDED: &str = "the corpus has ended";
/// Requests of a stage, if no argument sets another number.
const REQUESTS: u64 = 3_000;
/// Requests that fill a window of one second, and a few more.
const WARM_UP: u64 = 600;
const MAX_REQUEST_BYTES: usize = 3584 << 10;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` runs benches without arguments, only to see that they start.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let requests = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(REQUESTS);
    let names =
        arguments.iter().filter(|name| !name.starts_with('-') && name.parse::<u64>().is_err());
    let names: Vec<&String> = names.collect();
    let is_wanted = |stage: &str| names.is_empty() || names.iter().any(|name| *name == stage);
    let mut corpus = Corpus::build(&Shape::plain(64))?;
    if is_wanted("walk") {
        walk_only(&mut corpus, "walk", &plan(), requests)?;
    }
    if is_wanted("intern") {
        parts::intern(&mut corpus, requests)?;
    }
    if is_wanted("append") {
        parts::append(&mut corpus, requests)?;
    }
    if ["ingest", "decide", "log", "encode"].into_iter().any(is_wanted) {
        whole(&mut corpus, plan(), "", requests)?;
    }
    if is_wanted("json") {
        json::convert(&mut corpus, requests)?;
    }
    if is_wanted("export") {
        parts::export(&mut corpus, requests)?;
    }
    if is_wanted("policies") {
        for policies in [1, 16, 256] {
            let label = format!(", {policies} policies");
            let plan = || Plan::compile(&many_specs(policies));
            walk_only(&mut corpus, &format!("walk{label}"), &plan(), requests)?;
            whole(&mut corpus, plan(), &label, requests)?;
        }
    }
    for workers in cores::WORKERS {
        if is_wanted("cores") || names.iter().any(|name| **name == format!("cores-{workers}")) {
            cores::run(&mut corpus, workers, requests)?;
        }
    }
    drop(corpus);
    if is_wanted("spanmetrics") {
        beside::span_metrics_of_servers(requests)?;
    }
    if is_wanted("allkinds") {
        beside::span_metrics_of_all(requests)?;
    }
    if is_wanted("budget") {
        beside::budget(requests)?;
    }
    if is_wanted("inflate") {
        inflating::run()?;
    }
    if is_wanted("token") {
        tokens()?;
    }
    if is_wanted("hostile") {
        chosen_ids()?;
    }
    if is_wanted("reload") {
        reload()?;
    }
    Ok(())
}

/// The cost of checking a token, and whether the time reveals how much of it is right: compares a
/// token that is wrong in its first byte with one that is wrong in its last, in alternation.
fn tokens() -> Result<()> {
    const ROUNDS: usize = 501;
    const CHECKS: u32 = 10_000;
    let file = std::env::temp_dir().join(format!("tailwater-token-{}", std::process::id()));
    std::fs::write(&file, "a".repeat(64))?;
    let tokens = tailwater::credentials::read_tokens(&file);
    std::fs::remove_file(&file)?;
    let tokens = tokens?;
    let wrong = [format!("Bearer b{}", "a".repeat(63)), format!("Bearer {}b", "a".repeat(63))];
    let mut ratios = Vec::new();
    let mut nanos = 0.0;
    for _ in 0..ROUNDS {
        let [first, last] = [0, 1].map(|which| {
            let started = now();
            for _ in 0..CHECKS {
                std::hint::black_box(tokens.admit(std::hint::black_box(wrong[which].as_bytes())));
            }
            started.elapsed().as_secs_f64() * 1e9 / f64::from(CHECKS)
        });
        ratios.push(last / first);
        nanos += first / ROUNDS as f64;
    }
    ratios.sort_by(f64::total_cmp);
    let [low, median, high] = [ROUNDS / 4, ROUNDS / 2, ROUNDS * 3 / 4].map(|at| ratios[at]);
    println!(
        "token: {nanos:.0} ns a check; wrong in the last byte over wrong in the first: median \
         {median:.4}, quartiles {low:.4} and {high:.4}"
    );
    Ok(())
}

/// The cost of taking in trace ids that an attacker has chosen, with equal low halves and with
/// equal high halves, compared with random ones, in alternation.
fn chosen_ids() -> Result<()> {
    const ROUNDS: u64 = 400;
    let mut corpus = Corpus::build(&Shape::plain(64))?;
    let limits = limits(Waits { decision_wait: 3_600_000, after_root: None });
    let samplers =
        [(); 3].map(|()| Sampler::new(Arc::new(plan()), limits, &Budget::new(4 << 30), 8));
    let (mut scratch, mut decided) = (Scratch::default(), Decided::default());
    let mut times = [Duration::ZERO; 3];
    for sequence in 0..ROUNDS {
        let random = corpus.body(sequence).ok_or(ENDED)?.slice(GRPC_PREFIX_BYTES..);
        let (mut low, mut high) = (random.to_vec(), random.to_vec());
        framing::for_each_span(&random, |span| {
            // The id comes first, after its tag and length.
            let id = span.start + 2;
            low[id + 8..id + 16].fill(1);
            high[id..id + 8].fill(1);
        })
        .ok_or("the corpus has broken framing")?;
        for (which, request) in [&random[..], &low, &high].into_iter().enumerate() {
            let started = now();
            samplers[which].ingest(Millis(0), request, &mut scratch, &mut decided)?;
            times[which] += started.elapsed();
        }
    }
    let [low, high] = [1, 2].map(|which| times[which].as_secs_f64() / times[0].as_secs_f64());
    println!("chosen ids: equal low halves {low:.2}, equal high halves {high:.2} of random ones");
    Ok(())
}

/// Reloads a window of 1 GiB over 8 shards, with few policies and with many, and prints the longest
/// time that a shard is locked while nothing arrives. The parts of a trace arrive in consecutive
/// requests, or far apart.
fn reload() -> Result<()> {
    for (traffic, stride) in [("parts together", 1), ("parts far apart", 30)] {
        let mut corpus = Corpus::build(&Shape { stride, ..Shape::plain(64) })?;
        let limits = limits(Waits { decision_wait: 3_600_000, after_root: None });
        let sampler = Sampler::new(Arc::new(plan()), limits, &Budget::new(4 << 30), 8);
        let (mut scratch, mut decided) = (Scratch::default(), Decided::default());
        for sequence in 0.. {
            let body = corpus.body(sequence).ok_or(ENDED)?.slice(GRPC_PREFIX_BYTES..);
            sampler.ingest(Millis(0), &body, &mut scratch, &mut decided)?;
            if sequence % 64 == 0 && sampler.buffered().bytes >= 1 << 30 {
                break;
            }
        }
        for (policies, specs) in [("4", specs()), ("256", many_specs(256)), ("4", specs())] {
            let plan = Arc::new(sampler.plan().successor(&specs)?);
            let mut longest = Duration::ZERO;
            let started = now();
            let mut since = started;
            sampler.reload(&plan, |hold| match hold {
                Hold::Begins => since = now(),
                Hold::Ended => longest = longest.max(since.elapsed()),
            });
            let millis = |time: Duration| time.as_secs_f64() * 1e3;
            let (longest, all) = (millis(longest), millis(started.elapsed()));
            println!(
                "reload, {policies:>3} policies, {traffic:<15} {longest:6.1} ms at most in a lock, \
                 {all:6.1} ms in all"
            );
        }
    }
    Ok(())
}

/// Measures the walker alone: framing, ids, times, status, attribute keys, contexts.
fn walk_only(corpus: &mut Corpus, stage: &str, plan: &Plan, requests: u64) -> Result<()> {
    let contexts = Contexts::new(Budget::new(1 << 30));
    let mut walked = Walked::default();
    let mut kept_alive = Vec::new();
    let mut time = Duration::ZERO;
    for sequence in 0..requests {
        let body = corpus.body(sequence).ok_or(ENDED)?.slice(GRPC_PREFIX_BYTES..);
        walked.clear();
        measured::walk(&mut time, || walk::walk(&body, &contexts, plan.leaves(), &mut walked))?;
        // Keeps the contexts alive as a window would, so that the next walk finds them instead of
        // creating them.
        kept_alive.clear();
        kept_alive.extend(walked.contexts.iter().cloned());
    }
    report(stage, time, requests * SPANS_PER_REQUEST);
    Ok(())
}

/// Drives the sampler as the service does.
fn whole(corpus: &mut Corpus, plan: Plan, label: &str, requests: u64) -> Result<()> {
    let budget = Budget::new(4 << 30);
    let limits = limits(Waits { decision_wait: 1000, after_root: None });
    let sampler = Sampler::new(Arc::new(plan), limits, &budget, 8);
    let (mut scratch, mut decided, mut batch) =
        (Scratch::default(), Decided::default(), Batch::default());
    let mut times = Times::default();
    let mut tick = 0;
    for sequence in 0..WARM_UP + requests {
        if sequence == WARM_UP {
            times = Times::default();
        }
        let now_ms = arrival_ms(sequence);
        let body = corpus.body(sequence).ok_or(ENDED)?.slice(GRPC_PREFIX_BYTES..);
        let ingest = || sampler.ingest(Millis(now_ms), &body, &mut scratch, &mut decided);
        measured::ingest(&mut times.ingest, ingest)?;
        if now_ms / 100 == tick {
            continue;
        }
        tick = now_ms / 100;
        let ticked = Tick { sampler: &sampler, now: Millis(now_ms), times: &mut times };
        ticked.run(&mut decided, &mut batch);
    }
    for (stage, time) in [
        ("ingest, walk included", times.ingest),
        ("decide", times.decide),
        ("log", times.log),
        ("encode: clean, stamp, copy", times.encode),
    ] {
        report(&format!("{stage}{label}"), time, requests * SPANS_PER_REQUEST);
    }
    Ok(())
}

/// The arrival time of a request, at 300,000 spans/s.
fn arrival_ms(sequence: u64) -> u32 {
    (sequence * SPANS_PER_REQUEST * 1000 / 300_000) as u32
}

#[derive(Default)]
struct Times {
    ingest: Duration,
    decide: Duration,
    log: Duration,
    encode: Duration,
}

fn limits(waits: Waits) -> Limits {
    Limits {
        waits,
        max_trace_spans: 32_000,
        max_trace_bytes: 16 << 20,
        context_bytes_max: usize::MAX,
        kept_bytes_max: None,
        decision_ttl_millis: 120_000,
        decision_log_traces: 100_000,
    }
}

struct Tick<'a> {
    sampler: &'a Sampler,
    now: Millis,
    times: &'a mut Times,
}

impl Tick<'_> {
    fn run(self, decided: &mut Decided, batch: &mut Batch) {
        let Tick { sampler, now, times } = self;
        for shard in 0..sampler.shards() {
            loop {
                let decide = || sampler.decide(shard, now, Which::Due, usize::MAX, decided);
                let progress = measured::decide(&mut times.decide, decide);
                measured::log(&mut times.log, || sampler.log().push(&decided.decisions, 0));
                measured::encode(&mut times.encode, || push(decided, batch, &sampler.plan()));
                measured::decide(&mut times.decide, || decided.clear());
                if progress != Progress::More {
                    break;
                }
            }
        }
        let mut requests = Vec::new();
        measured::encode(&mut times.encode, || {
            while let Some(next) = batch.next(MAX_REQUEST_BYTES) {
                requests.push(next.encode());
            }
        });
    }
}

fn push(decided: &mut Decided, batch: &mut Batch, plan: &Plan) {
    let mut spans = decided.spans.drain(..);
    for trace in &decided.kept {
        let tracestate = Stamp {
            threshold: trace.verdict.threshold,
            randomness: trace.randomness,
            explicit: trace.is_explicit,
        };
        let trigger = trace.trigger.map_or("", Trigger::as_str);
        let stamp = TraceStamp {
            tracestate: Some(tracestate),
            policy_and_trigger: Some((plan.name(trace.verdict.policy), trigger)),
        };
        batch.push_trace(spans.by_ref().take(trace.spans), &stamp);
    }
}

fn plan() -> Plan {
    Plan::compile(&specs())
}

fn specs() -> Vec<PolicySpec> {
    let rule = |kind| RuleSpec { kind, sampling_percentage: 100.0 };
    let tier = RuleKind::StringAttribute {
        key: traffic::TIER_KEY.into(),
        scope: Scope::Any,
        values: StringMatch::Exact(vec![traffic::TIER_WANTED.into()]),
        invert: false,
    };
    let latency = RuleKind::Latency { threshold_ms: traffic::SLOW_MS, upper_threshold_ms: None };
    let baseline =
        RuleSpec { kind: RuleKind::AlwaysSample, sampling_percentage: traffic::BASELINE_PERCENT };
    let rules = [
        rule(RuleKind::StatusCode { codes: vec![StatusCode::Error] }),
        rule(latency),
        rule(tier),
        baseline,
    ];
    let specs = rules.into_iter().zip(["errors", "slow", "tier", "baseline"]);
    specs.map(|(rule, name)| PolicySpec::new(name, rule)).collect()
}

/// `policies` policies with four conditions each on keys that most spans have, 10 listed values
/// each, a regular expression in every eighth, and `same_span` in every fourth.
fn many_specs(policies: usize) -> Vec<PolicySpec> {
    let rule = |kind| RuleSpec { kind, sampling_percentage: 100.0 };
    let text = |key: &str, values| {
        let (key, scope) = (key.to_owned(), Scope::Any);
        rule(RuleKind::StringAttribute { key, scope, values, invert: false })
    };
    let listed = |first: &str, n: usize| {
        let others = (1..10).map(|i| format!("{first} {n} {i}"));
        StringMatch::Exact(std::iter::once(first.to_owned()).chain(others).collect())
    };
    let policy = |n: usize| {
        let expression = RegexSet::new([format!("^/api/v{n}/")]).expect("valid");
        let path =
            if n.is_multiple_of(8) { StringMatch::Regex(expression) } else { listed("/none", n) };
        let lower = Included(Number::Int(200 + n as i64));
        let at_least = NumberRange { lower, upper: Unbounded };
        let status = "http.response.status_code".to_owned();
        let number = RuleKind::NumericAttribute {
            key: status,
            scope: Scope::Any,
            range: at_least,
            invert: false,
        };
        let parts = vec![
            text("http.route", listed(&format!("/route/{n}"), n)),
            text("server.address", listed("shop.example.net", n)),
            text("url.path", path),
            rule(number),
        ];
        let kind =
            if n.is_multiple_of(4) { RuleKind::SameSpan(parts) } else { RuleKind::And(parts) };
        PolicySpec::new(format!("p{n}"), rule(kind))
    };
    (0..policies).map(policy).collect()
}

/// Prints one line per stage: its name, and the cost of each span.
fn report(stage: &str, time: Duration, spans: u64) {
    let nanos = time.as_nanos() as f64 / spans as f64;
    println!("{stage:<40} {nanos:8.1} ns a span, {spans} spans");
}

#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
fn now() -> Instant {
    Instant::now()
}
