//! The table of series, in shards with one lock each.
//!
//! A lock is held for one span, or while a few series are copied for a scraper; nothing is
//! formatted under it. A series is charged in full when it is made, including spare capacity of its
//! vector and exemplars that it does not have yet.

use std::{
    borrow::Cow,
    num::NonZeroU64,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use hashbrown::HashTable;

use super::{key::Labels, style::BUCKETS_MAX};
use crate::{
    budget::{Budget, Holder},
    clock::Millis,
    trace::TraceId,
};

/// Far more than the number of threads that count at once.
const SHARDS: usize = 64;
/// Two entries of its vector, one entry of the index, and two headers of the key.
const SERIES_BYTES: usize = 2 * size_of::<Option<Series>>() + 24 + 32;
const EXEMPLARS_BYTES: usize = size_of::<Exemplars>() + 16;

/// The bytes that a series costs, without its key.
pub(super) const fn series_bytes(has_exemplars: bool) -> usize {
    if has_exemplars { SERIES_BYTES + EXEMPLARS_BYTES } else { SERIES_BYTES }
}

/// The sums of a series.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    /// The number of spans in each bucket of durations.
    pub(super) buckets: [u64; BUCKETS_MAX],
    pub(super) nanos: u128,
    pub(super) bytes: u64,
}

impl Sums {
    #[inline]
    pub(super) fn add(&mut self, observed: &Observed) {
        self.buckets[observed.bucket] += 1;
        self.nanos += u128::from(observed.nanos);
        self.bytes += u64::from(observed.bytes);
    }

    fn merge(&mut self, other: &Sums) {
        for (bucket, more) in self.buckets.iter_mut().zip(other.buckets) {
            *bucket += more;
        }
        self.nanos += other.nanos;
        self.bytes += other.bytes;
    }

    pub(super) fn calls(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// The values of a span that a series adds up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observed {
    pub(super) bucket: usize,
    pub(super) nanos: u64,
    pub(super) bytes: u32,
}

/// A kept trace, as the exemplar of a bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exemplar {
    pub(super) trace_id: TraceId,
    pub(super) nanos: u64,
    /// When it became the exemplar.
    pub(super) set_at_millis: NonZeroU64,
}

/// The newest exemplar of each bucket.
pub(super) type Exemplars = [Option<Exemplar>; BUCKETS_MAX];

#[derive(Debug)]
struct Series {
    hash: u64,
    key: Arc<[u8]>,
    sums: Sums,
    exemplars: Option<Box<Exemplars>>,
    seen: Millis,
    born: u64,
}

impl Series {
    #[inline]
    fn add(&mut self, now: Millis, observed: &Observed) {
        self.sums.add(observed);
        self.seen = now;
    }
}

#[derive(Debug, Default)]
struct Shard {
    index: HashTable<u32>,
    slots: Vec<Option<Series>>,
    free: Vec<u32>,
}

impl Shard {
    #[inline]
    fn find(&mut self, hash: u64, labels: Labels<'_>) -> Option<&mut Series> {
        let Shard { index, slots, .. } = self;
        let is_it = |slot: &u32| series(slots, *slot).is_some_and(|series| labels.is(&series.key));
        let slot = *index.find(hash, is_it)?;
        slots.get_mut(slot as usize)?.as_mut()
    }
}

/// A copy of a series.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) key: Arc<[u8]>,
    pub(super) sums: Sums,
    pub(super) exemplars: Option<Box<Exemplars>>,
}

/// Series by their key.
#[derive(Debug)]
pub(super) struct Table {
    shards: Box<[Mutex<Shard>]>,
    hasher: foldhash::fast::RandomState,
    overflow: Mutex<Sums>,
    budget: Arc<Budget>,
    series_max: usize,
    /// The most bytes that all series may take.
    bytes_max: usize,
    has_exemplars: bool,
    series: AtomicUsize,
    births: AtomicU64,
    /// The number of removed series, and of the spans in them.
    stale: [AtomicU64; 2],
    next_swept: AtomicUsize,
}

impl Table {
    pub(super) fn new(budget: &Arc<Budget>, max: (usize, usize), has_exemplars: bool) -> Self {
        let (series_max, bytes_max) = max;
        Table {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: foldhash::fast::RandomState::default(),
            overflow: Mutex::default(),
            budget: Arc::clone(budget),
            series_max,
            bytes_max,
            has_exemplars,
            series: AtomicUsize::new(0),
            births: AtomicU64::new(0),
            stale: Default::default(),
            next_swept: AtomicUsize::new(0),
        }
    }

    /// Adds a span to its series, which is made if there is room. Returns false if there is no
    /// room.
    #[inline]
    pub(super) fn add(&self, labels: Labels<'_>, now: Millis, observed: &Observed) -> bool {
        let hash = labels.hash(&self.hasher);
        if let Some(series) = self.shard_of(hash).find(hash, labels) {
            series.add(now, observed);
            return true;
        }
        self.add_repaired(labels, now, observed)
    }

    /// Adds a span whose series is new, or whose name is not in the key as it is in the span.
    #[cold]
    fn add_repaired(&self, labels: Labels<'_>, now: Millis, observed: &Observed) -> bool {
        let mut name = Cow::default();
        let labels = labels.repaired(&mut name);
        let hash = labels.hash(&self.hasher);
        let mut shard = self.shard_of(hash);
        if let Some(series) = shard.find(hash, labels) {
            series.add(now, observed);
            return true;
        }
        let key: Arc<[u8]> = labels.to_key().into();
        if !self.has_room_for(&key) {
            return false;
        }
        let born = self.births.fetch_add(1, Relaxed) + 1;
        let sums = Sums::default();
        let mut made = Series { hash, key, sums, exemplars: None, seen: now, born };
        made.add(now, observed);
        let Shard { index, slots, free } = &mut *shard;
        let slot = free.pop().unwrap_or(slots.len() as u32);
        match slots.get_mut(slot as usize) {
            Some(place) => *place = Some(made),
            None => slots.push(Some(made)),
        }
        let hash_of = |slot: &u32| series(slots, *slot).map_or(0, |series| series.hash);
        index.insert_unique(hash, slot, hash_of);
        true
    }

    /// Reserves the room for a series with this key, if there is any.
    #[cold]
    fn has_room_for(&self, key: &[u8]) -> bool {
        // Read first, so that threads do not contend for writing while the table is full.
        if self.series.load(Relaxed) >= self.series_max {
            return false;
        }
        let bytes = self.cost_bytes(key);
        if self.series.fetch_add(1, Relaxed) < self.series_max
            && self.budget.held(Holder::SpanMetrics) + bytes <= self.bytes_max
        {
            self.budget.charge(Holder::SpanMetrics, bytes);
            return true;
        }
        self.series.fetch_sub(1, Relaxed);
        false
    }

    fn cost_bytes(&self, key: &[u8]) -> usize {
        series_bytes(self.has_exemplars) + key.len()
    }

    /// Adds spans that have no room for their own series.
    pub(super) fn overflow(&self, sums: &Sums) {
        self.overflow.lock().unwrap_or_else(PoisonError::into_inner).merge(sums);
    }

    /// The spans that had no room for their own series.
    pub(super) fn overflowed(&self) -> Sums {
        *self.overflow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the exemplar of a bucket, if the series exists.
    pub(super) fn set_exemplar(&self, labels: Labels<'_>, bucket: usize, exemplar: Exemplar) {
        let mut name = Cow::default();
        let labels = labels.repaired(&mut name);
        let hash = labels.hash(&self.hasher);
        if let Some(series) = self.shard_of(hash).find(hash, labels) {
            let exemplars = series.exemplars.get_or_insert_with(|| Box::new([None; BUCKETS_MAX]));
            exemplars[bucket] = Some(exemplar);
        }
    }

    /// Checks an eighth of the shards and removes series without a span for `stale_millis`.
    pub(super) fn sweep(&self, now: Millis, stale_millis: u32) {
        const AT_ONCE: usize = SHARDS / 8;
        let first = self.next_swept.fetch_add(AT_ONCE, Relaxed);
        for shard in first..first + AT_ONCE {
            let mut shard = lock(&self.shards[shard % SHARDS]);
            let Shard { index, slots, free } = &mut *shard;
            for (slot, place) in (0..).zip(&mut *slots) {
                let is_stale = |series: &mut Series| now.since(series.seen) >= stale_millis;
                let Some(gone) = place.take_if(is_stale) else { continue };
                if let Ok(entry) = index.find_entry(gone.hash, |other| *other == slot) {
                    entry.remove();
                }
                free.push(slot);
                self.series.fetch_sub(1, Relaxed);
                self.budget.release(Holder::SpanMetrics, self.cost_bytes(&gone.key));
                self.stale[0].fetch_add(1, Relaxed);
                self.stale[1].fetch_add(gone.sums.calls(), Relaxed);
            }
            if free.len() == slots.len() {
                *shard = Shard::default();
            }
        }
    }

    /// The number of series.
    pub(super) fn series(&self) -> usize {
        self.series.load(Relaxed)
    }

    /// The number of removed series, and of the spans in them.
    pub(super) fn stale(&self) -> [u64; 2] {
        [self.stale[0].load(Relaxed), self.stale[1].load(Relaxed)]
    }

    /// The number of series ever made.
    pub(super) fn births(&self) -> u64 {
        self.births.load(Relaxed)
    }

    /// Copies the next few series from `place` on, and moves `place` behind them. Series made after
    /// the first `births` are skipped: a series that was removed and made again would otherwise be
    /// seen twice. Returns false at the end.
    pub(super) fn next(&self, place: &mut Place, births: u64, shown: &mut Vec<Shown>) -> bool {
        const AT_ONCE: usize = 8;
        let Some(shard) = self.shards.get(place.shard) else { return false };
        let shard = lock(shard);
        let rest = shard.slots.get(place.slot..).unwrap_or_default();
        let Place { slot, .. } = place;
        let series = rest.iter().inspect(|_| *slot += 1).flatten();
        let copy = |series: &Series| Shown {
            key: Arc::clone(&series.key),
            sums: series.sums,
            exemplars: series.exemplars.clone(),
        };
        shown.extend(series.filter(|series| series.born <= births).take(AT_ONCE).map(copy));
        if place.slot >= shard.slots.len() {
            *place = Place { shard: place.shard + 1, slot: 0 };
        }
        true
    }

    fn shard_of(&self, hash: u64) -> MutexGuard<'_, Shard> {
        // The index uses the low bits of a hash and the highest seven, so the shard uses others.
        lock(&self.shards[(hash >> 40) as usize % SHARDS])
    }
}

/// A place in the table: a shard, and a slot in it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    shard: usize,
    slot: usize,
}

impl Drop for Table {
    fn drop(&mut self) {
        for shard in &self.shards {
            let shard = lock(shard);
            let keys = shard.slots.iter().flatten().map(|series| &series.key);
            let bytes = keys.map(|key| self.cost_bytes(key)).sum();
            self.budget.release(Holder::SpanMetrics, bytes);
        }
    }
}

fn series(slots: &[Option<Series>], slot: u32) -> Option<&Series> {
    slots.get(slot as usize)?.as_ref()
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    // Sums stay usable after a panic, which the service counts and survives.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
