//! The walker on any bytes as a request, compared with prost.
//!
//! `cargo +nightly fuzz run walk`; the checks are shared with `cargo test --test it`, which replays
//! the corpus.
#![no_main]

#[path = "../../tests/it/differential.rs"]
#[expect(dead_code, reason = "the other targets use the rest")]
mod differential;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    differential::walk(bytes);
});
