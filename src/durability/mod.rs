//! Durability: acknowledged spans survive the end of the process, or of the machine.
//!
//! There are three logs in one directory, each a sequence of preallocated files (`log.rs`):
//!
//! - *intake*: requests as they were received, still compressed if they were. They are written
//!   before their spans enter the window, and freed below the watermark (`sampler/positions.rs`);
//! - *outbox*: encoded requests to the backend, written when they are queued, and freed when they
//!   are settled. It is the export queue on disk;
//! - *decisions*: decisions, each with the position below which the spans of the trace were part of
//!   it; and the watermark.
//!
//! The decider writes in this order (`decider/journal.rs`): kept spans to the outbox, then their
//! decisions, then the watermark. So an acknowledged span is either in the intake log above the
//! watermark, or the decision of its trace is known and the kept spans are in the outbox. A start
//! reads the decisions and the outbox, and then replays the intake log from the watermark on. The
//! replay skips the spans that were part of a decision (`sampler/passed.rs`).
//!
//! With `mode = "process"` a record is written to the page cache, which outlives the process. With
//! `"power"` a thread syncs the logs every `sync_interval` (`keeper.rs`); a request is taken in and
//! acknowledged only after its record is synced, and decisions are written only after the outbox is
//! synced.
//!
//! Limits: the intake log takes up to five eighths of `max_size_mib`, the outbox a quarter, the
//! decisions an eighth. Requests are refused while the intake log is full or cannot be written. If
//! the outbox or the decisions cannot be written, deciding and exporting continue. The decisions
//! then wait in memory until they can be written, or until their spans are delivered, and the
//! watermark waits with them.

mod decided;
mod file;
mod keeper;
mod log;
mod reader;
mod record;
mod recovery;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::DirBuilderExt as _,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

pub use self::{
    decided::WrittenDecisions,
    reader::{LogFiles, RecordReader},
    record::{LogKind, RecordKind},
};
pub(crate) use self::{
    decided::{Pending, WrittenDecision},
    keeper::{Keeper, Since, Ticket},
    log::Unwritten,
    reader::{LogFileInfo, ReadError, Record},
    record::{RecordHeader, VERSION},
    recovery::{Queued, Recovered},
};
use self::{
    file::sync_directory,
    log::{Entry, Log},
    record::FILE_HEADER_BYTES,
};
use crate::sampler::{Positions, Underway};

/// Why durability cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be used.
    #[error("[durability] directory {} cannot be used: {source}", directory.display())]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Another process uses it.
    #[error(
        "[durability] directory {} is in use by another process: give each instance its own",
        directory.display()
    )]
    InUse {
        /// The directory.
        directory: PathBuf,
    },
    /// A log cannot be read.
    #[error("[durability] directory: {0}")]
    Read(#[from] ReadError),
}

/// The settings of durability.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The directory of the logs.
    pub directory: PathBuf,
    /// The most bytes of all logs together.
    pub bytes_max: u64,
    /// The time between two syncs with `mode = "power"`; `None` with `"process"`, which does not
    /// sync.
    pub sync_interval: Option<Duration>,
    /// How long decisions are kept on disk, in milliseconds of the window's time.
    pub decisions_kept_millis: u64,
}

/// The part of `max_size_mib` that the outbox may take: 1 divided by this.
pub(crate) const OUTBOX_PART: u64 = 4;
const DECISIONS_PART: u64 = 8;

/// A request as it was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Received<'a> {
    /// The transport, the encoding and the format, by the numbers of the receiver.
    pub(crate) flags: [u8; 3],
    /// The body.
    pub(crate) body: &'a [u8],
}

/// The three logs, open for writing.
#[derive(Debug)]
pub struct Durability {
    intake: Log,
    outbox: Log,
    decisions: Log,
    positions: Arc<Positions>,
    settings: Settings,
    /// The positions in the outbox of requests that are not settled.
    unsettled: Mutex<std::collections::BTreeSet<u64>>,
    /// For parts of the log of decisions, in order: the position after the part, the highest
    /// position in the intake log that it names, and the time of its last record.
    covered: Mutex<std::collections::VecDeque<(u64, u64, u64)>>,
    damaged: AtomicU64,
    /// Locked while the directory is in use.
    lock: File,
}

impl Durability {
    /// Opens the logs of a directory, which is created if it does not exist, and reads the records
    /// of an earlier process.
    ///
    /// # Errors
    /// [`OpenError`] names the directory or the file.
    pub(crate) fn open(settings: Settings) -> Result<(Self, Recovered), OpenError> {
        let directory = settings.directory.clone();
        let unusable = |source| OpenError::Directory { directory: directory.clone(), source };
        let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        created.map_err(unusable)?;
        let lock = lock(&directory)?;
        remove_spare(&directory).map_err(unusable)?;
        let [intake, outbox, decisions] = LogKind::ALL.map(|kind| LogFiles::list(&directory, kind));
        let (intake, outbox, decisions) = (intake?, outbox?, decisions?);
        let recovered = Recovered::read(&intake, &outbox, &decisions)?;
        let bytes_max = settings.bytes_max;
        let log = |kind, files: &LogFiles, next, bytes_max| {
            Log::new(kind, &directory, bytes_max, &files.files, next)
        };
        let [of_outbox, of_decisions] = [bytes_max / OUTBOX_PART, bytes_max / DECISIONS_PART];
        let intake_next = recovered.intake_next();
        let durability = Durability {
            intake: log(
                LogKind::Intake,
                &intake,
                intake_next,
                bytes_max - of_outbox - of_decisions,
            ),
            outbox: log(LogKind::Outbox, &outbox, outbox.end(), of_outbox),
            decisions: log(LogKind::Decisions, &decisions, decisions.end(), of_decisions),
            positions: Positions::starting_at(recovered.watermark),
            settings,
            unsettled: Mutex::new(recovered.unsettled()),
            covered: Mutex::new(recovered.covered.clone()),
            damaged: AtomicU64::new(recovered.damaged),
            lock,
        };
        for log in durability.logs() {
            log.prepare().map_err(unusable)?;
        }
        sync_directory(&directory).map_err(unusable)?;
        Ok((durability, recovered))
    }

    /// The positions of the intake log.
    pub(crate) fn positions(&self) -> &Arc<Positions> {
        &self.positions
    }

    /// The settings it was opened with.
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Called after a replay: moves the next position of a request above all positions used so far.
    pub(crate) fn go_on(&self) {
        let next = self.intake.next().saturating_sub(FILE_HEADER_BYTES as u64);
        // An empty request that takes one position and ends at once.
        let _ = self.positions.begin(|| Ok::<_, Unwritten>(next..next + 1));
    }

    /// Whether the intake log can take requests, as far as that is known.
    ///
    /// # Errors
    /// [`Unwritten`]: the reason why it cannot.
    pub(crate) fn admits(&self) -> Result<(), Unwritten> {
        self.intake.refuses().map_or(Ok(()), Err)
    }

    /// Writes a request to the intake log. It must be taken in before the [`Underway`] is dropped.
    ///
    /// # Errors
    /// [`Unwritten`]; the request must be refused.
    pub(crate) fn receive(&self, received: Received<'_>, time: u64) -> Result<Underway, Unwritten> {
        let Received { flags, body } = received;
        let mut reserved = None;
        let underway = self.positions.begin(|| {
            let new = self.intake.reserve(body.len())?;
            Ok(reserved.insert(new).range())
        })?;
        let reserved = reserved.expect("reserved by a request that has begun");
        let entry = Entry { kind: RecordKind::Received, flags, time, body: &[body] };
        self.intake.write(&reserved, &entry)?;
        Ok(underway)
    }

    /// Begins to take in a request of an earlier process again. Its record is still in the log.
    pub(crate) fn begin_again(&self, header: &RecordHeader) -> Underway {
        let range = header.position..header.position + header.stride();
        let begun = self.positions.begin(|| Ok::<_, std::convert::Infallible>(range));
        let Ok(underway) = begun;
        underway
    }

    /// Writes an encoded request to the outbox, and returns its position there.
    ///
    /// # Errors
    /// [`Unwritten`]; the request can be queued, but not be stored.
    pub(crate) fn queue(&self, body: &[u8], spans: u64, time: u64) -> Result<u64, Unwritten> {
        let spans = spans.to_le_bytes();
        let (kind, flags) = (RecordKind::Queued, [0; 3]);
        let written = self.outbox.append(&Entry { kind, flags, time, body: &[&spans, body] })?;
        lock_of(&self.unsettled).insert(written.start);
        Ok(written.start)
    }

    /// Writes that requests of the outbox are delivered or given up, and frees files. If that
    /// cannot be written for a request, the request is sent again after a restart.
    pub(crate) fn settle(&self, positions: &[u64], time: u64) {
        if positions.is_empty() {
            return;
        }
        let body: Vec<u8> = positions.iter().flat_map(|at| at.to_le_bytes()).collect();
        let (kind, flags) = (RecordKind::Settled, [0; 3]);
        // `append` counts and logs its errors.
        let _ = self.outbox.append(&Entry { kind, flags, time, body: &[&body] });
        let mut unsettled = lock_of(&self.unsettled);
        positions.iter().for_each(|at| {
            unsettled.remove(at);
        });
        let first = unsettled.first().copied();
        drop(unsettled);
        self.outbox.release(first.unwrap_or_else(|| self.outbox.next()));
    }

    /// Writes decisions. Their kept spans must be in the outbox, or delivered.
    ///
    /// # Errors
    /// [`Unwritten`]; the caller tries again later.
    pub(crate) fn decide(
        &self,
        pending: &Pending,
        names: &[String],
        time: u64,
    ) -> Result<(), Unwritten> {
        let (kind, flags) = (RecordKind::Decisions, [0; 3]);
        let body = [&pending.names(names)[..], pending.groups()];
        let written = self.decisions.append(&Entry { kind, flags, time, body: &body })?;
        self.note_covered(written.end, pending.position_max, time);
        Ok(())
    }

    /// Writes the watermark. Everything below must be decided, and its decisions written.
    ///
    /// # Errors
    /// [`Unwritten`]; nothing may be freed.
    pub(crate) fn mark(&self, watermark: u64, time: u64) -> Result<(), Unwritten> {
        let (kind, flags) = (RecordKind::Watermark, [0; 3]);
        let body = watermark.to_le_bytes();
        let written = self.decisions.append(&Entry { kind, flags, time, body: &[&body] })?;
        self.note_covered(written.end, 0, time);
        Ok(())
    }

    /// Frees the records below a watermark that was written.
    pub(crate) fn release(&self, watermark: u64, time: u64) {
        self.intake.release(watermark);
        self.forget_decisions(watermark, time);
    }

    /// Syncs everything that was written. Returns whether there was anything to sync.
    ///
    /// # Errors
    /// [`Unwritten`] if a log could not be synced; the others were.
    pub(crate) fn sync(&self) -> Result<bool, Unwritten> {
        // All at once, so that a slow disk holds requests up once. The other logs are written once
        // a tick, the intake log all the time.
        let outcomes = thread::scope(|scope| {
            let others = [&self.outbox, &self.decisions]
                .map(|log| log.is_unsynced().then(|| scope.spawn(|| log.sync())));
            let synced = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panicked| resume_unwind(panicked))
            };
            let intake = self.intake.sync();
            let [outbox, decisions] = others.map(|other| other.map_or(Ok(false), synced));
            [intake, outbox, decisions]
        });
        outcomes.into_iter().try_fold(false, |any, synced| Ok(any | synced?))
    }

    /// Frees files of decisions that are old enough, or the oldest if there is no room for them.
    /// Keeps every file that names a position above the watermark.
    fn forget_decisions(&self, watermark: u64, time: u64) {
        let room = self.settings.bytes_max / DECISIONS_PART / 4 * 3;
        while let Some(end) = self.decisions.first_end() {
            let mut covered = lock_of(&self.covered);
            let of_file = covered.iter().take_while(|(at, ..)| *at <= end);
            let (highest, last) = of_file.fold((0, 0), |(highest, last), (_, position, time)| {
                (*position.max(&highest), *time.max(&last))
            });
            let is_old = time.saturating_sub(last) > self.settings.decisions_kept_millis;
            let may = highest <= watermark && (is_old || self.decisions.allocated() > room);
            if !may {
                return;
            }
            covered.retain(|(at, ..)| *at > end);
            drop(covered);
            self.decisions.release(end);
        }
    }

    /// Notes the highest position that the records of decisions up to `end` name. Entries of the
    /// same second are merged.
    fn note_covered(&self, end: u64, position: u64, time: u64) {
        let mut covered = lock_of(&self.covered);
        match covered.back_mut() {
            Some(last) if last.2 / 1_000 == time / 1_000 => {
                *last = (end, last.1.max(position), time);
            }
            _ => covered.push_back((end, position, time)),
        }
    }

    /// Lets the next process use the directory. Called at the end, after the last write.
    pub(crate) fn unlock(&self) {
        // If this fails, the lock ends with the process.
        let _ = self.lock.unlock();
    }

    /// The bytes on disk, by log.
    pub(crate) fn bytes(&self) -> [u64; 3] {
        self.logs().map(Log::allocated)
    }

    /// Errors of the disk, by log.
    pub(crate) fn errors(&self) -> [u64; 3] {
        self.logs().map(Log::errors)
    }

    /// Damaged records so far.
    pub(crate) fn damaged(&self) -> u64 {
        self.damaged.load(Relaxed)
    }

    /// Counts damaged records that a replay has found.
    pub(crate) fn note_damaged(&self, records: u64) {
        self.damaged.fetch_add(records, Relaxed);
    }

    fn logs(&self) -> [&Log; 3] {
        [&self.intake, &self.outbox, &self.decisions]
    }
}

fn lock_of<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds one of these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes freed files that the last process kept for reuse.
fn remove_spare(directory: &Path) -> io::Result<()> {
    let prefixes = LogKind::ALL.map(reader::spare_prefix);
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| prefixes.iter().any(|it| name.starts_with(it))) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Locks the directory for this process. The lock ends with the process, however it ends.
fn lock(directory: &Path) -> Result<File, OpenError> {
    let unusable = |source| OpenError::Directory { directory: directory.to_owned(), source };
    let path = directory.join("lock");
    let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path);
    let file = file.map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { directory: directory.to_owned() }),
        Err(TryLockError::Error(source)) => Err(unusable(source)),
    }
}
