//! Senders: batches of spans as SDKs send them, retried as OTLP says. The journal has each attempt
//! and what its sender learnt about it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceResponse, trace::v1::Span,
};
use prost::Message as _;
use tailwater::testing;
use tokio::{
    sync::watch,
    time::{sleep, sleep_until, timeout},
};
use tonic::{
    Code, Status,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;

use crate::{
    harness,
    journal::{Fate, Journal, Sent, span_id},
    network::{Connector, Link},
};

/// The default timeout of an OTLP SDK.
const TIMEOUT: Duration = Duration::from_secs(10);
const ATTEMPTS_MAX: u32 = 8;

/// The shape of the traffic.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub senders: usize,
    pub traces: usize,
    pub spans_per_trace_max: usize,
    /// Traces begin within this time.
    pub horizon: Duration,
    /// The shortest and the longest time between two batches of a sender, in milliseconds.
    pub period_millis: (u64, u64),
    /// The most filler bytes of a span.
    pub filler_max: usize,
}

/// A span that will be sent.
#[derive(Clone, Copy, Debug)]
struct Planned {
    trace: u64,
    is_root: bool,
    is_error: bool,
    is_probe: bool,
    is_bad: bool,
    millis: u64,
    filler: usize,
}

/// Spans that one sender sends together.
#[derive(Clone, Debug)]
pub struct Batch {
    at: Duration,
    spans: Vec<Planned>,
    is_garbage: bool,
}

/// The batches of each sender. The spans of a trace come from several senders, mostly within a
/// second, some late.
pub fn traffic(rng: &mut fastrand::Rng, shape: Shape) -> Vec<Vec<Batch>> {
    let (least, most) = shape.period_millis;
    let periods: Vec<u64> = (0..shape.senders).map(|_| rng.u64(least..=most)).collect();
    let mut batches = vec![BTreeMap::<u64, Batch>::new(); shape.senders];
    let horizon = shape.horizon.as_millis() as u64;
    for _ in 0..shape.traces {
        let trace = rng.u64(..);
        let begins = rng.u64(0..horizon);
        let has_root = rng.u32(0..10) > 0;
        let is_probe = rng.u32(0..10) == 0;
        for index in 0..rng.usize(1..=shape.spans_per_trace_max) {
            let delay = match rng.u32(0..20) {
                0 => rng.u64(0..30_000),
                1..4 => rng.u64(0..4_000),
                _ => rng.u64(0..800),
            };
            let sender = rng.usize(0..shape.senders);
            let period = periods[sender];
            let flush = (begins + delay) / period + 1;
            let batch = batches[sender].entry(flush).or_insert_with(|| Batch {
                at: Duration::from_millis(flush * period),
                spans: Vec::new(),
                is_garbage: rng.u32(0..100) == 0,
            });
            batch.spans.push(Planned {
                trace,
                is_root: has_root && index == 0,
                is_error: rng.u32(0..20) == 0,
                is_probe,
                is_bad: rng.u32(0..100) == 0,
                millis: rng.u64(0..200) * if rng.u32(0..10) == 0 { 10 } else { 1 },
                filler: rng.usize(0..=shape.filler_max),
            });
        }
    }
    batches.into_iter().map(|batches| batches.into_values().collect()).collect()
}

/// A sender.
#[derive(Debug)]
pub struct Sender {
    pub journal: Arc<Journal>,
    pub link: Arc<Link>,
    /// Rises when the sender crashes.
    pub crashes: watch::Receiver<u64>,
    pub rng: fastrand::Rng,
}

impl Sender {
    /// Sends all batches, each at its time. A crash loses the requests under way.
    pub async fn run(mut self, batches: Vec<Batch>) {
        let start = tokio::time::Instant::now();
        let mut client = self.connect();
        let mut crashes = self.crashes.clone();
        crashes.mark_unchanged();
        for batch in &batches {
            let deliver = async {
                sleep_until(start + batch.at).await;
                self.deliver(&mut client, batch).await;
            };
            let has_crashed = tokio::select! {
                biased;
                Ok(()) = crashes.changed() => true,
                () = deliver => false,
            };
            if has_crashed {
                client = self.connect();
                sleep(Duration::from_millis(self.rng.u64(0..3_000))).await;
            }
        }
    }

    fn connect(&self) -> Grpc<Channel> {
        let endpoint = Endpoint::from_static("http://tailwater").connect_timeout(TIMEOUT);
        Grpc::new(endpoint.connect_with_connector_lazy(Connector(Arc::clone(&self.link))))
    }

    async fn deliver(&mut self, client: &mut Grpc<Channel>, batch: &Batch) {
        for _ in 0..ATTEMPTS_MAX {
            let (attempt, message) = self.begin(batch);
            let outcome = timeout(TIMEOUT, testing::export(client, message)).await;
            let (fate, retry_after) = self.judge(attempt, batch, outcome.ok());
            self.journal.learn(attempt, fate);
            let Some(after) = retry_after else { return };
            sleep(after).await;
        }
    }

    /// Judges an answer: what it means, and when to retry, if at all.
    fn judge(
        &mut self,
        attempt: usize,
        batch: &Batch,
        answer: Option<Result<Bytes, Status>>,
    ) -> (Fate, Option<Duration>) {
        let backoff = Duration::from_millis(self.rng.u64(100..2_000));
        match answer {
            None => (Fate::Unknown, Some(backoff)),
            Some(Ok(answer)) => {
                let answer = ExportTraceServiceResponse::decode(answer).unwrap_or_default();
                let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
                let bad = batch.spans.iter().filter(|span| span.is_bad).count() as i64;
                self.journal.check(rejected == bad && !batch.is_garbage, || {
                    format!("attempt {attempt}: {rejected} spans rejected, {bad} were bad")
                });
                (Fate::Taken, None)
            }
            Some(Err(status)) => match (status.code(), status.get_details_retry_info()) {
                (Code::Unavailable, Some(info)) => {
                    let after = info.retry_delay.unwrap_or_default();
                    let is_sane = (1.0..=8.0).contains(&after.as_secs_f64());
                    self.journal.check(is_sane, || format!("told to wait {after:?}"));
                    (Fate::Refused, Some(after))
                }
                (Code::InvalidArgument, _) => {
                    self.journal.check(batch.is_garbage, || format!("{attempt}: {status:?}"));
                    (Fate::Refused, None)
                }
                // Not an answer of Tailwater: the connection or the stream broke.
                (Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal, None) => {
                    (Fate::Unknown, Some(backoff))
                }
                _ => {
                    self.journal.check(false, || format!("{attempt}: {status:?}"));
                    (Fate::Unknown, None)
                }
            },
        }
    }

    /// Builds the request of an attempt, with ids that identify the attempt.
    fn begin(&self, batch: &Batch) -> (usize, Bytes) {
        if batch.is_garbage {
            return (self.journal.begin(Vec::new()), Bytes::from_static(b"\x0a\xffgarbage"));
        }
        let wall = self.journal.wall();
        let sent = batch.spans.iter().map(|span| Sent {
            trace: span.trace,
            is_error: span.is_error,
            is_probe: span.is_probe,
            start: wall - span.millis * 1_000_000,
            end: wall,
            is_bad: span.is_bad,
        });
        let sent: Vec<Sent> = sent.collect();
        let attempt = self.journal.begin(sent.clone());
        let spans = batch.spans.iter().zip(&sent).enumerate();
        let spans = spans.map(|(index, (planned, sent))| build(planned, sent, attempt, index));
        let request = harness::request("shop", spans.collect());
        (attempt, request.encode_to_vec().into())
    }
}

fn build(planned: &Planned, sent: &Sent, attempt: usize, index: usize) -> Span {
    let parent = (!planned.is_root).then_some(7);
    let mut span = harness::span(planned.trace, span_id(attempt, index), parent);
    span.start_time_unix_nano = sent.start;
    span.end_time_unix_nano = sent.end;
    span.attributes = vec![
        harness::string("http.route", if planned.is_probe { "/healthz" } else { "/" }),
        harness::string("filler", "x".repeat(planned.filler)),
    ];
    if planned.is_error {
        span.status = harness::error();
    }
    if planned.is_bad {
        span.span_id.truncate(7);
    }
    span
}
