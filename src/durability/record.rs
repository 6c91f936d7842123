//! The bytes of files and records, as `docs/src/reference/log-format.md` describes them.
//!
//! A file begins with a header of 32 bytes; records follow, each at a multiple of 8 bytes. A record
//! is a header of 32 bytes and a body. Its checksum covers both, and the header names the position
//! of the record, so a record is never taken for another, wherever its bytes are found.

/// The length of the header of a file.
pub(super) const FILE_HEADER_BYTES: usize = 32;
/// The length of the header of a record.
pub(crate) const RECORD_HEADER_BYTES: usize = 32;
/// Records begin at multiples of this.
pub(super) const ALIGNMENT: u64 = 8;
/// The version that is written, and the only one that is read.
pub(crate) const VERSION: u32 = 1;

const FILE_MAGIC: [u8; 8] = *b"TWATRLOG";
/// Marks the beginning of a record. No text and no protobuf message begins with it.
pub(super) const RECORD_MAGIC: [u8; 4] = [0xd7, b'T', b'W', 0x9c];

/// Which of the logs a file or a record belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogKind {
    /// Requests as they were received.
    Intake = 0,
    /// Encoded requests to the backend that are not delivered yet.
    Outbox = 1,
    /// Decisions, and the watermark of the intake log.
    Decisions = 2,
}

impl LogKind {
    /// All of them.
    pub(crate) const ALL: [LogKind; 3] = [LogKind::Intake, LogKind::Outbox, LogKind::Decisions];

    /// The name in files, metrics and reports.
    pub(crate) fn as_str(self) -> &'static str {
        ["intake", "outbox", "decisions"][self as usize]
    }
}

/// The contents of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// A request as it was received.
    Received = 1,
    /// A request to the backend.
    Queued = 2,
    /// The position of a [`RecordKind::Queued`] record that is not needed any more.
    Settled = 3,
    /// Decisions of one tick.
    Decisions = 4,
    /// The watermark of the intake log.
    Watermark = 5,
}

impl RecordKind {
    fn from_byte(byte: u8) -> Option<Self> {
        let all = [
            RecordKind::Received,
            RecordKind::Queued,
            RecordKind::Settled,
            RecordKind::Decisions,
            RecordKind::Watermark,
        ];
        all.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// The header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// The position of the record in its log.
    pub position: u64,
    /// The window's time, in milliseconds.
    pub time: u64,
    /// The length of the body.
    pub len: u32,
    /// The contents of the body.
    pub kind: RecordKind,
    /// For a received request: transport, encoding and format; otherwise zeros.
    pub flags: [u8; 3],
}

impl RecordHeader {
    /// The header's bytes, with the checksum of it and of the parts of the body.
    pub(super) fn encode(&self, body: &[&[u8]]) -> [u8; RECORD_HEADER_BYTES] {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        bytes[..4].copy_from_slice(&RECORD_MAGIC);
        bytes[8..16].copy_from_slice(&self.position.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.time.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28] = self.kind as u8;
        bytes[29..].copy_from_slice(&self.flags);
        let sum = body
            .iter()
            .fold(crc32c::crc32c(&bytes[8..]), |sum, part| crc32c::crc32c_append(sum, part));
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads a header and its checksum; `None` if the bytes cannot be a header. The checksum is not
    /// verified.
    pub(super) fn decode(bytes: &[u8; RECORD_HEADER_BYTES]) -> Option<(Self, u32)> {
        if bytes[..4] != RECORD_MAGIC {
            return None;
        }
        let header = RecordHeader {
            position: u64_at(bytes, 8),
            time: u64_at(bytes, 16),
            len: u32_at(bytes, 24),
            kind: RecordKind::from_byte(bytes[28])?,
            flags: [bytes[29], bytes[30], bytes[31]],
        };
        Some((header, u32_at(bytes, 4)))
    }

    /// Whether a record, header and body, has this checksum.
    pub(super) fn is_sound(record: &[u8], sum: u32) -> bool {
        crc32c::crc32c(&record[8..]) == sum
    }

    /// The bytes from the beginning of this record to the beginning of the next.
    pub(super) fn stride(&self) -> u64 {
        (RECORD_HEADER_BYTES as u64 + u64::from(self.len)).next_multiple_of(ALIGNMENT)
    }
}

/// The header of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileHeader {
    pub(super) version: u32,
    pub(super) kind: u32,
    /// The position of the first byte of the file.
    pub(super) base: u64,
    /// The positions that the file has room for.
    pub(super) capacity: u32,
}

impl FileHeader {
    pub(super) fn encode(&self) -> [u8; FILE_HEADER_BYTES] {
        let mut bytes = [0; FILE_HEADER_BYTES];
        bytes[..8].copy_from_slice(&FILE_MAGIC);
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.kind.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.base.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.capacity.to_le_bytes());
        let sum = crc32c::crc32c(&bytes[..28]);
        bytes[28..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// The header; `None` if it is damaged.
    pub(super) fn decode(bytes: &[u8; FILE_HEADER_BYTES]) -> Option<Self> {
        let is_sound = crc32c::crc32c(&bytes[..28]) == u32_at(bytes, 28);
        (is_sound && bytes[..8] == FILE_MAGIC).then(|| FileHeader {
            version: u32_at(bytes, 8),
            kind: u32_at(bytes, 12),
            base: u64_at(bytes, 16),
            capacity: u32_at(bytes, 24),
        })
    }
}

fn u64_at(bytes: &[u8; 32], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("within 32 bytes"))
}

fn u32_at(bytes: &[u8; 32], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("within 32 bytes"))
}
