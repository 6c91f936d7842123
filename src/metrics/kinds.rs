//! The gauges of budgets and rare policies, which exist only for such policies. They are written by
//! hand, because a series of the exporter crate cannot be removed, and a budget that is gone must
//! not keep its last value.

use std::fmt::Write as _;

use super::described::{
    BUDGET_KEYS, BUDGET_LEVEL_BYTES, BUDGET_LEVEL_SPANS, BUDGET_LIMIT_BYTES, BUDGET_LIMIT_SPANS,
    Metric, RARE_KINDS,
};
use crate::policy::{BudgetReading, KindsReading};

/// Appends the gauges of these policies in the exposition format.
pub(super) fn write(readings: &[(String, KindsReading)], text: &mut String) {
    let gauge = |metric: Metric, value: fn(&KindsReading) -> Option<f64>, text: &mut String| {
        let values = || readings.iter().filter_map(|(policy, of)| Some((policy, value(of)?)));
        if values().next().is_none() {
            return;
        }
        let Metric { name, help, .. } = metric;
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (policy, value) in values() {
            let _ = writeln!(text, "{name}{{policy=\"{policy}\"}} {value}");
        }
        text.push('\n');
    };
    gauge(BUDGET_KEYS, |of| of.budget().map(|budget| budget.kinds as f64), text);
    gauge(BUDGET_LIMIT_SPANS, |of| in_unit(of, false).map(|budget| budget.limit), text);
    gauge(BUDGET_LIMIT_BYTES, |of| in_unit(of, true).map(|budget| budget.limit), text);
    gauge(BUDGET_LEVEL_SPANS, |of| in_unit(of, false).map(|budget| budget.level), text);
    gauge(BUDGET_LEVEL_BYTES, |of| in_unit(of, true).map(|budget| budget.level), text);
    gauge(RARE_KINDS, |of| of.rare().map(|kinds| kinds as f64), text);
}

/// A budget in bytes, or one in spans.
fn in_unit(of: &KindsReading, is_bytes: bool) -> Option<BudgetReading> {
    of.budget().filter(|budget| budget.is_bytes == is_bytes)
}
