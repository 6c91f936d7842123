//! OTLP/HTTP: POST /v1/traces with protobuf bodies, as they are or compressed.
//!
//! Shares admission, limits and the walker with gRPC. Errors carry a `google.rpc.Status` as the
//! specification asks. JSON is answered 415 until it is built.
//! Source: OTLP specification, "OTLP/HTTP".

use std::sync::Arc;

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER},
};
use http_body_util::Full;
use hyper::body::Incoming;
use prost::Message as _;
use tonic::Code;
use tonic_types::pb;

use super::{
    Intake, REQUEST_TIMEOUT, Refusal,
    admission::{Charge, Receiving},
    compression::{Encoding, inflate},
    grpc::acknowledgement,
};
use crate::metrics::Transport;

/// Where traces are posted.
const TRACES_PATH: &str = "/v1/traces";
const PROTOBUF: &str = "application/x-protobuf";

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

impl HttpService {
    /// Serves `intake`. `max_body_bytes` holds before and after decompression.
    pub fn new(intake: Arc<Intake>, max_body_bytes: usize) -> Self {
        HttpService { intake, max_body_bytes }
    }

    /// Answers one request.
    pub async fn answer(self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let response = match encoding_of(&request) {
            Err(unfit) => unfit_response(&unfit),
            Ok(encoding) => {
                let exchange = self.exchange(request, encoding);
                match tokio::time::timeout(REQUEST_TIMEOUT, exchange).await {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(refusal)) => self.refuse(&refusal),
                    Err(_elapsed) => {
                        self.refuse(&Refusal::Malformed("the body took longer than 30 s".into()))
                    }
                }
            }
        };
        self.intake.metrics.answered_http(response.status().as_u16());
        response
    }

    async fn exchange(
        &self,
        request: Request<Incoming>,
        encoding: Encoding,
    ) -> Result<Response<Full<Bytes>>, Refusal> {
        self.intake.admit()?;
        let charge = Charge::new(&self.intake.budget, self.max_body_bytes);
        let mut receiving = Receiving::new(request.into_body(), self.max_body_bytes, charge);
        while receiving.more().await? {}
        let (body, charge) = receiving.finish();
        let turns = &self.intake.turns;
        let message = inflate(encoding, body, charge, self.max_body_bytes, turns).await?;
        let ingested = self.intake.take(Transport::Http, &message.bytes)?;
        Ok(response(StatusCode::OK, acknowledgement(&ingested)))
    }

    fn refuse(&self, refusal: &Refusal) -> Response<Full<Bytes>> {
        if let Some(because) = refusal.because() {
            self.intake.metrics.refused(Transport::Http, because);
        }
        let (status, code) = match refusal {
            // Retryable, and the sender is told when.
            Refusal::Memory | Refusal::QueueFull | Refusal::Draining => {
                (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable)
            }
            // Final: the same body would never fit.
            Refusal::TooLarge { .. } | Refusal::WindowTooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, Code::ResourceExhausted)
            }
            // Final: the same bytes would never decode.
            Refusal::Malformed(_) => (StatusCode::BAD_REQUEST, Code::InvalidArgument),
            // To nobody.
            Refusal::Abandoned => (StatusCode::BAD_REQUEST, Code::Cancelled),
            Refusal::Panicked => (StatusCode::INTERNAL_SERVER_ERROR, Code::Internal),
        };
        let mut response = error(status, code, refusal.to_string());
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
