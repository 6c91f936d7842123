//! The parts that a service is started with, and those of a real one.

use tokio::net::TcpListener;

use super::{StartError, limits::cores};
use crate::{config::Config, exporter::Client, net::listen, window::Hasher};

/// The parts that a service is started with: listeners that are already bound, the client of the
/// backend, and the inputs that a simulation must be able to repeat.
#[derive(Debug)]
pub struct Ground<L> {
    /// The listener of OTLP/gRPC.
    pub grpc: L,
    /// The listener of OTLP/HTTP.
    pub http: L,
    /// The admin listener.
    pub admin: std::net::TcpListener,
    /// The client of the backend; if `None`, one over TCP from the configuration.
    pub client: Option<Client>,
    /// The number of shards, if memory allows that many.
    pub shards: usize,
    /// Assigns traces to shards.
    pub hasher: Hasher,
    /// Whether `[receiver.kafka]` reads from brokers. A simulation feeds
    /// [`super::Service::kafka`] itself.
    pub has_brokers: bool,
}

impl Ground<TcpListener> {
    pub(super) async fn bind(config: &Config) -> Result<Self, StartError> {
        let admin = listen::bind("telemetry.endpoint", &config.telemetry.endpoint).await?;
        Ok(Ground {
            grpc: listen::bind("receiver.grpc.endpoint", &config.grpc.endpoint).await?,
            http: listen::bind("receiver.http.endpoint", &config.http.endpoint).await?,
            admin: admin.into_std()?,
            client: None,
            shards: 4 * cores(),
            hasher: Hasher::random(),
            has_brokers: true,
        })
    }
}
