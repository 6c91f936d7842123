//! Configuration files that were cut short or whose bytes were changed: by a full disk, by a copy
//! in progress, by a swap of files.

use std::{fs, path::PathBuf};

use tailwater::config::{self, Severity};

use crate::harness::{ALL, HIGH, Running, get, span};

/// A file with everything: sections, durations, lists, inline tables, comments, and policies.
const MAIN: &str = r#"# A comment, with ä.
shutdown_timeout = "5s"
[sampling]
decision_wait = "500ms"
policy_files = ["more-*.toml"]
[exporter.otlp]
headers = { "X-Scope-OrgID" = "team-a" }
[exporter.otlp.sending_queue]
num_consumers = 3
[[policy]]
name = "slow"
type = "and"
policies = [{ type = "latency", threshold_ms = 500 }, { type = "service_name", values = ["a"] }]
sampling_percentage = 12.5
"#;
const MORE: &str = "[[policy]]\nname = \"errors\"\ntype = \"status_code\"\n\
                    status_codes = [\"ERROR\", \"UNSET\"]\nlimit = { spans_per_second = 5 }\n";

/// Every prefix of a file, and the file with every byte changed in three ways.
fn mangled(text: &str) -> Vec<Vec<u8>> {
    let bytes = text.as_bytes();
    let cut = (0..bytes.len()).map(|length| bytes[..length].to_vec());
    let flipped = (0..bytes.len()).flat_map(|at| {
        [0x01, 0x20, 0x80].map(|mask| {
            let mut bytes = bytes.to_vec();
            bytes[at] ^= mask;
            bytes
        })
    });
    cut.chain(flipped).collect()
}

/// A directory with both files, removed when this is dropped.
struct Files(PathBuf);

impl Files {
    fn new() -> Self {
        let name = format!("tailwater-mangled-{}-{:x}", std::process::id(), fastrand::u64(..));
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory).expect("created");
        let files = Files(directory);
        files.write("main.toml", MAIN.as_bytes());
        files.write("more-1.toml", MORE.as_bytes());
        files
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.0.join(name), bytes).expect("written");
    }

    fn main(&self) -> PathBuf {
        self.0.join("main.toml")
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Scenario: both files cut at every byte, and with every byte changed.
/// Guarantees: there is never a panic; a refused file has a problem with a place in the file and a
/// reason, an accepted one has policies.
#[test]
fn every_mangled_file_is_read_or_refused_with_a_place() {
    let files = Files::new();
    assert!(config::load(&files.main()).config.is_some(), "sound to begin with");
    for (name, text) in [("main.toml", MAIN), ("more-1.toml", MORE)] {
        let mut refused = 0;
        for bytes in mangled(text) {
            files.write(name, &bytes);
            let loaded = config::load(&files.main());
            let shown = || String::from_utf8_lossy(&bytes).into_owned();
            assert_eq!(loaded.config.is_none(), loaded.diagnostics.has_errors(), "{}", shown());
            assert!(loaded.config.is_none_or(|config| !config.policies.is_empty()), "{}", shown());
            let lines = MAIN.lines().count().max(bytes.split(|&byte| byte == b'\n').count());
            for problem in loaded.diagnostics.iter() {
                refused += usize::from(problem.severity == Severity::Error);
                let is_within = (1..=lines).contains(&problem.line) && problem.column >= 1;
                assert!(is_within && !problem.message.is_empty(), "{}", shown());
            }
        }
        assert!(refused > text.len(), "{refused}");
        files.write(name, text.as_bytes());
    }
}

/// Scenario: a running service reloads each of those files, with a trace in its window.
/// Guarantees: it never panics, keeps running whatever it reads, and accepts the valid file in the
/// end.
#[tokio::test]
async fn every_mangled_file_is_reloaded_or_refused() {
    let files = Files::new();
    let mut config = crate::harness::config(ALL);
    config.file = Some(files.main());
    config.sampling.decision_wait_after_root_received = None;
    config.sampling.decision_wait = std::time::Duration::from_secs(600);
    let running = Running::start(config).await;
    running.accept(vec![span(HIGH | 1, 1, None)]).await;
    for bytes in mangled(MORE) {
        files.write("more-1.toml", &bytes);
        running.service.reload().await;
    }
    let metrics = running.metrics().await;
    assert_eq!(metrics.sum("task_restarts_total"), 0.0);
    assert_eq!((metrics.sum("window_spans"), metrics.sum("exporter_queue_spans")), (1.0, 0.0));
    files.write("more-1.toml", MORE.as_bytes());
    running.service.reload().await;
    let metrics = running.metrics().await;
    assert_eq!(metrics.get("config_last_reload_successful"), 1.0);
    assert_eq!(get(running.service.admin_address, "/-/ready").await.0, 200);
    running.stop().await;
}

/// Scenario: policies behind two symbolic links that are swapped, as Kubernetes does with a
/// ConfigMap, and a reload at the moment of the shutdown.
/// Guarantees: each reload reads the files that the links lead to at that time; the last one does
/// not delay the shutdown.
#[tokio::test]
async fn a_config_map_is_followed_and_a_shutdown_not_held_up() {
    use std::os::unix::fs::symlink;
    let files = Files::new();
    for version in ["one", "two"] {
        fs::create_dir(files.0.join(version)).expect("created");
        let policies = ALL.replace("all", version);
        files.write(&format!("{version}/policies.toml"), policies.as_bytes());
    }
    let point = |version: &str| {
        symlink(version, files.0.join("new")).expect("linked");
        fs::rename(files.0.join("new"), files.0.join("data")).expect("swapped");
    };
    point("one");
    symlink("data/policies.toml", files.0.join("more-2.toml")).expect("linked");
    let mut config = crate::harness::config(ALL);
    config.file = Some(files.main());
    let running = Running::start(config).await;
    for version in ["one", "two", "one"] {
        point(version);
        running.service.reload().await;
        running.accept(vec![span(HIGH | 1, 1, None)]).await;
        let metrics = running.metrics().await;
        assert_eq!(metrics.get("config_last_reload_successful"), 1.0);
        assert_eq!(metrics.get(&format!("policy_matches_total{{policy=\"{version}\"}}")), 0.0);
    }
    running.at_rest().await;
    let (sent, received) = tokio::sync::oneshot::channel();
    let service = running.service.admin().clone();
    // On a thread of its own, like SIGHUP, while the service stops.
    let reload = std::thread::spawn(move || {
        sent.send(()).expect("somebody waits");
        service.reload.run()
    });
    received.await.expect("sent");
    assert_eq!(running.stop().await.1, 0);
    assert!(reload.join().expect("no panic").is_ok());
}
