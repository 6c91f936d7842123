//! Histograms as bucket arrays, written in the exposition format after the exporter crate's output.

use std::{
    fmt::Write as _,
    sync::{Mutex, PoisonError},
};

use super::described::Metric;

/// A Prometheus histogram: counts by upper bound, and the sum.
pub(super) struct Histogram {
    metric: Metric,
    code: &'static str,
    bounds: &'static [f64],
    state: Mutex<(Vec<u64>, f64)>,
}

impl Histogram {
    pub(super) fn new(metric: Metric, code: &'static str, bounds: &'static [f64]) -> Self {
        Histogram { metric, code, bounds, state: Mutex::new((vec![0; bounds.len() + 1], 0.0)) }
    }

    /// Adds samples under one lock.
    pub(super) fn observe(&self, samples: impl IntoIterator<Item = f64>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for sample in samples {
            let bucket = self.bounds.partition_point(|bound| *bound < sample);
            state.0[bucket] += 1;
            state.1 += sample;
        }
    }

    pub(super) fn write_help(&self, text: &mut String) {
        let Metric { name, help, .. } = self.metric;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}");
        let _ = writeln!(text, "# TYPE {name} histogram");
    }

    pub(super) fn write(&self, text: &mut String) {
        let (counts, sum) = self.state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (name, code) = (self.metric.name, self.code);
        let label = if code.is_empty() { String::new() } else { format!("code=\"{code}\"") };
        let comma = if code.is_empty() { "" } else { "," };
        let mut total = 0;
        let bounds = self.bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        for (count, bound) in counts.iter().zip(bounds) {
            total += count;
            let _ = writeln!(text, "{name}_bucket{{{label}{comma}le=\"{bound}\"}} {total}");
        }
        let braces = if code.is_empty() { String::new() } else { format!("{{{label}}}") };
        let _ = writeln!(text, "{name}_sum{braces} {sum}");
        let _ = writeln!(text, "{name}_count{braces} {total}");
    }
}
