//! Segments: the log to which span records are appended, and the pool of their buffers.
//!
//! A segment is 256 KiB; it is larger only if a single record needs more. It is written while it is
//! open, sealed when it is full, and then read through shared [`Bytes`]. It is free when no record
//! in it belongs to an undecided trace; segments become free in any order. A free segment's buffer
//! returns to the pool after its last reader has dropped its bytes, and is reused. Fresh pages cost
//! up to 1.1 CPU-s of page faults per million spans, recycled pages none.
//!
//! The format uses offsets instead of pointers, so it could be stored in a file. A header (magic,
//! version, time of opening) is followed by records. A record holds the spans of one trace that
//! arrived together: the record's length and the trace id, then for each span its length, the index
//! of its context in the segment's list, and its bytes. A sealed segment ends with a table. For
//! each record, the table gives its offset, and the segment and number of the previous record of
//! the same trace. All numbers are little endian.
//!
//! About nine of ten traces are dropped. A dropped trace is removed by means of the tables alone.
//! Reading the header of each of its records would wait for one cache line per record, while five
//! table entries share a cache line.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use bytes::Bytes;
use hashbrown::HashTable;

use super::Millis;
use crate::{
    budget::{Budget, Holder},
    otlp::Context,
    trace::TraceId,
};

/// Capacity of a segment, unless one record needs more.
pub const SEGMENT_BYTES: usize = 256 << 10;
/// Magic, version, two unused bytes, and the time of opening in milliseconds.
const HEADER: [u8; 8] = *b"TWSG\x01\0\0\0";
/// Bytes of the segment header.
pub(super) const HEADER_BYTES: usize = HEADER.len() + 4;
/// The record's length and the trace id.
pub(super) const RECORD_HEADER_BYTES: usize = 4 + 16;
/// The span's length and its context.
pub(super) const SPAN_HEADER_BYTES: usize = 4 + 2;
/// A spare buffer is freed when nothing has used it for this long.
const POOL_TRIM_INTERVAL_MILLIS: u32 = 10_000;

/// Buffers that wait for reuse.
#[derive(Debug)]
pub struct Pool {
    spare: Mutex<Spare>,
    next_id: AtomicU64,
    budget: Arc<Budget>,
}

#[derive(Debug, Default)]
struct Spare {
    buffers: Vec<Vec<u8>>,
    /// The lowest number of spare buffers since the last trim: this many buffers were never used.
    fewest: usize,
    trimmed_at: Millis,
}

impl Pool {
    /// An empty pool. It charges its buffers, used and spare, to `budget`.
    pub fn new(budget: Arc<Budget>) -> Arc<Self> {
        Arc::new(Pool { spare: Mutex::default(), next_id: AtomicU64::new(0), budget })
    }

    /// An empty buffer of at least `capacity` bytes.
    fn take(self: &Arc<Self>, capacity: usize) -> Buffer {
        let recycled = if capacity > SEGMENT_BYTES { None } else { self.pop() };
        let bytes = recycled.unwrap_or_else(|| {
            let bytes = Vec::with_capacity(capacity.max(SEGMENT_BYTES));
            self.budget.charge(Holder::Segments, bytes.capacity());
            bytes
        });
        Buffer { bytes, pool: Arc::clone(self) }
    }

    fn pop(&self) -> Option<Vec<u8>> {
        let mut spare = self.lock();
        let buffer = spare.buffers.pop();
        spare.fewest = spare.fewest.min(spare.buffers.len());
        buffer
    }

    /// The bytes of spare buffers.
    pub(crate) fn spare_bytes(&self) -> usize {
        self.lock().buffers.len() * SEGMENT_BYTES
    }

    /// Frees spare buffers: those that nothing has used for ten seconds, and, while memory is above
    /// the soft limit, as many as exceed it. Spare memory therefore never causes refused requests
    /// or early decisions.
    pub(crate) fn trim(&self, now: Millis) {
        let mut spare = self.lock();
        let mut surplus = 0;
        if now.since(spare.trimmed_at) >= POOL_TRIM_INTERVAL_MILLIS {
            surplus = spare.fewest;
            spare.trimmed_at = now;
            spare.fewest = spare.buffers.len();
        }
        let above = self.budget.used().saturating_sub(self.budget.soft_limit());
        surplus = surplus.max(above.div_ceil(SEGMENT_BYTES)).min(spare.buffers.len());
        let remaining = spare.buffers.len() - surplus;
        let freed = spare.buffers.split_off(remaining);
        spare.fewest = spare.fewest.min(remaining);
        drop(spare);
        self.budget.release(Holder::Segments, freed.iter().map(Vec::capacity).sum());
    }

    fn lock(&self) -> MutexGuard<'_, Spare> {
        // A panic cannot leave a list of buffers half changed.
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.budget.release(Holder::Segments, self.spare_bytes());
    }
}

/// A buffer that returns to its pool when dropped.
#[derive(Debug)]
struct Buffer {
    bytes: Vec<u8>,
    pool: Arc<Pool>,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        if bytes.capacity() != SEGMENT_BYTES {
            self.pool.budget.release(Holder::Segments, bytes.capacity());
            return;
        }
        bytes.clear();
        self.pool.lock().buffers.push(bytes);
    }
}

/// The location of a record: the slot of its segment, and its number within the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    pub(crate) slot: u32,
    pub(crate) record: u32,
}

impl Location {
    /// No record.
    pub(super) const NONE: Location = Location { slot: u32::MAX, record: 0 };
}

/// The entry of a record in the table of its segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct TableEntry {
    offset: u32,
    /// The previous record of the same trace.
    previous: Location,
}

/// The size of a table entry in bytes.
const TABLE_ENTRY_BYTES: usize = 4 + 8;

impl TableEntry {
    fn write(&self, buffer: &mut Vec<u8>) {
        let mut bytes = [0; TABLE_ENTRY_BYTES];
        bytes[..4].copy_from_slice(&self.offset.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.previous.slot.to_le_bytes());
        bytes[8..].copy_from_slice(&self.previous.record.to_le_bytes());
        buffer.extend_from_slice(&bytes);
    }

    fn read(table: &[u8], number: u32) -> Self {
        let bytes = &table[number as usize * TABLE_ENTRY_BYTES..][..TABLE_ENTRY_BYTES];
        let previous = Location { slot: read_u32(bytes, 4), record: read_u32(bytes, 8) };
        TableEntry { offset: read_u32(bytes, 0), previous }
    }
}

/// A segment and the contexts that its records refer to.
#[derive(Debug)]
pub struct Segment {
    /// Unique over all shards, so a cached context index is never used with another segment.
    pub(super) id: u64,
    bytes: SegmentBytes,
    /// The end of the last finished record, where the table begins.
    end: usize,
    /// Shared with readers that walk the segment without the lock.
    contexts: Arc<Vec<Arc<Context>>>,
    /// The bytes of records that belong to undecided traces.
    pub(super) live: usize,
    /// Whether the segment is queued for compaction.
    pub(super) is_cold: bool,
}

#[derive(Debug)]
enum SegmentBytes {
    Open(Buffer, Tables),
    Sealed(Bytes),
}

/// Tables of an open segment. Their buffers move from one open segment to the next.
#[derive(Debug, Default)]
pub(super) struct Tables {
    records: Vec<TableEntry>,
    /// Finds a context in the segment's list.
    contexts: HashTable<u16>,
}

impl Segment {
    /// Opens a segment that can hold a record of `record_bytes`, with empty tables.
    pub(super) fn open(pool: &Arc<Pool>, record_bytes: usize, now: Millis, tables: Tables) -> Self {
        let mut buffer = pool.take(HEADER_BYTES + record_bytes + TABLE_ENTRY_BYTES);
        buffer.bytes.extend_from_slice(&HEADER);
        buffer.bytes.extend_from_slice(&now.0.to_le_bytes());
        Segment {
            id: pool.next_id.fetch_add(1, Relaxed),
            bytes: SegmentBytes::Open(buffer, tables),
            end: HEADER_BYTES,
            contexts: Arc::default(),
            live: 0,
            is_cold: false,
        }
    }

    /// Seals the segment: it can then be read without the shard's lock and is never written again.
    /// Returns the cleared tables for the next segment.
    pub(super) fn seal(&mut self) -> Tables {
        let sealed = SegmentBytes::Sealed(Bytes::new());
        match std::mem::replace(&mut self.bytes, sealed) {
            SegmentBytes::Open(mut buffer, mut tables) => {
                buffer.bytes.truncate(self.end);
                tables.records.drain(..).for_each(|entry| entry.write(&mut buffer.bytes));
                tables.contexts.clear();
                self.bytes = SegmentBytes::Sealed(Bytes::from_owner(buffer));
                tables
            }
            SegmentBytes::Sealed(_) => unreachable!("only an open segment is sealed"),
        }
    }

    pub(super) fn is_sealed(&self) -> bool {
        matches!(self.bytes, SegmentBytes::Sealed(_))
    }

    /// All bytes written so far.
    pub(super) fn bytes(&self) -> &[u8] {
        match &self.bytes {
            SegmentBytes::Open(buffer, _) => &buffer.bytes,
            SegmentBytes::Sealed(bytes) => bytes,
        }
    }

    /// The bytes that are left for one more record.
    pub(super) fn room(&self) -> usize {
        match &self.bytes {
            SegmentBytes::Open(buffer, tables) => {
                let table_bytes = (tables.records.len() + 1) * TABLE_ENTRY_BYTES;
                buffer.bytes.capacity().saturating_sub(self.end + table_bytes)
            }
            SegmentBytes::Sealed(_) => 0,
        }
    }

    pub(super) fn contexts(&self) -> &Arc<Vec<Arc<Context>>> {
        &self.contexts
    }

    /// The segment's current contents: shared if it is sealed, a copy if it is open.
    pub(super) fn view(&self) -> SegmentView {
        let bytes = match &self.bytes {
            SegmentBytes::Open(buffer, tables) => {
                let mut bytes = buffer.bytes[..self.end].to_vec();
                tables.records.iter().for_each(|entry| entry.write(&mut bytes));
                bytes.into()
            }
            SegmentBytes::Sealed(bytes) => bytes.clone(),
        };
        let contexts = Arc::clone(&self.contexts);
        SegmentView { id: self.id, bytes, end: self.end, contexts }
    }

    /// The index of a context in this segment's table. The table keeps the context alive as long as
    /// the segment.
    pub(super) fn context_index(&mut self, context: &Arc<Context>) -> u16 {
        let address = |context: &Arc<Context>| Arc::as_ptr(context).addr() as u64;
        // The allocator, not a sender, chooses the addresses of contexts, so a multiplication is
        // enough of a hash.
        let hash = |address: u64| address.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let wanted = address(context);
        let SegmentBytes::Open(_, Tables { contexts: indices, .. }) = &mut self.bytes else {
            unreachable!("nothing is added to a sealed segment");
        };
        let contexts = &self.contexts;
        let same = |&index: &u16| address(&contexts[usize::from(index)]) == wanted;
        if let Some(&index) = indices.find(hash(wanted), same) {
            return index;
        }
        let index = u16::try_from(self.contexts.len())
            .expect("a segment of 256 KiB has room for fewer than 65,536 spans");
        Arc::make_mut(&mut self.contexts).push(Arc::clone(context));
        let contexts = &self.contexts;
        let rehash = |&index: &u16| hash(address(&contexts[usize::from(index)]));
        indices.insert_unique(hash(wanted), index, rehash);
        index
    }

    /// Appends a record of spans, given with the indices of their contexts. The caller has checked
    /// that there is room. Returns the record's number.
    pub(super) fn append<'a>(
        &mut self,
        trace_id: TraceId,
        previous: Location,
        spans: impl Iterator<Item = (u16, &'a [u8])>,
    ) -> u32 {
        let SegmentBytes::Open(Buffer { bytes, .. }, tables) = &mut self.bytes else {
            unreachable!("a sealed segment has no room");
        };
        // Discards a record that a panic has left unfinished.
        bytes.truncate(self.end);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&trace_id.0);
        for (context, span) in spans {
            let mut header = [0; SPAN_HEADER_BYTES];
            header[..4].copy_from_slice(&(span.len() as u32).to_le_bytes());
            header[4..].copy_from_slice(&context.to_le_bytes());
            bytes.extend_from_slice(&header);
            bytes.extend_from_slice(span);
        }
        let length = bytes.len() - self.end;
        // Segments and their records are far smaller than 4 GiB, because traces are capped at
        // 1 GiB.
        bytes[self.end..][..4].copy_from_slice(&(length as u32).to_le_bytes());
        tables.records.push(TableEntry { offset: self.end as u32, previous });
        self.live += length;
        self.end += length;
        (tables.records.len() - 1) as u32
    }

    fn entry(&self, number: u32) -> TableEntry {
        match &self.bytes {
            SegmentBytes::Open(_, tables) => tables.records[number as usize],
            SegmentBytes::Sealed(bytes) => TableEntry::read(&bytes[self.end..], number),
        }
    }

    /// The previous record of the same trace, without reading either record.
    pub(super) fn previous(&self, number: u32) -> Location {
        self.entry(number).previous
    }

    /// The length of a record, without reading the record.
    pub(super) fn record_len(&self, number: u32) -> usize {
        self.range(number).len()
    }

    /// The bytes of a record, usable after the lock is released: shared if the segment is sealed, a
    /// copy if it is open.
    pub(super) fn share(&self, number: u32) -> Bytes {
        let range = self.range(number);
        match &self.bytes {
            SegmentBytes::Open(buffer, _) => Bytes::copy_from_slice(&buffer.bytes[range]),
            SegmentBytes::Sealed(bytes) => bytes.slice(range),
        }
    }

    /// Reads one byte of each cache line of a record and returns a value computed from them. For a
    /// long record it reads only the beginning, because the processor prefetches the rest.
    pub(super) fn touch(&self, number: u32) -> u8 {
        const CACHE_LINE_BYTES: usize = 64;
        const TOUCHED_BYTES_MAX: usize = 4 << 10;
        let record = &self.bytes()[self.range(number)];
        let touched = record.iter().take(TOUCHED_BYTES_MAX).step_by(CACHE_LINE_BYTES);
        touched.fold(0, |sum, byte| sum ^ byte)
    }

    fn range(&self, number: u32) -> std::ops::Range<usize> {
        let start = |number| self.entry(number).offset as usize;
        let end = if number + 1 == self.records() { self.end } else { start(number + 1) };
        start(number)..end
    }

    fn records(&self) -> u32 {
        let records = match &self.bytes {
            SegmentBytes::Open(_, tables) => tables.records.len(),
            SegmentBytes::Sealed(bytes) => (bytes.len() - self.end) / TABLE_ENTRY_BYTES,
        };
        records as u32
    }
}

/// A segment at one moment, for readers without the lock.
#[derive(Debug)]
pub(super) struct SegmentView {
    pub(super) id: u64,
    bytes: Bytes,
    /// The offset of the table.
    end: usize,
    pub(super) contexts: Arc<Vec<Arc<Context>>>,
}

impl SegmentView {
    /// The number of records, including those of decided traces.
    pub(super) fn records(&self) -> u32 {
        ((self.bytes.len() - self.end) / TABLE_ENTRY_BYTES) as u32
    }

    /// One of the records, and the location of the previous record of the same trace.
    pub(super) fn record(&self, number: u32) -> (Record<'_>, Location) {
        let entry = TableEntry::read(&self.bytes[self.end..], number);
        (Record::at(&self.bytes, entry.offset), entry.previous)
    }
}

/// A record in a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    bytes: &'a [u8],
}

impl<'a> Record<'a> {
    /// The record at this offset of a segment's bytes.
    pub(super) fn at(segment: &'a [u8], offset: u32) -> Self {
        let bytes = &segment[offset as usize..];
        Record { bytes: &bytes[..read_u32(bytes, 0) as usize] }
    }

    pub(super) fn trace_id(&self) -> TraceId {
        TraceId(*self.bytes[4..].first_chunk().expect("a record has a header"))
    }

    /// For each span, the index of its context and its bytes.
    pub(super) fn spans(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut at = RECORD_HEADER_BYTES;
        std::iter::from_fn(move || {
            if at == self.bytes.len() {
                return None;
            }
            let length = read_u32(self.bytes, at) as usize;
            let context = u16::from_le_bytes([self.bytes[at + 4], self.bytes[at + 5]]);
            let start = at + SPAN_HEADER_BYTES;
            at = start + length;
            Some((context, &self.bytes[start..at]))
        })
    }
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("records are written whole"))
}
