//! Charges the bytes of a request to the memory budget as they arrive, frame by frame, regardless
//! of the length that a header claims.
//!
//! All requests of at most 1 MiB together may hold an eighth of the memory limit. All larger
//! requests together may hold another eighth, or the memory that the largest message needs if that
//! is more: the body as received, the inflated body, the memory of the decoder, and the protobuf
//! made from JSON. A frame beyond these limits ends its request with a refusal. The refusal is
//! retryable, unless the request needs more than an empty window and an empty queue would leave for
//! it ([`Budget::never_fits`]). If the length is announced, the request is refused before its body
//! is read. The frames of a body are copied into one buffer, whose capacity is charged. The frames
//! themselves are not kept, because a frame of one byte holds far more memory than its length.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};

use super::Refusal;
use crate::{
    budget::{Budget, Hold, Holder},
    buffers::Buffers,
};

/// Requests larger than this take turns, and have a share of the memory of their own.
pub(super) const SMALL_BYTES_MAX: usize = 1 << 20;

/// The bytes that one request holds. Dropping it releases them.
#[derive(Debug)]
pub(super) struct Charge {
    hold: Hold,
    budget: Arc<Budget>,
    large_bytes_max: usize,
    /// Bytes that the same request holds in another charge.
    beside_bytes: usize,
}

impl Charge {
    /// A charge of zero bytes. `held_bytes_max` is the memory that the largest message needs; large
    /// requests may always hold that much.
    pub(super) fn new(budget: &Arc<Budget>, held_bytes_max: usize) -> Self {
        Charge {
            hold: budget.hold(Holder::Receiving, 0),
            budget: Arc::clone(budget),
            large_bytes_max: (budget.limit() / 8).max(held_bytes_max),
            beside_bytes: 0,
        }
    }

    /// Another charge of zero bytes for the same request.
    pub(super) fn another(&self) -> Self {
        let (hold, budget) = (self.budget.hold(Holder::Receiving, 0), Arc::clone(&self.budget));
        let (large_bytes_max, beside_bytes) = (self.large_bytes_max, self.hold.bytes());
        Charge { hold, budget, large_bytes_max, beside_bytes }
    }

    /// Checks whether a request that will need `bytes` can ever be taken.
    ///
    /// # Errors
    /// [`Refusal::NeverFits`].
    pub(super) fn expect(&self, bytes: usize) -> Result<(), Refusal> {
        if self.budget.never_fits(bytes) {
            return Err(Refusal::NeverFits { needed_bytes: bytes });
        }
        Ok(())
    }

    /// Charges more bytes.
    ///
    /// # Errors
    /// [`Refusal::Memory`] at a limit, [`Refusal::NeverFits`] where a retry cannot help.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Refusal> {
        let (holder, most) = if self.hold.bytes() + bytes > SMALL_BYTES_MAX {
            self.hold.pass_to(Holder::ReceivingLarge);
            (Holder::ReceivingLarge, self.large_bytes_max)
        } else {
            // The limit leaves room for a small request and its inflated form.
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
    /// The length of the whole body, as far as it is known.
    expected_bytes: usize,
    charge: Charge,
    buffers: Arc<Buffers>,
}

impl Receiving {
    /// A body of which nothing has arrived yet, and of which at most `bytes_max` bytes may arrive.
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

    /// Takes the announced length of the body. An uncompressed body exists twice while it is taken
    /// in, as a request and in the window; a compressed one exists at least once.
    ///
    /// # Errors
    /// [`Refusal::NeverFits`].
    pub(super) fn expect(&mut self, bytes: usize, is_compressed: bool) -> Result<(), Refusal> {
        self.expected_bytes = bytes;
        if bytes <= SMALL_BYTES_MAX {
            // This fits into the smallest memory limit that can be configured.
            return Ok(());
        }
        self.charge.expect(if is_compressed { bytes } else { bytes.saturating_mul(2) })
    }

    /// The length of the body, if its headers announce it.
    pub(super) fn announced_bytes(&self) -> Option<usize> {
        self.body.size_hint().exact().and_then(|exact| usize::try_from(exact).ok())
    }

    /// The bytes that have arrived so far.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Waits for the next frame. Returns false at the end of the body.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`], also for an announced length, [`Refusal::Memory`], and
    /// [`Refusal::Abandoned`].
    pub(super) async fn more(&mut self) -> Result<bool, Refusal> {
        let left = self.bytes_max - self.bytes.len();
        let too_large = Refusal::TooLarge { limit_bytes: self.bytes_max };
        if self.body.size_hint().lower() > left as u64 {
            return Err(too_large);
        }
        let Some(frame) = self.body.frame().await else { return Ok(false) };
        // Trailers carry nothing that is needed here.
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
            // The capacity doubles as bytes arrive, up to the expected length: a claim alone
            // allocates nothing.
            let grown = (2 * capacity).min(self.expected_bytes).max(needed);
            self.charge.grow(grown - capacity)?;
            self.bytes.reserve_exact(grown - self.bytes.len());
        }
        Ok(())
    }

    /// All bytes of the body, and their charge.
    pub(super) fn finish(self) -> (Bytes, Charge) {
        (self.buffers.lend(self.bytes), self.charge)
    }
}
