//! Any bytes as status details of a backend, compared with a simple parser.
//!
//! `cargo +nightly fuzz run status`; the checks are shared with `cargo test --test it`, which
//! replays the corpus.
#![no_main]

#[path = "../../tests/it/answers_of_backends.rs"]
#[expect(dead_code, reason = "the other targets use the rest")]
mod answers_of_backends;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    answers_of_backends::status(bytes);
});
