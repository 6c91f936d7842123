//! Numbers 1 to 4: HTTP/2 that no honest client would send.

use std::net::SocketAddr;

use super::{
    Outcome, Raw, beside_honest,
    frames::{
        self, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PRIORITY, RST_STREAM,
        export, frame, headers, hpack, hpack_indexed, hpack_references, reset, settings,
        window_update,
    },
};
use crate::harness::{ALL, Running, config};

const ENHANCE_YOUR_CALM: u32 = 11;

/// The ids of the first `count` streams of a client.
fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|index| 2 * index + 1)
}

async fn flood(address: SocketAddr, bytes: &[u8]) -> Outcome {
    Raw::connect(address, &[]).await.flood(bytes).await
}

/// Scenario: 20,000 requests on one connection, each reset at once by the client.
/// Guarantees: the connection gets ENHANCE_YOUR_CALM and is closed; other clients are served
/// meanwhile.
#[tokio::test]
async fn rapid_reset_ends_the_connection() {
    let running = Running::start(config(ALL)).await;
    let bytes: Vec<u8> =
        streams(20_000).flat_map(|id| [export(id, 0), reset(id)].concat()).collect();
    let outcome = beside_honest(&running, flood(running.service.grpc_address, &bytes)).await;
    assert_eq!(outcome, Outcome::GoneAway(ENHANCE_YOUR_CALM));
    running.stop().await;
}

/// Scenario: 20,000 requests on one connection, each with a fault that makes the server reset it.
/// Guarantees: the connection is closed.
#[tokio::test]
async fn made_you_reset_ends_the_connection() {
    let running = Running::start(config(ALL)).await;
    let address = running.service.grpc_address;
    let zero = |id| [export(id, 0), window_update(id, 0)].concat();
    let overflow = |id| [export(id, 0), window_update(id, i32::MAX as u32)].concat();
    let half_closed = |id| [export(id, END_STREAM), frame(DATA, 0, id, b"x")].concat();
    let fields = [(":method", "POST"), (":status", "200"), ("x", "y"), (":path", "/")];
    let malformed = |id| headers(id, 0, &fields);
    let itself = |id: u32| {
        let dependency = [&id.to_be_bytes()[..], &[1]].concat();
        [export(id, 0), frame(PRIORITY, 0, id, &dependency)].concat()
    };
    type Variant<'a> = (&'a str, &'a dyn Fn(u32) -> Vec<u8>);
    let variants: [Variant<'_>; 5] = [
        ("WINDOW_UPDATE of 0", &zero),
        ("WINDOW_UPDATE that overflows", &overflow),
        ("DATA after the end", &half_closed),
        ("malformed pseudo headers", &malformed),
        ("PRIORITY on itself", &itself),
    ];
    for (what, variant) in variants {
        let bytes: Vec<u8> = streams(20_000).flat_map(variant).collect();
        let outcome = beside_honest(&running, flood(address, &bytes)).await;
        assert!(matches!(outcome, Outcome::GoneAway(_)), "{what}: {outcome:?}");
    }
    running.stop().await;
}

/// Scenario: 16 MiB of CONTINUATION frames, 1 MiB of headers, and 64 MiB of headers compressed into
/// 16 KiB.
/// Guarantees: the first ends the connection, the others end at least their request; no memory
/// stays in use.
#[tokio::test]
async fn headers_are_bounded() {
    let running = Running::start(config(ALL)).await;
    let address = running.service.grpc_address;
    let piece = hpack(&[("x", &"y".repeat(15 << 10))]);
    let mut endless = frame(HEADERS, 0, 1, &hpack(&frames::export_fields()));
    for _ in 0..1024 {
        endless.extend(frame(CONTINUATION, 0, 1, &piece));
    }
    let outcome = beside_honest(&running, flood(address, &endless)).await;
    assert!(matches!(outcome, Outcome::GoneAway(_)), "{outcome:?}");

    let mut large = frame(HEADERS, END_STREAM, 1, &hpack(&frames::export_fields()));
    for _ in 0..67 {
        large.extend(frame(CONTINUATION, 0, 1, &piece));
    }
    large.extend(frame(CONTINUATION, END_HEADERS, 1, &piece));
    let bomb = [
        hpack(&frames::export_fields()),
        hpack_indexed("x", &"y".repeat(4000)),
        hpack_references(12 << 10),
    ];
    let bomb = frame(HEADERS, END_STREAM | END_HEADERS, 1, &bomb.concat());
    for (what, bytes) in [("1 MiB", large), ("a bomb", bomb)] {
        let mut raw = Raw::connect(address, &[]).await;
        raw.send(&bytes).await;
        let refused = async {
            while let Some(frame) = raw.next().await {
                assert_ne!(frame.kind, HEADERS, "{what} is answered");
                if matches!(frame.kind, RST_STREAM | GOAWAY) {
                    return;
                }
            }
        };
        beside_honest(&running, refused).await;
    }
    running.stop().await;
}

/// Scenario: floods of frames that are empty, or carry one byte, or require an answer.
/// Guarantees: the connection is closed, or everything is read without using more memory; other
/// clients are served meanwhile.
#[tokio::test]
async fn floods_of_small_frames_hold_nothing() {
    let running = Running::start(config(ALL)).await;
    let address = running.service.grpc_address;
    let many = |one: Vec<u8>| one.repeat(20_000);
    let dependency = [&3_u32.to_be_bytes()[..], &[1]].concat();
    let floods = [
        ("empty DATA", [export(1, 0), many(frame(DATA, 0, 1, b""))].concat()),
        ("DATA of a byte", [export(1, 0), many(frame(DATA, 0, 1, b"\0"))].concat()),
        ("PING", many(frame(frames::PING, 0, 0, &[1; 8]))),
        ("SETTINGS", many(settings(&[(frames::INITIAL_WINDOW, 65_535)]))),
        ("PRIORITY", many(frame(PRIORITY, 0, 5, &dependency))),
    ];
    for (what, bytes) in floods {
        let outcome = beside_honest(&running, flood(address, &bytes)).await;
        assert_ne!(outcome, Outcome::Closed, "{what} ended without a word");
    }
    running.stop().await;
}
