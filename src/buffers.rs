//! Reusable buffers in which requests are assembled on their way in and out.
//!
//! Without them, a request of some hundred KiB would be copied from one larger buffer to the next,
//! into pages that the kernel has to clear first. A few buffers wait for the next request. A buffer
//! in use is charged with its whole capacity. Waiting buffers are not charged to the budget, so
//! there must be only a few.

use std::{
    ops::RangeInclusive,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;

/// A pool of reusable buffers.
#[derive(Debug)]
pub(crate) struct Buffers {
    spare: Mutex<Vec<Vec<u8>>>,
    capacities: RangeInclusive<usize>,
    count_max: usize,
}

impl Buffers {
    /// A pool of at most `count_max` buffers with a capacity in this range. Smaller buffers are
    /// quick to allocate, and larger ones take too much memory to keep.
    pub(crate) fn new(capacities: RangeInclusive<usize>, count_max: usize) -> Arc<Self> {
        Arc::new(Buffers { spare: Mutex::default(), capacities, count_max })
    }

    /// An empty buffer for this many bytes, if a spare one fits: large enough, but at most twice as
    /// large.
    pub(crate) fn take(&self, bytes: usize) -> Option<Vec<u8>> {
        // No spare buffer can fit, so small requests do not compete for the lock.
        if !(self.capacities.start() / 2..=*self.capacities.end()).contains(&bytes) {
            return None;
        }
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |buffer: &Vec<u8>| (bytes..=2 * bytes).contains(&buffer.capacity());
        // The buffer that was returned last, most of which is still in the cache.
        let index = spare.iter().rposition(fits)?;
        Some(spare.remove(index))
    }

    /// The bytes of a buffer that returns to this pool when they are dropped.
    pub(crate) fn lend(self: &Arc<Self>, buffer: Vec<u8>) -> Bytes {
        if self.capacities.contains(&buffer.capacity()) {
            Bytes::from_owner(Lent { buffer, home: Arc::clone(self) })
        } else {
            buffer.into()
        }
    }
}

struct Lent {
    buffer: Vec<u8>,
    home: Arc<Buffers>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let mut spare = self.home.spare.lock().unwrap_or_else(PoisonError::into_inner);
        // The oldest buffers are removed first, so sizes that are no longer used do not stay.
        if spare.len() >= self.home.count_max {
            spare.remove(0);
        }
        spare.push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_and_is_taken_where_it_fits() {
        let buffers = Buffers::new(50_000..=1_000_000, 2);
        let lend = |capacity| drop(buffers.lend(Vec::with_capacity(capacity)));
        lend(100_000);
        assert_eq!(buffers.take(100_001), None);
        assert_eq!(buffers.take(49_999), None);
        let mut taken = buffers.take(50_000).expect("fits");
        assert!(taken.is_empty() && buffers.take(50_000).is_none());
        taken.push(7);
        let bytes = buffers.lend(taken);
        let part = bytes.slice(..);
        drop(bytes);
        assert!(buffers.take(100_000).is_none() && part[..] == [7]);
        drop(part);
        for capacity in [1_000, 2_000_000, 200_000, 300_000] {
            lend(capacity);
        }
        let left = [100_000, 2_000_000, 1_000].map(|bytes| buffers.take(bytes).is_some());
        assert_eq!(left, [true, false, false], "200,000 fits, the oldest went");
        assert!(buffers.take(300_000).is_some());
    }
}
