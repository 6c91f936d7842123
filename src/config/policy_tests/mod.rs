//! Test files for `tailwater test`: policies, traces, and the expected decisions.
//!
//! A test file names its policies like a configuration: in `[[policy]]` tables, by `policy_files`,
//! or with `config` all those of a configuration. Every mistake is reported with its place, in the
//! test file or in a file that it names. [`spans`] reads the traces.

use std::path::{Path, PathBuf};

use super::{
    diagnostics::{Diagnostic, Diagnostics, Problem, did_you_mean, quote},
    files,
    load::{Host, Load, on_a_large_stack},
    reader::{Reader, Span},
    section::{Read, Section},
    source::Source,
    syntax, values,
};
use crate::{
    policy::PolicySpec,
    trace::{TraceId, Trigger},
};

mod spans;
#[cfg(test)]
mod tests;

pub(crate) use spans::{AttributeValue, TestEvent, TestSpan};

/// The content of a test file.
#[derive(Debug)]
pub struct PolicyTests {
    /// The policies to test, in their order, each with the place of its name.
    pub(crate) policies: Vec<(PolicySpec, Diagnostic)>,
    /// The tests in their order.
    pub(crate) tests: Vec<PolicyTest>,
}

/// The result of loading a test file.
#[derive(Debug)]
pub struct LoadedTests {
    /// Present if and only if there is no error.
    pub file: Option<PolicyTests>,
    /// Errors and warnings, sorted.
    pub diagnostics: Diagnostics,
}

/// One `[[test]]`.
#[derive(Clone, Debug)]
pub(crate) struct PolicyTest {
    /// The name, which is not empty.
    pub(crate) name: String,
    /// A diagnostic at its place whose message is still to be set.
    pub(crate) place: Diagnostic,
    /// The trace to decide.
    pub(crate) trace: TestedTrace,
    /// The trigger of the decision.
    pub(crate) trigger: Trigger,
    /// The expectations, at least one of which is set.
    pub(crate) expected: Expected,
    /// Why they cannot be met: one of them names a policy that takes no part.
    pub(crate) unmet: Option<String>,
}

/// The trace of a test.
#[derive(Clone, Debug)]
pub(crate) enum TestedTrace {
    /// Spans written in the test file; not empty.
    Spans(Vec<TestSpan>),
    /// A recorded trace.
    File {
        /// A file in any form that `replay` reads.
        path: PathBuf,
        /// The id of the trace, if the file has several.
        trace_id: Option<TraceId>,
        /// A diagnostic where the file is named, whose message is still to be set.
        place: Diagnostic,
    },
}

/// The decision that a test expects.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Expected {
    /// The percentage; `kept` means 100 or 0.
    pub(crate) percentage: Option<f64>,
    /// The policy that is credited, or `none`.
    pub(crate) policy: Option<String>,
    /// All policies that match.
    pub(crate) matched: Option<Vec<String>>,
}

/// A policy that a test names in its expectations.
struct Mention {
    name: String,
    span: Span,
    /// Whether it is in the list `matched`.
    in_matched: bool,
}

const TRIGGERS: &[(&str, Trigger)] = &[
    ("decision_wait", Trigger::DecisionWait),
    ("root_received", Trigger::RootReceived),
    ("memory", Trigger::Memory),
    ("trace_limit", Trigger::TraceLimit),
    ("shutdown", Trigger::Shutdown),
];

/// Reads a test file and all files that it names, except recorded traces. Blocks on the file
/// system.
pub fn load_tests(path: &Path) -> LoadedTests {
    match files::read_text(path) {
        Ok(source) => parse(&source, path, Host::detect()),
        Err(diagnostics) => LoadedTests { file: None, diagnostics },
    }
}

fn parse(source: &Source, path: &Path, host: Host) -> LoadedTests {
    on_a_large_stack(|| {
        let mut load = Load::new(host.clone());
        let mut file = TestFile { source, path, mentions: Vec::new() };
        let (mut tests, from) = file.read(&mut load);
        load.policy_files(source, path, &from.policy_files);
        if let Some((config, span)) = from.config {
            file.policies_of(&config, &span, &mut load);
        }
        load.require_policies(source);
        load.review();
        file.check_mentions(&mut tests, &mut load);
        load.diagnostics.sort();
        let is_fine = !load.diagnostics.has_errors();
        let policies = load.policies.into_placed();
        let file = is_fine.then_some(PolicyTests { policies, tests });
        LoadedTests { file, diagnostics: load.diagnostics }
    })
}

/// The sources of the policies of a test file, other than its own tables.
struct From {
    policy_files: Vec<(String, Span)>,
    config: Option<(PathBuf, Span)>,
}

/// A test file that is being read.
struct TestFile<'s> {
    source: &'s Source,
    path: &'s Path,
    /// The policies that each test names, in the order of the tests.
    mentions: Vec<Vec<Mention>>,
}

impl TestFile<'_> {
    fn read(&mut self, load: &mut Load) -> (Vec<PolicyTest>, From) {
        let directory = self.path.parent().unwrap_or(Path::new(""));
        let (table, damage) = syntax::parse(self.source, &mut load.diagnostics);
        load.obscured |= damage.hides_keys();
        let variable = load.host.variable;
        let mut reader = Reader::new(self.source, &damage, &mut load.diagnostics, variable);
        let mut root = reader.root(&table, " in a test file");
        let policy_files = root.texts("policy_files");
        let config = root.file("config", directory);
        load.policies.read(&mut root);
        if let Read::Set(_, span) = &config
            && (load.policies.found() || !matches!(policy_files, Read::Unset))
        {
            let problem = Problem::new("`config` cannot be combined with other policies");
            root.error(span.clone(), problem.hint("name one configuration, or policies"));
        }
        let is_config_bad = matches!(config, Read::Bad);
        let tables = root.tables("test");
        root.require("test", &tables, Problem::new("the file has no [[test]]"));
        let mut tests = Vec::new();
        for table in tables.or(Vec::new()) {
            tests.extend(self.test(root.element(table), directory));
        }
        root.finish();
        reader.finish();
        load.obscured |= is_config_bad;
        let config = match config {
            Read::Set(path, span) => Some((path, span)),
            Read::Unset | Read::Bad => None,
        };
        (tests, From { policy_files: policy_files.or(Vec::new()), config })
    }

    /// Reads the policies of a configuration, which is checked as a whole.
    fn policies_of(&self, config: &Path, span: &Span, load: &mut Load) {
        match files::read(config) {
            Ok(source) => {
                let mut inner = Load::new(load.host.clone());
                let directory = config.parent().unwrap_or(Path::new(""));
                let (sections, _) = inner.main_file(&source, directory);
                inner.policy_files(&source, config, &sections.policy_files);
                inner.require_policies(&source);
                load.obscured |= inner.diagnostics.has_errors();
                load.diagnostics.merge(inner.diagnostics);
                load.policies = inner.policies;
            }
            Err(files::Unreadable::Closed(problem)) => load.unreadable(self.source, span, problem),
            Err(files::Unreadable::NotText(diagnostic)) => {
                load.obscured = true;
                load.diagnostics.push(*diagnostic);
            }
        }
    }

    /// Reports mentioned policies that do not exist. A test that names a policy that takes no part
    /// fails, because the policy may have expired since the test was written; the others run.
    fn check_mentions(&mut self, tests: &mut [PolicyTest], load: &mut Load) {
        if load.obscured || load.diagnostics.has_errors() {
            return;
        }
        for (test, mentions) in tests.iter_mut().zip(std::mem::take(&mut self.mentions)) {
            for mention in mentions {
                let specs = load.policies.specs();
                let Some(spec) = specs.iter().find(|spec| spec.name == mention.name) else {
                    let problem = unknown(&mention, specs);
                    let error = self.source.diagnose(mention.span, super::Severity::Error, problem);
                    load.diagnostics.push(error);
                    continue;
                };
                let unmet = takes_no_part(spec, load.host.now);
                test.unmet = test.unmet.take().or(unmet);
            }
        }
    }

    fn test(&mut self, mut section: Section<'_, '_>, directory: &Path) -> Option<PolicyTest> {
        section.set_place(" in a test".to_owned());
        let place = section.error_at(section.span());
        let name = section.literal("name", |name| match name.trim() {
            "" => Err(Problem::new("the name of the test is empty")),
            _ => Ok(name.to_owned()),
        });
        section.require("name", &name, Problem::new("the test has no `name`"));
        let trace = trace(&mut section, directory);
        let trigger = section.literal("trigger", |text| values::choice("trigger", text, TRIGGERS));
        let (expected, mentions) = expected(&mut section);
        section.finish();
        let (name, trace, trigger) = (name.good()?, trace?, trigger.or(Trigger::DecisionWait));
        self.mentions.push(mentions);
        Some(PolicyTest { name, place, trace, trigger, expected, unmet: None })
    }
}

/// Reads what a test expects, and the policies that it names.
fn expected(section: &mut Section<'_, '_>) -> (Expected, Vec<Mention>) {
    let percentage = section.percentage("percentage");
    let kept = section.boolean("kept");
    let policy = section.literal("policy", |name| Ok(name.to_owned()));
    let matched = section.literals("matched");
    let are_unset = matches!((&percentage, &kept), (Read::Unset, Read::Unset))
        && matches!((&policy, &matched), (Read::Unset, Read::Unset));
    if are_unset {
        let keys = ["percentage", "kept", "policy", "matched"];
        let problem = Problem::new("the test expects nothing");
        let hint = "add `percentage`, `kept`, `policy` or `matched`";
        section.require_any(&keys, problem.hint(hint));
    }
    if let (Read::Set(..), Read::Set(_, span)) = (&percentage, &kept) {
        let problem = Problem::new("`kept` cannot be combined with `percentage`");
        section.error(span.clone(), problem.hint("`kept = true` is short for 100"));
    }
    let mention = |name: &String, span: &Span, in_matched| {
        let (name, span) = (name.clone(), span.clone());
        Mention { name, span, in_matched }
    };
    let mut mentions = Vec::new();
    if let Read::Set(name, span) = &policy
        && name != "none"
    {
        mentions.push(mention(name, span, false));
    }
    let matched = matched.good();
    mentions.extend(matched.iter().flatten().map(|(name, span)| mention(name, span, true)));
    let kept = kept.good().map(|kept| if kept { 100.0 } else { 0.0 });
    let names = |matched: Vec<(String, Span)>| matched.into_iter().map(|(name, _)| name);
    let expected = Expected {
        percentage: percentage.good().or(kept),
        policy: policy.good(),
        matched: matched.map(|matched| names(matched).collect()),
    };
    (expected, mentions)
}

/// Why a policy takes no part in tests, if it does not.
fn takes_no_part(spec: &PolicySpec, now: u64) -> Option<String> {
    let name = quote(&spec.name);
    if spec.shadow {
        return Some(format!("{name} is a shadow policy and takes no part in tests"));
    }
    let has_expired = spec.expires.is_some_and(|at| at <= now);
    has_expired.then(|| format!("the policy {name} has expired and takes no part in tests"))
}

/// The problem of a policy that does not exist.
fn unknown(mention: &Mention, specs: &[PolicySpec]) -> Problem {
    let Mention { name, in_matched, .. } = mention;
    let problem = Problem::new(format!("there is no policy {}", quote(name)));
    let names = specs.iter().map(|spec| spec.name.as_str());
    match (in_matched, name.as_str()) {
        (true, "none") => problem.hint("write matched = [] if no policy matches"),
        (true, _) => problem.maybe_hint(did_you_mean(name, names)),
        (false, _) => problem.maybe_hint(did_you_mean(name, names.chain(["none"]))),
    }
}

/// Reads the trace of a test: `spans`, or `file` and `trace_id`.
fn trace(section: &mut Section<'_, '_>, directory: &Path) -> Option<TestedTrace> {
    let spans = spans::spans(section);
    let file = section.file("file", directory);
    let trace_id = section.literal("trace_id", |text| {
        trace_id(text).ok_or_else(|| {
            Problem::new(format!("{} is not the id of a trace", quote(text)))
                .hint("write up to 32 hexadecimal digits, or 24 characters of base64")
        })
    });
    match (&spans, &file) {
        (Read::Unset, Read::Unset) => {
            let problem = Problem::new("the test has no `spans` and no `file`");
            section.require_any(&["spans", "file"], problem);
        }
        (Read::Set(..), Read::Set(_, span)) => {
            section.error(span.clone(), Problem::new("`file` cannot be combined with `spans`"));
        }
        (Read::Set(..), Read::Unset) => {
            section.refuse("trace_id", Problem::new("`trace_id` belongs to `file`"));
        }
        _ => {}
    }
    match (spans, file) {
        (Read::Set(spans, _), _) => Some(TestedTrace::Spans(spans)),
        (_, Read::Set(path, span)) => {
            let place = section.error_at(span);
            Some(TestedTrace::File { path, trace_id: trace_id.good(), place })
        }
        _ => None,
    }
}

/// A trace id as tools show it: hexadecimal, possibly without leading zeros or with dashes, or
/// base64.
fn trace_id(text: &str) -> Option<TraceId> {
    use base64::{Engine as _, alphabet, engine};
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let digits = digits.strip_prefix("0x").unwrap_or(&digits);
    let is_hex = !digits.is_empty() && digits.len() <= 32;
    if is_hex && let Some(id) = TraceId::from_hex(&format!("{digits:0>32}")) {
        return Some(id).filter(|id| id.0 != [0; 16]);
    }
    let config = engine::GeneralPurposeConfig::new()
        .with_decode_padding_mode(engine::DecodePaddingMode::Indifferent);
    let decode = |alphabet| engine::GeneralPurpose::new(alphabet, config).decode(text).ok();
    let bytes = decode(&alphabet::STANDARD).or_else(|| decode(&alphabet::URL_SAFE))?;
    <[u8; 16]>::try_from(bytes).ok().map(TraceId).filter(|id| id.0 != [0; 16])
}
