//! What an answer of the backend means: taken, to be sent again, too large, or refused.
//!
//! Everything in an answer was chosen by somebody else and nothing here trusts it: codes that do
//! not exist, words that are not UTF-8, delays of ten years, a message that is no message. gRPC's
//! answers are read here and not by tonic, whose client panics on status details that are not
//! base64, and in prost-types on a delay of the most negative number of seconds.
//!
//! Three rules are ours, beyond OTLP's tables:
//!
//! - A backend writes a message only once it has taken the request, so a message that cannot be
//!   read, or of more than 4 MiB, says *taken*, with nothing known to be rejected. To send
//!   again would store the same spans again and get the same answer.
//! - An answer that says nothing about the spans is an outage: the spans are kept and sent again.
//!   Such answers come from whatever is not an OTLP receiver (a web page, a path that does not
//!   exist, a proxy that cuts a stream) and from receivers that do not accept the credentials.
//! - RESOURCE_EXHAUSTED without a delay is an outage too where its words tell of a rate: Tempo
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
/// The least that a backend is believed to take. Smaller numbers in its words are something else,
/// such as HTTP's 413.
pub(super) const REQUEST_BYTES_MIN: usize = 16 << 10;

/// What an attempt came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The backend has the spans, but for so many that it rejected for good.
    Sent {
        /// As the backend answered.
        code: ExportCode,
        /// Spans of the request that it rejected.
        rejected: u64,
        /// Its words, about them or as a warning.
        message: String,
    },
    /// To be made again, after the delay that the backend asked for.
    Retry {
        /// As the backend answered, or what its silence comes to.
        code: ExportCode,
        /// The delay that the backend asked for.
        after: Option<Duration>,
        /// What keeps the backend from taking spans.
        cause: Cause,
        /// What went wrong.
        message: String,
    },
    /// More than the backend takes at once.
    TooLarge {
        /// As the backend answered.
        code: ExportCode,
        /// The most that it takes, where it said so.
        limit: Option<usize>,
        /// Its words.
        message: String,
    },
    /// Never to be made again as it is.
    Refused {
        /// As the backend answered.
        code: ExportCode,
        /// Whether it may be about some of the spans alone.
        is_about_spans: bool,
        /// Its words.
        message: String,
    },
    /// The client panicked; worth another attempt.
    Panicked,
}

/// What keeps a backend from taking spans for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It is down, busy or out of reach.
    Unavailable,
    /// It takes no more for the moment; fewer spans at once may help.
    Exhausted,
    /// It does not accept the credentials.
    Credentials,
    /// What answers does not seem to be an OTLP receiver, or not one for these requests.
    NotOtlp,
}

impl Outcome {
    /// The code to count.
    pub fn code(&self) -> ExportCode {
        match self {
            Outcome::Sent { code, .. }
            | Outcome::Retry { code, .. }
            | Outcome::TooLarge { code, .. }
            | Outcome::Refused { code, .. } => *code,
            Outcome::Panicked => tonic::Code::Unknown.into(),
        }
    }

    /// The words of the backend, or of what took its place.
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

/// What was read of an answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// HTTP's status.
    pub status: StatusCode,
    /// The headers. gRPC's status is here where there is no message.
    pub headers: HeaderMap,
    /// The body: over gRPC its prefix and the message.
    pub body: Bytes,
    /// Whether there was more of it than is read.
    pub is_cut: bool,
    /// gRPC's status behind a message.
    pub trailers: HeaderMap,
}

impl Answer {
    /// What it means for a request of so many bytes, before compression.
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

    /// Whether it is meant for people, as those of web sites and proxies are. The type alone does
    /// not tell: web frameworks write `text/html` where a handler names no type.
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

    /// What an HTTP status says that is not about spans, and what to look at.
    fn describe_status(&self) -> String {
        let status = self.status.as_u16();
        if self.is_page() {
            return format!("HTTP {status} with a web page");
        }
        match status {
            300..=399 => {
                // What follows `?` may be a secret.
                let location = self.headers.get("location").and_then(|to| to.to_str().ok());
                let location = location.unwrap_or("nowhere").split(['?', '#']).next();
                format!("HTTP {status}, a redirect to {}", location.unwrap_or_default())
            }
            401 | 403 | 407 => format!("HTTP {status}: are the credentials right?"),
            404 | 405 => format!("HTTP {status}: is the path right?"),
            415 => "HTTP 415: does it take protobuf, and this compression?".to_owned(),
            _ => format!("HTTP {status}"),
        }
    }
}
