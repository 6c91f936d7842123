//! OTLP/HTTP: POST /v1/traces with protobuf bodies, as they are or compressed.
//!
//! Shares admission, limits and the walker with gRPC. Errors carry a `google.rpc.Status` as the
//! specification asks. JSON is answered 415 until it is built.
//! Source: OTLP specification, "OTLP/HTTP".

use std::{
    io::{self, Read},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use prost::Message as _;
use tonic::Code;
use tonic_types::pb;

use super::{
    Intake, Refusal,
    admission::{Charge, ChargedBody},
    grpc::acknowledgement,
};
use crate::metrics::Transport;

/// Where traces are posted.
const TRACES_PATH: &str = "/v1/traces";
const PROTOBUF: &str = "application/x-protobuf";
/// From the headers of a request to its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

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
    NotProtobuf,
    UnknownEncoding,
}

#[derive(Clone, Copy)]
enum Encoding {
    Identity,
    Gzip,
    Deflate,
    Zstd,
}

impl HttpService {
    /// Serves `intake`. `max_body_bytes` holds before and after decompression.
    pub fn new(intake: Arc<Intake>, max_body_bytes: usize) -> Self {
        HttpService { intake, max_body_bytes }
    }

    /// Answers one request.
    pub async fn answer(self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let response = match self.intake.authenticate(request.headers()) {
            Ok(()) => self.answer_known(request).await,
            Err(refusal) => self.refuse(&refusal),
        };
        self.intake.metrics.answered_http(response.status().as_u16());
        response
    }

    /// Answers a sender that may send.
    async fn answer_known(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let encoding = match encoding_of(&request) {
            Ok(encoding) => encoding,
            Err(unfit) => return unfit_response(&unfit),
        };
        let exchange = self.exchange(request, encoding);
        match tokio::time::timeout(REQUEST_TIMEOUT, exchange).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(refusal)) => self.refuse(&refusal),
            Err(_elapsed) => {
                self.refuse(&Refusal::Malformed("the body took longer than 30 s".into()))
            }
        }
    }

    async fn exchange(
        &self,
        request: Request<Incoming>,
        encoding: Encoding,
    ) -> Result<Response<Full<Bytes>>, Refusal> {
        self.intake.admit()?;
        let charge = Charge::new(&self.intake.budget, self.max_body_bytes);
        let refused = Arc::new(Mutex::new(None));
        let body = ChargedBody::new(request.into_body(), charge.clone(), Arc::clone(&refused));
        let body = Limited::new(body, self.max_body_bytes).collect().await;
        let body = body.map_err(|error| {
            let refusal = refused.lock().unwrap_or_else(PoisonError::into_inner).take();
            refusal.unwrap_or_else(|| self.body_refusal(&*error))
        })?;
        let message = self.decompress(body.to_bytes(), encoding)?;
        if !matches!(encoding, Encoding::Identity) {
            charge.grow(message.len())?;
        }
        let ingested = self.intake.take(Transport::Http, &message)?;
        Ok(response(StatusCode::OK, acknowledgement(&ingested)))
    }

    fn body_refusal(&self, error: &(dyn std::error::Error + 'static)) -> Refusal {
        if error.is::<LengthLimitError>() {
            return self.too_large();
        }
        Refusal::Malformed(format!("the body ended early: {error}"))
    }

    fn too_large(&self) -> Refusal {
        Refusal::TooLarge { limit_bytes: self.max_body_bytes }
    }

    fn decompress(&self, body: Bytes, encoding: Encoding) -> Result<Bytes, Refusal> {
        let read = match encoding {
            Encoding::Identity => return Ok(body),
            Encoding::Gzip => self.read(flate2::read::MultiGzDecoder::new(&body[..])),
            Encoding::Deflate => self.read(flate2::read::ZlibDecoder::new(&body[..])),
            Encoding::Zstd => zstd::Decoder::new(&body[..]).and_then(|decoder| self.read(decoder)),
        };
        let message =
            read.map_err(|error| Refusal::Malformed(format!("cannot decompress: {error}")))?;
        if message.len() > self.max_body_bytes { Err(self.too_large()) } else { Ok(message) }
    }

    /// Reads one byte more than the limit at most, so that a bomb stops there.
    fn read(&self, decoder: impl Read) -> io::Result<Bytes> {
        let mut message = Vec::new();
        decoder.take(self.max_body_bytes as u64 + 1).read_to_end(&mut message)?;
        Ok(message.into())
    }

    fn refuse(&self, refusal: &Refusal) -> Response<Full<Bytes>> {
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
            Refusal::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, Code::ResourceExhausted),
            // Final: the same bytes would never decode.
            Refusal::Malformed(_) => (StatusCode::BAD_REQUEST, Code::InvalidArgument),
            // To nobody.
            Refusal::Abandoned => (StatusCode::BAD_REQUEST, Code::Cancelled),
            Refusal::Panicked => (StatusCode::INTERNAL_SERVER_ERROR, Code::Internal),
        };
        let mut response = error(status, code, refusal.to_string());
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

fn encoding_of<B>(request: &Request<B>) -> Result<Encoding, Unfit> {
    if request.uri().path() != TRACES_PATH {
        return Err(Unfit::NotFound);
    }
    if request.method() != Method::POST {
        return Err(Unfit::NotPost);
    }
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let content_type = header(CONTENT_TYPE).and_then(|value| value.split(';').next());
    if !content_type.is_some_and(|value| value.trim().eq_ignore_ascii_case(PROTOBUF)) {
        return Err(Unfit::NotProtobuf);
    }
    match header(CONTENT_ENCODING).map(str::to_ascii_lowercase).as_deref() {
        None | Some("" | "identity") => Ok(Encoding::Identity),
        Some("gzip") => Ok(Encoding::Gzip),
        Some("deflate") => Ok(Encoding::Deflate),
        Some("zstd") => Ok(Encoding::Zstd),
        Some(_) => Err(Unfit::UnknownEncoding),
    }
}

fn unfit_response(unfit: &Unfit) -> Response<Full<Bytes>> {
    match unfit {
        Unfit::NotFound => {
            error(StatusCode::NOT_FOUND, Code::NotFound, format!("post traces to {TRACES_PATH}"))
        }
        Unfit::NotPost => {
            let message = format!("{TRACES_PATH} takes POST");
            let mut response = error(StatusCode::METHOD_NOT_ALLOWED, Code::Unimplemented, message);
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            response
        }
        Unfit::NotProtobuf => error(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Code::InvalidArgument,
            format!("the content type must be {PROTOBUF}; JSON is not available yet"),
        ),
        Unfit::UnknownEncoding => error(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Code::InvalidArgument,
            "the content encoding must be gzip, deflate, zstd or identity".to_owned(),
        ),
    }
}

fn error(status: StatusCode, code: Code, message: String) -> Response<Full<Bytes>> {
    let body = pb::Status { code: code as i32, message, details: Vec::new() };
    response(status, body.encode_to_vec().into())
}

fn response(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PROTOBUF));
    response
}
