//! What the telemetry port answers from.

use std::sync::{Arc, atomic::AtomicBool};

use super::{Shared, durable::Durable};
use crate::{
    admin::{Admin, History, LongAnswers},
    clock::{self, Clock},
    config::Config,
    exporter::Client,
    reload::Reload,
};

impl Shared {
    pub(super) fn admin(
        &self,
        config: &Config,
        is_ready: &Arc<AtomicBool>,
        backend: Client,
    ) -> Arc<Admin> {
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
            started_at: clock::unix_millis(),
            backend_endpoint: config.exporter.endpoint.clone(),
            backend,
            history: History::default(),
            uptime: Clock::start(),
        })
    }
}
