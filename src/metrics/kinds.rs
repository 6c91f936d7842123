//! The gauges of budgets and rare policies, which exist only for such policies. They are written by
//! hand, because a series of the exporter crate cannot be removed, and a budget that is gone must
//! not keep its last value.

use std::fmt::Write as _;

use super::described::{BUDGET_KEYS, BUDGET_LEVEL_BYTES, BUDGET_LEVEL_SPANS, Metric, RARE_KINDS};
use crate::policy::KindsReading;

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
    let spans = |of: &KindsReading| of.budget().filter(|of| !of.is_bytes).map(|of| of.level);
    gauge(BUDGET_LEVEL_SPANS, spans, text);
    let bytes = |of: &KindsReading| of.budget().filter(|of| of.is_bytes).map(|of| of.level);
    gauge(BUDGET_LEVEL_BYTES, bytes, text);
    gauge(RARE_KINDS, |of| of.rare().map(|kinds| kinds as f64), text);
}
