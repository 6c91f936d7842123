//! Reads a log: its files in order, and the sound records of each.
//!
//! Damage loses only the records that it touches. After bytes that are not a sound record, the
//! reader looks for the next record at every multiple of 8 bytes. A record is recognized by its
//! mark, its own position and its checksum.
//!
//! Files are reused, so after the last record there may be zeros or older contents of the file, and
//! neither is damage. Bytes count as damage if they begin like a record of this position (with its
//! mark or its position), or if a sound record follows them. In the second case they may also be an
//! incomplete record of a request that was being written when the process was killed; that request
//! was not acknowledged.
//!
//! The reader has a buffer of 1 MiB, or of the longest record if that is more.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use super::record::{
    ALIGNMENT, FILE_HEADER_BYTES, FileHeader, LogKind, RECORD_HEADER_BYTES, RECORD_MAGIC,
    RecordHeader, VERSION,
};

const BUFFER_BYTES: usize = 1 << 20;

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The operating system has reported an error.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Another version of Tailwater wrote it.
    #[error(
        "{} has version {version} of the format, and this Tailwater reads version {VERSION}: \
         start the Tailwater that wrote it, or move the directory away",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// The version that it names.
        version: u32,
    },
}

impl ReadError {
    /// The path that cannot be read.
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| ReadError::Io { path, source }
    }
}

/// A file of a log.
#[derive(Clone, Debug)]
pub struct LogFileInfo {
    /// Its path.
    pub path: PathBuf,
    /// The position of its first byte.
    pub base: u64,
    /// The position after the last one that it has room for.
    pub end: u64,
    /// Its length.
    pub len: u64,
    /// Whether its header is damaged. The records can still be read.
    pub is_damaged: bool,
}

/// The files of a log, in the order of their positions.
#[derive(Clone, Debug, Default)]
pub struct LogFiles {
    /// The files that belong to the log.
    pub files: Vec<LogFileInfo>,
    /// The number of places where a file is missing, and of copies of a file under another name.
    pub damaged: u64,
}

/// The name of a file.
pub(super) fn file_name(kind: LogKind, base: u64) -> String {
    format!("{}-{base:016x}.log", kind.as_str())
}

/// The prefix of the names of freed files, which are kept for reuse and hold no records of the log.
pub(super) fn spare_prefix(kind: LogKind) -> String {
    format!("{}-spare-", kind.as_str())
}

fn base_of(kind: LogKind, name: &str) -> Option<u64> {
    let digits = name.strip_prefix(kind.as_str())?.strip_prefix('-')?.strip_suffix(".log")?;
    let is_hex = digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

impl LogFiles {
    /// The files of a log in a directory.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn list(directory: &Path, kind: LogKind) -> Result<Self, ReadError> {
        let mut found = LogFiles::default();
        let entries = std::fs::read_dir(directory).map_err(ReadError::io(directory))?;
        for entry in entries {
            let entry = entry.map_err(ReadError::io(directory))?;
            if let Some(base) = entry.file_name().to_str().and_then(|name| base_of(kind, name)) {
                found.add(&entry.path(), kind, base)?;
            }
        }
        found.files.sort_by_key(|file| file.base);
        let ends = found.files.windows(2).filter(|pair| pair[0].end != pair[1].base);
        found.damaged += ends.count() as u64;
        Ok(found)
    }

    fn add(&mut self, path: &Path, kind: LogKind, base: u64) -> Result<(), ReadError> {
        let file = File::open(path).map_err(ReadError::io(path))?;
        let len = file.metadata().map_err(ReadError::io(path))?.len();
        let mut bytes = [0; FILE_HEADER_BYTES];
        let header = if len < FILE_HEADER_BYTES as u64 {
            None
        } else {
            file.read_exact_at(&mut bytes, 0).map_err(ReadError::io(path))?;
            FileHeader::decode(&bytes)
        };
        match header {
            Some(FileHeader { version, .. }) if version != VERSION => {
                return Err(ReadError::Version { path: path.to_owned(), version });
            }
            // This is a copy of another file.
            Some(header) if header.base != base || header.kind != kind as u32 => self.damaged += 1,
            header => {
                // A file that was created and never written is not damage.
                let is_damaged = header.is_none() && bytes != [0; FILE_HEADER_BYTES];
                let capacity = header.map_or(len, |header| u64::from(header.capacity));
                let (path, end) = (path.to_owned(), base + capacity.max(len));
                self.files.push(LogFileInfo { path, base, end, len, is_damaged });
            }
        }
        Ok(())
    }

    /// The position after the last one that any file has room for.
    pub(crate) fn end(&self) -> u64 {
        self.files.iter().map(|file| file.end).max().unwrap_or(0)
    }
}

/// A sound record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its header.
    pub header: RecordHeader,
    /// Its body.
    pub body: &'a [u8],
}

/// Reads the records of one file.
#[derive(Debug)]
pub struct RecordReader {
    file: File,
    path: PathBuf,
    base: u64,
    len: u64,
    /// The offset in the file of the next record.
    at: u64,
    buffer: Vec<u8>,
    /// The offset of the buffer in the file.
    buffered_at: u64,
    damaged: u64,
    gap: Gap,
}

/// The bytes between the last sound record and the next.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Gap {
    /// Nothing, or zeros.
    None,
    /// Bytes that may be older contents of the file.
    Unknown,
    /// Bytes that have been counted as damage.
    Damage,
}

/// The bytes at a position where a record may begin.
enum Found {
    /// A sound record of this position.
    Record(RecordHeader),
    /// A damaged record of this position.
    Damage,
    /// Anything else.
    Other,
}

impl RecordReader {
    /// Begins with the first record at or after `from`.
    ///
    /// # Errors
    /// [`ReadError::Io`].
    pub fn open(info: &LogFileInfo, from: u64) -> Result<Self, ReadError> {
        let LogFileInfo { path, base, len, .. } = info;
        let at = from.saturating_sub(*base).max(FILE_HEADER_BYTES as u64);
        Ok(RecordReader {
            file: File::open(path).map_err(ReadError::io(path))?,
            path: path.clone(),
            base: *base,
            len: *len,
            at: at.next_multiple_of(ALIGNMENT),
            buffer: Vec::new(),
            buffered_at: 0,
            damaged: 0,
            gap: Gap::None,
        })
    }

    /// The number of damaged places found so far.
    pub(crate) fn damaged(&self) -> u64 {
        self.damaged
    }

    /// The next sound record.
    ///
    /// # Errors
    /// [`ReadError::Io`].
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, ReadError> {
        let found = loop {
            let left = self.len.saturating_sub(self.at);
            if left == 0 {
                return Ok(None);
            }
            let wanted = (left as usize).min(RECORD_HEADER_BYTES);
            let bytes = self.bytes(wanted)?;
            if bytes[..wanted.min(ALIGNMENT as usize)].iter().all(|byte| *byte == 0) {
                self.skip_zeros()?;
                continue;
            }
            match self.judge(left)? {
                Found::Record(header) => break header,
                Found::Damage if self.gap != Gap::Damage => {
                    self.damaged += 1;
                    self.gap = Gap::Damage;
                }
                Found::Other if self.gap == Gap::None => self.gap = Gap::Unknown,
                Found::Damage | Found::Other => {}
            }
            self.seek_mark()?;
        };
        self.damaged += u64::from(self.gap == Gap::Unknown);
        self.gap = Gap::None;
        let len = RECORD_HEADER_BYTES + found.len as usize;
        let start = (self.at - self.buffered_at) as usize;
        self.at += found.stride();
        let body = &self.buffer[start..start + len][RECORD_HEADER_BYTES..];
        Ok(Some(Record { header: found, body }))
    }

    /// Judges the bytes at the current position, which are not zeros.
    fn judge(&mut self, left: u64) -> Result<Found, ReadError> {
        let position = self.base + self.at;
        let begins_gap = self.gap == Gap::None;
        let bytes = self.bytes((left as usize).min(RECORD_HEADER_BYTES))?;
        let is_marked = RECORD_MAGIC.starts_with(&bytes[..bytes.len().min(RECORD_MAGIC.len())]);
        let is_named = bytes.get(8..16).is_some_and(|named| named == position.to_le_bytes());
        let header = bytes.first_chunk().and_then(RecordHeader::decode);
        let is_complete =
            |header: &RecordHeader| RECORD_HEADER_BYTES as u64 + u64::from(header.len) <= left;
        if let Some((header, sum)) = header.filter(|(header, _)| is_complete(header))
            // Older contents of the file are checked only right after a record.
            && (is_named || begins_gap)
            && RecordHeader::is_sound(self.bytes(RECORD_HEADER_BYTES + header.len as usize)?, sum)
        {
            return Ok(if is_named { Found::Record(header) } else { Found::Other });
        }
        Ok(if is_named || is_marked && begins_gap { Found::Damage } else { Found::Other })
    }

    /// Skips to the next multiple of 8 bytes where the bytes are not zeros.
    fn skip_zeros(&mut self) -> Result<(), ReadError> {
        self.skip(|step| step.iter().any(|byte| *byte != 0))
    }

    /// Skips to the next multiple of 8 bytes, after this one, that begins with the mark.
    fn seek_mark(&mut self) -> Result<(), ReadError> {
        self.at += ALIGNMENT;
        self.skip(|step| step.starts_with(&RECORD_MAGIC))
    }

    fn skip(&mut self, is_found: impl Fn(&[u8]) -> bool) -> Result<(), ReadError> {
        while self.at < self.len {
            let wanted = (self.len - self.at).min(BUFFER_BYTES as u64) as usize;
            let steps = self.bytes(wanted)?.chunks(ALIGNMENT as usize);
            let (skipped, found) = match steps.enumerate().find(|(_, step)| is_found(step)) {
                Some((steps, _)) => (steps as u64 * ALIGNMENT, true),
                None => ((wanted as u64).next_multiple_of(ALIGNMENT), false),
            };
            self.at += skipped;
            if found {
                break;
            }
        }
        Ok(())
    }

    /// The next `wanted` bytes, all of which the file has.
    fn bytes(&mut self, wanted: usize) -> Result<&[u8], ReadError> {
        let offset = self.at.wrapping_sub(self.buffered_at);
        let has = self.at >= self.buffered_at && offset + wanted as u64 <= self.buffer.len() as u64;
        if !has {
            let ahead = (self.len - self.at).min(BUFFER_BYTES.max(wanted) as u64);
            self.buffer.resize(ahead as usize, 0);
            self.buffered_at = self.at;
            let read = self.file.read_exact_at(&mut self.buffer, self.at);
            read.map_err(ReadError::io(&self.path))?;
        }
        let start = (self.at - self.buffered_at) as usize;
        Ok(&self.buffer[start..start + wanted])
    }
}
