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
            "Whether these metrics are computed. If Tempo's metrics-generator or the Collector's \
             `spanmetrics` connector computes the same metrics, turn one of the two off.",
        ),
        Key::word(
            "style",
            &["tempo", "connector"],
            "The names, labels and buckets: as in Tempo's metrics-generator, or as Prometheus \
             shows those of the Collector's `spanmetrics` connector.",
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
            "At most 16 attributes of the span, or otherwise of its resource, that become labels: \
             `http.route` becomes `http_route`. Every further value multiplies the series; leave \
             ids out.",
        ),
        Key::integer(
            "max_series",
            [1, 10_000_000],
            10_000,
            "The most sets of labels. Spans with further sets are counted in one series with the \
             label `metric_overflow=\"true\"`. All sets together take at most a sixteenth of the \
             memory limit, about 1 KiB each.",
        ),
        Key::duration(
            "stale_after",
            [SECOND, DAY],
            Duration::from_mins(15),
            "A series that got no span for this long is removed. Make it longer than the scrape \
             interval of Prometheus.",
        ),
        Key::boolean(
            "exemplars",
            true,
            "Whether buckets of durations have exemplars, each of which names a trace. Only kept \
             traces are named. Exemplars exist only in the OpenMetrics format.",
        ),
    ],
}];
