//! Builders and readers of spans and requests, as opentelemetry-proto types, for tests, benches and
//! the traffic of `demo`.

use bytes::Bytes;
use http::uri::PathAndQuery;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use tonic::{Request, Status, client::Grpc, transport::Channel};

use crate::grpc::{EXPORT_PATH, RawCodec};

/// An attribute.
pub fn attribute(key: &str, value: Value) -> KeyValue {
    let value = Some(AnyValue { value: Some(value) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

/// An attribute with a string value.
pub fn text(key: &str, value: impl Into<String>) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

/// The value of a string attribute.
pub fn text_of<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    let pair = attributes.iter().find(|pair| pair.key == key)?;
    match pair.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

/// A request with spans of one resource, in a scope without a name.
pub fn request(resource: Vec<KeyValue>, spans: Vec<Span>) -> ExportTraceServiceRequest {
    let resource = Some(Resource { attributes: resource, ..Resource::default() });
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }];
    ExportTraceServiceRequest { resource_spans }
}

/// The spans of a request.
pub fn spans_of(request: &ExportTraceServiceRequest) -> impl Iterator<Item = &Span> {
    let scopes = request.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
    scopes.flat_map(|scope| &scope.spans)
}

/// A message in gRPC's framing. `flag` says whether it is compressed, and can be wrong.
pub fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("messages of tests are short").to_be_bytes();
    [&[flag], &length[..], message].concat()
}

/// Exports an encoded request. Returns the encoded answer.
///
/// # Errors
/// The status in the receiver's answer, or UNAVAILABLE without a connection.
pub async fn export(client: &mut Grpc<Channel>, request: Bytes) -> Result<Bytes, Status> {
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static(EXPORT_PATH);
    Ok(client.unary(Request::new(request), path, RawCodec).await?.into_inner())
}
