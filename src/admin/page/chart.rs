//! The chart of the last minutes, as SVG: accepted, kept and dropped spans.

use maud::{Markup, html};

use super::Second;
use crate::control::figures::{percentage, rate};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 180.0;
/// Space above the plot for the highest figure, and below it for the labels. On a phone, letters
/// are twice as large in relation to the drawing.
const ABOVE: f64 = 26.0;
const BELOW: f64 = 30.0;

/// Draws `rates`, one per second, the newest last, on an axis of `seconds` seconds.
pub(super) fn chart(rates: &[Second], seconds: usize) -> Markup {
    let rates = &rates[rates.len().saturating_sub(seconds)..];
    let highest =
        rates.iter().flat_map(|rate| [rate.accepted, rate.kept, rate.dropped]).fold(0.0, f64::max);
    let top = round_up(highest);
    let x = |index: usize| {
        let age = (rates.len() - 1 - index) as f64;
        WIDTH - WIDTH * age / (seconds.max(2) - 1) as f64
    };
    let y = |value: f64| ABOVE + (HEIGHT - ABOVE) * (1.0 - value / top);
    let line = |value: fn(&Second) -> f64| -> String {
        let points = rates.iter().enumerate();
        let points = points.map(|(at, rate)| format!("{:.1},{:.1}", x(at), y(value(rate))));
        points.collect::<Vec<_>>().join(" ")
    };
    let area = match rates.len() {
        0 => String::new(),
        len => format!("{:.1},{HEIGHT} {} {:.1},{HEIGHT}", x(0), line(|r| r.kept), x(len - 1)),
    };
    let minutes = seconds / 60;
    let view_box = format!("0 0 {WIDTH} {}", HEIGHT + BELOW);
    html! {
        svg viewBox=(view_box) role="img" aria-label=(words(rates)) {
            @for part in [1.0, 0.5] {
                line .grid x1="0" x2=(WIDTH) y1=(y(top * part)) y2=(y(top * part)) {}
                text x="0" y=(y(top * part) - 4.0) { (rate(top * part)) }
            }
            polygon .kept points=(area) {}
            polyline .dropped points=(line(|r| r.dropped)) {}
            polyline .in points=(line(|r| r.accepted)) {}
            line .grid x1="0" x2=(WIDTH) y1=(HEIGHT) y2=(HEIGHT) {}
            text x="0" y=(HEIGHT + 23.0) { (minutes) " min ago" }
            text x=(WIDTH) y=(HEIGHT + 23.0) text-anchor="end" { "now" }
        }
    }
}

/// A description of the chart for screen readers.
fn words(rates: &[Second]) -> String {
    let Some(last) = rates.last() else { return "No figures yet.".into() };
    let mean =
        |value: fn(&Second) -> f64| rates.iter().map(value).sum::<f64>() / rates.len() as f64;
    let (accepted, kept) = (mean(|rate| rate.accepted), mean(|rate| rate.kept));
    let dropped = mean(|rate| rate.dropped);
    let share = if accepted > 0.0 { percentage(kept / accepted * 100.0) } else { "–".into() };
    format!(
        "Spans a second over the last {} seconds. In: {} on average, {} now. Kept: {} on average, \
         {} now; on average, that is {share} of all received spans. Dropped: {} on average, {} \
         now.",
        rates.len(),
        rate(accepted),
        rate(last.accepted),
        rate(kept),
        rate(last.kept),
        rate(dropped),
        rate(last.dropped)
    )
}

/// The next 1, 2 or 5 times a power of ten; at least 1.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.max(1.0).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
    steps.into_iter().find(|step| *step >= value).unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axis_ends_above_the_highest_rate() {
        let tops = [0.0, 0.3, 1.0, 1.1, 230.0, 999.0, 1_000_001.0].map(round_up);
        assert_eq!(tops, [1.0, 1.0, 1.0, 2.0, 500.0, 1_000.0, 2_000_000.0]);
    }

    #[test]
    fn a_chart_is_drawn_from_any_number_of_rates() {
        let second =
            |kept| Second { wall_millis: 0, accepted: 100.0, kept, dropped: 250.0, sent: 0.0 };
        for len in [0, 1, 2, 600, 700] {
            let rates = vec![second(10.0); len];
            let drawn = chart(&rates, 600).into_string();
            assert_eq!(drawn.matches("<polyline").count(), 2);
            assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
        }
        let half = chart(&[second(50.0)], 600).into_string();
        assert!(half.contains("that is 50 % of all received spans"), "{half}");
        assert!(half.contains("Dropped: 250 on average, 250 now."), "{half}");
        // The axis has room for more dropped than accepted spans: those of a whole window at once.
        assert!(half.contains(">500<"), "{half}");
    }
}
