//! `[exporter.otlp]` and below.

use std::time::Duration;

use super::{DAY, Described, HOUR, Key, Kind, Need};

const MILLISECOND: Duration = Duration::from_millis(1);

pub(super) const SECTIONS: &[Described] = &[
    Described { path: "exporter", words: "Where kept spans go.", is_optional: false, keys: &[] },
    Described {
        path: "exporter.otlp",
        words: "Tempo, or any other OTLP backend.",
        is_optional: false,
        keys: &[
            Key::new(
                "endpoint",
                Kind::Url { default: "http://127.0.0.1:4327" },
                "`http://host:port` of the backend, or `https://host:port` for TLS. With \
                 `protocol = \"http/protobuf\"` it is a base URL: `/v1/traces` is added to its \
                 path, and its port may be left out.",
            ),
            Key::word(
                "protocol",
                &["grpc", "http/protobuf"],
                "OTLP/gRPC, usually on port 4317, or OTLP/HTTP, usually on port 4318.",
            ),
            Key::word(
                "compression",
                &["none", "gzip", "zstd"],
                "Compression of requests. It is worth its CPU time if the network is slow or costs \
                 money.",
            ),
            Key::duration(
                "timeout",
                [Duration::from_millis(10), HOUR],
                Duration::from_secs(5),
                "The time limit for one attempt to deliver a request.",
            ),
            Key::integer(
                "max_request_size_kib",
                [16, 65_536],
                3584,
                "Largest request in KiB. The default is below the 4 MiB that gRPC servers take by \
                 default. At most a quarter of the queue; for a small queue, the default is \
                 reduced to that.",
            ),
            Key::integer(
                "max_trace_bytes_kib",
                [0, u32::MAX as u64],
                0,
                "Cap on the spans of one kept trace over its whole life, late ones included, in \
                 KiB, for backends that have such a cap. Spans beyond it are dropped and counted \
                 as `trace_bytes`. Tempo's own cap is 5,000,000 bytes with resources: 4000 leaves \
                 room for these. `0` turns it off.",
            ),
            Key::new(
                "headers",
                Kind::Headers,
                "Sent with every request, for example `{ \"X-Scope-OrgID\" = \"team-a\" }`.",
            ),
            Key::path(
                "bearer_token_file",
                "\"token\"",
                "A file with the token that is sent as `authorization: Bearer <token>`. It is \
                 read again within 10 s when it changes.",
            ),
        ],
    },
    Described {
        path: "exporter.otlp.tls",
        words: "For an endpoint that is `https://`. Without the section the certificate of the \
                backend must be signed by a CA of the operating system, be valid for the host of \
                the endpoint, and Tailwater shows no certificate. Files as in `[receiver.tls]`.",
        is_optional: true,
        keys: &[
            Key::path(
                "ca_file",
                "\"backend.crt\"",
                "File with the CAs, one of which must have signed the backend's certificate. \
                 Unset: the CAs of the operating system.",
            ),
            Key::path(
                "cert_file",
                "\"client.crt\"",
                "The client certificate, for a backend that asks for one.",
            )
            .needed(Need::With("key_file")),
            Key::path("key_file", "\"client.key\"", "Its private key, without a passphrase.")
                .needed(Need::With("cert_file")),
            Key {
                example: "\"tempo.example\"",
                ..Key::new(
                    "server_name",
                    Kind::Text { pattern: "" },
                    "The name that the certificate of the backend must be valid for. Unset: the \
                     host of the endpoint.",
                )
            },
        ],
    },
    Described {
        path: "exporter.otlp.sending_queue",
        words: "Kept spans that wait for the backend.",
        is_optional: false,
        keys: &[
            Key::integer_or_unset(
                "queue_size_mib",
                [1, 1 << 20],
                "256",
                "Size of the queue in MiB, at most half of the memory limit. Unset: a quarter of \
                 the memory limit.",
            ),
            Key::integer("num_consumers", [1, 1_000], 10, "Requests in progress at once."),
            Key::word(
                "overflow",
                &["block", "drop"],
                "What happens when the queue is full. `block` refuses requests of senders with a \
                 retryable error and loses nothing; `drop` accepts all requests, and drops and \
                 counts the newest kept spans.",
            ),
        ],
    },
    Described {
        path: "exporter.otlp.retry_on_failure",
        words: "What happens while the backend does not accept spans.",
        is_optional: false,
        keys: &[
            Key::duration(
                "initial_interval",
                [MILLISECOND, HOUR],
                Duration::from_secs(1),
                "Wait before the first retry. It grows from attempt to attempt, with jitter.",
            ),
            Key::duration(
                "max_interval",
                [MILLISECOND, HOUR],
                Duration::from_secs(30),
                "The longest wait between two attempts.",
            ),
            Key::duration(
                "max_elapsed_time",
                [Duration::ZERO, DAY],
                Duration::from_secs(300),
                "The time from the first failure of a request to its last attempt; then the \
                 request is given up, and its spans are counted as failed. `0s`: retry for ever. \
                 To survive long outages with a large queue, make it at least as long as the \
                 outages.",
            ),
        ],
    },
];
