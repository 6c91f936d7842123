//! Sockets and connections: the accept loop, and what bounds a connection.
//!
//! tonic's own server has no cap on connections, no deadline for a preface, spins when descriptors
//! run out and waits for ever for the last connection to close, so this is done here, on hyper. A
//! connection gets HTTP/2 windows that keep what all senders may have in flight within an eighth of
//! the memory limit, between 64 KiB (smaller ones cost up to 22 % more CPU) and 1 MiB (larger ones
//! gained nothing).
//!
//! Limits: `max_connections`, beyond which connections wait in the backlog; 10 s for the TLS
//! handshake and the preface together; 16 KiB of headers; a ping after 60 s of silence, answered
//! within 20 s; 10 minutes without a request.

use std::{
    convert::Infallible,
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
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tracing::{debug, warn};

use super::{handshake::Handshake, preface::begun};

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
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open at once.
    pub max_connections: usize,
    /// HTTP/2 streams of one connection.
    pub max_concurrent_streams: u32,
    /// What all connections together may have in flight by their windows.
    pub window_bytes: usize,
    /// Whether only HTTP/2 is spoken.
    pub http2_only: bool,
}

/// Accepts and serves connections until `stop` turns true, then lets the requests under way finish.
pub async fn serve<A, F, B>(
    listener: TcpListener,
    limits: Limits,
    answer: A,
    stop: watch::Receiver<bool>,
) where
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    serve_behind(None, listener, limits, answer, stop).await;
}

/// [`serve`] behind TLS, where there is any.
pub async fn serve_behind<A, F, B>(
    tls: Option<Arc<Handshake>>,
    listener: TcpListener,
    limits: Limits,
    answer: A,
    mut stop: watch::Receiver<bool>,
) where
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let permits = Arc::new(Semaphore::new(limits.max_connections));
    let open = Arc::new(AtomicUsize::new(0));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            // Stopping comes first: connections that arrive with it belong to the next instance.
            biased;
            _ = stop.wait_for(|&stop| stop) => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener, &permits) => accepted,
        };
        let (stream, permit) = accepted;
        let (open, tls, stop) = (Arc::clone(&open), tls.clone(), stop.clone());
        let connection = Connection { limits, tls, open, stop };
        let answer = answer.clone();
        connections.spawn(async move {
            connection.serve(stream, answer).await;
            drop(permit);
        });
    }
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
    tls: Option<Arc<Handshake>>,
    open: Arc<AtomicUsize>,
    stop: watch::Receiver<bool>,
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
        // One deadline for the handshake and the preface behind it.
        let deadline = Instant::now() + PREFACE_TIMEOUT;
        let Some(tls) = &self.tls else {
            return self.serve_stream(stream, peer, deadline, answer).await;
        };
        let mut stop = self.stop.clone();
        let stream = tokio::select! {
            biased;
            _ = stop.wait_for(|&stop| stop) => return,
            stream = tls.accept(stream, peer, PREFACE_TIMEOUT) => stream,
        };
        if let Some(stream) = stream {
            self.serve_stream(stream, peer, deadline, answer).await;
        }
    }

    async fn serve_stream<S, A, F, B>(
        &self,
        stream: S,
        peer: Option<SocketAddr>,
        deadline: Instant,
        answer: A,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let head_bytes_max = (!self.limits.http2_only).then_some(HEADER_BYTES_MAX as usize);
        let mut stop = self.stop.clone();
        let begun = tokio::select! {
            biased;
            _ = stop.wait_for(|&stop| stop) => return,
            begun = timeout_at(deadline, begun(stream, head_bytes_max)) => begun,
        };
        let Ok(Ok(Some(stream))) = begun else {
            return debug!(?peer, "closed a connection that sent no preface in time");
        };
        let _open = Counted::one_more(&self.open);
        self.serve_http(stream, answer, peer).await;
    }

    async fn serve_http<S, A, F, B>(&self, stream: S, answer: A, peer: Option<SocketAddr>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let activity = Arc::new(Activity::default());
        let seen = Arc::clone(&activity);
        let service = service_fn(move |request| {
            seen.begun.fetch_add(1, Relaxed);
            let under_way = Counted::one_more(&seen.under_way);
            let answered = answer(request);
            async move {
                let _under_way = under_way;
                Ok::<_, Infallible>(answered.await)
            }
        });
        let builder = self.builder();
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

    fn builder(&self) -> auto::Builder<TokioExecutor> {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        let share = self.limits.window_bytes / self.open.load(Relaxed).max(1);
        let window = share.clamp(*WINDOW_BYTES.start(), *WINDOW_BYTES.end()) as u32;
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
