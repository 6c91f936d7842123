//! The OTLP/gRPC client: one attempt to export, and what its outcome means.
//!
//! What is retried follows OTLP's table; an attempt that never reached the backend is retried too.
//! tonic's client panics on a status-details trailer that is not base64, which a broken backend may
//! send: a panic is contained here and is one failed attempt.
//!
//! Sources: OTLP specification 1.x, "OTLP/gRPC Response" and "OTLP/gRPC Throttling".

use std::{error::Error as _, time::Duration};

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::CompressionEncoding,
    metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap},
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;

use crate::{
    config::{Compression, Exporter},
    grpc::{EXPORT_PATH, RawCodec},
    supervise::{Panicked, contained},
};

/// The longest delay that a backend may ask for.
const RETRY_INFO_MAX: Duration = Duration::from_secs(300);
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
    grpc: Grpc<Channel>,
    headers: MetadataMap,
    timeout: Duration,
}

impl Client {
    /// A client that connects when it is first used, and again whenever the connection is gone.
    ///
    /// # Errors
    /// [`ClientError`] when the endpoint or a header cannot be used.
    pub fn new(config: &Exporter) -> Result<Self, ClientError> {
        let endpoint = Endpoint::from_shared(config.endpoint.clone())
            .and_then(|endpoint| {
                endpoint.user_agent(concat!("tailwater/", env!("CARGO_PKG_VERSION")))
            })
            .map_err(|error| ClientError::Endpoint(config.endpoint.clone(), error))?
            .connect_timeout(config.timeout)
            .tcp_nodelay(true)
            // Together under 30 s, the time in which a peer that vanished must be noticed.
            .http2_keep_alive_interval(Duration::from_secs(15))
            .keep_alive_timeout(Duration::from_secs(10));
        let grpc = Grpc::new(endpoint.connect_lazy()).max_decoding_message_size(ANSWER_BYTES_MAX);
        let grpc = match config.compression {
            Compression::None => grpc,
            Compression::Gzip => grpc.send_compressed(CompressionEncoding::Gzip),
            Compression::Zstd => grpc.send_compressed(CompressionEncoding::Zstd),
        };
        let mut headers = MetadataMap::new();
        for (name, value) in &config.headers {
            let invalid = || ClientError::Header(name.clone());
            let key: AsciiMetadataKey = name.parse().map_err(|_| invalid())?;
            let value: AsciiMetadataValue = value.parse().map_err(|_| invalid())?;
            headers.insert(key, value);
        }
        Ok(Client { grpc, headers, timeout: config.timeout })
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

    async fn call(&self, body: Bytes) -> Result<Outcome, Status> {
        let mut grpc = self.grpc.clone();
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut request = Request::new(body);
        *request.metadata_mut() = self.headers.clone();
        let path = http::uri::PathAndQuery::from_static(EXPORT_PATH);
        let answer = grpc.unary(request, path, RawCodec).await?;
        // An answer that cannot be read is still an answer: the backend has the spans.
        let answer = ExportTraceServiceResponse::decode(answer.into_inner()).unwrap_or_default();
        let partial = answer.partial_success.unwrap_or_default();
        Ok(Outcome::Sent {
            rejected: u64::try_from(partial.rejected_spans).unwrap_or(0),
            message: partial.error_message,
        })
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
