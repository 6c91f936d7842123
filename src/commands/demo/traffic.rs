//! Sends the traffic: six services, each with an exporter of its own that sends its spans at
//! intervals, as an SDK's batch processor does. So the spans of a trace come in several requests,
//! on several connections, in any order.
//!
//! One task makes visits at an even rate and hands out batches; one task per service sends them.
//! Between them is a channel of [`BATCHES_MAX`], so a receiver that refuses requests slows the shop
//! down. A refusal with RetryInfo means that the receiver took nothing, so the request is sent
//! again, up to [`ATTEMPTS_MAX`] times. After any other failure the receiver may have taken the
//! request or not, so the verifier no longer expects its traces.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, trace::v1::Span,
};
use prost::Message as _;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::MissedTickBehavior,
};
use tracing::warn;

use super::{routes::Service, shop::Shop, spans::resource_spans, verify::Verifier};
use crate::{
    clock::{self, Clock},
    config::Exporter,
    exporter::{Cause, Client, ClientError, Connector, Outcome},
    trace::TraceId,
};

/// The rate of the shop.
pub(super) const SPANS_PER_SECOND: usize = 2000;
/// The time between two rounds of visits.
const TICK: Duration = Duration::from_millis(50);
const SPANS_PER_TICK: usize = SPANS_PER_SECOND / 20;
/// The number of ticks between two requests of a service, by the service's number: 200 to 550 ms,
/// so that the order of the services changes all the time. The longest is far below
/// `decision_wait_after_root_received`.
const FLUSH_TICKS: [u64; 6] = [4, 5, 6, 7, 9, 11];
/// Batches of one service that may wait to be sent.
const BATCHES_MAX: usize = 4;
const ATTEMPTS_MAX: u32 = 5;
/// The longest wait between two attempts, which also bounds the wait at the end of the demo.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(2);

/// The spans that a service has not sent yet.
#[derive(Debug)]
struct Outgoing {
    service: Service,
    spans: Vec<Span>,
    batches: mpsc::Sender<Batch>,
}

/// One request.
#[derive(Debug)]
struct Batch {
    body: Bytes,
    traces: Vec<TraceId>,
}

/// The shop and its six exporters.
#[derive(Debug)]
pub(super) struct Traffic {
    shop: Shop,
    clock: Clock,
    verifier: Arc<Verifier>,
    outgoing: Vec<Outgoing>,
    senders: JoinSet<()>,
}

impl Traffic {
    /// Sends traffic to the endpoint of `exporter` and registers every trace with `verifier`.
    ///
    /// # Errors
    /// [`ClientError`] if the endpoint cannot be used.
    pub(super) fn new(exporter: &Exporter, verifier: &Arc<Verifier>) -> Result<Self, ClientError> {
        let mut senders = JoinSet::new();
        let mut outgoing = Vec::new();
        for service in Service::ALL {
            let (batches, waiting) = mpsc::channel(BATCHES_MAX);
            let client = Client::with_connector(exporter, Connector::new(exporter, None))?;
            senders.spawn(send(client, waiting, Arc::clone(verifier)));
            outgoing.push(Outgoing { service, spans: Vec::new(), batches });
        }
        let (shop, clock) = (Shop::open(), Clock::start());
        Ok(Traffic { shop, clock, verifier: Arc::clone(verifier), outgoing, senders })
    }

    /// Makes and sends visits until `stop` turns true, then sends the rest.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut ticks = tokio::time::interval(TICK);
        // After a pause, for instance of a laptop, the shop continues without catching up.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let (mut due, mut made) = (0, 0);
        for tick in 0_u64.. {
            tokio::select! {
                // Stopping comes first: no visit is made that might not be sent.
                biased;
                _ = stop.wait_for(|&stop| stop) => break,
                _ = ticks.tick() => {}
            }
            due += SPANS_PER_TICK;
            while made < due {
                made += self.visit();
            }
            for outgoing in &mut self.outgoing {
                if tick.is_multiple_of(FLUSH_TICKS[outgoing.service as usize]) {
                    outgoing.flush().await;
                }
            }
        }
        for outgoing in &mut self.outgoing {
            outgoing.flush().await;
        }
        // The senders end when their channels do.
        drop(self.outgoing);
        self.senders.join_all().await;
    }

    /// Makes one visit and returns its spans.
    fn visit(&mut self) -> usize {
        let trace = self.shop.visit(clock::unix_millis() * 1_000_000);
        self.verifier.expect(self.clock.elapsed(), &trace);
        let spans = trace.spans.len();
        for (service, span) in trace.spans {
            self.outgoing[service as usize].spans.push(span);
        }
        spans
    }
}

impl Outgoing {
    /// Passes the collected spans to the sender. Waits while its channel is full.
    async fn flush(&mut self) {
        if self.spans.is_empty() {
            return;
        }
        let spans = std::mem::take(&mut self.spans);
        let ids = spans.iter().filter_map(|span| <[u8; 16]>::try_from(&span.trace_id[..]).ok());
        let traces = ids.map(TraceId).collect();
        let resource_spans = vec![resource_spans(self.service, spans)];
        let body = ExportTraceServiceRequest { resource_spans }.encode_to_vec().into();
        // A sender ends before its channel only if it panics. The sink then reports its spans as
        // missing.
        let _ = self.batches.send(Batch { body, traces }).await;
    }
}

/// Sends the batches of one service, one after the other.
async fn send(client: Client, mut waiting: mpsc::Receiver<Batch>, verifier: Arc<Verifier>) {
    while let Some(batch) = waiting.recv().await {
        if let Err(problem) = deliver(&client, batch.body).await {
            warn!(spans = batch.traces.len(), problem, "the shop gave up sending a request");
            verifier.excuse(batch.traces);
        }
    }
}

async fn deliver(client: &Client, body: Bytes) -> Result<(), String> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let (after, message) = match client.export(body.clone()).await {
            Outcome::Sent { rejected: 0, .. } => return Ok(()),
            Outcome::Retry { cause: Cause::Unavailable, after: Some(after), message, .. } => {
                (after, message)
            }
            Outcome::Sent { message, .. }
            | Outcome::TooLarge { message, .. }
            | Outcome::Refused { message, .. }
            | Outcome::Retry { message, .. } => return Err(message),
            Outcome::Panicked => return Err("the client panicked".to_owned()),
        };
        if attempts == ATTEMPTS_MAX {
            return Err(message);
        }
        tokio::time::sleep(after.min(RETRY_DELAY_MAX)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use tonic::{Code, Status};
    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;
    use crate::{commands::demo::verify::Report, config, testing::Sink};

    /// The verifier's report when the shop sends directly to a backend that refuses its first
    /// requests, or all of them.
    async fn refused_by(refuse: impl Fn() -> Option<Status> + Send + Sync + 'static) -> Report {
        let verifier = Arc::new(Verifier::default());
        let arrived = Arc::clone(&verifier);
        let sink = Sink::start("127.0.0.1:0", move |request| match refuse() {
            Some(status) => Err(status),
            None => {
                arrived.receive(&request);
                Ok(Bytes::new())
            }
        });
        let sink = sink.await.expect("a free port");
        let mut exporter = config::embedded().exporter;
        exporter.endpoint = sink.url();
        let traffic = Traffic::new(&exporter, &verifier).expect("a URL");
        let (stop, stops) = watch::channel(false);
        let traffic = tokio::spawn(traffic.run(stops));
        tokio::time::sleep(2 * TICK).await;
        stop.send_replace(true);
        traffic.await.expect("no panic");
        sink.stop().await;
        verifier.finish()
    }

    #[tokio::test]
    async fn requests_refused_for_a_while_arrive_once() {
        let is_first = AtomicBool::new(true);
        let report = refused_by(move || {
            let delay = Some(Duration::from_millis(1));
            let details = ErrorDetails::with_retry_info(delay);
            let status = Status::with_error_details(Code::Unavailable, "not now", details);
            is_first.swap(false, Relaxed).then_some(status)
        })
        .await;
        assert!(report.checked > 0 && report.is_fine(), "{report:?}");
        assert_eq!(report.excused, 0);
    }

    #[tokio::test]
    async fn traces_refused_for_good_are_not_expected() {
        let report = refused_by(|| Some(Status::unavailable("gone"))).await;
        assert!(report.excused > 0, "{report:?}");
        assert_eq!(report, Report { excused: report.excused, ..Report::default() });
    }
}
