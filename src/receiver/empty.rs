//! Requests that carry bytes but no span. OTLP says to answer them with success, so their sender
//! does not learn that nothing arrived. Most of them hold something else than traces, or traces in
//! another form. They are counted, and one of them is logged every ten seconds with what stands at
//! its top level.
//!
//! Called on the connection's task, or the thread of a large request, after the request was taken.
//! A request is looked through once more only where it is logged.

use tracing::warn;

use crate::{
    metrics::{Metrics, Transport},
    otlp::outline,
    sampler::Ingested,
    throttle::Throttle,
};

/// A message as it was sent, decompressed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sent<'a> {
    /// In protobuf.
    Protobuf(&'a [u8]),
    /// In JSON.
    Json(&'a [u8]),
}

/// Notices requests without spans.
#[derive(Debug, Default)]
pub struct EmptyRequests(Throttle);

impl EmptyRequests {
    /// Looks at what came of a request that was taken. A request of no bytes is the empty request
    /// that OTLP allows, and nothing is amiss.
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
        let Some(left_out) = self.0.ask() else { return };
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
            left_out,
            "a request to the {receiver} receiver has no span; at its top level there is: {found}. \
             Spans are read from \"resourceSpans\" (field 1): check what its sender exports",
        );
    }
}
