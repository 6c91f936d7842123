//! The history of a run, as senders and backend saw it: every attempt to send, every span stored,
//! and a hash of both, with which two runs are compared.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Mutex,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
};

use tokio::time::Instant;

/// A span of an attempt, as it was sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    pub trace: u64,
    pub is_error: bool,
    pub is_probe: bool,
    /// The start in Unix nanoseconds.
    pub start: u64,
    pub end: u64,
    /// Whether its ids are invalid.
    pub is_bad: bool,
}

/// The sender's knowledge about an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The answer was OK.
    Taken,
    /// The answer was a refusal: no span of it may be anywhere.
    Refused,
    /// There was no answer: it may have been taken.
    Unknown,
}

/// One request sent once. Its spans have ids of their own, so that each stored span tells its
/// attempt: an id consists of the number of the attempt and that of the span in it.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub spans: Vec<Sent>,
    pub fate: Fate,
}

/// The journal of one run.
#[derive(Debug)]
pub struct Journal {
    start: Instant,
    is_printed: bool,
    hash: Mutex<u64>,
    violations: Mutex<Vec<String>>,
    attempts: Mutex<Vec<Attempt>>,
    stored: Mutex<BTreeMap<u64, u32>>,
    sets: Mutex<Vec<usize>>,
    /// The offset of the senders' clocks in nanoseconds.
    wall_offset: AtomicI64,
}

/// The id of the `index`th span of an attempt.
pub fn span_id(attempt: usize, index: usize) -> u64 {
    (attempt as u64 + 1) << 32 | index as u64
}

impl Journal {
    /// An empty journal. It prints its notes if `is_printed`.
    pub fn new(is_printed: bool) -> Self {
        Journal {
            start: Instant::now(),
            is_printed,
            // FNV-1a: the same in every process.
            hash: Mutex::new(0xcbf2_9ce4_8422_2325),
            violations: Mutex::default(),
            attempts: Mutex::default(),
            stored: Mutex::default(),
            sets: Mutex::default(),
            wall_offset: AtomicI64::new(0),
        }
    }

    /// Notes an event.
    pub fn note(&self, what: fmt::Arguments<'_>) {
        let line = format!("{:>9} {what}", self.start.elapsed().as_millis());
        if self.is_printed {
            println!("{line}");
        }
        let mut hash = self.hash.lock().expect("no panic");
        for byte in line.bytes() {
            *hash = (*hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// A hash of all events.
    pub fn hash(&self) -> u64 {
        *self.hash.lock().expect("no panic")
    }

    /// Checks an invariant, and notes `what` if it does not hold.
    pub fn check(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            let what = what();
            self.note(format_args!("VIOLATION {what}"));
            self.violations.lock().expect("no panic").push(what);
        }
    }

    /// The violated invariants.
    pub fn violations(&self) -> Vec<String> {
        self.violations.lock().expect("no panic").clone()
    }

    /// Notes that an attempt will be sent. Returns its number.
    pub fn begin(&self, spans: Vec<Sent>) -> usize {
        let mut attempts = self.attempts.lock().expect("no panic");
        attempts.push(Attempt { spans, fate: Fate::Unknown });
        attempts.len() - 1
    }

    /// Notes what the sender has learnt about an attempt.
    pub fn learn(&self, attempt: usize, fate: Fate) {
        self.note(format_args!("attempt {attempt} {fate:?}"));
        self.attempts.lock().expect("no panic")[attempt].fate = fate;
    }

    /// Notes that the backend has stored a span.
    pub fn store(&self, span: u64) {
        *self.stored.lock().expect("no panic").entry(span).or_default() += 1;
    }

    /// Whether the backend has stored a span.
    pub fn has_stored(&self, span: u64) -> bool {
        self.stored.lock().expect("no panic").contains_key(&span)
    }

    /// Notes that these policies are in force from now on.
    pub fn decide_by(&self, set: usize) {
        self.sets.lock().expect("no panic").push(set);
    }

    /// The sets of policies that have been in force.
    pub fn sets(&self) -> Vec<usize> {
        self.sets.lock().expect("no panic").clone()
    }

    /// All attempts so far.
    pub fn attempts(&self) -> Vec<Attempt> {
        self.attempts.lock().expect("no panic").clone()
    }

    /// How often each span was stored.
    pub fn stored(&self) -> BTreeMap<u64, u32> {
        self.stored.lock().expect("no panic").clone()
    }

    /// The time of the senders' clocks, in Unix nanoseconds.
    pub fn wall(&self) -> u64 {
        let elapsed = self.start.elapsed().as_nanos() as u64;
        (1_700_000_000_000_000_000 + elapsed).wrapping_add_signed(self.wall_offset.load(Relaxed))
    }

    /// Steps the senders' clocks.
    pub fn step_wall(&self, nanos: i64) {
        self.wall_offset.fetch_add(nanos, Relaxed);
    }
}
