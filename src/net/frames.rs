//! Follows HTTP/2 frames between the socket and h2, because h2 does not report the requests that it
//! refuses.
//!
//! [`Received`] finds the headers of requests, so that [`authority`] can repair them. [`Sent`]
//! finds the requests that h2 refuses before a receiver sees them. h2 resets their streams with
//! PROTOCOL_ERROR; for a header list over the limit it first answers with a bare 431, which has no
//! header besides the status. Both read the nine bytes of each frame's head and skip the rest. Of
//! the received bytes, at most the beginning of one HEADERS frame is held, 16 KiB. Source: RFC
//! 9113, section 4.1.

use std::collections::VecDeque;

use super::authority;
use crate::metrics::RefusedBecause;

const HEAD_BYTES: usize = 9;
/// The largest frame that h2 accepts as configured here.
const FRAME_BYTES_MAX: usize = 16 << 10;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const END_STREAM: u8 = 1;
const PADDED: u8 = 8;
const PRIORITY: u8 = 32;
const PROTOCOL_ERROR: [u8; 4] = [0, 0, 0, 1];
/// The encoded header `:status: 431`, or a reference to it, is at most this long.
const BARE_BYTES_MAX: usize = 5;
/// At most this many short answers are remembered until their resets.
const BARE_MAX: usize = 128;

fn length(head: &[u8]) -> usize {
    head[..3].iter().fold(0, |length, byte| length << 8 | usize::from(*byte))
}

/// Follows the frames that a client sends.
pub(super) struct Received {
    /// Bytes to pass on without looking at them.
    pass: usize,
}

impl Received {
    /// Starts after a preface of this length.
    pub(super) fn after(preface: usize) -> Self {
        Received { pass: preface }
    }

    /// Repairs the headers in the next bytes. Returns how many of the bytes may be passed on now;
    /// the rest is the beginning of a frame, and must come before the bytes of the next call.
    pub(super) fn pass(&mut self, bytes: &mut [u8], mut mended: impl FnMut(String)) -> usize {
        let mut at = 0;
        loop {
            let passed = self.pass.min(bytes.len() - at);
            at += passed;
            self.pass -= passed;
            if self.pass > 0 || at == bytes.len() {
                return at;
            }
            let Some(head) = bytes.get(at..at + HEAD_BYTES) else { return at };
            let (length, kind, flags) = (length(head), head[3], head[4]);
            if kind == HEADERS && length <= FRAME_BYTES_MAX {
                let payload = at + HEAD_BYTES..at + HEAD_BYTES + length;
                let Some(payload) = bytes.get_mut(payload) else { return at };
                let skipped =
                    usize::from(flags & PADDED != 0) + if flags & PRIORITY != 0 { 5 } else { 0 };
                if let Some(was) = payload.get_mut(skipped..).and_then(authority::mend) {
                    mended(was);
                }
            }
            self.pass = HEAD_BYTES + length;
        }
    }
}

/// Follows the frames that h2 sends.
#[derive(Default)]
pub(super) struct Sent {
    /// The head of a frame, and the payload if it is RST_STREAM.
    head: [u8; HEAD_BYTES + PROTOCOL_ERROR.len()],
    have: usize,
    /// Bytes to skip.
    pass: usize,
    /// The latest streams that ended with so few headers that they may have been a 431.
    bare: VecDeque<u32>,
}

impl Sent {
    /// Looks at the next bytes that h2 sends.
    pub(super) fn pass(&mut self, mut bytes: &[u8], mut refused: impl FnMut(RefusedBecause)) {
        while !bytes.is_empty() {
            if self.pass > 0 {
                let passed = self.pass.min(bytes.len());
                self.pass -= passed;
                bytes = &bytes[passed..];
                continue;
            }
            let is_reset = self.have >= HEAD_BYTES;
            let wanted = if is_reset { self.head.len() } else { HEAD_BYTES } - self.have;
            let (now, later) = bytes.split_at(wanted.min(bytes.len()));
            self.head[self.have..self.have + now.len()].copy_from_slice(now);
            (self.have, bytes) = (self.have + now.len(), later);
            if now.len() == wanted && (is_reset || self.head[3] != RST_STREAM) {
                self.have = 0;
                if let Some(why) = self.frame(is_reset) {
                    refused(why);
                }
            }
        }
    }

    fn frame(&mut self, is_reset: bool) -> Option<RefusedBecause> {
        let length = length(&self.head);
        self.pass = length - if is_reset { PROTOCOL_ERROR.len().min(length) } else { 0 };
        let [.., a, b, c, d] = *self.head.first_chunk::<HEAD_BYTES>()?;
        let stream = u32::from_be_bytes([a, b, c, d]);
        if is_reset {
            let is_refusal = self.head.ends_with(&PROTOCOL_ERROR);
            let why = match self.bare.contains(&stream) {
                true => RefusedBecause::HeadersTooLarge,
                false => RefusedBecause::Malformed,
            };
            return is_refusal.then_some(why);
        }
        if self.head[3] == HEADERS && self.head[4] & END_STREAM != 0 && length <= BARE_BYTES_MAX {
            if self.bare.len() == BARE_MAX {
                self.bare.pop_front();
            }
            self.bare.push_back(stream);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// Passes `bytes` in pieces, as sockets deliver them.
    fn received(bytes: &[u8], piece: usize) -> (Vec<u8>, Vec<String>) {
        let (mut received, mut passed, mut held) = (Received::after(3), Vec::new(), Vec::new());
        let mut mended = Vec::new();
        for piece in bytes.chunks(piece) {
            held.extend_from_slice(piece);
            let length = received.pass(&mut held, |was| mended.push(was));
            passed.extend(held.drain(..length));
        }
        passed.extend(held);
        (passed, mended)
    }

    #[test]
    fn authorities_are_found_however_the_bytes_come() {
        let block = |authority: &[u8]| [&[0x83, 0x41, 3], authority].concat();
        let stream = |authority: &[u8]| {
            let padded = [&[1][..], &block(authority), &[0]].concat();
            let weighed = [&[0; 5][..], &block(authority)].concat();
            let frames = [
                frame(0, 0, b"\x83\x41\x03a|b"),
                frame(HEADERS, 4, &block(authority)),
                frame(HEADERS, 4 | PADDED, &padded),
                frame(HEADERS, 4 | PRIORITY, &weighed),
                frame(HEADERS, 4 | PADDED, &[]),
                frame(HEADERS, 4, &[0x83; 300]),
            ];
            [b"PRI".to_vec(), frames.concat()].concat()
        };
        for piece in [1, 2, 7, 9, 40, 10_000] {
            let (passed, mended) = received(&stream(b"a|b"), piece);
            assert_eq!(passed, stream(b"a+b"), "{piece}");
            assert_eq!(mended, ["a|b"; 3]);
            assert_eq!(received(&stream(b"a.b"), piece), (stream(b"a.b"), Vec::new()));
        }
        // Larger than h2 accepts: not held here, and refused by h2.
        let large = [b"PRI".to_vec(), frame(HEADERS, 4, &[0x83; FRAME_BYTES_MAX + 1])].concat();
        let mut first = large[..16_000].to_vec();
        assert_eq!(Received::after(3).pass(&mut first, |_| ()), first.len());
    }

    #[test]
    fn refusals_are_told_apart() {
        let sent = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
            let mut frame = frame(kind, flags, payload);
            frame[8] = stream;
            frame
        };
        let reset = |stream: u8, code: u8| sent(RST_STREAM, 0, stream, &[0, 0, 0, code]);
        let last =
            |stream: u8, length: usize| sent(HEADERS, 4 | END_STREAM, stream, &vec![0x88; length]);
        let sent = [
            sent(HEADERS, 4, 1, &[0x88]),
            sent(0, 0, 1, b"an answer"),
            // Trailers may be as short as a bare status.
            last(1, 1),
            last(3, 40),
            last(5, 5),
            last(7, 1),
            reset(5, 1),
            reset(7, 1),
            reset(1, 8),
            reset(9, 1),
            reset(11, 7),
            sent(4, 1, 0, b""),
        ]
        .concat();
        for piece in [1, 3, 9, 1_000] {
            let (mut found, mut sending) = (Vec::new(), Sent::default());
            sent.chunks(piece).for_each(|piece| sending.pass(piece, |why| found.push(why)));
            use RefusedBecause::{HeadersTooLarge, Malformed};
            assert_eq!(found, [HeadersTooLarge, HeadersTooLarge, Malformed], "{piece}");
        }
    }
}
