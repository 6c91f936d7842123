//! `[telemetry]`.

use super::{Described, Key};

pub(super) const SECTIONS: &[Described] = &[Described {
    path: "telemetry",
    words: "What operators see and steer.",
    is_optional: false,
    keys: &[
        Key::listener(
            "endpoint",
            "127.0.0.1:9464",
            "`host:port` of `/metrics`, `/metrics/spans`, \
             `/-/healthy`, `/-/ready` and `/-/decisions/<trace id>`.",
        ),
        Key::boolean(
            "enable_lifecycle",
            false,
            "Whether POST `/-/reload` reads the policies again, as SIGHUP always does. Off, \
             because everyone who reaches the port could.",
        ),
        Key::word("log_level", &["error", "warn", "info", "debug", "trace"], "What is logged.")
            .or("info"),
        Key::word(
            "log_format",
            &["text", "json"],
            "`text` for people. With `json` every line on standard error is an object, also \
             mistakes in this file and panics. If this file cannot be read, or `log_format` \
             itself is wrong, the mistake is told as text.",
        ),
    ],
}];
