//! What an answer of the backend means: taken, to be sent again, too large, or refused.
//!
//! Everything in it was chosen by somebody else and nothing here trusts it: codes that do not
//! exist, words that are not UTF-8, delays of ten years, a message that is no message. It is read
//! here and not by tonic, whose client panics on status details that are not base64, and in
//! prost-types on a delay of the most negative number of seconds.
//!
//! Two rules are ours, beyond OTLP's table:
//!
//! - A backend writes a message only once it has taken the request, so a message that cannot be
//!   read, or of more than 4 MiB, says *taken*, with nothing known to be rejected. To send
//!   again would store the same spans again and get the same answer.
//! - An answer without a status is what a proxy leaves of one when it cuts a stream: it says
//!   nothing about the spans, and they are sent again.
//!
//! Sources: OTLP specification 1.x, "OTLP/gRPC Response" and "OTLP/gRPC Throttling"; gRPC's
//! "HTTP to gRPC Status Code Mapping". For the words about size: grpc-go, C-core, grpc-java,
//! grpc-dotnet, connect-go, tonic, Envoy and Tempo's distributor.

use std::{error::Error as _, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header::CONTENT_TYPE};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use tonic::{Code, Status, metadata::MetadataMap};
use tonic_types::pb;

/// The longest delay that a backend may ask for.
const RETRY_INFO_MAX: Duration = Duration::from_secs(300);
/// The least that a backend is believed to take. Smaller numbers in its words are something else,
/// such as HTTP's 413.
pub(super) const REQUEST_BYTES_MIN: usize = 16 << 10;
/// gRPC's prefix of a message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// What an attempt came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The backend has the spans, but for so many that it rejected for good.
    Sent {
        /// Spans of the request that it rejected.
        rejected: u64,
        /// Its words, about them or as a warning.
        message: String,
    },
    /// To be made again, after the delay that the backend asked for.
    Retry {
        /// As the backend answered, or what its silence comes to.
        code: Code,
        /// What RetryInfo asked for.
        after: Option<Duration>,
        /// What went wrong.
        message: String,
    },
    /// More than the backend takes at once.
    TooLarge {
        /// As the backend answered.
        code: Code,
        /// The most that it takes, where it said so.
        limit: Option<usize>,
        /// Its words.
        message: String,
    },
    /// Never to be made again as it is.
    Refused {
        /// As the backend answered.
        code: Code,
        /// Whether it may be about some of the spans alone.
        is_about_spans: bool,
        /// Its words.
        message: String,
    },
    /// The client panicked; worth another attempt.
    Panicked,
}

impl Outcome {
    /// The code to count.
    pub fn code(&self) -> Code {
        match self {
            Outcome::Sent { .. } => Code::Ok,
            Outcome::Retry { code, .. }
            | Outcome::TooLarge { code, .. }
            | Outcome::Refused { code, .. } => *code,
            Outcome::Panicked => Code::Unknown,
        }
    }
}

/// What was read of an answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// HTTP's status.
    pub status: StatusCode,
    /// The headers: gRPC's status is here where there is no message.
    pub headers: HeaderMap,
    /// gRPC's prefix and the message.
    pub body: Bytes,
    /// Whether there was more of it than is read.
    pub is_cut: bool,
    /// gRPC's status behind a message.
    pub trailers: HeaderMap,
}

impl Answer {
    /// What it means for a request of so many bytes.
    pub fn outcome(&self, request_bytes: usize) -> Outcome {
        let status = status_in(&self.headers).or_else(|| status_in(&self.trailers));
        match status {
            Some(status) if status.code() == Code::Ok => self.sent(),
            Some(status) => classify(&status, request_bytes),
            None if self.is_grpc() && (self.is_cut || self.message().is_some()) => self.sent(),
            None => self.without_status(),
        }
    }

    fn sent(&self) -> Outcome {
        let decoded = match self.message() {
            _ if self.is_cut => None,
            // A status of OK alone is an answer too.
            None if self.body.is_empty() => Some(ExportTraceServiceResponse::default()),
            message => message.and_then(|m| ExportTraceServiceResponse::decode(m).ok()),
        };
        let Some(decoded) = decoded else {
            return Outcome::Sent { rejected: 0, message: "an answer that cannot be read".into() };
        };
        let partial = decoded.partial_success.unwrap_or_default();
        Outcome::Sent {
            rejected: u64::try_from(partial.rejected_spans).unwrap_or(0),
            message: partial.error_message,
        }
    }

    /// The whole message, where there is one; no compression was offered.
    fn message(&self) -> Option<&[u8]> {
        let (prefix, message) = self.body.split_first_chunk::<PREFIX_BYTES>()?;
        let [is_compressed, length @ ..] = prefix;
        let is_whole = usize::try_from(u32::from_be_bytes(*length)).ok()? == message.len();
        (*is_compressed == 0 && is_whole).then_some(message)
    }

    /// Whether it comes from a gRPC server, and not from a proxy or a web site.
    fn is_grpc(&self) -> bool {
        let content_type = self.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        self.status == StatusCode::OK
            && content_type.is_some_and(|value| value.starts_with(b"application/grpc"))
    }

    fn without_status(&self) -> Outcome {
        let status = self.status;
        let message = format!("HTTP status {} without a gRPC status", status.as_u16());
        let refused = |code| {
            let message = message.clone();
            Outcome::Refused { code, is_about_spans: false, message }
        };
        let retry = |code| Outcome::Retry { code, after: None, message: message.clone() };
        match status {
            StatusCode::OK => retry(Code::Unknown),
            StatusCode::PAYLOAD_TOO_LARGE => {
                Outcome::TooLarge { code: Code::Unknown, limit: None, message }
            }
            StatusCode::BAD_REQUEST => refused(Code::Internal),
            StatusCode::UNAUTHORIZED => refused(Code::Unauthenticated),
            StatusCode::FORBIDDEN => refused(Code::PermissionDenied),
            StatusCode::NOT_FOUND => refused(Code::Unimplemented),
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => retry(Code::Unavailable),
            _ => refused(Code::Unknown),
        }
    }
}

/// gRPC's status, where there is one.
fn status_in(headers: &HeaderMap) -> Option<Status> {
    const DETAILS: &str = "grpc-status-details-bin";
    let code = Code::from_bytes(headers.get("grpc-status")?.as_bytes());
    let message = headers.get("grpc-message").map(|message| unescape(message.as_bytes()));
    let details = headers.get(DETAILS).and_then(|details| {
        let map = [(HeaderName::from_static(DETAILS), details.clone())].into_iter().collect();
        MetadataMap::from_headers(map).get_bin(DETAILS)?.to_bytes().ok()
    });
    Some(Status::with_details(code, message.unwrap_or_default(), details.unwrap_or_default()))
}

/// What RetryInfo asks for, where there is one that does. Delays below zero, or with nanoseconds
/// that are none, are 0.
fn retry_delay(details: &[u8]) -> Option<Duration> {
    const TYPE_URL: &str = "type.googleapis.com/google.rpc.RetryInfo";
    let status = pb::Status::decode(details).ok()?;
    let infos = status.details.iter().filter(|detail| detail.type_url == TYPE_URL);
    let info = infos.filter_map(|info| pb::RetryInfo::decode(&info.value[..]).ok()).next()?;
    let asked = info.retry_delay?;
    let delay = match (u64::try_from(asked.seconds), u32::try_from(asked.nanos)) {
        (Ok(seconds), Ok(nanos @ 0..1_000_000_000)) => Duration::new(seconds, nanos),
        _ => Duration::ZERO,
    };
    Some(delay.min(RETRY_INFO_MAX))
}

/// Undoes gRPC's percent-encoding.
fn unescape(mut text: &[u8]) -> String {
    let mut plain = Vec::with_capacity(text.len());
    while let [first, rest @ ..] = text {
        let escaped = rest.first_chunk::<2>().filter(|_| *first == b'%');
        let byte = escaped
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        plain.push(byte.unwrap_or(*first));
        text = if byte.is_some() { &rest[2..] } else { rest };
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// What a status means that is not OK, about a request of so many bytes.
pub(super) fn classify(status: &Status, request_bytes: usize) -> Outcome {
    let code = status.code();
    let message = status.message().to_owned();
    // A status with a source was made here: the backend never gave an answer.
    let is_local = status.source().is_some();
    if !is_local && is_about_size(&message) {
        let limit = limit_in(&message, request_bytes);
        return Outcome::TooLarge { code, limit, message };
    }
    let after = retry_delay(status.details());
    match code {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Outcome::Retry { code, after, message },
        Code::ResourceExhausted if after.is_some() => Outcome::Retry { code, after, message },
        _ if is_local => Outcome::Retry { code: Code::Unavailable, after: None, message },
        _ => Outcome::Refused { code, is_about_spans: may_be_about_spans(code), message },
    }
}

/// INVALID_ARGUMENT says that a span is wrong. Real backends also say INTERNAL (Tempo and
/// everything on grpc-go about bytes that they cannot decode; the Collector about permanent
/// errors), FAILED_PRECONDITION (older Tempos about one trace that is too large) and UNKNOWN (any
/// Go handler's plain error).
fn may_be_about_spans(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument | Code::Internal | Code::FailedPrecondition | Code::Unknown
    )
}

/// Whether the words say that a request is too large. The code does not tell: RESOURCE_EXHAUSTED
/// for most, OUT_OF_RANGE, which OTLP retries, for tonic, UNKNOWN for Envoy, INVALID_ARGUMENT for
/// older connect-go.
fn is_about_size(message: &str) -> bool {
    const WORDS: [&str; 9] = [
        "larger than max",
        "larger than configured max",
        "exceeds maximum size",
        "exceeds the maximum configured message size",
        "message length too large",
        "exceeded while decompressing message",
        "exceeds ingestion limit",
        "payload too large",
        "entity too large",
    ];
    let message = message.to_ascii_lowercase();
    WORDS.iter().any(|words| message.contains(words))
}

/// The largest number in the words that the request exceeded: implementations name the limit before
/// or behind the size, or several limits.
fn limit_in(message: &str, request_bytes: usize) -> Option<usize> {
    let numbers = message.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok());
    numbers.filter(|limit| (REQUEST_BYTES_MIN..request_bytes).contains(limit)).max()
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;

    fn grpc() -> HeaderMap {
        [(CONTENT_TYPE, HeaderValue::from_static("application/grpc"))].into_iter().collect()
    }

    fn classified(status: &Status) -> Outcome {
        classify(status, 5_000_000)
    }

    #[test]
    fn statuses_are_classified_by_the_table_of_otlp() {
        for code in crate::grpc::codes().skip(1) {
            let expected = matches!(
                code,
                Code::Cancelled
                    | Code::DeadlineExceeded
                    | Code::Aborted
                    | Code::OutOfRange
                    | Code::Unavailable
                    | Code::DataLoss
            );
            let outcome = classified(&Status::new(code, "no"));
            assert_eq!(matches!(outcome, Outcome::Retry { .. }), expected, "{code:?}");
        }
    }

    #[test]
    fn retry_info_makes_exhaustion_retryable_and_is_capped() {
        let delay = |seconds| {
            let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(seconds)));
            classified(&Status::with_error_details(Code::ResourceExhausted, "slow down", details))
        };
        let retry = |after| Outcome::Retry {
            code: Code::ResourceExhausted,
            after: Some(Duration::from_secs(after)),
            message: "slow down".into(),
        };
        assert_eq!(delay(7), retry(7));
        assert_eq!(delay(300_000_000), retry(300));
    }

    #[test]
    fn what_backends_say_about_size_is_understood() {
        let limit = Some(4_194_304);
        let said = [
            (8, "grpc: received message larger than max (5000000 vs. 4194304)", limit),
            (
                8,
                "grpc: received message after decompression larger than max (9 vs. 4194304)",
                limit,
            ),
            (8, "Received message larger than max (5000000 vs. 4194304)", limit),
            (8, "gRPC message exceeds maximum size 4194304: 5000000", limit),
            (8, "Decompressed gRPC message exceeds maximum size 4194304", limit),
            (8, "Received message exceeds the maximum configured message size.", None),
            (3, "message size 5000000 is larger than configured max 4194304", limit),
            (
                11,
                "Error, decoded message length too large: found 5000000 bytes, the limit is: \
                 4194304 bytes",
                limit,
            ),
            (
                8,
                "RATE_LIMITED: batch size (5000000 bytes) exceeds ingestion limit (local: 100000 \
                 bytes/s, global: 200000 bytes/s, burst: 4194304 bytes) while adding 5000000 bytes",
                limit,
            ),
            (2, "Payload Too Large", None),
            (2, "413 Request Entity Too Large", None),
        ];
        for (code, message, expected) in said {
            let outcome = classified(&Status::new(Code::from_i32(code), message));
            let Outcome::TooLarge { limit, .. } = outcome else {
                panic!("{message}: {outcome:?}");
            };
            assert_eq!(limit, expected, "{message}");
        }
        let status = Status::resource_exhausted("RATE_LIMITED: ingestion rate limit exceeded");
        assert!(matches!(classified(&status), Outcome::Refused { is_about_spans: false, .. }));
    }

    #[test]
    fn words_that_are_not_utf8_do_not_hide_the_code() {
        let mut answer = Answer::default();
        answer.trailers.insert("grpc-status", "14".parse().expect("valid"));
        answer.trailers.insert("grpc-message", "down%FF%2".parse().expect("valid"));
        let message = "down\u{fffd}%2".into();
        let expected = Outcome::Retry { code: Code::Unavailable, after: None, message };
        assert_eq!(answer.outcome(1), expected);
    }

    #[test]
    fn an_answer_without_a_status_is_none_unless_there_is_a_message() {
        let answer = |status: u16, body: &'static [u8]| {
            let status = StatusCode::from_u16(status).expect("valid");
            let answer = Answer { status, headers: grpc(), body: body.into(), ..Answer::default() };
            answer.outcome(1)
        };
        let page = Answer { body: Bytes::from_static(&[0; 5]), ..Answer::default() };
        assert!(matches!(page.outcome(1), Outcome::Retry { code: Code::Unknown, .. }));
        assert!(matches!(answer(200, b""), Outcome::Retry { code: Code::Unknown, .. }));
        assert!(matches!(answer(200, b"<html>"), Outcome::Retry { .. }));
        assert!(matches!(answer(200, &[0; 5]), Outcome::Sent { rejected: 0, .. }));
        assert!(matches!(answer(200, &[0; 4]), Outcome::Retry { .. }));
        assert!(matches!(answer(503, &[0; 5]), Outcome::Retry { code: Code::Unavailable, .. }));
        assert!(matches!(answer(413, b""), Outcome::TooLarge { limit: None, .. }));
        let outcome = answer(500, b"");
        assert!(matches!(outcome, Outcome::Refused { is_about_spans: false, .. }), "{outcome:?}");
    }

    #[test]
    fn a_message_that_is_not_read_says_taken() {
        let mut answer = Answer { is_cut: true, headers: grpc(), ..Answer::default() };
        answer.body = Bytes::from_static(&[0, 0x40, 0, 0, 0, 1]);
        assert!(matches!(answer.outcome(1), Outcome::Sent { rejected: 0, .. }));
        answer.is_cut = false;
        answer.trailers.insert("grpc-status", "0".parse().expect("valid"));
        assert!(matches!(answer.outcome(1), Outcome::Sent { rejected: 0, .. }));
    }
}
