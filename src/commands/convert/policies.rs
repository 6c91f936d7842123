//! Converts the policies of `tail_sampling` by type.
//!
//! A policy is converted as a whole or not at all: if a part cannot be expressed, or is not an
//! option of the Collector, the policy becomes a comment with the reason. Source: config.go and the
//! README of the processor, version 0.165.

use std::{collections::HashSet, rc::Rc};

use super::{
    limit::Limit,
    report::Report,
    rule::Rule,
    yaml::{Duplicates, Node},
};

/// A converted policy, before it has a name of its own.
#[derive(Debug, PartialEq)]
pub(super) struct Converted {
    pub(super) name: String,
    pub(super) rule: Rule,
    /// `limit` in TOML.
    pub(super) limit: Option<String>,
}

/// The place of a policy, which determines the types that it may have.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Place {
    Top,
    /// In a composite, which takes conditions and `and`.
    Composite,
    /// In `and` or `drop`, which take conditions and `not`.
    Part,
    /// In `not`, which takes a single condition.
    Leaf,
}

impl Place {
    fn takes(self, kind: &str) -> bool {
        match kind {
            "drop" | "composite" => self == Place::Top,
            "and" => matches!(self, Place::Top | Place::Composite),
            "not" => matches!(self, Place::Top | Place::Part),
            _ => true,
        }
    }
}

/// The most conditions of one file. More than a person writes, but aliases can multiply a short
/// text.
const CONDITIONS_MAX: usize = 10_000;
pub(super) const VALUE_BYTES_MAX: usize = 4 << 20;

/// The levels that Tailwater allows, minus those that `and` and `same_span` add.
const RULE_DEPTH_MAX: usize = 60;

/// The conversion of one list of policies.
pub(super) struct Policies<'r> {
    pub(super) report: &'r mut Report,
    pub(super) conditions: usize,
    /// Bytes of the strings read so far.
    pub(super) value_bytes: usize,
    /// `sampling_strategy` is `span-ingest`.
    pub(super) is_ingest: bool,
    /// The `hash_salt` of the first percentage.
    pub(super) salt: Option<String>,
    /// Whether the note about lists has been given.
    pub(super) has_told_lists: bool,
    duplicates: Duplicates,
}

/// A policy without its name.
pub(super) struct Part {
    pub(super) rule: Rule,
    /// Its limit, which only a whole policy can have.
    pub(super) limit: Option<Limit>,
}

impl From<Rule> for Part {
    fn from(rule: Rule) -> Self {
        Part { rule, limit: None }
    }
}

impl<'r> Policies<'r> {
    pub(super) fn new(report: &'r mut Report) -> Self {
        Policies {
            report,
            conditions: 0,
            value_bytes: 0,
            is_ingest: false,
            salt: None,
            has_told_lists: false,
            duplicates: Duplicates::new(),
        }
    }

    /// Converts one entry of the list to one or more policies. `None` if it cannot be expressed;
    /// the reason has then been reported.
    pub(super) fn policy(&mut self, node: &Node) -> Option<Vec<Converted>> {
        let errors = self.report.errors();
        let name = self.name(node)?;
        if let Some(key) = node.duplicate(&mut self.duplicates) {
            let message = format!("the key `{}` is given twice", key.text().unwrap_or("?"));
            self.report.error(&key, message);
        }
        let kind = self.kind(node, &name)?;
        let converted = if kind == "composite" {
            self.composite(node, &name)?
        } else {
            let Part { rule, limit } = self.part(node, Place::Top)?;
            let limit = limit.map(|limit| limit.toml());
            vec![Converted { name, rule, limit }]
        };
        if converted.iter().any(|policy| policy.rule.depth() > RULE_DEPTH_MAX) {
            self.report.error(node, "the policy is nested too deeply");
        }
        (self.report.errors() == errors).then_some(converted)
    }

    /// Whether a limit of the conversion is exceeded, so that it has to end.
    pub(super) fn is_full(&self) -> bool {
        self.conditions > CONDITIONS_MAX || self.value_bytes > VALUE_BYTES_MAX
    }

    pub(super) fn count_condition(&mut self, node: &Node) -> Option<()> {
        self.conditions += 1;
        if self.conditions == CONDITIONS_MAX + 1 {
            self.report.error(node, "there are more than 10,000 conditions");
        }
        (!self.is_full()).then_some(())
    }

    pub(super) fn name(&mut self, node: &Node) -> Option<String> {
        match self.optional_name(node)? {
            name if !name.is_empty() => Some(name),
            _ => {
                self.report.error(node, "the policy has no `name`");
                None
            }
        }
    }

    /// The name, empty where there is none: parts of `and`, `not` and `drop` need none.
    fn optional_name(&mut self, node: &Node) -> Option<String> {
        if !node.is_map() {
            self.wrong(node, "a policy is a mapping with `name` and `type`");
            return None;
        }
        let name = node.get("name").filter(|name| !name.is_null());
        Some(name.as_deref().and_then(Node::text).unwrap_or_default().to_owned())
    }

    fn kind(&mut self, node: &Node, name: &str) -> Option<String> {
        match node.get("type") {
            Some(kind) => match kind.text() {
                Some(text) if TYPES.contains(&text) => Some(text.to_owned()),
                Some(text) => {
                    self.wrong(&kind, format!("the Collector has no policy type `{text}`"));
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
    pub(super) fn part(&mut self, node: &Node, place: Place) -> Option<Part> {
        self.count_condition(node)?;
        let name = self.optional_name(node)?;
        let kind = self.kind(node, &name)?;
        let settings = self.settings(node, &kind)?;
        let block = settings.as_deref();
        if !place.takes(&kind) {
            let message =
                format!("the Collector does not allow a policy of type `{kind}` inside this one");
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
    pub(super) fn settings(&mut self, node: &Node, kind: &str) -> Option<Option<Rc<Node>>> {
        let mut is_fine = true;
        let mut block = None;
        for (key, value) in node.entries() {
            match key.text() {
                Some("type") => {}
                Some("name") if value.is_null() => {}
                Some("name") => self.quotes(&value),
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
            self.wrong(value, format!("`{kind}` is not a mapping"));
            is_fine = false;
        }
        is_fine.then_some(block.filter(|block| block.is_map()))
    }

    fn limit(&mut self, block: &Node, rate: &'static str) -> Option<Part> {
        self.only(block, &[rate, "burst_capacity"])?;
        self.stateful(block);
        let per_second = self.integer(block, rate)?.unwrap_or(0);
        let burst = self.integer(block, "burst_capacity")?.filter(|burst| *burst > 0);
        if per_second <= 0 {
            self.report.error(block, format!("`{rate}` must be above 0"));
            return None;
        }
        self.report.note(
            block,
            "the Collector keeps whole traces as they come until the rate is used up; Tailwater \
             keeps those with the highest randomness of each tick and stamps the threshold",
        );
        Some(Part {
            rule: Rule::new("always_sample"),
            limit: Some(Limit { rate, per_second, burst, spans_per_second: None }),
        })
    }

    fn and(&mut self, block: &Node) -> Option<Part> {
        self.only(block, &["and_sub_policy"])?;
        self.salts(block)?;
        let (mut rules, limit) = self.parts(block, "and_sub_policy", true)?;
        if limit.is_some() && rules.iter().any(|rule| rule.kind != "always_sample") {
            // The `always_sample` that took the place of the limit among the parts.
            rules.retain(|rule| rule.kind != "always_sample");
        }
        Some(Part { rule: Rule::of("and", rules), limit })
    }

    /// Percentages with several salts multiply in the Collector.
    fn salts(&mut self, block: &Node) -> Option<()> {
        let list = block.get("and_sub_policy");
        let mut salts = HashSet::new();
        for part in list.as_deref().and_then(Node::list).unwrap_or_default() {
            if part.get("type").as_deref().and_then(Node::text) != Some("probabilistic") {
                continue;
            }
            let settings = part.get("probabilistic");
            let salt = settings.as_deref().and_then(|settings| settings.get("hash_salt"));
            salts.insert(salt.as_deref().and_then(Node::text).unwrap_or_default().to_owned());
            if salts.len() > 1 {
                let message = "in the Collector, percentages with different salts multiply; here \
                               both would use the same randomness of the trace";
                self.report.error(part, message);
                return None;
            }
        }
        Some(())
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
                self.report.error(&part, "a percentage or a limit cannot be inside `not`");
                None
            }
        }
    }

    fn drop(&mut self, block: &Node) -> Option<Rule> {
        self.only(block, &["drop_sub_policy"])?;
        let (rules, limit) = self.parts(block, "drop_sub_policy", false)?;
        if limit.is_some() || rules.iter().any(|rule| !is_certain(rule)) {
            self.report.error(block, "a percentage or a limit cannot be inside `drop`");
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
    ) -> Option<(Vec<Rule>, Option<Limit>)> {
        let list = self.policies_of(block, key)?;
        let mut rules = Vec::new();
        let mut limit = None;
        let mut is_fine = true;
        for (place, node) in list.iter().enumerate() {
            let Some(part) = self.part(node, Place::Part) else {
                if self.is_full() {
                    return None;
                }
                is_fine = false;
                continue;
            };
            if part.limit.is_some() && may_limit && place + 1 < list.len() {
                let message = "in the Collector, every trace that reaches the rate limit counts, \
                               even if a later part does not match; here a trace counts only if \
                               all parts match";
                self.report.note(node, message);
            }
            if part.limit.is_some() && (!may_limit || limit.is_some()) {
                let message = "a second limit, or one inside `drop`, has no counterpart";
                self.report.error(node, message);
                is_fine = false;
            }
            limit = limit.or(part.limit);
            rules.push(part.rule);
        }
        is_fine.then_some((rules, limit))
    }

    /// A list of policies that is not empty.
    pub(super) fn policies_of(&mut self, block: &Node, key: &str) -> Option<Vec<Rc<Node>>> {
        let list = block.get(key);
        match list.as_deref().and_then(Node::list) {
            Some(list) if !list.is_empty() => Some(list.to_vec()),
            _ => {
                let at = list.as_deref().unwrap_or(block);
                self.wrong(at, format!("`{key}` is not a list of policies"));
                None
            }
        }
    }

    /// Notes a policy that needs the whole trace although each batch is decided separately.
    pub(super) fn stateful(&mut self, block: &Node) {
        if self.is_ingest {
            self.report
                .note(block, "the Collector refuses this policy together with `span-ingest`");
        }
    }

    /// Notes the difference between conditions on attributes, once per file.
    pub(super) fn lists(&mut self, node: &Node) {
        if !std::mem::replace(&mut self.has_told_lists, true) {
            self.report.note(
                node,
                "conditions on attributes also test each element of a list, and each value of a \
                 key that a span has twice; the Collector does not look into lists, and tests only \
                 the first value of a key",
            );
        }
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
