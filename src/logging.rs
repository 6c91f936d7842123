//! The log: lines on standard error, written by a thread of its own.
//!
//! Logging never fails and never delays the work. The caller puts a finished line into a queue of
//! at most 1 MiB, and one thread writes the lines. A line is lost if it cannot be written (the
//! reader of a pipe has gone, the disk is full) or finds the queue full (the reader has stopped
//! reading); `log_lines_lost_total` counts it. The thread tries to write every line, so the log
//! continues as soon as standard error works again; a line then says how many were lost.
//!
//! A panic is one log line too, in the log's format. At its end the process waits up to a second
//! for the last lines. A process that is killed may lose lines.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    collections::VecDeque,
    io::{self, IsTerminal as _, Write},
    panic::{self, PanicHookInfo},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use tracing::{Level, error, info, warn};
use tracing_subscriber::fmt::MakeWriter;

use crate::{
    config::{Diagnostics, Severity},
    throttle::Throttle,
};

/// Bytes of lines that may wait to be written; further lines are lost.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// The longest that the process waits at its end for the last lines.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest that a panic waits for its line, in case the process is aborted next.
const PANIC_TIMEOUT: Duration = Duration::from_millis(100);
/// Standard error may be in non-blocking mode, since other processes share it. This is the pause
/// before the next attempt to write, and the number of attempts.
const BUSY_PAUSE: Duration = Duration::from_millis(10);
const BUSY_ATTEMPTS_MAX: u32 = 100;
/// The most problems of a configuration that are logged; a file can have a thousand.
const PROBLEMS_LOGGED_MAX: usize = 20;

/// The number of lost lines. The counter is global, because a process has one standard error.
static LINES_LOST: AtomicU64 = AtomicU64::new(0);

/// Lines of the log that were lost since the start of the process.
pub(crate) fn lines_lost() -> u64 {
    LINES_LOST.load(Relaxed)
}

/// The log of the process. Dropping it waits for the last lines.
#[derive(Debug)]
pub struct Log {
    lines: Arc<Lines>,
    is_json: bool,
}

impl Log {
    /// Starts to log lines of this level and above, as text or as one JSON object a line, panics
    /// included. Call it once per process.
    ///
    /// # Errors
    /// If the operating system cannot start the thread.
    pub fn start(level: Level, is_json: bool) -> io::Result<Self> {
        let lines = Arc::<Lines>::default();
        let writer = Arc::clone(&lines);
        let thread = thread::Builder::new().name("log".into());
        thread.spawn(move || writer.write_for_ever(&mut io::stderr()))?;
        let logging = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_writer(LineWriter(Arc::clone(&lines)))
            .with_ansi(io::stderr().is_terminal())
            // tracing would print these to standard error itself, and panic if that fails.
            .log_internal_errors(false);
        if is_json {
            logging.json().init();
        } else {
            logging.init();
        }
        let hooked = Arc::clone(&lines);
        panic::set_hook(Box::new(move |panic| {
            tell_panic(panic);
            hooked.wait_until_written(PANIC_TIMEOUT);
        }));
        Ok(Log { lines, is_json })
    }

    /// Reports the problems of a configuration: as text in the form of `tailwater check`, as JSON
    /// one object per problem.
    pub fn tell(&self, diagnostics: &Diagnostics) {
        if self.is_json {
            log_problems(diagnostics);
        } else if !diagnostics.is_empty() {
            self.lines.push(diagnostics.to_string().into_bytes());
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.lines.wait_until_written(LAST_LINES_TIMEOUT);
    }
}

/// Logs one line per problem, with its place.
pub(crate) fn log_problems(diagnostics: &Diagnostics) {
    let all = diagnostics.iter().len();
    for problem in diagnostics.iter().take(PROBLEMS_LOGGED_MAX) {
        let place = format!("{}:{}:{}", problem.file, problem.line, problem.column);
        let hint = problem.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
        match problem.severity {
            Severity::Error => error!("{place}: {}{hint}", problem.message),
            Severity::Warning => warn!("{place}: {}{hint}", problem.message),
            Severity::Note => info!("{place}: {}{hint}", problem.message),
        }
    }
    if all > PROBLEMS_LOGGED_MAX {
        error!("and {} more problems: `tailwater check` lists all", all - PROBLEMS_LOGGED_MAX);
    }
}

fn tell_panic(panic: &PanicHookInfo<'_>) {
    let message = panic.payload_as_str().unwrap_or("a value that is not text");
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let current = thread::current();
    let thread = current.name().unwrap_or_default();
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        let backtrace = backtrace.to_string();
        error!(thread, location, backtrace, "panicked: {message}");
    } else {
        error!(thread, location, "panicked: {message}");
    }
}

/// Lines on their way to standard error.
#[derive(Debug, Default)]
struct Lines {
    /// Locked for a few instructions, never during a write.
    state: Mutex<State>,
    arrived: Condvar,
    written: Condvar,
    told: Throttle,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    is_writing: bool,
}

impl Lines {
    fn push(&self, line: Vec<u8>) {
        let mut state = self.lock();
        if state.bytes + line.len() > WAITING_BYTES_MAX {
            LINES_LOST.fetch_add(1, Relaxed);
            return;
        }
        state.bytes += line.len();
        state.waiting.push_back(line);
        drop(state);
        self.arrived.notify_one();
    }

    fn pop(&self) -> Vec<u8> {
        let mut state = self.lock();
        state.is_writing = false;
        loop {
            if let Some(line) = state.waiting.pop_front() {
                state.bytes -= line.len();
                state.is_writing = true;
                return line;
            }
            self.written.notify_all();
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn write_for_ever(&self, out: &mut impl Write) {
        let (mut is_cut, mut lost_before) = (false, lines_lost());
        loop {
            let line = self.pop();
            if put(out, &line, &mut is_cut).is_err() {
                LINES_LOST.fetch_add(1, Relaxed);
                continue;
            }
            // Only if there is space for the line that reports the loss.
            if self.lock().bytes > WAITING_BYTES_MAX / 2 {
                continue;
            }
            let lost = lines_lost();
            if let Some(lines) = self.told.add(lost - lost_before) {
                warn!(lines, "log lines were lost: standard error could not be written to");
            }
            lost_before = lost;
        }
    }

    /// Waits until all lines are written, for at most this time.
    fn wait_until_written(&self, at_most: Duration) {
        let is_busy = |state: &mut State| state.is_writing || !state.waiting.is_empty();
        // Lines that are not written within this time are lost with the process.
        drop(self.written.wait_timeout_while(self.lock(), at_most, is_busy));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No panic can happen here between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes a whole line. `is_cut` says whether the last line was written in part; then this one
/// begins on a new line.
fn put(out: &mut impl Write, line: &[u8], is_cut: &mut bool) -> io::Result<()> {
    let mut busy = 0;
    let end_of_last: &[u8] = if *is_cut { b"\n" } else { b"" };
    for part in [end_of_last, line] {
        let mut rest = part;
        while !rest.is_empty() {
            match out.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => {
                    rest = &rest[bytes..];
                    *is_cut = !rest.is_empty();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock && busy < BUSY_ATTEMPTS_MAX =>
                {
                    busy += 1;
                    thread::park_timeout(BUSY_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Takes the formatted output of `tracing`, one whole line per call.
#[derive(Clone, Debug)]
struct LineWriter(Arc<Lines>);

impl MakeWriter<'_> for LineWriter {
    type Writer = LineWriter;

    fn make_writer(&self) -> LineWriter {
        self.clone()
    }
}

impl Write for LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file on a disk with space for this many bytes.
    struct Disk {
        room: usize,
        written: Vec<u8>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.room);
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= taken;
            self.written.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_was_cut_spoils_no_other() {
        let mut disk = Disk { room: 6, written: Vec::new() };
        let mut is_cut = false;
        put(&mut disk, b"{1}\n", &mut is_cut).expect("there is room");
        put(&mut disk, b"{2}\n", &mut is_cut).expect_err("there is room for half of it");
        put(&mut disk, b"{3}\n", &mut is_cut).expect_err("there is none");
        disk.room = 100;
        put(&mut disk, b"{4}\n", &mut is_cut).expect("there is room again");
        put(&mut disk, b"{5}\n", &mut is_cut).expect("there is room");
        assert_eq!(disk.written, b"{1}\n{2\n{4}\n{5}\n");
    }

    #[test]
    fn lines_that_nobody_writes_are_bounded_and_counted() {
        let lines = Lines::default();
        let before = lines_lost();
        (0..2_000).for_each(|_| lines.push(vec![b'x'; 1 << 10]));
        assert_eq!(lines.lock().bytes, WAITING_BYTES_MAX);
        assert_eq!(lines_lost() - before, 2_000 - 1_024);
        lines.wait_until_written(Duration::from_millis(10));
        assert_eq!(lines.pop().len(), 1 << 10);
        lines.push(b"there is room again".to_vec());
        assert_eq!(lines_lost() - before, 2_000 - 1_024);
    }
}
