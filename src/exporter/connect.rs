//! Connections to the backend: names resolved each time, addresses tried in turn, TLS for https.
//!
//! A rolling restart of the backend changes its addresses, so nothing that was resolved is kept.
//! Called by the channel of [`Client`](super::Client) whenever it has no connection; consumers wait
//! for it, and retry. That it fails is logged here, once every ten seconds, because this is the one
//! place that knows why; the exporter only sees that the backend is unavailable.

use std::{
    future::Future,
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, lookup_host},
    time::{Instant, error::Elapsed, timeout, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower_service::Service;
use tracing::{debug, warn};

use crate::{
    credentials::{ClientSide, Live},
    throttle::Throttle,
};

/// HTTP/2 asks an active connection for signs of life itself. This is for idle ones, which routers
/// on the way forget after some minutes.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// There is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error("cannot resolve the host: {0}")]
    Resolve(io::Error),
    /// No address answered; this is the last one.
    #[error("{0}: {1}")]
    Tcp(SocketAddr, io::Error),
    /// TLS came to nothing.
    #[error("TLS with {0}: {1}")]
    Tls(SocketAddr, io::Error),
    /// The host of the endpoint cannot stand in a certificate.
    #[error("no certificate can be for this host")]
    Name,
}

/// How the backend is known to be itself, and this service to it.
#[derive(Clone, Debug)]
pub struct Tls {
    /// As they are when a connection is made.
    pub certificates: Arc<Live<ClientSide>>,
    /// What the backend's certificate must be for; without it, the host of the endpoint.
    pub server_name: Option<ServerName<'static>>,
}

/// Makes connections.
#[derive(Clone, Debug)]
pub struct Connector {
    timeout: Duration,
    tls: Option<Tls>,
    throttle: Arc<Throttle>,
}

impl Connector {
    /// With `timeout` for all that a connection takes.
    pub fn new(timeout: Duration, tls: Option<Tls>) -> Self {
        Connector { timeout, tls, throttle: Arc::default() }
    }

    async fn connect(&self, uri: &Uri) -> Result<Connection, ConnectError> {
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        // A little less than what tonic gives, which would end it without a word.
        let deadline = Instant::now() + self.timeout * 9 / 10;
        let address = (host, uri.port_u16().unwrap_or(4317));
        let (stream, address) = tcp(address, deadline).await?;
        let Some(tls) = &self.tls else {
            return Ok(Connection { stream: Stream::Plain(stream), address });
        };
        let name = match &tls.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(|_| ConnectError::Name)?,
        };
        let connector = TlsConnector::from(Arc::clone(&tls.certificates.get().config));
        let handshake = timeout_at(deadline, connector.connect(name, stream)).await;
        let stream = handshake
            .unwrap_or_else(timed_out)
            .map_err(|error| ConnectError::Tls(address, error))?;
        let throttle = Arc::clone(&self.throttle);
        Ok(Connection { stream: Stream::Tls(Box::new(stream), throttle), address })
    }
}

/// A connection to the first address that answers.
async fn tcp(
    host: (&str, u16),
    deadline: Instant,
) -> Result<(TcpStream, SocketAddr), ConnectError> {
    let addresses = timeout_at(deadline, lookup_host(host)).await.unwrap_or_else(timed_out);
    let addresses: Vec<_> = addresses.map_err(ConnectError::Resolve)?.collect();
    let mut failure = ConnectError::Resolve(io::ErrorKind::NotFound.into());
    for (tried, address) in addresses.iter().enumerate() {
        // So that one that swallows everything leaves time for those behind it.
        let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let share = deadline.saturating_duration_since(Instant::now()) / left;
        let connected = timeout(share, TcpStream::connect(address)).await.unwrap_or_else(timed_out);
        match connected.and_then(|stream| prepare(&stream).map(|()| stream)) {
            Ok(stream) => return Ok((stream, *address)),
            Err(error) => failure = ConnectError::Tcp(*address, error),
        }
    }
    Err(failure)
}

fn timed_out<T>(_elapsed: Elapsed) -> io::Result<T> {
    Err(io::ErrorKind::TimedOut.into())
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Connection>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            match connector.connect(&uri).await {
                Ok(connection) => {
                    debug!(address = %connection.address, "connected to the backend");
                    Ok(TokioIo::new(connection))
                }
                Err(error) => {
                    if let Some(left_out) = connector.throttle.ask() {
                        warn!(left_out, "cannot connect to the backend {uri}: {error}");
                    }
                    Err(error)
                }
            }
        })
    }
}

/// A connection to the backend.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    address: SocketAddr,
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>, Arc<Throttle>),
}

/// Calls a method of whatever is below.
macro_rules! below {
    ($self:ident, $method:ident($($argument:expr),*)) => {
        match &mut $self.stream {
            Stream::Plain(stream) => Pin::new(stream).$method($($argument),*),
            Stream::Tls(stream, _) => Pin::new(stream).$method($($argument),*),
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(below!(self, poll_read(context, buffer)));
        // A backend that refuses this service's certificate says so only after the handshake.
        if let (Stream::Tls(_, throttle), Err(error)) = (&self.stream, &read)
            && error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
            && let Some(left_out) = throttle.ask()
        {
            let address = self.address;
            warn!(left_out, "the backend ended the connection: TLS with {address}: {error}");
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        below!(self, poll_write(context, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        below!(self, poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream, _) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        below!(self, poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        below!(self, poll_shutdown(context))
    }
}
