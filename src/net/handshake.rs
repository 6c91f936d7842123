//! TLS in front of a receiver. A handshake that fails costs the connection, is counted, and one of
//! them is logged every ten seconds: whoever reaches the port can make them fail.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::{Error, InvalidMessage};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tracing::{debug, warn};

use super::preface::{Begun, spoken};
use crate::{
    credentials::{Live, ServerSide},
    metrics::{Closed, Metrics, Transport},
    throttle::Throttle,
};

/// TLS of one receiver.
#[derive(Debug)]
pub struct Handshake {
    certificates: Arc<Live<ServerSide>>,
    transport: Transport,
    metrics: Arc<Metrics>,
    throttle: Throttle,
}

/// Why there is no TLS connection.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("it was not finished within {} s", .0.as_secs())]
    Late(Duration),
    #[error("the client does not speak TLS")]
    NotTls,
    #[error("{0}")]
    Failed(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) => Failure::NotTls,
            _ => Failure::Failed(error),
        }
    }
}

impl Handshake {
    /// With these certificates, as they are when a connection comes.
    pub fn new(
        certificates: &Arc<Live<ServerSide>>,
        transport: Transport,
        metrics: &Arc<Metrics>,
    ) -> Arc<Self> {
        let (certificates, metrics) = (Arc::clone(certificates), Arc::clone(metrics));
        Arc::new(Handshake { certificates, transport, metrics, throttle: Throttle::default() })
    }

    /// The connection once the client has proved what it must.
    ///
    /// # Errors
    /// [`Closed::Handshake`] where it has not, and [`Closed::Client`] where it hangs up without a
    /// word.
    pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        peer: Option<SocketAddr>,
        within: Duration,
    ) -> Result<TlsStream<Begun<S>>, Closed> {
        let shaken = timeout_at(Instant::now() + within, self.shake(stream)).await;
        let failure = match shaken {
            Ok(Ok(stream)) => return stream.ok_or(Closed::Client),
            Ok(Err(failure)) => failure,
            Err(_elapsed) => Failure::Late(within),
        };
        self.metrics.handshake_failed(self.transport);
        match self.throttle.ask() {
            Some(left_out) => warn!(?peer, left_out, "TLS handshake failed: {failure}"),
            None => debug!(?peer, "TLS handshake failed: {failure}"),
        }
        Err(Closed::Handshake)
    }

    async fn shake<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> Result<Option<TlsStream<Begun<S>>>, Failure> {
        // Before there is any state: silent connections are to cost next to nothing. Probes and
        // load balancers connect and hang up, which is nothing to log.
        let Some(stream) = spoken(stream).await? else { return Ok(None) };
        let certificates = self.certificates.get();
        let config = match self.transport {
            Transport::Grpc => &certificates.grpc,
            Transport::Http => &certificates.http,
        };
        Ok(Some(TlsAcceptor::from(Arc::clone(config)).accept(stream).await?))
    }
}
