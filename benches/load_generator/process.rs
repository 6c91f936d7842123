//! Starts child processes, makes sure that they end, and reads the kernel's figures about them.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError, sync_channel},
    },
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};

use crate::{Result, control};

/// The longest wait for an answer, most of which come at once.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Linux shows CPU times to users in hundredths of a second on every architecture (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;
const POLL: Duration = Duration::from_millis(20);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes SIGTERM and SIGINT end the run with an error, so that every child is ended too.
pub(crate) fn watch_signals() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut terminate, mut interrupt) = {
        let _context = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                // The order does not matter: both signals do the same.
                biased;
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        });
        INTERRUPTED.store(true, Relaxed);
    });
    Ok(())
}

/// Sleeps; fails if a signal arrives in the meantime.
pub(crate) fn pause(duration: Duration) -> Result<()> {
    let end = Instant::now() + duration;
    loop {
        if INTERRUPTED.load(Relaxed) {
            return Err("interrupted".into());
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(POLL));
    }
}

/// A child that is killed if it is dropped before it has ended.
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    input: Option<ChildStdin>,
    answers: Receiver<String>,
}

impl Process {
    /// Starts `command`. Its stdout is read line by line; its stderr is that of this process.
    pub(crate) fn start(name: &'static str, mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{name}: {:?}: {error}", command.get_program()))?;
        let input = child.stdin.take();
        let stdout = child.stdout.take().ok_or("a piped stdout is missing")?;
        let answers = read_lines(stdout);
        Ok(Self { name, child, input, answers })
    }

    /// Starts this binary again as one of its subcommands.
    pub(crate) fn subcommand(name: &'static str, arguments: &[String]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(name).args(arguments);
        Self::start(name, command)
    }

    /// The next line of JSON that the child prints.
    pub(crate) fn answer<T: DeserializeOwned>(&self) -> Result<T> {
        self.answer_within(ANSWER_MAX)
    }

    /// The next line, for which the child may take this long.
    pub(crate) fn answer_within<T: DeserializeOwned>(&self, max: Duration) -> Result<T> {
        let line = self.answers.recv_timeout(max).map_err(|error| match error {
            RecvTimeoutError::Timeout => format!("{} did not answer within {max:?}", self.name),
            RecvTimeoutError::Disconnected => format!("{} has ended", self.name),
        });
        control::parse(&line?)
    }

    /// Asks for a lap.
    pub(crate) fn lap<T: DeserializeOwned>(&mut self) -> Result<T> {
        let name = self.name;
        let input = self.input.as_mut().ok_or("stdin is closed")?;
        input.write_all(b"lap\n").map_err(|error| format!("{name} has ended: {error}"))?;
        self.answer()
    }

    /// Whether the child has not ended by itself.
    pub(crate) fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Sends SIGTERM and waits for at most `grace`.
    pub(crate) fn terminate(mut self, grace: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + grace;
        if self.is_running()? {
            // `kill` is a builtin of the shell; the program of that name may be missing.
            let kill = format!("kill -TERM {}", self.child.id());
            Command::new("sh").args(["-c", &kill]).status()?;
        }
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            pause(POLL)?;
        }
        Err(format!("{} did not end within {grace:?} of SIGTERM", self.name).into())
    }

    /// CPU time so far, user and system, of all threads.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The command in parentheses may hold spaces; utime and stime are the 14th and 15th fields.
        let (_, rest) = stat.rsplit_once(')').ok_or("/proc/PID/stat has no command")?;
        let mut times = rest.split_whitespace().skip(11).map(str::parse::<u64>);
        let (Some(user), Some(system)) = (times.next(), times.next()) else {
            return Err("/proc/PID/stat has no times".into());
        };
        Ok((user? + system?) as f64 / TICKS_PER_SECOND)
    }

    /// Resident memory now.
    pub(crate) fn rss_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        Ok(kib.ok_or("/proc/PID/status has no VmRSS")?.parse::<u64>()? * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only for a child that has already ended.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// Reads lines. Lines that nobody asks for are dropped once a few wait, so that no child blocks on
/// a full pipe.
fn read_lines(stdout: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = sync_channel(16);
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(std::result::Result::ok) {
            let _full = sender.try_send(line);
        }
    });
    receiver
}
