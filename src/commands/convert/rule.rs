//! Writes policies as TOML.

/// A policy without its name: its type, its keys in TOML, and its parts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rule {
    pub(super) kind: &'static str,
    /// Keys and their values, written as TOML.
    pub(super) keys: Vec<(&'static str, String)>,
    pub(super) parts: Vec<Rule>,
}

impl Rule {
    pub(super) fn new(kind: &'static str) -> Self {
        Rule { kind, keys: Vec::new(), parts: Vec::new() }
    }

    pub(super) fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.keys.push((key, value.into()));
        self
    }

    /// Combines all parts; a single part is returned alone.
    pub(super) fn all(kind: &'static str, mut parts: Vec<Rule>) -> Self {
        if parts.len() == 1 {
            return parts.remove(0);
        }
        Rule { kind, keys: Vec::new(), parts }
    }

    pub(super) fn not(part: Rule) -> Self {
        Rule { kind: "not", keys: Vec::new(), parts: vec![part] }
    }

    /// Combines the parts, and keeps the type of the combination even for one part.
    pub(super) fn of(kind: &'static str, parts: Vec<Rule>) -> Self {
        Rule { kind, keys: Vec::new(), parts }
    }

    /// The number of levels of rules, including this one.
    pub(super) fn depth(&self) -> usize {
        1 + self.parts.iter().map(Rule::depth).max().unwrap_or(0)
    }

    /// The number of rules: this one and all below it.
    pub(super) fn count(&self) -> usize {
        1 + self.parts.iter().map(Rule::count).sum::<usize>()
    }

    /// The lines of a `[[policy]]` table after its name.
    pub(super) fn lines(&self) -> String {
        let mut lines = format!("type = \"{}\"\n", self.kind);
        for (key, value) in &self.keys {
            lines.push_str(&format!("{key} = {value}\n"));
        }
        match self.kind {
            _ if self.parts.is_empty() => {}
            "not" => lines.push_str(&format!("policy = {}\n", self.parts[0].inline())),
            _ => {
                let parts = self.parts.iter().map(|part| format!("  {},\n", part.inline()));
                lines.push_str(&format!("policies = [\n{}]\n", parts.collect::<String>()));
            }
        }
        lines
    }

    fn inline(&self) -> String {
        let mut keys = vec![format!("type = \"{}\"", self.kind)];
        keys.extend(self.keys.iter().map(|(key, value)| format!("{key} = {value}")));
        match self.kind {
            _ if self.parts.is_empty() => {}
            "not" => keys.push(format!("policy = {}", self.parts[0].inline())),
            _ => {
                let parts: Vec<String> = self.parts.iter().map(Rule::inline).collect();
                keys.push(format!("policies = [{}]", parts.join(", ")));
            }
        }
        format!("{{ {} }}", keys.join(", "))
    }
}

/// A TOML string; a literal one if that avoids escaping backslashes.
pub(super) fn text(value: &str) -> String {
    let is_plain = |c: char| !c.is_control() && c != '\'';
    if value.contains(['\\', '"']) && value.chars().all(is_plain) {
        return format!("'{value}'");
    }
    let mut quoted = String::from("\"");
    for c in value.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A list of strings in TOML.
pub(super) fn texts<'v>(values: impl IntoIterator<Item = &'v str>) -> String {
    let values: Vec<String> = values.into_iter().map(text).collect();
    format!("[{}]", values.join(", "))
}

/// A float in TOML, which must have a point or an exponent.
pub(super) fn float(value: f64) -> String {
    format!("{value:?}")
}
