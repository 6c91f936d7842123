//! Decisions after they are made: the decision cache, which late spans follow, and the decision
//! log, which answers why a trace was kept or dropped.
//!
//! Each shard has a [`DecisionCache`] under its lock: two generations of a compact table, keyed by
//! the keyed 64-bit hash of the trace id, with 18 bytes per trace. Kept and dropped traces stay for
//! the same time. (If they did not, the fate of a late span would depend on its randomness, and so
//! would the threshold.) A decision stays for at least the time to live and at most twice as long.
//! If there are so many decisions that all shards together would need more than a quarter of the
//! memory limit, the oldest are forgotten sooner and counted. With n decisions in the cache, a new
//! trace is mistaken for one of them with probability n / 2^64: at 10,000 traces per second, kept
//! for 240 s, that happens once in 24 years.
//!
//! [`DecisionLog`] holds the details of the last decisions.

mod log;
mod tap;

use std::{collections::HashMap, sync::Arc};

use hashbrown::HashTable;

pub(crate) use self::{
    log::{DecisionLog, DecisionRecord, Decisions, Logged},
    tap::{Tap, Tapped},
};

use crate::{
    budget::{Budget, Holder},
    policy::{PolicyId, Shadowed, Verdict},
    trace::{Randomness, Threshold, Trigger},
    window::Millis,
};

/// The decision about a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is kept, by which policy, at which threshold.
    pub verdict: Verdict,
    /// The reason why it was decided at that moment.
    pub trigger: Trigger,
    /// The randomness, if it did not come from the trace id.
    pub explicit_randomness: Option<Randomness>,
}

/// A decision in 18 bytes: the fingerprint; the threshold (57 bits), the trigger (3 bits) and
/// whether the trace is kept (1 bit); the policy.
#[derive(Clone, Copy)]
struct Packed([u8; 18]);

impl Packed {
    fn new(fingerprint: u64, decision: &Decision) -> Self {
        let verdict = &decision.verdict;
        let bits = verdict.threshold.bits()
            | (decision.trigger as u64) << 57
            | u64::from(verdict.kept) << 60;
        let mut bytes = [0; 18];
        bytes[..8].copy_from_slice(&fingerprint.to_le_bytes());
        bytes[8..16].copy_from_slice(&bits.to_le_bytes());
        bytes[16..].copy_from_slice(&verdict.policy.0.to_le_bytes());
        Packed(bytes)
    }

    fn fingerprint(&self) -> u64 {
        u64::from_le_bytes(*self.0.first_chunk().expect("18 bytes"))
    }

    fn unpack(&self, explicit_randomness: Option<Randomness>) -> Decision {
        let bits = u64::from_le_bytes(*self.0[8..].first_chunk().expect("18 bytes"));
        let verdict = Verdict {
            kept: bits >> 60 & 1 == 1,
            policy: PolicyId(u16::from_le_bytes([self.0[16], self.0[17]])),
            threshold: Threshold::from_bits(bits & ((1 << 57) - 1)),
        };
        let trigger = Trigger::ALL[(bits >> 57 & 7) as usize];
        Decision { verdict, trigger, explicit_randomness }
    }
}

/// The number of tables per generation. A table that grows moves all its entries under the shard's
/// lock. A 64th of a generation is moved within a millisecond, and few tables grow at the same
/// time.
const TABLES: usize = 64;

struct Generation {
    /// Indexed by bits of the fingerprint that choose neither the shard nor the place within a
    /// table.
    decisions: Box<[HashTable<Packed>]>,
    /// The explicit randomness of the few traces that have one.
    randomness: HashMap<u64, Randomness, foldhash::fast::RandomState>,
    /// The bytes used by kept traces, if there is a cap.
    used_bytes: HashMap<u64, u64, foldhash::fast::RandomState>,
    /// The effects on traces that shadow policies match.
    shadowed: HashMap<u64, Arc<[Shadowed]>, foldhash::fast::RandomState>,
    /// The sets that were stored last, for sharing: most traces have one of a few sets.
    last_shadowed: Vec<Arc<[Shadowed]>>,
    /// The bytes of the sets in `shadowed`.
    shadowed_bytes: usize,
}

impl Default for Generation {
    fn default() -> Self {
        Generation {
            decisions: std::iter::repeat_with(HashTable::new).take(TABLES).collect(),
            randomness: HashMap::default(),
            used_bytes: HashMap::default(),
            shadowed: HashMap::default(),
            last_shadowed: Vec::new(),
            shadowed_bytes: 0,
        }
    }
}

impl Generation {
    fn len(&self) -> usize {
        self.decisions.iter().map(HashTable::len).sum()
    }

    fn remember(&mut self, fingerprint: u64, packed: Packed) {
        let table = &mut self.decisions[table_of(fingerprint)];
        table.insert_unique(fingerprint, packed, Packed::fingerprint);
    }

    fn remember_shadowed(&mut self, fingerprint: u64, shadowed: &[Shadowed]) {
        let known = self.last_shadowed.iter().find(|known| ***known == *shadowed);
        let shadowed = known.cloned().unwrap_or_else(|| {
            let shadowed: Arc<[Shadowed]> = shadowed.into();
            self.shadowed_bytes += 16 + size_of_val(&*shadowed);
            if self.last_shadowed.len() == LAST_SHADOWED_MAX {
                self.last_shadowed.remove(0);
            }
            self.last_shadowed.push(Arc::clone(&shadowed));
            shadowed
        });
        self.shadowed.insert(fingerprint, shadowed);
    }

    fn recall(&self, fingerprint: u64) -> Option<Decision> {
        let table = &self.decisions[table_of(fingerprint)];
        let packed = table.find(fingerprint, |p| p.fingerprint() == fingerprint)?;
        Some(packed.unpack(self.randomness.get(&fingerprint).copied()))
    }

    /// Whether it holds too many bytes, or soon will, after it has grown for the decisions of a few
    /// more holds of the lock.
    fn outgrows(&self, bytes_max: usize) -> bool {
        const SOON: usize = 32;
        let grow_soon = |table: &&HashTable<Packed>| table.len() + SOON > table.capacity();
        let growing = self.decisions.iter().filter(grow_soon);
        self.bytes() + growing.map(HashTable::allocation_size).sum::<usize>() > bytes_max
    }

    fn bytes(&self) -> usize {
        let sides = self.randomness.capacity() + self.used_bytes.capacity();
        let shadowed = self.shadowed.capacity() * 25 + self.shadowed_bytes;
        self.decisions.iter().map(HashTable::allocation_size).sum::<usize>() + sides * 17 + shadowed
    }

    /// Removes everything but keeps as much room as was used, because the next generation will need
    /// it.
    fn clear(&mut self) {
        for table in &mut self.decisions {
            let needed = table.len();
            table.clear();
            table.shrink_to(needed, Packed::fingerprint);
        }
        self.randomness = HashMap::default();
        self.used_bytes = HashMap::default();
        self.shadowed = HashMap::default();
        self.last_shadowed = Vec::new();
        self.shadowed_bytes = 0;
    }
}

/// The number of sets per generation that are kept for sharing.
const LAST_SHADOWED_MAX: usize = 32;

fn table_of(fingerprint: u64) -> usize {
    (fingerprint >> 32) as usize % TABLES
}

/// The decision cache of one shard, which late spans follow.
pub(crate) struct DecisionCache {
    ttl_millis: u32,
    /// The most bytes of each generation.
    generation_bytes_max: usize,
    current: Generation,
    previous: Generation,
    rotated_at: Millis,
    budget: Arc<Budget>,
    charged: usize,
}

impl DecisionCache {
    /// An empty cache. It keeps each decision for at least `ttl_millis`, unless the decisions would
    /// take more than `bytes_max`.
    pub(crate) fn new(ttl_millis: u32, bytes_max: usize, budget: &Arc<Budget>) -> Self {
        DecisionCache {
            ttl_millis,
            generation_bytes_max: bytes_max / 2,
            current: Generation::default(),
            previous: Generation::default(),
            rotated_at: Millis::default(),
            budget: Arc::clone(budget),
            charged: 0,
        }
    }

    /// Limits the bytes of the cache from now on.
    pub(crate) fn limit_bytes(&mut self, bytes_max: usize) {
        self.generation_bytes_max = bytes_max / 2;
    }

    /// Stores a decision under the hash of its trace id.
    pub(crate) fn remember(&mut self, fingerprint: u64, decision: &Decision) {
        let packed = Packed::new(fingerprint, decision);
        self.current.remember(fingerprint, packed);
        if let Some(randomness) = decision.explicit_randomness {
            self.current.randomness.insert(fingerprint, randomness);
        }
    }

    /// The decision about a trace, while it is in the cache.
    pub(crate) fn recall(&self, fingerprint: u64) -> Option<Decision> {
        self.current.recall(fingerprint).or_else(|| self.previous.recall(fingerprint))
    }

    /// Stores the effects that shadow policies would have had on a trace, for its late spans.
    pub(crate) fn remember_shadowed(&mut self, fingerprint: u64, shadowed: &[Shadowed]) {
        if !shadowed.is_empty() {
            self.current.remember_shadowed(fingerprint, shadowed);
        }
    }

    /// The effects that shadow policies would have had on a trace in the cache.
    pub(crate) fn recall_shadowed(&self, fingerprint: u64) -> &[Shadowed] {
        if self.current.shadowed.is_empty() && self.previous.shadowed.is_empty() {
            return &[];
        }
        // A trace that was decided again is in the current generation, even without shadow
        // policies.
        let of = |generation: &'_ Generation| generation.recall(fingerprint).is_some();
        let generation = if of(&self.current) { &self.current } else { &self.previous };
        generation.shadowed.get(&fingerprint).map_or(&[], |shadowed| shadowed)
    }

    /// Stores the number of bytes of a kept trace that have been exported.
    pub(crate) fn use_bytes(&mut self, fingerprint: u64, bytes: u64) {
        self.current.used_bytes.insert(fingerprint, bytes);
    }

    /// The number of bytes of a kept trace that have been exported; 0 if none was stored.
    pub(crate) fn used_bytes(&self, fingerprint: u64) -> u64 {
        let [current, previous] = [&self.current, &self.previous];
        let used = current.used_bytes.get(&fingerprint).or(previous.used_bytes.get(&fingerprint));
        used.copied().unwrap_or(0)
    }

    /// Forgets decisions that are older than the time to live, or for which there is no room, and
    /// charges the budget. Called after every few hundred decisions. Returns the number of
    /// decisions that were forgotten too early.
    pub(crate) fn rotate(&mut self, now: Millis) -> u64 {
        let is_time = now.since(self.rotated_at) >= self.ttl_millis;
        let mut too_soon = 0;
        if is_time || self.current.outgrows(self.generation_bytes_max) {
            std::mem::swap(&mut self.current, &mut self.previous);
            if !is_time {
                too_soon = self.current.len() as u64;
            }
            self.current.clear();
            self.rotated_at = now;
        }
        let held = self.current.bytes() + self.previous.bytes();
        if held > self.charged {
            self.budget.charge(Holder::Decisions, held - self.charged);
        } else {
            self.budget.release(Holder::Decisions, self.charged - held);
        }
        self.charged = held;
        too_soon
    }
}

impl Drop for DecisionCache {
    fn drop(&mut self) {
        self.budget.release(Holder::Decisions, self.charged);
    }
}

impl std::fmt::Debug for DecisionCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DecisionCache")
            .field("current", &self.current.len())
            .field("previous", &self.previous.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Effect;

    fn decision(kept: bool, percentage: f64) -> Decision {
        let threshold = Threshold::from_percentage(percentage);
        let verdict = Verdict { kept, policy: PolicyId(3), threshold };
        Decision { verdict, trigger: Trigger::Shutdown, explicit_randomness: None }
    }

    #[test]
    fn decisions_survive_packing_and_one_generation() {
        let budget = Budget::new(1 << 20);
        let mut remembered = DecisionCache::new(1000, 1 << 20, &budget);
        let explicit =
            Decision { explicit_randomness: Some(Randomness(7)), ..decision(false, 0.0) };
        remembered.remember(1, &decision(true, 10.0));
        remembered.remember(2, &explicit);
        remembered.rotate(Millis(999));
        assert!(budget.held(Holder::Decisions) > 0);
        remembered.rotate(Millis(1000));
        assert_eq!(remembered.recall(1), Some(decision(true, 10.0)));
        assert_eq!(remembered.recall(2), Some(explicit));
        assert_eq!(remembered.recall(3), None);
        remembered.rotate(Millis(2000));
        assert_eq!(remembered.recall(1), None);
        drop(remembered);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn effects_of_shadow_policies_are_remembered_as_long_as_the_decision() {
        let budget = Budget::new(1 << 24);
        let mut remembered = DecisionCache::new(1000, 1 << 24, &budget);
        let of = |number: u64| {
            let policy = |policy| Shadowed { policy: PolicyId(policy), effect: Effect::Dropped };
            // More sets than are kept for sharing.
            vec![policy(number as u16 % 100), policy(7)]
        };
        for number in 0..1_000 {
            remembered.remember(number, &decision(true, 10.0));
            remembered.remember_shadowed(number, &of(number));
        }
        remembered.remember(2_000, &decision(true, 10.0));
        remembered.remember_shadowed(2_000, &[]);
        remembered.rotate(Millis(1000));
        assert!(budget.held(Holder::Decisions) > 1_000 * 25);
        for number in 0..1_000 {
            assert_eq!(remembered.recall_shadowed(number), of(number));
        }
        assert!(remembered.recall_shadowed(2_000).is_empty());
        // Decide the trace again; this time no shadow policy matches.
        remembered.remember(5, &decision(true, 10.0));
        assert!(remembered.recall_shadowed(5).is_empty());
        remembered.rotate(Millis(2000));
        assert!(remembered.recall_shadowed(1).is_empty());
    }

    #[test]
    fn the_oldest_make_room_when_there_are_too_many() {
        let budget = Budget::new(1 << 30);
        let mut remembered = DecisionCache::new(u32::MAX, 1 << 18, &budget);
        let (mut forgotten, mut most) = (0, 0);
        let fingerprint = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for number in 0..200_000 {
            remembered.remember(fingerprint(number), &decision(number % 2 == 0, 10.0));
            if number % 256 == 0 {
                forgotten += remembered.rotate(Millis(0));
                most = most.max(budget.held(Holder::Decisions));
            }
        }
        assert!((1 << 17..=1 << 18).contains(&most), "{most}");
        let is_left = |number: &u64| remembered.recall(fingerprint(*number)).is_some();
        let left = (0..200_000).filter(is_left).count();
        assert_eq!(forgotten + left as u64, 200_000);
        let last = (200_000 - left as u64)..200_000;
        assert!(last.into_iter().all(|number| is_left(&number)));
    }
}
