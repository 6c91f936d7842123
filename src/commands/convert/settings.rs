//! Converts the options of the processor other than its policies, to `[sampling]`.

use super::{
    durations::go_duration, fields::is_variable, policies::Policies, scalars::Kind, yaml::Node,
};

const SECOND_NANOS: i64 = 1_000_000_000;
const MIB: i64 = 1 << 20;
/// The longest `decision_wait` of Tailwater.
const WAIT_SECONDS_MAX: i64 = 3600;

/// Options that change no decision, or that Tailwater does not need, with the reason.
const WITHOUT_COUNTERPART: &[(&str, &str)] = &[
    ("num_traces", "the window is bounded in bytes, by `memory_limit_mib`, not by a count"),
    ("expected_new_traces_per_sec", "Tailwater allocates nothing in advance"),
    (
        "block_on_overflow",
        "at the memory limit Tailwater refuses requests with a retryable error, so senders lose \
         nothing",
    ),
    ("num_shards", "the number of shards follows the number of cores"),
    ("mutates_data", "spans are never copied into structs"),
    ("tail_storage", "the window is in memory"),
    ("sample_on_first_match", "all policies decide together, and their order does not matter"),
];

impl Policies<'_> {
    /// The lines of `[sampling]`.
    pub(super) fn sampling(&mut self, processor: &Node) -> String {
        let mut wait = "30s".to_owned();
        let mut after_root = "0s".to_owned();
        let mut max_trace_mib = 16;
        if let Some(key) = processor.own_duplicate() {
            let message = format!("the key `{}` is given twice", key.text().unwrap_or("?"));
            self.report.error(&key, message);
        }
        for (key, value) in processor.entries() {
            let name = key.text().unwrap_or("?").to_owned();
            match name.as_str() {
                "policies" => {}
                "decision_wait" => wait = self.seconds(&value, 1, &wait),
                "decision_wait_after_root_received" => {
                    after_root = self.seconds(&value, 0, &after_root);
                }
                "maximum_trace_size_bytes" => {
                    let bytes = self.integer(processor, &name).flatten().unwrap_or(0);
                    if bytes > 0 {
                        max_trace_mib = ((bytes - 1) / MIB + 1).clamp(1, 1024);
                        let message = "the Collector drops a trace of this size; Tailwater decides \
                                       it with the spans it has, and its limit is in whole MiB, at \
                                       most 1024";
                        self.report.note(&key, message);
                    }
                }
                "sampling_strategy" => match value.text() {
                    Some("trace-complete" | "") => {}
                    Some("span-ingest") => {
                        self.is_ingest = true;
                        let message = "`span-ingest` decides each batch separately; Tailwater \
                                       decides whole traces";
                        self.report.note(&value, message);
                    }
                    _ => self.wrong(&value, "the Collector has no such sampling strategy"),
                },
                "decision_cache" => {
                    let message = "`decision_cache` has no counterpart: every decision is \
                                   remembered, for `decision_cache_ttl`";
                    self.report.note(&key, message);
                    self.only(&value, &["sampled_cache_size", "non_sampled_cache_size"]);
                }
                "drop_pending_traces_on_shutdown" => {
                    let message = "Tailwater decides waiting traces with the spans they have";
                    self.report.note(&key, message);
                }
                _ => match WITHOUT_COUNTERPART.iter().find(|(known, _)| *known == name) {
                    Some((_, why)) => {
                        self.report.note(&key, format!("`{name}` has no counterpart: {why}"));
                    }
                    None => {
                        let message = format!("the Collector has no option `{name}` here");
                        self.report.error(&key, message);
                    }
                },
            }
        }
        if processor.get("decision_cache").is_none() {
            let message = "without `decision_cache` the Collector treats late spans as a new \
                           trace; in Tailwater they follow the decision for `decision_cache_ttl`";
            self.report.note(processor, message);
        }
        format!(
            "[sampling]\n\
             decision_wait = \"{wait}\"\n\
             # Off by default in the Collector, 10 s by default in Tailwater.\n\
             decision_wait_after_root_received = \"{after_root}\"\n\
             # The Collector has no limit on spans. Tailwater decides such a trace early.\n\
             max_trace_spans = 32000\n\
             max_trace_bytes_mib = {max_trace_mib}\n"
        )
    }

    /// Reads whole seconds. The Collector raises less than a second to one second; for
    /// `decision_wait`, also 0.
    fn seconds(&mut self, node: &Node, least: i64, default: &str) -> String {
        if node.is_null() {
            return default.to_owned();
        }
        let nanos = node.scalar().and_then(|scalar| match scalar.kind() {
            // A plain number is in nanoseconds.
            Kind::Integer(nanos) => Some(nanos),
            _ => go_duration(&scalar.text),
        });
        let Some(nanos) = nanos.filter(|nanos| *nanos >= 0) else {
            let message = match node.text() {
                Some(text) if is_variable(text) => {
                    "this comes from a variable, whose value is not known here"
                }
                _ => "this is not a duration",
            };
            self.report.error(node, message);
            return default.to_owned();
        };
        if nanos % SECOND_NANOS != 0 || nanos < least {
            self.report.note(node, "the Collector waits for whole seconds, at least one");
        }
        let seconds = (nanos / SECOND_NANOS).max(least.max(i64::from(nanos > 0)));
        if seconds > WAIT_SECONDS_MAX {
            self.report.error(node, "Tailwater waits for at most an hour");
            return default.to_owned();
        }
        format!("{seconds}s")
    }
}
