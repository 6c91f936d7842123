//! Raw HTTP, for requests that no well-behaved client would send.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use h2::{RecvStream, SendStream, client::SendRequest, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
pub use tailwater::testing::framed as frame;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// An answer; trailers are among the headers.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    /// A header or trailer as text; empty if it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }
}

/// An HTTP/2 connection. It closes when the handle and all streams are dropped.
pub async fn connect(address: SocketAddr) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.expect("listening");
    let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    client
}

/// The headers of a POST, with `headers` added or replacing those of gRPC.
pub fn post(path: &str, headers: &[(&'static str, &'static str)]) -> Request<()> {
    let mut request = Request::post(format!("http://t{path}")).body(()).expect("a request");
    request.headers_mut().insert("content-type", "application/grpc".parse().expect("text"));
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().expect("text"));
    }
    request
}

/// Opens a stream by sending its headers; the body can then be sent piece by piece.
pub async fn open(
    client: &SendRequest<Bytes>,
    request: Request<()>,
) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
    let mut client = client.clone().ready().await.expect("room for a stream");
    client.send_request(request, false).expect("sent")
}

/// Reads the answer of a stream.
pub async fn answer(response: h2::client::ResponseFuture) -> Result<Answer, h2::Error> {
    let (head, mut body) = response.await?.into_parts();
    let mut answer = Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body: read(&mut body).await?,
    };
    answer.headers.extend(body.trailers().await?.unwrap_or_default());
    Ok(answer)
}

async fn read(body: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        bytes.extend_from_slice(&data?);
    }
    Ok(bytes)
}

/// Sends one request with its whole body over HTTP/2.
pub async fn http2(client: &SendRequest<Bytes>, request: Request<()>, body: Vec<u8>) -> Answer {
    let (response, mut stream) = open(client, request).await;
    stream.send_data(body.into(), true).expect("sent");
    answer(response).await.expect("answered")
}

/// One HTTP/1.1 exchange on a connection of its own, which must be closed after it.
pub async fn http1(address: SocketAddr, request: &[u8]) -> Answer {
    http1_over(TcpStream::connect(address).await.expect("listening"), request).await
}

/// One HTTP/1.1 exchange on this connection, which must be closed after it.
pub async fn http1_over(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> Answer {
    // A server may answer before it has read everything.
    let _ = stream.write_all(request).await;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.expect("answered");
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8(bytes[..end].to_vec()).expect("text");
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status");
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(": ").expect("a header");
        (name.parse().expect("a name"), value.parse().expect("a value"))
    });
    Answer {
        status: status.parse().expect("a number"),
        headers: headers.collect::<HeaderMap>(),
        body: bytes[end + 4..].to_vec(),
    }
}

/// The bodies that a backend received.
pub type Bodies = Arc<Mutex<Vec<Vec<u8>>>>;

/// A backend that answers OK to everything and decodes nothing; returns its URL. The sink decodes
/// with prost, which allows fewer levels of nesting than real backends do.
pub async fn backend() -> (String, Bodies) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port 0");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let bodies = Bodies::default();
    let taken = Arc::clone(&bodies);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&taken)));
        }
    });
    (url, bodies)
}

async fn serve(stream: TcpStream, bodies: Bodies) -> Result<(), h2::Error> {
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(request) = connection.accept().await {
        let (request, respond) = request?;
        tokio::spawn(take(request.into_body(), respond, Arc::clone(&bodies)));
    }
    Ok(())
}

async fn take(
    mut body: RecvStream,
    mut respond: SendResponse<Bytes>,
    bodies: Bodies,
) -> Result<(), h2::Error> {
    let body = read(&mut body).await?;
    bodies.lock().expect("no panic").push(body);
    let ok = HeaderMap::from_iter([("grpc-status".parse().expect("a name"), HeaderValue::from(0))]);
    let head = Response::builder().header("content-type", "application/grpc").body(());
    let mut stream = respond.send_response(head.expect("a head"), false)?;
    stream.send_data(frame(0, b"").into(), false)?;
    stream.send_trailers(ok)
}
