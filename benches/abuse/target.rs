//! The server under attack: its configuration, its process, and the kernel's figures about it.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::Result;

/// Linux shows CPU times to users in hundredths of a second on every architecture (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;
const READY_MAX: Duration = Duration::from_secs(20);
const STOP_MAX: Duration = Duration::from_secs(10);
/// The memory limit of both servers.
const MEMORY_LIMIT_MIB: u32 = 1024;

/// Which server to attack.
#[derive(Clone)]
pub(crate) enum Server {
    Tailwater(PathBuf),
    Collector(PathBuf),
}

/// A running server; dropping it kills it.
pub(crate) struct Target {
    child: Child,
    folder: PathBuf,
    pub(crate) grpc: SocketAddr,
    /// The telemetry port; only Tailwater has one.
    telemetry: Option<SocketAddr>,
}

impl Target {
    /// Starts the server with at most this many descriptors; 0 means the system's limit.
    pub(crate) fn start(server: &Server, sink: SocketAddr, descriptors: u32) -> Result<Self> {
        let [grpc, http, telemetry] = free_addresses()?;
        let name = format!("tailwater-abuse-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder)?;
        let (binary, mut arguments, config, text) = match server {
            Server::Tailwater(binary) => {
                let text = tailwater(grpc, http, telemetry, sink);
                (binary, vec!["run", "--config"], folder.join("tailwater.toml"), text)
            }
            Server::Collector(binary) => {
                let text = collector(grpc, http, sink);
                (binary, vec!["--config"], folder.join("collector.yaml"), text)
            }
        };
        fs::write(&config, text)?;
        let config = config.to_str().ok_or("a path that is no UTF-8")?;
        arguments.push(config);
        let mut command = Command::new("sh");
        let limit =
            if descriptors > 0 { format!("ulimit -n {descriptors};") } else { String::new() };
        command.args(["-c", &format!("{limit} exec \"$0\" \"$@\"")]).arg(binary).args(&arguments);
        let log = fs::File::create(folder.join("log"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn()?;
        let telemetry = matches!(server, Server::Tailwater(_)).then_some(telemetry);
        let mut target = Target { child, folder, grpc, telemetry };
        let began = Instant::now();
        while [grpc, http].iter().any(|address| TcpStream::connect(address).is_err()) {
            if began.elapsed() > READY_MAX || target.child.try_wait()?.is_some() {
                return Err(format!("it does not start:\n{}", target.log()?).into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(target)
    }

    /// CPU seconds since its start.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The command in parentheses may hold spaces; utime and stime are the 14th and 15th fields.
        let (_, rest) = stat.rsplit_once(')').ok_or("/proc/PID/stat has no command")?;
        let times = rest.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        Ok(times.sum::<std::result::Result<u64, _>>()? as f64 / TICKS_PER_SECOND)
    }

    /// Resident MiB now.
    pub(crate) fn rss_mib(&self) -> Result<f64> {
        resident_mib(self.child.id())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn descriptors(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.child.id()))?.count())
    }

    pub(crate) fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.folder.join("log"))?)
    }

    /// The bytes that Tailwater's budget holds, in MiB.
    pub(crate) fn budget_mib(&self) -> Option<f64> {
        use std::io::{Read as _, Write as _};
        let mut stream = TcpStream::connect(self.telemetry?).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let name = "tailwater_memory_used_bytes ";
        let value = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(value.trim().parse::<f64>().ok()? / f64::from(1 << 20))
    }

    /// Ends the server with SIGTERM; an error if it had ended before, or does not end.
    pub(crate) fn stop(mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            return Err(format!("it ended by itself: {status}\n{}", self.log()?).into());
        }
        Command::new("sh").args(["-c", &format!("kill -TERM {}", self.child.id())]).status()?;
        let began = Instant::now();
        while self.child.try_wait()?.is_none() {
            if began.elapsed() > STOP_MAX {
                return Err("it does not stop".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // All of these fail only for a process that has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Resident MiB of a process.
pub(crate) fn resident_mib(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).ok_or("no VmRSS")?;
    Ok(kib.parse::<f64>()? / 1024.0)
}

fn free_addresses() -> Result<[SocketAddr; 3]> {
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let listeners = [bind()?, bind()?, bind()?];
    let [first, second, third] = &listeners;
    Ok([first.local_addr()?, second.local_addr()?, third.local_addr()?])
}

fn tailwater(
    grpc: SocketAddr,
    http: SocketAddr,
    telemetry: SocketAddr,
    sink: SocketAddr,
) -> String {
    format!(
        r#"
shutdown_timeout = "5s"
[receiver.grpc]
endpoint = "{grpc}"
[receiver.http]
endpoint = "{http}"
[telemetry]
endpoint = "{telemetry}"
[sampling]
decision_wait = "2s"
decision_wait_after_root_received = "1s"
memory_limit_mib = {MEMORY_LIMIT_MIB}
[exporter.otlp]
endpoint = "http://{sink}"
[[policy]]
name = "honest"
type = "string_attribute"
key = "honest"
values = ["yes"]
"#
    )
}

/// The Collector's configuration: the receiver's defaults, except for a message limit like
/// Tailwater's, and memory_limiter as its README recommends.
fn collector(grpc: SocketAddr, http: SocketAddr, sink: SocketAddr) -> String {
    let spike_mib = MEMORY_LIMIT_MIB / 5;
    format!(
        r#"
receivers:
  otlp:
    protocols:
      grpc: {{ endpoint: "{grpc}", max_recv_msg_size_mib: 64 }}
      http: {{ endpoint: "{http}" }}
processors:
  memory_limiter:
    check_interval: 1s
    limit_mib: {MEMORY_LIMIT_MIB}
    spike_limit_mib: {spike_mib}
  tail_sampling:
    decision_wait: 2s
    policies:
      - name: honest
        type: string_attribute
        string_attribute: {{ key: honest, values: ["yes"] }}
exporters:
  otlp_grpc:
    endpoint: "{sink}"
    tls: {{ insecure: true }}
    compression: none
service:
  telemetry:
    metrics: {{ level: none }}
    logs: {{ level: warn }}
  pipelines:
    traces:
      receivers: [otlp]
      processors: [memory_limiter, tail_sampling]
      exporters: [otlp_grpc]
"#
    )
}
