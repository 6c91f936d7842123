//! The text that the demo prints: the table by policy, the lines below it, and the summary. The
//! functions are pure, so that tests can compare the text exactly.
//!
//! No line is wider than 80 columns until traces are counted in tens of millions. The plain
//! progress lines are wider, since they do not go to a terminal. Colour only repeats the words.

use std::{fmt::Write as _, time::Duration};

use super::{
    BUDGET_SPANS_PER_SECOND,
    figures::{Figures, PolicyFigures},
    verify::Report,
};
use crate::{control::figures::count as grouped, trace::TraceId};

/// The length of the bar of a policy that has kept all of the kept spans.
const BAR_COLUMNS: u64 = 10;

/// Whether to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Paint {
    pub(super) is_on: bool,
}

/// Colours by their purpose.
#[derive(Clone, Copy, Debug)]
enum Colour {
    Good = 32,
    Bad = 31,
    Title = 1,
    Faint = 2,
    Bar = 36,
}

impl Paint {
    fn with(self, colour: Colour, text: &str) -> String {
        if self.is_on && !text.is_empty() {
            format!("\x1b[{}m{text}\x1b[0m", colour as u8)
        } else {
            text.to_owned()
        }
    }

    fn verdict(self, is_fine: bool) -> String {
        if is_fine { self.with(Colour::Good, "OK") } else { self.with(Colour::Bad, "NOT OK") }
    }
}

/// The content of the live part.
#[derive(Clone, Debug)]
pub(super) struct Frame<'a> {
    pub(super) elapsed: Duration,
    pub(super) figures: &'a Figures,
    pub(super) spans_per_second: u64,
    pub(super) report: &'a Report,
    /// The address for looking up decisions, and a trace to look up.
    pub(super) admin: &'a str,
    pub(super) example: Option<TraceId>,
}

/// The rows by policy, and their total.
pub(super) fn by_policy(figures: &Figures, paint: Paint) -> String {
    let head = "policy    traces kept    dropped   spans kept    dropped  of kept";
    let mut text = format!("  {}\n", paint.with(Colour::Title, head));
    let total = figures.total();
    for policy in &figures.policies {
        text += &row(policy, total.spans_kept, paint);
    }
    let _ = writeln!(text, "  {}", paint.with(Colour::Faint, &"-".repeat(head.len())));
    text += &row(&total, 0, paint);
    text
}

/// One row, with the share and its bar if any span was kept.
fn row(policy: &PolicyFigures, all_kept: u64, paint: Paint) -> String {
    let name = if policy.name == "none" { "no policy" } else { &policy.name };
    let kept = |count, width| {
        let colour = if count == 0 { Colour::Faint } else { Colour::Good };
        paint.with(colour, &format!("{:>width$}", grouped(count)))
    };
    let dropped = |count| paint.with(Colour::Faint, &format!("{:>11}", grouped(count)));
    let mut text = format!(
        "  {name:<10}{}{}{}{}",
        kept(policy.traces_kept, 11),
        dropped(policy.traces_dropped),
        kept(policy.spans_kept, 13),
        dropped(policy.spans_dropped),
    );
    if all_kept > 0 {
        let share = policy.spans_kept as f64 / all_kept as f64;
        // Rounded to the nearest column.
        let columns = (policy.spans_kept * BAR_COLUMNS + all_kept / 2) / all_kept;
        let bar: String = (0..columns).map(|_| '█').collect();
        let _ = write!(text, "{:>7.1} %", share * 100.0);
        if !bar.is_empty() {
            let _ = write!(text, "  {}", paint.with(Colour::Bar, &bar));
        }
    }
    text + "\n"
}

/// The live part, which is redrawn.
pub(super) fn live(frame: &Frame<'_>, paint: Paint) -> String {
    let figures = frame.figures;
    let mut text = by_policy(figures, paint);
    let (rate, accepted) = (grouped(frame.spans_per_second), grouped(figures.accepted_spans));
    let seconds = frame.elapsed.as_secs();
    let _ = writeln!(text, "\n  in         {rate} spans/s, {accepted} in {seconds} s");
    let (traces, spans) = (grouped(figures.buffered_traces), grouped(figures.buffered_spans));
    let _ = writeln!(text, "  waiting    {traces} traces, {spans} spans");
    let mib = |bytes: u64| grouped(bytes.div_ceil(1 << 20));
    let (used, limit) = (mib(figures.memory_used_bytes), mib(figures.memory_limit_bytes));
    let _ = writeln!(text, "  memory     {used} of {limit} MiB");
    let (kinds, share) = (grouped(figures.budget_keys), BUDGET_SPANS_PER_SECOND);
    let _ =
        writeln!(text, "  budget     {share} spans/s, shared fairly by {kinds} kinds of requests");
    let saved = paint.with(Colour::Good, &format!("{:.1} %", saved_percent(figures)));
    let _ = writeln!(text, "  storage    {saved} of the spans saved");
    let report = frame.report;
    let checked = grouped(report.checked);
    let whole = if report.is_fine() {
        paint.with(Colour::Good, "all whole")
    } else {
        paint.with(Colour::Bad, &faults(report))
    };
    let _ = writeln!(text, "  sink       {checked} kept traces checked, {whole}");
    let look_up = match frame.example {
        Some(id) => format!("curl {}/-/decisions/{id}", frame.admin),
        None => paint.with(Colour::Faint, "a trace with an error, as soon as there is one"),
    };
    let _ = writeln!(text, "  try        {look_up}");
    text
}

/// One line for the reader of a file or a pipe.
pub(super) fn progress(frame: &Frame<'_>) -> String {
    let figures = frame.figures;
    let total = figures.total();
    let credited: Vec<_> = figures
        .policies
        .iter()
        .filter(|policy| policy.traces_kept > 0)
        .map(|policy| format!("{} {}", policy.name, grouped(policy.traces_kept)))
        .collect();
    let credited =
        if credited.is_empty() { String::new() } else { format!(" ({})", credited.join(", ")) };
    format!(
        "{:>5} s  {} spans/s, {} traces waiting, {} kept{credited}, {} dropped, {:.1} % saved\n",
        frame.elapsed.as_secs(),
        grouped(frame.spans_per_second),
        grouped(figures.buffered_traces),
        grouped(total.traces_kept),
        grouped(total.traces_dropped),
        saved_percent(figures),
    )
}

/// The outcome: storage, the sink's check and the ledger.
pub(super) fn summary(figures: &Figures, report: &Report, paint: Paint) -> String {
    let mut text = String::new();
    let total = figures.total();
    let kept = grouped(total.spans_kept);
    let accepted = grouped(figures.accepted_spans);
    let saved = paint.with(Colour::Good, &format!("{:.1} %", saved_percent(figures)));
    let _ = writeln!(text, "  storage    {saved} of the spans saved: {kept} of {accepted} stored");
    let checked = grouped(report.checked);
    if report.is_fine() {
        let (errors, slow) = (grouped(report.errors), grouped(report.slow));
        let whole = paint.with(Colour::Good, "all whole");
        let _ = writeln!(text, "  sink       {checked} kept traces checked, {whole}");
        let _ =
            writeln!(text, "             every error ({errors}) and slow trace ({slow}) arrived");
    } else {
        let faults = paint.with(Colour::Bad, &faults(report));
        let _ = writeln!(text, "  sink       {checked} kept traces checked, {faults}");
    }
    if let Some(id) = report.culprit {
        let _ = writeln!(text, "             one of them: {id}");
    }
    for (count, what) in [
        (report.excused, "traces of the shop were refused and could not be checked"),
        (report.foreign_spans, "spans arrived that the shop did not make"),
    ] {
        if count > 0 {
            let _ = writeln!(text, "             {} {what}", grouped(count));
        }
    }
    text + &ledger(figures, paint)
}

/// The ledger: both equations, with their numbers below.
fn ledger(figures: &Figures, paint: Paint) -> String {
    let total = figures.total();
    let [kept, dropped] = [total.spans_kept, total.spans_dropped].map(grouped);
    let [accepted, buffered] = [figures.accepted_spans, figures.buffered_spans].map(grouped);
    let [sent, failed, queued] =
        [figures.sent_spans, figures.failed_spans, figures.queued_spans].map(grouped);
    let is_taken = paint.verdict(figures.accounts_for_accepted());
    let is_sent = paint.verdict(figures.accounts_for_kept());
    [
        format!("  ledger     accepted = kept + dropped + buffered  {is_taken}"),
        format!("             {accepted} = {kept} + {dropped} + {buffered}"),
        format!("             kept = sent + failed + queued         {is_sent}"),
        format!("             {kept} = {sent} + {failed} + {queued}\n"),
    ]
    .join("\n")
}

fn faults(report: &Report) -> String {
    let (broken, lost) = (grouped(report.broken), grouped(report.lost));
    format!("{broken} NOT WHOLE, {lost} errors or slow ones LOST")
}

/// The share of dropped spans among the decided ones, in per cent.
fn saved_percent(figures: &Figures) -> f64 {
    let total = figures.total();
    let decided = total.spans_kept + total.spans_dropped;
    total.spans_dropped as f64 / decided.max(1) as f64 * 100.0
}

#[cfg(test)]
mod tests;
