//! Metrics of the process that every client library of Prometheus has.
//!
//! They are written by hand, because CPU time is a counter with a fraction, and counters of the
//! exporter crate are integers. What a system without `/proc` does not tell is left out. A scrape
//! reads everything; it costs one entry of a directory for each open descriptor.

use std::fmt::{Display, Write as _};

use rustix::process::{Resource, getrlimit};

use super::described::{CPU, MAX_FDS, Metric, MetricKind, OPEN_FDS, RESIDENT, START_TIME};
use crate::{budget, clock};

/// Knows when the service started.
pub(super) struct Process {
    started_unix_millis: u64,
}

impl Process {
    pub(super) fn start() -> Self {
        Process { started_unix_millis: clock::unix_millis() }
    }

    /// Appends the metrics in the exposition format.
    pub(super) fn write(&self, text: &mut String) {
        line(text, CPU, clock::cpu_time().as_secs_f64());
        if let Some(bytes) = budget::resident_bytes() {
            line(text, RESIDENT, bytes);
        }
        if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
            // One of them is open only to read the directory.
            line(text, OPEN_FDS, descriptors.count().saturating_sub(1));
        }
        let max = getrlimit(Resource::Nofile).current;
        line(text, MAX_FDS, max.map_or("+Inf".to_owned(), |max| max.to_string()));
        line(text, START_TIME, self.started_unix_millis as f64 / 1e3);
    }
}

fn line(text: &mut String, Metric { name, kind, help, .. }: Metric, value: impl Display) {
    let kind = if kind == MetricKind::Counter { "counter" } else { "gauge" };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
}
