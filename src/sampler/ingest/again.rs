//! Walks spans again under the lock of their shard, if a reload has changed the plan since they
//! were walked.

use std::sync::Arc;

use super::OfShard;
use crate::{
    budget::{Budget, Hold, Holder},
    otlp::{conditions::Conditions as _, rewalk::Rewalk, walk::SpanMeta},
    policy::Plan,
};

/// Some spans of a request, with their bits under another plan than the one they were walked with.
/// Needed when a reload has reached their shard, or is about to.
pub(super) struct WalkedAgain {
    spans: Vec<SpanMeta>,
    hashes: Vec<u64>,
    bits: Vec<u64>,
    order: Vec<u32>,
    _hold: Hold,
}

impl WalkedAgain {
    pub(super) fn new(of_shard: &OfShard<'_>, plan: &Plan, budget: &Arc<Budget>) -> Self {
        let (words, order) = (plan.leaves().words(), of_shard.order);
        // These are the spans of one hold of the lock, too few to need a reservation.
        let bytes = order.len() * (size_of::<SpanMeta>() + 8 + 8 * words + 4);
        let hold = budget.hold(Holder::Walking, bytes);
        let spans: Vec<_> = order.iter().map(|&index| of_shard.spans[index as usize]).collect();
        let hashes = order.iter().map(|&index| of_shard.hashes[index as usize]).collect();
        let mut bits = vec![0; spans.len() * words];
        let mut rewalk = Rewalk::new(plan.leaves());
        for (index, span) in spans.iter().enumerate() {
            let bytes = &of_shard.request[span.offset as usize..][..span.len as usize];
            let context = &of_shard.contexts[span.context as usize];
            rewalk.add(context, bytes, &mut bits[index * words..][..words]);
        }
        let order = (0..).take(spans.len()).collect();
        WalkedAgain { spans, hashes, bits, order, _hold: hold }
    }

    pub(super) fn of_shard<'a>(&'a self, before: &OfShard<'a>) -> OfShard<'a> {
        let WalkedAgain { spans, hashes, bits, order, .. } = self;
        OfShard { spans, hashes, bits, order, ..*before }
    }
}
