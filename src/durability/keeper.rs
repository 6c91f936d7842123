//! Syncs the logs, with `mode = "power"`.
//!
//! The syncs run on a thread of their own, so that a slow disk blocks neither a runtime worker nor
//! the decider. A round syncs everything that was written before the round began. A writer
//! therefore waits until the next round has begun and ended, and one sync serves all requests of a
//! `sync_interval`.

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

/// Identifies the round that syncs everything that was written before the ticket was taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket(u64);

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
            // Counted before anything is synced: records that are written from now on need the next
            // round.
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
            if is_stopped {
                return;
            }
        }
    }

    /// Lets [`Self::run`] end.
    pub(crate) fn stop(&self) {
        *lock_of(&self.is_stopped) = true;
        self.stop.notify_all();
    }

    /// A ticket for the round that will sync everything written so far.
    pub(crate) fn ticket(&self) -> Ticket {
        Ticket(self.begun.load(SeqCst) + 1)
    }

    /// Whether the round of a ticket succeeded; `None` if it has not ended.
    pub(crate) fn outcome(&self, ticket: Ticket) -> Option<bool> {
        let ended = *self.ended.borrow();
        (ended.round >= ticket.0).then_some(ended.failed < ticket.0)
    }

    /// Waits for the round of a ticket. Returns whether it succeeded.
    pub(crate) async fn synced(&self, ticket: Ticket) -> bool {
        let mut ended = self.ended.subscribe();
        // This cannot fail: the sender lives as long as `self`.
        let _ = ended.wait_for(|ended| ended.round >= ticket.0).await;
        self.outcome(ticket).unwrap_or(false)
    }
}
