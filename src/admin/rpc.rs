//! gRPC on the telemetry port: the control API, `grpc.health.v1`, and server reflection.
//!
//! tonic's services are called directly for each request, without tonic's server, so that gRPC
//! shares the port, the connections and their limits with HTTP.
//!
//! Limits: a message from a client has at most 1 MiB, like a policy file; a call, except a stream,
//! is answered within 60 s; at most 64 answers and 128 streams at once, counted until they are
//! read.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tonic::{Code, Status, body::Body};
use tonic_health::{pb::health_server::HealthServer, server::HealthService};
use tonic_reflection::{
    pb,
    server::{Builder, v1, v1alpha},
};
use tower_service::Service as _;

use super::{
    Admin,
    control::{CONTROL_SERVICE, ControlService},
};
use crate::{
    control::{DESCRIPTORS, control_server::ControlServer},
    net::listen::LongLived,
};

/// The largest message from a client.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// The time limit from a call's headers to its answer, or to the headers of its stream.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
const ANSWERS_MAX: usize = 64;
const STREAMS_MAX: usize = 128;

const GRPC: &[u8] = b"application/grpc";
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// The permits for answers and streams.
#[derive(Debug)]
pub struct Calls {
    answers: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

impl Default for Calls {
    fn default() -> Self {
        let semaphore = |calls| Arc::new(Semaphore::new(calls));
        Calls { answers: semaphore(ANSWERS_MAX), streams: semaphore(STREAMS_MAX) }
    }
}

impl Calls {
    /// A permit for one more answer; `None` if too many are unread.
    pub(super) fn answer(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.answers).try_acquire_owned().ok()
    }
}

/// Makes a body hold a permit until it is read.
pub(super) fn held<B>(response: Response<B>, permit: OwnedSemaphorePermit) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let held = move |error| (error, &permit).0;
    response.map(|body| Body::new(body.map_err(held)))
}

/// The gRPC services. The types of both versions of reflection cannot be named.
pub(super) struct Rpc<A: v1::ServerReflection, B: v1alpha::ServerReflection> {
    admin: Arc<Admin>,
    control: ControlServer<ControlService>,
    health: HealthServer<HealthService>,
    reflection: v1::ServerReflectionServer<A>,
    reflection_alpha: v1alpha::ServerReflectionServer<B>,
}

/// Makes the services of an admin thread.
pub(super) fn services(
    admin: &Arc<Admin>,
) -> Arc<Rpc<impl v1::ServerReflection, impl v1alpha::ServerReflection>> {
    let described = || {
        // Without this, each version would list only itself.
        Builder::configure()
            .include_reflection_service(false)
            .register_encoded_file_descriptor_set(pb::v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(pb::v1alpha::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let known = "the compiler of protobuf wrote the descriptors";
    let control = ControlServer::new(ControlService(Arc::clone(admin)));
    let health = HealthService::from_health_reporter(admin.health.clone());
    Arc::new(Rpc {
        admin: Arc::clone(admin),
        control: control.max_decoding_message_size(MESSAGE_BYTES_MAX),
        health: HealthServer::new(health),
        reflection: described().build_v1().expect(known),
        reflection_alpha: described().build_v1alpha().expect(known),
    })
}

impl<A: v1::ServerReflection, B: v1alpha::ServerReflection> Rpc<A, B> {
    /// Answers one request, over gRPC or HTTP.
    pub(super) async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        if let Some(refusal) = self.admin.refuse(&request) {
            return refusal;
        }
        if !is_grpc(&request) {
            return Arc::clone(&self.admin).answer_http(request).await;
        }
        let calls = &self.admin.calls;
        let is_stream = is_stream(request.uri().path());
        let room = if is_stream { &calls.streams } else { &calls.answers };
        let Ok(permit) = Arc::clone(room).try_acquire_owned() else {
            let what =
                if is_stream { "streams are open" } else { "answers are waiting to be read" };
            return Status::resource_exhausted(format!("too many {what}")).into_http();
        };
        let called = timeout(CALL_TIMEOUT, Box::pin(self.call(request))).await;
        let mut response = called.unwrap_or_else(|_elapsed| {
            let message = format!("the call took longer than {} s", CALL_TIMEOUT.as_secs());
            Status::deadline_exceeded(message).into_http()
        });
        // A watcher of decisions has put its own.
        if is_stream && response.extensions().get::<LongLived>().is_none() {
            response.extensions_mut().insert(LongLived::default());
        }
        name_the_limit(&mut response);
        held(response, permit)
    }

    async fn call(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        let Some((service, _)) = path.strip_prefix('/').and_then(|path| path.rsplit_once('/'))
        else {
            return unknown();
        };
        let Ok(response) = match service {
            CONTROL_SERVICE => self.control.clone().call(request).await,
            "grpc.health.v1.Health" => self.health.clone().call(request).await,
            "grpc.reflection.v1.ServerReflection" => self.reflection.clone().call(request).await,
            "grpc.reflection.v1alpha.ServerReflection" => {
                self.reflection_alpha.clone().call(request).await
            }
            _ => Ok(unknown()),
        };
        response
    }
}

fn unknown() -> Response<Body> {
    Status::unimplemented("the telemetry port has no such service").into_http()
}

/// tonic refuses a message that is too large with OUT_OF_RANGE. This changes it to gRPC's code for
/// this, RESOURCE_EXHAUSTED, which clients know.
fn name_the_limit(response: &mut Response<Body>) {
    let code = |code: Code| HeaderValue::from(code as i32);
    let headers = response.headers_mut();
    if headers.get(&GRPC_STATUS) == Some(&code(Code::OutOfRange)) {
        headers.insert(GRPC_STATUS, code(Code::ResourceExhausted));
    }
}

pub(super) fn is_grpc<B>(request: &Request<B>) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = content_type.and_then(|value| value.strip_prefix(GRPC));
    rest.is_some_and(|rest| matches!(rest, [] | [b'+' | b';', ..]))
}

/// Whether the call is a stream, which may last as long as the client wants.
fn is_stream(path: &str) -> bool {
    let methods = ["WatchDecisions", "TryPolicies", "Record", "Watch", "ServerReflectionInfo"];
    path.rsplit('/').next().is_some_and(|method| methods.contains(&method))
}
