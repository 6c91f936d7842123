//! How long a request may take.

use std::{pin::Pin, time::Duration};

use tokio::time::timeout;

use crate::clock::WindowClock;

/// From the headers of a request to its answer: a body may be slow, not endless. An answer may wait
/// as long for its sender to read it.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs a request to its end, for [`REQUEST_TIMEOUT`] at most. Time in which the process did not
/// run does not count: what was sent meanwhile waits in the socket, and the timer would fire before
/// it is read.
pub(crate) async fn in_time<T>(
    clock: &WindowClock,
    // Boxed: an answer that waits for its reader must not hold the room that receiving took.
    mut request: Pin<Box<impl Future<Output = T>>>,
) -> Option<T> {
    let (mut left, mut stalled) = (REQUEST_TIMEOUT, clock.stalled());
    loop {
        if let Ok(outcome) = timeout(left, request.as_mut()).await {
            return Some(outcome);
        }
        // A reading, so that a stall until just now is taken off.
        clock.now();
        left = clock.stalled() - stalled;
        stalled += left;
        if left.is_zero() {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::{Instant, advance, sleep};

    use super::*;

    /// Read ten times a second, as the decider does, from `after` on.
    fn clock_read_after(after: Duration) -> Arc<WindowClock> {
        let clock = Arc::new(WindowClock::start(Duration::from_millis(500)));
        let read = Arc::clone(&clock);
        tokio::spawn(async move {
            sleep(after).await;
            loop {
                read.now();
                sleep(Duration::from_millis(100)).await;
            }
        });
        clock
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_request_ends() {
        let clock = clock_read_after(Duration::ZERO);
        let began = Instant::now();
        assert_eq!(in_time(&clock, Box::pin(std::future::pending::<()>())).await, None);
        assert_eq!(began.elapsed().as_secs(), 30);
        let quick = sleep(Duration::from_secs(29));
        assert_eq!(in_time(&clock, Box::pin(quick)).await, Some(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_does_not_count() {
        let clock = clock_read_after(Duration::from_secs(40));
        let began = Instant::now();
        let slow = tokio::spawn({
            let clock = Arc::clone(&clock);
            async move { in_time(&clock, Box::pin(sleep(Duration::from_secs(65)))).await }
        });
        tokio::task::yield_now().await;
        advance(Duration::from_secs(40)).await;
        assert_eq!(slow.await.expect("no panic"), Some(()));
        assert_eq!(began.elapsed().as_secs(), 65);
    }
}
