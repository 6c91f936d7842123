//! Sockets and connections: the accept loop, and what bounds a connection.
//!
//! tonic's own server has no cap on connections, no deadline for a preface, spins when descriptors
//! run out and waits for ever for the last connection to close, so this is done here, on hyper.
//!
//! Limits: `max_connections`, beyond which the connection that has been silent longest makes room
//! or, where all have spoken, the new one is closed at once; 10 s for the preface; 16 KiB of
//! headers; a ping after 60 s of silence, answered within 20 s; 30 s in which none of the answers
//! that wait for their reader is read; 10 minutes without a request.

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
    time::Instant,
};
use tracing::{debug, warn};

use super::{REQUEST_TIMEOUT, windows::Windows};
use crate::supervise::{Panicked, Supervised};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// What is peeked at while that may be all there is.
const FIRST_BYTES: usize = 512;
const FIRST_BYTES_PAUSE_MAX: Duration = Duration::from_millis(500);
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// How often in that time an idle connection is looked at.
const IDLE_CHECKS: u32 = 10;
/// How often in [`REQUEST_TIMEOUT`] answers that wait for their reader are looked at.
const UNREAD_CHECKS: u32 = 3;
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Trouble that lasts is logged once in this time.
const WARN_INTERVAL: Duration = Duration::from_secs(10);
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

    /// Waits until the client has sent what HTTP begins with, and leaves it to be read; 0 where
    /// the connection ended first.
    fn first_bytes(&self, http2_only: bool) -> impl Future<Output = io::Result<usize>> + Send;
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

    async fn first_bytes(&self, http2_only: bool) -> io::Result<usize> {
        first_bytes(self, http2_only).await
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

/// Marks an answer whose body may take as long as it likes, such as a stream of health changes.
#[derive(Clone, Copy, Debug)]
pub struct LongLived;

/// Accepts and serves connections until `stop` turns true, then lets the requests under way finish.
pub async fn serve<L, A, F, B>(
    listener: L,
    limits: Limits,
    answer: A,
    stop: watch::Receiver<bool>,
    supervised: Supervised,
) where
    L: Listen,
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut connections = JoinSet::new();
    let mut silent = Silent::default();
    let mut trouble = Trouble::default();
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
                        supervised.supervisor.panicked(supervised.task);
                    }
                    continue;
                }
                stream = accept(&listener, &mut trouble) => stream,
            };
            if connections.len() >= limits.max_connections && !silent.make_room() {
                trouble.warn("closed a connection at once", &"max_connections are open");
                continue;
            }
            let must_leave = silent.add(limits.max_connections);
            let (limits, supervised) = (limits.clone(), supervised.clone());
            let connection = Connection { limits, stop: stop.clone(), supervised };
            connections.spawn(connection.serve(stream, answer.clone(), must_leave));
        }
    };
    while supervised.run(accepting()).await.is_err() {}
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn accept<L: Listen>(listener: &L, trouble: &mut Trouble) -> L::Stream {
    loop {
        match listener.accept().await {
            Ok(stream) => return stream,
            Err(error) => {
                // Out of descriptors, mostly: retrying at once would spin until one is free.
                trouble.warn("cannot accept a connection", &error);
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

/// What goes wrong again and again, in one line a while.
#[derive(Default)]
struct Trouble {
    warned: Option<Instant>,
    unsaid: u64,
}

impl Trouble {
    fn warn(&mut self, what: &str, why: &dyn std::fmt::Display) {
        if self.warned.is_some_and(|warned| warned.elapsed() < WARN_INTERVAL) {
            self.unsaid += 1;
            return;
        }
        let times_before = std::mem::take(&mut self.unsaid);
        warn!(%why, times_before, "{what}");
        self.warned = Some(Instant::now());
    }
}

struct Connection {
    limits: Limits,
    stop: watch::Receiver<bool>,
    supervised: Supervised,
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
    async fn serve<S, A, F, B>(self, stream: S, answer: A, mut must_leave: oneshot::Receiver<()>)
    where
        S: Connected,
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let peer = stream.peer_addr();
        let mut stop = self.stop.clone();
        let preface = stream.first_bytes(self.limits.http2_only);
        let preface = tokio::time::timeout(PREFACE_TIMEOUT, preface);
        let has_preface = tokio::select! {
            biased;
            _ = stop.wait_for(|&stop| stop) => return,
            read = preface => read.is_ok_and(|first| first.is_ok_and(|n| n > 0)),
            _ = &mut must_leave => false,
        };
        drop(must_leave);
        if !has_preface {
            return debug!(?peer, "closed a connection that sent no preface in time");
        }
        self.serve_http(stream, answer, peer).await;
    }

    async fn serve_http<S, A, F, B>(&self, stream: S, answer: A, peer: Option<SocketAddr>)
    where
        S: Connected,
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
        let window = self.limits.windows.grant();
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
    let mut first = vec![0; FIRST_BYTES];
    let mut pause = Duration::from_millis(10);
    loop {
        let read = stream.peek(&mut first).await?;
        if read == first.len() && read < HEADER_BYTES_MAX as usize {
            first.resize(HEADER_BYTES_MAX as usize, 0);
            continue;
        }
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
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(FIRST_BYTES_PAUSE_MAX);
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
