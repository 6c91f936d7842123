//! Large requests take turns, and run on threads of their own.
//!
//! Walking a request of a million spans and adding them to the window takes half a second. On a
//! tokio worker it would delay other requests, even while other workers are idle: the worker that
//! found the request may also be the one that polls all sockets, and tokio wakes no other worker
//! for a single task. So a large request runs on a thread of its own. There are at most half as
//! many such threads as cores.

use std::{panic::resume_unwind, sync::Arc};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
};

use super::Refusal;

/// The turns of large requests.
#[derive(Debug)]
pub(crate) struct Turns {
    free: Arc<Semaphore>,
    count: u32,
}

/// The turn of one large request. Dropping it ends the turn.
pub(super) type Turn = OwnedSemaphorePermit;

impl Turns {
    /// Half as many turns as `cores`, and at least one.
    pub(crate) fn new(cores: usize) -> Self {
        let count = u32::try_from(cores / 2).unwrap_or(u32::MAX).max(1);
        Turns { free: Arc::new(Semaphore::new(count as usize)), count }
    }

    /// Waits for a turn.
    pub(super) async fn take(&self) -> Turn {
        Arc::clone(&self.free).acquire_owned().await.expect("never closed")
    }

    /// Waits until no large request is being worked on, including those whose senders have left.
    pub(crate) async fn finish(&self) {
        let _ = self.free.acquire_many(self.count).await;
    }
}

/// Runs `work` for a request; on a thread of its own if the request is large. A panic is passed on
/// to the caller, which contains and counts it.
///
/// # Errors
/// The errors of `work`; [`Refusal::Panicked`] if the runtime shuts down first.
pub(super) async fn work<T: Send + 'static>(
    is_large: bool,
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    if !is_large {
        return work();
    }
    match spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(_cancelled) => Err(Refusal::Panicked),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use super::*;
    use crate::{sampler::Ingested, supervise::Panicked};

    #[tokio::test]
    async fn only_large_requests_leave_their_worker() {
        let worker = thread::current().id();
        let is_here = move || {
            let accepted = u64::from(thread::current().id() == worker);
            Ok(Ingested { accepted, ..Ingested::default() })
        };
        let here = work(false, is_here).await.expect("done");
        let there = work(true, is_here).await.expect("done");
        assert_eq!((here.accepted, there.accepted), (1, 0));
        for is_large in [false, true] {
            let panics = work::<Ingested>(is_large, || panic!("a bug"));
            assert_eq!(crate::supervise::contained(panics).await, Err(Panicked));
        }
    }

    #[tokio::test]
    async fn a_turn_outlives_the_sender() {
        let turns = Turns::new(2);
        let turn = turns.take().await;
        let (go_on, until) = std::sync::mpsc::sync_channel(1);
        let abandoned = tokio::spawn(work(true, move || {
            until.recv().expect("told to go on");
            drop(turn);
            Ok(Ingested::default())
        }));
        tokio::task::yield_now().await;
        abandoned.abort();
        let early = tokio::time::timeout(Duration::ZERO, turns.finish()).await;
        assert!(early.is_err(), "it is worked on still");
        go_on.send(()).expect("it waits");
        turns.finish().await;
    }
}
