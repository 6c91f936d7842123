//! TLS in front of a listener. A failed handshake closes the connection and is counted. At most one
//! failure is logged every ten seconds, because anybody who can reach the port can make handshakes
//! fail.

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

/// The TLS settings of one listener.
#[derive(Debug)]
pub struct Handshake {
    certificates: Arc<Live<ServerSide>>,
    /// The transport that failures are counted for, and where; `None` for the telemetry port, whose
    /// failures are not counted.
    counted: Option<(Transport, Arc<Metrics>)>,
    throttle: Throttle,
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the client did not finish it within {} s", .0.as_secs())]
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
    /// Uses these certificates; each new connection gets their current version.
    pub(crate) fn new(
        certificates: &Arc<Live<ServerSide>>,
        counted: Option<(Transport, &Arc<Metrics>)>,
    ) -> Arc<Self> {
        let certificates = Arc::clone(certificates);
        let counted = counted.map(|(transport, metrics)| (transport, Arc::clone(metrics)));
        Arc::new(Handshake { certificates, counted, throttle: Throttle::default() })
    }

    /// Completes the handshake, in which the client presents a certificate if the configuration
    /// requires one.
    ///
    /// # Errors
    /// [`Closed::Handshake`] if it fails, [`Closed::Client`] if the client hangs up without sending
    /// anything.
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
        if let Some((transport, metrics)) = &self.counted {
            metrics.handshake_failed(*transport);
        }
        match self.throttle.ask() {
            Some(suppressed) => {
                warn!(?peer, suppressed, "TLS handshake with a client failed: {failure}")
            }
            None => debug!(?peer, "TLS handshake with a client failed: {failure}"),
        }
        Err(Closed::Handshake)
    }

    async fn shake<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> Result<Option<TlsStream<Begun<S>>>, Failure> {
        // Waits for the first byte before it builds any state, so that silent connections cost
        // almost nothing. Probes and load balancers connect and hang up, which is not logged.
        let Some(stream) = spoken(stream).await? else { return Ok(None) };
        let certificates = self.certificates.get();
        let config = match self.counted {
            Some((Transport::Grpc, _)) => &certificates.grpc,
            Some((Transport::Http, _)) | None => &certificates.http,
        };
        Ok(Some(TlsAcceptor::from(Arc::clone(config)).accept(stream).await?))
    }
}
