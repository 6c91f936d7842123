//! The choices that a seed makes for a run: configuration, traffic and faults.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tailwater::config::{self, Config, Overflow, Protocol};

use crate::{harness, policies::SETS, senders::Shape};

/// Everything about a run that the seed decides before it begins.
#[derive(Debug)]
pub struct Setup {
    pub config: Config,
    /// The index in [`SETS`] of the first policies.
    pub set: usize,
    /// Whether decisions are forgotten while spans of their traces still come.
    pub is_forgetful: bool,
    pub shards: usize,
    pub shape: Shape,
    /// The most faults at once.
    pub storms: u32,
    /// The initial per cent of requests that the backend does not simply store.
    pub badness: u32,
    /// The time of a shutdown during everything else, counted from the start.
    pub shutdown_at: Option<Duration>,
}

impl Setup {
    /// The setup that this seed leads to.
    pub fn choose(rng: &mut fastrand::Rng) -> Self {
        let set = rng.usize(0..SETS.len());
        let mut config = configure(SETS[set].text);
        let is_tight = rng.u32(0..4) == 0;
        let sampling = &mut config.sampling;
        sampling.decision_wait = Duration::from_millis(rng.u64(1_000..8_000));
        let after_root = Duration::from_millis(rng.u64(100..2_000));
        sampling.decision_wait_after_root_received = rng.bool().then_some(after_root);
        sampling.memory_limit_bytes = if is_tight { 1 << 20 } else { 64 << 20 };
        let is_forgetful = rng.u32(0..5) == 0;
        sampling.decision_cache_ttl = Duration::from_secs(if is_forgetful { 3 } else { 3_600 });
        if rng.u32(0..4) == 0 {
            sampling.max_trace_spans = rng.u32(2..8);
        }
        let exporter = &mut config.exporter;
        exporter.max_request_bytes = rng.usize(2..32) << 10;
        exporter.max_trace_bytes = (rng.u32(0..8) == 0).then(|| rng.u64(300..4_000));
        exporter.queue.queue_bytes_max = rng.usize(4..64) << 10;
        exporter.queue.num_consumers = rng.usize(1..=4);
        exporter.queue.overflow = if rng.bool() { Overflow::Block } else { Overflow::Drop };
        exporter.retry.initial_interval = Duration::from_millis(rng.u64(100..1_000));
        exporter.retry.max_interval = Duration::from_secs(5);
        let most = Duration::from_secs(rng.u64(2..60));
        exporter.retry.max_elapsed_time = rng.bool().then_some(most);
        let shape = Shape {
            senders: rng.usize(1..=4),
            traces: rng.usize(20..80),
            spans_per_trace_max: rng.usize(1..=10),
            horizon: Duration::from_secs(rng.u64(5..if is_tight { 15 } else { 40 })),
            period_millis: (300, 1_500),
            filler_max: if is_tight { 20_000 } else { 300 },
        };
        exporter.protocol = if rng.u32(0..3) == 0 { Protocol::Http } else { Protocol::Grpc };
        let shutdown_at = Duration::from_millis(rng.u64(0..40_000));
        Setup {
            config,
            set,
            is_forgetful,
            shards: 1 << rng.u32(0..4),
            shape,
            storms: rng.u32(0..=3),
            badness: if rng.bool() { 0 } else { rng.u32(0..=60) },
            shutdown_at: (rng.u32(0..4) == 0).then_some(shutdown_at),
        }
    }

    /// A setup that keeps every trace and has no faults, with more than an hour of steady traffic
    /// and a queue for some minutes of it.
    pub fn steady(overflow: Overflow, max_elapsed_time: Option<Duration>) -> Self {
        let set = 2;
        let mut config = configure(SETS[set].text);
        config.sampling.memory_limit_bytes = 64 << 20;
        config.sampling.decision_cache_ttl = Duration::from_secs(10_000);
        // Each look-up searches the whole log.
        config.sampling.decision_log_size = 0;
        config.exporter.queue.queue_bytes_max = 1 << 20;
        config.exporter.queue.overflow = overflow;
        config.exporter.retry.max_elapsed_time = max_elapsed_time;
        let shape = Shape {
            senders: 2,
            traces: 6_000,
            spans_per_trace_max: 3,
            horizon: Duration::from_secs(3_900),
            period_millis: (5_000, 7_000),
            filler_max: 600,
        };
        let (storms, badness, shutdown_at) = (0, 0, None);
        Setup { config, set, is_forgetful: false, shards: 1, shape, storms, badness, shutdown_at }
    }

    /// A setup with this configuration and one shard, without senders, faults or a shutdown.
    pub fn quiet(config: Config) -> Self {
        let shape = Shape {
            senders: 0,
            traces: 0,
            spans_per_trace_max: 0,
            horizon: Duration::ZERO,
            period_millis: (0, 0),
            filler_max: 0,
        };
        Setup {
            config,
            set: 0,
            is_forgetful: false,
            shards: 1,
            shape,
            storms: 0,
            badness: 0,
            shutdown_at: None,
        }
    }

    /// The file that policies are reloaded from.
    pub fn policies(&self) -> &Path {
        self.config.file.as_deref().expect("loaded from a file")
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        // It does not matter if this fails: the next run has its own file.
        let _ = std::fs::remove_file(self.policies());
    }
}

/// A configuration of these policies whose file stays.
pub fn configure(policies: &str) -> Config {
    let file: PathBuf = harness::tempfile(policies);
    let mut config = config::load(&file).config.expect("no errors");
    config.telemetry.endpoint = "127.0.0.1:0".into();
    config.exporter.endpoint = "http://backend".into();
    config.span_metrics = Some(harness::all_kinds());
    config
}
