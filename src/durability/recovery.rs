//! Reads the logs of an earlier process: the watermark and the outbox when the logs are opened,
//! then the decisions, one after the other. The caller then replays the intake log from the
//! watermark on.
//!
//! Decisions are read twice, because there may be more of them than fit into memory: first for the
//! watermark and the names of policies, then for the decision cache, which is bounded, and for the
//! spans that a replay skips. Of these spans, only those above the watermark are remembered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    ReadError,
    decided::{WrittenDecision, WrittenDecisions},
    reader::{LogFileInfo, LogFiles, Record, RecordReader},
    record::RecordKind,
};
use crate::sampler::Passed;

/// A request of the outbox.
#[derive(Debug)]
pub(crate) struct Queued {
    /// Its position in the outbox.
    pub(crate) position: u64,
    /// The encoded request.
    pub(crate) body: Vec<u8>,
    /// The number of its spans.
    pub(crate) spans: u64,
}

/// The state that an earlier process has left in the logs.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    /// The watermark of the intake log.
    pub(crate) watermark: u64,
    /// The window's time when that process ended, in milliseconds.
    pub(crate) time: u64,
    /// Requests that were not delivered, in order.
    pub(crate) queued: Vec<Queued>,
    /// The number of records that could not be read so far.
    pub(crate) damaged: u64,
    /// The value of `Durability::covered` for the existing files.
    pub(super) covered: VecDeque<(u64, u64, u64)>,
    /// The names of the policies of the decisions.
    names: BTreeSet<String>,
    decisions: Vec<LogFileInfo>,
    intake: Vec<LogFileInfo>,
    /// The highest position of the intake log that any record names.
    named: u64,
    intake_end: u64,
}

impl Recovered {
    pub(super) fn read(
        intake: &LogFiles,
        outbox: &LogFiles,
        decisions: &LogFiles,
    ) -> Result<Self, ReadError> {
        let mut recovered = Recovered {
            intake: intake.files.clone(),
            intake_end: intake.end(),
            decisions: decisions.files.clone(),
            ..Recovered::default()
        };
        for files in [intake, outbox, decisions] {
            let headers = files.files.iter().filter(|file| file.is_damaged).count();
            recovered.damaged += files.damaged + headers as u64;
        }
        recovered.scan_decisions()?;
        recovered.read_outbox(&outbox.files)?;
        recovered.find_time()?;
        recovered.find_first_file();
        Ok(recovered)
    }

    fn scan_decisions(&mut self) -> Result<(), ReadError> {
        for file in &self.decisions {
            let mut reader = RecordReader::open(file, 0)?;
            let (mut highest, mut last) = (0, 0);
            while let Some(Record { header, body }) = reader.next_record()? {
                last = header.time.max(last);
                match (header.kind, WrittenDecisions::decode(body)) {
                    (RecordKind::Watermark, _) if body.len() == 8 => {
                        self.watermark = self.watermark.max(number(body));
                    }
                    (RecordKind::Decisions, Some(written)) => {
                        highest = highest.max(written.highest_position());
                        self.names.extend(written.names.into_values());
                    }
                    _ => self.damaged += 1,
                }
            }
            self.damaged += reader.damaged();
            self.named = self.named.max(highest).max(self.watermark);
            self.time = self.time.max(last);
            self.covered.push_back((file.end, highest, last));
        }
        Ok(())
    }

    /// Reads the decisions again, oldest first. `each` gets the decisions of one record. Returns
    /// the spans that a replay skips.
    ///
    /// # Errors
    /// [`ReadError`].
    pub(crate) fn decisions(
        &self,
        mut each: impl FnMut(&WrittenDecisions),
    ) -> Result<Passed, ReadError> {
        let mut passed = Passed::default();
        for file in &self.decisions {
            let mut reader = RecordReader::open(file, 0)?;
            while let Some(Record { body, .. }) = reader.next_record()? {
                let Some(written) = WrittenDecisions::decode(body) else { continue };
                for WrittenDecision { trace_id, below, at, .. } in &written.decided {
                    if *below > self.watermark || at.is_some_and(|at| at >= self.watermark) {
                        passed.decided(*trace_id, *below, *at);
                    }
                }
                for (trace_id, at, _) in &written.followed {
                    if *at >= self.watermark {
                        passed.followed(*trace_id, *at);
                    }
                }
                each(&written);
            }
        }
        Ok(passed)
    }

    fn read_outbox(&mut self, files: &[LogFileInfo]) -> Result<(), ReadError> {
        let mut queued = BTreeMap::new();
        for file in files {
            let mut reader = RecordReader::open(file, 0)?;
            while let Some(Record { header, body }) = reader.next_record()? {
                match (header.kind, body.split_at_checked(8)) {
                    (RecordKind::Queued, Some((spans, body))) => {
                        let (position, spans) = (header.position, number(spans));
                        queued.insert(position, Queued { position, body: body.to_vec(), spans });
                    }
                    (RecordKind::Settled, _) => {
                        for position in body.chunks_exact(8).map(number) {
                            queued.remove(&position);
                        }
                    }
                    _ => self.damaged += 1,
                }
                self.time = self.time.max(header.time);
            }
            self.damaged += reader.damaged();
        }
        self.queued = queued.into_values().collect();
        Ok(())
    }

    /// The time of the last request, which is in the last file that has one.
    fn find_time(&mut self) -> Result<(), ReadError> {
        for file in self.intake.iter().rev() {
            let mut reader = RecordReader::open(file, self.watermark)?;
            let mut last = None;
            while let Some(Record { header, .. }) = reader.next_record()? {
                last = last.max(Some(header.time));
            }
            if let Some(last) = last {
                self.time = self.time.max(last);
                break;
            }
        }
        Ok(())
    }

    /// Counts damage if the file that should contain the watermark is missing.
    fn find_first_file(&mut self) {
        let first = self.intake.first().map(|file| file.base);
        self.damaged += u64::from(first.is_some_and(|first| first > self.watermark));
        self.intake.retain(|file| file.end > self.watermark);
    }

    /// The names of the policies that have decided.
    pub(crate) fn policies(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// The files of the intake log to replay.
    pub(crate) fn intake(&self) -> &[LogFileInfo] {
        &self.intake
    }

    /// A position above all that earlier processes can have used.
    pub(super) fn intake_next(&self) -> u64 {
        self.intake_end.max(self.named).max(self.watermark)
    }

    pub(super) fn unsettled(&self) -> BTreeSet<u64> {
        self.queued.iter().map(|queued| queued.position).collect()
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
