//! Reads the sections of `tailwater.toml`: keys, defaults, bounds, and how values depend on one
//! another.
//!
//! A bound excludes values with which the service would do something that nobody wants: wait for an
//! hour, or accept a request that no memory budget can hold. If one value bounds another, the
//! message names both keys; a value that is wrong itself bounds nothing, so that it is reported as
//! one mistake.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Compression, CorsPolicy, Durability, Exporter, GrpcReceiver, HttpReceiver, Overflow, Retry,
    Sampling, Secret, SendingQueue, Telemetry, address,
    credentials::{exporter_tls, exporter_token, server_auth, server_tls},
    diagnostics::{Problem, quote},
    endpoint,
    fit::{self, Wanted},
    memory::MemoryLimit,
    reader::Span,
    section::{Read, Section},
    span_metrics, values,
};
use crate::{credentials::ServerTls, span_metrics::Settings};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// The content of a main file, without its policies.
pub(super) struct Sections {
    pub(super) shutdown_timeout: Duration,
    pub(super) grpc: GrpcReceiver,
    pub(super) http: HttpReceiver,
    pub(super) tls: Option<ServerTls>,
    pub(super) bearer_token_file: Option<PathBuf>,
    pub(super) sampling: Sampling,
    pub(super) exporter: Exporter,
    pub(super) durability: Option<Durability>,
    pub(super) telemetry: Telemetry,
    pub(super) span_metrics: Option<Settings>,
    /// `policy_files` with their places.
    pub(super) policy_files: Vec<(String, Span)>,
    /// The place of `watch_policy_files = true`.
    pub(super) watched: Option<Span>,
}

/// Reads all sections, and the files that they name relative to `directory`; `memory_default` is
/// the memory limit if the file sets none.
pub(super) fn read(
    root: &mut Section<'_, '_>,
    directory: &Path,
    memory_default: &MemoryLimit,
) -> Sections {
    let shutdown_timeout = root.duration_or_default("shutdown_timeout");

    let mut receiver = root.section("receiver");
    let (grpc, grpc_message) = grpc(receiver.section("grpc"));
    let (http, http_message) = http(receiver.section("http"), &grpc);
    let tls = server_tls(receiver.section("tls"), directory);
    let bearer_token_file = server_auth(receiver.section("auth"), directory);
    receiver.finish();

    let mut section = root.section("sampling");
    let policy_files = section.texts("policy_files").or(Vec::new());
    let watched = match section.boolean("watch_policy_files") {
        Read::Set(true, span) => Some(span),
        _ => None,
    };
    let memory = section.integer::<usize>("memory_limit_mib").map(|mib| mib * MIB);
    let (memory, memory_span) = match memory {
        Read::Set(bytes, span) => (Some(MemoryLimit::configured(bytes)), Some(span)),
        Read::Unset => (Some(memory_default.clone()), None),
        Read::Bad => (None, None),
    };
    let (mut sampling, log) = sampling(section, memory.as_ref().unwrap_or(memory_default));
    sampling.watch_policy_files = watched.is_some();
    if let Some(limit) = &memory {
        let messages: Vec<_> = [grpc_message, http_message].into_iter().flatten().collect();
        fit::review(root, limit, memory_span.as_ref(), &messages, log.as_ref());
    }

    let mut section = root.section("exporter");
    let listeners = [("receiver.grpc", &grpc.endpoint[..]), ("receiver.http", &http.endpoint[..])];
    let memory = memory.map(|limit| limit.bytes);
    let exporter = exporter(section.section("otlp"), directory, listeners, memory);
    section.finish();

    let durability = durability(root.section("durability"), directory);
    let telemetry =
        telemetry(root.section("telemetry"), directory, [&grpc.endpoint, &http.endpoint]);
    let span_metrics = span_metrics::read(root.section("span_metrics"), memory);
    Sections {
        shutdown_timeout,
        grpc,
        http,
        tls,
        bearer_token_file,
        sampling,
        exporter,
        durability,
        telemetry,
        span_metrics,
        policy_files,
        watched,
    }
}

fn grpc(mut section: Section<'_, '_>) -> (GrpcReceiver, Option<Wanted>) {
    let (message, message_bytes) = message(&mut section, "max_recv_msg_size_mib");
    let config = GrpcReceiver {
        endpoint: listener(&mut section, &[]),
        max_recv_msg_bytes: message_bytes,
        max_concurrent_streams: section.integer_or_default("max_concurrent_streams"),
        max_connections: section.integer_or_default("max_connections"),
        max_connection_age: max_connection_age(&mut section),
    };
    section.finish();
    (config, message)
}

fn http(mut section: Section<'_, '_>, grpc: &GrpcReceiver) -> (HttpReceiver, Option<Wanted>) {
    let (message, message_bytes) = message(&mut section, "max_request_body_size_mib");
    let traces_url_path =
        section.text("traces_url_path", |text| values::url_path("traces_url_path", text));
    let traces_url_path = traces_url_path.or(section.default_text("traces_url_path").to_owned());
    let config = HttpReceiver {
        endpoint: listener(&mut section, &[&grpc.endpoint]),
        max_request_body_bytes: message_bytes,
        traces_url_path,
        max_connection_age: max_connection_age(&mut section),
        cors: cors(section.section("cors")),
    };
    section.finish();
    (config, message)
}

/// The largest message size, to be checked against the memory limit, and in bytes.
fn message(section: &mut Section<'_, '_>, key: &'static str) -> (Option<Wanted>, usize) {
    let default = section.default_integer::<usize>(key) * MIB;
    let bytes = section.integer::<usize>(key).map(|mib| mib * MIB);
    (Wanted::new(key, &bytes, default), bytes.or(default))
}

/// `None` for "0s". Less than a second is refused: making connections would cost too much.
fn max_connection_age(section: &mut Section<'_, '_>) -> Option<Duration> {
    let age = section.duration("max_connection_age");
    if let Read::Set(age, span) = &age
        && !age.is_zero()
        && *age < Duration::from_secs(1)
    {
        let message = format!(
            "`max_connection_age` must be at least 1s, found `{}`",
            humantime::format_duration(*age)
        );
        let hint = "\"0s\" turns it off; \"30m\" is long enough for senders to notice new replicas";
        section.error(span.clone(), Problem::new(message).hint(hint));
    }
    age.good().filter(|age| !age.is_zero())
}

fn cors(mut section: Section<'_, '_>) -> CorsPolicy {
    let mut checked = |key: &'static str, check: fn(&str) -> Result<(), Problem>| {
        let mut good = Vec::new();
        let read = section.texts(key);
        let is_set = match &read {
            Read::Set(texts, span) if !texts.is_empty() => Some(span.clone()),
            _ => None,
        };
        for (text, span) in read.or(Vec::new()) {
            match check(&text) {
                Ok(()) => good.push(text),
                Err(problem) => section.error(span, problem),
            }
        }
        (good, is_set)
    };
    let (allowed_origins, origins) = checked("allowed_origins", values::origin);
    let (allowed_headers, headers) = checked("allowed_headers", values::allowed_header);
    if let (None, Some(span)) = (origins, headers) {
        let problem = Problem::new("`allowed_headers` has no effect without `allowed_origins`");
        section.warn(span, problem.hint("name the sites that may send from a browser"));
    }
    section.finish();
    CorsPolicy { allowed_origins, allowed_headers }
}

/// Reads `endpoint` of a listener, which must differ from `others`.
fn listener(section: &mut Section<'_, '_>, others: &[&String]) -> String {
    let default = section.default_text("endpoint");
    section
        .text("endpoint", |text| {
            let is_taken = |text: &str| others.iter().any(|other| *other == text);
            let endpoint = address::listener("endpoint", text, default, is_taken)?;
            if others.contains(&&endpoint) && !endpoint.ends_with(":0") {
                return Err(Problem::new(format!(
                    "two listeners have the endpoint {}",
                    quote(text)
                )));
            }
            Ok(endpoint)
        })
        .or(default.to_owned())
}

fn sampling(
    mut section: Section<'_, '_>,
    memory_limit: &MemoryLimit,
) -> (Sampling, Option<Wanted>) {
    let wait = section.duration("decision_wait");
    let after_root = section.duration("decision_wait_after_root_received");
    if let (Read::Set(wait, _), Read::Set(after_root, span)) = (&wait, &after_root)
        && after_root >= wait
    {
        let message =
            "`decision_wait_after_root_received` has no effect: `decision_wait` ends first";
        section.warn(span.clone(), Problem::new(message));
    }
    let after_root = after_root.or(section.default_duration("decision_wait_after_root_received"));

    let mut stamp = section.section("stamp");
    let stamp_tracestate = stamp.boolean_or_default("tracestate");
    let stamp_policy = stamp.word("policy", [true, false]);
    stamp.finish();

    let log_key = "decision_log_size";
    let (log_size, log_default) = (section.integer(log_key), section.default_integer(log_key));
    let log = Wanted::new(log_key, &log_size, log_default);

    let config = Sampling {
        decision_wait: wait.or(section.default_duration("decision_wait")),
        decision_wait_after_root_received: Some(after_root).filter(|wait| !wait.is_zero()),
        memory_limit_bytes: memory_limit.bytes,
        memory_limit_from: memory_limit.from.clone(),
        max_trace_spans: section.integer_or_default("max_trace_spans"),
        max_trace_bytes: section.integer_or_default::<u32>("max_trace_bytes_mib") << 20,
        decision_cache_ttl: section.duration_or_default("decision_cache_ttl"),
        decision_log_size: log_size.or(log_default),
        watch_policy_files: false,
        stamp_tracestate,
        stamp_policy,
    };
    section.finish();
    (config, log)
}

/// Reads `[exporter.otlp]`. `memory` is `None` if `memory_limit_mib` is wrong.
fn exporter(
    mut section: Section<'_, '_>,
    directory: &Path,
    listeners: [(&str, &str); 2],
    memory: Option<usize>,
) -> Exporter {
    let (endpoint, protocol) = endpoint::exporter(&mut section, listeners);
    let compressions = [Compression::None, Compression::Gzip, Compression::Zstd];
    let compression = section.word("compression", compressions);
    let timeout = section.duration_or_default("timeout");
    let headers = headers(&mut section);
    let bearer_token_file = exporter_token(&mut section, headers.keys(), directory);
    let (queue, queue_bytes) = sending_queue(section.section("sending_queue"), memory);
    let retry = retry(section.section("retry_on_failure"));
    let max_request_bytes = max_request_bytes(&mut section, queue_bytes);
    let max_trace_kib: u64 = section.integer_or_default("max_trace_bytes_kib");
    let is_https = match &endpoint {
        Read::Set(endpoint, _) => Some(endpoint.starts_with("https://")),
        Read::Unset => Some(false),
        Read::Bad => None,
    };
    let tls = exporter_tls(section.section("tls"), is_https, directory);
    let endpoint = endpoint.or(section.default_text("endpoint").to_owned());
    section.finish();
    Exporter {
        endpoint,
        protocol,
        compression,
        timeout,
        max_request_bytes,
        max_trace_bytes: (max_trace_kib > 0).then_some(max_trace_kib << 10),
        headers,
        bearer_token_file,
        tls,
        queue,
        retry,
    }
}

fn headers(section: &mut Section<'_, '_>) -> BTreeMap<String, Secret> {
    let entries = section.entries("headers", |name, value| {
        let name = values::header_name(name)?;
        let value = values::header_value(&name, value)?;
        Ok((name, value))
    });
    let mut headers = BTreeMap::new();
    for ((name, value), span) in entries {
        if headers.contains_key(&name) {
            let message = format!("the header {} is given twice", quote(&name));
            section.error(span, Problem::new(message).hint("the case of header names is ignored"));
        }
        headers.insert(name, Secret::from(value));
    }
    headers
}

/// Reads the queue and its size; the size is `None` if a mistake leaves it unknown.
fn sending_queue(
    mut section: Section<'_, '_>,
    memory: Option<usize>,
) -> (SendingQueue, Option<usize>) {
    let half = memory.map_or(usize::MAX, |bytes| bytes / 2);
    let bytes = match section.integer::<usize>("queue_size_mib").map(|mib| mib * MIB) {
        Read::Set(bytes, span) if bytes > half => {
            let (queue, half) = (bytes / MIB, half / MIB);
            let message = format!(
                "`queue_size_mib` may be at most half of the memory limit, {half} MiB, \
                 found {queue}"
            );
            let hint = "make it smaller, or raise `memory_limit_mib` in [sampling]";
            section.error(span, Problem::new(message).hint(hint));
            None
        }
        Read::Set(bytes, _) => Some(bytes),
        Read::Unset => memory.map(|bytes| bytes / 4),
        Read::Bad => None,
    };
    let queue = SendingQueue {
        queue_bytes_max: bytes.unwrap_or(usize::MAX),
        num_consumers: section.integer_or_default("num_consumers"),
        overflow: section.word("overflow", [Overflow::Block, Overflow::Drop]),
    };
    section.finish();
    (queue, bytes)
}

/// Reads the largest request, at most a quarter of the queue, so that consumers and bisection have
/// room. For a small queue, the default is reduced without a warning.
fn max_request_bytes(section: &mut Section<'_, '_>, queue_bytes: Option<usize>) -> usize {
    let quarter = queue_bytes.map_or(usize::MAX, |bytes| bytes / 4);
    let default = section.default_integer::<usize>("max_request_size_kib") * KIB;
    match section.integer::<usize>("max_request_size_kib").map(|kib| kib * KIB) {
        Read::Set(bytes, span) => {
            if bytes > quarter {
                let (request, quarter) = (bytes / KIB, quarter / KIB);
                let message = format!(
                    "`max_request_size_kib` may be at most a quarter of the sending queue, \
                     {quarter} KiB, found {request}"
                );
                let hint =
                    "make it smaller, or raise `queue_size_mib` in [exporter.otlp.sending_queue]";
                section.error(span, Problem::new(message).hint(hint));
            }
            bytes
        }
        Read::Unset | Read::Bad => default.min(quarter),
    }
}

fn retry(mut section: Section<'_, '_>) -> Retry {
    let initial = section.duration("initial_interval");
    let max = section.duration("max_interval");
    let elapsed = section.duration_or_default("max_elapsed_time");
    let written = [&initial, &max].into_iter().find_map(|read| match read {
        Read::Set(_, span) => Some(span.clone()),
        _ => None,
    });
    let any_bad = matches!(initial, Read::Bad) || matches!(max, Read::Bad);
    let retry = Retry {
        initial_interval: initial.or(section.default_duration("initial_interval")),
        max_interval: max.or(section.default_duration("max_interval")),
        max_elapsed_time: Some(elapsed).filter(|time| !time.is_zero()),
    };
    if let Some(span) = written.filter(|_| retry.initial_interval > retry.max_interval && !any_bad)
    {
        let initial = humantime::format_duration(retry.initial_interval);
        let max = humantime::format_duration(retry.max_interval);
        let message =
            format!("`initial_interval`, {initial}, is longer than `max_interval`, {max}");
        section.error(span, Problem::new(message));
    }
    section.finish();
    retry
}

/// The default directory of the logs.
const DURABILITY_DIRECTORY: &str = "/var/lib/tailwater";

fn durability(mut section: Section<'_, '_>, directory: &Path) -> Option<Durability> {
    let is_on = section.word("mode", [None, Some(false), Some(true)]);
    let named = section.file("directory", directory);
    let interval = section.duration_or_default("sync_interval");
    let config = Durability {
        directory: named.or(PathBuf::from(DURABILITY_DIRECTORY)),
        bytes_max: section.integer_or_default::<u64>("max_size_mib") << 20,
        sync_interval: (is_on == Some(true)).then_some(interval),
        keeps_on_shutdown: section.word("on_shutdown", [true, false]),
    };
    section.finish();
    is_on.map(|_| config)
}

fn telemetry(mut section: Section<'_, '_>, directory: &Path, others: [&String; 2]) -> Telemetry {
    let levels = [
        tracing::Level::ERROR,
        tracing::Level::WARN,
        tracing::Level::INFO,
        tracing::Level::DEBUG,
        tracing::Level::TRACE,
    ];
    let config = Telemetry {
        endpoint: listener(&mut section, &others),
        enable_lifecycle: section.boolean_or_default("enable_lifecycle"),
        enable_recording: section.boolean_or_default("enable_recording"),
        log_level: section.word("log_level", levels),
        log_json: section.word("log_format", [false, true]),
        tls: server_tls(section.section("tls"), directory),
        bearer_token_file: server_auth(section.section("auth"), directory),
    };
    section.finish();
    config
}
