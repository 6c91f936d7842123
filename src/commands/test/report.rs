//! Formats test results as text, JSON or JUnit XML.

use std::fmt::Write as _;

use serde_json::json;

use super::{Outcome, coverage::Gaps};
use crate::config::visible;

/// The results of all tests.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// The results by file, in the order of the files.
    files: Vec<OfFile>,
}

#[derive(Debug)]
struct OfFile {
    name: String,
    outcomes: Vec<Outcome>,
    /// Why the file could not be used at all.
    errors: Option<Vec<String>>,
}

impl OfFile {
    fn failed(&self) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.failure.is_some()).count()
    }
}

impl Report {
    pub(super) fn add(&mut self, outcome: Outcome) {
        match self.files.last_mut() {
            Some(of_file) if of_file.name == outcome.file => of_file.outcomes.push(outcome),
            _ => {
                let name = outcome.file.clone();
                self.files.push(OfFile { name, outcomes: vec![outcome], errors: None });
            }
        }
    }

    /// Adds a file with mistakes, none of whose tests has run.
    pub(super) fn add_unusable(&mut self, name: String, errors: Vec<String>) {
        self.files.push(OfFile { name, outcomes: Vec::new(), errors: Some(errors) });
    }

    pub(super) fn is_fine(&self) -> bool {
        self.failed() == 0 && self.unusable() == 0
    }

    fn failed(&self) -> usize {
        self.files.iter().map(OfFile::failed).sum()
    }

    fn unusable(&self) -> usize {
        self.files.iter().filter(|of_file| of_file.errors.is_some()).count()
    }

    fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        self.files.iter().flat_map(|of_file| &of_file.outcomes)
    }

    pub(super) fn text(&self, gaps: Option<&Gaps>) -> String {
        let mut text = String::new();
        for outcome in self.outcomes() {
            if let Some(failure) = &outcome.failure {
                let Outcome { file, line, name, .. } = outcome;
                let (name, failure) = (visible(name), visible(failure));
                let _ = writeln!(text, "{file}:{line}: error: test \"{name}\": {failure}");
                text.push_str(&matches(outcome));
            }
        }
        text.push_str(&gaps.map(gaps_text).unwrap_or_default());
        let (failed, unusable) = (self.failed(), self.unusable());
        let passed = self.outcomes().count() - failed;
        let word = if self.is_fine() { "ok" } else { "FAILED" };
        let _ = write!(text, "test result: {word}. {passed} passed; {failed} failed");
        if unusable > 0 {
            let _ = write!(text, "; {unusable} of the files cannot be used");
        }
        text + "\n"
    }

    /// `errors` are the mistakes in files, which no test is about.
    pub(super) fn json(&self, gaps: Option<&Gaps>, errors: &[String]) -> String {
        let test = |outcome: &Outcome| {
            let actual = outcome.actual.as_ref();
            json!({
                "file": outcome.file,
                "line": outcome.line,
                "name": outcome.name,
                "passed": outcome.failure.is_none(),
                "percentage": actual.map(|actual| number(actual.percentage)),
                "policy": actual.map(|actual| &actual.policy),
                "matched": actual.map_or(&[][..], |actual| &actual.matched),
            })
        };
        let tests: Vec<_> = self.outcomes().map(test).collect();
        let failed = self.failed();
        let passed = tests.len() - failed;
        let mut answer =
            json!({ "tests": tests, "passed": passed, "failed": failed, "errors": errors });
        if let Some(gaps) = gaps {
            answer["coverage"] = json!(gaps);
        }
        format!("{answer:#}\n")
    }

    pub(super) fn junit(&self) -> String {
        let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        let (tests, failed) = (self.outcomes().count(), self.failed());
        let errors = self.unusable();
        let total = tests + errors;
        let _ = writeln!(
            xml,
            "<testsuites name=\"tailwater\" tests=\"{total}\" failures=\"{failed}\" \
             errors=\"{errors}\">"
        );
        for of_file in &self.files {
            suite(of_file, &mut xml);
        }
        xml + "</testsuites>\n"
    }
}

/// A number, without `.0` if it is whole.
fn number(percentage: f64) -> serde_json::Value {
    if percentage.fract() == 0.0 { json!(percentage as u64) } else { json!(percentage) }
}

/// A list that says for each policy whether it matched.
fn matches(outcome: &Outcome) -> String {
    let Some(actual) = &outcome.actual else { return String::new() };
    let mut text = String::new();
    for policy in &*outcome.policies {
        let word = if actual.matched.contains(policy) { "matched" } else { "did not match" };
        let _ = writeln!(text, "    {policy}: {word}");
    }
    text
}

fn gaps_text(gaps: &Gaps) -> String {
    let Gaps { never_credited, never_true, never_false } = gaps;
    let lists = [
        ("policies that no test credits", never_credited),
        ("conditions that are true in no test", never_true),
        ("conditions that are false in no test", never_false),
    ];
    let mut text = String::new();
    for (what, list) in lists.iter().filter(|(_, list)| !list.is_empty()) {
        let _ = writeln!(text, "coverage: {what}:");
        for entry in *list {
            let _ = writeln!(text, "    {}", visible(entry));
        }
    }
    if text.is_empty() {
        text.push_str("coverage: each policy is credited, each condition is true and false\n");
    }
    text
}

fn suite(of_file: &OfFile, xml: &mut String) {
    let OfFile { name, outcomes, errors } = of_file;
    let (name, unusable) = (escaped(name), usize::from(errors.is_some()));
    let (tests, failed) = (outcomes.len() + unusable, of_file.failed());
    let _ = writeln!(
        xml,
        "  <testsuite name=\"{name}\" tests=\"{tests}\" failures=\"{failed}\" \
         errors=\"{unusable}\">"
    );
    if let Some(errors) = errors {
        let errors = escaped(&errors.join("\n"));
        let _ = writeln!(xml, "    <testcase name=\"{name}\" classname=\"{name}\">");
        let _ = writeln!(xml, "      <error message=\"the file has mistakes\">{errors}</error>");
        let _ = writeln!(xml, "    </testcase>");
    }
    for outcome in outcomes {
        let (test, line) = (escaped(&outcome.name), outcome.line);
        let _ = write!(
            xml,
            "    <testcase name=\"{test}\" classname=\"{name}\" file=\"{name}\" line=\"{line}\""
        );
        match &outcome.failure {
            None => xml.push_str("/>\n"),
            Some(failure) => {
                let (failure, matches) = (escaped(failure), escaped(&matches(outcome)));
                let _ =
                    writeln!(xml, ">\n      <failure message=\"{failure}\">{matches}</failure>");
                xml.push_str("    </testcase>\n");
            }
        }
    }
    xml.push_str("  </testsuite>\n");
}

/// Escapes text for an XML attribute or element. XML does not allow control characters.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push('\n'),
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c if c.is_control() => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xml_is_escaped() {
        assert_eq!(escaped("a<b>&\"\u{1b}[m"), "a&lt;b&gt;&amp;&quot;\\u{1b}[m");
    }
}
