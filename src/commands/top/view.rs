//! The state that `top` shows, and the handling of keys. Does no drawing and no calls.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Display,
    time::Duration,
};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::{
    commands::trial,
    config,
    control::{GetStatusResponse, ReloadResponse, figures::duration},
};

/// The time over which rates of policies are averaged, as for the rates of the instance.
const RATES_OVER: Duration = Duration::from_secs(10);
/// The most characters of a look-up: a trace id has 32 digits, and people paste it with dashes and
/// quotes.
const INPUT_CHARS_MAX: usize = 100;

/// An action that `top` carries out.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Act {
    Quit,
    Reload,
    LookUp(String),
}

/// Since when the instance has not answered, in Unix milliseconds, and why.
#[derive(Debug)]
pub(super) struct Away {
    pub(super) since: u64,
    pub(super) why: String,
}

/// The result of an action, shown until the user closes it.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) is_good: bool,
    pub(super) text: String,
}

/// The state that is shown.
#[derive(Debug)]
pub(super) struct View {
    pub(super) address: String,
    /// The last status that arrived.
    pub(super) status: GetStatusResponse,
    pub(super) away: Option<Away>,
    pub(super) message: Option<Message>,
    /// Whether an action is in progress, so that another one has to wait.
    is_busy: bool,
    /// The trace id that is being typed.
    pub(super) input: Option<String>,
    /// The index of the first visible policy.
    pub(super) scrolled: usize,
    /// Spans kept by each policy since the start, sampled over the last seconds, the oldest first.
    samples: VecDeque<(Duration, HashMap<String, u64>)>,
}

impl View {
    pub(super) fn new(address: impl Display, status: GetStatusResponse) -> Self {
        View {
            address: address.to_string().trim_end_matches('/').to_owned(),
            samples: VecDeque::from([(Duration::ZERO, kept_spans(&status))]),
            status,
            away: None,
            message: None,
            is_busy: false,
            input: None,
            scrolled: 0,
        }
    }

    /// Records a status that arrived `at` after the command began; `now` is in Unix milliseconds.
    pub(super) fn heard(&mut self, status: GetStatusResponse, at: Duration, now: u64) {
        let is_restarted = status.start_time != self.status.start_time;
        if is_restarted {
            self.samples.clear();
        }
        if let Some(away) = self.away.take() {
            let absence = duration(Duration::from_secs(now.saturating_sub(away.since) / 1_000));
            let restarted = if is_restarted { "; it was restarted" } else { "" };
            let text = format!("The instance is back after {absence}{restarted}.");
            self.message = Some(Message { is_good: true, text });
        }
        let is_old = |(then, _): &(Duration, _)| *then + RATES_OVER <= at;
        while self.samples.len() > 1 && self.samples.get(1).is_some_and(is_old) {
            self.samples.pop_front();
        }
        self.samples.push_back((at, kept_spans(&status)));
        self.status = status;
    }

    /// Records that the instance did not answer.
    pub(super) fn missed(&mut self, why: &impl Display, now: u64) {
        let since = self.away.as_ref().map_or(now, |away| away.since);
        self.away = Some(Away { since, why: why.to_string() });
    }

    /// The recent rate of spans kept by a policy, per second.
    pub(super) fn rate(&self, policy: &str) -> f64 {
        let (Some((first, before)), Some((last, after))) =
            (self.samples.front(), self.samples.back())
        else {
            return 0.0;
        };
        let kept = |sample: &HashMap<_, _>| sample.get(policy).copied().unwrap_or(0u64);
        let seconds = last.saturating_sub(*first).as_secs_f64();
        if seconds == 0.0 {
            return 0.0;
        }
        kept(after).saturating_sub(kept(before)) as f64 / seconds
    }

    /// Shows the result of a reload.
    pub(super) fn reloaded(&mut self, outcome: Result<ReloadResponse, impl Display>) {
        self.is_busy = false;
        self.message = Some(match outcome {
            Ok(ReloadResponse { reloaded, diagnostics }) => {
                let mut text = if reloaded {
                    "Reloaded: the policies were read again and are in force.".to_owned()
                } else {
                    "The reload failed; the old policies stay in force.".to_owned()
                };
                for diagnostic in &diagnostics {
                    text.push('\n');
                    text.push_str(trial::told(&diagnostic.file, diagnostic).trim_end());
                }
                Message { is_good: reloaded, text }
            }
            Err(failure) => {
                Message { is_good: false, text: format!("The reload failed: {failure}") }
            }
        });
    }

    /// Shows the explanation of a trace.
    pub(super) fn explained(&mut self, outcome: Result<String, impl Display>) {
        self.is_busy = false;
        self.message = Some(match outcome {
            Ok(text) => Message { is_good: true, text },
            Err(failure) => {
                Message { is_good: false, text: format!("The look-up failed: {failure}") }
            }
        });
    }

    /// Handles a key. Returns the action that it asks for.
    pub(super) fn press(&mut self, key: KeyEvent) -> Option<Act> {
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        if is_control && key.code == KeyCode::Char('c') {
            return Some(Act::Quit);
        }
        if self.input.is_some() {
            return self.type_id(key.code, is_control);
        }
        let last = self.status.policies.len().saturating_sub(1);
        match key.code {
            KeyCode::Char('q') => return Some(Act::Quit),
            KeyCode::Char('r') if !self.is_busy => {
                self.is_busy = true;
                let text = "Reloading ...".to_owned();
                self.message = Some(Message { is_good: true, text });
                return Some(Act::Reload);
            }
            KeyCode::Char('/') => self.input = Some(String::new()),
            KeyCode::Esc => self.message = None,
            KeyCode::Up => self.scrolled = self.scrolled.saturating_sub(1),
            KeyCode::Down => self.scrolled = last.min(self.scrolled + 1),
            KeyCode::PageUp => self.scrolled = self.scrolled.saturating_sub(10),
            KeyCode::PageDown => self.scrolled = last.min(self.scrolled + 10),
            _ => {}
        }
        None
    }

    /// Handles a key while a trace id is being typed.
    fn type_id(&mut self, key: KeyCode, is_control: bool) -> Option<Act> {
        let input = self.input.as_mut()?;
        match key {
            KeyCode::Esc => self.input = None,
            KeyCode::Backspace => drop(input.pop()),
            KeyCode::Char('u') if is_control => input.clear(),
            KeyCode::Char(c) if !is_control && input.chars().count() < INPUT_CHARS_MAX => {
                input.push(c);
            }
            KeyCode::Enter if !self.is_busy => {
                let trace_id = self.input.take().filter(|id| !id.trim().is_empty())?;
                self.is_busy = true;
                let text = format!("Looking for {} ...", config::visible(trace_id.trim()));
                self.message = Some(Message { is_good: true, text });
                return Some(Act::LookUp(trace_id.trim().to_owned()));
            }
            _ => {}
        }
        None
    }
}

fn kept_spans(status: &GetStatusResponse) -> HashMap<String, u64> {
    let policies = status.policies.iter();
    policies.map(|policy| (policy.name.clone(), policy.kept_spans)).collect()
}
