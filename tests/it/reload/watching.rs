//! `watch_policy_files`: the service notices changes of its files by itself.

use std::{fs, os::unix::fs::symlink, path::PathBuf, process::Command, sync::Arc};

use tailwater::{
    config::{self, Config},
    reload::{Refused, Reload, Reloaded},
};

use super::attribute_policy;
use crate::{
    cli::{BINARY, Process},
    harness::{ALL, Directory, Running},
};

const GLOB: &str = "[sampling]\npolicy_files = [\"policies/*.toml\"]\n";

/// A directory of policies, and a reload whose looks at the files the test triggers.
struct Watched {
    directory: Directory,
    running: Running,
    reload: Arc<Reload>,
}

/// The configuration of the harness, with the files still there.
fn config(file: &str) -> Config {
    let loaded = config::load(file.as_ref()).config.expect("no errors");
    let mut config = crate::harness::config(ALL);
    (config.policies, config.file) = (loaded.policies, loaded.file);
    config.inputs = loaded.inputs;
    config
}

/// A policy of this name.
fn policy(name: &str) -> String {
    attribute_policy(name, "key", "value")
}

impl Watched {
    async fn start() -> Self {
        let directory = Directory::new();
        fs::create_dir(directory.0.join("policies")).expect("created");
        directory.file("policies/a.toml", &policy("a"));
        let file = directory.file("tailwater.toml", GLOB);
        let running = Running::start(config(&file)).await;
        let reload = Arc::clone(&running.service.admin().reload);
        Watched { directory, running, reload }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.0.join(name)
    }

    /// Checks that the second look after a change reads the files, and that no other look does.
    fn reloads_once(&self, what: &str) -> Result<Reloaded, Refused> {
        assert!(self.reload.look().is_none(), "{what}: read while it may still change");
        let outcome = self.reload.look().unwrap_or_else(|| panic!("{what}: not noticed"));
        self.stays(what);
        outcome
    }

    fn stays(&self, what: &str) {
        for _ in 0..4 {
            assert!(self.reload.look().is_none(), "{what}: read again");
        }
    }

    /// Checks that one reload happens and puts this many policies in force.
    fn reloads(&self, what: &str, policies: usize) {
        let reloaded = self.reloads_once(what).unwrap_or_else(|why| panic!("{what}: {why}"));
        assert_eq!(reloaded.policies, policies, "{what}");
    }

    /// Checks that one reload happens and is refused.
    fn refuses(&self, what: &str, with: &str) {
        let refused = self.reloads_once(what).expect_err(what).to_string();
        assert!(refused.contains(with), "{what}: {refused}");
    }
}

/// Scenario: a policy file is written in place and in two parts, replaced by a rename, joined by
/// another file, and removed; the main file changes; somebody sends SIGHUP.
/// Guarantees: each change causes one reload, at the second look with the same content; content
/// that was already read by any reload is not read again.
#[tokio::test]
async fn each_change_is_reloaded_once() {
    let watched = Watched::start().await;
    watched.stays("nothing has changed");
    watched.directory.file("policies/a.toml", &(policy("a") + &policy("b")));
    watched.reloads("written in place", 2);

    watched.directory.file("policies/a.toml", "[[policy]]\nname = \"a");
    assert!(watched.reload.look().is_none());
    watched.directory.file("policies/a.toml", &policy("c"));
    watched.reloads("half written at the first look", 1);

    let next = watched.directory.file(".next", &(policy("d") + &policy("e")));
    fs::rename(next, watched.path("policies/a.toml")).expect("renamed");
    watched.reloads("renamed over", 2);
    watched.directory.file("policies/b.toml", &policy("f"));
    watched.reloads("a file that the glob names now", 3);
    fs::rename(watched.path("policies/b.toml"), watched.path("policies/c.toml")).expect("renamed");
    watched.reloads("another name", 3);
    fs::remove_file(watched.path("policies/c.toml")).expect("removed");
    watched.reloads("removed", 2);

    watched.directory.file("tailwater.toml", &format!("{GLOB}{}", policy("g")));
    watched.reloads("the main file", 3);
    watched.directory.file("policies/b.toml", &policy("h"));
    assert!(watched.reload.look().is_none());
    assert_eq!(watched.reload.run().expect("no mistake").policies, 4);
    watched.stays("reloaded by SIGHUP");
    watched.running.stop().await;
}

/// Scenario: the policies are a Kubernetes ConfigMap, which is a link to a link to a directory; an
/// update renames the second link.
/// Guarantees: the update causes one reload.
#[tokio::test]
async fn a_swap_of_links_is_a_change() {
    let watched = Watched::start().await;
    let policies = watched.path("policies");
    fs::remove_file(policies.join("a.toml")).expect("removed");
    for (version, content) in [("..1", policy("a")), ("..2", policy("b") + &policy("c"))] {
        fs::create_dir(policies.join(version)).expect("created");
        watched.directory.file(&format!("policies/{version}/a.toml"), &content);
    }
    symlink("..1", policies.join("..data")).expect("linked");
    symlink("..data/a.toml", policies.join("a.toml")).expect("linked");
    watched.stays("the same file behind links");
    symlink("..2", policies.join("..data_tmp")).expect("linked");
    fs::rename(policies.join("..data_tmp"), policies.join("..data")).expect("renamed");
    watched.reloads("swapped", 2);
    watched.running.stop().await;
}

/// Scenario: a policy file breaks and is repaired; all of them are removed; the main file names a
/// file that only appears later; the main file itself is removed and comes back.
/// Guarantees: each mistake is refused once, the old policies stay in force, and each repair is
/// noticed.
#[tokio::test]
async fn a_broken_file_is_refused_once_until_it_changes() {
    let watched = Watched::start().await;
    watched.directory.file("policies/a.toml", "[[policy]]\nname = \"a\"\n");
    watched.refuses("a policy without a type", "type");
    let metrics = watched.running.metrics().await;
    assert_eq!(metrics.get("config_last_reload_successful"), 0.0);
    watched.directory.file("policies/a.toml", &policy("a"));
    watched.reloads("mended to what it was", 1);
    let metrics = watched.running.metrics().await;
    assert_eq!(metrics.get("config_last_reload_successful"), 1.0);

    fs::remove_file(watched.path("policies/a.toml")).expect("removed");
    watched.refuses("no policy is left", "no file matches");
    watched.directory.file("policies/a.toml", &policy("b"));
    watched.reloads("there again", 1);

    let named = GLOB.replace("policies/*", "later");
    watched.directory.file("tailwater.toml", &named);
    watched.refuses("names a file that is not there", "later.toml");
    watched.directory.file("later.toml", &policy("c"));
    watched.reloads("the file has come", 1);
    fs::remove_file(watched.path("tailwater.toml")).expect("removed");
    watched.refuses("no main file", "tailwater.toml");
    watched.directory.file("tailwater.toml", &named);
    watched.reloads("the main file has come", 1);
    watched.running.stop().await;
}

/// Scenario: more policy files than can be watched, and the same without watching.
/// Guarantees: the configuration is refused at the key, with the number; without the key, all files
/// are read.
#[test]
fn the_number_of_watched_files_is_bounded() {
    let directory = Directory::new();
    fs::create_dir(directory.0.join("policies")).expect("created");
    for number in 0..1_001 {
        directory.file(&format!("policies/{number}.toml"), "");
    }
    let watch = format!("{GLOB}watch_policy_files = true\n{ALL}");
    let file = directory.file("tailwater.toml", &watch);
    let refused = config::load(file.as_ref()).diagnostics.to_string();
    assert!(refused.contains("tailwater.toml:3:"), "{refused}");
    assert!(refused.contains("can watch 1000 policy files, found 1001"), "{refused}");
    let file = directory.file("tailwater.toml", &watch.replace("true", "false"));
    assert!(config::load(file.as_ref()).config.is_some());
}

/// Scenario: a process with `watch_policy_files`, whose policy file changes, breaks and is
/// repaired, while traces wait.
/// Guarantees: it reloads by itself, logs one refusal, and loses no span.
#[tokio::test]
async fn a_running_process_reloads_by_itself() {
    let directory = Directory::new();
    let policies = directory.file("policies.toml", &policy("a"));
    let zero = "endpoint = \"127.0.0.1:0\"\n";
    let config = format!(
        "[receiver.grpc]\n{zero}[receiver.http]\n{zero}[telemetry]\n{zero}log_format = \"json\"\n\
         [sampling]\ndecision_wait = \"1h\"\ndecision_wait_after_root_received = \"0s\"\n\
         watch_policy_files = true\npolicy_files = [\"policies.toml\"]\n"
    );
    let mut process = Process::start_on(Command::new(BINARY), directory, &config);
    process.export(3).await;
    fs::write(&policies, policy("b") + &policy("c")).expect("written");
    assert_eq!(process.line("policies reloaded").await["fields"]["policies"], 2);
    fs::write(&policies, "[[policy]]\n").expect("written");
    process.line("policies not reloaded").await;
    fs::write(&policies, policy("b") + &policy("c") + &policy("d")).expect("written");
    process.line("\"policies\":3").await;
    let counted = ["policies reloaded", "policies not reloaded"].map(|part| process.lines(part));
    assert_eq!(counted, [2, 1]);
    process.signal("TERM");
    let status = process.exit().await;
    assert!(status.success(), "nothing was kept, so that nothing is undelivered: {status}");
}
