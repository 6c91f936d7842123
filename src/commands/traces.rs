//! Traces without their bytes: the facts that a plan decides on, gathered from requests.
//!
//! `test` and `replay` use this. A request is walked once for any number of plans: their leaves
//! share one pass, side by side in the bits of a span. [`Traces`] keeps the facts, the randomness
//! and the bits of each trace, as the window of the service does, and the highest `ot=th` of its
//! spans. The bytes of a request are not kept.

use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::{
    budget::Budget,
    otlp::{
        Contexts,
        conditions::{Attribute, Conditions, Event, SpanFields},
        tracestate,
        walk::{self, SpanMeta, Unwalked, Walked},
        wire::Malformed,
    },
    policy::{Evidence, Leaves, Plan},
    trace::{Facts, Randomness, Threshold, TraceId},
};

/// The most bytes of resources and scopes of one request while it is walked.
const CONTEXT_BYTES_MAX: usize = 512 << 20;

/// The facts of one trace, without its bits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trace {
    pub(super) id: TraceId,
    pub(super) facts: Facts,
    /// Encoded bytes of its spans. A separate counter, because the one in `facts` ends at 4 GiB.
    pub(super) bytes: u64,
    explicit_randomness: Option<Randomness>,
    /// The highest `ot=th` of its spans.
    pub(super) sampled_at: Option<Threshold>,
    /// The share of all traffic that is in the file of this trace.
    pub(super) share: f64,
}

impl Trace {
    /// The randomness that is compared with a threshold.
    pub(super) fn randomness(&self) -> Randomness {
        self.explicit_randomness.unwrap_or_else(|| self.id.randomness())
    }

    /// The time of its end, in Unix nanoseconds; 0 if its spans have no times.
    pub(super) fn time(&self) -> u64 {
        self.facts.end_unix_nano.max(self.facts.start_unix_nano)
    }
}

/// The traces of all requests so far.
#[derive(Debug)]
pub(super) struct Traces {
    plans: Vec<Arc<Plan>>,
    contexts: Contexts,
    walked: Walked,
    traces: Vec<Trace>,
    /// For each trace, the bits for each plan, one after the other.
    bits: Vec<u64>,
    words: usize,
    /// Indices of `traces` by id.
    index: HashTable<u32>,
    hasher: RandomState,
}

impl Traces {
    /// An empty set of traces, to be decided by these plans.
    pub(super) fn new(plans: Vec<Arc<Plan>>) -> Self {
        Traces {
            words: plans.iter().map(|plan| plan.leaves().words()).sum(),
            plans,
            contexts: Contexts::new(Budget::new(CONTEXT_BYTES_MAX)),
            walked: Walked::default(),
            traces: Vec::new(),
            bits: Vec::new(),
            index: HashTable::new(),
            hasher: RandomState::default(),
        }
    }

    /// The most bytes that a trace takes. The tables double: while one grows, both the old and the
    /// new one exist.
    pub(super) fn bytes_per_trace(&self) -> usize {
        3 * (size_of::<Trace>() + self.words * size_of::<u64>() + size_of::<u32>() + 1)
    }

    pub(super) fn plans(&self) -> &[Arc<Plan>] {
        &self.plans
    }

    pub(super) fn all(&self) -> &[Trace] {
        &self.traces
    }

    /// Adds an `ExportTraceServiceRequest`. Returns the number of spans that were left out because
    /// they have no valid ids.
    ///
    /// # Errors
    /// [`Unwalked`]; nothing of the request was added.
    pub(super) fn add(&mut self, request: &[u8], share: f64) -> Result<u64, Unwalked> {
        self.walked.clear();
        let side_by_side = SideBySide { leaves: self.plans.iter().map(|plan| plan.leaves()) };
        walk::walk(request, &self.contexts, &side_by_side, &mut self.walked)?;
        let walked = std::mem::take(&mut self.walked);
        let words = self.words + 1;
        let mut last = None;
        for (span, bits) in walked.spans.iter().zip(walked.bits.chunks_exact(words)) {
            // Spans of one trace mostly follow one another.
            let at = match last {
                Some((id, at)) if id == span.trace_id => at,
                _ => self.find_or_add(span.trace_id, share),
            };
            last = Some((span.trace_id, at));
            self.add_span(at, span, bits);
        }
        let rejected = walked.rejected;
        self.walked = walked;
        self.walked.clear();
        Ok(rejected)
    }

    fn find_or_add(&mut self, id: TraceId, share: f64) -> usize {
        let Traces { traces, index, hasher, .. } = self;
        let hash = hash_of(hasher, id);
        if let Some(&at) = index.find(hash, |&at| traces[at as usize].id == id) {
            return at as usize;
        }
        let at = traces.len();
        let (facts, bytes) = (Facts::default(), 0);
        let (explicit_randomness, sampled_at) = (None, None);
        traces.push(Trace { id, facts, bytes, explicit_randomness, sampled_at, share });
        self.bits.resize(self.bits.len() + self.words, 0);
        // The memory limit keeps the number of traces far below 2^32.
        index.insert_unique(hash, at as u32, |&at| hash_of(hasher, traces[at as usize].id));
        at
    }

    fn add_span(&mut self, at: usize, span: &SpanMeta, bits: &[u64]) {
        let trace = &mut self.traces[at];
        span.add_to(&mut trace.facts);
        trace.bytes += u64::from(span.len);
        let randomness = &mut trace.explicit_randomness;
        *randomness = Randomness::lowest(*randomness, span.explicit_randomness);
        let mut start = 0;
        for plan in &self.plans {
            let (shape, words) = (plan.leaves().shape(), plan.leaves().words());
            let known = &mut self.bits[at * self.words + start..][..words];
            shape.merge(known, &bits[start..][..words]);
            start += words;
        }
        trace.sampled_at = trace.sampled_at.max(sampled_at(bits[self.words]));
    }

    /// The evidence on which a plan decides a trace.
    pub(super) fn evidence(&self, trace: usize, plan: usize, forced: bool) -> Evidence<'_> {
        let of = |plan: &Arc<Plan>| plan.leaves().words();
        let start: usize = self.plans[..plan].iter().map(of).sum();
        let bits = &self.bits[trace * self.words + start..][..of(&self.plans[plan])];
        let trace = &self.traces[trace];
        let (trace_id, randomness) = (trace.id, trace.randomness());
        Evidence { trace_id, facts: &trace.facts, bits, randomness, forced }
    }

    /// Removes the traces that are marked.
    pub(super) fn forget(&mut self, is_forgotten: &[bool]) {
        let mut left = 0;
        for (at, _) in is_forgotten.iter().enumerate().filter(|(_, is_forgotten)| !**is_forgotten) {
            self.traces[left] = self.traces[at];
            self.bits.copy_within(at * self.words..(at + 1) * self.words, left * self.words);
            left += 1;
        }
        self.traces.truncate(left);
        self.bits.truncate(left * self.words);
        self.index.clear();
        let Traces { traces, index, hasher, .. } = self;
        let rehash = |&at: &u32| hash_of(hasher, traces[at as usize].id);
        for at in 0..left as u32 {
            index.insert_unique(rehash(&at), at, rehash);
        }
    }
}

fn hash_of(hasher: &RandomState, id: TraceId) -> u64 {
    std::hash::BuildHasher::hash_one(hasher, id)
}

/// The leaves of several plans as the conditions of one walk. The bits of a span are theirs, one
/// after the other, and last a word with the span's `ot=th` plus one, or 0 if it has none.
struct SideBySide<I> {
    leaves: I,
}

impl<'p, I: Iterator<Item = &'p Leaves> + Clone> SideBySide<I> {
    fn each(&self, bits: &mut [u64], mut test: impl FnMut(&Leaves, &mut [u64])) {
        let mut rest = bits;
        for leaves in self.leaves.clone() {
            let (own, others) = rest.split_at_mut(leaves.words());
            test(leaves, own);
            rest = others;
        }
    }
}

impl<'p, I: Iterator<Item = &'p Leaves> + Clone> Conditions for SideBySide<I> {
    fn words(&self) -> usize {
        self.leaves.clone().map(Conditions::words).sum::<usize>() + 1
    }

    fn reads_attributes(&self) -> bool {
        self.leaves.clone().any(Conditions::reads_attributes)
    }

    fn reads_fields(&self) -> bool {
        true
    }

    fn reads_events(&self) -> bool {
        self.leaves.clone().any(Conditions::reads_events)
    }

    fn test_attribute(&self, attribute: Attribute<'_>, bits: &mut [u64]) -> Result<(), Malformed> {
        let mut outcome = Ok(());
        self.each(bits, |leaves, bits| {
            if leaves.reads_attributes() {
                outcome = outcome.and(leaves.test_attribute(attribute, bits));
            }
        });
        outcome
    }

    fn test_resource_attribute(
        &self,
        attribute: Attribute<'_>,
        bits: &mut [u64],
    ) -> Result<(), Malformed> {
        let mut outcome = Ok(());
        self.each(bits, |leaves, bits| {
            outcome = outcome.and(leaves.test_resource_attribute(attribute, bits));
        });
        outcome
    }

    fn test_event(&self, event: Event<'_>, bits: &mut [u64]) -> Result<(), Malformed> {
        let mut outcome = Ok(());
        self.each(bits, |leaves, bits| {
            if leaves.reads_events() {
                outcome = outcome.and(leaves.test_event(event, bits));
            }
        });
        outcome
    }

    fn test_span(&self, fields: &SpanFields<'_>, bits: &mut [u64]) {
        self.each(bits, |leaves, bits| {
            if leaves.reads_fields() {
                leaves.test_span(fields, bits);
            }
        });
        if let (Some(word), Some(threshold)) =
            (bits.last_mut(), tracestate::threshold(fields.trace_state))
        {
            *word = threshold.bits() + 1;
        }
    }

    fn describe_span(&self, fields: &SpanFields<'_>, words: &mut [u64]) {
        self.each(words, |leaves, words| leaves.describe_span(fields, words));
    }
}

fn sampled_at(word: u64) -> Option<Threshold> {
    word.checked_sub(1).map(Threshold::from_bits)
}
