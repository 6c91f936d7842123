//! Certificates, keys and tokens: read from files, turned into what TLS and the doors use, and read
//! again when the files change.
//!
//! `config` reads them to validate, `service` to start; from then on the files are looked at every
//! second on a blocking thread ([`Watch`]), and used when they have not changed for one more look.
//! Contents are compared, not times or events: Kubernetes swaps symbolic links, and a certificate
//! and its key are written one after the other. What cannot be used is logged once and leaves the
//! old in force, until the contents change. New connections use the new files, old ones go on, so
//! that no request fails.
//!
//! TLS is rustls with ring, 1.2 and 1.3. Sessions are not resumed: connections of OTLP live long,
//! and a resumed session would not look at the peer's certificate again. Revocation lists are not
//! read; who is no longer welcome gets no new certificate, or the authority is replaced.
//!
//! Nothing here is ever printed but the names of files.

mod pem;
mod side;
mod token;
mod watch;

use std::path::{Path, PathBuf};

use rustls::pki_types::ServerName;

pub use pem::{Fault, Faults, FileFault, Role};
pub use side::{ClientSide, Dates, ServerSide};
pub use token::{Bearer, Tokens};
pub use watch::{Live, Watch};

/// `[receiver.tls]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// `cert_file`: the service's certificate and the intermediate ones behind it.
    pub cert_file: PathBuf,
    /// `key_file`: its private key, without a passphrase.
    pub key_file: PathBuf,
    /// `client_ca_file`: who must have signed the certificate that a client has to show.
    pub client_ca_file: Option<PathBuf>,
}

/// `[exporter.otlp.tls]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// `ca_file`: who must have signed the backend's certificate; without it, whom the system
    /// trusts.
    pub ca_file: Option<PathBuf>,
    /// `cert_file` and `key_file`: what is shown to a backend that asks.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// `server_name`: what the backend's certificate must be for; without it, the host of the
    /// endpoint.
    pub server_name: Option<ServerName<'static>>,
}

impl ServerTls {
    /// Every file.
    pub fn files(&self) -> Vec<PathBuf> {
        [&self.cert_file, &self.key_file].into_iter().chain(&self.client_ca_file).cloned().collect()
    }

    /// Reads and checks all of them. Blocks.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub fn read(&self) -> Result<ServerSide, Faults> {
        ServerSide::read(self)
    }
}

impl ClientTls {
    /// Every file.
    pub fn files(&self) -> Vec<PathBuf> {
        let identity = self.identity.iter().flat_map(|(cert, key)| [cert, key]);
        self.ca_file.iter().chain(identity).cloned().collect()
    }

    /// Reads and checks all of them, and the system's authorities where no file names others.
    /// Blocks.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub fn read(&self) -> Result<ClientSide, Faults> {
        ClientSide::read(self)
    }
}

/// Reads a file of the bearer tokens that senders may show. Blocks.
///
/// # Errors
/// What is wrong with it.
pub fn read_tokens(file: &Path) -> Result<Tokens, Faults> {
    Tokens::read(file)
}

/// Reads the file of the one bearer token that is shown to the backend. Blocks.
///
/// # Errors
/// What is wrong with it.
pub fn read_bearer(file: &Path) -> Result<Bearer, Faults> {
    Bearer::read(file)
}
