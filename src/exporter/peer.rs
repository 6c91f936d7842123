//! The facts that the consumers of one backend learn together: the size of requests that it takes,
//! whether it is worth while to search for the span that it refuses, and which outage the log has
//! reported.
//!
//! Each of these is a hint that expires, so the consumers notice when the backend is replaced or
//! reconfigured. The lock is held for a few instructions, a few times per attempt.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::answer::{Cause, REQUEST_BYTES_MIN};
use crate::{clock, throttle::Throttle};

/// How long the learnt size limit is remembered. Then one request is sent whole again, to test the
/// limit.
const LIMIT_TTL: Duration = Duration::from_secs(600);
/// After this many refusals in a row, over all consumers, requests are no longer cut to find the
/// refused spans. Finding one among 16,000 takes 15 refusals.
pub(super) const REFUSALS_MAX: u32 = 64;
/// After that many refusals, requests are not cut for this long.
const REFUSAL_PAUSE: Duration = Duration::from_secs(30);
/// How long attempts must fail before the log says that the backend takes nothing.
const FAILING_MIN: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Peer {
    state: Mutex<State>,
    /// Limits lines about a backend that takes nothing.
    failing: Throttle,
    /// Limits lines about lost spans.
    lost: Throttle,
}

#[derive(Debug, Default)]
struct State {
    /// The size limit of the backend in bytes, and when it was learnt.
    limit: Option<(usize, Instant)>,
    /// Refusals after the last success, and when they became too many.
    refusals: u32,
    paused_at: Option<Instant>,
    /// Since when attempts fail.
    failing: Option<Failing>,
    standing: Option<Standing>,
}

/// The result of the last attempt to export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Why the backend took nothing; `None` if it took the request.
    pub(crate) error: Option<String>,
    /// Since when that is so, in Unix milliseconds.
    pub(crate) since: u64,
}

impl State {
    fn note(&mut self, error: Option<String>) {
        let is_failing = |standing: &&mut Standing| standing.error.is_some() == error.is_some();
        match self.standing.as_mut().filter(is_failing) {
            Some(standing) => standing.error = error,
            None => self.standing = Some(Standing { error, since: clock::unix_millis() }),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Failing {
    since: Instant,
    /// The cause that the log has named.
    said: Option<Cause>,
}

impl Peer {
    /// The largest request that should be sent whole.
    pub(super) fn limit(&self) -> usize {
        let learnt = self.lock().limit.filter(|(_, at)| at.elapsed() < LIMIT_TTL);
        learnt.map_or(usize::MAX, |(bytes, _)| bytes)
    }

    /// Notes that requests of more than `bytes` are too large, as [`SizeEvidence`] has shown.
    /// Returns the new size limit if it was not known.
    pub(super) fn learn(&self, bytes: usize) -> Option<usize> {
        let learnt = bytes.max(REQUEST_BYTES_MIN);
        let is_news = learnt < self.limit();
        if is_news {
            self.lock().limit = Some((learnt, Instant::now()));
        }
        is_news.then_some(learnt)
    }

    /// The result of the last attempt; `None` before the first.
    pub(super) fn standing(&self) -> Option<Standing> {
        self.lock().standing.clone()
    }

    /// Notes why an attempt sent nothing.
    pub(super) fn took_nothing(&self, error: String) {
        self.lock().note(Some(error));
    }

    /// Notes that the backend has taken a request of `request_bytes`. Returns for how long it had
    /// taken none, if the log has said so.
    pub(super) fn took(&self, request_bytes: usize) -> Option<Duration> {
        let mut state = self.lock();
        state.refusals = 0;
        state.note(None);
        // A larger request has been taken, so the limit is out of date.
        state.limit = state.limit.filter(|(limit, _)| request_bytes <= *limit);
        let failing = state.failing.take()?;
        failing.said.map(|_| failing.since.elapsed())
    }

    /// Notes an attempt that failed and will be repeated. Returns whether the log should say so:
    /// once for each cause until something is taken.
    pub(super) fn failed(&self, cause: Cause) -> bool {
        let mut state = self.lock();
        let since = Instant::now();
        let failing = state.failing.get_or_insert(Failing { since, said: None });
        // A single failed attempt is not logged: the retry handles it.
        if failing.said == Some(cause) || failing.since.elapsed() < FAILING_MIN {
            return false;
        }
        // If the throttle suppresses the line, one of the next attempts logs it.
        let may_be_said = self.failing.ask().is_some();
        if may_be_said {
            failing.said = Some(cause);
        }
        may_be_said
    }

    /// Notes that the backend has refused a request for its content.
    pub(super) fn refused(&self) {
        let mut state = self.lock();
        state.refusals = state.refusals.saturating_add(1);
        if state.refusals == REFUSALS_MAX {
            state.paused_at = Some(Instant::now());
        }
    }

    /// Whether to cut the requests that it refuses. A backend that refuses everything must not get
    /// every span in a request of its own.
    pub(super) fn takes_some(&self) -> bool {
        let mut state = self.lock();
        if state.paused_at.is_some_and(|at| at.elapsed() >= REFUSAL_PAUSE) {
            (state.refusals, state.paused_at) = (0, None);
        }
        state.refusals < REFUSALS_MAX
    }

    /// Notes how many spans of a request are lost, if any. Returns the number that the log should
    /// name now; the others are added to the next line.
    pub(super) fn lost(&self, spans: u64) -> Option<u64> {
        self.lost.add(spans)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No panic can happen here between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The evidence from the attempts of one delivery about the size limit of the backend.
///
/// A message such as "larger than max" may be about a whole request or about one span in it; only
/// the results of the parts show which. If the size decides, every refused part is larger than
/// every taken part, and all spans are taken in the end. A request with a bad span is refused down
/// to that span.
#[derive(Debug, Default)]
pub(super) struct SizeEvidence {
    /// The smallest part that was refused, and the limit that the backend named then.
    refused: Option<(usize, Option<usize>)>,
    /// The largest part that was taken.
    taken: usize,
    /// Whether a span was refused alone, which explains the refusals of all parts that held it.
    is_about_span: bool,
}

impl SizeEvidence {
    /// Notes that a part of `bytes` was too large; the backend may have named its limit.
    pub(super) fn refused(&mut self, bytes: usize, named: Option<usize>) {
        if self.refused.is_none_or(|(smallest, _)| bytes < smallest) {
            let named = named.or_else(|| self.refused.and_then(|(_, named)| named));
            self.refused = Some((bytes, named));
        }
    }

    /// Notes that a single span was too large.
    pub(super) fn refused_alone(&mut self) {
        self.is_about_span = true;
    }

    /// Notes that a part of `bytes` was taken.
    pub(super) fn taken(&mut self, bytes: usize) {
        self.taken = self.taken.max(bytes);
    }

    /// The largest part of this delivery that should be sent whole: the named limit, else half of
    /// the smallest refused part.
    pub(super) fn limit(&self) -> usize {
        let Some((refused, _)) = self.refused else { return usize::MAX };
        self.named().unwrap_or((refused / 2).max(self.taken)).max(REQUEST_BYTES_MIN)
    }

    /// The size limit of the backend, if the parts prove that there is one: the named limit, else
    /// the largest part taken.
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
        // A named limit of 4 MiB, one that is not named, and a backend that refuses everything.
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
        // The same holds if one part is larger than all others together.
        let mut evidence = SizeEvidence::default();
        evidence.refused(80_000, None);
        evidence.taken(5_000);
        evidence.refused(70_000, None);
        evidence.refused_alone();
        assert_eq!(evidence.proven_limit(), None);
    }

    #[test]
    fn the_last_attempt_tells_how_the_backend_is() {
        let peer = Peer::default();
        let error = || peer.standing().map(|standing| standing.error);
        assert_eq!(error(), None);
        peer.took(1);
        assert_eq!(error(), Some(None));
        let since = peer.standing().map(|standing| standing.since);
        peer.took(1);
        assert_eq!(peer.standing().map(|standing| standing.since), since);
        for said in ["UNAVAILABLE: gone", "DEADLINE_EXCEEDED: no answer in time"] {
            peer.took_nothing(said.to_owned());
            assert_eq!(error(), Some(Some(said.to_owned())));
        }
        peer.took(1);
        assert_eq!(error(), Some(None));
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
