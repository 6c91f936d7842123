//! `deploy/tailwater.schema.json`: the JSON Schema (2020-12) of configuration and policy files.

use serde_json::{Map, Value, json};

use super::hold;
use crate::config::{
    SCHEMA,
    keys::{self, Described, Key, Kind, Need},
};

const DESCRIPTION: &str = "tailwater.toml, or a file of policies that it names. `tailwater check` \
                           finds more than a schema can say.";

#[test]
fn the_schema_is_what_the_code_says() {
    let mut root = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tailwater's configuration",
        "description": DESCRIPTION,
        "type": "object",
        "additionalProperties": false,
        "properties": {},
    });
    for section in keys::sections() {
        let table = section.path.split('.').filter(|name| !name.is_empty());
        let table = table.fold(&mut root, |table, name| &mut table["properties"][name]);
        describe(table, section);
    }
    let committed: Value = serde_json::from_str(SCHEMA).expect("JSON");
    root["properties"]["policy"] = committed["properties"]["policy"].clone();
    root["$defs"] = committed["$defs"].clone();
    let text = serde_json::to_string_pretty(&root).expect("values always serialize");
    hold("deploy/tailwater.schema.json", &(text + "\n"));
}

/// Adds what is known of a section to its table.
fn describe(table: &mut Value, section: &Described) {
    if !section.path.is_empty() {
        *table = json!({
            "description": section.words,
            "type": "object",
            "additionalProperties": false,
            "properties": {},
        });
    }
    let mut required = Vec::new();
    let mut together = Map::new();
    for key in section.keys {
        table["properties"][key.name] = property(key);
        match key.need {
            Need::Optional => {}
            Need::Required => required.push(key.name),
            Need::With(other) => {
                together.insert(other.to_owned(), json!([key.name]));
            }
        }
    }
    if !required.is_empty() {
        table["required"] = json!(required);
    }
    if !together.is_empty() {
        table["dependentRequired"] = Value::Object(together);
    }
}

fn property(key: &Key) -> Value {
    let mut says = match key.kind {
        Kind::Boolean { default } => json!({ "type": "boolean", "default": default }),
        Kind::Integer { min, max, default } => {
            let mut says = json!({ "type": "integer", "minimum": min, "maximum": max });
            if let Some(default) = default {
                says["default"] = json!(default);
            }
            says
        }
        Kind::Duration { default, .. } => {
            json!({ "$ref": "#/$defs/duration", "default": keys::seconds(default) })
        }
        Kind::Word { words, default } => json!({
            "anyOf": [{ "enum": words }, { "$ref": "#/$defs/environment" }],
            "default": default,
        }),
        Kind::Listener { default } => json!({ "$ref": "#/$defs/listener", "default": default }),
        Kind::UrlPath { default } => json!({ "$ref": "#/$defs/url_path", "default": default }),
        Kind::Url { default } => json!({ "$ref": "#/$defs/url", "default": default }),
        Kind::Path => json!({ "$ref": "#/$defs/path" }),
        Kind::Text => json!({ "type": "string" }),
        Kind::Texts => json!({ "type": "array", "items": { "type": "string" }, "default": [] }),
        Kind::Headers => json!({
            "type": "object",
            "additionalProperties": { "type": "string" },
            "default": {},
        }),
    };
    says["description"] = json!(key.words);
    says
}
