//! The configuration's loader on any bytes: as a main file and, after a NUL, as a file of policies.
//!
//! `cargo +nightly fuzz run config`; the checks are shared with `cargo test --test it`, which
//! replays the corpus.
#![no_main]

#[path = "../../tests/it/config_check.rs"]
mod config_check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let folder = std::env::temp_dir().join(format!("tailwater-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("created");
    config_check::config(bytes, &folder);
});
