//! Decompression that stops at a limit and is charged while it runs.
//!
//! Both receivers call it on the connection's task. It inflates a body in steps and charges each
//! step before it runs, so a decompression bomb ends at the message limit. zstd keeps a window
//! besides its output, and that is charged too. A body that is one gzip member is inflated in a
//! single step, and all of its output is charged before ([`super::gzip`]).
//!
//! A body must be compressed up to its last byte. A body that ends early, or has bytes after the
//! end of its stream, is refused: the readable part may be a valid request with fewer spans.
//!
//! A body that is larger than 1 MiB, as received or inflated, takes a turn that lasts until its
//! spans are in the window. If it turns out to be large only while it is inflated, the work starts
//! again once the turn has come; until then the request holds only the bytes received. A gzip body
//! tells its length before.

use std::io::{self, Read};

use bytes::Bytes;
use flate2::{Decompress, FlushDecompress, Status};

use super::{
    Refusal,
    admission::{Charge, SMALL_BYTES_MAX},
    gzip::Member,
    turns::{Turn, Turns, work},
};

/// Bytes inflated between two checks of the limits; other tasks may run at each check.
const STEP_BYTES: usize = 64 << 10;
/// zstd windows of up to 32 MiB, which Go's encoder uses at its highest level.
const ZSTD_WINDOW_LOG_MAX: u32 = 25;
/// libzstd's error text for a larger window.
const ZSTD_WINDOW_TOO_LARGE: &str = "Frame requires too much memory for decoding";

/// A compression that can be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Gzip,
    /// DEFLATE in zlib's format, as HTTP defines it, or bare, as many clients send it.
    Deflate,
    Zstd,
}

/// The supported codings, named in the answer to a sender that used another one.
pub(super) const CODINGS: &str = "gzip,deflate,zstd,identity";

/// Why the coding of a body cannot be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnknownCoding {
    /// The coding is unknown.
    Name,
    /// The body was coded more than once.
    Several,
}

impl Encoding {
    /// The encoding that a list of codings names, in any letter case; `None` for `identity` or an
    /// empty list. Collectors write `zlib` for `deflate`; old HTTP writes `x-gzip` for gzip.
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

impl Encoding {
    /// The number that stands for an encoding in a log; 0 for none.
    pub(super) fn number(encoding: Option<Self>) -> u8 {
        match encoding {
            None => 0,
            Some(Encoding::Gzip) => 1,
            Some(Encoding::Deflate) => 2,
            Some(Encoding::Zstd) => 3,
        }
    }

    /// The encoding that a number stands for.
    pub(super) fn of_number(number: u8) -> Option<Self> {
        [Encoding::Gzip, Encoding::Deflate, Encoding::Zstd]
            .into_iter()
            .find(|encoding| Self::number(Some(*encoding)) == number)
    }
}

/// A body as it was received, with its charge.
#[derive(Debug)]
pub(super) struct ReceivedBody {
    pub(super) encoding: Option<Encoding>,
    pub(super) bytes: Bytes,
    pub(super) charge: Charge,
    /// Whether the body is written to a log; it is then kept until its spans are in the window.
    pub(super) is_logged: bool,
}

/// A message after decompression, with its charge, and its turn if it is large.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) bytes: Bytes,
    charge: Charge,
    turn: Option<Turn>,
    /// The compressed body, if it is written to a log.
    original: Option<ReceivedBody>,
}

impl Message {
    /// Whether the message has a turn.
    pub(super) fn is_large(&self) -> bool {
        self.turn.is_some()
    }

    /// The body as it was received.
    pub(super) fn as_received(&self) -> (Option<Encoding>, &[u8]) {
        match &self.original {
            Some(body) => (body.encoding, &body.bytes),
            None => (None, &self.bytes),
        }
    }

    /// Charges more bytes to the message.
    ///
    /// # Errors
    /// [`Refusal::Memory`] at a limit.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.charge.grow(bytes)
    }
}

/// Inflates a body if it is compressed. The message gets a charge of its own, and may have at most
/// `bytes_max` bytes.
///
/// # Errors
/// [`Refusal::TooLarge`], [`Refusal::WindowTooLarge`], [`Refusal::Memory`] and
/// [`Refusal::Malformed`].
pub(super) async fn inflate(
    body: ReceivedBody,
    bytes_max: usize,
    turns: &Turns,
) -> Result<Message, Refusal> {
    let Some(encoding) = body.encoding else {
        let ReceivedBody { bytes, charge, .. } = body;
        let turn = if bytes.len() > SMALL_BYTES_MAX { Some(turns.take().await) } else { None };
        return Ok(Message { bytes, charge, turn, original: None });
    };
    let small_max = bytes_max.min(SMALL_BYTES_MAX);
    let mut charge = body.charge.another();
    if let Some(bytes) = attempt(encoding, &body.bytes, small_max, &mut charge).await? {
        let original = Some(body).filter(|body| body.is_logged);
        return Ok(Message { bytes, charge, turn: None, original });
    }
    drop(charge);
    let turn = Some(turns.take().await);
    let mut charge = body.charge.another();
    match attempt(encoding, &body.bytes, bytes_max, &mut charge).await? {
        Some(bytes) => {
            let original = Some(body).filter(|body| body.is_logged);
            Ok(Message { bytes, charge, turn, original })
        }
        None => Err(Refusal::TooLarge { limit_bytes: bytes_max }),
    }
}

/// Inflates to at most `bytes_max`; `None` if the message is larger.
pub(super) async fn attempt(
    encoding: Encoding,
    body: &Bytes,
    bytes_max: usize,
    charge: &mut Charge,
) -> Result<Option<Bytes>, Refusal> {
    match encoding {
        Encoding::Gzip => {
            if let Some(member) = Member::of(body) {
                let bytes = member.inflated_bytes();
                if bytes > bytes_max {
                    return Ok(None);
                }
                charge.grow(bytes)?;
                let inflated = work(bytes > SMALL_BYTES_MAX, move || Ok(member.inflate())).await?;
                if inflated.is_some() {
                    return Ok(inflated);
                }
            }
            read(flate2::bufread::MultiGzDecoder::new(&body[..]), 0, bytes_max, charge).await
        }
        Encoding::Deflate => read(Inflating::new(body), 0, bytes_max, charge).await,
        Encoding::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(&body[..]).map_err(refusal_of)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(refusal_of)?;
            read(decoder, 1 << ZSTD_WINDOW_LOG_MAX, bytes_max, charge).await
        }
    }
}

/// A DEFLATE stream that must be the whole of its body. flate2's own readers take the end of the
/// body for the end of the stream, and accept bytes after the stream.
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
/// block would be a stored one with bits set in its padding, which no encoder writes.
fn has_zlib_header(body: &[u8]) -> bool {
    match body {
        [method, flags, ..] => {
            method & 0x0f == 8 && u16::from_be_bytes([*method, *flags]).is_multiple_of(31)
        }
        _ => false,
    }
}

/// Reads the inflated body. The decoder itself holds a copy of up to `window_bytes` of its output.
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
