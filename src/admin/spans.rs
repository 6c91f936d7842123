//! `/metrics/spans`: the metrics from all spans. An answer of up to 1 MiB is sent whole, with its
//! length; a longer one is streamed while it is written.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{ACCEPT, CONTENT_TYPE},
};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::Either;
use tokio::sync::OwnedSemaphorePermit;

use super::{Admin, Answered, TEXT, response, too_many_unread};
use crate::span_metrics::{Exposition, Format};

pub(super) const PATH: &str = "/metrics/spans";

/// The most bytes that are written before sending starts.
const WHOLE_BYTES_MAX: usize = 1 << 20;

/// An answer, which holds a permit until it is read.
#[derive(Debug)]
pub(super) struct SpanScrape {
    /// Bytes that are written but not sent.
    begin: Bytes,
    rest: Exposition,
    is_over: bool,
    _permit: OwnedSemaphorePermit,
}

impl SpanScrape {
    fn new(mut exposition: Exposition, permit: OwnedSemaphorePermit) -> Self {
        let mut begin = String::new();
        let mut is_over = false;
        while begin.len() < WHOLE_BYTES_MAX && !is_over {
            match exposition.next() {
                Some(chunk) => begin.push_str(&chunk),
                None => is_over = true,
            }
        }
        SpanScrape { begin: Bytes::from(begin), rest: exposition, is_over, _permit: permit }
    }
}

impl HttpBody for SpanScrape {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let begin = std::mem::take(&mut self.begin);
        if !begin.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(begin))));
        }
        let chunk = self.rest.next();
        Poll::Ready(chunk.map(|text| Ok(Frame::data(Bytes::from(text)))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over && self.begin.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        match self.is_over {
            true => SizeHint::with_exact(self.begin.len() as u64),
            false => SizeHint::default(),
        }
    }
}

impl Admin {
    /// The metrics in the format that the request accepts, or 404 while they are off.
    pub(super) fn span_metrics(&self, headers: &HeaderMap) -> Response<Answered> {
        let Some(metrics) = self.sampler.span_metrics() else {
            let message = "span metrics are off; set `enabled = true` in [span_metrics]\n";
            return response(StatusCode::NOT_FOUND, TEXT, message);
        };
        let Some(permit) = self.permit() else { return too_many_unread() };
        let format = accepted(headers);
        let scrape = SpanScrape::new(Exposition::new(metrics, format), permit);
        let mut answer = Response::new(Either::Right(scrape));
        let content_type = HeaderValue::from_static(format.content_type());
        answer.headers_mut().insert(CONTENT_TYPE, content_type);
        answer
    }
}

/// OpenMetrics, if the scraper names it and does not prefer plain text.
fn accepted(headers: &HeaderMap) -> Format {
    let quality = |wanted: &str| {
        let all = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let of_wanted = all.flat_map(|value| value.split(',')).filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            parts.next().filter(|range| range.eq_ignore_ascii_case(wanted))?;
            let q = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
            Some(q.map_or(1.0, |q| q.parse::<f32>().unwrap_or(0.0)))
        });
        of_wanted.fold(0.0, f32::max)
    };
    let openmetrics = quality("application/openmetrics-text");
    match openmetrics > 0.0 && openmetrics >= quality("text/plain") {
        true => Format::OpenMetrics,
        false => Format::Text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_the_one_that_the_scraper_prefers() {
        let cases = [
            (&[][..], Format::Text),
            (&["*/*"], Format::Text),
            (&["application/openmetrics-text; version=1.0.0"], Format::OpenMetrics),
            (&["Application/OpenMetrics-Text"], Format::OpenMetrics),
            (&["text/plain", "application/openmetrics-text"], Format::OpenMetrics),
            (&["application/openmetrics-text;q=0, text/plain;q=0.1"], Format::Text),
            (&["application/openmetrics-text;q=0.2,text/plain;version=0.0.4;q=0.3"], Format::Text),
            // The `Accept` headers of Prometheus 2 and 3.
            (
                &["application/openmetrics-text;version=1.0.0,application/openmetrics-text;\
                   version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"],
                Format::OpenMetrics,
            ),
            (
                &["application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                   application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;\
                   escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"],
                Format::OpenMetrics,
            ),
        ];
        for (accepts, format) in cases {
            let mut headers = HeaderMap::new();
            for accept in accepts {
                headers.append(ACCEPT, HeaderValue::from_static(accept));
            }
            assert_eq!(accepted(&headers), format, "{accepts:?}");
        }
    }
}
