//! Connects commands to the control API of a running instance, over plaintext or TLS.
//!
//! The connection is made with the first call, and again after it was lost, so a long command
//! survives a restart of the instance. A message has at most 8 MiB. If the instance disappears
//! without closing the connection, pings notice it within 30 s while a call is open.

use std::{
    error::Error,
    fmt, io,
    net::IpAddr,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use clap::Args;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};
use tower_service::Service;

use super::complain;
use crate::{
    control::control_client::ControlClient,
    credentials::{self, ClientTls, Faults},
};

/// The time limit for making a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The time limit for an answer, except for streams.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The interval and the timeout of pings while a call is open.
const KEEP_ALIVE: Duration = Duration::from_secs(12);
/// The largest message that is accepted from an instance. A status with a thousand policies takes a
/// tenth of this.
const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// The address of the instance, and the credentials.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Instance")]
pub(super) struct Instance {
    /// The telemetry endpoint of the running instance
    #[arg(
        long,
        value_name = "URL",
        env = "TAILWATER_ADDRESS",
        hide_env_values = true,
        default_value = "http://127.0.0.1:9464",
        value_parser = bare_address
    )]
    address: Uri,
    /// A file with the bearer token of the telemetry endpoint
    #[arg(long, value_name = "FILE", env = "TAILWATER_TOKEN_FILE", hide_env_values = true)]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    tls: TlsFiles,
}

/// The files for TLS.
#[derive(Args, Clone, Debug)]
pub(super) struct TlsFiles {
    /// File with the CAs to accept for the instance's certificate; by default, those of the system
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// File with a client certificate for the instance
    #[arg(long, value_name = "FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// File with the private key of this certificate
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,
}

const ADDRESS_WANTED: &str = "write it as http://HOST:PORT or https://HOST:PORT";

/// A URL with a scheme and a host; without a scheme it is `http`.
pub(super) fn address(text: &str) -> Result<Uri, String> {
    let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let address: Uri = text.parse().map_err(|error| format!("{error}; {ADDRESS_WANTED}"))?;
    let is_known = matches!(address.scheme_str(), Some("http" | "https"));
    if !is_known || address.host().is_none_or(str::is_empty) {
        return Err(ADDRESS_WANTED.to_owned());
    }
    Ok(address)
}

/// The same for an address without a path, because gRPC has its own paths.
fn bare_address(text: &str) -> Result<Uri, String> {
    let address = address(text)?;
    let is_bare = matches!(address.path(), "" | "/") && address.query().is_none();
    if is_bare { Ok(address) } else { Err(ADDRESS_WANTED.to_owned()) }
}

/// Why an instance cannot be asked, or does not answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// A file of the command line cannot be used.
    #[error("{0}")]
    Files(#[from] Faults),
    /// There is no connection.
    #[error("cannot reach Tailwater at {address}: {why}")]
    Unreachable { address: String, why: String },
    /// The instance refuses the call.
    #[error("{address} refuses: {why}")]
    Refused { address: String, why: String },
    /// Another server answers.
    #[error(
        "{0} does not serve the control API: is it the telemetry endpoint of Tailwater \
         (telemetry.endpoint, port 9464 by default)?"
    )]
    NotTailwater(String),
}

/// The client of an instance. Clones share its connection.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) client: ControlClient<InterceptedService<Channel, Token>>,
    address: Uri,
}

impl Instance {
    /// Makes a client of the instance. Reads files, and warns if others can read the token.
    pub(super) fn client(&self) -> Result<Asked, Failure> {
        let is_https = self.address.scheme_str() == Some("https");
        let tls = if is_https { Some(self.tls.settings().read()?.grpc) } else { None };
        let token = self.token_file.as_deref().map(credentials::read_bearer).transpose()?;
        let token = token.as_ref().and_then(|token| {
            let mut value = MetadataValue::try_from(token.header().as_bytes()).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        let host = self.address.host().unwrap_or_default();
        if token.is_some() && !is_https && !is_this_machine(host) {
            complain(&format!(
                "warning: the token goes to {host} unencrypted; use https:// if the instance has \
                 [telemetry.tls]\n"
            ));
        }
        let endpoint = Endpoint::from(self.address.clone())
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        let channel = endpoint.connect_with_connector_lazy(Connector { tls });
        let client = ControlClient::with_interceptor(channel, Token(token));
        let client = client.max_decoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Asked { client, address: self.address.clone() })
    }
}

impl TlsFiles {
    pub(super) fn settings(&self) -> ClientTls {
        let identity = self.cert_file.clone().zip(self.key_file.clone());
        ClientTls { ca_file: self.ca_file.clone(), identity, server_name: None }
    }
}

impl Asked {
    /// The address of the instance.
    pub(super) fn address(&self) -> &Uri {
        &self.address
    }

    /// Why a call failed.
    pub(super) fn failure(&self, status: &Status) -> Failure {
        // The address is shown without its trailing slash, as people write it.
        let address = self.address.to_string().trim_end_matches('/').to_owned();
        let why = status.message().to_owned();
        match status.code() {
            Code::Unauthenticated => {
                let why = format!("{why}; name a file with the token in --token-file");
                Failure::Refused { address, why }
            }
            Code::Unimplemented => Failure::NotTailwater(address),
            // An error that tonic reports itself has a source; an error from the server has none.
            _ if status.source().is_some() => {
                Failure::Unreachable { address, why: innermost(status) }
            }
            Code::DeadlineExceeded | Code::Cancelled => Failure::Unreachable { address, why },
            _ => Failure::Refused { address, why },
        }
    }
}

/// A request with the timeout for an answer.
pub(super) fn soon<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(ANSWER_TIMEOUT);
    request
}

/// Runs a command to its end on this thread. Reports its failure; returns whether it succeeded.
pub(super) fn run(work: impl Future<Output = Result<bool, Failure>>) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(work).map_err(|failure| failure.to_string()),
        Err(problem) => Err(format!("cannot start the runtime: {problem}")),
    };
    outcome.unwrap_or_else(|failure| {
        complain(&format!("error: {failure}\n"));
        false
    })
}

/// The innermost cause of an error, which is the most specific one.
fn innermost(error: &dyn Error) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

fn is_this_machine(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let is_loopback = bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    is_loopback || bare.eq_ignore_ascii_case("localhost")
}

/// Adds the token to each call.
#[derive(Clone)]
pub(super) struct Token(Option<MetadataValue<Ascii>>);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// Makes connections.
#[derive(Clone)]
struct Connector {
    tls: Option<Arc<ClientConfig>>,
}

/// A connection of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Stream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, address: Uri) -> Self::Future {
        let connecting = connect(address, self.tls.clone());
        Box::pin(async move {
            match timeout(CONNECT_TIMEOUT, connecting).await {
                Ok(Ok(stream)) => Ok(stream),
                Ok(Err(Unconnected::Tcp(error) | Unconnected::Tls(error))) => Err(error),
                Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
            }
        })
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unconnected {
    #[error("cannot connect: {0}")]
    Tcp(io::Error),
    #[error("TLS: {0}")]
    Tls(io::Error),
}

/// A connection to the host of `address`, with TLS if there is a configuration for it.
pub(super) async fn connect(
    address: Uri,
    tls: Option<Arc<ClientConfig>>,
) -> Result<TokioIo<Box<dyn Stream>>, Unconnected> {
    let host = address.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let default_port = if tls.is_some() { 443 } else { 80 };
    let port = address.port_u16().unwrap_or(default_port);
    let stream = TcpStream::connect((host, port)).await.map_err(Unconnected::Tcp)?;
    stream.set_nodelay(true).map_err(Unconnected::Tcp)?;
    let Some(tls) = tls else { return Ok(TokioIo::new(Box::new(stream))) };
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other);
    let name = name.map_err(Unconnected::Tls)?;
    let stream = TlsConnector::from(tls).connect(name, stream).await.map_err(Unconnected::Tls)?;
    Ok(TokioIo::new(Box::new(stream)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_as_people_write_them() {
        for (text, expected) in [
            ("127.0.0.1:9464", Some("http://127.0.0.1:9464/")),
            ("http://tailwater:9464/", Some("http://tailwater:9464/")),
            ("https://[::1]:9464", Some("https://[::1]:9464/")),
            ("tailwater", Some("http://tailwater/")),
            ("ftp://tailwater", None),
            ("http://tailwater/metrics", None),
            ("http://tailwater?x=1", None),
            ("http://", None),
            ("", None),
            ("a b", None),
        ] {
            let parsed = bare_address(text).ok().map(|address| address.to_string());
            assert_eq!(parsed.as_deref(), expected, "{text:?}");
        }
        let with_path = address("https://proxy/tailwater").map(|address| address.to_string());
        assert_eq!(with_path.as_deref(), Ok("https://proxy/tailwater"));
    }

    #[test]
    fn other_machines_are_told_from_this_one() {
        for host in ["localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "[::1]"] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in ["tailwater", "10.0.0.1", "[fe80::1]", "localhost.example", "0.0.0.0"] {
            assert!(!is_this_machine(host), "{host}");
        }
    }
}
