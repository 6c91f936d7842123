//! Loads a path into a [`Config`], or into a list of everything that is wrong with it.
//!
//! The main file is read first, then the policy files that it names, by path. Loading does not stop
//! at a mistake: each file adds its problems to one list, and whether there was an error is only
//! checked at the end. Two checks concern all files and come last: whether there is any policy, and
//! therefore whether a glob without a match is an error or a warning.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    thread::{self, ScopedJoinHandle},
};

use ring::digest;

use super::{
    Config,
    diagnostics::{Diagnostic, Diagnostics, Problem, Severity, quote},
    env::Variable,
    files::{self, Unreadable},
    inputs::{Inputs, WATCHED_FILES_MAX},
    memory::MemoryLimit,
    policies::Policies,
    reader::{KnownKeys, Reader, Span},
    sections::{self, Sections},
    shown::Shown,
    source::Source,
    syntax,
};
use crate::{clock, policy::PolicySpec};

/// The policies of a service without a configuration file.
const EMBEDDED_POLICIES: &str = include_str!("../../policies/default.toml");

/// The stack for reading a file. The parser bounds nesting at 80 levels, but each may be a dotted
/// key of 80 parts, and the resulting 6,400 tables are dropped recursively: this takes some
/// megabytes in a debug build, more than the 2 MiB of a spawned thread. Untouched memory costs
/// nothing.
const STACK_BYTES: usize = 64 << 20;

/// The result of loading.
#[derive(Debug)]
pub struct Loaded {
    /// Present if and only if there is no error.
    pub config: Option<Config>,
    /// Errors and warnings, sorted.
    pub diagnostics: Diagnostics,
    /// Whether `log_format` is "json", as far as the file can be read, so that its problems can be
    /// logged in that format. False if the file cannot be read at all.
    pub log_json: bool,
    /// The files that were read; empty for the built-in configuration.
    pub inputs: Inputs,
}

/// The properties of the machine on which a configuration is read.
#[derive(Clone)]
pub(super) struct Host {
    pub(super) variable: Variable,
    pub(super) memory_default: MemoryLimit,
    /// The current time in Unix milliseconds.
    pub(super) now: u64,
}

impl Host {
    pub(super) fn detect() -> Self {
        Host {
            variable: |name| env::var(name),
            memory_default: MemoryLimit::detect(),
            now: clock::unix_millis(),
        }
    }
}

/// Reads the file and the policy files that it names. Blocks on the file system. A file that cannot
/// be read is a diagnostic like any other problem.
pub fn load(path: &Path) -> Loaded {
    let (digest, read) = files::read_with_digest(path);
    let mut inputs = Inputs::default();
    inputs.add(digest);
    let mut loaded = match read {
        Ok(source) => parse_read(&source, path, Host::detect(), inputs).0,
        Err(Unreadable::Closed(problem)) => {
            refused(Source::new(path, "").whole(Severity::Error, problem), inputs)
        }
        Err(Unreadable::NotText(diagnostic)) => refused(*diagnostic, inputs),
    };
    if let Some(config) = &mut loaded.config {
        config.file = Some(path.to_owned());
        config.inputs = loaded.inputs.clone();
    }
    loaded
}

/// The configuration of a service without a file: all defaults, and `policies/default.toml`.
pub fn embedded() -> Config {
    let path = Path::new("policies/default.toml");
    let loaded = parse(&Source::new(path, EMBEDDED_POLICIES), path, Host::detect()).0;
    loaded.config.expect("a test loads the embedded policies without a diagnostic")
}

/// Reads the text of a policy file that a client sent. `name` is its name in diagnostics.
///
/// # Errors
/// All problems, if there is an error. Warnings alone are not an error.
pub(crate) fn load_policies(name: &str, text: &str) -> Result<Vec<PolicySpec>, Diagnostics> {
    let source = match files::sized(Path::new(name), text) {
        Ok(source) => source,
        Err(problem) => {
            let source = Source::new(Path::new(name), "");
            let mut diagnostics = Diagnostics::default();
            diagnostics.push(source.whole(Severity::Error, problem));
            return Err(diagnostics);
        }
    };
    on_a_large_stack(|| {
        let mut load = Load::new(Host::detect());
        load.policy_file(&source);
        load.require_policies(&source);
        load.review();
        load.diagnostics.sort();
        if load.diagnostics.has_errors() {
            return Err(load.diagnostics);
        }
        Ok(load.policies.into_specs())
    })
}

/// Loads the file with [`load`], or returns [`embedded`] if there is none.
pub fn load_or_embedded(file: Option<&Path>) -> Loaded {
    let built_in = || {
        let config = embedded();
        let log_json = config.telemetry.log_json;
        let (diagnostics, inputs) = Default::default();
        Loaded { config: Some(config), diagnostics, log_json, inputs }
    };
    file.map_or_else(built_in, load)
}

fn refused(diagnostic: Diagnostic, inputs: Inputs) -> Loaded {
    let mut diagnostics = Diagnostics::default();
    diagnostics.push(diagnostic);
    Loaded { config: None, diagnostics, log_json: false, inputs }
}

/// Parses a main file that was read from `path`. Returns the keys that it may have too.
pub(super) fn parse(source: &Source, path: &Path, host: Host) -> (Loaded, KnownKeys) {
    parse_read(source, path, host, Inputs::default())
}

/// The same, for a main file that is already in `inputs`.
fn parse_read(source: &Source, path: &Path, host: Host, inputs: Inputs) -> (Loaded, KnownKeys) {
    on_a_large_stack(|| {
        let mut load = Load { inputs: inputs.clone(), ..Load::new(host.clone()) };
        let (sections, known) = load.main_file(source, path.parent().unwrap_or(Path::new("")));
        let files = load.policy_files(source, path, &sections.policy_files);
        if let Some(span) = &sections.watched {
            load.require_few(source, span, files);
        }
        load.require_policies(source);
        (load.finish(sections), known)
    })
}

pub(super) fn on_a_large_stack<T: Send>(read: impl Fn() -> T + Sync) -> T {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("config".to_owned()).stack_size(STACK_BYTES);
        match builder.spawn_scoped(scope, &read).map(ScopedJoinHandle::join) {
            Ok(Ok(read)) => read,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            // Without a thread or memory for it, a file of ordinary depth can still be read.
            Err(_) => read(),
        }
    })
}

/// The state of one load.
pub(super) struct Load {
    pub(super) host: Host,
    pub(super) diagnostics: Diagnostics,
    pub(super) policies: Policies,
    /// Globs that matched no file.
    barren: Vec<(Span, Problem)>,
    /// Whether there may be policies that could not be read. This has been reported then.
    pub(super) obscured: bool,
    /// The files, for display.
    shown: Shown,
    /// The hash of all files, in the order in which they are read.
    hash: digest::Context,
    /// Whether the tree has `log_format` "json", even if the parser lost its way.
    log_json: bool,
    inputs: Inputs,
}

impl Load {
    pub(super) fn new(host: Host) -> Self {
        Load {
            policies: Policies::new(host.now),
            host,
            diagnostics: Diagnostics::default(),
            barren: Vec::new(),
            obscured: false,
            shown: Shown::default(),
            hash: digest::Context::new(&digest::SHA256),
            log_json: false,
            inputs: Inputs::default(),
        }
    }

    pub(super) fn main_file(&mut self, source: &Source, directory: &Path) -> (Sections, KnownKeys) {
        source.hash(&mut self.hash);
        self.shown.add(source);
        let (table, damage) = syntax::parse(source, &mut self.diagnostics);
        self.obscured |= damage.hides_keys();
        let log_format = table.get("telemetry").and_then(|it| it.get_ref().get("log_format"));
        self.log_json = log_format.is_some_and(|it| it.get_ref().as_str() == Some("json"));
        let variable = self.host.variable;
        let mut reader = Reader::new(source, &damage, &mut self.diagnostics, variable);
        let mut root = reader.root(&table, "");
        let sections = sections::read(&mut root, directory, &self.host.memory_default);
        self.policies.read(&mut root);
        root.finish();
        (sections, reader.finish())
    }

    /// Reads the files that `policy_files` names, each file once, by path. Returns their number.
    pub(super) fn policy_files(
        &mut self,
        source: &Source,
        path: &Path,
        patterns: &[(String, Span)],
    ) -> usize {
        let mut files: BTreeMap<PathBuf, Span> = BTreeMap::new();
        for (pattern, span) in patterns {
            match files::named(pattern, path) {
                Ok(found) if found.is_empty() => {
                    let problem = Problem::new(format!("no file matches {}", quote(pattern)));
                    self.barren.push((span.clone(), problem));
                }
                // Two entries may name the same file; its problems are reported at the first one.
                Ok(found) => found.into_iter().for_each(|file| {
                    files.entry(file).or_insert_with(|| span.clone());
                }),
                Err(problem) => {
                    self.inputs.add_unlisted(pattern, &problem.message);
                    self.unreadable(source, span, problem);
                }
            }
        }
        self.inputs.patterns = patterns.iter().map(|(pattern, _)| pattern.clone()).collect();
        let read = files.len();
        for (file, span) in files {
            let (digest, read) = files::read_with_digest(&file);
            self.inputs.add(digest);
            match read {
                Ok(policies) => self.policy_file(&policies),
                Err(Unreadable::Closed(problem)) => self.unreadable(source, &span, problem),
                Err(Unreadable::NotText(diagnostic)) => {
                    self.obscured = true;
                    self.diagnostics.push(*diagnostic);
                }
            }
        }
        read
    }

    /// Reports too many policy files for watching, which reads every file once a second.
    fn require_few(&mut self, source: &Source, span: &Span, files: usize) {
        if files > WATCHED_FILES_MAX {
            let problem = Problem::new(format!(
                "`watch_policy_files` can watch {WATCHED_FILES_MAX} policy files, found {files}"
            ));
            let problem = problem.hint("name only files with policies in `policy_files`");
            self.diagnostics.push(source.diagnose(span.clone(), Severity::Error, problem));
        }
    }

    fn policy_file(&mut self, source: &Source) {
        source.hash(&mut self.hash);
        self.shown.add(source);
        let (table, damage) = syntax::parse(source, &mut self.diagnostics);
        self.obscured |= damage.hides_keys();
        let variable = self.host.variable;
        let mut reader = Reader::new(source, &damage, &mut self.diagnostics, variable);
        let place = " in a policy file, which holds only [[policy]] tables";
        let mut root = reader.root(&table, place);
        self.policies.read(&mut root);
        root.finish();
        reader.finish();
    }

    pub(super) fn unreadable(&mut self, source: &Source, span: &Span, problem: Problem) {
        self.obscured = true;
        self.diagnostics.push(source.diagnose(span.clone(), Severity::Error, problem));
    }

    /// Requires a policy: without any, every trace would be dropped, for instance by a mistyped
    /// glob.
    pub(super) fn require_policies(&mut self, source: &Source) {
        let none = !self.policies.found() && !self.obscured;
        let severity = if none { Severity::Error } else { Severity::Warning };
        if none && self.barren.is_empty() {
            let problem = Problem::new("there is no policy, so that every trace would be dropped")
                .hint("add a [[policy]], or name files that have one in `policy_files`");
            self.diagnostics.push(source.whole(severity, problem));
        }
        for (span, problem) in std::mem::take(&mut self.barren) {
            self.diagnostics.push(source.diagnose(span, severity, problem));
        }
    }

    /// Reviews the policies as a set. Problems of single policies come first, as they may be the
    /// cause.
    pub(super) fn review(&mut self) {
        if !self.diagnostics.has_errors() {
            self.policies.review(&mut self.diagnostics);
        }
    }

    fn finish(mut self, sections: Sections) -> Loaded {
        self.review();
        self.diagnostics.sort();
        let log_json = self.log_json || sections.telemetry.log_json;
        let config = Config {
            file: None,
            shown: self.shown,
            hash: hexadecimal(self.hash.finish().as_ref()),
            shutdown_timeout: sections.shutdown_timeout,
            grpc: sections.grpc,
            http: sections.http,
            tls: sections.tls,
            bearer_token_file: sections.bearer_token_file,
            kafka: sections.kafka,
            sampling: sections.sampling,
            exporter: sections.exporter,
            durability: sections.durability,
            telemetry: sections.telemetry,
            span_metrics: sections.span_metrics,
            policies: self.policies.into_specs(),
            inputs: Inputs::default(),
        };
        let config = Some(config).filter(|_| !self.diagnostics.has_errors());
        Loaded { config, diagnostics: self.diagnostics, log_json, inputs: self.inputs }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
