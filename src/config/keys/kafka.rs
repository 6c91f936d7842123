//! `[receiver.kafka]`, described in every build; the receiver itself is a feature of the build.

use std::time::Duration;

use super::{DAY, Described, HOUR, Key, Kind, Need, SECOND};

pub(super) const SECTIONS: &[Described] = &[
    Described {
        path: "receiver.kafka",
        words: "A topic of Kafka whose records are OTLP requests, as the Kafka exporter of the \
                Collector writes them with `partition_traces_by_id`. Without the section nothing \
                is read. It needs a build with `--features kafka`.",
        is_optional: true,
        keys: &[
            Key {
                example: "[\"127.0.0.1:9092\"]",
                need: Need::Required,
                ..Key::new(
                    "brokers",
                    Kind::Strings { pattern: "^[^ ,]+$|\\$\\{env:" },
                    "Some of the brokers, each as `host:port`; the others are found through them.",
                )
            },
            Key {
                example: "\"otlp_spans\"",
                ..Key::new(
                    "topic",
                    Kind::Text { pattern: "." },
                    "The topic; by default `otlp_spans`, as the Collector's exporter has it. All \
                     spans of a trace must be in one partition.",
                )
            },
            Key {
                example: "\"tailwater\"",
                ..Key::new(
                    "group_id",
                    Kind::Text { pattern: "." },
                    "The consumer group; by default `tailwater`. Instances of one group divide the \
                     partitions among themselves.",
                )
            },
            Key {
                example: "\"${env:HOSTNAME}\"",
                ..Key::new(
                    "group_instance_id",
                    Kind::Text { pattern: "." },
                    "The name of this instance in the group, which no other instance may have: an \
                     instance that returns within `session_timeout` gets its partitions back, and \
                     nothing moves. By default what the environment variable `HOSTNAME` holds; \
                     without it, each start is a new member.",
                )
            },
            Key::word(
                "encoding",
                &["otlp_proto", "otlp_json"],
                "What a record holds: one `ExportTraceServiceRequest` as protobuf, or as JSON. \
                 Records over `max_recv_msg_size_mib` of [receiver.grpc] are skipped.",
            ),
            Key::word(
                "initial_offset",
                &["earliest", "latest"],
                "Where a group begins that has committed nothing: at the oldest record, or after \
                 the newest.",
            ),
            Key::duration(
                "replay_margin",
                [Duration::ZERO, DAY],
                Duration::from_secs(75),
                "How far before the commit a new owner of a partition begins to read, by the \
                 times of the records, so that it sees traces whole that began before the \
                 commit. By default 2.5 times `decision_wait`.",
            ),
            Key::duration(
                "session_timeout",
                [SECOND, HOUR],
                Duration::from_secs(10),
                "The time after which the partitions of an instance that is gone move to others. \
                 The brokers have bounds for it, by default from 6s to 30m.",
            ),
            Key::boolean(
                "leave_on_shutdown",
                false,
                "Whether SIGTERM gives the partitions up at once, for scaling down. Otherwise they \
                 stay with `group_instance_id` for `session_timeout`, for a restart.",
            ),
        ],
    },
    Described {
        path: "receiver.kafka.tls",
        words: "TLS to the brokers. Without the section it is plaintext. Files are in PEM form, \
                relative to this file, and read again within 10 s when they change.",
        is_optional: true,
        keys: &[
            Key::path(
                "ca_file",
                "\"ca.crt\"",
                "The CAs, one of which must have signed the certificates of the brokers. Unset: \
                 those that the system trusts.",
            ),
            Key::path(
                "cert_file",
                "\"client.crt\"",
                "The certificate that is shown to the brokers, followed by the intermediate ones.",
            )
            .needed(Need::With("key_file")),
            Key::path("key_file", "\"client.key\"", "Its private key, without a passphrase.")
                .needed(Need::With("cert_file")),
        ],
    },
    Described {
        path: "receiver.kafka.sasl",
        words: "The credentials that the brokers ask for.",
        is_optional: true,
        keys: &[
            Key::word(
                "mechanism",
                &["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"],
                "How they are shown. `PLAIN` sends the password itself: use it only with TLS.",
            ),
            Key {
                example: "\"tailwater\"",
                need: Need::Required,
                ..Key::new("username", Kind::Text { pattern: "." }, "The name of the user.")
            },
            Key::path(
                "password_file",
                "\"password\"",
                "A file with the password; whitespace at its end is left out. It is read again \
                 within 10 s when it changes.",
            )
            .needed(Need::Required),
        ],
    },
];
