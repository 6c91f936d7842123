//! Protobuf framing: fields as they stand in the bytes, without copying or allocating.
//!
//! The rules are prost's (varints of at most ten bytes, field numbers of at least one, groups skipped up to
//! 100 levels), because the walker must read every message that prost reads, and read the same from it.
//! Offsets are positions in the whole request, so that a span can be named by a range.
//!
//! Source: "Encoding", protobuf.dev.

use std::ops::Range;

/// The bytes are not the message they should be. The text names the first thing that was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// Nesting of unknown groups that is still skipped, as in prost.
const GROUP_DEPTH_MAX: usize = 100;

/// One field's value. Ranges are positions in the buffer that the [`Reader`] was made over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64(u64),
    /// Wire type 2: the range of the payload.
    Bytes(Range<usize>),
    /// Wire types 3 and 4, skipped as a whole.
    Group,
    /// Wire type 5.
    Fixed32(u32),
}

impl Value {
    /// The payload's range, or an error where the field has another wire type.
    #[inline]
    pub fn bytes(&self) -> Result<Range<usize>, Malformed> {
        match self {
            Value::Bytes(range) => Ok(range.clone()),
            _ => Err(Malformed("wrong wire type, a length-delimited field was expected")),
        }
    }

    /// The number, or an error where the field has another wire type.
    #[inline]
    pub fn varint(&self) -> Result<u64, Malformed> {
        match self {
            Value::Varint(number) => Ok(*number),
            _ => Err(Malformed("wrong wire type, a varint was expected")),
        }
    }

    /// The number, or an error where the field has another wire type.
    #[inline]
    pub fn fixed64(&self) -> Result<u64, Malformed> {
        match self {
            Value::Fixed64(number) => Ok(*number),
            _ => Err(Malformed("wrong wire type, a 64-bit field was expected")),
        }
    }
}

/// One field: its number, its value, and where its tag starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Field number, at least 1.
    pub number: u32,
    /// What it holds.
    pub value: Value,
    /// Position of the first byte of the tag.
    pub start: usize,
}

/// Walks the fields of one message, a range of a larger buffer.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    buffer: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Reader<'a> {
    /// Reads the message at `range` of `buffer`.
    ///
    /// # Panics
    /// When the range is not within the buffer; ranges come from a reader of the same buffer.
    pub fn new(buffer: &'a [u8], range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= buffer.len(), "range outside the buffer");
        Reader { buffer, at: range.start, end: range.end }
    }

    /// Reads a message that is the whole of `buffer`.
    pub fn over(buffer: &'a [u8]) -> Self {
        Reader { buffer, at: 0, end: buffer.len() }
    }

    /// Position after the last field read.
    pub fn position(&self) -> usize {
        self.at
    }

    /// The next field, or `None` at the end of the message.
    ///
    /// Always inlined: it is the inner loop of every walk, and as a call, which returns its field through
    /// memory, it took a fifth of all CPU.
    #[inline(always)]
    pub fn next_field(&mut self) -> Result<Option<Field>, Malformed> {
        if self.at == self.end {
            return Ok(None);
        }
        let start = self.at;
        let (number, wire_type) = self.tag()?;
        let value = match wire_type {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.take()?)),
            2 => Value::Bytes(self.payload()?),
            3 => {
                self.skip_group(number)?;
                Value::Group
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.take()?)),
            4 => return Err(Malformed("unexpected end of a group")),
            _ => return Err(Malformed("invalid wire type")),
        };
        Ok(Some(Field { number, value, start }))
    }

    #[inline(always)]
    fn tag(&mut self) -> Result<(u32, u8), Malformed> {
        let key = self.varint()?;
        let Ok(key) = u32::try_from(key) else {
            return Err(Malformed("field number out of range"));
        };
        if key < 8 {
            return Err(Malformed("field number 0"));
        }
        Ok((key >> 3, (key & 7) as u8))
    }

    #[inline(always)]
    fn varint(&mut self) -> Result<u64, Malformed> {
        let bytes = &self.buffer[self.at..self.end];
        match bytes.first() {
            Some(&byte) if byte < 0x80 => {
                self.at += 1;
                Ok(u64::from(byte))
            }
            _ => self.long_varint(),
        }
    }

    #[inline(never)]
    fn long_varint(&mut self) -> Result<u64, Malformed> {
        let bytes = &self.buffer[self.at..self.end];
        let mut number = 0u64;
        for (index, &byte) in bytes.iter().take(10).enumerate() {
            number |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                if index == 9 && byte > 1 {
                    return Err(Malformed("varint over 64 bits"));
                }
                self.at += index + 1;
                return Ok(number);
            }
        }
        Err(Malformed("unterminated varint"))
    }

    #[inline]
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let bytes = self.buffer[self.at..self.end]
            .first_chunk::<N>()
            .ok_or(Malformed("message ends within a field"))?;
        self.at += N;
        Ok(*bytes)
    }

    #[inline(always)]
    fn payload(&mut self) -> Result<Range<usize>, Malformed> {
        let length = self.varint()?;
        if length > (self.end - self.at) as u64 {
            return Err(Malformed("length runs past the end of its message"));
        }
        let start = self.at;
        // The comparison above bounds the length by a usize.
        self.at += length as usize;
        Ok(start..self.at)
    }

    /// Skips to behind the end tag of a group, with a stack instead of recursion: the depth is the
    /// sender's choice.
    #[cold]
    fn skip_group(&mut self, number: u32) -> Result<(), Malformed> {
        let mut open = [0u32; GROUP_DEPTH_MAX];
        open[0] = number;
        let mut depth = 1;
        while depth > 0 {
            let (number, wire_type) = self.tag()?;
            match wire_type {
                0 => _ = self.varint()?,
                1 => _ = self.take::<8>()?,
                2 => _ = self.payload()?,
                3 if depth == GROUP_DEPTH_MAX => return Err(Malformed("groups nested too deep")),
                3 => {
                    open[depth] = number;
                    depth += 1;
                }
                4 if open[depth - 1] == number => depth -= 1,
                4 => return Err(Malformed("group ends with another number")),
                5 => _ = self.take::<4>()?,
                _ => return Err(Malformed("invalid wire type")),
            }
        }
        Ok(())
    }
}

/// Appends `number` as a varint.
pub fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number as u8 & 0x7f) | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Bytes that [`put_varint`] appends.
pub fn varint_len(number: u64) -> usize {
    // 1 to 10: one byte for each started group of seven bits.
    (64 - (number | 1).leading_zeros() as usize).div_ceil(7)
}

/// Appends the tag of a length-delimited field and its length; the payload follows.
pub fn put_length_delimited(out: &mut Vec<u8>, number: u32, length: usize) {
    put_varint(out, u64::from(number << 3 | 2));
    put_varint(out, length as u64);
}

/// Bytes of a length-delimited field with a payload of `length`, tag and length included.
pub fn length_delimited_len(number: u32, length: usize) -> usize {
    varint_len(u64::from(number << 3)) + varint_len(length as u64) + length
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(bytes: &[u8]) -> Result<Vec<(u32, Value)>, Malformed> {
        let mut reader = Reader::over(bytes);
        let mut all = Vec::new();
        while let Some(field) = reader.next_field()? {
            all.push((field.number, field.value));
        }
        Ok(all)
    }

    #[test]
    fn reads_every_wire_type() {
        let mut bytes = vec![0x08, 0x96, 0x01];
        bytes.extend([0x11, 1, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([0x1a, 2, 7, 8]);
        bytes.extend([0x23, 0x08, 0x01, 0x2b, 0x2c, 0x24]);
        bytes.extend([0x2d, 5, 0, 0, 0]);
        let expected = vec![
            (1, Value::Varint(150)),
            (2, Value::Fixed64(1)),
            (3, Value::Bytes(14..16)),
            (4, Value::Group),
            (5, Value::Fixed32(5)),
        ];
        assert_eq!(fields(&bytes), Ok(expected));
    }

    #[test]
    fn refuses_what_prost_refuses() {
        for bytes in [
            &[0x00][..],                                                            // field 0
            &[0x08],                                                                // no value
            &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02],    // 65 bits
            &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x81, 0], // 11 bytes
            &[0x0a, 2, 0],                                                          // short
            &[0x0c],                                                                // lone end
            &[0x0b, 0x14],                                                          // other end
            &[0x0e],                                                                // type 6
            &[0x0d, 1, 2, 3],                                                       // short fixed
            &[0xf8, 0xff, 0xff, 0xff, 0x7f, 0],                                     // > 32 bits
        ] {
            assert!(fields(bytes).is_err(), "{bytes:02x?}");
        }
        let deep = [vec![0x0b; 101], vec![0x0c; 101]].concat();
        assert!(fields(&deep).is_err());
        let fits = [vec![0x0b; 100], vec![0x0c; 100]].concat();
        assert!(fields(&fits).is_ok());
    }

    #[test]
    fn varint_lengths_are_what_is_written() {
        for shift in 0..64 {
            for number in [1u64 << shift, (1u64 << shift) - 1, u64::MAX >> shift] {
                let mut out = Vec::new();
                put_varint(&mut out, number);
                assert_eq!(out.len(), varint_len(number), "{number}");
            }
        }
    }
}
