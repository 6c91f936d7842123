//! `tailwater convert FILE`: converts a Collector's `tail_sampling` to a Tailwater configuration.
//!
//! The processor is found at any depth of the YAML, also inside a text block, as in a ConfigMap.
//! Each policy becomes one with the same meaning, with a `note:` for every difference. A policy
//! that cannot be expressed becomes a comment with the reason, and an `error:`. No policy is ever
//! made to keep more than before.
//!
//! `yaml` reads the file and `scalars` its numbers; `policies`, `composites`, `types` and
//! `settings` convert, `ottl` and `conditions` do so for `ottl_condition`; `rule` writes TOML, and
//! `report` places what there is to say.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    rc::Rc,
};

use clap::Args;

use self::{
    policies::{Converted, Policies},
    report::{Placement, Report},
    yaml::{Node, Value},
};
use super::{complain, print};
use crate::config::{self, Diagnostics};

mod composites;
mod conditions;
mod durations;
mod events;
mod expressions;
mod fields;
mod limit;
mod ottl;
mod policies;
mod report;
mod rule;
mod scalars;
mod settings;
#[cfg(test)]
mod tests;
mod types;
mod yaml;

/// The most characters of a policy name.
const NAME_CHARS_MAX: usize = 64;

/// The beginning of the comment that replaces a policy that could not be converted.
const NOT_CONVERTED: &str = "# Not converted: the policy";

/// The most levels of text blocks inside text blocks.
const BLOCKS_DEEP_MAX: usize = 4;

/// The most policies and rules of one configuration, as `check` allows.
const POLICIES_MAX: usize = 1_000;
const RULES_MAX: usize = 10_000;

/// Options of `convert`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Processor to convert if the file has several, such as `tail_sampling/errors`
    #[arg(long, value_name = "NAME")]
    pub processor: Option<String>,
    /// File to write the configuration to; without it, standard output
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// A Collector's configuration, Helm values, a custom resource or a ConfigMap
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// The result of a conversion.
#[derive(Debug)]
pub struct Conversion {
    /// The configuration in TOML; empty where no processor was found.
    pub toml: String,
    /// Notes and errors, by line.
    pub diagnostics: Diagnostics,
}

/// Converts a file and writes the result. Returns whether all of it could be converted and written.
pub fn run(options: &Options) -> bool {
    let Conversion { toml, diagnostics } = convert(&options.file, options.processor.as_deref());
    complain(&diagnostics.to_string());
    complain(&summary(&options.file, &toml));
    let is_written = match &options.output {
        Some(file) if !toml.is_empty() => fs::write(file, &toml).map_err(|problem| {
            let file = config::visible(&file.display().to_string());
            complain(&format!("error: cannot write {file}: {problem}\n"));
        }),
        _ => print(&toml).then_some(()).ok_or(()),
    };
    is_written.is_ok() && !diagnostics.has_errors()
}

/// A line with the number of policies that were not converted, because notes may hide their errors;
/// empty if all were converted.
fn summary(file: &Path, toml: &str) -> String {
    let count = |beginning: &str| toml.lines().filter(|line| line.starts_with(beginning)).count();
    let (converted, refused) = (count("[[policy]]"), count(NOT_CONVERTED));
    if refused == 0 {
        return String::new();
    }
    let file = config::visible(&file.display().to_string());
    format!("{file}: policies: {converted} converted, {refused} not; see the errors above\n")
}

/// Reads and converts a file. `processor` names one of several. Blocks on the file system.
pub fn convert(file: &Path, processor: Option<&str>) -> Conversion {
    match config::read_text(file) {
        Ok(source) => of_source(Report::new(source), file, processor),
        Err(diagnostics) => Conversion { toml: String::new(), diagnostics },
    }
}

fn of_source(mut report: Report, file: &Path, wanted: Option<&str>) -> Conversion {
    let text = report.file().to_owned();
    let mut search = Search::new(&text);
    let mut toml = String::new();
    match yaml::parse(&text) {
        Ok(documents) => {
            for document in &documents {
                search.visit(document, &Placement::default(), 0);
            }
            let has_found = !search.found.is_empty();
            for (at, message) in search.faults.into_iter().filter(|_| !has_found) {
                report.fault(at, message);
            }
            if let Some(found) = chosen(search.found, wanted, &mut report) {
                report.set_place(found.place.clone());
                toml = written(&found, file, &mut report);
            }
        }
        Err(fault) => report.fault(fault.at, fault.message),
    }
    Conversion { toml, diagnostics: report.finish() }
}

/// A processor in the file.
struct Found {
    name: String,
    node: Rc<Node>,
    place: Placement,
}

struct Search<'f> {
    file: &'f str,
    found: Vec<Found>,
    /// Processors and text blocks that name one, and cannot be read: where and why.
    faults: Vec<(usize, String)>,
    /// Nodes that were visited: aliases may lead to one node many times.
    seen: HashSet<*const Node>,
    /// The documents parsed from text blocks. They live as long as the search, so that no address
    /// in `seen` is used twice.
    documents: Vec<Rc<Node>>,
}

impl<'f> Search<'f> {
    fn new(file: &'f str) -> Self {
        let (found, faults, documents) = (Vec::new(), Vec::new(), Vec::new());
        Search { file, found, faults, seen: HashSet::new(), documents }
    }

    fn visit(&mut self, node: &Rc<Node>, place: &Placement, blocks: usize) {
        if !self.seen.insert(Rc::as_ptr(node)) {
            return;
        }
        match &node.value {
            Value::Map(entries) => {
                for (key, value) in entries {
                    match key.text().filter(|name| is_processor(name)) {
                        Some(name) if value.is_map() || value.is_null() => {
                            let (name, node) = (name.to_owned(), Rc::clone(value));
                            self.found.push(Found { name, node, place: place.clone() });
                        }
                        Some(name) if value.text().is_some_and(fields::is_variable) => {
                            let message = format!("`{name}` comes from a variable");
                            self.faults.push((place.of(value.span.start), message));
                        }
                        _ => self.visit(value, place, blocks),
                    }
                }
            }
            Value::List(items) => items.iter().for_each(|item| self.visit(item, place, blocks)),
            Value::Scalar(scalar) => {
                let may_hold = scalar.text.contains("tail_sampling") && scalar.text.contains('\n');
                if !may_hold || blocks == BLOCKS_DEEP_MAX {
                    return;
                }
                let place = if scalar.is_literal {
                    place.block(self.file, node)
                } else {
                    place.whole(node)
                };
                match yaml::parse(&scalar.text) {
                    Ok(documents) => {
                        self.documents.extend(documents.iter().cloned());
                        for document in &documents {
                            self.visit(document, &place, blocks + 1);
                        }
                    }
                    Err(fault) => {
                        let message = format!("the text is not YAML: {}", fault.message);
                        self.faults.push((place.of(fault.at), message));
                    }
                }
            }
        }
    }
}

fn is_processor(name: &str) -> bool {
    name == "tail_sampling" || name.starts_with("tail_sampling/")
}

/// The processor to convert.
fn chosen(found: Vec<Found>, wanted: Option<&str>, report: &mut Report) -> Option<Found> {
    let names: Vec<String> = found.iter().map(|found| format!("`{}`", found.name)).collect();
    let mut fitting: Vec<Found> =
        found.into_iter().filter(|found| wanted.is_none_or(|name| found.name == name)).collect();
    if fitting.len() == 1 {
        return fitting.pop();
    }
    let message = match (fitting.len(), wanted, names.is_empty()) {
        (0, None, _) | (0, _, true) => "there is no `tail_sampling` in this file".to_owned(),
        (0, Some(name), false) => {
            format!("there is no `{name}` in this file, but {}", names.join(", "))
        }
        (_, None, _) => {
            format!(
                "the file has several processors: choose one with --processor: {}",
                names.join(", ")
            )
        }
        (count, Some(name), _) => format!("`{name}` is in the file {count} times: leave only one"),
    };
    report.fault(0, message);
    None
}

fn written(found: &Found, file: &Path, report: &mut Report) -> String {
    // Both may contain line feeds, which would end the comment.
    let (name, file) = (config::visible(&found.name), file.display().to_string());
    let file = config::visible(&file);
    let mut toml = format!("# Converted by `tailwater convert` from `{name}` in {file}.\n\n");
    let mut policies = Policies::new(report);
    toml.push_str(&policies.sampling(&found.node));
    let list = found.node.get("policies");
    let Some(list) = list.as_deref().and_then(Node::list).filter(|list| !list.is_empty()) else {
        let at = list.as_deref().unwrap_or(&found.node);
        let message = match at.text() {
            Some(text) if fields::is_variable(text) => "the policies come from a variable",
            _ => "there is no list of `policies`",
        };
        report.error(at, message);
        return toml;
    };
    let mut names = HashSet::new();
    let mut written = HashSet::new();
    let mut rules = 0;
    for node in list {
        let is_full = policies.is_full() || policies.report.is_full();
        if names.len() >= POLICIES_MAX || is_full {
            toml.push_str(end(node, policies.report));
            break;
        }
        let errors = policies.report.errors();
        let name = node.get("name");
        if let Some(name) = name.filter(|name| name.text().is_some_and(|name| !name.is_empty()))
            && !written.insert(name.text().map(str::to_owned))
        {
            policies
                .report
                .note(&name, "another policy has the same name, which the Collector refuses");
        }
        match policies.policy(node) {
            Some(converted) => {
                rules += converted.iter().map(|policy| policy.rule.count()).sum::<usize>();
                // A composite becomes several policies.
                if rules > RULES_MAX || names.len() + converted.len() > POLICIES_MAX {
                    toml.push_str(end(node, policies.report));
                    break;
                }
                for policy in converted {
                    toml.push_str(&table(policy, node, &mut names, policies.report));
                }
            }
            None => toml.push_str(&refused(node, &policies.report.last_errors(errors))),
        }
    }
    toml
}

/// Reports that the file is full, and returns the comment about it.
fn end(node: &Node, report: &mut Report) -> &'static str {
    let message =
        "the conversion ends here: a file has at most 1,000 policies and 10,000 conditions";
    report.error(node, message);
    "\n# The conversion ends here.\n"
}

fn table(
    policy: Converted,
    node: &Node,
    names: &mut HashSet<String>,
    report: &mut Report,
) -> String {
    let name = unique(&policy.name, names);
    if name != policy.name {
        report.note(
            node,
            format!(
                "named `{name}`: names must be unique and consist of letters, digits and `_.-`"
            ),
        );
    }
    let limit = policy.limit.map(|limit| format!("limit = {limit}\n")).unwrap_or_default();
    format!("\n[[policy]]\nname = \"{name}\"\n{}{limit}", policy.rule.lines())
}

/// A policy that cannot be expressed, as a comment.
fn refused(node: &Node, reasons: &[String]) -> String {
    let name = node.get("name");
    let name = config::visible(name.as_deref().and_then(Node::text).unwrap_or("?"));
    let mut comment = format!("\n{NOT_CONVERTED} `{name}`.\n");
    if node.get("type").as_deref().and_then(Node::text) == Some("drop") {
        comment.push_str("# Without it, Tailwater keeps traces that the Collector drops.\n");
    }
    for reason in reasons {
        comment.push_str(&format!("# {reason}\n"));
    }
    comment
}

/// Derives a valid name that no earlier policy has.
fn unique(name: &str, names: &mut HashSet<String>) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let fitting: String = name.chars().map(|c| if allowed(c) { c } else { '-' }).collect();
    let fitting: String = fitting.chars().take(NAME_CHARS_MAX).collect();
    let fitting = if fitting == "none" { "none-".to_owned() } else { fitting };
    let mut candidate = fitting.clone();
    let mut number = 2;
    while !names.insert(candidate.clone()) {
        let suffix = format!("-{number}");
        let kept: String = fitting.chars().take(NAME_CHARS_MAX - suffix.len()).collect();
        candidate = kept + &suffix;
        number += 1;
    }
    candidate
}
