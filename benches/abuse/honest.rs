//! The honest client, which must lose nothing, and the sink that checks this.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tailwater::{
    grpc::EXPORT_PATH,
    testing::{self, Sink, framed, spans_of, text},
};
use tokio::net::TcpStream;

use crate::Result;

const INTERVAL: Duration = Duration::from_millis(5);
/// A request that is not answered within this time has failed.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The observations of the honest client.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) acknowledged: Vec<u64>,
    pub(crate) failed: u64,
    pub(crate) last_failure: Option<String>,
    pub(crate) latencies: Vec<Duration>,
}

impl Seen {
    pub(crate) fn p99_ms(&self) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * 99).div_ceil(100).max(1) - 1;
        sorted.get(rank).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
    }
}

/// Exports on one connection until it is dropped.
#[derive(Clone)]
pub(crate) struct Honest {
    seen: Arc<Mutex<Seen>>,
    next: Arc<AtomicU64>,
}

impl Honest {
    pub(crate) async fn start(target: SocketAddr) -> Result<Self> {
        let client = connect(target).await?;
        let honest = Honest { seen: Arc::default(), next: Arc::new(AtomicU64::new(1)) };
        tokio::spawn(honest.clone().run(client));
        Ok(honest)
    }

    /// Returns the figures since the last call, and resets them.
    pub(crate) fn take(&self) -> Seen {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn run(self, client: SendRequest<Bytes>) {
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        // Runs until the runtime ends. Each request is a task, so that a slow answer delays no
        // other.
        loop {
            tick.tick().await;
            let (one, client) = (self.clone(), client.clone());
            tokio::spawn(async move { one.export(client).await });
        }
    }

    async fn export(&self, client: SendRequest<Bytes>) {
        let trace = self.next.fetch_add(1, Relaxed);
        let body = framed(0, &request(vec![span(trace, true)]));
        let began = Instant::now();
        let outcome = tokio::time::timeout(ANSWER_MAX, export(&client, "identity", body)).await;
        let outcome = match outcome {
            Ok(Ok(status)) if status == "0" => Ok(()),
            Ok(Ok(status)) => Err(format!("grpc-status {status}")),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_elapsed) => Err("no answer".to_owned()),
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(()) => {
                seen.acknowledged.push(trace);
                seen.latencies.push(began.elapsed());
            }
            Err(failure) => {
                seen.failed += 1;
                seen.last_failure = Some(failure);
            }
        }
    }
}

pub(crate) async fn connect(target: SocketAddr) -> Result<SendRequest<Bytes>> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let (client, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Makes one unary call. Returns its grpc-status, or the HTTP status if there is none.
pub(crate) async fn export(
    client: &SendRequest<Bytes>,
    encoding: &str,
    body: Vec<u8>,
) -> Result<String> {
    let request = Request::post(format!("http://t{EXPORT_PATH}"))
        .header("content-type", "application/grpc")
        .header("grpc-encoding", encoding)
        .header("te", "trailers")
        .body(())?;
    let (response, mut stream) = client.clone().ready().await?.send_request(request, false)?;
    stream.send_data(body.into(), true)?;
    let (head, mut body) = response.await?.into_parts();
    while let Some(data) = body.data().await {
        body.flow_control().release_capacity(data?.len())?;
    }
    let trailers = body.trailers().await?.unwrap_or(head.headers);
    let status = trailers.get("grpc-status").and_then(|status| status.to_str().ok());
    Ok(status.map_or_else(|| format!("HTTP {}", head.status.as_u16()), str::to_owned))
}

/// The time from opening a new connection to its first acknowledgement; `None` without one.
pub(crate) async fn fresh(target: SocketAddr) -> Option<Duration> {
    let began = Instant::now();
    let exchange = async {
        let client = connect(target).await?;
        export(&client, "identity", framed(0, &request(vec![span(1 << 50, false)]))).await
    };
    let status = tokio::time::timeout(ANSWER_MAX, exchange).await.ok()?.ok()?;
    (status == "0").then(|| began.elapsed())
}

/// A root span; only spans of the honest client are kept.
pub(crate) fn span(trace: u64, is_honest: bool) -> Span {
    let attributes = is_honest.then(|| text("honest", "yes"));
    // No attacker uses a trace id of the honest client.
    let id = u128::from(trace) | u128::from(is_honest) << 63;
    Span {
        // Spread like random ids.
        trace_id: id.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes().to_vec(),
        span_id: trace.to_be_bytes().to_vec(),
        name: trace.to_string(),
        start_time_unix_nano: 1_700_000_000_000_000_000,
        end_time_unix_nano: 1_700_000_000_010_000_000,
        attributes: attributes.into_iter().collect(),
        ..Span::default()
    }
}

pub(crate) fn request(spans: Vec<Span>) -> Vec<u8> {
    testing::request(Vec::new(), spans).encode_to_vec()
}

/// The traces that arrived at the backend.
pub(crate) type Arrived = Arc<Mutex<HashSet<u64>>>;

pub(crate) async fn sink() -> Result<(Sink, Arrived)> {
    let arrived = Arrived::default();
    let recorder = Arc::clone(&arrived);
    let sink = Sink::start("127.0.0.1:0", move |request| {
        let mut arrived = recorder.lock().unwrap_or_else(PoisonError::into_inner);
        arrived.extend(spans_of(&request).filter_map(|span| span.name.parse::<u64>().ok()));
        Ok(Bytes::new())
    });
    Ok((sink.await?, arrived))
}
