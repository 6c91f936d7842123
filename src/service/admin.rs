//! Builds the admin part of the service, from which the telemetry port answers.

use std::sync::{Arc, atomic::AtomicBool};

use tokio::sync::watch;

use super::{
    Shared,
    credentials::Credentials,
    durable::Durable,
    health::{self, OF_TELEMETRY},
};
use crate::{
    admin::{Admin, Calls, History, LongAnswers, Watchers},
    clock::{self, Clock},
    config::Config,
    exporter::Client,
    net::handshake::Handshake,
    reload::Reload,
};

impl Shared {
    pub(super) async fn admin(
        &self,
        config: &Config,
        is_ready: &Arc<AtomicBool>,
        backend: Client,
        credentials: &Credentials,
    ) -> Arc<Admin> {
        let handshake = |telemetry| Handshake::new(telemetry, None);
        Arc::new(Admin {
            metrics: Arc::clone(&self.metrics),
            sampler: Arc::clone(&self.sampler),
            queue: Arc::clone(&self.queue),
            budget: Arc::clone(&self.budget),
            is_ready: Arc::clone(is_ready),
            supervisor: Arc::clone(&self.supervisor),
            clock: Arc::clone(&self.clock),
            durability: self.durable.as_ref().map(Durable::logs),
            reload: Arc::new(Reload::new(config, &self.sampler, &self.metrics, &self.supervisor)),
            enable_lifecycle: config.telemetry.enable_lifecycle,
            long_answers: LongAnswers::default(),
            enable_recording: config.telemetry.enable_recording,
            streams_end: watch::channel(false).0,
            started_at: clock::unix_millis(),
            backend_endpoint: config.exporter.endpoint.clone(),
            backend,
            history: History::default(),
            uptime: Clock::start(),
            watchers: Watchers::default(),
            calls: Calls::default(),
            tokens: credentials.telemetry_tokens.clone(),
            tls: credentials.telemetry.as_ref().map(handshake),
            health: health::not_serving(OF_TELEMETRY).await,
        })
    }
}
