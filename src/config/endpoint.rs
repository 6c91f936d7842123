//! `endpoint` and `protocol` of `[exporter.otlp]`, which must fit each other.
//!
//! OTLP/gRPC has a host and a port, and nothing else. OTLP/HTTP has a base URL, the port of which
//! may be left out and behind the path of which `/v1/traces` is added, as OTLP's specification
//! builds it for `OTEL_EXPORTER_OTLP_ENDPOINT`.

use super::{
    Protocol,
    diagnostics::{Problem, quote},
    reader::Span,
    section::{Read, Section},
    values::host_and_port,
};

const GRPC_PORT: u16 = 4317;
const HTTP_PORT: u16 = 4318;
const TRACES_PATH: &str = "/v1/traces";

/// Reads both; `listeners` are this service's own endpoints, by the name of their section.
pub(super) fn exporter(
    section: &mut Section<'_, '_>,
    listeners: [(&str, &str); 2],
) -> (Read<String>, Protocol) {
    let protocols = [("grpc", Protocol::Grpc), ("http/protobuf", Protocol::Http)];
    let protocol = section.choice("protocol", &protocols);
    // Where it is wrong, nothing is said about what depends on it.
    let is_known = !matches!(protocol, Read::Bad);
    let protocol = protocol.or(Protocol::Grpc);
    let endpoint = section.text("endpoint", |text| {
        let address = match protocol {
            Protocol::Grpc if is_known => grpc(text)?,
            _ => http(text, is_known)?,
        };
        let own = listeners.iter().find(|(_, listener)| *listener == address);
        if let Some((name, _)) = own {
            let message =
                format!("`endpoint` is this service's own [{name}]: spans would go in circles");
            return Err(Problem::new(message).hint("name the backend's OTLP address"));
        }
        Ok(text.to_owned())
    });
    if let Read::Set(text, span) = &endpoint
        && is_known
    {
        warn_of_port(section, protocol, text, span);
    }
    (endpoint, protocol)
}

/// host:port of an endpoint for OTLP/gRPC.
fn grpc(text: &str) -> Result<&str, Problem> {
    let wanted = "http://host:port";
    let (scheme, address) = scheme_and_rest(text, wanted)?;
    if let Some((address, _)) = address.split_once('/') {
        let hint = format!(
            "OTLP/gRPC has no path: \"{scheme}://{address}\"; for OTLP/HTTP set \
             `protocol = \"http/protobuf\"`"
        );
        return Err(wrong(text, wanted).hint(hint));
    }
    match host_and_port(address) {
        Ok(0) => Err(wrong(text, wanted).hint("port 0 cannot be connected to")),
        Ok(_) => Ok(address),
        Err(hint) => Err(wrong(text, wanted).hint(hint)),
    }
}

/// host:port, or the host alone, of a base URL for OTLP/HTTP.
fn http(text: &str, is_known: bool) -> Result<&str, Problem> {
    let wanted = "http://host:port/path, where port and path may be left out";
    let (_, rest) = scheme_and_rest(text, wanted)?;
    let (address, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if path.contains(['?', '#']) {
        return Err(wrong(text, wanted).hint("leave out what begins with `?` or `#`"));
    }
    if let Some(base) = text.trim_end_matches('/').strip_suffix(TRACES_PATH).filter(|_| is_known) {
        let message = format!("`endpoint` is a base, to which {TRACES_PATH} is added");
        return Err(Problem::new(message).hint(format!("write \"{base}\"")));
    }
    let has_port = address.rfind(':').is_some_and(|at| !address[at..].contains(']'));
    let port = match has_port {
        true => host_and_port(address),
        false => host_and_port(&format!("{address}:{HTTP_PORT}")),
    };
    match port {
        Ok(0) => Err(wrong(text, wanted).hint("port 0 cannot be connected to")),
        Err(hint) => Err(wrong(text, wanted).hint(hint)),
        Ok(_) if text.parse::<http::Uri>().is_err() => {
            Err(wrong(text, wanted).hint("the path has characters that must be percent-encoded"))
        }
        Ok(_) => Ok(address),
    }
}

fn scheme_and_rest<'t>(text: &'t str, wanted: &str) -> Result<(&'t str, &'t str), Problem> {
    match text.split_once("://") {
        None => Err(wrong(text, wanted).hint(format!("add the scheme: \"http://{text}\""))),
        Some((scheme @ ("http" | "https"), rest)) => Ok((scheme, rest)),
        Some(_) => Err(wrong(text, wanted)),
    }
}

fn wrong(text: &str, wanted: &str) -> Problem {
    Problem::new(format!("`endpoint` must be {wanted}, found {}", quote(text)))
}

/// OTLP has two ports, and each is often written for the other.
fn warn_of_port(section: &mut Section<'_, '_>, protocol: Protocol, endpoint: &str, span: &Span) {
    let port = endpoint.parse::<http::Uri>().ok().and_then(|uri| uri.port_u16());
    let (usual, name, other) = match (protocol, port) {
        (Protocol::Grpc, Some(HTTP_PORT)) => (GRPC_PORT, "grpc", "http/protobuf"),
        (Protocol::Http, Some(GRPC_PORT)) => (HTTP_PORT, "http/protobuf", "grpc"),
        _ => return,
    };
    let message = format!("the port is the usual one of `protocol = \"{other}\"`");
    let hint = format!("`{name}` usually has port {usual}");
    section.warn(span.clone(), Problem::new(message).hint(hint));
}
