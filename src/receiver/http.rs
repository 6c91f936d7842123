//! OTLP/HTTP: POST /v1/traces with protobuf or JSON bodies, as they are or compressed.
//!
//! Shares admission, limits and the walker with gRPC; JSON becomes protobuf first. Answers are of
//! the type of their request; errors carry a `google.rpc.Status` as the specification asks.
//! Source: OTLP specification, "OTLP/HTTP".

use std::sync::Arc;

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
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
    compression::{Encoding, inflate},
    deadline::in_time,
    grpc::{acknowledgement, partial_success},
    turns::work,
};
use crate::{metrics::Transport, otlp::json, sampler::Ingested, supervise::Task};

/// Where traces are posted.
const TRACES_PATH: &str = "/v1/traces";
/// What turning JSON into protobuf takes, in lengths of the JSON.
const JSON_NEEDS: usize = 2;

/// The HTTP door. Clones share everything.
#[derive(Clone, Debug)]
pub struct HttpService {
    intake: Arc<Intake>,
    max_body_bytes: usize,
}

/// Why a request got no further than its headers.
enum Unfit {
    NotFound,
    NotPost,
    UnknownType,
    UnknownEncoding,
}

/// What a request is written in, and its answer.
#[derive(Clone, Copy, PartialEq)]
enum Format {
    Protobuf,
    Json,
}

impl HttpService {
    /// Serves `intake`. `max_body_bytes` holds before and after decompression.
    pub fn new(intake: Arc<Intake>, max_body_bytes: usize) -> Self {
        HttpService { intake, max_body_bytes }
    }

    /// Answers one request.
    pub async fn answer(self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        // Who writes neither is answered in the one that every sender of OTLP can read.
        let format = format_of(&request).unwrap_or(Format::Protobuf);
        let response = match self.intake.authenticate(request.headers()) {
            Ok(()) => self.answer_known(request, format).await,
            Err(refusal) => self.refuse(&refusal, format),
        };
        self.intake.metrics.answered_http(response.status().as_u16());
        response
    }

    /// Answers a sender that may send.
    async fn answer_known(
        &self,
        request: Request<Incoming>,
        format: Format,
    ) -> Response<Full<Bytes>> {
        let encoding = match encoding_of(&request) {
            Ok(encoding) => encoding,
            Err(unfit) => return unfit_response(&unfit, format),
        };
        let exchange = Box::pin(self.exchange(request, format, encoding));
        match in_time(&self.intake.clock, exchange).await {
            Some(Ok(ingested)) => {
                response(StatusCode::OK, format, format.acknowledgement(&ingested))
            }
            Some(Err(refusal)) => self.refuse(&refusal, format),
            None => {
                let late = Refusal::Malformed("the body took longer than 30 s".into());
                self.refuse(&late, format)
            }
        }
    }

    async fn exchange(
        &self,
        request: Request<Incoming>,
        format: Format,
        encoding: Option<Encoding>,
    ) -> Result<Ingested, Refusal> {
        self.intake.admit()?;
        let bytes_max = self.max_body_bytes;
        let charge = Charge::new(&self.intake.budget, format.held_bytes(bytes_max));
        let mut receiving =
            Receiving::new(request.into_body(), bytes_max, charge, &self.intake.buffers);
        if let Some(length) = receiving.announced_bytes().filter(|&length| length <= bytes_max) {
            receiving.expect(length, encoding.is_some())?;
        }
        while receiving.more().await? {}
        let (body, charge) = receiving.finish();
        let mut message = inflate(encoding, body, charge, bytes_max, &self.intake.turns).await?;
        let intake = Arc::clone(&self.intake);
        work(message.is_large(), move || {
            if format == Format::Json {
                message.grow(JSON_NEEDS * message.bytes.len())?;
                let turn_into = || json::to_protobuf(&message.bytes);
                let supervisor = &intake.supervisor;
                message.bytes = supervisor.contained_now(Task::Receiver, turn_into)??.into();
            }
            intake.take(Transport::Http, &message.bytes)
        })
        .await
    }

    fn refuse(&self, refusal: &Refusal, format: Format) -> Response<Full<Bytes>> {
        if let Some(because) = refusal.because() {
            self.intake.metrics.refused(Transport::Http, because);
        }
        let (status, code) = match refusal {
            // Final until someone corrects the token.
            Refusal::Unauthenticated => (StatusCode::UNAUTHORIZED, Code::Unauthenticated),
            // Retryable, and the sender is told when.
            Refusal::Memory | Refusal::QueueFull | Refusal::Draining => {
                (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable)
            }
            // Final: the same body would never fit.
            Refusal::TooLarge { .. } | Refusal::NeverFits { .. } | Refusal::WindowTooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, Code::ResourceExhausted)
            }
            // Final: the same bytes would never decode.
            Refusal::Malformed(_) => (StatusCode::BAD_REQUEST, Code::InvalidArgument),
            // To nobody.
            Refusal::Abandoned => (StatusCode::BAD_REQUEST, Code::Cancelled),
            Refusal::Panicked => (StatusCode::INTERNAL_SERVER_ERROR, Code::Internal),
        };
        let mut response = error(status, code, refusal.to_string(), format);
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            // Whole seconds, which is all that the Node SDK reads.
            let seconds = self.intake.retry_delay(refusal).as_secs_f64().round() as u64;
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
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

    /// What the largest body may make the service hold: itself, inflated, the decoder's window, and
    /// as protobuf.
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
                    // 64-bit integers are strings in protobuf's JSON.
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
    if request.uri().path() != TRACES_PATH {
        return Err(Unfit::NotFound);
    }
    if request.method() != Method::POST {
        return Err(Unfit::NotPost);
    }
    if format_of(request).is_none() {
        return Err(Unfit::UnknownType);
    }
    match header(request, CONTENT_ENCODING).map(str::to_ascii_lowercase).as_deref() {
        None | Some("" | "identity") => Ok(None),
        Some("gzip") => Ok(Some(Encoding::Gzip)),
        Some("deflate") => Ok(Some(Encoding::Deflate)),
        Some("zstd") => Ok(Some(Encoding::Zstd)),
        Some(_) => Err(Unfit::UnknownEncoding),
    }
}

fn unfit_response(unfit: &Unfit, format: Format) -> Response<Full<Bytes>> {
    let (status, code, message) = match unfit {
        Unfit::NotFound => (StatusCode::NOT_FOUND, Code::NotFound, "post traces to /v1/traces"),
        Unfit::NotPost => {
            (StatusCode::METHOD_NOT_ALLOWED, Code::Unimplemented, "/v1/traces takes POST")
        }
        Unfit::UnknownType => (
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Code::InvalidArgument,
            "the content type must be application/x-protobuf or application/json",
        ),
        Unfit::UnknownEncoding => (
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Code::InvalidArgument,
            "the content encoding must be gzip, deflate, zstd or identity",
        ),
    };
    let mut response = error(status, code, message.to_owned(), format);
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    }
    response
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
