//! Connections to the backend: resolves the name each time, tries its addresses in turn, and does
//! TLS for https.
//!
//! A rolling restart of the backend changes its addresses, so nothing that was resolved is kept.
//! The channel of [`Client`](super::Client) calls this whenever it has no connection; the consumers
//! wait for it, and retry. A failure is logged here, once every ten seconds, because only this
//! module knows the cause: the exporter only sees that the backend is unavailable.
//!
//! The first bytes from the backend tell whether it speaks the configured protocol. If it does not,
//! the connection ends with an error that says which protocol it speaks.

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
use hyper_util::{
    client::legacy::connect::{self, Connected},
    rt::TokioIo,
};
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
    config::{Exporter, Protocol},
    credentials::{ClientSide, Live},
    throttle::Throttle,
};

/// TCP keep-alive for idle connections, which routers on the way forget after some minutes. On an
/// active connection HTTP/2 sends pings itself.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Why a connection failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error("cannot resolve the host: {0}")]
    Resolve(io::Error),
    /// No address answered; these are the last one and its error.
    #[error("{0}: {1}")]
    Tcp(SocketAddr, io::Error),
    /// The TLS handshake failed.
    #[error("TLS handshake with {0} failed: {1}")]
    Tls(SocketAddr, io::Error),
    /// The host of the endpoint cannot occur in a certificate.
    #[error("the host is not a name or address that a certificate can contain")]
    Name,
}

/// How the backend proves its identity, and this service its own.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The certificates, read when a connection is made.
    pub(crate) certificates: Arc<Live<ClientSide>>,
    /// The name that the backend's certificate must be for; the host of the endpoint if `None`.
    pub(crate) server_name: Option<ServerName<'static>>,
}

/// Makes connections.
#[derive(Clone, Debug)]
pub struct Connector {
    timeout: Duration,
    protocol: Protocol,
    tls: Option<Tls>,
    throttle: Arc<Throttle>,
}

impl Connector {
    /// Makes connections for the protocol of this exporter, each within its `timeout`.
    pub fn new(config: &Exporter, tls: Option<Tls>) -> Self {
        let (timeout, protocol) = (config.timeout, config.protocol);
        Connector { timeout, protocol, tls, throttle: Arc::default() }
    }

    async fn connect(&self, uri: &Uri) -> Result<Connection, ConnectError> {
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        // A little less than tonic's own timeout, which would end the connection without an error.
        let deadline = Instant::now() + self.timeout * 9 / 10;
        let default_port = if self.tls.is_some() { 443 } else { 80 };
        let address = (host, uri.port_u16().unwrap_or(default_port));
        let (stream, address) = tcp(address, deadline).await?;
        let connection = |stream| Connection {
            stream,
            address,
            expected: Some(self.protocol),
            throttle: Arc::clone(&self.throttle),
        };
        let Some(tls) = &self.tls else { return Ok(connection(Stream::Plain(stream))) };
        let name = match &tls.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(|_| ConnectError::Name)?,
        };
        let side = tls.certificates.get();
        let config = match self.protocol {
            Protocol::Grpc => &side.grpc,
            Protocol::Http => &side.http,
        };
        let connector = TlsConnector::from(Arc::clone(config));
        let handshake = timeout_at(deadline, connector.connect(name, stream)).await;
        let stream = handshake
            .unwrap_or_else(timed_out)
            .map_err(|error| ConnectError::Tls(address, error))?;
        Ok(connection(Stream::Tls(Box::new(stream))))
    }
}

/// Connects to the first address that answers.
async fn tcp(
    host: (&str, u16),
    deadline: Instant,
) -> Result<(TcpStream, SocketAddr), ConnectError> {
    let addresses = timeout_at(deadline, lookup_host(host)).await.unwrap_or_else(timed_out);
    let addresses: Vec<_> = addresses.map_err(ConnectError::Resolve)?.collect();
    let mut failure = ConnectError::Resolve(io::ErrorKind::NotFound.into());
    for (tried, address) in addresses.iter().enumerate() {
        // Each address gets a share of the time, so that one that never answers leaves time for the
        // others.
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
                    if let Some(suppressed) = connector.throttle.ask() {
                        warn!(suppressed, "cannot connect to the backend {uri}: {error}");
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
    /// The protocol that the first bytes must belong to; `None` once they have arrived.
    expected: Option<Protocol>,
    throttle: Arc<Throttle>,
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection {
    /// Whether TLS has negotiated HTTP/2.
    fn is_http2(&self) -> bool {
        match &self.stream {
            Stream::Plain(_) => false,
            Stream::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }

    /// Checks the first bytes that the backend sends.
    fn look_at(&mut self, beginning: &[u8]) -> io::Result<()> {
        let Some(protocol) = self.expected.take_if(|_| !beginning.is_empty()) else {
            return Ok(());
        };
        let expects_http2 = protocol == Protocol::Grpc || self.is_http2();
        let Some(seems) = seems(beginning, expects_http2) else { return Ok(()) };
        if let Some(suppressed) = self.throttle.ask() {
            warn!(suppressed, "the backend at {} answers with {seems}", self.address);
        }
        Err(io::Error::other(format!("the backend answers with {seems}")))
    }
}

/// The protocol that the backend's first bytes belong to, and advice for the operator; `None` if it
/// is the expected protocol.
fn seems(beginning: &[u8], expects_http2: bool) -> Option<&'static str> {
    const SETTINGS: u8 = 4;
    match beginning {
        // A TLS alert, with which TLS servers answer everything that is not TLS.
        [0x15, 3, ..] => Some("TLS: write https:// in exporter.otlp.endpoint"),
        [b'H', b'T', b'T', b'P', b'/', ..] if expects_http2 => Some(
            "HTTP/1.1 and not gRPC: use the port of OTLP/gRPC, often 4317, or set \
             exporter.otlp.protocol = \"http/protobuf\"",
        ),
        [0, 0, _, SETTINGS, ..] if !expects_http2 => Some(
            "HTTP/2 without TLS, as OTLP/gRPC does: use the port of OTLP/HTTP, often 4318, or set \
             exporter.otlp.protocol = \"grpc\"",
        ),
        _ => None,
    }
}

impl connect::Connection for Connection {
    fn connected(&self) -> Connected {
        let connected = Connected::new();
        if self.is_http2() { connected.negotiated_h2() } else { connected }
    }
}

/// Calls a method of the stream below.
macro_rules! below {
    ($self:ident, $method:ident($($argument:expr),*)) => {
        match &mut $self.stream {
            Stream::Plain(stream) => Pin::new(stream).$method($($argument),*),
            Stream::Tls(stream) => Pin::new(stream).$method($($argument),*),
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buffer.filled().len();
        let read = ready!(below!(self, poll_read(context, buffer)));
        // A backend that refuses this service's certificate reports it only after the handshake.
        if let Err(error) = &read
            && error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
            && let Some(suppressed) = self.throttle.ask()
        {
            let address = self.address;
            warn!(suppressed, "the backend ended the connection to {address} over TLS: {error}");
        }
        Poll::Ready(read.and_then(|()| self.look_at(&buffer.filled()[filled..])))
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
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        below!(self, poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        below!(self, poll_shutdown(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell_what_a_backend_speaks() {
        let settings = [0, 0, 0x12, 4, 0, 0, 0, 0, 0];
        for (beginning, expects_http2, expected) in [
            (&settings[..], true, None),
            (&settings, false, Some("HTTP/2 without TLS")),
            (b"HTTP/1.1 400 Bad Request\r\n", true, Some("HTTP/1.1 and not gRPC")),
            (b"HTTP/1.1 200 OK\r\n", false, None),
            (&[0x15, 3, 1, 0, 2], true, Some("TLS")),
            (&[0x15, 3, 3, 0, 2], false, Some("TLS")),
            (b"SSH-2.0", true, None),
        ] {
            let told = seems(beginning, expects_http2);
            let is_so = told.zip(expected).is_some_and(|(told, begins)| told.starts_with(begins));
            assert!(is_so || told.is_none() && expected.is_none(), "{beginning:?}: {told:?}");
        }
    }
}
