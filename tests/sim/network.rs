//! A network in memory: links between hosts, which delay, hold back and cut connections.
//!
//! A connection is a stream, as TCP is to a program: a lost packet arrives late, and in order. So
//! loss and delay are delays here. A partition holds everything back, including new connections.
//! Reordering comes from each connection and each direction having delays of its own.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::{client::legacy::connect, rt::TokioIo};
use tailwater::net::listen::{Connected, Listen};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf},
    sync::{Notify, mpsc},
    time::sleep,
};

/// The bytes that a direction of a connection holds before its sender must wait.
const BUFFER_BYTES: usize = 64 << 10;
/// The bytes that a link carries at once.
const CHUNK_BYTES: usize = 16 << 10;

/// The faults of a link.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// By direction, from the client and to it: whether nothing gets through.
    pub clogged: [bool; 2],
    /// The longest delay of a chunk, in milliseconds.
    pub latency_millis: u64,
    /// When this rises, all open connections are cut.
    pub resets: u64,
}

/// The way from one host to another, which may have a listener at its end.
#[derive(Debug)]
pub struct Link {
    weather: Mutex<Weather>,
    /// Wakes whoever waits in the order of waiting, as `watch` does not: it draws the order.
    changed: Notify,
    rng: Mutex<fastrand::Rng>,
    listener: Mutex<Option<mpsc::Sender<DuplexStream>>>,
}

impl Link {
    /// A link without faults that leads nowhere yet.
    pub fn new(seed: u64) -> Arc<Self> {
        let weather = Weather { clogged: [false; 2], latency_millis: 2, resets: 0 };
        Arc::new(Link {
            weather: Mutex::new(weather),
            changed: Notify::new(),
            rng: Mutex::new(fastrand::Rng::with_seed(seed)),
            listener: Mutex::default(),
        })
    }

    /// Changes the faults.
    pub fn change(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut self.weather.lock().expect("no panic"));
        self.changed.notify_waiters();
    }

    fn weather(&self) -> Weather {
        *self.weather.lock().expect("no panic")
    }

    /// Waits until the faults are as asked for.
    async fn wait_for(&self, is_so: impl Fn(Weather) -> bool) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if is_so(self.weather()) {
                return;
            }
            changed.await;
        }
    }

    /// Cuts every connection.
    pub fn reset(&self) {
        self.change(|weather| weather.resets += 1);
    }

    /// Leads new connections to this port.
    pub fn lead_to(&self, port: &PortSender) {
        *self.listener.lock().expect("no panic") = Some(port.0.clone());
    }

    /// Refuses new connections and cuts the open ones.
    pub fn lead_nowhere(&self) {
        *self.listener.lock().expect("no panic") = None;
        self.reset();
    }

    async fn connect(self: Arc<Self>) -> io::Result<TokioIo<Stream>> {
        // While the link is clogged, the packets that open a connection are lost, and sent again.
        self.wait_for(|weather| weather.clogged == [false; 2]).await;
        sleep(self.latency()).await;
        let listener = self.listener.lock().expect("no panic").clone();
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let listener = listener.ok_or_else(refused)?;
        let (near, near_end) = tokio::io::duplex(BUFFER_BYTES);
        let (far_end, far) = tokio::io::duplex(BUFFER_BYTES);
        listener.send(far).await.map_err(|_| refused())?;
        tokio::spawn(self.carry(near_end, far_end));
        Ok(TokioIo::new(Stream(near)))
    }

    /// Carries both directions of a connection until both ends have closed it, or it is cut.
    async fn carry(self: Arc<Self>, near: DuplexStream, far: DuplexStream) {
        let resets = self.weather().resets;
        let (near_read, near_write) = tokio::io::split(near);
        let (far_read, far_write) = tokio::io::split(far);
        let both = async {
            tokio::join!(
                self.forward(0, near_read, far_write),
                self.forward(1, far_read, near_write)
            )
        };
        tokio::select! {
            biased;
            () = self.wait_for(|weather| weather.resets != resets) => {}
            _ = both => {}
        }
    }

    async fn forward<R, W>(&self, direction: usize, mut from: R, mut to: W)
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let read = from.read(&mut chunk).await.unwrap_or(0);
            sleep(self.latency()).await;
            self.wait_for(|weather| !weather.clogged[direction]).await;
            if read == 0 {
                let _ = to.shutdown().await;
                return;
            }
            if to.write_all(&chunk[..read]).await.is_err() {
                return;
            }
        }
    }

    fn latency(&self) -> Duration {
        let most = self.weather().latency_millis;
        Duration::from_millis(self.rng.lock().expect("no panic").u64(0..=most))
    }
}

/// Makes connections over a link, for the exporter.
#[derive(Clone, Debug)]
pub struct Connector(pub Arc<Link>);

impl tower_service::Service<http::Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: http::Uri) -> Self::Future {
        Box::pin(Arc::clone(&self.0).connect())
    }
}

/// Accepts the connections of links.
#[derive(Debug)]
pub struct Port(tokio::sync::Mutex<mpsc::Receiver<DuplexStream>>);

/// The side of a port that links lead to.
#[derive(Clone, Debug)]
pub struct PortSender(mpsc::Sender<DuplexStream>);

/// A port, and the side that links lead to.
pub fn port() -> (PortSender, Port) {
    let (sender, receiver) = mpsc::channel(16);
    (PortSender(sender), Port(tokio::sync::Mutex::new(receiver)))
}

impl Listen for Port {
    type Stream = Stream;

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok((Ipv4Addr::UNSPECIFIED, 0).into())
    }

    async fn accept(&self) -> io::Result<Stream> {
        match self.0.lock().await.recv().await {
            Some(stream) => Ok(Stream(stream)),
            None => std::future::pending().await,
        }
    }
}

/// One end of a connection.
#[derive(Debug)]
pub struct Stream(DuplexStream);

impl Connected for Stream {
    fn peer_addr(&self) -> Option<SocketAddr> {
        None
    }
}

impl connect::Connection for Stream {
    fn connected(&self) -> connect::Connected {
        connect::Connected::new()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
