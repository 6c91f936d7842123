//! `tailwater demo`: the whole pipeline in one process, without set-up.
//!
//! ```text
//! Traffic (six services) --OTLP/gRPC--> Service (receiver, sampler, exporter) --OTLP/gRPC--> Sink
//!     \--sent traces----> Verifier <--received traces---------------------------------------/
//! ```
//!
//! The service is the real one, with its embedded policies and a budget, on real sockets; the
//! figures are read from its /metrics. `run` waits for frames and signals on the main task; the
//! traffic has tasks of its own. At the end the traffic stops first, then the service as on any
//! SIGTERM, then the sink, so that each has received everything from the one before when it stops.
//!
//! Memory stays bounded however long the demo runs: the verifier forgets a trace after a minute,
//! and the service has its own limits.

mod figures;
mod gauge;
mod routes;
mod screen;
mod shop;
mod spans;
mod table;
mod traffic;
mod verify;

use std::{fmt::Write as _, io, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::JoinHandle,
};
use tracing::{error, warn};

use crate::{
    config::{self, Config},
    control::figures::count,
    exporter::ClientError,
    net::listen::BindError,
    policy::{BudgetSpec, KindsSpec, LimitSpec, PolicySpec, Rate, RuleKind, RuleSpec},
    service::{Service, StartError},
    testing::Sink,
};
use figures::Figures;
use gauge::Gauge;
use screen::Screen;
use table::Frame;
use traffic::{SPANS_PER_SECOND, Traffic};
use verify::{Report, Verifier};

const ANY_PORT: &str = "127.0.0.1:0";
/// Shorter than the defaults, so that the first decisions appear soon.
const DECISION_WAIT: Duration = Duration::from_secs(10);
const DECISION_WAIT_AFTER_ROOT: Duration = Duration::from_secs(2);

/// The spans per second that the demo's budget keeps, out of about 2,000.
pub(super) const BUDGET_SPANS_PER_SECOND: f64 = 100.0;

/// Options of `tailwater demo`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// End after N seconds with a summary; without it, run until Ctrl-C
    #[arg(long, value_name = "N")]
    pub seconds: Option<u64>,
}

/// Why the demo cannot start.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error("cannot listen for signals: {0}")]
    Signals(#[from] io::Error),
    #[error("cannot listen: {0}")]
    Sink(#[from] BindError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Runs the demo until its time is over or a signal comes, and prints a summary. Returns whether
/// all went well: the ledger balances, every kept trace arrived whole, and no span was lost.
pub async fn run(options: Options) -> bool {
    match Demo::start().await {
        Ok(demo) => demo.play(options.seconds.map(Duration::from_secs)).await,
        Err(problem) => {
            error!("{problem}");
            false
        }
    }
}

/// The policy that the demo adds to the embedded ones: a budget that gives each kind of request its
/// fair share of a rate.
fn budget() -> PolicySpec {
    let per_second = BUDGET_SPANS_PER_SECOND;
    let rate = Rate { per_second, burst: BudgetSpec::BURST_SECONDS * per_second };
    let budget = BudgetSpec {
        rate: LimitSpec { spans: Some(rate), bytes: None },
        kinds: KindsSpec { keys: vec!["span.name".to_owned()], kinds_max: 100 },
        power: 0.0,
    };
    let kind = RuleKind::Budget(Vec::new(), budget);
    PolicySpec::new("budget", RuleSpec { kind, sampling_percentage: 100.0 })
}

/// All parts of the demo, running.
struct Demo {
    config: Config,
    service: Service,
    sink: Sink,
    verifier: Arc<Verifier>,
    stop_traffic: watch::Sender<bool>,
    traffic: JoinHandle<()>,
    signals: Signals,
}

impl Demo {
    async fn start() -> Result<Self, DemoError> {
        let signals = Signals::listen()?;
        let verifier = Arc::new(Verifier::default());
        let arrived = Arc::clone(&verifier);
        let sink = Sink::start(ANY_PORT, move |request| {
            arrived.receive(&request);
            Ok(Bytes::new())
        })
        .await?;
        let mut config = config::embedded();
        config.sampling.decision_wait = DECISION_WAIT;
        config.sampling.decision_wait_after_root_received = Some(DECISION_WAIT_AFTER_ROOT);
        config.exporter.endpoint = sink.url();
        config.policies.push(budget());
        let service = start_service(&mut config).await?;
        let mut to_service = config.exporter.clone();
        to_service.endpoint = format!("http://{}", service.grpc_address);
        let traffic = Traffic::new(&to_service, &verifier)?;
        let (stop_traffic, stop) = watch::channel(false);
        let traffic = tokio::spawn(traffic.run(stop));
        Ok(Demo { config, service, sink, verifier, stop_traffic, traffic, signals })
    }

    async fn play(mut self, lasts: Option<Duration>) -> bool {
        let mut screen = Screen::open();
        // Without a reader the demo ends, but in the usual order.
        if screen.print(&self.header()).is_ok() {
            self.watch(&mut screen, lasts).await;
        }
        self.end(&mut screen).await
    }

    /// Shows frames until the demo should end.
    async fn watch(&mut self, screen: &mut Screen, lasts: Option<Duration>) {
        let admin = self.service.admin_address.to_string();
        let mut gauge = Gauge::new(&self.config, &self.service);
        let mut over = std::pin::pin!(tokio::time::sleep(lasts.unwrap_or(Duration::MAX)));
        let mut frames = Screen::frames();
        loop {
            tokio::select! {
                // Ending comes before another frame, and a signal before the time limit.
                biased;
                () = self.signals.next() => return,
                () = &mut over => return,
                _ = frames.tick() => {}
            }
            let report = self.verifier.so_far();
            gauge.read(report.example);
            let frame = Frame {
                elapsed: gauge.elapsed,
                figures: &gauge.figures,
                spans_per_second: gauge.spans_per_second(),
                report: &report,
                admin: &admin,
                example: gauge.example,
            };
            if screen.show(&frame).is_err() {
                return;
            }
        }
    }

    /// Stops everything in the order of the flow and prints the outcome.
    async fn end(self, screen: &mut Screen) -> bool {
        let Demo { config, service, sink, verifier, stop_traffic, traffic, mut signals } = self;
        let mut gauge = Gauge::new(&config, &service);
        let stop = async {
            stop_traffic.send_replace(true);
            // However the traffic ended, the verifier knows the traces that were made, and the sink
            // those that arrived.
            let _ = traffic.await;
            let undelivered = service.shutdown().await;
            sink.stop().await;
            undelivered
        };
        let undelivered = tokio::select! {
            // A second signal comes first: its sender does not want to wait any longer.
            biased;
            () = signals.next() => {
                warn!("stopped at once by a second signal");
                return false;
            }
            undelivered = stop => undelivered,
        };
        let report = verifier.finish();
        gauge.read(None);
        let figures = &gauge.figures;
        let paint = screen.paint();
        let by_policy = table::by_policy(figures, paint);
        let summary = table::summary(figures, &report, paint);
        // If standard output is closed, the exit code still gives the outcome.
        let _ = screen.close(&format!("{by_policy}\n{summary}"));
        undelivered == 0 && is_fine(figures, &report)
    }

    /// The addresses, and commands to try.
    fn header(&self) -> String {
        let Demo { config, service, sink, .. } = self;
        let mut text = String::from(
            "Tailwater demo: a shop of six services, sampled in one process. Ctrl-C ends it.\n\n",
        );
        let names: Vec<_> = config.policies.iter().map(|policy| &*policy.name).collect();
        let wait = humantime::format_duration(config.sampling.decision_wait);
        let after_root = humantime::format_duration(DECISION_WAIT_AFTER_ROOT);
        let rate = count(SPANS_PER_SECOND as u64);
        let [grpc, http, admin] =
            [service.grpc_address, service.http_address, service.admin_address];
        for (what, value) in [
            ("traffic", format!("{rate} spans/s to OTLP/gRPC at {grpc}")),
            ("your own", format!("spans go to the same port, or OTLP/HTTP at http://{http}")),
            ("policies", format!("{} (policies/default.toml and a budget)", names.join(", "))),
            ("decided", format!("{after_root} after the root span arrived, {wait} without one")),
            ("backend", format!("an embedded OTLP sink at {}", sink.address)),
            ("page", format!("http://{admin}/ in a browser")),
            ("metrics", format!("curl {admin}/metrics")),
            ("look up", format!("curl {admin}/-/decisions/<trace id>")),
        ] {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {what:<11}{value}");
        }
        text + "\n"
    }
}

/// Whether every span is accounted for, and every kept trace was delivered whole.
fn is_fine(figures: &Figures, report: &Report) -> bool {
    figures.accounts_for_accepted()
        && figures.accounts_for_kept()
        && figures.failed_spans == 0
        && figures.queued_spans == 0
        && report.is_fine()
        && report.excused == 0
}

/// Starts the service on the usual ports, or on free ones where those are taken, so that the demo
/// also starts beside a Collector.
async fn start_service(config: &mut Config) -> Result<Service, StartError> {
    loop {
        match Service::start(config).await {
            Err(StartError::Bind(taken)) if move_elsewhere(config, &taken) => {}
            started => return started,
        }
    }
}

/// Lets the listener that could not be bound take any port. Does so only once per listener.
fn move_elsewhere(config: &mut Config, taken: &BindError) -> bool {
    let endpoint = match taken.key {
        "receiver.grpc.endpoint" => &mut config.grpc.endpoint,
        "receiver.http.endpoint" => &mut config.http.endpoint,
        "telemetry.endpoint" => &mut config.telemetry.endpoint,
        _ => return false,
    };
    let is_new = endpoint != ANY_PORT;
    ANY_PORT.clone_into(endpoint);
    is_new
}

/// The signals that end the demo.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Signals { terminate, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            // The order does not matter: both signals do the same.
            biased;
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_is_taken_is_replaced() {
        let taken = std::net::TcpListener::bind(ANY_PORT).expect("a free port");
        let endpoint = taken.local_addr().expect("bound").to_string();
        let mut config = config::embedded();
        config.grpc.endpoint.clone_from(&endpoint);
        config.http.endpoint.clone_from(&endpoint);
        config.telemetry.endpoint.clone_from(&endpoint);
        let service = start_service(&mut config).await.expect("other ports are free");
        for address in [service.grpc_address, service.http_address, service.admin_address] {
            assert_ne!(address.to_string(), endpoint);
        }
        assert_eq!(service.shutdown().await, 0);
    }

    #[test]
    fn other_failures_to_bind_are_final() {
        let error = || io::Error::from(io::ErrorKind::AddrInUse);
        let taken = |key| BindError { key, endpoint: String::new(), error: error() };
        let mut config = config::embedded();
        assert!(!move_elsewhere(&mut config, &taken("sink")));
        assert!(move_elsewhere(&mut config, &taken("telemetry.endpoint")));
        assert!(!move_elsewhere(&mut config, &taken("telemetry.endpoint")));
    }
}
