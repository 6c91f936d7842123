//! Checks of what reads the files that people hand to commands, on any bytes. The fuzz targets
//! include this file, so it refers to nothing else of this binary.

use std::{fs, path::Path};

use tailwater::{
    commands::convert::{self, Conversion},
    config,
    trace_files::{PIECE_BYTES_MAX, Piece, TraceFile},
};

/// Parts of a trace file that are looked at: a small file may hold millions, compressed.
const PARTS_MAX: usize = 10_000;

/// The longest text that `convert` may write: 1 MiB of YAML, whose aliases may repeat some of it.
const CONVERTED_BYTES_MAX: usize = 64 << 20;

/// Converts any bytes as a Collector's configuration. Nothing panics, every diagnostic has a place
/// in the file and no control character, and what has a policy passes `check`. Without an error
/// there is a configuration. Returns whether there is one.
pub(crate) fn convert(bytes: &[u8], folder: &Path) -> bool {
    let path = folder.join("collector.yaml");
    fs::write(&path, bytes).expect("written");
    let Conversion { toml, diagnostics } = convert::convert(&path, None);
    let shown = diagnostics.to_string();
    assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
    let text = String::from_utf8_lossy(bytes);
    let lines = text.split('\n').count();
    for said in diagnostics.iter() {
        assert!((1..=lines).contains(&said.line) && said.column > 0, "no such place: {said}");
    }
    assert!(toml.len() <= CONVERTED_BYTES_MAX, "{} bytes", toml.len());
    assert!(diagnostics.has_errors() || toml.contains("\n[[policy]]\n"), "{shown}\n{toml}");
    if toml.lines().any(|line| line == "[[policy]]") {
        let path = folder.join("converted.toml");
        fs::write(&path, &toml).expect("written");
        let checked = config::load(&path).diagnostics;
        assert!(!checked.has_errors(), "{checked}\n{toml}");
    }
    !toml.is_empty()
}

/// Reads any bytes as a file of traces. Nothing panics, no part is larger than it may be, and a
/// part that cannot be read is named with the file. Returns the requests.
pub(crate) fn trace_file(bytes: &[u8]) -> Vec<Vec<u8>> {
    let Ok(mut file) = TraceFile::open("file", bytes) else { return Vec::new() };
    assert!(file.share() > 0.0 && file.share() <= 1.0, "{}", file.share());
    let mut requests = Vec::new();
    for _ in 0..PARTS_MAX {
        match file.next_piece() {
            None => {
                assert!(file.next_piece().is_none(), "nothing follows the end");
                break;
            }
            Some(Piece::Request(request)) => {
                assert!(request.len() <= PIECE_BYTES_MAX, "{} bytes", request.len());
                requests.push(request);
            }
            Some(Piece::Unreadable(reason)) => assert!(reason.starts_with("file:"), "{reason}"),
        }
    }
    requests
}
