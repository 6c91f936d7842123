//! Reads frames of the Collector's file exporter: a length of four bytes, big-endian, and a body.
//! The body is a request in protobuf or JSON, and may be compressed by itself.

use std::io::{self, BufRead, Read};

use serde::Deserialize;

use super::{
    Next, PIECE_BYTES_MAX, Part, Place, TraceFile, Unreadable,
    protobuf::{next_byte, take, unreadable},
};

/// The line of JSON in a recording.
#[derive(Deserialize)]
struct RecordHeader {
    percentage: f64,
}

/// The memory that a part of a frame takes in addition to its bytes.
const PART_BYTES: usize = 128;

/// Bytes of that line.
const HEADER_BYTES_MAX: u64 = 4096;

/// Reads the two lines at the beginning of a recording, and returns the share of traces in it and
/// the length of the lines.
pub(super) fn read_record_header(input: &mut impl BufRead) -> io::Result<(f64, u64)> {
    let mut line = String::new();
    let mut length = 0;
    for _ in 0..2 {
        line.clear();
        length += input.by_ref().take(HEADER_BYTES_MAX).read_line(&mut line)? as u64;
    }
    let header: RecordHeader = serde_json::from_str(&line).map_err(io::Error::other)?;
    if header.percentage > 0.0 && header.percentage <= 100.0 {
        return Ok((header.percentage / 100.0, length));
    }
    Err(io::Error::other("the recording has no percentage above 0 and at most 100"))
}

pub(super) struct Pieces<I> {
    input: I,
    /// The place of the frame that is being read.
    at: u64,
    is_over: bool,
    /// The pieces of the current frame, in reverse order.
    ready: Vec<Part>,
    /// Whether a body is known to be plain protobuf. A short one can look like JSON.
    are_protobuf: bool,
}

impl<I: BufRead> Pieces<I> {
    pub(super) fn new(input: I) -> Self {
        Pieces { input, at: 0, is_over: false, ready: Vec::new(), are_protobuf: false }
    }

    /// Reads the frames of a recording, which begin at this byte.
    pub(super) fn of_recording(input: I, at: u64) -> Self {
        Pieces { at, are_protobuf: true, ..Self::new(input) }
    }

    /// The place of the frame that is being read.
    pub(super) fn place(&self) -> Place {
        Place::Byte(self.at)
    }

    pub(super) fn next(&mut self) -> Next {
        loop {
            if let Some(piece) = self.ready.pop() {
                return Ok(Some(piece));
            }
            if self.is_over {
                return Ok(None);
            }
            let at = self.at;
            let Some(first) = next_byte(&mut self.input)? else { return Ok(None) };
            let mut length = vec![first];
            take(&mut self.input, 3, &mut length)?;
            let Ok(length) = <[u8; 4]>::try_from(length).map(u32::from_be_bytes) else {
                self.is_over = true;
                return unreadable(at, "the file ends within a length".to_owned());
            };
            // An empty request. A file that was never filled has millions of them.
            if length == 0 {
                self.at += 4;
                continue;
            }
            if length as usize > PIECE_BYTES_MAX {
                // This may not be a length at all, and then the next frame cannot be found.
                self.is_over = true;
                return unreadable(at, format!("a frame of {length} bytes is too large"));
            }
            let mut body = Vec::new();
            if take(&mut self.input, length.into(), &mut body)? < length.into() {
                self.is_over = true;
                return unreadable(at, "the file ends within a frame".to_owned());
            }
            self.at += 4 + u64::from(length);
            self.open(at, &body);
        }
    }

    /// Opens the body of a frame, which may have any form except frames. A damaged body ends with
    /// its frame, because the length of the frame says where the next one begins.
    fn open(&mut self, at: u64, body: &[u8]) {
        let mut file = if self.are_protobuf {
            let form = super::Form::Protobuf(super::protobuf::Pieces::new(Box::new(body)));
            TraceFile { name: String::new(), form, share: 1.0, place: Place::Byte(0) }
        } else {
            TraceFile::open("", body).expect("bytes in memory can be read")
        };
        if matches!(file.form, super::Form::Frames(_)) {
            file.form = super::Form::Unknown("this is not a request".to_owned());
        }
        let mut held = 0;
        while let Some(part) = file.next_part() {
            held += PART_BYTES;
            held += match &part {
                Ok((_, request)) => request.len(),
                Err(Unreadable { reason, .. }) => reason.len(),
            };
            // A small frame may inflate to any length.
            if held > PIECE_BYTES_MAX {
                let reason =
                    "the rest of its frame, which inflates to more than 128 MiB".to_owned();
                self.ready.push(Err(Unreadable { place: Place::Byte(at), reason }));
                break;
            }
            self.ready.push(match part {
                Ok((_, request)) => Ok((Place::Byte(at), request)),
                Err(Unreadable { place, reason }) => {
                    let reason = format!("in its frame, {place}: {reason}");
                    Err(Unreadable { place: Place::Byte(at), reason })
                }
            });
        }
        self.ready.reverse();
    }
}
