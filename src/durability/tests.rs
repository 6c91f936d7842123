//! The reader against damage, and the writer against a full and a failing disk.

mod power;
pub(super) mod tap;

use std::{
    collections::BTreeMap,
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use proptest::prelude::*;

use super::{
    Durability, Keeper, Pending, Received, Settings, WrittenDecision, WrittenDecisions,
    log::{Entry, Log, Unwritten},
    reader::{LogFiles, ReadError, RecordReader},
    record::{FILE_HEADER_BYTES, FileHeader, LogKind, RecordKind, VERSION},
};

use crate::{
    clock::Clock,
    decisions::{Decision, DecisionRecord},
    metrics::Metrics,
    policy::{PolicyId, Verdict},
    sampler::Decided,
    trace::{Randomness, Threshold, TraceId, Trigger},
};

/// A directory that is removed when it is dropped.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let name = format!("tailwater-durability-{}-{:x}", std::process::id(), fastrand::u64(..));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("created");
        Directory(path)
    }

    fn log(&self, bytes_max: u64) -> Log {
        Log::new(LogKind::Intake, &self.0, bytes_max, &[], 0)
    }

    fn files(&self) -> LogFiles {
        LogFiles::list(&self.0, LogKind::Intake).expect("readable")
    }

    /// All sound records by position, and the number of damaged places.
    fn read(&self) -> (BTreeMap<u64, Vec<u8>>, u64) {
        let files = self.files();
        let mut damaged = files.damaged;
        let mut records = BTreeMap::new();
        for file in &files.files {
            damaged += u64::from(file.is_damaged);
            let mut reader = RecordReader::open(file, 0).expect("opened");
            while let Some(record) = reader.next_record().expect("read") {
                records.insert(record.header.position, record.body.to_vec());
            }
            damaged += reader.damaged();
        }
        (records, damaged)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn append(log: &Log, body: &[u8]) -> Result<u64, Unwritten> {
    let (kind, flags) = (RecordKind::Received, [0, 1, 0]);
    let entry =
        Entry { kind, flags, time: 7, body: &[&body[..body.len() / 2], &body[body.len() / 2..]] };
    log.append(&entry).map(|range| range.start)
}

/// Writes records of these lengths to one file, which is cut after the last record. Returns the
/// records by position, the file's bytes and its path.
fn written(directory: &Directory, lengths: &[usize]) -> (BTreeMap<u64, Vec<u8>>, Vec<u8>, PathBuf) {
    let log = directory.log(1 << 30);
    let mut records = BTreeMap::new();
    for (number, &length) in lengths.iter().enumerate() {
        let body: Vec<u8> = (0..length).map(|at| (at * 7 + number + 1) as u8).collect();
        records.insert(append(&log, &body).expect("written"), body);
    }
    let file = directory.files().files.remove(0);
    let mut bytes = fs::read(&file.path).expect("read");
    bytes.truncate(log.next() as usize);
    fs::write(&file.path, &bytes).expect("written");
    (records, bytes, file.path)
}

const LENGTHS: [usize; 5] = [0, 3, 40, 8, 29];

#[test]
fn each_byte_may_be_flipped() {
    let directory = Directory::new();
    let (records, bytes, path) = written(&directory, &LENGTHS);
    assert_eq!(directory.read(), (records.clone(), 0));
    let is_padding = |at: usize| {
        let end = |(start, body): (&u64, &Vec<u8>)| *start as usize + 32 + body.len();
        at >= FILE_HEADER_BYTES
            && records.range(..=at as u64).next_back().is_some_and(|record| at >= end(record))
    };
    for at in 0..bytes.len() {
        for bit in [0, 7] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            fs::write(&path, &damaged).expect("written");
            let (read, count) = directory.read();
            assert!(read.iter().all(|(at, body)| records.get(at) == Some(body)));
            let lost = records.len() - read.len();
            match is_padding(at) {
                true => assert_eq!(lost, 0, "byte {at}"),
                false => assert!(lost <= 1 && count >= 1, "byte {at}: {lost} lost, {count} told"),
            }
        }
    }
}

#[test]
fn a_file_may_end_anywhere() {
    let directory = Directory::new();
    let (records, bytes, path) = written(&directory, &LENGTHS);
    for length in 0..bytes.len() {
        fs::write(&path, &bytes[..length]).expect("written");
        let (read, count) = directory.read();
        let whole = records.iter().filter(|(at, body)| **at as usize + 32 + body.len() <= length);
        let whole: BTreeMap<_, _> = whole.map(|(at, body)| (*at, body.clone())).collect();
        assert_eq!(read, whole, "{length} bytes");
        let is_torn = records.iter().any(|(at, body)| {
            let (start, end) = (*at as usize, *at as usize + 32 + body.len());
            start < length && length < end
        });
        let is_header_torn = (1..FILE_HEADER_BYTES).contains(&length);
        assert_eq!(count > 0, is_torn && !is_header_torn, "{length} bytes: {count}");
    }
}

#[test]
fn a_file_may_be_missing_or_there_twice() {
    let directory = Directory::new();
    let log = directory.log(1 << 30);
    let bodies: Vec<_> = (0..8).map(|number| vec![number + 1; 300_000]).collect();
    let written: BTreeMap<u64, Vec<u8>> =
        bodies.iter().map(|body| (append(&log, body).expect("written"), body.clone())).collect();
    let files = directory.files().files;
    assert_eq!((files.len(), directory.read()), (3, (written.clone(), 0)));
    let copy = directory.0.join("intake-00000000ffffffff.log");
    fs::copy(&files[1].path, &copy).expect("copied");
    assert_eq!(directory.read(), (written.clone(), 1));
    fs::remove_file(copy).expect("removed");
    fs::remove_file(&files[1].path).expect("removed");
    let (read, damaged) = directory.read();
    let is_left = |at: &u64| !(files[1].base..files[1].end).contains(at);
    let left: Vec<_> = written.keys().filter(|at| is_left(at)).collect();
    assert_eq!((read.keys().collect::<Vec<_>>(), damaged), (left, 1));
}

#[test]
fn an_unknown_version_is_named() {
    let directory = Directory::new();
    let (_, mut bytes, path) = written(&directory, &[10]);
    for unknown in [0, VERSION + 1, u32::MAX] {
        let header = FileHeader { version: unknown, kind: 0, base: 0, capacity: 1 << 20 };
        bytes[..FILE_HEADER_BYTES].copy_from_slice(&header.encode());
        fs::write(&path, &bytes).expect("written");
        let error = LogFiles::list(&directory.0, LogKind::Intake).expect_err("unknown");
        assert!(matches!(&error, ReadError::Version { version, .. } if *version == unknown));
        let named = format!("intake-0000000000000000.log has version {unknown} of the format");
        assert!(error.to_string().contains(&named), "{error}");
    }
}

#[test]
fn a_full_log_takes_records_again_once_files_are_freed() {
    let directory = Directory::new();
    let log = directory.log(3 << 20);
    let mut last = 0;
    let fill = |last: &mut u64| loop {
        match append(&log, &[1; 100_000]) {
            Ok(position) => {
                assert!(position > *last || *last == 0, "positions only grow");
                *last = position;
            }
            Err(problem) => return problem,
        }
    };
    assert_eq!((fill(&mut last), log.refuses()), (Unwritten::Full, Some(Unwritten::Full)));
    assert!(log.allocated() <= 3 << 20);
    log.release(1 << 20);
    assert_eq!(log.refuses(), None);
    let before = last;
    assert_eq!(fill(&mut last), Unwritten::Full);
    assert!(last > before && log.errors() == 0);
    let on_disk: u64 = directory.files().files.iter().map(|file| file.len).sum();
    assert_eq!(on_disk, log.allocated());
    log.release(u64::MAX);
    assert_eq!(directory.files().files.len(), 1, "the file that takes records stays");
}

#[test]
fn old_records_of_a_file_that_is_used_again_are_no_damage() {
    let directory = Directory::new();
    let log = directory.log(1 << 30);
    let body = |number: usize| vec![(number % 250) as u8 + 1; 50_000 + number % 3 * 40_000];
    let mut written = BTreeMap::new();
    for number in 0..900 {
        let position = append(&log, &body(number)).expect("written");
        written.insert(position, body(number));
        // About 20 MiB stay, so that freed files are kept and used again.
        log.release(position.saturating_sub(20 << 20));
    }
    let on_disk = fs::read_dir(&directory.0).expect("readable").count();
    let files = directory.files();
    assert!(on_disk > files.files.len(), "a freed file waits to be used again");
    let left = written.split_off(&files.files[0].base);
    assert_eq!(directory.read(), (left.clone(), 0));
    // The last record is torn: the reader can tell it from older contents of the file.
    let last = files.files.last().expect("a file");
    let (at, _) = left.last_key_value().expect("a record");
    let mut bytes = fs::read(&last.path).expect("read");
    bytes[(at - last.base) as usize + 100] ^= 1;
    fs::write(&last.path, bytes).expect("written");
    let (read, damaged) = directory.read();
    assert_eq!((read.len(), damaged), (left.len() - 1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_failing_disk_is_tried_again_after_a_pause() {
    let directory = Directory::new();
    let log = directory.log(1 << 30);
    let before = append(&log, &[1; 600_000]).expect("written");
    fs::remove_dir_all(&directory.0).expect("removed");
    assert_eq!(append(&log, &[2; 600_000]), Err(Unwritten::Failing));
    fs::create_dir(&directory.0).expect("created");
    assert_eq!(append(&log, &[3; 10]), Err(Unwritten::Failing), "at once");
    assert_eq!((log.refuses(), log.errors()), (Some(Unwritten::Failing), 1));
    tokio::time::advance(Duration::from_millis(1_001)).await;
    assert_eq!(log.refuses(), None);
    let after = append(&log, &[4; 10]).expect("written");
    assert!(after > before + 600_000);
    assert_eq!(directory.read().0, BTreeMap::from([(after, vec![4; 10])]));
}

#[tokio::test(start_paused = true)]
async fn a_file_whose_sync_failed_is_never_synced_again() {
    let directory = Directory::new();
    let log = directory.log(1 << 30);
    tap::watch(&directory.0, Some(2));
    let first = append(&log, &[1; 10]).expect("written");
    assert_eq!(log.sync(), Ok(true));
    append(&log, &[2; 10]).expect("written");
    let reserved = log.reserve(10).expect("room");
    assert_eq!(log.sync(), Err(Unwritten::Failing));
    // Written while the sync was failing.
    let (kind, flags) = (RecordKind::Received, [0; 3]);
    log.write(&reserved, &Entry { kind, flags, time: 7, body: &[&[3; 10]] }).expect("written");
    assert_eq!(log.sync(), Ok(false));
    tokio::time::advance(Duration::from_millis(1_001)).await;
    let after = append(&log, &[4; 10]).expect("written");
    assert_eq!(log.sync(), Ok(true));
    let syncs = tap::events(&directory.0);
    let syncs: Vec<_> = syncs
        .iter()
        .filter_map(|event| match event {
            tap::Event::Synced { path, .. } => Some((path, true)),
            tap::Event::Lost { path } => Some((path, false)),
            _ => None,
        })
        .collect();
    let files = directory.files().files;
    let expected = [(&files[0].path, true), (&files[0].path, false), (&files[1].path, true)];
    assert_eq!(syncs, expected);
    let (read, _) = directory.read();
    assert!(read.contains_key(&first) && read.contains_key(&after), "{read:?}");
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_fails_for_long_does_not_fill_the_log() {
    let directory = Directory::new();
    let log = directory.log(4 << 20);
    tap::watch(&directory.0, Some(1));
    let mut last = 0;
    for _ in 0..100 {
        let position = append(&log, &[1; 10]).expect("written");
        assert!(position > last || last == 0, "positions only grow");
        last = position;
        assert_eq!(log.sync(), Err(Unwritten::Failing));
        assert_eq!(append(&log, &[1; 10]), Err(Unwritten::Failing));
        tokio::time::advance(Duration::from_millis(1_001)).await;
    }
    tap::watch(&directory.0, None);
    append(&log, &[2; 10]).expect("written");
    assert_eq!(log.sync(), Ok(true));
    let on_disk: u64 = directory.files().files.iter().map(|file| file.len).sum();
    assert_eq!((on_disk, log.errors()), (log.allocated(), 100));
    assert!(on_disk <= 2 << 20, "{on_disk}");
}

/// Scenario: an error; afterwards the records fill a file in less than a second, again and again.
/// Guarantees: the log still says that the error is over.
#[tokio::test(start_paused = true)]
async fn the_end_of_an_error_is_logged_however_fast_files_fill() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let writer = Told(Arc::clone(&told));
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    let _subscriber = tracing::subscriber::set_default(subscriber);
    let directory = Directory::new();
    let log = directory.log(256 << 20);
    tap::watch(&directory.0, Some(1));
    append(&log, &[1; 10]).expect("written");
    assert_eq!(log.sync(), Err(Unwritten::Failing));
    tap::watch(&directory.0, None);
    let is_over = || {
        let told = told.lock().expect("no panic");
        String::from_utf8_lossy(&told).contains("the disk accepts records again")
    };
    tokio::time::advance(Duration::from_millis(1_001)).await;
    let body = vec![2; 600 << 10];
    for tenth in 0..15 {
        let position = append(&log, &body).expect("written");
        assert_eq!(log.sync(), Ok(true));
        log.release(position);
        assert_eq!(is_over(), tenth > 10, "after {tenth} tenths of a second");
        tokio::time::advance(Duration::from_millis(100)).await;
    }
}

/// Keeps what is logged.
#[derive(Clone)]
struct Told(Arc<Mutex<Vec<u8>>>);

impl io::Write for Told {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_sync_that_fails_fails_all_that_was_written_before_it_ended() {
    let directory = Directory::new();
    let settings = Settings {
        directory: directory.0.clone(),
        bytes_max: 256 << 20,
        sync_interval: None,
        decisions_kept_millis: 0,
    };
    let durability = Arc::new(Durability::open(settings).expect("opens").0);
    let metrics = Arc::new(Metrics::new(&[]));
    let keeper = Keeper::new(&durability, &metrics, Duration::ZERO);
    let clock = Clock::start();
    let receive = || {
        let since = keeper.since();
        let received = Received { flags: [0; 3], body: &[1; 10] };
        durability.receive(received, 7).map(|underway| (since, underway))
    };
    let (since, _underway) = receive().expect("written");
    tap::watch(&directory.0, Some(1));
    keeper.round(&clock);
    // The writer was held up between its write and its ticket.
    let late = keeper.ticket(since);
    tap::watch(&directory.0, None);
    assert_eq!(keeper.outcome(late), None);
    keeper.round(&clock);
    assert_eq!(keeper.outcome(late), Some(false));
    let ticket = keeper.ticket(keeper.since());
    keeper.round(&clock);
    assert_eq!(keeper.outcome(ticket), Some(true));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever overwrites a part of a file, the reader returns only records that were written, and
    /// every record that was not touched.
    #[test]
    fn damage_costs_only_what_it_touches(
        lengths in prop::collection::vec(0..200_usize, 1..20),
        places in prop::collection::vec(
            (any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 1..60)),
            1..6,
        ),
    ) {
        let directory = Directory::new();
        let (records, mut bytes, path) = written(&directory, &lengths);
        let mut touched = Vec::new();
        for (place, with) in &places {
            let at = place.index(bytes.len());
            let end = bytes.len().min(at + with.len());
            bytes[at..end].copy_from_slice(&with[..end - at]);
            touched.push(at..end);
        }
        fs::write(&path, &bytes).expect("written");
        // A header of a newer version would need a checksum of its own.
        let (read, _) = directory.read();
        for (at, body) in &read {
            prop_assert_eq!(records.get(at), Some(body));
        }
        for (at, body) in &records {
            let of_record = *at as usize..*at as usize + 32 + body.len();
            let meets = |t: &std::ops::Range<usize>| {
                t.start < of_record.end && of_record.start < t.end
            };
            let is_touched = touched.iter().any(meets);
            prop_assert!(is_touched || read.contains_key(at));
        }
    }

    /// No bytes make the reader of decisions panic.
    #[test]
    fn decisions_of_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let written = WrittenDecisions::decode(&bytes);
        prop_assert!(written.is_none_or(|written| written.decided.len() < 300));
    }

    /// Decisions are read back as they were written, and a part of a body is not accepted as a
    /// whole.
    #[test]
    fn decisions_are_read_back(
        decisions in prop::collection::vec(
            (
                any::<[u8; 16]>(), 0..=1_u64 << 56, any::<bool>(), 0..2_u16, 0..5_usize,
                prop::option::of(0..1_u64 << 56),
            ),
            0..20,
        ),
        (below, at) in (any::<u32>(), prop::option::of(any::<u32>())),
        late in prop::collection::vec((any::<[u8; 16]>(), any::<u64>()), 0..5),
        cut in any::<prop::sample::Index>(),
    ) {
        let (below, at) = (u64::from(below), at.map(u64::from));
        let mut decided = Decided::default();
        (decided.taken_below, decided.position) = (Some(below), at);
        let mut expected = Vec::new();
        for (id, threshold, kept, policy, trigger, randomness) in decisions {
            let verdict = Verdict {
                kept,
                policy: PolicyId(policy),
                threshold: Threshold::from_bits(threshold),
            };
            let explicit_randomness = randomness.map(Randomness);
            let trigger = Trigger::ALL[trigger];
            let decision = Decision { verdict, trigger, explicit_randomness };
            let trace_id = TraceId(id);
            decided.decisions.records.push(record(trace_id, decision));
            expected.push(WrittenDecision { trace_id, decision, bytes: 70, below, at });
        }
        decided.late_kept = late.iter().map(|(id, bytes)| (TraceId(*id), *bytes)).collect();
        let mut pending = Pending::default();
        pending.add(&decided);
        let names = ["errors".to_owned(), "half".to_owned()];
        let body = [&pending.names(&names)[..], pending.groups()].concat();
        let written = WrittenDecisions::decode(&body).expect("a body");
        let named = |decision: &WrittenDecision| {
            let id = decision.decision.verdict.policy.0;
            written.names.get(&id) == Some(&names[usize::from(id)])
        };
        prop_assert!(written.decided.iter().all(named));
        prop_assert_eq!(written.decided, expected);
        let no_request = u64::MAX;
        let followed =
            late.iter().map(|(id, bytes)| (TraceId(*id), at.unwrap_or(no_request), *bytes));
        let followed: Vec<_> = followed.collect();
        prop_assert_eq!(written.followed, followed);
        let part = WrittenDecisions::decode(&body[..cut.index(body.len())]);
        prop_assert!(part.is_none_or(|part| part.followed.is_empty()));
    }
}

fn record(trace_id: TraceId, decision: Decision) -> DecisionRecord {
    DecisionRecord {
        trace_id,
        decision,
        randomness: Randomness(0),
        spans: 3,
        bytes: 70,
        duration_nanos: 0,
        lag_millis: 0,
        root_received: false,
        matched: 0..0,
        shadowed: 0..0,
    }
}
