//! Strings that could control a terminal, forge a log line or run in a browser, in every place that
//! could show text from a stranger: the log in both formats, /metrics, look-ups, `check`.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use prost::Message as _;
use serde_json::Value;
use tailwater::{grpc::EXPORT_PATH, testing::Sink};
use tonic::Status;

use crate::{
    harness::{ALL, get, http1, tempfile, trace_id},
    wire::{connect, frame, http2, post},
};

/// A forged line in red, a script, quotes, and an override of the text direction.
const HOSTILE: &str =
    "x\r\n2026-01-01T00:00:00Z ERROR forged\u{1b}[31m\"<script>alert(1)</script>'\u{202e}\u{7}";

/// The binary, whose log goes to a file.
struct Process {
    child: Child,
    config: PathBuf,
    log: PathBuf,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.config);
        let _ = fs::remove_file(&self.log);
    }
}

fn start(format: &str, backend: &str) -> Process {
    let zero = "endpoint = \"127.0.0.1:0\"\n";
    let config = tempfile(&format!(
        "[receiver.grpc]\n{zero}[receiver.http]\n{zero}[telemetry]\n{zero}\
         log_format = \"{format}\"\nlog_level = \"debug\"\n[sampling]\ndecision_wait = \"100ms\"\n\
         [exporter.otlp]\nendpoint = \"{backend}\"\n{ALL}"
    ));
    let log = tempfile("");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tailwater"));
    command.args(["run", "--config"]).arg(&config).stdout(Stdio::null());
    let child = command.stderr(fs::File::create(&log).expect("created")).spawn().expect("spawned");
    Process { child, config, log }
}

impl Process {
    /// Waits until the log contains `part`.
    async fn logged(&self, part: &str) -> String {
        for _ in 0..500 {
            let log = fs::read_to_string(&self.log).expect("UTF-8");
            if log.contains(part) {
                return log;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("not logged within 10 s: {part}\n{}", fs::read_to_string(&self.log).expect("a log"));
    }

    /// The address that the log gives under this name, in either format.
    async fn address(&self, name: &str) -> SocketAddr {
        let log = self.logged("ready").await;
        let rest = &log[log.find(name).expect("an address") + name.len()..];
        let start = rest.find(|c: char| c.is_ascii_digit()).expect("an address");
        let end = start + rest[start..].find(['"', ' ', ',', '\n']).unwrap_or(rest.len() - start);
        rest[start..end].parse().expect("an address")
    }
}

fn assert_harmless(text: &str) {
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
}

/// Sends hostile text to every receiver, and returns the metrics and answers.
async fn attack(process: &Process) -> Vec<String> {
    let (grpc, http, admin) = (
        process.address("grpc_address").await,
        process.address("http_address").await,
        process.address("admin_address").await,
    );
    let named = serde_json::json!({ HOSTILE: 1, "\u{9b}31m": HOSTILE }).to_string().into_bytes();
    let bodies = [super::all_strings(HOSTILE).encode_to_vec(), HOSTILE.as_bytes().to_vec(), named];
    let client = connect(grpc).await;
    for body in bodies {
        http2(&client, post(EXPORT_PATH, &[]), frame(0, &body)).await;
        let head = |content_type: &str| {
            let length = body.len();
            format!(
                "POST /v1/traces HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\
                 user-agent: <script>\r\ncontent-type: {content_type}\r\n\
                 content-length: {length}\r\n\r\n"
            )
        };
        http1(http, &head("application/x-protobuf"), &body).await;
        http1(http, &head("application/json"), &body).await;
    }
    // hyper's parser refuses this one.
    get(http, "/\u{1b}[31m").await;
    let mut shown = Vec::new();
    for path in ["/-/decisions/%1b[31m<script>", "/-/decisions/<script>", "/<script>", "/metrics"] {
        shown.push(get(admin, path).await.1);
    }
    for id in trace_id(1).chunks(16) {
        let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        shown.push(get(admin, &format!("/-/decisions/{hex}")).await.1);
    }
    shown
}

/// Scenario: a backend with hostile refusals, and senders with hostile strings, headers, bodies and
/// paths: control sequences, line ends, quotes and scripts, with the log at `debug`, as text and as
/// JSON.
/// Guarantees: no control character reaches the log, no line of it is forged, each line of JSON is
/// an object; metrics and answers of the telemetry port quote none of it.
#[tokio::test]
async fn text_of_strangers_cannot_forge_log_lines() {
    for format in ["text", "json"] {
        let refuse = |_| Err(Status::invalid_argument(HOSTILE));
        let sink = Sink::start("127.0.0.1:0", refuse).await.expect("port 0");
        let process = start(format, &sink.url());
        let shown = attack(&process).await;
        for text in &shown {
            assert_harmless(text);
            assert!(!text.contains("<script>") && !text.contains("forged"), "{text}");
        }
        // The log says what a request without spans contains instead, in ASCII.
        let log = process.logged("has no span").await;
        let line = log.lines().find(|line| line.contains("has no span")).expect("just found");
        let named = "x??2026-01-01T00:00:00Z ERROR forged?[31...";
        assert!(line.is_ascii() && line.contains(named), "{line}");
        // The refusal of the backend is logged for operators, but as one value.
        let log = process.logged("forged").await;
        assert_harmless(&log);
        for line in log.lines() {
            assert!(!line.starts_with("2026-01-01T00:00:00Z"), "{line}");
            if format == "json" {
                let value: Value = serde_json::from_str(line).expect("JSON");
                assert!(value.is_object(), "{line}");
            } else {
                assert!(line.starts_with("20") && !line.contains('\u{202e}'), "{line}");
            }
        }
        drop(process);
        sink.stop().await;
    }
}

/// Scenario: `check` of a file with hostile name, keys, values and policies.
/// Guarantees: its output, as text and as JSON, has no control character and no forged line.
#[test]
fn check_shows_hostile_files_harmlessly() {
    let file = tempfile(&format!(
        "\"{}\" = 1\n[[policy]]\nname = \"\\u001b[31m\\r\\nforged.toml:1:1: error: x\"\n\
         type = \"\u{202e}\u{9b}31m\"\n",
        HOSTILE.replace(['"', '\r', '\n', '\u{1b}', '\u{7}'], " ")
    ));
    for format in [&[][..], &["--format", "json"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tailwater"));
        let output =
            command.arg("check").arg(&file).args(format).output().expect("the binary runs");
        assert_eq!(output.status.code(), Some(1));
        for bytes in [&output.stdout, &output.stderr] {
            let text = std::str::from_utf8(bytes).expect("UTF-8");
            assert_harmless(text);
            assert!(!text.contains('\u{202e}'), "{text}");
            assert!(!text.lines().any(|line| line.starts_with("forged.toml")), "{text}");
        }
    }
    fs::remove_file(file).expect("removed");
}
