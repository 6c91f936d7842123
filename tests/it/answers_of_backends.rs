//! Checks how answers of a backend are read, and how a request is cut when the backend refuses it.
//! The fuzz targets include this file, so it refers to nothing else of this binary.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    trace::v1::{ResourceSpans, ScopeSpans},
};
use prost::Message as _;
use tailwater::{
    config::Protocol,
    exporter::{Answer, Cause, Outcome},
    metrics::ExportCode,
    otlp::split,
};
use tonic::{Code, Status};
use tonic_types::pb;

/// A span with its context: the encoded resource, scope and span.
type InContext = [Vec<u8>; 3];

fn in_context(request: &ExportTraceServiceRequest) -> Vec<InContext> {
    let mut spans = Vec::new();
    for of_resource in &request.resource_spans {
        let resource = ResourceSpans { scope_spans: Vec::new(), ..of_resource.clone() };
        for of_scope in &of_resource.scope_spans {
            let scope = ScopeSpans { spans: Vec::new(), ..of_scope.clone() };
            let context = [resource.encode_to_vec(), scope.encode_to_vec()];
            let of_scope = of_scope.spans.iter().map(|span| span.encode_to_vec());
            spans.extend(of_scope.map(|span| [context[0].clone(), context[1].clone(), span]));
        }
    }
    spans
}

/// Cuts any bytes in two, and the halves again, down to single spans. prost must read from the
/// parts what it reads from the whole.
pub(crate) fn split(bytes: &[u8]) {
    let whole = ExportTraceServiceRequest::decode(bytes);
    let halves = split::halves(bytes);
    let Ok(whole) = whole else { return };
    let spans = in_context(&whole);
    let Some(halves) = halves.expect("what prost reads is framed as a request") else {
        assert!(spans.len() < 2, "a request of several spans can be cut");
        return;
    };
    let mut joined = Vec::new();
    for half in &halves {
        let decoded = ExportTraceServiceRequest::decode(&half.body[..]).expect("a request");
        let part = in_context(&decoded);
        assert!(!part.is_empty() && part.len() as u64 == half.spans);
        joined.extend(part);
    }
    assert!(joined == spans, "the same spans, in the same order, each in its context");
    halves.iter().for_each(|half| split(&half.body));
}

/// Reads any bytes as status details; the first byte is the code.
pub(crate) fn status(bytes: &[u8]) {
    let Some((code, details)) = bytes.split_first() else { return };
    let code = Code::from_i32(i32::from(code % 18));
    let mut headers = HeaderMap::new();
    let status = Status::with_details(code, "slow down", details.to_vec().into());
    status.add_header(&mut headers).expect("valid headers");
    let answer = Answer { headers, ..Answer::default() };
    let outcome = answer.outcome(Protocol::Grpc, 1 << 20);
    let delay = retry_delay(details);
    let is_retried = match code {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated
        | Code::PermissionDenied
        | Code::Unimplemented => true,
        Code::ResourceExhausted => delay.is_some(),
        _ => false,
    };
    match outcome {
        Outcome::Sent { rejected, .. } => assert_eq!((code, rejected), (Code::Ok, 0)),
        Outcome::Retry { code: said, after, .. } => {
            assert!(is_retried && said == code.into());
            let capped = delay.map(|delay| delay.min(Duration::from_secs(300)));
            assert_eq!(after, capped, "the delay is the backend's, up to five minutes");
        }
        Outcome::Refused { code: said, .. } => assert!(!is_retried && said == code.into()),
        Outcome::TooLarge { .. } | Outcome::Panicked => panic!("{outcome:?}"),
    }
}

/// The delay in the first RetryInfo of readable details.
fn retry_delay(details: &[u8]) -> Option<Duration> {
    const TYPE_URL: &str = "type.googleapis.com/google.rpc.RetryInfo";
    let status = pb::Status::decode(details).ok()?;
    let infos = status.details.iter().filter(|detail| detail.type_url == TYPE_URL);
    let delays = infos.filter_map(|info| pb::RetryInfo::decode(&info.value[..]).ok());
    let delay = delays.map(|info| info.retry_delay).next()??;
    let is_sound = delay.seconds >= 0 && (0..1_000_000_000).contains(&delay.nanos);
    let nanos = i128::from(delay.seconds) * 1_000_000_000 + i128::from(delay.nanos);
    let nanos = if is_sound { nanos.min(1 << 62) } else { 0 };
    Some(Duration::from_nanos(u64::try_from(nanos).expect("not negative")))
}

/// Reads any bytes as the body of an answer; the first three are the HTTP status, the gRPC status
/// and whether the body was longer.
pub(crate) fn answer(bytes: &[u8]) {
    let Some(([http, grpc, flags], body)) = bytes.split_first_chunk() else { return };
    let http = [200, 200, 200, 400, 401, 403, 404, 413, 429, 500, 503][usize::from(http % 11)];
    let mut answer = Answer {
        status: StatusCode::from_u16(http).expect("valid"),
        body: body.to_vec().into(),
        is_cut: flags & 1 != 0,
        ..Answer::default()
    };
    if flags & 2 != 0 {
        answer.headers.insert("content-type", HeaderValue::from_static("application/grpc+proto"));
    }
    if *grpc < 20 {
        answer.trailers.insert("grpc-status", HeaderValue::from(u16::from(*grpc)));
    }
    if let Ok(words) = HeaderValue::from_bytes(body) {
        answer.trailers.insert("grpc-message", words);
    }
    let outcome = answer.outcome(Protocol::Grpc, 1 << 20);
    let framed = body.split_first_chunk::<5>().filter(|([flag, length @ ..], message)| {
        *flag == 0 && u32::from_be_bytes(*length) as usize == message.len()
    });
    let decoded = framed.map(|(_, message)| ExportTraceServiceResponse::decode(message));
    let is_taken = match *grpc {
        0 => true,
        1..20 => false,
        _ => http == 200 && flags & 2 != 0 && (answer.is_cut || framed.is_some()),
    };
    match outcome {
        Outcome::Sent { rejected, .. } => {
            assert!(is_taken);
            let said = decoded.filter(|_| !answer.is_cut).and_then(Result::ok);
            let said = said.and_then(|said| said.partial_success).unwrap_or_default();
            assert_eq!(rejected, u64::try_from(said.rejected_spans).unwrap_or(0));
        }
        Outcome::TooLarge { limit, .. } => {
            assert!(!is_taken);
            assert!(limit.is_none_or(|limit| (16 << 10..1 << 20).contains(&limit)));
        }
        // An answer without a status says nothing about spans.
        Outcome::Refused { .. } => assert!(!is_taken && *grpc < 20),
        Outcome::Retry { .. } => assert!(!is_taken),
        Outcome::Panicked => panic!("it did not"),
    }
}

/// Reads any bytes as the body of an answer over OTLP/HTTP. Before the body are the status, the
/// content type and flags, and the length of a Retry-After that follows them.
pub(crate) fn http_answer(bytes: &[u8]) {
    const STATUSES: [u16; 16] =
        [200, 200, 202, 204, 302, 400, 401, 404, 413, 422, 429, 500, 502, 503, 504, 522];
    const TYPES: [&str; 5] =
        ["application/x-protobuf", "application/json", "text/plain", "text/html; x", ""];
    let Some(([status, kind, flags, after_bytes], rest)) = bytes.split_first_chunk() else {
        return;
    };
    let (after, body) = rest.split_at(usize::from(*after_bytes).min(rest.len()));
    let status = STATUSES[usize::from(status % 16)];
    let kind = TYPES[usize::from(kind % 5)];
    let mut answer = Answer {
        status: StatusCode::from_u16(status).expect("valid"),
        body: body.to_vec().into(),
        is_cut: flags & 1 != 0,
        ..Answer::default()
    };
    if !kind.is_empty() {
        answer.headers.insert("content-type", HeaderValue::from_static(kind));
    }
    if let Ok(after) = HeaderValue::from_bytes(after) {
        answer.headers.insert("retry-after", after);
    }
    if flags & 2 != 0 {
        let date = HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT");
        answer.headers.insert("date", date);
    }
    let outcome = answer.outcome(Protocol::Http, 1 << 20);
    assert_eq!(outcome.code(), ExportCode::Http(status));
    let begins = |with: &[u8]| {
        let body = body.trim_ascii_start();
        body.get(..with.len()).is_some_and(|beginning| beginning.eq_ignore_ascii_case(with))
    };
    let is_html = kind.starts_with("text/html") && begins(b"<");
    let is_page = is_html || begins(b"<html") || begins(b"<!doctype html");
    match outcome {
        Outcome::Sent { rejected, .. } => {
            assert!((200..300).contains(&status) && !is_page);
            assert!(!answer.is_cut || rejected == 0);
            if !kind.contains("json") && !answer.is_cut {
                let said = ExportTraceServiceResponse::decode(body).unwrap_or_default();
                let said = said.partial_success.unwrap_or_default();
                assert_eq!(rejected, u64::try_from(said.rejected_spans).unwrap_or(0));
            }
        }
        Outcome::TooLarge { limit, .. } => {
            assert!(status >= 400 && (status == 413 || !is_page));
            assert!(limit.is_none_or(|limit| (16 << 10..1 << 20).contains(&limit)));
        }
        Outcome::Refused { is_about_spans, .. } => {
            assert!(is_about_spans && !is_page && [400, 422, 500].contains(&status));
        }
        Outcome::Retry { after, cause, .. } => {
            assert!(after.is_none_or(|after| after <= Duration::from_secs(300)));
            assert_eq!(cause == Cause::Exhausted, status == 429);
            assert_ne!(status, 413);
        }
        Outcome::Panicked => panic!("it did not"),
    }
}
