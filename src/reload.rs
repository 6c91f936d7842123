//! Reloading policies: reads the files again. If they have no errors, the service decides by them
//! from then on, including the traces in the window. If they have errors, nothing changes.
//!
//! Called for SIGHUP, for POST /-/reload and, with `watch_policy_files`, when the files have
//! changed, on threads that may block: reading and compiling take milliseconds, and walking the
//! window takes as long as it took when the spans arrived. The longest time that a shard was locked
//! is logged. Only one reload runs at a time; another one waits.
//!
//! Every reload notes the contents that it has read, so that the watch does not read the same
//! contents again: files with errors are refused once, until they change.
//!
//! A trial of a second set of policies (`trial`) begins and ends the same way, and a reload ends
//! it.
//!
//! Only policies are applied. If anything else in the file has changed, the log says that this
//! needs a restart.

mod trial;

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tracing::{error, info, warn};

pub(crate) use self::trial::{Change, NoTrial, Outcome, Trial};
use crate::{
    changes,
    clock::{self, Clock},
    config::{self, Config, Diagnostics, Inputs, Severity, Shown},
    control, decider,
    logging::log_problems,
    metrics::Metrics,
    policy::{Plan, PolicySpec, TooManyNames},
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
    current: Mutex<Current>,
    loaded: Mutex<Loaded>,
}

/// The files that the last load has read, and the policies of the plan in force.
#[derive(Debug)]
struct Current {
    inputs: Inputs,
    files: changes::Files,
    policies: Vec<PolicySpec>,
    /// The trial that runs beside them.
    trial: Option<Arc<Trial>>,
}

impl Current {
    fn new(inputs: Inputs, policies: &[PolicySpec]) -> Self {
        let (files, policies) = (changes::Files::new(inputs.read()), policies.to_vec());
        Current { inputs, files, policies, trial: None }
    }

    fn has_read(&mut self, inputs: Inputs) {
        self.files = changes::Files::new(inputs.read());
        self.inputs = inputs;
    }
}

/// Where the policies in force come from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The SHA-256 of all files that they were read from, in hexadecimal.
    pub hash: String,
    /// These files, for people. If parts of the main file wait for a restart, it is there twice.
    pub shown: Arc<Shown>,
    /// The sections and keys that have changed since the start and wait for a restart.
    pub waiting: Vec<&'static str>,
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
    /// Warnings about the files.
    pub diagnostics: Diagnostics,
}

/// Problems as the control API describes them. If there are more than the list holds, the last one
/// says how many.
pub(crate) fn describe(diagnostics: &Diagnostics) -> Vec<control::Diagnostic> {
    let mut described = describe_listed(diagnostics);
    if diagnostics.omitted() > 0 {
        described.push(left_out(diagnostics.omitted()));
    }
    described
}

/// The problems in the list.
pub(crate) fn describe_listed(diagnostics: &Diagnostics) -> Vec<control::Diagnostic> {
    use control::diagnostic::Severity as Shown;
    let severity = |severity| match severity {
        Severity::Error => Shown::Error,
        Severity::Warning => Shown::Warning,
        Severity::Note => Shown::Note,
    };
    let place = |number| u32::try_from(number).unwrap_or(u32::MAX);
    let described = diagnostics.iter().map(|problem| control::Diagnostic {
        file: problem.file.clone(),
        line: place(problem.line),
        column: place(problem.column),
        severity: severity(problem.severity).into(),
        message: problem.message.clone(),
        hint: problem.hint.clone().unwrap_or_default(),
    });
    described.collect()
}

/// Says how many problems a list leaves out. It has no place.
pub(crate) fn left_out(problems: usize) -> control::Diagnostic {
    control::Diagnostic {
        severity: control::diagnostic::Severity::Note.into(),
        message: format!("problems that are not listed here: {problems}"),
        ..control::Diagnostic::default()
    }
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
    pub(crate) fn new(
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
            current: Mutex::new(Current::new(config.inputs.clone(), &config.policies)),
            loaded: Mutex::new(Loaded {
                hash: config.hash.clone(),
                shown: Arc::new(config.shown.clone()),
                waiting: Vec::new(),
                at: clock::unix_millis(),
                last_reload_successful: true,
            }),
        }
    }

    /// The configuration file; `None` for the built-in configuration.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.config.file.as_deref()
    }

    /// Where the policies in force come from.
    pub(crate) fn loaded(&self) -> Loaded {
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

    /// Whether the configuration asks to watch the files.
    pub(crate) fn is_watching(&self) -> bool {
        self.config.sampling.watch_policy_files && self.config.file.is_some()
    }

    /// Reloads if the files have changed since they were last read, and have not changed since the
    /// last call. Returns the outcome of the reload, if there was one. Called once every
    /// [`changes::PERIOD`]. Blocks.
    pub fn look(&self) -> Option<Result<Reloaded, Refused>> {
        let file = self.config.file.as_ref()?;
        let mut current = self.lock();
        let now = current.inputs.now(file);
        if !current.files.look(now) {
            return None;
        }
        info!(file = %file.display(), "configuration or policy files changed: reloading");
        // Noted before anything can panic, so that the same contents do not panic again.
        current.files.note_read();
        Some(self.run_locked(&mut current))
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        // A panic while it is locked is contained. At worst, files are noted as read that were not.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_locked(&self, current: &mut Current) -> Result<Reloaded, Refused> {
        let outcome = self.supervisor.contained_now(Task::Reload, || self.apply(current));
        let outcome = outcome.unwrap_or(Err(Refused::Panicked));
        self.metrics.reloaded(outcome.is_ok());
        self.lock_loaded().last_reload_successful = outcome.is_ok();
        match &outcome {
            Ok(Reloaded { policies, longest_stall, .. }) => {
                info!(policies, ?longest_stall, "policies reloaded");
            }
            Err(Refused::Invalid(diagnostics)) => {
                log_problems(diagnostics);
                error!(
                    "policies not reloaded: the configuration has errors; the old policies stay in \
                     force"
                );
            }
            Err(refused) => error!("policies not reloaded: {refused}"),
        }
        outcome
    }

    fn apply(&self, current: &mut Current) -> Result<Reloaded, Refused> {
        let loaded = config::load_or_embedded(self.config.file.as_deref());
        current.has_read(loaded.inputs);
        let Some(config) = loaded.config else { return Err(Refused::Invalid(loaded.diagnostics)) };
        log_problems(&loaded.diagnostics);
        let plan = Arc::new(self.sampler.plan().successor(&config.policies)?);
        decider::expire(&plan);
        // The metrics come first, so that every decision by the new policies has a counter.
        self.metrics.policies_in_force(&plan);
        current.policies.clone_from(&config.policies);
        let longest_stall = self.swap(&plan);
        if let Some(trial) = current.trial.take() {
            trial::ended(&trial, "the policies were reloaded");
        }
        let waiting = self.config.differences(&config);
        if !waiting.is_empty() {
            let changed = waiting.join(", ");
            warn!(changed, "a reload applies only policies; the other changes need a restart");
        }
        let policies = config.policies.len();
        let shown = match waiting.is_empty() {
            true => config.shown,
            false => config.shown.reloaded(&self.config.shown),
        };
        *self.lock_loaded() = Loaded {
            hash: config.hash,
            shown: Arc::new(shown),
            waiting,
            at: clock::unix_millis(),
            last_reload_successful: true,
        };
        Ok(Reloaded { policies, longest_stall, diagnostics: loaded.diagnostics })
    }

    /// Puts the plan in force. Returns the longest time that a shard was locked.
    fn swap(&self, plan: &Arc<Plan>) -> Duration {
        let (mut longest, mut since) = (Duration::ZERO, Duration::ZERO);
        self.sampler.reload(plan, |hold| match hold {
            Hold::Begins => since = self.clock.elapsed(),
            Hold::Ended => longest = longest.max(self.clock.elapsed() - since),
        });
        longest
    }
}
