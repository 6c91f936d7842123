//! A composite of `tail_sampling`: a policy with a limit for each of its parts.

use super::{
    limit::Limit,
    policies::{Converted, Part, Place, Policies},
    yaml::Node,
};

impl Policies<'_> {
    /// One policy with a limit for each part.
    pub(super) fn composite(&mut self, node: &Node, name: &str) -> Option<Vec<Converted>> {
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
        let parts = self.policies_of(&block, "composite_sub_policy")?;
        let mut names = Vec::new();
        for part in &parts {
            names.push(self.name(part)?);
        }
        self.order(&block, &names)?;
        let shares = self.shares(&block, &names)?;
        self.report.note(
            &block,
            "each part becomes a policy with its own limit, and the limits add up; the Collector \
             decides by the first part that matches, and its limits start anew each second",
        );
        let mut converted = Vec::new();
        for (part, part_name) in parts.iter().zip(&names) {
            // If a name has several shares, the Collector uses the last one.
            let share = shares.iter().rev().find(|(name, _)| name == part_name);
            let rate = match share.filter(|(_, percent)| *percent > 0) {
                Some((_, percent)) => i128::from(total) * i128::from(*percent) / 100,
                None => i128::from(total) / parts.len() as i128,
            };
            let rate = i64::try_from(rate).unwrap_or(total).min(total);
            if rate == 0 {
                self.report.error(part, "the share of this part is below one span a second");
                return None;
            }
            let Part { rule, limit } = self.part(part, Place::Composite)?;
            let limit = match limit {
                None => Limit::of_spans(rate),
                Some(limit) => match limit.within(rate) {
                    Some(limit) => limit,
                    None => {
                        let message = "a burst in bytes cannot be combined with a share of spans: \
                                       a limit on both allows bursts of twice its rates";
                        self.report.error(part, message);
                        return None;
                    }
                },
            };
            let name = format!("{name}.{part_name}");
            converted.push(Converted { name, rule, limit: Some(limit.toml()) });
        }
        Some(converted)
    }

    /// `policy_order` may name only parts of the composite.
    fn order(&mut self, block: &Node, names: &[String]) -> Option<()> {
        let mut is_fine = true;
        for (name, node) in self.strings(block, "policy_order")? {
            if !names.contains(&name) {
                let message =
                    format!("`policy_order` names `{name}`, which is not a part of the composite");
                self.report.error(&node, message);
                is_fine = false;
            }
        }
        is_fine.then_some(())
    }

    /// Reads `rate_allocation`: names and percentages.
    fn shares(&mut self, block: &Node, names: &[String]) -> Option<Vec<(String, i64)>> {
        let mut shares = Vec::new();
        let Some(list) = block.get("rate_allocation").filter(|list| !list.is_null()) else {
            return Some(shares);
        };
        let Some(entries) = list.list() else {
            self.wrong(&list, "`rate_allocation` is not a list");
            return None;
        };
        for entry in entries {
            self.only(entry, &["policy", "percent"])?;
            let policy = entry.get("policy");
            let policy = policy.as_deref().and_then(Node::text).unwrap_or_default().to_owned();
            if !names.contains(&policy) {
                let message = format!(
                    "`rate_allocation` names `{policy}`, which is not a part of the composite"
                );
                self.report.error(entry, message);
                return None;
            }
            let percent = self.integer(entry, "percent")?.unwrap_or(0);
            shares.push((policy, percent));
        }
        Some(shares)
    }
}
