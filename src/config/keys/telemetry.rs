//! `[telemetry]`.

use super::{Described, Key, Need, SERVER_CERT, SERVER_KEY};

pub(super) const SECTIONS: &[Described] = &[TELEMETRY, TLS, AUTH];

const TELEMETRY: Described = Described {
    path: "telemetry",
    words: "Metrics, health, and control for operators.",
    is_optional: false,
    keys: &[
        Key::listener(
            "endpoint",
            "127.0.0.1:9464",
            "`host:port` of `/metrics`, `/metrics/spans`, `/-/healthy`, `/-/ready`, `/-/status`, \
             `/-/decisions/<trace id>`, the web page, and the control API over gRPC.",
        ),
        Key::boolean(
            "enable_lifecycle",
            false,
            "Whether POST `/-/reload` and `Reload` of the control API reload the policies, as \
             SIGHUP always does, and whether `tailwater try` may try others. Off by default, \
             because everyone who reaches the port could use them.",
        ),
        Key::boolean(
            "enable_recording",
            false,
            "Whether `tailwater record` may get spans as they arrived. Off by default, because \
             everyone who reaches the port could read them.",
        ),
        Key::word("log_level", &["error", "warn", "info", "debug", "trace"], "What is logged.")
            .or("info"),
        Key::word(
            "log_format",
            &["text", "json"],
            "`text` for people. With `json`, every line on standard error is a JSON object, \
             including mistakes in this file and panics. If this file cannot be read, or \
             `log_format` itself is wrong, the mistake is reported as text.",
        ),
    ],
};

const TLS: Described = Described {
    path: "telemetry.tls",
    words: "TLS of the telemetry endpoint. Without the section it speaks plaintext. Files as in \
            `[receiver.tls]`.",
    is_optional: true,
    keys: &[
        SERVER_CERT,
        SERVER_KEY,
        Key::path(
            "client_ca_file",
            "\"operators.crt\"",
            "Mutual TLS: clients must show a certificate that one of these CAs has signed, \
             including those that only check health. Unset: clients need no certificate.",
        ),
    ],
};

const AUTH: Described = Described {
    path: "telemetry.auth",
    words: "Who may ask. Without the section anyone may. `/-/healthy`, `/-/ready` and \
            `grpc.health.v1` never need a token.",
    is_optional: true,
    keys: &[Key::path(
        "bearer_token_file",
        "\"operators-token\"",
        "A file with one token a line. Clients must send one of them as `authorization: Bearer \
         <token>`; a browser may send it as the password of HTTP Basic, with any name. It is read \
         again within 10 s when it changes.",
    )
    .needed(Need::Required)],
};
