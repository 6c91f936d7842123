//! The settings of librdkafka.

use rdkafka::{ClientConfig, config::RDKafkaLogLevel};

use crate::{config::Kafka, credentials::Password};

/// The bounds of [`fetched_bytes_max`], which is a 32nd of the memory limit between them.
const FETCHED_BYTES: std::ops::RangeInclusive<usize> = 1 << 20..=32 << 20;

/// The most bytes of fetched records that wait in the client.
pub(super) fn fetched_bytes_max(memory_limit: usize) -> usize {
    (memory_limit / 32).clamp(*FETCHED_BYTES.start(), *FETCHED_BYTES.end())
}

/// The settings of every connection to the brokers.
pub(super) fn connection(kafka: &Kafka, password: Option<&Password>) -> ClientConfig {
    let mut config = ClientConfig::new();
    let protocol = match (&kafka.tls, &kafka.sasl) {
        (None, None) => "plaintext",
        (Some(_), None) => "ssl",
        (None, Some(_)) => "sasl_plaintext",
        (Some(_), Some(_)) => "sasl_ssl",
    };
    config
        .set("bootstrap.servers", kafka.brokers.join(","))
        .set("security.protocol", protocol)
        .set("client.id", "tailwater")
        // Requests do not hold the thread up for a minute when a broker is gone.
        .set("socket.timeout.ms", "10000")
        .set("socket.keepalive.enable", "true")
        .set("reconnect.backoff.max.ms", "5000")
        .set_log_level(RDKafkaLogLevel::Warning);
    if let Some(tls) = &kafka.tls {
        if let Some(file) = &tls.ca_file {
            config.set("ssl.ca.location", file.to_string_lossy());
        }
        if let Some((cert, key)) = &tls.identity {
            config.set("ssl.certificate.location", cert.to_string_lossy());
            config.set("ssl.key.location", key.to_string_lossy());
        }
    }
    if let (Some(sasl), Some(password)) = (&kafka.sasl, password) {
        config.set("sasl.mechanisms", sasl.mechanism);
        config.set("sasl.username", sasl.username.reveal());
        config.set("sasl.password", password.reveal());
    }
    config
}

/// The settings of the member of the group.
pub(super) fn member(
    kafka: &Kafka,
    password: Option<&Password>,
    memory_limit: usize,
) -> ClientConfig {
    let fetched = fetched_bytes_max(memory_limit);
    let session = kafka.session_timeout.as_millis();
    let mut config = connection(kafka, password);
    config
        .set("group.id", &kafka.group_id)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", session.to_string())
        .set("heartbeat.interval.ms", (session / 3).clamp(1, 3_000).to_string())
        // It may not be shorter than the session.
        .set("max.poll.interval.ms", (session + 1).max(300_000).to_string())
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        // Offsets that are gone are noticed here, and counted.
        .set("auto.offset.reset", "error")
        // So that partitions that are added are noticed within 30 s.
        .set("topic.metadata.refresh.interval.ms", "10000")
        .set("queued.max.messages.kbytes", (fetched >> 10).to_string())
        .set("queued.min.messages", "10000")
        // Otherwise a full queue is filled again only after a second.
        .set("fetch.queue.backoff.ms", "20")
        .set("fetch.max.bytes", fetched.to_string())
        .set("max.partition.fetch.bytes", (1 << 20).to_string())
        .set("fetch.wait.max.ms", "100");
    if let Some(id) = &kafka.group_instance_id {
        config.set("group.instance.id", id);
    }
    config
}
