//! The ring: one 64-byte entry per trace, in order of arrival. The index points into it, and it is
//! also the FIFO of deadlines: `decision_wait` starts at a trace's first span and is the same for
//! all traces, so order of arrival is order of deadline and no timer structure is needed. Compared
//! with a map of entries plus a queue, the ring (with recycled buffers) saved 0.15 of 0.75 CPU-s
//! per million spans and reduced memory from 1.24 to 1.05 times the window, as measured on a
//! prototype.
//!
//! Entries are stored in chunks of 1024, so the ring grows without moving entries, and memory at
//! the front is freed as traces are decided. The entry of a trace that is decided early stays as a
//! dead entry until the front reaches it; it costs 64 bytes for at most one `decision_wait`.
//!
//! With many conditions, the bits of a trace are much larger than its entry: 1.3 MB per chunk with
//! 10,000 conditions. In that case the vector of bits grows with the entries instead of being
//! allocated at once, and an empty ring frees it, so shards without traces do not hold that memory.
//!
//! If the shard reads from a log with positions, a chunk also has 8 bytes per trace: the position
//! below which all requests had been taken in when the trace was added (`sampler/positions.rs`).

use std::collections::VecDeque;

use super::{Millis, segment::Location};
use crate::trace::{Facts, Randomness, TraceId};

const CHUNK: usize = 1024;
/// Up to this many words, the bits of a chunk are allocated at once and kept while the ring is
/// empty.
const WORDS_KEPT: usize = 8 << 10;

/// The position of a trace: a sequence number. The ring holds a contiguous range of them. 32 bits
/// are enough: a number would repeat only if a shard held four thousand million traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position(pub(super) u32);

/// A buffered trace, or the dead entry of a decided one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(crate) trace_id: TraceId,
    start_unix_nano: u64,
    end_unix_nano: u64,
    /// The attribute bits, if one word is enough; otherwise they are in the chunk.
    word: u64,
    pub(crate) last_record: Location,
    pub(crate) arrived: Millis,
    spans: u32,
    bytes: u32,
    status_mask: u8,
    root_seen: bool,
    /// Whether the trace is undecided.
    pub(crate) is_live: bool,
    /// Whether the window's side table has an explicit randomness for this trace.
    pub(crate) has_randomness: bool,
}

const _: () = assert!(size_of::<Entry>() == 64, "an entry is one cache line");

impl Entry {
    pub(super) fn new(trace_id: TraceId, arrived: Millis) -> Self {
        Entry {
            trace_id,
            start_unix_nano: 0,
            end_unix_nano: 0,
            word: 0,
            last_record: Location::NONE,
            arrived,
            spans: 0,
            bytes: 0,
            status_mask: 0,
            root_seen: false,
            is_live: true,
            has_randomness: false,
        }
    }

    pub(super) fn facts(&self) -> Facts {
        Facts {
            start_unix_nano: self.start_unix_nano,
            end_unix_nano: self.end_unix_nano,
            spans: self.spans,
            bytes: self.bytes,
            status_mask: self.status_mask,
            root_seen: self.root_seen,
        }
    }

    pub(super) fn spans(&self) -> u32 {
        self.spans
    }

    pub(super) fn bytes(&self) -> u32 {
        self.bytes
    }

    pub(super) fn root_seen(&self) -> bool {
        self.root_seen
    }

    /// Adds the facts of one span. A start or end of zero is ignored.
    pub(super) fn add(&mut self, span: &crate::otlp::walk::SpanMeta) {
        let mut facts = self.facts();
        span.add_to(&mut facts);
        let Facts { start_unix_nano, end_unix_nano, spans, bytes, status_mask, root_seen } = facts;
        self.start_unix_nano = start_unix_nano;
        self.end_unix_nano = end_unix_nano;
        self.spans = spans;
        self.bytes = bytes;
        self.status_mask = status_mask;
        self.root_seen = root_seen;
    }
}

#[derive(Debug)]
struct Chunk {
    entries: Vec<Entry>,
    /// `words` words per trace if one word is not enough, otherwise empty.
    words: Vec<u64>,
    /// One position per trace if positions are kept, otherwise empty.
    lows: Vec<u64>,
}

/// Entries in order of arrival.
#[derive(Debug)]
pub(super) struct Ring {
    chunks: VecDeque<Chunk>,
    spare: Option<Chunk>,
    /// The sequence number of the first entry of the first chunk.
    base: u32,
    /// The number of entries of the first chunk that have left the ring.
    front: usize,
    words: usize,
    keeps_positions: bool,
}

impl Ring {
    /// A ring whose entries have `words` words of attribute bits.
    pub(super) fn new(words: usize) -> Self {
        let keeps_positions = false;
        Ring { chunks: VecDeque::new(), spare: None, base: 0, front: 0, words, keeps_positions }
    }

    /// From now on, a position is kept for each entry. Called while the ring is empty.
    pub(super) fn keep_positions(&mut self) {
        self.keeps_positions = true;
    }

    /// The position that an entry was pushed with.
    pub(super) fn low(&self, position: Position) -> Option<u64> {
        let (chunk, offset) = self.index(position);
        self.chunks.get(chunk)?.lows.get(offset).copied()
    }

    /// The oldest entry that is still in the ring, whether live or dead.
    pub(super) fn front(&self) -> Option<Position> {
        let chunk = self.chunks.front()?;
        (self.front < chunk.entries.len())
            .then(|| Position(self.base.wrapping_add(self.front as u32)))
    }

    /// Removes the entry at the front.
    pub(super) fn pop_front(&mut self) {
        self.front += 1;
        if self.front == CHUNK {
            self.spare = self.chunks.pop_front();
            self.base = self.base.wrapping_add(CHUNK as u32);
            self.front = 0;
        }
        if self.words_per_chunk() > WORDS_KEPT && self.front().is_none() {
            self.give_back_words();
        }
    }

    /// Frees the bits of an empty ring. This happens under the lock, but it is a single vector, and
    /// only with more than 500 conditions.
    fn give_back_words(&mut self) {
        self.spare = None;
        if let Some(chunk) = self.chunks.front_mut() {
            // Keep the sequence of positions.
            self.base = self.base.wrapping_add(self.front as u32);
            self.front = 0;
            chunk.entries.clear();
            chunk.lows.clear();
            chunk.words = Vec::new();
        }
    }

    /// Adds an entry. Stores `low` if the ring keeps positions.
    pub(super) fn push(&mut self, entry: Entry, low: u64) -> Position {
        if self.chunks.back().is_none_or(|chunk| chunk.entries.len() == CHUNK) {
            let mut chunk = self.spare.take().unwrap_or_else(|| Chunk {
                entries: Vec::with_capacity(CHUNK),
                words: Vec::with_capacity(self.words_at_first()),
                lows: Vec::with_capacity(if self.keeps_positions { CHUNK } else { 0 }),
            });
            chunk.entries.clear();
            chunk.words.clear();
            chunk.lows.clear();
            self.chunks.push_back(chunk);
        }
        let index = (self.chunks.len() - 1) * CHUNK;
        let words = if self.words > 1 { self.words } else { 0 };
        let chunk = self.chunks.back_mut().expect("one was pushed if there was none");
        let offset = index + chunk.entries.len();
        chunk.entries.push(entry);
        chunk.words.extend(std::iter::repeat_n(0, words));
        if self.keeps_positions {
            chunk.lows.push(low);
        }
        Position(self.base.wrapping_add(offset as u32))
    }

    fn words_per_chunk(&self) -> usize {
        if self.words > 1 { self.words * CHUNK } else { 0 }
    }

    /// The number of words that an empty chunk has room for.
    fn words_at_first(&self) -> usize {
        Some(self.words_per_chunk()).filter(|&words| words <= WORDS_KEPT).unwrap_or(0)
    }

    fn index(&self, position: Position) -> (usize, usize) {
        let offset = position.0.wrapping_sub(self.base) as usize;
        (offset / CHUNK, offset % CHUNK)
    }

    /// The entry at a position that the index or a deadline names; `None` if it has left the ring.
    pub(super) fn get(&self, position: Position) -> Option<&Entry> {
        let (chunk, offset) = self.index(position);
        self.chunks.get(chunk)?.entries.get(offset)
    }

    pub(super) fn get_mut(&mut self, position: Position) -> Option<&mut Entry> {
        let (chunk, offset) = self.index(position);
        self.chunks.get_mut(chunk)?.entries.get_mut(offset)
    }

    /// The attribute bits of a trace.
    pub(super) fn bits(&self, position: Position) -> &[u64] {
        let (chunk, offset) = self.index(position);
        let chunk = &self.chunks[chunk];
        match self.words {
            0 => &[],
            1 => std::slice::from_ref(&chunk.entries[offset].word),
            words => &chunk.words[offset * words..][..words],
        }
    }

    pub(super) fn bits_mut(&mut self, position: Position) -> &mut [u64] {
        let (chunk, offset) = self.index(position);
        let chunk = &mut self.chunks[chunk];
        match self.words {
            0 => &mut [],
            1 => std::slice::from_mut(&mut chunk.entries[offset].word),
            words => &mut chunk.words[offset * words..][..words],
        }
    }

    /// Gives every entry this many words of bits, all unset. It frees and allocates one vector per
    /// thousand entries, which is cheap enough to do under the lock.
    pub(super) fn reset_bits(&mut self, words: usize) {
        self.words = words;
        self.spare = None;
        let capacity = self.words_at_first();
        for chunk in &mut self.chunks {
            chunk.entries.iter_mut().for_each(|entry| entry.word = 0);
            chunk.words = Vec::with_capacity(capacity);
            if words > 1 {
                chunk.words.resize(words * chunk.entries.len(), 0);
            }
        }
    }

    /// The position at the front, even if the ring is empty.
    pub(super) fn first(&self) -> Position {
        Position(self.base.wrapping_add(self.front as u32))
    }

    /// All positions from the front on, including dead entries.
    pub(super) fn positions(&self) -> impl Iterator<Item = Position> + use<> {
        let entries: usize = self.chunks.iter().map(|chunk| chunk.entries.len()).sum();
        let base = self.base;
        (self.front..entries).map(move |offset| Position(base.wrapping_add(offset as u32)))
    }

    /// The bytes that the ring holds.
    pub(super) fn bytes(&self) -> usize {
        let chunks = self.chunks.len() + usize::from(self.spare.is_some());
        let words = match self.words_at_first() {
            // This vector grows with the entries.
            0 if self.words > 1 => {
                self.chunks.iter().chain(&self.spare).map(|chunk| chunk.words.capacity()).sum()
            }
            words => chunks * words,
        };
        let lows = if self.keeps_positions { chunks * CHUNK } else { 0 };
        chunks * CHUNK * size_of::<Entry>() + 8 * (words + lows)
    }
}

/// The explicit randomness of the few traces that have one. A side table keeps the entry at one
/// cache line.
pub(super) type ExplicitRandomness =
    std::collections::HashMap<Position, Randomness, foldhash::fast::RandomState>;
