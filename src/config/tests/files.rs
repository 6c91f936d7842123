//! Files on disk: unreadable ones, policy files, globs, and `check` over them.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{super::load, POLICY, lines};
use crate::commands::{Format, check::check};

/// A directory of its own for one test, removed with it.
pub(in crate::config) struct Directory(PathBuf);

impl Directory {
    pub(in crate::config) fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tailwater-{}-{count}", std::process::id()));
        fs::create_dir_all(&path).expect("directory");
        Directory(path)
    }

    pub(in crate::config) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().expect("parent")).expect("directory");
        fs::write(&path, bytes).expect("file");
        path
    }

    /// Each problem as `name:line:column: ...`.
    fn problems(&self, path: &Path) -> Vec<String> {
        let loaded = load::load(path);
        let name = |file: &str| {
            Path::new(file).strip_prefix(&self.0).expect("inside").display().to_string()
        };
        let files = loaded.diagnostics.iter().map(|diagnostic| name(&diagnostic.file));
        files
            .zip(lines(&loaded.diagnostics))
            .map(|(file, line)| {
                format!("{file}:{line}").replace(&format!("{}/", self.0.display()), "")
            })
            .collect()
    }

    fn policy_names(&self, path: &Path) -> Vec<String> {
        let loaded = load::load(path);
        assert!(loaded.diagnostics.is_empty(), "{}", loaded.diagnostics);
        loaded.config.expect("config").policies.into_iter().map(|policy| policy.name).collect()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn named(name: &str) -> String {
    format!("[[policy]]\nname = '{name}'\ntype = 'span_name'\nvalues = ['{name}']\n")
}

fn naming(patterns: &str) -> String {
    format!("[sampling]\npolicy_files = {patterns}\n")
}

#[test]
fn a_file_that_cannot_be_read_is_a_diagnostic() {
    let dir = Directory::new();
    assert_eq!(
        dir.problems(&dir.0.join("missing.toml")),
        ["missing.toml:1:1: error: cannot read `missing.toml`: No such file or directory (os \
             error 2)"]
    );
    let latin = dir.write("latin.toml", b"\xef\xbb\xbf# ok\n# caf\xe9\n");
    assert_eq!(dir.problems(&latin), ["latin.toml:2:6: error: the file is not UTF-8"]);
    let large = dir.write("large.toml", "#".repeat((1 << 20) + 1));
    assert_eq!(dir.problems(&large), ["large.toml:1:1: error: `large.toml` is larger than 1 MiB"]);
    let directory = dir.problems(&dir.0.clone());
    assert_eq!(directory.len(), 1);
    assert!(directory[0].contains("Is a directory"), "{directory:?}");
}

#[test]
fn policies_stand_in_the_order_of_their_files() {
    let dir = Directory::new();
    dir.write("policies/b.toml", named("b"));
    dir.write("policies/a.toml", named("a"));
    dir.write("policies/deep/er/c.toml", named("c"));
    dir.write("policies/notes.txt", "no toml");
    dir.write("policies/.hidden.toml", named("hidden"));
    dir.write("other.toml", named("other"));
    for (patterns, expected) in [
        ("['policies/*.toml']", vec!["main", "a", "b"]),
        ("['policies/b.toml', './policies/a.toml', 'policies/./*.toml']", vec!["main", "a", "b"]),
        ("['policies/**/*.toml']", vec!["main", "a", "b", "c"]),
        ("['policies/{b,deep/er/c}.toml']", vec!["main", "b", "c"]),
        ("['policies/[!a].toml', 'other.toml']", vec!["main", "other", "b"]),
        // The file with the glob is not one of its policy files.
        ("['*.toml']", vec!["main", "other"]),
    ] {
        let main = dir.write("main.toml", naming(patterns) + &named("main"));
        assert_eq!(dir.policy_names(&main), expected, "{patterns}");
    }
}

#[cfg(unix)]
#[test]
fn a_mounted_config_map_has_each_file_once() {
    let dir = Directory::new();
    let main = dir.write("main.toml", naming("['policies/**/*.toml']"));
    dir.write("policies/..2024/a.toml", named("a"));
    let link = |from: &str, to: &str| {
        std::os::unix::fs::symlink(from, dir.0.join(to)).expect("link");
    };
    link("..2024", "policies/..data");
    link("..data/a.toml", "policies/a.toml");
    link(".", "policies/loop");
    assert_eq!(dir.policy_names(&main), ["a"]);
}

#[test]
fn a_glob_without_a_match_is_an_error_only_if_it_leaves_no_policy() {
    let dir = Directory::new();
    let main = dir.write("main.toml", naming("['polices/*.toml']"));
    assert_eq!(dir.problems(&main), ["main.toml:2:17: error: no file matches `polices/*.toml`"]);
    let main = dir.write("main.toml", naming("['polices/*.toml']") + POLICY);
    assert_eq!(dir.problems(&main), ["main.toml:2:17: warning: no file matches `polices/*.toml`"]);
    let main = dir.write("main.toml", naming("['x.toml', '[.toml', '']"));
    assert_eq!(
        dir.problems(&main),
        [
            "main.toml:2:17: error: cannot read `x.toml`: No such file or directory (os error 2)",
            "main.toml:2:27: error: `[.toml` is not a glob: unclosed character class; missing ']'",
            "main.toml:2:37: error: the path is empty",
        ]
    );
}

#[test]
fn policy_files_have_their_own_places_and_hold_only_policies() {
    let dir = Directory::new();
    dir.write("a.toml", "[sampling]\ndecision_wait = '1s'\n".to_owned() + &named("main"));
    dir.write("b.toml", "[[policy]]\nname = 'b'\ntype = 'latncy'\n");
    dir.write("c.toml", b"\xff");
    let main = dir.write("main.toml", naming("['?.toml']") + &named("main"));
    assert_eq!(
        dir.problems(&main),
        [
            "a.toml:1:2: error: unknown key `sampling` in a policy file, which holds only \
             [[policy]] tables | the keys here are `policy`",
            "a.toml:4:8: error: the name `main` is taken by the policy at main.toml:4:8",
            "b.toml:3:8: error: unknown policy type `latncy` | did you mean `latency`?",
            "c.toml:1:1: error: the file is not UTF-8",
        ]
    );
}

#[test]
fn check_reports_each_file() {
    let dir = Directory::new();
    let fine = dir.write("fine.toml", POLICY);
    let warned = dir.write("warned.toml", format!("{POLICY}sampling_percentage = 0\n"));
    let wrong = dir.write("wrong.toml", naming("['wrong-policy.toml']"));
    dir.write("wrong-policy.toml", "[[policy]]\nname = 'x'\n");
    let (root, line) = (dir.0.display(), "ok, 1 policy\n");

    let report = check(std::slice::from_ref(&fine), Format::Text);
    assert_eq!((report.text, report.has_errors), (format!("{root}/fine.toml: {line}"), false));
    let report = check(&[fine.clone(), warned], Format::Text);
    assert!(report.text.starts_with(&format!("{root}/warned.toml:4:23: warning: with 0 %")));
    assert!(
        report.text.ends_with(&format!("\n\n{root}/fine.toml: {line}{root}/warned.toml: {line}"))
    );
    assert!(!report.has_errors);

    let report = check(&[wrong.clone(), fine, wrong], Format::Json);
    let json: serde_json::Value = serde_json::from_str(&report.text).expect("json");
    assert_eq!(json["diagnostics"].as_array().map(Vec::len), Some(1));
    assert_eq!(json["diagnostics"][0]["file"], format!("{root}/wrong-policy.toml"));
    assert!(report.has_errors);
}
