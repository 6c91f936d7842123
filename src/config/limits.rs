//! Reads the `limit` of a policy into a [`LimitSpec`].

use crate::policy::{LimitSpec, Number, Rate};

use super::{
    diagnostics::Problem,
    section::{Read, Section},
};

const HINT: &str = "write limit = { spans_per_second = 500 }, bytes_per_second, or both";
/// The default of `burst_capacity`, in seconds of the rate.
const BURST_SECONDS: f64 = 2.0;

/// Reads `limit`; wrong parts are reported.
pub(super) fn limit(section: &mut Section<'_, '_>) -> Read<LimitSpec> {
    let (mut limit, span) = match section.nameless("limit", HINT) {
        Read::Set(limit, span) => (limit, span),
        Read::Unset => return Read::Unset,
        Read::Bad => return Read::Bad,
    };
    limit.set_place(" in a limit".to_owned());
    let spans = above_zero(&mut limit, "spans_per_second");
    let bytes = above_zero(&mut limit, "bytes_per_second");
    let burst = above_zero(&mut limit, "burst_capacity");
    let is_empty = matches!((&spans, &bytes), (Read::Unset, Read::Unset));
    if is_empty {
        let keys = ["spans_per_second", "bytes_per_second"];
        limit.require_any(&keys, Problem::new("the limit has no rate").hint(HINT));
    }
    if let (Read::Set(..), Read::Set(..), Read::Set(_, burst)) = (&spans, &bytes, &burst) {
        let problem = Problem::new("`burst_capacity` with two rates is ambiguous");
        limit.error(burst.clone(), problem.hint("leave it out: each burst is twice its rate"));
        return Read::Bad;
    }
    let is_bad = [&spans, &bytes, &burst].iter().any(|read| matches!(read, Read::Bad));
    limit.finish();
    if is_bad || is_empty {
        return Read::Bad;
    }
    let burst = burst.good();
    let rate =
        |per_second: f64| Rate { per_second, burst: burst.unwrap_or(BURST_SECONDS * per_second) };
    let spec = LimitSpec { spans: spans.good().map(rate), bytes: bytes.good().map(rate) };
    Read::Set(spec, span)
}

/// A rate above 0.
pub(super) fn above_zero(limit: &mut Section<'_, '_>, key: &'static str) -> Read<f64> {
    let (number, span) = match limit.number(key) {
        Read::Set(number, span) => (number, span),
        Read::Unset => return Read::Unset,
        Read::Bad => return Read::Bad,
    };
    let number = match number {
        Number::Int(number) => number as f64,
        Number::Double(number) => number,
    };
    if number > 0.0 {
        return Read::Set(number, span);
    }
    let problem = Problem::new(format!("`{key}` must be above 0"));
    limit.error(span, problem.hint("to keep nothing, use sampling_percentage = 0"));
    Read::Bad
}
