//! Exporting: a queue bounded in bytes, consumers that deliver from it, retrying as OTLP says.
//!
//! `num_consumers` tasks each take a request and stay with it until the backend has it or it is
//! given up, so an outage stops them all and fills the queue, which stops deciding or drops, as
//! configured. A request that the backend finds too large, or refuses for what is in it, is cut
//! (`deliver.rs`); what the backend takes is learnt by all consumers together (`peer.rs`). Each
//! span that is given up is counted with a reason. Nothing here knows why a span was kept.

mod answer;
mod client;
mod connect;
mod deliver;
mod peer;
mod queue;

use std::sync::Arc;

use tokio::sync::watch;

pub use answer::{Answer, Cause, Outcome};
pub use client::{Client, ClientError};
pub use connect::{ConnectError, Connection, Connector, Tls};
pub use queue::{Place, Popped, Queue};

use crate::{
    clock::Clock,
    config::Retry,
    metrics::{FailedBecause, Metrics},
    supervise::{Supervisor, Task},
};

/// One of the tasks that deliver.
#[derive(Clone, Debug)]
pub struct Consumer {
    /// To the backend.
    pub client: Client,
    /// Where requests come from.
    pub queue: Arc<Queue>,
    /// How long and how often to try.
    pub retry: Retry,
    /// Counts what becomes of spans.
    pub metrics: Arc<Metrics>,
    /// Contains and counts panics.
    pub supervisor: Arc<Supervisor>,
    /// Measures attempts.
    pub clock: Clock,
    /// Turns true when there is no time left: what is not delivered then is given up.
    pub give_up: watch::Receiver<bool>,
}

impl Consumer {
    /// Delivers until the queue is closed and empty.
    pub async fn run(mut self) {
        while let Some(popped) = self.queue.pop().await {
            let mut in_hand = InHand { popped, metrics: Arc::clone(&self.metrics) };
            let supervisor = Arc::clone(&self.supervisor);
            let delivery = deliver::Delivery::new(&mut self, &mut in_hand.popped).run();
            // After a panic the request is given up, so that it cannot panic again.
            let _ = supervisor.contained(Task::Exporter, delivery).await;
        }
    }
}

/// The request that a consumer works on. What of it is neither sent nor counted when this is
/// dropped, however that comes about, is counted as the decider's losses by a panic are.
struct InHand {
    popped: Popped,
    metrics: Arc<Metrics>,
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.metrics.failed(FailedBecause::Malformed, self.popped.unsettled());
    }
}
