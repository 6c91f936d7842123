//! Draws the screen of `top` from the view.
//!
//! Names, endpoints and errors come from senders, files and other machines. They pass
//! `config::visible` before they are drawn, so that they contain only printable characters; ratatui
//! also leaves out unprintable ones.
//!
//! From top to bottom: the state, the figures of the instance, as many policies as fit, a message,
//! and the keys. On a small screen, fewer policies are shown.

use std::{
    cmp::Reverse,
    time::{Duration, UNIX_EPOCH},
};

use ratatui::{
    Frame,
    buffer::Buffer,
    layout::{Alignment, Constraint, Layout, Position, Rect},
    style::{Color, Style, Stylize as _},
    symbols::block,
    text::{Line, Span},
    widgets::{Block, Borders, Clear, Paragraph, Row, Table, Widget as _, Wrap},
};

use super::view::{Message, View};
use crate::{
    config::visible,
    control::{
        GetStatusResponse, Kafka, PolicyStatus,
        backend::State,
        figures::{bytes, count, duration, millis, percentage, rate, share, since},
    },
};

/// The width of the figures' names.
const LABEL: usize = 9;
/// The width of the bars of memory and queue.
const BAR: usize = 20;
/// From this width on, figures fit on one line, and only errors wrap. On a narrower screen, lines
/// are cut, so that the policies stay visible.
const WRAPPED_MIN: u16 = 80;

/// Draws the screen. Returns the index of the first visible policy. `now` is in Unix milliseconds.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View, now: u64) -> usize {
    let area = frame.area();
    let mut figures = Paragraph::new(figures(view, now));
    if area.width >= WRAPPED_MIN {
        figures = figures.wrap(Wrap { trim: false });
    }
    // An empty line separates the figures from the policies.
    let head = rows(&figures, area.width, area.height)
        .saturating_add(1)
        .min(area.height.saturating_sub(1));
    let rest = area.height.saturating_sub(head + 1);
    let message = view.message.as_ref().map(paragraph);
    let wanted = message.as_ref().map_or(0, |it| rows(it, area.width, area.height));
    let below = wanted.min(rest);
    let lengths = [head, rest.saturating_sub(below), below, 1].map(Constraint::Length);
    let [at_head, at_table, at_message, at_keys] = area.layout(&Layout::vertical(lengths));
    frame.render_widget(figures, at_head);
    let scrolled = policies(frame, view, at_table, now);
    if let Some(message) = message {
        let at = if at_message.height == 0 { at_head } else { at_message };
        frame.render_widget(Clear, at);
        frame.render_widget(message, at);
    }
    keys(frame, view, at_keys);
    scrolled
}

/// The state and the figures of the instance.
fn figures(view: &View, now: u64) -> Vec<Line<'static>> {
    let status = &view.status;
    let mut lines = vec![state(view, now)];
    if let Some(away) = &view.away {
        let absence = duration(Duration::from_secs(now.saturating_sub(away.since) / 1_000));
        let text = format!("{}. The figures are {absence} old.", visible(&away.why));
        lines.push(Line::from(text).red());
    }
    lines.push(Line::default());
    lines.push(labelled("Spans/s", rates(status)));
    if let Some(kafka) = &status.kafka {
        lines.push(labelled("Kafka", self::kafka(kafka)));
    }
    lines.push(labelled("Window", window(status)));
    lines.push(labelled("Memory", memory(status)));
    lines.push(labelled("Queue", queue(status)));
    lines.push(labelled("Backend", backend(status, now)));
    lines.push(labelled("Losses", losses(status)));
    if let Some(activity) = activity(status) {
        lines.push(labelled("Asked", vec![activity.into()]));
    }
    if status.configuration.as_ref().is_some_and(|it| !it.last_reload_successful) {
        let text =
            "the last one failed; the old policies stay in force. r tries again and says why";
        lines.push(labelled("Reload", vec![Span::from(text).yellow()]));
    }
    lines
}

fn state(view: &View, now: u64) -> Line<'static> {
    let status = &view.status;
    let mut spans = vec![Span::from("Tailwater ").bold()];
    spans.push(format!("{} at {}  ", visible(&status.version), visible(&view.address)).into());
    spans.push(match &view.away {
        Some(away) => {
            let at =
                humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(away.since));
            Span::from(format!("AWAY since {at}")).red().bold()
        }
        None if status.ready => Span::from("ready").green(),
        None => Span::from("not ready").red(),
    });
    if view.away.is_none() {
        spans.push(format!("  up {}", since(status.start_time.as_ref(), now)).into());
    }
    Line::from(spans)
}

fn labelled(label: &str, figures: Vec<Span<'static>>) -> Line<'static> {
    let label = Span::from(format!("{label:<LABEL$}")).style(Style::new().fg(Color::Cyan));
    Line::from_iter(std::iter::once(label).chain(figures))
}

fn rates(status: &GetStatusResponse) -> Vec<Span<'static>> {
    let rates = status.rates.unwrap_or_default();
    let decided = rates.kept + rates.dropped;
    let share = if decided > 0.0 { percentage(rates.kept / decided * 100.0) } else { "–".into() };
    vec![
        "in ".into(),
        Span::from(rate(rates.accepted)).bold(),
        "  kept ".into(),
        Span::from(rate(rates.kept)).bold(),
        format!(" ({share})  dropped ").into(),
        Span::from(rate(rates.dropped)).bold(),
        "  sent ".into(),
        Span::from(rate(rates.sent)).bold(),
        Span::from("  over 10 s").dim(),
    ]
}

fn kafka(kafka: &Kafka) -> Vec<Span<'static>> {
    let age = duration(Duration::from_secs_f64(kafka.commit_age_seconds.clamp(0.0, 1e9)));
    let (partitions, lag) = (count(kafka.partitions.into()), count(kafka.lag_records));
    vec![format!("{partitions} partitions, {lag} records behind, commit {age} old").into()]
}

fn window(status: &GetStatusResponse) -> Vec<Span<'static>> {
    let window = status.window.unwrap_or_default();
    let (traces, spans) = (count(window.traces), count(window.spans));
    vec![format!("{traces} traces, {spans} spans, {}", bytes(window.bytes)).into()]
}

fn memory(status: &GetStatusResponse) -> Vec<Span<'static>> {
    let memory = status.memory.unwrap_or_default();
    let (used, limit) = (memory.used_bytes, memory.limit_bytes);
    let soft = memory.soft_limit_bytes;
    let text = format!(
        " {} of {} ({}), soft limit {}",
        bytes(used),
        bytes(limit),
        share(used, limit),
        bytes(soft)
    );
    vec![gauge(used, limit, used > soft), text.into()]
}

fn queue(status: &GetStatusResponse) -> Vec<Span<'static>> {
    let queue = status.queue.unwrap_or_default();
    let (used, capacity) = (queue.bytes, queue.capacity_bytes);
    let share = share(used, capacity);
    let text =
        format!(" {} of {} ({share}), {} spans", bytes(used), bytes(capacity), count(queue.spans));
    vec![gauge(used, capacity, used > capacity / 2), text.into()]
}

fn backend(status: &GetStatusResponse, now: u64) -> Vec<Span<'static>> {
    let backend = status.backend.clone().unwrap_or_default();
    let since = since(backend.state_start_time.as_ref(), now);
    let endpoint = visible(&backend.endpoint);
    match backend.state() {
        State::Taking => {
            vec![
                Span::from(format!("accepting spans for {since}")).green(),
                format!("  {endpoint}").into(),
            ]
        }
        State::Failing => {
            let error = visible(&backend.error);
            vec![
                Span::from(format!("FAILING for {since}: {error}")).red().bold(),
                format!("  {endpoint}").into(),
            ]
        }
        State::Unused | State::Unspecified => {
            vec![format!("nothing sent yet  {endpoint}").into()]
        }
    }
}

fn losses(status: &GetStatusResponse) -> Vec<Span<'static>> {
    let ledger = status.ledger.clone().unwrap_or_default();
    if ledger.failed == 0 {
        return vec!["none".into()];
    }
    let mut reasons: Vec<_> = ledger.failed_by_reason.iter().collect();
    reasons.sort_by_key(|&(reason, &spans)| (Reverse(spans), reason));
    let reasons: Vec<_> = reasons
        .into_iter()
        .map(|(reason, &spans)| format!("{} {}", visible(reason), count(spans)))
        .collect();
    let text =
        format!("{} kept spans since the start: {}", count(ledger.failed), reasons.join(", "));
    vec![Span::from(text).red().bold()]
}

/// The trials, recordings and watchers that the instance serves.
fn activity(status: &GetStatusResponse) -> Option<String> {
    let activity = status.activity.unwrap_or_default();
    let several = |number: u32, one: &str, many: &str| match number {
        0 => None,
        1 => Some(format!("1 {one}")),
        number => Some(format!("{number} {many}")),
    };
    let trial = activity.trial_running.then(|| "1 trial".to_owned());
    let recordings = several(activity.recordings, "recording", "recordings");
    let watchers = several(activity.watchers, "watcher", "watchers");
    let parts: Vec<_> = [trial, recordings, watchers].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// Draws the policies that fit, those with most spans first. Returns the first visible one.
fn policies(frame: &mut Frame<'_>, view: &View, area: Rect, now: u64) -> usize {
    let mut policies: Vec<_> = view.status.policies.iter().collect();
    policies.sort_by_key(|policy| (policy.shadow, Reverse(policy.kept_spans)));
    let room = usize::from(area.height.saturating_sub(1));
    let scrolled = view.scrolled.min(policies.len().saturating_sub(room));
    let all_kept = policies.iter().map(|policy| view.rate(&policy.name)).sum::<f64>();
    let columns = Columns::of(area.width);
    let rows = policies
        .iter()
        .skip(scrolled)
        .take(room)
        .map(|policy| columns.row(policy, view.rate(&policy.name), all_kept, now));
    let below = policies.len().saturating_sub(scrolled + room);
    let header = Row::new(columns.header(below)).style(Style::new().fg(Color::Cyan));
    let table = Table::new(rows, columns.widths()).header(header).column_spacing(2);
    frame.render_widget(table, area);
    scrolled
}

/// The columns that fit into a width, besides the name and the rate.
struct Columns {
    bar: usize,
    has_share: bool,
    has_totals: bool,
    has_percentage: bool,
}

impl Columns {
    fn of(width: u16) -> Self {
        Columns {
            bar: match width {
                120.. => 30,
                80.. => 16,
                60.. => 10,
                _ => 0,
            },
            has_share: width >= 48,
            has_totals: width >= 76,
            has_percentage: width >= 96,
        }
    }

    fn widths(&self) -> Vec<Constraint> {
        let mut widths = vec![Constraint::Min(10), Constraint::Length(8)];
        if self.bar > 0 {
            widths.push(Constraint::Length(self.bar as u16));
        }
        if self.has_share {
            widths.push(Constraint::Length(7));
        }
        if self.has_totals {
            widths.push(Constraint::Length(11));
        }
        if self.has_percentage {
            widths.extend([Constraint::Length(11), Constraint::Length(9)]);
        }
        widths
    }

    /// The names of the columns. `below` is the number of policies that do not fit.
    fn header(&self, below: usize) -> Vec<Line<'static>> {
        let name = match below {
            0 => "Kept by policy".to_owned(),
            _ => format!("Policies, {below} more below"),
        };
        let mut cells = vec![Line::from(name), right("spans/s")];
        if self.bar > 0 {
            cells.push(Line::default());
        }
        if self.has_share {
            cells.push(right("share"));
        }
        if self.has_totals {
            cells.push(right("traces kept"));
        }
        if self.has_percentage {
            cells.extend([right("matched"), right("keeps now")]);
        }
        cells
    }

    fn row(&self, policy: &PolicyStatus, kept: f64, all_kept: f64, now: u64) -> Row<'static> {
        let part = if all_kept > 0.0 { kept / all_kept } else { 0.0 };
        let mut cells = vec![name(policy, now), right(rate(kept)).bold()];
        if self.bar > 0 {
            cells.push(Line::from(bar(part, self.bar)).green());
        }
        if self.has_share {
            let share = if all_kept > 0.0 { percentage(part * 100.0) } else { "–".into() };
            cells.push(right(share));
        }
        if self.has_totals {
            cells.push(right(match policy.shadow {
                true => format!("+{}", count(policy.shadow_kept_traces)),
                false => count(policy.kept_traces),
            }));
        }
        if self.has_percentage {
            let now = policy.percentage.map_or_else(|| "–".to_owned(), percentage);
            cells.extend([right(count(policy.matched_traces)), right(now)]);
        }
        Row::new(cells)
    }
}

/// The name of a policy, and its special state: shadow, or expiring.
fn name(policy: &PolicyStatus, now: u64) -> Line<'static> {
    let mut spans = vec![Span::from(visible(&policy.name))];
    if policy.shadow {
        spans.push(Span::from(" (shadow)").dim());
    }
    if let Some(at) = &policy.expire_time {
        let left = Duration::from_millis(millis(at).saturating_sub(now));
        let text = match left.as_secs() {
            0 => " (expired)".to_owned(),
            _ => format!(" (expires in {})", duration(left)),
        };
        spans.push(Span::from(text).dim());
    }
    Line::from(spans)
}

fn right(text: impl Into<String>) -> Line<'static> {
    Line::from(text.into()).alignment(Alignment::Right)
}

/// A bar of at most `width` characters, with a resolution of an eighth of a character.
fn bar(part: f64, width: usize) -> String {
    let parts = [
        "",
        block::ONE_EIGHTH,
        block::ONE_QUARTER,
        block::THREE_EIGHTHS,
        block::HALF,
        block::FIVE_EIGHTHS,
        block::THREE_QUARTERS,
        block::SEVEN_EIGHTHS,
    ];
    let eighths = (part.clamp(0.0, 1.0) * width as f64 * 8.0).round() as usize;
    // Anything above zero is visible.
    let eighths = if part > 0.0 { eighths.max(1) } else { 0 };
    block::FULL.repeat(eighths / 8) + parts[eighths % 8]
}

/// A bar that shows how full something is.
fn gauge(used: u64, limit: u64, is_high: bool) -> Span<'static> {
    let part = if limit == 0 { 0.0 } else { used as f64 / limit as f64 };
    let text = bar(part, BAR);
    let rest = BAR.saturating_sub(text.chars().count());
    let text = text + &"·".repeat(rest);
    if is_high { Span::from(text).yellow() } else { Span::from(text).green() }
}

fn paragraph(message: &Message) -> Paragraph<'static> {
    let lines = message.text.lines().map(|line| Line::from(visible(line)));
    let colour = if message.is_good { Color::Cyan } else { Color::Yellow };
    let block = Block::new().borders(Borders::TOP).title(" Esc closes ");
    let block = block.border_style(Style::new().fg(colour));
    Paragraph::new(Vec::from_iter(lines)).wrap(Wrap { trim: false }).block(block)
}

/// The number of rows of this width that a paragraph takes, at most `height`.
fn rows(paragraph: &Paragraph<'_>, width: u16, height: u16) -> u16 {
    let area = Rect::new(0, 0, width, height);
    let mut drawn = Buffer::empty(area);
    paragraph.render(area, &mut drawn);
    let is_blank = |y: &u16| (0..width).all(|x| drawn[(x, *y)].symbol() == " ");
    (0..height).rev().find(|y| !is_blank(y)).map_or(0, |last| last + 1)
}

/// The keys, or the trace id that is being typed.
fn keys(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let Some(input) = &view.input else {
        let text = "q quit   r reload   / look a trace up   ↑ ↓ scroll";
        frame.render_widget(Line::from(text).dim(), area);
        return;
    };
    let prompt = Line::from(format!("trace id: {}", visible(input)));
    let (typed, width) = (prompt.width() as u16, area.width.saturating_sub(1));
    // The end of a long id stays visible.
    let paragraph = Paragraph::new(prompt).scroll((0, typed.saturating_sub(width)));
    frame.render_widget(paragraph, area);
    if area.height > 0 {
        frame.set_cursor_position(Position::new(area.x + typed.min(width), area.y));
    }
}
