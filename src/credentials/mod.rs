//! Certificates, keys and tokens: read from files, converted for TLS and the receivers, and read
//! again when the files change.
//!
//! `config` reads them to validate them, `service` to start. Then a blocking thread checks the
//! files every second ([`Watch`]) and uses changed files as soon as a further check finds the same
//! contents. It compares contents, not times or events: Kubernetes swaps symbolic links, and a
//! certificate and its key are written one after the other. Files that cannot be used are logged
//! once, and the old contents stay in force until the files change again. New connections use the
//! new files and open ones continue, so no request fails.
//!
//! TLS is rustls with ring, 1.2 and 1.3. Sessions are not resumed: OTLP connections live long, and
//! a resumed session would not check the peer's certificate again. Revocation lists are not read.
//! To lock out a client, give it no new certificate, or replace the CA.
//!
//! Only the names of files are ever printed.

mod pem;
mod side;
mod token;
mod watch;

use std::path::{Path, PathBuf};

use rustls::pki_types::ServerName;

pub(crate) use pem::{Fault, Faults, Role};
pub(crate) use side::{ClientSide, Dates, ServerSide};
pub(crate) use token::{Bearer, Password, Tokens};
pub(crate) use watch::{Live, Watch};

/// `[receiver.tls]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// `cert_file`: the service's certificate, followed by intermediate ones.
    pub cert_file: PathBuf,
    /// `key_file`: its private key, without a passphrase.
    pub key_file: PathBuf,
    /// `client_ca_file`: the CAs, one of which must have signed a client's certificate.
    pub client_ca_file: Option<PathBuf>,
}

/// `[exporter.otlp.tls]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// `ca_file`: the CAs, one of which must have signed the backend's certificate; the system's
    /// CAs if `None`.
    pub ca_file: Option<PathBuf>,
    /// `cert_file` and `key_file`: sent to a backend that asks for a certificate.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// `server_name`: the name that the backend's certificate must be for; the host of the endpoint
    /// if `None`.
    pub server_name: Option<ServerName<'static>>,
}

impl ServerTls {
    /// All files of the section.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        [&self.cert_file, &self.key_file].into_iter().chain(&self.client_ca_file).cloned().collect()
    }

    /// Reads and checks all files. Blocks.
    ///
    /// # Errors
    /// All faults in them.
    pub(crate) fn read(&self) -> Result<ServerSide, Faults> {
        ServerSide::read(self)
    }
}

impl ClientTls {
    /// All files of the section.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let identity = self.identity.iter().flat_map(|(cert, key)| [cert, key]);
        self.ca_file.iter().chain(identity).cloned().collect()
    }

    /// Reads and checks all files, and the system's CAs if no file names others. Blocks.
    ///
    /// # Errors
    /// All faults in them.
    pub(crate) fn read(&self) -> Result<ClientSide, Faults> {
        ClientSide::read(self)
    }
}

/// Reads the file of the bearer tokens that senders may use. Blocks.
///
/// # Errors
/// The fault in it.
pub fn read_tokens(file: &Path) -> Result<Tokens, Faults> {
    Tokens::read(file)
}

/// Reads the file of the one bearer token that is sent to the backend. Blocks.
///
/// # Errors
/// The fault in it.
pub(crate) fn read_bearer(file: &Path) -> Result<Bearer, Faults> {
    Bearer::read(file)
}

/// The credentials that a client presents to the brokers of Kafka.
#[cfg_attr(
    not(feature = "kafka"),
    expect(dead_code, reason = "a build without Kafka only checks the files")
)]
#[derive(Debug)]
pub(crate) struct ClientSecrets {
    /// The password of SASL.
    pub(crate) password: Option<Password>,
    /// Another number each time that the files were read.
    pub(crate) generation: u64,
}

/// Reads and checks the files of a client of Kafka, which uses those of TLS by their names. Blocks.
///
/// # Errors
/// All faults in them.
pub(crate) fn read_client(
    tls: Option<&ClientTls>,
    password_file: Option<&Path>,
) -> Result<ClientSecrets, Faults> {
    tls.filter(|tls| !tls.files().is_empty()).map(ClientTls::read).transpose()?;
    let password = password_file.map(read_password).transpose()?;
    Ok(ClientSecrets { password, generation: fastrand::u64(1..) })
}

/// Reads the file of a password. Blocks.
///
/// # Errors
/// The fault in it.
pub(crate) fn read_password(file: &Path) -> Result<Password, Faults> {
    Password::read(file)
}
