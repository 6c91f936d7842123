//! Reloading policies: reads the files again. If they have no errors, the service decides by them
//! from then on, including the traces in the window. If they have errors, nothing changes.
//!
//! Called for SIGHUP, for POST /-/reload and, with `watch_policy_files`, when the files have
//! changed, on threads that may block: reading and compiling take milliseconds, and walking the
//! window takes as long as it took when the spans arrived. The longest time that a shard was locked
//! is logged. Only one reload runs at a time; another one waits.
//!
//! Whatever asked for it, a reload notes what it has read, so that the same contents are not read
//! again: files that are refused are refused once, until they change.
//!
//! Only policies are applied. If anything else in the file has changed, the log says that this
//! needs a restart.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tracing::{error, info, warn};

use crate::{
    changes,
    clock::{self, Clock},
    config::{self, Config, Diagnostics, Inputs, Shown},
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
    /// The configuration that the service was started with. It also names the files to read.
    config: Config,
    sampler: Arc<Sampler>,
    metrics: Arc<Metrics>,
    clock: Clock,
    supervisor: Arc<Supervisor>,
    /// Locked from reading to the last shard, so that plans follow one another.
    read: Mutex<LastRead>,
    loaded: Mutex<Loaded>,
}

/// What the last load has read.
#[derive(Debug)]
struct LastRead {
    inputs: Inputs,
    files: changes::Files,
}

impl LastRead {
    fn new(inputs: Inputs) -> Self {
        LastRead { files: changes::Files::new(inputs.read()), inputs }
    }
}

/// Where the policies in force come from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The SHA-256 of all files that they were read from, in hexadecimal.
    pub hash: String,
    /// These files, for people.
    pub shown: Arc<Shown>,
    /// When they were read, in Unix milliseconds.
    pub at: u64,
    /// Whether the last reload put new ones in force; true before the first.
    pub last_reload_successful: bool,
}

/// The outcome of a reload.
#[derive(Clone, Debug)]
pub struct Reloaded {
    /// The number of policies in force.
    pub policies: usize,
    /// The longest time that a shard was locked.
    pub longest_stall: Duration,
}

/// Why the policies were not changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refused {
    /// The files have errors.
    #[error("{0}")]
    Invalid(Diagnostics),
    /// The process has seen too many names of policies; a restart helps.
    #[error("{0}; restart the service to forget the removed policies")]
    TooManyNames(#[from] TooManyNames),
    /// A bug, which is counted.
    #[error("internal error")]
    Panicked,
}

impl Reload {
    /// Reloads the policies of a service that was started with `config`.
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
            read: Mutex::new(LastRead::new(config.inputs.clone())),
            loaded: Mutex::new(Loaded {
                hash: config.hash.clone(),
                shown: Arc::new(config.shown.clone()),
                at: clock::unix_millis(),
                last_reload_successful: true,
            }),
        }
    }

    /// The configuration file; `None` for what is built in.
    pub fn file(&self) -> Option<&Path> {
        self.config.file.as_deref()
    }

    /// Where the policies in force come from.
    pub fn loaded(&self) -> Loaded {
        self.lock_loaded().clone()
    }

    fn lock_loaded(&self) -> MutexGuard<'_, Loaded> {
        // No code panics while it holds this lock.
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the files again and applies their policies. Logs and counts the outcome. Blocks.
    ///
    /// # Errors
    /// [`Refused`]: nothing has changed.
    pub fn run(&self) -> Result<Reloaded, Refused> {
        self.run_locked(&mut self.lock())
    }

    /// Whether the files are to be watched.
    pub fn is_watching(&self) -> bool {
        self.config.sampling.watch_policy_files && self.config.file.is_some()
    }

    /// Reloads if the files have changed since they were last read, and have come to rest. Returns
    /// the outcome if so. Called once every [`changes::PERIOD`]. Blocks.
    pub fn look(&self) -> Option<Result<Reloaded, Refused>> {
        let file = self.config.file.as_ref()?;
        let mut read = self.lock();
        let now = read.inputs.now(file);
        if !read.files.look(now) {
            return None;
        }
        info!(file = %file.display(), "configuration or policy files changed: reloading");
        // Noted before anything can panic, so that the same contents do not panic again.
        read.files.note_read();
        Some(self.run_locked(&mut read))
    }

    fn lock(&self) -> MutexGuard<'_, LastRead> {
        // Panics are contained while it is locked; one elsewhere leaves at worst files noted as
        // read that were not.
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_locked(&self, read: &mut LastRead) -> Result<Reloaded, Refused> {
        let outcome = self.supervisor.contained_now(Task::Reload, || self.apply(read));
        let outcome = outcome.unwrap_or(Err(Refused::Panicked));
        self.metrics.reloaded(outcome.is_ok());
        self.lock_loaded().last_reload_successful = outcome.is_ok();
        match &outcome {
            Ok(Reloaded { policies, longest_stall }) => {
                info!(policies, ?longest_stall, "policies reloaded");
            }
            Err(Refused::Invalid(diagnostics)) => {
                log_problems(diagnostics);
                error!(
                    "policies not reloaded: the configuration has errors; the old policies stay"
                );
            }
            Err(refused) => error!("policies not reloaded: {refused}"),
        }
        outcome
    }

    fn apply(&self, read: &mut LastRead) -> Result<Reloaded, Refused> {
        let loaded = config::load_or_embedded(self.config.file.as_deref());
        *read = LastRead::new(loaded.inputs);
        let Some(config) = loaded.config else { return Err(Refused::Invalid(loaded.diagnostics)) };
        log_problems(&loaded.diagnostics);
        let plan = Arc::new(self.sampler.plan().successor(&config.policies)?);
        decider::expire(&plan);
        let longest_stall = self.swap(&plan);
        *self.lock_loaded() = Loaded {
            hash: config.hash.clone(),
            shown: Arc::new(config.shown.clone()),
            at: clock::unix_millis(),
            last_reload_successful: true,
        };
        let changed = self.config.differences(&config).join(", ");
        if !changed.is_empty() {
            warn!(changed, "a reload applies only policies; the other changes need a restart");
        }
        Ok(Reloaded { policies: config.policies.len(), longest_stall })
    }

    /// Puts the plan in force. Returns the longest time that a shard was locked.
    fn swap(&self, plan: &Arc<Plan>) -> Duration {
        // The metrics come first, so that every decision by the new policies has a counter.
        self.metrics.policies_in_force(plan);
        let (mut longest, mut since) = (Duration::ZERO, Duration::ZERO);
        self.sampler.reload(plan, |hold| match hold {
            Hold::Begins => since = self.clock.elapsed(),
            Hold::Ended => longest = longest.max(self.clock.elapsed() - since),
        });
        longest
    }
}
