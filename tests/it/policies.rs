//! The shipped policy files, each with real traffic through a running service.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{Span, span::Event},
};
use tailwater::config::Config;

use crate::harness::{
    Metrics, Running, attribute, config, error, request, span, string, tempfile, trace_id,
};

/// A randomness kept by policies of 1 % and more.
const LUCKY: u64 = 0x00ff_0000_0000_0000;
/// A randomness kept by policies of 10 % and more, not by 5 %.
const FAIR: u64 = 0x00f0_0000_0000_0000;
/// A randomness kept by policies of 20 % and more, not by 10 %.
const SO_SO: u64 = 0x00d0_0000_0000_0000;
/// A randomness kept only by policies of 100 %.
const UNLUCKY: u64 = 0x0010_0000_0000_0000;

/// The tracestate of traces kept at 100 %.
const WHOLE: &str = "ot=th:0";
const HALF: &str = "ot=th:8";
const TENTH: &str = "ot=th:e6666666666666";
const TWENTIETH: &str = "ot=th:f3333333333333";
const HUNDREDTH: &str = "ot=th:fd70a3d70a3d71";

/// Spans with their services, in the order in which they are sent.
#[derive(Debug)]
struct Trace {
    number: u64,
    spans: Vec<(&'static str, Span)>,
}

impl Trace {
    /// A root span and a child of a service called shop, the child first, a millisecond each.
    fn new(number: u64) -> Self {
        let mut spans = [span(number, 2, Some(1)), span(number, 1, None)];
        for span in &mut spans {
            span.end_time_unix_nano = span.start_time_unix_nano + 1_000_000;
            span.attributes.clear();
        }
        Trace { number, spans: spans.map(|span| ("shop", span)).into() }
    }

    /// Sets the duration of the child.
    fn lasting(mut self, millis: u64) -> Self {
        let child = &mut self.spans[0].1;
        child.end_time_unix_nano = child.start_time_unix_nano + millis * 1_000_000;
        self
    }

    /// Sets the status of the child to ERROR.
    fn failing(mut self) -> Self {
        self.spans[0].1.status = error();
        self
    }

    /// Adds this attribute to the child.
    fn with(mut self, key: &str, value: Value) -> Self {
        let value = Some(AnyValue { value: Some(value) });
        let pair = KeyValue { key: key.to_owned(), value, ..KeyValue::default() };
        self.spans[0].1.attributes.push(pair);
        self
    }

    fn with_text(mut self, key: &str, value: &str) -> Self {
        self.spans[0].1.attributes.push(string(key, value));
        self
    }

    fn of_route(self, route: &str) -> Self {
        self.with_text("http.route", route)
    }

    /// Sets the services of the child and the root.
    fn of(mut self, services: [&'static str; 2]) -> Self {
        self.spans.iter_mut().zip(services).for_each(|(span, service)| span.0 = service);
        self
    }
}

/// The expected outcome of a trace: kept by a policy with a tracestate, or dropped by a policy.
#[derive(Clone, Copy)]
enum Expected {
    Kept(&'static str, &'static str),
    Dropped(&'static str),
}

use Expected::{Dropped, Kept};

/// A configuration of only these shipped files, which must load without a warning.
fn shipped(files: &[&str]) -> Config {
    let path = |file: &&str| format!("'{}/policies/{file}'", env!("CARGO_MANIFEST_DIR"));
    let paths: Vec<_> = files.iter().map(path).collect();
    let text = format!("[sampling]\npolicy_files = [{}]\n", paths.join(", "));
    let main = tempfile(&text);
    let loaded = tailwater::config::load(&main);
    std::fs::remove_file(main).expect("removed");
    assert!(loaded.diagnostics.is_empty(), "{files:?}\n{}", loaded.diagnostics);
    config(&text)
}

/// Sends the traces to a service with these files, and checks the outcome of each.
async fn check<const N: usize>(files: &[&str], cases: [(Trace, Expected); N]) -> Metrics {
    let config = shipped(files);
    let policies: Vec<_> = config.policies.iter().map(|policy| policy.name.clone()).collect();
    let running = Running::start(config).await;
    for (trace, _) in &cases {
        for (service, span) in &trace.spans {
            running.export(&request(service, vec![span.clone()])).await.expect("accepted");
        }
    }
    let metrics = running.at_rest().await;
    let sent = running.traces();
    for (trace, expected) in &cases {
        assert_outcome(
            trace,
            sent.get(&trace_id(trace.number)).map_or(&[], Vec::as_slice),
            *expected,
        );
    }
    let mut counted = BTreeMap::<_, [f64; 2]>::new();
    for (_, expected) in &cases {
        match expected {
            Kept(policy, _) => counted.entry(*policy).or_default()[0] += 1.0,
            Dropped(policy) => counted.entry(*policy).or_default()[1] += 1.0,
        }
    }
    for policy in policies.iter().map(String::as_str).chain(["none"]) {
        let of = |metric: &str| metrics.get(&format!("{metric}{{policy=\"{policy}\"}}"));
        let found = [of("traces_kept_total"), of("traces_dropped_total")];
        assert_eq!(found, counted.remove(policy).unwrap_or_default(), "{policy}");
    }
    assert!(counted.is_empty(), "not in {files:?}: {counted:?}");
    running.stop().await;
    metrics
}

fn assert_outcome(trace: &Trace, sent: &[Span], expected: Expected) {
    let (policy, tracestate) = match expected {
        Dropped(_) => return assert!(sent.is_empty(), "{trace:?}"),
        Kept(policy, tracestate) => (policy, tracestate),
    };
    assert_eq!(sent.len(), trace.spans.len(), "{trace:?}");
    assert!(sent.iter().all(|span| span.trace_state == tracestate), "{sent:?}");
    let root = sent.iter().find(|span| span.parent_span_id.is_empty()).expect("a root");
    assert_eq!(attribute(root, "tailwater.policy"), Some(policy), "{trace:?}");
}

/// Scenario: the default policies with failing, slow and ordinary traces.
/// Guarantees: errors and traces over 500 ms are all kept, of the rest one in ten by its id.
#[tokio::test]
async fn default() {
    let cases = [
        (Trace::new(UNLUCKY | 1).failing(), Kept("errors", WHOLE)),
        (Trace::new(UNLUCKY | 2).lasting(501), Kept("slow", WHOLE)),
        (Trace::new(UNLUCKY | 3).lasting(500), Dropped("baseline")),
        (Trace::new(FAIR | 4), Kept("baseline", TENTH)),
        (Trace::new(LUCKY | 5), Kept("baseline", TENTH)),
        (Trace::new(UNLUCKY | 6), Dropped("baseline")),
        (Trace::new(UNLUCKY | 7).of_route("/api/checkout"), Dropped("baseline")),
    ];
    check(&["default.toml"], cases).await;
}

/// Scenario: the policies for busy services with failing, slow and ordinary traces.
/// Guarantees: errors and traces over two seconds are all kept, of the rest one in twenty.
#[tokio::test]
async fn errors_and_slow() {
    let cases = [
        (Trace::new(UNLUCKY | 1).failing(), Kept("errors", WHOLE)),
        (Trace::new(UNLUCKY | 2).lasting(2001), Kept("slow", WHOLE)),
        (Trace::new(UNLUCKY | 3).lasting(2000), Dropped("baseline")),
        (Trace::new(FAIR | 4), Dropped("baseline")),
        (Trace::new(LUCKY | 5), Kept("baseline", TWENTIETH)),
    ];
    check(&["errors-and-slow.toml"], cases).await;
}

/// Scenario: the policies of a shop with failing, slow, paying and other traces.
/// Guarantees: traces that touch checkout or payment are kept, as are errors and traces over a
/// second.
#[tokio::test]
async fn shop() {
    let cases = [
        (Trace::new(UNLUCKY | 1).failing(), Kept("errors", WHOLE)),
        (Trace::new(UNLUCKY | 2).lasting(1001), Kept("slow", WHOLE)),
        (Trace::new(UNLUCKY | 3).lasting(1000), Dropped("baseline")),
        (Trace::new(UNLUCKY | 4).of_route("/api/checkout"), Kept("checkout", WHOLE)),
        (Trace::new(UNLUCKY | 5).of_route("/api/payment"), Kept("checkout", WHOLE)),
        (Trace::new(UNLUCKY | 6).of_route("/api/checkout/7"), Dropped("baseline")),
        (Trace::new(FAIR | 7), Kept("baseline", TENTH)),
        // If several policies keep all their traces, the first one in the file is credited.
        (Trace::new(UNLUCKY | 8).of_route("/api/checkout").failing(), Kept("errors", WHOLE)),
    ];
    check(&["shop.toml"], cases).await;
}

/// Scenario: traces on business routes, below them, and on routes with the same beginning; with the
/// default policies and alone.
/// Guarantees: traces of the routes and everything below are kept whole; alone, the file keeps
/// nothing else.
#[tokio::test]
async fn business_routes() {
    let route = |number: u64, route: &str| Trace::new(UNLUCKY | number).of_route(route);
    let cases = [
        (route(1, "/api/checkout"), Kept("business-routes", WHOLE)),
        (route(2, "/api/payment/{id}/confirm"), Kept("business-routes", WHOLE)),
        (route(3, "/api/payments"), Dropped("baseline")),
        (route(4, "/v2/api/checkout"), Dropped("baseline")),
        (Trace::new(FAIR | 5), Kept("baseline", TENTH)),
        (Trace::new(UNLUCKY | 6).failing(), Kept("errors", WHOLE)),
    ];
    check(&["default.toml", "business-routes.toml"], cases).await;
    let alone = [
        (route(1, "/api/checkout"), Kept("business-routes", WHOLE)),
        (Trace::new(LUCKY | 2).failing(), Dropped("none")),
    ];
    check(&["business-routes.toml"], alone).await;
}

/// Scenario: traces that somebody asked to keep, in each of the possible ways, and others.
/// Guarantees: the requested traces are kept, whatever their randomness.
#[tokio::test]
async fn force_sample() {
    let with = |number: u64, key: &str, value| Trace::new(UNLUCKY | number).with(key, value);
    let kept = Kept("force-sample", WHOLE);
    let cases = [
        (with(1, "force_sample", Value::BoolValue(true)), kept),
        (with(2, "force_sample", Value::BoolValue(false)), Dropped("baseline")),
        (Trace::new(UNLUCKY | 3).with_text("force_sample", "true"), kept),
        (Trace::new(UNLUCKY | 4).with_text("force_sample", "no"), Dropped("baseline")),
        (with(5, "sampling.priority", Value::IntValue(1)), kept),
        (with(6, "sampling.priority", Value::IntValue(0)), Dropped("baseline")),
        (Trace::new(FAIR | 7), Kept("baseline", TENTH)),
    ];
    check(&["default.toml", "force-sample.toml"], cases).await;
}

/// Scenario: probes by route, path, gRPC service and user agent, a failing probe, and other traces.
/// Guarantees: probes are dropped whatever else matches, everything else follows the baseline.
#[tokio::test]
async fn health_checks() {
    let probe =
        |number: u64, key: &str, value: &str| Trace::new(LUCKY | number).with_text(key, value);
    let dropped = Dropped("health-checks");
    let cases = [
        (probe(1, "http.route", "/healthz"), dropped),
        (probe(2, "url.path", "/readyz"), dropped),
        (probe(3, "rpc.service", "grpc.health.v1.Health"), dropped),
        (probe(4, "user_agent.original", "kube-probe/1.31"), dropped),
        (probe(5, "http.route", "/healthz").failing(), dropped),
        (probe(6, "http.route", "/health-insurance"), Kept("baseline", TENTH)),
        (probe(7, "user_agent.original", "not kube-probe/"), Kept("baseline", TENTH)),
        (Trace::new(UNLUCKY | 8).failing(), Kept("errors", WHOLE)),
    ];
    check(&["default.toml", "health-checks.toml"], cases).await;
}

/// Scenario: traces with a database call that lasts over 100 ms, with a faster one, and with a
/// faster one beside another slow span; and a database named by the resource.
/// Guarantees: a single span must be both a database call and slow.
#[tokio::test]
async fn slow_database_calls() {
    let call = |number: u64, system: &str| Trace::new(number).with_text(system, "postgresql");
    let mut spread = Trace::new(UNLUCKY | 4).lasting(500);
    spread.spans[1].1.attributes.push(string("db.system.name", "postgresql"));
    let cases = [
        (call(UNLUCKY | 1, "db.system.name").lasting(101), Kept("slow-database-call", WHOLE)),
        (call(UNLUCKY | 2, "db.system").lasting(400), Kept("slow-database-call", WHOLE)),
        (call(UNLUCKY | 3, "db.system.name").lasting(100), Dropped("baseline")),
        (spread, Dropped("baseline")),
        (Trace::new(UNLUCKY | 5).lasting(500), Dropped("baseline")),
        (call(FAIR | 6, "db.system"), Kept("baseline", TENTH)),
    ];
    check(&["default.toml", "slow-database-calls.toml"], cases).await;
}

/// Scenario: traces of the service in question and of others.
/// Guarantees: traces of that service are kept whole until the policy expires, within its rate.
#[tokio::test]
async fn incident() {
    let of = |number: u64, services| Trace::new(number).of(services);
    let cases = [
        (of(UNLUCKY | 1, ["payment", "shop"]), Kept("incident", WHOLE)),
        (of(UNLUCKY | 2, ["shop", "payment"]).failing(), Kept("errors", WHOLE)),
        (of(UNLUCKY | 3, ["shop", "cart"]), Dropped("baseline")),
    ];
    check(&["default.toml", "incident.toml"], cases).await;
}

/// Scenario: traces that begin with a poll, traces that fail, and others, with a shadow policy
/// `drop`.
/// Guarantees: it drops nothing, and counts the traces that it would have dropped.
#[tokio::test]
async fn rehearse_drop() {
    let poll = |number: u64| {
        let mut trace = Trace::new(number);
        let root = &mut trace.spans[1].1;
        root.kind = 5;
        root.attributes.push(string("messaging.operation.name", "poll"));
        trace
    };
    let cases = [
        (poll(FAIR | 1), Kept("baseline", TENTH)),
        (poll(UNLUCKY | 2), Dropped("baseline")),
        (poll(UNLUCKY | 3).failing(), Kept("errors", WHOLE)),
        (Trace::new(FAIR | 4), Kept("baseline", TENTH)),
    ];
    let metrics = check(&["default.toml", "rehearse-drop.toml"], cases).await;
    for (effect, traces) in [("kept", 0.0), ("dropped", 1.0), ("none", 1.0)] {
        let series = format!("shadow_traces_total{{policy=\"drop-polling\",effect=\"{effect}\"}}");
        assert_eq!(metrics.get(&series), traces, "{effect}");
    }
}

/// Scenario: requests that take long for the client, and traces that continue long after the answer
/// or have no server at their root.
/// Guarantees: only the root's own duration counts, and only if the root is a server span.
#[tokio::test]
async fn slow_requests() {
    let request = |number: u64, root_millis: u64, kind: i32| {
        let mut trace = Trace::new(number).lasting(450);
        let root = &mut trace.spans[1].1;
        root.kind = kind;
        root.end_time_unix_nano = root.start_time_unix_nano + root_millis * 1_000_000;
        trace
    };
    let cases = [
        (request(UNLUCKY | 1, 301, 2), Kept("slow-request", WHOLE)),
        (request(UNLUCKY | 2, 300, 2), Dropped("baseline")),
        (request(UNLUCKY | 3, 301, 5), Dropped("baseline")),
        (request(UNLUCKY | 4, 20, 2).failing(), Kept("errors", WHOLE)),
    ];
    check(&["default.toml", "slow-requests.toml"], cases).await;
}

/// Scenario: traces with exceptions that are timeouts, with other exceptions, and with these words
/// elsewhere.
/// Guarantees: a single event must be both an exception and a timeout.
#[tokio::test]
async fn timeouts() {
    let event = |number: u64, name: &str, kind: &str| {
        let mut trace = Trace::new(number);
        let attributes = vec![string("exception.type", kind)];
        let event = Event { name: name.to_owned(), attributes, ..Event::default() };
        trace.spans[0].1.events.push(event);
        trace
    };
    let mut spread = event(UNLUCKY | 5, "exception", "ValueError");
    let log = Event { attributes: vec![string("exception.type", "Timeout")], ..Event::default() };
    spread.spans[0].1.events.push(log);
    let cases = [
        (event(UNLUCKY | 1, "exception", "ReadTimeoutError"), Kept("timeouts", WHOLE)),
        (event(UNLUCKY | 2, "exception", "asyncio.TIME_OUT"), Kept("timeouts", WHOLE)),
        (event(UNLUCKY | 3, "exception", "context.DeadlineExceeded"), Kept("timeouts", WHOLE)),
        (event(UNLUCKY | 4, "exceptional", "TimeoutError"), Dropped("baseline")),
        (spread, Dropped("baseline")),
        (Trace::new(UNLUCKY | 6).with_text("exception.type", "Timeout"), Dropped("baseline")),
    ];
    check(&["default.toml", "timeouts.toml"], cases).await;
}

/// Scenario: enterprise customers, others, and failures.
/// Guarantees: traces of enterprise customers and failures are kept, of the rest one in twenty.
#[tokio::test]
async fn enterprise_customers() {
    let plan = |number: u64, plan: &str| Trace::new(number).with_text("customer.plan", plan);
    let cases = [
        (plan(UNLUCKY | 1, "enterprise"), Kept("enterprise", WHOLE)),
        (plan(UNLUCKY | 2, "enterprise").failing(), Kept("enterprise", WHOLE)),
        (plan(UNLUCKY | 3, "free").failing(), Kept("errors", WHOLE)),
        (plan(FAIR | 4, "free"), Dropped("baseline")),
        (plan(LUCKY | 5, "free"), Kept("baseline", TWENTIETH)),
        (Trace::new(LUCKY | 6), Kept("baseline", TWENTIETH)),
    ];
    check(&["enterprise-customers.toml"], cases).await;
}

/// Scenario: traces of critical services, of ordinary ones, and of logging and analytics, alone and
/// together.
/// Guarantees: a trace is treated like the most important of its services.
#[tokio::test]
async fn critical_services() {
    let of = |number: u64, services| Trace::new(number).of(services);
    let cases = [
        (of(SO_SO | 1, ["payment", "shop"]), Kept("critical", HALF)),
        (of(SO_SO | 2, ["analytics", "checkout"]), Kept("critical", HALF)),
        (of(UNLUCKY | 3, ["payment", "checkout"]), Dropped("critical")),
        (of(FAIR | 4, ["shop", "analytics"]), Kept("ordinary", TENTH)),
        (of(SO_SO | 5, ["shop", "analytics"]), Dropped("ordinary")),
        (of(LUCKY | 6, ["logging", "analytics"]), Kept("background", HUNDREDTH)),
        (of(FAIR | 7, ["logging", "analytics"]), Dropped("background")),
        (of(UNLUCKY | 8, ["logging", "logging"]).failing(), Kept("errors", WHOLE)),
    ];
    check(&["critical-services.toml"], cases).await;
}

/// Scenario: the noisy route and others.
/// Guarantees: one in a hundred of the noisy route is kept, one in ten of the others, and all
/// failures and slow traces.
#[tokio::test]
async fn noisy_endpoint() {
    let poll = |number: u64| Trace::new(number).of_route("/api/poll");
    let cases = [
        (poll(LUCKY | 1), Kept("noisy", HUNDREDTH)),
        (poll(FAIR | 2), Dropped("noisy")),
        (Trace::new(FAIR | 3), Kept("baseline", TENTH)),
        (Trace::new(SO_SO | 4), Dropped("baseline")),
        (poll(UNLUCKY | 5).failing(), Kept("errors", WHOLE)),
        (poll(UNLUCKY | 6).lasting(501), Kept("slow", WHOLE)),
    ];
    check(&["noisy-endpoint.toml"], cases).await;
}

/// Scenario: a tenant within its rate, failing and not, beside others.
/// Guarantees: its traces are kept whole; the others are sampled as if it did not exist.
#[tokio::test]
async fn a_tenant_within_its_rate() {
    let of = |number: u64, tenant: &str| Trace::new(number).with_text("tenant.id", tenant);
    let cases = [
        (of(UNLUCKY | 1, "acme"), Kept("limited-tenant", WHOLE)),
        (of(UNLUCKY | 2, "acme").failing(), Kept("limited-tenant", WHOLE)),
        (of(UNLUCKY | 3, "other").failing(), Kept("errors", WHOLE)),
        (of(FAIR | 4, "other"), Kept("baseline", TENTH)),
        (of(SO_SO | 5, "other"), Dropped("baseline")),
        (Trace::new(FAIR | 6), Kept("baseline", TENTH)),
    ];
    check(&["rate-limited-tenant.toml"], cases).await;
}

/// Scenario: a hundred traces of two spans at once, all failing, of a tenant whose burst is a
/// hundred spans; and a failing trace of another tenant.
/// Guarantees: about the burst is kept, the traces of the highest randomness, with the resulting
/// threshold; the other tenant is not affected.
#[tokio::test]
async fn a_tenant_beyond_its_rate() {
    let running = Running::start(shipped(&["rate-limited-tenant.toml"])).await;
    let of = |number: u64, tenant: &str| {
        let trace = Trace::new(number).with_text("tenant.id", tenant).failing();
        trace.spans.into_iter().map(|(_, span)| span)
    };
    let spread = |n: u64| n << 49 | n;
    let spans = (1..=100).flat_map(|n| of(spread(n), "acme"));
    running.accept(spans.chain(of(UNLUCKY, "other")).collect()).await;
    let metrics = running.at_rest().await;
    assert_eq!(metrics.get("traces_kept_total{policy=\"errors\"}"), 1.0);
    let kept = metrics.get("traces_kept_total{policy=\"limited-tenant\"}") as u64;
    let dropped = metrics.get("traces_dropped_total{policy=\"limited-tenant\"}") as u64;
    assert_eq!(kept + dropped, 100);
    // The bucket fills while the service decides, on a slow machine over several ticks.
    assert!((50..=75).contains(&kept), "{kept}");
    let mut sent = running.traces();
    let others = sent.remove(&trace_id(UNLUCKY)).expect("kept");
    assert!(others.iter().all(|span| span.trace_state == WHOLE));
    let highest = sent.keys().filter(|id| **id > trace_id(spread(50))).count();
    assert!(highest >= 45, "{highest} of the highest fifty");
    assert!(sent.values().flatten().all(|span| span.trace_state != WHOLE));
    running.stop().await;
}

/// The files that contain a baseline. The others are additions to one of them.
const COMPLETE: &[&str] = &[
    "critical-services.toml",
    "default.toml",
    "enterprise-customers.toml",
    "errors-and-slow.toml",
    "noisy-endpoint.toml",
    "rate-limited-tenant.toml",
    "shop.toml",
    "fair-budget.toml",
];
const ADDITIONS: &[&str] = &[
    "business-routes.toml",
    "force-sample.toml",
    "health-checks.toml",
    "incident.toml",
    "one-of-each.toml",
    "rehearse-drop.toml",
    "slow-database-calls.toml",
    "slow-requests.toml",
    "timeouts.toml",
];

/// Scenario: every complete file alone and with all additions; the folder and its table.
/// Guarantees: they load without a warning, each has tests beside it, and the table in the folder's
/// README lists each file.
#[test]
fn files_go_together_as_the_table_says() {
    for complete in COMPLETE {
        shipped(&[complete]);
        shipped(&[&[*complete], ADDITIONS].concat());
    }
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/policies");
    let entries = std::fs::read_dir(folder).expect("readable");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8"))
        .collect();
    let tests: Vec<_> = names.extract_if(.., |name| name.ends_with(".test.toml")).collect();
    for file in [COMPLETE, ADDITIONS].concat() {
        let test = file.replace(".toml", ".test.toml");
        assert!(tests.contains(&test), "{file} has no tests beside it");
    }
    assert_eq!(tests.len(), COMPLETE.len() + ADDITIONS.len(), "{tests:?}");
    names.sort();
    let mut known = [COMPLETE, ADDITIONS, &["README.md"]].concat();
    known.sort_unstable();
    assert_eq!(names, known);
    let readme = std::fs::read_to_string(format!("{folder}/README.md")).expect("readable");
    let rows = readme.lines().filter(|line| line.starts_with("| ["));
    let rows: Vec<_> = rows.map(|row| row[3..].split(']').next().expect("a name")).collect();
    assert_eq!(rows.len(), COMPLETE.len() + ADDITIONS.len());
    assert!(rows.iter().all(|row| known.contains(row)), "{rows:?}");
}

/// Scenario: two traces of a route and one of another, with a baseline, and a trace of a third
/// route without a server span.
/// Guarantees: the first trace of each route is kept; the one without a server span takes no part.
#[tokio::test]
async fn one_of_each() {
    let of_route = |number: u64, route: &str| {
        let mut trace = Trace::new(UNLUCKY | number);
        let roots = trace.spans.iter_mut().filter(|(_, span)| span.parent_span_id.is_empty());
        roots.for_each(|(_, root)| root.attributes.push(string("http.route", route)));
        trace
    };
    let mut job = of_route(3, "/c");
    job.spans.iter_mut().for_each(|(_, span)| span.kind = 1);
    let cases = [
        (of_route(1, "/a"), Kept("one-of-each", WHOLE)),
        (of_route(2, "/b"), Kept("one-of-each", WHOLE)),
        (of_route(4, "/a"), Dropped("baseline")),
        (job, Dropped("baseline")),
    ];
    check(&["default.toml", "one-of-each.toml"], cases).await;
}

/// Scenario: a few traces with a budget of 500 spans per second, one of them with an error.
/// Guarantees: all are kept, each credited to its own policy.
#[tokio::test]
async fn fair_budget() {
    let cases = [
        (Trace::new(UNLUCKY | 1).of_route("/a"), Kept("fair", WHOLE)),
        (Trace::new(UNLUCKY | 2), Kept("fair", WHOLE)),
        (Trace::new(UNLUCKY | 3).failing(), Kept("errors", WHOLE)),
    ];
    check(&["fair-budget.toml"], cases).await;
}

/// Scenario: the default policies with all additions, and a trace for each of them.
/// Guarantees: each does the same as alone.
#[tokio::test]
async fn all_additions_together() {
    let cases = [
        (Trace::new(UNLUCKY | 1).of_route("/api/checkout"), Kept("business-routes", WHOLE)),
        (Trace::new(UNLUCKY | 2).with_text("force_sample", "1"), Kept("force-sample", WHOLE)),
        // Even a probe that somebody asked to keep.
        (
            Trace::new(LUCKY | 3).of_route("/ping").with_text("force_sample", "1"),
            Dropped("health-checks"),
        ),
        (
            Trace::new(SO_SO | 4).lasting(200).with_text("db.system", "mysql"),
            Kept("slow-database-call", WHOLE),
        ),
        (Trace::new(FAIR | 5), Kept("baseline", TENTH)),
        (Trace::new(UNLUCKY | 6), Dropped("baseline")),
    ];
    check(&[&["default.toml"], ADDITIONS].concat(), cases).await;
}
