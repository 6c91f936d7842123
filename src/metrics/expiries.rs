//! When policies end: a gauge that is there only for policies that do. Written by hand, since a
//! series of the exporter crate cannot be taken back, and a policy that no longer ends must not
//! look as if it had.

use std::{
    fmt::Write as _,
    sync::{Mutex, PoisonError},
};

use super::described::{Metric, POLICY_EXPIRY};
use crate::policy::Plan;

/// Names and Unix milliseconds. Locked for a scrape and for a reload.
#[derive(Default)]
pub(super) struct Expiries(Mutex<Vec<(String, u64)>>);

impl Expiries {
    /// Those of this plan and no others.
    pub(super) fn set(&self, plan: &Plan) {
        let expiries = plan.expiries().into_iter().map(|(id, at)| (plan.name(id).to_owned(), at));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = expiries.collect();
    }

    /// Appends the metric in the exposition format; nothing where no policy ends.
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
