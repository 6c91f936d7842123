//! The control API on the telemetry port, with tonic's client and with clients that misbehave.

use std::{collections::BTreeSet, time::Duration};

use prost::Message as _;
use tailwater::{
    config::Config,
    control::{
        Decision, ExplainRequest, GetStatusRequest, RecordRequest, ReloadRequest,
        TryPoliciesRequest, WatchDecisionsRequest, WatchDecisionsResponse,
        control_client::ControlClient,
        decision::{State, Trigger},
        diagnostic::Severity,
    },
    service::Service,
};
use tonic::{Code, Status, Streaming, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::harness::{
    ALL, Directory, ERRORS_AND_HALF, HIGH, LOW, Running, config, error, get, http1, span, tempfile,
};

const LONG: &str = r#"
[[policy]]
name = "long"
type = "latency"
threshold_ms = 5
shadow = true
"#;

/// Policies that keep errors and half of the rest; a shadow policy matches long traces.
fn policies() -> String {
    ERRORS_AND_HALF.to_owned() + LONG
}

/// A channel to the telemetry port.
fn channel(service: &Service) -> Channel {
    let url = format!("http://{}", service.admin_address);
    Channel::from_shared(url).expect("a url").connect_lazy()
}

fn control(service: &Service) -> ControlClient<Channel> {
    ControlClient::new(channel(service))
}

async fn explain(running: &Running, id: &str) -> Result<Decision, Status> {
    let request = ExplainRequest { trace_id: id.to_owned() };
    let answer = control(&running.service).explain(request).await?;
    Ok(answer.into_inner().decision.expect("there"))
}

async fn watch(
    running: &Running,
    request: WatchDecisionsRequest,
) -> Result<Streaming<WatchDecisionsResponse>, Status> {
    Ok(control(&running.service).watch_decisions(request).await?.into_inner())
}

async fn next(stream: &mut Streaming<WatchDecisionsResponse>) -> WatchDecisionsResponse {
    let next = tokio::time::timeout(Duration::from_secs(20), stream.message()).await;
    next.expect("in time").expect("no error").expect("a decision")
}

/// A service whose traces wait for a minute.
fn slow(policies: &str) -> Config {
    let mut config = config(policies);
    config.sampling.decision_wait = Duration::from_secs(60);
    config.sampling.decision_wait_after_root_received = None;
    config
}

/// Scenario: a trace is looked up before and after its decision, and by ids in the forms that
/// people paste.
/// Guarantees: each answer has everything that is known; an invalid id is INVALID_ARGUMENT, an
/// unknown one NOT_FOUND.
#[tokio::test]
async fn traces_are_explained() {
    let running = Running::start(config(&policies())).await;
    let mut failed = span(HIGH | 7, 1, None);
    failed.status = error();
    running.accept(vec![failed]).await;
    let id = format!("abcdef0123456789{:016x}", HIGH | 7);
    let pending = explain(&running, &id).await.expect("known");
    running.at_rest().await;
    let decided = explain(&running, &id).await.expect("known");
    assert_eq!((pending.state(), &pending.policy[..]), (State::Pending, ""));
    assert_eq!((pending.trigger(), &pending.threshold), (Trigger::Unspecified, &None));
    let (before, after) =
        (pending.details.expect("there"), decided.details.clone().expect("there"));
    for details in [&before, &after] {
        assert_eq!(details.matched, ["errors", "half"]);
        assert_eq!(details.shadow_matched, ["long"]);
        assert_eq!((details.spans, details.root_received), (1, true));
    }
    let (due, at) = (before.due_time.expect("there"), after.decision_time.expect("there"));
    let seconds = |time: prost_types::Timestamp| time.seconds as f64 + f64::from(time.nanos) / 1e9;
    assert!(seconds(at) > seconds(due) - 0.6, "{due:?} {at:?}");
    assert_eq!((before.decision_time, after.due_time), (None, None));
    assert_eq!((decided.state(), &decided.policy[..]), (State::Kept, "errors"));
    assert_eq!(decided.trigger(), Trigger::RootReceived);
    assert_eq!(decided.threshold.as_deref(), Some("00000000000000"));
    assert_eq!((decided.percentage, &decided.randomness[..]), (100.0, "f0000000000007"));

    let uuid = [&id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..]].join("-");
    for form in [
        id.to_uppercase(),
        format!("  {id}\n"),
        format!("0x{id}"),
        format!("\"{uuid}\""),
        format!("00-{id}-00f067aa0ba902b7-01"),
    ] {
        assert_eq!(explain(&running, &form).await.expect(&form), decided, "{form}");
    }
    let huge = "a".repeat(900_000);
    for (form, code) in [
        ("", Code::InvalidArgument),
        ("0", Code::InvalidArgument),
        ("🦀", Code::InvalidArgument),
        ("../../etc/passwd", Code::InvalidArgument),
        (&huge, Code::InvalidArgument),
        ("1", Code::NotFound),
    ] {
        let refused = explain(&running, form).await.expect_err(form);
        assert_eq!(refused.code(), code, "{form:.50}: {refused}");
        assert!(refused.message().len() < 200);
    }
    running.stop().await;
}

/// Scenario: watches of all decisions, of some, and of policies and states that do not exist.
/// Guarantees: the headers come at once; each watcher gets the decisions that it asked for, with
/// details; an invalid watch is INVALID_ARGUMENT; decisions left out because of `max_per_second`
/// are counted.
#[tokio::test]
async fn decisions_are_watched() {
    let running = Running::start(config(&policies())).await;
    let all = WatchDecisionsRequest::default();
    let dropped = WatchDecisionsRequest {
        states: vec![State::Dropped.into()],
        ..WatchDecisionsRequest::default()
    };
    let of = |name: &str| WatchDecisionsRequest {
        policies: vec![name.to_owned()],
        ..WatchDecisionsRequest::default()
    };
    let mut all = watch(&running, all).await.expect("nothing has been decided yet");
    let mut dropped = watch(&running, dropped).await.expect("watching");
    let mut errors = watch(&running, of("errors")).await.expect("watching");
    let mut long = watch(&running, of("long")).await.expect("a shadow policy can be watched");
    let one = WatchDecisionsRequest { max_per_second: Some(1), ..WatchDecisionsRequest::default() };
    let mut one = watch(&running, one).await.expect("watching");
    let status = running.service.admin().status();
    assert_eq!(status.activity.map(|activity| activity.watchers), Some(5));

    let mut failed = span(LOW | 1, 1, None);
    failed.status = error();
    running.accept(vec![failed, span(LOW | 2, 1, None), span(HIGH | 3, 1, None)]).await;
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        let WatchDecisionsResponse { decision, skipped } = next(&mut all).await;
        let decision = decision.expect("there");
        assert_eq!(skipped, 0);
        assert!(decision.details.as_ref().is_some_and(|details| details.spans == 1));
        seen.insert((decision.policy.clone(), decision.state().as_str_name()));
    }
    let expected = [("errors", "STATE_KEPT"), ("half", "STATE_DROPPED"), ("half", "STATE_KEPT")];
    let seen: Vec<_> = seen.iter().map(|(policy, state)| (&policy[..], *state)).collect();
    assert_eq!(seen, expected);
    assert_eq!(next(&mut dropped).await.decision.map(|d| d.policy), Some("half".into()));
    assert_eq!(next(&mut errors).await.decision.map(|d| d.policy), Some("errors".into()));
    next(&mut long).await;
    next(&mut one).await;
    // Send traces until one decision is let through, which says how many were left out.
    let skipped = async {
        for trace in 100.. {
            running.accept(vec![span(HIGH | trace, 1, None)]).await;
            let next = tokio::time::timeout(Duration::from_millis(100), one.message()).await;
            if let Ok(next) = next {
                return next.expect("no error").expect("a decision").skipped;
            }
        }
        unreachable!("there are many traces")
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), skipped).await.expect("in time") >= 2);

    for request in [
        of("nope"),
        of(&"x".repeat(100_000)),
        WatchDecisionsRequest { states: vec![State::Pending.into()], ..Default::default() },
        WatchDecisionsRequest { states: vec![99], ..Default::default() },
        WatchDecisionsRequest { max_per_second: Some(0), ..Default::default() },
    ] {
        let refused = watch(&running, request).await.expect_err("cannot be watched");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().len() < 200, "{refused}");
    }
    drop((all, dropped, errors, long, one));
    running.at_rest().await;
    for _ in 0..200 {
        if running.service.admin().status().activity.map(|activity| activity.watchers) == Some(0) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let status = running.service.admin().status();
    assert_eq!(status.activity.map(|activity| activity.watchers), Some(0), "they have gone");
    running.stop().await;
}

/// Scenario: ten clients open a thousand streams.
/// Guarantees: 32 can watch, all others get RESOURCE_EXHAUSTED, and the port still answers. Once
/// the watchers disconnect, there is room again.
#[tokio::test]
async fn a_thousand_streams() {
    let running = Running::start(config(ALL)).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let client = control(&running.service);
        for _ in 0..100 {
            let mut client = client.clone();
            calls.spawn(
                async move { client.watch_decisions(WatchDecisionsRequest::default()).await },
            );
        }
    }
    let outcomes = calls.join_all().await;
    let refused = |outcome: &&Result<_, Status>| {
        outcome.as_ref().is_err_and(|status| status.code() == Code::ResourceExhausted)
    };
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 32);
    assert_eq!(outcomes.iter().filter(refused).count(), 968);
    control(&running.service).get_status(GetStatusRequest {}).await.expect("answered");
    assert_eq!(get(running.service.admin_address, "/metrics").await.0, 200);
    drop(outcomes);
    let again = async {
        while watch(&running, WatchDecisionsRequest::default()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), again).await.expect("there is room");
    running.stop().await;
}

/// Scenario: the service stops while two clients watch decisions, one of which does not read.
/// Guarantees: the reading watcher gets the decisions of the shutdown, then UNAVAILABLE, within
/// seconds, and the service does not wait for the other one.
#[tokio::test]
async fn streams_end_with_the_service() {
    let running = Running::start(slow(ALL)).await;
    let mut stream = watch(&running, WatchDecisionsRequest::default()).await.expect("watching");
    let unread = watch(&running, WatchDecisionsRequest::default()).await.expect("watching");
    running.accept(vec![span(1, 1, None)]).await;
    let reading = tokio::spawn(async move {
        let decision = next(&mut stream).await.decision.expect("there");
        assert_eq!(decision.trigger(), Trigger::Shutdown);
        stream.message().await.expect_err("the service stops")
    });
    let stopped = tokio::time::timeout(Duration::from_secs(10), running.stop()).await;
    stopped.expect("within seconds");
    let ended = reading.await.expect("no panic");
    assert_eq!(
        (ended.code(), ended.message()),
        (Code::Unavailable, "the service is shutting down")
    );
    drop(unread);
}

/// Scenario: policies are reloaded over the API: when it is not allowed, when it is, and with a
/// mistake.
/// Guarantees: the refusal names the key; mistakes are in the answer with their places, and the old
/// policies stay.
#[tokio::test]
async fn reloading() {
    let running = Running::start(config(ALL)).await;
    let refused = control(&running.service).reload(ReloadRequest {}).await.expect_err("off");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("`enable_lifecycle = true` in [telemetry]"), "{refused}");
    running.stop().await;

    let file = tempfile(ALL);
    let mut config = config(ALL);
    (config.file, config.telemetry.enable_lifecycle) = (Some(file.clone()), true);
    let running = Running::start(config).await;
    let reload = async || {
        let answer = control(&running.service).reload(ReloadRequest {}).await;
        answer.expect("answered").into_inner()
    };
    let reloaded = reload().await;
    assert!(reloaded.reloaded && reloaded.diagnostics.is_empty(), "{reloaded:?}");
    std::fs::write(&file, "[[policy]]\nname = \"a\"\ntype = \"nope\"\n").expect("written");
    let reloaded = reload().await;
    assert!(!reloaded.reloaded);
    let [problem] = &reloaded.diagnostics[..] else { panic!("{reloaded:?}") };
    assert_eq!((problem.line, problem.column, problem.severity()), (3, 8, Severity::Error));
    assert_eq!(problem.file, file.display().to_string());
    let names = running.service.admin().status().policies;
    assert_eq!(names.iter().map(|policy| &policy.name[..]).collect::<Vec<_>>(), ["all"]);
    std::fs::remove_file(&file).expect("removed");
    running.stop().await;
}

/// Scenario: everything that the telemetry port serves: HTTP/1.1, HTTP/2, health, messages that are
/// too large, services that do not exist; and the control API on the OTLP port.
/// Guarantees: each is answered as its protocol requires.
#[tokio::test]
async fn one_port_serves_all() {
    let running = Running::start(config(ALL)).await;
    let (admin, otlp) = (running.service.admin_address, running.service.grpc_address);
    assert_eq!(get(admin, "/-/healthy").await, (200, "healthy\n".into()));
    let mut health = HealthClient::new(channel(&running.service));
    for service in ["", "tailwater.control.v1.Control"] {
        let request = HealthCheckRequest { service: service.into() };
        let status = health.check(request).await.expect("known").into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service}");
    }
    let policies = "#".repeat(10 << 20);
    let request = TryPoliciesRequest { policies, duration: None };
    let refused = control(&running.service).try_policies(request).await.expect_err("too large");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("1048576"), "{refused}");
    let refused = control(&running.service).record(RecordRequest::default()).await;
    assert_ne!(refused.expect_err("off").code(), Code::Ok);
    let url = format!("http://{otlp}");
    let other = Channel::from_shared(url).expect("a url").connect_lazy();
    let refused = ControlClient::new(other).get_status(GetStatusRequest {}).await;
    assert_eq!(refused.expect_err("not here").code(), Code::Unimplemented);
    // A body over HTTP/1.1 with the content type of gRPC, which is not gRPC.
    let message = GetStatusRequest {}.encode_to_vec();
    let head = format!(
        "POST /tailwater.control.v1.Control/Reload HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\
         content-type: application/grpc\r\ncontent-length: {}\r\n\r\n",
        message.len()
    );
    assert_eq!(http1(admin, &head, &message).await.0, 200);
    assert_eq!(get(admin, "/nothing").await.0, 404);
    running.stop().await;
}

/// Scenario: `tailwater explain` for a kept trace, an unknown one, and without an instance.
/// Guarantees: sentences and exit code 0; a reason and exit code 1; the address and exit code 1.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_explains() {
    let running = Running::start(config(ALL)).await;
    running.accept(vec![span(1, 1, None)]).await;
    running.at_rest().await;
    let directory = Directory::new();
    let token = directory.file("token", "s3cret-s3cret\n");
    let address = format!("http://{}", running.service.admin_address);
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_tailwater"))
            .args(["explain"])
            .args(arguments)
            .output()
            .expect("runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let id = format!("abcdef0123456789{:016x}", 1);
    let (code, out, err) = run(&["--address", &address, "--token-file", &token, &id]);
    assert_eq!((code, &err[..]), (Some(0), ""), "no warning: the token stays on this machine");
    assert!(out.contains("was kept by the policy `all`, which keeps 100 %"), "{out}");
    let (code, out, err) = run(&["--address", &address, "1"]);
    assert_eq!((code, &out[..]), (Some(1), ""));
    assert!(err.starts_with("error: the instance does not know this trace"), "{err}");
    let (code, _, err) = run(&["--address", &address, "x"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("a trace id is up to 32 hexadecimal digits"), "{err}");
    let otlp = format!("http://{}", running.service.grpc_address);
    let (code, _, err) = run(&["--address", &otlp, &id]);
    assert!(code == Some(1) && err.contains("does not serve the control API"), "{err}");
    running.stop().await;
    let (code, out, err) = run(&["--address", &address, &id]);
    assert_eq!((code, &out[..]), (Some(1), ""));
    assert!(err.starts_with(&format!("error: cannot reach Tailwater at {address}")), "{err}");
    assert_eq!(run(&["--address", "ftp://x", &id]).0, Some(2));
}
