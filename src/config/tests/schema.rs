//! The published JSON Schema agrees with the loader: the same keys, defaults, bounds and words. A
//! real validator checks that it is a valid schema and how it judges whole files
//! (`tests/real/schema.py`).

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;
use serde_json::{Map, Value};

use super::{POLICY, config, parse, policy, problems};
use crate::config::SCHEMA;

const DEPLOYED: &str = include_str!("../../../deploy/tailwater.toml");

fn schema() -> Value {
    serde_json::from_str(SCHEMA).expect("JSON")
}

/// The schema's rules for one key of a section.
struct Key {
    section: String,
    name: String,
    says: Value,
}

impl Key {
    /// The loader's problems if the key has this value (TOML) and everything else is valid.
    fn problems(&self, value: &str) -> Vec<String> {
        let path = format!("{}.{}", self.section, self.name);
        problems(&format!("{} = {value}\n{POLICY}", path.trim_start_matches('.')))
    }
}

/// Every key of every section that is not a section itself, without policies.
fn keys() -> Vec<Key> {
    fn collect(section: &str, says: &Value, keys: &mut Vec<Key>) {
        for (name, says) in says["properties"].as_object().expect("properties") {
            if says.get("properties").is_some() {
                let path = format!("{section}.{name}");
                collect(path.trim_start_matches('.'), says, keys);
            } else if (section, name.as_str()) != ("", "policy") {
                let (section, name, says) = (section.to_owned(), name.clone(), says.clone());
                keys.push(Key { section, name, says });
            }
        }
    }
    let mut keys = Vec::new();
    collect("", &schema(), &mut keys);
    keys
}

/// The texts in backticks.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn names(of: &Value) -> BTreeSet<String> {
    let words = of.as_array().expect("a list").iter();
    words.map(|word| word.as_str().expect("a string").to_owned()).collect()
}

#[test]
fn the_sections_have_the_keys_that_the_loader_knows() {
    let (_, mut known) = parse(POLICY);
    known.get_mut("").expect("the top").remove("policy");
    let sections: BTreeSet<_> = known.keys().cloned().collect();
    let known: BTreeSet<_> = known
        .iter()
        .flat_map(|(section, keys)| {
            keys.iter().map(move |key| (section.clone(), (*key).to_owned()))
        })
        .filter(|(section, key)| {
            !sections.contains(format!("{section}.{key}").trim_start_matches('.'))
        })
        .collect();
    let keys: BTreeSet<_> = keys().into_iter().map(|key| (key.section, key.name)).collect();
    assert_eq!(keys, known);
}

#[test]
fn defaults_are_those_of_the_deployed_file() {
    let deployed: toml::Table = toml::from_str(DEPLOYED).expect("TOML");
    let deployed = serde_json::to_value(deployed).expect("JSON");
    for Key { section, name, says } in keys() {
        let table = section.split('.').filter(|key| !key.is_empty());
        let table = table.fold(&deployed, |table, key| &table[key]);
        assert_eq!(says.get("default"), table.get(&name), "[{section}] {name}");
        assert!(says["description"].is_string(), "[{section}] {name}");
    }
}

#[test]
fn bounds_and_words_are_those_of_the_loader() {
    for key in keys() {
        let told = key.problems("99_999_999_999");
        if let Some(max) = key.says.get("maximum").filter(|max| **max != 0) {
            let bounds = format!("must be between {} and {max}, found", key.says["minimum"]);
            assert!(told[0].contains(&bounds), "{bounds}: {told:?}");
        }
        let told = key.problems("'?'");
        let words = key.says.pointer("/anyOf/0/enum").map(names);
        assert_eq!(words.is_some(), told.iter().any(|told| told.contains("one of")), "{told:?}");
        if let Some(mut words) = words {
            words.extend([key.name.clone(), "?".to_owned()]);
            assert_eq!(quoted(&told[0]), words);
        }
    }
}

/// The policy types in the schema, and their rules.
fn types() -> BTreeMap<String, Value> {
    let schema = schema();
    let names = schema.pointer("/$defs/rule/properties/type/enum").expect("the types");
    let types = names.as_array().expect("a list").iter().map(|name| {
        let name = name.as_str().expect("a string").to_owned();
        let says = schema["$defs"][&name].clone();
        (name, says)
    });
    types.collect()
}

#[test]
fn the_policy_types_are_those_of_the_loader() {
    let told = problems(&policy("type = '?'"));
    let (_, list) = told[0].split_once("the types are ").expect("all of them");
    let of_loader: BTreeSet<_> = list.split(", ").map(str::to_owned).collect();
    let types = types();
    assert_eq!(types.keys().cloned().collect::<BTreeSet<_>>(), of_loader);
    let schema = schema();
    let branches = schema["$defs"]["rule"]["allOf"].as_array().expect("a list").iter();
    let branches = branches.map(|branch| {
        let name = branch["if"]["properties"]["type"]["const"].as_str().expect("a type");
        assert_eq!(branch["then"]["$ref"], format!("#/$defs/{name}"));
        name.to_owned()
    });
    assert_eq!(branches.collect::<BTreeSet<_>>(), of_loader);
}

#[test]
fn each_policy_type_has_the_keys_that_the_loader_knows() {
    for (name, says) in types() {
        let told = problems(&policy(&format!("type = '{name}'\n'?' = 1")));
        let all = "the keys here are ";
        let told = told.iter().find_map(|told| told.split_once(all)).expect("all of them").1;
        let properties: &Map<_, _> = says["properties"].as_object().expect("properties");
        assert_eq!(properties.keys().cloned().collect::<BTreeSet<_>>(), quoted(told), "{name}");
        assert_eq!(says["additionalProperties"], false, "{name}");
    }
}

#[test]
fn a_limit_has_the_keys_that_the_loader_knows() {
    let told = problems(&policy("type = 'always_sample'\nlimit = { '?' = 1 }"));
    let told = told.iter().find_map(|told| told.split_once("the keys here are ")).expect("all").1;
    let schema = schema();
    let properties: &Map<_, _> =
        schema["$defs"]["limit"]["properties"].as_object().expect("properties");
    assert_eq!(properties.keys().cloned().collect::<BTreeSet<_>>(), quoted(told));
}

#[test]
fn each_policy_type_requires_what_the_loader_does() {
    for (name, says) in types() {
        let told = problems(&policy(&format!("type = '{name}'")));
        let required = says.get("required").map(names).unwrap_or_default();
        for key in &required {
            let is_missed = |told: &String| {
                told.contains(&format!("no `{key}`")) || told.contains(&format!("a `{key}`"))
            };
            assert!(told.iter().any(is_missed), "{name} {key}: {told:?}");
        }
        let alternatives = usize::from(says.get("anyOf").is_some());
        assert_eq!(told.len(), required.len() + alternatives, "{name}: {told:?}");
    }
}

#[test]
fn the_keys_of_policies_have_the_bounds_of_the_loader() {
    let schema = schema();
    let types = types();
    for (key, says) in schema["$defs"]["rule"]["properties"].as_object().expect("properties") {
        let takes = |says: &Value| says["properties"].get(key).is_some();
        let (name, _) = types.iter().find(|(_, says)| takes(says)).expect("a type");
        assert!(says["description"].is_string(), "{key}");
        let Some(max) = says.get("maximum").filter(|_| says["type"] == "integer") else { continue };
        // The loader reports an upper bound of 0 with a message of its own.
        let least = says["minimum"].as_u64().expect("a number");
        let is_upper = key.starts_with("upper") || key == "max_spans";
        assert!(least == 1 || !is_upper, "{key}");
        let told = problems(&policy(&format!("type = '{name}'\n{key} = 99_999_999_999")));
        let least = if is_upper { 0 } else { least };
        let bounds = format!("`{key}` must be between {least} and {max}, found");
        assert!(told.iter().any(|told| told.contains(&bounds)), "{bounds}: {told:?}");
    }
    let codes = schema.pointer("/$defs/rule/properties/status_codes/items/enum");
    let mut words = names(codes.expect("the codes"));
    words.extend(["status_codes".to_owned(), "?".to_owned()]);
    let told = problems(&policy("type = 'status_code'\nstatus_codes = ['?']"));
    assert_eq!(quoted(&told[0]), words);
}

/// Whether the pattern at this place of the schema matches a text.
fn fits(pattern: &str, text: &str) -> bool {
    let schema = schema();
    let pattern = schema.pointer(pattern).and_then(Value::as_str).expect("a pattern");
    Regex::new(pattern).expect("an expression").is_match(text)
}

#[test]
fn patterns_take_what_the_loader_takes() {
    for (pattern, key, good, bad) in [
        (
            "/$defs/duration/pattern",
            "sampling.decision_wait",
            &["500ms", "1m 30s", "1.5s", "2 min", "0h 7sec", "1h", "90 seconds", "11 millis"][..],
            &["", "5", "s", "5x", "1.s", "-1s", "five seconds"][..],
        ),
        (
            "/$defs/listener/pattern",
            "telemetry.endpoint",
            &["0.0.0.0:0", "[::1]:9464", "localhost:1"],
            &["localhost", ":1", "http://localhost:1", "localhost:x"],
        ),
        (
            "/$defs/url/pattern",
            "exporter.otlp.endpoint",
            &["http://tempo:4317", "http://[::1]:1", "https://tempo:4317"],
            // Rules that depend on the protocol are checked by the loader.
            &["tempo:4317", "ftp://tempo:4317", "http://tempo:1/?x", "http://tempo:1#x", "http://"],
        ),
        (
            "/$defs/url_path/pattern",
            "receiver.http.traces_url_path",
            &["/v1/traces", "/", "/otlp/"],
            &["", "v1/traces", "/v1/traces?x", "http://t/v1/traces"],
        ),
    ] {
        let loads = |text: &str| problems(&format!("{key} = '{text}'\n{POLICY}")).is_empty();
        for text in good {
            assert!(loads(text) && fits(pattern, text), "{key} {text:?}");
        }
        for text in bad {
            assert!(!loads(text) && !fits(pattern, text), "{key} {text:?}");
        }
        config(&format!("{key} = '${{env:UNSET:-{}}}'\n{POLICY}", good[0]));
        assert!(fits(pattern, "${env:UNSET}"), "{key}");
    }
    let long = "x".repeat(65);
    for (name, is_good) in
        [("a", true), ("A.b_c-9", true), ("", false), ("a b", false), (&long, false)]
    {
        let loads = problems(&POLICY.replace("'p'", &format!("'{name}'"))).is_empty();
        assert_eq!(
            (loads, fits("/$defs/rule/properties/name/pattern", name)),
            (is_good, is_good),
            "{name:?}"
        );
    }
}
