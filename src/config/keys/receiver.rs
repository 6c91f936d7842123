//! `[receiver.*]`.

use std::time::Duration;

use super::{DAY, Described, Key, Kind, Need, SERVER_CERT, SERVER_KEY};

/// The limits of a sender's message in MiB. 1 GiB, because gRPC's framing has a 32-bit length.
const MESSAGE_MIB: [u64; 2] = [1, 1024];

pub(super) const SECTIONS: &[Described] = &[
    Described { path: "receiver", words: "The receivers of spans.", is_optional: false, keys: &[] },
    Described {
        path: "receiver.grpc",
        words: "OTLP/gRPC.",
        is_optional: false,
        keys: &[
            Key::listener(
                "endpoint",
                "127.0.0.1:4317",
                "`host:port` to listen on. Loopback, because neither TLS nor authentication is on \
                 by default; in a container write `0.0.0.0:4317`, and see `[receiver.tls]` and \
                 `[receiver.auth]`.",
            ),
            Key::integer(
                "max_recv_msg_size_mib",
                MESSAGE_MIB,
                64,
                "Largest request in MiB, compressed and decompressed. The OTLP specification \
                 recommends 64 MiB.",
            ),
            Key::integer(
                "max_concurrent_streams",
                [1, 10_000],
                100,
                "The number of requests in progress on one connection. Collectors with many queue \
                 consumers come near this.",
            ),
            Key::integer(
                "max_connections",
                [1, 100_000],
                1024,
                "The most open connections; fewer if the limit of open files is low. At the limit \
                 a new connection replaces the one that has been silent longest since it was \
                 opened. If every connection has sent its HTTP/2 preface or the head of a request, \
                 the new one is closed.",
            ),
            Key::duration(
                "max_connection_age",
                [Duration::ZERO, DAY],
                Duration::ZERO,
                "After this time (10 % more or less), a connection is told to go away (GOAWAY), \
                 and closed 30 seconds later. Behind a load balancer that spreads connections, \
                 such as a Kubernetes Service, it lets senders find new replicas. `0s` turns it \
                 off; otherwise at least `1s`.",
            ),
        ],
    },
    Described {
        path: "receiver.http",
        words: "OTLP/HTTP: POST with protobuf or JSON bodies.",
        is_optional: false,
        keys: &[
            Key::listener("endpoint", "127.0.0.1:4318", "`host:port` to listen on."),
            Key::integer(
                "max_request_body_size_mib",
                MESSAGE_MIB,
                64,
                "Largest body in MiB, compressed and decompressed.",
            ),
            Key::new(
                "traces_url_path",
                Kind::UrlPath { default: "/v1/traces" },
                "The path that traces are posted to. A slash at the end is ignored.",
            ),
            Key::duration(
                "max_connection_age",
                [Duration::ZERO, DAY],
                Duration::ZERO,
                "As for gRPC, except that an HTTP/1.1 connection is closed after an answer.",
            ),
        ],
    },
    Described {
        path: "receiver.http.cors",
        words: "Which web pages may send from a browser (CORS).",
        is_optional: false,
        keys: &[
            Key::new(
                "allowed_origins",
                Kind::Texts,
                "The sites whose pages may send, such as `https://shop.example` or \
                 `https://*.shop.example`; `*` is all of them. Empty: browsers keep pages of other \
                 sites from sending.",
            ),
            Key::new(
                "allowed_headers",
                Kind::Texts,
                "The headers that these pages may send besides `Accept`, `Accept-Language`, \
                 `Content-Language` and `Content-Type`; `*` is all of them. Empty: \
                 `X-Requested-With` is allowed as well.",
            ),
        ],
    },
    Described {
        path: "receiver.tls",
        words: "TLS of both receivers. Without the section they speak plaintext. Files are in PEM \
                form, relative to this file, and read again within 10 s when they change.",
        is_optional: true,
        keys: &[
            SERVER_CERT,
            SERVER_KEY,
            Key::path(
                "client_ca_file",
                "\"clients.crt\"",
                "Mutual TLS: senders must show a certificate that one of these CAs has signed. \
                 Unset: senders need no certificate.",
            ),
        ],
    },
    Described {
        path: "receiver.auth",
        words: "Who may send, on both receivers. Without the section anyone may.",
        is_optional: true,
        keys: &[Key::path(
            "bearer_token_file",
            "\"token\"",
            "A file with one token a line. Senders must send one of them as `authorization: \
             Bearer <token>`. It is read again within 10 s when it changes: to replace a token, \
             add the new one, move the senders, remove the old one.",
        )
        .needed(Need::Required)],
    },
];
