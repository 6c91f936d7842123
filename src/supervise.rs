//! Contains panics: a panic loses only the work in hand and is counted, and the service continues.
//!
//! There are two kinds of work. A panic in one *item* (a request, a trace, a reload, an attempt to
//! export) loses that item, however often it happens: nobody may stop the service by sending the
//! same thing again. The *loop* of a task is restarted after a pause. If loops of one kind panic
//! more than [`PANICS_MAX`] times within [`PANICS_WITHIN`], the service reports not ready and ends,
//! because a restart of the process can repair more than the service can. A task that ends for any
//! reason before it is told to also ends the service: each task holds a [`Vital`], which notices.
//!
//! In debug builds, which tests are, a test can make the next poll of either kind panic
//! ([`Supervisor::arm`]). Release builds do not contain this.

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
    time::{Instant, sleep_until},
};
use tracing::error;

/// Panics of a task's loop that the service survives within [`PANICS_WITHIN`].
pub const PANICS_MAX: usize = 10;
/// The period of [`PANICS_MAX`].
pub(crate) const PANICS_WITHIN: Duration = Duration::from_secs(60);
/// The pause before a loop is restarted: the cause of the panic may need a moment to pass.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

/// The tasks that panics are counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// The gRPC and HTTP receivers: accept loops, connections, requests.
    Receiver = 0,
    /// The decider.
    Decider = 1,
    /// The consumers of the export queue.
    Exporter = 2,
    /// A reload of the policies.
    Reload = 3,
    /// The telemetry port.
    Admin = 4,
    /// The check of certificates, keys and tokens.
    Credentials = 5,
    /// The syncs of `[durability]`, and the replay at the start.
    Durability = 6,
    /// The Kafka receiver.
    Kafka = 7,
}

impl Task {
    /// Every task, in the order of its number.
    pub(crate) const ALL: [Task; 8] = [
        Task::Receiver,
        Task::Decider,
        Task::Exporter,
        Task::Reload,
        Task::Admin,
        Task::Credentials,
        Task::Durability,
        Task::Kafka,
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
            Task::Durability => "durability",
            Task::Kafka => "kafka",
        }
    }
}

/// The future has panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("panicked")]
pub(crate) struct Panicked;

/// Runs a future and contains a panic in it.
///
/// # Errors
/// [`Panicked`]; the panic hook has already printed where.
pub(crate) async fn contained<F: Future>(future: F) -> Result<F::Output, Panicked> {
    let mut future = pin!(future);
    poll_fn(|context| {
        // The future is never polled again after a panic, so only data that it borrowed may be left
        // half changed, and the owners of that data keep it usable.
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(_) => Poll::Ready(Err(Panicked)),
        }
    })
    .await
}

/// The kinds of contained work, which [`Supervisor::arm`] tells apart.
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
    /// A task has ended that should run until the service stops.
    #[error("the task `{}` has ended", .0.as_str())]
    Ended(Task),
}

/// Counts the panics of one service and says when the service cannot go on.
#[derive(Debug)]
pub struct Supervisor {
    panics: [AtomicU64; Task::ALL.len()],
    /// The recent panics of each loop.
    recent: Mutex<[VecDeque<Instant>; Task::ALL.len()]>,
    failed: watch::Sender<Option<Failure>>,
    /// Rounds of the decider.
    rounds: AtomicU64,
    /// Whether tasks may end.
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
            rounds: AtomicU64::new(0),
            is_stopping: AtomicBool::new(false),
            #[cfg(debug_assertions)]
            armed: Default::default(),
        }
    }
}

impl Supervisor {
    /// Works on one item. Contains and counts a panic in it.
    ///
    /// # Errors
    /// [`Panicked`]: the item is lost.
    pub(crate) async fn contained<F: Future>(
        &self,
        task: Task,
        item: F,
    ) -> Result<F::Output, Panicked> {
        // Pinned in place: each call that takes a future by value doubles its size.
        let item = pin!(item);
        let outcome = contained(self.faulty(task, Scope::Item, item)).await;
        outcome.inspect_err(|_| self.panicked(task))
    }

    /// Like [`Self::contained`], for work that does not wait.
    ///
    /// # Errors
    /// [`Panicked`]: the item is lost.
    pub(crate) fn contained_now<T>(
        &self,
        task: Task,
        work: impl FnOnce() -> T,
    ) -> Result<T, Panicked> {
        let work = || {
            self.fault(task, Scope::Now);
            work()
        };
        catch_unwind(AssertUnwindSafe(work)).map_err(|_| {
            self.panicked(task);
            Panicked
        })
    }

    /// Runs the loop of a task; after a panic, returns only after a pause.
    ///
    /// # Errors
    /// [`Panicked`]: run the loop again. If that happens too often, the service has failed.
    pub(crate) async fn run<F: Future>(&self, task: Task, work: F) -> Result<F::Output, Panicked> {
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

    /// Whether the service is stopping.
    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Relaxed)
    }

    /// Counts a panic that was contained elsewhere.
    pub(crate) fn panicked(&self, task: Task) {
        self.panics[task as usize].fetch_add(1, Relaxed);
        tell(|| {
            error!(task = task.as_str(), "contained a panic: the work in hand is lost and counted");
        });
    }

    /// Watches a task that must run until [`Self::stop`]. The task holds the returned value.
    pub fn vital(self: &Arc<Self>, task: Task) -> Vital {
        Vital { supervisor: Arc::clone(self), task }
    }

    /// The decider has begun another round over all shards.
    pub(crate) fn note_round(&self) {
        self.rounds.fetch_add(1, Relaxed);
    }

    /// The rounds of the decider so far. The number grows while the service decides.
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Relaxed)
    }

    /// Allows tasks to end from now on.
    pub(crate) fn stop(&self) {
        self.is_stopping.store(true, Relaxed);
    }

    fn ended(&self, task: Task) {
        if !self.is_stopping.load(Relaxed) && self.failed().is_none() {
            tell(|| error!(task = task.as_str(), "the task ended early: the service shuts down"));
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
            tell(|| {
                error!(task = task.as_str(), "panicked {times} times in a minute: shutting down");
            });
            self.failed.send_replace(Some(Failure::KeepsPanicking(task)));
        }
    }

    fn recent(&self) -> MutexGuard<'_, [VecDeque<Instant>; Task::ALL.len()]> {
        // No panic can happen while it is locked.
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
    pub(crate) fn keeps_panicking(&self) -> bool {
        matches!(self.failed(), Some(Failure::KeepsPanicking(_)))
    }

    /// Waits until the service cannot go on.
    pub(crate) async fn failure(&self) {
        // This ends early only if the sender is dropped, and the sender belongs to `self`.
        let _ = self.failed.subscribe().wait_for(Option::is_some).await;
    }

    /// Makes the next `times` polls, or calls, of this kind of work panic.
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

    /// Wraps the future: before each poll it panics if a test has asked for that.
    async fn faulty<F: Future>(&self, task: Task, scope: Scope, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|context| {
            self.fault(task, scope);
            future.as_mut().poll(context)
        })
        .await
    }
}

/// Logs a line. A panic while logging must not break the code that contains panics.
fn tell(log: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(log));
}

/// Held by a task that must run until the service stops. It notices the end of the task in any
/// form: it returns, it panics, it is aborted, or it was never run.
#[derive(Debug)]
pub struct Vital {
    supervisor: Arc<Supervisor>,
    task: Task,
}

impl Vital {
    /// Runs the task.
    pub(crate) async fn over<F: Future>(self, work: F) -> F::Output {
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
    pub(crate) supervisor: Arc<Supervisor>,
    /// The task that they are counted for.
    pub(crate) task: Task,
}

impl Supervised {
    /// Calls [`Supervisor::contained`] for the task.
    ///
    /// # Errors
    /// [`Panicked`]: the item is lost.
    pub(crate) async fn contained<F: Future>(&self, item: F) -> Result<F::Output, Panicked> {
        self.supervisor.contained(self.task, pin!(item)).await
    }

    /// Calls [`Supervisor::run`] for the task.
    ///
    /// # Errors
    /// [`Panicked`]: run the loop again.
    pub(crate) async fn run<F: Future>(&self, work: F) -> Result<F::Output, Panicked> {
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
        assert_eq!((supervisor.panics(), supervisor.failed()), ([100, 10, 0, 0, 0, 0, 0, 0], None));
        // Panics of another task, and old panics, do not count.
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
    async fn an_armed_task_panics_at_its_next_poll() {
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
