//! What is counted about the connections of a receiver, and about requests that HTTP refuses before
//! the receiver sees them.

use std::sync::Arc;

use tracing::warn;

use crate::{
    metrics::{Closed, Metrics, RefusedBecause, Transport},
    throttle::Throttle,
};

/// Counts for one receiver. Clones count together.
#[derive(Clone, Debug)]
pub struct Tally {
    metrics: Arc<Metrics>,
    transport: Transport,
    throttle: Arc<Throttle>,
}

impl Tally {
    /// For the connections of this transport.
    pub fn new(metrics: &Arc<Metrics>, transport: Transport) -> Self {
        Tally { metrics: Arc::clone(metrics), transport, throttle: Arc::default() }
    }

    /// A connection that was closed as soon as it was accepted.
    pub(super) fn turned_away(&self) {
        self.metrics.connection_turned_away(self.transport);
    }

    /// A request that HTTP has refused.
    pub(super) fn refused(&self, because: RefusedBecause) {
        self.metrics.refused(self.transport, because);
        let Some(left_out) = self.throttle.ask() else { return };
        let transport = self.transport.as_str();
        if because == RefusedBecause::HeadersTooLarge {
            warn!(transport, left_out, "refused a request: more than 64 KiB of headers");
        } else {
            warn!(
                transport,
                left_out,
                "refused a request: its HTTP headers are malformed; check what the sender or a \
                 proxy writes as path, scheme and authority"
            );
        }
    }
}

/// An open connection, until this is dropped.
pub(super) struct Open {
    tally: Option<Tally>,
    why: Closed,
}

impl Open {
    /// One more, counted where there is something to count with.
    pub(super) fn one_more(tally: Option<&Tally>) -> Self {
        if let Some(tally) = tally {
            tally.metrics.connection_opened(tally.transport);
        }
        // Unless it is told otherwise, the listener was stopped around it.
        Open { tally: tally.cloned(), why: Closed::Drain }
    }

    /// It ends for this reason.
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
