//! Reads one `ExportTraceServiceRequest`, one `ResourceSpans` at a time.

use std::io::{self, BufRead, ErrorKind};

use super::{Next, PIECE_BYTES_MAX, Place, Unreadable};

/// Field 1 with a length.
const RESOURCE_SPANS: u64 = 0x0a;

pub(super) struct Pieces<I> {
    input: I,
    at: u64,
    is_over: bool,
}

impl<I: BufRead> Pieces<I> {
    pub(super) fn new(input: I) -> Self {
        Pieces { input, at: 0, is_over: false }
    }

    /// How far the input has been read.
    pub(super) fn place(&self) -> Place {
        Place::Byte(self.at)
    }

    pub(super) fn next(&mut self) -> Next {
        while !self.is_over {
            let at = self.at;
            let Some(tag) = self.varint()? else { return Ok(None) };
            let length = match tag & 7 {
                2 => self.varint()?,
                0 => self.varint()?.map(|_| 0),
                1 => Some(8),
                5 => Some(4),
                _ => return self.give_up(at, "this is not protobuf"),
            };
            let Some(length) = length else { return self.give_up(at, "the file ends here") };
            if tag != RESOURCE_SPANS {
                if !self.skip(length)? {
                    return self.give_up(at, "the file ends within a field");
                }
                continue;
            }
            if length > PIECE_BYTES_MAX as u64 {
                if !self.skip(length)? {
                    self.is_over = true;
                }
                return unreadable(at, format!("a ResourceSpans of {length} bytes is too large"));
            }
            let mut request = vec![RESOURCE_SPANS as u8];
            put_varint(&mut request, length);
            let read = take(&mut self.input, length, &mut request)?;
            self.at += read;
            if read < length {
                return self.give_up(at, "the file ends within a ResourceSpans");
            }
            return Ok(Some(Ok((Place::Byte(at), request))));
        }
        Ok(None)
    }

    fn give_up(&mut self, at: u64, reason: &str) -> Next {
        self.is_over = true;
        unreadable(at, reason.to_owned())
    }

    /// Reads a varint; `None` at the end of the file.
    fn varint(&mut self) -> io::Result<Option<u64>> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let Some(byte) = next_byte(&mut self.input)? else { return Ok(None) };
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(Some(value));
            }
        }
        Ok(Some(u64::MAX))
    }

    /// Skips `length` bytes. Returns false if the input has fewer.
    fn skip(&mut self, length: u64) -> io::Result<bool> {
        let mut left = length;
        while left > 0 {
            let available = fill(&mut self.input)?.len() as u64;
            if available == 0 {
                return Ok(false);
            }
            let step = available.min(left);
            self.input.consume(step as usize);
            self.at += step;
            left -= step;
        }
        Ok(true)
    }
}

pub(super) fn unreadable(at: u64, reason: String) -> Next {
    Ok(Some(Err(Unreadable { place: Place::Byte(at), reason })))
}

fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// Appends up to `length` bytes, and returns how many there were. Memory grows with the bytes that
/// arrive, not with the length that the input claims.
pub(super) fn take(input: &mut impl BufRead, length: u64, bytes: &mut Vec<u8>) -> io::Result<u64> {
    let mut left = length;
    while left > 0 {
        let available = fill(input)?;
        if available.is_empty() {
            break;
        }
        let step = available.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        bytes.extend_from_slice(&available[..step]);
        input.consume(step);
        left -= step as u64;
    }
    Ok(length - left)
}

pub(super) fn next_byte(input: &mut impl BufRead) -> io::Result<Option<u8>> {
    let byte = fill(input)?.first().copied();
    if byte.is_some() {
        input.consume(1);
    }
    Ok(byte)
}

/// The buffered input, after reading more if there is none; empty at the end.
pub(super) fn fill(input: &mut impl BufRead) -> io::Result<&[u8]> {
    loop {
        match input.fill_buf() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Called again, because the borrow of the first result cannot leave the loop.
            Ok(_) => return input.fill_buf(),
            Err(error) => return Err(error),
        }
    }
}
