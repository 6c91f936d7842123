//! Policies of `tail_sampling`, type by type.
//!
//! A policy is converted whole or not at all: whatever of it cannot be expressed, or is no option
//! of the Collector, makes it a comment with its reason. Source: config.go and the README of the
//! processor, version 0.165.

use std::rc::Rc;

use super::{
    report::Report,
    rule::{Rule, float},
    yaml::Node,
};

/// A converted policy, before it has a name of its own.
#[derive(Debug, PartialEq)]
pub(super) struct Converted {
    pub(super) name: String,
    pub(super) rule: Rule,
    /// `limit` in TOML.
    pub(super) limit: Option<String>,
}

/// Where a policy stands, which decides the types that it may have.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Place {
    Top,
    /// In `and`, `drop` or a composite.
    Part,
    /// In `not`, which takes a condition alone.
    Leaf,
}

/// Conditions that one file may have; more than a person writes.
const CONDITIONS_MAX: usize = 10_000;

/// The conversion of one list of policies.
pub(super) struct Policies<'r> {
    pub(super) report: &'r mut Report,
    pub(super) conditions: usize,
}

/// A policy without its name.
struct Part {
    rule: Rule,
    /// `limit` in TOML, which only a whole policy can have.
    limit: Option<String>,
}

impl From<Rule> for Part {
    fn from(rule: Rule) -> Self {
        Part { rule, limit: None }
    }
}

impl<'r> Policies<'r> {
    pub(super) fn new(report: &'r mut Report) -> Self {
        Policies { report, conditions: 0 }
    }

    /// The policies that one entry of the list becomes; nothing where it cannot be expressed, which
    /// has been reported.
    pub(super) fn policy(&mut self, node: &Node) -> Option<Vec<Converted>> {
        let errors = self.report.errors();
        let name = self.name(node)?;
        let kind = self.kind(node, &name)?;
        if kind == "composite" {
            let converted = self.composite(node, &name);
            return converted.filter(|_| self.report.errors() == errors);
        }
        let Part { rule, limit } = self.part(node, Place::Top)?;
        let converted = vec![Converted { name, rule, limit }];
        (self.report.errors() == errors).then_some(converted)
    }

    fn name(&mut self, node: &Node) -> Option<String> {
        if !node.is_map() {
            self.report.error(node, "a policy is a mapping with `name` and `type`");
            return None;
        }
        match node.get("name").as_deref().and_then(Node::text) {
            Some(name) if !name.is_empty() => Some(name.to_owned()),
            _ => {
                self.report.error(node, "the policy has no `name`");
                None
            }
        }
    }

    fn kind(&mut self, node: &Node, name: &str) -> Option<String> {
        match node.get("type") {
            Some(kind) => match kind.text() {
                Some(text) if TYPES.contains(&text) => Some(text.to_owned()),
                Some(text) => {
                    let message = format!("the Collector has no policy type `{text}`");
                    self.report.error(&kind, message);
                    None
                }
                None => {
                    self.report.error(&kind, "the type is not a string");
                    None
                }
            },
            None => {
                self.report.error(node, format!("the policy `{name}` has no `type`"));
                None
            }
        }
    }

    /// Converts one policy or part; `None` where an error was reported.
    fn part(&mut self, node: &Node, place: Place) -> Option<Part> {
        self.conditions += 1;
        if self.conditions > CONDITIONS_MAX {
            if self.conditions == CONDITIONS_MAX + 1 {
                self.report.error(node, "there are more than 10,000 conditions");
            }
            return None;
        }
        let name = self.name(node)?;
        let kind = self.kind(node, &name)?;
        let settings = self.settings(node, &kind)?;
        let block = settings.as_deref();
        let is_allowed = match kind.as_str() {
            "and" => place != Place::Leaf,
            "not" => place != Place::Leaf,
            "drop" | "composite" => place == Place::Top,
            _ => true,
        };
        if !is_allowed {
            let message = format!("the Collector takes no `{kind}` inside of another policy here");
            self.report.error(node, message);
            return None;
        }
        let rule = match (kind.as_str(), block) {
            ("always_sample", _) => Some(Rule::new("always_sample")),
            ("trace_flags", _) => Some(Rule::new("trace_flags")),
            ("rate_limiting", Some(block)) => return self.limit(block, "spans_per_second"),
            ("bytes_limiting", Some(block)) => return self.limit(block, "bytes_per_second"),
            ("latency", Some(block)) => self.latency(block),
            ("numeric_attribute", Some(block)) => self.numeric_attribute(block),
            ("probabilistic", Some(block)) => self.probabilistic(block),
            ("status_code", Some(block)) => self.status_code(block),
            ("string_attribute", Some(block)) => self.string_attribute(block, place),
            ("boolean_attribute", Some(block)) => self.boolean_attribute(block, place),
            ("span_count", Some(block)) => self.span_count(block),
            ("trace_state", Some(block)) => self.trace_state(block),
            ("ottl_condition", Some(block)) => self.ottl_condition(block),
            ("and", Some(block)) => return self.and(block),
            ("not", Some(block)) => self.not(block),
            ("drop", Some(block)) => self.drop(block),
            _ => {
                let message = format!("the policy `{name}` has no block `{kind}`");
                self.report.error(node, message);
                None
            }
        };
        rule.map(Part::from)
    }

    /// The block of a type, once every other key has been found to be one of a policy.
    fn settings(&mut self, node: &Node, kind: &str) -> Option<Option<Rc<Node>>> {
        let mut is_fine = true;
        let mut block = None;
        for (key, value) in node.entries() {
            match key.text() {
                Some("name" | "type") => {}
                Some(name) if name == kind => block = Some(value),
                Some(name) if TYPES.contains(&name) => {
                    let message = format!(
                        "the policy is of type `{kind}` and has a block `{name}`, which the \
                         Collector ignores"
                    );
                    self.report.error(&key, message);
                    is_fine = false;
                }
                _ => {
                    let name = key.text().unwrap_or("?");
                    let message = format!("the Collector has no option `{name}` in a policy");
                    self.report.error(&key, message);
                    is_fine = false;
                }
            }
        }
        if let Some(value) = &block
            && !value.is_map()
            && !value.is_null()
        {
            self.report.error(value, format!("`{kind}` is not a mapping"));
            is_fine = false;
        }
        is_fine.then_some(block.filter(|block| block.is_map()))
    }

    fn limit(&mut self, block: &Node, rate: &'static str) -> Option<Part> {
        self.only(block, &[rate, "burst_capacity"])?;
        let per_second = self.integer(block, rate)?.unwrap_or(0);
        let burst = self.integer(block, "burst_capacity")?.unwrap_or(0);
        if per_second <= 0 {
            self.report.error(block, format!("`{rate}` must be above 0"));
            return None;
        }
        self.report.note(
            block,
            "the Collector keeps whole traces as they come until the rate is used up; Tailwater \
             keeps those with the highest randomness of each tick and stamps the threshold",
        );
        let burst = if burst > 0 { format!(", burst_capacity = {burst}") } else { String::new() };
        let limit = format!("{{ {rate} = {per_second}{burst} }}");
        Some(Part { rule: Rule::new("always_sample"), limit: Some(limit) })
    }

    fn and(&mut self, block: &Node) -> Option<Part> {
        self.only(block, &["and_sub_policy"])?;
        let (mut rules, limit) = self.parts(block, "and_sub_policy", true)?;
        if rules.len() > 1 && limit.is_some() {
            // What stands for the limit among the parts.
            rules.retain(|rule| rule.kind != "always_sample");
        }
        Some(Part { rule: Rule::of("and", rules), limit })
    }

    fn not(&mut self, block: &Node) -> Option<Rule> {
        self.only(block, &["not_sub_policy"])?;
        let Some(part) = block.get("not_sub_policy") else {
            self.report.error(block, "`not` has no `not_sub_policy`");
            return None;
        };
        match self.part(&part, Place::Leaf)? {
            Part { rule, limit: None } if is_certain(&rule) => Some(Rule::not(rule)),
            _ => {
                self.report.error(&part, "nothing left to chance can stand inside of `not`");
                None
            }
        }
    }

    fn drop(&mut self, block: &Node) -> Option<Rule> {
        self.only(block, &["drop_sub_policy"])?;
        let (rules, limit) = self.parts(block, "drop_sub_policy", false)?;
        if limit.is_some() || rules.iter().any(|rule| !is_certain(rule)) {
            self.report.error(block, "nothing left to chance can stand inside of `drop`");
            return None;
        }
        Some(Rule::of("drop", rules))
    }

    /// The rules of a list of parts, and the limit among them.
    fn parts(
        &mut self,
        block: &Node,
        key: &str,
        may_limit: bool,
    ) -> Option<(Vec<Rule>, Option<String>)> {
        let list = block.get(key);
        let Some(list) = list.as_deref().and_then(Node::list).filter(|list| !list.is_empty())
        else {
            self.report.error(block, format!("`{key}` is not a list of policies"));
            return None;
        };
        let mut rules = Vec::new();
        let mut limit = None;
        let mut is_fine = true;
        for node in list {
            let Some(part) = self.part(node, Place::Part) else {
                is_fine = false;
                continue;
            };
            if part.limit.is_some() && (!may_limit || limit.is_some()) {
                let message = "a second limit, or one inside of `drop`, has no counterpart";
                self.report.error(node, message);
                is_fine = false;
            }
            limit = limit.or(part.limit);
            rules.push(part.rule);
        }
        is_fine.then_some((rules, limit))
    }

    /// One policy with a limit for each part.
    fn composite(&mut self, node: &Node, name: &str) -> Option<Vec<Converted>> {
        let block = self.settings(node, "composite")?;
        let Some(block) = block else {
            self.report.error(node, format!("the policy `{name}` has no block `composite`"));
            return None;
        };
        self.only(
            &block,
            &[
                "max_total_spans_per_second",
                "policy_order",
                "composite_sub_policy",
                "rate_allocation",
            ],
        )?;
        let total = self.integer(&block, "max_total_spans_per_second")?.unwrap_or(0);
        if total <= 0 {
            self.report.error(&block, "`max_total_spans_per_second` must be above 0");
            return None;
        }
        let parts = block.get("composite_sub_policy");
        let Some(parts) = parts.as_deref().and_then(Node::list).filter(|list| !list.is_empty())
        else {
            self.report.error(&block, "`composite_sub_policy` is not a list of policies");
            return None;
        };
        let mut names = Vec::new();
        for part in parts {
            names.push(self.name(part)?);
        }
        self.order(&block, &names)?;
        let shares = self.shares(&block, &names)?;
        self.report.note(
            &block,
            "each part becomes a policy with a limit of its own, and the limits add up; the \
             Collector decides by the first part that matches and counts each second anew",
        );
        let mut converted = Vec::new();
        for (part, part_name) in parts.iter().zip(&names) {
            let share = shares.iter().find(|(name, percent)| name == part_name && *percent > 0.0);
            let rate = match share {
                Some((_, percent)) => total as f64 * percent / 100.0,
                None => total as f64 / parts.len() as f64,
            };
            let Part { rule, limit: None } = self.part(part, Place::Part)? else {
                self.report.error(part, "a limit inside of a composite has no counterpart");
                return None;
            };
            let rate = if rate.fract() == 0.0 { format!("{rate:.0}") } else { float(rate) };
            let limit = Some(format!("{{ spans_per_second = {rate} }}"));
            converted.push(Converted { name: format!("{name}.{part_name}"), rule, limit });
        }
        Some(converted)
    }

    /// `policy_order` may only name parts of the composite.
    fn order(&mut self, block: &Node, names: &[String]) -> Option<()> {
        let Some(order) = block.get("policy_order").filter(|order| !order.is_null()) else {
            return Some(());
        };
        let mut is_fine = true;
        for entry in order.list().unwrap_or_default() {
            if !names.iter().any(|name| Some(name.as_str()) == entry.text()) {
                let name = entry.text().unwrap_or("?");
                let message =
                    format!("`policy_order` names `{name}`, which is no part of the composite");
                self.report.error(entry, message);
                is_fine = false;
            }
        }
        is_fine.then_some(())
    }

    /// `rate_allocation`: names and per cents.
    fn shares(&mut self, block: &Node, names: &[String]) -> Option<Vec<(String, f64)>> {
        let mut shares = Vec::new();
        let Some(list) = block.get("rate_allocation").filter(|list| !list.is_null()) else {
            return Some(shares);
        };
        for entry in list.list().unwrap_or_default() {
            self.only(entry, &["policy", "percent"])?;
            let policy = entry.get("policy");
            let policy = policy.as_deref().and_then(Node::text).unwrap_or_default().to_owned();
            if !names.contains(&policy) {
                let message = format!(
                    "`rate_allocation` names `{policy}`, which is no part of the composite"
                );
                self.report.error(entry, message);
                return None;
            }
            let percent = self.number(entry, "percent")?.unwrap_or(0.0);
            shares.push((policy, percent));
        }
        Some(shares)
    }
}

const TYPES: [&str; 17] = [
    "always_sample",
    "latency",
    "numeric_attribute",
    "probabilistic",
    "status_code",
    "string_attribute",
    "rate_limiting",
    "bytes_limiting",
    "span_count",
    "trace_state",
    "trace_flags",
    "boolean_attribute",
    "ottl_condition",
    "and",
    "not",
    "drop",
    "composite",
];

fn is_certain(rule: &Rule) -> bool {
    let is_chance = |(key, _): &(&str, String)| *key == "sampling_percentage";
    !rule.keys.iter().any(is_chance) && rule.parts.iter().all(is_certain)
}
