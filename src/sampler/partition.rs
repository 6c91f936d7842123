//! Windows of partitions: shards beside the hashed ones, each with a time, positions and remembered
//! decisions of its own. `receiver/kafka` opens one for each partition that it reads, and is the
//! only one that takes records in and decides there.
//!
//! The time of a window is that of its records: a trace arrives at the time of its first record,
//! and is decided when [`Sampler::decide_partition`] is called with the time at which it is due.
//! Limits, budgets and rare policies are those of the process: the traces that are due in a window
//! are candidates of the next tick, like those of all shards, and are decided after it.
//!
//! A window begins *below the commit*: an earlier owner of the partition has decided and delivered
//! what it is given now. It decides again, by the same policies, but nothing of that leaves, is
//! counted or is published; decisions are remembered for what follows. [`Sampler::pass_commit`]
//! ends this. Of a trace that is undecided at that moment, the spans that are there leave neither,
//! and those that follow leave by the decision about all of them. Traces that lie below the commit
//! as a whole are no candidates of limits and use up nothing of them.
//!
//! Limits, budgets and rare policies depend on other traffic, so what they say about a trace that
//! began below the commit is a guess at what the earlier owner has decided. All that was there when
//! the trace was due has been decided by that owner, so none of it leaves by a guess: it would be a
//! part of a trace that was dropped. Only late spans follow the guess.

use std::{
    collections::HashMap,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use super::{Decided, Progress, Sampler, ShardState, Which, cap::Since};
use crate::{
    budget::{Hold, Holder},
    decisions::{Decision, DecisionCache},
    otlp::conditions::Conditions as _,
    policy::Plan,
    window::{self, Millis, Position, Shard},
};

/// The bytes that a list entry of spans below the commit takes.
const BELOW_BYTES: usize = size_of::<(Position, Below)>() + 2;

/// The windows of partitions. They are created once and used again, so that other parts may visit
/// them by their index at any time.
#[derive(Debug, Default)]
pub(super) struct Partitions {
    slots: Box<[OnceLock<Box<Mutex<ShardState>>>]>,
    /// The slots before this one have been open.
    used: AtomicUsize,
}

impl Partitions {
    pub(super) fn new(most: usize) -> Self {
        Partitions {
            slots: std::iter::repeat_with(OnceLock::new).take(most).collect(),
            used: AtomicUsize::new(0),
        }
    }

    pub(super) fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    pub(super) fn shard(&self, slot: usize) -> &Mutex<ShardState> {
        self.slots[slot].get().expect("used slots are initialized")
    }
}

/// The part of a shard that only shards of partitions have.
#[derive(Debug, Default)]
pub(super) struct OfPartition {
    is_open: bool,
    /// The number of times that it was opened or closed.
    pub(super) generation: u64,
    /// The time up to which traces have been decided.
    time: Millis,
    /// The time of the last tick: with limits, traces that were due by then may be decided.
    by: Millis,
    /// Whether everything in the window lies below the commit.
    is_below: bool,
    /// The first spans of undecided traces that lie below the commit, once it is passed.
    below: HashMap<Position, Below, foldhash::fast::RandomState>,
    /// The sum of these spans.
    below_spans: u64,
    _hold: Option<Hold>,
}

/// The part of a trace that lies below the commit: its first spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Below {
    pub(super) spans: u32,
    pub(super) bytes: u32,
}

/// A kept trace with spans that have left before.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeldBack {
    /// Its index in [`Decided::kept`].
    kept: usize,
    below: Below,
}

/// A window of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionWindow(pub(super) usize);

impl ShardState {
    /// The spans of undecided traces that count as accepted.
    pub(super) fn counted_spans(&self) -> u64 {
        match &self.partition {
            None => self.window.spans(),
            Some(partition) if partition.is_below => 0,
            Some(partition) => self.window.spans() - partition.below_spans,
        }
    }

    fn is_open(&self) -> bool {
        self.partition.as_ref().is_some_and(|partition| partition.is_open)
    }

    /// Whether the spans that arrive now are below the commit.
    pub(super) fn is_below_commit(&self) -> bool {
        self.partition.as_ref().is_some_and(|partition| partition.is_below)
    }

    /// The time by which traces are decided.
    pub(super) fn time(&self) -> Millis {
        self.partition.as_ref().map_or(self.window.now(), |partition| partition.time)
    }

    /// Takes note of the part of a trace that lies below the commit, when it is decided.
    pub(super) fn take_below(&mut self, position: Position) -> Below {
        let Some(partition) = &mut self.partition else { return Below::default() };
        if partition.is_below {
            let (spans, bytes) =
                (self.window.trace_spans(position), self.window.trace_bytes(position));
            return Below { spans, bytes };
        }
        let below = partition.below.remove(&position).unwrap_or_default();
        partition.below_spans -= u64::from(below.spans);
        if partition.below.is_empty() && partition.below.capacity() > 0 {
            partition.below = HashMap::default();
            partition._hold = None;
        }
        below
    }

    /// Before a tick: the moment up to which its traces are candidates, if they are.
    pub(super) fn candidates_by(&self, by: Millis) -> Option<Millis> {
        match &self.partition {
            None => Some(by),
            Some(partition) => (partition.is_open && !partition.is_below).then_some(partition.time),
        }
    }

    /// The moment of the current tick.
    pub(super) fn ticked_by(&self, by: Millis) -> Millis {
        self.partition
            .as_ref()
            .map_or(by, |partition| if partition.is_below { partition.time } else { partition.by })
    }

    /// After a tick with candidates up to this moment.
    pub(super) fn note_tick(&mut self, by: Millis, generation: u64) {
        if let Some(partition) = &mut self.partition
            && partition.generation == generation
        {
            partition.by = by;
        }
    }

    /// The number of times that this window was opened or closed, if it is that of a partition.
    pub(super) fn generation(&self) -> u64 {
        self.partition.as_ref().map_or(0, |partition| partition.generation)
    }
}

impl Sampler {
    /// Makes room for the windows of this many partitions.
    #[must_use]
    pub fn with_partitions(self, most: usize) -> Self {
        Sampler { partitions: Partitions::new(most), ..self }
    }

    /// Opens a window for a partition, which begins below the commit; `None` if all are open.
    pub fn open_partition(&self) -> Option<PartitionWindow> {
        let Partitions { slots, used } = &self.partitions;
        let free = slots.iter().enumerate().find_map(|(slot, state)| {
            state.get_or_init(|| Box::new(self.empty_shard()));
            let index = self.shards.len() + slot;
            (!self.lock(index).is_open()).then_some((slot, index))
        });
        let (slot, index) = free?;
        used.fetch_max(slot + 1, Relaxed);
        self.replace_window(index, true);
        self.share_cache();
        Some(PartitionWindow(index))
    }

    /// Closes a window without deciding its traces. Returns the number of its spans that were
    /// counted as accepted.
    pub fn close_partition(&self, window: PartitionWindow) -> u64 {
        let spans = self.replace_window(window.0, false);
        self.share_cache();
        spans
    }

    fn empty_shard(&self) -> Mutex<ShardState> {
        let plan = self.plan();
        let (window, remembered) = self.empty_window(&plan);
        let partition = Some(Box::default());
        Mutex::new(ShardState { plan, window, remembered, positions: None, partition })
    }

    fn empty_window(&self, plan: &Plan) -> (Shard, DecisionCache) {
        let (hasher, budget) = (self.hasher.clone(), &self.budget);
        let mut window =
            Shard::new(self.limits.waits, plan.leaves().shape(), hasher, &self.pool, budget);
        window.keep_positions();
        (window, DecisionCache::new(self.limits.decision_ttl_millis, 0, budget))
    }

    /// Empties a window, and returns the number of counted spans that were in it.
    fn replace_window(&self, index: usize, is_open: bool) -> u64 {
        let mut state = self.lock(index);
        // Read under the lock: a reload sets the plan of the sampler before it visits a shard.
        let plan = self.plan();
        let (window, remembered) = self.empty_window(&plan);
        let spans = state.counted_spans();
        let generation = state.generation() + 1;
        let before = (
            std::mem::replace(&mut state.plan, plan),
            std::mem::replace(&mut state.window, window),
            std::mem::replace(&mut state.remembered, remembered),
        );
        let partition =
            OfPartition { is_open, generation, is_below: is_open, ..Default::default() };
        state.partition = Some(Box::new(partition));
        drop(state);
        drop(before);
        spans
    }

    /// Divides a quarter of the memory limit among the decision caches of open windows.
    fn share_cache(&self) {
        let partitions = || (0..self.partitions.used()).map(|slot| self.shards.len() + slot);
        let open = partitions().filter(|&index| self.lock(index).is_open()).count();
        let bytes_max = self.budget.limit() / 4 / open.max(1);
        partitions().for_each(|index| self.lock(index).remembered.limit_bytes(bytes_max));
    }

    /// From now on, spans that arrive in the window are above the commit, and leave when they are
    /// kept.
    pub fn pass_commit(&self, window: PartitionWindow) {
        let mut state = self.lock(window.0);
        let ShardState { window, partition, .. } = &mut *state;
        let Some(partition) = partition.as_mut().filter(|partition| partition.is_below) else {
            return;
        };
        partition.is_below = false;
        let undecided = window.undecided();
        partition.below =
            undecided.map(|(at, spans, bytes)| (at, Below { spans, bytes })).collect();
        partition.below_spans = window.spans();
        let bytes = partition.below.capacity() * BELOW_BYTES;
        partition._hold = (bytes > 0).then(|| self.budget.hold(Holder::Index, bytes));
    }

    /// Decides up to 256 traces of a window that are due at this time of its records, as
    /// [`Self::decide`] does. With limits, traces that became due after the last tick wait.
    pub fn decide_partition(
        &self,
        window: PartitionWindow,
        time: Millis,
        which: Which,
        room: usize,
        out: &mut Decided,
    ) -> Progress {
        self.decide(window.0, time, which, room, out)
    }

    /// For how long a trace of a window has been due at this time of its records; `None` if none
    /// is.
    pub fn overdue_millis(&self, window: PartitionWindow, time: Millis) -> Option<u32> {
        let mut state = self.lock(window.0);
        state.window.next_due(time).map(|due| time.since(due.at))
    }

    /// The lowest position of an undecided span of a window, and the time of its record; `None` if
    /// nothing is undecided.
    pub fn lowest(&self, window: PartitionWindow) -> Option<(u64, Millis)> {
        self.lock(window.0).window.lowest()
    }

    /// Sets the time of a shard, unless that would move it back.
    pub(super) fn advance(state: &mut ShardState, now: Millis) {
        match &mut state.partition {
            None => state.window.advance(now),
            Some(partition) if partition.time.is_due(now) => partition.time = now,
            Some(_) => {}
        }
    }

    /// Remembers the decision about a trace that lies below the commit as a whole. Nothing of it
    /// leaves or is counted.
    pub(super) fn decide_again(
        &self,
        state: &mut ShardState,
        position: Position,
        decision: &Decision,
        out: &mut Decided,
    ) {
        let (trace_id, bytes) =
            (state.window.trace_id(position), state.window.trace_bytes(position));
        let hash = window::hash_of(&self.hasher, trace_id);
        state.remembered.remember(hash, decision);
        self.use_below(state, hash, decision, bytes.into());
        out.taken.push(state.window.take(position, false));
    }

    /// Notes that spans below the commit use up a part of the cap of their trace.
    pub(super) fn use_below(
        &self,
        state: &mut ShardState,
        hash: u64,
        decision: &Decision,
        bytes: u64,
    ) {
        let Some(cap) = self.limits.kept_bytes_max.filter(|_| decision.verdict.kept) else {
            return;
        };
        let used = state.remembered.used_bytes(hash);
        state.remembered.use_bytes(hash, (used + bytes).min(cap));
    }

    /// Takes the spans that lie below the commit out of the kept traces that were decided `since`.
    pub(super) fn hold_back(since: Since, out: &mut Decided) {
        let mut spans = out.spans.split_off(since.span()).into_iter();
        let mut held_back = out.held_back.iter().peekable();
        for (index, trace) in out.kept.iter_mut().enumerate().skip(since.kept()) {
            let below = held_back.next_if(|next| next.kept == index).map(|next| next.below.spans);
            let below = below.unwrap_or(0) as usize;
            for span in spans.by_ref().take(below) {
                out.kept_bytes -= span.bytes.len();
                out.unfit.push(span);
            }
            trace.spans -= below;
            out.spans.extend(spans.by_ref().take(trace.spans));
        }
    }
}

impl Decided {
    /// Notes that the last of the kept traces has spans below the commit.
    pub(super) fn note_below(&mut self, below: Below) {
        if below.spans > 0 {
            self.held_back.push(HeldBack { kept: self.kept.len() - 1, below });
        }
    }

    /// The bytes that a kept trace has used of its cap before.
    pub(super) fn bytes_before(&self, kept: usize) -> u64 {
        let held_back = self.held_back.iter().find(|held_back| held_back.kept == kept);
        held_back.map_or(0, |held_back| held_back.below.bytes.into())
    }
}
