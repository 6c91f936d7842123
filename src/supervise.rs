//! Containing panics: a bug costs what it was doing, is counted, and the service goes on.
//!
//! Two kinds of work are told apart. A panic over one *item* (a request, a trace, a reload, an
//! attempt to export) costs that item, however often: nobody may stop the service by sending the
//! same thing again. The *loop* of a task is restarted after a pause, and when one panics more than
//! [`PANICS_MAX`] times within [`PANICS_WITHIN`] the service is not ready any more and ends, since
//! whoever restarts it does more for it than it can. A task that has ended before it was told to,
//! for whatever reason, ends the service likewise: each holds a [`Vital`], which notices.
//!
//! In debug builds, which tests are, a test can have the next poll of either panic
//! ([`Supervisor::arm`]); release builds know nothing of it.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
    thread,
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinError,
    time::{Instant, sleep_until},
};
use tracing::error;

/// Panics of a task's loop that are survived within [`PANICS_WITHIN`].
pub const PANICS_MAX: usize = 10;
/// See [`PANICS_MAX`].
pub const PANICS_WITHIN: Duration = Duration::from_secs(60);
/// Before a loop is restarted: what made it panic may need a moment to pass.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

/// What panics are counted under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// The gRPC and HTTP receivers: accept loops, connections, requests.
    Receiver = 0,
    /// The decider.
    Decider = 1,
    /// The consumers of the sending queue.
    Exporter = 2,
    /// A reload of the policies.
    Reload = 3,
    /// The telemetry port.
    Admin = 4,
    /// Looking at certificates, keys and tokens.
    Credentials = 5,
}

impl Task {
    /// Every task, in the order of its number.
    pub const ALL: [Task; 6] = [
        Task::Receiver,
        Task::Decider,
        Task::Exporter,
        Task::Reload,
        Task::Admin,
        Task::Credentials,
    ];

    /// The value of the `task` label.
    pub fn as_str(self) -> &'static str {
        match self {
            Task::Receiver => "receiver",
            Task::Decider => "decider",
            Task::Exporter => "exporter",
            Task::Reload => "reload",
            Task::Admin => "admin",
            Task::Credentials => "credentials",
        }
    }
}

/// The future panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("panicked")]
pub struct Panicked;

/// Runs a future and contains a panic in it.
///
/// # Errors
/// [`Panicked`]; the panic hook has already printed where.
pub async fn contained<F: Future>(future: F) -> Result<F::Output, Panicked> {
    let mut future = pin!(future);
    poll_fn(|context| {
        // The future is never polled again after a panic, so nothing sees what it left half done
        // but what it borrowed, which its owners keep usable.
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(_) => Poll::Ready(Err(Panicked)),
        }
    })
    .await
}

/// What is contained: [`Supervisor::arm`] tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// [`Supervisor::run`].
    Loop = 0,
    /// [`Supervisor::contained`].
    Item = 1,
    /// [`Supervisor::contained_now`].
    Now = 2,
}

/// Why a service cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The loop of a task panics again and again.
    #[error("the task `{}` keeps panicking", .0.as_str())]
    KeepsPanicking(Task),
    /// A task is gone that should run until the service stops.
    #[error("the task `{}` has ended", .0.as_str())]
    Ended(Task),
}

/// Counts the panics of one service and says when it cannot go on.
#[derive(Debug)]
pub struct Supervisor {
    panics: [AtomicU64; Task::ALL.len()],
    /// Of each loop, when it panicked lately.
    recent: Mutex<[VecDeque<Instant>; Task::ALL.len()]>,
    failed: watch::Sender<Option<Failure>>,
    /// Tasks may end now.
    is_stopping: AtomicBool,
    #[cfg(debug_assertions)]
    armed: [[AtomicU64; 3]; Task::ALL.len()],
}

impl Default for Supervisor {
    fn default() -> Self {
        Supervisor {
            panics: Default::default(),
            recent: Mutex::default(),
            failed: watch::Sender::new(None),
            is_stopping: AtomicBool::new(false),
            #[cfg(debug_assertions)]
            armed: Default::default(),
        }
    }
}

impl Supervisor {
    /// Works on one item; a panic in it is contained and counted.
    ///
    /// # Errors
    /// [`Panicked`]: the item is lost.
    pub async fn contained<F: Future>(&self, task: Task, item: F) -> Result<F::Output, Panicked> {
        // By reference: each call that takes a future by value doubles its size.
        let item = pin!(item);
        let outcome = contained(self.faulty(task, Scope::Item, item)).await;
        outcome.inspect_err(|_| self.panicked(task))
    }

    /// As [`Self::contained`], where there is nothing to wait for.
    ///
    /// # Errors
    /// [`Panicked`]: the item is lost.
    pub fn contained_now<T>(&self, task: Task, work: impl FnOnce() -> T) -> Result<T, Panicked> {
        let work = || {
            self.fault(task, Scope::Now);
            work()
        };
        catch_unwind(AssertUnwindSafe(work)).map_err(|_| {
            self.panicked(task);
            Panicked
        })
    }

    /// Runs the loop of a task, a pause after one of its kind has panicked.
    ///
    /// # Errors
    /// [`Panicked`]: to be run again. When that happens too often, the service has failed.
    pub async fn run<F: Future>(&self, task: Task, work: F) -> Result<F::Output, Panicked> {
        let work = pin!(work);
        let panicked_at = self.recent()[task as usize].back().copied();
        if let Some(at) = panicked_at {
            sleep_until(at + RESTART_PAUSE).await;
        }
        let outcome = contained(self.faulty(task, Scope::Loop, work)).await;
        outcome.inspect_err(|_| {
            self.panicked(task);
            self.note_restart(task);
        })
    }

    /// Counts a panic that was contained elsewhere.
    pub fn panicked(&self, task: Task) {
        self.panics[task as usize].fetch_add(1, Relaxed);
        tell(|| {
            error!(task = task.as_str(), "contained a panic: what was in hand is lost and counted");
        });
    }

    /// Has the end of a task noticed that must run until [`Self::stop`]. The task holds what this
    /// returns.
    pub fn vital(self: &Arc<Self>, task: Task) -> Vital {
        Vital { supervisor: Arc::clone(self), task }
    }

    /// From now on tasks may end.
    pub fn stop(&self) {
        self.is_stopping.store(true, Relaxed);
    }

    fn ended(&self, task: Task) {
        if !self.is_stopping.load(Relaxed) && self.failed().is_none() {
            tell(|| error!(task = task.as_str(), "the task has ended: the service cannot go on"));
            self.failed.send_replace(Some(Failure::Ended(task)));
        }
    }

    fn note_restart(&self, task: Task) {
        let now = Instant::now();
        let mut all = self.recent();
        let recent = &mut all[task as usize];
        recent.retain(|&at| now - at < PANICS_WITHIN);
        recent.push_back(now);
        if recent.len() > PANICS_MAX && !self.keeps_panicking() {
            let times = recent.len();
            tell(|| error!(task = task.as_str(), "panicked {times} times in a minute: giving up"));
            self.failed.send_replace(Some(Failure::KeepsPanicking(task)));
        }
    }

    fn recent(&self) -> MutexGuard<'_, [VecDeque<Instant>; Task::ALL.len()]> {
        // Nothing panics while it is held.
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Panics so far, in the order of [`Task::ALL`].
    pub fn panics(&self) -> [u64; Task::ALL.len()] {
        Task::ALL.map(|task| self.panics[task as usize].load(Relaxed))
    }

    /// Why the service cannot go on, if it cannot.
    pub fn failed(&self) -> Option<Failure> {
        *self.failed.borrow()
    }

    /// Whether a loop has panicked so often that none should be run again.
    pub fn keeps_panicking(&self) -> bool {
        matches!(self.failed(), Some(Failure::KeepsPanicking(_)))
    }

    /// Waits until the service cannot go on.
    pub async fn failure(&self) {
        // Ends early only if the sender were gone, and that is `self`.
        let _ = self.failed.subscribe().wait_for(Option::is_some).await;
    }

    /// Has the next `times` polls, or calls, of this panic.
    #[cfg(debug_assertions)]
    pub fn arm(&self, task: Task, scope: Scope, times: u64) {
        self.armed[task as usize][scope as usize].store(times, Relaxed);
    }

    #[cfg(debug_assertions)]
    fn fault(&self, task: Task, scope: Scope) {
        let armed = &self.armed[task as usize][scope as usize];
        let was = armed.fetch_update(Relaxed, Relaxed, |times| times.checked_sub(1));
        assert!(was.is_err(), "armed by a test: {task:?}, {scope:?}");
    }

    #[cfg(not(debug_assertions))]
    fn fault(&self, _: Task, _: Scope) {}

    /// The future, asked before each poll whether a test wants it to panic.
    async fn faulty<F: Future>(&self, task: Task, scope: Scope, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|context| {
            self.fault(task, scope);
            future.as_mut().poll(context)
        })
        .await
    }
}

/// Logs a line. Whoever contains a panic must not fail over saying so.
fn tell(log: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(log));
}

/// Held by a task that must run until the service stops. Notices its end, however it comes about:
/// it returns, it panics, it is aborted, or it was never run.
#[derive(Debug)]
pub struct Vital {
    supervisor: Arc<Supervisor>,
    task: Task,
}

impl Vital {
    /// The task.
    pub async fn over<F: Future>(self, work: F) -> F::Output {
        pin!(work).await
    }
}

impl Drop for Vital {
    fn drop(&mut self) {
        if thread::panicking() {
            self.supervisor.panicked(self.task);
        }
        self.supervisor.ended(self.task);
    }
}

/// A supervisor and the task that its holder belongs to.
#[derive(Clone, Debug)]
pub struct Supervised {
    /// Counts the panics.
    pub supervisor: Arc<Supervisor>,
    /// What they are counted under.
    pub task: Task,
}

impl Supervised {
    /// See [`Supervisor::contained`].
    ///
    /// # Errors
    /// [`Panicked`]: the item is lost.
    pub async fn contained<F: Future>(&self, item: F) -> Result<F::Output, Panicked> {
        self.supervisor.contained(self.task, pin!(item)).await
    }

    /// Counts the panic that a spawned part of the task has ended with, if it has.
    pub fn note(&self, ended: &Result<(), JoinError>) {
        if ended.as_ref().is_err_and(JoinError::is_panic) {
            self.supervisor.panicked(self.task);
        }
    }

    /// See [`Supervisor::run`].
    ///
    /// # Errors
    /// [`Panicked`]: to be run again.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, Panicked> {
        self.supervisor.run(self.task, pin!(work)).await
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_outcome() {
        assert_eq!(
            contained(async { panic!("contained on purpose") }).await,
            Err::<(), _>(Panicked)
        );
        assert_eq!(contained(async { 1 }).await, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn loops_that_keep_panicking_are_a_failure_and_items_are_not() {
        let supervisor = Supervisor::default();
        let panics = || async { panic!("contained on purpose") };
        for _ in 0..100 {
            assert_eq!(
                supervisor.contained(Task::Receiver, panics()).await,
                Err::<(), _>(Panicked)
            );
        }
        for _ in 0..PANICS_MAX {
            assert_eq!(supervisor.run(Task::Decider, panics()).await, Err::<(), _>(Panicked));
        }
        assert_eq!((supervisor.panics(), supervisor.failed()), ([100, 10, 0, 0, 0, 0], None));
        // Those of another task, and those that are long ago, do not count.
        let _ = supervisor.run(Task::Exporter, panics()).await;
        sleep_until(Instant::now() + PANICS_WITHIN).await;
        for expected in
            [vec![None; PANICS_MAX], vec![Some(Failure::KeepsPanicking(Task::Decider))]].concat()
        {
            assert_eq!(supervisor.run(Task::Decider, panics()).await, Err::<(), _>(Panicked));
            assert_eq!(supervisor.failed(), expected);
        }
        supervisor.failure().await;
    }

    #[tokio::test]
    async fn a_vital_task_that_ends_is_a_failure_until_the_service_stops() {
        for ends in 0..4 {
            let supervisor = Arc::new(Supervisor::default());
            let task = supervisor.vital(Task::Admin);
            match ends {
                0 => task.over(ready(())).await,
                1 => assert!(tokio::spawn(task.over(async { panic!("a bug") })).await.is_err()),
                2 => tokio::spawn(task.over(pending::<()>())).abort(),
                _ => drop(thread::spawn(move || drop(task)).join()),
            }
            tokio::task::yield_now().await;
            supervisor.failure().await;
            assert_eq!(supervisor.failed(), Some(Failure::Ended(Task::Admin)), "{ends}");
            assert_eq!(supervisor.panics()[Task::Admin as usize], u64::from(ends == 1));
        }
        let supervisor = Arc::new(Supervisor::default());
        let task = supervisor.vital(Task::Admin);
        supervisor.stop();
        drop(task);
        assert_eq!(supervisor.failed(), None);
    }

    #[tokio::test]
    #[cfg(debug_assertions)]
    async fn what_is_armed_panics_at_its_next_poll() {
        let supervisor = Supervisor::default();
        supervisor.arm(Task::Decider, Scope::Loop, 1);
        assert_eq!(supervisor.contained(Task::Decider, ready(1)).await, Ok(1));
        assert_eq!(supervisor.run(Task::Exporter, ready(1)).await, Ok(1));
        assert_eq!(supervisor.run(Task::Decider, pending::<()>()).await, Err(Panicked));
        assert_eq!(supervisor.run(Task::Decider, ready(1)).await, Ok(1));
        supervisor.arm(Task::Reload, Scope::Now, 1);
        assert_eq!(supervisor.contained_now(Task::Reload, || 1), Err(Panicked));
        assert_eq!(supervisor.contained_now(Task::Reload, || 1), Ok(1));
    }
}
