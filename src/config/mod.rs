//! The configuration: the keys of `tailwater.toml`, their defaults, and a report of all problems at
//! once.
//!
//! [`load`] reads one file and the policy files that it names. It returns either a [`Config`] that
//! the rest of the service may trust without checking again, or diagnostics. It builds the values
//! that stages are made from (specifications of `policy`, files of `credentials`) and does not know
//! any running stage: no sampler, receiver, exporter or service.
//!
//! A file goes through `files` (bytes), `source` (lines and columns), `syntax` (a TOML tree and a
//! record of its unreliable parts), `reader` and `section` (typed access that does not stop at a
//! mistake), and then `sections` and `policies`, which read the keys. serde is not used, because it
//! stops at the first mistake and forgets the positions of values.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use crate::{
    credentials::{ClientTls, ServerTls},
    policy::PolicySpec,
};

mod address;
mod cgroup;
mod conditions;
mod credentials;
mod described;
mod diagnostics;
mod endpoint;
mod env;
mod files;
pub(crate) mod keys;
mod fit;
mod hidden;
mod inputs;
mod kafka;
mod kinds;
mod limits;
mod load;
mod memory;
mod policies;
mod policy_tests;
mod reader;
mod secret;
mod section;
mod sections;
mod shown;
mod source;
mod span_metrics;
mod syntax;
#[cfg(test)]
mod tests;
pub(crate) mod types;
mod values;

pub use diagnostics::{Diagnostic, Severity};
pub(crate) use diagnostics::{Diagnostics, Problem, visible};
pub(crate) use files::read_text;
pub(crate) use inputs::Inputs;
pub use kafka::{Kafka, KafkaEncoding, KafkaSasl};
pub(crate) use load::load_policies;
pub use load::{embedded, load, load_or_embedded};
pub use policy_tests::load_tests;
pub(crate) use policy_tests::{
    AttributeValue, Expected, PolicyTest, TestEvent, TestSpan, TestedTrace,
};
pub(crate) use secret::Secret;
pub(crate) use shown::Shown;
pub(crate) use source::Source;

/// The JSON Schema (2020-12) of a configuration or policy file, for editors. Tests compare the
/// rules that it contains with the loader. Some rules only the loader can check (unique names,
/// values that bound each other, expressions that compile), so `check` remains necessary.
pub const SCHEMA: &str = include_str!("../../deploy/tailwater.schema.json");

/// The whole configuration of `tailwater run`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file that it was read from, for reloads; `None` for the built-in configuration.
    pub file: Option<PathBuf>,
    /// The digests of the files that were read, to notice changes.
    pub inputs: Inputs,
    /// The SHA-256 of all files, in hexadecimal: the main file, then those of `policy_files` by
    /// path, one after the other.
    pub hash: String,
    /// The files, for display.
    pub shown: Shown,
    /// `shutdown_timeout`: the longest a graceful shutdown may take.
    pub shutdown_timeout: Duration,
    /// `[receiver.grpc]`.
    pub grpc: GrpcReceiver,
    /// `[receiver.http]`.
    pub http: HttpReceiver,
    /// `[receiver.tls]`, for both receivers; `None` for plaintext, which is the default.
    pub tls: Option<ServerTls>,
    /// `[receiver.auth] bearer_token_file`, for both receivers; `None`, which is the default,
    /// lets anyone send.
    pub bearer_token_file: Option<PathBuf>,
    /// `[receiver.kafka]`; `None` without the section, which is the default.
    pub kafka: Option<Kafka>,
    /// `[sampling]`.
    pub sampling: Sampling,
    /// `[exporter.otlp]`.
    pub exporter: Exporter,
    /// `[durability]`; `None` for `mode = "none"`, which is the default.
    pub durability: Option<Durability>,
    /// `[telemetry]`.
    pub telemetry: Telemetry,
    /// `[span_metrics]`; `None` while they are off, which is the default.
    pub span_metrics: Option<crate::span_metrics::Settings>,
    /// All `[[policy]]` tables: the main file's, then those of `policy_files` by path. Never empty.
    pub policies: Vec<PolicySpec>,
}

impl Config {
    /// The parts in which this configuration differs from another one, apart from policies, as a
    /// file names them.
    pub fn differences(&self, other: &Config) -> Vec<&'static str> {
        let Config {
            file: _,
            inputs: _,
            hash: _,
            shown: _,
            shutdown_timeout,
            grpc,
            http,
            tls,
            bearer_token_file,
            kafka,
            sampling,
            exporter,
            durability,
            telemetry,
            span_metrics,
            policies: _,
        } = self;
        let parts = [
            ("shutdown_timeout", *shutdown_timeout == other.shutdown_timeout),
            ("[receiver.grpc]", *grpc == other.grpc),
            ("[receiver.http]", *http == other.http),
            ("[receiver.tls]", *tls == other.tls),
            ("[receiver.auth]", *bearer_token_file == other.bearer_token_file),
            ("[receiver.kafka]", *kafka == other.kafka),
            ("[sampling]", *sampling == other.sampling),
            ("[exporter.otlp]", *exporter == other.exporter),
            ("[durability]", *durability == other.durability),
            ("[telemetry]", *telemetry == other.telemetry),
            ("[span_metrics]", *span_metrics == other.span_metrics),
        ];
        parts.into_iter().filter(|(_, is_same)| !is_same).map(|(name, _)| name).collect()
    }
}

/// `[receiver.grpc]`.
#[derive(Clone, Debug, PartialEq)]
pub struct GrpcReceiver {
    /// `endpoint` as host:port, default 127.0.0.1:4317. Loopback, because the port has no TLS and
    /// no authentication by default.
    pub endpoint: String,
    /// `max_recv_msg_size_mib`, here in bytes, before and after decompression. Default 64 MiB,
    /// which the OTLP specification recommends.
    pub max_recv_msg_bytes: usize,
    /// `max_concurrent_streams` per connection, default 100.
    pub max_concurrent_streams: u32,
    /// `max_connections`, default 1024.
    pub max_connections: usize,
    /// `max_connection_age`, after which a connection is told to close (10 % earlier or later);
    /// `None` for "0s", the default, with which connections are never told to close.
    pub max_connection_age: Option<Duration>,
}

/// `[receiver.http]`.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpReceiver {
    /// `endpoint` as host:port, default 127.0.0.1:4318.
    pub endpoint: String,
    /// `max_request_body_size_mib`, here in bytes, before and after decompression. Default 64 MiB.
    pub max_request_body_bytes: usize,
    /// `traces_url_path`, default /v1/traces.
    pub traces_url_path: String,
    /// `max_connection_age`, as for gRPC.
    pub max_connection_age: Option<Duration>,
    /// `[receiver.http.cors]`.
    pub cors: CorsPolicy,
}

/// `[receiver.http.cors]`: who may send from a browser.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CorsPolicy {
    /// `allowed_origins`, each with at most one `*`. None by default: browsers keep pages of other
    /// origins from sending.
    pub allowed_origins: Vec<String>,
    /// `allowed_headers` besides those that are always allowed, or `*`.
    pub allowed_headers: Vec<String>,
}

/// `[sampling]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// `decision_wait` from the first span of a trace, default 30 s.
    pub decision_wait: Duration,
    /// `decision_wait_after_root_received`, default 10 s; `None` for "0s", which turns it off. It
    /// must be longer than the batch delays on a span's way (the SDK's, 5 s by default, and those
    /// of Collectors in between); otherwise children of the root arrive too late.
    pub decision_wait_after_root_received: Option<Duration>,
    /// `memory_limit_mib`, here in bytes. Default: 60 % of the lowest limit of the process's cgroup
    /// and those above it, else 1024 MiB.
    pub memory_limit_bytes: usize,
    /// The origin of this limit, for the log.
    pub memory_limit_from: String,
    /// `max_trace_spans`, default 32,000.
    pub max_trace_spans: u32,
    /// `max_trace_bytes_mib`, here in bytes. Default 16 MiB.
    pub max_trace_bytes: u32,
    /// `decision_cache_ttl`, default 120 s.
    pub decision_cache_ttl: Duration,
    /// `decision_log_size` in traces, default 100,000, as far as they fit into a sixteenth of the
    /// memory limit; 0 turns the log off.
    pub decision_log_size: usize,
    /// `watch_policy_files`: whether to reload when the files change, default false.
    pub watch_policy_files: bool,
    /// `[sampling.stamp] tracestate`, default true.
    pub stamp_tracestate: bool,
    /// `[sampling.stamp] policy`: "root" is true (the default), "off" false.
    pub stamp_policy: bool,
}

/// `[exporter.otlp]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Exporter {
    /// `endpoint`, an `http://` or `https://` URL. Default http://127.0.0.1:4327. For OTLP/HTTP
    /// it may have a path, behind which `/v1/traces` is added.
    pub endpoint: String,
    /// `protocol`, default grpc.
    pub protocol: Protocol,
    /// `compression`, default none.
    pub compression: Compression,
    /// `timeout` of one request, default 5 s.
    pub timeout: Duration,
    /// `max_request_size_kib`, here in bytes. Default 3584 KiB, below the 4 MiB that gRPC servers
    /// take.
    pub max_request_bytes: usize,
    /// `max_trace_bytes_kib`, here in bytes; `None` for 0, which is the default and turns it off.
    pub max_trace_bytes: Option<u64>,
    /// `headers` sent with every request, names in lower case.
    pub headers: BTreeMap<String, Secret>,
    /// `bearer_token_file`: the token that is sent as `authorization: Bearer`; `None`, which is the
    /// default, sends none.
    pub bearer_token_file: Option<PathBuf>,
    /// `[exporter.otlp.tls]`; present if and only if `endpoint` is `https://`.
    pub tls: Option<ClientTls>,
    /// `[exporter.otlp.sending_queue]`.
    pub queue: SendingQueue,
    /// `[exporter.otlp.retry_on_failure]`.
    pub retry: Retry,
}

/// `protocol` of the backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// `"grpc"`: OTLP/gRPC.
    #[default]
    Grpc,
    /// `"http/protobuf"`: OTLP/HTTP with protobuf bodies.
    Http,
}

/// `compression` of requests to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// `"none"`.
    None,
    /// `"gzip"`.
    Gzip,
    /// `"zstd"`.
    Zstd,
}

/// `[exporter.otlp.sending_queue]`.
#[derive(Clone, Debug, PartialEq)]
pub struct SendingQueue {
    /// `queue_size_mib`, here in bytes. Default a quarter of the memory limit, at most half of it.
    pub queue_bytes_max: usize,
    /// `num_consumers`: requests in progress at once, default 10.
    pub num_consumers: usize,
    /// `overflow`, default block.
    pub overflow: Overflow,
}

/// What happens when the sending queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// Refuse senders retryably and leave due traces in the window.
    Block,
    /// Drop the newest kept spans, counted as `queue_full`.
    Drop,
}

/// `[exporter.otlp.retry_on_failure]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// `initial_interval`, default 1 s.
    pub initial_interval: Duration,
    /// `max_interval`, default 30 s.
    pub max_interval: Duration,
    /// `max_elapsed_time`, default 300 s; `None` for "0s", which means for ever.
    pub max_elapsed_time: Option<Duration>,
}

/// `[durability]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Durability {
    /// `directory`, default /var/lib/tailwater.
    pub directory: PathBuf,
    /// `max_size_mib`, here in bytes. Default 4096 MiB.
    pub bytes_max: u64,
    /// `sync_interval`, default 20 ms, for `mode = "power"`; `None` for `"process"`.
    pub sync_interval: Option<Duration>,
    /// `on_shutdown`: "keep" is true (the default), "decide" false.
    pub keeps_on_shutdown: bool,
}

/// `[telemetry]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Telemetry {
    /// `endpoint` as host:port of /metrics, health and look-ups, default 127.0.0.1:9464.
    pub endpoint: String,
    /// `enable_lifecycle`: whether policies may be reloaded and tried over the network, default
    /// false.
    pub enable_lifecycle: bool,
    /// `enable_recording`: whether spans may be read over the network, default false.
    pub enable_recording: bool,
    /// `log_level`, default info.
    pub log_level: tracing::Level,
    /// `log_format`: "json" is true, "text" (the default) false.
    pub log_json: bool,
    /// `[telemetry.tls]`; `None` for plaintext, which is the default.
    pub tls: Option<ServerTls>,
    /// `[telemetry.auth] bearer_token_file`; `None`, which is the default, lets anyone ask.
    pub bearer_token_file: Option<PathBuf>,
}
