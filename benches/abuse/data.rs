//! Attacks with requests that are small on the wire and large in memory, or malformed, sent
//! repeatedly.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, resource::v1::Resource,
};
use prost::Message as _;
use tailwater::testing::{framed, text};

use crate::{
    Result,
    attacks::Found,
    honest::{connect, export, request, span},
};

/// Requests sent at the same time.
const SENDERS: usize = 4;
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// One body, already framed.
pub(crate) struct Data {
    pub(crate) encoding: &'static str,
    pub(crate) body: Vec<u8>,
}

/// Sends the body once, reads how much memory the server then holds, and repeats the body until the
/// time is over.
pub(crate) async fn run(
    target: SocketAddr,
    data: &Data,
    until: Instant,
    account: impl Fn() -> Option<(f64, f64)>,
) -> Result<Found> {
    let mut statuses = BTreeMap::<String, u32>::new();
    let before = account();
    *statuses.entry(one(target, data).await).or_default() += 1;
    let accounting =
        before.zip(account()).map(|(before, after)| (after.0 - before.0, after.1 - before.1));
    let send = async || {
        let mut seen = Vec::new();
        while Instant::now() < until {
            seen.push(one(target, data).await);
        }
        seen
    };
    let [a, b, c, d]: [_; SENDERS] = std::array::from_fn(|_| send());
    let (a, b, c, d) = tokio::join!(a, b, c, d);
    for status in [a, b, c, d].into_iter().flatten() {
        *statuses.entry(status).or_default() += 1;
    }
    let statuses = statuses.iter().map(|(status, count)| format!("{count} × {status}"));
    let note = format!("grpc-status {}", statuses.collect::<Vec<_>>().join(", "));
    Ok(Found { note, accounting, ..Found::default() })
}

async fn one(target: SocketAddr, data: &Data) -> String {
    let exchange = async {
        let client = connect(target).await?;
        export(&client, data.encoding, data.body.clone()).await
    };
    match tokio::time::timeout(ANSWER_MAX, exchange).await {
        Ok(Ok(status)) => status,
        Ok(Err(_)) => "none, closed".to_owned(),
        Err(_elapsed) => "none in 60 s".to_owned(),
    }
}

/// 1 GiB of zeros.
pub(crate) fn bomb(encoding: &'static str) -> Data {
    let mut out = Vec::new();
    let zeros = vec![0; 1 << 20];
    let write = |to: &mut dyn std::io::Write| {
        (0..1024).for_each(|_| to.write_all(&zeros).expect("in memory"));
    };
    match encoding {
        "gzip" => {
            write(&mut flate2::write::GzEncoder::new(&mut out, flate2::Compression::default()))
        }
        _ => write(&mut zstd::Encoder::new(&mut out, 1).expect("an encoder").auto_finish()),
    }
    Data { encoding, body: framed(1, &out) }
}

/// A small message in a zstd frame that asks for a window of 2 GiB: magic number, no options, the
/// window, and one raw block, which is the last.
pub(crate) fn window() -> Data {
    let message = request(vec![span(7, false)]);
    let block = (((message.len() as u32) << 3) | 1).to_le_bytes();
    let frame = [&[0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3], &block[..3], &message].concat();
    Data { encoding: "zstd", body: framed(1, &frame) }
}

fn plain(message: &[u8]) -> Data {
    Data { encoding: "identity", body: framed(0, message) }
}

/// Spans with one attribute of this length each.
pub(crate) fn large_attributes(spans: u64, length: usize) -> Data {
    let large =
        |trace| Span { attributes: vec![text("k", "x".repeat(length))], ..span(trace, false) };
    plain(&request((1..=spans).map(large).collect()))
}

pub(crate) fn many_attributes(count: u32) -> Data {
    let attributes = (0..count).map(|n| text(&format!("k{n}"), "v")).collect();
    plain(&request(vec![Span { attributes, ..span(1, false) }]))
}

pub(crate) fn empty_spans(count: usize) -> Data {
    plain(&request(vec![Span::default(); count]))
}

/// Spans that have only ids, each in a trace of its own.
pub(crate) fn bare_spans(count: u64) -> Data {
    plain(&request((1..=count).map(bare).collect()))
}

fn bare(trace: u64) -> Span {
    let Span { trace_id, span_id, .. } = span(trace, false);
    Span { trace_id, span_id, ..Span::default() }
}

/// `count` resources, each with one span that has only ids.
pub(crate) fn resources(count: u64) -> Data {
    let resource_spans = (1..=count).map(|n| ResourceSpans {
        resource: Some(Resource {
            attributes: vec![text("service.name", n.to_string())],
            ..Resource::default()
        }),
        scope_spans: vec![ScopeSpans { spans: vec![bare(n)], ..ScopeSpans::default() }],
        ..ResourceSpans::default()
    });
    plain(&ExportTraceServiceRequest { resource_spans: resource_spans.collect() }.encode_to_vec())
}

/// Sends each malformed request once, and reports the answers.
pub(crate) async fn wrong(target: SocketAddr) -> Result<Found> {
    let message = request(vec![span(1, false)]);
    let cases = [
        ("flag without encoding", "identity", framed(1, &message)),
        ("unknown encoding", "br", framed(1, &message)),
        ("unknown flag", "identity", framed(2, &message)),
        ("no message", "identity", Vec::new()),
        ("garbage", "identity", framed(0, b"\xff\xffgarbage")),
        ("not gzip", "gzip", framed(1, b"garbage")),
    ];
    let mut told = Vec::new();
    for (what, encoding, body) in cases {
        told.push(format!("{what}: {}", one(target, &Data { encoding, body }).await));
    }
    Ok(Found { note: told.join(", "), ..Found::default() })
}
