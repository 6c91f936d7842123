//! TLS and tokens of receivers and the telemetry port, `[exporter.otlp.tls]` and the exporter's
//! token, with every file that they name.
//!
//! The files are read here as the service will read them, so that `check` finds all problems that
//! would prevent it from starting. No message quotes the content of a file, or its path, because
//! writing a token where its file should be named is a common mistake. For the same reason the line
//! is not shown that names the file of a token or a password.

use std::path::{Path, PathBuf};

use rustls::pki_types::{ServerName, UnixTime};

use super::{
    diagnostics::{Problem, quote},
    reader::Span,
    section::{Read, Section},
};
use crate::credentials::{self, ClientTls, Dates, Fault, Faults, Role, ServerTls};

/// The hint for files that should contain certificates.
const PEM_HINT: &str = "such a file begins with `-----BEGIN CERTIFICATE-----`";

/// A file named in the configuration: its role, its key, and the path as read.
type Named<'a> = (Role, &'static str, &'a Read<PathBuf>);

/// Reads `[receiver.tls]` or `[telemetry.tls]`; `None` if the file does not have the section.
pub(super) fn server_tls(mut section: Section<'_, '_>, directory: &Path) -> Option<ServerTls> {
    let cert = section.file("cert_file", directory);
    let key = section.file("key_file", directory);
    let clients = section.file("client_ca_file", directory);
    let tls = match (&cert, &key, &clients) {
        (Read::Set(cert_file, _), Read::Set(key_file, _), Read::Set(..) | Read::Unset) => {
            let (cert_file, key_file) = (cert_file.clone(), key_file.clone());
            Some(ServerTls { cert_file, key_file, client_ca_file: clients.clone().good() })
        }
        _ => None,
    };
    match tls.as_ref().map(ServerTls::read) {
        Some(Ok(side)) => warn_of_dates(&mut section, &cert, side.certificate),
        Some(Err(faults)) => {
            let named = [
                (Role::Certificate, "cert_file", &cert),
                (Role::Key, "key_file", &key),
                (Role::Ca, "client_ca_file", &clients),
            ];
            report(&mut section, &faults, &named);
        }
        None => {}
    }
    section.finish();
    tls
}

/// Reads `[receiver.auth]` or `[telemetry.auth]`: the path of the token file.
pub(super) fn server_auth(mut section: Section<'_, '_>, directory: &Path) -> Option<PathBuf> {
    let token = section.file("bearer_token_file", directory);
    if let Read::Set(file, _) = &token
        && let Err(faults) = credentials::read_tokens(file)
    {
        report(&mut section, &faults, &[(Role::Token, "bearer_token_file", &token)]);
    }
    section.finish();
    token.good()
}

/// Reads `bearer_token_file` of `[exporter.otlp]`, whose `headers` are given.
pub(super) fn exporter_token<'h>(
    section: &mut Section<'_, '_>,
    mut headers: impl Iterator<Item = &'h String>,
    directory: &Path,
) -> Option<PathBuf> {
    let token = section.file("bearer_token_file", directory);
    let Read::Set(file, span) = &token else { return None };
    if headers.any(|name| name == "authorization") {
        let message = "`bearer_token_file` and the header `authorization` are both set, and \
                       only one of them can be sent";
        section.error(span.clone(), Problem::new(message).hint("remove one of them"));
    }
    if let Err(faults) = credentials::read_bearer(file) {
        report(section, &faults, &[(Role::Token, "bearer_token_file", &token)]);
    }
    token.good()
}

/// Reads `[exporter.otlp.tls]`. `is_https` is `None` if the endpoint is wrong.
pub(super) fn exporter_tls(
    mut section: Section<'_, '_>,
    is_https: Option<bool>,
    directory: &Path,
) -> Option<ClientTls> {
    let (is_there, header) = (section.is_there(), section.span());
    let files = client_files(&mut section, directory);
    let server_name = section.text("server_name", server_name);
    if is_there && is_https == Some(false) {
        let problem = Problem::new("[exporter.otlp.tls] is set, but `endpoint` is http://");
        section.error(header, problem.hint("write https://, or remove the section"));
    }
    section.finish();
    let tls = ClientTls { server_name: server_name.good(), ..files };
    (is_https == Some(true)).then_some(tls)
}

/// Reads `ca_file`, `cert_file` and `key_file` of a client, as far as they can be used.
pub(super) fn client_files(section: &mut Section<'_, '_>, directory: &Path) -> ClientTls {
    let ca = section.file("ca_file", directory);
    let cert = section.file("cert_file", directory);
    let key = section.file("key_file", directory);
    let identity = cert.clone().good().zip(key.clone().good());
    let tls = ClientTls { ca_file: ca.clone().good(), identity, server_name: None };
    // Only named files are checked: the system's CAs may differ from those of the machine of
    // `check`.
    let is_half = tls.identity.is_none() && !matches!((&cert, &key), (Read::Unset, Read::Unset));
    if is_half || tls.files().is_empty() {
        return tls;
    }
    match tls.read() {
        Ok(side) => {
            if let Some(dates) = side.certificate {
                warn_of_dates(section, &cert, dates);
            }
        }
        Err(faults) => {
            let named = [
                (Role::Ca, "ca_file", &ca),
                (Role::Certificate, "cert_file", &cert),
                (Role::Key, "key_file", &key),
            ];
            report(section, &faults, &named);
        }
    }
    tls
}

/// Reads `password_file`.
pub(super) fn password(section: &mut Section<'_, '_>, directory: &Path) -> Option<PathBuf> {
    let password = section.file("password_file", directory);
    if let Read::Set(file, _) = &password
        && let Err(faults) = credentials::read_password(file)
    {
        report(section, &faults, &[(Role::Token, "password_file", &password)]);
    }
    password.good()
}

/// A host name or an IP address, as in certificates.
fn server_name(text: &str) -> Result<ServerName<'static>, Problem> {
    ServerName::try_from(text.to_owned()).map_err(|_| {
        let message = format!("`server_name` must be a host name, found {}", quote(text));
        Problem::new(message).hint("leave out scheme and port")
    })
}

fn report(section: &mut Section<'_, '_>, faults: &Faults, named: &[Named<'_>]) {
    for fault in &faults.0 {
        let place = named.iter().find(|(role, ..)| *role == fault.role);
        if let Some((role, key, Read::Set(_, span))) = place {
            let problem = problem(key, &fault.fault);
            match role {
                Role::Token => section.error_without_line(span.clone(), problem),
                _ => section.error(span.clone(), problem),
            }
        }
    }
}

fn problem(key: &str, fault: &Fault) -> Problem {
    let problem = Problem::new(format!("`{key}` cannot be used: {fault}"));
    match fault {
        Fault::Unreadable(_) => {
            problem.hint("a relative path starts at the directory of this file")
        }
        Fault::NoCertificate | Fault::BadCertificate => problem.hint(PEM_HINT),
        Fault::NoKey => problem.hint("such a file begins with `-----BEGIN PRIVATE KEY-----`"),
        Fault::EncryptedKey => {
            problem.hint("`openssl pkey -in FILE -out NEW` writes it without the passphrase")
        }
        Fault::OtherKey => problem.hint(
            "the first certificate of `cert_file` must be the one that this key was made for",
        ),
        Fault::BadKey => problem.hint("RSA from 2048 bits, ECDSA P-256, P-384 and Ed25519 work"),
        Fault::NoPassword => problem.hint("write the password into it, as UTF-8"),
        Fault::NoToken => problem.hint("write one token a line"),
        Fault::ManyTokens => problem.hint("keep only the token that the backend expects"),
        Fault::TooLarge | Fault::BadToken | Fault::NoSystemCa => problem,
    }
}

fn warn_of_dates(section: &mut Section<'_, '_>, cert: &Read<PathBuf>, dates: Dates) {
    let Read::Set(_, span) = cert else { return };
    let span: Span = span.clone();
    if dates.is_early {
        section.warn(span.clone(), Problem::new("the certificate is not valid yet"));
    }
    if let Some(end) = dates.not_after.filter(|end| *end < UnixTime::now().as_secs()) {
        let end = std::time::UNIX_EPOCH + std::time::Duration::from_secs(end);
        let end = humantime::format_rfc3339_seconds(end);
        section.warn(span, Problem::new(format!("the certificate has expired: {end}")));
    }
}
