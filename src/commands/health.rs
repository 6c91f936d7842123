//! `tailwater health`: whether a running instance is ready, for health checks of containers, which
//! have neither a shell nor curl.
//!
//! Asks `/-/ready` once, over HTTP/1.1, and says in one line what came of it. Readiness needs no
//! token.

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::Args;
use http::{Request, StatusCode, Uri, header::HOST};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{complain, print};
use crate::credentials::{ClientTls, Faults};

/// Shorter than the time after which Docker and Kubernetes give up, so that the reason is said.
const TIMEOUT: Duration = Duration::from_secs(5);

/// An answer has a line; a page of somebody else need not be read.
const ANSWER_BYTES_MAX: usize = 4 << 10;

/// What to ask.
#[derive(Debug, Args)]
pub struct Options {
    /// Address of the telemetry endpoint
    #[arg(
        long,
        value_name = "URL",
        env = "TAILWATER_ADDRESS",
        default_value = "http://127.0.0.1:9464"
    )]
    address: Uri,
    /// CAs, one of which has signed the certificate of the instance; default: those of the system
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Certificate to show to an instance that asks for one
    #[arg(long, value_name = "FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// Private key of that certificate
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,
}

/// Why an instance is not known to be ready.
#[derive(Debug, thiserror::Error)]
enum NotReady {
    #[error("the address needs a scheme and a host, such as http://127.0.0.1:9464")]
    Address,
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    #[error("TLS: {0}")]
    Tls(std::io::Error),
    #[error(transparent)]
    Files(#[from] Faults),
    #[error("it does not speak HTTP/1.1: {0}")]
    Http(#[from] hyper::Error),
    #[error("it answers {0}: {1}")]
    Answer(StatusCode, String),
}

/// Asks, and says what came of it. Returns whether the instance is ready.
pub async fn run(options: Options) -> bool {
    let answer = timeout(TIMEOUT, ask(&options)).await.unwrap_or(Err(NotReady::Timeout));
    match answer {
        Ok(()) => print("ready\n"),
        Err(why) => {
            complain(&format!("not ready: {}: {why}\n", options.address));
            false
        }
    }
}

async fn ask(options: &Options) -> Result<(), NotReady> {
    let host = options.address.host().ok_or(NotReady::Address)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_https = match options.address.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(NotReady::Address),
    };
    let port = options.address.port_u16().unwrap_or(if is_https { 443 } else { 80 });
    let stream = TcpStream::connect((host, port)).await.map_err(NotReady::Connect)?;
    if !is_https {
        return get_ready(stream, &options.address).await;
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|_| NotReady::Address)?;
    let identity = options.cert_file.clone().zip(options.key_file.clone());
    let files = ClientTls { ca_file: options.ca_file.clone(), identity, server_name: None };
    let mut config = (*files.read()?.http).clone();
    config.alpn_protocols = vec![b"http/1.1".into()];
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, stream).await.map_err(NotReady::Tls)?;
    get_ready(stream, &options.address).await
}

async fn get_ready<S>(stream: S, address: &Uri) -> Result<(), NotReady>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let path = format!("{}/-/ready", address.path().trim_end_matches('/'));
    let authority = address.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(path).header(HOST, authority).body(Empty::<Bytes>::new());
    let request = request.map_err(|_| NotReady::Address)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answer = async move {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        if status == StatusCode::OK {
            return Ok(());
        }
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        let line = String::from_utf8_lossy(&body);
        Err(NotReady::Answer(status, line.lines().next().unwrap_or_default().to_owned()))
    };
    // The connection ends when the sender is dropped; an error of it is one of the answer, too.
    tokio::join!(answer, connection).0
}
