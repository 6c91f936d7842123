//! Protobuf framing: reads encoded fields without copying or allocating.
//!
//! The rules are prost's (varints of at most ten bytes, field numbers of at least one, groups
//! skipped up to 100 levels), because the walker must read every message that prost reads, with the
//! same result.
//!
//! There are two ways to read. [`Reader::next_field`] yields whole fields, for code that treats all
//! fields alike. [`Reader::next_tag`] with a reader for the value's type is for the inner loop of
//! the walker, where most fields cost only a match on the tag. Reading whole fields there took
//! three times as many instructions.
//!
//! Source: "Encoding", protobuf.dev.

/// The bytes are not the expected message. The text names the first fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub(crate) &'static str);

/// The deepest nesting of unknown groups that is skipped, as in prost.
const GROUP_DEPTH_MAX: usize = 100;

/// Wire types.
pub(crate) const VARINT: u32 = 0;
/// Eight bytes.
pub(crate) const FIXED64: u32 = 1;
/// A length, and that many bytes.
pub(crate) const BYTES: u32 = 2;
const GROUP_START: u32 = 3;
const GROUP_END: u32 = 4;
/// Four bytes.
pub(crate) const FIXED32: u32 = 5;

/// The tag of a field: its number and wire type.
pub(crate) const fn tag(number: u32, wire_type: u32) -> u32 {
    number << 3 | wire_type
}

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64(u64),
    /// Wire type 2.
    Bytes(&'a [u8]),
    /// Wire types 3 and 4, skipped as a whole.
    Group,
    /// Wire type 5.
    Fixed32(u32),
}

impl<'a> Value<'a> {
    /// The payload; an error if the field has another wire type.
    pub(crate) fn bytes(&self) -> Result<&'a [u8], Malformed> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(WRONG_WIRE_TYPE),
        }
    }
}

const WRONG_WIRE_TYPE: Malformed = Malformed("a known field has another wire type");

/// One field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Field number, at least 1.
    pub number: u32,
    /// The value.
    pub value: Value<'a>,
    /// The whole encoded field, tag included.
    pub raw: &'a [u8],
}

/// Reads the fields of one message.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader of the fields of `message`.
    #[inline]
    pub fn new(message: &'a [u8]) -> Self {
        Reader { rest: message }
    }

    /// The bytes that have not been read yet.
    #[inline]
    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The next field, or `None` at the end of the message.
    #[inline]
    pub fn next_field(&mut self) -> Result<Option<Field<'a>>, Malformed> {
        let before = self.rest;
        let Some(tag) = self.next_tag()? else { return Ok(None) };
        let value = match tag & 7 {
            VARINT => Value::Varint(self.varint()?),
            FIXED64 => Value::Fixed64(self.fixed64()?),
            BYTES => Value::Bytes(self.bytes()?),
            FIXED32 => Value::Fixed32(self.fixed32()?),
            _ => {
                self.skip(tag)?;
                Value::Group
            }
        };
        let raw = &before[..before.len() - self.rest.len()];
        Ok(Some(Field { number: tag >> 3, value, raw }))
    }

    /// The tag of the next field, whose value must be read or skipped next; `None` at the end.
    #[inline(always)]
    pub(crate) fn next_tag(&mut self) -> Result<Option<u32>, Malformed> {
        match self.rest {
            [] => Ok(None),
            [byte @ 8..0x80, rest @ ..] => {
                self.rest = rest;
                Ok(Some(u32::from(*byte)))
            }
            _ => {
                let (tag, rest) = long_tag(self.rest)?;
                self.rest = rest;
                Ok(Some(tag))
            }
        }
    }

    /// Whether the next field has this one-byte tag. If so, its value must be read next.
    #[inline(always)]
    pub(crate) fn next_is(&mut self, tag: u8) -> bool {
        match self.rest {
            [byte, rest @ ..] if *byte == tag => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    /// The value of a [`BYTES`] field.
    #[inline(always)]
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        if let [length @ 0..0x80, rest @ ..] = self.rest
            && let Some((bytes, rest)) = rest.split_at_checked(usize::from(*length))
        {
            self.rest = rest;
            return Ok(bytes);
        }
        let (bytes, rest) = long_bytes(self.rest)?;
        self.rest = rest;
        Ok(bytes)
    }

    /// The value of a [`VARINT`] field.
    #[inline(always)]
    pub(crate) fn varint(&mut self) -> Result<u64, Malformed> {
        if let [byte @ 0..0x80, rest @ ..] = self.rest {
            self.rest = rest;
            return Ok(u64::from(*byte));
        }
        let (number, rest) = long_varint(self.rest)?;
        self.rest = rest;
        Ok(number)
    }

    /// The value of a [`FIXED64`] field.
    #[inline(always)]
    pub(crate) fn fixed64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    /// The value of a [`FIXED32`] field.
    #[inline(always)]
    pub(crate) fn fixed32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    /// Skips the value of a field of any type.
    #[inline(always)]
    pub(crate) fn skip(&mut self, tag: u32) -> Result<(), Malformed> {
        match tag & 7 {
            VARINT => _ = self.varint()?,
            FIXED64 => _ = self.take::<8>()?,
            BYTES => _ = self.bytes()?,
            FIXED32 => _ = self.take::<4>()?,
            GROUP_START => self.rest = skip_group(self.rest, tag >> 3)?,
            GROUP_END => return Err(Malformed("unexpected end of a group")),
            _ => return Err(Malformed("invalid wire type")),
        }
        Ok(())
    }

    /// Skips a field that the caller does not read. If its number is one of `known`, the caller
    /// reads this field with another wire type, so it is refused.
    #[inline(always)]
    pub(crate) fn skip_unless(&mut self, tag: u32, known: &[u32]) -> Result<(), Malformed> {
        if known.contains(&(tag >> 3)) {
            return Err(WRONG_WIRE_TYPE);
        }
        self.skip(tag)
    }

    #[inline(always)]
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (bytes, rest) =
            self.rest.split_first_chunk::<N>().ok_or(Malformed("message ends within a field"))?;
        self.rest = rest;
        Ok(*bytes)
    }
}

// The rare cases take and return the rest by value. If the address of the reader escaped, the
// reader would live in memory instead of registers, which slows the inner loop of the walk.

#[inline(never)]
fn long_tag(rest: &[u8]) -> Result<(u32, &[u8]), Malformed> {
    let (tag, rest) = long_varint(rest)?;
    match u32::try_from(tag) {
        Ok(tag @ 8..) => Ok((tag, rest)),
        Ok(_) => Err(Malformed("field number 0")),
        Err(_) => Err(Malformed("field number out of range")),
    }
}

#[inline(never)]
fn long_bytes(rest: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let (length, rest) = long_varint(rest)?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    rest.split_at_checked(length).ok_or(Malformed("length runs past the end of its message"))
}

#[inline(never)]
fn long_varint(rest: &[u8]) -> Result<(u64, &[u8]), Malformed> {
    // The length of nearly every span, and the tag of its flags.
    if let [low @ 0x80..=0xff, high @ 0..0x80, rest @ ..] = rest {
        return Ok((u64::from(*low & 0x7f) | u64::from(*high) << 7, rest));
    }
    let mut number = 0u64;
    for (index, &byte) in rest.iter().take(10).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            if index == 9 && byte > 1 {
                return Err(Malformed("varint over 64 bits"));
            }
            return Ok((number, &rest[index + 1..]));
        }
    }
    Err(Malformed("unterminated varint"))
}

/// Skips to the end of a group. It uses a stack instead of recursion, because the sender chooses
/// the depth.
#[cold]
fn skip_group(rest: &[u8], number: u32) -> Result<&[u8], Malformed> {
    let mut reader = Reader { rest };
    let mut open = [0u32; GROUP_DEPTH_MAX];
    open[0] = number;
    let mut depth = 1;
    while depth > 0 {
        let tag = reader.next_tag()?.ok_or(Malformed("message ends within a group"))?;
        match tag & 7 {
            GROUP_START if depth == GROUP_DEPTH_MAX => {
                return Err(Malformed("groups nested too deep"));
            }
            GROUP_START => {
                open[depth] = tag >> 3;
                depth += 1;
            }
            GROUP_END if open[depth - 1] == tag >> 3 => depth -= 1,
            GROUP_END => return Err(Malformed("group ends with another number")),
            _ => reader.skip(tag)?,
        }
    }
    Ok(reader.rest)
}

/// Appends `number` as a varint.
pub fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number as u8 & 0x7f) | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// The number of bytes that [`put_varint`] appends.
pub fn varint_len(number: u64) -> usize {
    // 1 to 10: one byte per started group of seven bits.
    (64 - (number | 1).leading_zeros() as usize).div_ceil(7)
}

/// Appends the tag of a length-delimited field and its length; the payload follows.
pub fn put_length_delimited(out: &mut Vec<u8>, number: u32, length: usize) {
    put_varint(out, u64::from(number << 3 | 2));
    put_varint(out, length as u64);
}

/// The size of a length-delimited field with a payload of `length` bytes, including tag and length.
pub(crate) fn length_delimited_len(number: u32, length: usize) -> usize {
    varint_len(u64::from(number << 3)) + varint_len(length as u64) + length
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(bytes: &[u8]) -> Result<Vec<(u32, Value<'_>)>, Malformed> {
        let mut reader = Reader::new(bytes);
        let (mut all, mut raw) = (Vec::new(), Vec::new());
        while let Some(field) = reader.next_field()? {
            all.push((field.number, field.value));
            raw.extend_from_slice(field.raw);
        }
        assert_eq!(raw, bytes, "raw fields are the message");
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
            (3, Value::Bytes(&[7, 8])),
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
