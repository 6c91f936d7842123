//! The state machine of one partition of the topic: records in the order of their offsets, its
//! time, its window, and the offset that it may commit.
//!
//! [`Member`](super::Member) drives it, on one thread. Every call passes its decisions on to the
//! outbox before it returns, so the window holds exactly the undecided traces. Traces that are due
//! by the time of a record are decided before the record is taken in; if that is not possible, the
//! record has to wait ([`Taken::Later`]).

use super::{Settings, clock::RecordClock};
use crate::{
    budget::Holder,
    config::KafkaEncoding,
    metrics::FailedBecause,
    otlp::json,
    receiver::{Intake, Refusal, take::JSON_NEEDS},
    sampler::{Decided, Ingested, Origin, PartitionWindow, Progress, Scratch, Which},
    supervise::Task,
    trace::Trigger,
};

/// With limits, traces wait for the next tick of the process. Meanwhile records are taken in up to
/// this much later by their own time, in milliseconds.
const TICK_SLACK_MILLIS: u32 = 1_000;

/// Where records end before their partition does, the end has to be the same this often before the
/// wall clock counts, and counts less by this much: a record may be on its way.
const SAME_ENDS: u32 = 2;
const SAME_END_MILLIS: u64 = 1_000;

/// A record of the topic.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Its offset in its partition.
    pub offset: u64,
    /// Its timestamp in Unix milliseconds, if it has one.
    pub time: Option<u64>,
    /// One `ExportTraceServiceRequest`; `None` for a null record.
    pub payload: Option<&'a [u8]>,
}

/// What became of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It was taken in, or had been before.
    In,
    /// It was skipped for good, for this reason.
    PassedOver(String),
    /// It has to be offered again: nothing of it was taken in.
    Later(Why),
}

/// Why a record has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Traces that have to be decided before find no room on the way to the backend.
    Backend,
    /// Traces that have to be decided before wait for the next tick of limits.
    Tick,
    /// Memory is at its limit.
    Memory,
}

/// Where an owner begins to read a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// The first offset that it reads.
    pub first: u64,
    /// Nothing below this offset is delivered again.
    pub commit: u64,
    /// Whether the group has no such commit, and is to have it before anything else: its time.
    pub to_commit: Option<u64>,
}

/// An offset below which everything is decided and has been passed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// The offset.
    pub offset: u64,
    /// The time of the record there, or of the last one before it, in Unix milliseconds.
    pub time: u64,
}

/// The buffers that all partitions of a member share.
#[derive(Debug, Default)]
pub(super) struct Hands {
    scratch: Scratch,
    decided: Decided,
}

/// One partition.
#[derive(Debug)]
pub struct Partition {
    window: PartitionWindow,
    clock: RecordClock,
    commit: u64,
    next: u64,
    /// The offset and the timestamp of the last record that was taken in or passed over.
    last: Option<(u64, Option<u64>)>,
    /// Where the partition ended when somebody looked last.
    end: Option<u64>,
    /// Whether it was read to its end after the last record, as far as fetching can tell.
    is_at_end: bool,
    /// How often the end has been the same in a row.
    same_end: u32,
    /// Whether the next records lie above the commit.
    is_above: bool,
    /// The time up to which everything due was decided.
    decided_at: u64,
}

impl Partition {
    /// Begins to read a partition; `None` if the process has no window left.
    pub(super) fn open(intake: &Intake, start: Start) -> Option<Self> {
        let window = intake.sampler.open_partition()?;
        let mut partition = Partition {
            window,
            clock: RecordClock::default(),
            commit: start.commit,
            next: start.first,
            last: None,
            end: None,
            is_at_end: false,
            same_end: 0,
            is_above: false,
            decided_at: 0,
        };
        partition.pass_commit(intake, start.first);
        Some(partition)
    }

    /// Takes a record in. `wall` is the wall clock in Unix milliseconds: a record cannot be later.
    pub(super) fn take(
        &mut self,
        record: Record<'_>,
        (settings, wall): (&Settings, u64),
        intake: &Intake,
        hands: &mut Hands,
    ) -> Taken {
        if record.offset < self.next {
            return Taken::In;
        }
        self.is_at_end = false;
        // Without a timestamp, it counts as made now.
        let time = record.time.filter(|&time| time > 0).unwrap_or(wall);
        self.clock.record(time.min(wall));
        if let Some(why) = self.decide_due(intake, hands) {
            return Taken::Later(why);
        }
        self.pass_commit(intake, record.offset);
        let refusal = match self.take_in(record, settings, intake, hands) {
            Ok(ingested) => {
                intake.metrics.kafka().taken(&ingested);
                if let Some(outsized) = &ingested.outsized {
                    intake.log_outsized(outsized);
                }
                None
            }
            Err(Refusal::Memory) => return Taken::Later(Why::Memory),
            Err(refusal) => Some(refusal),
        };
        intake.metrics.kafka().record(refusal.is_none());
        self.next = record.offset + 1;
        self.last = Some((record.offset, record.time));
        refusal.map_or(Taken::In, |refusal| Taken::PassedOver(refusal.to_string()))
    }

    fn take_in(
        &mut self,
        record: Record<'_>,
        settings: &Settings,
        intake: &Intake,
        hands: &mut Hands,
    ) -> Result<Ingested, Refusal> {
        let &Settings { encoding, limit_bytes } = settings;
        let Some(payload) = record.payload else {
            return Err(Refusal::Malformed("the record is null".into()));
        };
        if payload.len() > limit_bytes {
            return Err(Refusal::TooLarge { limit_bytes });
        }
        if !intake.budget.admits() {
            return Err(Refusal::Memory);
        }
        let enter = |hands: &mut Hands| match encoding {
            KafkaEncoding::Protobuf => self.enter(record.offset, payload, intake, hands),
            KafkaEncoding::Json if payload.is_empty() => Ok(Ingested::default()),
            KafkaEncoding::Json => {
                let bytes = JSON_NEEDS * payload.len();
                let charge = intake.budget.try_hold(Holder::Receiving, bytes);
                let never = intake.budget.never_fits(bytes);
                let _charge = charge.ok_or(if never {
                    Refusal::NeverFits { needed_bytes: bytes }
                } else {
                    Refusal::Memory
                })?;
                self.enter(record.offset, &json::to_protobuf(payload)?, intake, hands)
            }
        };
        let ingested = intake.supervisor.contained_now(Task::Kafka, || enter(hands));
        ingested.unwrap_or_else(|panicked| {
            let taken = Ingested { accepted: hands.scratch.taken(), ..Ingested::default() };
            intake.metrics.kafka().taken(&taken);
            intake.metrics.failed(FailedBecause::Malformed, hands.decided.give_up());
            intake.pass_on(&mut hands.decided);
            *hands = Hands::default();
            Err(panicked.into())
        })
    }

    fn enter(
        &self,
        offset: u64,
        request: &[u8],
        intake: &Intake,
        Hands { scratch, decided }: &mut Hands,
    ) -> Result<Ingested, Refusal> {
        let prepared = intake.sampler.prepare(request, scratch);
        let prepared = prepared.map_err(|unwalked| intake.refusal_of(unwalked, request.len()))?;
        let origin = Origin {
            position: Some(offset),
            passed: None,
            partition: Some((self.window, self.clock.arrival())),
        };
        let (now, with) = (intake.clock.now(), (prepared, origin));
        let ingested = intake.sampler.take_in(now, request, with, scratch, decided);
        intake.pass_on(decided);
        Ok(ingested)
    }

    /// Notes that the partition ended at an offset at a moment of the wall clock.
    pub(super) fn confirm(&mut self, end: u64, asked_at: u64) {
        let is_same = self.end.replace(end) == Some(end);
        self.same_end = if is_same { self.same_end.saturating_add(1) } else { 0 };
        if self.next >= end {
            self.clock.confirm(asked_at);
        } else if self.is_at_end && self.same_end >= SAME_ENDS {
            // The offsets up to the end are markers of transactions, which are not records.
            self.clock.confirm(asked_at.saturating_sub(SAME_END_MILLIS));
        }
    }

    /// Notes that everything was fetched, or, while it pauses, that this is not known any more.
    pub(super) fn note_at_end(&mut self, is_at_end: bool) {
        self.is_at_end = is_at_end;
    }

    /// Decides the traces that are due by the partition's time. Returns why a due trace is left.
    pub(super) fn decide_due(&mut self, intake: &Intake, hands: &mut Hands) -> Option<Why> {
        if self.clock.time_unix() == self.decided_at {
            return None;
        }
        let time = self.clock.time();
        loop {
            let room = if self.is_above { intake.kept_room() } else { usize::MAX };
            if room == 0 {
                let is_due = intake.sampler.overdue_millis(self.window, time).is_some();
                return is_due.then_some(Why::Backend);
            }
            match self.decide(Which::Due, room, intake, hands) {
                Progress::Done => break,
                Progress::NoRoom => return Some(Why::Backend),
                Progress::More => {}
            }
        }
        match intake.sampler.overdue_millis(self.window, time) {
            Some(millis) if millis > TICK_SLACK_MILLIS => return Some(Why::Tick),
            Some(_) => {}
            None => self.decided_at = self.clock.time_unix(),
        }
        None
    }

    /// Decides the oldest sixteenth of the window early, since memory is short.
    pub(super) fn relieve(&mut self, intake: &Intake, hands: &mut Hands) {
        let Some((_, oldest)) = intake.sampler.lowest(self.window) else { return };
        let by = oldest.after(self.clock.arrival().since(oldest) / 16);
        loop {
            let room = intake.kept_room();
            let which = Which::ArrivedBy(by, Trigger::Memory);
            if room == 0 || self.decide(which, room, intake, hands) != Progress::More {
                return;
            }
        }
    }

    fn decide(
        &self,
        which: Which,
        room: usize,
        intake: &Intake,
        Hands { decided, .. }: &mut Hands,
    ) -> Progress {
        let (window, time) = (self.window, self.clock.time());
        let progress = intake.sampler.decide_partition(window, time, which, room, decided);
        intake.pass_on(decided);
        progress
    }

    fn pass_commit(&mut self, intake: &Intake, offset: u64) {
        if !self.is_above && offset >= self.commit {
            self.is_above = true;
            intake.sampler.pass_commit(self.window);
        }
    }

    /// The offset that may be committed once everything that was passed on is delivered, if it is
    /// higher than the commit that the partition began with.
    pub(super) fn mark(&self, intake: &Intake) -> Option<Commit> {
        let lowest = intake.sampler.lowest(self.window);
        let lowest = lowest.map(|(offset, at)| Commit { offset, time: self.clock.unix_of(at) });
        let mark = lowest.unwrap_or(Commit { offset: self.next, time: self.clock.record_unix() });
        (self.is_above && mark.offset > self.commit).then_some(mark)
    }

    /// Gives the partition up, without deciding its undecided traces. Returns the number of spans
    /// that leave with it.
    pub(super) fn close(self, intake: &Intake) -> u64 {
        intake.sampler.close_partition(self.window)
    }

    /// Whether a trace is undecided in its window.
    pub(super) fn is_undecided(&self, intake: &Intake) -> bool {
        intake.sampler.lowest(self.window).is_some()
    }

    /// The offset of the next record.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// The offset and the timestamp of the last record that was read, if one was.
    pub fn last(&self) -> Option<(u64, Option<u64>)> {
        self.last
    }

    /// Its time in Unix milliseconds; 0 before it is known.
    pub fn time(&self) -> u64 {
        self.clock.time_unix()
    }

    /// The records up to the end that are known and not taken in.
    pub fn lag(&self) -> u64 {
        self.end.map_or(0, |end| end.saturating_sub(self.next))
    }

    /// Goes on at a later offset, since the records before it are gone.
    pub(super) fn skip_to(&mut self, offset: u64) {
        self.next = self.next.max(offset);
    }
}
