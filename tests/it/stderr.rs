//! Standard error under real conditions: its reader is gone or asleep, its disk is full. Logging
//! must not make the work fail or delay it.

use std::{
    env,
    fs::File,
    io::{BufRead as _, BufReader, PipeReader, pipe},
    net::TcpListener,
    panic::catch_unwind,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde_json::Value;
use tailwater::logging::Log;
use tracing::Level;

use crate::{
    cli::NOBODY,
    harness::{ALL, Directory, Metrics, get, request, sink, span},
    wire::{connect, frame, http2, post},
};

const BINARY: &str = env!("CARGO_BIN_EXE_tailwater");

/// A port that no other test gets: the system assigns ports from 32768 on to others.
fn reserve() -> String {
    loop {
        let address = format!("127.0.0.1:{}", fastrand::u16(10_000..32_000));
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}

/// A process whose addresses are known without its log.
struct Process {
    child: Child,
    grpc: String,
    admin: String,
    _directory: Directory,
}

impl Process {
    /// Keeps everything and sends it to `backend`; `level` is the log level; the log is JSON.
    fn start(stderr: Stdio, level: &str, backend: &str) -> Self {
        let (grpc, admin) = (reserve(), reserve());
        let config = format!(
            "shutdown_timeout = \"5s\"\n[receiver.grpc]\nendpoint = \"{grpc}\"\n\
             [receiver.http]\nendpoint = \"127.0.0.1:0\"\n\
             [telemetry]\nendpoint = \"{admin}\"\nlog_format = \"json\"\nlog_level = \"{level}\"\n\
             [sampling]\ndecision_wait = \"100ms\"\n\
             [exporter.otlp]\nendpoint = \"http://{backend}\"\n\
             [exporter.otlp.retry_on_failure]\ninitial_interval = \"50ms\"\n\
             max_interval = \"200ms\"\n{ALL}"
        );
        let directory = Directory::new();
        let config = directory.file("tailwater.toml", &config);
        let mut command = Command::new(BINARY);
        command.args(["run", "--config", &config]).stdout(Stdio::null()).stderr(stderr);
        let child = command.spawn().expect("spawned");
        Process { child, grpc, admin, _directory: directory }
    }

    /// Waits until the metrics are as wanted.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Metrics) -> bool) -> Metrics {
        let mut last = String::new();
        for _ in 0..1_500 {
            if tokio::net::TcpStream::connect(&self.admin).await.is_ok() {
                let metrics = get(self.admin.parse().expect("an address"), "/metrics").await.1;
                let metrics = Metrics::parse(&metrics);
                if wanted(&metrics) {
                    return metrics;
                }
                last = format!("{:#?}", metrics.nonzero());
            }
            assert_eq!(self.child.try_wait().expect("a child"), None, "ended before: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("not within 30 s: {what}\n{last}");
    }

    async fn export(&self, traces: std::ops::Range<u64>) {
        let spans = traces.map(|trace| span(trace, 1, None)).collect();
        let body = prost::Message::encode_to_vec(&request("shop", spans));
        let client = connect(self.grpc.parse().expect("an address")).await;
        let answer = http2(&client, post(tailwater::grpc::EXPORT_PATH, &[]), frame(0, &body)).await;
        assert_eq!(answer.header("grpc-status"), "0");
    }

    /// Sends SIGTERM; returns the exit code.
    async fn terminate(&mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", "TERM", &pid]).status().expect("kill runs");
        assert!(sent.success());
        for _ in 0..1_500 {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status.code();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("still running after 30 s");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The backend is down when the spans are decided, and comes back after the warnings about it.
async fn survives_an_outage(stderr: Stdio, level: &str) -> Process {
    let backend = reserve();
    let mut process = Process::start(stderr, level, &backend);
    process.until("ready", |_| true).await;
    process.export(1..101).await;
    let lost = |metrics: &Metrics| {
        metrics.sum("exporter_retries_total") > 0.0 && metrics.get("log_lines_lost_total") > 0.0
    };
    process.until("an outage that could not be logged", lost).await;
    process.export(101..201).await;
    let (sink, received) = sink(&backend, Box::new(|_| Ok(bytes::Bytes::new()))).await;
    let delivered = |metrics: &Metrics| metrics.get("exporter_sent_spans_total") == 200.0;
    let metrics = process.until("all delivered", delivered).await;
    metrics.assert_ledger();
    assert_eq!(metrics.sum("task_restarts_total"), 0.0);
    let admin = process.admin.parse().expect("an address");
    assert_eq!(get(admin, "/-/ready").await.0, 200);
    let received: usize =
        received.lock().expect("no panic").iter().flat_map(crate::harness::spans_of).count();
    assert_eq!(received, 200);
    // At the end, something is left to deliver.
    process.export(201..211).await;
    assert_eq!(process.terminate().await, Some(0));
    sink.stop().await;
    process
}

/// Scenario: the reader of standard error is gone, and the backend is down for a while.
/// Guarantees: everything is delivered, lost lines are counted, SIGTERM ends the process with exit
/// code 0.
#[tokio::test]
async fn a_reader_that_is_gone_costs_nothing_but_the_log() {
    let (reader, writer) = pipe().expect("a pipe");
    drop(reader);
    survives_an_outage(writer.into(), "info").await;
}

/// Scenario: the disk of standard error is full from the start, and the backend is down for a
/// while.
/// Guarantees: the process starts, everything is delivered, lost lines are counted, exit code 0.
#[tokio::test]
#[cfg(target_os = "linux")]
async fn a_full_disk_costs_nothing_but_the_log() {
    let full = File::options().write(true).open("/dev/full").expect("Linux has it");
    survives_an_outage(full.into(), "info").await;
}

/// Reads, on a thread, everything that has not been read. Sends a message when a line says that
/// lines were lost, and the whole text at the end.
fn read_on(reader: PipeReader) -> mpsc::Receiver<String> {
    let (send, text) = mpsc::sync_channel(2);
    thread::spawn(move || {
        let (mut text, mut has_told) = (String::new(), false);
        let mut reader = BufReader::new(reader);
        while let line @ 1.. = reader.read_line(&mut text).expect("UTF-8") {
            if !has_told && text[text.len() - line..].contains(LOST) {
                has_told = true;
                send.send(String::new()).expect("the test waits");
            }
        }
        send.send(text).expect("the test waits");
    });
    text
}

const LOST: &str = "log lines were lost";

/// Scenario: the reader of standard error sleeps while more is logged than fits into a pipe, and
/// wakes up at the end.
/// Guarantees: everything is delivered meanwhile, exit code 0; the log continues with whole lines
/// and says that lines were lost.
#[tokio::test]
async fn a_reader_that_sleeps_costs_nothing_but_lines_of_the_log() {
    let (reader, writer) = pipe().expect("a pipe");
    let backend = reserve();
    let mut process = Process::start(writer.into(), "trace", &backend);
    process.until("ready", |_| true).await;
    process.export(1..101).await;
    process.until("lines are lost", |metrics| metrics.get("log_lines_lost_total") > 0.0).await;
    let (sink, _) = sink(&backend, Box::new(|_| Ok(bytes::Bytes::new()))).await;
    let delivered = |metrics: &Metrics| metrics.get("exporter_sent_spans_total") == 100.0;
    process.until("all delivered", delivered).await.assert_ledger();
    let log = read_on(reader);
    // From here on, there is space for the lines of the shutdown.
    log.recv_timeout(Duration::from_secs(30)).expect("it says that lines were lost");
    assert_eq!(process.terminate().await, Some(0));
    let log = log.recv_timeout(Duration::from_secs(30)).expect("the process has ended");
    let lines: Vec<Value> =
        log.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    let told =
        |line: &&Value| line["fields"]["message"].as_str().is_some_and(|text| text.contains(LOST));
    let told = lines.iter().find(told).expect("it says that lines were lost");
    assert!(told["fields"]["lines"].as_u64() > Some(0), "{told}");
    assert!(log.contains("shutting down"));
    sink.stop().await;
}

/// Scenario: the output of `check` and similar commands goes to a reader that is gone, and to a
/// full disk.
/// Guarantees: with the reader gone, the command ends quietly with the exit code of the check; with
/// the full disk, it ends with 1 and a message, because nobody has seen the report.
#[test]
#[cfg(target_os = "linux")]
fn commands_end_quietly_without_a_reader() {
    let directory = Directory::new();
    let (good, bad) = (directory.file("good.toml", ALL), directory.file("bad.toml", "x = 1"));
    for (arguments, code) in [
        (&["check", &good][..], 0),
        (&["check", &bad], 1),
        (&["check", "--format", "json", &good], 0),
        (&["check", "--schema"], 0),
        (&["--help"], 0),
        (&["--version"], 0),
    ] {
        let (reader, writer) = pipe().expect("a pipe");
        drop(reader);
        let run = |stdout: Stdio| {
            Command::new(BINARY).args(arguments).stdout(stdout).stderr(Stdio::piped()).output()
        };
        let output = run(writer.into()).expect("the binary runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), &*said), (Some(code), ""), "{arguments:?}");
        if arguments[0] == "check" {
            let full = File::options().write(true).open("/dev/full").expect("Linux has it");
            let output = run(full.into()).expect("the binary runs");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{arguments:?}");
            assert!(said.starts_with("error: cannot write to standard output: "), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }
    // Nobody can read why it does not start, but the exit code says that it failed.
    let full = || File::options().write(true).open("/dev/full").expect("Linux has it");
    let status = Command::new(BINARY).args(["run", "--config", &bad]).stderr(full()).status();
    assert_eq!(status.expect("the binary runs").code(), Some(1));
}

/// Scenario: with `log_format = "json"`: wrong values, unknown keys, a syntax error before and
/// after the format, a missing policy file, a warning, a port in use.
/// Guarantees: every line on standard error is a JSON object, and one of them names the mistake. If
/// the file cannot be read, or its format itself is wrong, the mistake is reported as text.
#[test]
fn every_line_is_json_where_the_format_is() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("port 0");
    let taken = format!(
        "receiver.grpc.endpoint = \"{}\"\nreceiver.http.endpoint = \"127.0.0.1:0\"\n\
         telemetry.endpoint = \"127.0.0.1:0\"",
        taken.local_addr().expect("bound")
    );
    let json = "telemetry.log_format = \"json\"";
    let directory = Directory::new();
    let run = |text: &str| {
        let file = directory.file("t.toml", text);
        let output = Command::new(BINARY).args(["run", "--config", &file]).output();
        let output = output.expect("the binary runs");
        assert_eq!(output.status.code(), Some(1), "{text}");
        String::from_utf8(output.stderr).expect("UTF-8")
    };
    for (lines, told) in [
        (format!("{json}\nshutdown_timeout = 1\ndecision = 2"), "t.toml:2:20: "),
        (format!("{json}\nshutdown_timeout = ["), "t.toml:2:21: "),
        (format!("shutdown_timeout = = 1\n{json}"), "t.toml:1:20: "),
        (format!("{json}\n[sampling]\npolicy_files = [\"nowhere.toml\"]"), "t.toml:3:17: "),
        (format!("{json}\n{taken}\n{ALL}sampling_percentage = 0"), "t.toml:8:23: "),
        (format!("{json}\n{taken}\n{ALL}"), "receiver.grpc.endpoint = "),
    ] {
        let log = run(&lines);
        for line in log.lines() {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{log}"));
            assert!(line["fields"]["message"].is_string(), "{log}");
        }
        let log = log.replace("\\\"", "\"");
        assert!(log.contains(told), "{told}: {log}");
    }
    let log = run("telemetry.log_format = \"jsn\"");
    assert!(log.contains("t.toml:1:24: error: ") && log.contains("| telemetry"), "{log}");
    let output = Command::new(BINARY).args(["run", "--config", "/nowhere.toml"]).output();
    let log = output.expect("the binary runs").stderr;
    assert!(log.starts_with(b"/nowhere.toml:1:1: error: "));
}

/// Scenario: panics of threads, one with text and one with another payload, in a process that logs
/// as JSON. This test runs itself as that process.
/// Guarantees: each is one line of the log, an object with the place and the message.
#[test]
fn a_panic_is_a_line_of_the_log() {
    const AS_CHILD: &str = "TAILWATER_TEST_PANICS";
    if env::var_os(AS_CHILD).is_some() {
        let log = Log::start(Level::INFO, true).expect("there are threads");
        let named = thread::Builder::new().name("worker".into());
        let panicked = named.spawn(|| panic!("first\nline {}", 2)).expect("spawned").join();
        assert!(panicked.is_err());
        assert!(catch_unwind(|| std::panic::panic_any(7)).is_err());
        drop(log);
        return;
    }
    let mut child = Command::new(env::current_exe().expect("known"));
    child.args(["--exact", "stderr::a_panic_is_a_line_of_the_log", "--nocapture"]);
    let output = child.env(AS_CHILD, "1").env("RUST_BACKTRACE", "0").output().expect("it runs");
    assert!(output.status.success());
    let log = String::from_utf8(output.stderr).expect("UTF-8");
    let lines: Vec<Value> =
        log.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    assert_eq!(lines.len(), 2, "{log}");
    let fields = |line: usize| &lines[line]["fields"];
    assert_eq!(fields(0)["message"], "panicked: first\nline 2");
    assert_eq!((&fields(0)["thread"], &lines[0]["level"]), (&"worker".into(), &"ERROR".into()));
    assert!(fields(0)["location"].as_str().is_some_and(|place| place.contains("stderr.rs:")));
    assert_eq!(fields(1)["message"], "panicked: a value that is not text");
}

/// Scenario: standard error has no reader at the end of a run that has lost spans.
/// Guarantees: the exit code still reports the loss: 1, not the 101 of a panic.
#[tokio::test]
async fn the_exit_code_tells_a_loss_that_cannot_be_logged() {
    let (reader, writer) = pipe().expect("a pipe");
    drop(reader);
    let backend = NOBODY.strip_prefix("http://").expect("a URL");
    let mut process = Process::start(writer.into(), "info", backend);
    process.until("ready", |_| true).await;
    process.export(1..3).await;
    let queued = |metrics: &Metrics| metrics.get("exporter_queue_spans") == 2.0;
    process.until("queued", queued).await.assert_ledger();
    assert_eq!(process.terminate().await, Some(1));
}
