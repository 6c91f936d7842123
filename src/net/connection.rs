//! One connection, from its first byte to its last.
//!
//! Limits:
//! - TLS handshake and preface, or first head, together: 10 s.
//! - Headers of a request: 64 KiB.
//! - A ping after 60 s of silence, to be answered within 20 s; on the telemetry port after 12 s,
//!   within 12 s, so that a watcher that has vanished is noticed within 30 s.
//! - Answers that wait for their reader: closed after 30 s in which none of them is read.
//! - No request: closed after 11 minutes. Load balancers keep a connection for less (Google's: 10
//!   min), so they close first, and no request meets a closed connection.
//! - `max_connection_age`: after it, HTTP/2 clients get a GOAWAY and 30 s; HTTP/1.1 clients are
//!   told with their next answer.
//!
//! A header list of 64 KiB can take 200 KiB of memory, from a few bytes of HPACK. The poll that
//! decodes it also cuts it down to the headers that receivers read. So on each thread of the
//! runtime there are at most as many full lists as a connection may have streams. An HTTP/1
//! connection reads into at most 64 KiB. Its flow control grant, which HTTP/1 does not use
//! otherwise, covers that.

use std::{
    future::{Future, pending},
    io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Version, header};
use http_body_util::BodyExt as _;
use hyper::{
    body::{Body, Incoming},
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{oneshot, watch},
    time::{Instant, sleep, timeout_at},
};
use tracing::debug;

use super::{
    activity::{Activity, Counted, LongLived, Unread},
    deadline::REQUEST_TIMEOUT,
    listen::{Connected, Terms},
    preface::{Begun, begun, spoken},
    tally::Open,
    watched::Watched,
    windows::Granted,
};
use crate::{
    metrics::{Closed, RefusedBecause},
    supervise::Panicked,
};

const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(660);
/// An idle connection is checked this often per idle timeout.
const IDLE_CHECKS: u32 = 10;
/// Unread answers are checked this often per [`REQUEST_TIMEOUT`].
const UNREAD_CHECKS: u32 = 3;
/// The longest wait for the answer to a ping.
const PONG_TIMEOUT: Duration = Duration::from_secs(20);
const HEADER_BYTES_MAX: u32 = 64 << 10;
/// Header lists that hold more than this are cut down to [`READ`].
const HEADER_BYTES_KEPT: usize = 4 << 10;
/// The headers that receivers and the admin listener read.
const READ: [HeaderName; 10] = [
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::ACCEPT,
    header::AUTHORIZATION,
    header::ORIGIN,
    header::ACCESS_CONTROL_REQUEST_METHOD,
    header::ACCESS_CONTROL_REQUEST_HEADERS,
    HeaderName::from_static("grpc-encoding"),
    HeaderName::from_static("grpc-timeout"),
];

/// An accepted connection, and the terms it is served under.
pub(super) struct Connection {
    terms: Terms,
    stop: watch::Receiver<bool>,
    open: Open,
}

/// A connection that has sent nothing yet.
struct Arrival {
    peer: Option<SocketAddr>,
    deadline: Instant,
    must_leave: oneshot::Receiver<()>,
}

/// A connection that has sent its first bytes.
struct Arrived<S> {
    stream: Begun<S>,
    peer: Option<SocketAddr>,
    window: Granted,
}

impl Connection {
    pub(super) fn new(terms: &Terms, stop: &watch::Receiver<bool>) -> Self {
        let open = Open::one_more(terms.tally.as_ref());
        Connection { terms: terms.clone(), stop: stop.clone(), open }
    }

    /// Serves the connection to its end.
    pub(super) async fn serve<S, A, F, B>(
        mut self,
        stream: S,
        answer: A,
        must_leave: oneshot::Receiver<()>,
    ) where
        S: Connected,
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let peer = stream.peer_addr();
        // One deadline covers the handshake and the preface.
        let arrival = Arrival { peer, deadline: Instant::now() + PREFACE_TIMEOUT, must_leave };
        let why = match &self.terms.tls {
            None => self.serve_stream(stream, arrival, answer).await,
            Some(_) => self.serve_tls(stream, arrival, answer).await,
        };
        self.open.ends(why);
    }

    async fn serve_tls<S, A, F, B>(&self, stream: S, mut arrival: Arrival, answer: A) -> Closed
    where
        S: Connected,
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let Some(tls) = &self.terms.tls else { return Closed::Error };
        let mut stop = self.stop.clone();
        let stream = tokio::select! {
            // Stopping comes first: a connection in its handshake has brought no request.
            biased;
            _ = stop.wait_for(|&stop| stop) => return Closed::Drain,
            stream = tls.accept(stream, arrival.peer, PREFACE_TIMEOUT) => stream,
            _ = &mut arrival.must_leave => return Closed::MaxConnections,
        };
        match stream {
            Ok(stream) => self.serve_stream(stream, arrival, answer).await,
            Err(why) => why,
        }
    }

    async fn serve_stream<S, A, F, B>(&self, stream: S, mut arrival: Arrival, answer: A) -> Closed
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut stop = self.stop.clone();
        let arrived = tokio::select! {
            // Stopping comes first: no request has been read yet.
            biased;
            _ = stop.wait_for(|&stop| stop) => return Closed::Drain,
            arrived = timeout_at(arrival.deadline, self.arrive(stream)) => arrived,
            _ = &mut arrival.must_leave => return Closed::MaxConnections,
        };
        let peer = arrival.peer;
        // The client has sent its first bytes, so this connection no longer has to give way to
        // another.
        drop(arrival);
        match arrived {
            Ok(Ok(Some((stream, window)))) => {
                self.serve_http(Arrived { stream, peer, window }, answer).await
            }
            Ok(Ok(None)) => Closed::Client,
            Ok(Err(error)) => {
                debug!(?peer, %error, "a connection broke before its first request");
                Closed::Error
            }
            Err(_elapsed) => {
                debug!(?peer, "closed a connection that sent no preface in time");
                Closed::Handshake
            }
        }
    }

    /// Waits for the preface or the first head; `None` if the client hangs up first.
    async fn arrive<S>(&self, stream: S) -> io::Result<Option<(Begun<S>, Granted)>>
    where
        S: AsyncRead + Unpin,
    {
        let limits = &self.terms.limits;
        let Some(stream) = spoken(stream).await? else { return Ok(None) };
        // The grant comes before the head of an HTTP/1 request takes memory.
        let window = limits.windows.grant();
        let head_bytes_max = (!limits.http2_only).then_some(HEADER_BYTES_MAX as usize);
        Ok(Some((begun(stream, head_bytes_max).await?, window)))
    }

    async fn serve_http<S, A, F, B>(&self, arrived: Arrived<S>, answer: A) -> Closed
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let Arrived { stream, peer, window } = arrived;
        let activity = Arc::new(Activity::default());
        let service = self.service(answer, &activity);
        let is_http2 = stream.is_http2();
        let stream = Watched::new(stream, is_http2, &activity, self.terms.tally.as_ref());
        let builder = self.builder(window.bytes as u32);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut stop = self.stop.clone();
        let mut leaves = None;
        let mut idle = pin!(idle(&activity));
        let mut never_read = pin!(never_read(&activity));
        let mut aged = pin!(aged(self.terms.limits.max_age));
        let mut grace = pin!(sleep(REQUEST_TIMEOUT));
        loop {
            tokio::select! {
                // The connection comes first: the requests it has read are served before the client
                // is told to leave.
                biased;
                ended = connection.as_mut() => {
                    return leaves.unwrap_or_else(|| self.why(ended, is_http2, &activity, peer));
                }
                _ = stop.wait_for(|&stop| stop), if leaves != Some(Closed::Drain) => {
                    leaves = Some(Closed::Drain);
                    connection.as_mut().graceful_shutdown();
                }
                () = &mut never_read => {
                    debug!(?peer, "closed a connection that read no answer in time");
                    return Closed::Unresponsive;
                }
                () = activity.hang_up.notified() => {
                    debug!(?peer, "closed a connection that did not read a stream");
                    return Closed::Unresponsive;
                }
                () = &mut idle, if leaves.is_none() => {
                    leaves = Some(Closed::Idle);
                    connection.as_mut().graceful_shutdown();
                    grace.as_mut().reset(Instant::now() + REQUEST_TIMEOUT);
                }
                () = &mut aged, if leaves.is_none() && !activity.is_old.load(Relaxed) => {
                    activity.is_old.store(!is_http2, Relaxed);
                    if is_http2 {
                        leaves = Some(Closed::MaxAge);
                        connection.as_mut().graceful_shutdown();
                        grace.as_mut().reset(Instant::now() + REQUEST_TIMEOUT);
                    }
                }
                // Shutdown has a deadline of its own.
                () = &mut grace, if leaves.is_some_and(|why| why != Closed::Drain) => {
                    return leaves.unwrap_or(Closed::Idle);
                }
            }
        }
    }

    /// The reason why a connection ended without being told to.
    fn why(
        &self,
        ended: Result<(), Box<dyn std::error::Error + Send + Sync>>,
        is_http2: bool,
        activity: &Activity,
        peer: Option<SocketAddr>,
    ) -> Closed {
        let Err(error) = ended else {
            let was_told = activity.was_told.load(Relaxed);
            return if was_told { Closed::MaxAge } else { Closed::Client };
        };
        debug!(?peer, error, "connection ended");
        let Some(error) = error.downcast_ref::<hyper::Error>() else { return Closed::Error };
        let refused = match error {
            error if error.is_parse_too_large() => Some(RefusedBecause::HeadersTooLarge),
            error if error.is_parse() => Some(RefusedBecause::Malformed),
            _ => None,
        };
        if let (Some(because), Some(tally)) = (refused, &self.terms.tally) {
            tally.refused(because);
        }
        match error {
            // hyper's timeout is a missing pong over HTTP/2, and a missing head over HTTP/1.
            error if error.is_timeout() && is_http2 => Closed::Unresponsive,
            error if error.is_timeout() => Closed::Idle,
            error if error.is_incomplete_message() => Closed::Client,
            _ => Closed::Error,
        }
    }

    /// Wraps `answer` so that requests and answers are counted.
    fn service<A, F, B>(
        &self,
        answer: A,
        activity: &Arc<Activity>,
    ) -> impl Service<
        Request<Incoming>,
        Response = Response<
            impl Body<Data = Bytes, Error = B::Error> + Send + 'static + use<A, F, B>,
        >,
        Error = Panicked,
        Future: Send + 'static,
    > + use<A, F, B>
    where
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (seen, supervised) = (Arc::clone(activity), self.terms.supervised.clone());
        service_fn(move |mut request: Request<Incoming>| {
            seen.begun.fetch_add(1, Relaxed);
            let under_way = Counted::one_more(&seen.under_way);
            let is_http1 = request.version() < Version::HTTP_2;
            cut_down(request.headers_mut());
            let (answered, supervised) = (answer(request), supervised.clone());
            let seen = Arc::clone(&seen);
            async move {
                let _under_way = under_way;
                // A panic resets the stream over HTTP/2 and closes the connection over HTTP/1.
                let mut response = supervised.contained(answered).await?;
                if is_http1 {
                    seen.tell(&mut response);
                }
                let (mut unread, mut streaming) = (None, None);
                match response.extensions().get::<LongLived>() {
                    None => unread = Some(Unread::one_more(&seen)),
                    Some(LongLived(leash)) => {
                        // Nobody else sets it.
                        let _ = leash.0.set(Arc::downgrade(&seen));
                        streaming = Some(Counted::one_more(&seen.under_way));
                    }
                }
                // hyper drops a body once its last byte is written. Errors pass unchanged.
                let held = move |error| (error, &unread, &streaming).0;
                Ok::<_, Panicked>(response.map(|body| body.map_err(held)))
            }
        })
    }

    fn builder(&self, window: u32) -> auto::Builder<TokioExecutor> {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(window)
            .initial_connection_window_size(window)
            .max_concurrent_streams(self.terms.limits.max_concurrent_streams)
            .max_header_list_size(HEADER_BYTES_MAX)
            .keep_alive_interval(self.terms.limits.keep_alive)
            .keep_alive_timeout(self.terms.limits.keep_alive.min(PONG_TIMEOUT));
        // `arrive` already waits for the first head; the timeout for later heads is the idle
        // timeout. A client may close its sending side after its requests and still be answered.
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_TIMEOUT)
            .max_buf_size(HEADER_BYTES_MAX as usize)
            .half_close(true);
        if self.terms.limits.http2_only { builder.http2_only() } else { builder }
    }
}

/// Drops the headers that nobody reads, if the list is large.
fn cut_down(headers: &mut HeaderMap) {
    // An entry takes 104 bytes besides its strings.
    let bytes =
        |(name, value): (&HeaderName, &HeaderValue)| 104 + name.as_str().len() + value.len();
    if headers.iter().map(bytes).sum::<usize>() <= HEADER_BYTES_KEPT {
        return;
    }
    let mut read = HeaderMap::with_capacity(READ.len());
    for name in &READ {
        // Repeated values are kept, but not so many that the list stays long.
        for value in headers.get_all(name).iter().take(READ.len()) {
            read.append(name, value.clone());
        }
    }
    *headers = read;
}

/// Ends when the connection has reached its maximum age, 10 % more or less, so that connections
/// opened together do not all reconnect together.
async fn aged(max_age: Option<Duration>) {
    match max_age {
        Some(age) => sleep(age.mul_f64(0.9 + 0.2 * fastrand::f64())).await,
        None => pending().await,
    }
}

/// Ends when no request was under way during the idle timeout.
async fn idle(activity: &Activity) {
    let (mut begun, mut quiet) = (0, 0);
    while quiet < IDLE_CHECKS {
        sleep(IDLE_TIMEOUT / IDLE_CHECKS).await;
        let now = activity.begun.load(Relaxed);
        let is_quiet = now == begun && activity.under_way.load(Relaxed) == 0;
        quiet = if is_quiet { quiet + 1 } else { 0 };
        begun = now;
    }
}

/// Ends when answers wait for their reader and none of them was read within [`REQUEST_TIMEOUT`].
async fn never_read(activity: &Activity) {
    let (mut answered, mut stuck) = (0, 0);
    while stuck < UNREAD_CHECKS {
        sleep(REQUEST_TIMEOUT / UNREAD_CHECKS).await;
        let now = activity.answered.load(Relaxed);
        let is_stuck = now == answered && activity.unread.load(Relaxed) > 0;
        stuck = if is_stuck { stuck + 1 } else { 0 };
        answered = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_of_headers_are_cut_down_to_what_is_read() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("x-custom", HeaderValue::from_static("stays"));
        cut_down(&mut headers);
        assert_eq!(headers.len(), 2);
        for _ in 0..1_000 {
            headers.append("x-many", HeaderValue::from_static(""));
            headers.append(header::ACCEPT, HeaderValue::from_static("*/*"));
        }
        cut_down(&mut headers);
        assert_eq!(headers.len(), 11, "{headers:?}");
        assert_eq!(headers[header::CONTENT_TYPE], "application/grpc");
    }
}
