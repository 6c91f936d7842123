//! Reads the spans of a test: one table each, in which most keys are optional.

use toml::de::DeValue;

use super::super::{
    conditions::SPAN_KINDS,
    diagnostics::{Problem, quote},
    reader::Span,
    section::{Read, Section},
    values,
};
use crate::trace::{SpanKind, StatusCode};

/// A span of a test.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TestSpan {
    /// The name by which other spans refer to it.
    pub(crate) id: Option<String>,
    /// The `id` of its parent. Without `parent`, the first span is the root, and others are its
    /// children.
    pub(crate) parent: Option<String>,
    /// `service.name` of its resource.
    pub(crate) service: Option<String>,
    /// Its name.
    pub(crate) name: String,
    /// Its kind.
    pub(crate) kind: SpanKind,
    /// Its status, if it has one.
    pub(crate) status: Option<StatusCode>,
    /// The message of the status.
    pub(crate) status_message: String,
    /// Nanoseconds from the beginning of the trace to its start and to its end.
    pub(crate) nanos: [i64; 2],
    /// Its attributes.
    pub(crate) attributes: Vec<(String, AttributeValue)>,
    /// Attributes of its resource, without the service.
    pub(crate) resource: Vec<(String, AttributeValue)>,
    /// Its events.
    pub(crate) events: Vec<TestEvent>,
    /// Its W3C tracestate.
    pub(crate) tracestate: String,
    /// Its W3C flags.
    pub(crate) flags: u32,
}

/// An event of a span.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TestEvent {
    /// Its name.
    pub(crate) name: String,
    /// Its attributes.
    pub(crate) attributes: Vec<(String, AttributeValue)>,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum AttributeValue {
    /// A string.
    String(String),
    /// An integer.
    Int(i64),
    /// A double.
    Double(f64),
    /// A boolean.
    Bool(bool),
    /// A list.
    List(Vec<AttributeValue>),
}

const STATUS_CODES: &[(&str, StatusCode)] =
    &[("UNSET", StatusCode::Unset), ("OK", StatusCode::Ok), ("ERROR", StatusCode::Error)];

/// The default start and end of a span, in nanoseconds.
const LASTS: [i64; 2] = [0, 1_000_000];

/// The longest time from the beginning of a trace, in nanoseconds: ten years.
const NANOS_MAX: i64 = 3_650 * 86_400 * 1_000_000_000;

/// Reads `spans` of a test, which must not be empty.
pub(super) fn spans(section: &mut Section<'_, '_>) -> Read<Vec<TestSpan>> {
    let tables = section.tables("spans");
    let Read::Set(tables, span) = tables else {
        return tables.map(|_| Vec::new());
    };
    if tables.is_empty() {
        section.error(span, Problem::new("`spans` is empty"));
        return Read::Bad;
    }
    let mut spans = Vec::with_capacity(tables.len());
    let mut ids: Vec<String> = Vec::new();
    for table in tables {
        spans.push(read(section.element(table), &mut ids));
    }
    Read::Set(spans, span)
}

fn read(mut section: Section<'_, '_>, ids: &mut Vec<String>) -> TestSpan {
    section.set_place(" in a span".to_owned());
    let text = |section: &mut Section<'_, '_>, key| section.literal(key, |t| Ok(t.to_owned()));
    let id = section.literal("id", |id| match id {
        "" => Err(Problem::new("`id` is empty")),
        id if ids.iter().any(|known| known == id) => {
            Err(Problem::new(format!("two spans of the test have the id {}", quote(id))))
        }
        id => Ok(id.to_owned()),
    });
    let id = id.good();
    ids.extend(id.clone());
    let service = text(&mut section, "service").good();
    let resource = attributes(&mut section, "resource");
    if service.is_some() && resource.iter().any(|(key, _)| key == "service.name") {
        let problem = Problem::new("`service` is also given as `service.name` in `resource`");
        section.refuse("service", problem);
    }
    let span = TestSpan {
        id,
        parent: text(&mut section, "parent").good(),
        service,
        name: text(&mut section, "name").or(String::new()),
        kind: section
            .literal("kind", |text| values::choice("kind", text, SPAN_KINDS))
            .or(SpanKind::Internal),
        status: section
            .literal("status", |text| values::choice("status", text, STATUS_CODES))
            .good(),
        status_message: text(&mut section, "status_message").or(String::new()),
        nanos: nanos(&mut section),
        attributes: attributes(&mut section, "attributes"),
        resource,
        events: events(&mut section),
        tracestate: text(&mut section, "tracestate").or(String::new()),
        flags: section.integer_within("flags", 0..=u32::MAX).or(0),
    };
    section.finish();
    span
}

fn events(section: &mut Section<'_, '_>) -> Vec<TestEvent> {
    let mut events = Vec::new();
    for table in section.tables("events").or(Vec::new()) {
        let mut section = section.element(table);
        section.set_place(" in an event".to_owned());
        let name = section.literal("name", |name| Ok(name.to_owned())).or(String::new());
        let attributes = attributes(&mut section, "attributes");
        section.finish();
        events.push(TestEvent { name, attributes });
    }
    events
}

/// Reads `ms` or `ns`.
fn nanos(section: &mut Section<'_, '_>) -> [i64; 2] {
    let ms = section.read("ms", |value| pair("ms", value, 1e6));
    let ns = section.read("ns", |value| pair("ns", value, 1.0));
    if let (Read::Set(..), Read::Set(_, span)) = (&ms, &ns) {
        section.error(Span::clone(span), Problem::new("`ns` cannot be combined with `ms`"));
    }
    ms.good().or(ns.good()).unwrap_or(LASTS)
}

/// Converts start and end to nanoseconds; `unit` is the length of their unit.
fn pair(key: &str, value: &DeValue<'_>, unit: f64) -> Result<[i64; 2], Problem> {
    let wrong = || {
        let hint = format!("write the start and the end: {key} = [0, 900]");
        values::wrong_type(key, "a list of two numbers", value).hint(hint)
    };
    let list = value.as_array().ok_or_else(wrong)?;
    let times: Vec<_> = list.iter().map(|time| time.get_ref()).collect();
    let [start, end] = times[..] else {
        return Err(Problem::new(format!("`{key}` must be a list of two numbers"))
            .hint(format!("write the start and the end: {key} = [0, 900]")));
    };
    let nanos = |time: &DeValue<'_>| {
        let nanos = match values::number(key, time)? {
            crate::policy::Number::Int(number) if unit == 1.0 => Some(number),
            crate::policy::Number::Int(number) => number.checked_mul(unit as i64),
            crate::policy::Number::Double(number) => Some((number * unit).round() as i64),
        };
        nanos.filter(|nanos| (-NANOS_MAX..=NANOS_MAX).contains(nanos)).ok_or_else(|| {
            Problem::new(format!("`{key}` must be within ten years from the trace's beginning"))
        })
    };
    Ok([nanos(start)?, nanos(end)?])
}

fn attributes(section: &mut Section<'_, '_>, key: &'static str) -> Vec<(String, AttributeValue)> {
    let table = section.read(key, |value| {
        let hint = r#"write { "key" = "value" }"#;
        value.as_table().ok_or_else(|| values::wrong_type(key, "a table", value).hint(hint))
    });
    let mut found = Vec::new();
    for (name, value) in table.good().into_iter().flatten() {
        if !section.spares(&value.span()) {
            continue;
        }
        match attribute_value(name.get_ref(), value.get_ref()) {
            Ok(value) => found.push((name.get_ref().to_string(), value)),
            Err(problem) => section.error(value.span(), problem),
        }
    }
    found
}

fn attribute_value(key: &str, value: &DeValue<'_>) -> Result<AttributeValue, Problem> {
    Ok(match value {
        DeValue::String(text) => AttributeValue::String(text.to_string()),
        DeValue::Boolean(value) => AttributeValue::Bool(*value),
        DeValue::Integer(_) => {
            AttributeValue::Int(values::integer(key, value, i64::MIN..=i64::MAX)?)
        }
        DeValue::Float(float) => match float.as_str().parse() {
            Ok(number) => AttributeValue::Double(number),
            Err(_) => return Err(values::wrong_type(key, "a number", value)),
        },
        DeValue::Array(list) => {
            let values = list.iter().map(|value| attribute_value(key, value.get_ref()));
            AttributeValue::List(values.collect::<Result<_, _>>()?)
        }
        DeValue::Table(_) => {
            let hint = r#"put a key with dots in quotes: "http.route" = "/checkout""#;
            let wanted = "a string, a number, a boolean or a list";
            return Err(values::wrong_type(key, wanted, value).hint(hint));
        }
        DeValue::Datetime(_) => {
            let wanted = "a string, a number, a boolean or a list";
            return Err(values::wrong_type(key, wanted, value).hint("write it in quotes"));
        }
    })
}
