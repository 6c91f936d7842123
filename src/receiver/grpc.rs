//! OTLP/gRPC: TraceService/Export and grpc.health.v1, and the answers of the contract.
//!
//! tonic frames, decompresses and limits; its own refusals are turned into what OTLP wants: it
//! answers OUT_OF_RANGE for a message over the limit, which OTLP senders retry for ever, and
//! INTERNAL for one that does not decompress. Sources: OTLP specification, "OTLP/gRPC"; gRPC over
//! HTTP/2.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use hyper::body::Incoming;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use prost::Message as _;
use tonic::{
    Code, Request, Status,
    body::Body,
    codec::CompressionEncoding,
    metadata::MetadataValue,
    server::{Grpc, UnaryService},
};
use tonic_types::{ErrorDetails, StatusExt as _, pb};
use tower_service::Service;

use super::{
    Intake, Refusal,
    admission::{Charge, ChargedBody},
};
use crate::{
    grpc::{EXPORT_PATH, RawCodec},
    metrics::Transport,
    sampler::Ingested,
};

/// From the headers of a request to its answer: a body may be slow, not endless.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

type HealthServer =
    tonic_health::pb::health_server::HealthServer<tonic_health::server::HealthService>;

/// The gRPC door. Clones share everything.
#[derive(Clone, Debug)]
pub struct GrpcService {
    intake: Arc<Intake>,
    health: HealthServer,
    max_recv_msg_bytes: usize,
}

impl GrpcService {
    /// Serves `intake`, and `health` beside it.
    pub fn new(
        intake: Arc<Intake>,
        health: tonic_health::server::HealthService,
        max_recv_msg_bytes: usize,
    ) -> Self {
        GrpcService { intake, health: HealthServer::new(health), max_recv_msg_bytes }
    }

    /// Answers one HTTP/2 request.
    pub async fn answer(self, request: http::Request<Incoming>) -> Response<Body> {
        if !is_grpc(&request) {
            self.intake.metrics.answered_not_grpc();
            return not_grpc();
        }
        let path = request.uri().path();
        if path.starts_with("/grpc.health.v1.Health/") {
            let Ok(response) = self.health.clone().call(request).await;
            return response;
        }
        let response = match self.intake.authenticate(request.headers()) {
            Err(refusal) => self.refuse(&refusal).into_http(),
            Ok(()) if path == EXPORT_PATH => self.export(request).await,
            Ok(()) => Status::unimplemented("only traces are taken here").into_http(),
        };
        self.intake.metrics.answered_grpc(code_of(&response));
        response
    }

    async fn export(&self, request: http::Request<Incoming>) -> Response<Body> {
        let outcome = tokio::time::timeout(REQUEST_TIMEOUT, self.exchange(request)).await;
        match outcome {
            Ok(response) => response,
            Err(_elapsed) => {
                Status::deadline_exceeded("the request took longer than 30 s").into_http()
            }
        }
    }

    async fn exchange(&self, request: http::Request<Incoming>) -> Response<Body> {
        if let Err(refusal) = self.intake.admit() {
            return self.refuse(&refusal).into_http();
        }
        let charge = Charge::new(&self.intake.budget, self.max_recv_msg_bytes);
        let refused = Arc::new(Mutex::new(None));
        let is_compressed = request.headers().contains_key("grpc-encoding");
        let call = ExportCall {
            intake: Arc::clone(&self.intake),
            charge: charge.clone(),
            refused: Arc::clone(&refused),
            is_compressed,
        };
        let request = request.map(|body| ChargedBody::new(body, charge, Arc::clone(&refused)));
        let response = Grpc::new(RawCodec)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd)
            .max_decoding_message_size(self.max_recv_msg_bytes)
            .unary(call, request)
            .await;
        let refusal = refused.lock().unwrap_or_else(PoisonError::into_inner).take();
        match refusal.or_else(|| self.reinterpret(code_of(&response), &response)) {
            Some(refusal) => self.refuse(&refusal).into_http(),
            None => response,
        }
    }

    /// What tonic's own refusals mean to OTLP. The export call itself never answers these codes,
    /// since its refusals are told through `refused`.
    fn reinterpret(&self, code: Code, response: &Response<Body>) -> Option<Refusal> {
        match code {
            // A declared length, or a decompressed one, over the limit.
            Code::OutOfRange | Code::ResourceExhausted => {
                Some(Refusal::TooLarge { limit_bytes: self.max_recv_msg_bytes })
            }
            // Wrong framing, or a body that does not decompress.
            Code::Internal => {
                let message = response.headers().get("grpc-message").map(HeaderValue::as_bytes);
                let message = String::from_utf8_lossy(message.unwrap_or_default()).into_owned();
                Some(Refusal::Malformed(message.replace("%20", " ")))
            }
            _ => None,
        }
    }

    fn refuse(&self, refusal: &Refusal) -> Status {
        if let Some(because) = refusal.because() {
            self.intake.metrics.refused(Transport::Grpc, because);
        }
        let message = refusal.to_string();
        match refusal {
            // Final until someone corrects the token.
            Refusal::Unauthenticated => Status::unauthenticated(message),
            // Retryable, and the sender is told when.
            Refusal::Memory | Refusal::QueueFull | Refusal::Draining => {
                unavailable(message, self.intake.retry_delay(refusal))
            }
            // Without RetryInfo this is final, as it must be: the same message would never fit.
            Refusal::TooLarge { .. } => Status::resource_exhausted(message),
            // Final: the same bytes would never decode.
            Refusal::Malformed(_) => Status::invalid_argument(message),
            Refusal::Abandoned => Status::cancelled(message),
            Refusal::Panicked => Status::internal(message),
        }
    }
}

/// UNAVAILABLE with RetryInfo, in the trailer of the specification and in the one the Python SDK
/// reads.
fn unavailable(message: String, delay: Duration) -> Status {
    let details = ErrorDetails::with_retry_info(Some(delay));
    let mut status = Status::with_error_details(Code::Unavailable, message, details);
    let retry_info = pb::RetryInfo { retry_delay: prost_types::Duration::try_from(delay).ok() };
    let value = MetadataValue::from_bytes(&retry_info.encode_to_vec());
    status.metadata_mut().insert_bin("google.rpc.retryinfo-bin", value);
    status
}

/// One call of Export, once its message is there.
struct ExportCall {
    intake: Arc<Intake>,
    charge: Charge,
    refused: Arc<Mutex<Option<Refusal>>>,
    is_compressed: bool,
}

impl ExportCall {
    fn run(&self, message: &[u8]) -> Result<Ingested, Refusal> {
        if self.is_compressed {
            self.charge.grow(message.len())?;
        }
        self.intake.take(Transport::Grpc, message)
    }
}

impl UnaryService<Bytes> for ExportCall {
    type Response = Bytes;
    type Future =
        Pin<Box<dyn Future<Output = Result<tonic::Response<Bytes>, Status>> + Send + 'static>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        // Nothing to wait for: buffering is synchronous, and the answer is ready when this returns.
        let answer = match self.run(request.get_ref()) {
            Ok(ingested) => Ok(tonic::Response::new(acknowledgement(&ingested))),
            Err(refusal) => {
                *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
                Err(Status::unknown("refused"))
            }
        };
        Box::pin(std::future::ready(answer))
    }
}

/// The encoded answer to a request that was taken: empty, unless spans were left out.
pub(super) fn acknowledgement(ingested: &Ingested) -> Bytes {
    if ingested.rejected == 0 {
        return Bytes::new();
    }
    let partial = ExportTracePartialSuccess {
        rejected_spans: i64::try_from(ingested.rejected).unwrap_or(i64::MAX),
        error_message:
            "spans with malformed ids were rejected: a trace id has 16 bytes, a span id 8, \
                        a parent span id 0 or 8, and neither of the first two is all zero"
                .into(),
    };
    ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec().into()
}

fn is_grpc<B>(request: &http::Request<B>) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    content_type.is_some_and(|value| value.starts_with(b"application/grpc"))
}

/// As the gRPC specification says, so that an HTTP client sees what it did wrong.
fn not_grpc() -> Response<Body> {
    let mut response = Response::new(Body::default());
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}

/// The gRPC code of an answer without a message; one with a message is OK.
fn code_of(response: &Response<Body>) -> Code {
    match response.headers().get("grpc-status") {
        Some(code) => Code::from_bytes(code.as_bytes()),
        None => Code::Ok,
    }
}
