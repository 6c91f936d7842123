//! The contents of the files: certificates and keys in PEM, and the faults they can have.
//!
//! No fault quotes a file, since a file may hold a key where a certificate was expected.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use ring::digest::{SHA256, digest};
use rustls::{
    CertificateError, Error, RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _},
    server::ParsedCertificate,
};

use super::side::provider;
use crate::changes::{self, Digest};

/// A bundle of all public CAs has 250 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The purpose of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// `cert_file`.
    Certificate,
    /// `key_file`.
    Key,
    /// `client_ca_file` or `ca_file`.
    Ca,
    /// `bearer_token_file` or `password_file`.
    Token,
}

/// A fault in a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// It is larger than any file of its kind needs to be.
    #[error("it is larger than 1 MiB")]
    TooLarge,
    /// There is no certificate in it.
    #[error("it holds no certificate in PEM form")]
    NoCertificate,
    /// A certificate in it is damaged.
    #[error("a certificate in it cannot be read")]
    BadCertificate,
    /// There is no private key in it.
    #[error("it holds no private key in PEM form")]
    NoKey,
    /// The private key needs a passphrase.
    #[error("its private key is protected by a passphrase")]
    EncryptedKey,
    /// The private key is damaged, or of a kind that TLS does not use.
    #[error("its private key cannot be used")]
    BadKey,
    /// The private key belongs to another certificate.
    #[error("its private key does not match the certificate")]
    OtherKey,
    /// There is no password in it.
    #[error("it holds no password")]
    NoPassword,
    /// There is no token in it.
    #[error("it holds no token")]
    NoToken,
    /// A token in it could never be sent.
    #[error("a line in it is not a token: it has spaces or characters other than visible ASCII")]
    BadToken,
    /// It holds more than one token, and only one can be sent.
    #[error("it holds more than one token")]
    ManyTokens,
    /// The system trusts no CA.
    #[error("this system trusts no CA")]
    NoSystemCa,
}

/// A file and its fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {fault}", file.display())]
pub struct FileFault {
    /// The purpose of the file.
    pub(crate) role: Role,
    /// The path of the file.
    pub(crate) file: PathBuf,
    /// Its fault.
    pub(crate) fault: Fault,
}

/// All faults of files that belong together; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Faults(pub Vec<FileFault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            let separator = if i > 0 { "; " } else { "" };
            write!(f, "{separator}{fault}")?;
        }
        Ok(())
    }
}

impl FileFault {
    pub(super) fn new(role: Role, file: &Path, fault: Fault) -> Self {
        FileFault { role, file: file.to_owned(), fault }
    }
}

/// The contents of a file.
pub(super) fn contents(role: Role, file: &Path) -> Result<Vec<u8>, FileFault> {
    let unreadable =
        |error: io::Error| FileFault::new(role, file, Fault::Unreadable(error.to_string()));
    let mut contents = Vec::new();
    let opened = File::open(file).map_err(unreadable)?;
    opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut contents).map_err(unreadable)?;
    if contents.len() as u64 > FILE_BYTES_MAX {
        return Err(FileFault::new(role, file, Fault::TooLarge));
    }
    Ok(contents)
}

/// The digest of each file.
pub(super) fn digests(files: &[PathBuf]) -> Vec<Digest> {
    let of_file = |file: &PathBuf| match contents(Role::Certificate, file) {
        Ok(contents) => changes::digest(file, Ok(&contents)),
        Err(fault) => changes::digest(file, Err(&fault)),
    };
    files.iter().map(of_file).collect()
}

/// The digest of a token.
pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

/// The certificates of a file, in their order; at least one.
pub(super) fn certificates(
    role: Role,
    file: &Path,
) -> Result<Vec<CertificateDer<'static>>, FileFault> {
    let contents = contents(role, file)?;
    let bad = |_| FileFault::new(role, file, Fault::BadCertificate);
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&contents)
        .collect::<Result<_, _>>()
        .map_err(|_| FileFault::new(role, file, Fault::BadCertificate))?;
    if certificates.is_empty() {
        return Err(FileFault::new(role, file, Fault::NoCertificate));
    }
    for certificate in &certificates {
        ParsedCertificate::try_from(certificate).map_err(bad)?;
    }
    Ok(certificates)
}

/// The private key of a file.
pub(super) fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, FileFault> {
    let contents = contents(Role::Key, file)?;
    let is_encrypted = contents.windows(9).any(|nine| nine == b"ENCRYPTED");
    PrivateKeyDer::from_pem_slice(&contents).map_err(|_| {
        let fault = if is_encrypted { Fault::EncryptedKey } else { Fault::NoKey };
        FileFault::new(Role::Key, file, fault)
    })
}

/// The CAs of a file.
pub(super) fn roots(file: &Path) -> Result<RootCertStore, FileFault> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(Role::Ca, file)? {
        let bad = |_| FileFault::new(Role::Ca, file, Fault::BadCertificate);
        roots.add(certificate).map_err(bad)?;
    }
    Ok(roots)
}

/// The end of a certificate's validity, in Unix seconds.
///
/// webpki checks the dates before anything else and reports them in its error, but has no other way
/// to show them. So this asks it about a time at which no certificate is valid any more.
pub(super) fn not_after(certificate: &CertificateDer<'_>) -> Option<u64> {
    let in_the_far_future = UnixTime::since_unix_epoch(Duration::from_secs(1 << 40));
    match validity(certificate, in_the_far_future) {
        Err(CertificateError::ExpiredContext { not_after, .. }) => Some(not_after.as_secs()),
        _ => None,
    }
}

/// Whether a certificate is not valid yet.
pub(super) fn is_early(certificate: &CertificateDer<'_>) -> bool {
    let told = validity(certificate, UnixTime::now());
    matches!(told, Err(CertificateError::NotValidYetContext { .. }))
}

fn validity(certificate: &CertificateDer<'_>, time: UnixTime) -> Result<(), CertificateError> {
    let nobody = RootCertStore::empty();
    let algorithms = provider().signature_verification_algorithms.all;
    let told = ParsedCertificate::try_from(certificate).and_then(|certificate| {
        verify_server_cert_signed_by_trust_anchor(&certificate, &nobody, &[], time, algorithms)
    });
    match told {
        Err(Error::InvalidCertificate(error)) => Err(error),
        _ => Ok(()),
    }
}
