//! The inputs of `tailwater replay` on any bytes; each request is compared with prost.
//!
//! `cargo +nightly fuzz run trace_files`; the checks are shared with `cargo test --test it`, which
//! replays the corpus.
#![no_main]

#[path = "../../tests/it/differential.rs"]
#[expect(dead_code, reason = "the other targets use the rest")]
mod differential;
#[path = "../../tests/it/given_files.rs"]
#[expect(dead_code, reason = "the target convert uses the rest")]
mod given_files;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for request in given_files::trace_file(bytes) {
        differential::walk(&request);
    }
});
