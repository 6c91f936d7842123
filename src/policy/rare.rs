//! `rare`: the first traces of each kind in each interval.
//!
//! A decision tick passes it the due traces in their order of arrival, and it grants the first ones
//! of each kind. A granted trace is kept at 100 %, and no grant depends on randomness. Traces that
//! are decided outside a tick ask for a grant when they are decided. A grant counts even if another
//! policy keeps the trace too; the caller does not ask for traces that a policy vetoes.
//!
//! The interval of a kind begins with its first trace. All intervals are equally long, so kinds are
//! forgotten in the order of their first traces. At most `kinds_max` kinds are known at a time; a
//! kind that finds the table full gets no grant and is counted.
//!
//! The caller passes the elapsed time; this module reads no clock.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use super::spec::RareSpec;
use crate::trace::TraceId;

/// The bytes that a kind may take: its entry in a table that may be half empty, its place in the
/// queue, and the grant of a trace.
const KIND_BYTES: usize = 2 * (16 + 1) + 2 * 16 + 2 * (16 + 1);

/// The kinds of one policy.
#[derive(Debug)]
pub(super) struct Rare {
    spec: RareSpec,
    /// Whether there has been a tick. Before the first tick, every trace is granted.
    has_begun: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Seconds since the first tick.
    now: f64,
    /// The number of grants that each kind has left in its interval.
    left: HashMap<u64, u32, foldhash::fast::RandomState>,
    /// The highest number of kinds since the tables were last shrunk.
    room: usize,
    /// The kinds by the end of their interval.
    ends: VecDeque<(f64, u64)>,
    /// The traces granted since the last tick began.
    granted: HashSet<TraceId, foldhash::fast::RandomState>,
    overflowed: u64,
}

impl Rare {
    pub(super) fn new(spec: RareSpec) -> Self {
        Rare { spec, has_begun: AtomicBool::new(false), state: Mutex::default() }
    }

    /// The policy as it is written.
    pub(super) fn spec(&self) -> &RareSpec {
        &self.spec
    }

    /// Whether there has been a tick.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun.load(Relaxed)
    }

    /// Begins a tick, `seconds` after the last one.
    pub(super) fn begin_tick(&self, seconds: f64) {
        let mut state = self.lock();
        let State { now, left, room, ends, granted, .. } = &mut *state;
        *now += seconds;
        *room = left.len().max(*room);
        while let Some((_, kind)) = ends.pop_front_if(|(end, _)| *end <= *now) {
            left.remove(&kind);
        }
        if left.len() < *room / 8 {
            *room = 2 * left.len();
            left.shrink_to(*room);
            ends.shrink_to(*room);
        }
        granted.clear();
        granted.shrink_to(left.len());
        self.has_begun.store(true, Relaxed);
    }

    /// Whether this trace has a grant or may get one, so that [`Self::grant`] is worth a call.
    pub(super) fn may_grant(&self, kind: u64, trace: TraceId) -> bool {
        let state = self.lock();
        state.left.get(&kind).is_none_or(|left| *left > 0) || state.granted.contains(&trace)
    }

    /// Asks for a trace of this kind. Asking again for the same trace changes nothing.
    pub(super) fn grant(&self, kind: u64, trace: TraceId) -> bool {
        if !self.has_begun() {
            return true;
        }
        let mut state = self.lock();
        let State { now, left, ends, granted, overflowed, .. } = &mut *state;
        if granted.contains(&trace) {
            return true;
        }
        let has_room = left.len() < self.spec.kinds.kinds_max;
        let left = match left.get_mut(&kind) {
            Some(left) => left,
            None if has_room => {
                ends.push_back((*now + self.spec.interval_millis as f64 / 1e3, kind));
                left.entry(kind).or_insert(self.spec.traces)
            }
            None => {
                *overflowed += 1;
                return false;
            }
        };
        let is_granted = *left > 0;
        *left = left.saturating_sub(1);
        if is_granted {
            granted.insert(trace);
        }
        is_granted
    }

    /// Whether this trace has been granted since the last tick began.
    pub(super) fn has_granted(&self, trace: TraceId) -> bool {
        !self.has_begun() || self.lock().granted.contains(&trace)
    }

    /// The number of kinds whose interval has not ended.
    pub(super) fn kinds(&self) -> usize {
        self.lock().left.len()
    }

    /// Counts a trace that could not be granted because a tick had too many of them.
    pub(super) fn note_overflowed(&self) {
        self.lock().overflowed += 1;
    }

    /// The number of traces that found no room since the last call.
    pub(super) fn take_overflowed(&self) -> u64 {
        std::mem::take(&mut self.lock().overflowed)
    }

    /// The bytes that the tables may take with the kinds that they have. The actual capacity of a
    /// table depends on where its keys lie, and would differ when a run is repeated.
    pub(super) fn bytes(&self) -> usize {
        let state = self.lock();
        state.room.max(state.left.len()) * KIND_BYTES
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
