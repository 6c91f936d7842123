//! `tailwater convert` on any bytes as a Collector's configuration.
//!
//! `cargo +nightly fuzz run convert`; the checks are shared with `cargo test --test it`, which
//! replays the corpus.
#![no_main]

#[path = "../../tests/it/given_files.rs"]
#[expect(dead_code, reason = "the target trace_files uses the rest")]
mod given_files;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let folder = std::env::temp_dir().join(format!("tailwater-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("created");
    given_files::convert(bytes, &folder);
});
