//! Cases as written in the files, and the spans that they describe.

use std::{fs, path::Path};

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span::Event},
};
use serde::Deserialize;
use tailwater::trace::TraceId;
use toml::Value as Toml;

use crate::builders::{START, attribute};

/// The name of the only policy of a case with `rule`.
pub(super) const ONLY: &str = "p";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    case: Vec<Case>,
}

/// A case. `tests/conformance/README.md` describes the keys.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    /// The file name; set when the file is read.
    #[serde(skip)]
    pub(super) file: String,
    pub(super) name: String,
    #[serde(default)]
    pub(super) policies: String,
    rule: Option<String>,
    pub(super) forced: Option<String>,
    pub(super) refused: Option<String>,
    #[serde(default)]
    pub(super) traces: Vec<Trace>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Trace {
    pub(super) kept: bool,
    pub(super) by: Option<String>,
    pub(super) th: Option<String>,
    pub(super) matched: Option<Vec<String>>,
    /// Randomness, 14 hexadecimal digits.
    r: Option<String>,
    spans: Vec<Written>,
}

/// A span as written in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    name: String,
    service: Option<String>,
    resource: Option<Toml>,
    attributes: Option<Toml>,
    kind: Option<Toml>,
    #[serde(default)]
    events: Vec<WrittenEvent>,
    ms: Option<[u64; 2]>,
    ns: Option<[u64; 2]>,
    unix_ns: Option<[u64; 2]>,
    status: Option<Toml>,
    #[serde(default)]
    tracestate: String,
    #[serde(default)]
    flags: u32,
    #[serde(default)]
    child: bool,
}

/// An event of a span, as written in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenEvent {
    #[serde(default)]
    name: String,
    attributes: Option<Toml>,
}

/// The cases of all files, ordered by file name.
pub(super) fn cases(folder: &Path) -> Vec<Case> {
    let entries = fs::read_dir(folder).expect("the folder of cases");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    let mut cases = Vec::new();
    for path in paths {
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).expect("readable");
        let file: File = toml::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        cases.extend(file.case.into_iter().map(|case| case.complete(&name)));
    }
    cases
}

impl Case {
    fn complete(mut self, file: &str) -> Self {
        self.file = file.to_owned();
        if let Some(rule) = &self.rule {
            assert!(self.policies.is_empty(), "{file}: {}: rule or policies", self.name);
            self.policies = format!("policy = [{{ name = \"{ONLY}\", {rule} }}]\n");
        }
        let is_whole =
            !self.policies.is_empty() && self.refused.is_none() != self.traces.is_empty();
        assert!(is_whole, "{file}: {}: needs policies, and traces or `refused`", self.name);
        self
    }

    /// The id of a trace by its place in the case; its low 56 bits are the trace's randomness.
    pub(super) fn trace_id(&self, index: usize) -> TraceId {
        let randomness = self.traces[index].r.as_deref().unwrap_or("00000000000000");
        TraceId::from_hex(&format!("{:016x}00{randomness}", index + 1)).expect("14 digits")
    }
}

impl Trace {
    /// One [`ResourceSpans`] a span.
    pub(super) fn resource_spans(&self, id: TraceId) -> Vec<ResourceSpans> {
        let spans = self.spans.iter().enumerate();
        spans.map(|(index, span)| span.resource_spans(id, index as u64)).collect()
    }
}

impl Written {
    fn resource_spans(&self, trace_id: TraceId, index: u64) -> ResourceSpans {
        let mut attributes = pairs(self.resource.as_ref());
        if let Some(service) = &self.service {
            let value = Some(Value::StringValue(service.clone()));
            attributes.push(attribute("service.name", value));
        }
        let resource = Resource { attributes, ..Default::default() };
        let spans = vec![self.span(trace_id, index)];
        ResourceSpans {
            // A span without resource keys has no resource at all.
            resource: Some(resource).filter(|resource| !resource.attributes.is_empty()),
            scope_spans: vec![ScopeSpans { spans, ..Default::default() }],
            ..Default::default()
        }
    }

    fn span(&self, trace_id: TraceId, index: u64) -> Span {
        let is_child = self.child || index > 0;
        let [start, end] = self.times();
        Span {
            trace_id: trace_id.0.to_vec(),
            span_id: (index + 1).to_be_bytes().to_vec(),
            parent_span_id: if is_child { vec![9; 8] } else { Vec::new() },
            name: self.name.clone(),
            kind: self.kind.as_ref().map_or(0, kind),
            events: self.events.iter().map(WrittenEvent::event).collect(),
            start_time_unix_nano: start,
            end_time_unix_nano: end,
            attributes: pairs(self.attributes.as_ref()),
            status: self.status.as_ref().map(status),
            trace_state: self.tracestate.clone(),
            flags: self.flags,
            ..Default::default()
        }
    }

    fn times(&self) -> [u64; 2] {
        match (self.ms, self.ns, self.unix_ns) {
            (None, None, None) => [START, START + 1_000_000],
            (Some(ms), None, None) => ms.map(|ms| START + ms * 1_000_000),
            (None, Some(ns), None) => ns.map(|ns| START + ns),
            (None, None, Some(unix_ns)) => unix_ns,
            _ => panic!("one of ms, ns and unix_ns: {self:?}"),
        }
    }
}

impl WrittenEvent {
    fn event(&self) -> Event {
        let attributes = pairs(self.attributes.as_ref());
        Event { name: self.name.clone(), attributes, time_unix_nano: START, ..Default::default() }
    }
}

fn status(written: &Toml) -> Status {
    Status { code: number(written, &["UNSET", "OK", "ERROR"]), message: String::new() }
}

fn kind(written: &Toml) -> i32 {
    let names = ["UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"];
    number(written, &names)
}

/// A number, or the index of a name.
fn number(written: &Toml, names: &[&str]) -> i32 {
    match written {
        Toml::String(name) => {
            let place = (0..).zip(names).find(|(_, known)| **known == name.as_str());
            place.unwrap_or_else(|| panic!("{name:?} is none of {names:?}")).0
        }
        Toml::Integer(number) => i32::try_from(*number).expect("an i32"),
        other => panic!("neither a number nor one of {names:?}: {other:?}"),
    }
}

/// A table of attributes, or a list of pairs for keys that occur twice.
fn pairs(written: Option<&Toml>) -> Vec<KeyValue> {
    match written {
        None => Vec::new(),
        Some(Toml::Table(table)) => {
            table.iter().map(|(key, value)| attribute(key, any(value))).collect()
        }
        Some(Toml::Array(pairs)) => {
            let pair = |pair: &Toml| match pair.as_array().map(Vec::as_slice) {
                Some([Toml::String(key), value]) => attribute(key, any(value)),
                _ => panic!("not a pair of key and value: {pair:?}"),
            };
            pairs.iter().map(pair).collect()
        }
        Some(other) => panic!("not attributes: {other:?}"),
    }
}

fn any(written: &Toml) -> Option<Value> {
    let value_of = |value: &Toml| AnyValue { value: any(value) };
    Some(match written {
        Toml::String(text) => Value::StringValue(text.clone()),
        Toml::Integer(number) => Value::IntValue(*number),
        Toml::Float(number) => Value::DoubleValue(*number),
        Toml::Boolean(value) => Value::BoolValue(*value),
        Toml::Array(values) => {
            Value::ArrayValue(ArrayValue { values: values.iter().map(value_of).collect() })
        }
        Toml::Table(table) => match table.iter().next().map(|(key, value)| (key.as_str(), value)) {
            Some(("$none", _)) => return None,
            Some(("$bytes", Toml::String(text))) => Value::BytesValue(text.clone().into_bytes()),
            _ => Value::KvlistValue(KeyValueList { values: pairs(Some(written)) }),
        },
        Toml::Datetime(_) => panic!("OTLP has no dates: {written:?}"),
    })
}
