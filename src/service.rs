//! The wiring: binds listeners, builds the stages, makes every channel, spawns every task, and
//! stops them in the order of the flow.
//!
//! ```text
//! gRPC, HTTP connections --ingest--> Sampler <--decide-- decider --> Queue --> consumers
//!          \--late spans, full traces--> Outbox ----------^
//! admin thread: reads all of them
//! ```
//!
//! Channels: the [`Outbox`] and the [`Queue`], both charged to the [`Budget`].
//!
//! Signals: a watch each for "stop accepting", "give up delivering" and "stop the admin thread", a
//! oneshot for "stop deciding", and the [`Supervisor`]'s watch for "the service cannot go on".
//!
//! Tasks: one per listener, the decider, `num_consumers` consumers, the admin thread, and two that
//! check once a second whether files have changed: credentials if any are configured, policies with
//! `watch_policy_files`. Each of these is [vital](Supervisor::vital). A listener spawns one task
//! per connection, and hyper one per HTTP/2 stream. Large requests, the checks of files and a
//! reload by SIGHUP use a blocking thread; POST /-/reload uses one of the admin runtime. While the
//! logs of `[durability]` are opened, a thread answers health and readiness in place of the admin
//! thread.

mod admin;
mod credentials;
mod durable;
mod ground;
mod health;
mod kafka;
mod limits;
mod tasks;
mod watching;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle as Thread,
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet, spawn_blocking},
    time::{Instant, timeout_at},
};
use tonic_health::server::{HealthReporter, HealthService};
use tracing::{error, info, warn};

pub use self::ground::Ground;
use self::{
    credentials::Credentials,
    durable::{Durable, Opened},
    health::{OF_RECEIVERS, OF_TELEMETRY},
    kafka::{Kafka, PARTITIONS_MAX},
    limits::{cores, grpc_limits, http_limits, http_settings, limits, span_metrics, tick},
    tasks::{decide, finish, spawn_consumers},
};
use crate::{
    admin::Admin,
    budget::Budget,
    clock::WindowClock,
    config::Config,
    credentials::{Faults, Live, Tokens},
    decider::{self, Decider, Outbox, Parts, Settings},
    durability::{OpenError, ReadError},
    exporter::{ClientError, Queue},
    metrics::{Metrics, Transport},
    net::{
        descriptors,
        handshake::Handshake,
        listen::{self, BindError, Listen, Terms},
        tally::Tally,
    },
    policy::Plan,
    receiver::{
        self, Intake, empty::EmptyRequests, grpc::GrpcService, http::HttpService, kafka::Member,
        turns::Turns,
    },
    sampler::Sampler,
    supervise::{Supervised, Supervisor, Task},
    window::{Hasher, SEGMENT_BYTES},
};

/// Why the service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port is taken, or an endpoint does not resolve.
    #[error("cannot listen: {0}")]
    Bind(#[from] BindError),
    /// The backend's endpoint or a header cannot be used.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A certificate, key or token cannot be used.
    #[error(transparent)]
    Credentials(#[from] Faults),
    /// The directory of `[durability]` cannot be used.
    #[error(transparent)]
    Durability(#[from] OpenError),
    /// A log of `[durability]` cannot be read.
    #[error("[durability]: {0}")]
    Replay(#[from] ReadError),
    /// `[receiver.kafka]` cannot be used.
    #[cfg(feature = "kafka")]
    #[error(transparent)]
    Kafka(#[from] receiver::kafka::KafkaError),
    /// The thread of the admin listener cannot be started.
    #[error("cannot start the admin thread: {0}")]
    Admin(#[from] io::Error),
}

/// A running service.
#[derive(Debug)]
pub struct Service {
    /// The address of the OTLP/gRPC receiver.
    pub grpc_address: SocketAddr,
    /// The address of the OTLP/HTTP receiver.
    pub http_address: SocketAddr,
    /// The address of the admin listener, which serves /metrics.
    pub admin_address: SocketAddr,
    shutdown_timeout: Duration,
    intake: Arc<Intake>,
    metrics: Arc<Metrics>,
    queue: Arc<Queue>,
    is_ready: Arc<AtomicBool>,
    health: HealthReporter,
    receivers: JoinSet<()>,
    decider: JoinHandle<Decider>,
    consumers: JoinSet<()>,
    supervisor: Arc<Supervisor>,
    sampler: Arc<Sampler>,
    watchers: JoinSet<()>,
    admin: Arc<Admin>,
    admin_thread: Thread<()>,
    durable: Option<Durable>,
    kafka: Option<Kafka>,
    stop_receivers: watch::Sender<bool>,
    stop_decider: oneshot::Sender<()>,
    give_up: watch::Sender<bool>,
    stop_admin: watch::Sender<bool>,
}

/// The state that the stages share.
struct Shared {
    budget: Arc<Budget>,
    metrics: Arc<Metrics>,
    sampler: Arc<Sampler>,
    outbox: Arc<Outbox>,
    queue: Arc<Queue>,
    clock: Arc<WindowClock>,
    supervisor: Arc<Supervisor>,
    durable: Option<Durable>,
}

impl Shared {
    fn new(config: &Config, shards: usize, hasher: Hasher, opened: Option<&Opened>) -> Self {
        let known = opened.into_iter().flat_map(Opened::policies);
        let plan = Arc::new(Plan::compile(&config.policies).with_names(known));
        decider::expire(&plan);
        let budget = Budget::new(config.sampling.memory_limit_bytes);
        let (mib, from) = (budget.limit() >> 20, config.sampling.memory_limit_from.as_str());
        info!(mib, from, "memory limit");
        let metrics = Arc::new(Metrics::new(plan.names()));
        metrics.policies_in_force(&plan);
        // Each shard keeps one segment open: together they may take an eighth of the limit.
        let shards = shards.min(budget.limit() / (8 * SEGMENT_BYTES)).max(1);
        let limits = limits(config);
        let sampler = Sampler::with_hasher(plan, limits, &budget, shards, hasher);
        let sampler = sampler.with_span_metrics(span_metrics(config, &budget));
        let partitions = if config.kafka.is_some() { PARTITIONS_MAX } else { 0 };
        let sampler = sampler.with_partitions(partitions);
        let sampler = Arc::new(match opened {
            Some(opened) => sampler.with_positions(opened.durability.positions()),
            None => sampler,
        });
        let queue_bytes_max = durable::queue_bytes_max(config);
        let queue = Queue::new(queue_bytes_max, &budget);
        let outbox = Outbox::new(&queue, &budget);
        // The clock subtracts stalls of more than five ticks, so that a stall never makes a trace
        // due before it has waited for most of its time.
        let began = opened.map_or(0, |opened| opened.recovered.time);
        let clock = Arc::new(WindowClock::start_at(began, 5 * tick(config)));
        let supervisor: Arc<Supervisor> = Arc::default();
        let durable = opened.map(|opened| Durable::new(config, opened, &metrics, &supervisor));
        Shared { budget, metrics, sampler, outbox, queue, clock, supervisor, durable }
    }

    fn intake(&self, config: &Config, tokens: Option<Arc<Live<Tokens>>>) -> Arc<Intake> {
        Arc::new(Intake {
            sampler: Arc::clone(&self.sampler),
            outbox: Arc::clone(&self.outbox),
            queue: Arc::clone(&self.queue),
            overflow: config.exporter.queue.overflow,
            budget: Arc::clone(&self.budget),
            buffers: receiver::buffers(cores(), &self.budget),
            turns: Turns::new(cores()),
            durability: self.durable.as_ref().map(Durable::logs),
            keeper: self.durable.as_ref().and_then(Durable::keeper),
            empty: EmptyRequests::default(),
            metrics: Arc::clone(&self.metrics),
            clock: Arc::clone(&self.clock),
            supervisor: Arc::clone(&self.supervisor),
            tokens,
            outsized: Default::default(),
            is_draining: AtomicBool::new(false),
        })
    }

    fn terms(&self, limits: listen::Limits, transport: Transport, with: &Credentials) -> Terms {
        let handshake = |server| Handshake::new(server, Some((transport, &self.metrics)));
        let supervisor = Arc::clone(&self.supervisor);
        let supervised = Supervised { supervisor, task: Task::Receiver };
        let tally = Some(Tally::new(&self.metrics, transport));
        Terms { limits, tls: with.server.as_ref().map(handshake), supervised, tally }
    }

    /// Begins to accept requests.
    fn serve<L: Listen>(
        &self,
        config: &Config,
        intake: &Arc<Intake>,
        credentials: &Credentials,
        (grpc, http): (L, L),
        (health, stop): (HealthReporter, watch::Receiver<bool>),
    ) -> JoinSet<()> {
        let mut receivers = JoinSet::new();
        let service = GrpcService::new(
            Arc::clone(intake),
            HealthService::from_health_reporter(health),
            config.grpc.max_recv_msg_bytes,
        );
        let answer = move |request| service.clone().answer(request);
        let connections_max = descriptors::connections_max(2);
        let grpc_limits = grpc_limits(config, connections_max, &self.budget);
        let http_limits = http_limits(config, &grpc_limits, connections_max);
        let terms = self.terms(grpc_limits, Transport::Grpc, credentials);
        let grpc = listen::serve(grpc, terms, answer, stop.clone());
        receivers.spawn(self.supervisor.vital(Task::Receiver).over(grpc));
        let service = HttpService::new(Arc::clone(intake), http_settings(config));
        let answer = move |request| service.clone().answer(request);
        let terms = self.terms(http_limits, Transport::Http, credentials);
        let http = listen::serve(http, terms, answer, stop);
        receivers.spawn(self.supervisor.vital(Task::Receiver).over(http));
        receivers
    }

    fn decider(&self, config: &Config) -> Decider {
        let parts = Parts {
            sampler: Arc::clone(&self.sampler),
            outbox: Arc::clone(&self.outbox),
            queue: Arc::clone(&self.queue),
            metrics: Arc::clone(&self.metrics),
            budget: Arc::clone(&self.budget),
            clock: Arc::clone(&self.clock),
            supervisor: Arc::clone(&self.supervisor),
        };
        let settings = Settings {
            tick: tick(config),
            stamp_tracestate: config.sampling.stamp_tracestate,
            stamp_policy: config.sampling.stamp_policy,
            max_request_bytes: config.exporter.max_request_bytes,
            overflow: config.exporter.queue.overflow,
        };
        Decider::new(parts, settings, self.durable.as_ref().map(|durable| durable.journal(self)))
    }
}

impl Service {
    /// Binds the listeners and starts every stage. The service is ready when this returns.
    ///
    /// # Errors
    /// [`StartError`] if a port cannot be bound or the exporter's settings cannot be used.
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        Self::start_on(config, Ground::bind(config).await?).await
    }

    /// Starts every stage on bound listeners.
    ///
    /// # Errors
    /// [`StartError`] if a listener does not know its address, files cannot be used, or no thread
    /// can be started.
    pub async fn start_on<L: Listen>(
        config: &Config,
        ground: Ground<L>,
    ) -> Result<Self, StartError> {
        let Ground { grpc, http, admin: admin_listener, client, shards, hasher, has_brokers } =
            ground;
        let (grpc_address, http_address) = (grpc.local_addr()?, http.local_addr()?);
        let admin_address = admin_listener.local_addr()?;
        let mut opened = durable::open(config, &admin_listener).await?;
        let mut shared = Shared::new(config, shards, hasher, opened.as_ref());
        let credentials = Credentials::read(config, &shared.metrics)?;
        let is_ready = Arc::new(AtomicBool::new(false));
        let (stop_receivers, receivers_stop) = watch::channel(false);
        let (stop_decider, decider_stops) = oneshot::channel();
        let (give_up, consumers_give_up) = watch::channel(false);
        let (stop_admin, admin_stops) = watch::channel(false);

        let client = match client {
            Some(client) => client,
            None => credentials.client(config)?,
        };
        let consumers = spawn_consumers(config, client.clone(), &shared, consumers_give_up);
        let admin = shared.admin(config, &is_ready, client, &credentials).await;
        let admin_thread = Arc::clone(&admin).spawn(admin_listener, admin_stops)?;
        let intake = shared.intake(config, credentials.tokens.clone());
        let mut decider = shared.decider(config);
        if let Some(opened) = opened.take() {
            durable::recover(opened, &shared, &intake, &mut decider).await?;
        }
        let durable = shared.durable.take();
        let vital = |task| shared.supervisor.vital(task);
        let decider = decide(decider, decider_stops, shared.supervisor.clone());
        let decider = tokio::spawn(vital(Task::Decider).over(decider));
        let health = health::not_serving(OF_RECEIVERS).await;
        let stop = (health.clone(), receivers_stop);
        let receivers = shared.serve(config, &intake, &credentials, (grpc, http), stop);
        let watchers = watching::spawn(credentials.watch, &admin.reload, &shared.supervisor);
        let mut kafka = Kafka::new(config, &intake);
        if let Some(kafka) = kafka.as_mut().filter(|_| has_brokers) {
            kafka.connect(config, &credentials.kafka, &intake)?;
        }
        is_ready.store(true, Relaxed);
        health::serve(&health, OF_RECEIVERS).await;
        health::serve(&admin.health, OF_TELEMETRY).await;
        let Shared { metrics, queue, supervisor, sampler, .. } = shared;
        info!(%grpc_address, %http_address, %admin_address, "ready");
        Ok(Service {
            grpc_address,
            http_address,
            admin_address,
            shutdown_timeout: config.shutdown_timeout,
            intake,
            metrics,
            queue,
            is_ready,
            health,
            receivers,
            decider,
            consumers,
            supervisor,
            sampler,
            watchers,
            admin,
            admin_thread,
            durable,
            kafka,
            stop_receivers,
            stop_decider,
            give_up,
            stop_admin,
        })
    }

    /// Stops in the order of the flow: reports not ready, refuses new requests, finishes those
    /// under way, decides every pending trace, and flushes the queue. Takes at most
    /// `shutdown_timeout`, and returns the number of spans that could not be delivered.
    pub async fn shutdown(mut self) -> u64 {
        let deadline = Instant::now() + self.shutdown_timeout;
        let failed_before = self.metrics.failed_in_all();
        self.is_ready.store(false, Relaxed);
        self.supervisor.stop();
        self.admin.streams_end.send_replace(true);
        health::stop(&self.health, OF_RECEIVERS).await;
        health::stop(&self.admin.health, OF_TELEMETRY).await;
        self.intake.is_draining.store(true, Relaxed);
        self.stop_receivers.send_replace(true);
        // Slow senders get half of the time; the rest is for delivering their spans.
        let half = deadline - self.shutdown_timeout / 2;
        let kafka = self.kafka.take();
        let member = kafka.as_ref().map(|kafka| Arc::clone(&kafka.member));
        let receivers = async {
            if let Some(kafka) = kafka {
                kafka.stop().await;
            }
            while self.receivers.join_next().await.is_some() {}
        };
        if timeout_at(half, receivers).await.is_err() {
            warn!("aborting the connections that did not finish within half of shutdown_timeout");
            self.receivers.abort_all();
            member.iter().for_each(|member| kafka::give_up(member));
        }
        self.intake.turns.finish().await;
        // This fails only if the decider has ended, which the `await` below reports.
        let _ = self.stop_decider.send(());
        // Without a decider, the queue must still be delivered.
        let mut decider = self.decider.await.ok();
        // The last twentieth is for deciding, and for counting the spans that are given up.
        let give_up_at = deadline - self.shutdown_timeout / 20;
        let leaves = self.durable.as_ref().is_some_and(Durable::leaves);
        let finish = async {
            if leaves {
                return durable::leave(decider.as_mut(), &self.queue, &mut self.consumers).await;
            }
            finish(decider.as_mut(), &self.supervisor).await;
            self.queue.drained().await;
        };
        if timeout_at(give_up_at, finish).await.is_err() || leaves {
            self.give_up.send_replace(true);
            if !leaves {
                self::finish(decider.as_mut(), &self.supervisor).await;
            }
        }
        self.queue.close();
        while self.consumers.join_next().await.is_some() {}
        if let Some(durable) = self.durable.take() {
            durable.end(decider.as_mut()).await;
        }
        // Stopped last, so that the last connection to the backend used valid credentials.
        self.watchers.abort_all();
        // A client may have begun to watch during the shutdown.
        health::end_streams(&self.admin.health, OF_TELEMETRY).await;
        self.stop_admin.send_replace(true);
        // The admin thread ends with its connections, but a scraper that does not read may hold one
        // open.
        let admin = self.admin_thread;
        let _ = timeout_at(deadline, spawn_blocking(move || admin.join())).await;
        // After too many panics some spans may still be in the window or the queue.
        let left = self.sampler.buffered().spans + self.queue.held().1;
        let left = if leaves { 0 } else { left };
        let undelivered = self.metrics.failed_in_all() - failed_before + left;
        if undelivered > 0 {
            error!(
                spans = undelivered,
                "stopped before all kept spans were delivered; check the backend, or raise \
                 shutdown_timeout"
            );
        }
        undelivered
    }

    /// Reads the policies again and decides by them from now on, unless they have errors. Logs and
    /// counts the outcome.
    pub async fn reload(&self) {
        let reload = Arc::clone(&self.admin.reload);
        // Reading files and walking the window would block a worker. If this future is dropped, the
        // reload continues on its thread.
        if spawn_blocking(move || reload.run()).await.is_err() {
            self.supervisor.panicked(Task::Reload);
        }
    }

    /// Waits until the service cannot go on; [`Self::shutdown`] then saves as much as it can.
    pub async fn failure(&self) {
        self.supervisor.failure().await;
    }

    /// The partitions of `[receiver.kafka]`.
    pub fn kafka(&self) -> Option<&Arc<Mutex<Member>>> {
        self.kafka.as_ref().map(|kafka| &kafka.member)
    }

    /// Contains and counts the panics of its tasks.
    pub fn supervisor(&self) -> &Arc<Supervisor> {
        &self.supervisor
    }

    /// The answers for operators, which are still available after the shutdown.
    pub fn admin(&self) -> &Arc<Admin> {
        &self.admin
    }
}
