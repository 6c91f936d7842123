//! HTTP/2 frames as bytes, for frames that libraries refuse to send. HPACK is written without
//! indexing, except for the bombs.
//!
//! Used by the abuse bench and, by path, by `tests/it/abuse.rs`. Source: RFC 9113, RFC 7541.

/// Types of frames.
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const ACK: u8 = 1;

/// SETTINGS_INITIAL_WINDOW_SIZE.
pub(crate) const INITIAL_WINDOW: u16 = 4;

const HEAD_BYTES: usize = 9;

/// A frame that was read.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// Removes the first whole frame from the bytes that were read.
    pub(crate) fn take(bytes: &mut Vec<u8>) -> Option<Frame> {
        let head: [u8; HEAD_BYTES] = *bytes.first_chunk()?;
        let end = HEAD_BYTES + u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let payload = bytes.get(HEAD_BYTES..end)?.to_vec();
        bytes.drain(..end);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// The error code of a GOAWAY.
    pub(crate) fn goaway(&self) -> Option<u32> {
        let code = self.payload.get(4..8).filter(|_| self.kind == GOAWAY)?;
        Some(u32::from_be_bytes(code.try_into().ok()?))
    }

    /// Whether it answers a PING.
    pub(crate) fn is_pong(&self) -> bool {
        self.kind == PING && self.flags & ACK != 0
    }
}

/// One frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head[..], payload].concat()
}

/// The client's preface and its settings.
pub(crate) fn preface(settings: &[(u16, u32)]) -> Vec<u8> {
    [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &self::settings(settings)].concat()
}

pub(crate) fn settings(settings: &[(u16, u32)]) -> Vec<u8> {
    let one = |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(SETTINGS, 0, 0, &settings.iter().flat_map(one).collect::<Vec<_>>())
}

pub(crate) fn ping() -> Vec<u8> {
    frame(PING, 0, 0, &[7; 8])
}

pub(crate) fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}

pub(crate) fn window_update(stream: u32, bytes: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())
}

/// A whole HEADERS frame with these fields.
pub(crate) fn headers(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, flags | END_HEADERS, stream, &hpack(fields))
}

/// The head of an Export call.
pub(crate) fn export(stream: u32, flags: u8) -> Vec<u8> {
    headers(stream, flags, &export_fields())
}

/// The fields of an Export call.
pub(crate) fn export_fields() -> [(&'static str, &'static str); 6] {
    [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/opentelemetry.proto.collector.trace.v1.TraceService/Export"),
        (":authority", "t"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
}

/// Literals without indexing.
pub(crate) fn hpack(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        string(&mut block, name);
        string(&mut block, value);
    }
    block
}

/// A literal that the receiver adds to the dynamic table, at index 62.
pub(crate) fn hpack_indexed(name: &str, value: &str) -> Vec<u8> {
    let mut block = vec![0x40];
    string(&mut block, name);
    string(&mut block, value);
    block
}

/// References to the newest entry of the dynamic table.
pub(crate) fn hpack_references(count: usize) -> Vec<u8> {
    vec![0x80 | 62; count]
}

/// A length with a prefix of seven bits, then the plain text.
fn string(block: &mut Vec<u8>, text: &str) {
    let mut length = text.len();
    if length < 127 {
        block.push(length as u8);
    } else {
        block.push(127);
        length -= 127;
        while length >= 128 {
            block.push(length as u8 | 128);
            length >>= 7;
        }
        block.push(length as u8);
    }
    block.extend_from_slice(text.as_bytes());
}
