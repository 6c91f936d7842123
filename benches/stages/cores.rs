//! The work of a span with 1 to 16 worker threads: whether it grows with the threads, and with the
//! shards, of which the service has four per core.
//!
//! The workers take requests from one source and share one sampler. The worker whose request begins
//! a tick also decides all shards and encodes what was kept, while the others continue. With more
//! workers than cores, threads are preempted at any point, also while they hold a lock.
//! `benches/cores.sh` counts the instructions, which do not depend on the number of cores.
//! With the feature `lock-counts`, the holds of the locks of shards are counted, and those that
//! began with a wait.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tailwater::{
    budget::Budget,
    otlp::encode::Batch,
    sampler::{Decided, Sampler, Scratch},
    window::{Millis, Waits},
};

use crate::{
    Result, Tick, Times, WARM_UP, arrival_ms,
    corpus::{Corpus, GRPC_PREFIX_BYTES, SPANS_PER_REQUEST},
    limits, measured,
    parts::thread_cpu,
    plan,
};

/// The numbers of workers.
pub(crate) const WORKERS: [usize; 5] = [1, 2, 4, 8, 16];
const SHARDS_PER_WORKER: usize = 4;

/// The requests that are still to come.
struct Source<'a> {
    corpus: &'a mut Corpus,
    next: u64,
    /// The tick of the last request.
    tick: u32,
}

/// A request, and whether it begins a tick.
struct Arrived {
    body: Bytes,
    at_ms: u32,
    begins_tick: bool,
}

impl Source<'_> {
    fn next(&mut self, end: u64) -> Option<Arrived> {
        let sequence = self.next;
        if sequence == end {
            return None;
        }
        let body = self.corpus.body(sequence)?.slice(GRPC_PREFIX_BYTES..);
        let at_ms = arrival_ms(sequence);
        let begins_tick = at_ms / 100 != self.tick;
        (self.next, self.tick) = (sequence + 1, at_ms / 100);
        Some(Arrived { body, at_ms, begins_tick })
    }
}

/// Takes in requests with this many workers, and prints the work of a span.
pub(crate) fn run(corpus: &mut Corpus, workers: usize, requests: u64) -> Result<()> {
    let limits = limits(Waits { decision_wait: 1000, after_root: None });
    let shards = SHARDS_PER_WORKER * workers;
    let sampler = Sampler::new(Arc::new(plan()), limits, &Budget::new(4 << 30), shards);
    let source = Mutex::new(Source { corpus, next: 0, tick: 0 });
    let work = |end: u64| -> Result<Duration> {
        std::thread::scope(|scope| {
            let work = || work(&sampler, &source, end);
            let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            let times = workers.into_iter().map(|worker| worker.join().expect("no panic"));
            Ok(times.sum::<std::result::Result<Duration, String>>()?)
        })
    };
    work(WARM_UP)?;
    let before = holds();
    let time = work(WARM_UP + requests)?;
    let spans = requests * SPANS_PER_REQUEST;
    print!(
        "{workers:>2} workers, {shards:>2} shards {:8.1} ns a span",
        time.as_nanos() as f64 / spans as f64
    );
    if let (Some([held, waited]), Some([held_before, waited_before])) = (holds(), before) {
        let (held, waited) = (held - held_before, waited - waited_before);
        print!(
            "; {:.4} holds of a lock a span, {:.2} % of them after a wait",
            held as f64 / spans as f64,
            100.0 * waited as f64 / held as f64
        );
    }
    println!();
    Ok(())
}

/// Takes in requests until the end, and returns the CPU time of this thread. It includes writing
/// new ids into the requests.
fn work(
    sampler: &Sampler,
    source: &Mutex<Source<'_>>,
    end: u64,
) -> std::result::Result<Duration, String> {
    let (mut scratch, mut decided, mut batch) =
        (Scratch::default(), Decided::default(), Batch::default());
    let mut times = Times::default();
    let before = thread_cpu();
    loop {
        let arrived = source.lock().unwrap_or_else(PoisonError::into_inner).next(end);
        let Some(Arrived { body, at_ms, begins_tick }) = arrived else {
            return Ok(thread_cpu() - before);
        };
        let now = Millis(at_ms);
        let ingest = || sampler.ingest(now, &body, &mut scratch, &mut decided);
        measured::ingest(&mut times.ingest, ingest).map_err(|refused| refused.to_string())?;
        if begins_tick {
            Tick { sampler, now, times: &mut times }.run(&mut decided, &mut batch);
        }
    }
}

/// The holds of the locks of shards so far, and those that began with a wait.
fn holds() -> Option<[u64; 2]> {
    #[cfg(feature = "lock-counts")]
    {
        use std::sync::atomic::Ordering::Relaxed;
        use tailwater::sampler::holds::{HOLDS, WAITS};
        Some([HOLDS.load(Relaxed), WAITS.load(Relaxed)])
    }
    #[cfg(not(feature = "lock-counts"))]
    None
}
