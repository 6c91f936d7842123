//! Measures stages that a run of the whole sampler does not show separately: interning, appending,
//! exporting.

use std::{
    ops::Range,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use tailwater::{
    budget::Budget,
    config,
    exporter::{Client, Connector, Outcome},
    otlp::{
        Contexts,
        conditions::Conditions as _,
        encode::{Batch, KeptSpan, TraceStamp},
        walk::{self, Walked},
    },
    testing::Sink,
    window::{self, ContextSlots, Millis, Pool, Position, Run, Shard, Waits},
};

use crate::{
    ENDED, MAX_REQUEST_BYTES, Result, WARM_UP, arrival_ms,
    corpus::{Corpus, GRPC_PREFIX_BYTES, SPANS_PER_REQUEST},
    measured, plan, report,
};

/// Measures looking up the resource and scope of a request's blocks of spans, ten per request,
/// while the window holds all of them.
pub(crate) fn intern(corpus: &mut Corpus, requests: u64) -> Result<()> {
    let contexts = Contexts::new(Budget::new(1 << 30));
    let (_body, walked) = walked(corpus, 0, &contexts)?;
    let mut key = Vec::new();
    let mut time = Duration::ZERO;
    for _ in 0..requests {
        measured::intern(&mut time, || {
            for known in &walked.contexts {
                let resource = contexts.resource(known.resource().arrived());
                std::hint::black_box(contexts.context(&resource, known.scope(), &mut key));
            }
        });
    }
    report("intern", time, requests * SPANS_PER_REQUEST);
    Ok(())
}

/// Measures adding the facts of a request's spans and copying the spans to segments, after their
/// traces have been found. Uses one shard and a window of one second.
pub(crate) fn append(corpus: &mut Corpus, requests: u64) -> Result<()> {
    let budget = Budget::new(4 << 30);
    let hasher = window::Hasher::default();
    let waits = Waits { decision_wait: 1000, after_root: None };
    let words = plan().leaves().shape();
    let pool = Pool::new(Arc::clone(&budget));
    let mut shard = Shard::new(waits, words, hasher.clone(), &pool, &budget);
    let contexts = Contexts::new(budget);
    let (mut slots, mut time) = (ContextSlots::default(), Duration::ZERO);
    for sequence in 0..WARM_UP + requests {
        if sequence == WARM_UP {
            time = Duration::ZERO;
        }
        let (body, walked) = walked(corpus, sequence, &contexts)?;
        shard.advance(Millis(arrival_ms(sequence)));
        let (order, runs) = runs(&mut shard, &hasher, &walked);
        slots.reset(walked.contexts.len());
        measured::append(&mut time, || {
            for (position, range) in runs {
                let (contexts, spans, bits) = (&walked.contexts, &walked.spans, &walked.bits);
                let order = &order[range];
                let run = Run { request: &body, contexts, spans, bits, order };
                shard.append(position, &run, &mut slots);
            }
        });
        let (mut taken, mut kept, mut freed) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(due) = shard.next_due(shard.now()) {
            taken.push(shard.take(due.position, false));
        }
        shard.empty(&mut taken, &mut kept, &mut freed);
    }
    report("append: facts and bytes", time, requests * SPANS_PER_REQUEST);
    Ok(())
}

/// The spans of a request by trace, and the place of each trace in the shard.
fn runs(
    shard: &mut Shard,
    hasher: &window::Hasher,
    walked: &Walked,
) -> (Vec<u32>, Vec<(Position, Range<usize>)>) {
    let trace_of = |&index: &u32| walked.spans[index as usize].trace_id;
    let mut order: Vec<u32> = (0..walked.spans.len() as u32).collect();
    order.sort_by_key(|index| trace_of(index).0);
    let mut start = 0;
    let mut runs = Vec::new();
    for run in order.chunk_by(|a, b| trace_of(a) == trace_of(b)) {
        let trace_id = trace_of(&run[0]);
        let hash = window::hash_of(hasher, trace_id);
        let found = shard.find(hash, trace_id);
        let position = found.unwrap_or_else(|| shard.insert(hash, trace_id));
        runs.push((position, start..start + run.len()));
        start += run.len();
    }
    (order, runs)
}

/// Sends requests of 3.5 MiB to a sink on another thread: measures the client, its connection and
/// the kernel, in CPU time of the sending thread. On loopback this includes the kernel's work for
/// the sink.
pub(crate) fn export(corpus: &mut Corpus, requests: u64) -> Result<()> {
    let encoded = encoded(corpus)?;
    let sink_runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(1).build()?;
    let sink = sink_runtime.block_on(Sink::start("127.0.0.1:0", |_| Ok(Bytes::new())))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut exporter = config::embedded().exporter;
    exporter.endpoint = sink.url();
    let within = runtime.enter();
    let client = Client::with_connector(&exporter, Connector::new(&exporter, None))?;
    let mut spans = 0;
    let before = thread_cpu();
    while spans < requests * SPANS_PER_REQUEST {
        for (body, of_request) in &encoded {
            let outcome = runtime.block_on(client.export(body.clone()));
            if !matches!(outcome, Outcome::Sent { .. }) {
                return Err(format!("{outcome:?}").into());
            }
            spans += of_request;
        }
    }
    report("export, a kept span", thread_cpu() - before, spans);
    drop((client, within));
    sink_runtime.block_on(sink.stop());
    Ok(())
}

/// All spans of some requests in their exported form, with their number.
fn encoded(corpus: &mut Corpus) -> Result<Vec<(Bytes, u64)>> {
    let contexts = Contexts::new(Budget::new(1 << 30));
    let mut batch = Batch::default();
    for sequence in 0..16 {
        let (body, walked) = walked(corpus, sequence, &contexts)?;
        let kept = walked.spans.iter().map(|span| KeptSpan {
            bytes: body.slice(span.offset as usize..(span.offset + span.len) as usize),
            context: Arc::clone(&walked.contexts[span.context as usize]),
        });
        batch.push_trace(kept, &TraceStamp { tracestate: None, policy_and_trigger: None });
    }
    let mut requests = Vec::new();
    while let Some(next) = batch.next(MAX_REQUEST_BYTES) {
        let request = next.encode();
        requests.push((request.body, request.spans));
    }
    Ok(requests)
}

fn walked(corpus: &mut Corpus, sequence: u64, contexts: &Contexts) -> Result<(Bytes, Walked)> {
    let body = corpus.body(sequence).ok_or(ENDED)?.slice(GRPC_PREFIX_BYTES..);
    let mut walked = Walked::default();
    walk::walk(&body, contexts, plan().leaves(), &mut walked)?;
    Ok((body, walked))
}

/// The CPU time of this thread; zero with `STAGES_UNTIMED`, because this clock cannot be read under
/// valgrind.
pub(crate) fn thread_cpu() -> Duration {
    static UNTIMED: LazyLock<bool> = LazyLock::new(|| std::env::var_os("STAGES_UNTIMED").is_some());
    if *UNTIMED {
        return Duration::ZERO;
    }
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}
