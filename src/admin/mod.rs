//! The telemetry port: /metrics, /metrics/spans, health, readiness, decisions about traces, and
//! reload of the policies.
//!
//! It has its own listener and its own thread, so that it answers while the data path is saturated.
//! A reload runs on one more thread. An outage of the backend changes neither health nor readiness.

mod access;
mod control;
mod describe;
mod history;
mod page;
mod record;
mod rpc;
mod snapshot;
mod spans;
mod starting;
mod trial;
mod watching;

use std::{
    sync::{Arc, atomic::AtomicBool, atomic::Ordering::Relaxed},
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{ACCEPT, ALLOW, CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body::Body as _;
use http_body_util::{Either, Full};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{MissedTickBehavior, interval, sleep},
};
use tonic::body::Body;
use tonic_health::server::HealthReporter;

use crate::{
    budget::Budget,
    clock::{self, Clock, WindowClock},
    control::to_json,
    credentials::{Live, Tokens},
    decisions::{Decision, Logged},
    durability::Durability,
    exporter::{Client, Queue},
    logging,
    metrics::{Metrics, Readings},
    net::{
        handshake::Handshake,
        listen::{self, Terms},
        windows::Windows,
    },
    reload::{Refused, Reload},
    sampler::{Lookup, Sampler},
    supervise::{Supervised, Supervisor, Task},
    trace::{Randomness, TraceId},
};

pub(crate) use self::{
    control::CONTROL_SERVICE, history::History, rpc::Calls, starting::Starting, watching::Watchers,
};
use self::{
    control::{TRACE_ID_FORMS, UNKNOWN_TRACE},
    page::{Asked, Page},
    rpc::held,
    spans::SpanScrape,
};

/// The body of an HTTP answer.
type Answered = Either<Full<Bytes>, SpanScrape>;

const TEXT: &str = "text/plain; charset=utf-8";
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

/// Enough for scrapers and people, but too little for a scan to use much memory.
fn limits() -> listen::Limits {
    listen::Limits {
        max_connections: 64,
        max_age: None,
        max_concurrent_streams: 100,
        windows: Windows::new(1 << 20, None),
        http2_only: false,
        keep_alive: Duration::from_secs(12),
    }
}

/// How long the thread waits for its clients once the service has stopped.
const READERS_TIMEOUT: Duration = Duration::from_secs(5);
/// The most long answers that may wait to be read: with many policies, each has megabytes.
const UNREAD_MAX: usize = 16;

/// A long answer (/metrics, the page, the status). It holds a permit until it is read.
struct Unread {
    text: String,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Unread {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

/// The permits for long answers.
#[derive(Debug)]
pub struct LongAnswers(Arc<Semaphore>);

impl Default for LongAnswers {
    fn default() -> Self {
        LongAnswers(Arc::new(Semaphore::new(UNREAD_MAX)))
    }
}

/// The parts of the service that the answers are read from.
#[derive(Debug)]
pub struct Admin {
    /// All counters.
    pub metrics: Arc<Metrics>,
    /// Buffered traces and remembered decisions.
    pub sampler: Arc<Sampler>,
    /// The spans that wait for the backend.
    pub queue: Arc<Queue>,
    /// Memory in use.
    pub budget: Arc<Budget>,
    /// Whether requests are accepted.
    pub is_ready: Arc<AtomicBool>,
    /// Panics.
    pub supervisor: Arc<Supervisor>,
    /// Times in which the process did not run.
    pub clock: Arc<WindowClock>,
    /// The logs of `[durability]`.
    pub durability: Option<Arc<Durability>>,
    /// Reloads the policies.
    pub reload: Arc<Reload>,
    /// `telemetry.enable_lifecycle`.
    pub enable_lifecycle: bool,
    /// Limits the memory that clients which do not read can use.
    pub long_answers: LongAnswers,
    /// When the service started, in Unix milliseconds.
    pub started_at: u64,
    /// `exporter.otlp.endpoint`.
    pub backend_endpoint: String,
    /// The state of the backend.
    pub backend: Client,
    /// The rates of the last ten minutes.
    pub history: History,
    /// The clock of the history's readings.
    pub uptime: Clock,
    /// `telemetry.enable_recording`.
    pub enable_recording: bool,
    /// Turns true when the service stops, to end trials and recordings.
    pub streams_end: watch::Sender<bool>,
    /// The clients that watch decisions.
    pub watchers: Watchers,
    /// Limits the answers and streams in progress.
    pub calls: Calls,
    /// The accepted tokens; `None` if no token is needed.
    pub tokens: Option<Arc<Live<Tokens>>>,
    /// The TLS handshake that connections must complete, if any.
    pub tls: Option<Arc<Handshake>>,
    /// Answers health checks over gRPC.
    pub health: HealthReporter,
}

impl Admin {
    /// Serves on a thread of its own until `stop` turns true.
    ///
    /// # Errors
    /// If the operating system cannot provide a thread or a runtime.
    pub(crate) fn spawn(
        self: Arc<Self>,
        listener: std::net::TcpListener,
        stop: watch::Receiver<bool>,
    ) -> std::io::Result<JoinHandle<()>> {
        // Only one reload runs at a time; others wait in a queue, which the limit of streams
        // bounds.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()?;
        let listener = {
            let _entered = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let supervised = Supervised { supervisor: Arc::clone(&self.supervisor), task: Task::Admin };
        let vital = self.supervisor.vital(Task::Admin);
        let services = rpc::services(&self);
        let answer = move |request| Arc::clone(&services).answer(request);
        let admin = self;
        std::thread::Builder::new().name("admin".into()).spawn(move || {
            let terms = Terms { limits: limits(), tls: admin.tls.clone(), supervised, tally: None };
            let told = stop.clone();
            runtime.block_on(async {
                tokio::select! {
                    // The order does not matter: only the first two end, and both only after the
                    // service has stopped.
                    biased;
                    () = vital.over(listen::serve(listener, terms, answer, stop)) => {}
                    () = stopped(told) => {}
                    () = admin.note_history() => {}
                    () = admin.pass_decisions() => {}
                }
            });
        })
    }

    /// Records the sums of the ledger once a second. Runs as long as the thread.
    async fn note_history(&self) {
        let note = async || {
            let mut ticks = interval(history::PERIOD);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            loop {
                ticks.tick().await;
                let (at, totals) = (self.uptime.elapsed(), self.metrics.totals());
                self.history.note(at, clock::unix_millis(), totals);
            }
        };
        while self.supervisor.run(Task::Admin, note()).await.is_err() {}
    }

    /// Passes decisions to watchers. Runs as long as the thread.
    async fn pass_decisions(&self) {
        let pass = async || self.pass_decisions_on().await;
        while self.supervisor.run(Task::Admin, pass()).await.is_err() {}
    }

    /// The answer of /metrics, also when the listener is gone.
    pub fn scrape(&self) -> String {
        self.metrics.render(&self.readings())
    }

    async fn answer_http<B>(self: Arc<Self>, request: Request<B>) -> Response<Body> {
        if matches!(request.uri().path(), "/-/healthy" | "/-/ready") {
            return self.answer(request).await.map(Body::new);
        }
        match self.calls.answer() {
            Some(permit) => held(self.answer(request).await, permit),
            None => {
                let message = "too many answers are waiting to be read; try again later\n";
                response(StatusCode::SERVICE_UNAVAILABLE, TEXT, message).map(Body::new)
            }
        }
    }

    async fn answer<B>(&self, request: Request<B>) -> Response<Answered> {
        match (request.uri().path(), request.method()) {
            ("/-/reload", &Method::POST) => {
                let accepted = request.headers().get_all(ACCEPT).iter();
                let mut accepted = accepted.filter_map(|accept| accept.to_str().ok());
                let wants_json = accepted.any(|accept| accept.contains(JSON));
                self.reload(wants_json).await
            }
            ("/-/reload", _) => not_allowed("POST"),
            ("/", &Method::GET) => self.page(request.uri().query()),
            ("/", &Method::HEAD) => without_body(self.page(request.uri().query())),
            (path, &Method::GET) => self.get(path, request.headers()),
            (path, &Method::HEAD) => without_body(self.get(path, request.headers())),
            _ => not_allowed("GET, HEAD"),
        }
    }

    fn get(&self, path: &str, headers: &HeaderMap) -> Response<Answered> {
        match path {
            "/metrics" => self.long(EXPOSITION, || self.scrape()),
            spans::PATH => self.span_metrics(headers),
            "/-/healthy" => response(StatusCode::OK, TEXT, "healthy\n"),
            "/-/ready" => self.ready(),
            "/-/status" => self.long(JSON, || to_json("GetStatusResponse", &self.status())),
            path => match path.strip_prefix("/-/decisions/") {
                Some(id) => self.decision(id),
                None => response(StatusCode::NOT_FOUND, TEXT, "not found\n"),
            },
        }
    }

    fn page(&self, query: Option<&str>) -> Response<Answered> {
        let asked = query.and_then(|query| self.asked(query));
        let loaded = self.reload.loaded();
        let mut response = self.long(page::HTML, || {
            let page = Page {
                status: &self.status(),
                seconds: &self.history.seconds(),
                files: loaded.shown.files(),
                waiting: &loaded.waiting,
                asked: asked.as_ref(),
                now: clock::unix_millis(),
            };
            page.render()
        });
        page::protect(response.headers_mut());
        response
    }

    /// The trace that `?trace_id=` asks for.
    fn asked(&self, query: &str) -> Option<Asked> {
        let mut pairs = form_urlencoded::parse(query.as_bytes());
        let text = pairs.find(|(key, _)| key == "trace_id")?.1.into_owned();
        let found = match TraceId::from_pasted(&text) {
            None => Err(TRACE_ID_FORMS),
            Some(trace_id) => self.explain(trace_id).ok_or(UNKNOWN_TRACE),
        };
        Some(Asked { text, found })
    }

    /// A long answer, or 503 if too many wait to be read.
    fn long(
        &self,
        content_type: &'static str,
        text: impl FnOnce() -> String,
    ) -> Response<Answered> {
        let Some(permit) = self.permit() else { return too_many_unread() };
        let unread = Unread { text: text(), _permit: permit };
        response(StatusCode::OK, content_type, Bytes::from_owner(unread))
    }

    /// A permit for one more long answer.
    fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.long_answers.0).try_acquire_owned().ok()
    }

    fn ready(&self) -> Response<Answered> {
        let why_not = match self.supervisor.failed() {
            Some(failure) => format!("not ready: {failure}\n"),
            None if self.is_ready() => return response(StatusCode::OK, TEXT, "ready\n"),
            None => "not ready\n".to_owned(),
        };
        response(StatusCode::SERVICE_UNAVAILABLE, TEXT, why_not)
    }

    fn is_ready(&self) -> bool {
        self.supervisor.failed().is_none() && self.is_ready.load(Relaxed)
    }

    async fn reload(&self, wants_json: bool) -> Response<Answered> {
        if let Err(refused) = self.permit_lifecycle() {
            // Answered like Prometheus, so that the client can tell that the path was right.
            let message = format!("{}\n", refused.message());
            return response(StatusCode::FORBIDDEN, TEXT, message);
        }
        match self.run_reload().await {
            Ok(reloaded) => {
                let message = format!("reloaded, policies: {}\n", reloaded.policies);
                response(StatusCode::OK, TEXT, message)
            }
            Err(Refused::Invalid(diagnostics)) if wants_json => {
                response(StatusCode::BAD_REQUEST, JSON, format!("{}\n", json!(diagnostics)))
            }
            Err(Refused::Invalid(diagnostics)) => {
                response(StatusCode::BAD_REQUEST, TEXT, diagnostics.to_string())
            }
            Err(refused @ Refused::TooManyNames(_)) => {
                response(StatusCode::BAD_REQUEST, TEXT, format!("{refused}\n"))
            }
            Err(refused @ Refused::Panicked) => {
                response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{refused}\n"))
            }
        }
    }

    /// Reads the values that are not counters.
    fn readings(&self) -> Readings {
        // Read in the order of the flow: a span that moves on meanwhile is counted twice, never
        // missed.
        let buffered = self.sampler.buffered();
        let (queue_bytes, queue_spans) = self.queue.held();
        let plan = self.sampler.plan();
        let named = |(policy, reading)| (plan.name(policy).to_owned(), reading);
        Readings {
            started_at: self.started_at,
            is_ready: self.is_ready(),
            buffered,
            memory: [self.budget.used(), self.budget.limit(), self.budget.overhead()],
            queue_spans,
            queue_bytes: (queue_bytes, self.queue.capacity_bytes()),
            panics: self.supervisor.panics(),
            stalled: self.clock.stalled(),
            log_lines_lost: logging::lines_lost(),
            kinds: plan.kinds().into_iter().map(named).collect(),
            span_metrics: self.sampler.span_metrics().map(|it| it.totals()).unwrap_or_default(),
            durability: self
                .durability
                .as_ref()
                .map_or(Default::default(), |logs| (logs.bytes(), logs.errors(), logs.damaged())),
        }
    }

    fn decision(&self, id: &str) -> Response<Answered> {
        let Some(trace_id) = TraceId::from_any_form(id) else {
            let body = json!({ "error": TRACE_ID_FORMS });
            return response(StatusCode::BAD_REQUEST, JSON, format!("{body}\n"));
        };
        let (status, body) = match self.sampler.look_up(self.clock.now(), trace_id) {
            Lookup::Pending(_) => {
                let id = trace_id.to_string();
                (StatusCode::OK, json!({ "trace_id": id, "decision": "pending" }))
            }
            Lookup::Decided(decision, logged) => {
                (StatusCode::OK, self.describe(trace_id, &decision, logged.as_deref()))
            }
            Lookup::Unknown => (StatusCode::NOT_FOUND, json!({ "error": UNKNOWN_TRACE })),
        };
        response(status, JSON, format!("{body}\n"))
    }

    fn describe(&self, trace_id: TraceId, decision: &Decision, logged: Option<&Logged>) -> Value {
        // Read after the decision, so that the plan has its policy.
        let plan = self.sampler.plan();
        let randomness = decision.explicit_randomness.unwrap_or_else(|| trace_id.randomness());
        let verdict = decision.verdict;
        let mut body = json!({
            "trace_id": trace_id.to_string(),
            "decision": if verdict.kept { "kept" } else { "dropped" },
            "policy": plan.name(verdict.policy),
            "trigger": decision.trigger.as_str(),
            // Without a proposal, or with a veto, there is no threshold.
            "threshold": verdict.threshold.matches().then(|| verdict.threshold.to_string()),
            "randomness": Randomness::to_string(&randomness),
        });
        if let Some(Logged { record, matched, shadow_matched, decided_at }) = logged {
            let names = |policies: &[_]| -> Vec<_> {
                policies.iter().map(|&policy| plan.name(policy).to_owned()).collect()
            };
            body["matched_policies"] = json!(names(matched));
            // Missing if no policy is a shadow policy.
            if plan.shadows().len() > 0 || !shadow_matched.is_empty() {
                body["shadow_matched"] = json!(names(shadow_matched));
            }
            body["spans"] = json!(record.spans);
            body["bytes"] = json!(record.bytes);
            body["duration_ms"] = json!(record.duration_nanos as f64 / 1e6);
            body["decided_at_unix_ms"] = json!(decided_at);
        }
        body
    }
}

/// Waits until the service has stopped, and then for clients that are still reading.
async fn stopped(mut stop: watch::Receiver<bool>) {
    // An error means that the service is gone.
    let _ = stop.wait_for(|&stop| stop).await;
    sleep(READERS_TIMEOUT).await;
}

/// The answer to HEAD: the headers of the answer to GET, including the length of its body.
fn without_body(mut response: Response<Answered>) -> Response<Answered> {
    if let Some(length) = response.body().size_hint().exact() {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    response.map(|_| Either::Left(Full::default()))
}

fn too_many_unread() -> Response<Answered> {
    let message = format!("{UNREAD_MAX} answers are waiting to be read; try again later\n");
    response(StatusCode::SERVICE_UNAVAILABLE, TEXT, message)
}

fn not_allowed(method: &'static str) -> Response<Answered> {
    let message = format!("this path only answers {method}\n");
    let mut response = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, message);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(method));
    response
}

fn response(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Answered> {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
