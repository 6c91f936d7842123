use std::{collections::BTreeSet, time::Duration};

use super::{
    super::{Compression, CorsPolicy, Overflow, Protocol},
    POLICY, config, each_has_one_problem, parse, problems,
};

const DEPLOYED: &str = include_str!("../../../deploy/tailwater.toml");

/// `text` before a policy, so that nothing else is wrong with the file.
fn with_policy(text: &str) -> String {
    format!("{text}\n{POLICY}")
}

#[track_caller]
fn each_line_has_one_problem(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        each_has_one_problem(&[(&with_policy(text), expected)]);
    }
}

#[test]
fn defaults_are_those_of_the_contract() {
    let config = config(POLICY);
    assert_eq!(config.shutdown_timeout, Duration::from_secs(30));
    assert_eq!(config.grpc.endpoint, "127.0.0.1:4317");
    assert_eq!(config.grpc.max_recv_msg_bytes, 64 << 20);
    assert_eq!(config.grpc.max_concurrent_streams, 100);
    assert_eq!(config.grpc.max_connections, 1024);
    assert_eq!((config.grpc.max_connection_age, config.http.max_connection_age), (None, None));
    assert_eq!(config.http.traces_url_path, "/v1/traces");
    assert_eq!(config.http.cors, CorsPolicy::default());
    assert_eq!(config.http.endpoint, "127.0.0.1:4318");
    assert_eq!(config.http.max_request_body_bytes, 64 << 20);
    assert_eq!(config.sampling.decision_wait, Duration::from_secs(30));
    let after_root = config.sampling.decision_wait_after_root_received;
    assert_eq!(after_root, Some(Duration::from_secs(10)));
    assert_eq!(config.sampling.memory_limit_bytes, 1 << 30);
    assert_eq!(config.sampling.max_trace_spans, 32_000);
    assert_eq!(config.sampling.max_trace_bytes, 16 << 20);
    assert_eq!(config.sampling.decision_cache_ttl, Duration::from_secs(120));
    assert_eq!(config.sampling.decision_log_size, 100_000);
    assert!(config.sampling.stamp_tracestate && config.sampling.stamp_policy);
    assert_eq!(config.exporter.endpoint, "http://127.0.0.1:4327");
    assert_eq!(config.exporter.protocol, Protocol::Grpc);
    assert_eq!(config.exporter.bearer_token_file, None);
    assert_eq!(config.exporter.compression, Compression::None);
    assert_eq!(config.exporter.timeout, Duration::from_secs(5));
    assert_eq!(config.exporter.max_request_bytes, 3584 << 10);
    assert!(config.exporter.headers.is_empty());
    assert_eq!((config.tls, config.bearer_token_file, config.exporter.tls), (None, None, None));
    assert_eq!(config.exporter.queue.queue_bytes_max, 256 << 20);
    assert_eq!(config.exporter.queue.num_consumers, 10);
    assert_eq!(config.exporter.queue.overflow, Overflow::Block);
    assert_eq!(config.exporter.retry.initial_interval, Duration::from_secs(1));
    assert_eq!(config.exporter.retry.max_interval, Duration::from_secs(30));
    assert_eq!(config.exporter.retry.max_elapsed_time, Some(Duration::from_secs(300)));
    assert_eq!(config.telemetry.endpoint, "127.0.0.1:9464");
    assert_eq!(config.telemetry.log_level, tracing::Level::INFO);
    assert!(!config.telemetry.log_json && !config.telemetry.enable_lifecycle);
    assert!(!config.telemetry.enable_recording);
}

#[test]
fn the_deployed_file_says_what_the_code_does() {
    let (default, deployed) = (config(POLICY), config(DEPLOYED));
    assert_eq!(deployed.shutdown_timeout, default.shutdown_timeout);
    assert_eq!(deployed.grpc, default.grpc);
    assert_eq!(deployed.http, default.http);
    assert_eq!(deployed.sampling, default.sampling);
    assert_eq!(deployed.exporter, default.exporter);
    assert_eq!(deployed.telemetry, default.telemetry);
    let policies = config(include_str!("../../../policies/default.toml")).policies;
    assert_eq!(format!("{:?}", deployed.policies), format!("{policies:?}"));
}

#[test]
fn values_that_are_commented_out_are_the_defaults_too() {
    let unset = ["memory_limit_mib = 1024", "queue_size_mib = 256"];
    let uncommented = unset.iter().fold(DEPLOYED.to_owned(), |text, line| {
        assert!(text.contains(&format!("\n# {line}\n")), "{line}");
        text.replace(&format!("# {line}"), line)
    });
    let (default, deployed) = (config(POLICY), config(&uncommented));
    assert_eq!(deployed.sampling, default.sampling);
    assert_eq!(deployed.exporter, default.exporter);
}

/// Reads the deployed file line by line, so that a comment counts as the key that it shows.
#[test]
fn every_key_and_no_other_is_in_the_deployed_file() {
    let (_, known) = parse(POLICY);
    let mut shown = BTreeSet::new();
    let mut section = "";
    for line in DEPLOYED.lines().map(|line| line.trim_start_matches("# ")) {
        if let Some(header) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = header;
            let (parent, key) = header.rsplit_once('.').unwrap_or(("", header));
            shown.insert((parent, key));
        } else if let Some((key, _)) = line.split_once(" = ")
            && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        {
            shown.insert((section, key));
        }
    }
    for (path, key) in known.iter().flat_map(|(path, keys)| keys.iter().map(move |key| (path, key)))
    {
        let is_parent = known.contains_key(&[path, *key].join("."));
        let is_top = path.is_empty() && (*key == "policy" || known.contains_key(*key));
        let found = shown.remove(&(path.as_str(), *key));
        assert!(found || is_parent || is_top, "[{path}] {key} is not in deploy/tailwater.toml");
    }
    shown.retain(|(section, key)| {
        let is_policy = section.starts_with("[policy") || key.starts_with("[policy");
        let header = format!("{section}.{key}");
        !is_policy && !known.contains_key(&header)
    });
    assert_eq!(shown, BTreeSet::new());
}

#[test]
fn every_key_changes_the_configuration() {
    let changed = config(&with_policy(
        r#"
        shutdown_timeout = "1s"
        receiver.grpc.endpoint = "[::1]:0"
        receiver.grpc.max_recv_msg_size_mib = 1
        receiver.grpc.max_concurrent_streams = 2
        receiver.grpc.max_connections = 3
        receiver.http = { endpoint = "otel.example:${env:PORT}", max_request_body_size_mib = 8 }
        telemetry = { endpoint = "0.0.0.0:0",
             enable_lifecycle = true, enable_recording = true,
             log_level = "warn", log_format = "json" }
        [sampling]
        decision_wait = "1m 30s"
        decision_wait_after_root_received = "0s"
        memory_limit_mib = 32
        max_trace_spans = 1
        max_trace_bytes_mib = 1024
        decision_cache_ttl = "24h"
        decision_log_size = 0
        stamp = { tracestate = false, policy = "off" }
        [exporter.otlp]
        endpoint = "http://tempo:4317"
        compression = "zstd"
        timeout = "500ms"
        max_request_size_kib = 0x10
        max_trace_bytes_kib = 0
        headers = { "X-Scope-OrgID" = "team-a", authorization = "Bearer ${env:SECRET}" }
        sending_queue = { queue_size_mib = 16, num_consumers = 1, overflow = "drop" }
        retry_on_failure = { initial_interval = "2s", max_interval = "2s", max_elapsed_time = "0s" }
        "#,
    ));
    assert_eq!(changed.shutdown_timeout, Duration::from_secs(1));
    assert_eq!(changed.grpc.endpoint, "[::1]:0");
    assert_eq!(changed.grpc.max_recv_msg_bytes, 1 << 20);
    assert_eq!((changed.grpc.max_concurrent_streams, changed.grpc.max_connections), (2, 3));
    assert_eq!(changed.http.endpoint, "otel.example:4444");
    assert_eq!(changed.http.max_request_body_bytes, 8 << 20);
    assert_eq!(changed.telemetry.endpoint, "0.0.0.0:0");
    assert_eq!(changed.telemetry.log_level, tracing::Level::WARN);
    assert!(changed.telemetry.log_json && changed.telemetry.enable_lifecycle);
    assert!(changed.telemetry.enable_recording);
    assert_eq!(changed.sampling.decision_wait, Duration::from_secs(90));
    assert_eq!(changed.sampling.decision_wait_after_root_received, None);
    assert_eq!(changed.sampling.memory_limit_bytes, 32 << 20);
    assert_eq!(changed.sampling.max_trace_spans, 1);
    assert_eq!(changed.sampling.max_trace_bytes, 1 << 30);
    assert_eq!(changed.sampling.decision_cache_ttl, Duration::from_secs(86_400));
    assert_eq!(changed.sampling.decision_log_size, 0);
    assert!(!changed.sampling.stamp_tracestate && !changed.sampling.stamp_policy);
    let exporter = changed.exporter;
    assert_eq!(exporter.endpoint, "http://tempo:4317");
    assert_eq!(exporter.compression, Compression::Zstd);
    assert_eq!(exporter.timeout, Duration::from_millis(500));
    assert_eq!(exporter.max_request_bytes, 16 << 10);
    assert_eq!(exporter.headers["x-scope-orgid"].reveal(), "team-a");
    assert_eq!(exporter.headers["authorization"].reveal(), "Bearer s3cret");
    assert!(!format!("{:?}", exporter.headers).contains("s3cret"));
    assert_eq!(exporter.queue.queue_bytes_max, 16 << 20);
    assert_eq!((exporter.queue.num_consumers, exporter.queue.overflow), (1, Overflow::Drop));
    assert_eq!(exporter.retry.max_interval, Duration::from_secs(2));
    assert_eq!(exporter.retry.max_elapsed_time, None);
}

#[test]
fn the_default_request_shrinks_with_a_small_queue() {
    let small = config(&with_policy(
        "[receiver]\ngrpc.max_recv_msg_size_mib = 8\nhttp.max_request_body_size_mib = 8\n\
         [sampling]\nmemory_limit_mib = 32\ndecision_log_size = 1_000",
    ));
    assert_eq!(small.exporter.queue.queue_bytes_max, 8 << 20);
    assert_eq!(small.exporter.max_request_bytes, 2 << 20);
    let small = config(&with_policy("[exporter.otlp.sending_queue]\nqueue_size_mib = 1"));
    assert_eq!(small.exporter.max_request_bytes, 256 << 10);
}

#[test]
fn values_of_a_wrong_type_or_out_of_bounds() {
    each_line_has_one_problem(&[
        (
            "sampling.decision_wait = 30",
            "1:26: error: `decision_wait` must be a duration in quotes, found an integer \
             | write a number and its unit, such as \"500ms\" or \"30s\"",
        ),
        (
            "sampling.decision_wait = '9ms'",
            "1:26: error: `decision_wait` must be between 10ms and 1h, found `9ms`",
        ),
        (
            "sampling.decision_wait = '30'",
            "1:26: error: `decision_wait` must be a duration, found `30`: time unit needed, for \
             example 30sec or 30ms \
             | write a number and its unit, such as \"500ms\", \"30s\" or \"5m\"",
        ),
        (
            "sampling.max_trace_bytes_mib = 1025",
            "1:32: error: `max_trace_bytes_mib` must be between 1 and 1024, found `1025`",
        ),
        (
            "receiver.grpc.max_connections = -1",
            "1:33: error: `max_connections` must be between 1 and 100000, found `-1`",
        ),
        (
            "sampling.max_trace_spans = 99999999999999999999999999999999999999999999",
            "1:28: error: `max_trace_spans` must be between 1 and 10000000, \
             found `99999999999999999999999999999999999999999999`",
        ),
        (
            "sampling.memory_limit_mib = '1GiB'",
            "1:29: error: `memory_limit_mib` must be an integer, found a string \
             | write a number between 32 and 1048576, without quotes or unit",
        ),
        (
            "sampling.memory_limit_mib = 16",
            "1:29: error: `memory_limit_mib` must be between 32 and 1048576, found `16`",
        ),
        (
            "sampling.stamp.tracestate = 'true'",
            "1:29: error: `tracestate` must be true or false, found a string \
             | write true without quotes",
        ),
        (
            "sampling.stamp.policy = 'roots'",
            "1:25: error: `policy` must be one of `root`, `off`, found `roots` \
             | did you mean `root`?",
        ),
        (
            "telemetry.log_level = 'INFO'",
            "1:23: error: `log_level` must be one of `error`, `warn`, `info`, `debug`, `trace`, \
             found `INFO` | did you mean `info`?",
        ),
        (
            "sampling = 3",
            "1:12: error: `sampling` must be a table, found an integer | write [sampling]",
        ),
        (
            "[[sampling]]\ndecision_wait = '1s'",
            "1:1: error: `sampling` must be a table, found an array | write [sampling]",
        ),
        (
            "sampling.policy_files = 'a.toml'",
            "1:25: error: `policy_files` must be a list of strings, found a string \
             | write [\"...\"]",
        ),
    ]);
}

#[test]
fn settings_of_receivers_are_checked() {
    each_line_has_one_problem(&[
        (
            "receiver.http.max_connection_age = '1ms'",
            "1:36: error: `max_connection_age` must be at least 1s, found `1ms` \
             | \"0s\" turns it off; \"30m\" is long enough for senders to notice new replicas",
        ),
        (
            "receiver.http.traces_url_path = 'v1/traces'",
            "1:33: error: `traces_url_path` must be a path, found `v1/traces` \
             | begin with a slash: \"/v1/traces\"",
        ),
        (
            "receiver.http.traces_url_path = 'http://t/v1/traces'",
            "1:33: error: `traces_url_path` must be a path, found `http://t/v1/traces` \
             | leave the scheme and the host out: \"/v1/traces\"",
        ),
        (
            "receiver.http.traces_url_path = '/v1/traces?x'",
            "1:33: error: `traces_url_path` must be a path, found `/v1/traces?x` \
             | percent-encode special characters, and leave `?` and `#` out",
        ),
        (
            "receiver.http.cors.allowed_origins = ['shop.example']",
            "1:39: error: an origin must be https://host:port or `*`, found `shop.example` \
             | add the scheme: \"https://shop.example\"",
        ),
        (
            "receiver.http.cors.allowed_origins = ['https://shop.example/']",
            "1:39: error: an origin must be https://host:port or `*`, \
             found `https://shop.example/` | origins have no path: \"https://shop.example\"",
        ),
        (
            "receiver.http.cors.allowed_origins = ['https://*.*.example']",
            "1:39: error: an origin must be https://host:port or `*`, \
             found `https://*.*.example` \
             | an origin may have one `*`, which stands for any characters",
        ),
        (
            "receiver.http.cors = { allowed_origins = ['*'], allowed_headers = ['x team'] }",
            "1:68: error: `x team` is not the name of a header \
             | names are ASCII letters, digits, `-` and `_`; `*` is all",
        ),
        (
            "receiver.http.cors.allowed_headers = ['x-team']",
            "1:38: warning: `allowed_headers` has no effect without `allowed_origins` \
             | name the sites that may send from a browser",
        ),
    ]);
}

#[test]
fn every_key_of_the_receivers_changes_the_configuration() {
    let changed = config(&with_policy(
        r#"
        receiver.grpc.max_connection_age = "30m"
        [receiver.http]
        traces_url_path = "/otlp/v1/traces"
        max_connection_age = "1s"
        cors = { allowed_origins = ["https://*.example", "*"], allowed_headers = ["X-Team"] }
        "#,
    ));
    assert_eq!(changed.grpc.max_connection_age, Some(Duration::from_secs(1800)));
    assert_eq!(changed.http.max_connection_age, Some(Duration::from_secs(1)));
    assert_eq!(changed.http.traces_url_path, "/otlp/v1/traces");
    assert_eq!(changed.http.cors.allowed_origins, ["https://*.example", "*"]);
    assert_eq!(changed.http.cors.allowed_headers, ["X-Team"]);
}

#[test]
fn endpoints() {
    let listener = |endpoint: &str| with_policy(&format!("telemetry.endpoint = '{endpoint}'"));
    for good in ["localhost:4317", "0.0.0.0:4317", "[::1]:4317", "127.0.0.1:0", "a-b.c_d:1"] {
        assert_eq!(config(&listener(good)).telemetry.endpoint, good);
    }
    for (bad, hint) in [
        ("localhost", "add the port: \"localhost:9464\""),
        ("[::1]", "add the port: \"[::1]:9464\""),
        ("[::1", "add the port"),
        ("::1:4317", "put an IPv6 address in brackets: \"[::1]:4317\""),
        (":4317", "for all addresses of this machine: \"0.0.0.0:4317\""),
        ("localhost:", "the port is a number between 0 and 65535"),
        ("localhost:+1", "the port is a number between 0 and 65535"),
        ("localhost:65536", "the port is a number between 0 and 65535"),
        ("http://localhost:4317", "leave the scheme out: \"localhost:4317\""),
        ("300.0.0.1:1", "the host is a name, an IPv4 address, or an IPv6 address in brackets"),
        ("a b:1", "the host is a name, an IPv4 address, or an IPv6 address in brackets"),
        ("", "add the port: \"0.0.0.0:9464\""),
        ("http://localhost/", "leave the scheme out: \"localhost:9464\""),
        ("localhost:1/metrics", "leave the path out: \"localhost:1\""),
        ("a b", "add the port"),
    ] {
        let message = format!("1:22: error: `endpoint` must be host:port, found `{bad}` | {hint}");
        assert_eq!(problems(&listener(bad)), [message]);
    }
    for (bad, hint) in [
        ("tempo:4317", " | add the scheme: \"http://tempo:4317\""),
        ("http://tempo", " | add the port: \"http://tempo:4317\""),
        ("tempo", " | add the scheme: \"http://tempo:4317\""),
        ("tempo/v1/traces", " | add the scheme: \"http://tempo:4317\""),
        ("http://::1:4327", " | put an IPv6 address in brackets: \"http://[::1]:4327\""),
        ("http://:4317", " | name the host"),
        ("http://127.0.0.1", " | add the port"),
        ("127.0.0.1:4317", " | add the scheme"),
        ("http://tempo:0", " | port 0 cannot be connected to"),
        ("grpc://tempo:4317", " | the scheme is http:// or https://: \"http://tempo:4317\""),
        ("GRPCS://tempo", " | the scheme is http:// or https://: \"https://tempo:4317\""),
        (
            "http://tempo:4317/v1",
            " | OTLP/gRPC has no path (for OTLP/HTTP set `protocol`): \"http://tempo:4317\"",
        ),
        ("ftp://tempo:4317", " | the scheme is http:// or https://: \"http://tempo:4317\""),
    ] {
        let text = with_policy(&format!("exporter.otlp.endpoint = '{bad}'"));
        let message =
            format!("1:26: error: `endpoint` must be http://host:port, found `{bad}`{hint}");
        assert_eq!(problems(&text), [message]);
    }
    each_line_has_one_problem(&[
        (
            "exporter.otlp.endpoint = 'https://tempo'",
            "1:26: error: `endpoint` must be http://host:port, found `https://tempo` \
             | add the port: \"https://tempo:4317\"",
        ),
        (
            "exporter.otlp.endpoint = 'https://127.0.0.1:4317'",
            "1:26: error: `endpoint` is this service's own [receiver.grpc]: spans would go in \
             circles | name the backend's OTLP address",
        ),
        (
            "exporter.otlp.endpoint = 'http://127.0.0.1:4317'",
            "1:26: error: `endpoint` is this service's own [receiver.grpc]: spans would go in \
             circles | name the backend's OTLP address",
        ),
        (
            "receiver.http.endpoint = '127.0.0.1:4317'",
            "1:26: error: two listeners have the endpoint `127.0.0.1:4317`",
        ),
    ]);
}

#[test]
fn endpoints_of_otlp_http() {
    let text = |endpoint: &str| {
        let protocol = "exporter.otlp.protocol = 'http/protobuf'";
        with_policy(&format!("{protocol}\nexporter.otlp.endpoint = '{endpoint}'"))
    };
    for good in [
        "http://tempo:4318",
        "http://tempo:4318/",
        "https://otlp.example",
        "https://[::1]/otlp",
        "https://[::1]:4318/otlp/",
        "https://10.0.0.1/a/b%20c",
    ] {
        let config = config(&text(good));
        assert_eq!(
            (&config.exporter.endpoint[..], config.exporter.protocol),
            (good, Protocol::Http)
        );
    }
    let wanted = "`endpoint` must be http://host:port/path, where port and path may be left out";
    for (bad, hint) in [
        ("tempo:4318", " | add the scheme: \"http://tempo:4318\""),
        ("http://tempo:0/x", " | port 0 cannot be connected to"),
        ("http://tempo:x/", " | the port is a number between 0 and 65535"),
        (
            "http://user@tempo",
            " | the host is a name, an IPv4 address, or an IPv6 address in brackets",
        ),
        (
            "http://tempo/x?token=1",
            " | leave out everything from `?` or `#` on: \"http://tempo/x\"",
        ),
        ("http://tempo#x", " | leave out everything from `?` or `#` on: \"http://tempo\""),
        ("http://tempo/a b", " | the path has characters that must be percent-encoded"),
        ("ftp://tempo", " | the scheme is http:// or https://: \"http://tempo\""),
    ] {
        let message = format!("2:26: error: {wanted}, found `{bad}`{hint}");
        assert_eq!(problems(&text(bad)), [message]);
    }
    for full in ["http://tempo:4318/v1/traces", "http://tempo:4318/v1/traces/"] {
        let message = "2:26: error: `endpoint` is a base URL, to which /v1/traces is added \
                       | write \"http://tempo:4318\"";
        assert_eq!(problems(&text(full)), [message]);
    }
    let own = "2:26: error: `endpoint` is this service's own [receiver.http]: spans would go in \
               circles | name the backend's OTLP address";
    assert_eq!(problems(&text("http://127.0.0.1:4318/x")), [own]);
}

#[test]
fn a_port_of_the_other_protocol_is_a_warning() {
    let of = |protocol: &str, endpoint: &str| {
        problems(&with_policy(&format!(
            "exporter.otlp = {{ protocol = '{protocol}', endpoint = '{endpoint}' }}"
        )))
    };
    assert_eq!(
        of("http/protobuf", "http://tempo:4317/x"),
        ["1:58: warning: the port is the usual one for `protocol = \"grpc\"` \
          | `http/protobuf` usually has port 4318"]
    );
    assert_eq!(
        of("grpc", "http://tempo:4318"),
        ["1:49: warning: the port is the usual one for `protocol = \"http/protobuf\"` \
          | `grpc` usually has port 4317"]
    );
    // One mistake causes one problem.
    assert_eq!(
        of("http", "http://tempo:4318/v1/traces"),
        ["1:30: error: `protocol` must be one of `grpc`, `http/protobuf`, found `http` \
          | did you mean `http/protobuf`?"]
    );
}

#[test]
fn headers() {
    let header = |entry: &str| with_policy(&format!("exporter.otlp.headers = {{ {entry} }}"));
    for (entry, message) in [
        ("a = 1", "1:31: error: `a` must be a string, found an integer"),
        (
            "'a b' = ''",
            "1:35: error: `a b` is not the name of a header \
             | names are ASCII letters, digits, `-` and `_`",
        ),
        ("te = 'x'", "1:32: error: the header `te` is the protocol's own"),
        ("x-bin = 'x'", "1:35: error: the header `x-bin` is the protocol's own"),
        (
            "a = 'sécret'",
            "1:31: error: the value of `a` must be visible ASCII, without spaces around it",
        ),
        (
            "a = '${env:ESCAPE}'",
            "1:31: error: the value of `a` must be visible ASCII, without spaces around it",
        ),
        (
            "A = 'x', a = 'y'",
            "1:36: error: the header `a` is given twice | the case of header names is ignored",
        ),
    ] {
        assert_eq!(problems(&header(entry)), [message]);
    }
}

#[test]
fn values_that_bound_each_other() {
    each_line_has_one_problem(&[
        (
            "[sampling]\nmemory_limit_mib = 300\n[exporter.otlp.sending_queue]\nqueue_size_mib \
             = 151",
            "4:18: error: `queue_size_mib` may be at most half of the memory limit, 150 MiB, \
             found 151 \
             | make it smaller, or raise `memory_limit_mib` in [sampling]",
        ),
        (
            "exporter.otlp.sending_queue.queue_size_mib = 4\nexporter.otlp.max_request_size_kib \
             = 1025",
            "2:38: error: `max_request_size_kib` may be at most a quarter of the sending queue, \
             1024 KiB, found 1025 \
             | make it smaller, or raise `queue_size_mib` in [exporter.otlp.sending_queue]",
        ),
        (
            "exporter.otlp.retry_on_failure.initial_interval = '1m'",
            "1:51: error: `initial_interval`, 1m, is longer than `max_interval`, 30s",
        ),
        (
            "[sampling]\ndecision_wait = '2s'\ndecision_wait_after_root_received = '2s'",
            "3:37: warning: `decision_wait_after_root_received` has no effect: \
             `decision_wait` ends first",
        ),
        // A wrong value does not bound others.
        (
            "sampling.memory_limit_mib = 1\nexporter.otlp.sending_queue.queue_size_mib = 900",
            "1:29: error: `memory_limit_mib` must be between 32 and 1048576, found `1`",
        ),
        (
            "exporter.otlp.sending_queue.queue_size_mib = 0\nexporter.otlp.max_request_size_kib \
             = 65536",
            "1:46: error: `queue_size_mib` must be between 1 and 1048576, found `0`",
        ),
    ]);
}

#[test]
fn unknown_keys() {
    each_line_has_one_problem(&[
        ("[samplng]\nx = 1", "1:2: error: unknown key `samplng` | did you mean `sampling`?"),
        (
            "[sampling]\ndecision_wiat = '1s'",
            "2:1: error: unknown key `decision_wiat` in [sampling] | did you mean `decision_wait`?",
        ),
        (
            "[exporter.otlp]\nqueue_size_mib = 3",
            "2:1: error: unknown key `queue_size_mib` in [exporter.otlp] \
             | `queue_size_mib` belongs to [exporter.otlp.sending_queue]",
        ),
        (
            "[sampling]\nshutdown_timeout = '1s'",
            "2:1: error: unknown key `shutdown_timeout` in [sampling] \
             | `shutdown_timeout` belongs to the top of the main file, before the first [section]",
        ),
        (
            "[sampling]\nnum_traces = 50000",
            "2:1: error: unknown key `num_traces` in [sampling] \
             | the window is bounded by `memory_limit_mib` in [sampling], not by a count",
        ),
        (
            "[sampling.stamp]\nx = 1",
            "2:1: error: unknown key `x` in [sampling.stamp] | the keys here are `tracestate`, \
             `policy`",
        ),
    ]);
    let below_a_policy = format!("{POLICY}decision_wait = '1s'\n");
    each_has_one_problem(&[(
        &below_a_policy,
        "4:1: error: unknown key `decision_wait` in a policy of type `always_sample` \
         | `decision_wait` belongs to [sampling]",
    )]);
}

#[test]
fn environment_variables() {
    each_line_has_one_problem(&[
        (
            "telemetry.endpoint = 'localhost:${env:MISSING}'",
            "1:22: error: the environment variable `MISSING` is not set \
             | set it, or give a default: `${env:MISSING:-default}`",
        ),
        (
            "telemetry.endpoint = 'localhost:${env:ESCAPE}'",
            "1:22: error: `endpoint` must be host:port, found `localhost:${env:ESCAPE}` \
             | the values of environment variables are not shown: they may be secrets",
        ),
        (
            "sampling.decision_wait = '${env:SECRET}'",
            "1:26: error: `decision_wait` must be a duration, found `${env:SECRET}`: \
             expected number at 0 \
             | the values of environment variables are not shown: they may be secrets",
        ),
        (
            "receiver.auth.bearer_token_file = '/nowhere/${env:SECRET}'",
            "1:35: error: `bearer_token_file` cannot be used: No such file or directory (os error \
             2) | a relative path starts at the directory of this file",
        ),
    ]);
    let waits = config(&with_policy("sampling.decision_wait = '${env:WAIT:-7s}'"));
    assert_eq!(waits.sampling.decision_wait, Duration::from_secs(7));
}

#[test]
fn settings_that_do_not_fit_into_memory_are_reported() {
    let of = |text: &str| problems(&with_policy(text));
    let fits = [
        "[sampling]\nmemory_limit_mib = 256",
        "[receiver.grpc]\nmax_recv_msg_size_mib = 256",
        "[sampling]\ndecision_log_size = 633_000",
    ];
    for text in fits {
        assert_eq!(of(text), [""; 0], "{text}");
    }
    let small = of("[sampling]\nmemory_limit_mib = 32");
    assert_eq!(
        small,
        [
            "2:20: warning: a message of 64 MiB may not fit into the memory limit of 32 MiB: it is \
             held twice while it is taken in, and is then refused as too large; up to 8 MiB always \
             fit | set `max_recv_msg_size_mib` and `max_request_body_size_mib` to 8 or less",
            "2:20: warning: the decision log will hold at most 19784 traces, not \
             `decision_log_size` = 100000: it may take a sixteenth of the memory limit of 32 MiB \
             | set `decision_log_size` to 19784 or less, or raise `memory_limit_mib`",
        ]
    );
    let large = of("[receiver.http]\nmax_request_body_size_mib = 257");
    assert!(large.len() == 1 && large[0].starts_with("2:29: warning: a message of 257 MiB"));
    let log = of("[sampling]\ndecision_log_size = 700_000");
    assert!(log.len() == 1 && log[0].starts_with("2:21: warning: the decision log will hold"));
    let set = "[receiver]\ngrpc.max_recv_msg_size_mib = 60\nhttp.max_request_body_size_mib = 20\n\
               [sampling]\nmemory_limit_mib = 100\ndecision_log_size = 1_000";
    assert_eq!(of(set).len(), 1, "{:?}", of(set));
    // A wrong limit does not bound others.
    assert_eq!(of("[sampling]\nmemory_limit_mib = 1\ndecision_log_size = 1_000_000").len(), 1);
}
