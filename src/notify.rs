//! Tells systemd the state of the service (`Type=notify`), and feeds its watchdog.
//!
//! `main` calls this. Without `NOTIFY_SOCKET` in the environment, it sends nothing. A message that
//! cannot be sent is logged; systemd then ends the service by its own time limits.
//!
//! A timer alone would also feed the watchdog of a service that no longer decides. So the timer
//! checks whether the decider has made a round over its shards since the previous check. The
//! decider makes a round every 100 ms, with or without traces, and also while the backend is down
//! and the queue is full. It completes a round only if the runtime, the locks of the shards and the
//! decider work.

use std::{io, time::Duration};

use sd_notify::NotifyState;
use tracing::warn;

/// The number of checks within the time after which systemd ends the service: more than two, so
/// that one late check, or one without progress, does not end the service.
const LOOKS: u32 = 4;

/// The time, in addition to `shutdown_timeout`, for the last log lines and the end of the runtime.
const AFTER_SHUTDOWN: Duration = Duration::from_secs(5);

/// Tells systemd that the service is ready.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Tells systemd that the service is reloading its policies. The caller calls [`ready`] afterwards.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(problem) => failed(&problem),
    }
}

/// Tells systemd that the service is shutting down, and that this may take `shutdown_timeout`,
/// regardless of `TimeoutStopSec`.
pub fn stopping(shutdown_timeout: Duration) {
    let micros = (shutdown_timeout + AFTER_SHUTDOWN).as_micros();
    let micros = u32::try_from(micros).unwrap_or(u32::MAX);
    tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)]);
}

/// Feeds the watchdog of systemd, if it has one, for as long as `progress` changes. Does not end.
pub async fn feed_watchdog(progress: impl Fn() -> u64) {
    match sd_notify::watchdog_enabled() {
        Some(limit) => feed(limit, progress, || tell(&[NotifyState::Watchdog])).await,
        None => std::future::pending().await,
    }
}

async fn feed(limit: Duration, progress: impl Fn() -> u64, tell: impl Fn()) {
    // A timer with an interval of zero would panic.
    let mut looks = tokio::time::interval((limit / LOOKS).max(Duration::from_millis(1)));
    let mut seen = None;
    loop {
        looks.tick().await;
        let now = Some(progress());
        if now != seen {
            tell();
        }
        seen = now;
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(problem) = sd_notify::notify(states) {
        failed(&problem);
    }
}

fn failed(problem: &io::Error) {
    warn!(
        %problem,
        "cannot notify systemd, which may restart the service. Check NotifyAccess of the unit"
    );
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::time::{Instant, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_by_progress_alone() {
        let began = Instant::now();
        let fed = Cell::new(0);
        // The decider makes rounds for 30 s, and then stops.
        let progress = || began.elapsed().as_secs().min(30);
        let feeding = feed(Duration::from_secs(8), progress, || fed.set(fed.get() + 1));
        assert!(timeout(Duration::from_secs(100), feeding).await.is_err());
        assert_eq!(fed.get(), 16, "at the start, and every 2 s of those 30");
    }
}
