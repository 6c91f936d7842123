//! A backend for OTLP/HTTP, or another HTTP server at its address.

use std::{
    io::Read as _,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, Response, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, trace::v1::Span,
};
use prost::Message as _;
use tailwater::{
    config::{Config, Protocol},
    net::listen,
    testing,
};
use tokio::{net::TcpListener, sync::watch};

use crate::harness::spans_of;

/// A request as the backend received it.
pub struct Seen {
    pub method: String,
    pub path: String,
    pub version: Version,
    pub headers: HeaderMap,
    /// The body as sent, compressed or not.
    pub body: Bytes,
    pub request: ExportTraceServiceRequest,
    /// The status of the answer.
    pub status: u16,
}

impl Seen {
    /// The ids of its spans.
    pub fn ids(&self) -> impl Iterator<Item = u64> {
        spans_of(&self.request)
            .map(|span| u64::from_be_bytes(span.span_id[..].try_into().expect("8 bytes")))
    }
}

/// A backend that runs until the test's runtime ends.
pub struct Web {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Vec<Seen>>>,
}

pub type Reply = Response<Full<Bytes>>;

/// An answer with this status and no body.
pub fn reply(status: u16) -> Reply {
    reply_with(status, "", b"")
}

/// An answer with a body; without a content type if that is empty.
pub fn reply_with(status: u16, content_type: &str, body: &[u8]) -> Reply {
    let mut response = Response::builder().status(status);
    if !content_type.is_empty() {
        response = response.header("content-type", content_type);
    }
    response.body(Bytes::copy_from_slice(body).into()).expect("valid")
}

impl Web {
    /// A backend that answers each request by this function.
    pub async fn start(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = listen::bind("web", "127.0.0.1:0").await.expect("port 0");
        Self::start_on(listener, answer)
    }

    pub fn start_on(
        listener: TcpListener,
        answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().expect("bound");
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let (recorder, answer) = (Arc::clone(&seen), Arc::new(answer));
        serve(listener, move |request: http::Request<Incoming>| {
            let (recorder, answer) = (Arc::clone(&recorder), Arc::clone(&answer));
            async move {
                let mut seen = read(request).await;
                let response = answer(&seen);
                seen.status = response.status().as_u16();
                recorder.lock().expect("no panic").push(seen);
                response
            }
        });
        Web { address, seen }
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The spans of requests that it answered with success.
    pub fn spans(&self) -> Vec<Span> {
        let seen = self.seen.lock().expect("no panic");
        let taken = seen.iter().filter(|seen| (200..300).contains(&seen.status));
        taken.flat_map(|seen| spans_of(&seen.request)).cloned().collect()
    }

    /// The statuses of its answers, in their order.
    pub fn statuses(&self) -> Vec<u16> {
        self.seen.lock().expect("no panic").iter().map(|seen| seen.status).collect()
    }
}

/// Serves HTTP/1.1 and HTTP/2 until the test's runtime ends.
pub fn serve<A, F, B>(listener: TcpListener, answer: A)
where
    A: Fn(http::Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut terms = testing::terms();
    terms.limits.http2_only = false;
    let (stop, stops) = watch::channel(false);
    tokio::spawn(async move {
        listen::serve(listener, terms, answer, stops).await;
        // Dropping the sender would end the server.
        drop(stop);
    });
}

async fn read(request: http::Request<Incoming>) -> Seen {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let mut plain = Vec::new();
    match head.headers.get("content-encoding").map(|encoding| encoding.as_bytes()) {
        Some(b"gzip") => {
            flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut plain).expect("gzip");
        }
        Some(b"zstd") => plain = zstd::decode_all(&body[..]).expect("zstd"),
        _ => plain.extend_from_slice(&body),
    }
    Seen {
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        version: head.version,
        headers: head.headers,
        body,
        // A gRPC body has a prefix, so it does not decode.
        request: ExportTraceServiceRequest::decode(&plain[..]).unwrap_or_default(),
        status: 0,
    }
}

/// The same configuration, for an OTLP/HTTP backend at this base URL.
pub fn over_http(mut config: Config, base: &str) -> Config {
    config.exporter.protocol = Protocol::Http;
    config.exporter.endpoint = base.to_owned();
    config
}
