//! Reads Tempo's JSON: OTLP/JSON by protobuf's own rules, with ids in base64.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

use crate::otlp::json;

/// The members that contain ids.
const IDS: [&str; 3] = ["traceId", "spanId", "parentSpanId"];

/// Whether the first trace id of an element is in base64: 24 characters for 16 bytes.
pub(super) fn is_written_by_it(element: &[u8]) -> bool {
    let name = b"\"traceId\"";
    let named = element.windows(name.len()).enumerate().filter(|(_, window)| window == name);
    // An attribute may have this key: then no colon follows.
    let mut values = named
        .filter_map(|(at, _)| element[at + name.len()..].trim_ascii_start().strip_prefix(b":"));
    let value = values.next().and_then(|rest| rest.trim_ascii_start().strip_prefix(b"\""));
    let id = value.and_then(|rest| rest.split(|byte| *byte == b'"').next());
    id.is_some_and(|id| id.len() == 24 && id.ends_with(b"=="))
}

/// Converts an element of `batches` or `resourceSpans` to a request.
pub(super) fn read(element: &[u8]) -> Result<Vec<u8>, String> {
    let mut value: Value = serde_json::from_slice(element).map_err(|error| error.to_string())?;
    for scopes in ["scopeSpans", "instrumentationLibrarySpans"] {
        for scope in items(&mut value, scopes) {
            for span in items(scope, "spans") {
                to_hexadecimal(span);
                items(span, "links").iter_mut().for_each(to_hexadecimal);
            }
        }
    }
    let request = serde_json::json!({ "resourceSpans": [value] });
    json::to_protobuf(request.to_string().as_bytes()).map_err(|error| error.to_string())
}

/// The elements of a list; none if `of` has no such list, or is no object.
fn items<'v>(of: &'v mut Value, name: &str) -> &'v mut [Value] {
    let list = of.get_mut(name).and_then(Value::as_array_mut);
    list.map_or(&mut [], Vec::as_mut_slice)
}

fn to_hexadecimal(of: &mut Value) {
    for name in IDS {
        let Some(id) = of.get_mut(name) else { continue };
        if let Some(bytes) = id.as_str().and_then(|text| STANDARD.decode(text).ok()) {
            *id = Value::String(bytes.iter().map(|byte| format!("{byte:02x}")).collect());
        }
    }
}
