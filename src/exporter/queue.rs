//! The export queue: encoded requests, bounded in bytes, including those under way and those being
//! retried.
//!
//! The decider pushes, the consumers pop. A popped request still counts until it is delivered or
//! given up, so that `exporter_queue_spans` and the ledger never miss a span. Kept spans that are
//! not encoded yet are announced, and count too. With `overflow = "block"` the decider checks for
//! free space before it decides, and intake refuses requests from 75 % on. So there is space left
//! for late spans and traces at their limit, which cannot wait.
//!
//! A request takes its [`Place`] before it is encoded: from then on its bytes count and are charged
//! to the memory budget. With `overflow = "block"` there is a place until the queue is full, so the
//! queue exceeds its size by less than one request. With `"drop"` a request must fit, unless the
//! queue is empty.
//!
//! Requests are numbered as they are queued, so that a watermark can wait for all that were queued
//! before it ([`Queue::fence`], [`Queue::is_settled`]). A request may also be stored in a log; the
//! queue then says when its record is no longer needed ([`Queue::take_departed`]).

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

/// A queue of encoded requests, bounded in bytes.
#[derive(Debug)]
pub struct Queue {
    capacity_bytes: usize,
    state: Mutex<State>,
    /// Notified when a request can be popped, or the queue was closed.
    arrived: Notify,
    /// Notified when space was freed.
    left: Notify,
    budget: Arc<Budget>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// The number of the first request in `waiting`, or of the next one.
    first: u64,
    /// The numbers of the requests under way, at most one for each consumer.
    under_way: Vec<u64>,
    /// Requests that wait or are under way and are stored in no log.
    unstored: usize,
    /// The positions, in the log, of stored requests that have been settled since this list was
    /// last taken.
    departed: Vec<u64>,
    /// Bytes of waiting requests and those under way.
    bytes: usize,
    spans: u64,
    /// Spans that are kept, but not encoded yet.
    announced: u64,
    is_closed: bool,
    is_held_back: bool,
}

#[derive(Debug)]
struct Waiting {
    request: EncodedRequest,
    hold: Hold,
    /// Its position in a log, if it is stored.
    stored_at: Option<u64>,
}

/// A request taken from the queue. Its spans count as queued until they are settled, its bytes
/// until this is dropped, because the rest of a request that was cut is hardly smaller than the
/// whole.
#[derive(Debug)]
pub(crate) struct Popped {
    /// The request to send. The sender may take it.
    pub(crate) body: Bytes,
    bytes: usize,
    unsettled: u64,
    number: u64,
    stored_at: Option<u64>,
    is_left: bool,
    _hold: Hold,
    queue: Arc<Queue>,
}

impl Popped {
    /// Spans that are neither sent nor given up.
    pub(crate) fn unsettled(&self) -> u64 {
        self.unsettled
    }

    /// Charges the bytes that cutting the request has copied, until the [`Hold`] is dropped.
    pub(crate) fn charge(&self, bytes: usize) -> Hold {
        self.queue.budget.hold(Holder::Export, bytes)
    }

    /// Notes that spans were counted as sent or as failed.
    pub(crate) fn settle(&mut self, spans: u64) {
        self.unsettled -= spans;
        self.queue.lock().spans -= spans;
    }

    /// Leaves the rest of the request for the next process. Its spans still count as queued.
    pub(crate) fn leave(&mut self) {
        self.is_left = true;
    }

    /// Whether the rest of the request was left.
    pub(crate) fn is_left(&self) -> bool {
        self.is_left
    }
}

impl Drop for Popped {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.bytes -= self.bytes;
        if !self.is_left {
            state.spans -= self.unsettled;
            state.under_way.retain(|&number| number != self.number);
            state.unstored -= usize::from(self.stored_at.is_none());
        }
        if self.unsettled == 0 {
            state.departed.extend(self.stored_at);
        }
        drop(state);
        // Notified after the lock is released, so that the woken task does not wait for it.
        self.queue.left.notify_waiters();
    }
}

/// Space for one request that is not encoded yet. Dropping it frees the space.
#[derive(Debug)]
pub struct Place<'a> {
    queue: &'a Queue,
    bytes: usize,
    /// `None` once the request is here.
    hold: Option<Hold>,
}

impl Place<'_> {
    /// Queues the request, which must have the length that the place was asked for.
    pub fn fill(self, request: EncodedRequest) {
        self.fill_stored(request, None);
    }

    /// Queues a request that is stored in a log at position `stored_at`, if at all.
    pub(crate) fn fill_stored(mut self, request: EncodedRequest, stored_at: Option<u64>) {
        debug_assert_eq!(request.body.len(), self.bytes, "a request has the length it claimed");
        let Some(hold) = self.hold.take() else { return };
        let mut state = self.queue.lock();
        state.spans += request.spans;
        state.unstored += usize::from(stored_at.is_none());
        state.waiting.push_back(Waiting { request, hold, stored_at });
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

    /// The capacity in bytes.
    pub fn capacity_bytes(&self) -> usize {
        self.capacity_bytes
    }

    /// Bytes and spans of the requests that wait or are under way, including announced spans.
    pub fn held(&self) -> (usize, u64) {
        let state = self.lock();
        (state.bytes, state.spans + state.announced)
    }

    /// Counts spans as queued from their decision on, before they are encoded.
    pub(crate) fn announce(&self, spans: u64) {
        self.lock().announced += spans;
    }

    /// Notes that announced spans were pushed, or counted as failed.
    pub(crate) fn settle(&self, spans: u64) {
        self.lock().announced -= spans;
    }

    /// Spans that are announced and not settled.
    pub(crate) fn announced(&self) -> u64 {
        self.lock().announced
    }

    /// Bytes that still fit.
    pub(crate) fn room(&self) -> usize {
        self.capacity_bytes.saturating_sub(self.held().0)
    }

    /// The fill ratio: 1.0 is full, and it may exceed that.
    pub fn pressure(&self) -> f64 {
        self.held().0 as f64 / self.capacity_bytes as f64
    }

    /// A place for a request of `bytes` if the queue is not full, even if the request exceeds the
    /// capacity. If `None`, the caller waits for a [`Self::departure`].
    pub fn place(&self, bytes: usize) -> Option<Place<'_>> {
        self.place_below(self.capacity_bytes, bytes)
    }

    /// A place for a request of `bytes` if it fits, or if the queue is empty: a request larger than
    /// the queue must not wait for ever.
    pub fn place_within(&self, bytes: usize) -> Option<Place<'_>> {
        self.place_below(self.capacity_bytes.saturating_add(1).saturating_sub(bytes), bytes)
    }

    /// Queues a stored request of an earlier process, even if the queue is full: the request had a
    /// place in that process's queue.
    pub(crate) fn push_again(&self, body: Bytes, spans: u64, stored_at: u64) {
        if let Some(place) = self.place_below(usize::MAX, body.len()) {
            place.fill_stored(EncodedRequest { body, spans }, Some(stored_at));
        }
    }

    /// A place if the queue holds fewer bytes than `bound`, or none at all.
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

    /// Waits for the oldest request; `None` once the queue is closed and nothing waits any more.
    pub(crate) async fn pop(self: &Arc<Self>) -> Option<Popped> {
        loop {
            let mut arrived = pin!(self.arrived.notified());
            // Registers before it looks at the queue. While nobody is registered, only one of two
            // notifications is remembered, so a request could wait for the next push.
            arrived.as_mut().enable();
            {
                let mut state = self.lock();
                if !state.is_held_back
                    && let Some(waiting) = state.waiting.pop_front()
                {
                    let number = state.first;
                    state.first += 1;
                    state.under_way.push(number);
                    return Some(self.popped(waiting, number));
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

    fn popped(self: &Arc<Self>, waiting: Waiting, number: u64) -> Popped {
        let Waiting { request: EncodedRequest { body, spans }, hold, stored_at } = waiting;
        let (bytes, queue, is_left) = (body.len(), Arc::clone(self), false);
        Popped { body, bytes, unsettled: spans, number, stored_at, is_left, _hold: hold, queue }
    }

    /// A fence behind the last request that was queued.
    pub(crate) fn fence(&self) -> u64 {
        let state = self.lock();
        state.first + state.waiting.len() as u64
    }

    /// Whether every request that was queued before a [`Self::fence`] is delivered or given up.
    pub(crate) fn is_settled(&self, fence: u64) -> bool {
        let state = self.lock();
        state.first >= fence && state.under_way.iter().all(|&number| number >= fence)
    }

    /// The number of requests that wait or are under way and are stored in no log.
    pub(crate) fn unstored(&self) -> usize {
        self.lock().unstored
    }

    /// The positions, in the log, of stored requests that have been delivered or given up since the
    /// last call.
    pub(crate) fn take_departed(&self) -> Vec<u64> {
        std::mem::take(&mut self.lock().departed)
    }

    /// Stops consumers from beginning another request. Waiting requests stay in the queue.
    pub(crate) fn hold_back(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.is_held_back = true;
        drop(state);
        self.arrived.notify_one();
    }

    /// Closes the queue: consumers end when nothing waits any more.
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

    /// Waits for a request that leaves after this call, even if the future is polled only later.
    pub(crate) fn departure(&self) -> Notified<'_> {
        self.left.notified()
    }

    /// Whether nothing waits or is under way.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().bytes == 0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No panic can happen here between two changes that belong together.
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
    async fn requests_under_way_still_count() {
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

    #[tokio::test]
    async fn a_fence_waits_for_all_that_was_queued_before_it() {
        let queue = Queue::new(100, &Budget::new(1000));
        let fill = |stored_at| queue.place(1).expect("room").fill_stored(request(1), stored_at);
        assert!(queue.is_settled(queue.fence()));
        [Some(7), None, Some(9)].into_iter().for_each(fill);
        let fence = queue.fence();
        fill(None);
        let mut popped = Vec::new();
        for _ in 0..4 {
            popped.push(queue.pop().await.expect("one waits"));
        }
        assert_eq!(queue.unstored(), 2);
        // Requests are settled in any order.
        for index in [3, 1, 2] {
            popped[index].settle(1);
        }
        popped.truncate(1);
        assert!(!queue.is_settled(fence) && queue.unstored() == 0);
        assert_eq!(queue.take_departed(), [9]);
        popped[0].settle(1);
        popped.clear();
        assert!(queue.is_settled(fence) && queue.is_settled(queue.fence()));
        assert_eq!(queue.take_departed(), [7]);
    }

    #[tokio::test]
    async fn requests_left_for_the_next_process_still_count() {
        let queue = Queue::new(100, &Budget::new(1000));
        let fill = |stored_at| queue.place(1).expect("room").fill_stored(request(1), stored_at);
        [Some(7), None, Some(9)].into_iter().for_each(fill);
        let fence = queue.fence();
        let popped = [queue.pop().await, queue.pop().await];
        queue.hold_back();
        assert!(queue.pop().await.is_none() && queue.pop().await.is_none());
        for mut popped in popped.into_iter().flatten() {
            popped.leave();
            assert!(popped.is_left());
        }
        assert_eq!((queue.held().1, queue.unstored()), (3, 1));
        assert!(!queue.is_settled(fence) && queue.take_departed().is_empty());
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
