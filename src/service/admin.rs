//! What the telemetry port answers from.

use std::sync::{Arc, atomic::AtomicBool};

use tokio::sync::watch;
use tonic_health::server::HealthReporter;

use super::{Shared, credentials::Credentials};
use crate::{
    admin::{Admin, Calls, History, Scrapes, Watchers},
    clock::{self, Clock},
    config::Config,
    exporter::Client,
    net::handshake::Handshake,
    reload::Reload,
};

impl Shared {
    /// The TLS handshake of the telemetry port, if it has one.
    pub(super) fn admin_tls(&self, credentials: &Credentials) -> Option<Arc<Handshake>> {
        let telemetry = credentials.telemetry.as_ref()?;
        Some(Handshake::new(telemetry, None, &self.metrics))
    }

    pub(super) fn admin(
        &self,
        config: &Config,
        is_ready: &Arc<AtomicBool>,
        backend: Client,
        credentials: &Credentials,
    ) -> Arc<Admin> {
        Arc::new(Admin {
            metrics: Arc::clone(&self.metrics),
            sampler: Arc::clone(&self.sampler),
            queue: Arc::clone(&self.queue),
            budget: Arc::clone(&self.budget),
            is_ready: Arc::clone(is_ready),
            supervisor: Arc::clone(&self.supervisor),
            clock: Arc::clone(&self.clock),
            reload: Arc::new(Reload::new(config, &self.sampler, &self.metrics, &self.supervisor)),
            enable_lifecycle: config.telemetry.enable_lifecycle,
            enable_recording: config.telemetry.enable_recording,
            streams_end: watch::channel(false).0,
            scrapes: Scrapes::default(),
            started_at: clock::unix_millis(),
            backend_endpoint: config.exporter.endpoint.clone(),
            backend,
            history: History::default(),
            uptime: Clock::start(),
            watchers: Watchers::default(),
            calls: Calls::default(),
            tokens: credentials.telemetry_tokens.clone(),
            health: HealthReporter::new(),
        })
    }
}
