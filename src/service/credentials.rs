//! The certificates, keys and tokens that a configuration names; they are read again when they
//! change.

use std::{path::PathBuf, sync::Arc};

use crate::{
    config::Config,
    credentials::{
        self, Bearer, ClientSecrets, ClientTls, Faults, Live, ServerSide, ServerTls, Tokens, Watch,
    },
    exporter::{Client, ClientError, Connector, Tls},
    metrics::Metrics,
    net::handshake::Handshake,
};

/// The credentials of all connections, kept up to date.
pub(super) struct Credentials {
    pub(super) watch: Arc<Watch>,
    pub(super) server: Option<Arc<Live<ServerSide>>>,
    pub(super) tokens: Option<Arc<Live<Tokens>>>,
    /// The TLS configuration of the telemetry port.
    pub(super) telemetry: Option<Arc<Live<ServerSide>>>,
    pub(super) telemetry_tokens: Option<Arc<Live<Tokens>>>,
    /// The credentials for the brokers.
    pub(super) kafka: Option<Arc<Live<ClientSecrets>>>,
    backend: Option<Tls>,
    /// The token that is sent to the backend.
    bearer: Option<Arc<Live<Bearer>>>,
}

impl Credentials {
    pub(super) fn read(config: &Config, metrics: &Arc<Metrics>) -> Result<Self, Faults> {
        let told = Arc::clone(metrics);
        let watch = Watch::new(move |in_force| told.credentials_in_force(in_force));
        let server = |tls: &Option<ServerTls>, of| {
            let tls = tls.clone()?;
            let metrics = Arc::clone(metrics);
            Some(watch.add(tls.files(), move || {
                let side = tls.read()?;
                side.certificate.not_after.inspect(|end| metrics.certificate_expires(of, *end));
                Ok(side)
            }))
        };
        let tokens = |file: &Option<PathBuf>| {
            let file = file.clone()?;
            Some(watch.add(vec![file.clone()], move || credentials::read_tokens(&file)))
        };
        let telemetry = server(&config.telemetry.tls, "telemetry").transpose()?;
        let telemetry_tokens = tokens(&config.telemetry.bearer_token_file).transpose()?;
        let (server, tokens) = (server(&config.tls, "receiver"), tokens(&config.bearer_token_file));
        let backend = config.exporter.tls.clone().map(|tls| {
            let (server_name, metrics) = (tls.server_name.clone(), Arc::clone(metrics));
            let certificates = watch.add(tls.files(), move || {
                let side = tls.read()?;
                let end = side.certificate.and_then(|certificate| certificate.not_after);
                end.inspect(|end| metrics.certificate_expires("exporter", *end));
                Ok(side)
            });
            certificates.map(|certificates| Tls { certificates, server_name })
        });
        let bearer = config
            .exporter
            .bearer_token_file
            .clone()
            .map(|file| watch.add(vec![file.clone()], move || credentials::read_bearer(&file)));
        let kafka = config.kafka.as_ref().map(|kafka| {
            let tls = kafka.tls.clone();
            let password = kafka.sasl.as_ref().map(|sasl| sasl.password_file.clone());
            let of_tls = tls.iter().flat_map(ClientTls::files);
            let files = of_tls.chain(password.clone()).collect();
            watch.add(files, move || credentials::read_client(tls.as_ref(), password.as_deref()))
        });
        let kafka = kafka.transpose()?;
        let (server, tokens) = (server.transpose()?, tokens.transpose()?);
        let (backend, bearer) = (backend.transpose()?, bearer.transpose()?);
        let watch = Arc::new(watch);
        Ok(Credentials {
            watch,
            server,
            tokens,
            telemetry,
            telemetry_tokens,
            kafka,
            backend,
            bearer,
        })
    }

    /// The TLS handshake of the telemetry port while the service starts, with the certificate as it
    /// is now.
    pub(super) fn handshake_at_start(config: &Config) -> Result<Option<Arc<Handshake>>, Faults> {
        let Some(tls) = config.telemetry.tls.clone() else { return Ok(None) };
        let certificate = Watch::new(|_| ()).add(tls.files(), move || tls.read())?;
        Ok(Some(Handshake::new(&certificate, None)))
    }

    /// The exporter's client, over TCP or TLS.
    pub(super) fn client(&self, config: &Config) -> Result<Client, ClientError> {
        let connector = Connector::new(&config.exporter, self.backend.clone());
        let client = Client::with_connector(&config.exporter, connector)?;
        Ok(client.with_token(self.bearer.clone()))
    }
}
