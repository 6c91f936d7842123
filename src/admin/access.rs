//! Access control: the tokens of the telemetry port.
//!
//! Health and readiness need no token, so that probes work. A browser sends HTTP Basic with every
//! request to the port, even with requests that another site makes it send. So Basic is accepted
//! only for GET and HEAD, which change nothing. Tokens are neither logged nor repeated in answers.

use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{AUTHORIZATION, WWW_AUTHENTICATE},
};
use tonic::{Status, body::Body};

use super::{Admin, TEXT, response, rpc::is_grpc};

const MESSAGE: &str = "a valid bearer token is required in `authorization`";

impl Admin {
    /// Checks the credentials of a request. Returns the refusal, or `None` if the request is
    /// allowed.
    pub(super) fn refuse<B>(&self, request: &Request<B>) -> Option<Response<Body>> {
        let tokens = self.tokens.as_ref()?.get();
        let path = request.uri().path();
        let is_open = matches!(path, "/-/healthy" | "/-/ready")
            || path.starts_with("/grpc.health.v1.Health/");
        if is_open {
            return None;
        }
        let authorization = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
        let may_be_basic = matches!(*request.method(), Method::GET | Method::HEAD);
        let is_admitted = authorization
            .is_some_and(|value| tokens.admit(value) || may_be_basic && tokens.admit_basic(value));
        if is_admitted {
            return None;
        }
        if is_grpc(request) {
            return Some(Status::unauthenticated(MESSAGE).into_http());
        }
        let refusal = format!("{MESSAGE}, or as the password of HTTP Basic with any name\n");
        let mut refusal = response(StatusCode::UNAUTHORIZED, TEXT, refusal);
        for scheme in ["Bearer realm=\"tailwater\"", "Basic realm=\"tailwater\", charset=\"UTF-8\""]
        {
            refusal.headers_mut().append(WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
        }
        Some(refusal.map(Body::new))
    }
}
