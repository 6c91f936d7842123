//! `[span_metrics]`: attributes that can become labels, and attributes that cannot.

use std::time::Duration;

use super::{POLICY, config, each_has_one_problem, problems};
use crate::span_metrics::{Dimension, Settings, Style};

fn section(lines: &str) -> String {
    format!("[span_metrics]\nenabled = true\n{lines}\n{POLICY}")
}

#[test]
fn every_key_has_its_meaning() {
    let on = |lines: &str| config(&section(lines)).span_metrics.expect("on");
    let defaults = Settings {
        style: Style::Tempo,
        kinds: 0b10_0100,
        dimensions: Vec::new(),
        max_series: 10_000,
        stale_after: Duration::from_secs(900),
        exemplars: true,
    };
    assert_eq!(on(""), defaults);
    assert_eq!(config(POLICY).span_metrics, None);
    assert_eq!(config(&format!("[span_metrics]\nmax_series = 1\n{POLICY}")).span_metrics, None);
    let dimension = |attribute: &str, label: &str| Dimension {
        attribute: attribute.to_owned(),
        label: label.to_owned(),
    };
    let changed = Settings {
        style: Style::Connector,
        kinds: 0b11_1111,
        dimensions: vec![dimension("http.route", "http_route"), dimension("4444", "key_4444")],
        max_series: 5,
        stale_after: Duration::from_secs(1),
        exemplars: false,
    };
    let lines = "style = 'connector'\n\
                 kinds = ['INTERNAL', 'SERVER', 'CLIENT', 'PRODUCER', 'CONSUMER', 'UNSPECIFIED']\n\
                 dimensions = ['http.route', '${env:PORT}']\nmax_series = 5\n\
                 stale_after = '1s'\nexemplars = false";
    assert_eq!(on(lines), changed);
    // The service has another name in this style.
    assert_eq!(on("dimensions = ['service.name']").dimensions[0].label, "service_name");
}

#[test]
fn labels_that_clash_are_errors_where_they_stand() {
    let clash = |lines: &str, expected: &str| {
        each_has_one_problem(&[(&section(lines), expected)]);
    };
    clash(
        "dimensions = ['a.b', 'c', 'a_b']",
        "3:27: error: `a_b` and `a.b` become the same label, `a_b` | leave one of them out",
    );
    clash(
        "dimensions = ['a', 'a']",
        "3:20: error: the dimension `a` is given twice | leave one of them out",
    );
    for (style, attribute, label) in [
        ("tempo", "span.name", "span_name"),
        ("tempo", "service", "service"),
        ("connector", "service.name", "service_name"),
        ("tempo", "le", "le"),
        ("tempo", "metric.overflow", "metric_overflow"),
    ] {
        clash(
            &format!("style = '{style}'\ndimensions = ['{attribute}']"),
            &format!(
                "4:15: error: `{attribute}` becomes the label `{label}`, which is taken \
                 | leave it out, or choose another attribute"
            ),
        );
    }
    clash(
        "dimensions = ['..x']",
        "3:15: error: `..x` becomes the label `__x`: Prometheus reserves `__` \
         | choose another attribute",
    );
    clash("dimensions = ['']", "3:15: error: a dimension is empty | name an attribute");
    let many: Vec<_> = (0..17).map(|n| format!("'a{n}'")).collect();
    let told = problems(&section(&format!("dimensions = [{}]", many.join(", "))));
    assert_eq!(told, ["3:117: error: there are more than 16 dimensions"]);
}

#[test]
fn kinds_are_words_and_at_least_one() {
    each_has_one_problem(&[
        (
            &section("kinds = []"),
            "3:9: error: `kinds` is empty, so no span would be counted \
             | `enabled = false` turns the metrics off",
        ),
        (
            &section("kinds = ['SERVER', 'Client']"),
            "3:20: error: `kinds` must be one of `INTERNAL`, `SERVER`, `CLIENT`, `PRODUCER`, \
             `CONSUMER`, `UNSPECIFIED`, found `Client` | did you mean `CLIENT`?",
        ),
    ]);
}

#[test]
fn more_series_than_memory_holds_are_warned_about() {
    let told = problems(&section("max_series = 1_000_000"));
    assert!(told[0].starts_with("3:14: warning: about "), "{told:?}");
    assert!(told[0].contains(" series will fit, not `max_series` = 1000000"), "{told:?}");
    assert_eq!(told.len(), 1);
    assert!(problems(&section("max_series = 40_000")).is_empty());
    let off = format!("[span_metrics]\nmax_series = 1_000_000\n{POLICY}");
    assert!(problems(&off).is_empty());
}
