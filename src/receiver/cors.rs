//! Cross-origin requests: which websites may send from a browser.
//!
//! The rules are those of the Collector's confighttp: an origin may contain one `*` for any
//! characters, and a lone `*` allows all origins. `Accept`, `Accept-Language`, `Content-Language`,
//! `Content-Type` and `Origin` are always allowed; `X-Requested-With` is allowed if no headers are
//! configured; `*` allows all headers. A preflight is answered before the token is checked, since
//! browsers send none with it. The answer allows nothing unless everything the preflight asks for
//! is allowed, and it repeats only an origin that is allowed. Two rules differ from the
//! Collector's: with `*`, no credentials are allowed, because any site could use those of its
//! visitors; and `Retry-After` is exposed, because exporters in browsers read it. Source: Fetch
//! standard, "CORS protocol".

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS,
        ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
        ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
    },
};

const ALWAYS_ALLOWED: [&str; 5] =
    ["accept", "accept-language", "content-language", "content-type", "origin"];
const ALLOWED_BY_DEFAULT: &str = "x-requested-with";

/// The origins that may send from a browser, and the headers they may use.
#[derive(Debug)]
pub(crate) struct Cors {
    origins: Vec<String>,
    headers: Vec<String>,
}

/// The origin of an allowed request, and the value that the answer names as allowed.
pub(super) struct Allowed {
    origin: HeaderValue,
    with_credentials: bool,
}

impl Cors {
    /// Takes the configured origins and headers; `None` without origins.
    pub(crate) fn new(origins: &[String], headers: &[String]) -> Option<Self> {
        let lower = |texts: &[String]| texts.iter().map(|text| text.to_ascii_lowercase()).collect();
        (!origins.is_empty()).then(|| Cors { origins: lower(origins), headers: lower(headers) })
    }

    /// The origin of a request, if it has one that is allowed.
    pub(super) fn allowed(&self, headers: &HeaderMap) -> Option<Allowed> {
        let origin = headers.get(ORIGIN)?;
        if self.origins.iter().any(|allowed| allowed == "*") {
            let origin = HeaderValue::from_static("*");
            return Some(Allowed { origin, with_credentials: false });
        }
        let text = origin.to_str().ok()?.to_ascii_lowercase();
        let is_allowed = self.origins.iter().any(|allowed| matches(allowed, &text));
        is_allowed.then(|| Allowed { origin: origin.clone(), with_credentials: true })
    }

    /// Whether this is a preflight: the request with which a browser asks before the real one.
    pub(super) fn is_preflight<B>(request: &Request<B>) -> bool {
        request.method() == Method::OPTIONS
            && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD)
    }

    /// Answers a preflight.
    pub(super) fn answer_preflight<B>(&self, asked: &HeaderMap, response: &mut Response<B>) {
        let answer = response.headers_mut();
        answer.append(VARY, HeaderValue::from_static("Origin, Access-Control-Request-Method"));
        answer.append(VARY, HeaderValue::from_static("Access-Control-Request-Headers"));
        let method = asked.get(ACCESS_CONTROL_REQUEST_METHOD).map(HeaderValue::as_bytes);
        let wanted = asked.get(ACCESS_CONTROL_REQUEST_HEADERS);
        let Some(allowed) = self.allowed(asked).filter(|_| method == Some(b"POST")) else { return };
        if !wanted.is_none_or(|wanted| self.allows_headers(wanted)) {
            return;
        }
        allowed.put(answer);
        answer.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST"));
        if let Some(wanted) = wanted {
            answer.insert(ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
        }
    }

    fn allows_headers(&self, wanted: &HeaderValue) -> bool {
        let Ok(wanted) = wanted.to_str() else { return false };
        let mut names = wanted.split(',').map(|name| name.trim().to_ascii_lowercase());
        names.all(|name| {
            // Only valid names are allowed, because the answer repeats the allowed names.
            HeaderName::from_bytes(name.as_bytes()).is_ok()
                && (ALWAYS_ALLOWED.contains(&name.as_str())
                    || self.headers.iter().any(|allowed| *allowed == name || allowed == "*")
                    || self.headers.is_empty() && name == ALLOWED_BY_DEFAULT)
        })
    }

    /// Allows the page of an allowed origin to read this answer.
    pub(super) fn mark<B>(allowed: Option<Allowed>, response: &mut Response<B>) {
        let answer = response.headers_mut();
        answer.append(VARY, HeaderValue::from_static("Origin"));
        if let Some(allowed) = allowed {
            allowed.put(answer);
            let exposed = HeaderValue::from_static("Retry-After");
            answer.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        }
    }
}

impl Allowed {
    fn put(self, answer: &mut HeaderMap) {
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, self.origin);
        if self.with_credentials {
            let yes = HeaderValue::from_static("true");
            answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
    }
}

/// Whether an origin equals the allowed one, or matches its `*`.
fn matches(allowed: &str, origin: &str) -> bool {
    match allowed.split_once('*') {
        None => allowed == origin,
        Some((start, end)) => {
            origin.len() >= start.len() + end.len()
                && origin.starts_with(start)
                && origin.ends_with(end)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters_and_nothing_else_does() {
        for (allowed, origin, expected) in [
            ("https://shop.example", "https://shop.example", true),
            ("https://shop.example", "https://shop.example.evil", false),
            ("https://shop.example", "http://shop.example", false),
            ("https://*.example", "https://a.b.example", true),
            ("https://*.example", "https://example", false),
            ("https://*.example", "https://evil.com/.example.com", false),
            ("http://localhost:*", "http://localhost:3000", true),
            ("https://a*a.example", "https://a.example", false),
        ] {
            assert_eq!(matches(allowed, origin), expected, "{allowed} {origin}");
        }
    }
}
