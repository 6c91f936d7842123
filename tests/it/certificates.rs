//! CAs, certificates and connections for tests, made without the service's own code.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use h2::client::SendRequest;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tailwater::grpc::EXPORT_PATH;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::wire::{Answer, answer, frame, post};

/// A CA, which signs certificates.
pub struct Ca {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Identity {
    pub cert: String,
    pub key: String,
}

impl Ca {
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        // Each has its own name, like real CAs.
        let name = format!("CA {:x}", fastrand::u64(..));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("signed").pem();
        Ca { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for this name that is valid now and for a long time.
    pub fn sign(&self, name: &str) -> Identity {
        self.sign_from_to(name, 2000, 2500)
    }

    /// A certificate that has expired.
    pub fn sign_expired(&self, name: &str) -> Identity {
        self.sign_from_to(name, 2000, 2001)
    }

    fn sign_from_to(&self, name: &str, from: i32, to: i32) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        (params.not_before, params.not_after) =
            (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        let cert = params.signed_by(&key, &self.issuer).expect("signed");
        Identity { cert: cert.pem(), key: key.serialize_pem() }
    }
}

impl Identity {
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.der()]
    }

    /// The certificate in DER, as peers see it.
    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.cert.as_bytes()).expect("PEM")
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("PEM")
    }
}

pub fn roots(cas: &[&Ca]) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for ca in cas {
        let der = CertificateDer::from_pem_slice(ca.pem.as_bytes()).expect("PEM");
        roots.add(der).expect("a certificate");
    }
    roots
}

/// How a test connects: the CAs that it trusts, its certificate, and its protocol.
pub struct Client(ClientConfig);

impl Client {
    pub fn new(trusted: &[&Ca], identity: Option<&Identity>) -> Self {
        Self::of_versions(trusted, identity, rustls::ALL_VERSIONS)
    }

    pub fn of_versions(
        trusted: &[&Ca],
        identity: Option<&Identity>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Self {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_protocol_versions(versions).expect("known versions");
        let builder = builder.with_root_certificates(roots(trusted));
        let mut config = match identity {
            Some(it) => builder.with_client_auth_cert(it.chain(), it.key()).expect("a key"),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".into()];
        Client(config)
    }

    /// The same, for this protocol.
    pub fn speaking(mut self, protocol: &str) -> Self {
        self.0.alpn_protocols = vec![protocol.into()];
        self
    }

    /// A TLS connection, or the error of the handshake.
    pub async fn connect(
        &self,
        address: SocketAddr,
        name: &str,
    ) -> Result<TlsStream<TcpStream>, String> {
        let stream = TcpStream::connect(address).await.map_err(text)?;
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        TlsConnector::from(Arc::new(self.0.clone())).connect(name, stream).await.map_err(text)
    }

    /// An HTTP/2 connection to localhost.
    pub async fn http2(&self, address: SocketAddr) -> Result<SendRequest<Bytes>, String> {
        let stream = self.connect(address, "localhost").await?;
        let (client, connection) = h2::client::handshake(stream).await.map_err(text)?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Sends a request on a connection of its own.
    pub async fn export(&self, address: SocketAddr, body: &[u8]) -> Result<Answer, String> {
        export(&self.http2(address).await?, &[], body).await
    }
}

/// Exports over HTTP/2; any step may fail.
pub async fn export(
    client: &SendRequest<Bytes>,
    headers: &[(&'static str, &'static str)],
    body: &[u8],
) -> Result<Answer, String> {
    let mut client = client.clone().ready().await.map_err(text)?;
    let (response, mut stream) =
        client.send_request(post(EXPORT_PATH, headers), false).map_err(text)?;
    stream.send_data(frame(0, body).into(), true).map_err(text)?;
    answer(response).await.map_err(text)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// The TLS configuration of a backend.
pub fn server(identity: &Identity, clients: Option<&[&Ca]>) -> Arc<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().expect("known versions");
    let builder = match clients {
        Some(trusted) => {
            let roots = Arc::new(roots(trusted));
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
            builder.with_client_cert_verifier(verifier.expect("roots"))
        }
        None => builder.with_no_client_auth(),
    };
    let config = builder.with_single_cert(identity.chain(), identity.key());
    let mut config = config.expect("a key that fits");
    config.alpn_protocols = vec![b"h2".into()];
    Arc::new(config)
}
