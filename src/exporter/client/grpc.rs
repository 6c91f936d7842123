//! OTLP/gRPC without tonic's client, which copies each outgoing message and reads answers without a
//! limit. The connection is tonic's channel: one HTTP/2 connection for all consumers.

use std::{
    convert::Infallible,
    error::Error,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Uri, Version,
    header::{CONTENT_TYPE, TE},
};
use http_body::Frame;
use tonic::{
    Code,
    body::Body,
    metadata::AsciiMetadataKey,
    transport::{Channel, Endpoint},
};
use tower_service::Service;

use super::{
    ClientError, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT, NoAnswer, USER_AGENT, encoding_name,
    read, uri_below,
};
use crate::{
    config::Exporter,
    exporter::Answer,
    grpc::{self, EXPORT_PATH},
};

/// A connection to an OTLP/gRPC backend.
#[derive(Clone, Debug)]
pub(super) struct Grpc {
    channel: Channel,
    uri: Uri,
}

impl Grpc {
    /// Adds the headers of the protocol to `headers`.
    pub(super) fn new<C>(
        config: &Exporter,
        connector: C,
        headers: &mut HeaderMap,
    ) -> Result<Self, ClientError>
    where
        C: Service<Uri, Future: Send> + Send + 'static,
        C::Response: hyper::rt::Read + hyper::rt::Write + Send + Unpin,
        C::Error: Error + Send + Sync + 'static,
    {
        let reserved = |name: &&str| AsciiMetadataKey::from_bytes(name.as_bytes()).is_err();
        if let Some(name) = headers.keys().map(|name| name.as_str()).find(reserved) {
            return Err(ClientError::Header(name.to_owned()));
        }
        let endpoint = Endpoint::from_shared(config.endpoint.clone())
            .and_then(|endpoint| endpoint.user_agent(USER_AGENT))
            .map_err(|error| ClientError::Endpoint(config.endpoint.clone(), error.into()))?
            .connect_timeout(config.timeout)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        if let Some(encoding) = encoding_name(config.compression) {
            headers.insert("grpc-encoding", encoding);
        }
        let uri = uri_below(endpoint.uri(), EXPORT_PATH);
        Ok(Grpc { channel: endpoint.connect_with_connector_lazy(connector), uri })
    }

    /// Makes one unary call. Its errors are those of the connection.
    pub(super) async fn call(
        &self,
        headers: HeaderMap,
        message: Bytes,
        is_compressed: bool,
    ) -> Result<Answer, NoAnswer> {
        let broken = |error: tonic::transport::Error| NoAnswer::new(error.into());
        let mut channel = self.channel.clone();
        poll_fn(|context| channel.poll_ready(context)).await.map_err(broken)?;
        let mut request = Request::new(Body::new(framed(message, is_compressed)?));
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = headers;
        let response = channel.call(request).await.map_err(broken)?;
        read(response).await
    }
}

/// Puts gRPC's prefix before a message: a flag for compression, and the length in 32 bits, big
/// endian.
fn framed(message: Bytes, is_compressed: bool) -> Result<Framed, NoAnswer> {
    let length = u32::try_from(message.len()).map_err(|_| NoAnswer {
        code: Code::OutOfRange,
        message: "a request of more than 4 GiB cannot be sent over gRPC".to_owned(),
    })?;
    let prefix = grpc::prefix(is_compressed, length);
    Ok(Framed([Some(Bytes::copy_from_slice(&prefix)), Some(message)]))
}

/// The body of a unary call: the prefix, then the message.
struct Framed([Option<Bytes>; 2]);

impl http_body::Body for Framed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.0.iter_mut().find_map(Option::take);
        Poll::Ready(next.map(|bytes| Ok(Frame::data(bytes))))
    }
}
