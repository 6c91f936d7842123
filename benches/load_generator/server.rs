//! The two servers of the bench: the floor to compare with and the sink to export to.
//!
//! Both are hyper's HTTP/2 with tonic's gRPC framing and a codec that passes on the bytes of the
//! message. Flow control windows, stream limit and TCP options are those of `tailwater`'s receiver.
//! The **floor** has two worker threads, drops the bytes and answers OK: it shows the cost of
//! receiving alone. The **sink** has one thread and counts spans by their framing, to be cheap
//! compared with the measured process.

use std::{
    future::{Ready, ready},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tailwater::grpc::RawCodec;
use tokio::net::{TcpListener, TcpStream};
use tonic::{
    Status,
    codec::CompressionEncoding,
    server::{Grpc, UnaryService},
};

use crate::{
    Result,
    control::{self, Ask, Control, Listening, ServerLap},
    framing,
};

/// Flow control window of streams and connections: 64 KiB costs up to 22 % more CPU, more than 1
/// MiB gains nothing.
const WINDOW_BYTES: u32 = 1 << 20;
const CONCURRENT_STREAMS_MAX: u32 = 100;
const MESSAGE_BYTES_MAX: usize = 64 << 20;
const FLOOR_WORKERS: usize = 2;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Where to listen; port 0 picks a free one, and the first line printed tells which
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Ends the process after this time in any case
    #[arg(long, default_value_t = 1800)]
    max_seconds: u64,
}

/// Which of the two servers to run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Floor,
    Sink,
}

/// Serves until stdin ends, SIGTERM or `--max-seconds`.
pub(crate) fn run(role: Role, options: Options) -> Result<()> {
    let runtime = match role {
        Role::Sink => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        Role::Floor => tokio::runtime::Builder::new_multi_thread()
            .worker_threads(FLOOR_WORKERS)
            .enable_all()
            .build()?,
    };
    let result = runtime.block_on(serve(role, options));
    // Does not wait for connections: the sender decides when a run is over.
    runtime.shutdown_background();
    result
}

async fn serve(role: Role, options: Options) -> Result<()> {
    let listener = TcpListener::bind(options.listen).await?;
    let counts = Arc::new(Counts::default());
    let mut control = Control::new()?;
    control::say(&Listening { address: listener.local_addr()? })?;
    let accepting = tokio::spawn(accept(listener, Export { role, counts: counts.clone() }));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(options.max_seconds);
    loop {
        let ask = tokio::time::timeout_at(deadline, control.next()).await.unwrap_or(Ask::End);
        control::say(&counts.lap())?;
        if ask == Ask::End {
            accepting.abort();
            return Ok(());
        }
    }
}

async fn accept(listener: TcpListener, export: Export) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, export.clone()));
            }
            Err(error) => {
                eprintln!("load_generator: accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, export: Export) {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let export = export.clone();
        async move {
            let mut grpc = Grpc::new(RawCodec)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .accept_compressed(CompressionEncoding::Gzip)
                .accept_compressed(CompressionEncoding::Zstd);
            Ok::<_, std::convert::Infallible>(grpc.unary(export, request).await)
        }
    });
    if let Err(error) = stream.set_nodelay(true) {
        eprintln!("load_generator: TCP_NODELAY: {error}");
    }
    // An error here is a sender that left, at the end of each run.
    let _gone = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_concurrent_streams(CONCURRENT_STREAMS_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// Answers every export with an empty `ExportTraceServiceResponse`, which means full success.
#[derive(Clone)]
struct Export {
    role: Role,
    counts: Arc<Counts>,
}

impl UnaryService<Bytes> for Export {
    type Response = Bytes;
    type Future = Ready<std::result::Result<tonic::Response<Bytes>, Status>>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        let message = request.into_inner();
        self.counts.requests.fetch_add(1, Relaxed);
        self.counts.bytes.fetch_add(message.len() as u64, Relaxed);
        if self.role == Role::Sink {
            match framing::count_spans(&message) {
                Some(spans) => self.counts.spans.fetch_add(spans, Relaxed),
                None => self.counts.malformed.fetch_add(1, Relaxed),
            };
        }
        ready(Ok(tonic::Response::new(Bytes::new())))
    }
}

/// Counts since the last lap. Relaxed ordering suffices: they are sums that order nothing else.
#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    bytes: AtomicU64,
    spans: AtomicU64,
    malformed: AtomicU64,
}

impl Counts {
    fn lap(&self) -> ServerLap {
        ServerLap {
            requests: self.requests.swap(0, Relaxed),
            bytes: self.bytes.swap(0, Relaxed),
            spans: self.spans.swap(0, Relaxed),
            malformed: self.malformed.swap(0, Relaxed),
        }
    }
}
