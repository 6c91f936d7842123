//! The list of abuses, numbered as in RELIABILITY.md, and what Tailwater must do about each.

use tailwater::testing::framed;

use crate::{
    data::{self, Data},
    flood::Flood,
    frames::{
        self, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, INITIAL_WINDOW, PING, PRIORITY,
        export, frame, headers, hpack, hpack_indexed, hpack_references, reset, settings,
        window_update,
    },
    hold::Hold,
    honest,
};

/// The observations of an attack.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Connections that the server closed.
    pub(crate) closed: u64,
    /// The code of the last GOAWAY.
    pub(crate) goaway: Option<u32>,
    pub(crate) refused: u32,
    /// Whether a new honest connection got an answer.
    pub(crate) is_fresh_served: Option<bool>,
    pub(crate) note: String,
    /// MiB by which the budget and resident memory grew with one request.
    pub(crate) accounting: Option<(f64, f64)>,
}

pub(crate) enum Kind {
    Flood(Flood),
    Hold(Hold),
    /// Built only when it is sent, because some bodies have tens of MiB.
    Data(fn() -> Data),
    Wrong,
}

pub(crate) struct Abuse {
    pub(crate) number: &'static str,
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// The limit of file descriptors for the server; 0 means the system's limit.
    pub(crate) descriptors: u32,
    /// Whether the server must close its connections at once.
    pub(crate) must_close: bool,
    /// The most MiB by which resident memory may grow.
    pub(crate) rss_mib_max: f64,
}

/// Streams that one piece of a flood opens.
const BATCH: u32 = 200;

fn ids(number: u32) -> impl Iterator<Item = u32> {
    // A connection has 2^30 stream ids, enough for a minute.
    (number * BATCH..(number + 1) * BATCH).map(|index| (2 * index + 1) & 0x7fff_ffff)
}

fn each(number: u32, one: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    ids(number).flat_map(one).collect()
}

fn flood(number: &'static str, name: &'static str, piece: fn(u32) -> Vec<u8>) -> Abuse {
    let kind = Kind::Flood(Flood { first: Vec::new(), piece });
    Abuse { number, name, kind, descriptors: 0, must_close: true, rss_mib_max: 32.0 }
}

/// A flood on one stream.
fn on_stream(number: &'static str, name: &'static str, piece: fn(u32) -> Vec<u8>) -> Abuse {
    let kind = Kind::Flood(Flood { first: export(1, 0), piece });
    Abuse { kind, must_close: false, ..flood(number, name, piece) }
}

fn hold(number: &'static str, name: &'static str, hold: Hold, rss_mib_max: f64) -> Abuse {
    let kind = Kind::Hold(hold);
    Abuse { number, name, kind, descriptors: 0, must_close: false, rss_mib_max }
}

fn sent(number: &'static str, name: &'static str, body: fn() -> Data, rss_mib_max: f64) -> Abuse {
    let kind = Kind::Data(body);
    Abuse { number, name, kind, descriptors: 0, must_close: false, rss_mib_max }
}

/// Every abuse, in the order of its number.
pub(crate) fn all() -> Vec<Abuse> {
    let mut all = http2();
    all.extend(held());
    all.extend(bodies());
    all
}

fn http2() -> Vec<Abuse> {
    vec![
        flood("1", "rapid reset", |n| each(n, |id| [export(id, 0), reset(id)].concat())),
        flood("2a", "made-you-reset: WINDOW_UPDATE of 0", |n| {
            each(n, |id| [export(id, 0), window_update(id, 0)].concat())
        }),
        flood("2b", "made-you-reset: WINDOW_UPDATE overflow", |n| {
            each(n, |id| [export(id, 0), window_update(id, i32::MAX as u32)].concat())
        }),
        flood("2c", "made-you-reset: DATA after the end", |n| {
            each(n, |id| [export(id, END_STREAM), frame(DATA, 0, id, b"x")].concat())
        }),
        flood("2d", "made-you-reset: bad pseudo headers", |n| {
            let fields = [(":method", "POST"), (":status", "200"), ("x", "y"), (":path", "/")];
            each(n, |id| headers(id, 0, &fields))
        }),
        flood("2e", "made-you-reset: PRIORITY on itself", |n| {
            each(n, |id| {
                let dependency = [&id.to_be_bytes()[..], &[1]].concat();
                [export(id, 0), frame(PRIORITY, 0, id, &dependency)].concat()
            })
        }),
        Abuse {
            kind: Kind::Flood(Flood {
                first: frame(HEADERS, 0, 1, &hpack(&frames::export_fields())),
                piece: |_| frame(CONTINUATION, 0, 1, &hpack(&[("x", &"y".repeat(15 << 10))])),
            }),
            ..flood("3a", "CONTINUATION flood", |_| Vec::new())
        },
        flood("3b", "header lists of 1 MiB", |n| each(n, large_headers)),
        flood("3c", "HPACK bombs of 48 MiB", |n| each(n, hpack_bomb)),
        on_stream("4a", "empty DATA", |_| frame(DATA, 0, 1, b"").repeat(1000)),
        on_stream("4b", "DATA of a byte", |_| frame(DATA, 0, 1, b"\0").repeat(1000)),
        on_stream("4c", "PING", |_| frame(PING, 0, 0, &[1; 8]).repeat(1000)),
        on_stream("4d", "SETTINGS", |_| settings(&[(INITIAL_WINDOW, 65_535)]).repeat(1000)),
        on_stream("4e", "PRIORITY", |_| frame(PRIORITY, 0, 5, &[0, 0, 0, 3, 1]).repeat(1000)),
    ]
}

fn large_headers(id: u32) -> Vec<u8> {
    let piece = hpack(&[("x", &"y".repeat(15 << 10))]);
    let mut large = frame(HEADERS, END_STREAM, id, &hpack(&frames::export_fields()));
    (0..68).for_each(|_| large.extend(frame(CONTINUATION, 0, id, &piece)));
    large.extend(frame(CONTINUATION, END_HEADERS, id, &piece));
    large
}

fn hpack_bomb(id: u32) -> Vec<u8> {
    let fields = hpack(&frames::export_fields());
    let entry = hpack_indexed("x", &"y".repeat(4000));
    let bomb = [fields, entry, hpack_references(12 << 10)].concat();
    frame(HEADERS, END_STREAM | END_HEADERS, id, &bomb)
}

/// The bytes of a hundred streams of one connection; `one` gives the beginning of each stream.
fn streams(settings: &[(u16, u32)], one: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    let all = (0..100).flat_map(|index| one(2 * index + 1));
    frames::preface(settings).into_iter().chain(all).collect()
}

fn held() -> Vec<Abuse> {
    let whole = framed(0, &honest::request(vec![honest::span(1 << 41, false)]));
    let unread = streams(&[(INITIAL_WINDOW, 0)], |id| {
        [export(id, 0), frame(DATA, END_STREAM, id, &whole)].concat()
    });
    let prefix = [0, 4, 0, 0, 0];
    let claims = streams(&[], |id| [export(id, 0), frame(DATA, 0, id, &prefix)].concat());
    let drip = (0..100).flat_map(|index| frame(DATA, 0, 2 * index + 1, &[0; 100])).collect();
    let many = (0..1000).flat_map(|index| export(2 * index + 1, 0));
    let held = |connections, beginning: &[u8]| Hold {
        connections,
        beginning: beginning.to_vec(),
        drip: Vec::new(),
    };
    let preface = frames::preface(&[]);
    vec![
        hold("5", "10,000 answers unread", held(100, &unread), 96.0),
        hold("6a", "10,000 silent connections", held(10_000, b""), 32.0),
        hold("6b", "10,000 half prefaces", held(10_000, &preface[..10]), 32.0),
        hold("6c", "10,000 half TLS hellos", held(10_000, b"\x16\x03\x01\x02\x00"), 32.0),
        Abuse {
            descriptors: 256,
            ..hold("7", "256 descriptors, 400 connections", held(400, &preface), 16.0)
        },
        hold("8", "64 MiB claimed, 1,000 times", held(10, &claims), 16.0),
        hold("9a", "1,000 bodies of 100 B/s", Hold { drip, ..held(10, &claims) }, 16.0),
        hold(
            "10",
            "1,000 streams",
            held(1, &preface.iter().copied().chain(many).collect::<Vec<_>>()),
            8.0,
        ),
    ]
}

fn bodies() -> Vec<Abuse> {
    let wrong = sent("9b", "wrong requests", data::window, 8.0);
    vec![
        Abuse { kind: Kind::Wrong, ..wrong },
        // One inflated message at a time, and the compressed form of the waiting ones.
        sent("11a", "gzip bomb, 1 GiB", || data::bomb("gzip"), 64.0 + 32.0),
        sent("11b", "zstd bomb, 1 GiB", || data::bomb("zstd"), 64.0 + 32.0 + 32.0),
        sent("11c", "zstd window of 2 GiB", data::window, 16.0),
        sent("13a", "an attribute of 60 MiB", || data::large_attributes(1, 60 << 20), 1024.0),
        sent(
            "13b",
            "attributes of 15 MiB, 4 spans",
            || data::large_attributes(4, 15 << 20),
            1024.0,
        ),
        sent("13c", "1,000,000 attributes", || data::many_attributes(1_000_000), 1024.0),
        sent("13d", "1,000,000 empty spans", || data::empty_spans(1_000_000), 64.0),
        sent("13e", "1,000,000 traces of a bare span", || data::bare_spans(1_000_000), 1126.0),
        sent("13f", "1,000,000 resources", || data::resources(1_000_000), 1126.0),
    ]
}
