//! The TLS configurations of both sides of a connection.

use std::{
    fmt,
    path::Path,
    sync::{Arc, LazyLock},
};

use rustls::{
    ClientConfig, ConfigBuilder, ConfigSide, Error, RootCertStore, ServerConfig, WantsVerifier,
    client::Resumption,
    crypto::{CryptoProvider, ring},
    pki_types::CertificateDer,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};

use super::{
    ClientTls, ServerTls,
    pem::{self, Fault, Faults, FileFault, Role},
};

const H2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// The cryptographic provider, set here so that another crate's choice for the process does not
/// matter.
pub(super) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(ring::default_provider()));
    &PROVIDER
}

/// The TLS configuration of the receivers.
pub(crate) struct ServerSide {
    /// Offers only HTTP/2.
    pub(crate) grpc: Arc<ServerConfig>,
    /// Offers HTTP/1.1 too.
    pub(crate) http: Arc<ServerConfig>,
    /// The service's own certificate.
    pub(crate) certificate: Dates,
}

/// The TLS configuration of the exporter.
pub(crate) struct ClientSide {
    /// Offers only HTTP/2.
    pub(crate) grpc: Arc<ClientConfig>,
    /// Offers HTTP/1.1 too.
    pub(crate) http: Arc<ClientConfig>,
    /// The certificate that is sent to a backend that asks for one.
    pub(crate) certificate: Option<Dates>,
}

/// The validity of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dates {
    /// Whether it was not valid yet when it was read.
    pub(crate) is_early: bool,
    /// Its last second since 1970; `None` if that cannot be found out.
    pub(crate) not_after: Option<u64>,
}

impl Dates {
    fn of(certificate: &CertificateDer<'_>) -> Self {
        Dates { is_early: pem::is_early(certificate), not_after: pem::not_after(certificate) }
    }
}

impl fmt::Debug for ServerSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerSide").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl fmt::Debug for ClientSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientSide").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl ServerSide {
    pub(super) fn read(files: &ServerTls) -> Result<Self, Faults> {
        let identity = identity(&files.cert_file, &files.key_file);
        let clients = files.client_ca_file.as_deref().map(pem::roots).transpose();
        let (identity, clients) = both(identity, clients.map_err(|fault| vec![fault]))?;
        let certificate = Dates::of(&identity.cert[0]);
        let config = versions(ServerConfig::builder_with_provider(Arc::clone(provider())));
        let config = match clients {
            None => config.with_no_client_auth(),
            Some(roots) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(
                    Arc::new(roots),
                    Arc::clone(provider()),
                );
                let verifier = verifier.build().expect("there are roots, and no revocation lists");
                config.with_client_cert_verifier(verifier)
            }
        };
        let mut config = config.with_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = vec![H2.into()];
        let grpc = Arc::new(config.clone());
        config.alpn_protocols.push(HTTP1.into());
        Ok(ServerSide { grpc, http: Arc::new(config), certificate })
    }
}

impl ClientSide {
    pub(super) fn read(files: &ClientTls) -> Result<Self, Faults> {
        let identity = files.identity.as_ref().map(|(cert, key)| identity(cert, key)).transpose();
        let roots = match &files.ca_file {
            Some(file) => pem::roots(file),
            None => system_roots(),
        };
        let (identity, roots) = both(identity, roots.map_err(|fault| vec![fault]))?;
        let certificate = identity.as_ref().map(|identity| Dates::of(&identity.cert[0]));
        let config = versions(ClientConfig::builder_with_provider(Arc::clone(provider())));
        let config = config.with_root_certificates(roots);
        let mut config = match identity {
            None => config.with_no_client_auth(),
            Some(identity) => {
                config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity)))
            }
        };
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![H2.into()];
        let grpc = Arc::new(config.clone());
        config.alpn_protocols.push(HTTP1.into());
        Ok(ClientSide { grpc, http: Arc::new(config), certificate })
    }
}

fn versions<S: ConfigSide>(
    builder: ConfigBuilder<S, rustls::WantsVersions>,
) -> ConfigBuilder<S, WantsVerifier> {
    builder.with_safe_default_protocol_versions().expect("ring does TLS 1.2 and 1.3")
}

/// A certificate with its key, or all faults of both.
fn identity(cert_file: &Path, key_file: &Path) -> Result<CertifiedKey, Vec<FileFault>> {
    let chain = pem::certificates(Role::Certificate, cert_file).map_err(|fault| vec![fault]);
    let key = pem::private_key(key_file).map_err(|fault| vec![fault]);
    let (chain, key) = both(chain, key).map_err(|Faults(faults)| faults)?;
    CertifiedKey::from_der(chain, key, provider()).map_err(|error| {
        vec![match error {
            Error::InconsistentKeys(_) => FileFault::new(Role::Key, key_file, Fault::OtherKey),
            Error::InvalidCertificate(_) => {
                FileFault::new(Role::Certificate, cert_file, Fault::BadCertificate)
            }
            _ => FileFault::new(Role::Key, key_file, Fault::BadKey),
        }]
    })
}

/// The CAs that the operating system trusts. Those that cannot be read are skipped, if there is at
/// least one other.
fn system_roots() -> Result<RootCertStore, FileFault> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        let nowhere = Path::new("ca_file is not set");
        return Err(FileFault::new(Role::Ca, nowhere, Fault::NoSystemCa));
    }
    Ok(roots)
}

/// Both values, or the faults of both.
fn both<A, B>(
    a: Result<A, Vec<FileFault>>,
    b: Result<B, Vec<FileFault>>,
) -> Result<(A, B), Faults> {
    match (a, b) {
        (Ok(a), Ok(b)) => Ok((a, b)),
        (Err(mut a), Err(b)) => {
            a.extend(b);
            Err(Faults(a))
        }
        (Err(faults), Ok(_)) | (Ok(_), Err(faults)) => Err(Faults(faults)),
    }
}
