//! `[receiver.kafka]`.

use std::time::Duration;

use super::{POLICY, files::Directory, parse, problems};
use crate::config::KafkaEncoding;

/// In a build without the feature, the section itself is an error; the others are told as well.
const ABSENT: &str = "this build of Tailwater has no Kafka receiver | build it with \
                      `--features kafka`";

/// The problems of a file with these lines in `[receiver.kafka]`, that of the build aside.
fn of(lines: &str) -> Vec<String> {
    let mut told = problems(&format!("{POLICY}[receiver.kafka]\nbrokers = ['b:9092']\n{lines}\n"));
    let before = told.len();
    told.retain(|told| !told.contains(ABSENT));
    assert_eq!(before - told.len(), usize::from(!cfg!(feature = "kafka")), "{lines}");
    told
}

#[test]
fn a_build_without_the_receiver_says_so() {
    let told = problems(&format!("{POLICY}[receiver.kafka]\nbrokers = ['b:9092']\n"));
    if cfg!(feature = "kafka") {
        assert!(told.is_empty(), "{told:?}");
    } else {
        assert_eq!(told, [format!("4:1: error: {ABSENT}")]);
    }
}

#[test]
fn mistakes_are_told_in_every_build() {
    for (lines, expected) in [
        (
            "topic = 'a b'",
            "6:9: error: `a b` is not the name of a topic | names have up to 249 \
                           letters, digits, `.`, `_` and `-`",
        ),
        (
            "topic = ''",
            "6:9: error: `` is not the name of a topic | names have up to 249 letters, \
                        digits, `.`, `_` and `-`",
        ),
        ("group_id = ''", "6:12: error: `group_id` is empty"),
        ("group_instance_id = ''", "6:21: error: `group_instance_id` is empty"),
        (
            "replay_margin = '59s'",
            "6:17: warning: `replay_margin`, 59s, is less than twice \
                                   `decision_wait`, 1m: a new owner of a partition may see the \
                                   later part of a trace without the earlier one, and decide \
                                   differently about it | leave it out for 2.5 times \
                                   `decision_wait`",
        ),
        (
            "session_timeout = '10ms'",
            "6:19: error: `session_timeout` must be between 1s and 1h, \
                                      found `10ms`",
        ),
        (
            "sasl = { mechanism = 'SCRAM-SHA-256', username = 'u' }",
            "6:8: error: [receiver.kafka.sasl] has no `password_file`",
        ),
        (
            "tls = { cert_file = 'c' }",
            "6:7: error: [receiver.kafka.tls] has `cert_file` and no \
                                       `key_file`",
        ),
    ] {
        assert_eq!(of(lines), [expected]);
    }
    let told = problems(&format!("{POLICY}[receiver.kafka]\nbrokers = ['kafka://b', 'b']\n"));
    let expected = "5:12: error: `kafka://b` is not a `host:port` | leave out schemes, and write \
                    one broker a string";
    assert!(told.iter().any(|told| told == expected), "{told:?}");
    let told = problems(&format!("{POLICY}[receiver.kafka]\n"));
    let expected = "4:1: error: [receiver.kafka] has no `brokers`";
    assert!(told.iter().any(|told| told == expected), "{told:?}");
}

#[test]
fn a_password_in_the_clear_is_a_warning() {
    let folder = Directory::new();
    let file = folder.write("password", "s3cret \n").display().to_string();
    let sasl = |mechanism: &str| {
        format!("sasl = {{ mechanism = '{mechanism}', username = 'u', password_file = '{file}' }}")
    };
    let told = of(&sasl("PLAIN"));
    assert!(told[0].contains("sends the password in the clear"), "{told:?}");
    assert_eq!(of(&sasl("SCRAM-SHA-512")), [""; 0]);
    assert_eq!(of(&format!("{}\ntls = {{}}", sasl("PLAIN"))), [""; 0]);
    let empty = folder.write("empty", "\n").display().to_string();
    let told = of(&sasl("PLAIN").replace(&file, &empty));
    let expected = "`password_file` cannot be used: it holds no password | write the password \
                    into it, as UTF-8";
    assert!(told.iter().any(|told| told.contains(expected)), "{told:?}");
}

#[test]
fn missing_keys_have_defaults() {
    let text = format!(
        "sampling.decision_wait = '20s'\nreceiver.kafka.brokers = ['b:9092', 'c:9092']\n{POLICY}"
    );
    let (loaded, _) = parse(&text);
    // In a build without the receiver there is no configuration.
    let Some(config) = loaded.config else { return };
    let kafka = config.kafka.expect("there");
    assert_eq!(kafka.brokers, ["b:9092", "c:9092"]);
    assert_eq!((&*kafka.topic, &*kafka.group_id), ("otlp_spans", "tailwater"));
    assert_eq!(kafka.group_instance_id, None, "HOSTNAME is not set here");
    assert_eq!(kafka.encoding, KafkaEncoding::Protobuf);
    assert_eq!(kafka.replay_margin, Duration::from_secs(50));
    assert_eq!(kafka.session_timeout, Duration::from_secs(10));
    assert!(!kafka.starts_at_end && !kafka.leave_on_shutdown);
    assert!(kafka.tls.is_none() && kafka.sasl.is_none());
}
