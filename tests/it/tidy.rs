//! House rules that the compiler does not check: which module may know which, sizes, headers, and
//! where tasks begin.
//!
//! Reads `src/` as text. Only the line length applies to tests inside the sources (from the first
//! `#[cfg(test)]` on, and files named `tests`).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    path::{Path, PathBuf},
};

/// Each module in the order of `lib.rs`, and the modules that it must not name.
const MUST_NOT_KNOW: &[(&str, &[&str])] = &[
    // It hands late spans to the decider's outbox and asks the exporter's queue how full it is.
    ("receiver", &["crate::policy", "crate::window", "crate::exporter::Client"]),
    ("otlp", &["crate::policy", "crate::decisions", "crate::sampler", "crate::window", "tokio"]),
    (
        "span_metrics",
        &["crate::config", "crate::policy", "crate::sampler", "crate::window", "tokio", "http"],
    ),
    ("sampler", &["crate::config", "crate::clock", "crate::exporter", "tokio", "tonic", "toml"]),
    // They know the clock's unit, but do not read the clock.
    (
        "window",
        &["crate::policy", "crate::exporter", "clock::Clock", "clock::unix_millis", "tokio"],
    ),
    ("policy", &["crate::window", "crate::clock", "crate::config", "tokio", "tonic", "std::time"]),
    ("decisions", &["crate::exporter", "crate::window::Shard", "tokio", "tonic", "prost"]),
    ("recording", &["crate::sampler", "crate::window", "crate::exporter", "tonic", "prost"]),
    ("decider", &["crate::receiver", "crate::admin", "crate::service", "tonic", "prost"]),
    ("exporter", &["crate::policy", "crate::sampler", "crate::window", "crate::decider"]),
    (
        "durability",
        &[
            "crate::receiver",
            "crate::window",
            "crate::decider",
            "crate::exporter",
            "tokio::net",
            "tonic",
        ],
    ),
    ("service", &["crate::otlp", "crate::policy::spec", "prost"]),
    ("admin", &["crate::policy", "crate::window", "crate::config"]),
    ("reload", &["crate::otlp", "crate::window", "crate::receiver", "crate::exporter", "tokio"]),
    ("commands", &["crate::receiver", "crate::window", "crate::decisions"]),
    ("trace_files", &["crate::policy", "crate::sampler", "crate::config", "tokio"]),
    ("budget", &["crate::", "tokio", "tonic"]),
    ("buffers", &["crate::", "tokio", "tonic"]),
    ("changes", &["crate::", "tokio", "tonic"]),
    ("clock", &["crate::sampler", "crate::config"]),
    (
        "config",
        &[
            "tokio",
            "tonic",
            "crate::service",
            "crate::receiver",
            "crate::exporter",
            "crate::sampler",
            "crate::window",
            "crate::decider",
            "crate::policy::Plan",
        ],
    ),
    ("control", &["crate::"]),
    ("credentials", &["tokio", "tonic"]),
    ("grpc", &["crate::"]),
    ("logging", &["crate::service", "crate::receiver", "crate::metrics", "tokio", "tonic"]),
    ("metrics", &["crate::config", "crate::window", "crate::receiver", "crate::exporter", "tokio"]),
    (
        "net",
        &["crate::config", "crate::receiver", "crate::otlp", "crate::sampler", "crate::exporter"],
    ),
    ("notify", &["crate::"]),
    ("supervise", &["crate::"]),
    ("testing", &["crate::service", "crate::sampler", "crate::decider"]),
    ("throttle", &["crate::config", "crate::metrics", "tokio", "tonic"]),
    ("trace", &["crate::config", "std::time", "std::net", "tokio", "tonic", "crate::window"]),
    ("main", &["tailwater::sampler", "tailwater::policy", "tokio::sync"]),
];

/// The modules that a module must not reach, even through others. These modules can be built and
/// tested without the rest of Tailwater.
const MUST_NOT_REACH: &[(&str, &[&str])] = &[
    ("otlp", &["window", "policy", "sampler", "decider", "exporter", "receiver", "config"]),
    ("span_metrics", &["policy", "window", "sampler", "exporter", "receiver", "config", "metrics"]),
    ("window", &["policy", "exporter", "receiver", "config", "service", "net"]),
    ("policy", &["window", "sampler", "exporter", "receiver", "config", "service", "net"]),
    ("sampler", &["exporter", "receiver", "config", "service", "admin", "net"]),
    ("config", &["service", "receiver", "exporter", "sampler", "window", "decider", "admin"]),
    ("credentials", &["config", "metrics", "sampler", "exporter", "receiver", "service"]),
    // Its settings and its counters are in files that also know policies and decisions.
    ("exporter", &["decider", "receiver", "service", "admin", "commands"]),
    ("trace_files", &["policy", "sampler", "config", "window", "exporter", "receiver"]),
];

/// The files where tasks and threads begin, and the reason why it is not `service.rs`.
const SPAWN: &[(&str, &str)] = &[
    ("service.rs", "the wiring"),
    ("service/tasks.rs", "the wiring"),
    ("durability/mod.rs", "threads that last for one round of syncs"),
    ("service/durable.rs", "the thread that syncs logs, and reading them at the start"),
    ("service/watching.rs", "the wiring"),
    ("net/listen.rs", "one task a connection, which only the accept loop sees come"),
    ("receiver/turns.rs", "a large request would hold a worker"),
    ("service/kafka.rs", "the client of Kafka blocks until it has ended"),
    ("receiver/kafka/client/mod.rs", "a thread for a client that blocks"),
    ("receiver/kafka/client/ends.rs", "a thread for a client that blocks"),
    ("admin/mod.rs", "the thread that answers while the runtime is busy"),
    ("admin/starting.rs", "a thread that answers before there is a service"),
    ("admin/control.rs", "a thread for a reload, which blocks"),
    ("admin/trial.rs", "a trial must also end if its client goes away while it starts"),
    ("admin/record.rs", "a recording must also end if its client does not read"),
    ("logging.rs", "a thread that may wait for whoever reads standard error"),
    ("config/load.rs", "a thread whose stack is deep enough for any file"),
    ("testing/mod.rs", "the sink stands outside the service"),
    ("commands/demo/traffic.rs", "each service of the shop exports on its own"),
    ("commands/demo/mod.rs", "traffic and sink stand outside the service"),
];

const PRODUCTION_LINES_MAX: usize = 500;
const LINE_CHARS_MAX: usize = 100;

struct Source {
    /// The path, relative to `src/`.
    path: String,
    text: String,
}

impl Source {
    fn module(&self) -> &str {
        let end = self.path.find(['/', '.']).expect("a file of Rust");
        &self.path[..end]
    }

    fn is_test(&self) -> bool {
        self.path.contains("tests/") || self.path.ends_with("tests.rs")
    }

    /// The lines before the tests, numbered, with comments blanked.
    fn production(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().take_while(|line| *line != "#[cfg(test)]" || self.is_mod());
        lines.enumerate().filter(|_| !self.is_test()).map(|(index, line)| {
            let is_comment = line.trim_start().starts_with("//");
            (index + 1, if is_comment { "" } else { line })
        })
    }

    /// Whether the tests are declared as a file among the modules, so that production code follows.
    fn is_mod(&self) -> bool {
        self.text.contains("#[cfg(test)]\nmod tests;")
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("readable") {
            let path: PathBuf = entry.expect("readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("UTF-8");
                let relative = path.strip_prefix(&root).expect("below").to_string_lossy();
                found.push(Source { path: relative.replace('\\', "/"), text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 40, "found only {}", found.len());
    found
}

/// Fails with a list of the lines that `rule` reports.
fn complain(rule: impl Fn(&Source) -> Vec<(usize, String)>) {
    let sources = sources();
    let complaints: Vec<_> = sources
        .iter()
        .flat_map(|source| rule(source).into_iter().map(move |c| (source, c)))
        .map(|(source, (line, what))| format!("src/{}:{line}: {what}", source.path))
        .collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// The paths that a file names. `use` trees of `crate` are expanded to two segments.
fn paths(source: &Source) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut in_tree = false;
    for (number, line) in source.production() {
        if let Some(rest) =
            line.strip_prefix("    ").filter(|rest| in_tree && !rest.starts_with(' '))
        {
            found.push((number, format!("crate::{rest}")));
        }
        let tree = line.strip_prefix("use crate::{").and_then(|tree| tree.strip_suffix("};"));
        found.extend(
            tree.iter().flat_map(|t| t.split(", ")).map(|p| (number, format!("crate::{p}"))),
        );
        in_tree = (in_tree && line != "};") || line == "use crate::{";
        found.push((number, line.to_owned()));
    }
    found
}

/// Scenario: every path that a module names.
/// Guarantees: dependencies point down the flow, as in the table, and the table has every module.
#[test]
fn modules_know_only_what_they_should() {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs"));
    let lib = lib.expect("readable");
    let declared = lib.lines().map(|line| line.strip_prefix("pub ").unwrap_or(line));
    let declared = declared.filter_map(|line| line.strip_prefix("mod "));
    let declared: Vec<_> = declared.filter(|module| *module != "reference;").collect();
    let in_table = MUST_NOT_KNOW.iter().map(|(module, _)| format!("{module};"));
    let in_table: Vec<_> = in_table.filter(|module| module != "main;").collect();
    assert_eq!(declared, in_table, "the table has the modules of lib.rs, in its order");
    complain(|source| {
        let row = MUST_NOT_KNOW.iter().find(|(module, _)| *module == source.module());
        let banned = row.map_or(&[][..], |(_, banned)| banned);
        let names = |line: &str, path: &str| {
            let starts =
                |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            let ends = |at: usize| {
                path.ends_with("::")
                    || line[at + path.len()..]
                        .starts_with(|c: char| !c.is_alphanumeric() && c != '_')
            };
            line.match_indices(path).any(|(at, _)| starts(at) && ends(at))
        };
        let mut found = Vec::new();
        for (number, line) in paths(source) {
            // Paths of other crates count as paths only, not as words.
            let named = banned.iter().filter(|path| {
                let path = if path.contains("::") { (**path).into() } else { format!("{path}::") };
                names(&line, &path)
            });
            found.extend(named.map(|path| (number, format!("must not know {path}"))));
        }
        found
    });
}

/// Scenario: every chain of modules that name one another.
/// Guarantees: no module reaches, through others, a module that the table forbids.
#[test]
fn modules_reach_only_what_they_should() {
    let sources = sources();
    let mut known = BTreeMap::<String, BTreeSet<String>>::new();
    for source in &sources {
        let of = known.entry(source.module().to_owned()).or_default();
        for (_, line) in paths(source) {
            let after = line.match_indices("crate::").map(|(at, path)| &line[at + path.len()..]);
            let ends = |c: char| !c.is_alphanumeric() && c != '_';
            of.extend(after.filter_map(|path| path.split(ends).next()).map(str::to_owned));
        }
    }
    let chain_to = |from: &str, target: &str| {
        let mut chains = VecDeque::from([vec![from.to_owned()]]);
        let mut seen = BTreeSet::from([from.to_owned()]);
        while let Some(chain) = chains.pop_front() {
            for next in known.get(chain.last()?).into_iter().flatten() {
                let longer = [chain.as_slice(), std::slice::from_ref(next)].concat();
                if next == target {
                    return Some(longer.join(" knows "));
                }
                if seen.insert(next.clone()) {
                    chains.push_back(longer);
                }
            }
        }
        None
    };
    let reached = MUST_NOT_REACH.iter().flat_map(|(from, targets)| {
        targets.iter().filter_map(|target| chain_to(from, target)).collect::<Vec<_>>()
    });
    let reached: Vec<_> = reached.collect();
    assert!(reached.is_empty(), "\n{}", reached.join("\n"));
    assert!(chain_to("service", "window").is_some(), "chains are found at all");
}

/// Scenario: every file.
/// Guarantees: it begins with a header, and neither the file nor its lines are too long.
#[test]
fn files_have_headers_and_sizes() {
    complain(|source| {
        let mut found = Vec::new();
        if !source.is_test() && !source.text.starts_with("//! ") {
            found.push((1, "begins without a `//!` header".into()));
        }
        let lines = source.production().count();
        if lines > PRODUCTION_LINES_MAX {
            found.push((1, format!("{lines} production lines; at most {PRODUCTION_LINES_MAX}")));
        }
        for (index, line) in source.text.lines().enumerate() {
            let chars = line.chars().count();
            // The table of descriptions has one line per metric, of any length.
            if chars > LINE_CHARS_MAX && !line.trim_start().starts_with("describe_") {
                found.push((index + 1, format!("{chars} characters; at most {LINE_CHARS_MAX}")));
            }
        }
        found
    });
}

/// Scenario: every reading of the wall clock.
/// Guarantees: it is read in one place, and only used to show times to people or to compare them
/// with the expiry of a policy, so that a step of the clock moves no deadline of a trace.
#[test]
fn wall_time_is_only_shown() {
    const SHOWN: [&str; 17] = [
        // Of Kafka: compared with the times of records, which are wall time as well.
        "let wall = clock::unix_millis();",
        "let asked_at = clock::unix_millis();",
        "self.sampler.publish(",
        "self.gauges.reload",
        "self.shop.visit(",
        "plan.expire(clock::unix_millis())",
        "now: clock::unix_millis(),",
        "super::in_force(clock::unix_millis())",
        "since: clock::unix_millis()",
        "at: clock::unix_millis(),",
        "started_at: clock::unix_millis(),",
        "self.history.note(",
        ".explained(clock::unix_millis())",
        "timestamp(clock::unix_millis() +",
        "draw::draw(",
        "view.heard(",
        "view.missed(",
    ];
    complain(|source| {
        let named = |line: &str, what: &str| line.contains(what) && source.path != "clock.rs";
        let mut found = Vec::new();
        for (number, line) in source.production() {
            let is_shown = SHOWN.iter().any(|shown| line.contains(shown));
            if named(line, "SystemTime::now") || (named(line, "unix_millis") && !is_shown) {
                found.push((number, "reads the wall clock".into()));
            }
        }
        found
    });
}

/// Scenario: every `select!`, spawn and `unwrap` in production code.
/// Guarantees: selects are biased, tasks begin where the table says, and nothing is unwrapped.
#[test]
fn tasks_and_selects_follow_the_rules() {
    complain(|source| {
        let mut found = Vec::new();
        let mut awaits_biased = None;
        for (number, line) in source.production() {
            if let Some(opened) = awaits_biased.filter(|_| !line.trim().is_empty()) {
                if line.trim() != "biased;" {
                    found.push((opened, "`select!` without `biased;`".into()));
                }
                awaits_biased = None;
            }
            if line.contains("select! {") {
                awaits_biased = Some(number);
            }
            if line.contains(".unwrap()") {
                found.push((number, "`unwrap()`".into()));
            }
            let spawns = ["spawn(", "spawn_scoped(", "spawn_blocking(", "spawn_local("];
            let begins = spawns.iter().any(|spawn| line.contains(spawn)) && !line.contains("fn ");
            if begins && !SPAWN.iter().any(|(path, _)| *path == source.path) {
                found.push((number, "spawns, but is not in the table".into()));
            }
        }
        found
    });
}
