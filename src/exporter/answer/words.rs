//! Reads facts from the messages of backends that codes and headers do not give.
//!
//! Sources: grpc-go, C-core, grpc-java, grpc-dotnet, connect-go, tonic, Envoy, and the distributors
//! of Tempo before 3.0.

use super::REQUEST_BYTES_MIN;

/// Whether the message says that a request is too large. The code alone is not enough: most servers
/// say RESOURCE_EXHAUSTED, tonic OUT_OF_RANGE (which OTLP retries), Envoy UNKNOWN, and older
/// connect-go INVALID_ARGUMENT.
pub(super) fn is_about_size(message: &str) -> bool {
    contains_any(
        message,
        &[
            "larger than max",
            "larger than configured max",
            "exceeds maximum size",
            "exceeds the maximum configured message size",
            "message length too large",
            "exceeded while decompressing message",
            "exceeds ingestion limit",
            "payload too large",
            "entity too large",
            "request body too large",
        ],
    )
}

/// Whether the message is about an exceeded rate, which a delay cures, and not about a quota.
pub(super) fn is_about_rate(message: &str) -> bool {
    contains_any(
        message,
        &[
            "rate limit",
            "rate_limit",
            "rate-limit",
            "ratelimit",
            "rate exceeded",
            "exceeded rate",
            "too many requests",
            "throttl",
            "per second",
        ],
    )
}

/// Whether the message of a server says that it wants TLS: Go, nginx, Netty.
pub(super) fn wants_tls(message: &str) -> bool {
    contains_any(
        message,
        &["http request to an https server", "sent to https port", "requires tls"],
    )
}

fn contains_any(message: &str, words: &[&str]) -> bool {
    let message = message.to_ascii_lowercase();
    words.iter().any(|words| message.contains(words))
}

/// The largest number in the message that the request exceeded: servers name the limit before or
/// after the size, or several limits.
pub(super) fn limit_in(message: &str, request_bytes: usize) -> Option<usize> {
    let numbers = message.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok());
    numbers.filter(|limit| (REQUEST_BYTES_MIN..request_bytes).contains(limit)).max()
}
