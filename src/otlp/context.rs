//! Interned contexts: each resource and scope, with its schema URL, is stored once for all its
//! spans.
//!
//! A [`Resource`] is the raw bytes of a `ResourceSpans` without its scopes. A [`Context`] adds the
//! raw bytes of a `ScopeSpans` without its spans. Unknown and repeated fields are therefore
//! exported as they arrived. Resources and scopes are interned separately because a request may
//! name thousands of scopes of one large resource, which must not be copied for each of them.
//!
//! Identity is the content, not a hash of it: a hash collision must never swap the spans of two
//! resources. The tables hold weak references, and an entry removes itself when its last user drops
//! it, so an unbounded number of resources does not leak memory. The bits that policies compute
//! from a resource are not stored here, because they belong to one set of policies and a context
//! outlives a reload.
//!
//! Every outgoing request repeats the contexts of its spans. A resource and a scope may therefore
//! each have at most a quarter of the largest request, both as they arrive and as they are
//! exported. That leaves half of a request to spans, and each request that repeats a context
//! carries at least about a quarter of its length in spans.
//!
//! Connection tasks call this module without a shard lock. The lock of a `dashmap` shard is held
//! for one look-up.

use std::{
    fmt,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use dashmap::{DashMap, Entry};

use super::clean::{self, Cleaned, Unfit};
use crate::budget::{Budget, Holder};

/// The bytes of an entry in addition to its content: two reference-counted headers and the slot in
/// the table.
const OVERHEAD_BYTES: usize = 200;

/// The minimum number of entries that a table keeps room for.
const SPARE_ENTRIES: usize = 16 << 10;

/// The bytes of the resource id at the start of a context's key.
const ID_BYTES: usize = 8;

/// The resources and contexts in use.
#[derive(Clone)]
pub struct Contexts(Arc<Tables>);

struct Tables {
    resources: Table<Resource>,
    contexts: Table<Context>,
    next_id: AtomicU64,
    budget: Arc<Budget>,
    /// The most bytes of a resource, and of a scope.
    bytes_max: usize,
}

impl Contexts {
    /// Empty tables that charge `budget`, for resources and scopes of any size.
    pub fn new(budget: Arc<Budget>) -> Self {
        Self::with_bytes_max(budget, usize::MAX)
    }

    /// Empty tables for resources, and for scopes, of at most `bytes_max` each.
    pub(crate) fn with_bytes_max(budget: Arc<Budget>, bytes_max: usize) -> Self {
        let (resources, contexts) = (Table::default(), Table::default());
        let next_id = AtomicU64::new(0);
        Contexts(Arc::new(Tables { resources, contexts, next_id, budget, bytes_max }))
    }

    /// The most bytes that the resource, and the scope, of a span may have.
    pub(crate) fn bytes_max(&self) -> usize {
        self.0.bytes_max
    }

    /// The number of contexts in use.
    pub fn len(&self) -> usize {
        self.0.contexts.0.len()
    }

    /// Whether no context and no resource is in use.
    pub fn is_empty(&self) -> bool {
        self.0.contexts.0.is_empty() && self.0.resources.0.is_empty()
    }

    /// Shrinks tables that have far more room than they need. Called once per tick; it only
    /// compares a few numbers unless a table can shrink.
    pub(crate) fn trim(&self) {
        self.0.resources.trim();
        self.0.contexts.trim();
    }

    /// Whether the budget has room for a resource or a scope of this many bytes, or for both.
    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        self.0.budget.used() + bytes <= self.0.budget.limit()
    }

    /// The budget that they are charged to.
    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.0.budget
    }

    /// The resource with these bytes.
    pub fn resource(&self, arrived: &[u8]) -> Arc<Resource> {
        if let Some(resource) = self.0.resources.get(arrived) {
            return resource;
        }
        let resource = Arc::new(Resource {
            id: self.0.next_id.fetch_add(1, Relaxed),
            arrived: arrived.into(),
            cleaned: OnceLock::new(),
            labels: OnceLock::new(),
            owner: self.clone(),
        });
        self.0.budget.charge(Holder::Contexts, resource.cost_bytes());
        self.0.resources.insert(&resource.arrived, &resource)
    }

    /// The context of a resource and the bytes of a scope. `key` is a scratch buffer.
    pub fn context(
        &self,
        resource: &Arc<Resource>,
        scope: &[u8],
        key: &mut Vec<u8>,
    ) -> Arc<Context> {
        key.clear();
        key.extend_from_slice(&resource.id.to_le_bytes());
        key.extend_from_slice(scope);
        if let Some(context) = self.0.contexts.get(key) {
            return context;
        }
        let context = Arc::new(Context {
            resource: Arc::clone(resource),
            key: key.as_slice().into(),
            cleaned: OnceLock::new(),
        });
        self.0.budget.charge(Holder::Contexts, context.cost_bytes());
        self.0.contexts.insert(&context.key, &context)
    }
}

impl Contexts {
    /// Charges the memory of a repair until the resource or scope is dropped. A result that is too
    /// large to export is dropped at once.
    fn charged(&self, cleaned: Result<Cleaned, Unfit>) -> Result<Cleaned, Unfit> {
        let cleaned = cleaned.and_then(|cleaned| {
            if cleaned.repaired_bytes() > self.0.bytes_max { Err(Unfit) } else { Ok(cleaned) }
        });
        self.0.budget.charge(Holder::Contexts, repaired_bytes(Some(&cleaned)));
        cleaned
    }
}

fn repaired_bytes(cleaned: Option<&Result<Cleaned, Unfit>>) -> usize {
    match cleaned {
        Some(Ok(cleaned)) => cleaned.repaired_bytes(),
        Some(Err(_)) | None => 0,
    }
}

impl fmt::Debug for Contexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contexts").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// The values in use, by their content.
struct Table<T>(DashMap<Arc<[u8]>, Weak<T>, foldhash::fast::RandomState>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table(DashMap::default())
    }
}

impl<T> Table<T> {
    fn get(&self, key: &[u8]) -> Option<Arc<T>> {
        self.0.get(key)?.upgrade()
    }

    /// The value that is now in the table: `value`, unless another task was faster.
    fn insert(&self, key: &Arc<[u8]>, value: &Arc<T>) -> Arc<T> {
        match self.0.entry(Arc::clone(key)) {
            Entry::Vacant(slot) => drop(slot.insert(Arc::downgrade(value))),
            Entry::Occupied(mut slot) => {
                if let Some(first) = slot.get().upgrade() {
                    return first;
                }
                // The last user of the old value is dropping it at this moment.
                slot.insert(Arc::downgrade(value));
            }
        }
        Arc::clone(value)
    }

    fn trim(&self) {
        let capacity = self.0.capacity();
        if capacity > SPARE_ENTRIES && capacity / 8 > self.0.len() {
            self.0.shrink_to_fit();
        }
    }

    /// Removes a value without users, unless a new value has taken its place.
    fn forget(&self, key: &[u8]) {
        self.0.remove_if(key, |_, weak| weak.strong_count() == 0);
    }
}

/// A resource with its schema URL, as it arrived.
pub struct Resource {
    id: u64,
    arrived: Arc<[u8]>,
    cleaned: OnceLock<Result<Cleaned, Unfit>>,
    labels: OnceLock<Box<[u8]>>,
    owner: Contexts,
}

impl Resource {
    /// An id that is unique among all resources of the service and never reused.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// The fields of `ResourceSpans` other than scopes, as they arrived.
    pub fn arrived(&self) -> &[u8] {
        &self.arrived
    }

    /// The same fields, checked and repaired for the backend. Computed once, on first use.
    ///
    /// # Errors
    /// [`Unfit`] if they are undecodable, nested too deep, or too large after their strings were
    /// repaired. No span of this resource can be exported then.
    pub(crate) fn cleaned(&self) -> Result<&Cleaned, Unfit> {
        let cleaned =
            self.cleaned.get_or_init(|| self.owner.charged(clean::resource(&self.arrived)));
        cleaned.as_ref().map_err(|unfit| *unfit)
    }

    /// Bytes that depend on nothing but the resource, computed once while it is in use: its part
    /// of the labels of span metrics. They are charged, so they should not be longer than a few
    /// values.
    pub(crate) fn labels(&self, compute: impl FnOnce(&[u8]) -> Box<[u8]>) -> &[u8] {
        self.labels.get_or_init(|| {
            let labels = compute(&self.arrived);
            self.owner.0.budget.charge(Holder::Contexts, labels.len());
            labels
        })
    }

    /// The bytes charged for it.
    pub(super) fn cost_bytes(&self) -> usize {
        let labels = self.labels.get().map_or(0, |labels| labels.len());
        self.arrived.len() + repaired_bytes(self.cleaned.get()) + labels + OVERHEAD_BYTES
    }
}

impl Drop for Resource {
    fn drop(&mut self) {
        self.owner.0.resources.forget(&self.arrived);
        self.owner.0.budget.release(Holder::Contexts, self.cost_bytes());
    }
}

impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resource").field("bytes", &self.arrived.len()).finish_non_exhaustive()
    }
}

/// A scope of a resource, with its schema URL, as it arrived.
pub struct Context {
    resource: Arc<Resource>,
    /// The resource's id, then the scope's bytes.
    key: Arc<[u8]>,
    cleaned: OnceLock<Result<Cleaned, Unfit>>,
}

impl Context {
    /// The resource.
    pub fn resource(&self) -> &Arc<Resource> {
        &self.resource
    }

    /// The fields of `ScopeSpans` other than spans, as they arrived.
    pub fn scope(&self) -> &[u8] {
        &self.key[ID_BYTES..]
    }

    /// The same fields, checked and repaired for the backend. Computed once, on first use.
    ///
    /// # Errors
    /// [`Unfit`] if they are undecodable, nested too deep, or too large after their strings were
    /// repaired. No span of this scope can be exported then.
    pub(crate) fn cleaned(&self) -> Result<&Cleaned, Unfit> {
        let owner = &self.resource.owner;
        let cleaned = self.cleaned.get_or_init(|| owner.charged(clean::scope(self.scope())));
        cleaned.as_ref().map_err(|unfit| *unfit)
    }

    /// The bytes charged for it.
    pub(super) fn cost_bytes(&self) -> usize {
        self.key.len() + repaired_bytes(self.cleaned.get()) + OVERHEAD_BYTES
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let tables = &self.resource.owner.0;
        tables.contexts.forget(&self.key);
        tables.budget.release(Holder::Contexts, self.cost_bytes());
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("bytes", &self.key.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intern(contexts: &Contexts, resource: &[u8], scope: &[u8]) -> Arc<Context> {
        let resource = contexts.resource(resource);
        contexts.context(&resource, scope, &mut Vec::new())
    }

    #[test]
    fn equal_content_is_one_context_and_the_last_user_frees_it() {
        let contexts = Contexts::new(Budget::new(1 << 20));
        let first = intern(&contexts, b"ab", b"c");
        assert!(Arc::ptr_eq(&first, &intern(&contexts, b"ab", b"c")));
        let other_split = intern(&contexts, b"a", b"bc");
        assert!(!Arc::ptr_eq(&first, &other_split));
        assert_eq!(first.resource().arrived(), b"ab");
        assert_eq!(other_split.resource().arrived(), b"a");
        assert_eq!((first.scope(), other_split.scope()), (&b"c"[..], &b"bc"[..]));
        assert_eq!(contexts.len(), 2);
        drop((first, other_split));
        assert!(contexts.is_empty());
        assert_eq!(contexts.0.budget.used(), 0);
    }

    #[test]
    fn repairs_are_charged_and_bounded() {
        let latin1 = |letters: usize| {
            let mut schema_url = Vec::new();
            crate::otlp::wire::put_length_delimited(&mut schema_url, 3, letters);
            schema_url.resize(schema_url.len() + letters, 0xe9);
            schema_url
        };
        let budget = Budget::new(1 << 20);
        let contexts = Contexts::with_bytes_max(Arc::clone(&budget), 1_000);
        let context = intern(&contexts, &latin1(300), &latin1(400));
        let before = budget.used();
        assert!(context.resource().cleaned().is_ok_and(|cleaned| cleaned.repairs.strings == 1));
        assert_eq!(budget.used(), before + 903, "three bytes a letter, and a tag");
        assert_eq!(context.cleaned().map(|_| ()), Err(Unfit), "1,200 bytes are too many");
        assert_eq!(budget.used(), before + 903);
        drop(context);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn tables_shrink_after_many_contexts() {
        let contexts = Contexts::new(Budget::new(1 << 30));
        let many: Vec<_> =
            (0..100_000u32).map(|n| intern(&contexts, &n.to_le_bytes(), b"")).collect();
        contexts.trim();
        assert!(contexts.0.resources.0.capacity() >= 100_000);
        drop(many);
        contexts.trim();
        let tables = &contexts.0;
        let capacity = tables.resources.0.capacity() + tables.contexts.0.capacity();
        assert!(capacity < 4_096, "{capacity}");
    }

    #[test]
    fn scopes_share_their_resource() {
        let budget = Budget::new(1 << 30);
        let contexts = Contexts::new(Arc::clone(&budget));
        let large = vec![7; 1 << 20];
        let scopes: Vec<_> =
            (0..1_000u32).map(|scope| intern(&contexts, &large, &scope.to_le_bytes())).collect();
        assert!(Arc::ptr_eq(scopes[0].resource(), scopes[999].resource()));
        assert!(budget.used() < 2 << 20, "{} bytes", budget.used());
    }

    #[test]
    fn racing_users_share_and_leave_nothing_behind() {
        let contexts = Contexts::new(Budget::new(1 << 30));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..2_000u32 {
                        let resource = (round % 3).to_le_bytes();
                        let context = intern(&contexts, &resource, b"");
                        assert_eq!(context.resource().arrived(), resource);
                    }
                });
            }
        });
        assert!(contexts.is_empty());
        assert_eq!(contexts.0.budget.used(), 0);
    }
}
