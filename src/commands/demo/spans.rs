//! The content of the shop's spans: names, kinds and attributes as instrumentation writes them,
//! following the OpenTelemetry semantic conventions 1.37. The shop sets ids and times.

use fastrand::Rng;
use opentelemetry_proto::tonic::{
    common::v1::{InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status,
        span::{Event, SpanKind},
        status::StatusCode,
    },
};

use super::routes::{Does, Service, Step};
use crate::testing::{attribute, text};

const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.37.0";

/// Name, kind, attributes and status of a span; the caller sets ids and times.
pub(super) fn describe(step: &Step, has_failed: bool, rng: &mut Rng) -> Span {
    let http_status = if has_failed { 500 } else { 200 };
    let (name, kind, mut attributes) = match step.does {
        Does::Serve(method, route) => {
            (format!("{method} {route}"), SpanKind::Server, served(method, route, http_status, rng))
        }
        Does::Call(method, host, path) => {
            (method.to_owned(), SpanKind::Client, called(method, host, path, http_status))
        }
        Does::Query(operation, table) => {
            (format!("{operation} {table}"), SpanKind::Client, queried(operation, table))
        }
        Does::Cache(command) => (command.to_owned(), SpanKind::Client, cached(command, rng)),
        Does::Publish(topic) => {
            (format!("send {topic}"), SpanKind::Producer, messaged(topic, "send", rng))
        }
        Does::Consume(topic) => {
            (format!("process {topic}"), SpanKind::Consumer, messaged(topic, "process", rng))
        }
    };
    if has_failed {
        attributes.push(text("error.type", error_type(&step.does)));
    }
    let status =
        has_failed.then(|| Status { code: StatusCode::Error.into(), ..Default::default() });
    Span { name, kind: kind.into(), attributes, status, ..Default::default() }
}

fn served(method: &str, route: &str, status: i64, rng: &mut Rng) -> Vec<KeyValue> {
    vec![
        text("http.request.method", method),
        text("http.route", route),
        text("url.path", route),
        text("url.scheme", "http"),
        whole("http.response.status_code", status),
        whole("http.response.body.size", rng.i64(80..20_000)),
        text("client.address", format!("10.0.{}.{}", rng.u8(..), rng.u8(..))),
        text("shop.customer", format!("c-{:06}", rng.u32(..1_000_000))),
    ]
}

fn cached(command: &str, rng: &mut Rng) -> Vec<KeyValue> {
    vec![
        text("db.system.name", "redis"),
        text("db.operation.name", command),
        text("db.query.text", format!("{command} shop:{:08x}", rng.u32(..))),
        text("server.address", "redis"),
        whole("server.port", 6379),
    ]
}

fn messaged(topic: &str, operation: &str, rng: &mut Rng) -> Vec<KeyValue> {
    vec![
        text("messaging.system", "kafka"),
        text("messaging.destination.name", topic),
        text("messaging.operation.type", operation),
        text("messaging.destination.partition.id", rng.u8(..12).to_string()),
        whole("messaging.kafka.offset", rng.i64(0..1 << 30)),
    ]
}

fn called(method: &str, host: &str, path: &str, status: i64) -> Vec<KeyValue> {
    vec![
        text("http.request.method", method),
        text("url.full", format!("http://{host}{path}")),
        text("server.address", host),
        whole("server.port", 80),
        whole("http.response.status_code", status),
    ]
}

fn queried(operation: &str, table: &str) -> Vec<KeyValue> {
    vec![
        text("db.system.name", "postgresql"),
        text("db.namespace", "shop"),
        text("db.operation.name", operation),
        text("db.collection.name", table),
        text("db.query.summary", format!("{operation} {table}")),
        text("server.address", "postgres"),
        whole("server.port", 5432),
    ]
}

/// The value of `error.type`.
fn error_type(does: &Does) -> &'static str {
    match does {
        Does::Serve(..) | Does::Call(..) => "500",
        Does::Query(..) => "40P01",
        Does::Cache(..) | Does::Publish(..) | Does::Consume(..) => "timeout",
    }
}

/// Adds the exception to the span in which an error began.
pub(super) fn with_exception(mut span: Span) -> Span {
    let message = format!("{} gave up after 3 attempts", span.name);
    span.events.push(Event {
        time_unix_nano: span.end_time_unix_nano,
        name: "exception".to_owned(),
        attributes: vec![
            text("exception.type", "shop.errors.Unreachable"),
            text("exception.message", message.clone()),
        ],
        ..Default::default()
    });
    span.status = Some(Status { message, code: StatusCode::Error.into() });
    span
}

/// The spans of one service, as its SDK would put them into a request.
pub(super) fn resource_spans(service: Service, spans: Vec<Span>) -> ResourceSpans {
    let name = service.name();
    let attributes = vec![
        text("service.name", name),
        text("service.namespace", "shop"),
        text("service.version", "1.4.0"),
        text("service.instance.id", format!("{name}-1")),
        text("deployment.environment.name", "demo"),
    ];
    let scope = InstrumentationScope {
        name: format!("shop.{name}"),
        version: "1.4.0".to_owned(),
        ..Default::default()
    };
    ResourceSpans {
        resource: Some(Resource { attributes, ..Default::default() }),
        scope_spans: vec![ScopeSpans {
            scope: Some(scope),
            spans,
            schema_url: SCHEMA_URL.to_owned(),
        }],
        schema_url: SCHEMA_URL.to_owned(),
    }
}

fn whole(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}
