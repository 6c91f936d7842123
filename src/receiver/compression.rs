//! Decompression that stops at a limit and is charged while it runs.
//!
//! Called by both receivers on the connection's task. A body is inflated step by step; each step is
//! charged before it is made, and a bomb ends at the message limit, wherever its own end is. zstd
//! keeps a window beside what it has written, which is charged too.
//!
//! A body must be compressed to its last byte: what ends early, or goes on behind its end, is
//! refused, since the part that can be read may well be a valid request with fewer spans.
//!
//! What is larger than 1 MiB, by arrival or when inflated, takes a turn that lasts until it is
//! buffered. A body that turns out large begins again with its turn: while it waits it holds only
//! what arrived.

use std::io::{self, Read};

use bytes::Bytes;
use flate2::{Decompress, FlushDecompress, Status};

use super::{
    Refusal,
    admission::{Charge, SMALL_BYTES_MAX},
    turns::{Turn, Turns},
};

/// What is inflated between two looks at the limits, and at other tasks.
const STEP_BYTES: usize = 64 << 10;
/// Windows of up to 32 MiB, which is what Go's encoder uses at its highest level.
const ZSTD_WINDOW_LOG_MAX: u32 = 25;
/// libzstd's words for a window beyond that.
const ZSTD_WINDOW_TOO_LARGE: &str = "Frame requires too much memory for decoding";

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Gzip,
    /// zlib's format, as HTTP means it, or bare DEFLATE, as many implement it.
    Deflate,
    Zstd,
}

/// The names of the codings that are read, for senders that use another one.
pub(super) const CODINGS: &str = "gzip,deflate,zstd,identity";

/// Why the codings of a body cannot be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnknownCoding {
    /// There is one that is not known.
    Name,
    /// There is more than one.
    Several,
}

impl Encoding {
    /// The encoding that a list of codings names, in any case; `None` where that is `identity` or
    /// nothing. Collectors write `zlib` for `deflate`; `x-gzip` is gzip's name in old HTTP.
    ///
    /// # Errors
    /// [`UnknownCoding`].
    pub(super) fn of<'a>(
        lists: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Option<Self>, UnknownCoding> {
        let mut found = None;
        for coding in lists.flat_map(|list| list.split(|byte| *byte == b',')) {
            let named = match &coding.trim_ascii().to_ascii_lowercase()[..] {
                b"" | b"identity" => continue,
                b"gzip" | b"x-gzip" => Encoding::Gzip,
                b"deflate" | b"zlib" => Encoding::Deflate,
                b"zstd" => Encoding::Zstd,
                _ => return Err(UnknownCoding::Name),
            };
            if found.replace(named).is_some() {
                return Err(UnknownCoding::Several);
            }
        }
        Ok(found)
    }
}

/// A message as it was before it was compressed, what it holds, and its turn if it is large.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) bytes: Bytes,
    charge: Charge,
    turn: Option<Turn>,
}

impl Message {
    /// Whether it has a turn.
    pub(super) fn is_large(&self) -> bool {
        self.turn.is_some()
    }

    /// Holds more.
    ///
    /// # Errors
    /// [`Refusal::Memory`] at a limit.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.charge.grow(bytes)
    }
}

/// Inflates `body`, whose bytes `received` holds, where it is compressed. The message has at most
/// `bytes_max`, and what it holds is charged apart.
///
/// # Errors
/// [`Refusal::TooLarge`], [`Refusal::WindowTooLarge`], [`Refusal::Memory`] and
/// [`Refusal::Malformed`].
pub(super) async fn inflate(
    encoding: Option<Encoding>,
    body: Bytes,
    received: Charge,
    bytes_max: usize,
    turns: &Turns,
) -> Result<Message, Refusal> {
    let Some(encoding) = encoding else {
        let turn = if body.len() > SMALL_BYTES_MAX { Some(turns.take().await) } else { None };
        return Ok(Message { bytes: body, charge: received, turn });
    };
    let mut charge = received.another();
    let small = attempt(encoding, &body, bytes_max.min(SMALL_BYTES_MAX), &mut charge).await?;
    if let Some(bytes) = small {
        return Ok(Message { bytes, charge, turn: None });
    }
    drop(charge);
    let turn = turns.take().await;
    let mut charge = received.another();
    match attempt(encoding, &body, bytes_max, &mut charge).await? {
        Some(bytes) => Ok(Message { bytes, charge, turn: Some(turn) }),
        None => Err(Refusal::TooLarge { limit_bytes: bytes_max }),
    }
}

/// Inflates to at most `bytes_max`; `None` where there is more.
async fn attempt(
    encoding: Encoding,
    body: &[u8],
    bytes_max: usize,
    charge: &mut Charge,
) -> Result<Option<Bytes>, Refusal> {
    match encoding {
        Encoding::Gzip => {
            read(flate2::bufread::MultiGzDecoder::new(body), 0, bytes_max, charge).await
        }
        Encoding::Deflate => read(Inflating::new(body), 0, bytes_max, charge).await,
        Encoding::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(body).map_err(refusal_of)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(refusal_of)?;
            read(decoder, 1 << ZSTD_WINDOW_LOG_MAX, bytes_max, charge).await
        }
    }
}

/// A DEFLATE stream that must be the whole of its body. flate2's own readers take the end of the
/// body for the end of the stream, and do not mind what follows the stream.
struct Inflating<'a> {
    decompress: Decompress,
    rest: &'a [u8],
    has_ended: bool,
}

impl<'a> Inflating<'a> {
    fn new(body: &'a [u8]) -> Self {
        let decompress = Decompress::new(has_zlib_header(body));
        Inflating { decompress, rest: body, has_ended: false }
    }
}

impl Read for Inflating<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let invalid = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
        if self.has_ended || out.is_empty() {
            return Ok(0);
        }
        loop {
            let (read_before, written_before) =
                (self.decompress.total_in(), self.decompress.total_out());
            let status = self.decompress.decompress(self.rest, out, FlushDecompress::None)?;
            let read = (self.decompress.total_in() - read_before) as usize;
            let written = (self.decompress.total_out() - written_before) as usize;
            self.rest = &self.rest[read..];
            self.has_ended = status == Status::StreamEnd;
            if self.has_ended && !self.rest.is_empty() {
                return Err(invalid("bytes follow the end of the deflate stream"));
            }
            if written > 0 || self.has_ended {
                return Ok(written);
            }
            if read == 0 {
                return Err(invalid("the deflate stream ends early"));
            }
        }
    }
}

/// Whether a deflate body begins with zlib's header. A bare stream cannot look like that: its first
/// block would be one that is stored and has bits set in its padding, which nothing writes.
fn has_zlib_header(body: &[u8]) -> bool {
    match body {
        [method, flags, ..] => {
            method & 0x0f == 8 && u16::from_be_bytes([*method, *flags]).is_multiple_of(31)
        }
        _ => false,
    }
}

/// `window_bytes` is how much of what it wrote the decoder itself holds as well.
async fn read(
    mut decoder: impl Read,
    window_bytes: usize,
    bytes_max: usize,
    charge: &mut Charge,
) -> Result<Option<Bytes>, Refusal> {
    let mut bytes = Vec::new();
    while bytes.len() < bytes_max {
        let step = STEP_BYTES.min(bytes_max - bytes.len());
        let in_window = step.min(window_bytes.saturating_sub(bytes.len()));
        let (length, capacity) = (bytes.len(), bytes.capacity());
        if length + step > capacity {
            let grown = (2 * capacity).max(length + step).min(bytes_max);
            charge.grow(grown - capacity)?;
            bytes.reserve_exact(grown - length);
        }
        charge.grow(in_window)?;
        let mut limited = decoder.by_ref().take(step as u64);
        if limited.read_to_end(&mut bytes).map_err(refusal_of)? < step {
            return Ok(Some(bytes.into()));
        }
        tokio::task::yield_now().await;
    }
    let has_more = decoder.read(&mut [0]).map_err(refusal_of)? > 0;
    Ok((!has_more).then(|| bytes.into()))
}

fn refusal_of(error: io::Error) -> Refusal {
    let text = error.to_string();
    match text == ZSTD_WINDOW_TOO_LARGE {
        true => Refusal::WindowTooLarge,
        false => Refusal::Malformed(format!("cannot decompress: {text}")),
    }
}
