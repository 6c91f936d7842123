//! The OTLP/gRPC client: one attempt to export.
//!
//! Over tonic's channel, but not with its gRPC client, which copies a message on its way out and
//! reads whatever it gets: here a message is written as it is, and of an answer at most 4 MiB are
//! read. A panic while an answer is looked at is contained here and is one failed attempt.

use std::{
    convert::Infallible,
    future::poll_fn,
    io::{self, Write as _},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use flate2::write::GzEncoder;
use http::{
    HeaderMap, HeaderName, HeaderValue, Uri,
    header::{CONTENT_TYPE, TE},
};
use http_body::Frame;
use http_body_util::BodyExt as _;
use tonic::{
    Code, Status,
    body::Body,
    metadata::AsciiMetadataKey,
    transport::{Channel, Endpoint},
};
use tower_service::Service;

use super::{
    answer::{Answer, Outcome, classify},
    peer::Peer,
};
use crate::{
    config::{Compression, Exporter},
    grpc::EXPORT_PATH,
    supervise::{Panicked, contained},
};

/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;
/// The most of an answer that is read.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// The endpoint or a header cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not a URL.
    #[error("exporter.otlp.endpoint {0:?}: {1}")]
    Endpoint(String, tonic::transport::Error),
    /// Not a header.
    #[error("exporter.otlp.headers: {0:?} is not a valid header")]
    Header(String),
}

/// A client of one backend. Clones share its connection, and what is learnt about it.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    uri: Uri,
    headers: HeaderMap,
    compression: Compression,
    timeout: Duration,
    /// What is known about the backend.
    pub(super) peer: Arc<Peer>,
}

impl Client {
    /// A client that connects when it is first used, and again whenever the connection is gone;
    /// each time through the connector, which gets the URI of the endpoint.
    ///
    /// # Errors
    /// [`ClientError`] when the endpoint or a header cannot be used.
    pub fn with_connector<C>(config: &Exporter, connector: C) -> Result<Self, ClientError>
    where
        C: Service<Uri, Future: Send> + Send + 'static,
        C::Response: hyper::rt::Read + hyper::rt::Write + Send + Unpin,
        Box<dyn std::error::Error + Send + Sync>: From<C::Error>,
    {
        let endpoint = Endpoint::from_shared(config.endpoint.clone())
            .and_then(|endpoint| {
                endpoint.user_agent(concat!("tailwater/", env!("CARGO_PKG_VERSION")))
            })
            .map_err(|error| ClientError::Endpoint(config.endpoint.clone(), error))?
            .connect_timeout(config.timeout)
            // Together under 30 s, the time in which a peer that vanished must be noticed.
            .http2_keep_alive_interval(Duration::from_secs(15))
            .keep_alive_timeout(Duration::from_secs(10));
        let mut headers = HeaderMap::new();
        for (name, value) in &config.headers {
            let invalid = || ClientError::Header(name.clone());
            // tonic's own types know which names gRPC reserves.
            let key: AsciiMetadataKey = name.parse().map_err(|_| invalid())?;
            let name = HeaderName::try_from(key.as_str()).map_err(|_| invalid())?;
            let mut value: HeaderValue = value.reveal().parse().map_err(|_| invalid())?;
            // Not for any log, and not for the table of HTTP/2 header compression.
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        if let Some(encoding) = encoding_name(config.compression) {
            headers.insert("grpc-encoding", HeaderValue::from_static(encoding));
        }
        Ok(Client {
            uri: export_uri(endpoint.uri()),
            channel: endpoint.connect_with_connector_lazy(connector),
            headers,
            compression: config.compression,
            timeout: config.timeout,
            peer: Arc::default(),
        })
    }

    /// Sends one request once.
    pub async fn export(&self, body: Bytes) -> Outcome {
        let request_bytes = body.len();
        let attempt = async {
            let mut answer = self.call(body.clone()).await;
            if answer.is_err() {
                // A backend that restarts closes its connection under requests that it will not
                // see. Another connection is there at once, or not at all.
                answer = self.call(body).await;
            }
            match answer {
                Ok(answer) => answer.outcome(request_bytes),
                Err(status) => classify(&status, request_bytes),
            }
        };
        match contained(tokio::time::timeout(self.timeout, attempt)).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_elapsed)) => Outcome::Retry {
                code: Code::DeadlineExceeded,
                after: None,
                message: "no answer in time".into(),
            },
            Err(Panicked) => Outcome::Panicked,
        }
    }

    /// One unary call. Its errors are those of the connection.
    async fn call(&self, message: Bytes) -> Result<Answer, Status> {
        let unavailable = |error: tonic::transport::Error| Status::from_error(Box::new(error));
        let mut channel = self.channel.clone();
        poll_fn(|context| channel.poll_ready(context)).await.map_err(unavailable)?;
        let mut request = http::Request::new(Body::new(self.frame(message)?));
        *request.method_mut() = http::Method::POST;
        *request.version_mut() = http::Version::HTTP_2;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        let response = channel.call(request).await.map_err(unavailable)?;
        read(response).await
    }

    /// The message, compressed as configured, with gRPC's prefix: whether it is compressed, and its
    /// length in 32 bits, big endian.
    fn frame(&self, message: Bytes) -> Result<Framed, Status> {
        let compressed = match self.compression {
            Compression::None => None,
            Compression::Gzip => Some(gzip(&message)),
            Compression::Zstd => Some(zstd::encode_all(&message[..], ZSTD_LEVEL)),
        };
        let is_compressed = compressed.is_some();
        let message = match compressed {
            Some(compressed) => compressed?.into(),
            None => message,
        };
        let length = u32::try_from(message.len())
            .map_err(|_| Status::resource_exhausted("larger than max: 4 GiB"))?;
        let mut prefix = [0; 5];
        prefix[0] = u8::from(is_compressed);
        prefix[1..].copy_from_slice(&length.to_be_bytes());
        Ok(Framed([Some(Bytes::copy_from_slice(&prefix)), Some(message)]))
    }
}

/// Reads an answer as far as it is looked at.
async fn read(response: http::Response<Body>) -> Result<Answer, Status> {
    let (head, mut body) = response.into_parts();
    let mut answer = Answer { status: head.status, headers: head.headers, ..Answer::default() };
    let mut message = BytesMut::new();
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) if message.len() + data.len() > ANSWER_BYTES_MAX => {
                answer.is_cut = true;
                break;
            }
            Ok(data) => message.extend_from_slice(&data),
            Err(frame) => answer.trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    answer.body = message.freeze();
    Ok(answer)
}

fn encoding_name(compression: Compression) -> Option<&'static str> {
    match compression {
        Compression::None => None,
        Compression::Gzip => Some("gzip"),
        Compression::Zstd => Some("zstd"),
    }
}

/// The endpoint's URI with the path of the method behind its own.
fn export_uri(endpoint: &Uri) -> Uri {
    let mut parts = endpoint.clone().into_parts();
    let path = format!("{}{EXPORT_PATH}", endpoint.path().trim_end_matches('/'));
    parts.path_and_query = Some(path.parse().expect("a path behind a path is one"));
    Uri::from_parts(parts).expect("only the path has changed")
}

fn gzip(message: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(message)?;
    encoder.finish()
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
