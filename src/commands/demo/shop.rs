//! The shop's traffic: one visit is one trace, with the spans that its services would make.
//!
//! Two visits in a hundred fail at the edge of some service, and the spans that wait for it fail
//! too. Three in a hundred take more than half a second. [`Kind`] records this, so that the sink
//! can tell which traces must have arrived. The generator is seeded: every run has the same visits
//! in the same order, and only the time of day differs.

use fastrand::Rng;
use opentelemetry_proto::tonic::trace::v1::Span;

use super::{
    routes::{Does, END_MAX, ROUTES, Service, Step},
    spans,
};
use crate::trace::TraceId;

const SEED: u64 = 2026;
const ERROR_PERCENT: f64 = 2.0;
const SLOW_PERCENT: f64 = 3.0;

/// The kinds of traces that policies tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// No span failed, and the trace is fast.
    Plain,
    /// A span failed.
    Error,
    /// The trace takes over 500 ms from its earliest start to its latest end.
    Slow,
}

/// All spans of one visit.
#[derive(Debug)]
pub(super) struct Trace {
    pub(super) id: TraceId,
    pub(super) kind: Kind,
    /// Each span with the service that made it; the root comes first.
    pub(super) spans: Vec<(Service, Span)>,
}

/// Makes visits.
#[derive(Debug)]
pub(super) struct Shop {
    rng: Rng,
}

impl Shop {
    /// A shop that always makes the same visits.
    pub(super) fn open() -> Self {
        Shop { rng: Rng::with_seed(SEED) }
    }

    /// The next visit, which has ended by `now_unix_nano`.
    pub(super) fn visit(&mut self, now_unix_nano: u64) -> Trace {
        let steps = self.route();
        let kind = self.kind();
        let root_nanos = self.root_nanos(kind);
        let failed = match kind {
            Kind::Error => self.failed(steps),
            Kind::Plain | Kind::Slow => Vec::new(),
        };
        let start = now_unix_nano.saturating_sub(root_nanos / 1000 * END_MAX);
        // The low 56 bits decide what the baseline policy keeps; all of them are random.
        let id = TraceId(self.rng.u128(1..).to_be_bytes());
        let span_ids: Vec<[u8; 8]> =
            steps.iter().map(|_| self.rng.u64(1..).to_be_bytes()).collect();
        let spans = steps.iter().enumerate().map(|(place, step)| {
            let span = Span {
                trace_id: id.0.to_vec(),
                span_id: span_ids[place].to_vec(),
                parent_span_id: step.parent.map_or(Vec::new(), |p| span_ids[p].to_vec()),
                start_time_unix_nano: start + root_nanos / 1000 * step.start,
                end_time_unix_nano: start + root_nanos / 1000 * step.end,
                ..spans::describe(step, failed.contains(&place), &mut self.rng)
            };
            let is_origin = failed.first() == Some(&place);
            (step.service, if is_origin { spans::with_exception(span) } else { span })
        });
        let spans = spans.collect();
        Trace { id, kind, spans }
    }

    fn route(&mut self) -> &'static [Step] {
        let mut drawn = self.rng.u32(..100);
        for (percent, steps) in ROUTES {
            if drawn < percent {
                return steps;
            }
            drawn -= percent;
        }
        ROUTES[0].1
    }

    fn kind(&mut self) -> Kind {
        let drawn = self.rng.f64() * 100.0;
        if drawn < ERROR_PERCENT {
            Kind::Error
        } else if drawn < ERROR_PERCENT + SLOW_PERCENT {
            Kind::Slow
        } else {
            Kind::Plain
        }
    }

    /// The duration of the root: mostly a few dozen milliseconds, with a tail. The browsing route
    /// ends with its root, so slow roots take well over 500 ms; other routes end after their root,
    /// so the other kinds stay below that.
    fn root_nanos(&mut self, kind: Kind) -> u64 {
        let micros = match kind {
            Kind::Slow => self.rng.u64(600_000..2_400_000),
            Kind::Plain | Kind::Error => {
                let tail = (0..3).fold(350_000, |most, _| self.rng.u64(0..=most));
                self.rng.u64(8_000..50_000) + tail
            }
        };
        micros * 1000
    }

    /// The positions of the failed spans: first the one where the error began, then those that
    /// waited for it.
    fn failed(&mut self, steps: &[Step]) -> Vec<usize> {
        let origins: Vec<_> = (0..steps.len()).filter(|&place| steps[place].can_fail()).collect();
        let mut failed: Vec<_> = self.rng.choice(origins).into_iter().collect();
        let mut next = failed.first().and_then(|&origin| steps[origin].parent);
        while let Some(place) = next {
            if matches!(steps[place].does, Does::Publish(_)) {
                break;
            }
            failed.push(place);
            next = steps[place].parent;
        }
        failed
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::trace::v1::status::StatusCode;

    use super::*;

    const NOW: u64 = 1_800_000_000_000_000_000;

    fn visits(count: usize) -> Vec<Trace> {
        let mut shop = Shop::open();
        (0..count).map(|_| shop.visit(NOW)).collect()
    }

    fn has_error(span: &Span) -> bool {
        span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error)
    }

    #[test]
    fn traces_are_whole() {
        for trace in visits(500) {
            let (_, root) = &trace.spans[0];
            assert!(root.parent_span_id.is_empty());
            let mut ids: Vec<&[u8]> = Vec::new();
            for (place, (_, span)) in trace.spans.iter().enumerate() {
                assert_eq!(span.trace_id, trace.id.0);
                assert!(place == 0 || ids.contains(&&span.parent_span_id[..]), "an earlier parent");
                assert!(!ids.contains(&&span.span_id[..]), "an id of its own");
                assert!(span.start_time_unix_nano < span.end_time_unix_nano);
                assert!(span.end_time_unix_nano <= NOW);
                ids.push(&span.span_id);
            }
        }
    }

    #[test]
    fn parents_reach_across_services_and_every_service_takes_part() {
        let traces = visits(200);
        for service in Service::ALL {
            assert!(traces.iter().flat_map(|t| &t.spans).any(|(by, _)| *by == service));
        }
        let cross = |trace: &Trace| {
            let by_id = |id: &[u8]| trace.spans.iter().find(|(_, span)| span.span_id == id);
            trace.spans.iter().any(|(service, span)| {
                by_id(&span.parent_span_id).is_some_and(|(parent, _)| parent != service)
            })
        };
        assert!(traces.iter().all(cross));
    }

    #[test]
    fn a_trace_is_what_its_kind_says() {
        for trace in visits(5_000) {
            let spans = || trace.spans.iter().map(|(_, span)| span);
            let start = spans().map(|span| span.start_time_unix_nano).min().expect("spans");
            let end = spans().map(|span| span.end_time_unix_nano).max().expect("spans");
            let is_slow = end - start > 500_000_000;
            assert_eq!(is_slow, trace.kind == Kind::Slow);
            assert_eq!(spans().any(has_error), trace.kind == Kind::Error);
        }
    }

    #[test]
    fn shares_and_sizes_are_as_announced() {
        let traces = visits(20_000);
        let percent = |kind| {
            let count = traces.iter().filter(|trace| trace.kind == kind).count();
            count as f64 / traces.len() as f64 * 100.0
        };
        assert!((1.5..2.5).contains(&percent(Kind::Error)), "{}", percent(Kind::Error));
        assert!((2.5..3.5).contains(&percent(Kind::Slow)), "{}", percent(Kind::Slow));
        let spans: usize = traces.iter().map(|trace| trace.spans.len()).sum();
        let mean = spans as f64 / traces.len() as f64;
        assert!((7.5..8.5).contains(&mean), "{mean}");
    }

    #[test]
    fn an_error_spreads_to_whoever_waits_but_not_back_through_a_queue() {
        for trace in visits(5_000).iter().filter(|trace| trace.kind == Kind::Error) {
            let origin = trace.spans.iter().find(|(_, span)| !span.events.is_empty());
            let (service, origin) = origin.expect("an error begins somewhere");
            assert!(has_error(origin));
            let is_behind_queue = matches!(service, Service::Shipping | Service::Notification);
            assert_eq!(has_error(&trace.spans[0].1), !is_behind_queue);
        }
    }
}
