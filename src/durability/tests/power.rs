//! Power loss: the directory as it is on disk at any point, from a list of writes and syncs.
//!
//! A service in `power` mode takes requests, decides and delivers. Every write, sync, file creation
//! and directory sync is noted, and so is the time of each acknowledgement and each delivery. Then,
//! for 200 points in this list, a directory is made with everything that had been synced by then,
//! and in every second case with some of the unsynced writes too. Every span that was acknowledged
//! before the point must have been delivered before it, or be in the outbox, or come back in the
//! replay.
//!
//! In a second run some syncs fail. The writes that such a sync should have stored are then lost,
//! even if the file is synced again, as on Linux: the kernel reports the error once and treats the
//! pages as clean.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    super::{Durability, Settings},
    Directory, RecordReader, tap,
};
use crate::{config, service::Service, testing::Sink, trace::TraceId};

const REQUESTS: u64 = 120;
const POINTS: usize = 200;

type Id = Vec<u8>;

fn spans_of(body: &[u8]) -> Vec<Span> {
    let request = ExportTraceServiceRequest::decode(body).expect("a request");
    let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
    scopes.flat_map(|scope| scope.spans).collect()
}

/// A request with spans of two traces. Other requests also have spans of one of them.
fn request(number: u64) -> (Vec<u8>, Vec<Id>) {
    let span = |trace: u64, id: u64| Span {
        trace_id: [[7; 8], trace.to_be_bytes()].concat(),
        span_id: (id + 1).to_be_bytes().to_vec(),
        ..Span::default()
    };
    let spans = vec![span(number / 3, 2 * number), span(1 << 32 | number, 2 * number + 1)];
    let ids = spans.iter().map(|span| span.span_id.clone()).collect();
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
    (ExportTraceServiceRequest { resource_spans }.encode_to_vec(), ids)
}

/// Sends a request, and returns whether it was taken.
async fn post(address: std::net::SocketAddr, body: &[u8]) -> bool {
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("listening");
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-type: \
         application/x-protobuf\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    let is_refused = answer.starts_with("HTTP/1.1 503");
    assert!(is_refused || answer.starts_with("HTTP/1.1 200"), "{answer}");
    !is_refused
}

/// The times at which each span was acknowledged and delivered, as lengths of the list of events.
struct Happened {
    events: Vec<tap::Event>,
    acknowledged: HashMap<Id, usize>,
    delivered: HashMap<Id, usize>,
    refused: usize,
}

async fn live(directory: &Path, failing: Option<usize>) -> Happened {
    tap::watch(directory, failing);
    let delivered = Arc::new(Mutex::new(HashMap::new()));
    let (noted, watched) = (Arc::clone(&delivered), directory.to_owned());
    let sink = Sink::start("127.0.0.1:0", move |request| {
        let now = tap::now_in(&watched);
        for span in spans_of(&request.encode_to_vec()) {
            noted.lock().expect("no panic").entry(span.span_id).or_insert(now);
        }
        Ok(Bytes::new())
    });
    let sink = sink.await.expect("a port");
    let text = format!(
        "[receiver.grpc]\nendpoint = \"127.0.0.1:0\"\n[receiver.http]\nendpoint = \
         \"127.0.0.1:0\"\n[telemetry]\nendpoint = \"127.0.0.1:0\"\n[exporter.otlp]\nendpoint = \
         \"{}\"\n[sampling]\ndecision_wait = \"300ms\"\n[durability]\nmode = \"power\"\n\
         sync_interval = \"2ms\"\ndirectory = \"{}\"\n[[policy]]\nname = \"all\"\ntype = \
         \"always_sample\"\n",
        sink.url(),
        directory.display()
    );
    let file = directory.with_extension("toml");
    fs::write(&file, text).expect("written");
    let loaded = config::load(&file);
    fs::remove_file(&file).expect("removed");
    let config = loaded.config.unwrap_or_else(|| panic!("{}", loaded.diagnostics));
    let service = Service::start(&config).await.expect("starts");
    let (mut acknowledged, mut refused) = (HashMap::new(), 0);
    for number in 0..REQUESTS {
        let (body, ids) = request(number);
        while !post(service.http_address, &body).await {
            refused += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let now = tap::now_in(directory);
        acknowledged.extend(ids.into_iter().map(|id| (id, now)));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(150)).await;
    let events = tap::events(directory);
    assert_eq!(service.shutdown().await, 0);
    sink.stop().await;
    let delivered = std::mem::take(&mut *delivered.lock().expect("no panic"));
    Happened { events, acknowledged, delivered, refused }
}

/// The bytes of files.
type Files<'a> = BTreeMap<&'a PathBuf, Vec<u8>>;

/// Removes the freed file that had this name, and returns its bytes.
fn before(files: &mut Files<'_>, from: &Path) -> Option<Vec<u8>> {
    let name = from.file_name()?.to_str()?.replace("spare-", "");
    files.remove(&from.with_file_name(name))
}

/// Makes a directory with the state of the disk after these events: all synced writes, and a random
/// choice of the others.
fn image(events: &[tap::Event], chance: &mut fastrand::Rng, share: f64) -> Directory {
    let directory = Directory::new();
    let mut files: Files<'_> = BTreeMap::new();
    let named = events.iter().rposition(|event| matches!(event, tap::Event::Named)).unwrap_or(0);
    let mut syncs: HashMap<&Path, Vec<(usize, bool)>> = HashMap::new();
    for (now, event) in events.iter().enumerate() {
        match event {
            tap::Event::Synced { path, began } => {
                syncs.entry(path).or_default().push((*began, true));
            }
            tap::Event::Lost { path } => syncs.entry(path).or_default().push((now, false)),
            _ => {}
        }
    }
    // Whether a sync has written what was written at this event, or has lost it.
    let synced = |file: &Path, at: usize| {
        let syncs = syncs.get(file)?;
        syncs.get(syncs.partition_point(|(until, _)| *until <= at)).map(|(_, is_synced)| *is_synced)
    };
    for (at, event) in events.iter().enumerate() {
        match event {
            tap::Event::Created { path, len, from } => {
                // A reused file still has its old records.
                let before = from.as_ref().and_then(|from| before(&mut files, from));
                let bytes = before.unwrap_or_else(|| vec![0; *len as usize]);
                if at < named || chance.f64() < share {
                    files.insert(path, bytes);
                }
            }
            tap::Event::Wrote { path, offset, bytes } => {
                let Some(file) = files.get_mut(path) else { continue };
                if synced(path, at).unwrap_or_else(|| chance.f64() < share) {
                    file[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
                }
            }
            _ => {}
        }
    }
    for (path, bytes) in files {
        fs::write(directory.0.join(path.file_name().expect("a name")), bytes).expect("written");
    }
    directory
}

/// The spans that a service started on this directory sends, or has in its window.
fn come_back(directory: &Directory) -> HashSet<Id> {
    let settings = Settings {
        directory: directory.0.clone(),
        bytes_max: 256 << 20,
        sync_interval: None,
        decisions_kept_millis: 0,
    };
    let (_durability, recovered) = Durability::open(settings).expect("opens");
    let passed = recovered.decisions(|_| {}).expect("readable");
    let queued = recovered.queued.iter().flat_map(|queued| spans_of(&queued.body));
    let mut back: HashSet<Id> = queued.map(|span| span.span_id).collect();
    for file in recovered.intake() {
        let mut reader = RecordReader::open(file, recovered.watermark).expect("opened");
        while let Some(record) = reader.next_record().expect("read") {
            let position = record.header.position;
            let is_new = |span: &Span| {
                let trace = TraceId(span.trace_id[..].try_into().expect("sixteen bytes"));
                !passed.covers(trace, position)
            };
            let spans = spans_of(record.body).into_iter().filter(is_new);
            back.extend(spans.map(|span| span.span_id));
        }
    }
    back
}

/// Compares what was acknowledged with what is left after a power loss, at points of the list.
fn verify(happened: &Happened, points: usize) {
    let Happened { events, acknowledged, delivered, .. } = happened;
    assert_eq!(acknowledged.len() as u64, 2 * REQUESTS);
    let mut chance = fastrand::Rng::with_seed(16);
    for point in 0..points {
        let at = chance.usize(..=events.len());
        let share = if point % 2 == 0 { 0.0 } else { chance.f64() };
        let image = image(&events[..at], &mut chance, share);
        let back = come_back(&image);
        let lost = acknowledged.iter().filter(|(id, acknowledged)| {
            let is_delivered = delivered.get(*id).is_some_and(|delivered| *delivered <= at);
            **acknowledged <= at && !is_delivered && !back.contains(*id)
        });
        let lost = lost.count();
        assert_eq!(lost, 0, "after {at} of {} events, share {share}", events.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_loss_at_any_point_loses_nothing_acknowledged() {
    let directory = Directory::new();
    let happened = live(&directory.0, None).await;
    let delivered = happened.delivered.len() as u64;
    assert!(delivered > REQUESTS, "{delivered} were delivered meanwhile");
    assert_eq!(happened.refused, 0);
    verify(&happened, POINTS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_syncs_that_failed_a_power_loss_loses_nothing_acknowledged() {
    let directory = Directory::new();
    let happened = live(&directory.0, Some(29)).await;
    let lost = happened.events.iter().filter(|event| matches!(event, tap::Event::Lost { .. }));
    assert!(lost.count() > 1 && happened.refused > 1, "{} refused", happened.refused);
    verify(&happened, POINTS / 4);
}
