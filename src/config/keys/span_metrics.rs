//! `[span_metrics]`.

use std::time::Duration;

use super::{DAY, Described, Key, Kind, SECOND};

pub(super) const SECTIONS: &[Described] = &[Described {
    path: "span_metrics",
    words: "Calls, errors and durations of all accepted spans, before anything is dropped, at \
            `/metrics/spans` on the telemetry port.",
    is_optional: false,
    keys: &[
        Key::boolean(
            "enabled",
            false,
            "Whether they are computed. If Tempo's metrics-generator or the Collector's \
             `spanmetrics` connector computes the same metrics, turn one of the two off.",
        ),
        Key::word(
            "style",
            &["tempo", "connector"],
            "Names, labels and buckets: those of Tempo's metrics-generator, or those of the \
             Collector's `spanmetrics` connector as Prometheus shows them.",
        ),
        Key::new(
            "kinds",
            Kind::WordsOr {
                words: &["INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER", "UNSPECIFIED"],
                default: &["SERVER", "CONSUMER"],
            },
            "The kinds of spans that are counted. The default counts each request once, where it \
             is served.",
        ),
        Key::new(
            "dimensions",
            Kind::Texts,
            "At most 16 attributes of the span, or else of its resource, that become labels: \
             `http.route` becomes `http_route`. Every further value multiplies the series; leave \
             ids out.",
        ),
        Key::integer(
            "max_series",
            [1, 10_000_000],
            10_000,
            "The most sets of labels. Spans with further sets count in one series with the label \
             `metric_overflow=\"true\"`. All sets together take at most a sixteenth of the memory \
             limit, about 1 KiB each.",
        ),
        Key::duration(
            "stale_after",
            [SECOND, DAY],
            Duration::from_mins(15),
            "A series to which no span was added for this long leaves. Longer than the interval \
             at which Prometheus scrapes.",
        ),
        Key::boolean(
            "exemplars",
            true,
            "Whether buckets of durations name a trace. Only traces that were kept are named. \
             Exemplars are only in the OpenMetrics format.",
        ),
    ],
}];
