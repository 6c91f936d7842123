//! `tailwater health`: asks whether a running instance is ready, for health checks of containers
//! that have neither a shell nor curl.
//!
//! Sends one GET of `/-/ready` over HTTP/1.1 and prints the result in one line. Readiness needs no
//! token. The address may have a path, for an instance behind a proxy.

use std::{sync::Arc, time::Duration};

use clap::Args;
use http::{Request, StatusCode, Uri, header::HOST};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{body::Bytes, client::conn::http1};
use tokio::time::timeout;

use super::{
    complain,
    instance::{self, TlsFiles, Unconnected},
    print,
};
use crate::credentials::Faults;

/// Shorter than the timeouts of Docker and Kubernetes, so that the reason is still printed.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The most bytes of an answer that are read. Tailwater answers with one line; other servers may
/// send a page.
const ANSWER_BYTES_MAX: usize = 4 << 10;

/// Options of `health`.
#[derive(Debug, Args)]
pub struct Options {
    /// Address of the telemetry endpoint
    #[arg(
        long,
        value_name = "URL",
        env = "TAILWATER_ADDRESS",
        default_value = "http://127.0.0.1:9464",
        value_parser = instance::address
    )]
    address: Uri,
    #[command(flatten)]
    tls: TlsFiles,
}

/// Why an instance is not known to be ready.
#[derive(Debug, thiserror::Error)]
enum NotReady {
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    #[error(transparent)]
    Unconnected(#[from] Unconnected),
    #[error(transparent)]
    Files(#[from] Faults),
    #[error("it does not speak HTTP/1.1: {0}")]
    Http(#[from] hyper::Error),
    #[error("it answers {0}: {1}")]
    Answer(StatusCode, String),
}

/// Asks the instance and prints the result. Returns whether it is ready.
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
    let address = &options.address;
    let is_https = address.scheme_str() == Some("https");
    let mut tls = None;
    if is_https {
        let mut config = (*options.tls.settings().read()?.http).clone();
        config.alpn_protocols = vec![b"http/1.1".into()];
        tls = Some(Arc::new(config));
    }
    let stream = instance::connect(address.clone(), tls).await?;
    let path = format!("{}/-/ready", address.path().trim_end_matches('/'));
    let authority = address.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(path).header(HOST, authority).body(Empty::<Bytes>::new());
    let request = request.expect("an address that was parsed gives a path and a host");
    let (mut sender, connection) = http1::handshake(stream).await?;
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
    // The connection ends when the sender is dropped; its errors show up in the answer as well.
    tokio::join!(answer, connection).0
}
