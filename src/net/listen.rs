//! Listeners: binding, and the accept loop.
//!
//! tonic's own server has no cap on connections, no deadline for a preface, spins when descriptors
//! run out and waits for ever for the last connection to close, so this is done here, on hyper.
//!
//! Limits: `max_connections`, beyond which the connection that has been silent longest makes room
//! or, where all have spoken, the new one is closed at once. `connection` bounds each of them.

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

pub use super::connection::LongLived;

const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

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
    /// After so long, 10 % more or less, a connection is told to leave.
    pub max_age: Option<Duration>,
    /// HTTP/2 streams of one connection.
    pub max_concurrent_streams: u32,
    /// What all connections together may have in flight.
    pub windows: Windows,
    /// Whether only HTTP/2 is spoken.
    pub http2_only: bool,
}

/// How the connections of one listener are served.
#[derive(Clone, Debug)]
pub struct Terms {
    /// What bounds them.
    pub limits: Limits,
    /// What they must pass first.
    pub tls: Option<Arc<Handshake>>,
    /// Contains their panics.
    pub supervised: Supervised,
    /// Counts them, where they are those of senders.
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
                if let Some(left_out) = crowded.ask() {
                    warn!(
                        connections_max,
                        left_out, "closed a connection at once: too many are open"
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
