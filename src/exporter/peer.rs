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

use super::answer::{Cause, REQUEST_BYTES_MIN};
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
    /// What the log has said about it.
    said: Option<Cause>,
}

impl Peer {
    /// The largest request that should be sent whole.
    pub(super) fn limit(&self) -> usize {
        let learnt = self.lock().limit.filter(|(_, at)| at.elapsed() < LIMIT_TTL);
        learnt.map_or(usize::MAX, |(bytes, _)| bytes)
    }

    /// Requests of more than `bytes` are too large, as [`SizeEvidence`] has shown. Returns what is
    /// larger than requests should be from now on, if that is news.
    pub(super) fn learn(&self, bytes: usize) -> Option<usize> {
        let learnt = bytes.max(REQUEST_BYTES_MIN);
        let is_news = learnt < self.limit();
        if is_news {
            self.lock().limit = Some((learnt, Instant::now()));
        }
        is_news.then_some(learnt)
    }

    /// It has taken a request of so many bytes. Returns for how long it had taken none, if the log
    /// has said so.
    pub(super) fn took(&self, request_bytes: usize) -> Option<Duration> {
        let mut state = self.lock();
        state.refusals = 0;
        // The limit is no longer what it was.
        state.limit = state.limit.filter(|(limit, _)| request_bytes <= *limit);
        let failing = state.failing.take()?;
        failing.said.map(|_| failing.since.elapsed())
    }

    /// An attempt failed and will be made again. Returns whether the log should say so: once for
    /// each cause, as long as nothing is taken.
    pub(super) fn failed(&self, cause: Cause) -> bool {
        let mut state = self.lock();
        let since = Instant::now();
        let failing = state.failing.get_or_insert(Failing { since, said: None });
        // An attempt that fails now and then is no news; retrying is there for it.
        if failing.said == Some(cause) || failing.since.elapsed() < FAILING_MIN {
            return false;
        }
        // Where the throttle does not let it, one of the next attempts says it.
        let may_be_said = self.failing.ask().is_some();
        if may_be_said {
            failing.said = Some(cause);
        }
        may_be_said
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

/// What the attempts of one delivery tell about the size that the backend takes.
///
/// Words such as "larger than max" may be about a whole request or about one span in it, and only
/// the parts tell: where size decides, every part that is refused is larger than every part that is
/// taken, and all spans are taken in the end. A request that holds a bad span is refused down to
/// that span.
#[derive(Debug, Default)]
pub(super) struct SizeEvidence {
    /// The smallest part that was refused, and what the backend then named as its limit.
    refused: Option<(usize, Option<usize>)>,
    /// The largest part that was taken.
    taken: usize,
    /// Whether a span was refused alone, which explains the refusal of every part that held it.
    is_about_span: bool,
}

impl SizeEvidence {
    /// A part of so many bytes was too large; the backend may have named its limit.
    pub(super) fn refused(&mut self, bytes: usize, named: Option<usize>) {
        if self.refused.is_none_or(|(smallest, _)| bytes < smallest) {
            let named = named.or_else(|| self.refused.and_then(|(_, named)| named));
            self.refused = Some((bytes, named));
        }
    }

    /// A span was too large by itself.
    pub(super) fn refused_alone(&mut self) {
        self.is_about_span = true;
    }

    /// A part of so many bytes was taken.
    pub(super) fn taken(&mut self, bytes: usize) {
        self.taken = self.taken.max(bytes);
    }

    /// The largest part of this delivery that should be sent whole: what was named, else half of
    /// what was refused.
    pub(super) fn limit(&self) -> usize {
        let Some((refused, _)) = self.refused else { return usize::MAX };
        self.named().unwrap_or((refused / 2).max(self.taken)).max(REQUEST_BYTES_MIN)
    }

    /// The most that the backend takes, where the parts show that there is such a limit: what was
    /// named, else what was taken.
    pub(super) fn proven_limit(&self) -> Option<usize> {
        let (refused, _) = self.refused?;
        let is_proven = !self.is_about_span && self.taken > 0 && self.taken < refused;
        is_proven.then(|| self.named().unwrap_or(self.taken))
    }

    /// The limit that the backend named, unless the parts contradict it.
    fn named(&self) -> Option<usize> {
        let (refused, named) = self.refused?;
        let named = named.filter(|named| (self.taken..refused).contains(named))?;
        // A proxy in between may count a little more than the message.
        Some((named - named / 64).max(self.taken))
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
        assert_eq!(peer.learn(2 * MIB), Some(2 * MIB));
        assert_eq!(peer.learn(4 * MIB), None);
        assert_eq!(peer.learn(MIB), Some(MIB));
        assert_eq!(peer.learn(100), Some(REQUEST_BYTES_MIN));
        assert_eq!(peer.limit(), REQUEST_BYTES_MIN);
        tokio::time::advance(LIMIT_TTL).await;
        assert_eq!(peer.limit(), usize::MAX);
        peer.learn(MIB);
        peer.took(MIB);
        assert_eq!(peer.limit(), MIB);
        peer.took(MIB + 1);
        assert_eq!(peer.limit(), usize::MAX, "it takes more than that");
    }

    #[test]
    fn a_limit_is_proven_by_parts_that_are_taken() {
        // A limit of 4 MiB that is named, one that is not, and a backend that refuses everything.
        let mut named = SizeEvidence::default();
        assert_eq!((named.limit(), named.proven_limit()), (usize::MAX, None));
        named.refused(10 * MIB, Some(4 * MIB));
        let a_little_less = 4 * MIB - MIB / 16;
        assert_eq!((named.limit(), named.proven_limit()), (a_little_less, None));
        named.taken(3 * MIB);
        assert_eq!(named.proven_limit(), Some(a_little_less));
        named.taken(4 * MIB);
        assert_eq!((named.limit(), named.proven_limit()), (4 * MIB, Some(4 * MIB)));
        let mut silent = SizeEvidence::default();
        silent.refused(10 * MIB, None);
        assert_eq!(silent.limit(), 5 * MIB);
        silent.refused(5 * MIB, None);
        silent.taken(2 * MIB);
        assert_eq!((silent.limit(), silent.proven_limit()), (5 * MIB / 2, Some(2 * MIB)));
        silent.taken(3 * MIB);
        assert_eq!((silent.limit(), silent.proven_limit()), (3 * MIB, Some(3 * MIB)));
        let mut nothing = SizeEvidence::default();
        nothing.refused(200, None);
        assert_eq!((nothing.limit(), nothing.proven_limit()), (REQUEST_BYTES_MIN, None));
    }

    #[test]
    fn one_bad_span_proves_no_limit() {
        for named in [None, Some(70_000)] {
            let mut evidence = SizeEvidence::default();
            evidence.refused(2 * MIB, named);
            evidence.taken(60_000);
            evidence.refused(61_000, None);
            evidence.taken(30_000);
            evidence.refused(500, None);
            assert_eq!(evidence.proven_limit(), None);
        }
        // Also where it is larger than all others together.
        let mut evidence = SizeEvidence::default();
        evidence.refused(80_000, None);
        evidence.taken(5_000);
        evidence.refused(70_000, None);
        evidence.refused_alone();
        assert_eq!(evidence.proven_limit(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_refuses_all_is_left_alone_for_a_while() {
        let peer = Peer::default();
        let refuse = || (0..REFUSALS_MAX).for_each(|_| peer.refused());
        refuse();
        assert!(!peer.takes_some());
        assert_eq!(peer.took(1), None);
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
        let down = Cause::Unavailable;
        assert!(!peer.failed(down));
        tokio::time::advance(FAILING_MIN).await;
        assert!(peer.failed(down) && !peer.failed(down));
        assert!(!peer.failed(Cause::Credentials), "ten seconds have not passed");
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(!peer.failed(down) && peer.failed(Cause::Credentials), "another cause is news");
        assert_eq!(peer.took(1), Some(FAILING_MIN + Duration::from_secs(10)));
        assert_eq!((peer.lost(0), peer.lost(1), peer.lost(2)), (None, Some(1), None));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!((peer.lost(0), peer.lost(0)), (Some(2), None));
    }
}
