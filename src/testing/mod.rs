//! Code that tests, benches and the demo share: builders of spans and requests (`spans`), and an
//! OTLP/gRPC sink, a backend that decodes each request and gives the answers it is told to give.

mod spans;

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::Response;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use tokio::{sync::watch, task::JoinHandle};
use tonic::{
    Request, Status,
    body::Body,
    codec::CompressionEncoding,
    server::{Grpc, UnaryService},
};

pub use self::spans::{attribute, export, framed, request, spans_of, text, text_of};
use crate::{
    grpc::RawCodec,
    net::{
        listen::{self, BindError, Limits, Terms},
        windows::Windows,
    },
    supervise::{Supervised, Task},
};

/// The default of Tempo: 4 MiB a message.
pub(crate) const SINK_MESSAGE_BYTES_MAX: usize = 4 << 20;

/// The terms for a server that is not part of the service.
pub fn terms() -> Terms {
    let limits = Limits {
        max_connections: 64,
        max_age: None,
        max_concurrent_streams: 100,
        windows: Windows::new(64 << 20, None),
        http2_only: true,
        keep_alive: std::time::Duration::from_secs(60),
    };
    let supervised = Supervised { supervisor: Arc::default(), task: Task::Receiver };
    Terms { limits, tls: None, supervised, tally: None }
}

/// A backend that runs until it is dropped.
#[derive(Debug)]
pub struct Sink {
    /// Its address.
    pub address: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Sink {
    /// Listens on `endpoint` and answers each decoded request with `answer`: the encoded response
    /// (empty for success), or a status.
    ///
    /// # Errors
    /// [`BindError`] when the port is taken.
    pub async fn start<A>(endpoint: &str, answer: A) -> Result<Self, BindError>
    where
        A: Fn(ExportTraceServiceRequest) -> Result<Bytes, Status> + Send + Sync + 'static,
    {
        let listener = listen::bind("sink", endpoint).await?;
        let address = listener.local_addr().map_err(|error| BindError {
            key: "sink",
            endpoint: endpoint.to_owned(),
            error,
        })?;
        let (stop, stops) = watch::channel(false);
        let answer = Arc::new(answer);
        let serve = move |request| {
            let call = Call(Arc::clone(&answer));
            async move { respond(call, request).await }
        };
        let task = tokio::spawn(listen::serve(listener, terms(), serve, stops));
        Ok(Sink { address, stop, task })
    }

    /// The URL for `exporter.otlp.endpoint`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Closes the port and every connection.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        // The task has ended or was aborted; it is gone in both cases.
        let _ = self.task.await;
    }
}

async fn respond<A>(call: Call<A>, request: http::Request<hyper::body::Incoming>) -> Response<Body>
where
    A: Fn(ExportTraceServiceRequest) -> Result<Bytes, Status> + Send + Sync + 'static,
{
    Grpc::new(RawCodec)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd)
        .max_decoding_message_size(SINK_MESSAGE_BYTES_MAX)
        .unary(call, request)
        .await
}

struct Call<A>(Arc<A>);

impl<A> UnaryService<Bytes> for Call<A>
where
    A: Fn(ExportTraceServiceRequest) -> Result<Bytes, Status>,
{
    type Response = Bytes;
    type Future = std::future::Ready<Result<tonic::Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let decoded = ExportTraceServiceRequest::decode(request.into_inner())
            .map_err(|error| Status::invalid_argument(error.to_string()));
        std::future::ready(decoded.and_then(|d| (self.0)(d)).map(tonic::Response::new))
    }
}
