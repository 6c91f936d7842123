//! The sending queue: encoded requests, bounded in bytes, those under way and being retried
//! included.
//!
//! The decider pushes, consumers pop. What has been popped still counts until it is delivered or
//! given up, so that `exporter_queue_spans` and the ledger never lose sight of a span. Kept spans
//! that are not encoded yet are announced, and count too. With `overflow = "block"` the decider
//! looks for room before it decides, and intake is refused from 75 % on, so that late spans and
//! traces at their limit, which cannot wait, still find room.
//!
//! A request takes its [`Place`] before it is encoded: from then on its bytes count and are charged
//! to the memory budget. With `overflow = "block"` there is a place as long as the queue is not
//! full, so the queue passes its size by less than one request; with `"drop"` a request must fit,
//! unless the queue is empty.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::{Notify, futures::Notified};

use crate::{
    budget::{Budget, Hold, Holder},
    otlp::encode::EncodedRequest,
};

/// See the module.
#[derive(Debug)]
pub struct Queue {
    capacity_bytes: usize,
    state: Mutex<State>,
    /// Someone may pop, or the queue was closed.
    arrived: Notify,
    /// Room was made.
    left: Notify,
    budget: Arc<Budget>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<(EncodedRequest, Hold)>,
    /// Waiting and under way.
    bytes: usize,
    spans: u64,
    /// Kept, but not encoded yet.
    announced: u64,
    is_closed: bool,
}

/// A request taken from the queue. Its spans count as queued until they are settled, its bytes
/// until this is dropped: what is left of a request that was cut is hardly less than the whole.
#[derive(Debug)]
pub struct Popped {
    /// What to send. The sender may take it away.
    pub body: Bytes,
    bytes: usize,
    unsettled: u64,
    _hold: Hold,
    queue: Arc<Queue>,
}

impl Popped {
    /// Spans that are neither sent nor given up.
    pub fn unsettled(&self) -> u64 {
        self.unsettled
    }

    /// Charges what cutting the request has copied, for as long as the [`Hold`] lives.
    pub fn charge(&self, bytes: usize) -> Hold {
        self.queue.budget.hold(Holder::Export, bytes)
    }

    /// Spans have been counted as sent or as failed.
    pub fn settle(&mut self, spans: u64) {
        self.unsettled -= spans;
        self.queue.lock().spans -= spans;
    }
}

impl Drop for Popped {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.bytes -= self.bytes;
        state.spans -= self.unsettled;
        drop(state);
        // Notified after the lock, so that the woken task does not run into it.
        self.queue.left.notify_waiters();
    }
}

/// Room for one request that is not encoded yet. Dropped, it gives the room back.
#[derive(Debug)]
pub struct Place<'a> {
    queue: &'a Queue,
    bytes: usize,
    /// None once the request is here.
    hold: Option<Hold>,
}

impl Place<'_> {
    /// Queues the request, of as many bytes as its place was asked for.
    pub fn fill(mut self, request: EncodedRequest) {
        debug_assert_eq!(request.body.len(), self.bytes, "a request has the length it claimed");
        let Some(hold) = self.hold.take() else { return };
        let mut state = self.queue.lock();
        state.spans += request.spans;
        state.waiting.push_back((request, hold));
        drop(state);
        self.queue.arrived.notify_one();
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.hold.take().is_some() {
            self.queue.lock().bytes -= self.bytes;
            self.queue.left.notify_waiters();
        }
    }
}

impl Queue {
    /// An empty queue of this capacity.
    pub fn new(capacity_bytes: usize, budget: &Arc<Budget>) -> Arc<Self> {
        Arc::new(Queue {
            capacity_bytes,
            state: Mutex::default(),
            arrived: Notify::new(),
            left: Notify::new(),
            budget: Arc::clone(budget),
        })
    }

    /// The most bytes it should hold.
    pub fn capacity_bytes(&self) -> usize {
        self.capacity_bytes
    }

    /// Requests' bytes and spans, waiting and under way, with the spans that are announced.
    pub fn held(&self) -> (usize, u64) {
        let state = self.lock();
        (state.bytes, state.spans + state.announced)
    }

    /// Counts spans as queued from their decision on, before they are encoded.
    pub fn announce(&self, spans: u64) {
        self.lock().announced += spans;
    }

    /// Announced spans have been pushed, or counted as failed.
    pub fn settle(&self, spans: u64) {
        self.lock().announced -= spans;
    }

    /// Spans that are announced and not settled.
    pub fn announced(&self) -> u64 {
        self.lock().announced
    }

    /// Bytes that still fit.
    pub fn room(&self) -> usize {
        self.capacity_bytes.saturating_sub(self.held().0)
    }

    /// How full it is, 0.0 to 1.0 and above.
    pub fn pressure(&self) -> f64 {
        self.held().0 as f64 / self.capacity_bytes as f64
    }

    /// A place for a request of `bytes` where the queue is not full, even if the request makes it
    /// fuller than full. `None` where it has to wait for a [`Self::departure`].
    pub fn place(&self, bytes: usize) -> Option<Place<'_>> {
        self.place_below(self.capacity_bytes, bytes)
    }

    /// A place for a request of `bytes` if the request fits, or if the queue is empty: a request
    /// larger than the queue must not wait for ever.
    pub fn place_within(&self, bytes: usize) -> Option<Place<'_>> {
        self.place_below(self.capacity_bytes.saturating_add(1).saturating_sub(bytes), bytes)
    }

    /// A place where fewer bytes than `bound` are held, or none.
    fn place_below(&self, bound: usize, bytes: usize) -> Option<Place<'_>> {
        let mut state = self.lock();
        if state.bytes > 0 && state.bytes >= bound {
            return None;
        }
        state.bytes += bytes;
        drop(state);
        let hold = Some(self.budget.hold(Holder::Export, bytes));
        Some(Place { queue: self, bytes, hold })
    }

    /// The oldest request that waits; `None` once the queue is closed and nothing waits any more.
    pub async fn pop(self: &Arc<Self>) -> Option<Popped> {
        loop {
            let mut arrived = pin!(self.arrived.notified());
            // In line before looking: of two pushes that meet no one in line only one would be
            // remembered, and a request would wait for the next push.
            arrived.as_mut().enable();
            {
                let mut state = self.lock();
                if let Some((request, hold)) = state.waiting.pop_front() {
                    return Some(self.popped(request, hold));
                }
                if state.is_closed {
                    // Wakes the next consumer, so that all of them end.
                    self.arrived.notify_one();
                    return None;
                }
            }
            arrived.await;
        }
    }

    fn popped(self: &Arc<Self>, request: EncodedRequest, hold: Hold) -> Popped {
        let EncodedRequest { body, spans } = request;
        let bytes = body.len();
        Popped { body, bytes, unsettled: spans, _hold: hold, queue: Arc::clone(self) }
    }

    /// Lets consumers end when nothing waits any more.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.arrived.notify_one();
    }

    /// Waits until nothing is queued or under way.
    pub async fn drained(&self) {
        loop {
            let departure = self.departure();
            if self.is_empty() {
                return;
            }
            departure.await;
        }
    }

    /// Waits for a request that leaves after this call, polled already or not.
    pub fn departure(&self) -> Notified<'_> {
        self.left.notified()
    }

    /// Whether nothing waits or is under way.
    pub fn is_empty(&self) -> bool {
        self.lock().bytes == 0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(bytes: usize) -> EncodedRequest {
        EncodedRequest { body: vec![0; bytes].into(), spans: 1 }
    }

    fn put(queue: &Queue, bytes: usize) -> bool {
        let place = queue.place_within(bytes);
        place.map(|place| place.fill(request(bytes))).is_some()
    }

    #[tokio::test]
    async fn what_is_under_way_still_counts() {
        let budget = Budget::new(1000);
        let queue = Queue::new(100, &budget);
        assert!(put(&queue, 60) && !put(&queue, 41));
        let mut popped = queue.pop().await.expect("one waits");
        assert_eq!((queue.held(), queue.room()), ((60, 1), 40));
        popped.settle(1);
        assert_eq!((queue.held(), popped.unsettled()), ((60, 0), 0));
        assert!(!put(&queue, 41));
        drop(popped);
        assert_eq!((queue.held(), budget.used()), ((0, 0), 0));
        assert!(put(&queue, 500), "an empty queue takes anything");
        queue.close();
        assert!(queue.pop().await.is_some());
        assert!(queue.pop().await.is_none());
        assert!(queue.pop().await.is_none());
        queue.drained().await;
    }

    #[test]
    fn a_place_is_charged_before_it_is_filled_and_passes_the_size_once() {
        let budget = Budget::new(1000);
        let queue = Queue::new(100, &budget);
        let first = queue.place(99).expect("empty");
        assert_eq!((queue.held(), budget.used()), ((99, 0), 99));
        let second = queue.place(70).expect("not full");
        assert!(queue.place(1).is_none() && queue.place_within(1).is_none());
        second.fill(request(70));
        assert_eq!((queue.held(), budget.used()), ((169, 1), 169));
        drop(first);
        assert_eq!((queue.held(), budget.used()), ((70, 1), 70));
        assert!(queue.place_within(31).is_none() && queue.place_within(30).is_some());
    }
}
