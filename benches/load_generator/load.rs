//! The load generator: sends OTLP/gRPC requests at a fixed rate, with less CPU per span than the
//! measured process.
//!
//! **Open loop.** A pacing thread makes a ticket for each time at which a request is due, whatever
//! the server does, and latency counts from that time. So a server that stalls is charged for every
//! request that had to wait (no coordinated omission). The pacer is a thread because the runtime's
//! timer rounds up to the next millisecond, which is as long as the latencies that are measured.
//!
//! **Cheap.** The [`Corpus`] provides encoded requests. `h2` is used directly, without assembling
//! or encoding anything; one thread does the rest. Each connection has several lanes, each with one
//! request in flight; all lanes take tickets from one queue in turn.
//!
//! **Broken connections.** A broken connection ends the load, because a measurement with one
//! connection less would be wrong. With `--persist`, senders connect again and lose refused
//! requests; with `--retry`, they send refused requests again when the server asks for it, as SDKs
//! do.

use std::{
    cell::RefCell,
    io::Read as _,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use clap::ValueEnum;
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use tokio::{
    net::TcpStream,
    sync::{Mutex, mpsc},
    task::{JoinError, JoinSet, LocalSet},
    time::{sleep, timeout},
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    Result,
    control::{self, Ask, Control, LoadLap, Loaded},
    corpus::{Compression, Corpus, SPANS_PER_REQUEST, Shape},
    traffic::Size,
};

const EXPORT_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// The answers to a request that was taken whole: an empty gRPC message, or, as the Collector
/// writes it, a message with an empty `partial_success`.
const TAKEN_WHOLE: [&[u8]; 2] = [&[0; 5], &[0, 0, 0, 0, 2, 0x0a, 0]];
/// The most tickets that may wait for a lane. Beyond that the pacer waits, but the due times stay
/// the same.
const TICKETS_MAX: usize = 4096;
/// How long the last requests may take after the load has ended.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// How long senders with `--persist` or `--retry` wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long a request is retried.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// The pause before a retry if the server does not name one.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The OTLP/gRPC receiver to load
    #[arg(long)]
    target: SocketAddr,
    /// Spans per second
    #[arg(long, default_value_t = 300_000)]
    rate: u64,
    /// Ends the load, unless stdin ends first
    #[arg(long, default_value_t = 60)]
    max_seconds: u64,
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Requests in flight on each connection
    #[arg(long, default_value_t = 4)]
    in_flight: usize,
    /// How long after the first spans of a trace its root is sent; "0s": two requests later
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    root_after: Duration,
    /// The number of different resources in the traffic
    #[arg(long, default_value_t = 10)]
    resources: usize,
    /// Connects again when a connection breaks; requests under way count as failed
    #[arg(long)]
    persist: bool,
    /// Sends failed requests again, after the delay that the server asks for, for up to a minute
    #[arg(long)]
    retry: bool,
    /// Requests that are encoded once and sent in turn, 0.7 MB each
    #[arg(long, default_value_t = 128)]
    requests: usize,
    #[command(flatten)]
    traffic: TrafficOptions,
}

/// Options that change the plain traffic.
#[derive(clap::Args, Clone)]
pub(crate) struct TrafficOptions {
    /// Spans of a request, at least 16 [default: 1024; collectors: 8192, a Collector's batch]
    #[arg(long, value_parser = clap::value_parser!(u64).range(16..))]
    pub(crate) batch: Option<u64>,
    /// Spans of a trace: 1, 8 (which stands for 2 to 14), 64 or 1024
    #[arg(long, default_value_t = 8, value_parser = trace_spans)]
    pub(crate) trace_spans: u64,
    /// [default: medium; collectors: diverse]
    #[arg(long, value_enum)]
    pub(crate) span_size: Option<Size>,
    /// Half of a request's spans belong to one resource, half of the rest to the next, and so on
    #[arg(long)]
    pub(crate) skewed: bool,
    /// How much later one span of every sixteenth trace is sent; "0s": no span is late
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    pub(crate) late_after: Duration,
    /// Compresses requests; then `--requests` must suffice for the whole run [default: none;
    /// collectors: gzip]
    #[arg(long, value_enum)]
    pub(crate) compression: Option<Compression>,
}

/// A value in the form of the command line.
fn word(value: impl ValueEnum) -> String {
    let value = value.to_possible_value().expect("no value is hidden");
    value.get_name().to_owned()
}

fn trace_spans(text: &str) -> std::result::Result<u64, String> {
    let spans = text.parse().map_err(|_| "not a number")?;
    if [1, 8, 64, 1024].contains(&spans) { Ok(spans) } else { Err("1, 8, 64 or 1024".into()) }
}

impl TrafficOptions {
    pub(crate) fn batch(&self) -> u64 {
        self.batch.unwrap_or(SPANS_PER_REQUEST)
    }

    fn span_size(&self) -> Size {
        self.span_size.unwrap_or(Size::Medium)
    }

    fn compression(&self) -> Compression {
        self.compression.unwrap_or(Compression::None)
    }

    pub(crate) fn is_compressed(&self) -> bool {
        self.compression() != Compression::None
    }

    /// The options as arguments of the load.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("--batch={}", self.batch()),
            format!("--trace-spans={}", self.trace_spans),
            format!("--span-size={}", word(self.span_size())),
            format!("--late-after={}ms", self.late_after.as_millis()),
            format!("--compression={}", word(self.compression())),
        ];
        arguments.extend(self.skewed.then(|| "--skewed".to_owned()));
        arguments
    }
}

impl Options {
    fn requests_per_second(&self) -> f64 {
        self.rate as f64 / self.traffic.batch() as f64
    }

    fn shape(&self) -> Shape {
        let requests_in =
            |time: Duration| (time.as_secs_f64() * self.requests_per_second()).round() as u64;
        Shape {
            spans: self.traffic.batch(),
            requests: self.requests.max(1),
            resources: self.resources.max(1),
            stride: (requests_in(self.root_after) / 2).max(1),
            trace_spans: self.traffic.trace_spans,
            size: self.traffic.span_size(),
            is_skewed: self.traffic.skewed,
            late: requests_in(self.traffic.late_after),
            compression: self.traffic.compression(),
        }
    }
}

/// Loads the target until stdin ends, SIGTERM or `--max-seconds`.
pub(crate) fn run(options: Options) -> Result<()> {
    if options.rate == 0 || options.connections == 0 || options.in_flight == 0 {
        return Err("--rate, --connections and --in-flight must be at least 1".into());
    }
    let corpus = Corpus::build(&options.shape())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = LocalSet::new().block_on(&runtime, drive(options, corpus));
    runtime.shutdown_background();
    result
}

async fn drive(options: Options, corpus: Corpus) -> Result<()> {
    let loaded = Loaded {
        bytes_per_span: corpus.bytes_per_request / options.traffic.batch() as f64,
        expected_kept_percent: corpus.expected_kept_percent,
    };
    let encoding = options.traffic.compression().name();
    let spans_per_request = options.traffic.batch();
    let state = State { corpus, spans_per_request, encoding, lap: Lap::new() };
    let state = Rc::new(RefCell::new(state));
    let (tickets, queue) = mpsc::channel(TICKETS_MAX);
    let queue = Rc::new(Mutex::new(queue));
    let mut connections = Vec::new();
    for _ in 0..options.connections {
        let sender = Mutex::new(Some(connect(options.target).await?));
        let (persists, retries) = (options.persist || options.retry, options.retry);
        connections.push(Rc::new(Connection { target: options.target, persists, retries, sender }));
    }
    // Lanes start in the order in which they take turns: first the first lane of each connection.
    let mut lanes = JoinSet::new();
    for _ in 0..options.in_flight {
        for connection in &connections {
            lanes.spawn_local(lane(connection.clone(), queue.clone(), state.clone()));
        }
    }
    let mut control = Control::new()?;
    control::say(&loaded)?;
    state.borrow_mut().lap = Lap::new();
    let options_retry = options.retry;
    let is_over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&is_over);
    let pacing = tokio::task::spawn_blocking(move || pace(&tickets, &options, &told));
    converse(&mut control, &mut lanes, &state).await?;
    // The end of the pacer closes the queue, which ends each lane after its last request. The queue
    // itself cannot be closed from here: lanes that wait for a ticket hold its lock in turn, each
    // until a request is due.
    is_over.store(true, Relaxed);
    let drain_max = if options_retry { RETRY_MAX + DRAIN_MAX } else { DRAIN_MAX };
    let drain = async {
        pacing.await?;
        while lanes.join_next().await.is_some() {}
        Ok::<_, JoinError>(())
    };
    timeout(drain_max, drain).await.map_err(|_| "requests in flight were not answered")??;
    control::say(&state.borrow_mut().finish_lap())
}

/// Answers the orchestrator until it ends the conversation or the pacer's time is over.
async fn converse(
    control: &mut Control,
    lanes: &mut JoinSet<Result<()>>,
    state: &RefCell<State>,
) -> Result<()> {
    loop {
        tokio::select! {
            // A broken connection is checked first: laps after it would be wrong.
            biased;
            ended = lanes.join_next() => match ended {
                Some(lane) => lane??,
                None => return Ok(()),
            },
            ask = control.next() => match ask {
                Ask::Lap => control::say(&state.borrow_mut().finish_lap())?,
                Ask::End => return Ok(()),
            },
        }
    }
}

/// One request that is due.
#[derive(Clone, Copy)]
struct Ticket {
    sequence: u64,
    due: Instant,
}

/// Makes tickets at the given rate until the time is over or nobody takes them.
fn pace(tickets: &mpsc::Sender<Ticket>, options: &Options, is_over: &AtomicBool) {
    let start = Instant::now();
    let end = Duration::from_secs(options.max_seconds);
    let interval = 1.0 / options.requests_per_second();
    for sequence in 0.. {
        let offset = Duration::from_secs_f64(sequence as f64 * interval);
        let due = start + offset;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let is_over = offset >= end || is_over.load(Relaxed);
        if is_over || tickets.blocking_send(Ticket { sequence, due }).is_err() {
            return;
        }
    }
}

async fn connect(target: SocketAddr) -> Result<SendRequest<Bytes>> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = h2::client::Builder::new().handshake(stream).await?;
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            eprintln!("load_generator: connection to {target}: {error}");
        }
    });
    Ok(sender)
}

/// One connection and, if its senders reconnect, its successors.
struct Connection {
    target: SocketAddr,
    persists: bool,
    retries: bool,
    /// `None` after the connection broke.
    sender: Mutex<Option<SendRequest<Bytes>>>,
}

impl Connection {
    /// Sends one request once. An error ends the load.
    async fn export(&self, body: Bytes, encoding: &'static str) -> Result<Answer> {
        if !self.persists {
            let sender = self.sender.lock().await.clone().ok_or("the connection is gone")?;
            return match export(sender.ready().await?, body, encoding).await {
                Err(error) if error.is_reset() => Ok(Err(Failure::plain(error.to_string()))),
                answer => Ok(answer?),
            };
        }
        let answer = match timeout(ANSWER_MAX, self.try_export(body, encoding)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(broken)) => broken.to_string(),
            Err(_elapsed) => "no answer in time".into(),
        };
        *self.sender.lock().await = None;
        Ok(Err(Failure::plain(answer)))
    }

    async fn try_export(&self, body: Bytes, encoding: &'static str) -> Result<Answer> {
        let mut sender = self.sender.lock().await;
        let current = match &*sender {
            Some(current) => current.clone(),
            None => sender.insert(connect(self.target).await?).clone(),
        };
        drop(sender);
        Ok(export(current.ready().await?, body, encoding).await?)
    }
}

/// Sends requests on one connection, one at a time, until the queue is closed.
async fn lane(
    connection: Rc<Connection>,
    queue: Rc<Mutex<mpsc::Receiver<Ticket>>>,
    state: Rc<RefCell<State>>,
) -> Result<()> {
    loop {
        // The lock is fair, so that waiting lanes take turns.
        let next = queue.lock().await.recv().await;
        let Some(ticket) = next else { return Ok(()) };
        let body = state.borrow_mut().corpus.body(ticket.sequence);
        let body = body.ok_or("the compressed requests are used up: more --requests")?;
        let encoding = state.borrow().encoding;
        let began = Instant::now();
        let outcome = loop {
            let failure = match connection.export(body.clone(), encoding).await? {
                Ok(()) => break Ok(()),
                Err(failure) => failure,
            };
            if !connection.retries || began.elapsed() > RETRY_MAX {
                if connection.persists {
                    // Acts like a sender that ignores back-pressure, but does not spin.
                    sleep(RETRY_PAUSE / 10).await;
                }
                break Err(failure.text);
            }
            state.borrow_mut().lap.retries += 1;
            sleep(failure.retry_after.unwrap_or(RETRY_PAUSE)).await;
        };
        state.borrow_mut().lap.record(outcome, ticket.due);
    }
}

/// The server's answer; an error if it is not plain success.
type Answer = std::result::Result<(), Failure>;

/// Why a request was not taken, and the retry delay if the server names one.
struct Failure {
    text: String,
    retry_after: Option<Duration>,
}

impl Failure {
    fn plain(text: String) -> Self {
        Failure { text, retry_after: None }
    }
}

/// One unary call.
async fn export(
    mut sender: SendRequest<Bytes>,
    body: Bytes,
    encoding: &'static str,
) -> std::result::Result<Answer, h2::Error> {
    let request = Request::post(EXPORT_PATH)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-encoding", encoding)
        .body(())
        .expect("method, path and headers are constants that are valid");
    let (response, mut stream) = sender.send_request(request, false)?;
    // `h2` keeps the bytes that flow control does not allow yet: a whole request, at most one per
    // lane.
    stream.send_data(body, true)?;
    let (head, mut body) = response.await?.into_parts();
    let mut message = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        message.extend_from_slice(&data);
    }
    let trailers = body.trailers().await?.unwrap_or(head.headers);
    Ok(outcome(&trailers, &message))
}

/// Whether an answer has no partial success. Servers in Go compress the answers to compressed
/// requests.
fn is_taken_whole(message: &[u8]) -> bool {
    let Some((&[1, ..], gzip)) = message.split_first_chunk::<5>() else {
        return TAKEN_WHOLE.contains(&message);
    };
    let mut inflated = Vec::new();
    let read = flate2::read::GzDecoder::new(gzip).read_to_end(&mut inflated);
    read.is_ok() && TAKEN_WHOLE.iter().any(|taken| taken[5..] == inflated)
}

fn outcome(trailers: &HeaderMap, message: &[u8]) -> Answer {
    match Status::from_header_map(trailers) {
        Some(status) if status.code() == Code::Ok && is_taken_whole(message) => Ok(()),
        Some(status) if status.code() == Code::Ok => Err(Failure::plain("partial success".into())),
        Some(status) => {
            let retry_after = status.get_details_retry_info().and_then(|info| info.retry_delay);
            let text = format!("{:?}: {}", status.code(), status.message());
            Err(Failure { text, retry_after })
        }
        None => Err(Failure::plain("no grpc-status".into())),
    }
}

struct State {
    corpus: Corpus,
    spans_per_request: u64,
    encoding: &'static str,
    lap: Lap,
}

impl State {
    fn finish_lap(&mut self) -> LoadLap {
        let copies = std::mem::take(&mut self.corpus.copies);
        std::mem::replace(&mut self.lap, Lap::new()).finish(self.spans_per_request, copies)
    }
}

/// The figures since the orchestrator last asked.
struct Lap {
    start: Instant,
    /// One per acknowledged request: a few thousand, so that percentiles are exact.
    latencies: Vec<Duration>,
    failed_requests: u64,
    last_failure: Option<String>,
    /// Requests that were sent again.
    retries: u64,
}

impl Lap {
    fn new() -> Self {
        let start = Instant::now();
        Self { start, latencies: Vec::new(), failed_requests: 0, last_failure: None, retries: 0 }
    }

    fn record(&mut self, outcome: std::result::Result<(), String>, due: Instant) {
        match outcome {
            Ok(()) => self.latencies.push(due.elapsed()),
            Err(failure) => {
                self.failed_requests += 1;
                self.last_failure = Some(failure);
            }
        }
    }

    fn finish(mut self, spans_per_request: u64, copies: u64) -> LoadLap {
        self.latencies.sort_unstable();
        let requests = self.latencies.len();
        let quantile_ms = |per_mille: usize| {
            let rank = (requests * per_mille).div_ceil(1000).max(1) - 1;
            self.latencies.get(rank).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
        };
        LoadLap {
            seconds: self.start.elapsed().as_secs_f64(),
            requests: requests as u64,
            spans: requests as u64 * spans_per_request,
            failed_requests: self.failed_requests,
            ack_p50_ms: quantile_ms(500),
            ack_p99_ms: quantile_ms(990),
            ack_max_ms: quantile_ms(1000),
            last_failure: self.last_failure,
            retries: self.retries,
            copies,
        }
    }
}
