//! Bytes on their way in are charged as they arrive, frame by frame, not by what a header claims.
//!
//! What is being received may hold an eighth of the memory limit, or one message where that is
//! more; a frame beyond that ends its request with a retryable refusal. The charge lasts until the
//! request is answered.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::Refusal;
use crate::budget::{Budget, Hold, Holder};

/// The bytes that one request holds. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Charge {
    hold: Arc<Mutex<Hold>>,
    budget: Arc<Budget>,
    receiving_bytes_max: usize,
}

impl Charge {
    /// Holds nothing yet. `message_bytes_max` is the largest message that must be able to come in.
    pub(super) fn new(budget: &Arc<Budget>, message_bytes_max: usize) -> Self {
        Charge {
            hold: Arc::new(Mutex::new(budget.hold(Holder::Receiving, 0))),
            budget: Arc::clone(budget),
            receiving_bytes_max: (budget.limit() / 8).max(message_bytes_max),
        }
    }

    /// Holds more.
    ///
    /// # Errors
    /// [`Refusal::Memory`] at a limit.
    pub(super) fn grow(&self, bytes: usize) -> Result<(), Refusal> {
        let receiving = self.budget.held(Holder::Receiving);
        let mut hold = self.hold.lock().unwrap_or_else(PoisonError::into_inner);
        if receiving + bytes > self.receiving_bytes_max || !hold.try_grow(bytes) {
            return Err(Refusal::Memory);
        }
        Ok(())
    }
}

/// A request body whose frames are charged.
#[derive(Debug)]
pub(super) struct ChargedBody {
    body: Incoming,
    charge: Charge,
    /// Told of a refusal, since the layers above only see that the body failed.
    refused: Arc<Mutex<Option<Refusal>>>,
}

impl ChargedBody {
    pub(super) fn new(
        body: Incoming,
        charge: Charge,
        refused: Arc<Mutex<Option<Refusal>>>,
    ) -> Self {
        ChargedBody { body, charge, refused }
    }

    fn refuse(&self, refusal: Refusal) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
    }
}

impl Body for ChargedBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = match std::task::ready!(Pin::new(&mut self.body).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                self.refuse(Refusal::Abandoned);
                return Poll::Ready(Some(Err(error.into())));
            }
            None => return Poll::Ready(None),
        };
        if let Some(data) = frame.data_ref()
            && let Err(refusal) = self.charge.grow(data.len())
        {
            self.refuse(refusal.clone());
            return Poll::Ready(Some(Err(refusal.into())));
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
