//! The cleaner on any bytes as a span, a resource and a scope, compared with prost.
//!
//! `cargo +nightly fuzz run clean`; the checks are shared with `cargo test --test it`, which
//! replays the corpus.
#![no_main]

#[path = "../../tests/it/differential.rs"]
#[expect(dead_code, reason = "the other targets use the rest")]
mod differential;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    differential::clean(bytes);
});
