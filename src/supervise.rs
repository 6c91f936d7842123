//! Containing panics: a bug costs what it was doing, is counted, and the task goes on.

use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
};

/// The future panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("panicked")]
pub struct Panicked;

/// Runs a future and contains a panic in it.
///
/// # Errors
/// [`Panicked`]; the panic hook has already printed where.
pub async fn contained<F: Future>(future: F) -> Result<F::Output, Panicked> {
    let mut future = pin!(future);
    poll_fn(|context| {
        // The future is never polled again after a panic, so nothing sees what it left half done
        // but what it borrowed, which its owners keep usable.
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(_) => Poll::Ready(Err(Panicked)),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_outcome() {
        assert_eq!(
            contained(async { panic!("contained on purpose") }).await,
            Err::<(), _>(Panicked)
        );
        assert_eq!(contained(async { 1 }).await, Ok(1));
    }
}
