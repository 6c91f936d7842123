//! Sockets and connections: the accept loop, and what bounds a connection.
//!
//! tonic's own server has no cap on connections, no deadline for a preface, spins when descriptors
//! run out and waits for ever for the last connection to close, so this is done here, on hyper. A
//! connection gets HTTP/2 windows out of an eighth of the memory limit, a quarter of what is left
//! of it, between 64 KiB (less HTTP/2 does not know for a connection) and 1 MiB (larger ones gained
//! nothing). What senders may fill by them is reserved in the budget: a thousand that send at once
//! made 500 MiB of a limit of 256.
//!
//! Limits: `max_connections`, beyond which connections wait in the backlog; 10 s for the preface;
//! 16 KiB of headers; a ping after 60 s of silence, answered within 20 s; 10 minutes without a
//! request.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tracing::{debug, warn};

use crate::{
    budget::{Budget, Reserve},
    supervise::Supervised,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// How often in that time an idle connection is looked at.
const IDLE_CHECKS: u32 = 10;
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
const HEADER_BYTES_MAX: u32 = 16 << 10;
const WINDOW_BYTES: std::ops::RangeInclusive<usize> = (64 << 10)..=(1 << 20);

/// A port cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("{key} = \"{endpoint}\": {error}")]
pub struct BindError {
    /// The configuration key that names the endpoint.
    pub key: &'static str,
    /// As configured.
    pub endpoint: String,
    /// Why not.
    pub error: io::Error,
}

/// Binds the endpoint that a key of the configuration names.
///
/// # Errors
/// [`BindError`] when the name does not resolve or the port is taken.
pub async fn bind(key: &'static str, endpoint: &str) -> Result<TcpListener, BindError> {
    TcpListener::bind(endpoint).await.map_err(|error| BindError {
        key,
        endpoint: endpoint.to_owned(),
        error,
    })
}

/// What bounds the connections of one listener.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open at once.
    pub max_connections: usize,
    /// HTTP/2 streams of one connection.
    pub max_concurrent_streams: u32,
    /// What all connections together may have in flight.
    pub windows: Windows,
    /// Whether only HTTP/2 is spoken.
    pub http2_only: bool,
}

/// What the HTTP/2 windows of connections are granted from. Clones share it.
#[derive(Clone, Debug)]
pub struct Windows(Arc<WindowsLeft>);

#[derive(Debug)]
struct WindowsLeft {
    bytes: usize,
    granted: AtomicUsize,
    budget: Option<Arc<Budget>>,
}

/// A connection's window, until it ends.
struct Granted {
    windows: Windows,
    bytes: usize,
    _reserve: Option<Reserve>,
}

impl Windows {
    /// Grants from so many bytes, which are reserved in the budget where there is one.
    pub fn new(bytes: usize, budget: Option<&Arc<Budget>>) -> Self {
        let (granted, budget) = (AtomicUsize::new(0), budget.cloned());
        Windows(Arc::new(WindowsLeft { bytes, granted, budget }))
    }

    fn grant(&self) -> Granted {
        let left = self.0.bytes.saturating_sub(self.0.granted.load(Relaxed));
        let bytes = (left / 4).clamp(*WINDOW_BYTES.start(), *WINDOW_BYTES.end());
        self.0.granted.fetch_add(bytes, Relaxed);
        let reserve = self.0.budget.as_ref().map(|budget| budget.reserve(bytes));
        Granted { windows: self.clone(), bytes, _reserve: reserve }
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        self.windows.0.granted.fetch_sub(self.bytes, Relaxed);
    }
}

/// Accepts and serves connections until `stop` turns true, then lets the requests under way finish.
pub async fn serve<A, F, B>(
    listener: TcpListener,
    limits: Limits,
    answer: A,
    stop: watch::Receiver<bool>,
    supervised: Supervised,
) where
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let permits = Arc::new(Semaphore::new(limits.max_connections));
    let mut connections = JoinSet::new();
    // A panic in here costs the loop a pause, and no connection.
    let mut accepting = async || {
        let mut stop = stop.clone();
        loop {
            let (stream, permit) = tokio::select! {
                // Stopping comes first: connections that arrive with it belong to the next
                // instance.
                biased;
                _ = stop.wait_for(|&stop| stop) => break,
                Some(ended) = connections.join_next() => {
                    if ended.is_err_and(|error| error.is_panic()) {
                        supervised.supervisor.panicked(supervised.task);
                    }
                    continue;
                }
                accepted = accept(&listener, &permits) => accepted,
            };
            let (limits, supervised) = (limits.clone(), supervised.clone());
            let connection = Connection { limits, stop: stop.clone(), supervised };
            let answer = answer.clone();
            connections.spawn(async move {
                connection.serve(stream, answer).await;
                drop(permit);
            });
        }
    };
    while supervised.run(accepting()).await.is_err() {}
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> (TcpStream, tokio::sync::OwnedSemaphorePermit) {
    let permit = Arc::clone(permits).acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, permit),
            Err(error) => {
                // Out of descriptors, mostly: retrying at once would spin until one is free.
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

struct Connection {
    limits: Limits,
    stop: watch::Receiver<bool>,
    supervised: Supervised,
}

/// Requests under way, and how many there have been, to tell an idle connection.
#[derive(Default)]
struct Activity {
    under_way: Arc<AtomicUsize>,
    begun: AtomicU64,
}

/// One of a number, until this is dropped: a request whose client goes away is dropped, not
/// answered.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn one_more(number: &Arc<AtomicUsize>) -> Self {
        number.fetch_add(1, Relaxed);
        Counted(Arc::clone(number))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Connection {
    async fn serve<A, F, B>(self, stream: TcpStream, answer: A)
    where
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let peer = stream.peer_addr().ok();
        if stream.set_nodelay(true).is_err() {
            return;
        }
        let mut stop = self.stop.clone();
        let preface =
            tokio::time::timeout(PREFACE_TIMEOUT, first_bytes(&stream, self.limits.http2_only));
        let has_preface = tokio::select! {
            biased;
            _ = stop.wait_for(|&stop| stop) => return,
            read = preface => read.is_ok_and(|first| first.is_ok_and(|n| n > 0)),
        };
        if !has_preface {
            return debug!(?peer, "closed a connection that sent no preface in time");
        }
        self.serve_http(stream, answer, peer).await;
    }

    async fn serve_http<A, F, B>(&self, stream: TcpStream, answer: A, peer: Option<SocketAddr>)
    where
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let activity = Arc::new(Activity::default());
        let (seen, supervised) = (Arc::clone(&activity), self.supervised.clone());
        let service = service_fn(move |request| {
            seen.begun.fetch_add(1, Relaxed);
            let under_way = Counted::one_more(&seen.under_way);
            let (answered, supervised) = (answer(request), supervised.clone());
            async move {
                let _under_way = under_way;
                // A panic resets the stream over HTTP/2, and closes the connection over HTTP/1.
                supervised.contained(answered).await
            }
        });
        let window = self.limits.windows.grant();
        let builder = self.builder(window.bytes as u32);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut stop = self.stop.clone();
        let mut is_stopping = false;
        let mut idle = pin!(idle(&activity));
        loop {
            tokio::select! {
                // The connection comes first: what it has read is served before it is told to go.
                biased;
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        debug!(?peer, error, "connection ended");
                    }
                    return;
                }
                _ = stop.wait_for(|&stop| stop), if !is_stopping => {
                    is_stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = &mut idle, if !is_stopping => {
                    is_stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }

    fn builder(&self, window: u32) -> auto::Builder<TokioExecutor> {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(window)
            .initial_connection_window_size(window)
            .max_concurrent_streams(self.limits.max_concurrent_streams)
            .max_header_list_size(HEADER_BYTES_MAX)
            .keep_alive_interval(Duration::from_secs(60))
            .keep_alive_timeout(Duration::from_secs(20));
        // The first head is waited for above; later ones end the idle time of a connection.
        builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE_TIMEOUT);
        if self.limits.http2_only { builder.http2_only() } else { builder }
    }
}

/// Waits until the client has sent a whole HTTP/2 preface, the whole head of a first HTTP/1
/// request, or what is neither and hyper refuses. Peeked, so that hyper reads it again.
async fn first_bytes(stream: &TcpStream, http2_only: bool) -> io::Result<usize> {
    // Before there is a buffer: silent connections are to cost next to nothing.
    stream.readable().await?;
    let mut first = vec![0; HEADER_BYTES_MAX as usize];
    loop {
        let read = stream.peek(&mut first).await?;
        let is_half = match &first[..read] {
            [] => false,
            preface if PREFACE.starts_with(preface) => read < PREFACE.len(),
            [b'A'..=b'Z', ..] if !http2_only => {
                read < first.len() && !first[..read].windows(4).any(|four| four == b"\r\n\r\n")
            }
            _ => false,
        };
        if !is_half {
            return Ok(read);
        }
        // Readiness does not come again for bytes that are only peeked at.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Ends when no request was under way for the idle timeout.
async fn idle(activity: &Activity) {
    let (mut begun, mut quiet) = (0, 0);
    while quiet < IDLE_CHECKS {
        tokio::time::sleep(IDLE_TIMEOUT / IDLE_CHECKS).await;
        let now = activity.begun.load(Relaxed);
        let is_quiet = now == begun && activity.under_way.load(Relaxed) == 0;
        quiet = if is_quiet { quiet + 1 } else { 0 };
        begun = now;
    }
}
