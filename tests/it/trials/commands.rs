//! `tailwater try` and `tailwater record` on the command line.

use std::{
    ops::RangeInclusive,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::Value;
use tailwater::trace_files::{Piece, TraceFile};
use tokio::net::TcpListener;

use crate::harness::{ALL, Directory, ERRORS_AND_HALF, HIGH, LOW, Running, config, error, span};

async fn steered() -> Running {
    let mut config = config(ERRORS_AND_HALF);
    config.telemetry.enable_lifecycle = true;
    config.telemetry.enable_recording = true;
    Running::start(config).await
}

fn start(running: &Running, arguments: &[&str]) -> Child {
    start_at(&format!("http://{}", running.service.admin_address), arguments)
}

fn start_at(address: &str, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tailwater"));
    command.args(arguments).args(["--address", address]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs")
}

async fn finish(child: Child) -> Output {
    let finished = tokio::task::spawn_blocking(|| child.wait_with_output());
    let finished = tokio::time::timeout(Duration::from_secs(60), finished);
    finished.await.expect("in time").expect("no panic").expect("waited for")
}

fn interrupt(child: &Child) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().expect("runs").success());
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

/// The activity of an instance, from its status.
async fn activity(running: &Running, key: &str) -> Value {
    let (_, body) = crate::harness::get(running.service.admin_address, "/-/status").await;
    serde_json::from_str::<Value>(&body).expect("JSON")["activity"][key].clone()
}

async fn until_active(running: &Running, key: &str, wanted: Value) {
    for _ in 0..1_500 {
        if activity(running, key).await == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{key} is not {wanted} within 30 s");
}

/// Sends two spans of each of these traces; of twenty in a row, the policies keep twelve.
async fn send(running: &Running, traces: RangeInclusive<u64>) {
    for number in traces {
        let trace = [LOW, HIGH][number as usize % 2] | number;
        let status = if number % 5 == 0 { error() } else { None };
        let child = Span { status, ..span(trace, 2, Some(1)) };
        running.accept(vec![span(trace, 1, None), child]).await;
    }
}

/// The requests in a recording, all of which must be readable.
fn requests(path: &Path) -> (f64, usize) {
    let mut file = TraceFile::open("t", std::fs::File::open(path).expect("there")).expect("opens");
    let mut requests = 0;
    while let Some(piece) = file.next_piece() {
        assert!(matches!(piece, Piece::Request(_)), "{piece:?}");
        requests += 1;
    }
    (file.share(), requests)
}

/// Scenario: `try` with other policies, as text and as JSON; with a file with mistakes; without a
/// file; on an instance that does not allow it; ended by Ctrl-C.
/// Guarantees: the documented exit codes and outputs; after Ctrl-C, the results so far.
#[tokio::test(flavor = "multi_thread")]
async fn try_says_what_would_change() {
    let running = steered().await;
    let directory = Directory::new();
    let all = directory.file("all.toml", ALL);
    let child = start(&running, &["try", "--seconds", "5", &all]);
    until_active(&running, "trialRunning", Value::Bool(true)).await;
    send(&running, 1..=20).await;
    let output = finish(child).await;
    let report = text(&output.stdout);
    assert!(output.status.success(), "{report} {}", text(&output.stderr));
    assert!(report.starts_with("tried for 5 s: 20 traces decided, 40 spans\n"), "{report}");
    assert!(report.contains("\nkept now: 12 traces, 24 spans,"), "{report}");
    assert!(report.contains("all.toml: 20 traces, 40 spans,"), "{report}");
    assert!(report.contains("\nnewly kept: 8 traces, 16 spans,"), "{report}");
    assert!(report.contains("\nnewly dropped: 0 traces, 0 spans, 0 B\n"), "{report}");
    assert_eq!(text(&output.stderr), "", "no progress where there is no terminal");

    let child = start(&running, &["try", "--seconds", "3600", "--format", "json", &all]);
    until_active(&running, "trialRunning", Value::Bool(true)).await;
    // The first message comes after a second.
    tokio::time::sleep(Duration::from_millis(200)).await;
    send(&running, 21..=30).await;
    running.at_rest().await;
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    interrupt(&child);
    let output = finish(child).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    let answer: Value = serde_json::from_str(text(&output.stdout)).expect("JSON");
    assert_eq!(answer["candidate"]["policies"][0]["policy"], "all");
    assert_eq!(answer["isLast"], false);
    until_active(&running, "trialRunning", Value::Bool(false)).await;

    let mistakes = directory.file("mistakes.toml", "[[policy]]\nname = \"a\"\ntype = \"b\"\n");
    let output = finish(start(&running, &["try", &mistakes])).await;
    assert_eq!(output.status.code(), Some(1));
    let complaint = text(&output.stderr);
    assert!(complaint.contains("mistakes.toml:3:8: error: "), "{complaint}");
    for arguments in [&["try"][..], &["try", &all, "--seconds", "0"]] {
        assert_eq!(finish(start(&running, arguments)).await.status.code(), Some(2));
    }
    let output = finish(start(&running, &["try", "/nowhere/a.toml"])).await;
    assert_eq!(output.status.code(), Some(1));
    running.stop().await;

    let running = Running::start(config(ALL)).await;
    let output = finish(start(&running, &["try", &all])).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("enable_lifecycle"), "{}", text(&output.stderr));
    running.stop().await;
}

/// Scenario: Ctrl-C while an instance has accepted the connection and answers nothing.
/// Guarantees: `try` and `record` end with exit code 0; the JSON of `try` is complete; `record` leaves
/// an existing file alone.
#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_works_before_the_instance_answers() {
    let directory = Directory::new();
    let policies = directory.file("all.toml", ALL);
    let recording = directory.file("traffic.rec", "an older recording");
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = format!("http://{}", silent.local_addr().expect("an address"));
    let mut said = Vec::new();
    for arguments in [
        &["try", &policies][..],
        &["try", "--format", "json", &policies],
        &["record", "--output", &recording],
        &["tail"],
    ] {
        let child = start_at(&address, arguments);
        // The command listens to the signal before it connects.
        let connection = silent.accept().await.expect("connected");
        interrupt(&child);
        let output = finish(child).await;
        assert_eq!(output.status.code(), Some(0), "{arguments:?} {}", text(&output.stderr));
        assert_eq!(text(&output.stderr), "", "{arguments:?}");
        said.push(text(&output.stdout).to_owned());
        drop(connection);
    }
    assert!(said[0].starts_with("tried for 0 s: 0 traces decided"), "{}", said[0]);
    let answer: Value = serde_json::from_str(&said[1]).expect("JSON");
    assert_eq!(answer["isLast"], false);
    for outcome in ["current", "candidate"] {
        assert_eq!(answer[outcome]["decidedTraces"], "0", "{answer}");
    }
    for change in ["newlyKept", "newlyDropped"] {
        assert_eq!(answer[change]["traces"], "0", "{answer}");
    }
    assert!(said[2].starts_with("recorded nothing"), "{}", said[2]);
    assert_eq!(std::fs::read_to_string(recording).expect("there"), "an older recording");
}

/// Scenario: `record` of everything for a while, of a half until Ctrl-C, until the instance stops,
/// with a size limit; into a missing directory; on an instance that does not allow it.
/// Guarantees: the documented exit codes and outputs; each file is readable to its end and contains
/// its share; an existing file stays if no recording begins.
#[tokio::test(flavor = "multi_thread")]
async fn record_writes_files_that_can_be_read_after_any_end() {
    let running = steered().await;
    let directory = Directory::new();
    let path = directory.0.join("all.rec");
    let output = path.to_str().expect("UTF-8");
    let child = start(&running, &["record", "--output", output, "--seconds", "5"]);
    until_active(&running, "recordings", 1.into()).await;
    send(&running, 1..=20).await;
    let finished = finish(child).await;
    assert!(finished.status.success(), "{}", text(&finished.stderr));
    let report = text(&finished.stdout);
    assert!(report.starts_with("recorded 20 traces, 40 spans, "), "{report}");
    assert_eq!(requests(&path), (1.0, 20));
    assert_eq!(text(&finished.stderr), "", "no progress where there is no terminal");

    let half_path = directory.0.join("half.rec");
    let half_output = half_path.to_str().expect("UTF-8");
    let half = ["record", "--output", half_output, "--seconds", "3600", "--percentage", "50"];
    let child = start(&running, &half);
    until_active(&running, "recordings", 1.into()).await;
    send(&running, 21..=80).await;
    running.at_rest().await;
    while std::fs::metadata(&half_path).map_or(0, |file| file.len()) < 2_000 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    interrupt(&child);
    let finished = finish(child).await;
    assert!(finished.status.success(), "{}", text(&finished.stderr));
    let (share, traces) = requests(&half_path);
    assert!((1..60).contains(&traces), "{traces}");
    assert!((share - 0.5).abs() < 1e-9);
    until_active(&running, "recordings", 0.into()).await;

    for arguments in [&["--percentage", "0"][..], &["--percentage", "nan"], &["--max-mib", "0"]] {
        let arguments = [&["record", "--output", output], arguments].concat();
        assert_eq!(finish(start(&running, &arguments)).await.status.code(), Some(2));
    }
    let nowhere = directory.0.join("nowhere/a.rec");
    let nowhere = ["record", "--output", nowhere.to_str().expect("UTF-8")];
    let finished = finish(start(&running, &nowhere)).await;
    assert_eq!(finished.status.code(), Some(1));
    assert!(text(&finished.stderr).contains("cannot write"), "{}", text(&finished.stderr));

    let child = start(&running, &["record", "--output", output, "--seconds", "3600"]);
    until_active(&running, "recordings", 1.into()).await;
    send(&running, 81..=90).await;
    running.at_rest().await;
    running.stop().await;
    let finished = finish(child).await;
    assert!(finished.status.success(), "{}", text(&finished.stderr));
    assert_eq!(requests(&path), (1.0, 10));

    let running = Running::start(config(ALL)).await;
    let finished = finish(start(&running, &["record", "--output", output])).await;
    assert_eq!(finished.status.code(), Some(1));
    assert!(text(&finished.stderr).contains("enable_recording"), "{}", text(&finished.stderr));
    assert_eq!(requests(&path), (1.0, 10), "not replaced by nothing");
    running.stop().await;
}
