//! Trials of a running service, through the control API.

use std::time::Duration;

use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tailwater::{
    config::Config,
    control::{
        Diagnostics, GetStatusRequest, TryPoliciesRequest, TryPoliciesResponse,
        control_client::ControlClient, try_policies_response::Outcome,
    },
};
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::harness::{ALL, ERRORS_AND_HALF, HIGH, LOW, Running, config, error, span};

const CANDIDATE: &str = r#"
[[policy]]
name = "root"
type = "root_span"

[[policy]]
name = "few"
type = "probabilistic"
sampling_percentage = 3
limit = { spans_per_second = 100000 }

[[policy]]
name = "veto"
type = "drop"
policies = [{ type = "string_attribute", key = "http.route", values = ["/healthz"] }]

[[policy]]
name = "unseen"
type = "always_sample"
shadow = true

[[policy]]
name = "over"
type = "always_sample"
expires = 2001-01-01T00:00:00Z
"#;

fn lifecycle(policies: &str) -> Config {
    let mut config = config(policies);
    config.telemetry.enable_lifecycle = true;
    config
}

pub(crate) async fn control(running: &Running) -> ControlClient<Channel> {
    let url = format!("http://{}", running.service.admin_address);
    ControlClient::connect(url).await.expect("listening")
}

async fn try_for(
    running: &Running,
    policies: &str,
    seconds: i64,
) -> Result<Streaming<TryPoliciesResponse>, Status> {
    let duration = Some(prost_types::Duration { seconds, nanos: 0 });
    let request = TryPoliciesRequest { policies: policies.to_owned(), duration };
    control(running).await.try_policies(request).await.map(tonic::Response::into_inner)
}

/// The next message of a stream that has not ended.
async fn next(responses: &mut Streaming<TryPoliciesResponse>) -> TryPoliciesResponse {
    let message = tokio::time::timeout(Duration::from_secs(30), responses.message());
    message.await.expect("in time").expect("no error").expect("not the end")
}

async fn last(responses: &mut Streaming<TryPoliciesResponse>) -> TryPoliciesResponse {
    loop {
        let response = next(responses).await;
        if response.is_last {
            assert_eq!(responses.message().await.expect("no error"), None, "nothing follows");
            return response;
        }
    }
}

/// Reads messages until this many traces are decided.
async fn until_decided(
    responses: &mut Streaming<TryPoliciesResponse>,
    traces: u64,
) -> TryPoliciesResponse {
    loop {
        let response = next(responses).await;
        let decided = response.current.as_ref().expect("always there").decided_traces;
        assert!(decided <= traces && !response.is_last, "{response:#?}");
        if decided == traces {
            return response;
        }
    }
}

fn policies(outcome: &Option<Outcome>) -> Vec<(&str, [u64; 3])> {
    let policies = &outcome.as_ref().expect("always there").policies;
    let policies = policies.iter();
    policies.map(|p| (p.policy.as_str(), [p.matched_traces, p.kept_traces, p.kept_spans])).collect()
}

/// Eight traces of every kind; `round` changes their ids but not their randomness.
fn traffic(round: u64) -> Vec<Span> {
    let mut spans = Vec::new();
    for (number, randomness) in [LOW, HIGH].into_iter().enumerate() {
        for kind in 0..4 {
            let trace = randomness | (number as u64 * 4 + kind + 1);
            let mut of_trace = vec![span(trace, 1, (kind % 2 == 0).then_some(9))];
            of_trace.push(Span {
                status: if kind < 2 { error() } else { None },
                ..span(trace, 2, Some(1))
            });
            of_trace.iter_mut().for_each(|span| span.trace_id[0] = round as u8);
            spans.extend(of_trace);
        }
    }
    spans
}

/// Scenario: traces wait, and a trial begins whose policies have a limit, a veto, unknown names, a
/// shadow policy and an expired one; more traces arrive. Then a reload puts the tried policies in
/// force, and the same traffic arrives again.
/// Guarantees: kept traces and every metric of policies are as without the trial; all traces take
/// part, including those that waited; the counts are exact, and the reload, which ends the trial,
/// keeps exactly what the trial reported.
#[tokio::test(flavor = "multi_thread")]
async fn a_trial_says_what_a_reload_then_does() {
    let file = crate::harness::tempfile(ERRORS_AND_HALF);
    let mut config = lifecycle(ERRORS_AND_HALF);
    config.file = Some(file.clone());
    config.sampling.decision_wait = Duration::from_secs(4);
    config.sampling.decision_wait_after_root_received = None;
    let running = Running::start(config).await;
    running.accept(traffic(1)).await;
    let mut responses = try_for(&running, CANDIDATE, 600).await.expect("begins");
    let status = control(&running).await.get_status(GetStatusRequest {}).await.expect("answers");
    assert!(status.into_inner().activity.expect("always there").trial_running);
    running.accept(traffic(2)).await;
    let response = until_decided(&mut responses, 16).await;
    let kept = [("errors", [8, 8, 16]), ("half", [16, 4, 8]), ("none", [0, 0, 0])];
    assert_eq!(policies(&response.current), kept);
    let tried = [
        ("root", [8, 8, 16]),
        ("few", [16, 0, 0]),
        ("veto", [0, 0, 0]),
        ("over", [0, 0, 0]),
        ("none", [0, 0, 0]),
    ];
    assert_eq!(policies(&response.candidate), tried);
    let (more, fewer) = (response.newly_kept.unwrap(), response.newly_dropped.unwrap());
    assert_eq!((more.traces, more.spans, more.examples.len()), (2, 4, 2));
    assert_eq!((fewer.traces, fewer.spans, fewer.examples.len()), (6, 12, 5));
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("traces_kept_total"), 12.0);
    for name in ["root", "few", "over", "unseen", "veto"] {
        let label = format!("policy=\"{name}\"");
        assert!(!metrics.0.keys().any(|series| series.contains(&label)), "{name}");
    }

    std::fs::write(&file, CANDIDATE).expect("written");
    running.service.reload().await;
    let ended = last(&mut responses).await;
    assert_eq!((ended.current, ended.candidate), (response.current, response.candidate));
    running.accept(traffic(3)).await;
    let after = running.at_rest().await;
    assert_eq!(after.sum("traces_kept_total") - metrics.sum("traces_kept_total"), 4.0);
    assert_eq!(after.get("traces_kept_total{policy=\"root\"}"), 4.0);
    std::fs::remove_file(&file).expect("removed");
    running.stop().await;
}

/// Scenario: a service without `enable_lifecycle`; policies with mistakes, of 2 and of 10 MB, and
/// none at all; invalid durations; a second trial.
/// Guarantees: each is refused with its code and its reason, mistakes with their places; the
/// running trial continues, and so does the service.
#[tokio::test(flavor = "multi_thread")]
async fn impossible_trials_are_refused() {
    let running = Running::start(config(ALL)).await;
    let refused = try_for(&running, ALL, 1).await.expect_err("off");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("enable_lifecycle"), "{refused}");
    running.stop().await;

    let running = Running::start(lifecycle(ALL)).await;
    for seconds in [0, -1, 3601, i64::MAX, i64::MIN] {
        let refused = try_for(&running, ALL, seconds).await.expect_err("no duration");
        assert_eq!(refused.code(), Code::InvalidArgument, "{seconds}");
    }
    let mistakes =
        "[[policy]]\nname = \"a\"\ntype = \"latency\"\n\n[[policy]]\nname = \"b\"\ntyp = 1\n";
    let refused = try_for(&running, mistakes, 1).await.expect_err("mistakes");
    assert_eq!(refused.code(), Code::InvalidArgument);
    let details = tonic_types::Status::decode(refused.details()).expect("google.rpc.Status");
    assert!(details.details[0].type_url.ends_with("/tailwater.control.v1.Diagnostics"));
    let found = Diagnostics::decode(&details.details[0].value[..]).expect("Diagnostics");
    let places: Vec<_> = found.diagnostics.iter().map(|d| (d.line, d.severity)).collect();
    assert!(places.contains(&(7, 1)) && places.iter().any(|(line, _)| (1..=3).contains(line)));
    for policies in ["", "policy = 7", "[telemetry]\n", "[[policy]\n", "\0\u{feff}"] {
        let refused = try_for(&running, policies, 1).await.expect_err("mistakes");
        assert_eq!(refused.code(), Code::InvalidArgument, "{policies:?}");
        assert!(!refused.details().is_empty());
    }
    for megabytes in [2, 10] {
        let large = format!("{ALL}#{}", "x".repeat(megabytes * 1_000_000));
        let refused = try_for(&running, &large, 1).await.expect_err("too large");
        let codes = [Code::InvalidArgument, Code::ResourceExhausted];
        assert!(codes.contains(&refused.code()), "{refused:?}");
    }

    let mut responses = try_for(&running, ALL, 2).await.expect("begins");
    let refused = try_for(&running, ALL, 1).await.expect_err("one runs");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    running.accept(vec![span(1, 1, None)]).await;
    let last = last(&mut responses).await;
    assert_eq!(last.current.expect("always there").decided_traces, 1);
    let elapsed = Duration::try_from(last.elapsed.expect("always there")).expect("positive");
    assert!(elapsed >= Duration::from_secs(2), "{elapsed:?}");
    running.stop().await;
}

/// Scenario: a client of a trial disconnects; another does not read while its trial runs; the
/// service stops during a third.
/// Guarantees: after each of them, the next trial may begin; the last message is sent when the
/// service stops, which is not delayed; the ledger holds.
#[tokio::test(flavor = "multi_thread")]
async fn a_trial_ends_with_its_client_and_with_the_service() {
    let running = Running::start(lifecycle(ERRORS_AND_HALF)).await;
    let gone = try_for(&running, ALL, 3600).await.expect("begins");
    drop(gone);
    let begin = async |seconds| loop {
        match try_for(&running, CANDIDATE, seconds).await {
            Ok(responses) => break responses,
            Err(status) => assert_eq!(status.code(), Code::FailedPrecondition),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let begun = async |seconds| {
        let begin = tokio::time::timeout(Duration::from_secs(30), begin(seconds));
        begin.await.expect("the trial before has ended")
    };
    let _unread = begun(1).await;
    let mut responses = begun(3600).await;
    running.accept(traffic(1)).await;
    let stopped = tokio::spawn(async move { running.stop().await });
    let last = last(&mut responses).await;
    assert!(last.current.is_some() && last.candidate.is_some());
    assert_eq!(stopped.await.expect("no panic").1, 0, "everything is delivered");
}
