//! The policies of the runs: as text for Tailwater, and as the naive model applies them.

use tailwater::trace::{Randomness, Threshold};

use crate::journal::Sent;

/// A file of policies, and the decisions it leads to.
#[derive(Clone, Copy, Debug)]
pub struct PolicySet {
    pub text: &'static str,
    keeps_errors: bool,
    keeps_slow: bool,
    drops_probes: bool,
    keeps_probes: bool,
    percentage: f64,
    /// Whether it has a rate limit, which the model does not follow.
    is_limited: bool,
}

/// Milliseconds above which a trace is slow.
const SLOW_MILLIS: u64 = 500;

impl PolicySet {
    /// Whether a trace with exactly these spans is kept; `None` if that depends on other traces.
    pub fn keeps(&self, trace: u64, spans: &[Sent]) -> Option<bool> {
        let is_probe = spans.iter().any(|span| span.is_probe);
        if self.drops_probes && is_probe {
            return Some(false);
        }
        let start = spans.iter().map(|span| span.start).min()?;
        let end = spans.iter().map(|span| span.end).max()?;
        let is_slow = end.saturating_sub(start) > SLOW_MILLIS * 1_000_000;
        let is_error = spans.iter().any(|span| span.is_error);
        let is_probe = self.keeps_probes && is_probe;
        if is_probe || (self.keeps_errors && is_error) || (self.keeps_slow && is_slow) {
            return Some(true);
        }
        let randomness = Randomness(trace & ((1 << 56) - 1));
        let is_kept = Threshold::from_percentage(self.percentage).keeps(randomness);
        if self.is_limited && is_kept { None } else { Some(is_kept) }
    }
}

/// The sets between which runs reload. A policy's name begins with the number of its set, and each
/// set has a policy that matches every trace, so that a decision tells by which set it was made.
pub const SETS: [PolicySet; 5] = [
    PolicySet {
        text: r#"
[[policy]]
name = "0-probes"
type = "drop"
policies = [{ type = "string_attribute", key = "http.route", values = ["/healthz"] }]

[[policy]]
name = "0-errors"
type = "status_code"
status_codes = ["ERROR"]

[[policy]]
name = "0-slow"
type = "latency"
threshold_ms = 500

[[policy]]
name = "0-baseline"
type = "probabilistic"
sampling_percentage = 25
"#,
        keeps_errors: true,
        keeps_slow: true,
        drops_probes: true,
        keeps_probes: false,
        percentage: 25.0,
        is_limited: false,
    },
    PolicySet {
        text: r#"
[[policy]]
name = "1-errors"
type = "status_code"
status_codes = ["ERROR"]

[[policy]]
name = "1-probes"
type = "string_attribute"
key = "http.route"
values = ["/healthz"]

[[policy]]
name = "1-tenth"
type = "probabilistic"
sampling_percentage = 10
"#,
        keeps_errors: true,
        keeps_slow: false,
        drops_probes: false,
        keeps_probes: true,
        percentage: 10.0,
        is_limited: false,
    },
    PolicySet {
        text: "[[policy]]\nname = \"2-all\"\ntype = \"always_sample\"\n",
        keeps_errors: false,
        keeps_slow: false,
        drops_probes: false,
        keeps_probes: false,
        percentage: 100.0,
        is_limited: false,
    },
    PolicySet {
        text: r#"
[[policy]]
name = "3-errors"
type = "status_code"
status_codes = ["ERROR"]

[[policy]]
name = "3-some"
type = "probabilistic"
sampling_percentage = 80
limit = { spans_per_second = 4 }
"#,
        keeps_errors: true,
        keeps_slow: false,
        drops_probes: false,
        keeps_probes: false,
        percentage: 80.0,
        is_limited: true,
    },
    PolicySet {
        text: r#"
[[policy]]
name = "4-fair"
type = "budget"
spans_per_second = 20
keys = ["service.name", "span.name", "http.route"]

[[policy]]
name = "4-first"
type = "rare"
keys = ["span.name", "status.code"]
interval = "10s"
"#,
        keeps_errors: false,
        keeps_slow: false,
        drops_probes: false,
        keeps_probes: false,
        percentage: 100.0,
        is_limited: true,
    },
];
