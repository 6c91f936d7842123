//! `[durability]`.

use std::time::Duration;

use super::{Described, Key, SECOND};

pub(super) const SECTIONS: &[Described] = &[Described {
    path: "durability",
    words: "Keeps acknowledged spans on disk, so that a restart, a crash or a power failure does \
            not lose them.",
    is_optional: false,
    keys: &[
        Key::word(
            "mode",
            &["none", "process", "power"],
            "`none`: the window and the queue are in memory only. `process`: acknowledged spans \
             survive the end of the process, even a crash. `power`: they also survive a power \
             failure; requests are acknowledged after the next sync of the disk.",
        ),
        Key::path(
            "directory",
            "\"/var/lib/tailwater\"",
            "The directory of the logs, which is created if it does not exist; by default \
             `/var/lib/tailwater`. Each instance needs its own, on a local disk.",
        ),
        Key::integer(
            "max_size_mib",
            [256, 1 << 24],
            4096,
            "The size limit of all logs together, in MiB. The log of requests takes up to five \
             eighths of it, and must have room for all requests that arrive during the longest \
             wait of a trace; when it is full, requests are refused (reason `disk`). The sending \
             queue takes up to a quarter, decisions an eighth.",
        ),
        Key::duration(
            "sync_interval",
            [Duration::from_millis(1), SECOND],
            Duration::from_millis(20),
            "With `mode = \"power\"`: the time between two syncs of the disk, for which an \
             acknowledgement waits.",
        ),
        Key::word(
            "on_shutdown",
            &["keep", "decide"],
            "What SIGTERM does. `keep`: undecided traces, and kept spans that are not delivered, \
             stay on disk for the next start. `decide`: all traces are decided and delivered, as \
             without durability; for an instance that will not come back.",
        ),
    ],
}];
