//! OTLP/JSON on any bytes as a body, compared with prost and the walker.
//!
//! `cargo +nightly fuzz run json`; the checks are shared with `cargo test --test it`, which replays
//! the corpus.
#![no_main]

#[path = "../../tests/it/differential.rs"]
#[expect(dead_code, reason = "the other targets use the rest")]
mod differential;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    differential::json(bytes);
});
