//! Sockets and connections: the accept loop, and what bounds a connection.
//!
//! tonic's own server has no cap on connections, no deadline for a preface, spins when descriptors
//! run out and waits for ever for the last connection to close, so this is done here, on hyper.
//!
//! Limits: `max_connections`, beyond which the connection that has been silent longest makes room
//! or, where all have spoken, the new one is closed at once; 10 s for the TLS handshake and the
//! preface together; 16 KiB of headers; a ping after 60 s of silence, answered within 20 s; 30 s in
//! which none of the answers that wait for their reader is read; 10 minutes without a request.

use std::{
    collections::VecDeque,
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
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tracing::{debug, warn};

use super::{deadline::REQUEST_TIMEOUT, handshake::Handshake, preface::begun, windows::Windows};
use crate::{
    supervise::{Panicked, Supervised},
    throttle::Throttle,
};

const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// How often in that time an idle connection is looked at.
const IDLE_CHECKS: u32 = 10;
/// How often in [`REQUEST_TIMEOUT`] answers that wait for their reader are looked at.
const UNREAD_CHECKS: u32 = 3;
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
const HEADER_BYTES_MAX: u32 = 16 << 10;

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

/// Where connections come from: a port, or the network of a simulation.
pub trait Listen: Send + Sync + 'static {
    /// What is accepted.
    type Stream: Connected;

    /// Where it listens.
    ///
    /// # Errors
    /// When the operating system does not tell.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// The next connection.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// A connection that was accepted.
pub trait Connected: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Where it comes from.
    fn peer_addr(&self) -> Option<SocketAddr>;
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    fn local_addr(&self) -> io::Result<SocketAddr> {
        TcpListener::local_addr(self)
    }

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = TcpListener::accept(self).await?;
        // Fails for one that is gone already, which reading from it will tell.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

impl Connected for TcpStream {
    fn peer_addr(&self) -> Option<SocketAddr> {
        TcpStream::peer_addr(self).ok()
    }
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

/// What connections come through.
#[derive(Clone, Debug)]
pub struct Door {
    /// What bounds them.
    pub limits: Limits,
    /// What they must pass first.
    pub tls: Option<Arc<Handshake>>,
    /// Contains their panics.
    pub supervised: Supervised,
}

/// Marks an answer whose body may take as long as it likes, such as a stream of health changes.
#[derive(Clone, Copy, Debug)]
pub struct LongLived;

/// Accepts and serves connections until `stop` turns true, then lets the requests under way finish.
pub async fn serve<L, A, F, B>(listener: L, door: Door, answer: A, stop: watch::Receiver<bool>)
where
    L: Listen,
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut connections = JoinSet::new();
    let (crowded, trouble) = (Throttle::default(), Throttle::default());
    let mut silent = Silent::default();
    // A panic in here costs the loop a pause, and no connection.
    let mut accepting = async || {
        let mut stop = stop.clone();
        loop {
            let stream = tokio::select! {
                // Stopping comes first: connections that arrive with it belong to the next
                // instance.
                biased;
                _ = stop.wait_for(|&stop| stop) => break,
                Some(ended) = connections.join_next() => {
                    if ended.is_err_and(|error| error.is_panic()) {
                        door.supervised.supervisor.panicked(door.supervised.task);
                    }
                    continue;
                }
                stream = accept(&listener, &trouble) => stream,
            };
            let connections_max = door.limits.max_connections;
            if connections.len() >= connections_max && !silent.make_room() {
                if let Some(left_out) = crowded.ask() {
                    warn!(
                        connections_max,
                        left_out, "closed a connection at once: too many are open"
                    );
                }
                continue;
            }
            let must_leave = silent.add(connections_max);
            let connection = Connection { door: door.clone(), stop: stop.clone() };
            connections.spawn(connection.serve(stream, answer.clone(), must_leave));
        }
    };
    while door.supervised.run(accepting()).await.is_err() {}
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn accept<L: Listen>(listener: &L, trouble: &Throttle) -> L::Stream {
    loop {
        match listener.accept().await {
            Ok(stream) => return stream,
            Err(error) => {
                // Out of descriptors, mostly: retrying at once would spin until one is free.
                if let Some(left_out) = trouble.ask() {
                    warn!(%error, left_out, "cannot accept a connection");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Connections that have not spoken yet, the oldest first: what they hold is dropped when they do,
/// and told when they must leave.
#[derive(Default)]
struct Silent(VecDeque<oneshot::Sender<()>>);

impl Silent {
    /// One more connection, of at most `max`.
    fn add(&mut self, max: usize) -> oneshot::Receiver<()> {
        if self.0.len() >= max {
            self.0.retain(|connection| !connection.is_closed());
        }
        let (tell, must_leave) = oneshot::channel();
        self.0.push_back(tell);
        must_leave
    }

    /// Makes the one that has been silent longest leave; false where there is none.
    fn make_room(&mut self) -> bool {
        std::iter::from_fn(|| self.0.pop_front()).any(|connection| connection.send(()).is_ok())
    }
}

struct Connection {
    door: Door,
    stop: watch::Receiver<bool>,
}

/// A connection that has not spoken yet.
struct Arrival {
    peer: Option<SocketAddr>,
    deadline: Instant,
    must_leave: oneshot::Receiver<()>,
}

/// Requests under way and answers unread, and how many there have been, to tell a connection that
/// is idle from one that does not read.
#[derive(Default)]
struct Activity {
    under_way: Arc<AtomicUsize>,
    begun: AtomicU64,
    unread: AtomicUsize,
    answered: AtomicU64,
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

/// An answer that was not read yet, until this is dropped.
struct Unread(Arc<Activity>);

impl Unread {
    fn one_more(activity: &Arc<Activity>) -> Self {
        activity.unread.fetch_add(1, Relaxed);
        Unread(Arc::clone(activity))
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.0.unread.fetch_sub(1, Relaxed);
        self.0.answered.fetch_add(1, Relaxed);
    }
}

impl Connection {
    async fn serve<S, A, F, B>(self, stream: S, answer: A, must_leave: oneshot::Receiver<()>)
    where
        S: Connected,
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let peer = stream.peer_addr();
        // One deadline for the handshake and the preface behind it.
        let mut arrival = Arrival { peer, deadline: Instant::now() + PREFACE_TIMEOUT, must_leave };
        let Some(tls) = &self.door.tls else {
            return self.serve_stream(stream, arrival, answer).await;
        };
        let mut stop = self.stop.clone();
        let stream = tokio::select! {
            biased;
            _ = stop.wait_for(|&stop| stop) => return,
            stream = tls.accept(stream, peer, PREFACE_TIMEOUT) => stream,
            _ = &mut arrival.must_leave => return,
        };
        if let Some(stream) = stream {
            self.serve_stream(stream, arrival, answer).await;
        }
    }

    async fn serve_stream<S, A, F, B>(&self, stream: S, mut arrival: Arrival, answer: A)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let limits = &self.door.limits;
        let head_bytes_max = (!limits.http2_only).then_some(HEADER_BYTES_MAX as usize);
        let mut stop = self.stop.clone();
        let begun = tokio::select! {
            biased;
            _ = stop.wait_for(|&stop| stop) => return,
            begun = timeout_at(arrival.deadline, begun(stream, head_bytes_max)) => begun,
            _ = &mut arrival.must_leave => return,
        };
        let peer = arrival.peer;
        // It has spoken, and makes room for nobody any more.
        drop(arrival);
        let Ok(Ok(Some(stream))) = begun else {
            return debug!(?peer, "closed a connection that sent no preface in time");
        };
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
        let (seen, supervised) = (Arc::clone(&activity), self.door.supervised.clone());
        let service = service_fn(move |request| {
            seen.begun.fetch_add(1, Relaxed);
            let under_way = Counted::one_more(&seen.under_way);
            let (answered, supervised) = (answer(request), supervised.clone());
            let seen = Arc::clone(&seen);
            async move {
                let _under_way = under_way;
                // A panic resets the stream over HTTP/2, and closes the connection over HTTP/1.
                let response = supervised.contained(answered).await?;
                let is_long_lived = response.extensions().get::<LongLived>().is_some();
                let unread = (!is_long_lived).then(|| Unread::one_more(&seen));
                // hyper drops a body when the last of it is written. Errors stay as they are.
                let held = move |error| (error, &unread).0;
                Ok::<_, Panicked>(response.map(|body| body.map_err(held)))
            }
        });
        let window = self.door.limits.windows.grant();
        let builder = self.builder(window.bytes as u32);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut stop = self.stop.clone();
        let mut is_stopping = false;
        let mut idle = pin!(idle(&activity));
        let mut never_read = pin!(never_read(&activity));
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
                () = &mut never_read => {
                    return debug!(?peer, "closed a connection that read no answer in time");
                }
                () = &mut idle, if !is_stopping => {
                    connection.as_mut().graceful_shutdown();
                    break;
                }
            }
        }
        // Whatever holds an idle connection open has had ten minutes already.
        let _ = tokio::time::timeout(REQUEST_TIMEOUT, connection).await;
    }

    fn builder(&self, window: u32) -> auto::Builder<TokioExecutor> {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(window)
            .initial_connection_window_size(window)
            .max_concurrent_streams(self.door.limits.max_concurrent_streams)
            .max_header_list_size(HEADER_BYTES_MAX)
            .keep_alive_interval(Duration::from_secs(60))
            .keep_alive_timeout(Duration::from_secs(20));
        // The first head is waited for above; later ones end the idle time of a connection.
        builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE_TIMEOUT);
        if self.door.limits.http2_only { builder.http2_only() } else { builder }
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

/// Ends when answers wait for their reader and none of them went out for the time of a request.
async fn never_read(activity: &Activity) {
    let (mut answered, mut stuck) = (0, 0);
    while stuck < UNREAD_CHECKS {
        tokio::time::sleep(REQUEST_TIMEOUT / UNREAD_CHECKS).await;
        let now = activity.answered.load(Relaxed);
        let is_stuck = now == answered && activity.unread.load(Relaxed) > 0;
        stuck = if is_stuck { stuck + 1 } else { 0 };
        answered = now;
    }
}
