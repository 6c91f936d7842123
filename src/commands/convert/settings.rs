//! Converts the options of the processor other than its policies, to `[sampling]`.

use super::{
    durations::go_duration, fields::is_variable, policies::Policies, scalars::Kind, yaml::Node,
};

const SECOND_NANOS: i64 = 1_000_000_000;
const MIB: i64 = 1 << 20;
/// The longest `decision_wait` of Tailwater.
const WAIT_SECONDS_MAX: i64 = 3600;

/// The type of an option in the Collector.
#[derive(Clone, Copy)]
enum Shape {
    Count,
    Boolean,
    /// The name of a component.
    Name,
}

/// Options that change no decision, or that Tailwater does not need, with the reason.
const WITHOUT_COUNTERPART: &[(&str, Shape, &str)] = &[
    (
        "num_traces",
        Shape::Count,
        "the window is bounded in bytes, by `memory_limit_mib`, not by a count",
    ),
    ("expected_new_traces_per_sec", Shape::Count, "Tailwater allocates nothing in advance"),
    (
        "block_on_overflow",
        Shape::Boolean,
        "at the memory limit Tailwater refuses requests with a retryable error, so senders lose \
         nothing",
    ),
    ("num_shards", Shape::Count, "the number of shards follows the number of cores"),
    ("mutates_data", Shape::Boolean, "spans are never copied into structs"),
    ("tail_storage", Shape::Name, "the window is in memory"),
    (
        "sample_on_first_match",
        Shape::Boolean,
        "all policies decide together, and their order does not matter",
    ),
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
                    if bytes < 0 {
                        self.report.error(&value, "a size is at least 0");
                    }
                    if bytes > 0 {
                        max_trace_mib = ((bytes - 1) / MIB + 1).clamp(1, 1024);
                        let message = "the Collector drops a trace of this size; Tailwater decides \
                                       it with the spans it has, and its limit is in whole MiB, at \
                                       most 1024";
                        self.report.note(&key, message);
                    }
                }
                "sampling_strategy" if value.is_null() => {}
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
                "decision_cache" => self.decision_cache(&key, &value),
                "drop_pending_traces_on_shutdown" => {
                    if self.has_shape(&value, &name, Shape::Boolean) {
                        let message = "Tailwater decides waiting traces with the spans they have";
                        self.report.note(&key, message);
                    }
                }
                _ => self.without_counterpart(&key, &value, &name),
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

    fn without_counterpart(&mut self, key: &Node, value: &Node, name: &str) {
        let Some((_, shape, why)) = WITHOUT_COUNTERPART.iter().find(|(known, ..)| *known == name)
        else {
            return self.report.error(key, format!("the Collector has no option `{name}` here"));
        };
        if self.has_shape(value, name, *shape) {
            self.report.note(key, format!("`{name}` has no counterpart: {why}"));
        }
    }

    fn decision_cache(&mut self, key: &Node, value: &Node) {
        let sizes = ["sampled_cache_size", "non_sampled_cache_size"];
        let is_variable = value.text().is_some_and(is_variable);
        if !value.is_map() && !value.is_null() && !is_variable {
            return self.report.error(value, "`decision_cache` is not a mapping");
        }
        let message = "`decision_cache` has no counterpart: every decision is remembered, for \
                       `decision_cache_ttl`";
        self.report.note(key, message);
        self.only(value, &sizes);
        for size in sizes {
            if let Some(value) = value.get(size) {
                self.has_shape(&value, size, Shape::Count);
            }
        }
    }

    /// Reports a value that the Collector refuses because of its type. The value of a variable is
    /// not known, and not needed.
    fn has_shape(&mut self, node: &Node, name: &str, shape: Shape) -> bool {
        if node.is_null() || node.text().is_some_and(is_variable) {
            return true;
        }
        let (is_fine, wanted) = match shape {
            Shape::Count => (self.is_count(node), "a number of at least 0"),
            Shape::Boolean => (matches!(self.unquoted(node), Kind::Boolean(_)), "true or false"),
            Shape::Name => {
                (node.scalar().is_some_and(|scalar| scalar.kind() == Kind::Text), "a name")
            }
        };
        if !is_fine {
            self.report.error(node, format!("`{name}` is not {wanted}"));
        }
        is_fine
    }

    fn is_count(&mut self, node: &Node) -> bool {
        match self.unquoted(node) {
            Kind::Integer(number) => number >= 0,
            Kind::Float(number) => number >= 0.0,
            _ => false,
        }
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
