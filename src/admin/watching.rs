//! Passes decisions to the clients that watch them (`WatchDecisions`).
//!
//! The admin thread takes the decisions from the sampler every [`PERIOD`], filters them for each
//! watcher, and puts them into the watcher's queue. The decider never waits for a watcher: a
//! decision that does not fit into the queue, or exceeds `max_per_second`, is left out, and the
//! next one says how many were. While nobody watches, the task sleeps and the sampler copies
//! nothing.
//!
//! Limits: 32 watchers; queues of 512 decisions. A watcher whose queue stays full for 30 s is not
//! reading, and its connection is closed. When the service stops, watchers get the last decisions
//! for a second, and then an error that gives the reason.

use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::sync::{
    Notify,
    mpsc::{self, error::TrySendError},
};
use tonic::{Status, codegen::tokio_stream::Stream};

use super::Admin;
use crate::{
    control::{WatchDecisionsRequest, WatchDecisionsResponse, decision::State},
    decisions::{Logged, Tapped},
    net::listen::{Leash, LongLived},
};

/// The most watchers at once.
const WATCHERS_MAX: usize = 32;
/// The most decisions in a watcher's queue.
const QUEUE_MAX: usize = 512;
/// How often the decisions are taken from the sampler.
const PERIOD: Duration = Duration::from_millis(50);
/// After this time with a full queue, a watcher counts as not reading.
const UNREAD_MAX: Duration = Duration::from_secs(30);
/// How long streams go on during a shutdown.
const LAST_DECISIONS: Duration = Duration::from_secs(1);
/// `max_per_second` if the request gives none.
const PER_SECOND: u32 = 100;

/// All watchers.
#[derive(Debug, Default)]
pub struct Watchers {
    all: Mutex<Vec<Watcher>>,
    /// Notified when the first watcher comes.
    came: Notify,
}

#[derive(Debug)]
struct Watcher {
    wanted: Wanted,
    queue: mpsc::Sender<Result<Seen, Status>>,
    /// Matching decisions left out since the last one that was queued.
    skipped: u64,
    /// How many decisions may be sent now, and when this was last raised.
    allowed: f64,
    raised_at: Duration,
    /// Since when the queue has been full.
    full_since: Option<Duration>,
    leash: Arc<Leash>,
}

/// The filter of a watcher.
#[derive(Debug, PartialEq)]
struct Wanted {
    kept: bool,
    dropped: bool,
    /// The numbers of the wanted policies; empty for all policies.
    policies: BTreeSet<u16>,
    per_second: f64,
}

/// A decision, queued for one watcher.
#[derive(Debug)]
struct Seen {
    logged: Arc<Logged>,
    skipped: u64,
}

impl Wanted {
    fn wants(&self, logged: &Logged) -> bool {
        let verdict = logged.record.decision.verdict;
        let is_wanted = if verdict.kept { self.kept } else { self.dropped };
        let is_of = |policy: u16| self.policies.contains(&policy);
        is_wanted
            && (self.policies.is_empty()
                || is_of(verdict.policy.0)
                // Shadow policies are never credited.
                || logged.shadow_matched.iter().any(|policy| is_of(policy.0)))
    }
}

impl Watcher {
    /// Queues a decision if the watcher wants it, or counts it as left out.
    fn offer(&mut self, now: Duration, logged: &Arc<Logged>) {
        let since = now.saturating_sub(std::mem::replace(&mut self.raised_at, now));
        let raised = self.allowed + since.as_secs_f64() * self.wanted.per_second;
        self.allowed = raised.min(self.wanted.per_second);
        if self.allowed < 1.0 {
            self.skipped += 1;
            return;
        }
        let seen = Seen { logged: Arc::clone(logged), skipped: self.skipped };
        match self.queue.try_send(Ok(seen)) {
            Ok(()) => {
                self.allowed -= 1.0;
                (self.skipped, self.full_since) = (0, None);
            }
            Err(TrySendError::Full(_)) => {
                self.skipped += 1;
                self.full_since.get_or_insert(now);
            }
            // The client has disconnected; the next pass removes the watcher.
            Err(TrySendError::Closed(_)) => {}
        }
    }

    /// Whether the client has disconnected, or was closed because it did not read.
    fn is_over(&self, now: Duration) -> bool {
        let never_reads =
            self.full_since.is_some_and(|since| now.saturating_sub(since) >= UNREAD_MAX);
        if never_reads {
            self.leash.hang_up();
        }
        never_reads || self.queue.is_closed()
    }

    /// Sends the reason why the stream ends.
    fn end(self) {
        let ended = self.queue.try_send(Err(Status::unavailable("the service is shutting down")));
        if ended.is_err() {
            self.leash.hang_up();
        }
    }
}

impl Watchers {
    /// The number of watchers.
    pub(super) fn count(&self) -> usize {
        self.lock().iter().filter(|watcher| !watcher.queue.is_closed()).count()
    }

    /// Passes decisions on. Returns whether there are any watchers left.
    fn pass_on(&self, now: Duration, tapped: &Tapped) -> bool {
        let mut all = self.lock();
        for (decisions, decided_at) in &tapped.decisions {
            for record in &decisions.records {
                let logged = Arc::new(decisions.logged(record, *decided_at));
                let wanting = all.iter_mut().filter(|watcher| watcher.wanted.wants(&logged));
                wanting.for_each(|watcher| watcher.offer(now, &logged));
            }
        }
        // It is not known which of these match. Counting too many is better than a gap that nobody
        // sees.
        all.iter_mut().for_each(|watcher| watcher.skipped += tapped.missed);
        all.retain(|watcher| !watcher.is_over(now));
        !all.is_empty()
    }

    /// Ends the streams of all watchers.
    fn end(&self) {
        std::mem::take(&mut *self.lock()).into_iter().for_each(Watcher::end);
    }

    fn add(&self, watcher: Watcher) -> Result<(), Status> {
        let mut all = self.lock();
        all.retain(|watcher| !watcher.queue.is_closed());
        if all.len() >= WATCHERS_MAX {
            let message = format!("{WATCHERS_MAX} clients are watching, which is the limit");
            return Err(Status::resource_exhausted(message));
        }
        all.push(watcher);
        drop(all);
        self.came.notify_one();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Watcher>> {
        // Watchers are consistent at any time.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admin {
    /// Passes decisions to watchers. Runs as long as the admin thread.
    pub(super) async fn pass_decisions_on(&self) {
        let tap = self.sampler.log().tap();
        let mut stopping_since = None;
        loop {
            self.watchers.came.notified().await;
            while self.watchers.pass_on(self.uptime.elapsed(), &tap.take()) {
                tokio::time::sleep(PERIOD).await;
                let now = self.uptime.elapsed();
                if self.supervisor.is_stopping()
                    && now.saturating_sub(*stopping_since.get_or_insert(now)) >= LAST_DECISIONS
                {
                    self.watchers.pass_on(now, &tap.take());
                    self.watchers.end();
                }
            }
            tap.set_open(false);
            // A watcher may have come just now.
            tap.set_open(self.watchers.count() > 0);
        }
    }

    /// Starts to watch. The second value marks the answer, so that its connection can be closed.
    pub(super) fn watch(
        self: &Arc<Self>,
        request: &WatchDecisionsRequest,
    ) -> Result<(Watching, LongLived), Status> {
        if self.supervisor.is_stopping() {
            return Err(Status::unavailable("the service is shutting down"));
        }
        let wanted = self.wanted(request)?;
        let (sender, queue) = mpsc::channel(QUEUE_MAX);
        let leash = Arc::<Leash>::default();
        self.sampler.log().tap().set_open(true);
        self.watchers.add(Watcher {
            allowed: wanted.per_second,
            wanted,
            queue: sender,
            skipped: 0,
            raised_at: self.uptime.elapsed(),
            full_since: None,
            leash: Arc::clone(&leash),
        })?;
        Ok((Watching { queue, admin: Arc::clone(self) }, LongLived::on(leash)))
    }

    fn wanted(&self, request: &WatchDecisionsRequest) -> Result<Wanted, Status> {
        let (mut kept, mut dropped) = (false, false);
        for &state in &request.states {
            match State::try_from(state) {
                Ok(State::Kept) => kept = true,
                Ok(State::Dropped) => dropped = true,
                _ => {
                    let message = "states: only STATE_KEPT and STATE_DROPPED can be watched";
                    return Err(Status::invalid_argument(message));
                }
            }
        }
        let plan = self.sampler.plan();
        let mut policies = BTreeSet::new();
        for name in &request.policies {
            let policy = plan.in_force().find(|policy| policy.name == name);
            let Some(policy) = policy else {
                // It is sent as a header, so it must be short.
                let name: String = name.chars().take(64).collect();
                let message = format!("policies: no policy {name:?} is in force");
                return Err(Status::invalid_argument(message));
            };
            policies.insert(policy.id.0);
        }
        let per_second = request.max_per_second.unwrap_or(PER_SECOND);
        if per_second == 0 {
            return Err(Status::invalid_argument("max_per_second: must be at least 1"));
        }
        let is_all = request.states.is_empty();
        let per_second = f64::from(per_second);
        Ok(Wanted { kept: kept || is_all, dropped: dropped || is_all, policies, per_second })
    }
}

/// The stream of one watcher. Decisions are described only when they are read, so that queued ones
/// take little memory.
#[derive(Debug)]
pub(super) struct Watching {
    queue: mpsc::Receiver<Result<Seen, Status>>,
    admin: Arc<Admin>,
}

impl Stream for Watching {
    type Item = Result<WatchDecisionsResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(self.queue.poll_recv(context));
        Poll::Ready(next.map(|next| {
            next.map(|Seen { logged, skipped }| WatchDecisionsResponse {
                decision: Some(self.admin.decided(&logged)),
                skipped,
            })
        }))
    }
}

#[cfg(test)]
mod tests;
