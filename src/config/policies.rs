//! `[[policy]]` tables of all files, from TOML to [`PolicySpec`].
//!
//! The promises of a specification are checked here and nowhere else: names are unique, lists are
//! not empty, expressions compile. Below `not`, `drop` and `same_span` nothing is probabilistic,
//! because their outcome must not depend on chance; below `same_span` there are only conditions
//! that one span can meet. If the type of a policy is wrong, its other keys are not checked,
//! because the type determines which keys are allowed. Bounds: 1,000 policies, 10,000 conditions,
//! 64 levels, 1 MiB for each compiled list of expressions.

use std::collections::BTreeMap;

use toml::de::DeTable;

use crate::{
    policy::{LimitSpec, PolicySpec, Remark, RuleKind, RuleSpec, review},
    trace::Threshold,
};

use super::{
    conditions,
    diagnostics::{Diagnostic, Diagnostics, Problem, did_you_mean, quote},
    kinds, limits,
    reader::Span,
    section::{Read, Section},
    types::{Parts, PolicyType, Standing, TYPES, Type},
};

const POLICIES_MAX: usize = 1_000;
const CONDITIONS_MAX: usize = 10_000;
const DEPTH_MAX: usize = 64;
const NAME_CHARS_MAX: usize = 64;

/// Types of the Collector that Tailwater replaces with something else.
const TYPES_OF_THE_COLLECTOR: &[(&str, &str)] = &[
    ("ottl_condition", "combine conditions such as `string_attribute` with `and`, `or` and `not`"),
    ("composite", "give each policy its own `sampling_percentage`"),
    ("rate_limiting", LIMIT_HINT),
    ("bytes_limiting", LIMIT_HINT),
];

const LIMIT_HINT: &str =
    "give a policy a limit: limit = { spans_per_second = 500 } or bytes_per_second";

/// The keys of a policy at the top level, without its rule.
struct Top {
    /// Its `type`.
    type_name: &'static str,
    limit: Option<LimitSpec>,
    expires: Option<u64>,
    shadow: bool,
}

/// The place of a rule.
#[derive(Clone, Copy)]
struct Place {
    depth: usize,
    /// The enclosing `not`, `drop` or `same_span`, in which nothing may be probabilistic.
    certain_in: Option<&'static str>,
    /// Whether it is below `same_span`, which takes only conditions that one span can meet.
    of_one_span: bool,
}

impl Place {
    const TOP: Place = Place { depth: 1, certain_in: None, of_one_span: false };

    /// The place of the parts of a policy of this type.
    fn below(self, kind: &PolicyType) -> Place {
        let is_certain = matches!(kind.parts, Parts::Certain | Parts::OfOneSpan);
        Place {
            depth: self.depth + 1,
            certain_in: self.certain_in.or(is_certain.then_some(kind.name)),
            of_one_span: self.of_one_span || kind.parts == Parts::OfOneSpan,
        }
    }
}

/// The policies read so far, over all files.
pub(super) struct Policies {
    /// The current time in Unix milliseconds.
    now: u64,
    specs: Vec<PolicySpec>,
    /// For each of `specs`, a warning at its name whose message is still to be set.
    places: Vec<Diagnostic>,
    /// Names, and the places where they were given.
    names: BTreeMap<String, String>,
    tables: usize,
    conditions: usize,
    found: bool,
}

impl Policies {
    /// An empty set. Warns about policies that have expired by `now`.
    pub(super) fn new(now: u64) -> Self {
        Policies {
            now,
            specs: Vec::new(),
            places: Vec::new(),
            names: BTreeMap::new(),
            tables: 0,
            conditions: 0,
            found: false,
        }
    }

    /// Whether any file has a policy, valid or not.
    pub(super) fn found(&self) -> bool {
        self.found
    }

    /// The valid policies, in the order in which they were read.
    pub(super) fn into_specs(self) -> Vec<PolicySpec> {
        self.specs
    }

    /// The valid policies, each with a diagnostic at its name whose message is still to be set.
    pub(super) fn into_placed(self) -> Vec<(PolicySpec, Diagnostic)> {
        self.specs.into_iter().zip(self.places).collect()
    }

    /// The valid policies so far.
    pub(super) fn specs(&self) -> &[PolicySpec] {
        &self.specs
    }

    /// Reads the `[[policy]]` tables of a file.
    pub(super) fn read(&mut self, root: &mut Section<'_, '_>) {
        let tables = root.tables("policy");
        self.found |= matches!(tables, Read::Bad) || root.mistypes("policy");
        for table in tables.or(Vec::new()) {
            self.found = true;
            self.tables += 1;
            if self.tables == POLICIES_MAX + 1 {
                root.error(table.1.clone(), Problem::new("there are more than 1,000 policies"));
            }
            if self.tables <= POLICIES_MAX {
                self.policy(root.element(table));
            }
        }
    }

    fn policy(&mut self, mut section: Section<'_, '_>) {
        section.set_place(" in a policy".to_owned());
        let name = section.literal("name", policy_name);
        section.require("name", &name, Problem::new("the policy has no `name`"));
        if let Read::Set(name, span) = &name {
            self.claim_name(&mut section, name, span);
        }
        let place = match &name {
            Read::Set(_, span) => section.warning_at(span.clone()),
            _ => section.warning_at(section.span()),
        };
        let rule = self.whole_rule(section, Place::TOP);
        if let (Some(name), Some((rule, top))) = (name.good(), rule) {
            let Top { type_name, limit, expires, shadow } = top;
            self.specs.push(PolicySpec { name, type_name, rule, limit, expires, shadow });
            self.places.push(place);
        }
    }

    /// Warns about policies that are probably mistakes, over all files.
    pub(super) fn review(&self, diagnostics: &mut Diagnostics) {
        if let Some(place) = self.places.first()
            && self.specs.iter().all(|spec| spec.shadow)
        {
            let problem = Problem::new("all policies are shadow policies: every trace is dropped")
                .hint("remove `shadow` from the policies that should decide");
            diagnostics.push(place.clone().saying(problem));
        }
        for (index, remark) in review(&self.specs) {
            let PolicySpec { name, shadow, expires, .. } = &self.specs[index];
            let decides = !shadow && expires.is_none_or(|at| at > self.now);
            let problem = match remark {
                Remark::NeverMatches => {
                    Problem::new(format!("the policy `{name}` can never match"))
                        .hint("its conditions contradict each other")
                }
                Remark::DropsEverything => {
                    let drops = if decides { "drops" } else { "would drop" };
                    Problem::new(format!("the policy `{name}` {drops} every trace"))
                        .hint("give it a condition that not every trace meets")
                }
                Remark::CoveredBy(other) => {
                    let other = &self.specs[other].name;
                    let message = format!(
                        "the policy `{name}` never decides: `{other}` matches whenever it does, \
                         and keeps as much or more"
                    );
                    Problem::new(message).hint(format!("remove it, or narrow `{other}`"))
                }
            };
            diagnostics.push(self.places[index].clone().saying(problem));
        }
    }

    fn claim_name(&mut self, section: &mut Section<'_, '_>, name: &str, span: &Span) {
        if let Some(first) = self.names.get(name) {
            let message = format!("the name {} is taken by the policy at {first}", quote(name));
            section.error(span.clone(), Problem::new(message));
            return;
        }
        self.names.insert(name.to_owned(), section.place_of(span));
    }

    /// Reads a nested policy.
    fn rule(&mut self, section: Section<'_, '_>, place: Place) -> Option<RuleSpec> {
        self.whole_rule(section, place).map(|(rule, _)| rule)
    }

    /// Reads all keys of a policy except its name.
    fn whole_rule(
        &mut self,
        mut section: Section<'_, '_>,
        place: Place,
    ) -> Option<(RuleSpec, Top)> {
        if place.depth > DEPTH_MAX {
            let span = section.span();
            section.error(span, Problem::new("policies are nested more than 64 levels deep"));
            return None;
        }
        if place.depth > 1 {
            section.set_place(" in a nested policy".to_owned());
            let problem = Problem::new("a nested policy has no `name`");
            section.refuse("name", problem.hint("only the [[policy]] around it is named"));
        }
        let written = section.literal("type", known_type);
        section.require("type", &written, Problem::new("the policy has no `type`"));
        let Read::Set(kind, span) = written else {
            section.abandon();
            return None;
        };
        section.set_place(format!(" in a policy of type `{}`", kind.name));
        section.keys = kind.parameters;
        if let Some(problem) = misplaced(kind, place) {
            section.error(span, problem);
            section.abandon();
            return None;
        }

        let kind_spec = self.kind(&mut section, kind, place);
        let percentage = percentage(&mut section, kind.id, place);
        let top = self.top(&mut section, kind, place);
        section.finish();
        Some((RuleSpec { kind: kind_spec?, sampling_percentage: percentage? }, top))
    }

    /// Reads the keys that only a policy at the top level may have.
    fn top(&self, section: &mut Section<'_, '_>, kind: &PolicyType, place: Place) -> Top {
        let type_name = kind.name;
        let limit = match limit_misplaced(kind.id, place) {
            Some(problem) => {
                section.refuse("limit", problem);
                None
            }
            None => limits::limit(section).good(),
        };
        if place.depth > 1 {
            let problem = Problem::new("a nested policy has no `expires`");
            section.refuse("expires", problem.hint("only the [[policy]] around it ends"));
            let problem = Problem::new("a nested policy has no `shadow`");
            section.refuse("shadow", problem.hint("only the [[policy]] around it can be one"));
            return Top { type_name, limit, expires: None, shadow: false };
        }
        let expires = section.instant("expires");
        if let Read::Set(at, span) = &expires
            && *at <= self.now
        {
            let problem = Problem::new("the policy has expired: it matches nothing any more");
            section.warn(span.clone(), problem.hint("remove it, or set a later time"));
        }
        let shadow = section.boolean("shadow").or(false);
        Top { type_name, limit, expires: expires.good(), shadow }
    }

    fn kind(
        &mut self,
        section: &mut Section<'_, '_>,
        kind: &PolicyType,
        place: Place,
    ) -> Option<RuleKind> {
        if kind.parts == Parts::None {
            self.count_condition(section);
        }
        let below = place.below(kind);
        match kind.id {
            Type::AlwaysSample | Type::Probabilistic => Some(RuleKind::AlwaysSample),
            Type::StatusCode => conditions::status_code(section),
            Type::Latency => conditions::latency(section),
            Type::StringAttribute => conditions::string_attribute(section),
            Type::NumericAttribute => conditions::numeric_attribute(section),
            Type::BooleanAttribute => conditions::boolean_attribute(section),
            Type::AttributeExists => conditions::attribute_exists(section),
            Type::SpanCount => conditions::span_count(section),
            Type::TraceState => conditions::trace_state(section),
            Type::TraceFlags => Some(RuleKind::TraceFlags),
            Type::SpanName => conditions::span_name(section),
            Type::ServiceName => conditions::service_name(section),
            Type::SpanKind => conditions::span_kind(section),
            Type::RootSpan => Some(RuleKind::RootSpan),
            Type::SpanDuration => conditions::span_duration(section),
            Type::SpanEvent => conditions::span_event(section),
            Type::And => self.parts(section, below).map(RuleKind::And),
            Type::Or => self.parts(section, below).map(RuleKind::Or),
            Type::Drop => self.parts(section, below).map(RuleKind::Drop),
            Type::SameSpan => self.parts(section, below).map(RuleKind::SameSpan),
            Type::Not => self.not(section, below),
            Type::Budget => {
                let (parts, budget) = (self.optional_parts(section, below), kinds::budget(section));
                Some(RuleKind::Budget(parts?, budget?))
            }
            Type::Rare => {
                let (parts, rare) = (self.optional_parts(section, below), kinds::rare(section));
                Some(RuleKind::Rare(parts?, rare?))
            }
        }
    }

    /// Reads `policy` of `not`.
    fn not(&mut self, section: &mut Section<'_, '_>, place: Place) -> Option<RuleKind> {
        let hint = "`not` takes a single nameless policy: policy = { type = ... }";
        match section.nameless("policy", hint) {
            Read::Set(part, _) => self.rule(part, place).map(|rule| RuleKind::Not(Box::new(rule))),
            Read::Bad => None,
            Read::Unset => {
                let missing = Problem::new("`not` has no `policy`").hint(hint);
                section.require("policy", &Read::<()>::Unset, missing);
                None
            }
        }
    }

    /// Reads `policies` of a combination; `None` if any of them is wrong.
    fn parts(&mut self, section: &mut Section<'_, '_>, place: Place) -> Option<Vec<RuleSpec>> {
        let parts = section.tables("policies");
        section.require("policies", &parts, Problem::new("the combination has no `policies`"));
        self.rules(section, parts, place)
    }

    /// Reads `policies` where they are optional.
    fn optional_parts(
        &mut self,
        section: &mut Section<'_, '_>,
        place: Place,
    ) -> Option<Vec<RuleSpec>> {
        match section.tables("policies") {
            Read::Unset => Some(Vec::new()),
            parts => self.rules(section, parts, place),
        }
    }

    fn rules<'t>(
        &mut self,
        section: &mut Section<'_, 't>,
        parts: Read<Vec<(&'t DeTable<'t>, Span)>>,
        place: Place,
    ) -> Option<Vec<RuleSpec>> {
        let Read::Set(parts, span) = parts else {
            return None;
        };
        if parts.is_empty() {
            section.error(span, Problem::new("`policies` is empty"));
            return None;
        }
        let mut rules = Vec::with_capacity(parts.len());
        for part in parts {
            rules.push(self.rule(section.element(part), place));
        }
        rules.into_iter().collect()
    }

    fn count_condition(&mut self, section: &mut Section<'_, '_>) {
        self.conditions += 1;
        if self.conditions == CONDITIONS_MAX + 1 {
            let span = section.span();
            section.error(span, Problem::new("there are more than 10,000 conditions"));
        }
    }
}

/// Checks a name, which metrics and stamps must be able to carry.
fn policy_name(text: &str) -> Result<String, Problem> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if text.is_empty() || text.len() > NAME_CHARS_MAX || !text.bytes().all(allowed) {
        let message = format!("{} is not a policy name", quote(text));
        return Err(
            Problem::new(message).hint("names are 1 to 64 letters, digits, `_`, `.` and `-`")
        );
    }
    if text == "none" {
        return Err(Problem::new("the name `none` is reserved")
            .hint("it stands for traces that no policy matches"));
    }
    Ok(text.to_owned())
}

fn known_type(text: &str) -> Result<&'static PolicyType, Problem> {
    if let Some(kind) = PolicyType::named(text) {
        return Ok(kind);
    }
    if let Some((_, hint)) = TYPES_OF_THE_COLLECTOR.iter().find(|(name, _)| *name == text) {
        return Err(Problem::new(format!("there is no policy type {}", quote(text))).hint(*hint));
    }
    let names = || TYPES.iter().map(|known| known.name);
    let hint = did_you_mean(text, names())
        .unwrap_or_else(|| format!("the types are {}", names().collect::<Vec<_>>().join(", ")));
    Err(Problem::new(format!("unknown policy type {}", quote(text))).hint(hint))
}

/// The problem if this type is not allowed here.
fn misplaced(kind: &PolicyType, place: Place) -> Option<Problem> {
    let name = kind.name;
    if kind.place == Standing::Top && place.depth > 1 {
        return Some(Problem::new(format!("`{name}` is only allowed at the top level")).hint(
            match kind.id {
                Type::Drop => {
                    "it vetoes whole traces; to exclude something from one policy use `not`"
                }
                _ => "give it a [[policy]] of its own, and conditions in its `policies`",
            },
        ));
    }
    if let (Type::Probabilistic, Some(outer)) = (kind.id, place.certain_in) {
        return Some(left_to_chance(outer));
    }
    if place.of_one_span && kind.place != Standing::OfOneSpan {
        return Some(Problem::new(format!("`{name}` is not a condition on a single span")).hint(
            "`same_span` takes conditions on attributes, status, name, kind, duration, events, \
             service, flags and tracestate; put the rest beside it in an `and`",
        ));
    }
    None
}

/// The problem if a policy of this type cannot have a `limit` here.
fn limit_misplaced(kind: Type, place: Place) -> Option<Problem> {
    if place.depth > 1 {
        let problem = Problem::new("a nested policy has no `limit`");
        return Some(problem.hint("only the [[policy]] around it is limited"));
    }
    match kind {
        Type::Drop => Some(Problem::new("`drop` keeps nothing that a `limit` could bound")),
        Type::Budget => {
            let problem = Problem::new("`budget` has no `limit`: it is one");
            Some(problem.hint("write the rate beside its `keys`"))
        }
        Type::Rare => {
            let problem = Problem::new("`rare` has no `limit`: its traces are kept at 100 %");
            Some(problem.hint("`max_keys`, `traces` and `interval` bound what it keeps"))
        }
        _ => None,
    }
}

fn left_to_chance(outer: &str) -> Problem {
    Problem::new(format!("nothing inside `{outer}` may be probabilistic"))
        .hint("put the percentage on a policy of its own")
}

/// Reads `sampling_percentage`, 100 by default; `None` if it is wrong.
fn percentage(section: &mut Section<'_, '_>, kind: Type, place: Place) -> Option<f64> {
    let refused = match kind {
        Type::Drop => Some("`drop` has no `sampling_percentage`: a veto is certain"),
        Type::Budget => Some("`budget` has no `sampling_percentage`: its rate sets it"),
        Type::Rare => Some("`rare` has no `sampling_percentage`: it keeps its traces whole"),
        _ => None,
    };
    if let Some(words) = refused {
        section.refuse("sampling_percentage", Problem::new(words));
        return Some(100.0);
    }
    let read = section.percentage("sampling_percentage");
    if kind == Type::Probabilistic {
        let problem = Problem::new("a `probabilistic` policy needs a `sampling_percentage`");
        section.require("sampling_percentage", &read, problem);
    }
    let (percentage, span) = match read {
        Read::Unset => return Some(100.0),
        Read::Bad => return None,
        Read::Set(percentage, span) => (percentage, span),
    };
    if let Some(outer) = place.certain_in.filter(|_| percentage < 100.0) {
        section.error(span, left_to_chance(outer));
    } else if !Threshold::from_percentage(percentage).matches() {
        let message = format!("with {percentage} % the policy never matches");
        section
            .warn(span, Problem::new(message).hint("remove it, or give it a percentage above 0"));
    }
    Some(percentage)
}
