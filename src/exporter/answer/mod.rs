//! The meaning of a backend's answer: the spans were taken, must be retried, are too large, or were
//! refused.
//!
//! Nothing here trusts the content of an answer, which may hold codes that do not exist, text that
//! is not UTF-8, delays of ten years, or an invalid message. This module reads gRPC's answers
//! itself. tonic's client panics on status details that are not base64, and prost-types panics on a
//! delay of the most negative number of seconds.
//!
//! Three rules go beyond OTLP's tables:
//!
//! - A backend writes a message only once it has taken the request. So a message that cannot be
//!   read, or has more than 4 MiB, means *taken*, with no rejected span known. A retry would store
//!   the same spans again and get the same answer.
//! - An answer that says nothing about the spans is an outage: the spans are kept and retried. Such
//!   answers come from servers that are not OTLP receivers (a web page, a path that does not exist,
//!   a proxy that cuts a stream) and from receivers that do not accept the credentials.
//! - RESOURCE_EXHAUSTED without a delay is an outage too if its message is about a rate: Tempo
//!   before 3.0 says so about spans that it takes a second later.
//!
//! Sources: OTLP specification 1.x, "OTLP/gRPC Response", "OTLP/gRPC Throttling" and "OTLP/HTTP
//! Response"; gRPC's "HTTP to gRPC Status Code Mapping"; RFC 9110 on Retry-After.

mod grpc;
mod http;
mod words;

use std::time::Duration;

use ::http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_TYPE};
use bytes::Bytes;

use crate::{config::Protocol, metrics::ExportCode};

pub(super) use grpc::classify;

/// The longest delay that a backend may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);
/// The smallest size limit that is believed. Smaller numbers in a message are something else, such
/// as HTTP's 413.
pub(super) const REQUEST_BYTES_MIN: usize = 16 << 10;

/// The outcome of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The backend has taken the spans, except those that it rejected for good.
    Sent {
        /// The backend's code.
        code: ExportCode,
        /// Spans of the request that it rejected.
        rejected: u64,
        /// Its message about them, or its warning.
        message: String,
    },
    /// The attempt must be repeated, after the delay that the backend asked for.
    Retry {
        /// The backend's code, or the code for an attempt without an answer.
        code: ExportCode,
        /// The delay that the backend asked for.
        after: Option<Duration>,
        /// The reason why the backend does not accept spans.
        cause: Cause,
        /// A description of the failure.
        message: String,
    },
    /// The request is larger than the backend accepts.
    TooLarge {
        /// The backend's code.
        code: ExportCode,
        /// The limit that it named, if any.
        limit: Option<usize>,
        /// Its message.
        message: String,
    },
    /// The request must not be repeated as it is.
    Refused {
        /// The backend's code.
        code: ExportCode,
        /// Whether the refusal may be about some of the spans only.
        is_about_spans: bool,
        /// Its message.
        message: String,
    },
    /// The client panicked; another attempt is worth while.
    Panicked,
}

/// Why a backend accepts no spans at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It is down, busy or out of reach.
    Unavailable,
    /// It has reached a limit; fewer spans at once may help.
    Exhausted,
    /// It does not accept the credentials.
    Credentials,
    /// The server does not seem to be an OTLP receiver, or not one for these requests.
    NotOtlp,
}

impl Outcome {
    /// The code that the attempt is counted under.
    pub fn code(&self) -> ExportCode {
        match self {
            Outcome::Sent { code, .. }
            | Outcome::Retry { code, .. }
            | Outcome::TooLarge { code, .. }
            | Outcome::Refused { code, .. } => *code,
            Outcome::Panicked => tonic::Code::Unknown.into(),
        }
    }

    /// The message of the backend, or of the server that answered instead.
    pub(super) fn message_mut(&mut self) -> Option<&mut String> {
        match self {
            Outcome::Sent { message, .. }
            | Outcome::Retry { message, .. }
            | Outcome::TooLarge { message, .. }
            | Outcome::Refused { message, .. } => Some(message),
            Outcome::Panicked => None,
        }
    }
}

/// The part of an answer that was read.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// HTTP's status.
    pub status: StatusCode,
    /// The headers. They hold gRPC's status if there is no message.
    pub headers: HeaderMap,
    /// The body; over gRPC, the prefix and the message.
    pub body: Bytes,
    /// Whether the body was longer than the part that was read.
    pub is_cut: bool,
    /// The trailers, which hold gRPC's status after a message.
    pub trailers: HeaderMap,
}

impl Answer {
    /// The meaning of the answer for a request of `request_bytes`, before compression.
    pub fn outcome(&self, protocol: Protocol, request_bytes: usize) -> Outcome {
        match protocol {
            Protocol::Grpc => self.grpc_outcome(request_bytes),
            Protocol::Http => self.http_outcome(request_bytes),
        }
    }

    fn content_type_starts_with(&self, beginning: &str) -> bool {
        let value = self.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        let value = value.get(..beginning.len()).unwrap_or_default();
        value.eq_ignore_ascii_case(beginning.as_bytes())
    }

    /// Whether the body is a web page, as web sites and proxies send it. The content type alone is
    /// not enough: web frameworks write `text/html` for a handler that names no type.
    fn is_page(&self) -> bool {
        const BEGINNINGS: [&[u8]; 2] = [b"<!doctype html", b"<html"];
        let body = self.body.trim_ascii_start();
        let begins = |with: &&[u8]| {
            body.get(..with.len()).is_some_and(|beginning| beginning.eq_ignore_ascii_case(with))
        };
        let is_html = self.content_type_starts_with("text/html")
            || self.content_type_starts_with("application/xhtml");
        is_html && body.starts_with(b"<") || BEGINNINGS.iter().any(begins)
    }

    /// Describes an HTTP status that is not about spans, with a hint on what to check.
    fn describe_status(&self) -> String {
        let status = self.status.as_u16();
        if self.is_page() {
            return format!("HTTP {status} with a web page");
        }
        match status {
            300..=399 => {
                // The part after `?` may be a secret.
                let location = self.headers.get("location").and_then(|to| to.to_str().ok());
                let location = location.unwrap_or("nowhere").split(['?', '#']).next();
                format!("HTTP {status}, a redirect to {}", location.unwrap_or_default())
            }
            401 | 403 | 407 => format!("HTTP {status}: are the credentials right?"),
            404 | 405 => format!("HTTP {status}: is the path right?"),
            415 => "HTTP 415: does it accept protobuf, and this compression?".to_owned(),
            _ => format!("HTTP {status}"),
        }
    }
}
