//! Exporting: a queue bounded in bytes, and consumers that deliver from it, with retries as OTLP
//! specifies.
//!
//! Each of the `num_consumers` tasks takes a request and works on it until the backend has it or it
//! is given up. So an outage stops all of them and fills the queue; a full queue stops deciding or
//! drops spans, as configured. A request that the backend finds too large, or refuses for its
//! content, is cut (`deliver.rs`). All consumers share what they learn about the backend
//! (`peer.rs`). Each span that is given up is counted with a reason. This module does not know why
//! a span was kept.

mod answer;
mod client;
mod connect;
mod deliver;
mod peer;
mod queue;

use std::sync::Arc;

use tokio::sync::watch;

pub use answer::{Answer, Cause, Outcome};
pub use client::Client;
pub(crate) use client::ClientError;
pub use connect::Connector;
pub(crate) use connect::Tls;
pub(crate) use peer::Standing;
pub(crate) use queue::Popped;
pub use queue::Queue;

use crate::{
    clock::Clock,
    config::Retry,
    metrics::{FailedBecause, Metrics},
    supervise::{Supervisor, Task},
};

/// One of the tasks that deliver requests.
#[derive(Clone, Debug)]
pub struct Consumer {
    /// The client of the backend.
    pub client: Client,
    /// The queue that requests are taken from.
    pub queue: Arc<Queue>,
    /// How long and how often to retry.
    pub retry: Retry,
    /// Counts sent and failed spans.
    pub metrics: Arc<Metrics>,
    /// Contains and counts panics.
    pub supervisor: Arc<Supervisor>,
    /// Measures attempts.
    pub clock: Clock,
    /// Turns true when no time is left: the consumer then gives up the spans that are not
    /// delivered.
    pub give_up: watch::Receiver<bool>,
    /// Whether spans that are not delivered by then are left for the next process, instead of
    /// counting as failed.
    pub leaves: bool,
}

impl Consumer {
    /// Delivers requests until the queue is closed and empty.
    pub async fn run(mut self) {
        while let Some(popped) = self.queue.pop().await {
            let mut in_hand = InHand { popped, metrics: Arc::clone(&self.metrics) };
            let supervisor = Arc::clone(&self.supervisor);
            let delivery = deliver::Delivery::new(&mut self, &mut in_hand.popped).run();
            // After a panic the request is given up, so that it cannot panic again.
            if supervisor.contained(Task::Exporter, delivery).await.is_err() {
                in_hand.give_up();
            }
        }
    }
}

/// The request that a consumer works on. When it is dropped for any reason, its spans that are
/// neither sent nor counted are counted as malformed, as the decider does after a panic.
struct InHand {
    popped: Popped,
    metrics: Arc<Metrics>,
}

impl InHand {
    fn give_up(&mut self) {
        let spans = self.popped.unsettled();
        self.metrics.failed(FailedBecause::Malformed, spans);
        self.popped.settle(spans);
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        if !self.popped.is_left() {
            self.metrics.failed(FailedBecause::Malformed, self.popped.unsettled());
        }
    }
}
