//! Bytes on their way in are charged as they arrive, frame by frame, not by what a header claims.
//!
//! Requests of at most 1 MiB may hold an eighth of the memory limit together. Larger ones may hold
//! as much again, or what the largest message needs where that is more: as it came, inflated, what
//! a decoder holds, and turned from JSON into protobuf. A frame beyond that ends its request with a
//! refusal: a retryable one, unless the request needs more than would be left for it with an empty
//! window and queue ([`Budget::never_fits`]). Where its length is announced, that is found before
//! the body is read. Frames are copied into one buffer as they come, whose capacity is charged:
//! kept as they are, a frame of one byte would hold many more than it is charged for.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};

use super::Refusal;
use crate::{
    budget::{Budget, Hold, Holder},
    buffers::Buffers,
};

/// Larger requests leave room to others, and take turns.
pub(super) const SMALL_BYTES_MAX: usize = 1 << 20;

/// The bytes that one request holds, until this is dropped.
#[derive(Debug)]
pub(super) struct Charge {
    hold: Hold,
    budget: Arc<Budget>,
    large_bytes_max: usize,
    /// What the same request holds apart.
    beside_bytes: usize,
}

impl Charge {
    /// Holds nothing yet. `held_bytes_max` is what the largest message, which must be able to come
    /// in, makes the service hold.
    pub(super) fn new(budget: &Arc<Budget>, held_bytes_max: usize) -> Self {
        Charge {
            hold: budget.hold(Holder::Receiving, 0),
            budget: Arc::clone(budget),
            large_bytes_max: (budget.limit() / 8).max(held_bytes_max),
            beside_bytes: 0,
        }
    }

    /// One more of the same request, which holds nothing yet.
    pub(super) fn another(&self) -> Self {
        let (hold, budget) = (self.budget.hold(Holder::Receiving, 0), Arc::clone(&self.budget));
        let (large_bytes_max, beside_bytes) = (self.large_bytes_max, self.hold.bytes());
        Charge { hold, budget, large_bytes_max, beside_bytes }
    }

    /// Whether a request that will need so many bytes can ever be taken.
    ///
    /// # Errors
    /// [`Refusal::NeverFits`].
    pub(super) fn expect(&self, bytes: usize) -> Result<(), Refusal> {
        if self.budget.never_fits(bytes) {
            return Err(Refusal::NeverFits { needed_bytes: bytes });
        }
        Ok(())
    }

    /// Holds more.
    ///
    /// # Errors
    /// [`Refusal::Memory`] at a limit, [`Refusal::NeverFits`] where it is no use to try again.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Refusal> {
        let (holder, most) = if self.hold.bytes() + bytes > SMALL_BYTES_MAX {
            self.hold.pass_to(Holder::ReceivingLarge);
            (Holder::ReceivingLarge, self.large_bytes_max)
        } else {
            // A small one and what it inflates to must fit.
            (Holder::Receiving, (self.budget.limit() / 8).max(2 * SMALL_BYTES_MAX))
        };
        if self.budget.held(holder) + bytes > most || !self.hold.try_grow(bytes) {
            self.expect(self.beside_bytes + self.hold.bytes() + bytes)?;
            return Err(Refusal::Memory);
        }
        Ok(())
    }
}

/// A body that is being received.
#[derive(Debug)]
pub(super) struct Receiving {
    body: Incoming,
    bytes: Vec<u8>,
    bytes_max: usize,
    /// How long it will be, as far as that is known.
    expected_bytes: usize,
    charge: Charge,
    buffers: Arc<Buffers>,
}

impl Receiving {
    /// Nothing has been received yet; at most `bytes_max` will be.
    pub(super) fn new(
        body: Incoming,
        bytes_max: usize,
        charge: Charge,
        buffers: &Arc<Buffers>,
    ) -> Self {
        let expected = body.size_hint().exact().and_then(|exact| usize::try_from(exact).ok());
        let expected_bytes = expected.unwrap_or(bytes_max);
        let (bytes, buffers) = (Vec::new(), Arc::clone(buffers));
        Receiving { body, bytes, bytes_max, expected_bytes, charge, buffers }
    }

    /// The body says that it will be so long. What is not compressed is there twice once it is
    /// taken in, as a request and in the window; what is compressed, at least once.
    ///
    /// # Errors
    /// [`Refusal::NeverFits`].
    pub(super) fn expect(&mut self, bytes: usize, is_compressed: bool) -> Result<(), Refusal> {
        self.expected_bytes = bytes;
        if bytes <= SMALL_BYTES_MAX {
            // Fits into the smallest limit that can be configured.
            return Ok(());
        }
        self.charge.expect(if is_compressed { bytes } else { bytes.saturating_mul(2) })
    }

    /// How long it will be, where its headers say so.
    pub(super) fn announced_bytes(&self) -> Option<usize> {
        self.body.size_hint().exact().and_then(|exact| usize::try_from(exact).ok())
    }

    /// What has arrived so far.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Waits for the next frame; false once there is none.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`], also by the length that is announced, [`Refusal::Memory`], and
    /// [`Refusal::Abandoned`].
    pub(super) async fn more(&mut self) -> Result<bool, Refusal> {
        let left = self.bytes_max - self.bytes.len();
        let too_large = Refusal::TooLarge { limit_bytes: self.bytes_max };
        if self.body.size_hint().lower() > left as u64 {
            return Err(too_large);
        }
        let Some(frame) = self.body.frame().await else { return Ok(false) };
        // Trailers say nothing that is asked here.
        let Ok(data) = frame.map_err(|_| Refusal::Abandoned)?.into_data() else { return Ok(true) };
        if data.len() > left {
            return Err(too_large);
        }
        self.make_room(data.len())?;
        self.bytes.extend_from_slice(&data);
        Ok(true)
    }

    fn make_room(&mut self, bytes: usize) -> Result<(), Refusal> {
        let (needed, capacity) = (self.bytes.len() + bytes, self.bytes.capacity());
        if needed > capacity {
            if let Some(mut spare) = self.buffers.take(self.expected_bytes.max(needed)) {
                self.charge.grow(spare.capacity() - capacity)?;
                spare.extend_from_slice(&self.bytes);
                self.bytes = spare;
                return Ok(());
            }
            // Doubled, but for no more than is to come: a claim alone takes nothing.
            let grown = (2 * capacity).min(self.expected_bytes).max(needed);
            self.charge.grow(grown - capacity)?;
            self.bytes.reserve_exact(grown - self.bytes.len());
        }
        Ok(())
    }

    /// Everything that arrived, and what it holds.
    pub(super) fn finish(self) -> (Bytes, Charge) {
        (self.buffers.lend(self.bytes), self.charge)
    }
}
