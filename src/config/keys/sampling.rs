//! `[sampling]`.

use std::time::Duration;

use super::{DAY, Described, HOUR, Key, Kind, SECOND};
use crate::config::memory;

pub(super) const SECTIONS: &[Described] = &[
    Described {
        path: "sampling",
        words: "How long traces wait, how much memory they may take, and which policies decide \
                them.",
        is_optional: false,
        keys: &[
            Key::duration(
                "decision_wait",
                [Duration::from_millis(10), HOUR],
                Duration::from_secs(30),
                "Time from the first span of a trace until the trace is decided. It has to be \
                 longer than the spans of your longest interesting request take to arrive. Memory \
                 grows in proportion.",
            ),
            Key::duration(
                "decision_wait_after_root_received",
                [Duration::ZERO, HOUR],
                Duration::from_secs(10),
                "Decides a trace earlier: this long after its root span arrived, which normally \
                 ends last. It has to be longer than a span takes to arrive after its end: the \
                 batch delay of the SDK that sends it (5 s by default) plus those of the \
                 Collectors it passes. A span that comes after the decision no longer counts in \
                 it; `tailwater_late_spans_total` counts such spans. Memory grows in proportion. \
                 `0s` turns it off.",
            ),
            Key::integer_or_unset(
                "memory_limit_mib",
                [(memory::BYTES_MIN >> 20) as u64, 1 << 20],
                "1024",
                "The memory limit in MiB, for the window, the queue and requests together. Above \
                 80 % of it, the oldest traces are decided early; at 100 %, requests are refused \
                 and senders are told to retry later. Unset: 60 % of the limit of the cgroup, or \
                 1024 without such a limit.",
            ),
            Key::integer(
                "max_trace_spans",
                [1, 10_000_000],
                32_000,
                "A trace that reaches this many spans is decided with what it has; later spans \
                 follow the decision.",
            ),
            Key::integer(
                "max_trace_bytes_mib",
                [1, 1024],
                16,
                "A trace that reaches this size, in MiB, is decided with what it has; later spans \
                 follow the decision.",
            ),
            Key::duration(
                "decision_cache_ttl",
                [SECOND, DAY],
                Duration::from_secs(120),
                "How long a decision is remembered, so that late spans follow it. All remembered \
                 decisions together take at most a quarter of the memory limit; beyond that, the \
                 oldest are forgotten early, and counted.",
            ),
            Key::integer(
                "decision_log_size",
                [0, 10_000_000],
                100_000,
                "The number of recent traces whose decision can be looked up with all details. `0` \
                 turns the log off.",
            ),
            Key::new(
                "policy_files",
                Kind::Texts,
                "Paths or globs of files with `[[policy]]` tables, relative to this file, such as \
                 `[\"policies/*.toml\"]`. Their policies come after those of this file, sorted by \
                 path.",
            ),
            Key::boolean(
                "watch_policy_files",
                false,
                "Whether to reload the policies automatically, as SIGHUP does, two to three \
                 seconds after this file or a policy file has changed. The contents of the files \
                 are compared once a second, so every way of replacing a file is noticed, \
                 including the links of a Kubernetes ConfigMap. At most 1,000 policy files can be \
                 watched.",
            ),
        ],
    },
    Described {
        path: "sampling.stamp",
        words: "The information about sampling that is added to kept spans.",
        is_optional: false,
        keys: &[
            Key::boolean(
                "tracestate",
                true,
                "Writes the sampling threshold into the `tracestate` of kept spans (`ot=th`), so \
                 that metrics computed from them can be scaled up.",
            ),
            Key::word(
                "policy",
                &["root", "off"],
                "`root`: one span of each kept trace names the policy that kept it and the trigger \
                 of the decision. `off`: no span does.",
            ),
        ],
    },
];
