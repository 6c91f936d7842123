//! The decision log: the details of the last decisions, for people who ask why a trace was kept or
//! dropped.
//!
//! It is a queue of chunks of up to 256 decisions, the number made in one hold of a lock. The
//! oldest chunks are removed when the log exceeds the configured number of traces or a sixteenth of
//! the memory limit. The limit in bytes is needed because a record takes 104 bytes and two for each
//! policy that matched: with hundreds of policies the log would take many megabytes, and a log must
//! not keep spans out. The overhead of a chunk is counted too.
//!
//! The decider pushes after each hold of a lock, connection tasks when their request fills a trace.
//! The mutex is held only to move a few pointers. A look-up copies the references under the mutex
//! and searches without it, which takes about a millisecond for the whole log. A cache library
//! (`moka`, used until 2026-11) does not report the size of its own tables, and a queue is enough
//! for a log.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Decision, Tap};
use crate::{
    budget::{Budget, DECISION_LOG_PART, Hold, Holder, LOGGED_TRACE_BYTES},
    policy::{PolicyId, Shadowed},
    trace::{Randomness, TraceId},
};

/// The most decisions in a chunk.
const CHUNK_TRACES: usize = 256;

/// The bytes of a chunk in addition to its decisions: its struct with the reference counts, its
/// place in the queue (whose capacity may be twice its length), and the headers of three
/// allocations.
const CHUNK_BYTES: usize = size_of::<Chunk>() + 16 + 2 * size_of::<Arc<Chunk>>() + 3 * 16;

/// One decision with its details.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecisionRecord {
    /// The trace.
    pub trace_id: TraceId,
    /// The decision.
    pub decision: Decision,
    /// The randomness that was compared with the threshold, explicit or not.
    pub randomness: Randomness,
    /// The number of spans at the decision.
    pub spans: u32,
    /// Their encoded bytes.
    pub bytes: u32,
    /// Latest end minus earliest start.
    pub duration_nanos: u64,
    /// Milliseconds from the time at which the trace was due to its decision.
    pub lag_millis: u32,
    /// Whether a span without a parent had arrived by then.
    pub root_received: bool,
    /// The policies that matched, as a range of [`Decisions::matched`].
    pub matched: Range<u32>,
    /// The shadow policies that matched, as a range of [`Decisions::shadowed`].
    pub shadowed: Range<u32>,
}

const _: () = assert!(size_of::<DecisionRecord>() == LOGGED_TRACE_BYTES, "`check` counts with it");

impl DecisionRecord {
    fn logged_bytes(&self) -> usize {
        size_of::<Self>()
            + self.matched.len() * size_of::<PolicyId>()
            + self.shadowed.len() * size_of::<Shadowed>()
    }
}

/// The decisions made in one hold of a lock.
#[derive(Clone, Debug, Default)]
pub struct Decisions {
    /// The records, in the order in which they were made.
    pub records: Vec<DecisionRecord>,
    /// The policies that matched, for all records in order.
    pub matched: Vec<PolicyId>,
    /// The shadow policies that matched, for all records in order.
    pub shadowed: Vec<Shadowed>,
}

impl Decisions {
    /// The policies that matched one of the records.
    pub fn matched(&self, record: &DecisionRecord) -> &[PolicyId] {
        &self.matched[record.matched.start as usize..record.matched.end as usize]
    }

    /// The shadow policies that matched one of the records.
    pub fn shadowed(&self, record: &DecisionRecord) -> &[Shadowed] {
        &self.shadowed[record.shadowed.start as usize..record.shadowed.end as usize]
    }

    /// One of the records as an answer for people.
    pub(crate) fn logged(&self, record: &DecisionRecord, decided_at: u64) -> Logged {
        let shadow_matched = self.shadowed(record).iter().map(|shadowed| shadowed.policy).collect();
        let matched = self.matched(record).to_vec();
        Logged { record: record.clone(), matched, shadow_matched, decided_at }
    }

    fn part(&self, records: Range<usize>) -> DecisionsPart<'_> {
        let records = &self.records[records];
        let whole = |range: fn(&DecisionRecord) -> &Range<u32>| {
            let start = records.first().map_or(0, |record| range(record).start);
            start..records.last().map_or(start, |record| range(record).end)
        };
        let (matched, shadowed) =
            (whole(|record| &record.matched), whole(|record| &record.shadowed));
        let places = |range: &Range<u32>| range.start as usize..range.end as usize;
        DecisionsPart {
            records,
            starts: [matched.start, shadowed.start],
            matched: &self.matched[places(&matched)],
            shadowed: &self.shadowed[places(&shadowed)],
        }
    }
}

/// Consecutive records and the policies that matched for them.
struct DecisionsPart<'a> {
    records: &'a [DecisionRecord],
    /// The start of `matched` and `shadowed` in the complete lists.
    starts: [u32; 2],
    matched: &'a [PolicyId],
    shadowed: &'a [Shadowed],
}

impl DecisionsPart<'_> {
    fn bytes(&self) -> usize {
        CHUNK_BYTES
            + size_of_val(self.records)
            + size_of_val(self.matched)
            + size_of_val(self.shadowed)
    }

    /// Allocated with exactly the size of its contents.
    fn to_decisions(&self) -> Decisions {
        let mut records = self.records.to_vec();
        for record in &mut records {
            for (range, start) in
                [&mut record.matched, &mut record.shadowed].into_iter().zip(self.starts)
            {
                *range = range.start - start..range.end - start;
            }
        }
        let (matched, shadowed) = (self.matched.to_vec(), self.shadowed.to_vec());
        Decisions { records, matched, shadowed }
    }
}

#[derive(Debug)]
struct Chunk {
    decisions: Decisions,
    /// The time of the decisions in Unix milliseconds.
    decided_at: u64,
    hold: Hold,
}

/// A logged decision, as an answer to a look-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// The decision and its details.
    pub record: DecisionRecord,
    /// Every policy that matched.
    pub matched: Vec<PolicyId>,
    /// Every shadow policy that matched.
    pub shadow_matched: Vec<PolicyId>,
    /// The time of the decision in Unix milliseconds.
    pub decided_at: u64,
}

/// The details of the last decisions.
#[derive(Debug)]
pub struct DecisionLog {
    traces_max: usize,
    bytes_max: usize,
    logged: Mutex<Chunks>,
    tap: Tap,
    budget: Arc<Budget>,
}

#[derive(Debug, Default)]
struct Chunks {
    /// The oldest chunk is at the front.
    chunks: VecDeque<Arc<Chunk>>,
    traces: usize,
    bytes: usize,
}

impl Chunks {
    fn push(&mut self, chunk: Arc<Chunk>) {
        self.traces += chunk.decisions.records.len();
        self.bytes += chunk.hold.bytes();
        self.chunks.push_back(chunk);
    }

    fn pop(&mut self) -> Option<Arc<Chunk>> {
        let chunk = self.chunks.pop_front()?;
        self.traces -= chunk.decisions.records.len();
        self.bytes -= chunk.hold.bytes();
        Some(chunk)
    }
}

impl DecisionLog {
    /// A log of the last `traces` decisions, or of fewer if these exceed its share of the budget.
    /// With 0 it logs nothing.
    pub(crate) fn new(traces: usize, budget: &Arc<Budget>) -> Self {
        let bytes_max = budget.limit() / DECISION_LOG_PART;
        let budget = Arc::clone(budget);
        let (logged, tap) = Default::default();
        DecisionLog { traces_max: traces, bytes_max, logged, tap, budget }
    }

    /// The copy of the decisions for clients that watch them.
    pub(crate) fn tap(&self) -> &Tap {
        &self.tap
    }

    /// Logs decisions made at a Unix time in milliseconds. Must not be called under a shard's lock,
    /// because it frees the oldest decisions.
    pub fn push(&self, decisions: &Decisions, decided_at: u64) {
        self.tap.offer(decisions, decided_at);
        let end = decisions.records.len();
        let start = end - self.newest_that_fit(&decisions.records);
        for chunk_start in (start..end).step_by(CHUNK_TRACES) {
            let chunk = chunk_start..end.min(chunk_start + CHUNK_TRACES);
            self.push_chunk(&decisions.part(chunk), decided_at);
        }
    }

    /// The number of these records, counted from the last one, that would fit into an empty log.
    fn newest_that_fit(&self, records: &[DecisionRecord]) -> usize {
        let chunks = records.len().min(self.traces_max).div_ceil(CHUNK_TRACES);
        let mut room = self.bytes_max.saturating_sub(chunks * CHUNK_BYTES);
        let fits = |record: &&DecisionRecord| {
            let left = room.checked_sub(record.logged_bytes());
            room = left.unwrap_or(0);
            left.is_some()
        };
        records.iter().rev().take(self.traces_max).take_while(fits).count()
    }

    fn push_chunk(&self, part: &DecisionsPart<'_>, decided_at: u64) {
        let (traces, bytes) = (part.records.len(), part.bytes());
        let mut forgotten = Vec::new();
        let mut logged = self.lock();
        while logged.traces + traces > self.traces_max || logged.bytes + bytes > self.bytes_max {
            let Some(oldest) = logged.pop() else { break };
            forgotten.push(oldest);
        }
        drop(logged);
        drop(forgotten);
        let hold = self.budget.hold(Holder::DecisionLog, bytes);
        let chunk = Arc::new(Chunk { decisions: part.to_decisions(), decided_at, hold });
        self.lock().push(chunk);
    }

    /// The newest logged decision about a trace. Searches the whole log, which takes about a
    /// millisecond.
    pub(crate) fn find(&self, trace_id: TraceId) -> Option<Logged> {
        let chunks: Vec<_> = self.lock().chunks.iter().cloned().collect();
        let of_trace = |record: &&DecisionRecord| record.trace_id == trace_id;
        let in_chunk = |Chunk { decisions, decided_at, .. }: &Chunk| {
            let record = decisions.records.iter().rev().find(of_trace)?;
            Some(decisions.logged(record, *decided_at))
        };
        chunks.iter().rev().find_map(|chunk| in_chunk(chunk))
    }

    /// The last decisions, newest first.
    pub(crate) fn newest(&self, count: usize) -> Vec<Logged> {
        let chunks: Vec<_> = self.lock().chunks.iter().rev().take(count).cloned().collect();
        let of_chunk = |chunk: &Arc<Chunk>| {
            let Chunk { decisions, decided_at, .. } = &**chunk;
            let records = decisions.records.iter().rev().take(count);
            records.map(|record| decisions.logged(record, *decided_at)).collect::<Vec<_>>()
        };
        chunks.iter().flat_map(of_chunk).take(count).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Chunks> {
        // The sums and the queue are changed together, and no code in between panics.
        self.logged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::{Effect, Verdict},
        trace::{Threshold, Trigger},
    };

    fn record(id: u64, spans: u32, matched: Range<u32>) -> DecisionRecord {
        let threshold = Threshold::from_percentage(10.0);
        let verdict = Verdict { kept: true, policy: PolicyId(3), threshold };
        DecisionRecord {
            trace_id: trace_id(id),
            decision: Decision { verdict, trigger: Trigger::Shutdown, explicit_randomness: None },
            randomness: Randomness(id),
            spans,
            bytes: 0,
            duration_nanos: 0,
            lag_millis: 0,
            root_received: false,
            shadowed: matched.clone(),
            matched,
        }
    }

    fn shadowed(policies: impl IntoIterator<Item = PolicyId>) -> Vec<Shadowed> {
        let shadowed = |policy| Shadowed { policy, effect: Effect::Kept };
        policies.into_iter().map(shadowed).collect()
    }

    fn trace_id(id: u64) -> TraceId {
        TraceId(u128::from(id).to_be_bytes())
    }

    #[test]
    fn the_log_is_bounded_and_finds_the_newest() {
        let budget = Budget::new(1 << 30);
        let log = DecisionLog::new(1000, &budget);
        for id in 0..100_000 {
            let records = vec![record(id, 1, 0..1), record(7, id as u32, 1..2)];
            let matched = vec![PolicyId(3), PolicyId(4)];
            let shadowed = shadowed([PolicyId(5), PolicyId(6)]);
            log.push(&Decisions { records, matched, shadowed }, id);
        }
        let logged = log.lock();
        assert_eq!((logged.traces, logged.chunks.len()), (1000, 500));
        drop(logged);
        assert_eq!(log.find(trace_id(1)), None);
        assert!(log.find(trace_id(99_500)).is_some());
        let newest = log.find(trace_id(7)).expect("logged");
        assert_eq!((newest.record.spans, newest.decided_at), (99_999, 99_999));
        assert_eq!(newest.matched, [PolicyId(4)]);
        assert_eq!(newest.shadow_matched, [PolicyId(6)]);
        let ids: Vec<_> = log.newest(3).iter().map(|logged| logged.record.trace_id).collect();
        assert_eq!(ids, [7, 99_999, 7].map(trace_id));
        assert_eq!(log.newest(9_999).len(), 1000);
        let trace_bytes = LOGGED_TRACE_BYTES + 2 + size_of::<Shadowed>();
        assert_eq!(budget.used(), 1000 * trace_bytes + 500 * CHUNK_BYTES);
        drop(log);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn many_decisions_at_once_leave_the_newest() {
        for (traces_max, count) in [(3, 7), (3, 3), (0, 7), (1000, 1001), (1000, 10_000)] {
            let log = DecisionLog::new(traces_max, &Budget::new(1 << 30));
            let records = (0..count).map(|id| record(id, 1, id as u32..id as u32 + 1)).collect();
            let matched: Vec<_> = (0..count).map(|id| PolicyId(id as u16)).collect();
            let shadowed = shadowed(matched.iter().copied());
            log.push(&Decisions { records, matched, shadowed }, 1);
            let left: Vec<u64> =
                (0..count).filter(|&id| log.find(trace_id(id)).is_some()).collect();
            let newest = (0..count).skip((count as usize).saturating_sub(traces_max));
            assert!(left.iter().copied().eq(newest), "{traces_max} of {count}: {}", left.len());
            let found =
                |id| log.find(trace_id(id)).map(|logged| [logged.matched, logged.shadow_matched]);
            let wanted = |id| Some([vec![PolicyId(id as u16)], vec![PolicyId(id as u16)]]);
            assert!(left.iter().all(|&id| found(id) == wanted(id)));
        }
    }

    #[test]
    fn the_log_never_takes_more_than_its_share() {
        let budget = Budget::new(32 << 20);
        let log = DecisionLog::new(100_000, &budget);
        let matched: Vec<_> = (0..400 * 64).map(|number| PolicyId(number % 400)).collect();
        for round in 0..400 {
            let records =
                (0..64).map(|n| record(round * 64 + n, 1, n as u32 * 400..(n as u32 + 1) * 400));
            let (records, matched) = (records.collect(), matched.clone());
            let shadowed = shadowed(matched.iter().copied());
            log.push(&Decisions { records, matched, shadowed }, round);
            assert!(budget.used() <= budget.limit() / DECISION_LOG_PART);
        }
        assert!(budget.used() > budget.limit() / DECISION_LOG_PART / 10 * 9, "{}", budget.used());
        let newest = log.find(trace_id(400 * 64 - 1)).expect("logged");
        assert_eq!(newest.matched.len(), 400);
        // One request may cause more decisions than the whole log can hold.
        let records = (0..100_000).map(|id| record(id, 2, 0..0)).collect();
        log.push(&Decisions { records, ..Decisions::default() }, 1);
        assert!(budget.used() <= budget.limit() / DECISION_LOG_PART);
        assert!(log.find(trace_id(99_999)).is_some_and(|logged| logged.record.spans == 2));
    }
}
