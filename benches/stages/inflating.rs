//! What it costs to inflate the requests of Collectors: diverse spans, gzip at level 6, in batches
//! of several sizes. Compares libdeflate, which inflates a body in one call, with flate2, which
//! inflates it in steps, as the receivers do with bodies that are not one gzip member; in
//! alternation, by the CPU time of the thread.

use std::{io::Read as _, time::Duration};

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use libdeflater::Decompressor;

use crate::{
    ENDED, Result,
    corpus::{Compression, Corpus, GRPC_PREFIX_BYTES as PREFIX, Shape},
    parts::thread_cpu,
    traffic::Size,
};

/// The bytes that one step of the receivers inflates.
const STEP_BYTES: u64 = 64 << 10;
const ROUNDS: u32 = 9;

/// Runs the comparison.
pub(crate) fn run() -> Result<()> {
    for (size, spans) in
        [(Size::Diverse, 8192), (Size::Diverse, 1024), (Size::Diverse, 200), (Size::Medium, 1024)]
    {
        let requests = (24 << 10) / spans;
        let compression = Compression::Gzip;
        let resources = if size == Size::Diverse { 240 } else { 10 };
        let shape =
            Shape { spans, size, resources, compression, ..Shape::plain(requests as usize) };
        let mut corpus = Corpus::build(&shape)?;
        let bodies = (0..requests).map(|sequence| Some(corpus.body(sequence)?.slice(PREFIX..)));
        let bodies: Vec<Bytes> = bodies.collect::<Option<_>>().ok_or(ENDED)?;
        let (mut in_steps, mut at_once) = (Duration::MAX, Duration::MAX);
        for _ in 0..ROUNDS {
            in_steps = in_steps.min(timed(&bodies, stepped)?);
            at_once = at_once.min(timed(&bodies, whole)?);
        }
        let all = (requests * spans) as f64;
        let [in_steps, at_once] =
            [in_steps, at_once].map(|time: Duration| time.as_secs_f64() * 1e9 / all);
        let bytes = bodies.iter().map(Bytes::len).sum::<usize>() as f64 / all;
        println!(
            "inflate batches of {spans}, {:.0} bytes a span of {bytes:.0}: flate2 {in_steps:.0} ns \
             a span, libdeflate {at_once:.0}, {:.2} times",
            corpus.bytes_per_request / spans as f64,
            at_once / in_steps
        );
    }
    Ok(())
}

fn timed(bodies: &[Bytes], inflate: fn(&[u8]) -> Result<Vec<u8>>) -> Result<Duration> {
    let before = thread_cpu();
    for body in bodies {
        std::hint::black_box(inflate(body)?);
    }
    Ok(thread_cpu() - before)
}

fn stepped(body: &[u8]) -> Result<Vec<u8>> {
    let mut decoder = MultiGzDecoder::new(body);
    let mut inflated = Vec::new();
    while decoder.by_ref().take(STEP_BYTES).read_to_end(&mut inflated)? as u64 == STEP_BYTES {}
    Ok(inflated)
}

fn whole(body: &[u8]) -> Result<Vec<u8>> {
    let length = body.last_chunk().map_or(0, |length| u32::from_le_bytes(*length));
    let mut inflated = vec![0; length as usize];
    Decompressor::new().gzip_decompress(body, &mut inflated)?;
    Ok(inflated)
}
