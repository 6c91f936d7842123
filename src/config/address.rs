//! Checks addresses (host and port), and suggests corrections.
//!
//! A hint shows the complete corrected address, and only if that address would be accepted.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::diagnostics::{Problem, quote};

/// Reads a host:port to listen on; port 0 lets the system choose. `example` is a valid address
/// whose port the hints use. No hint suggests an address that `is_taken`.
pub(super) fn listener(
    key: &str,
    text: &str,
    example: &str,
    is_taken: impl Fn(&str) -> bool,
) -> Result<String, Problem> {
    let port = example.rsplit_once(':').map_or("", |(_, port)| port);
    let fault = |text: &str| match (text.split_once("://"), text.split_once('/')) {
        (Some((_, rest)), _) => Some(Fault::new("leave the scheme out", Some(rest.to_owned()))),
        (_, Some((rest, _))) => Some(Fault::new("leave the path out", Some(rest.to_owned()))),
        _ => host_and_port(text, port).err(),
    };
    let Some(first) = fault(text) else { return Ok(text.to_owned()) };
    let problem = Problem::new(format!("`{key}` must be host:port, found {}", quote(text)));
    Err(problem.hint(first.hint(|text| fault(text).or_else(|| is_taken(text).then(Fault::other)))))
}

/// Whether the address is a port without a host.
pub(super) fn is_only_a_port(address: &str) -> bool {
    address.strip_prefix(':').is_some_and(|port| !port.contains(':'))
}

/// A mistake in an address, and the address with it corrected.
pub(super) struct Fault {
    why: &'static str,
    mended: Option<String>,
}

impl Fault {
    pub(super) fn new(why: &'static str, mended: Option<String>) -> Self {
        Fault { why, mended }
    }

    /// A mistake that cannot be corrected. It is only found after another one, so it is never
    /// reported.
    pub(super) fn other() -> Self {
        Fault::new("", None)
    }

    pub(super) fn behind(self, scheme: &str) -> Self {
        Fault { mended: self.mended.map(|address| format!("{scheme}{address}")), ..self }
    }

    /// The remedy, with the complete corrected address if all mistakes can be corrected.
    pub(super) fn hint(self, fault: impl Fn(&str) -> Option<Fault>) -> String {
        let mut mended = self.mended;
        // There are at most four mistakes: scheme, path, port and brackets.
        for _ in 0..4 {
            match mended.as_deref().map(&fault) {
                Some(Some(next)) => mended = next.mended,
                Some(None) | None => break,
            }
        }
        match mended.filter(|mended| fault(mended).is_none()) {
            Some(mended) => format!("{}: \"{mended}\"", self.why),
            None => self.why.to_owned(),
        }
    }
}

/// The port of a valid host:port. `port` is used in the hint if the port is missing.
pub(super) fn host_and_port(text: &str, port: &str) -> Result<u16, Fault> {
    let Some((host, digits)) = text.rsplit_once(':').filter(|(host, _)| !has_open_bracket(host))
    else {
        return Err(Fault::new("add the port", Some(format!("{text}:{port}"))));
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let Some(port) = digits.parse().ok().filter(|_| is_number) else {
        return Err(Fault::new("the port is a number between 0 and 65535", None));
    };
    if host.is_empty() {
        let mended = Some(format!("0.0.0.0:{port}"));
        return Err(Fault::new("for all addresses of this machine", mended));
    }
    if host.parse::<Ipv6Addr>().is_ok() {
        let mended = Some(format!("[{host}]:{port}"));
        return Err(Fault::new("put an IPv6 address in brackets", mended));
    }
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) if address.parse::<Ipv6Addr>().is_ok() => Ok(port),
        None if is_host(host) => Ok(port),
        _ => {
            let why = "the host is a name, an IPv4 address, or an IPv6 address in brackets";
            Err(Fault::new(why, None))
        }
    }
}

fn has_open_bracket(host: &str) -> bool {
    host.starts_with('[') && !host.ends_with(']')
}

/// A host name or an IPv4 address.
fn is_host(host: &str) -> bool {
    // A name whose last label is all digits can only be a mistyped IPv4 address (RFC 3696, 2).
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|b| b.is_ascii_digit()) {
        return host.parse::<Ipv4Addr>().is_ok();
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    host.len() <= 253 && host.bytes().all(allowed) && !host.starts_with(['.', '-'])
}
