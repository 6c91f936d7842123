//! The OTLP client: one attempt to export, over gRPC or HTTP.
//!
//! A message is sent unchanged, and at most 4 MiB of an answer are read. [`Outcome`] gives the
//! meaning of an answer in the same terms for both protocols, so the rest of the exporter does not
//! know which one is used. A panic while an answer is read is contained here and counts as one
//! failed attempt.

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
    peer::{Peer, Standing},
};
use crate::{
    config::{Compression, Exporter, Protocol},
    credentials::{Bearer, Live},
    supervise::{Panicked, contained},
};

/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;
/// The most bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// The interval and the timeout of HTTP/2 pings. Both together are under 30 s, the time in which a
/// vanished peer must be noticed.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Shorter header values, such as names of tenants, are not hidden in a backend's message.
const SECRET_BYTES_MIN: usize = 8;
const USER_AGENT: &str = concat!("tailwater/", env!("CARGO_PKG_VERSION"));

/// Why the endpoint or a header cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The endpoint is not a URL.
    #[error("exporter.otlp.endpoint {0:?} is not a URL: {1}")]
    Endpoint(String, Box<dyn Error + Send + Sync>),
    /// The header is not valid.
    #[error("exporter.otlp.headers: {0:?} is not a valid header")]
    Header(String),
}

/// A client of one backend. Clones share its connections and the facts learnt about the backend.
#[derive(Clone, Debug)]
pub struct Client {
    transport: Transport,
    headers: HeaderMap,
    compression: Compression,
    timeout: Duration,
    token: Option<Arc<Live<Bearer>>>,
    /// The facts that the consumers have learnt about the backend.
    pub(super) peer: Arc<Peer>,
}

#[derive(Clone, Debug)]
enum Transport {
    Grpc(Grpc),
    Http(Http),
}

/// The backend did not answer.
struct NoAnswer {
    code: Code,
    message: String,
}

impl Client {
    /// A client that connects on first use, and again whenever the connection is gone. Each time it
    /// calls the connector with the URI of the endpoint.
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
            // Keeps the value out of logs and of HTTP/2's header compression table.
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

    /// The same client, which sends this token with every request.
    pub(crate) fn with_token(mut self, token: Option<Arc<Live<Bearer>>>) -> Self {
        self.token = token;
        self
    }

    /// The result of the last attempt to export; `None` before the first.
    pub(crate) fn standing(&self) -> Option<Standing> {
        self.peer.standing()
    }

    /// Sends one request once.
    pub async fn export(&self, body: Bytes) -> Outcome {
        let mut outcome = self.attempt_in_time(body).await;
        if let Some(message) = outcome.message_mut() {
            self.hide_secrets(message);
        }
        outcome
    }

    /// Hides secrets in a message that will be logged: some backends repeat the token that they
    /// reject.
    fn hide_secrets(&self, message: &mut String) {
        let token = self.token.as_ref().map(|token| token.get().header().clone());
        for value in self.headers.values().chain(&token).filter(|value| value.is_sensitive()) {
            let value = value.to_str().unwrap_or_default();
            // The secret follows the scheme, as in `Bearer TOKEN`.
            let secret = value.rsplit(' ').next().unwrap_or_default();
            if secret.len() >= SECRET_BYTES_MIN && message.contains(secret) {
                *message = message.replace(secret, "(secret)");
            }
        }
    }

    async fn attempt_in_time(&self, body: Bytes) -> Outcome {
        // Boxed: the two ways to send make the future large, and consumers keep it for long.
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
            // A backend that restarts closes its connection while requests are on their way,
            // without reading them. A second attempt at once finds another connection, or none.
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
    /// The outcome of a connection error, described with its causes. tonic translates HTTP/2's
    /// codes; no code says anything about the spans.
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

/// An error with all its causes, each text once: libraries repeat the text of the error below.
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

/// Reads an answer up to the limit.
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

/// The endpoint's URI with `path` appended to its own path, as OTLP builds it from a base. A slash
/// at the end of the base makes no difference.
fn uri_below(endpoint: &Uri, path: &str) -> Uri {
    let mut parts = endpoint.clone().into_parts();
    let path = format!("{}{path}", endpoint.path().trim_end_matches('/'));
    parts.path_and_query = Some(path.parse().expect("two paths joined are a path"));
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
