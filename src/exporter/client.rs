//! The OTLP/gRPC client: one attempt to export, and what its outcome means.
//!
//! What is retried follows OTLP's table; an attempt that never reached the backend is retried too.
//! tonic's client panics on a status-details trailer that is not base64, which a broken backend may
//! send: a panic is contained here and is one failed attempt.
//!
//! Sources: OTLP specification 1.x, "OTLP/gRPC Response" and "OTLP/gRPC Throttling".

use std::{
    convert::Infallible,
    error::Error as _,
    future::poll_fn,
    io::{self, Write as _},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use flate2::write::GzEncoder;
use http::{
    HeaderMap, HeaderName, HeaderValue, Uri,
    header::{CONTENT_TYPE, TE},
};
use http_body::Frame;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use tonic::{
    Code, Status,
    body::Body,
    codec::Streaming,
    metadata::AsciiMetadataKey,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;
use tower_service::Service;

use crate::{
    config::{Compression, Exporter},
    grpc::{EXPORT_PATH, RawCodec},
    supervise::{Panicked, contained},
};

/// The longest delay that a backend may ask for.
const RETRY_INFO_MAX: Duration = Duration::from_secs(300);
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

/// What an attempt came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The backend has the spans, but for so many that it rejected for good.
    Sent {
        /// Spans of the request that it rejected.
        rejected: u64,
        /// Its words about them.
        message: String,
    },
    /// To be made again, after the delay that the backend asked for.
    Retry {
        /// As the backend answered, or `UNAVAILABLE` where it did not.
        code: Code,
        /// What RetryInfo asked for.
        after: Option<Duration>,
        /// What went wrong.
        message: String,
    },
    /// Never to be made again.
    Refused {
        /// As the backend answered.
        code: Code,
        /// Whether it said that the request is larger than it takes.
        is_too_large: bool,
        /// Its words.
        message: String,
    },
    /// The client panicked; worth another attempt.
    Panicked,
}

impl Outcome {
    /// The request was taken. An answer that is empty or cannot be read is one too.
    fn sent(answer: Bytes) -> Self {
        let answer = ExportTraceServiceResponse::decode(answer).unwrap_or_default();
        let partial = answer.partial_success.unwrap_or_default();
        Outcome::Sent {
            rejected: u64::try_from(partial.rejected_spans).unwrap_or(0),
            message: partial.error_message,
        }
    }

    /// The code to count.
    pub fn code(&self) -> Code {
        match self {
            Outcome::Sent { .. } => Code::Ok,
            Outcome::Retry { code, .. } | Outcome::Refused { code, .. } => *code,
            Outcome::Panicked => Code::Unknown,
        }
    }
}

/// A client of one backend. Clones share its connection.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    uri: Uri,
    headers: HeaderMap,
    compression: Compression,
    timeout: Duration,
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
        })
    }

    /// Sends one request once.
    pub async fn export(&self, body: Bytes) -> Outcome {
        let attempt = tokio::time::timeout(self.timeout, self.call(body));
        match contained(attempt).await {
            Ok(Ok(outcome)) => outcome.unwrap_or_else(|status| classify(&status)),
            Ok(Err(_elapsed)) => Outcome::Retry {
                code: Code::DeadlineExceeded,
                after: None,
                message: "no answer in time".into(),
            },
            Err(Panicked) => Outcome::Panicked,
        }
    }

    /// One unary call. Not tonic's client, which copies a message on its way out.
    async fn call(&self, message: Bytes) -> Result<Outcome, Status> {
        let unavailable = |error: tonic::transport::Error| Status::from_error(Box::new(error));
        let mut channel = self.channel.clone();
        poll_fn(|context| channel.poll_ready(context)).await.map_err(unavailable)?;
        let mut request = http::Request::new(Body::new(self.frame(message)?));
        *request.method_mut() = http::Method::POST;
        *request.version_mut() = http::Version::HTTP_2;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        let response = channel.call(request).await.map_err(unavailable)?;
        // An answer without a message has its status in front.
        match Status::from_header_map(response.headers()) {
            Some(status) if status.code() == Code::Ok => return Ok(Outcome::sent(Bytes::new())),
            Some(status) => return Err(status),
            None => {}
        }
        let (code, limit) = (response.status(), Some(ANSWER_BYTES_MAX));
        let mut answer = Streaming::new_response(RawCodec, response.into_body(), code, None, limit);
        let message = answer.message().await?.unwrap_or_default();
        // The status stands behind the message.
        answer.trailers().await?;
        Ok(Outcome::sent(message))
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

/// What OTLP says about a failed attempt.
fn classify(status: &Status) -> Outcome {
    let code = status.code();
    let message = status.message().to_owned();
    let after = status
        .get_details_retry_info()
        .and_then(|info| info.retry_delay)
        .map(|delay| delay.min(RETRY_INFO_MAX));
    // A status with a source was made here: the backend never gave an answer.
    let is_local = status.source().is_some();
    match code {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Outcome::Retry { code, after, message },
        Code::ResourceExhausted if after.is_some() => Outcome::Retry { code, after, message },
        _ if is_local => Outcome::Retry { code: Code::Unavailable, after: None, message },
        _ => {
            let is_too_large =
                code == Code::ResourceExhausted && message.contains("larger than max");
            Outcome::Refused { code, is_too_large, message }
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn statuses_are_classified_by_the_table_of_otlp() {
        for code in crate::grpc::codes().skip(1) {
            let expected = matches!(
                code,
                Code::Cancelled
                    | Code::DeadlineExceeded
                    | Code::Aborted
                    | Code::OutOfRange
                    | Code::Unavailable
                    | Code::DataLoss
            );
            let outcome = classify(&Status::new(code, "no"));
            assert_eq!(matches!(outcome, Outcome::Retry { .. }), expected, "{code:?}");
        }
    }

    #[test]
    fn retry_info_makes_exhaustion_retryable_and_is_capped() {
        let delay = |seconds| {
            let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(seconds)));
            classify(&Status::with_error_details(Code::ResourceExhausted, "slow down", details))
        };
        let retry = |after| Outcome::Retry {
            code: Code::ResourceExhausted,
            after: Some(Duration::from_secs(after)),
            message: "slow down".into(),
        };
        assert_eq!(delay(7), retry(7));
        assert_eq!(delay(300_000_000), retry(300));
    }

    #[test]
    fn too_large_is_told_from_other_refusals() {
        let message = "grpc: received message larger than max (5000000 vs. 4194304)";
        let outcome = classify(&Status::resource_exhausted(message));
        assert!(matches!(outcome, Outcome::Refused { is_too_large: true, .. }));
    }
}
