//! Converts the conditions of `tail_sampling`: every policy type without parts.

use std::rc::Rc;

use super::{
    conditions::{self, Notes},
    durations::YEAR_MILLIS,
    events,
    expressions::{compile, rewritten},
    fields::is_variable,
    ottl,
    policies::{Place, Policies},
    rule::{Rule, float, text, texts},
    scalars::Kind,
    yaml::Node,
};

/// The bytes charged for a compiled expression in addition to its text.
const EXPRESSION_BYTES: usize = 1 << 10;

/// The most expressions that are compiled one by one to find the invalid one.
const EXPRESSIONS_TRIED: usize = 100;

impl Policies<'_> {
    pub(super) fn latency(&mut self, block: &Node) -> Option<Rule> {
        self.only(block, &["threshold_ms", "upper_threshold_ms"])?;
        let threshold = self.integer(block, "threshold_ms")?.unwrap_or(0);
        let upper = self.integer(block, "upper_threshold_ms")?.unwrap_or(0);
        if threshold < 0 || threshold.max(upper) > YEAR_MILLIS {
            self.report.error(block, "a duration is at least 0 and at most a year");
            return None;
        }
        let rule = Rule::new("latency").with("threshold_ms", threshold.to_string());
        self.report.note(
            block,
            "the Collector truncates durations to whole milliseconds; Tailwater compares \
             nanoseconds",
        );
        if upper == 0 {
            return Some(rule);
        }
        if upper <= threshold {
            self.report.error(
                block,
                "no trace is longer than `threshold_ms` and shorter than `upper_threshold_ms`",
            );
            return None;
        }
        self.stateful(block);
        self.report.note(
            block,
            "the Collector tests `upper_threshold_ms` span by span, in the order of arrival; \
             Tailwater tests the whole trace",
        );
        Some(rule.with("upper_threshold_ms", upper.to_string()))
    }

    pub(super) fn numeric_attribute(&mut self, block: &Node) -> Option<Rule> {
        self.only(block, &["key", "min_value", "max_value", "invert_match"])?;
        let key = self.key(block)?;
        let min = self.integer(block, "min_value")?.unwrap_or(0);
        let max = self.integer(block, "max_value")?.unwrap_or(0);
        let invert = self.boolean(block, "invert_match")?;
        if min == 0 && max == 0 {
            let message =
                "without a bound other than 0 the Collector crashes at its first decision";
            self.report.error(block, message);
            return None;
        }
        self.lists(block);
        self.report.note(
            block,
            "the Collector reads values that are not integers as 0; here doubles count as numbers, \
             and other values do not match",
        );
        let mut rule = Rule::new("numeric_attribute").with("key", text(&key));
        if min != 0 {
            rule = rule.with("min_value", min.to_string());
        }
        if max != 0 {
            if max < min {
                self.report.error(block, "no number is above `min_value` and below `max_value`");
                return None;
            }
            rule = rule.with("max_value", max.to_string());
        }
        Some(inverted(rule, invert))
    }

    pub(super) fn probabilistic(&mut self, block: &Node) -> Option<Rule> {
        self.only(block, &["sampling_percentage", "hash_salt"])?;
        let percentage = self.number(block, "sampling_percentage")?.unwrap_or(0.0);
        let salt = match block.get("hash_salt") {
            Some(salt) => self.string(&salt)?,
            None => String::new(),
        };
        if self.salt.get_or_insert_with(|| salt.clone()) != &salt {
            self.report.note(
                block,
                "in the Collector, percentages with different salts select traces independently; \
                 here all use the same randomness of the trace, so together they keep fewer traces",
            );
        }
        self.report.note(
            block,
            "this keeps the same share of traces, but different ones: the Collector hashes the \
             trace id with a salt, Tailwater uses the randomness that OpenTelemetry specifies",
        );
        // The sum turns -0 into 0.
        let percentage = percentage.clamp(0.0, 100.0) + 0.0;
        let written =
            if percentage.fract() == 0.0 { format!("{percentage:.0}") } else { float(percentage) };
        Some(Rule::new("probabilistic").with("sampling_percentage", written))
    }

    pub(super) fn status_code(&mut self, block: &Node) -> Option<Rule> {
        self.only(block, &["status_codes"])?;
        let codes = self.strings(block, "status_codes")?;
        if codes.is_empty() {
            self.report.error(block, "`status_codes` is empty");
            return None;
        }
        for (code, node) in &codes {
            if !["OK", "ERROR", "UNSET"].contains(&code.as_str()) {
                let message = format!("`{code}` is not a status code: OK, ERROR or UNSET");
                self.report.error(node, message);
                return None;
            }
        }
        if codes.iter().any(|(code, _)| code == "UNSET") {
            let message = "`UNSET` keeps nearly every trace: a span without a status is UNSET";
            self.report.note(block, message);
        }
        let codes = texts(codes.iter().map(|(code, _)| code.as_str()));
        Some(Rule::new("status_code").with("status_codes", codes))
    }

    pub(super) fn string_attribute(&mut self, block: &Node, place: Place) -> Option<Rule> {
        let keys = ["key", "values", "enabled_regex_matching", "cache_max_size", "invert_match"];
        self.only(block, &keys)?;
        if let Some(size) = block.get("cache_max_size") {
            let message = "`cache_max_size` has no counterpart: expressions need no cache";
            self.report.note(&size, message);
        }
        let key = self.key(block)?;
        let is_regex = self.boolean(block, "enabled_regex_matching")?;
        let invert = self.boolean(block, "invert_match")?;
        let mut values = self.strings(block, "values")?;
        if !is_regex {
            let before = values.len();
            values.retain(|(value, _)| !value.is_empty());
            if values.len() < before {
                self.report.note(block, "the Collector ignores empty `values`; they are left out");
            }
        }
        if values.is_empty() {
            if invert {
                self.report.note(block, "no values, and `invert_match`: the policy always matches");
                return Some(Rule::new("always_sample"));
            }
            self.report.error(block, "`values` is empty: the policy never matches");
            return None;
        }
        let values = if is_regex {
            self.expressions(block, &values)?
        } else {
            values.into_iter().map(|(value, _)| value).collect()
        };
        self.lists(block);
        if invert && place == Place::Top {
            self.report.note(
                block,
                "`invert_match` keeps every trace in which no span has the value; to leave traces \
                 out, use `drop`",
            );
        }
        let values = texts(values.iter().map(String::as_str));
        let mut rule = Rule::new("string_attribute").with("key", text(&key)).with("values", values);
        if is_regex {
            rule = rule.with("enabled_regex_matching", "true");
        }
        Some(inverted(rule, invert))
    }

    /// The regular expressions of `values`, all of which can be used.
    fn expressions(&mut self, block: &Node, values: &[(String, Rc<Node>)]) -> Option<Vec<String>> {
        let mut written = Vec::new();
        for (value, node) in values {
            self.charge(node, EXPRESSION_BYTES)?;
            match rewritten(value) {
                Ok(expression) => written.push(expression),
                Err(reason) => {
                    self.report.error(node, reason);
                    return None;
                }
            }
        }
        let reason = match compile(&written) {
            Ok(all) if !all.is_match(b"") => return Some(written),
            Ok(_) => {
                let message = "the expression matches the empty string: the Collector skips empty \
                               values of spans, and treats values of resources that are not \
                               strings as empty; here only strings match";
                self.report.note(block, message);
                return Some(written);
            }
            Err(reason) => reason,
        };
        // Finds the invalid expression. If each is valid alone, they are too large together.
        let alone = |expression: &String| compile(std::slice::from_ref(expression)).err();
        let mut wrong = written.iter().take(EXPRESSIONS_TRIED).zip(values);
        match wrong.find_map(|(expression, (_, node))| alone(expression).map(|why| (node, why))) {
            Some((node, why)) => self.report.error(node, why),
            None => {
                let list = block.get("values");
                self.report.error(list.as_deref().unwrap_or(block), reason);
            }
        }
        None
    }

    pub(super) fn boolean_attribute(&mut self, block: &Node, place: Place) -> Option<Rule> {
        self.only(block, &["key", "value", "invert_match"])?;
        let key = self.key(block)?;
        let value = self.boolean(block, "value")?;
        let invert = self.boolean(block, "invert_match")?;
        self.lists(block);
        if !value {
            let message = "the Collector reads values that are not booleans as `false`; here they \
                           do not match";
            self.report.note(block, message);
        }
        if invert && place == Place::Top {
            let message = "`invert_match` keeps every trace in which no span has the value";
            self.report.note(block, message);
        }
        let rule = Rule::new("boolean_attribute").with("key", text(&key));
        Some(inverted(rule.with("value", value.to_string()), invert))
    }

    pub(super) fn span_count(&mut self, block: &Node) -> Option<Rule> {
        self.only(block, &["min_spans", "max_spans"])?;
        let min = self.integer(block, "min_spans")?.unwrap_or(0);
        let max = self.integer(block, "max_spans")?.unwrap_or(0);
        if min.max(max) > i64::from(i32::MAX) {
            self.report.error(block, "the Collector counts at most 2,147,483,647 spans");
            return None;
        }
        let rule = Rule::new("span_count").with("min_spans", min.max(0).to_string());
        if max == 0 {
            return Some(rule);
        }
        if max < min.max(0) {
            self.report.error(block, "no trace has that many spans");
            return None;
        }
        self.stateful(block);
        Some(rule.with("max_spans", max.to_string()))
    }

    pub(super) fn trace_state(&mut self, block: &Node) -> Option<Rule> {
        self.only(block, &["key", "values"])?;
        let key = self.key(block)?;
        let mut values = self.strings(block, "values")?;
        if !is_tracestate_key(&key) {
            self.report.error(block, "no tracestate can have this key: the policy never matches");
            return None;
        }
        let written = values.len();
        values.retain(|(value, _)| is_tracestate_value(value) && key.len() + value.len() < 256);
        if values.is_empty() {
            self.report.error(block, "no tracestate can have any of `values`");
            return None;
        }
        if values.len() < written {
            self.report.note(block, "`values` that no tracestate can have are left out");
        }
        self.report.note(
            block,
            "in the Collector, a tracestate with an invalid entry matches nothing; here each entry \
             is tested separately",
        );
        let values = texts(values.iter().map(|(value, _)| value.as_str()));
        Some(Rule::new("trace_state").with("key", text(&key)).with("values", values))
    }

    pub(super) fn ottl_condition(&mut self, block: &Node) -> Option<Rule> {
        self.only(block, &["error_mode", "span", "spanevent"])?;
        self.error_mode(block)?;
        let mut parts = Vec::new();
        let mut is_fine = true;
        for (key, of_event) in [("span", false), ("spanevent", true)] {
            let Some(list) = block.get(key).filter(|list| !list.is_null()) else { continue };
            let conditions = self.conditions_of(&list, key)?;
            for condition in &conditions {
                match self.condition(condition, of_event) {
                    Some(rule) => parts.push(rule),
                    None if self.is_full() => return None,
                    None => is_fine = false,
                }
            }
        }
        if is_fine && parts.is_empty() {
            self.report.error(block, "there is no condition");
            return None;
        }
        is_fine.then(|| Rule::all("or", parts))
    }

    fn error_mode(&mut self, block: &Node) -> Option<()> {
        let Some(mode) = block.get("error_mode").filter(|mode| !mode.is_null()) else {
            return Some(());
        };
        let written = mode.text().map(str::to_ascii_lowercase);
        if !matches!(written.as_deref(), Some("ignore" | "silent" | "propagate" | "")) {
            self.wrong(&mode, "the Collector has no such `error_mode`");
            return None;
        }
        let message = "`error_mode` has no counterpart: conditions that can be converted cause no \
                       errors";
        self.report.note(&mode, message);
        Some(())
    }

    /// The conditions of `span` or `spanevent`.
    fn conditions_of(&mut self, list: &Rc<Node>, key: &str) -> Option<Vec<Rc<Node>>> {
        match (list.list(), list.text()) {
            (Some(conditions), _) => return Some(conditions.to_vec()),
            (_, Some(text)) if !is_variable(text) && !text.contains(',') => {
                return Some(vec![Rc::clone(list)]);
            }
            (_, Some(_)) => {
                let wanted = "a list of conditions, and the Collector splits it at its commas";
                self.no_list(list, key, wanted);
            }
            _ => self.no_list(list, key, "a list of conditions"),
        }
        None
    }

    pub(super) fn condition(&mut self, node: &Node, of_event: bool) -> Option<Rule> {
        let (Some(scalar), Some(written)) = (node.scalar(), node.text()) else {
            self.report.error(node, "a condition is a string");
            return None;
        };
        if !matches!(scalar.kind(), Kind::Text | Kind::Null) {
            self.report.error(node, "the Collector refuses a condition that is not a string");
            return None;
        }
        self.count_condition(node)?;
        self.charge(node, written.len())?;
        if is_variable(written) {
            self.report
                .error(node, "the condition contains a variable, whose value is not known here");
            return None;
        }
        let expression = match ottl::parse(written) {
            Ok(expression) => expression,
            Err(fault) => {
                self.report.error_in(node, fault.span, &fault.message);
                return None;
            }
        };
        let mut notes = Notes::new();
        let rule = if of_event {
            events::of_event(&expression, &mut notes)
        } else {
            conditions::of_span(&expression, &mut notes)
        };
        notes.dedup();
        if rule.is_ok() && written.contains("attributes") {
            self.lists(node);
        }
        for note in notes {
            self.report.note(node, note);
        }
        match rule {
            Ok(rule) => Some(rule),
            Err(refusal) => {
                self.report.error_in(node, refusal.span, &refusal.reason);
                None
            }
        }
    }
}

/// Whether W3C allows a key: `key` or `tenant@system`.
fn is_tracestate_key(key: &str) -> bool {
    let is_rest = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-*/".contains(c);
    let is_part = |part: &str, first: fn(&char) -> bool, most: usize| {
        part.len() <= most && part.starts_with(|c| first(&c)) && part.chars().all(is_rest)
    };
    let is_digit_or_letter = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit();
    match key.split_once('@') {
        Some((tenant, system)) => {
            is_part(tenant, is_digit_or_letter, 241)
                && is_part(system, char::is_ascii_lowercase, 14)
        }
        None => is_part(key, char::is_ascii_lowercase, 256),
    }
}

fn is_tracestate_value(value: &str) -> bool {
    let is_allowed = |c: u8| (0x20..=0x7e).contains(&c) && c != b',' && c != b'=';
    !value.is_empty() && value.bytes().all(is_allowed) && !value.ends_with(' ')
}

fn inverted(rule: Rule, invert: bool) -> Rule {
    if invert { rule.with("invert_match", "true") } else { rule }
}
