//! Reading and stamping any `tracestate`, compared with a simple reading of the specifications.
//!
//! `cargo +nightly fuzz run tracestate`; the checks are shared with `cargo test --test it`, which
//! replays the corpus.
#![no_main]

#[path = "../../tests/it/differential.rs"]
#[expect(dead_code, reason = "the other targets use the rest")]
mod differential;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    differential::tracestate(bytes);
});
