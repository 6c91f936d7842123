//! Any bytes as an answer of an OTLP/HTTP backend, compared with prost and the table of statuses.
//!
//! `cargo +nightly fuzz run http_answer`; the checks are shared with `cargo test --test it`, which
//! replays the corpus.
#![no_main]

#[path = "../../tests/it/answers_of_backends.rs"]
#[expect(dead_code, reason = "the other targets use the rest")]
mod answers_of_backends;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    answers_of_backends::http_answer(bytes);
});
