//! The binary as people and init systems run it: arguments, output, signals and exit codes.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use bytes::Bytes;
use serde_json::Value;
use tailwater::{grpc::EXPORT_PATH, testing::Sink};

use crate::{
    harness::{ALL, Directory, Metrics, get, request, span},
    wire::{connect, frame, http2, open, post},
};

pub const BINARY: &str = env!("CARGO_BIN_EXE_tailwater");
/// A port where nothing listens: only root could.
pub const NOBODY: &str = "http://127.0.0.1:1";

pub fn tailwater(arguments: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    // Tests check that this is never shown.
    command.env("TAILWATER_SECRET", "kanarienvogel");
    command.args(arguments).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

/// `tailwater run` with a log that can be read while it runs.
pub struct Process {
    child: Child,
    pub log: PathBuf,
    pub directory: Directory,
}

impl Process {
    /// Keeps everything, decides after an hour, and sends to `backend`; `more` is put at the top.
    pub fn start(more: &str, backend: &str) -> Self {
        Self::start_logging(more, backend, "info")
    }

    /// The same, with this log level.
    pub fn start_logging(more: &str, backend: &str, level: &str) -> Self {
        Self::start_exporting(more, &format!("endpoint = \"{backend}\""), level)
    }

    /// The same, with these lines in `[exporter.otlp]`.
    pub fn start_exporting(more: &str, exporter: &str, level: &str) -> Self {
        Self::start_by(Command::new(BINARY), more, exporter, level)
    }

    /// The same, with this limit of descriptors.
    pub fn start_with_descriptors(descriptors: u32, backend: &str) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {descriptors}; exec \"$0\" \"$@\""), BINARY]);
        let exporter = format!("endpoint = \"{backend}\"");
        Self::start_by(shell, "shutdown_timeout = \"1s\"", &exporter, "info")
    }

    fn start_by(command: Command, more: &str, exporter: &str, level: &str) -> Self {
        let zero = "endpoint = \"127.0.0.1:0\"\n";
        let config = format!(
            "{more}\n[receiver.grpc]\n{zero}[receiver.http]\n{zero}[telemetry]\n{zero}\
             log_format = \"json\"\nlog_level = \"{level}\"\n[sampling]\ndecision_wait = \"1h\"\n\
             decision_wait_after_root_received = \"0s\"\n\
             [exporter.otlp]\n{exporter}\n{ALL}"
        );
        Self::start_on(command, Directory::new(), &config)
    }

    /// Starts with this configuration, in the directory.
    pub fn start_on(mut command: Command, directory: Directory, config: &str) -> Self {
        let config = directory.file("tailwater.toml", config);
        let log = directory.0.join("log");
        command.env("TAILWATER_SECRET", "kanarienvogel");
        command.args(["run", "--config", &config]).stdout(Stdio::null());
        let child = command.stderr(File::create(&log).expect("created")).spawn().expect("spawned");
        Process { child, log, directory }
    }

    /// Waits for a log line that contains `part`.
    pub async fn line(&self, part: &str) -> Value {
        for _ in 0..1_500 {
            let log = fs::read_to_string(&self.log).expect("a log");
            if let Some(line) = log.split_inclusive('\n').find(|line| line.contains(part)) {
                return serde_json::from_str(line).expect("JSON");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let log = fs::read_to_string(&self.log).expect("a log");
        panic!("not logged within 30 s: {part}\n{log}");
    }

    /// The number of log lines that contain `part`.
    pub fn lines(&self, part: &str) -> usize {
        let log = fs::read_to_string(&self.log).expect("a log");
        log.lines().filter(|line| line.contains(part)).count()
    }

    /// Waits until it is ready; returns the addresses of gRPC and metrics.
    pub async fn addresses(&self) -> (SocketAddr, SocketAddr) {
        let fields = &self.line("\"ready\"").await["fields"];
        let address = |name: &str| fields[name].as_str().expect("an address").parse();
        let [grpc, admin] = ["grpc_address", "admin_address"].map(address);
        (grpc.expect("an address"), admin.expect("an address"))
    }

    /// Exports spans of this many traces; checks the ledger before and after.
    pub async fn export(&self, traces: u64) {
        let (grpc, admin) = self.addresses().await;
        let spans = (1..=traces).map(|trace| span(trace, 1, None)).collect();
        let body = prost::Message::encode_to_vec(&request("shop", spans));
        let client = connect(grpc).await;
        let answer = http2(&client, post(EXPORT_PATH, &[]), frame(0, &body)).await;
        assert_eq!(answer.header("grpc-status"), "0");
        let metrics = Metrics::parse(&get(admin, "/metrics").await.1);
        assert_eq!(metrics.get("window_spans"), traces as f64);
        metrics.assert_ledger();
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// Waits until it has ended.
    pub async fn exit(&mut self) -> ExitStatus {
        for _ in 0..1_500 {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
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

/// Scenario: --version and --help, of the binary and of its commands.
/// Guarantees: the text goes to standard output and the exit code is 0.
#[test]
fn version_and_help() {
    let version = tailwater(&["--version"]);
    assert!(text(&version.stdout).starts_with(concat!("tailwater ", env!("CARGO_PKG_VERSION"))));
    assert_eq!(version.status.code(), Some(0));
    for (arguments, words) in [
        (&["--help"][..], &["run", "demo", "check"][..]),
        (&["run", "--help"], &["--config"]),
        (&["check", "--help"], &["--format", "json", "--schema"]),
        (&["demo", "--help"], &["--seconds"]),
    ] {
        let help = tailwater(arguments);
        assert_eq!(help.status.code(), Some(0));
        assert!(words.iter().all(|word| text(&help.stdout).contains(word)), "{arguments:?}");
    }
}

/// Scenario: `top` with a pipe as its standard output.
/// Guarantees: exit code 1, a message that names the alternative for scripts, and no output.
#[test]
fn top_needs_a_terminal() {
    let output = tailwater(&["top", "--address", NOBODY]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(told.contains("needs a terminal") && told.contains("/-/status"), "{told}");
    assert_eq!(text(&output.stdout), "");
}

/// Scenario: no command, unknown commands and options, missing arguments.
/// Guarantees: exit code 2, a message on standard error, nothing on standard output.
#[test]
fn bad_usage() {
    for arguments in [
        &[][..],
        &["walk"],
        &["run", "--confg", "x"],
        &["run", "--config"],
        &["check"],
        &["check", "x", "--format", "xml"],
        &["check", "x", "--schema"],
    ] {
        let output = tailwater(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
}

/// A mistyped key in line 3 and an unknown status code in line 7.
const BROKEN: &str = r#"
[sampling]
decision_wiat = "30s"
[[policy]]
name = "errors"
type = "status_code"
status_codes = ["EROR"]
"#;

/// Scenario: `check` of valid files, a file with a warning, a broken file and a missing file.
/// Guarantees: exit codes 0, 0, 1, 1; each problem is reported once, with its place, the underlined
/// text and a hint, and the same as JSON; `run` reports the same and does not start.
#[test]
fn check_and_run_report_every_problem() {
    let directory = Directory::new();
    let good = directory.file("good.toml", ALL);
    let output = tailwater(&["check", &good, &directory.file("also.toml", ALL)]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("good.toml: ok, 1 policy"));
    let warned = directory.file("warned.toml", &format!("{ALL}sampling_percentage = 0\n"));
    let output = tailwater(&["check", &warned]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).starts_with(&format!("{warned}:4:23: warning: ")));

    let broken = directory.file("broken.toml", BROKEN);
    let output = tailwater(&["check", &broken]);
    assert_eq!(output.status.code(), Some(1));
    let report = text(&output.stdout);
    let lines: Vec<_> = report.lines().collect();
    assert!(lines[0].starts_with(&format!("{broken}:3:1: error: ")), "{report}");
    assert!(report.contains("decision_wiat = \"30s\"") && report.contains("^^^^^^^^^^^^^"));
    assert!(report.contains("decision_wait") && report.contains("ERROR"), "{report}");
    assert_eq!(report.matches(": error: ").count(), 2);
    let run = tailwater(&["run", "--config", &broken]);
    assert_eq!((run.status.code(), text(&run.stderr)), (Some(1), report));

    let output = tailwater(&["check", "--format", "json", &good, &broken]);
    assert_eq!(output.status.code(), Some(1));
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let diagnostics = json["diagnostics"].as_array().expect("a list");
    assert_eq!(diagnostics.len(), 2);
    for (diagnostic, line) in diagnostics.iter().zip([3, 7]) {
        assert_eq!((&diagnostic["line"], &diagnostic["severity"]), (&line.into(), &"error".into()));
        assert_eq!(diagnostic["file"], broken.as_str());
        assert!(["message", "hint"].iter().all(|key| diagnostic[key].is_string()), "{diagnostic}");
        assert!(diagnostic["column"].is_u64());
    }
    for command in [&["check", "/nowhere.toml"][..], &["run", "--config", "/nowhere.toml"]] {
        let output = tailwater(command);
        assert_eq!(output.status.code(), Some(1));
        let said = [output.stdout, output.stderr].concat();
        assert!(text(&said).starts_with("/nowhere.toml:1:1: error: "), "{}", text(&said));
    }
}

/// Scenario: `check --schema`.
/// Guarantees: it prints the published file, which is valid JSON.
#[test]
fn check_prints_the_schema() {
    let output = tailwater(&["check", "--schema"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), include_str!("../../deploy/tailwater.schema.json"));
    let schema: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
}

/// Scenario: a port that is in use, for each listener.
/// Guarantees: exit code 1, and one line that names the port and the key.
#[test]
fn a_port_in_use_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("port 0");
    let taken = listener.local_addr().expect("bound").to_string();
    let keys = ["receiver.grpc", "receiver.http", "telemetry"];
    let directory = Directory::new();
    for key in keys {
        let endpoint = |of: &&str| if *of == key { taken.clone() } else { "127.0.0.1:0".into() };
        let section = |of: &&str| format!("[{of}]\nendpoint = \"{}\"\n", endpoint(of));
        let config = keys.iter().map(section).collect::<String>() + ALL;
        let output = tailwater(&["run", "--config", &directory.file("taken.toml", &config)]);
        assert_eq!(output.status.code(), Some(1), "{key}");
        let log = text(&output.stderr);
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(log.contains(&format!("{key}.endpoint = \"{taken}\"")), "{log}");
        assert!(!log.contains('\u{1b}'), "colours are for terminals: {log}");
    }
}

/// Scenario: certificates, keys and tokens that are missing, unreadable or do not match, missing
/// directories, an unknown key, and an address that this machine does not have.
/// Guarantees: `run` exits with 1 and names the place of the mistake. (How fast is measured by
/// hand.)
#[test]
fn a_failed_start_names_the_mistake() {
    let directory = Directory::new();
    for (lines, told) in [
        ("[receiver.tls]\ncert_file = \"x\"\nkey_file = \"y\"", "t.toml:2:13: error: "),
        ("[receiver.auth]\nbearer_token_file = \".\"", "t.toml:2:21: error: "),
        ("exporter.otlp.tls.ca_file = \"t.toml\"", "t.toml:1:29: error: "),
        ("[sampling]\npolicy_files = [\"nowhere/one.toml\"]", "t.toml:2:17: error: "),
        ("[sampling]\ndecision_wiat = \"1s\"", "t.toml:2:1: error: "),
        (
            "telemetry.endpoint = \"127.0.0.1:0\"\nreceiver.http.endpoint = \"127.0.0.1:0\"\n\
             receiver.grpc.endpoint = \"192.0.2.1:1\"",
            "receiver.grpc.endpoint = ",
        ),
    ] {
        let file = directory.file("t.toml", &format!("{lines}\n{ALL}"));
        let output = tailwater(&["run", "--config", &file]);
        let log = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{lines}: {log}");
        assert!(log.contains(told), "{lines}: {log}");
    }
}

/// Scenario: SIGTERM and SIGINT while traces wait for a decision that is an hour away.
/// Guarantees: they are decided and delivered; exit code 0.
#[tokio::test]
async fn a_signal_stops_it_cleanly() {
    for signal in ["TERM", "INT"] {
        let (arrived, mut received) = tokio::sync::watch::channel(0);
        let sink = Sink::start("127.0.0.1:0", move |request| {
            let spans = request.resource_spans.iter().flat_map(|spans| &spans.scope_spans);
            let spans: usize = spans.map(|scope| scope.spans.len()).sum();
            arrived.send_modify(|sum| *sum += spans);
            Ok(Bytes::new())
        });
        let sink = sink.await.expect("port 0");
        let mut process = Process::start("", &sink.url());
        process.export(50).await;
        let memory = &process.line("memory limit").await["fields"];
        assert!(memory["mib"].as_u64() >= Some(32) && memory["from"].is_string(), "{memory}");
        process.signal(signal);
        assert_eq!(process.exit().await.code(), Some(0), "{signal}");
        assert_eq!(*received.borrow_and_update(), 50);
        sink.stop().await;
    }
}

/// Scenario: SIGTERM while the backend is down.
/// Guarantees: it ends within the timeout with exit code 1, and the log has the number of lost
/// spans.
#[tokio::test]
async fn lost_spans_are_logged() {
    let mut process = Process::start("shutdown_timeout = \"1s\"", NOBODY);
    process.export(7).await;
    process.signal("TERM");
    let status = tokio::time::timeout(Duration::from_secs(60), process.exit()).await;
    assert_eq!(status.expect("sooner than retrying ends").code(), Some(1));
    let line = process.line("\"spans\":7").await;
    assert_eq!(line["level"], "ERROR", "{line}");
}

/// Scenario: SIGHUP after a change of the file, and with a mistake in it.
/// Guarantees: the new policies are in force and decide waiting traces; the mistake is logged with
/// its place, and other changes are logged as needing a restart.
#[tokio::test]
async fn a_hangup_reloads_the_policies() {
    let process = Process::start("", NOBODY);
    process.export(3).await;
    let (_, admin) = process.addresses().await;
    let config = process.directory.0.join("tailwater.toml");
    let text = fs::read_to_string(&config).expect("a configuration");
    let renamed = text.replace("name = \"all\"", "name = \"renamed\"");
    fs::write(&config, renamed.replace("\"1h\"", "\"59m\"")).expect("written");
    process.signal("HUP");
    let line = process.line("policies reloaded").await;
    assert_eq!((&line["level"], &line["fields"]["policies"]), (&"INFO".into(), &1.into()));
    let line = process.line("need a restart").await;
    assert_eq!(
        (&line["level"], &line["fields"]["changed"]),
        (&"WARN".into(), &"[sampling]".into())
    );
    let metrics = Metrics::parse(&get(admin, "/metrics").await.1);
    assert_eq!(metrics.get("config_last_reload_successful"), 1.0);
    assert_eq!(metrics.get("traces_kept_total{policy=\"renamed\"}"), 0.0);
    assert_eq!((metrics.get("window_spans"), get(admin, "/-/ready").await.0), (3.0, 200));

    fs::write(&config, text.replace("always_sample", "always")).expect("written");
    process.signal("HUP");
    let place = format!("{}:{}:8: ", config.display(), text.lines().count());
    assert_eq!(process.line(&place).await["level"], "ERROR");
    process.line("policies not reloaded").await;
    let metrics = Metrics::parse(&get(admin, "/metrics").await.1);
    assert_eq!(metrics.get("config_last_reload_successful"), 0.0);
    metrics.assert_ledger();
}

/// Scenario: SIGTERM while the backend is down, and a second SIGTERM.
/// Guarantees: the second one ends the process at once.
#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let mut process = Process::start("", NOBODY);
    process.export(1).await;
    process.signal("TERM");
    process.line("shutting down").await;
    process.signal("TERM");
    let status = tokio::time::timeout(Duration::from_secs(2), process.exit()).await;
    assert_eq!(status.expect("at once").code(), Some(1));
}

/// Scenario: a thousand requests, each of which claims 64 MiB in five bytes and sends no more.
/// Guarantees: resident memory grows by less than a thousandth of the claimed size.
#[tokio::test]
#[cfg(target_os = "linux")]
async fn claims_take_no_memory() {
    let process = Process::start("shutdown_timeout = \"1s\"", NOBODY);
    let (grpc, admin) = process.addresses().await;
    let used = Metrics::parse(&get(admin, "/metrics").await.1).get("memory_used_bytes");
    let status = format!("/proc/{}/status", process.child.id());
    let resident_kib = || -> u64 {
        let status = fs::read_to_string(Path::new(&status)).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
    };
    let before = resident_kib();
    let mut streams = Vec::new();
    for _ in 0..10 {
        let client = connect(grpc).await;
        for _ in 0..100 {
            let (response, mut body) = open(&client, post(EXPORT_PATH, &[])).await;
            let claim = [&[0][..], &(64_u32 << 20).to_be_bytes()].concat();
            body.send_data(claim.into(), false).expect("sent");
            streams.push((response, body));
        }
    }
    for _ in 0..1_500 {
        let metrics = Metrics::parse(&get(admin, "/metrics").await.1);
        // The five bytes of each request are charged once they have arrived.
        if metrics.get("memory_used_bytes") >= used + 5000.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB");
}
