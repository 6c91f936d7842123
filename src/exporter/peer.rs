//! What the consumers of one backend learn about it together: how large a request may be, whether
//! looking for a span that it refuses is of any use, and what has been said about it in the log.
//!
//! All of it is a hint that wears off, so that a backend that was replaced, or configured anew,
//! is found out without being asked about. Locked for a few instructions, a few times an attempt.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::answer::REQUEST_BYTES_MIN;
use crate::throttle::Throttle;

/// How long the largest request that the backend takes is remembered. Then one request goes out
/// whole again, to find out.
const LIMIT_TTL: Duration = Duration::from_secs(600);
/// Refusals in a row, over all consumers, after which requests are no longer cut in search of the
/// spans that are refused: to find one among 16,000 takes 15.
pub(super) const REFUSALS_MAX: u32 = 64;
/// And for how long.
const REFUSAL_PAUSE: Duration = Duration::from_secs(30);
/// Before it is said that the backend does not take anything.
const FAILING_MIN: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Peer {
    state: Mutex<State>,
    /// Lines about a backend that does not answer.
    failing: Throttle,
    /// Lines about lost spans.
    lost: Throttle,
}

#[derive(Debug, Default)]
struct State {
    /// The most bytes that it takes, and when that was learnt.
    limit: Option<(usize, Instant)>,
    /// Refusals since something was taken, and when they were too many.
    refusals: u32,
    paused_at: Option<Instant>,
    /// Since when attempts fail.
    failing: Option<Failing>,
}

#[derive(Clone, Copy, Debug)]
struct Failing {
    since: Instant,
    is_said: bool,
}

impl Peer {
    /// The largest request that should be sent whole.
    pub(super) fn limit(&self) -> usize {
        let learnt = self.lock().limit.filter(|(_, at)| at.elapsed() < LIMIT_TTL);
        learnt.map_or(usize::MAX, |(bytes, _)| bytes)
    }

    /// A request of `request_bytes` was too large; the backend may have named its limit. Returns
    /// what is larger than requests should be from now on, if that is news.
    pub(super) fn too_large(&self, request_bytes: usize, named: Option<usize>) -> Option<usize> {
        // A proxy in between may count a little more than the message.
        let named = named.map(|bytes| bytes - bytes / 64);
        let learnt = named.unwrap_or(request_bytes / 2).max(REQUEST_BYTES_MIN);
        let is_news = learnt < self.limit();
        if is_news {
            self.lock().limit = Some((learnt, Instant::now()));
        }
        is_news.then_some(learnt)
    }

    /// It has taken something. Returns for how long it had not, if the log has said so.
    pub(super) fn took(&self) -> Option<Duration> {
        let mut state = self.lock();
        state.refusals = 0;
        let failing = state.failing.take()?;
        failing.is_said.then(|| failing.since.elapsed())
    }

    /// An attempt failed and will be made again. Returns whether the log should say so: once for
    /// as long as nothing is taken.
    pub(super) fn failed(&self) -> bool {
        let mut state = self.lock();
        let since = Instant::now();
        let failing = state.failing.get_or_insert(Failing { since, is_said: false });
        // An attempt that fails now and then is no news; retrying is there for it.
        if failing.is_said || failing.since.elapsed() < FAILING_MIN {
            return false;
        }
        failing.is_said = true;
        self.failing.ask().is_some()
    }

    /// It has refused a request for what is in it.
    pub(super) fn refused(&self) {
        let mut state = self.lock();
        state.refusals = state.refusals.saturating_add(1);
        if state.refusals == REFUSALS_MAX {
            state.paused_at = Some(Instant::now());
        }
    }

    /// Whether to cut what it refuses. A backend that refuses everything must not get every span
    /// on its own.
    pub(super) fn takes_some(&self) -> bool {
        let mut state = self.lock();
        if state.paused_at.is_some_and(|at| at.elapsed() >= REFUSAL_PAUSE) {
            (state.refusals, state.paused_at) = (0, None);
        }
        state.refusals < REFUSALS_MAX
    }

    /// So many spans of a request are lost, or none. Returns how many are to be mentioned in a line
    /// of the log now; those that are not are part of the next one.
    pub(super) fn lost(&self, spans: u64) -> Option<u64> {
        self.lost.add(spans)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[tokio::test(start_paused = true)]
    async fn the_limit_is_learnt_only_downwards_and_forgotten() {
        let peer = Peer::default();
        assert_eq!(peer.limit(), usize::MAX);
        assert_eq!(peer.too_large(3 * MIB, Some(2 * MIB)), Some(2 * MIB - MIB / 32));
        assert_eq!(peer.too_large(3 * MIB, Some(4 * MIB)), None);
        assert_eq!(peer.too_large(MIB, None), Some(MIB / 2));
        assert_eq!(peer.too_large(100, None), Some(REQUEST_BYTES_MIN));
        assert_eq!(peer.limit(), REQUEST_BYTES_MIN);
        tokio::time::advance(LIMIT_TTL).await;
        assert_eq!(peer.limit(), usize::MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_refuses_all_is_left_alone_for_a_while() {
        let peer = Peer::default();
        let refuse = || (0..REFUSALS_MAX).for_each(|_| peer.refused());
        refuse();
        assert!(!peer.takes_some());
        assert_eq!(peer.took(), None);
        assert!(peer.takes_some());
        refuse();
        tokio::time::advance(REFUSAL_PAUSE / 2).await;
        peer.refused();
        assert!(!peer.takes_some());
        tokio::time::advance(REFUSAL_PAUSE / 2).await;
        assert!(peer.takes_some(), "refusals in the meantime do not prolong it");
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_said_once_and_losses_every_ten_seconds() {
        let peer = Peer::default();
        assert!(!peer.failed());
        tokio::time::advance(FAILING_MIN).await;
        assert!(peer.failed() && !peer.failed());
        assert_eq!(peer.took(), Some(FAILING_MIN));
        assert_eq!((peer.lost(0), peer.lost(1), peer.lost(2)), (None, Some(1), None));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!((peer.lost(0), peer.lost(0)), (Some(2), None));
    }
}
