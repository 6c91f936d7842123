//! Watchers alone, and on connections that are served as those of the telemetry port.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    io,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use http::{Request, Response};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use tokio::{
    io::DuplexStream,
    net::{TcpListener, TcpStream},
    sync::watch,
    time::Instant,
};

use super::*;
use crate::{
    admin,
    decisions::{Decision, DecisionRecord, Decisions},
    net::listen::{self, Connected, Listen, Terms},
    policy::{PolicyId, Verdict},
    supervise::{Supervised, Task},
    trace::{Randomness, Threshold, TraceId, Trigger},
};

/// A decision on the wire: long enough that a few hundred fill the windows of a connection.
const DECISION_BYTES: usize = 512;

fn tapped(count: u8, missed: u64) -> Tapped {
    let verdict = Verdict { kept: true, policy: PolicyId(3), threshold: Threshold::ALWAYS };
    let decision = Decision { verdict, trigger: Trigger::DecisionWait, explicit_randomness: None };
    let record = |id| DecisionRecord {
        trace_id: TraceId([id; 16]),
        decision,
        randomness: Randomness(0),
        spans: 1,
        bytes: 1,
        duration_nanos: 0,
        lag_millis: 0,
        root_received: true,
        matched: 0..0,
        shadowed: 0..0,
    };
    let records = (0..count).map(record).collect();
    let decisions = Decisions { records, ..Decisions::default() };
    let mut tapped = Tapped::default();
    (tapped.decisions, tapped.missed) = (vec![(decisions, 1)], missed);
    tapped
}

type Queue = mpsc::Receiver<Result<Seen, Status>>;

fn watcher(watchers: &Watchers, per_second: f64) -> Queue {
    on_leash(watchers, per_second, Arc::default())
}

fn on_leash(watchers: &Watchers, per_second: f64, leash: Arc<Leash>) -> Queue {
    let (sender, queue) = mpsc::channel(QUEUE_MAX);
    let policies = BTreeSet::from([3]);
    let wanted = Wanted { kept: true, dropped: false, policies, per_second };
    let watcher = Watcher {
        wanted,
        queue: sender,
        skipped: 0,
        allowed: per_second,
        raised_at: Duration::ZERO,
        full_since: None,
        leash,
    };
    watchers.add(watcher).expect("there is room");
    queue
}

#[test]
fn skipped_decisions_are_counted() {
    let watchers = Watchers::default();
    let mut queue = watcher(&watchers, 2.0);
    let seconds = Duration::from_secs;
    let mut skipped = |at, count, missed| {
        assert!(watchers.pass_on(seconds(at), &tapped(count, missed)));
        let seen = std::iter::from_fn(|| queue.try_recv().ok());
        seen.map(|seen| seen.expect("no end").skipped).collect::<Vec<_>>()
    };
    assert_eq!(skipped(0, 5, 0), [0, 0]);
    assert_eq!(skipped(1, 1, 7), [3]);
    assert_eq!(skipped(2, 1, 0), [7]);
    drop(queue);
    assert!(!watchers.pass_on(seconds(3), &tapped(1, 0)), "nobody is left");
}

#[test]
fn a_watcher_that_does_not_read_is_ended() {
    let watchers = Watchers::default();
    let (mut reads, never_reads) = (watcher(&watchers, 1e9), watcher(&watchers, 1e9));
    for second in 0..100 {
        assert!(watchers.pass_on(Duration::from_secs(second), &tapped(200, 0)));
        while reads.try_recv().is_ok() {}
    }
    assert_eq!(watchers.count(), 1);
    assert!(never_reads.len() == QUEUE_MAX && never_reads.is_closed());
    assert!(!reads.is_closed());
}

/// The events that wait for a watcher, as the body of an answer.
struct Queued(Queue);

impl Body for Queued {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = ready!(self.0.poll_recv(context));
        Poll::Ready(next.map(|_| Ok(Frame::data(vec![0; DECISION_BYTES].into()))))
    }
}

/// Serves a watcher for each request, under the limits of the telemetry port, until the sender is
/// dropped.
fn serve(listener: impl Listen, watchers: &Arc<Watchers>) -> watch::Sender<bool> {
    let (stop, stopped) = watch::channel(false);
    let supervised = Supervised { supervisor: Arc::default(), task: Task::Admin };
    let terms = Terms { limits: admin::limits(), tls: None, supervised, tally: None };
    let watchers = Arc::clone(watchers);
    let answer = move |_: Request<Incoming>| -> Ready<Response<Queued>> {
        let leash = Arc::<Leash>::default();
        let queue = on_leash(&watchers, 1e9, Arc::clone(&leash));
        let mut response = Response::new(Queued(queue));
        response.extensions_mut().insert(LongLived::on(leash));
        ready(response)
    };
    tokio::spawn(listen::serve(listener, terms, answer, stopped));
    stop
}

/// The head of the answer to a request for decisions.
async fn watch_by(client: SendRequest<Bytes>) -> h2::RecvStream {
    let mut client = client.ready().await.expect("room for a stream");
    let request = Request::get("http://t/").body(()).expect("a request");
    let (response, _) = client.send_request(request, true).expect("sent");
    response.await.expect("answered").into_body()
}

/// Scenario: eleven watchers on sockets, each on its own; one of them reads nothing while a minute
/// of decisions comes.
/// Guarantees: decisions for it are counted once its windows and its queue are full, and thirty
/// seconds later its connection is closed. The ten others get every decision.
#[tokio::test]
async fn on_a_socket_only_the_watcher_that_does_not_read_is_ended() {
    let watchers = Arc::<Watchers>::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address: SocketAddr = Listen::local_addr(&listener).expect("an address");
    let _stop = serve(listener, &watchers);
    let connect = async || {
        let stream = TcpStream::connect(address).await.expect("listening");
        let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        let closed = tokio::spawn(connection);
        (watch_by(client).await, closed)
    };
    let received: Vec<_> = (0..10).map(|_| Arc::new(AtomicU64::new(0))).collect();
    for received in &received {
        let ((mut body, _), received) = (connect().await, Arc::clone(received));
        tokio::spawn(async move {
            while let Some(Ok(data)) = body.data().await {
                body.flow_control().release_capacity(data.len()).expect("was received");
                received.fetch_add(data.len() as u64, Relaxed);
            }
        });
    }
    let (_unread, closed) = connect().await;
    let (mut full_at, mut ended_at) = (None, None);
    for second in 0..60 {
        assert!(watchers.pass_on(Duration::from_secs(second), &tapped(200, 0)));
        let bytes = (second + 1) * 200 * DECISION_BYTES as u64;
        while received.iter().any(|received| received.load(Relaxed) < bytes) {
            tokio::task::yield_now().await;
        }
        if watchers.lock().iter().any(|watcher| watcher.skipped > 0) {
            full_at.get_or_insert(second);
        }
        if watchers.count() == 10 {
            ended_at.get_or_insert(second);
        }
    }
    assert_eq!(ended_at, full_at.map(|second| second + UNREAD_MAX.as_secs()));
    let closed = tokio::time::timeout(Duration::from_secs(20), closed).await;
    closed.expect("its connection is closed").expect("no panic").ok();
    assert_eq!(watchers.count(), 10);
}

/// Connections in memory, whose time is that of the test.
struct InMemory(tokio::sync::Mutex<mpsc::Receiver<DuplexStream>>);

impl Listen for InMemory {
    type Stream = DuplexStream;

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn accept(&self) -> io::Result<DuplexStream> {
        self.0.lock().await.recv().await.ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

impl Connected for DuplexStream {
    fn peer_addr(&self) -> Option<SocketAddr> {
        None
    }
}

/// Scenario: two watchers of a service that decides nothing. One vanishes: it neither answers nor
/// closes its connection.
/// Guarantees: keep-alive ends its stream within thirty seconds; the other goes on for ten minutes.
#[tokio::test(start_paused = true)]
async fn a_vanished_watcher_is_noticed() {
    let watchers = Arc::<Watchers>::default();
    let (dial, accepted) = mpsc::channel(2);
    let _stop = serve(InMemory(tokio::sync::Mutex::new(accepted)), &watchers);
    let connect = async || -> (SendRequest<Bytes>, Connection<DuplexStream>) {
        let (client, server) = tokio::io::duplex(64 << 10);
        dial.send(server).await.expect("listening");
        h2::client::handshake(client).await.expect("HTTP/2")
    };
    let (client, connection) = connect().await;
    let stays = tokio::spawn(connection);
    let _stays = watch_by(client).await;
    let (client, mut vanishes) = connect().await;
    let _vanishes = tokio::select! {
        body = watch_by(client) => body,
        ended = &mut vanishes => panic!("{ended:?}"),
    };
    assert_eq!(watchers.count(), 2);
    // Nobody reads from the connection any more, so no ping is answered.
    let began = Instant::now();
    while watchers.count() == 2 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let noticed = began.elapsed();
    assert!((12..=30).contains(&noticed.as_secs()), "{noticed:?}");
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(watchers.count(), 1);
    assert!(!stays.is_finished());
    drop(vanishes);
}

/// Scenario: a stream that sends nothing for an hour, such as a long trial without traffic.
/// Guarantees: its connection is not closed as idle. After the end of the stream it is.
#[tokio::test(start_paused = true)]
async fn a_silent_stream_keeps_its_connection() {
    let (dial, accepted) = mpsc::channel(1);
    let (_stop, stopped) = watch::channel(false);
    let (end, queue) = mpsc::channel(1);
    let queue = Arc::new(Mutex::new(Some(queue)));
    let answer = move |_: Request<Incoming>| -> Ready<Response<Queued>> {
        let queue = queue.lock().expect("no panic").take().expect("one request");
        let mut response = Response::new(Queued(queue));
        response.extensions_mut().insert(LongLived::default());
        ready(response)
    };
    let supervised = Supervised { supervisor: Arc::default(), task: Task::Admin };
    let terms = Terms { limits: admin::limits(), tls: None, supervised, tally: None };
    let listener = InMemory(tokio::sync::Mutex::new(accepted));
    tokio::spawn(listen::serve(listener, terms, answer, stopped));
    let (client, server) = tokio::io::duplex(64 << 10);
    dial.send(server).await.expect("listening");
    let (client, connection) = h2::client::handshake(client).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let other_requests = client.clone();
    let mut body = watch_by(client).await;
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert!(!connection.is_finished());
    drop(end);
    while let Some(data) = body.data().await {
        assert_eq!(data.expect("the stream ends in order").len(), 0);
    }
    tokio::time::sleep(Duration::from_secs(780)).await;
    assert!(connection.is_finished());
    drop(other_requests);
}
