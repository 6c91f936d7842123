//! Starts a target, waits until it is ready, and reads tailwater's own figures.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    Result, collector,
    control::Listening,
    plan::{Keep, Plan, SpanKinds, Target},
    process::{self, Process},
    traffic::{BASELINE_PERCENT, SLOW_MS, TIER_KEY, TIER_WANTED},
};

/// The product promises to be ready within 200 ms; this only bounds the bench.
const READY_MAX: Duration = Duration::from_secs(20);
const READY_POLL: Duration = Duration::from_millis(2);
const HTTP_TIMEOUT: Duration = Duration::from_secs(5);
/// The configured `shutdown_timeout` and a little more.
const STOP_MAX: Duration = Duration::from_secs(35);

/// A budget with every trace of the baseline as a candidate. It keeps few spans, so that the export
/// costs the same.
const BUDGET: &str = "[[policy]]\nname = 'budget'\ntype = 'budget'\nspans_per_second = 100\n\
    keys = ['service.name', 'http.route', 'span.name']\n";

/// A server under measurement.
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) receiver: SocketAddr,
    pub(crate) ready_ms: f64,
    telemetry: Option<SocketAddr>,
    logs: Option<Logs>,
    _config: Option<ConfigFile>,
}

/// The gauges of one scrape.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    pub(crate) spans: f64,
    pub(crate) bytes: f64,
}

impl Server {
    /// Starts `target`; kept spans go to `sink`.
    pub(crate) fn start(target: Target, plan: &Plan, sink: SocketAddr) -> Result<Self> {
        let (program, metrics) = (plan.tailwater.as_path(), span_metrics(plan.span_metrics));
        let tailwater = |more: &str| Self::tailwater((program, more), plan, sink, None);
        let durable = |mode| Self::tailwater((program, ""), plan, sink, Some(mode));
        match target {
            Target::Floor => Self::floor(),
            Target::Tailwater => tailwater(""),
            Target::TailwaterBudget => tailwater(BUDGET),
            Target::TailwaterMetrics => tailwater(&metrics),
            Target::Process => durable("process"),
            Target::Power => durable("power"),
            Target::Beside => {
                let other = plan.beside.as_deref().ok_or("which build? --beside PATH")?;
                Self::tailwater((other, ""), plan, sink, None)
            }
            Target::Collector => Self::collector(plan, sink, 1),
            Target::CollectorSharded => Self::collector(plan, sink, 2),
        }
    }

    fn floor() -> Result<Self> {
        let begin = Instant::now();
        let process = Process::subcommand("floor", &[])?;
        let receiver = process.answer::<Listening>()?.address;
        let ready_ms = begin.elapsed().as_secs_f64() * 1e3;
        Ok(Self { process, receiver, ready_ms, telemetry: None, logs: None, _config: None })
    }

    /// Starts tailwater with durability in this mode, and with `more` at the end of its
    /// configuration.
    fn tailwater(
        (program, more): (&Path, &str),
        plan: &Plan,
        sink: SocketAddr,
        mode: Option<&str>,
    ) -> Result<Self> {
        let [receiver, http, telemetry] = free_addresses()?;
        let logs = mode.map(|_| Logs::new(plan));
        let durability = logs.iter().zip(mode).map(|(logs, mode)| {
            let directory = logs.0.display();
            format!(
                "[durability]\nmode = '{mode}'\ndirectory = '{directory}'\n\
                 max_size_mib = 16384\non_shutdown = 'decide'\n"
            )
        });
        let durability: String = durability.collect();
        let text = toml(plan, receiver, http, telemetry, sink);
        let config = ConfigFile::write(&format!("{durability}{text}{more}"))?;
        let begin = Instant::now();
        let mut command = Command::new(program);
        command.arg("run").arg("--config").arg(&config.0);
        if let Some(workers) = plan.workers {
            command.env("TOKIO_WORKER_THREADS", workers.to_string());
        }
        let mut process = Process::start("tailwater", command)?;
        wait_until(&mut process, || matches!(get(telemetry, "/-/ready"), Ok((200, _))))?;
        let ready_ms = begin.elapsed().as_secs_f64() * 1e3;
        let telemetry = Some(telemetry);
        Ok(Self { process, receiver, ready_ms, telemetry, logs, _config: Some(config) })
    }

    fn collector(plan: &Plan, sink: SocketAddr, shards: u32) -> Result<Self> {
        let program = plan.collector.as_ref().ok_or("which Collector? --collector PATH")?;
        let [receiver, ..] = free_addresses()?;
        let config = ConfigFile::write(&collector::yaml(plan, receiver, sink, shards))?;
        let begin = Instant::now();
        let mut command = Command::new(program);
        command.arg("--config").arg(&config.0);
        let mut process = Process::start("collector", command)?;
        wait_until(&mut process, || TcpStream::connect(receiver).is_ok())?;
        let ready_ms = begin.elapsed().as_secs_f64() * 1e3;
        let (telemetry, logs) = (None, None);
        Ok(Self { process, receiver, ready_ms, telemetry, logs, _config: Some(config) })
    }

    /// The figures that tailwater reports about its window; `None` for other targets.
    pub(crate) fn window(&self) -> Result<Option<Window>> {
        let Some(telemetry) = self.telemetry else { return Ok(None) };
        let (status, metrics) = get(telemetry, "/metrics")?;
        if status != 200 {
            return Err(format!("/metrics answers {status}").into());
        }
        if self.logs.is_some() {
            let of_log = |line: &&str| line.starts_with("tailwater_durability_bytes{");
            let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
            let bytes: f64 = metrics.lines().filter(of_log).filter_map(value).sum();
            eprintln!("  {:.0} MiB on disk", bytes / f64::from(1 << 20));
        }
        let spans = gauge(&metrics, "tailwater_window_spans")?;
        Ok(Some(Window { spans, bytes: gauge(&metrics, "tailwater_window_bytes")? }))
    }

    /// Ends the server with SIGTERM; false if it reports a failure.
    pub(crate) fn stop(self) -> Result<bool> {
        Ok(self.process.terminate(STOP_MAX)?.success())
    }
}

fn wait_until(process: &mut Process, is_ready: impl Fn() -> bool) -> Result<()> {
    let begin = Instant::now();
    while !is_ready() {
        if !process.is_running()? {
            return Err("it ended before it was ready".into());
        }
        if begin.elapsed() > READY_MAX {
            return Err(format!("it was not ready within {READY_MAX:?}").into());
        }
        process::pause(READY_POLL)?;
    }
    Ok(())
}

/// A directory of logs that is removed together with the server that writes them.
struct Logs(PathBuf);

impl Logs {
    fn new(plan: &Plan) -> Self {
        let directory = plan.directory.clone().unwrap_or_else(std::env::temp_dir);
        Self(directory.join(format!("tailwater-load-logs-{}", std::process::id())))
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("load_generator: {}: {error}", self.0.display());
        }
    }
}

/// A file that is removed together with the server that reads it.
struct ConfigFile(PathBuf);

impl ConfigFile {
    fn write(text: &str) -> Result<Self> {
        let name = format!("tailwater-load-{}.conf", std::process::id());
        let file = Self(std::env::temp_dir().join(name));
        fs::write(&file.0, text)?;
        Ok(file)
    }
}

impl Drop for ConfigFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            eprintln!("load_generator: {}: {error}", self.0.display());
        }
    }
}

fn toml(
    plan: &Plan,
    receiver: SocketAddr,
    http: SocketAddr,
    telemetry: SocketAddr,
    sink: SocketAddr,
) -> String {
    let window_ms = plan.window.as_millis();
    let after_root_ms = plan.after_root.as_millis();
    let memory_limit_mib = plan.memory_limit_mib;
    let policies = policies(plan);
    format!(
        r#"
[receiver.grpc]
endpoint = "{receiver}"
[receiver.http]
endpoint = "{http}"
[sampling]
decision_wait = "{window_ms}ms"
decision_wait_after_root_received = "{after_root_ms}ms"
memory_limit_mib = {memory_limit_mib}
[exporter.otlp]
endpoint = "http://{sink}"
[telemetry]
endpoint = "{telemetry}"
log_level = "warn"
{policies}"#
    )
}

fn span_metrics(kinds: SpanKinds) -> String {
    let kinds = match kinds {
        SpanKinds::Server => "'SERVER'",
        SpanKinds::All => "'SERVER', 'CLIENT'",
    };
    format!("[span_metrics]\nenabled = true\ndimensions = ['k8s.pod.name']\nkinds = [{kinds}]\n")
}

fn policies(plan: &Plan) -> String {
    let rules = match plan.keep {
        Keep::None => vec!["type = 'status_code'\nstatus_codes = ['OK']".to_owned()],
        Keep::Tenth => vec![
            "type = 'status_code'\nstatus_codes = ['ERROR']".to_owned(),
            format!("type = 'latency'\nthreshold_ms = {SLOW_MS}"),
            format!("type = 'string_attribute'\nkey = '{TIER_KEY}'\nvalues = ['{TIER_WANTED}']"),
            format!("type = 'probabilistic'\nsampling_percentage = {BASELINE_PERCENT}"),
        ],
        Keep::All => vec!["type = 'always_sample'".to_owned()],
    };
    let more = (0..plan.more_policies).map(|n| {
        let text = |key: &str, value: &str| {
            format!("{{ type = 'string_attribute', key = '{key}', values = ['{value}{n}'] }}")
        };
        let number = "type = 'numeric_attribute', key = 'http.response.status_code'";
        format!(
            "type = 'and'\npolicies = [{}, {}, {}, {{ {number}, min_value = {} }}]",
            text("http.route", "/none/"),
            text("server.address", "host-"),
            text("url.path", "/path/"),
            300 + n
        )
    });
    let rules = rules.into_iter().chain(more).enumerate();
    rules.map(|(n, rule)| format!("[[policy]]\nname = 'p{n}'\n{rule}\n")).collect()
}

/// Addresses that were free a moment ago, all different because all are bound at once.
fn free_addresses() -> Result<[SocketAddr; 3]> {
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let listeners = [bind()?, bind()?, bind()?];
    let [first, second, third] = &listeners;
    Ok([first.local_addr()?, second.local_addr()?, third.local_addr()?])
}

/// A GET over HTTP/1.0, whose answers end with the connection and are never chunked.
fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, HTTP_TIMEOUT)?;
    stream.set_read_timeout(Some(HTTP_TIMEOUT))?;
    stream.set_write_timeout(Some(HTTP_TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("an HTTP answer has no end of head")?;
    let status = head.split_whitespace().nth(1).ok_or("an HTTP answer has no status")?;
    Ok((status.parse()?, body.to_owned()))
}

/// The value of a gauge without labels.
fn gauge(metrics: &str, name: &str) -> Result<f64> {
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.ok_or_else(|| format!("/metrics has no {name}"))?.trim().parse()?)
}
