//! The telemetry port while the service opens the logs of `[durability]`, which takes as long as
//! reading the decisions and the outbox. Until then there is nothing to answer from, so only health
//! and readiness are answered. Requests need no token, because no answer says anything.
//!
//! A thread of its own accepts on the same socket as the service will later. It ends with the last
//! of its connections, or a few seconds after it is told to stop.

use std::{future::ready, io, sync::Arc, thread};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::{net::TcpListener, runtime, sync::watch};
use tonic::{Status, body::Body};

use super::{TEXT, limits, response, rpc::is_grpc, stopped};
use crate::{
    net::{
        handshake::Handshake,
        listen::{self, Terms},
    },
    supervise::{Supervised, Task},
};

/// Answers on the telemetry port until it is dropped.
#[derive(Debug)]
pub(crate) struct Starting {
    stop: watch::Sender<bool>,
}

impl Starting {
    /// Begins to accept on the socket of `listener`.
    ///
    /// # Errors
    /// If the operating system cannot provide a thread, a runtime or a descriptor.
    pub(crate) fn spawn(
        listener: &std::net::TcpListener,
        tls: Option<Arc<Handshake>>,
    ) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _entered = runtime.enter();
            TcpListener::from_std(listener.try_clone()?)?
        };
        let (stop, stops) = watch::channel(false);
        let supervised = Supervised { supervisor: Arc::default(), task: Task::Admin };
        let terms = Terms { limits: limits(), tls, supervised, tally: None };
        thread::Builder::new().name("starting".into()).spawn(move || {
            let (told, answer) = (stops.clone(), |request| ready(answer(&request)));
            runtime.block_on(async {
                tokio::select! {
                    // The order does not matter: both end only after it was told to stop.
                    biased;
                    () = listen::serve(listener, terms, answer, stops) => {}
                    () = stopped(told) => {}
                }
            });
        })?;
        Ok(Starting { stop })
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

fn answer(request: &Request<Incoming>) -> Response<Body> {
    if is_grpc(request) {
        return Status::unavailable("the service is starting").into_http();
    }
    let (status, text) = match request.uri().path() {
        "/-/healthy" => (StatusCode::OK, "healthy\n"),
        "/-/ready" => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "the service is starting; try again later\n"),
    };
    response(status, TEXT, text).map(Body::new)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{SocketAddr, TcpListener, TcpStream},
    };

    use super::*;

    fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).expect("listening");
        let request = format!("GET {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        answer
    }

    #[test]
    fn it_is_healthy_and_not_ready() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        listener.set_nonblocking(true).expect("set");
        let address = listener.local_addr().expect("an address");
        let starting = Starting::spawn(&listener, None).expect("spawned");
        for (path, status, body) in [
            ("/-/healthy", "200", "\r\n\r\nhealthy\n"),
            ("/-/ready", "503", "\r\n\r\nnot ready\n"),
            ("/metrics", "503", "is starting; try again later\n"),
        ] {
            let answer = get(address, path);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
            assert!(answer.ends_with(body), "{path}: {answer}");
        }
        drop(starting);
    }
}
