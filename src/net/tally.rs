//! Counts the connections of a receiver, and the requests that HTTP refuses before the receiver
//! sees them.

use std::sync::Arc;

use tracing::warn;

use crate::{
    metrics::{Closed, Metrics, RefusedBecause, Transport},
    throttle::Throttle,
};

/// The counters of one receiver. Clones share them.
#[derive(Clone, Debug)]
pub struct Tally {
    metrics: Arc<Metrics>,
    transport: Transport,
    throttle: Arc<Throttle>,
}

impl Tally {
    /// Counts the connections of the receiver with this transport.
    pub(crate) fn new(metrics: &Arc<Metrics>, transport: Transport) -> Self {
        Tally { metrics: Arc::clone(metrics), transport, throttle: Arc::default() }
    }

    /// Counts a connection that was closed as soon as it was accepted.
    pub(super) fn turned_away(&self) {
        self.metrics.connection_turned_away(self.transport);
    }

    /// Counts and logs a request that HTTP has refused.
    pub(super) fn refused(&self, because: RefusedBecause) {
        self.metrics.refused(self.transport, because);
        let Some(suppressed) = self.throttle.ask() else { return };
        let transport = self.transport.as_str();
        if because == RefusedBecause::HeadersTooLarge {
            warn!(
                transport,
                suppressed,
                "refused a request: its headers are larger than 64 KiB; check which headers the \
                 sender or a proxy adds"
            );
        } else {
            warn!(
                transport,
                suppressed,
                "refused a request: its HTTP headers are malformed; check the path, scheme \
                 and authority that the sender or a proxy writes"
            );
        }
    }
}

/// An open connection. Dropping it counts it as closed.
pub(super) struct Open {
    tally: Option<Tally>,
    why: Closed,
}

impl Open {
    /// Counts one more open connection, if there is a tally.
    pub(super) fn one_more(tally: Option<&Tally>) -> Self {
        if let Some(tally) = tally {
            tally.metrics.connection_opened(tally.transport);
        }
        // If no reason is set, the listener was stopped while the connection was open.
        Open { tally: tally.cloned(), why: Closed::Drain }
    }

    /// Sets the reason of its end.
    pub(super) fn ends(&mut self, why: Closed) {
        self.why = why;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let why = if std::thread::panicking() { Closed::Error } else { self.why };
        if let Some(tally) = &self.tally {
            tally.metrics.connection_closed(tally.transport, why);
        }
    }
}
