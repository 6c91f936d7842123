//! OTLP/HTTP with protobuf bodies.
//!
//! The connections belong to hyper-util's pool. If TLS negotiates HTTP/2, all consumers share one
//! connection. Otherwise each consumer has at most one HTTP/1.1 connection, kept alive between
//! requests.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Uri,
    header::{CONTENT_ENCODING, CONTENT_TYPE, USER_AGENT},
};
use http_body_util::Full;
use hyper_util::{
    client::legacy::{self, ResponseFuture, connect::Connection},
    rt::{TokioExecutor, TokioTimer},
};
use tower_service::Service;

use super::{
    ClientError, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT, NoAnswer, encoding_name, read, uri_below,
};
use crate::{config::Exporter, exporter::Answer};

const TRACES_PATH: &str = "/v1/traces";
/// Less than the 60 s after which load balancers close idle connections.
const IDLE_MAX: Duration = Duration::from_secs(50);
/// The longest head of an answer, over either version of HTTP.
const HEAD_BYTES_MAX: u32 = 16 << 10;
/// The read-ahead of an HTTP/1.1 answer; its head must fit.
const READ_BYTES_MAX: usize = 64 << 10;

/// Hides the type of the connector, which is the real one or the simulation's.
type SendRequest = dyn Fn(Request<Full<Bytes>>) -> ResponseFuture + Send + Sync;

/// Connections to an OTLP/HTTP backend.
#[derive(Clone)]
pub(super) struct Http {
    send: Arc<SendRequest>,
    uri: Uri,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("uri", &self.uri).finish_non_exhaustive()
    }
}

impl Http {
    /// Adds the headers of the protocol to `headers`.
    pub(super) fn new<C>(
        config: &Exporter,
        connector: C,
        headers: &mut HeaderMap,
    ) -> Result<Self, ClientError>
    where
        C: Service<Uri, Future: Send + Unpin> + Clone + Send + Sync + 'static,
        C::Response: hyper::rt::Read + hyper::rt::Write + Connection + Send + Unpin + 'static,
        C::Error: Error + Send + Sync + 'static,
    {
        let endpoint: Uri = config
            .endpoint
            .parse()
            .map_err(|error| ClientError::Endpoint(config.endpoint.clone(), Box::new(error)))?;
        headers.entry(USER_AGENT).or_insert_with(|| HeaderValue::from_static(super::USER_AGENT));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        if let Some(encoding) = encoding_name(config.compression) {
            headers.insert(CONTENT_ENCODING, encoding);
        }
        let client = legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .http1_max_buf_size(READ_BYTES_MAX)
            .http2_max_header_list_size(HEAD_BYTES_MAX)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .http2_keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .build(connector);
        let send = Arc::new(move |request| client.request(request));
        Ok(Http { send, uri: uri_below(&endpoint, TRACES_PATH) })
    }

    /// Sends one request. Its errors are those of the connection.
    pub(super) async fn call(
        &self,
        headers: HeaderMap,
        message: Bytes,
    ) -> Result<Answer, NoAnswer> {
        let mut request = Request::new(Full::new(message));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = headers;
        let answered = (self.send)(request).await;
        read(answered.map_err(|error| NoAnswer::new(error.into()))?).await
    }
}
