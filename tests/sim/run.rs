//! One run from start to end: senders, a service and a backend.

use std::{sync::Arc, time::Duration};

use foldhash::SharedSeed;
use tailwater::{
    budget::Holder,
    exporter::Client,
    service::{Ground, Service},
    window::{Hasher, SEGMENT_BYTES},
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    backend::Backend,
    check,
    harness::{self, Metrics},
    journal::Journal,
    network::{self, Connector, Link},
    senders::{self, Batch, Sender},
    setup::Setup,
    storm::Storm,
};

/// The time between two checks of the permanent invariants.
const STEP: Duration = Duration::from_millis(50);
/// How long memory may be above the soft limit while there are traces to decide and the queue has
/// space.
const RELIEVED_WITHIN: Duration = Duration::from_secs(10);
/// The time to drain after the last fault: the longest interval between attempts, an attempt, and a
/// decision.
const DRAINED_WITHIN: Duration = Duration::from_secs(60);

/// A service on a simulated network.
#[derive(Debug)]
pub struct World {
    pub journal: Arc<Journal>,
    pub service: Service,
    pub backend: Arc<Backend>,
    /// The links of the senders, and last the link to the backend.
    pub links: Vec<Arc<Link>>,
    crashes: Vec<watch::Sender<u64>>,
    senders: JoinSet<()>,
    // The outer sides of the ports, which the links need.
    _http: network::PortSender,
}

impl World {
    /// Starts a service and its backend, without senders.
    pub async fn start(setup: &Setup, journal: &Arc<Journal>, rng: &mut fastrand::Rng) -> Self {
        let links: Vec<_> = (0..=setup.shape.senders).map(|_| Link::new(rng.u64(..))).collect();
        let to_backend = links.last().expect("at least one");
        let backend = Backend::start(journal, to_backend, rng.u64(..));
        let (to_grpc, grpc) = network::port();
        let (to_http, http) = network::port();
        links[..setup.shape.senders].iter().for_each(|link| link.lead_to(&to_grpc));
        let connector = Connector(Arc::clone(to_backend));
        let client = Client::with_connector(&setup.config.exporter, connector).expect("a client");
        let ground = Ground {
            grpc,
            http,
            admin: std::net::TcpListener::bind("127.0.0.1:0").expect("a port"),
            client: Some(client),
            shards: setup.shards,
            hasher: Hasher::with_seed(rng.u64(..), SharedSeed::global_fixed()),
            has_brokers: false,
        };
        ground.admin.set_nonblocking(true).expect("a socket");
        let service = Service::start_on(&setup.config, ground).await.expect("starts");
        World {
            journal: Arc::clone(journal),
            service,
            backend,
            links,
            crashes: Vec::new(),
            senders: JoinSet::new(),
            _http: to_http,
        }
    }

    /// Starts one sender for each list of batches.
    pub fn send(&mut self, traffic: Vec<Vec<Batch>>, rng: &mut fastrand::Rng) {
        for (batches, link) in traffic.into_iter().zip(&self.links) {
            let (crash, crashes) = watch::channel(0);
            self.crashes.push(crash);
            let (journal, link) = (Arc::clone(&self.journal), Arc::clone(link));
            let sender = Sender { journal, link, crashes, rng: rng.fork() };
            self.senders.spawn(sender.run(batches));
        }
    }

    /// Checks the permanent invariants until this is dropped.
    pub async fn watch(&self, step: Duration, slack: usize) {
        let admin = self.service.admin();
        let mut short = Duration::ZERO;
        for steps in 0.. {
            let (used, limit) = (admin.budget.used(), admin.budget.limit());
            self.journal.check(used <= limit + slack, || format!("{used} bytes held of {limit}"));
            let could_decide = admin.queue.pressure() < 0.5 && admin.sampler.buffered().traces > 0;
            let is_short = admin.sampler.memory_used() > admin.budget.soft_limit();
            short = if is_short && could_decide { short + step } else { Duration::ZERO };
            self.journal.check(short <= RELIEVED_WITHIN, || format!("no relief of {used} bytes"));
            if steps % 64 == 0 {
                Metrics::parse(&admin.scrape()).assert_ledger();
            }
            sleep(step).await;
        }
    }

    /// Ends all faults. Cut, lost and refused data stays so.
    fn calm(&self) {
        self.journal.note(format_args!("calm"));
        for link in &self.links {
            link.change(|weather| {
                weather.clogged = [false; 2];
                weather.latency_millis = 2;
            });
        }
        self.backend.set_badness(0);
        self.backend.restart();
    }

    /// Waits until all senders are done and the window and the queue are empty.
    pub async fn drain(&mut self) {
        while let Some(ended) = self.senders.join_next().await {
            ended.expect("no panic");
        }
        let is_drained = async {
            let admin = self.service.admin();
            while admin.sampler.buffered().spans > 0 || admin.queue.held() != (0, 0) {
                sleep(STEP).await;
            }
        };
        let is_drained = timeout(DRAINED_WITHIN, is_drained).await.is_ok();
        let admin = self.service.admin();
        self.journal.check(is_drained, || {
            format!("not drained: {:?} {:?}", admin.sampler.buffered(), admin.queue.held())
        });
        for holder in [Holder::Receiving, Holder::Export] {
            let held = admin.budget.held(holder);
            self.journal.check(held == 0, || format!("{holder:?} holds {held} bytes"));
        }
    }

    /// Shuts down, checks the outcome of the run, and returns the last metrics.
    ///
    /// # Panics
    /// If a check has failed.
    pub async fn stop(mut self, setup: &Setup) -> Metrics {
        let admin = Arc::clone(self.service.admin());
        let began = Instant::now();
        let undelivered = self.service.shutdown().await;
        let took = began.elapsed();
        let within = setup.config.shutdown_timeout + Duration::from_secs(1);
        self.journal.check(took <= within, || format!("shutting down took {took:?}"));
        self.senders.shutdown().await;
        let metrics = Metrics::parse(&admin.scrape());
        metrics.assert_ledger();
        harness::assert_span_metrics(&admin.sampler, &metrics);
        check::at_the_end(&self.journal, &metrics, &admin.sampler, setup.is_forgetful);
        let budget = Arc::clone(&admin.budget);
        drop(admin);
        // Tasks that were aborted are dropped when they are next polled.
        sleep(Duration::from_secs(1)).await;
        // This thread was the worker; it keeps its buffers for walking the next request, and with
        // them an owner of the budget even while they are empty.
        let kept = budget.held(Holder::Walking);
        let (used, owners) = (budget.used(), Arc::strong_count(&budget));
        let is_all =
            kept <= budget.limit() / 32 && (1 + usize::from(kept > 0)..=2).contains(&owners);
        self.journal.check(used == kept && is_all, || {
            format!("{used} bytes are still held, by {owners}, {kept} of them for walking")
        });
        let is_lossless = setup.shutdown_at.is_some() || undelivered == 0;
        self.journal.check(is_lossless, || format!("{undelivered} spans given up at the end"));
        let violations = self.journal.violations();
        assert!(violations.is_empty(), "{violations:#?}");
        metrics
    }
}

/// The bytes that a message may add beyond the limit: itself, and a segment in each shard. Kept
/// spans are held twice while the decider encodes its decisions, but no more of them than the queue
/// takes.
pub fn slack(setup: &Setup) -> usize {
    let message = 64 * setup.shape.filler_max + (64 << 10);
    message + setup.shards * SEGMENT_BYTES + setup.config.exporter.queue.queue_bytes_max
}

/// Runs a seed and returns the hash of all events.
///
/// # Panics
/// If a check has failed.
pub async fn run(seed: u64, is_printed: bool) -> u64 {
    let mut rng = fastrand::Rng::with_seed(seed);
    // Seeds Tailwater's own random numbers.
    fastrand::seed(rng.u64(..));
    let setup = Setup::choose(&mut rng);
    let journal = Arc::new(Journal::new(is_printed));
    journal.note(format_args!("{:?} {:?}", setup.shape, setup.shutdown_at));
    let mut world = World::start(&setup, &journal, &mut rng).await;
    let traffic = senders::traffic(&mut rng, setup.shape);
    world.send(traffic, &mut rng);
    journal.decide_by(setup.set);
    world.backend.set_badness(setup.badness);
    let storms = [1, 2, 3].map(|number| Storm {
        is_calm: number > setup.storms,
        journal: &journal,
        service: &world.service,
        backend: &world.backend,
        links: &world.links,
        crashes: &world.crashes,
        policies: setup.policies(),
        rng: rng.fork(),
    });
    let [first, second, third] = storms.map(|storm| storm.blow());
    let until = setup.shutdown_at.unwrap_or(setup.shape.horizon);
    let watch = world.watch(STEP, slack(&setup));
    let _ = timeout(until, async { tokio::join!(watch, first, second, third) }).await;
    if setup.shutdown_at.is_none() {
        world.calm();
        world.drain().await;
    }
    world.stop(&setup).await;
    journal.hash()
}
