//! Bodies that are a single gzip member, which is what SDKs and Collectors send, inflated in one
//! call.
//!
//! libdeflate takes about a third of the time of a decoder that can stop and go on. But it needs
//! room for the whole output, and its binding does not tell where the input ended. The length of
//! the output is in the last four bytes of a member, where a sender can write any number. A body is
//! therefore inflated here only if
//!
//! - its header is the plain one of ten bytes,
//! - no second header follows: the bytes of one also occur by chance, once in 100 MB of compressed
//!   data,
//! - deflate could have made so much of so little, so that the claim allocates no more than a
//!   stream of zeros of the same length would,
//! - the output has the length and the checksum of the last eight bytes.
//!
//! All other bodies are left to the decoder in [`super::compression`], which also names what is
//! wrong with them.

use bytes::Bytes;
use libdeflater::{Decompressor, crc32};
use memchr::memmem;

/// The identification, the method, and no flags.
const HEADER: [u8; 4] = [0x1f, 0x8b, 8, 0];
const HEADER_BYTES: usize = 10;
const TRAILER_BYTES: usize = 8;
/// The bits of a header's flags that no member has set.
const RESERVED_FLAGS: u8 = 0xe0;
/// The most output that deflate can encode in a byte: a match of 258 bytes takes two bits.
const GROWTH_MAX: usize = 1032;

/// A body that may be one member.
#[derive(Debug)]
pub(super) struct Member {
    deflated: Bytes,
    inflated_crc: u32,
    inflated_bytes: usize,
}

impl Member {
    /// The member that this body may be. Reads only its ends.
    pub(super) fn of(body: &Bytes) -> Option<Self> {
        let end = body.len().checked_sub(TRAILER_BYTES).filter(|end| *end >= HEADER_BYTES)?;
        let (crc, length) = body[end..].split_first_chunk()?;
        let inflated_bytes = u32::from_le_bytes(*length.first_chunk()?) as usize;
        let deflated = body.slice(HEADER_BYTES..end);
        let is_possible = inflated_bytes <= GROWTH_MAX * deflated.len();
        (body.starts_with(&HEADER) && is_possible).then(|| Member {
            deflated,
            inflated_crc: u32::from_le_bytes(*crc),
            inflated_bytes,
        })
    }

    /// The length that the member claims for its output.
    pub(super) fn inflated_bytes(&self) -> usize {
        self.inflated_bytes
    }

    /// Its output; `None` if it is not alone, or its end does not match its output.
    pub(super) fn inflate(&self) -> Option<Bytes> {
        let is_header =
            |at: usize| self.deflated.get(at + 3).is_none_or(|flags| flags & RESERVED_FLAGS == 0);
        if memmem::find_iter(&self.deflated, &HEADER[..3]).any(is_header) {
            return None;
        }
        let mut inflated = vec![0; self.inflated_bytes];
        let written = Decompressor::new().deflate_decompress(&self.deflated, &mut inflated);
        let is_whole = written == Ok(self.inflated_bytes) && crc32(&inflated) == self.inflated_crc;
        is_whole.then(|| inflated.into())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use flate2::{Compression, GzBuilder, bufread::MultiGzDecoder};
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn member(text: &[u8], level: u32, builder: GzBuilder) -> Vec<u8> {
        let mut encoder = builder.write(Vec::new(), Compression::new(level));
        encoder.write_all(text).expect("a vector takes it");
        encoder.finish().expect("a vector takes it")
    }

    fn plain(text: &[u8]) -> Vec<u8> {
        member(text, 6, GzBuilder::new())
    }

    fn inflated(body: &[u8]) -> Option<Bytes> {
        Member::of(&Bytes::copy_from_slice(body))?.inflate()
    }

    #[test]
    fn a_body_of_one_member_is_inflated() {
        let text = b"a trace ".repeat(50_000);
        for level in [0, 1, 6, 9] {
            assert!(inflated(&member(&text, level, GzBuilder::new())).expect("whole") == text);
        }
        assert_eq!(inflated(&plain(b"")).expect("whole"), "");
    }

    #[test]
    fn other_bodies_are_left_to_the_other_decoder() {
        let (one, text) = (plain(b"some spans"), b"some spans");
        let trailer = &one[one.len() - TRAILER_BYTES..];
        for (what, body) in [
            ("a header with a name", member(text, 6, GzBuilder::new().filename("spans"))),
            ("two equal members", one.repeat(2)),
            ("two members", [&one[..], &plain(b"more")].concat()),
            ("a byte behind the member", [&one[..], &[0]].concat()),
            ("a byte missing", one[..one.len() - 1].to_vec()),
            ("a checksum", [&one[..one.len() - 8], &[!trailer[0]], &trailer[1..]].concat()),
            ("a length", [&one[..one.len() - 4], &[11, 0, 0, 0]].concat()),
            ("an impossible length", [&one[..one.len() - 4], &[0xff; 4]].concat()),
            ("nothing", Vec::new()),
            ("a header and a trailer that overlap", HEADER.repeat(4)),
        ] {
            assert_eq!(inflated(&body), None, "{what}");
        }
    }

    proptest! {
        /// This decoder inflates a body to the same bytes as the other decoder.
        #[test]
        fn it_agrees_with_the_other_decoder(
            text in vec(0_u8..4, 0..2_000),
            level in 0_u32..10,
            damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        ) {
            let mut body = member(&text, level, GzBuilder::new());
            for (place, byte) in damage {
                let place = place.index(body.len());
                body[place] = byte;
            }
            if let Some(inflated) = inflated(&body) {
                let mut other = Vec::new();
                MultiGzDecoder::new(&body[..]).read_to_end(&mut other).expect("a sound body");
                prop_assert_eq!(inflated, other);
            }
        }
    }
}
