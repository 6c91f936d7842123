//! The process metrics that every Prometheus client library has.
//!
//! They are written by hand, because CPU time is a counter with a fraction, and counters of the
//! exporter crate are integers. Memory and open descriptors come from `/proc` and are left out on
//! systems without it. Counting open descriptors reads one directory entry for each.

use std::fmt::{Display, Write as _};

use rustix::process::{Resource, getrlimit};

use super::described::{CPU, MAX_FDS, Metric, MetricKind, OPEN_FDS, RESIDENT, START_TIME};
use crate::{budget, clock};

/// Appends the metrics of a service that started at this time, in Unix milliseconds.
pub(super) fn write(text: &mut String, started_at: u64) {
    line(text, CPU, clock::cpu_time().as_secs_f64());
    if let Some(bytes) = budget::resident_bytes() {
        line(text, RESIDENT, bytes);
    }
    if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
        // One descriptor is open only to read the directory.
        line(text, OPEN_FDS, descriptors.count().saturating_sub(1));
    }
    let max = getrlimit(Resource::Nofile).current;
    line(text, MAX_FDS, max.map_or("+Inf".to_owned(), |max| max.to_string()));
    line(text, START_TIME, started_at as f64 / 1e3);
}

fn line(text: &mut String, Metric { name, kind, help, .. }: Metric, value: impl Display) {
    let kind = if kind == MetricKind::Counter { "counter" } else { "gauge" };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
}
