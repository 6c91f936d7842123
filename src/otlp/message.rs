//! Writes protobuf messages whose lengths are not known at the beginning.
//!
//! The length of a message comes before it and has a variable size. One byte is left for it, which
//! is enough for most messages. Longer lengths are noted, and all are inserted at the end in one
//! pass, so each byte moves once, however deep it is nested. (Moving each message when it ends
//! would cost its length for every level around it: 200 times for the deepest allowed value.)

use crate::otlp::wire::{self, put_varint, tag, varint_len};

/// A message being written.
#[derive(Debug)]
pub(super) struct Message {
    bytes: Vec<u8>,
    /// The positions of lengths over 127, with their values. Both are less than the length of the
    /// request, which is under 4 GiB.
    lengths: Vec<(u32, u32)>,
    /// The bytes that these lengths need in addition to the one that was left for each.
    missing: usize,
}

/// A message that has begun and not ended.
#[must_use]
pub(super) struct Begun {
    start: usize,
    missing: usize,
}

impl Message {
    /// An empty message with room for this many bytes.
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Message { bytes: Vec::with_capacity(bytes), lengths: Vec::new(), missing: 0 }
    }

    /// Begins the message, or the bytes, of field `number`.
    pub(super) fn begin(&mut self, number: u32) -> Begun {
        put_varint(&mut self.bytes, u64::from(tag(number, wire::BYTES)));
        self.bytes.push(0);
        Begun { start: self.bytes.len(), missing: self.missing }
    }

    /// Ends the message that was begun last.
    pub(super) fn end(&mut self, begun: &Begun) {
        let length = self.bytes.len() - begun.start + (self.missing - begun.missing);
        let place = begun.start - 1;
        if length < 0x80 {
            self.bytes[place] = length as u8;
        } else {
            self.lengths.push((place as u32, length as u32));
            self.missing += varint_len(length as u64) - 1;
        }
    }

    /// Appends a whole field of bytes.
    pub(super) fn put_bytes(&mut self, number: u32, bytes: &[u8]) {
        wire::put_length_delimited(&mut self.bytes, number, bytes.len());
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends a whole field of bytes that come one by one.
    pub(super) fn put_each(&mut self, number: u32, bytes: impl ExactSizeIterator<Item = u8>) {
        wire::put_length_delimited(&mut self.bytes, number, bytes.len());
        self.bytes.extend(bytes);
    }

    /// Appends encoded fields, tags included.
    pub(super) fn put_raw(&mut self, fields: &[u8]) {
        self.bytes.extend_from_slice(fields);
    }

    /// Appends a field of type int32, int64, uint32 or bool.
    pub(super) fn put_varint(&mut self, number: u32, value: u64) {
        put_varint(&mut self.bytes, u64::from(tag(number, wire::VARINT)));
        put_varint(&mut self.bytes, value);
    }

    /// Appends a field of type fixed32.
    pub(super) fn put_fixed32(&mut self, number: u32, value: u32) {
        put_varint(&mut self.bytes, u64::from(tag(number, wire::FIXED32)));
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends a field of type fixed64 or double.
    pub(super) fn put_fixed64(&mut self, number: u32, value: u64) {
        put_varint(&mut self.bytes, u64::from(tag(number, wire::FIXED64)));
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// The message with all its lengths. All begun messages must have ended.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.lengths.sort_unstable();
        let mut from = self.bytes.len();
        let mut to = from + self.missing;
        self.bytes.resize(to, 0);
        // From the end, so bytes that still have to move are not overwritten.
        for (place, length) in self.lengths.iter().rev() {
            let content = *place as usize + 1..from;
            from = *place as usize;
            to -= content.len();
            self.bytes.copy_within(content, to);
            let width = varint_len(u64::from(*length));
            to -= width;
            for index in 0..width {
                let more = if index + 1 < width { 0x80 } else { 0 };
                self.bytes[to + index] = (length >> (7 * index)) as u8 & 0x7f | more;
            }
        }
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages of field 1 around `content`, by prepending.
    fn nested(levels: usize, content: &[u8]) -> Vec<u8> {
        let mut bytes = content.to_vec();
        for _ in 0..levels {
            let mut outer = Vec::new();
            wire::put_length_delimited(&mut outer, 1, bytes.len());
            outer.extend_from_slice(&bytes);
            bytes = outer;
        }
        bytes
    }

    #[test]
    fn lengths_of_every_width_end_up_in_their_place() {
        for size in [0, 1, 117, 118, 119, 120, 125, 126, 127, 128, 16_379, 16_383, 16_384, 3 << 20]
        {
            for levels in [0, 1, 2, 5] {
                let content = [&b"\x12\x01a"[..], &vec![7; size]].concat();
                let mut message = Message::with_capacity(0);
                let mut expected = Vec::new();
                for _ in 0..2 {
                    let begun: Vec<_> = (0..levels).map(|_| message.begin(1)).collect();
                    message.put_bytes(2, b"a");
                    message.bytes.extend_from_slice(&content[3..]);
                    begun.iter().rev().for_each(|begun| message.end(begun));
                    expected.extend(nested(levels, &content));
                }
                assert!(message.finish() == expected, "{levels} levels around {size} bytes");
            }
        }
    }
}
