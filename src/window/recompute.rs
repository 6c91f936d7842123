//! New policies for old traces: the bits of what is buffered, computed anew from its bytes.

use super::{Shard, segment::Location};
use crate::otlp::{conditions::Conditions, rewalk::Rewalk};

impl Shard {
    /// Computes the bits of every undecided trace by these conditions; those of spans that come
    /// after it must be by them too. Costs what walking the shard's spans costs, all under its
    /// lock, and nothing where there are no conditions.
    pub fn recompute_bits(&mut self, conditions: &impl Conditions) {
        self.words = conditions.words();
        // A vector a thousand traces is freed and allocated under the lock, which is nothing beside
        // the walk.
        self.ring.reset_bits(self.words);
        if self.words == 0 {
            return;
        }
        let mut rewalk = Rewalk::new(conditions);
        for position in self.ring.positions() {
            if !self.is_live(position) {
                continue;
            }
            let mut location = self.entry(position).last_record;
            while location != Location::NONE {
                let segment = self.slots[location.slot as usize].as_ref();
                let segment = segment.expect("a live record is in a segment");
                let record = segment.record(location.offset);
                for (context, range) in record.spans() {
                    let span = &segment.bytes()[range];
                    rewalk.add(segment.context(context), span, self.ring.bits_mut(position));
                }
                location = record.previous();
            }
        }
    }
}
