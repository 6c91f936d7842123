//! Reads options as the Collector does, and reports each mistake at its place.

use super::{
    policies::{Policies, VALUE_BYTES_MAX},
    yaml::{Node, Value},
};

/// The bytes charged for a string in addition to its text.
const STRING_BYTES: usize = 64;

const VARIABLE: &str =
    "this comes from a variable, whose value is not known here, and policies have no variables";

impl Policies<'_> {
    /// Reports every key that the Collector does not know here.
    pub(super) fn only(&mut self, block: &Node, known: &[&str]) -> Option<()> {
        let mut is_fine = true;
        for (key, _) in block.entries() {
            let name = key.text().unwrap_or("?");
            if !known.contains(&name) {
                self.report.error(&key, format!("the Collector has no option `{name}` here"));
                is_fine = false;
            }
        }
        is_fine.then_some(())
    }

    pub(super) fn key(&mut self, block: &Node) -> Option<String> {
        let key = block.get("key");
        match key.as_deref().map(|key| (key, self.string(key))) {
            Some((_, Some(key))) if !key.is_empty() => Some(key),
            Some((_, None)) => None,
            _ => {
                self.report.error(block, "`key` is missing or empty");
                None
            }
        }
    }

    pub(super) fn strings(&mut self, block: &Node, key: &str) -> Option<Vec<String>> {
        let Some(list) = block.get(key).filter(|list| !list.is_null()) else {
            return Some(Vec::new());
        };
        match &list.value {
            Value::List(items) => {
                let mut values = Some(Vec::new());
                for item in items {
                    match (self.string(item), &mut values) {
                        (Some(value), Some(values)) => values.push(value),
                        _ if self.is_full() => return None,
                        _ => values = None,
                    }
                }
                values
            }
            _ => {
                let message = match list.text() {
                    Some(text) if text.contains("${") => {
                        format!("`{key}` comes from a variable, whose value is not known here")
                    }
                    _ => format!("`{key}` is not a list"),
                };
                self.report.error(&list, message);
                None
            }
        }
    }

    /// A string as the Collector reads it.
    pub(super) fn string(&mut self, node: &Node) -> Option<String> {
        let Some(scalar) = node.scalar() else {
            self.report.error(node, "this is not a string");
            return None;
        };
        self.charge(node, scalar.text.len())?;
        if is_variable(&scalar.text) {
            self.report.error(node, VARIABLE);
            return None;
        }
        if node.is_null() {
            self.report.note(node, "nothing is written here; the Collector reads an empty string");
            return Some(String::new());
        }
        if scalar.is_plain && !is_text(&scalar.text) {
            self.report.note(
                node,
                "not in quotes in the file, which the Collector refuses; taken as it is written",
            );
        }
        Some(scalar.text.replace("$$", "$"))
    }

    /// Charges the bytes of a string to the limit. The error is reported once.
    pub(super) fn charge(&mut self, node: &Node, bytes: usize) -> Option<()> {
        let was_full = self.is_full();
        self.value_bytes += bytes + STRING_BYTES;
        if self.value_bytes > VALUE_BYTES_MAX && !was_full {
            self.report.error(node, "the values are more than 4 MiB, aliases included");
        }
        (!self.is_full()).then_some(())
    }

    pub(super) fn boolean(&mut self, block: &Node, key: &str) -> Option<bool> {
        let Some(node) = block.get(key).filter(|node| !node.is_null()) else { return Some(false) };
        match node.text() {
            Some("true" | "True" | "TRUE") => Some(true),
            Some("false" | "False" | "FALSE") => Some(false),
            Some(text) if is_variable(text) => {
                self.report.error(&node, VARIABLE);
                None
            }
            _ => {
                self.report.error(&node, format!("`{key}` is not true or false"));
                None
            }
        }
    }

    pub(super) fn integer(&mut self, block: &Node, key: &str) -> Option<Option<i64>> {
        let Some(node) = block.get(key).filter(|node| !node.is_null()) else { return Some(None) };
        let text = node.text().unwrap_or_default();
        match text.replace('_', "").parse() {
            Ok(integer) => Some(Some(integer)),
            Err(_) => self.no_number(&node, key, text, "an integer"),
        }
    }

    pub(super) fn number(&mut self, block: &Node, key: &str) -> Option<Option<f64>> {
        let Some(node) = block.get(key).filter(|node| !node.is_null()) else { return Some(None) };
        let text = node.text().unwrap_or_default();
        match text.parse::<f64>().ok().filter(|number| number.is_finite()) {
            Some(number) => Some(Some(number)),
            None => self.no_number(&node, key, text, "a number"),
        }
    }

    pub(super) fn no_number<T>(
        &mut self,
        node: &Node,
        key: &str,
        text: &str,
        wanted: &str,
    ) -> Option<T> {
        if is_variable(text) {
            self.report.error(node, VARIABLE);
        } else {
            self.report.error(node, format!("`{key}` is not {wanted}"));
        }
        None
    }
}

/// Whether the text contains a Collector variable; `$$` is a literal dollar.
pub(super) fn is_variable(text: &str) -> bool {
    text.replace("$$", "").contains("${")
}

/// Whether a plain scalar is a string, not a number, boolean or null.
fn is_text(text: &str) -> bool {
    let words =
        ["true", "false", "null", "~", "", "True", "False", "TRUE", "FALSE", "Null", "NULL"];
    !words.contains(&text) && text.parse::<f64>().is_err()
}
