//! Reads options as the Collector does, and reports each mistake at its place.

use std::rc::Rc;

use super::{
    policies::{Policies, VALUE_BYTES_MAX},
    scalars::Kind,
    yaml::{Node, Value},
};

/// Whole floats below this are exact, so they are read as integers.
const WHOLE_FLOAT_MAX: f64 = 9_007_199_254_740_992.0;

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

    /// The strings of a list, each with its place. The Collector splits a single string at commas.
    pub(super) fn strings(&mut self, block: &Node, key: &str) -> Option<Vec<(String, Rc<Node>)>> {
        let Some(list) = block.get(key).filter(|list| !list.is_null()) else {
            return Some(Vec::new());
        };
        match &list.value {
            Value::List(items) => {
                let mut values = Some(Vec::new());
                for item in items {
                    match (self.string(item), &mut values) {
                        (Some(value), Some(values)) => values.push((value, Rc::clone(item))),
                        _ if self.is_full() => return None,
                        _ => values = None,
                    }
                }
                values
            }
            Value::Scalar(scalar) if !is_variable(&scalar.text) && scalar.kind() == Kind::Text => {
                let text = self.string(&list)?;
                self.charge(&list, text.matches(',').count() * STRING_BYTES)?;
                let parts = text.split(',').filter(|_| !text.is_empty());
                Some(parts.map(|part| (part.to_owned(), Rc::clone(&list))).collect())
            }
            _ => {
                self.no_list(&list, key, "a list");
                None
            }
        }
    }

    /// Reports a value that is not the expected list, or comes from a variable.
    pub(super) fn no_list(&mut self, node: &Node, key: &str, wanted: &str) {
        let message = match node.text() {
            Some(text) if is_variable(text) => {
                format!("`{key}` comes from a variable, whose value is not known here")
            }
            _ => format!("`{key}` is not {wanted}"),
        };
        self.report.error(node, message);
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
            self.report.note(node, "the value is empty; the Collector reads an empty string");
            return Some(String::new());
        }
        self.quotes(node);
        Some(scalar.text.replace("$$", "$"))
    }

    /// Notes a string without quotes that YAML reads as another type, for example a number.
    pub(super) fn quotes(&mut self, node: &Node) {
        if node.scalar().is_some_and(|scalar| scalar.kind() != Kind::Text) {
            self.report.note(
                node,
                "this has no quotes, so the Collector refuses it; converted as a string",
            );
        }
    }

    /// Charges the bytes of a string to the limit. The error is reported once.
    pub(super) fn charge(&mut self, node: &Node, bytes: usize) -> Option<()> {
        let was_full = self.is_full();
        self.value_bytes += bytes + STRING_BYTES;
        if self.value_bytes > VALUE_BYTES_MAX && !was_full {
            self.report.error(node, "the values exceed 4 MiB, aliases included");
        }
        (!self.is_full()).then_some(())
    }

    pub(super) fn boolean(&mut self, block: &Node, key: &str) -> Option<bool> {
        let Some(node) = block.get(key).filter(|node| !node.is_null()) else { return Some(false) };
        match self.unquoted(&node) {
            Kind::Boolean(value) => Some(value),
            _ => {
                self.wrong(&node, format!("`{key}` is not true or false"));
                None
            }
        }
    }

    pub(super) fn integer(&mut self, block: &Node, key: &str) -> Option<Option<i64>> {
        let Some(node) = block.get(key).filter(|node| !node.is_null()) else { return Some(None) };
        match self.unquoted(&node) {
            Kind::Integer(integer) => Some(Some(integer)),
            Kind::Float(float) if float.fract() == 0.0 && float.abs() < WHOLE_FLOAT_MAX => {
                Some(Some(float as i64))
            }
            _ => {
                self.wrong(&node, format!("`{key}` is not an integer"));
                None
            }
        }
    }

    pub(super) fn number(&mut self, block: &Node, key: &str) -> Option<Option<f64>> {
        let Some(node) = block.get(key).filter(|node| !node.is_null()) else { return Some(None) };
        match self.unquoted(&node) {
            Kind::Integer(integer) => Some(Some(integer as f64)),
            Kind::Float(float) if float.is_finite() => Some(Some(float)),
            _ => {
                self.wrong(&node, format!("`{key}` is not a number"));
                None
            }
        }
    }

    /// A number or boolean, also one in quotes.
    pub(super) fn unquoted(&mut self, node: &Node) -> Kind {
        let Some(scalar) = node.scalar() else { return Kind::Text };
        let kind = scalar.unquoted();
        if !scalar.is_plain && matches!(kind, Kind::Boolean(_) | Kind::Integer(_) | Kind::Float(_))
        {
            self.report.note(
                node,
                "this is in quotes, so the Collector refuses it; converted as if it had none",
            );
        }
        kind
    }

    /// Reports an error, with the remark that it is a variable if that is the cause.
    pub(super) fn wrong(&mut self, node: &Node, message: impl Into<String>) {
        match node.text() {
            Some(text) if is_variable(text) => self.report.error(node, VARIABLE),
            _ => self.report.error(node, message),
        }
    }
}

/// Whether a text contains a variable of the Collector or of a template; `$$` is a dollar.
pub(super) fn is_variable(text: &str) -> bool {
    let is_template = text.find("{{").is_some_and(|start| text[start..].contains("}}"));
    is_template || text.replace("$$", "").contains("${")
}
