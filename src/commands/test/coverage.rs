//! Coverage of policy tests: whether each policy was credited, and each condition true and false.
//!
//! A condition is observed by a probe: a policy that consists of this condition alone, which the
//! plan decides like any other. In `same_span`, a condition is about a single span and has two
//! probes: "some span meets it" and "some span does not".

use std::{collections::HashMap, fs};

use serde::Serialize;

use crate::{
    config::Diagnostic,
    policy::{Evidence, Plan, PolicyId, PolicySpec, RuleKind, RuleSpec},
};

/// The gaps in the coverage of all tests together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Gaps {
    /// Policies that no test credits.
    pub(super) never_credited: Vec<String>,
    /// Conditions that are true in no test, as `policy: type key`.
    pub(super) never_true: Vec<String>,
    /// Conditions that are false in no test.
    pub(super) never_false: Vec<String>,
}

/// The coverage of the policies of all test files. Two files may test the same policies.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    policies: Vec<Policy>,
    /// The index in `policies` of each policy, by its place in the file.
    by_place: HashMap<(String, usize, usize), usize>,
}

#[derive(Debug)]
struct Policy {
    name: String,
    is_credited: bool,
    conditions: Vec<Condition>,
}

#[derive(Debug)]
struct Condition {
    label: String,
    was_true: bool,
    was_false: bool,
}

/// The probes of one test file.
#[derive(Debug)]
pub(super) struct Probes {
    /// The policies to compile for the probes.
    pub(super) specs: Vec<PolicySpec>,
    /// For each probe: the policy, the condition, and what a match of the probe says about it.
    says: Vec<(usize, usize, Says)>,
    /// The index of each policy in the coverage, in the order of the file.
    policies: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    /// The condition was true if the probe matches, otherwise false.
    Whether,
    True,
    False,
}

impl Coverage {
    /// Adds the policies of a test file, and returns their probes.
    pub(super) fn begin(&mut self, policies: &[(PolicySpec, Diagnostic)]) -> Probes {
        let mut probes = Probes { specs: Vec::new(), says: Vec::new(), policies: Vec::new() };
        for (spec, place) in policies {
            let mut conditions = Vec::new();
            collect(&spec.rule.kind, false, &mut conditions);
            let at = self.policy(spec, place, &conditions);
            probes.policies.push(at);
            for (number, (kind, is_of_one_span)) in conditions.into_iter().enumerate() {
                let mut add = |kind, says| {
                    let rule = RuleSpec { kind, sampling_percentage: 100.0 };
                    probes.specs.push(PolicySpec::new(probes.specs.len().to_string(), rule));
                    probes.says.push((at, number, says));
                };
                if is_of_one_span {
                    let rule = || RuleSpec { kind: kind.clone(), sampling_percentage: 100.0 };
                    let kind = RuleKind::Not(Box::new(rule()));
                    let not = RuleSpec { kind, sampling_percentage: 100.0 };
                    add(RuleKind::SameSpan(vec![rule()]), Says::True);
                    add(RuleKind::SameSpan(vec![not]), Says::False);
                } else {
                    add(kind.clone(), Says::Whether);
                }
            }
        }
        probes
    }

    fn policy(
        &mut self,
        spec: &PolicySpec,
        place: &Diagnostic,
        conditions: &[(&RuleKind, bool)],
    ) -> usize {
        let file = fs::canonicalize(&place.file);
        let file = file.map_or_else(|_| place.file.clone(), |file| file.display().to_string());
        let next = self.policies.len();
        let at = *self.by_place.entry((file, place.line, place.column)).or_insert(next);
        if at == next {
            let condition = |(kind, _): &(&RuleKind, bool)| {
                let key = kind.key().map(|key| format!(" {key}")).unwrap_or_default();
                let label = format!("{}: {}{key}", spec.name, kind.type_name());
                Condition { label, was_true: false, was_false: false }
            };
            let conditions = conditions.iter().map(condition).collect();
            self.policies.push(Policy { name: spec.name.clone(), is_credited: false, conditions });
        }
        at
    }

    /// Records the result of a test: the credited policy, and the probes that matched.
    pub(super) fn note(
        &mut self,
        probes: &Probes,
        credited: PolicyId,
        plan: &Plan,
        evidence: &Evidence<'_>,
    ) {
        if let Some(&policy) = probes.policies.get(usize::from(credited.0)) {
            self.policies[policy].is_credited = true;
        }
        let mut matched = Vec::new();
        plan.decide(evidence, &mut matched);
        let mut matches = vec![false; probes.says.len()];
        matched.iter().for_each(|probe| matches[usize::from(probe.0)] = true);
        for (&(policy, condition, says), matches) in probes.says.iter().zip(matches) {
            let condition = &mut self.policies[policy].conditions[condition];
            condition.was_true |= matches && says != Says::False;
            condition.was_false |= match says {
                Says::Whether => !matches,
                Says::True => false,
                Says::False => matches,
            };
        }
    }

    /// The policies and conditions that are not covered.
    pub(super) fn gaps(&self) -> Gaps {
        let uncredited = self.policies.iter().filter(|policy| !policy.is_credited);
        let conditions = || self.policies.iter().flat_map(|policy| &policy.conditions);
        let labels = |never: fn(&Condition) -> bool| -> Vec<String> {
            conditions().filter(|c| never(c)).map(|condition| condition.label.clone()).collect()
        };
        Gaps {
            never_credited: uncredited.map(|policy| policy.name.clone()).collect(),
            never_true: labels(|condition| !condition.was_true),
            never_false: labels(|condition| !condition.was_false),
        }
    }
}

/// Collects the conditions of a rule, and whether each is about a single span. A condition that
/// holds for every trace is left out.
fn collect<'r>(kind: &'r RuleKind, is_of_one_span: bool, out: &mut Vec<(&'r RuleKind, bool)>) {
    let is_of_one_span = is_of_one_span || matches!(kind, RuleKind::SameSpan(_));
    match kind.parts() {
        Some(parts) => parts.iter().for_each(|part| collect(&part.kind, is_of_one_span, out)),
        None if matches!(kind, RuleKind::AlwaysSample) => {}
        None => out.push((kind, is_of_one_span)),
    }
}
