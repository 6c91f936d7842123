//! OTLP/gRPC: TraceService/Export and grpc.health.v1, and their answers.
//!
//! This module reads gRPC's framing itself. A unary call is a prefix of five bytes, a message and
//! trailers, and reading it takes less code than bounding tonic's server (0.14) from outside. For a
//! message up to its size limit, tonic's server allocates the length that the prefix claims before
//! the bytes arrive, and inflates it without asking the memory budget. It accepts zstd windows of
//! up to 128 MiB. It answers a longer message with OUT_OF_RANGE, which OTLP senders retry for ever.
//! Sources: OTLP specification, "OTLP/gRPC"; gRPC over HTTP/2.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use http_body::Frame;
use hyper::body::Incoming;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use prost::Message as _;
use tonic::{Code, Status, body::Body, metadata::MetadataValue};
use tonic_types::{ErrorDetails, StatusExt as _, pb};
use tower_service::Service;

use super::{
    Intake, Refusal,
    admission::{Charge, Receiving},
    compression::{CODINGS, Encoding, ReceivedBody, inflate},
    take::Form,
};
use crate::{
    grpc::{self, EXPORT_PATH, PREFIX_BYTES},
    metrics::Transport,
    net::{deadline::in_time, listen::LongLived},
    otlp::outsized::Outsized,
    sampler::Ingested,
};

const GRPC: &str = "application/grpc";
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

type HealthServer =
    tonic_health::pb::health_server::HealthServer<tonic_health::server::HealthService>;

/// The gRPC receiver. Clones share all state.
#[derive(Clone, Debug)]
pub(crate) struct GrpcService {
    intake: Arc<Intake>,
    health: HealthServer,
    max_recv_msg_bytes: usize,
}

impl GrpcService {
    /// Serves `intake`, and the health service `health` beside it.
    pub(crate) fn new(
        intake: Arc<Intake>,
        health: tonic_health::server::HealthService,
        max_recv_msg_bytes: usize,
    ) -> Self {
        GrpcService { intake, health: HealthServer::new(health), max_recv_msg_bytes }
    }

    /// Answers one HTTP/2 request.
    pub(crate) async fn answer(self, request: http::Request<Incoming>) -> Response<Body> {
        if !is_grpc(&request) {
            self.intake.metrics.answered_not_grpc();
            return not_grpc();
        }
        let path = request.uri().path();
        if path.starts_with("/grpc.health.v1.Health/") {
            let Ok(mut response) = self.health.clone().call(request).await;
            response.extensions_mut().insert(LongLived::default());
            return response;
        }
        let answer = match self.intake.authenticate(request.headers()) {
            Err(refusal) => Err(self.refuse(&refusal)),
            Ok(()) if path == EXPORT_PATH => self.export(request).await,
            Ok(()) => Err(Status::unimplemented("this receiver accepts traces only")),
        };
        let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        self.intake.metrics.answered_grpc(code);
        answer.map_or_else(Status::into_http, |ingested| acknowledge(&ingested))
    }

    async fn export(&self, request: http::Request<Incoming>) -> Result<Ingested, Status> {
        let encoding = encoding_of(&request)?;
        let exchange = Box::pin(self.exchange(request.into_body(), encoding));
        match in_time(&self.intake.clock, exchange).await {
            Some(outcome) => outcome.map_err(|refusal| self.refuse(&refusal)),
            None => Err(self.refuse(&Refusal::Timeout)),
        }
    }

    async fn exchange(
        &self,
        body: Incoming,
        encoding: Option<Encoding>,
    ) -> Result<Ingested, Refusal> {
        self.intake.admit()?;
        let bytes_max = self.max_recv_msg_bytes;
        // The body as received, the inflated message, and the decoder's window.
        let charge = Charge::new(&self.intake.budget, bytes_max.saturating_mul(3));
        let mut receiving = Receiving::new(
            body,
            bytes_max.saturating_add(PREFIX_BYTES),
            charge,
            &self.intake.buffers,
        );
        // A message whose prefix claims too great a length is refused before the rest is read.
        while receiving.more().await? {
            match claim(receiving.bytes()) {
                Some(length) if length > bytes_max => {
                    return Err(Refusal::TooLarge { limit_bytes: bytes_max });
                }
                Some(length) => {
                    let is_compressed = receiving.bytes()[0] == 1;
                    receiving.expect(PREFIX_BYTES + length, is_compressed)?;
                }
                None => {}
            }
        }
        let (body, charge) = receiving.finish();
        let (encoding, bytes) = unframe(&body, encoding)?;
        // From here on, only the message is held and charged, and the body as it was received if it
        // is written to a log.
        drop(body);
        let is_logged = self.intake.durability.is_some();
        let body = ReceivedBody { encoding, bytes, charge, is_logged };
        let message = inflate(body, bytes_max, &self.intake.turns).await?;
        self.intake.take_message(Transport::Grpc, Form::Protobuf, message).await
    }

    fn refuse(&self, refusal: &Refusal) -> Status {
        if let Some(because) = refusal.because() {
            self.intake.metrics.refused(Transport::Grpc, because);
        }
        let message = refusal.to_string();
        match refusal {
            // Final until somebody corrects the token.
            Refusal::Unauthenticated => Status::unauthenticated(message),
            // Retryable; RetryInfo says when.
            Refusal::Memory | Refusal::QueueFull | Refusal::Draining | Refusal::Disk => {
                unavailable(message, self.intake.retry_delay(refusal))
            }
            // Final, by leaving out RetryInfo: the same message would never fit.
            Refusal::TooLarge { .. } | Refusal::NeverFits { .. } | Refusal::WindowTooLarge => {
                Status::resource_exhausted(message)
            }
            // Final: the same bytes would never decode.
            Refusal::Malformed(_) => Status::invalid_argument(message),
            // Retryable: a stall says nothing about the request.
            Refusal::Timeout => Status::deadline_exceeded(message),
            Refusal::Abandoned => Status::cancelled(message),
            Refusal::Panicked => Status::internal(message),
        }
    }
}

/// UNAVAILABLE with RetryInfo in two trailers: the specification's, and the one that the Python SDK
/// reads.
fn unavailable(message: String, delay: Duration) -> Status {
    let details = ErrorDetails::with_retry_info(Some(delay));
    let mut status = Status::with_error_details(Code::Unavailable, message, details);
    let retry_info = pb::RetryInfo { retry_delay: prost_types::Duration::try_from(delay).ok() };
    let value = MetadataValue::from_bytes(&retry_info.encode_to_vec());
    status.metadata_mut().insert_bin("google.rpc.retryinfo-bin", value);
    status
}

/// The length that a prefix claims, once the prefix is complete.
fn claim(body: &[u8]) -> Option<usize> {
    let (_flag, length) = grpc::read_prefix(*body.first_chunk()?);
    usize::try_from(length).ok()
}

/// The one message of a body, and its compression.
fn unframe(body: &Bytes, encoding: Option<Encoding>) -> Result<(Option<Encoding>, Bytes), Refusal> {
    let malformed = |what: &str| Refusal::Malformed(what.into());
    let length = claim(body).ok_or_else(|| malformed("the body holds no message"))?;
    let message = body.slice(PREFIX_BYTES..);
    if message.len() != length {
        return Err(malformed("the body is not one message of the length that its prefix claims"));
    }
    match body[0] {
        0 => Ok((None, message)),
        1 if encoding.is_some() => Ok((encoding, message)),
        1 => Err(malformed("the message is compressed, but there is no grpc-encoding header")),
        _ => Err(malformed("an unknown flag before the message")),
    }
}

fn encoding_of<B>(request: &http::Request<B>) -> Result<Option<Encoding>, Status> {
    let names = request.headers().get_all("grpc-encoding").iter().map(HeaderValue::as_bytes);
    Encoding::of(names).map_err(|_| {
        let message = "the grpc-encoding must be one of gzip, deflate, zstd and identity";
        let mut status = Status::unimplemented(message);
        let known = MetadataValue::from_static(CODINGS);
        status.metadata_mut().insert("grpc-accept-encoding", known);
        status
    })
}

/// The answer to a request that was taken.
fn acknowledge(ingested: &Ingested) -> Response<Body> {
    let message = acknowledgement(ingested);
    let mut framed = Vec::with_capacity(PREFIX_BYTES + message.len());
    framed.extend_from_slice(&grpc::prefix(false, message.len() as u32));
    framed.extend_from_slice(&message);
    let trailers = HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static("0"))]);
    let frames = [Frame::data(framed.into()), Frame::trailers(trailers)];
    let mut response = Response::new(Body::new(Frames(frames.into_iter())));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
    response
}

/// A body whose frames are all present. It reports no length, so that no content-length is sent.
struct Frames(std::array::IntoIter<Frame<Bytes>, 2>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.0.next().map(Ok))
    }
}

/// The encoded answer to a request that was taken. It is empty unless spans were rejected.
pub(super) fn acknowledgement(ingested: &Ingested) -> Bytes {
    let partial_success = partial_success(ingested);
    ExportTraceServiceResponse { partial_success }.encode_to_vec().into()
}

/// The count and the cause of rejected spans in a request that was taken.
pub(super) fn partial_success(ingested: &Ingested) -> Option<ExportTracePartialSuccess> {
    let outsized = ingested.outsized.as_deref();
    let rejected = ingested.rejected + outsized.map_or(0, |outsized| outsized.spans);
    let mut messages = Vec::new();
    if ingested.rejected > 0 {
        messages.push(INVALID_IDS.to_owned());
    }
    if let Some(Outsized { spans, bytes, bytes_max, .. }) = outsized {
        messages.push(format!(
            "{spans} spans were rejected: their resource or scope has {bytes} bytes, and the limit \
             is {bytes_max}"
        ));
    }
    (rejected > 0).then(|| ExportTracePartialSuccess {
        rejected_spans: i64::try_from(rejected).unwrap_or(i64::MAX),
        error_message: messages.join("; "),
    })
}

const INVALID_IDS: &str = "spans with malformed ids were rejected: a trace id has 16 bytes, a span \
                           id 8, a parent span id 0 or 8, in JSON as hexadecimal; trace and span \
                           ids must not be all zero";

fn is_grpc<B>(request: &http::Request<B>) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = content_type.and_then(|value| value.strip_prefix(GRPC.as_bytes()));
    rest.is_some_and(|rest| matches!(rest, [] | [b'+' | b';', ..]))
}

/// The answer that the gRPC specification gives to a request that is not gRPC, so that an HTTP
/// client sees its mistake.
fn not_grpc() -> Response<Body> {
    let mut response = Response::new(Body::default());
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}
