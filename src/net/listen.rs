//! Listeners: binding, and the accept loop.
//!
//! tonic's own server has no cap on connections and no deadline for a preface, spins when
//! descriptors run out, and waits for ever for the last connection to close. So this module accepts
//! connections itself, on top of hyper.
//!
//! Limits: `max_connections`. Beyond it, the connection that has been silent longest is closed; if
//! all have sent something, the new one is closed at once. `connection` bounds each connection.

use std::{collections::VecDeque, future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    task::JoinSet,
};
use tracing::warn;

use super::{connection::Connection, handshake::Handshake, tally::Tally, windows::Windows};
use crate::{supervise::Supervised, throttle::Throttle};

pub(crate) use super::activity::{Leash, LongLived};

const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A port could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("{key} = \"{endpoint}\": {error}")]
pub struct BindError {
    /// The configuration key that names the endpoint.
    pub(crate) key: &'static str,
    /// The endpoint as configured.
    pub(crate) endpoint: String,
    /// The error of the operating system.
    pub(crate) error: io::Error,
}

/// Binds the endpoint that the configuration names under `key`.
///
/// # Errors
/// [`BindError`] if the name does not resolve or the port is taken.
pub async fn bind(key: &'static str, endpoint: &str) -> Result<TcpListener, BindError> {
    TcpListener::bind(endpoint).await.map_err(|error| BindError {
        key,
        endpoint: endpoint.to_owned(),
        error,
    })
}

/// A source of connections: a port, or the network of a simulation.
pub trait Listen: Send + Sync + 'static {
    /// The type of an accepted connection.
    type Stream: Connected;

    /// The local address.
    ///
    /// # Errors
    /// The error of the operating system.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// Waits for the next connection.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// An accepted connection.
pub trait Connected: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The address of the client.
    fn peer_addr(&self) -> Option<SocketAddr>;
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    fn local_addr(&self) -> io::Result<SocketAddr> {
        TcpListener::local_addr(self)
    }

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = TcpListener::accept(self).await?;
        // This fails for a connection that is already closed; the next read will report that.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

impl Connected for TcpStream {
    fn peer_addr(&self) -> Option<SocketAddr> {
        TcpStream::peer_addr(self).ok()
    }
}

/// The limits of the connections of one listener.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections open at once.
    pub max_connections: usize,
    /// The age, 10 % more or less, at which a connection is told to leave.
    pub max_age: Option<Duration>,
    /// HTTP/2 streams of one connection.
    pub max_concurrent_streams: u32,
    /// The flow control windows of all connections together.
    pub windows: Windows,
    /// Whether only HTTP/2 is accepted.
    pub http2_only: bool,
    /// An HTTP/2 connection is checked with a ping after this much silence, and closed if the
    /// answer takes as long again, up to 20 s.
    pub keep_alive: Duration,
}

/// The terms under which the connections of one listener are served.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Their limits.
    pub limits: Limits,
    /// The TLS handshake they must complete, if any.
    pub tls: Option<Arc<Handshake>>,
    /// Contains their panics.
    pub supervised: Supervised,
    /// Counts them, on listeners for senders.
    pub tally: Option<Tally>,
}

/// Accepts and serves connections until `stop` turns true, then lets the requests under way finish.
pub async fn serve<L, A, F, B>(listener: L, terms: Terms, answer: A, stop: watch::Receiver<bool>)
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
    // A panic in here pauses the loop and closes no connection.
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
                        terms.supervised.supervisor.panicked(terms.supervised.task);
                    }
                    continue;
                }
                stream = accept(&listener, &trouble) => stream,
            };
            let connections_max = terms.limits.max_connections;
            if connections.len() >= connections_max && !silent.make_room() {
                if let Some(tally) = &terms.tally {
                    tally.turned_away();
                }
                if let Some(suppressed) = crowded.ask() {
                    warn!(
                        connections_max,
                        suppressed,
                        "closed a new connection: its listener is at its limit, and all open \
                         connections are in use; look for clients that open too many"
                    );
                }
                continue;
            }
            let must_leave = silent.add(connections_max);
            let connection = Connection::new(&terms, &stop);
            connections.spawn(connection.serve(stream, answer.clone(), must_leave));
        }
    };
    while terms.supervised.run(accepting()).await.is_err() {}
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn accept<L: Listen>(listener: &L, trouble: &Throttle) -> L::Stream {
    loop {
        match listener.accept().await {
            Ok(stream) => return stream,
            Err(error) => {
                // The usual cause is a lack of descriptors: an immediate retry would spin until one
                // is free.
                if let Some(suppressed) = trouble.ask() {
                    warn!(
                        %error,
                        suppressed,
                        "cannot accept connections; if too many files are open, raise the limit \
                         of open files"
                    );
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The connections that have sent nothing yet, the oldest first. Each holds the other end of its
/// channel: it drops that end when it sends its first bytes, and gets a message when it must leave.
#[derive(Default)]
struct Silent(VecDeque<oneshot::Sender<()>>);

impl Silent {
    /// Adds one connection, to at most `max`.
    fn add(&mut self, max: usize) -> oneshot::Receiver<()> {
        if self.0.len() >= max {
            self.0.retain(|connection| !connection.is_closed());
        }
        let (tell, must_leave) = oneshot::channel();
        self.0.push_back(tell);
        must_leave
    }

    /// Tells the connection that has been silent longest to leave; false if there is none.
    fn make_room(&mut self) -> bool {
        std::iter::from_fn(|| self.0.pop_front()).any(|connection| connection.send(()).is_ok())
    }
}
