//! Hostile senders, at the scale of a test; `benches/abuse` does the same at full scale.
//!
//! The numbers are those of RELIABILITY.md. Each test also runs an honest client, which must lose
//! nothing, and ends when all memory is released and the ledger balances.

mod connections;
mod data;
#[path = "../../benches/abuse/frames.rs"]
pub(crate) mod frames;
mod http2;

use std::{cell::Cell, future::Future, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use crate::harness::{Metrics, Running, span};
use frames::Frame;

/// The most memory in use by honest traffic after an attack: an open segment and a spare one for
/// each of the four shards of a core, and decisions.
fn rest_bytes() -> f64 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    ((cores * 4 * 2 * (256 << 10)) + (1 << 20)) as f64
}

/// Runs an attack on a service, beside an honest client whose every request must be accepted.
/// Returns the result of the attack, once all memory that it used is released.
async fn beside_honest<T>(running: &Running, attack: impl Future<Output = T>) -> T {
    running.accept(vec![span(1 << 40, 1, None)]).await;
    let before = running.at_rest().await;
    let is_over = Cell::new(false);
    let attack = async {
        let outcome = attack.await;
        is_over.set(true);
        outcome
    };
    let honest = async {
        let mut trace = (1 << 40) + 1;
        while !is_over.get() {
            running.accept(vec![span(trace, 1, None)]).await;
            trace += 1;
        }
    };
    let (outcome, ()) = tokio::join!(attack, honest);
    let limit = before.get("memory_used_bytes") + rest_bytes();
    let given_back = |metrics: &Metrics| metrics.get("memory_used_bytes") <= limit;
    running.until("what the attack held is given back", given_back).await;
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("spans_dropped_total"), 0.0);
    outcome
}

/// The server's reaction to an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The server sent GOAWAY with this code and closed the connection.
    GoneAway(u32),
    /// The server closed the connection without a message.
    Closed,
    /// The server read everything and answered a PING after it.
    Withstood,
}

/// A connection on which the test sends raw frames.
pub(crate) struct Raw {
    pub(crate) writer: OwnedWriteHalf,
    reader: OwnedReadHalf,
    read: Vec<u8>,
}

impl Raw {
    pub(crate) async fn connect(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let stream = TcpStream::connect(address).await.expect("listening");
        let (reader, writer) = stream.into_split();
        let mut raw = Raw { writer, reader, read: Vec::new() };
        raw.send(&frames::preface(settings)).await;
        raw
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.writer.write_all(bytes).await.expect("sent");
    }

    /// The next frame; `None` when the connection is closed.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        next(&mut self.reader, &mut self.read).await
    }

    /// Sends the bytes and a PING, and reads until the PING is answered or the connection ends.
    async fn flood(self, bytes: &[u8]) -> Outcome {
        let Raw { mut writer, mut reader, mut read } = self;
        let write = async {
            // This fails if the server closes the connection in the middle, as it should.
            let _ = writer.write_all(bytes).await;
            let _ = writer.write_all(&frames::ping()).await;
        };
        let listen = async {
            let mut goaway = None;
            while let Some(frame) = next(&mut reader, &mut read).await {
                if frame.is_pong() && frame.payload == [7; 8] {
                    return Outcome::Withstood;
                }
                goaway = frame.goaway().or(goaway);
            }
            goaway.map_or(Outcome::Closed, Outcome::GoneAway)
        };
        tokio::join!(write, listen).1
    }
}

async fn next(reader: &mut OwnedReadHalf, read: &mut Vec<u8>) -> Option<Frame> {
    loop {
        if let Some(frame) = Frame::take(read) {
            return Some(frame);
        }
        // The end may be a reset if the server has not read everything.
        let length = reader.read_buf(read).await.unwrap_or(0);
        if length == 0 {
            return None;
        }
    }
}
