//! When policies expire: a gauge that exists only for policies with `expires`. It is written by
//! hand, because a series of the exporter crate cannot be removed, and a policy that no longer
//! expires must not keep its old value.

use std::{
    fmt::Write as _,
    sync::{Mutex, PoisonError},
};

use super::described::{Metric, POLICY_EXPIRY};
use crate::policy::Plan;

/// Names, and times in Unix milliseconds. Locked for a scrape and for a reload.
#[derive(Default)]
pub(super) struct Expiries(Mutex<Vec<(String, u64)>>);

impl Expiries {
    /// Replaces the policies with those of this plan.
    pub(super) fn set(&self, plan: &Plan) {
        let expiries = plan.expiries().into_iter().map(|(id, at)| (plan.name(id).to_owned(), at));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = expiries.collect();
    }

    /// Appends the metric in the exposition format; nothing if no policy expires.
    pub(super) fn write(&self, text: &mut String) {
        let expiries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if expiries.is_empty() {
            return;
        }
        let Metric { name, help, .. } = POLICY_EXPIRY;
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (policy, at) in &*expiries {
            let seconds = *at as f64 / 1e3;
            let _ = writeln!(text, "{name}{{policy=\"{policy}\"}} {seconds}");
        }
        text.push('\n');
    }
}
