//! Open connections, and the reasons why connections were closed.

use metrics::{Counter, Gauge};

use super::described;

/// The protocol by which spans arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// OTLP/gRPC.
    Grpc = 0,
    /// OTLP/HTTP.
    Http = 1,
}

pub(super) const TRANSPORTS: [&str; 2] = ["grpc", "http"];

/// Where accepted spans come from: a transport, or the logs of an earlier process.
pub(super) const ORIGINS: [&str; 3] = ["grpc", "http", "replay"];

impl Transport {
    /// The value of the `transport` label.
    pub(crate) fn as_str(self) -> &'static str {
        TRANSPORTS[self as usize]
    }
}

/// Why a connection was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    /// The client closed it.
    Client = 0,
    /// No request came for too long.
    Idle = 1,
    /// No TLS handshake, preface or request head came in time, or the handshake failed.
    Handshake = 2,
    /// Too many connections were open.
    MaxConnections = 3,
    /// The connection reached `max_connection_age`.
    MaxAge = 4,
    /// The service is shutting down.
    Drain = 5,
    /// The client did not read an answer, or did not answer a ping.
    Unresponsive = 6,
    /// The connection broke, or did not carry HTTP.
    Error = 7,
}

pub(super) const CLOSED: [&str; 8] =
    ["client", "idle", "handshake", "max_connections", "max_age", "drain", "unresponsive", "error"];

/// The handles, by transport.
pub(super) struct Connections {
    open: [Gauge; 2],
    closed: [[Counter; CLOSED.len()]; 2],
}

impl Connections {
    pub(super) fn register() -> Self {
        Connections {
            open: TRANSPORTS.map(|transport| described::CONNECTIONS.gauge([transport])),
            closed: TRANSPORTS.map(|transport| {
                CLOSED.map(|why| described::CONNECTIONS_CLOSED.counter([transport, why]))
            }),
        }
    }

    pub(super) fn opened(&self, transport: Transport) {
        self.open[transport as usize].increment(1.0);
    }

    pub(super) fn closed(&self, transport: Transport, why: Closed) {
        self.open[transport as usize].decrement(1.0);
        self.turned_away(transport, why);
    }

    pub(super) fn turned_away(&self, transport: Transport, why: Closed) {
        self.closed[transport as usize][why as usize].increment(1);
    }
}
