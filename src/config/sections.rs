//! The sections of `tailwater.toml`: keys, defaults, bounds, and how values depend on one another.
//!
//! A bound is there because beyond it the service would do something that nobody means: wait for an
//! hour, hold a request that no budget admits. Where one value bounds another, the message names
//! both keys; a value that is wrong itself bounds nothing, so that it stays one mistake.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Compression, Exporter, GrpcReceiver, HttpReceiver, Overflow, Retry, Sampling, Secret,
    SendingQueue, Telemetry,
    credentials::{exporter_tls, receiver_auth, receiver_tls},
    diagnostics::{Problem, quote},
    fit::{self, Wanted},
    memory::{self, MemoryLimit},
    reader::Span,
    section::{Read, Section},
    values,
};
use crate::credentials::ServerTls;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// Largest message of a sender: 1 GiB, since a length in gRPC's framing is 32 bits and has to be
/// held.
const MESSAGE_MIB: RangeInclusive<usize> = 1..=1024;

/// Largest message where the file sets none: what OTLP's specification recommends.
const MESSAGE_BYTES_DEFAULT: usize = 64 * MIB;

/// `decision_log_size` where the file sets none.
const DECISION_LOG_SIZE_DEFAULT: usize = 100_000;

/// `max_request_size_kib` where it is not set and the queue is large enough.
const REQUEST_BYTES_DEFAULT: usize = 3584 * KIB;

/// What a main file says, its policies aside.
pub(super) struct Sections {
    pub(super) shutdown_timeout: Duration,
    pub(super) grpc: GrpcReceiver,
    pub(super) http: HttpReceiver,
    pub(super) tls: Option<ServerTls>,
    pub(super) bearer_token_file: Option<PathBuf>,
    pub(super) sampling: Sampling,
    pub(super) exporter: Exporter,
    pub(super) telemetry: Telemetry,
    /// `policy_files` with their places.
    pub(super) policy_files: Vec<(String, Span)>,
}

/// Reads all sections, and the files that they name relative to `directory`;
/// `memory_default` is the memory limit where the file names none.
pub(super) fn read(
    root: &mut Section<'_, '_>,
    directory: &Path,
    memory_default: &MemoryLimit,
) -> Sections {
    let shutdown_timeout = root.duration("shutdown_timeout", Duration::from_secs(1)..=HOUR);

    let mut receiver = root.section("receiver");
    let (grpc, grpc_message) = grpc(receiver.section("grpc"));
    let (http, http_message) = http(receiver.section("http"), &grpc);
    let tls = receiver_tls(receiver.section("tls"), directory);
    let bearer_token_file = receiver_auth(receiver.section("auth"), directory);
    receiver.finish();

    let mut section = root.section("sampling");
    let policy_files = section.texts("policy_files").or(Vec::new());
    let memory = section.integer("memory_limit_mib", memory::BYTES_MIN / MIB..=MIB);
    let (memory, memory_span) = match memory.map(|mib| mib * MIB) {
        Read::Set(bytes, span) => (Some(MemoryLimit::configured(bytes)), Some(span)),
        Read::Unset => (Some(memory_default.clone()), None),
        Read::Bad => (None, None),
    };
    let (sampling, log) = sampling(section, memory.as_ref().unwrap_or(memory_default));
    if let Some(limit) = &memory {
        let messages: Vec<_> = [grpc_message, http_message].into_iter().flatten().collect();
        fit::review(root, limit, memory_span.as_ref(), &messages, log.as_ref());
    }

    let mut section = root.section("exporter");
    let exporter = exporter(
        section.section("otlp"),
        directory,
        &grpc,
        memory.as_ref().map(|limit| limit.bytes),
    );
    section.finish();

    let telemetry = telemetry(root.section("telemetry"), [&grpc.endpoint, &http.endpoint]);
    let shutdown_timeout = shutdown_timeout.or(Duration::from_secs(30));
    Sections {
        shutdown_timeout,
        grpc,
        http,
        tls,
        bearer_token_file,
        sampling,
        exporter,
        telemetry,
        policy_files,
    }
}

fn grpc(mut section: Section<'_, '_>) -> (GrpcReceiver, Option<Wanted>) {
    let (message, message_bytes) = message(&mut section, "max_recv_msg_size_mib");
    let config = GrpcReceiver {
        endpoint: listener(&mut section, "127.0.0.1:4317", &[]),
        max_recv_msg_bytes: message_bytes,
        max_concurrent_streams: section.integer("max_concurrent_streams", 1..=10_000).or(100),
        max_connections: section.integer("max_connections", 1..=100_000).or(1024),
    };
    section.finish();
    (config, message)
}

fn http(mut section: Section<'_, '_>, grpc: &GrpcReceiver) -> (HttpReceiver, Option<Wanted>) {
    let (message, message_bytes) = message(&mut section, "max_request_body_size_mib");
    let config = HttpReceiver {
        endpoint: listener(&mut section, "127.0.0.1:4318", &[&grpc.endpoint]),
        max_request_body_bytes: message_bytes,
    };
    section.finish();
    (config, message)
}

/// The size of the largest message, as something that has to fit, and in bytes.
fn message(section: &mut Section<'_, '_>, key: &'static str) -> (Option<Wanted>, usize) {
    let bytes = section.integer(key, MESSAGE_MIB).map(|mib| mib * MIB);
    (Wanted::new(key, &bytes, MESSAGE_BYTES_DEFAULT), bytes.or(MESSAGE_BYTES_DEFAULT))
}

/// `endpoint` of a listener, which none of the `others` may have.
fn listener(section: &mut Section<'_, '_>, default: &str, others: &[&String]) -> String {
    section
        .text("endpoint", |text| {
            let endpoint = values::listener("endpoint", text)?;
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
    let wait = section.duration("decision_wait", Duration::from_millis(10)..=HOUR);
    let after_root = section.duration("decision_wait_after_root_received", Duration::ZERO..=HOUR);
    if let (Read::Set(wait, _), Read::Set(after_root, span)) = (&wait, &after_root)
        && after_root >= wait
    {
        let message =
            "`decision_wait_after_root_received` has no effect: `decision_wait` ends first";
        section.warn(span.clone(), Problem::new(message));
    }
    let after_root = after_root.or(Duration::from_secs(5));
    let ttl = section.duration("decision_cache_ttl", Duration::from_secs(1)..=DAY);
    let max_trace_mib = section.integer("max_trace_bytes_mib", 1..=1024_u32);

    let mut stamp = section.section("stamp");
    let stamp_tracestate = stamp.boolean("tracestate").or(true);
    let stamp_policy = stamp.choice("policy", &[("root", true), ("off", false)]).or(true);
    stamp.finish();

    let log_key = "decision_log_size";
    let log_size = section.integer(log_key, 0..=10_000_000);
    let log = Wanted::new(log_key, &log_size, DECISION_LOG_SIZE_DEFAULT);

    let config = Sampling {
        decision_wait: wait.or(Duration::from_secs(30)),
        decision_wait_after_root_received: Some(after_root).filter(|wait| !wait.is_zero()),
        memory_limit_bytes: memory_limit.bytes,
        memory_limit_from: memory_limit.from.clone(),
        max_trace_spans: section.integer("max_trace_spans", 1..=10_000_000).or(32_000),
        max_trace_bytes: max_trace_mib.or(16) << 20,
        decision_cache_ttl: ttl.or(Duration::from_secs(120)),
        decision_log_size: log_size.or(DECISION_LOG_SIZE_DEFAULT),
        stamp_tracestate,
        stamp_policy,
    };
    section.finish();
    (config, log)
}

/// `memory` is absent where `memory_limit_mib` is wrong.
fn exporter(
    mut section: Section<'_, '_>,
    directory: &Path,
    grpc: &GrpcReceiver,
    memory: Option<usize>,
) -> Exporter {
    let endpoint = section.text("endpoint", |text| {
        let endpoint = values::exporter_endpoint("endpoint", text)?;
        if endpoint.split_once("://").is_some_and(|(_, address)| address == grpc.endpoint) {
            let message =
                "`endpoint` is this service's own [receiver.grpc]: spans would go in circles";
            return Err(Problem::new(message).hint("name the backend's OTLP/gRPC address"));
        }
        Ok(endpoint)
    });
    let compressions =
        [("none", Compression::None), ("gzip", Compression::Gzip), ("zstd", Compression::Zstd)];
    let compression = section.choice("compression", &compressions);
    let timeout = section.duration("timeout", Duration::from_millis(10)..=HOUR);
    let headers = headers(&mut section);
    let (queue, queue_bytes) = sending_queue(section.section("sending_queue"), memory);
    let retry = retry(section.section("retry_on_failure"));
    let max_request_bytes = max_request_bytes(&mut section, queue_bytes);
    let max_trace_kib = section.integer("max_trace_bytes_kib", 0..=u32::MAX).or(0);
    let is_https = match &endpoint {
        Read::Set(endpoint, _) => Some(endpoint.starts_with("https://")),
        Read::Unset => Some(false),
        Read::Bad => None,
    };
    let tls = exporter_tls(section.section("tls"), is_https, directory);
    section.finish();
    Exporter {
        endpoint: endpoint.or("http://127.0.0.1:4327".to_owned()),
        compression: compression.or(Compression::None),
        timeout: timeout.or(Duration::from_secs(5)),
        max_request_bytes,
        max_trace_bytes: (max_trace_kib > 0).then_some(u64::from(max_trace_kib) << 10),
        headers,
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
            let message = format!("the header {} is there twice", quote(&name));
            section.error(span, Problem::new(message).hint("the case of names does not count"));
        }
        headers.insert(name, Secret::from(value));
    }
    headers
}

/// The queue and its size; the size is absent where a mistake leaves it unknown.
fn sending_queue(
    mut section: Section<'_, '_>,
    memory: Option<usize>,
) -> (SendingQueue, Option<usize>) {
    let half = memory.map_or(usize::MAX, |bytes| bytes / 2);
    let bytes = match section.integer("queue_size_mib", 1..=MIB).map(|mib| mib * MIB) {
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
    let overflows = [("block", Overflow::Block), ("drop", Overflow::Drop)];
    let queue = SendingQueue {
        queue_bytes_max: bytes.unwrap_or(usize::MAX),
        num_consumers: section.integer("num_consumers", 1..=1_000).or(10),
        overflow: section.choice("overflow", &overflows).or(Overflow::Block),
    };
    section.finish();
    (queue, bytes)
}

/// A request is at most a quarter of the queue, so that consumers and bisection have room beside
/// it. The default gives way to a small queue silently: nobody asked for it.
fn max_request_bytes(section: &mut Section<'_, '_>, queue_bytes: Option<usize>) -> usize {
    let quarter = queue_bytes.map_or(usize::MAX, |bytes| bytes / 4);
    match section.integer("max_request_size_kib", 16..=65_536).map(|kib| kib * KIB) {
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
        Read::Unset | Read::Bad => REQUEST_BYTES_DEFAULT.min(quarter),
    }
}

fn retry(mut section: Section<'_, '_>) -> Retry {
    let initial = section.duration("initial_interval", Duration::from_millis(1)..=HOUR);
    let max = section.duration("max_interval", Duration::from_millis(1)..=HOUR);
    let elapsed = section.duration("max_elapsed_time", Duration::ZERO..=DAY);
    let written = [&initial, &max].into_iter().find_map(|read| match read {
        Read::Set(_, span) => Some(span.clone()),
        _ => None,
    });
    let any_bad = matches!(initial, Read::Bad) || matches!(max, Read::Bad);
    let retry = Retry {
        initial_interval: initial.or(Duration::from_secs(1)),
        max_interval: max.or(Duration::from_secs(30)),
        max_elapsed_time: Some(elapsed.or(Duration::from_secs(300))).filter(|time| !time.is_zero()),
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

fn telemetry(mut section: Section<'_, '_>, others: [&String; 2]) -> Telemetry {
    let levels = [
        ("error", tracing::Level::ERROR),
        ("warn", tracing::Level::WARN),
        ("info", tracing::Level::INFO),
        ("debug", tracing::Level::DEBUG),
        ("trace", tracing::Level::TRACE),
    ];
    let config = Telemetry {
        endpoint: listener(&mut section, "127.0.0.1:9464", &others),
        enable_lifecycle: section.boolean("enable_lifecycle").or(false),
        log_level: section.choice("log_level", &levels).or(tracing::Level::INFO),
        log_json: section.choice("log_format", &[("text", false), ("json", true)]).or(false),
    };
    section.finish();
    config
}
