//! OTLP/HTTP: POST to `traces_url_path` with a protobuf or JSON body, compressed or not.
//!
//! It shares admission, limits and the walker with gRPC. JSON is converted to protobuf first. An
//! answer has the content type of its request; an error carries a `google.rpc.Status`, as the
//! specification asks.
//! Source: OTLP specification, "OTLP/HTTP".

use std::sync::Arc;

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{
        ACCEPT_ENCODING, ALLOW, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE,
    },
};
use http_body_util::Full;
use hyper::body::Incoming;
use prost::Message as _;
use serde_json::json;
use tonic::Code;
use tonic_types::pb;

use super::{
    Intake, Refusal,
    admission::{Charge, Receiving},
    compression::{CODINGS, Encoding, ReceivedBody, UnknownCoding, inflate},
    cors::Cors,
    grpc::{acknowledgement, partial_success},
    take::{Form, JSON_NEEDS},
};
use crate::{metrics::Transport, net::deadline::in_time, sampler::Ingested};

/// The HTTP receiver. Clones share all state.
#[derive(Clone, Debug)]
pub(crate) struct HttpService {
    intake: Arc<Intake>,
    settings: Arc<Settings>,
}

/// The settings of the HTTP receiver.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The largest body, before and after decompression.
    pub max_body_bytes: usize,
    /// The path to which traces are posted; a trailing slash is ignored.
    pub traces_path: String,
    /// The origins that may send from a browser; none if `None`.
    pub cors: Option<Cors>,
}

/// Why a request was refused by its headers.
enum Unfit {
    NotFound,
    NotPost,
    UnknownType,
    UnknownCoding(UnknownCoding),
}

/// The encoding of a request, and of its answer.
#[derive(Clone, Copy, PartialEq)]
enum Format {
    Protobuf,
    Json,
}

impl HttpService {
    /// Serves `intake`.
    pub(crate) fn new(intake: Arc<Intake>, settings: Settings) -> Self {
        HttpService { intake, settings: Arc::new(settings) }
    }

    /// Answers one request.
    pub(crate) async fn answer(self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let cors = self.settings.cors.as_ref().filter(|_| self.is_traces(&request));
        let response = match cors {
            None => self.answer_any(request).await,
            Some(cors) if Cors::is_preflight(&request) => {
                let mut response = Response::new(Full::default());
                *response.status_mut() = StatusCode::NO_CONTENT;
                cors.answer_preflight(request.headers(), &mut response);
                response
            }
            Some(cors) => {
                let allowed = cors.allowed(request.headers());
                let mut response = self.answer_any(request).await;
                Cors::mark(allowed, &mut response);
                response
            }
        };
        self.intake.metrics.answered_http(response.status().as_u16());
        response
    }

    /// Whether this is the path of traces.
    fn is_traces<B>(&self, request: &Request<B>) -> bool {
        fn bare(path: &str) -> &str {
            path.strip_suffix('/').unwrap_or(path)
        }
        bare(request.uri().path()) == bare(&self.settings.traces_path)
    }

    /// Answers a request from any sender.
    async fn answer_any(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        // A request in neither format is answered in protobuf, which every OTLP sender can read.
        let format = format_of(&request).unwrap_or(Format::Protobuf);
        match self.intake.authenticate(request.headers()) {
            Ok(()) => self.answer_known(request, format).await,
            Err(refusal) => self.refuse(&refusal, format),
        }
    }

    /// Answers a sender that has authenticated.
    async fn answer_known(
        &self,
        request: Request<Incoming>,
        format: Format,
    ) -> Response<Full<Bytes>> {
        let encoding =
            if self.is_traces(&request) { encoding_of(&request) } else { Err(Unfit::NotFound) };
        let encoding = match encoding {
            Ok(encoding) => encoding,
            Err(unfit) => return self.unfit(&unfit, format),
        };
        let exchange = Box::pin(self.exchange(request, format, encoding));
        match in_time(&self.intake.clock, exchange).await {
            Some(Ok(ingested)) => {
                response(StatusCode::OK, format, format.acknowledgement(&ingested))
            }
            Some(Err(refusal)) => self.refuse(&refusal, format),
            None => self.refuse(&Refusal::Timeout, format),
        }
    }

    async fn exchange(
        &self,
        request: Request<Incoming>,
        format: Format,
        encoding: Option<Encoding>,
    ) -> Result<Ingested, Refusal> {
        self.intake.admit()?;
        let bytes_max = self.settings.max_body_bytes;
        let charge = Charge::new(&self.intake.budget, format.held_bytes(bytes_max));
        let mut receiving =
            Receiving::new(request.into_body(), bytes_max, charge, &self.intake.buffers);
        if let Some(length) = receiving.announced_bytes().filter(|&length| length <= bytes_max) {
            receiving.expect(length, encoding.is_some())?;
        }
        while receiving.more().await? {}
        let (body, charge) = receiving.finish();
        let is_logged = self.intake.durability.is_some();
        let body = ReceivedBody { encoding, bytes: body, charge, is_logged };
        let message = inflate(body, bytes_max, &self.intake.turns).await?;
        self.intake.take_message(Transport::Http, format.form(), message).await
    }

    fn refuse(&self, refusal: &Refusal, format: Format) -> Response<Full<Bytes>> {
        if let Some(because) = refusal.because() {
            self.intake.metrics.refused(Transport::Http, because);
        }
        let (status, code) = match refusal {
            // Final until somebody corrects the token.
            Refusal::Unauthenticated => (StatusCode::UNAUTHORIZED, Code::Unauthenticated),
            // Retryable; Retry-After says when.
            Refusal::Memory | Refusal::QueueFull | Refusal::Draining | Refusal::Disk => {
                (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable)
            }
            // Also retryable: a stall says nothing about the request. Senders do not retry 408.
            Refusal::Timeout => (StatusCode::SERVICE_UNAVAILABLE, Code::DeadlineExceeded),
            // Final: the same body would never fit.
            Refusal::TooLarge { .. } | Refusal::NeverFits { .. } | Refusal::WindowTooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, Code::ResourceExhausted)
            }
            // Final: the same bytes would never decode.
            Refusal::Malformed(_) => (StatusCode::BAD_REQUEST, Code::InvalidArgument),
            // Nobody reads this answer.
            Refusal::Abandoned => (StatusCode::BAD_REQUEST, Code::Cancelled),
            Refusal::Panicked => (StatusCode::INTERNAL_SERVER_ERROR, Code::Internal),
        };
        let mut response = error(status, code, refusal.to_string(), format);
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            // The Node SDK reads whole seconds only.
            let seconds = self.intake.retry_delay(refusal).as_secs_f64().round() as u64;
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }

    fn unfit(&self, unfit: &Unfit, format: Format) -> Response<Full<Bytes>> {
        let path = &self.settings.traces_path;
        let unsupported = (StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::InvalidArgument);
        let ((status, code), message) = match unfit {
            Unfit::NotFound => {
                ((StatusCode::NOT_FOUND, Code::NotFound), format!("post traces to {path}"))
            }
            Unfit::NotPost => {
                let not_allowed = (StatusCode::METHOD_NOT_ALLOWED, Code::Unimplemented);
                (not_allowed, format!("{path} accepts only POST"))
            }
            Unfit::UnknownType => {
                let known = "application/x-protobuf or application/json";
                (unsupported, format!("the content type must be {known}"))
            }
            Unfit::UnknownCoding(UnknownCoding::Name) => {
                let known = "gzip, deflate, zstd or identity";
                (unsupported, format!("the content encoding must be {known}"))
            }
            Unfit::UnknownCoding(UnknownCoding::Several) => {
                let message = "the body is compressed more than once; only one content encoding \
                               is allowed";
                (unsupported, message.to_owned())
            }
        };
        let mut response = error(status, code, message, format);
        if status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        }
        if matches!(unfit, Unfit::UnknownCoding(_)) {
            response.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static(CODINGS));
        }
        response
    }
}

impl Format {
    fn content_type(self) -> &'static str {
        match self {
            Format::Protobuf => "application/x-protobuf",
            Format::Json => "application/json",
        }
    }

    fn form(self) -> Form {
        match self {
            Format::Protobuf => Form::Protobuf,
            Format::Json => Form::Json,
        }
    }

    /// The memory that the largest body may need: as received, inflated, the decoder's window, and
    /// converted to protobuf.
    fn held_bytes(self, body_bytes_max: usize) -> usize {
        match self {
            Format::Protobuf => body_bytes_max.saturating_mul(3),
            Format::Json => body_bytes_max.saturating_mul(3 + JSON_NEEDS),
        }
    }

    fn acknowledgement(self, ingested: &Ingested) -> Bytes {
        match (self, partial_success(ingested)) {
            (Format::Protobuf, _) => acknowledgement(ingested),
            (Format::Json, None) => Bytes::from_static(b"{}"),
            (Format::Json, Some(partial)) => {
                let partial = json!({
                    // protobuf's JSON writes 64-bit integers as strings.
                    "rejectedSpans": partial.rejected_spans.to_string(),
                    "errorMessage": partial.error_message,
                });
                json!({ "partialSuccess": partial }).to_string().into()
            }
        }
    }
}

fn header<B>(request: &Request<B>, name: HeaderName) -> Option<&str> {
    request.headers().get(name).and_then(|value| value.to_str().ok())
}

fn format_of<B>(request: &Request<B>) -> Option<Format> {
    let content_type = header(request, CONTENT_TYPE)?.split(';').next()?.trim();
    [Format::Protobuf, Format::Json]
        .into_iter()
        .find(|format| content_type.eq_ignore_ascii_case(format.content_type()))
}

fn encoding_of<B>(request: &Request<B>) -> Result<Option<Encoding>, Unfit> {
    if request.method() != Method::POST {
        return Err(Unfit::NotPost);
    }
    if format_of(request).is_none() {
        return Err(Unfit::UnknownType);
    }
    let codings = request.headers().get_all(CONTENT_ENCODING).iter().map(HeaderValue::as_bytes);
    Encoding::of(codings).map_err(Unfit::UnknownCoding)
}

fn error(status: StatusCode, code: Code, message: String, format: Format) -> Response<Full<Bytes>> {
    let body = match format {
        Format::Protobuf => {
            pb::Status { code: code as i32, message, details: Vec::new() }.encode_to_vec().into()
        }
        Format::Json => json!({ "code": code as i32, "message": message }).to_string().into(),
    };
    response(status, format, body)
}

fn response(status: StatusCode, format: Format, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(format.content_type());
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
