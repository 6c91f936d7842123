//! The backend: stores the spans that it gets over OTLP/gRPC or OTLP/HTTP, with the faults of a
//! real one.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message as _;
use tailwater::{
    grpc::{EXPORT_PATH, RawCodec},
    net::listen,
    testing,
};
use tokio::{sync::watch, task::JoinHandle, time::sleep};
use tonic::{
    Code, Request, Response, Status,
    body::Body,
    server::{Grpc, UnaryService},
};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    harness::spans_of,
    journal::Journal,
    network::{self, Link},
};

/// The backend's reaction to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reaction {
    Store,
    StoreSlowly,
    /// Stores all spans except some, which it rejects for good.
    StorePart,
    /// Stores, then fails, like a proxy that loses the answer.
    StoreAndFail,
    StoreAndHang,
    Hang,
    Unavailable,
    Throttle,
    Exhausted,
    Invalid,
}

const REACTIONS: [Reaction; 10] = [
    Reaction::Store,
    Reaction::StoreSlowly,
    Reaction::StorePart,
    Reaction::StoreAndFail,
    Reaction::StoreAndHang,
    Reaction::Hang,
    Reaction::Unavailable,
    Reaction::Throttle,
    Reaction::Exhausted,
    Reaction::Invalid,
];

/// The simulated backend.
#[derive(Debug)]
pub struct Backend {
    journal: Arc<Journal>,
    link: Arc<Link>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    rng: fastrand::Rng,
    /// The per cent of requests that the backend does not simply store.
    badness: u32,
    running: Option<(JoinHandle<()>, watch::Sender<bool>)>,
}

impl Backend {
    /// Starts a backend without faults at the end of `link`.
    pub fn start(journal: &Arc<Journal>, link: &Arc<Link>, seed: u64) -> Arc<Self> {
        let rng = fastrand::Rng::with_seed(seed);
        let backend = Arc::new(Backend {
            journal: Arc::clone(journal),
            link: Arc::clone(link),
            inner: Mutex::new(Inner { rng, badness: 0, running: None }),
        });
        backend.restart();
        backend
    }

    /// Sets the per cent of requests that the backend does not simply store.
    pub fn set_badness(&self, badness: u32) {
        self.inner.lock().expect("no panic").badness = badness;
    }

    /// Stops at once and closes every connection.
    pub fn crash(&self) {
        let running = self.inner.lock().expect("no panic").running.take();
        self.link.lead_nowhere();
        if let Some((task, _stop)) = running {
            task.abort();
        }
    }

    /// Starts again if it was stopped.
    pub fn restart(self: &Arc<Self>) {
        let mut inner = self.inner.lock().expect("no panic");
        if inner.running.is_some() {
            return;
        }
        let (sender, port) = network::port();
        self.link.lead_to(&sender);
        let (stop, stops) = watch::channel(false);
        let backend = Arc::clone(self);
        let answer = move |request| {
            let backend = Arc::clone(&backend);
            async move { respond(backend, request).await }
        };
        let mut terms = testing::terms();
        terms.limits.http2_only = false;
        inner.running = Some((tokio::spawn(listen::serve(port, terms, answer, stops)), stop));
    }

    async fn take(&self, body: Bytes) -> Result<Response<Bytes>, Status> {
        let decoded = ExportTraceServiceRequest::decode(body);
        self.journal.check(decoded.is_ok(), || "the backend cannot decode".into());
        self.answer(decoded.unwrap_or_default()).await
    }

    async fn answer(&self, request: ExportTraceServiceRequest) -> Result<Response<Bytes>, Status> {
        let spans: Vec<u64> = spans_of(&request)
            .map(|span| span.span_id[..].try_into().map_or(0, u64::from_be_bytes))
            .collect();
        let (reaction, part, delay) = self.choose(spans.len());
        self.journal.note(format_args!("backend {reaction:?} {spans:x?}"));
        let store = |spans: &[u64]| spans.iter().for_each(|&span| self.journal.store(span));
        match reaction {
            Reaction::Store => store(&spans),
            Reaction::StoreSlowly => {
                sleep(delay).await;
                store(&spans);
            }
            Reaction::StorePart => {
                store(&spans[part..]);
                let rejected_spans = part as i64;
                let partial =
                    ExportTracePartialSuccess { rejected_spans, error_message: "no".into() };
                let answer = ExportTraceServiceResponse { partial_success: Some(partial) };
                return Ok(Response::new(answer.encode_to_vec().into()));
            }
            Reaction::StoreAndFail => {
                store(&spans);
                return Err(Status::unavailable("the answer was lost"));
            }
            Reaction::StoreAndHang => {
                store(&spans);
                std::future::pending::<()>().await;
            }
            Reaction::Hang => std::future::pending().await,
            Reaction::Unavailable => return Err(Status::unavailable("not now")),
            Reaction::Throttle => {
                let details = ErrorDetails::with_retry_info(Some(delay));
                let code = if part % 2 == 0 { Code::Unavailable } else { Code::ResourceExhausted };
                return Err(Status::with_error_details(code, "slow down", details));
            }
            Reaction::Exhausted => return Err(Status::resource_exhausted("too much for you")),
            Reaction::Invalid => return Err(Status::invalid_argument("not like this")),
        }
        Ok(Response::new(Bytes::new()))
    }

    fn choose(&self, spans: usize) -> (Reaction, usize, Duration) {
        let Inner { rng, badness, .. } = &mut *self.inner.lock().expect("no panic");
        let is_bad = rng.u32(0..100) < *badness;
        let reaction = if is_bad { rng.choice(REACTIONS) } else { None };
        let part = rng.usize(0..=spans);
        (reaction.unwrap_or(Reaction::Store), part, Duration::from_millis(rng.u64(0..8_000)))
    }
}

async fn respond(backend: Arc<Backend>, request: http::Request<Incoming>) -> http::Response<Body> {
    if request.uri().path() == EXPORT_PATH {
        return Grpc::new(RawCodec).unary(Call(backend), request).await;
    }
    // If the connection is cut in the middle of a body, there is nobody to answer.
    let body = request.into_body().collect().await.map(|body| body.to_bytes());
    let answer = match body {
        Ok(body) => backend.take(body).await,
        Err(_) => Err(Status::unavailable("cut")),
    };
    let status = answer.as_ref().map_or_else(http_status, |_| 200);
    let mut response = http::Response::builder().status(status);
    if let Some(delay) = answer.as_ref().err().and_then(Status::get_details_retry_info) {
        let seconds = delay.retry_delay.unwrap_or_default().as_secs();
        response = response.header("retry-after", seconds);
    }
    let body =
        answer.map_or_else(|status| status.message().to_owned().into(), Response::into_inner);
    response.body(Body::new(Full::new(body))).expect("valid")
}

fn http_status(status: &Status) -> u16 {
    match status.code() {
        Code::ResourceExhausted => 429,
        Code::InvalidArgument => 400,
        _ => 503,
    }
}

struct Call(Arc<Backend>);

impl UnaryService<Bytes> for Call {
    type Response = Bytes;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Bytes>, Status>> + Send>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let backend = Arc::clone(&self.0);
        Box::pin(async move { backend.take(request.into_inner()).await })
    }
}
