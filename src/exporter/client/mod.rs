//! The OTLP client: one attempt to export, over gRPC or HTTP.
//!
//! A message is written as it is, and of an answer at most 4 MiB are read. What the answer means is
//! told in the same words for both protocols ([`Outcome`]), so that nothing above knows which one
//! is spoken. A panic while an answer is looked at is contained here and is one failed attempt.

mod grpc;
mod http;

use std::{
    error::Error,
    io::{self, Write as _},
    sync::Arc,
    time::Duration,
};

use ::http::{HeaderMap, HeaderName, HeaderValue, Response, Uri, header::AUTHORIZATION};
use bytes::{Bytes, BytesMut};
use flate2::write::GzEncoder;
use http_body::Body;
use http_body_util::BodyExt as _;
use hyper_util::client::legacy::connect::Connection;
use tonic::{Code, Status};
use tower_service::Service;

use self::{grpc::Grpc, http::Http};
use super::{
    answer::{Answer, Cause, Outcome, classify},
    peer::Peer,
};
use crate::{
    config::{Compression, Exporter, Protocol},
    credentials::{Bearer, Live},
    supervise::{Panicked, contained},
};

/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;
/// The most of an answer that is read.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// HTTP/2 connections are asked for signs of life. Both together under 30 s, the time in which a
/// peer that vanished must be noticed.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Shorter values of headers, such as names of tenants, are not hidden in the words of a backend.
const SECRET_BYTES_MIN: usize = 8;
const USER_AGENT: &str = concat!("tailwater/", env!("CARGO_PKG_VERSION"));

/// The endpoint or a header cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not a URL.
    #[error("exporter.otlp.endpoint {0:?} is not a URL: {1}")]
    Endpoint(String, Box<dyn Error + Send + Sync>),
    /// Not a header.
    #[error("exporter.otlp.headers: {0:?} is not a valid header")]
    Header(String),
}

/// A client of one backend. Clones share its connections, and what is learnt about it.
#[derive(Clone, Debug)]
pub struct Client {
    transport: Transport,
    headers: HeaderMap,
    compression: Compression,
    timeout: Duration,
    token: Option<Arc<Live<Bearer>>>,
    /// What is known about the backend.
    pub(super) peer: Arc<Peer>,
}

#[derive(Clone, Debug)]
enum Transport {
    Grpc(Grpc),
    Http(Http),
}

/// There is no answer.
struct NoAnswer {
    code: Code,
    message: String,
}

impl Client {
    /// A client that connects when it is first used, and again whenever the connection is gone;
    /// each time through the connector, which gets the URI of the endpoint.
    ///
    /// # Errors
    /// [`ClientError`] when the endpoint or a header cannot be used.
    pub fn with_connector<C>(config: &Exporter, connector: C) -> Result<Self, ClientError>
    where
        C: Service<Uri, Future: Send + Unpin> + Clone + Send + Sync + 'static,
        C::Response: hyper::rt::Read + hyper::rt::Write + Connection + Send + Unpin + 'static,
        C::Error: Error + Send + Sync + 'static,
    {
        let mut headers = HeaderMap::new();
        for (name, value) in &config.headers {
            let invalid = || ClientError::Header(name.clone());
            let name: HeaderName = name.parse().map_err(|_| invalid())?;
            let mut value: HeaderValue = value.reveal().parse().map_err(|_| invalid())?;
            // Not for any log, and not for the table of HTTP/2 header compression.
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        let transport = match config.protocol {
            Protocol::Grpc => Transport::Grpc(Grpc::new(config, connector, &mut headers)?),
            Protocol::Http => Transport::Http(Http::new(config, connector, &mut headers)?),
        };
        Ok(Client {
            transport,
            headers,
            compression: config.compression,
            timeout: config.timeout,
            token: None,
            peer: Arc::default(),
        })
    }

    /// The same client, which shows this token with every request.
    pub fn with_token(mut self, token: Option<Arc<Live<Bearer>>>) -> Self {
        self.token = token;
        self
    }

    /// Sends one request once.
    pub async fn export(&self, body: Bytes) -> Outcome {
        let mut outcome = self.attempt_in_time(body).await;
        if let Some(message) = outcome.message_mut() {
            self.hide_secrets(message);
        }
        outcome
    }

    /// Some backends repeat the token that they do not accept, and their words are logged.
    fn hide_secrets(&self, message: &mut String) {
        let token = self.token.as_ref().map(|token| token.get().header().clone());
        for value in self.headers.values().chain(&token).filter(|value| value.is_sensitive()) {
            let value = value.to_str().unwrap_or_default();
            // Behind the scheme, as in `Bearer TOKEN`.
            let secret = value.rsplit(' ').next().unwrap_or_default();
            if secret.len() >= SECRET_BYTES_MIN && message.contains(secret) {
                *message = message.replace(secret, "(secret)");
            }
        }
    }

    async fn attempt_in_time(&self, body: Bytes) -> Outcome {
        // On the heap, because the two ways to send make it large and consumers keep it for long.
        let attempt = Box::pin(self.attempt(body));
        match contained(tokio::time::timeout(self.timeout, attempt)).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_elapsed)) => Outcome::Retry {
                code: Code::DeadlineExceeded.into(),
                after: None,
                cause: Cause::Unavailable,
                message: "no answer in time".into(),
            },
            Err(Panicked) => Outcome::Panicked,
        }
    }

    async fn attempt(&self, message: Bytes) -> Outcome {
        let request_bytes = message.len();
        let message = match self.compressed(message) {
            Ok(message) => message,
            Err(error) => return classify(&error.into(), request_bytes),
        };
        let mut answer = self.call(message.clone()).await;
        if answer.is_err() {
            // A backend that restarts closes its connection under requests that it will not
            // see. Another connection is there at once, or not at all.
            answer = self.call(message).await;
        }
        match answer {
            Ok(answer) => answer.outcome(self.protocol(), request_bytes),
            Err(NoAnswer { code, message }) => {
                let (code, cause) = (code.into(), Cause::Unavailable);
                Outcome::Retry { code, after: None, cause, message }
            }
        }
    }

    async fn call(&self, message: Bytes) -> Result<Answer, NoAnswer> {
        let mut headers = self.headers.clone();
        if let Some(token) = &self.token {
            headers.insert(AUTHORIZATION, token.get().header().clone());
        }
        match &self.transport {
            Transport::Grpc(grpc) => {
                grpc.call(headers, message, self.compression != Compression::None).await
            }
            Transport::Http(http) => http.call(headers, message).await,
        }
    }

    fn compressed(&self, message: Bytes) -> io::Result<Bytes> {
        Ok(match self.compression {
            Compression::None => message,
            Compression::Gzip => gzip(&message)?.into(),
            Compression::Zstd => zstd::encode_all(&message[..], ZSTD_LEVEL)?.into(),
        })
    }

    fn protocol(&self) -> Protocol {
        match self.transport {
            Transport::Grpc(_) => Protocol::Grpc,
            Transport::Http(_) => Protocol::Http,
        }
    }
}

impl NoAnswer {
    /// What an error of a connection comes to, told with its causes. tonic knows what the codes of
    /// HTTP/2 mean; whatever they are, nothing is known about the spans.
    fn new(error: Box<dyn Error + Send + Sync>) -> Self {
        let message = chain(&*error);
        let code = match Status::from_error(error).code() {
            code @ (Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::DataLoss) => code,
            _ => Code::Unavailable,
        };
        NoAnswer { code, message }
    }
}

/// An error with all that caused it, each once: libraries repeat the words of what is below.
fn chain(error: &dyn Error) -> String {
    let mut said = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !said.contains(&words) {
            said = format!("{said}: {words}");
        }
        next = cause.source();
    }
    said
}

/// Reads an answer as far as it is looked at.
async fn read<B>(response: Response<B>) -> Result<Answer, NoAnswer>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Unpin,
{
    let (head, mut body) = response.into_parts();
    let mut answer = Answer { status: head.status, headers: head.headers, ..Answer::default() };
    let mut message = BytesMut::new();
    while let Some(frame) = body.frame().await {
        match frame.map_err(|error| NoAnswer::new(error.into()))?.into_data() {
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

fn encoding_name(compression: Compression) -> Option<HeaderValue> {
    match compression {
        Compression::None => None,
        Compression::Gzip => Some(HeaderValue::from_static("gzip")),
        Compression::Zstd => Some(HeaderValue::from_static("zstd")),
    }
}

/// The endpoint's URI with this path behind its own, as OTLP builds it from a base: a slash at the
/// end of the base makes no difference.
fn uri_below(endpoint: &Uri, path: &str) -> Uri {
    let mut parts = endpoint.clone().into_parts();
    let path = format!("{}{path}", endpoint.path().trim_end_matches('/'));
    parts.path_and_query = Some(path.parse().expect("a path behind a path is one"));
    Uri::from_parts(parts).expect("only the path has changed")
}

fn gzip(message: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(message)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_built_from_a_base() {
        for (base, expected) in [
            ("http://collector:4318", "http://collector:4318/v1/traces"),
            ("http://collector:4318/", "http://collector:4318/v1/traces"),
            ("http://collector/mycollector", "http://collector/mycollector/v1/traces"),
            ("https://collector/mycollector/", "https://collector/mycollector/v1/traces"),
            ("https://[::1]/a/b", "https://[::1]/a/b/v1/traces"),
        ] {
            let base = base.parse().expect("a URI");
            assert_eq!(uri_below(&base, "/v1/traces").to_string(), expected);
        }
    }
}
