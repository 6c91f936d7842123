//! `tailwater test FILE...`: tests policies with traces written in a test file.
//!
//! A test expects a probability, never a random outcome: the percentage of the threshold that the
//! policies propose. Traces become OTLP bytes and are decided as in the service, with limits at
//! rest (no other trace has used them). Shadow policies and expired policies take no part.
//!
//! `config` reads test files, `spans` encodes traces, `coverage` records the coverage of the tests,
//! and `report` prints.

use std::{fs::File, path::PathBuf, sync::Arc};

use clap::{Args, ValueEnum};

use self::{
    coverage::{Coverage, Probes},
    report::Report,
};
use super::{complain, print, traces::Traces};
use crate::{
    clock,
    config::{self, Diagnostics, Expected, PolicyTest, Problem, TestedTrace},
    policy::{Plan, PolicySpec},
    trace::{Threshold, TraceId},
    trace_files::{Piece, TraceFile},
};

mod coverage;
mod report;
mod spans;
#[cfg(test)]
mod tests;

/// The number of traces of a file to gather before forgetting all but the wanted one.
const TRACES_MAX: usize = 1 << 16;

/// Options of `test`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Format of the report
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// List policies that no test credits, and conditions that are never true or never false
    #[arg(long)]
    pub coverage: bool,
    /// Test files
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// The format of the report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people: the tests that fail, and the totals.
    #[default]
    Text,
    /// For tools: `{"tests": [...], "passed", "failed", "errors": [...]}`.
    Json,
    /// For CI servers: JUnit's XML.
    Junit,
}

/// The result of all tests.
#[derive(Debug)]
pub struct Tested {
    /// The text to print, unchanged.
    pub text: String,
    /// Mistakes in test files and in the files that they name.
    pub diagnostics: Diagnostics,
    /// Whether all tests passed and there was no mistake.
    pub is_fine: bool,
}

/// The decision of a test's trace.
#[derive(Clone, Debug, PartialEq)]
struct Actual {
    percentage: f64,
    policy: String,
    matched: Vec<String>,
}

/// The result of one test.
#[derive(Debug)]
struct Outcome {
    file: String,
    line: usize,
    name: String,
    /// `None` if the trace could not be read.
    actual: Option<Actual>,
    /// The difference between the expected and the actual result, or why there is no trace, or why
    /// the expectation cannot be met.
    failure: Option<String>,
    /// The names of all policies that take part, in their order.
    policies: Arc<Vec<String>>,
}

/// Runs the tests and prints the report. Returns whether all passed.
pub fn run(options: &Options) -> bool {
    let tested = test(options);
    complain(&tested.diagnostics.to_string());
    print(&tested.text) && tested.is_fine
}

/// Runs all tests of all files. Blocks on the file system.
pub fn test(options: &Options) -> Tested {
    let mut diagnostics = Diagnostics::default();
    let mut report = Report::default();
    let mut coverage = Coverage::default();
    for file in &options.files {
        let loaded = config::load_tests(file);
        let name = config::visible(&file.display().to_string());
        let errors = loaded.diagnostics.errors();
        diagnostics.merge(loaded.diagnostics);
        let Some(tests) = loaded.file else {
            report.add_unusable(name, errors);
            continue;
        };
        let under_test = UnderTest::new(tests.policies, &mut coverage);
        for test in &tests.tests {
            let outcome = under_test.run(test, &mut coverage, &mut diagnostics);
            report.add(outcome);
        }
    }
    let gaps = options.coverage.then(|| coverage.gaps());
    let is_fine = report.is_fine() && !diagnostics.has_errors();
    let text = match options.format {
        Format::Text => report.text(gaps.as_ref()),
        Format::Json => report.json(gaps.as_ref(), &diagnostics.errors()),
        Format::Junit => report.junit(),
    };
    Tested { text, diagnostics, is_fine }
}

/// The policies of a file, compiled, with limits at rest.
struct UnderTest {
    plan: Arc<Plan>,
    probes: Probes,
    probing: Arc<Plan>,
    names: Arc<Vec<String>>,
}

impl UnderTest {
    fn new(policies: Vec<(PolicySpec, config::Diagnostic)>, coverage: &mut Coverage) -> Self {
        let in_force = super::in_force(clock::unix_millis());
        let policies: Vec<_> =
            policies.into_iter().filter(|(policy, _)| in_force(policy)).collect();
        let at_rest = |(policy, _): &(PolicySpec, _)| PolicySpec { limit: None, ..policy.clone() };
        let specs: Vec<_> = policies.iter().map(at_rest).collect();
        let probes = coverage.begin(&policies);
        UnderTest {
            plan: Arc::new(Plan::compile(&specs)),
            probing: Arc::new(Plan::compile(&probes.specs)),
            probes,
            names: Arc::new(specs.into_iter().map(|policy| policy.name).collect()),
        }
    }

    fn run(
        &self,
        test: &PolicyTest,
        coverage: &mut Coverage,
        diagnostics: &mut Diagnostics,
    ) -> Outcome {
        let mut traces = Traces::new(vec![Arc::clone(&self.plan), Arc::clone(&self.probing)]);
        let (actual, failure) = match gather(&test.trace, &mut traces) {
            Ok(trace) => {
                let actual = self.decide(test, &traces, trace, coverage);
                let failure = difference(&test.expected, &actual);
                (Some(actual), failure)
            }
            Err((problem, place)) => {
                let message = problem.message().to_owned();
                let place = place.map_or_else(|| test.place.clone(), |place| *place);
                diagnostics.push(place.saying(problem));
                (None, Some(message))
            }
        };
        Outcome {
            file: test.place.file.clone(),
            line: test.place.line,
            name: test.name.clone(),
            actual,
            failure: test.unmet.clone().or(failure),
            policies: Arc::clone(&self.names),
        }
    }

    fn decide(
        &self,
        test: &PolicyTest,
        traces: &Traces,
        trace: usize,
        coverage: &mut Coverage,
    ) -> Actual {
        let mut matched = Vec::new();
        let evidence = traces.evidence(trace, 0, test.trigger.is_forced());
        let verdict = self.plan.decide(&evidence, &mut matched);
        let probed = traces.evidence(trace, 1, false);
        coverage.note(&self.probes, verdict.policy, &self.probing, &probed);
        Actual {
            percentage: verdict.threshold.percentage(),
            policy: self.plan.name(verdict.policy).to_owned(),
            matched: matched.into_iter().map(|id| self.plan.name(id).to_owned()).collect(),
        }
    }
}

/// A problem, and its place if it is not in the test file.
type Unusable = (Problem, Option<Box<config::Diagnostic>>);

/// Gathers the trace of a test, and returns its index.
fn gather(trace: &TestedTrace, traces: &mut Traces) -> Result<usize, Unusable> {
    match trace {
        TestedTrace::Spans(spans) => {
            let request = spans::request(spans);
            traces.add(&request, 1.0).map_err(|error| (Problem::new(error.to_string()), None))?;
            Ok(0)
        }
        TestedTrace::File { path, trace_id, place } => {
            let at_place = |problem| (problem, Some(Box::new(place.clone())));
            read(path, *trace_id, traces).map_err(at_place)
        }
    }
}

fn read(path: &PathBuf, wanted: Option<TraceId>, traces: &mut Traces) -> Result<usize, Problem> {
    let name = path.display().to_string();
    let cannot = |error| Problem::new(format!("cannot read {name}: {error}"));
    let mut file = TraceFile::open(&name, File::open(path).map_err(cannot)?).map_err(cannot)?;
    while let Some(piece) = file.next_piece() {
        match piece {
            Piece::Request(request) => {
                let share = file.share();
                let left_out = traces
                    .add(&request, share)
                    .map_err(|error| Problem::new(format!("{}: {error}", file.place())))?;
                if left_out > 0 {
                    let message = format!("{}: a span has no valid ids", file.place());
                    return Err(Problem::new(message));
                }
            }
            Piece::Unreadable(reason) => return Err(Problem::new(reason)),
        }
        if traces.all().len() > TRACES_MAX {
            let others: Vec<_> =
                traces.all().iter().map(|trace| Some(trace.id) != wanted).collect();
            match wanted {
                Some(_) => traces.forget(&others),
                None => break,
            }
        }
    }
    match (traces.all(), wanted) {
        ([], None) => Err(Problem::new(format!("{name} has no spans"))),
        ([_], None) => Ok(0),
        (several, None) => {
            let ids: Vec<_> = several.iter().take(3).map(|trace| trace.id.to_string()).collect();
            let message = format!("{name} has more than one trace: {}, ...", ids.join(", "));
            Err(Problem::new(message).hint("name one: trace_id = \"...\""))
        }
        (all, Some(id)) => {
            let found = all.iter().position(|trace| trace.id == id);
            found.ok_or_else(|| Problem::new(format!("{name} has no trace {id}")))
        }
    }
}

/// The difference between the expected and the actual result, if there is any.
fn difference(expected: &Expected, actual: &Actual) -> Option<String> {
    let mut parts = Vec::new();
    if let Some(percentage) = expected.percentage
        && Threshold::from_percentage(percentage) != Threshold::from_percentage(actual.percentage)
    {
        parts.push(format!("expected {percentage} %, got {} %", actual.percentage));
    }
    if let Some(policy) = expected.policy.as_ref().filter(|policy| **policy != actual.policy) {
        parts.push(format!("expected policy `{policy}`, got `{}`", actual.policy));
    }
    if let Some(matched) = expected.matched.as_ref().filter(|matched| **matched != actual.matched) {
        let list = |names: &[String]| format!("[{}]", names.join(", "));
        parts.push(format!("expected matched {}, got {}", list(matched), list(&actual.matched)));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}
