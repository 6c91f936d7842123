//! Writes recordings: a first line that names the format, a line of JSON with the percentage of
//! traces in the file, and a frame for each request: a length of four bytes, big-endian, and a
//! request in protobuf.
//!
//! A trace is written at once when it is complete. If that fails, the file is cut back to the
//! traces before it, so it is readable however the recording ends, except by a crash of the
//! machine. The line of JSON has room for another percentage, because the number of missing traces
//! is only known at the end.

use std::{
    fs::File,
    io::{self, Seek as _, SeekFrom, Write as _},
    path::Path,
};

use super::RECORD_MAGIC;

/// The length of the line of JSON, including the spaces at its end.
const HEADER_CHARS: usize = 64;

/// A recording that is being written.
#[derive(Debug)]
pub struct RecordFile {
    file: File,
    /// The length of the file up to the end of the last complete trace.
    length: u64,
    /// The frames of the next trace.
    frames: Vec<u8>,
}

impl RecordFile {
    /// Creates the file, or replaces an existing one, for a recording of this percentage of all
    /// traces.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn create(path: &Path, percentage: f64) -> io::Result<Self> {
        let mut recording = RecordFile { file: File::create(path)?, length: 0, frames: Vec::new() };
        recording.frames.extend_from_slice(&header(percentage));
        recording.end_trace()?;
        Ok(recording)
    }

    /// Corrects the percentage of all traces that the file contains.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn correct(&mut self, percentage: f64) -> io::Result<()> {
        self.file.rewind()?;
        self.file.write_all(&header(percentage))?;
        self.file.seek(SeekFrom::End(0)).map(|_| ())
    }

    /// Adds a request to the next trace.
    pub fn add(&mut self, request: &[u8]) {
        // Requests are parts of gRPC messages, which are shorter than 4 GiB.
        self.frames.extend_from_slice(&(request.len() as u32).to_be_bytes());
        self.frames.extend_from_slice(request);
    }

    /// Writes the trace whose requests have been added.
    ///
    /// # Errors
    /// If the file cannot be written. The file then ends after the previous trace.
    pub fn end_trace(&mut self) -> io::Result<()> {
        let written = self.file.write_all(&self.frames);
        if written.is_err() {
            // If this fails as well, readers report the incomplete frame and skip it.
            let _ = self.file.set_len(self.length);
        }
        self.length += self.frames.len() as u64;
        self.frames.clear();
        written
    }
}

/// The first two lines of the file.
fn header(percentage: f64) -> Vec<u8> {
    let line = serde_json::json!({ "percentage": percentage }).to_string();
    [RECORD_MAGIC, format!("{line:HEADER_CHARS$}\n").as_bytes()].concat()
}
