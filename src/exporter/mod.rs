//! Exporting: a queue bounded in bytes, consumers that deliver from it, retrying as OTLP says.
//!
//! `num_consumers` tasks each take a request and stay with it until the backend has it or it is
//! given up, so an outage stops them all and fills the queue, which stops deciding or drops, as
//! configured. Each span that is given up is counted with a reason and logged once a request.
//! Nothing here knows why a span was kept.

mod client;
mod connect;
mod queue;

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tracing::{debug, warn};

pub use client::{Client, ClientError, Outcome};
pub use connect::{ConnectError, Connection, Connector, Tls};
pub use queue::{Popped, Queue};

use crate::{
    clock::Clock,
    config::Retry,
    grpc::code_name,
    metrics::{FailedBecause, Metrics},
};

/// Growth of the delay from one attempt to the next.
const BACKOFF_FACTOR: f64 = 1.5;
/// Each delay is longer or shorter by up to this share, so that clients of one backend spread.
const JITTER: f64 = 0.3;

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
    /// Measures attempts.
    pub clock: Clock,
    /// Turns true when there is no time left: what is not delivered then is given up.
    pub give_up: watch::Receiver<bool>,
}

impl Consumer {
    /// Delivers until the queue is closed and empty.
    pub async fn run(mut self) {
        while let Some(popped) = self.queue.pop().await {
            self.deliver(&popped).await;
        }
    }

    async fn deliver(&mut self, popped: &Popped) {
        let spans = popped.request.spans;
        let started = self.clock.elapsed();
        let mut delay = self.retry.initial_interval;
        loop {
            if *self.give_up.borrow() {
                return self.metrics.failed(FailedBecause::Shutdown, spans);
            }
            let Some(outcome) = self.attempt(popped).await else { continue };
            let (code, after) = match outcome {
                Outcome::Sent { rejected, message } => {
                    return self.sent(spans, rejected.min(spans), &message);
                }
                Outcome::Refused { code, is_too_large, message } => {
                    let because = if is_too_large {
                        FailedBecause::TooLarge
                    } else {
                        FailedBecause::Rejected
                    };
                    warn!(code = code_name(code), message, spans, "backend refused a request");
                    return self.metrics.failed(because, spans);
                }
                Outcome::Retry { code, after, message } => {
                    debug!(code = code_name(code), message, spans, "export will be retried");
                    (code, after)
                }
                Outcome::Panicked => {
                    self.metrics.restarted("exporter");
                    (tonic::Code::Unknown, None)
                }
            };
            // Never sooner than the backend asked for.
            let asked =
                after.map_or(Duration::ZERO, |after| after.mul_f64(1.0 + JITTER * fastrand::f64()));
            let wait = jittered(delay).max(asked);
            delay = delay.mul_f64(BACKOFF_FACTOR).min(self.retry.max_interval);
            let elapsed = self.clock.elapsed() - started;
            if self.retry.max_elapsed_time.is_some_and(|most| elapsed + wait > most) {
                warn!(code = code_name(code), spans, ?elapsed, "gave up retrying an export");
                return self.metrics.failed(FailedBecause::RetryExpired, spans);
            }
            self.metrics.retried(code);
            self.rest(wait).await;
        }
    }

    /// One attempt; `None` when there is no time left for it.
    async fn attempt(&mut self, popped: &Popped) -> Option<Outcome> {
        let body = popped.request.body.clone();
        let started = self.clock.elapsed();
        let outcome = tokio::select! {
            // An answer that is here already counts, even when time has run out in the same moment.
            biased;
            outcome = self.client.export(body) => outcome,
            _ = self.give_up.wait_for(|&give_up| give_up) => return None,
        };
        self.metrics.exported(outcome.code(), self.clock.elapsed() - started);
        Some(outcome)
    }

    fn sent(&self, spans: u64, rejected: u64, message: &str) {
        if rejected > 0 {
            warn!(rejected, message, "backend rejected spans of a request it accepted");
            self.metrics.failed(FailedBecause::PartialSuccess, rejected);
        }
        self.metrics.sent(spans - rejected);
    }

    async fn rest(&mut self, wait: Duration) {
        tokio::select! {
            // Giving up comes first: a delay may be minutes.
            biased;
            _ = self.give_up.wait_for(|&give_up| give_up) => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(1.0 - JITTER + 2.0 * JITTER * fastrand::f64())
}
