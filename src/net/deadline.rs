//! The time limit of a request.

use std::{pin::Pin, time::Duration};

use tokio::time::timeout;

use crate::clock::WindowClock;

/// The time limit from the headers of a request to its answer. An answer may wait for its reader
/// just as long.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs a request to its end, for [`REQUEST_TIMEOUT`] at most. Time in which the process did not
/// run does not count: bytes that arrive in that time wait in the socket, and the timer would fire
/// before they are read.
pub(crate) async fn in_time<T>(
    clock: &WindowClock,
    // Boxed, so that an answer that waits for its reader does not hold the memory of the receiving
    // future.
    mut request: Pin<Box<impl Future<Output = T>>>,
) -> Option<T> {
    let (mut left, mut stalled) = (REQUEST_TIMEOUT, clock.stalled());
    loop {
        if let Ok(outcome) = timeout(left, request.as_mut()).await {
            return Some(outcome);
        }
        // Reads the clock, so that a stall that has just ended is subtracted.
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

    /// A clock that is read ten times a second, as the decider reads it, from `after` on.
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
