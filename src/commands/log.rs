//! `tailwater log DIRECTORY`: reports the content of the logs of `[durability]`, and any damage.
//!
//! The command only reads. It may run beside the instance that uses the directory; records that are
//! being written at that moment may then look damaged.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::{Value, json};

use super::{Format, complain, print};
use crate::durability::{
    LogFiles, LogKind, ReadError, Record, RecordKind, RecordReader, VERSION, WrittenDecisions,
};

/// Options of `log`.
#[derive(Args, Debug)]
pub struct Options {
    /// The directory of [durability]
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
    /// The format of the report
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// The content of one file.
#[derive(Debug, Default)]
struct FileReport {
    name: String,
    base: u64,
    end: u64,
    bytes: u64,
    records: u64,
    damaged: u64,
}

/// The content of one log.
#[derive(Debug)]
struct LogReport {
    kind: LogKind,
    files: Vec<FileReport>,
    /// Files that are missing, or present twice.
    misplaced: u64,
}

/// The content of all logs.
#[derive(Debug, Default)]
struct Report {
    logs: Vec<LogReport>,
    watermark: u64,
    /// Requests at or above the watermark, and the bytes of their bodies.
    window: [u64; 2],
    /// Requests to the backend that are not settled: their spans and bytes, by position.
    undelivered: BTreeMap<u64, [u64; 2]>,
    /// Decisions: kept, dropped, and late spans of kept traces, counted by request and trace.
    decisions: [u64; 3],
}

/// Runs the command. Returns false if something is damaged or cannot be read.
pub fn run(options: &Options) -> bool {
    match Report::read(&options.directory) {
        Ok(report) => {
            let text = match options.format {
                Format::Text => report.text(),
                Format::Json => format!("{:#}\n", report.json(&options.directory)),
            };
            print(&text) && report.damaged() == 0
        }
        Err(problem) => {
            complain(&format!("error: {problem}\n"));
            false
        }
    }
}

impl Report {
    fn read(directory: &Path) -> Result<Self, ReadError> {
        let mut report = Report::default();
        // Decisions are read first, because they contain the watermark.
        for kind in [LogKind::Decisions, LogKind::Outbox, LogKind::Intake] {
            let found = LogFiles::list(directory, kind)?;
            let mut log = LogReport { kind, files: Vec::new(), misplaced: found.damaged };
            for info in &found.files {
                let mut reader = RecordReader::open(info, 0)?;
                let mut file = FileReport {
                    name: info.path.file_name().unwrap_or_default().to_string_lossy().into(),
                    base: info.base,
                    end: info.end,
                    bytes: info.len,
                    damaged: u64::from(info.is_damaged),
                    ..FileReport::default()
                };
                while let Some(record) = reader.next_record()? {
                    file.records += 1;
                    file.damaged += u64::from(!report.add(&record));
                }
                file.damaged += reader.damaged();
                log.files.push(file);
            }
            report.logs.insert(0, log);
        }
        Ok(report)
    }

    /// Adds a record. Returns false if its body does not match its kind.
    fn add(&mut self, record: &Record<'_>) -> bool {
        let Record { header, body } = record;
        let number = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        match header.kind {
            RecordKind::Received if header.position >= self.watermark => {
                self.window[0] += 1;
                self.window[1] += body.len() as u64;
            }
            RecordKind::Received => {}
            RecordKind::Queued => {
                let Some(spans) = number(body) else { return false };
                self.undelivered.insert(header.position, [spans, body.len() as u64 - 8]);
            }
            RecordKind::Settled => {
                let settled: BTreeSet<u64> = body.chunks_exact(8).filter_map(number).collect();
                self.undelivered.retain(|position, _| !settled.contains(position));
            }
            RecordKind::Watermark => {
                let Some(watermark) = number(body) else { return false };
                self.watermark = self.watermark.max(watermark);
            }
            RecordKind::Decisions => {
                let Some(written) = WrittenDecisions::decode(body) else { return false };
                for decided in &written.decided {
                    self.decisions[usize::from(!decided.decision.verdict.kept)] += 1;
                }
                self.decisions[2] += written.followed.len() as u64;
            }
        }
        true
    }

    fn damaged(&self) -> u64 {
        self.logs.iter().map(LogReport::damaged).sum()
    }

    fn undelivered(&self) -> [u64; 3] {
        let sum = |index: usize| self.undelivered.values().map(|request| request[index]).sum();
        [self.undelivered.len() as u64, sum(0), sum(1)]
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let [requests, request_bytes] = self.window;
        let [queued, spans, queued_bytes] = self.undelivered();
        let [kept, dropped, late] = self.decisions;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "watermark {}: {requests} requests ({request_bytes} bytes) at or above it\n\
             {queued} requests ({spans} spans, {queued_bytes} bytes) to the backend are not \
             delivered\n\
             {kept} traces decided as kept, {dropped} as dropped; late spans followed {late} times",
            self.watermark
        );
        for log in &self.logs {
            let _ = writeln!(
                text,
                "\n{}: {} files, {} bytes, {} records, {} damaged",
                log.kind.as_str(),
                log.files.len(),
                log.sum(|file| file.bytes),
                log.sum(|file| file.records),
                log.damaged()
            );
            if log.misplaced > 0 {
                let _ = writeln!(text, "  {} files are missing or duplicated", log.misplaced);
            }
            for FileReport { name, base, end, bytes, records, damaged } in &log.files {
                let _ = writeln!(
                    text,
                    "  {name}: positions {base} to {end}, {bytes} bytes, {records} records, \
                     {damaged} damaged"
                );
            }
        }
        text
    }

    fn json(&self, directory: &Path) -> Value {
        let [queued, spans, queued_bytes] = self.undelivered();
        let [kept, dropped, late] = self.decisions;
        let logs = self.logs.iter().map(|log| {
            let files = log.files.iter().map(|file| {
                let FileReport { name, base, end, bytes, records, damaged } = file;
                json!({
                    "name": name, "base": base, "end": end, "bytes": bytes, "records": records,
                    "damaged": damaged,
                })
            });
            json!({
                "log": log.kind.as_str(),
                "bytes": log.sum(|file| file.bytes),
                "records": log.sum(|file| file.records),
                "damaged": log.damaged(),
                "files": files.collect::<Vec<_>>(),
            })
        });
        json!({
            "directory": directory.to_string_lossy(),
            "version": VERSION,
            "watermark": self.watermark,
            "window": { "requests": self.window[0], "bytes": self.window[1] },
            "undelivered": { "requests": queued, "spans": spans, "bytes": queued_bytes },
            "decisions": { "kept": kept, "dropped": dropped, "late": late },
            "damaged": self.damaged(),
            "logs": logs.collect::<Vec<_>>(),
        })
    }
}

impl LogReport {
    fn sum(&self, of: impl Fn(&FileReport) -> u64) -> u64 {
        self.files.iter().map(of).sum()
    }

    fn damaged(&self) -> u64 {
        self.misplaced + self.sum(|file| file.damaged)
    }
}
