//! Opens connections and streams and holds them.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use crate::{
    Result,
    attacks::Found,
    frames::{Frame, RST_STREAM},
};

const CONNECT_MAX: Duration = Duration::from_secs(4);
const POLL: Duration = Duration::from_millis(200);
const REFUSED_STREAM: [u8; 4] = 7_u32.to_be_bytes();

/// An attack with `count` connections: each sends these bytes first, and then `drip` once a second.
pub(crate) struct Hold {
    pub(crate) connections: usize,
    pub(crate) beginning: Vec<u8>,
    pub(crate) drip: Vec<u8>,
}

struct Held {
    stream: TcpStream,
    read: Vec<u8>,
    closed_after: Option<Duration>,
    refused: u32,
}

impl Held {
    /// Reads the bytes that have arrived.
    fn poll(&mut self, since: Instant, goaway: &mut Option<u32>) {
        let mut piece = [0; 16 << 10];
        while self.closed_after.is_none() {
            match self.stream.read(&mut piece) {
                Ok(length @ 1..) => self.read.extend_from_slice(&piece[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                _ => self.closed_after = Some(since.elapsed()),
            }
            while let Some(frame) = Frame::take(&mut self.read) {
                *goaway = frame.goaway().or(*goaway);
                let is_refused = frame.kind == RST_STREAM && frame.payload == REFUSED_STREAM;
                self.refused += u32::from(is_refused);
            }
        }
    }
}

pub(crate) fn run(
    target: SocketAddr,
    hold: &Hold,
    until: Instant,
    fresh: &dyn Fn() -> Option<Duration>,
) -> Result<Found> {
    let began = Instant::now();
    let (mut held, mut goaway) = (Vec::new(), None);
    while held.len() < hold.connections && Instant::now() < until {
        let Ok(mut stream) = TcpStream::connect_timeout(&target, CONNECT_MAX) else {
            // The backlog is full: the server is behind.
            continue;
        };
        // This fails if the server has closed the connection at once.
        let _ = stream.write_all(&hold.beginning);
        stream.set_nonblocking(true)?;
        held.push(Held { stream, read: Vec::new(), closed_after: None, refused: 0 });
    }
    let opened_in = began.elapsed();
    let fresh = fresh();
    let mut dripped = Instant::now();
    while Instant::now() < until {
        held.iter_mut().for_each(|held| held.poll(began, &mut goaway));
        if dripped.elapsed() >= Duration::from_secs(1) && !hold.drip.is_empty() {
            dripped = Instant::now();
            for held in held.iter_mut().filter(|held| held.closed_after.is_none()) {
                let _ = held.stream.write_all(&hold.drip);
            }
        }
        thread::sleep(POLL);
    }
    held.iter_mut().for_each(|held| held.poll(began, &mut goaway));
    let mut closed: Vec<_> = held.iter().filter_map(|held| held.closed_after).collect();
    closed.sort_unstable();
    let refused: u32 = held.iter().map(|held| held.refused).sum();
    let mut note = format!("{} opened in {:.1} s", held.len(), opened_in.as_secs_f64());
    if let (Some(first), Some(last)) = (closed.first(), closed.last()) {
        let (first, last) = (first.as_secs_f64(), last.as_secs_f64());
        note += &format!(", {} closed {first:.1} to {last:.1} s after the first", closed.len());
    } else {
        note += ", none closed";
    }
    if refused > 0 {
        note += &format!(", {refused} streams refused");
    }
    note += &match fresh {
        Some(fresh) => format!(", a new connection is served in {} ms", fresh.as_millis()),
        None => ", a new connection is not served within 10 s".to_owned(),
    };
    let closed = closed.len() as u64;
    Ok(Found {
        closed,
        goaway,
        refused,
        is_fresh_served: Some(fresh.is_some()),
        note,
        accounting: None,
    })
}
