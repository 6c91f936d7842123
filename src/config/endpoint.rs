//! `endpoint` and `protocol` of `[exporter.otlp]`, which must match each other.
//!
//! OTLP/gRPC has a host and a port, and nothing else. OTLP/HTTP has a base URL whose port is
//! optional; `/v1/traces` is added to its path, as OTLP's specification defines for
//! `OTEL_EXPORTER_OTLP_ENDPOINT`.

use super::{
    Protocol,
    address::{Fault, host_and_port, is_only_a_port},
    diagnostics::{Problem, quote},
    reader::Span,
    section::{Read, Section},
};

const GRPC_PORT: u16 = 4317;
const HTTP_PORT: u16 = 4318;
const TRACES_PATH: &str = "/v1/traces";

/// Reads both keys. `listeners` are the service's own endpoints, by the name of their section.
pub(super) fn exporter(
    section: &mut Section<'_, '_>,
    listeners: [(&str, &str); 2],
) -> (Read<String>, Protocol) {
    let protocol = section.word_read("protocol", [Protocol::Grpc, Protocol::Http]);
    // If the protocol is wrong, checks that depend on it are skipped.
    let is_known = !matches!(protocol, Read::Bad);
    let protocol = protocol.or(Protocol::Grpc);
    let is_own = |address: &str| listeners.iter().any(|(_, listener)| *listener == address);
    let endpoint = section.text("endpoint", |text| {
        let address = match protocol {
            Protocol::Grpc if is_known => grpc(text, is_own)?,
            _ => http(text, is_known, is_own)?,
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

/// The host:port of an endpoint for OTLP/gRPC.
fn grpc(text: &str, is_own: impl Fn(&str) -> bool) -> Result<&str, Problem> {
    let fault = |text: &str| {
        let (scheme, address) = match scheme_and_rest(text) {
            Ok(parts) => parts,
            Err(fault) => return Some(fault),
        };
        if let Some((address, _)) = address.split_once('/') {
            let mended = format!("{scheme}://{address}");
            let why = "OTLP/gRPC has no path (for OTLP/HTTP set `protocol`)";
            return Some(Fault::new(why, Some(mended)));
        }
        host_fault(scheme, address, "4317")
    };
    let Some(first) = fault(text) else { return Ok(without_scheme(text)) };
    let is_own = |text: &str| is_own(without_scheme(text)).then(Fault::other);
    let hint = first.hint(|text| fault(text).or_else(|| is_own(text)));
    Err(wrong(text, "http://host:port").hint(hint))
}

/// The host:port, or the host alone, of a base URL for OTLP/HTTP.
fn http(text: &str, is_known: bool, is_own: impl Fn(&str) -> bool) -> Result<&str, Problem> {
    let fault = |text: &str| {
        let (scheme, rest) = match scheme_and_rest(text) {
            Ok(parts) => parts,
            Err(fault) => return Some(fault),
        };
        if let Some((base, _)) = text.split_once(['?', '#']) {
            let why = "leave out everything from `?` or `#` on";
            return Some(Fault::new(why, Some(base.to_owned())));
        }
        let address = host(rest);
        let has_port = address.rfind(':').is_some_and(|at| !address[at..].contains(']'));
        let whole = if has_port { address.to_owned() } else { format!("{address}:{HTTP_PORT}") };
        host_fault(scheme, &whole, "4318").or_else(|| {
            let why = "the path has characters that must be percent-encoded";
            text.parse::<http::Uri>().is_err().then(|| Fault::new(why, None))
        })
    };
    let base = text.trim_end_matches('/').strip_suffix(TRACES_PATH);
    if let Some(base) = base.filter(|_| is_known && fault(text).is_none()) {
        let message = format!("`endpoint` is a base URL, to which {TRACES_PATH} is added");
        return Err(Problem::new(message).hint(format!("write \"{base}\"")));
    }
    let Some(first) = fault(text) else { return Ok(host(without_scheme(text))) };
    let is_own = |text: &str| is_own(host(without_scheme(text))).then(Fault::other);
    let hint = first.hint(|text| fault(text).or_else(|| is_own(text)));
    let wanted = "http://host:port/path, where port and path may be left out";
    Err(wrong(text, wanted).hint(hint))
}

fn without_scheme(text: &str) -> &str {
    text.split_once("://").map_or(text, |(_, rest)| rest)
}

/// The host and port of a URL without its scheme.
fn host(rest: &str) -> &str {
    &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())]
}

fn scheme_and_rest(text: &str) -> Result<(&str, &str), Fault> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(Fault::new("add the scheme", Some(format!("http://{text}"))));
    };
    if matches!(scheme, "http" | "https") {
        return Ok((scheme, rest));
    }
    let is_secure = scheme.to_ascii_lowercase().ends_with('s');
    let scheme = if is_secure { "https" } else { "http" };
    Err(Fault::new("the scheme is http:// or https://", Some(format!("{scheme}://{rest}"))))
}

fn host_fault(scheme: &str, address: &str, port: &str) -> Option<Fault> {
    match host_and_port(address, port) {
        _ if is_only_a_port(address) => Some(Fault::new("name the host", None)),
        Ok(0) => Some(Fault::new("port 0 cannot be connected to", None)),
        Ok(_) => None,
        Err(fault) => Some(fault.behind(&format!("{scheme}://"))),
    }
}

fn wrong(text: &str, wanted: &str) -> Problem {
    Problem::new(format!("`endpoint` must be {wanted}, found {}", quote(text)))
}

/// Warns if the port is the usual one of the other protocol, a common mistake.
fn warn_of_port(section: &mut Section<'_, '_>, protocol: Protocol, endpoint: &str, span: &Span) {
    let port = endpoint.parse::<http::Uri>().ok().and_then(|uri| uri.port_u16());
    let (usual, name, other) = match (protocol, port) {
        (Protocol::Grpc, Some(HTTP_PORT)) => (GRPC_PORT, "grpc", "http/protobuf"),
        (Protocol::Http, Some(GRPC_PORT)) => (HTTP_PORT, "http/protobuf", "grpc"),
        _ => return,
    };
    let message = format!("the port is the usual one for `protocol = \"{other}\"`");
    let hint = format!("`{name}` usually has port {usual}");
    section.warn(span.clone(), Problem::new(message).hint(hint));
}
