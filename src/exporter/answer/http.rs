//! Answers of OTLP/HTTP.
//!
//! Any status from 200 to 299 means taken, as for the Collector's exporter: many backends answer
//! 202 or 204, and some answer JSON. 400, 422 and 500 may be about some spans and are final, as
//! OTLP says. Every other status says nothing about spans, and neither does a web page with any
//! status: these are outages. Redirects are not followed: a POST would become a GET on the way, and
//! headers would reach a host that nobody has configured.

use std::time::Duration;

use ::http::{
    HeaderMap, HeaderName, StatusCode,
    header::{DATE, RETRY_AFTER},
};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use serde::Deserialize;
use tonic_types::pb;

use super::{
    Answer, Cause, Outcome, RETRY_AFTER_MAX,
    words::{is_about_size, limit_in, wants_tls},
};
use crate::metrics::ExportCode;

/// The longest body that is searched for an error message.
const WORDS_BYTES_MAX: usize = 64 << 10;

impl Answer {
    pub(super) fn http_outcome(&self, request_bytes: usize) -> Outcome {
        let code = ExportCode::Http(self.status.as_u16());
        let words = self.words();
        let is_too_large = self.status == StatusCode::PAYLOAD_TOO_LARGE
            || self.status.as_u16() <= 500 && !self.is_page() && is_about_size(&words);
        if is_too_large {
            let limit = limit_in(&words, request_bytes);
            return Outcome::TooLarge { code, limit, message: self.described(&words) };
        }
        let cause = match self.status.as_u16() {
            200..=299 if !self.is_page() => return self.http_sent(code),
            // Some of these come with the web page of a proxy.
            408 | 425 | 502..=504 | 507..=599 => Cause::Unavailable,
            429 => Cause::Exhausted,
            401 | 402 | 403 | 407 => Cause::Credentials,
            400 | 422 | 500 if !self.is_page() && !wants_tls(&words) => {
                return Outcome::Refused { code, is_about_spans: true, message: words };
            }
            _ => Cause::NotOtlp,
        };
        Outcome::Retry { code, after: self.retry_after(), cause, message: self.described(&words) }
    }

    fn http_sent(&self, code: ExportCode) -> Outcome {
        let partial = match &self.body[..] {
            _ if self.is_cut => None,
            [] => Some(Partial::default()),
            body if self.content_type_starts_with("application/json") => partial_of_json(body),
            body => partial_of_protobuf(body),
        };
        let unreadable =
            || Partial { rejected: 0, message: "the answer cannot be read".to_owned() };
        let Partial { rejected, message } = partial.unwrap_or_else(unreadable);
        Outcome::Sent { code, rejected, message }
    }

    /// The error message of the backend: a Status as protobuf or JSON, or plain text.
    fn words(&self) -> String {
        let is_short = !self.is_cut && self.body.len() <= WORDS_BYTES_MAX;
        if self.status.is_success() || !is_short || self.is_page() {
            return String::new();
        }
        let body = &self.body[..];
        let status = if self.content_type_starts_with("application/x-protobuf") {
            pb::Status::decode(body).ok().map(|status| status.message)
        } else if self.content_type_starts_with("application/json") {
            serde_json::from_slice::<JsonStatus>(body).ok().map(|status| status.message)
        } else {
            None
        };
        let words = status.filter(|words| !words.is_empty());
        words.unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned())
    }

    fn described(&self, words: &str) -> String {
        let status = self.describe_status();
        match words {
            "" => status,
            words if wants_tls(words) => format!("{status}: it wants https:// ({words})"),
            words => format!("{status} ({words})"),
        }
    }

    /// The delay that Retry-After asks for, in seconds or as a date. A date is compared with the
    /// date of the answer, which its server must send, and never with the local clock, which may be
    /// wrong.
    fn retry_after(&self) -> Option<Duration> {
        let asked = text(&self.headers, RETRY_AFTER)?;
        let delay = match asked.parse() {
            Ok(seconds) => Duration::from_secs(seconds),
            // A number with too many digits for seconds.
            Err(_) if !asked.is_empty() && asked.bytes().all(|b| b.is_ascii_digit()) => {
                RETRY_AFTER_MAX
            }
            Err(_) => {
                let until = httpdate::parse_http_date(asked).ok()?;
                let now = httpdate::parse_http_date(text(&self.headers, DATE)?).ok()?;
                // A date in the past asks for no delay.
                until.duration_since(now).unwrap_or_default()
            }
        };
        Some(delay.min(RETRY_AFTER_MAX))
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// Spans that a backend did not take, and its message.
#[derive(Default)]
struct Partial {
    rejected: u64,
    message: String,
}

fn partial_of_protobuf(body: &[u8]) -> Option<Partial> {
    let decoded = ExportTraceServiceResponse::decode(body).ok()?;
    let partial = decoded.partial_success.unwrap_or_default();
    let rejected = u64::try_from(partial.rejected_spans).unwrap_or(0);
    Some(Partial { rejected, message: partial.error_message })
}

fn partial_of_json(body: &[u8]) -> Option<Partial> {
    let decoded: JsonResponse = serde_json::from_slice(body).ok()?;
    let partial = decoded.partial_success.unwrap_or_default();
    let rejected = match partial.rejected_spans {
        Some(JsonCount::Number(number)) => u64::try_from(number).unwrap_or(0),
        Some(JsonCount::Text(text)) => text.parse().unwrap_or(0),
        None => 0,
    };
    Some(Partial { rejected, message: partial.error_message })
}

/// `google.rpc.Status`.
#[derive(Deserialize)]
struct JsonStatus {
    message: String,
}

/// `ExportTraceServiceResponse`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonResponse {
    #[serde(default)]
    partial_success: Option<JsonPartial>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonPartial {
    #[serde(default)]
    rejected_spans: Option<JsonCount>,
    #[serde(default)]
    error_message: String,
}

/// protobuf's JSON writes 64-bit integers as strings; many libraries write them as numbers.
#[derive(Deserialize)]
#[serde(untagged)]
enum JsonCount {
    Number(i64),
    Text(String),
}

#[cfg(test)]
mod tests {
    use ::http::{HeaderValue, header::CONTENT_TYPE};

    use super::*;

    const PROTOBUF: &str = "application/x-protobuf";
    const JSON: &str = "application/json";

    fn answer(status: u16, content_type: &'static str, body: &'static [u8]) -> Answer {
        let headers = [(CONTENT_TYPE, HeaderValue::from_static(content_type))];
        Answer {
            status: StatusCode::from_u16(status).expect("valid"),
            headers: headers.into_iter().filter(|(_, value)| !value.is_empty()).collect(),
            body: body.into(),
            ..Answer::default()
        }
    }

    fn sent(content_type: &'static str, body: &'static [u8]) -> (u64, String) {
        match answer(200, content_type, body).http_outcome(1) {
            Outcome::Sent { rejected, message, .. } => (rejected, message),
            outcome => panic!("{outcome:?}"),
        }
    }

    #[test]
    fn statuses_are_classified() {
        for status in 200..=599 {
            let outcome = answer(status, "", b"").http_outcome(1);
            let expected = match status {
                200..=299 => "sent",
                413 => "too large",
                400 | 422 | 500 => "refused",
                _ => "retry",
            };
            let told = match &outcome {
                Outcome::Sent { .. } => "sent",
                Outcome::TooLarge { .. } => "too large",
                Outcome::Refused { is_about_spans: true, .. } => "refused",
                Outcome::Retry { .. } => "retry",
                _ => panic!("{outcome:?}"),
            };
            assert_eq!((told, outcome.code()), (expected, ExportCode::Http(status)), "{status}");
        }
        for (status, expected) in [
            (307, Cause::NotOtlp),
            (401, Cause::Credentials),
            (403, Cause::Credentials),
            (404, Cause::NotOtlp),
            (415, Cause::NotOtlp),
            (429, Cause::Exhausted),
            (501, Cause::NotOtlp),
            (502, Cause::Unavailable),
            (503, Cause::Unavailable),
            (504, Cause::Unavailable),
            (522, Cause::Unavailable),
        ] {
            let outcome = answer(status, "", b"").http_outcome(1);
            let Outcome::Retry { cause, .. } = outcome else { panic!("{status}: {outcome:?}") };
            assert_eq!(cause, expected, "{status}");
        }
    }

    #[test]
    fn a_page_is_no_answer_whatever_its_status() {
        for status in [200, 202, 400, 404, 422, 500, 503] {
            for page in
                [answer(status, "text/html", b"<p>"), answer(status, "", b"\n<!DOCTYPE HTML>")]
            {
                let outcome = page.http_outcome(1);
                assert!(matches!(outcome, Outcome::Retry { .. }), "{status}: {outcome:?}");
            }
        }
        // Web frameworks answer like this for a handler that names no type.
        for body in [&b""[..], b"OK"] {
            let outcome = answer(200, "text/html", body).http_outcome(1);
            assert!(matches!(outcome, Outcome::Sent { .. }), "{outcome:?}");
        }
        // The exception is a proxy that finds the request too large.
        let outcome = answer(413, "text/html", b"<html>").http_outcome(1);
        assert!(matches!(outcome, Outcome::TooLarge { .. }), "{outcome:?}");
        let words = b"Client sent an HTTP request to an HTTPS server.\n";
        let outcome = answer(400, "", words).http_outcome(1);
        let Outcome::Retry { message, cause: Cause::NotOtlp, .. } = outcome else {
            panic!("{outcome:?}");
        };
        assert!(message.contains("it wants https://"), "{message}");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let delay = |after: &'static str, date: Option<&'static str>| {
            let mut answer = answer(503, "", b"");
            answer.headers.insert(RETRY_AFTER, HeaderValue::from_static(after));
            if let Some(date) = date {
                answer.headers.insert(DATE, HeaderValue::from_static(date));
            }
            match answer.http_outcome(1) {
                Outcome::Retry { after, .. } => after.map(|delay| delay.as_secs()),
                outcome => panic!("{outcome:?}"),
            }
        };
        const DATE_OF_ANSWER: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(delay("7", None), Some(7));
        assert_eq!(delay(" 7 ", None), Some(7));
        assert_eq!(delay("0", None), Some(0));
        assert_eq!(delay("86400", None), Some(300));
        assert_eq!(delay("99999999999999999999999", None), Some(300));
        assert_eq!(delay("-1", None), None);
        assert_eq!(delay("soon", Some(DATE_OF_ANSWER)), None);
        assert_eq!(delay("Sun, 06 Nov 1994 08:49:50 GMT", Some(DATE_OF_ANSWER)), Some(13));
        assert_eq!(delay("Sunday, 06-Nov-94 08:49:50 GMT", Some(DATE_OF_ANSWER)), Some(13));
        assert_eq!(delay("Sun, 06 Nov 1994 08:00:00 GMT", Some(DATE_OF_ANSWER)), Some(0));
        assert_eq!(delay("Sat, 06 Nov 2094 08:00:00 GMT", Some(DATE_OF_ANSWER)), Some(300));
        assert_eq!(delay("Sun, 06 Nov 1994 08:49:50 GMT", None), None);
    }

    #[test]
    fn partial_success_is_read_as_protobuf_and_as_json() {
        assert_eq!(sent("", b""), (0, String::new()));
        assert_eq!(sent(PROTOBUF, b"\x0a\x05\x08\x02\x12\x01x"), (2, "x".into()));
        assert_eq!(sent("", b"\x0a\x02\x08\x02"), (2, String::new()));
        let negative = b"\x0a\x0b\x08\xf9\xff\xff\xff\xff\xff\xff\xff\xff\x01";
        assert_eq!(sent(PROTOBUF, negative).0, 0);
        assert_eq!(sent(JSON, b"{}"), (0, String::new()));
        let text = br#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"no"}}"#;
        assert_eq!(sent(JSON, text), (3, "no".into()));
        assert_eq!(sent(JSON, br#"{"partialSuccess":{"rejectedSpans":3}}"#).0, 3);
        assert_eq!(sent(JSON, br#"{"partialSuccess":null,"more":[[[]]]}"#).0, 0);
        // An unreadable answer means taken, with no rejected span known.
        for (content_type, body) in [(PROTOBUF, &b"\xff"[..]), (JSON, b"{"), ("text/plain", b"OK")]
        {
            assert_eq!(sent(content_type, body), (0, "the answer cannot be read".into()));
        }
    }

    #[test]
    fn the_words_of_an_error_are_found() {
        for (content_type, body) in [
            (PROTOBUF, &b"\x08\x03\x12\x08bad span"[..]),
            (JSON, br#"{"code":3,"message":"bad span"}"#),
            ("text/plain", b" bad span\n"),
            ("", b"bad span"),
        ] {
            let outcome = answer(400, content_type, body).http_outcome(1);
            let Outcome::Refused { message, .. } = outcome else { panic!("{outcome:?}") };
            assert_eq!(message, "bad span");
        }
        let outcome = answer(400, "", b"http: request body too large").http_outcome(1);
        assert!(matches!(outcome, Outcome::TooLarge { limit: None, .. }), "{outcome:?}");
        let outcome = answer(413, "", b"the limit is 65536 bytes").http_outcome(1 << 20);
        assert!(matches!(outcome, Outcome::TooLarge { limit: Some(65_536), .. }), "{outcome:?}");
    }
}
