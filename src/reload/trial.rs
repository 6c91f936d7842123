//! Begins and ends trials.
//!
//! Both put a plan in force as a reload does: the bits of the traces in the window are recomputed,
//! so these traces take part. Neither counts as a reload.

use std::sync::Arc;

use tracing::info;

use super::Reload;
pub(crate) use crate::policy::{Change, Outcome, Trial};
use crate::{
    config::{self, Diagnostics},
    decider,
    supervise::Task,
};

/// Why a trial cannot begin.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum NoTrial {
    /// The policies have errors.
    #[error("{0}")]
    Invalid(Diagnostics),
    /// Only one may run at a time.
    #[error("another trial is running; end it, or wait until it ends")]
    Running,
    /// A bug, which is counted.
    #[error("internal error")]
    Panicked,
}

impl Reload {
    /// Makes a second set of policies, given as the text of a policy file, decide the same traces
    /// from now on, for comparison. Its shadow policies take no part. Blocks while the window is
    /// walked.
    ///
    /// # Errors
    /// [`NoTrial`]: nothing has changed.
    pub(crate) fn begin_trial(&self, policies: &str) -> Result<Arc<Trial>, NoTrial> {
        let read = || config::load_policies("policies", policies);
        let read = self.supervisor.contained_now(Task::Reload, read);
        let mut candidate = read.map_err(|_| NoTrial::Panicked)?.map_err(NoTrial::Invalid)?;
        candidate.retain(|policy| !policy.shadow);
        let mut current = self.lock();
        if current.trial.is_some() {
            return Err(NoTrial::Running);
        }
        let begin = || {
            let plan = self.sampler.plan().with_trial(&current.policies, &candidate);
            let plan = Arc::new(plan);
            // Before the first decision, so that expired policies of the candidate take no part.
            decider::expire(&plan);
            let longest_stall = self.swap(&plan);
            info!(
                policies = candidate.len(),
                ?longest_stall,
                "trial began: a second set of policies decides the same traces; its decisions are \
                 only counted"
            );
            plan.trial().cloned()
        };
        let trial = self.supervisor.contained_now(Task::Reload, begin);
        let trial = trial.ok().flatten().ok_or(NoTrial::Panicked)?;
        current.trial = Some(Arc::clone(&trial));
        Ok(trial)
    }

    /// Ends this trial, unless it has ended. Its counts are final after that. Blocks while the
    /// window is walked.
    pub(crate) fn end_trial(&self, trial: &Arc<Trial>) {
        let mut current = self.lock();
        if !current.trial.as_ref().is_some_and(|running| Arc::ptr_eq(running, trial)) {
            return;
        }
        // After a panic the plan keeps a trial that nobody reads, until the next reload.
        let _ = self.supervisor.contained_now(Task::Reload, || {
            let plan = Arc::new(self.sampler.plan().without_trial(&current.policies));
            self.swap(&plan);
        });
        current.trial = None;
        ended(trial, "its time is over, or its client is gone");
    }
}

/// Marks a trial as over once no shard decides by it.
pub(super) fn ended(trial: &Trial, reason: &str) {
    trial.end();
    let report = trial.report();
    info!(
        reason,
        decided_traces = report.current.decided.traces,
        newly_kept_traces = report.newly_kept.sum.traces,
        newly_dropped_traces = report.newly_dropped.sum.traces,
        "trial ended"
    );
}
