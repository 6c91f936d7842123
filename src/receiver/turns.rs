//! Large requests take turns, and are worked on beside tokio's workers.
//!
//! To walk and buffer a request of a million spans takes half a second. Its worker can do nothing
//! else meanwhile, and the other workers may sleep through it: the one that found the request may
//! be the one that polls all sockets, and it wakes nobody for a single task. So the work is done on
//! a thread of its own, of which there are at most half as many as there are cores.

use std::{panic::resume_unwind, sync::Arc};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
};

use super::Refusal;
use crate::sampler::Ingested;

/// Turns of large requests.
#[derive(Debug)]
pub struct Turns {
    free: Arc<Semaphore>,
    count: u32,
}

/// The turn of one large request, until this is dropped.
pub(super) type Turn = OwnedSemaphorePermit;

impl Turns {
    /// Half as many as `cores`.
    pub fn new(cores: usize) -> Self {
        let count = u32::try_from(cores / 2).unwrap_or(u32::MAX).max(1);
        Turns { free: Arc::new(Semaphore::new(count as usize)), count }
    }

    /// Waits for a turn.
    pub(super) async fn take(&self) -> Turn {
        Arc::clone(&self.free).acquire_owned().await.expect("never closed")
    }

    /// Waits for all large requests that are worked on, whether or not their senders are gone.
    pub async fn finish(&self) {
        let _ = self.free.acquire_many(self.count).await;
    }
}

/// Does what is left to do for a request: a large one on a thread of its own. A panic goes on in
/// the caller, where the request is contained and the panic counted.
///
/// # Errors
/// Those of `work`; [`Refusal::Panicked`] where the runtime is shut down before.
pub(super) async fn work(
    is_large: bool,
    work: impl FnOnce() -> Result<Ingested, Refusal> + Send + 'static,
) -> Result<Ingested, Refusal> {
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
    use crate::supervise::Panicked;

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
            let panics = work(is_large, || panic!("a bug"));
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
