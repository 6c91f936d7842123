//! Syncs the logs, with `mode = "power"`.
//!
//! The syncs run on a thread of their own, so that a slow disk blocks neither a runtime worker nor
//! the decider. A round syncs everything that was written before the round began. A writer
//! therefore waits until the next round has begun and ended, and one sync serves all requests of a
//! `sync_interval`.
//!
//! A sync that fails may lose anything that was written before it ended, and no later sync brings
//! it back. A writer therefore also needs to know that no round has failed since before its write:
//! a [`Ticket`] covers all rounds from then on.

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::{Durability, lock_of};
use crate::{clock::Clock, metrics::Metrics};

/// Runs the rounds of syncs, and tells writers when their round has ended.
#[derive(Debug)]
pub(crate) struct Keeper {
    durability: Arc<Durability>,
    metrics: Arc<Metrics>,
    interval: Duration,
    begun: AtomicU64,
    ended: watch::Sender<Ended>,
    is_stopped: Mutex<bool>,
    stop: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct Ended {
    round: u64,
    /// The last round in which a sync failed.
    failed: u64,
}

/// The first round whose failure would affect later writes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Since(u64);

/// The rounds that must succeed so that something that was written is on disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    since: Since,
    /// The round that syncs it.
    round: u64,
}

impl Keeper {
    /// A keeper whose rounds are `interval` apart.
    pub(crate) fn new(
        durability: &Arc<Durability>,
        metrics: &Arc<Metrics>,
        interval: Duration,
    ) -> Self {
        Keeper {
            durability: Arc::clone(durability),
            metrics: Arc::clone(metrics),
            interval,
            begun: AtomicU64::new(0),
            ended: watch::channel(Ended::default()).0,
            is_stopped: Mutex::new(false),
            stop: Condvar::new(),
        }
    }

    /// Syncs until it is told to stop, and once more then.
    pub(crate) fn run(&self) {
        let clock = Clock::start();
        loop {
            let stopped = lock_of(&self.is_stopped);
            let waited = self.stop.wait_timeout_while(stopped, self.interval, |stopped| !*stopped);
            let is_stopped = waited.is_ok_and(|(stopped, _)| *stopped);
            self.round(&clock);
            if is_stopped {
                return;
            }
        }
    }

    pub(super) fn round(&self, clock: &Clock) {
        // Counted before anything is synced: later writes need the next round.
        let round = self.begun.fetch_add(1, SeqCst) + 1;
        let began = clock.elapsed();
        let outcome = self.durability.sync();
        if let Ok(true) = outcome {
            self.metrics.synced(clock.elapsed() - began);
        }
        self.ended.send_modify(|ended| {
            ended.round = round;
            ended.failed = if outcome.is_err() { round } else { ended.failed };
        });
    }

    /// Lets [`Self::run`] end.
    pub(crate) fn stop(&self) {
        *lock_of(&self.is_stopped) = true;
        self.stop.notify_all();
    }

    /// Called before something is written, for [`Self::ticket`].
    pub(crate) fn since(&self) -> Since {
        Since(self.ended.borrow().round + 1)
    }

    /// A ticket for the writes since then.
    pub(crate) fn ticket(&self, since: Since) -> Ticket {
        Ticket { since, round: self.begun.load(SeqCst) + 1 }
    }

    /// Whether the rounds of a ticket succeeded; `None` if the last has not ended.
    pub(crate) fn outcome(&self, ticket: Ticket) -> Option<bool> {
        let ended = *self.ended.borrow();
        (ended.round >= ticket.round).then_some(ended.failed < ticket.since.0)
    }

    /// Waits for the rounds of a ticket. Returns whether they succeeded.
    pub(crate) async fn synced(&self, ticket: Ticket) -> bool {
        let mut ended = self.ended.subscribe();
        // This cannot fail: the sender lives as long as `self`.
        let _ = ended.wait_for(|ended| ended.round >= ticket.round).await;
        self.outcome(ticket).unwrap_or(false)
    }
}
