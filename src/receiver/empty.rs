//! Requests that carry bytes but no span. OTLP says to answer them with success, so the sender does
//! not learn that no span arrived. Most of them contain another signal than traces, or traces in
//! another format. All are counted, and one every ten seconds is logged with the fields at its top
//! level.
//!
//! Called on the connection's task, or on the thread of a large request, after the request was
//! accepted. Only a request that is logged is parsed a second time.

use tracing::warn;

use crate::{
    metrics::{Metrics, Transport},
    otlp::outline,
    sampler::Ingested,
    throttle::Throttle,
};

/// A message as the sender wrote it, after decompression.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sent<'a> {
    /// The message is protobuf.
    Protobuf(&'a [u8]),
    /// The message is JSON.
    Json(&'a [u8]),
}

/// Counts and logs requests without spans.
#[derive(Debug, Default)]
pub(crate) struct EmptyRequests(Throttle);

impl EmptyRequests {
    /// Counts and logs a request that was taken, if it has no span. A request of no bytes is the
    /// empty request that OTLP allows, and is not counted.
    pub(super) fn notice(
        &self,
        metrics: &Metrics,
        transport: Transport,
        sent: Sent<'_>,
        ingested: &Ingested,
    ) {
        let (Sent::Protobuf(bytes) | Sent::Json(bytes)) = sent;
        if bytes.is_empty() || ingested.accepted + ingested.rejected > 0 {
            return;
        }
        metrics.empty(transport);
        let Some(suppressed) = self.0.ask() else { return };
        let found = match sent {
            Sent::Protobuf(message) => outline::of_protobuf(message),
            Sent::Json(json) => outline::of_json(json),
        };
        let receiver = match transport {
            Transport::Grpc => "gRPC",
            Transport::Http => "HTTP",
        };
        warn!(
            bytes = bytes.len(),
            suppressed,
            "a request to the {receiver} receiver has no span; its top level contains: {found}. \
             Tailwater reads spans from \"resourceSpans\" (field 1): check what the sender exports",
        );
    }
}
