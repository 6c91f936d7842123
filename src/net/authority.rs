//! Repairs an `:authority` that is not a host name. Envoy's gRPC clients write the name of their
//! cluster there (`outbound|4317||collector`, in Istio), and h2 resets a stream whose authority is
//! not valid by RFC 3986. Tailwater does not use the authority, so this module replaces the invalid
//! characters before h2 sees them.
//!
//! HPACK's state belongs to the whole connection: a value may enter the dynamic table and be
//! referred to later. So the replacement keeps the length of the value, encoded and decoded: each
//! character is replaced with one whose Huffman code has the same length, and the frame keeps its
//! size. Only string literals in the first frame of a header block are checked, since
//! pseudo-headers come first. Everything else is left for h2 to refuse. Source: RFC 7541.

use http::uri::Authority;

/// Indices of HPACK's static table: `:authority` is at this one, regular headers are from
/// [`FIRST_REGULAR`] to [`STATIC_LAST`].
const AUTHORITY: usize = 1;
const FIRST_REGULAR: usize = 15;
const STATIC_LAST: usize = 61;
/// A longer authority is left as it is: no real host name is that long.
const LENGTH_MAX: usize = 1 << 10;

/// Huffman codes of up to 13 bits, grouped by length: the first code, and the characters in the
/// order of their codes. Characters with longer codes do not occur in cluster names.
const CODES: [(u32, u32, &[u8]); 8] = [
    (5, 0x0, b"012aceiost"),
    (6, 0x14, b" %-./3456789=A_bdfghlmnpru"),
    (7, 0x5c, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, 0xf8, b"&*,;XZ"),
    (10, 0x3f8, b"!\"()?"),
    (11, 0x7fa, b"'+|"),
    (12, 0xffa, b"#>"),
    (13, 0x1ff8, b"\0$@[]~"),
];

/// Replaces the characters of an `:authority` that h2 would refuse, in this part of a header block.
/// Returns the original authority if it was replaced.
pub(super) fn mend(block: &mut [u8]) -> Option<String> {
    let mut at = 0;
    while let Some(&first) = block.get(at) {
        let name_bits = match first {
            0x80.. => {
                integer(block, &mut at, 7)?;
                continue;
            }
            0x40.. => 6,
            0x20.. => {
                // An update of the table size.
                integer(block, &mut at, 5)?;
                continue;
            }
            _ => 4,
        };
        let index = integer(block, &mut at, name_bits)?;
        if (FIRST_REGULAR..=STATIC_LAST).contains(&index) {
            return None;
        }
        let mut is_authority = index == AUTHORITY;
        if index == 0 {
            let is_plain = block.get(at)? & 0x80 == 0;
            let length = integer(block, &mut at, 7)?;
            let end = at.checked_add(length)?;
            is_authority = is_plain && block.get(at..end)? == b":authority";
            at = end;
        }
        let is_huffman = block.get(at)? & 0x80 != 0;
        let length = integer(block, &mut at, 7)?;
        let end = at.checked_add(length).filter(|end| *end <= block.len())?;
        if is_authority {
            let value = &mut block[at..end];
            return if is_huffman { mend_huffman(value) } else { mend_plain(value) };
        }
        at = end;
    }
    None
}

/// Reads an integer that uses `bits` bits of its first byte.
fn integer(block: &[u8], at: &mut usize, bits: u32) -> Option<usize> {
    let mut next = || {
        let byte = block.get(*at).copied().map(usize::from);
        *at += 1;
        byte
    };
    let most = (1 << bits) - 1;
    let mut value = next()? & most;
    if value < most {
        return Some(value);
    }
    // No length here needs more than 21 bits.
    for shift in [0, 7, 14] {
        let byte = next()?;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// The replacement of a character: itself, or a valid one with a code of the same length.
fn stand_in(character: u8) -> u8 {
    match character {
        b' ' | b'%' | b'/' => b'-',
        b':' => b'B',
        b'"' | b'?' => b'!',
        b'|' => b'+',
        b'@' | b'[' | b']' => b'~',
        other => other,
    }
}

/// The authority and its replacement, if a replacement is needed and is valid.
fn replaced(authority: &[u8]) -> Option<(String, Vec<u8>)> {
    if authority.len() > LENGTH_MAX || Authority::try_from(authority).is_ok() {
        return None;
    }
    let mended: Vec<u8> = authority.iter().copied().map(stand_in).collect();
    Authority::try_from(mended.as_slice()).ok()?;
    Some((String::from_utf8_lossy(authority).into_owned(), mended))
}

fn mend_plain(value: &mut [u8]) -> Option<String> {
    let (was, mended) = replaced(value)?;
    value.copy_from_slice(&mended);
    Some(was)
}

fn mend_huffman(value: &mut [u8]) -> Option<String> {
    if value.len() > LENGTH_MAX {
        return None;
    }
    let (mut authority, mut places) = (Vec::new(), Vec::new());
    let mut at = 0;
    while let Some((character, bits)) = decoded(value, at) {
        authority.push(character);
        places.push((at, bits));
        at += bits as usize;
    }
    // The rest is padding: less than a byte, all ones.
    let left = value.len() * 8 - at;
    if left >= 8 || (at..at + left).any(|bit| !is_set(value, bit)) {
        return None;
    }
    let (was, mended) = replaced(&authority)?;
    for ((at, bits), character) in places.into_iter().zip(mended) {
        encode(value, at, bits, character);
    }
    Some(was)
}

fn is_set(bytes: &[u8], bit: usize) -> bool {
    bytes[bit / 8] & (0x80 >> (bit % 8)) != 0
}

/// The character whose code begins at this bit, and the length of the code.
fn decoded(bytes: &[u8], at: usize) -> Option<(u8, u32)> {
    let (mut code, mut length) = (0, 0);
    for (bits, first, characters) in CODES {
        while length < bits {
            let bit = at + length as usize;
            if bit >= bytes.len() * 8 {
                return None;
            }
            code = code << 1 | u32::from(is_set(bytes, bit));
            length += 1;
        }
        let place = code.checked_sub(first).and_then(|place| characters.get(place as usize));
        if let Some(character) = place {
            return Some((*character, bits));
        }
    }
    None
}

/// Overwrites a code with that of a character of the same code length.
fn encode(bytes: &mut [u8], at: usize, bits: u32, character: u8) {
    let row = CODES.iter().find(|(length, ..)| *length == bits);
    let Some((_, first, characters)) = row else { return };
    let Some(place) = characters.iter().position(|known| *known == character) else { return };
    let code = first + place as u32;
    for offset in 0..bits {
        let (bit, is_set) = (at + offset as usize, code >> (bits - 1 - offset) & 1 != 0);
        let mask = 0x80 >> (bit % 8);
        if is_set { bytes[bit / 8] |= mask } else { bytes[bit / 8] &= !mask }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn huffman(text: &[u8]) -> Vec<u8> {
        let bits = |c: &u8| CODES.iter().find(|row| row.2.contains(c)).expect("a code").0;
        let length: u32 = text.iter().map(bits).sum();
        let mut bytes = vec![0xff; length.div_ceil(8) as usize];
        let mut at = 0;
        for character in text {
            encode(&mut bytes, at, bits(character), *character);
            at += bits(character) as usize;
        }
        bytes
    }

    /// A block with `:method: POST` and a literal `:authority`.
    fn block(value: &[u8], flag: u8) -> Vec<u8> {
        [&[0x83, 0x41, flag | value.len() as u8], value, &[0x86]].concat()
    }

    #[test]
    fn codes_are_those_of_the_standard() {
        // RFC 7541, C.4.1.
        let expected = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(huffman(b"www.example.com"), expected);
    }

    #[test]
    fn names_of_clusters_become_authorities_of_the_same_length() {
        for (was, becomes) in [
            ("outbound|4317||svc.ns.svc.cluster.local", "outbound+4317++svc.ns.svc.cluster.local"),
            ("istio/outbound|4317||svc", "istio-outbound+4317++svc"),
            ("a:b:c", "aBbBc"),
        ] {
            let mut plain = block(was.as_bytes(), 0);
            assert_eq!(mend(&mut plain).as_deref(), Some(was));
            assert_eq!(plain, block(becomes.as_bytes(), 0));
            let mut encoded = block(&huffman(was.as_bytes()), 0x80);
            assert_eq!(mend(&mut encoded).as_deref(), Some(was));
            assert_eq!(encoded, block(&huffman(becomes.as_bytes()), 0x80));
        }
    }

    #[test]
    fn an_authority_under_a_name_of_its_own_is_found() {
        let mut named = [&[0, 10][..], b":authority", &[3], b"a|b"].concat();
        assert_eq!(mend(&mut named).as_deref(), Some("a|b"));
        assert!(named.ends_with(b"a+b"));
    }

    #[test]
    fn everything_else_is_left_alone() {
        let mut good = block(b"collector:4317", 0);
        let was = good.clone();
        assert_eq!((mend(&mut good), good), (None, was));
        // No valid character has a code of this length.
        assert_eq!(mend(&mut block(&huffman(b"a#b|c"), 0x80)), None);
        // The block cut at any place, and with any byte changed, causes no panic.
        let whole = block(&huffman(b"outbound|4317||svc"), 0x80);
        for end in 0..whole.len() {
            let _ = mend(&mut whole[..end].to_vec());
            for value in 0..=255 {
                let mut changed = whole.clone();
                changed[end] = value;
                let _ = mend(&mut changed);
            }
        }
        assert_eq!(mend(&mut whole[..8].to_vec()), None);
    }
}
