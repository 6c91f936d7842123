//! A running service with a sink behind it, a client in front of it, and its ledger.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    trace::v1::{Span, Status as SpanStatus},
};
use prost::Message as _;
pub use tailwater::testing::{spans_of, text as string};
use tailwater::{
    config::{self, Config},
    sampler::Sampler,
    service::Service,
    span_metrics::{Exposition, Format, Settings, Style},
    testing::{self, Sink, text_of},
};
use tonic::{Status, client::Grpc, codec::CompressionEncoding, transport::Channel};

/// The sink's answer to a request.
pub type Answer = Box<dyn Fn(&ExportTraceServiceRequest) -> Result<Bytes, Status> + Send + Sync>;

/// The requests that a sink has accepted.
pub type Received = Arc<Mutex<Vec<ExportTraceServiceRequest>>>;

/// A service, the sink it exports to, and a client.
pub struct Running {
    pub service: Service,
    pub sink: Sink,
    pub received: Received,
    pub client: Grpc<Channel>,
}

/// A configuration with short waits, port 0 everywhere, and these policies (TOML).
pub fn config(policies: &str) -> Config {
    let file = tempfile(policies);
    let loaded = config::load(&file);
    assert!(!loaded.diagnostics.has_errors(), "{}", loaded.diagnostics);
    let mut config = loaded.config.expect("no errors");
    std::fs::remove_file(&file).expect("removed");
    for endpoint in
        [&mut config.grpc.endpoint, &mut config.http.endpoint, &mut config.telemetry.endpoint]
    {
        *endpoint = "127.0.0.1:0".into();
    }
    config.sampling.decision_wait = Duration::from_millis(500);
    config.sampling.decision_wait_after_root_received = Some(Duration::from_millis(100));
    config.exporter.retry.initial_interval = Duration::from_millis(20);
    config.shutdown_timeout = Duration::from_secs(5);
    config.span_metrics = Some(all_kinds());
    config
}

/// Metrics from spans of all kinds. Every service of this binary has them, so that each test checks
/// their ledger too.
pub fn all_kinds() -> Settings {
    Settings {
        style: Style::Tempo,
        kinds: 0x3f,
        dimensions: Vec::new(),
        max_series: 100,
        stale_after: Duration::from_secs(3_600),
        exemplars: true,
    }
}

/// The metrics from spans as text, if they are on.
pub fn span_metrics(sampler: &Sampler, format: Format) -> Option<String> {
    Some(Exposition::new(sampler.span_metrics()?, format).collect())
}

/// The sum of calls over all series of metrics from spans.
pub fn calls(exposition: &str) -> f64 {
    let series = exposition.lines().filter(|line| !line.starts_with('#'));
    let calls = series.filter(|line| line.contains("_calls_total{"));
    let values = calls.map(|line| line.rsplit(' ').next().expect("a value"));
    values.map(|value| value.parse::<f64>().expect("a number")).sum()
}

/// Checks that `spans counted = calls + spans of removed series`; with all kinds, these are the
/// accepted spans.
pub fn assert_span_metrics(sampler: &Sampler, metrics: &Metrics) {
    let Some(text) = span_metrics(sampler, Format::Text) else { return };
    let counted = calls(&text) + metrics.sum("span_metrics_stale_spans_total");
    assert_eq!(counted, metrics.sum("span_metrics_spans_total"), "{text}");
    if sampler.span_metrics().is_some_and(|it| it.settings().kinds == all_kinds().kinds) {
        let replayed = metrics.get("receiver_accepted_spans_total{transport=\"replay\"}");
        let accepted = metrics.sum("receiver_accepted_spans_total") - replayed;
        assert_eq!(counted, accepted, "{text}");
    }
}

/// A new path in the system's temporary directory. It is also counted: a simulation seeds the
/// random numbers of its thread, and two threads may run the same seed.
fn temporary_path() -> std::path::PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let (process, number) = (std::process::id(), NEXT.fetch_add(1, Relaxed));
    std::env::temp_dir().join(format!("tailwater-it-{process}-{number}-{:x}", fastrand::u64(..)))
}

/// A new file in the system's temporary directory.
pub fn tempfile(text: &str) -> std::path::PathBuf {
    let path = temporary_path().with_extension("toml");
    std::fs::write(&path, text).expect("written");
    path
}

/// A directory that is removed when this is dropped.
pub struct Directory(pub std::path::PathBuf);

impl Directory {
    pub fn new() -> Self {
        let path = temporary_path();
        std::fs::create_dir(&path).expect("created");
        Directory(path)
    }

    pub fn file(&self, name: &str, content: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, content).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Running {
    /// Starts a service of this configuration whose sink accepts everything.
    pub async fn start(config: Config) -> Self {
        Self::start_with(config, Box::new(|_| Ok(Bytes::new()))).await
    }

    /// Starts a service of this configuration whose sink answers like this. Only requests that it
    /// accepts count as received.
    pub async fn start_with(mut config: Config, answer: Answer) -> Self {
        let (sink, received) = sink("127.0.0.1:0", answer).await;
        config.exporter.endpoint = sink.url();
        Self::over(&config, sink, received).await
    }

    /// Starts a service that exports to the endpoint of its configuration; its own sink gets
    /// nothing.
    pub async fn start_to(config: Config) -> Self {
        let (sink, received) = sink("127.0.0.1:0", Box::new(|_| Ok(Bytes::new()))).await;
        Self::over(&config, sink, received).await
    }

    pub async fn over(config: &Config, sink: Sink, received: Received) -> Self {
        let service = Service::start(config).await.expect("starts");
        let client = client(&service);
        Running { service, sink, received, client }
    }

    /// Exports a request; returns the answer of the service.
    pub async fn export(
        &self,
        request: &ExportTraceServiceRequest,
    ) -> Result<ExportTraceServiceResponse, Status> {
        self.export_bytes(request.encode_to_vec()).await
    }

    /// Exports bytes that may not be a valid request.
    pub async fn export_bytes(&self, bytes: Vec<u8>) -> Result<ExportTraceServiceResponse, Status> {
        send(&mut self.client.clone(), bytes).await
    }

    /// Exports compressed bytes.
    pub async fn export_compressed(
        &self,
        bytes: Vec<u8>,
        encoding: CompressionEncoding,
    ) -> Result<ExportTraceServiceResponse, Status> {
        send(&mut self.client.clone().send_compressed(encoding), bytes).await
    }

    /// Exports spans of one service that must be accepted.
    pub async fn accept(&self, spans: Vec<Span>) {
        let answer = self.export(&request("shop", spans)).await.expect("accepted");
        assert_eq!(answer.partial_success, None);
    }

    /// The metrics now.
    pub async fn metrics(&self) -> Metrics {
        Metrics::parse(&get(self.service.admin_address, "/metrics").await.1)
    }

    /// Waits until the metrics are as `wanted`.
    pub async fn until(&self, what: &str, wanted: impl Fn(&Metrics) -> bool) -> Metrics {
        for _ in 0..1_500 {
            let metrics = self.metrics().await;
            if wanted(&metrics) {
                return metrics;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("not within 30 s: {what}\n{:#?}", self.metrics().await.nonzero());
    }

    /// Waits until nothing is buffered or queued, and asserts the ledger.
    pub async fn at_rest(&self) -> Metrics {
        let rest = |metrics: &Metrics| {
            metrics.sum("window_spans") == 0.0 && metrics.sum("exporter_queue_spans") == 0.0
        };
        let metrics = self.until("nothing buffered or queued", rest).await;
        metrics.assert_ledger();
        assert_span_metrics(&self.service.admin().sampler, &metrics);
        metrics
    }

    /// The spans that the sink has received, by trace id.
    pub fn traces(&self) -> BTreeMap<Vec<u8>, Vec<Span>> {
        let mut traces = BTreeMap::<_, Vec<_>>::new();
        for span in self.spans() {
            traces.entry(span.trace_id.clone()).or_default().push(span);
        }
        traces
    }

    /// The spans that the sink has received.
    pub fn spans(&self) -> Vec<Span> {
        self.received.lock().expect("no panic").iter().flat_map(spans_of).cloned().collect()
    }

    /// Stops the service and checks the final ledger. Returns the final metrics and the number of
    /// spans that could not be delivered.
    pub async fn stop(self) -> (Metrics, u64) {
        let admin = Arc::clone(self.service.admin());
        let undelivered = self.service.shutdown().await;
        let metrics = Metrics::parse(&admin.scrape());
        metrics.assert_ledger();
        assert_span_metrics(&admin.sampler, &metrics);
        self.sink.stop().await;
        (metrics, undelivered)
    }
}

/// A sink, and the requests that it has accepted.
pub async fn sink(endpoint: &str, answer: Answer) -> (Sink, Received) {
    let received = Received::default();
    let recorder = Arc::clone(&received);
    let sink = Sink::start(endpoint, move |request| {
        let answered = answer(&request)?;
        recorder.lock().expect("no panic").push(request);
        Ok(answered)
    });
    (sink.await.expect("the port is free"), received)
}

/// A client of the service's gRPC receiver.
pub fn client(service: &Service) -> Grpc<Channel> {
    let url = format!("http://{}", service.grpc_address);
    Grpc::new(Channel::from_shared(url).expect("a url").connect_lazy())
}

/// Exports bytes with a given client.
pub async fn send(
    client: &mut Grpc<Channel>,
    bytes: Vec<u8>,
) -> Result<ExportTraceServiceResponse, Status> {
    let answer = testing::export(client, bytes.into()).await?;
    Ok(ExportTraceServiceResponse::decode(answer).expect("a valid answer"))
}

/// GET over HTTP/1.1; returns status and body.
pub async fn get(address: std::net::SocketAddr, path: &str) -> (u16, String) {
    http1(address, &format!("GET {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n"), &[])
        .await
}

/// One HTTP/1.1 exchange with `connection: close`; returns status and body.
pub async fn http1(address: std::net::SocketAddr, head: &str, body: &[u8]) -> (u16, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("listening");
    stream.write_all(head.as_bytes()).await.expect("sent");
    stream.write_all(body).await.expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("answered");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, body.to_owned())
}

/// Metrics as scraped: value by series, without the prefix `tailwater_`.
#[derive(Clone, Debug)]
pub struct Metrics(pub BTreeMap<String, f64>);

impl Metrics {
    pub fn parse(text: &str) -> Self {
        let series = text.lines().filter(|line| line.starts_with("tailwater_"));
        let parsed = series.map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a value");
            (name["tailwater_".len()..].to_owned(), value.parse().expect("a number"))
        });
        Metrics(parsed.collect())
    }

    /// One series, e.g. `traces_kept_total{policy="errors"}`; panics if there is none.
    pub fn get(&self, series: &str) -> f64 {
        *self.0.get(series).unwrap_or_else(|| panic!("no series {series}: {:#?}", self.0))
    }

    /// The sum over all series of a metric.
    pub fn sum(&self, metric: &str) -> f64 {
        let of_metric = |series: &str| series.split('{').next() == Some(metric);
        self.0.iter().filter(|(series, _)| of_metric(series)).map(|(_, value)| value).sum()
    }

    /// The series that are not 0, without the buckets of histograms.
    pub fn nonzero(&self) -> BTreeMap<&str, f64> {
        let told =
            |(series, value): &(&String, &f64)| **value != 0.0 && !series.contains("_bucket");
        self.0.iter().filter(told).map(|(series, value)| (series.as_str(), *value)).collect()
    }

    /// Checks `accepted = kept + dropped + buffered + handed over` and
    /// `kept = sent + failed + queued`.
    pub fn assert_ledger(&self) {
        let kept = self.sum("spans_kept_total");
        let buffered = kept + self.sum("spans_dropped_total") + self.sum("window_spans");
        let left = self.sum("spans_handed_over_total");
        assert_eq!(
            self.sum("receiver_accepted_spans_total"),
            buffered + left,
            "accepted = kept + dropped + buffered + handed over: {:#?}",
            self.nonzero()
        );
        let sent = self.sum("exporter_sent_spans_total");
        let left = sent + self.sum("exporter_failed_spans_total");
        let queued = self.sum("exporter_queue_spans");
        assert_eq!(kept, left + queued, "kept = sent + failed + queued: {:#?}", self.nonzero());
    }
}

/// A span of a trace whose id has 8 constant bytes, then those of `trace`, of which the lower 7 are
/// the randomness.
pub fn span(trace: u64, id: u64, parent: Option<u64>) -> Span {
    Span {
        trace_id: trace_id(trace),
        span_id: id.to_be_bytes().to_vec(),
        parent_span_id: parent.map(|parent| parent.to_be_bytes().to_vec()).unwrap_or_default(),
        name: format!("span {id}"),
        kind: 2,
        start_time_unix_nano: 1_700_000_000_000_000_000,
        end_time_unix_nano: 1_700_000_000_010_000_000,
        attributes: vec![string("http.route", "/")],
        ..Span::default()
    }
}

/// The id of [`span`]'s traces.
pub fn trace_id(trace: u64) -> Vec<u8> {
    [0xabcd_ef01_2345_6789, trace].map(u64::to_be_bytes).concat()
}

/// The value of a string attribute.
pub fn attribute<'a>(span: &'a Span, key: &str) -> Option<&'a str> {
    text_of(&span.attributes, key)
}

/// The status ERROR.
pub fn error() -> Option<SpanStatus> {
    Some(SpanStatus { code: 2, message: "failed".into() })
}

/// A request with spans of one service.
pub fn request(service: &str, spans: Vec<Span>) -> ExportTraceServiceRequest {
    let mut request = testing::request(vec![string("service.name", service)], spans);
    let of_resource = &mut request.resource_spans[0];
    of_resource.schema_url = "resource-schema".into();
    of_resource.scope_spans[0].schema_url = "scope-schema".into();
    request
}

/// A randomness that a policy of 50 % keeps, in the low 7 bytes of a trace number.
pub const HIGH: u64 = 0x00f0_0000_0000_0000;
/// A randomness that a policy of 50 % does not keep.
pub const LOW: u64 = 0x0010_0000_0000_0000;

/// Keeps everything.
pub const ALL: &str = "[[policy]]\nname = \"all\"\ntype = \"always_sample\"\n";

/// Keeps errors, and half of the rest.
pub const ERRORS_AND_HALF: &str = r#"
[[policy]]
name = "errors"
type = "status_code"
status_codes = ["ERROR"]

[[policy]]
name = "half"
type = "probabilistic"
sampling_percentage = 50
"#;
