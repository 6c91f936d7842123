//! Reloading policies: the files are read again, and if nothing is wrong with them, the service
//! decides by what they say from then on, about what is buffered too. If anything is, nothing
//! changes.
//!
//! Called for SIGHUP and for POST /-/reload, on threads that may block: reading and compiling take
//! milliseconds, and walking what is buffered as long as it took when it came. The longest that a
//! shard was locked meanwhile is logged. One reload at a time; another one waits for it.
//!
//! Only policies are applied. Whatever else has changed in the file takes a restart, which the log
//! says.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tracing::{error, info, warn};

use crate::{
    clock::Clock,
    config::{self, Config, Diagnostics},
    decider,
    logging::log_problems,
    metrics::Metrics,
    policy::{Plan, TooManyNames},
    sampler::{Hold, Sampler},
    supervise::{Supervisor, Task},
};

/// Reloads the policies of one service.
#[derive(Debug)]
pub struct Reload {
    /// What the service was started with; says also what to read.
    config: Config,
    sampler: Arc<Sampler>,
    metrics: Arc<Metrics>,
    clock: Clock,
    supervisor: Arc<Supervisor>,
    /// Held from reading to the last shard, so that plans follow one another.
    under_way: Mutex<()>,
}

/// What a reload has done.
#[derive(Clone, Debug)]
pub struct Reloaded {
    /// Policies that decide now.
    pub policies: usize,
    /// The longest that a shard was locked.
    pub longest_stall: Duration,
}

/// Why the policies are what they were.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refused {
    /// The files have errors.
    #[error("{0}")]
    Invalid(Diagnostics),
    /// The process cannot know so many; a restart helps.
    #[error("{0}; restart to forget those that are gone")]
    TooManyNames(#[from] TooManyNames),
    /// A bug, which is counted.
    #[error("internal error")]
    Panicked,
}

impl Reload {
    /// Reloads what a service that was started with `config` decides by.
    pub fn new(
        config: &Config,
        sampler: &Arc<Sampler>,
        metrics: &Arc<Metrics>,
        supervisor: &Arc<Supervisor>,
    ) -> Self {
        Reload {
            config: config.clone(),
            sampler: Arc::clone(sampler),
            metrics: Arc::clone(metrics),
            clock: Clock::start(),
            supervisor: Arc::clone(supervisor),
            under_way: Mutex::default(),
        }
    }

    /// Reads the files again and applies their policies; logs and counts how that went. Blocks.
    ///
    /// # Errors
    /// [`Refused`]; then nothing has changed.
    pub fn run(&self) -> Result<Reloaded, Refused> {
        // What it guards has no state that a panic could leave half done.
        let _one_at_a_time = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = self.supervisor.contained_now(Task::Reload, || self.apply());
        let outcome = outcome.unwrap_or(Err(Refused::Panicked));
        self.metrics.reloaded(outcome.is_ok());
        match &outcome {
            Ok(Reloaded { policies, longest_stall }) => {
                info!(policies, ?longest_stall, "policies reloaded");
            }
            Err(Refused::Invalid(diagnostics)) => {
                log_problems(diagnostics);
                error!("policies not reloaded: the configuration has errors, the old ones stay");
            }
            Err(refused) => error!("policies not reloaded: {refused}"),
        }
        outcome
    }

    fn apply(&self) -> Result<Reloaded, Refused> {
        let loaded = config::load_or_embedded(self.config.file.as_deref());
        let Some(config) = loaded.config else { return Err(Refused::Invalid(loaded.diagnostics)) };
        log_problems(&loaded.diagnostics);
        let plan = Arc::new(self.sampler.plan().successor(&config.policies)?);
        decider::expire(&plan);
        let longest_stall = self.swap(&plan);
        let changed = self.config.differences(&config).join(", ");
        if !changed.is_empty() {
            warn!(changed, "only policies are reloaded, other changes need a restart");
        }
        Ok(Reloaded { policies: config.policies.len(), longest_stall })
    }

    /// Puts the plan in force; the longest that a shard was locked for it.
    fn swap(&self, plan: &Arc<Plan>) -> Duration {
        // First, so that there is a counter for whatever is decided by them.
        self.metrics.policies_in_force(plan);
        let (mut longest, mut since) = (Duration::ZERO, Duration::ZERO);
        self.sampler.reload(plan, |hold| match hold {
            Hold::Begins => since = self.clock.elapsed(),
            Hold::Ended => longest = longest.max(self.clock.elapsed() - since),
        });
        longest
    }
}
