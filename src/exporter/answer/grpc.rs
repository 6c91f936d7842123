//! Answers of OTLP/gRPC.

use std::{error::Error as _, time::Duration};

use ::http::{HeaderMap, HeaderName, StatusCode};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use tonic::{Code, Status, metadata::MetadataMap};
use tonic_types::pb;

use super::{
    Answer, Cause, Outcome, RETRY_AFTER_MAX,
    words::{is_about_rate, is_about_size, limit_in},
};
use crate::grpc;

impl Answer {
    pub(super) fn grpc_outcome(&self, request_bytes: usize) -> Outcome {
        let status = status_in(&self.headers).or_else(|| status_in(&self.trailers));
        match status {
            Some(status) if status.code() == Code::Ok => self.grpc_sent(),
            Some(status) => classify(&status, request_bytes),
            None if self.is_grpc() && (self.is_cut || self.message().is_some()) => self.grpc_sent(),
            None => self.without_status(),
        }
    }

    fn grpc_sent(&self) -> Outcome {
        let code = Code::Ok.into();
        let decoded = match self.message() {
            _ if self.is_cut => None,
            // A status of OK without a message is an answer too.
            None if self.body.is_empty() => Some(ExportTraceServiceResponse::default()),
            message => message.and_then(|m| ExportTraceServiceResponse::decode(m).ok()),
        };
        let Some(decoded) = decoded else {
            let message = "the answer cannot be read".into();
            return Outcome::Sent { code, rejected: 0, message };
        };
        let partial = decoded.partial_success.unwrap_or_default();
        let rejected = u64::try_from(partial.rejected_spans).unwrap_or(0);
        Outcome::Sent { code, rejected, message: partial.error_message }
    }

    /// The whole message, if there is one. The exporter offers no compression.
    fn message(&self) -> Option<&[u8]> {
        let (prefix, message) = self.body.split_first_chunk()?;
        let (flag, length) = grpc::read_prefix(*prefix);
        let is_whole = usize::try_from(length).ok()? == message.len();
        (flag == 0 && is_whole).then_some(message)
    }

    /// Whether the answer comes from a gRPC server, not from a proxy or a web site.
    fn is_grpc(&self) -> bool {
        self.status == StatusCode::OK && self.content_type_starts_with("application/grpc")
    }

    /// The meaning of an answer without a gRPC status. It says nothing about the spans, unless a
    /// proxy found the request too large.
    fn without_status(&self) -> Outcome {
        let message = format!("{}, without a gRPC status", self.describe_status());
        let (code, cause) = match self.status {
            StatusCode::PAYLOAD_TOO_LARGE => {
                return Outcome::TooLarge { code: Code::Unknown.into(), limit: None, message };
            }
            StatusCode::OK if self.is_grpc() => (Code::Unknown, Cause::Unavailable),
            StatusCode::BAD_REQUEST => (Code::Internal, Cause::NotOtlp),
            StatusCode::UNAUTHORIZED => (Code::Unauthenticated, Cause::Credentials),
            StatusCode::FORBIDDEN => (Code::PermissionDenied, Cause::Credentials),
            StatusCode::NOT_FOUND => (Code::Unimplemented, Cause::NotOtlp),
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => (Code::Unavailable, Cause::Unavailable),
            _ => (Code::Unknown, Cause::NotOtlp),
        };
        Outcome::Retry { code: code.into(), after: None, cause, message }
    }
}

/// gRPC's status, if there is one.
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

/// The delay that RetryInfo asks for, if any. A negative delay, or one with invalid nanoseconds,
/// counts as 0.
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
    Some(delay.min(RETRY_AFTER_MAX))
}

/// Decodes gRPC's percent-encoding.
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

/// The meaning of a status other than OK for a request of `request_bytes`.
pub(in crate::exporter) fn classify(status: &Status, request_bytes: usize) -> Outcome {
    let code = status.code();
    let message = status.message().to_owned();
    // A status with a source was made in this process: the backend did not answer.
    let is_local = status.source().is_some();
    if !is_local && is_about_size(&message) {
        let limit = limit_in(&message, request_bytes);
        return Outcome::TooLarge { code: code.into(), limit, message };
    }
    let after = retry_delay(status.details());
    let cause = match code {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Cause::Unavailable,
        _ if is_local => {
            let code = Code::Unavailable.into();
            return Outcome::Retry { code, after: None, cause: Cause::Unavailable, message };
        }
        Code::ResourceExhausted if after.is_some() || is_about_rate(&message) => Cause::Exhausted,
        // The spans are not at fault: the token has expired, or this is another service.
        Code::Unauthenticated | Code::PermissionDenied => Cause::Credentials,
        Code::Unimplemented => Cause::NotOtlp,
        _ => {
            let is_about_spans = may_be_about_spans(code);
            return Outcome::Refused { code: code.into(), is_about_spans, message };
        }
    };
    Outcome::Retry { code: code.into(), after, cause, message }
}

/// Whether a code may be about some of the spans. INVALID_ARGUMENT says that a span is wrong. Real
/// backends also say INTERNAL (Tempo and every grpc-go server about bytes that they cannot decode;
/// the Collector about permanent errors), FAILED_PRECONDITION (older Tempos about one trace that is
/// too large) and UNKNOWN (a plain error of any Go handler).
fn may_be_about_spans(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument | Code::Internal | Code::FailedPrecondition | Code::Unknown
    )
}

#[cfg(test)]
mod tests {
    use ::http::{HeaderValue, header::CONTENT_TYPE};
    use bytes::Bytes;
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
                    // By this product's rule an outage, not a verdict on spans.
                    | Code::PermissionDenied
                    | Code::Unauthenticated
                    | Code::Unimplemented
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
            code: Code::ResourceExhausted.into(),
            after: Some(Duration::from_secs(after)),
            cause: Cause::Exhausted,
            message: "slow down".into(),
        };
        assert_eq!(delay(7), retry(7));
        assert_eq!(delay(300_000_000), retry(300));
    }

    #[test]
    fn messages_of_backends_about_size_are_understood() {
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
    }

    #[test]
    fn words_about_a_rate_are_a_delay_and_others_a_verdict() {
        for (words, is_retried) in [
            (
                "RATE_LIMITED: ingestion rate limit (local: 15000000 bytes, global: 0 bytes) \
                 exceeded while adding 10 bytes for user single-tenant",
                true,
            ),
            ("RATE_LIMITED: ingestion rate limit (15000000 bytes) exceeded while adding 9", true),
            ("Too Many Requests", true),
            ("limit of 1000 spans per second", true),
            ("request was throttled", true),
            ("the quota of this month is used up", false),
            ("separate tenants, please", false),
            ("", false),
        ] {
            let outcome = classified(&Status::resource_exhausted(words));
            let is_exhausted = matches!(outcome, Outcome::Retry { cause: Cause::Exhausted, .. });
            assert_eq!(is_exhausted, is_retried, "{words}: {outcome:?}");
        }
        let elsewhere = classified(&Status::invalid_argument("rate limit attribute is missing"));
        assert!(matches!(elsewhere, Outcome::Refused { is_about_spans: true, .. }));
    }

    #[test]
    fn words_that_are_not_utf8_do_not_hide_the_code() {
        let mut answer = Answer::default();
        answer.trailers.insert("grpc-status", "14".parse().expect("valid"));
        answer.trailers.insert("grpc-message", "down%FF%2".parse().expect("valid"));
        let message = "down\u{fffd}%2".into();
        let (code, cause) = (Code::Unavailable.into(), Cause::Unavailable);
        let expected = Outcome::Retry { code, after: None, cause, message };
        assert_eq!(answer.grpc_outcome(1), expected);
    }

    #[test]
    fn an_answer_without_a_status_is_an_outage_unless_there_is_a_message() {
        let answer = |status: u16, body: &'static [u8]| {
            let status = StatusCode::from_u16(status).expect("valid");
            let answer = Answer { status, headers: grpc(), body: body.into(), ..Answer::default() };
            answer.grpc_outcome(1)
        };
        assert!(matches!(answer(200, &[0; 5]), Outcome::Sent { rejected: 0, .. }));
        assert!(matches!(answer(413, b""), Outcome::TooLarge { limit: None, .. }));
        for (status, body, code, cause) in [
            (200, &b""[..], Code::Unknown, Cause::Unavailable),
            (200, &[0; 4], Code::Unknown, Cause::Unavailable),
            (302, b"", Code::Unknown, Cause::NotOtlp),
            (400, b"", Code::Internal, Cause::NotOtlp),
            (401, b"", Code::Unauthenticated, Cause::Credentials),
            (403, b"", Code::PermissionDenied, Cause::Credentials),
            (404, b"404 page not found", Code::Unimplemented, Cause::NotOtlp),
            (500, b"", Code::Unknown, Cause::NotOtlp),
            (503, &[0; 5], Code::Unavailable, Cause::Unavailable),
        ] {
            let outcome = answer(status, body);
            let Outcome::Retry { code: told, after: None, cause: why, .. } = outcome else {
                panic!("{status}: {outcome:?}");
            };
            assert_eq!((told, why), (code.into(), cause), "{status}");
        }
    }

    #[test]
    fn an_outage_says_what_the_endpoint_seems_to_be() {
        let said =
            |status: u16, header: Option<(&'static str, &'static str)>, body: &'static str| {
                let status = StatusCode::from_u16(status).expect("valid");
                let headers = header.map(|(name, value)| {
                    (HeaderName::from_static(name), HeaderValue::from_static(value))
                });
                let headers = headers.into_iter().collect();
                let answer = Answer { status, headers, body: body.into(), ..Answer::default() };
                let Outcome::Retry { message, .. } = answer.grpc_outcome(1) else {
                    panic!("{answer:?}")
                };
                message
            };
        let none = "without a gRPC status";
        let html = Some(("content-type", "Text/HTML; charset=utf-8"));
        assert_eq!(said(200, html, "<p>"), format!("HTTP 200 with a web page, {none}"));
        assert_eq!(
            said(404, None, "\n<!DOCTYPE html>"),
            format!("HTTP 404 with a web page, {none}")
        );
        assert_eq!(said(404, None, "no"), format!("HTTP 404: is the path right?, {none}"));
        let to = Some(("location", "https://tempo/login?token=s3cret"));
        let redirect = format!("HTTP 307, a redirect to https://tempo/login, {none}");
        assert_eq!(said(307, to, ""), redirect);
    }

    #[test]
    fn a_message_that_is_not_read_says_taken() {
        let mut answer = Answer { is_cut: true, headers: grpc(), ..Answer::default() };
        answer.body = Bytes::from_static(&[0, 0x40, 0, 0, 0, 1]);
        assert!(matches!(answer.grpc_outcome(1), Outcome::Sent { rejected: 0, .. }));
        answer.is_cut = false;
        answer.trailers.insert("grpc-status", "0".parse().expect("valid"));
        assert!(matches!(answer.grpc_outcome(1), Outcome::Sent { rejected: 0, .. }));
    }
}
