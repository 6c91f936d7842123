//! Interned contexts: resource, scope and their schema URLs, once each however many spans share
//! them.
//!
//! A context is the raw bytes of a `ResourceSpans` and a `ScopeSpans` without their spans, so
//! unknown fields and repeated ones leave as they came. Its identity is that content, not a hash of
//! it: two resources that collide must never swap their spans. The table holds weak references and
//! a context takes itself out when its last user drops it, so unbounded resources do not leak.
//! Attribute conditions on the resource are evaluated once, when a context is interned.
//!
//! Called by connection tasks without a shard lock; the lock of a `dashmap` shard is held for one
//! look-up.

use std::{
    fmt,
    sync::{Arc, OnceLock, Weak},
};

use dashmap::{DashMap, Entry};

use super::{
    clean::{self, Cleaned, Unfit},
    wire::Malformed,
};
use crate::budget::{Budget, Holder};

type Table = DashMap<Arc<[u8]>, Weak<Context>, foldhash::fast::RandomState>;

/// Bytes that a context costs beside its content: two reference-counted heads and the slot in the
/// table.
const OVERHEAD_BYTES: usize = 200;

/// Bytes in front of the content that say where the resource ends. They are part of the identity:
/// the same bytes split elsewhere are another context.
pub(super) const SPLIT_BYTES: usize = 4;

/// The contexts in use.
#[derive(Clone)]
pub struct Contexts {
    table: Arc<Table>,
    budget: Arc<Budget>,
}

impl Contexts {
    /// An empty table that charges what it holds to `budget`.
    pub fn new(budget: Arc<Budget>) -> Self {
        Contexts { table: Arc::new(Table::default()), budget }
    }

    /// Contexts in use.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether none is in use.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The context of this content: [`SPLIT_BYTES`] that give the resource's length in little
    /// endian, the resource, the scope. `bits` evaluates the resource of a context that is new.
    pub(super) fn intern(
        &self,
        content: &[u8],
        bits: impl FnOnce(&[u8]) -> Result<Box<[u64]>, Malformed>,
    ) -> Result<Arc<Context>, Malformed> {
        if let Some(context) = self.table.get(content).and_then(|weak| weak.upgrade()) {
            return Ok(context);
        }
        let bits = bits(split(content).0)?;
        let content: Arc<[u8]> = content.into();
        let context = Arc::new(Context {
            content: Arc::clone(&content),
            bits,
            cleaned: OnceLock::new(),
            owner: self.clone(),
        });
        self.budget.charge(Holder::Contexts, context.cost_bytes());
        match self.table.entry(content) {
            Entry::Vacant(slot) => drop(slot.insert(Arc::downgrade(&context))),
            Entry::Occupied(mut slot) => {
                // Another task was faster, or the last user of the old one is just dropping it.
                if let Some(first) = slot.get().upgrade() {
                    // Unlocks before our own copy is dropped: its `drop` takes the same lock.
                    drop(slot);
                    return Ok(first);
                }
                slot.insert(Arc::downgrade(&context));
            }
        }
        Ok(context)
    }
}

impl fmt::Debug for Contexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contexts").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// One resource and scope with their schema URLs, as they arrived.
pub struct Context {
    content: Arc<[u8]>,
    bits: Box<[u64]>,
    cleaned: OnceLock<Result<[Cleaned; 2], Unfit>>,
    owner: Contexts,
}

impl Context {
    /// The attribute conditions that the resource meets.
    pub fn bits(&self) -> &[u64] {
        &self.bits
    }

    /// The fields of `ResourceSpans` that are not spans, as they arrived.
    pub fn resource(&self) -> &[u8] {
        split(&self.content).0
    }

    /// The fields of `ScopeSpans` that are not spans, as they arrived.
    pub fn scope(&self) -> &[u8] {
        split(&self.content).1
    }

    /// Resource and scope as the backend may get them, checked and repaired once, on first use.
    ///
    /// # Errors
    /// [`Unfit`] where they are undecodable or nested too deep: no span of this context can leave.
    pub fn cleaned(&self) -> Result<&[Cleaned; 2], Unfit> {
        self.cleaned
            .get_or_init(|| Ok([clean::resource(self.resource())?, clean::scope(self.scope())?]))
            .as_ref()
            .map_err(|unfit| *unfit)
    }

    fn cost_bytes(&self) -> usize {
        self.content.len() + 8 * self.bits.len() + OVERHEAD_BYTES
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Only if nobody has put a new context in its place since the last user went.
        self.owner.table.remove_if(&self.content[..], |_, weak| weak.strong_count() == 0);
        self.owner.budget.release(Holder::Contexts, self.cost_bytes());
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("bytes", &self.content.len()).finish_non_exhaustive()
    }
}

fn split(content: &[u8]) -> (&[u8], &[u8]) {
    let (length, rest) =
        content.split_first_chunk::<SPLIT_BYTES>().expect("a content starts with its split");
    rest.split_at(u32::from_le_bytes(*length) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(resource: &[u8], scope: &[u8]) -> Vec<u8> {
        let length = u32::try_from(resource.len()).expect("short");
        [&length.to_le_bytes()[..], resource, scope].concat()
    }

    #[test]
    fn equal_content_is_one_context_and_the_last_user_frees_it() {
        let contexts = Contexts::new(Budget::new(1 << 20));
        let intern = |resource: &[u8], scope: &[u8]| {
            contexts.intern(&content(resource, scope), |_| Ok(Box::new([]))).expect("interned")
        };
        let first = intern(b"ab", b"c");
        assert!(Arc::ptr_eq(&first, &intern(b"ab", b"c")));
        let other_split = intern(b"a", b"bc");
        assert!(!Arc::ptr_eq(&first, &other_split));
        assert_eq!((first.resource(), other_split.resource()), (&b"ab"[..], &b"a"[..]));
        assert_eq!((first.scope(), other_split.scope()), (&b"c"[..], &b"bc"[..]));
        assert_eq!(contexts.len(), 2);
        drop((first, other_split));
        assert!(contexts.is_empty());
        assert_eq!(contexts.budget.used(), 0);
    }

    #[test]
    fn racing_users_share_and_leave_nothing_behind() {
        let contexts = Contexts::new(Budget::new(1 << 30));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..2_000u32 {
                        let content = content(&(round % 3).to_le_bytes(), b"");
                        let bits = |_: &[u8]| Ok(Box::from([]));
                        let context = contexts.intern(&content, bits).expect("interned");
                        assert_eq!(context.resource(), (round % 3).to_le_bytes());
                    }
                });
            }
        });
        assert!(contexts.is_empty());
        assert_eq!(contexts.budget.used(), 0);
    }
}
