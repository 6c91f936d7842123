//! One file of a log: creates it, reuses it, and writes records to positions in it.

use std::{
    fs::{self, File},
    io::{self, IoSlice},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use super::{
    reader::LogFileInfo,
    record::{FileHeader, LogKind, VERSION},
};

/// A file of a log.
#[derive(Debug)]
pub(super) struct LogFile {
    /// `None` for a file of an earlier process, which takes no more records.
    pub(super) file: Option<File>,
    pub(super) path: PathBuf,
    pub(super) base: u64,
    pub(super) end: u64,
    /// Its length on disk.
    pub(super) bytes: u64,
    /// Whether something was written since the last sync.
    pub(super) is_dirty: AtomicBool,
    /// Whether its name in the directory was synced.
    pub(super) is_named: AtomicBool,
    /// Whether a record was written.
    pub(super) has_records: AtomicBool,
    /// Whether a sync succeeded.
    pub(super) is_synced: AtomicBool,
    /// Whether a sync failed. It is never synced again: the kernel reports an error once, and
    /// forgets what it could not write.
    pub(super) is_failed: AtomicBool,
}

impl LogFile {
    fn new(file: Option<File>, path: PathBuf, base: u64, (end, bytes): (u64, u64)) -> Self {
        LogFile {
            file,
            path,
            base,
            end,
            bytes,
            is_dirty: AtomicBool::new(false),
            is_named: AtomicBool::new(false),
            has_records: AtomicBool::new(false),
            is_synced: AtomicBool::new(false),
            is_failed: AtomicBool::new(false),
        }
    }

    pub(super) fn old(info: &LogFileInfo) -> Self {
        LogFile {
            is_named: AtomicBool::new(true),
            has_records: AtomicBool::new(true),
            is_synced: AtomicBool::new(true),
            ..Self::new(None, info.path.clone(), info.base, (info.end, info.len))
        }
    }

    /// Whether the next sync has to do something for it.
    pub(super) fn is_unsynced(&self) -> bool {
        let is_unsynced = self.is_dirty.load(Relaxed) || !self.is_named.load(Relaxed);
        is_unsynced && !self.is_failed.load(Relaxed)
    }

    /// Whether nothing that anyone relies on is in it, once it takes no more records: without a
    /// record, or with a sync that failed before any had succeeded.
    pub(super) fn is_useless(&self) -> bool {
        let is_lost = self.is_failed.load(Relaxed) && !self.is_synced.load(Relaxed);
        is_lost || !self.has_records.load(Relaxed)
    }

    pub(super) fn create(path: &Path, kind: LogKind, base: u64, capacity: u64) -> io::Result<Self> {
        // Only this user may read the file, because traces may hold personal data. A file of this
        // name that exists already has no sound header, otherwise it would be a part of the log.
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
        allocate(&file, capacity)?;
        Self::begin(file, path, (kind, base, capacity))
    }

    /// The same file under another name, to be used again.
    pub(super) fn renamed(&self, path: PathBuf) -> Self {
        let file = self.file.as_ref().and_then(|file| file.try_clone().ok());
        Self::new(file, path, self.base, (self.end, self.bytes))
    }

    /// Makes a file that was freed the next one. Its old records have lower positions.
    pub(super) fn reuse(
        spare: &LogFile,
        path: &Path,
        kind: LogKind,
        base: u64,
    ) -> io::Result<Self> {
        let file = spare.file.as_ref().ok_or(io::ErrorKind::InvalidInput)?.try_clone()?;
        let begun = Self::begin(file, path, (kind, base, spare.bytes))?;
        fs::rename(&spare.path, path)?;
        Ok(begun)
    }

    fn begin(
        file: File,
        path: &Path,
        (kind, base, capacity): (LogKind, u64, u64),
    ) -> io::Result<Self> {
        // At most 64 MiB, or one record.
        let header =
            FileHeader { version: VERSION, kind: kind as u32, base, capacity: capacity as u32 };
        std::os::unix::fs::FileExt::write_all_at(&file, &header.encode(), 0)?;
        let new = Self::new(Some(file), path.to_owned(), base, (base + capacity, capacity));
        Ok(LogFile { is_dirty: AtomicBool::new(true), ..new })
    }
}

/// Syncs the names of the files in a directory.
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Allocates the blocks of a file, so that a full disk is noticed here and not in the middle of a
/// record. On a file system that cannot allocate blocks, the file is sparse.
fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::{fs::FallocateFlags, io::Errno};
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            outcome => return Ok(outcome?),
        }
    }
    file.set_len(bytes)
}

pub(super) fn write_all_at(
    file: &LogFile,
    offset: u64,
    header: &[u8],
    body: &[&[u8]],
) -> io::Result<()> {
    let target = file.file.as_ref().ok_or(io::ErrorKind::InvalidInput)?;
    let mut slices = vec![IoSlice::new(header)];
    slices.extend(body.iter().map(|part| IoSlice::new(part)));
    let (mut rest, mut offset) = (&mut slices[..], offset);
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match rustix::io::pwritev(target, rest, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut rest, written);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(problem) => return Err(problem.into()),
        }
    }
    Ok(())
}
