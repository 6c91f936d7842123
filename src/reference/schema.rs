//! Writes `deploy/tailwater.schema.json`: the JSON Schema (2020-12) of configuration and policy
//! files.

use serde_json::{Map, Value, json};

use super::hold;
use crate::config::{
    keys::{self, Described, Key, Kind, Need},
    types::{COMMON, LIMIT, Parts, PolicyType, Standing, TYPES},
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
    root["properties"]["policy"] = json!({
        "description": "The policies. They come before those of `policy_files`. The most generous \
                        policy that matches decides.",
        "type": "array",
        "items": { "$ref": "#/$defs/policy" },
    });
    root["$defs"] = definitions();
    let text = serde_json::to_string_pretty(&root).expect("values always serialize");
    hold("deploy/tailwater.schema.json", &(text + "\n"));
}

/// Adds the description of a section to its table.
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
        Kind::Text { pattern: "" } => json!({ "type": "string" }),
        Kind::Text { pattern: "." } => json!({ "type": "string", "minLength": 1 }),
        Kind::Text { pattern } => json!({ "type": "string", "pattern": pattern }),
        Kind::Strings { pattern } => {
            let item = match pattern {
                "" => json!({ "type": "string" }),
                pattern => json!({ "type": "string", "pattern": pattern }),
            };
            json!({ "type": "array", "items": item, "minItems": 1 })
        }
        Kind::Words(words) => {
            json!({ "type": "array", "items": { "enum": words }, "minItems": 1 })
        }
        Kind::WordsOr { words, default } => json!({
            "type": "array",
            "items": { "anyOf": [{ "enum": words }, { "$ref": "#/$defs/environment" }] },
            "minItems": 1,
            "default": default,
        }),
        Kind::Truth => json!({ "type": "boolean" }),
        Kind::Number => json!({ "type": "number" }),
        Kind::AboveZero => json!({ "type": "number", "exclusiveMinimum": 0 }),
        Kind::Percentage => {
            json!({ "type": "number", "minimum": 0, "maximum": 100, "default": 100 })
        }
        Kind::Fraction => {
            json!({ "type": "number", "minimum": 0, "maximum": 1, "default": 0 })
        }
        // TOML parsers pass dates to a validator in various forms.
        Kind::DateTime => json!({}),
        Kind::Policy => json!({ "$ref": "#/$defs/part" }),
        Kind::Policies => {
            json!({ "type": "array", "items": { "$ref": "#/$defs/part" }, "minItems": 1 })
        }
        Kind::Limit => json!({ "$ref": "#/$defs/limit" }),
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

/// Definitions of string forms and of everything about policies.
fn definitions() -> Value {
    let duration = "^0$|^ *([0-9][0-9 ]*([.][0-9]+)? *(ns|nsec|nanos|us|usec|µs|ms|msec|millis|s|\
                    secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?) *)+$|\\$\\{env:";
    let mut all = json!({
        "environment": {
            "description": "A string with an environment variable in it.",
            "type": "string",
            "pattern": "\\$\\{env:",
        },
        "duration": { "type": "string", "pattern": duration },
        "path": { "type": "string", "minLength": 1 },
        "listener": { "type": "string", "pattern": "^[^/]+:[0-9]+$|\\$\\{env:" },
        "url": { "type": "string", "pattern": "^https?://[^/?#]+(/[^?#]*)?$|\\$\\{env:" },
        "url_path": { "type": "string", "pattern": "^/[^?#]*$|\\$\\{env:" },
        "limit": limit(),
        "policy": {
            "description": "A named policy.",
            "required": ["name", "type"],
            "allOf": [{ "$ref": "#/$defs/rule" }],
        },
        "part": part(),
        "certain": {
            "description": "A policy that is not probabilistic, at any depth.",
            "properties": {
                "type": { "not": { "const": "probabilistic" } },
                "sampling_percentage": { "const": 100 },
                "policy": { "$ref": "#/$defs/certain" },
                "policies": { "items": { "$ref": "#/$defs/certain" } },
            },
        },
        "of_one_span": of_one_span(),
        "rule": rule(),
    });
    for kind in TYPES {
        all[kind.name] = of_type(kind, &all["rule"]["properties"]);
    }
    all
}

fn limit() -> Value {
    let properties: Map<_, _> =
        LIMIT.iter().map(|key| (key.name.to_owned(), property(key))).collect();
    json!({
        "description": "Limits the rate of kept traces, by lowering the percentage of the policy.",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
        "anyOf": [{ "required": ["spans_per_second"] }, { "required": ["bytes_per_second"] }],
        "not": { "required": ["spans_per_second", "bytes_per_second", "burst_capacity"] },
    })
}

fn part() -> Value {
    let mut properties = Map::new();
    for key in COMMON.iter().filter(|key| !matches!(key.kind, Kind::Percentage)) {
        properties.insert(key.name.to_owned(), json!(false));
    }
    let of_top = TYPES.iter().filter(|kind| kind.place == Standing::Top).map(|kind| kind.name);
    let of_top: Vec<_> = of_top.collect();
    properties.insert("type".to_owned(), json!({ "not": { "enum": of_top } }));
    json!({
        "description": "A nested policy, without the keys of the top level.",
        "allOf": [{ "$ref": "#/$defs/rule" }],
        "properties": properties,
    })
}

fn of_one_span() -> Value {
    let fitting = TYPES.iter().filter(|kind| kind.place == Standing::OfOneSpan);
    let names: Vec<_> = fitting.map(|kind| kind.name).collect();
    json!({
        "description": "A condition that a single span can meet.",
        "properties": {
            "type": { "enum": names },
            "policy": { "$ref": "#/$defs/of_one_span" },
            "policies": { "items": { "$ref": "#/$defs/of_one_span" } },
        },
    })
}

/// A policy of any type, with the first description of each parameter.
fn rule() -> Value {
    let names: Vec<_> = TYPES.iter().map(|kind| kind.name).collect();
    let mut properties = Map::new();
    properties
        .insert("type".to_owned(), json!({ "description": "The type of policy.", "enum": names }));
    let parameters = TYPES.iter().flat_map(|kind| kind.parameters);
    for key in COMMON.iter().chain(parameters) {
        properties.entry(key.name).or_insert_with(|| property(key));
    }
    properties["name"]["not"] = json!({ "const": "none" });
    let branch = |name: &&str| {
        json!({
            "if": { "properties": { "type": { "const": name } }, "required": ["type"] },
            "then": { "$ref": format!("#/$defs/{name}") },
        })
    };
    json!({
        "description": "A policy of any type.",
        "type": "object",
        "required": ["type"],
        "properties": properties,
        "allOf": names.iter().map(branch).collect::<Vec<_>>(),
    })
}

/// The keys that a type adds to a policy. `shared` properties are not repeated.
fn of_type(kind: &PolicyType, shared: &Value) -> Value {
    let is_veto = kind.place == Standing::Top;
    let mut properties = Map::new();
    properties.insert("type".to_owned(), json!(true));
    for key in COMMON {
        let is_refused = is_veto && matches!(key.kind, Kind::Percentage | Kind::Limit);
        properties.insert(key.name.to_owned(), json!(!is_refused));
    }
    for key in kind.parameters {
        let own = property(key);
        let says = if shared[key.name] == own { json!(true) } else { own };
        properties.insert(key.name.to_owned(), says);
    }
    let part = match kind.parts {
        Parts::None | Parts::Any => None,
        Parts::Certain => Some(json!({ "$ref": "#/$defs/certain" })),
        Parts::OfOneSpan => Some(json!({
            "allOf": [{ "$ref": "#/$defs/certain" }, { "$ref": "#/$defs/of_one_span" }],
        })),
    };
    for key in kind.parameters.iter().filter(|_| part.is_some()) {
        match key.kind {
            Kind::Policy => properties.insert(key.name.to_owned(), json!(part)),
            Kind::Policies => properties.insert(key.name.to_owned(), json!({ "items": part })),
            _ => None,
        };
    }
    let mut required: Vec<_> = kind.parameters.iter().collect();
    required.retain(|key| key.need == Need::Required);
    let mut required: Vec<_> = required.into_iter().map(|key| key.name).collect();
    if kind.name == "probabilistic" {
        required.push("sampling_percentage");
    }
    let mut says = json!({
        "description": kind.words,
        "additionalProperties": false,
        "properties": properties,
    });
    if !required.is_empty() {
        says["required"] = json!(required);
    }
    let needs = |name: &&str| json!({ "required": [name] });
    if !kind.any_of.is_empty() {
        says["anyOf"] = kind.any_of.iter().map(needs).collect();
    }
    if !kind.exclusive.is_empty() {
        let pairs = kind.exclusive.iter().map(|pair| json!({ "required": pair }));
        says["not"] = json!({ "anyOf": pairs.collect::<Vec<_>>() });
    }
    if let Some((key, other)) = kind.parameters.iter().find_map(|key| match key.need {
        Need::With(other) => Some((key.name, other)),
        _ => None,
    }) {
        says["dependentRequired"] = json!({ key: [other] });
    }
    says
}
