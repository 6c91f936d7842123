//! The web page: a read-only view of the snapshot.
//!
//! The server renders everything; maud escapes every inserted text, so that text from senders never
//! becomes markup. The script only fetches the page again and replaces the parts that have changed;
//! without the script, the page shows the state at the time it was loaded. Style and script are
//! part of the page; the Content-Security-Policy names their hashes and allows nothing else.

mod chart;
#[cfg(test)]
mod tests;
mod trace;

use std::{sync::LazyLock, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{
    HeaderMap, HeaderValue,
    header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS},
};
use maud::{DOCTYPE, Markup, PreEscaped, html};

pub(super) use self::trace::Asked;
use super::history::Second;
use crate::control::{
    GetStatusResponse, Kafka, Ledger, PolicyStatus,
    backend::State,
    figures::{bytes, count, duration, millis, moment, percentage, rate, share, since},
};

/// The content type of the page.
pub(super) const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The seconds that the chart shows.
const CHART_SECONDS: usize = 600;

/// The Content-Security-Policy: the only sources that a browser may use for this page.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| {
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        format!("'sha256-{}'", BASE64_STANDARD.encode(digest))
    };
    format!(
        "default-src 'none'; style-src {}; script-src {}; connect-src 'self'; form-action 'self'; \
         base-uri 'none'; frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT)
    )
});

/// The data that the page shows.
pub(super) struct Page<'a> {
    pub(super) status: &'a GetStatusResponse,
    /// The rates, one per second, the newest last.
    pub(super) seconds: &'a [Second],
    /// The names and texts of the files in force, without secrets.
    pub(super) files: &'a [(String, String)],
    /// What has changed in the main file and waits for a restart.
    pub(super) waiting: &'a [&'static str],
    /// The trace that the request asks for.
    pub(super) asked: Option<&'a Asked>,
    /// The wall-clock time in Unix milliseconds.
    pub(super) now: u64,
}

/// Adds the headers that restrict what a browser does with the page.
pub(super) fn protect(headers: &mut HeaderMap) {
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, HeaderValue::from_static(&POLICY)),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ] {
        headers.insert(name, value);
    }
}

impl Page<'_> {
    /// Renders the document.
    pub(super) fn render(&self) -> String {
        let document = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { "Tailwater" }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    a .skip href="#main" { "Skip to the figures" }
                    (self.header())
                    main #main {
                        div #notices data-live { (self.notices()) }
                        section #rates data-live { (self.rates()) }
                        section .chart #chart data-live { (self.chart()) }
                        section .quarter #window data-live { (self.window()) }
                        section .quarter #memory data-live { (self.memory()) }
                        section .quarter #queue data-live { (self.queue()) }
                        section .quarter #backend data-live { (self.backend()) }
                        @if let Some(kafka) = &self.status.kafka {
                            section #kafka data-live { (read(kafka)) }
                        }
                        section #policies data-live { (self.policies()) }
                        section #trace { (trace::form(self.asked, self.now)) }
                        section #decisions data-live { (trace::recent(self.status)) }
                        section .half #ledger data-live { (self.ledger()) }
                        section .half #configuration {
                            (self.configuration())
                            div #files data-live { (self.files()) }
                        }
                    }
                    script { (PreEscaped(SCRIPT)) }
                }
            }
        };
        document.into_string()
    }

    fn header(&self) -> Markup {
        let status = self.status;
        html! {
            header {
                h1 { "Tailwater" }
                p #state data-live {
                    @if status.ready { span .state.good { "ready" } }
                    @else { span .state.bad { "not ready" } }
                    " · version " (status.version)
                    " · up " (since(status.start_time.as_ref(), self.now))
                }
                p .end { span #live role="status" {} }
            }
        }
    }

    /// The problems that need attention, if there are any.
    fn notices(&self) -> Markup {
        let status = self.status;
        let ledger = status.ledger.clone().unwrap_or_default();
        let mut failed: Vec<_> = ledger.failed_by_reason.iter().collect();
        failed.sort_by_key(|&(reason, &spans)| (std::cmp::Reverse(spans), reason));
        let configuration = status.configuration.as_ref();
        let backend = status.backend.as_ref();
        html! {
            @if backend.is_some_and(|backend| backend.state() == State::Failing) {
                div .notice.bad {
                    h2 { "The backend does not accept spans" }
                    p { (backend.map_or("", |backend| &backend.error)) }
                }
            }
            @if configuration.is_some_and(|configuration| !configuration.last_reload_successful) {
                div .notice.warn {
                    h2 { "The last reload failed" }
                    p {
                        "The old policies stay in force. The log says what is wrong with the files."
                    }
                }
            }
            @if ledger.failed > 0 {
                div .notice.bad {
                    h2 { (count(ledger.failed)) " kept spans were lost since the start" }
                    ul { @for (reason, &spans) in failed {
                        li { (reason) ": " (count(spans)) }
                    } }
                }
            }
        }
    }

    fn rates(&self) -> Markup {
        let rates = self.status.rates.unwrap_or_default();
        let kept = rates.kept + rates.dropped;
        let kept = if kept > 0.0 { percentage(rates.kept / kept * 100.0) } else { "–".into() };
        html! {
            h2 { "Spans a second, over the last ten seconds" }
            dl .figures {
                div { dt { "In" } dd { (rate(rates.accepted)) small { "/s" } } }
                div { dt { "Kept" } dd { (rate(rates.kept)) small { "/s" } } }
                div { dt { "Dropped" } dd { (rate(rates.dropped)) small { "/s" } } }
                div { dt { "Sent" } dd { (rate(rates.sent)) small { "/s" } } }
                div { dt { "Share kept" } dd { (kept) } }
            }
        }
    }

    fn chart(&self) -> Markup {
        html! {
            h2 { "The last ten minutes, spans a second" }
            (chart::chart(self.seconds, CHART_SECONDS))
            ul .legend aria-hidden="true" {
                li { svg viewBox="0 0 24 14" { polyline .in points="0,7 24,7" {} } "in" }
                li { svg viewBox="0 0 24 14" { polyline .dropped points="0,7 24,7" {} } "dropped" }
                li {
                    svg viewBox="0 0 24 14" { polygon .kept points="0,3 24,3 24,14 0,14" {} }
                    "kept"
                }
            }
        }
    }

    fn window(&self) -> Markup {
        let window = self.status.window.unwrap_or_default();
        html! {
            h2 { "Window" }
            dl .facts {
                dt { "traces" } dd { (count(window.traces)) }
                dt { "spans" } dd { (count(window.spans)) }
                dt { "bytes" } dd { (bytes(window.bytes)) }
            }
        }
    }

    fn memory(&self) -> Markup {
        let memory = self.status.memory.unwrap_or_default();
        html! {
            h2 { "Memory" }
            (bar(memory.used_bytes, memory.limit_bytes, memory.soft_limit_bytes))
            dl .facts {
                dt { "used" } dd { (part_of(memory.used_bytes, memory.limit_bytes)) }
                dt { "early decisions above" } dd { (bytes(memory.soft_limit_bytes)) }
                dt { "limit" } dd { (bytes(memory.limit_bytes)) }
            }
        }
    }

    fn queue(&self) -> Markup {
        let queue = self.status.queue.unwrap_or_default();
        html! {
            h2 { "Export queue" }
            (bar(queue.bytes, queue.capacity_bytes, queue.capacity_bytes / 2))
            dl .facts {
                dt { "used" } dd { (part_of(queue.bytes, queue.capacity_bytes)) }
                dt { "spans" } dd { (count(queue.spans)) }
                dt { "capacity" } dd { (bytes(queue.capacity_bytes)) }
            }
        }
    }

    fn backend(&self) -> Markup {
        let backend = self.status.backend.clone().unwrap_or_default();
        let (class, state) = match backend.state() {
            State::Taking => ("good", "accepts spans"),
            State::Failing => ("bad", "fails"),
            State::Unused | State::Unspecified => ("quiet", "nothing sent yet"),
        };
        html! {
            h2 { "Backend" }
            dl .facts {
                dt { "state" } dd { span class=(class) { (state) } }
                @if backend.state_start_time.is_some() {
                    dt { "for" } dd { (since(backend.state_start_time.as_ref(), self.now)) }
                }
                dt { "endpoint" } dd { span .mono { (backend.endpoint) } }
            }
        }
    }

    fn policies(&self) -> Markup {
        let policies = &self.status.policies;
        let kept = policies.iter().map(|policy| policy.kept_spans).sum::<u64>();
        html! {
            h2 { "Policies" }
            div .table tabindex="0" role="region" aria-label="Policies" {
                table {
                    caption {
                        "Since the start. A trace counts with the policy that it is credited to."
                    }
                    thead { tr {
                        th scope="col" { "policy" }
                        th scope="col" { "type" }
                        th scope="col" .number { "traces matched" }
                        th scope="col" .number { "traces kept" }
                        th scope="col" .number { "spans kept" }
                        th scope="col" { "share of kept spans" }
                        th scope="col" .number { "keeps now" }
                    } }
                    tbody { @for policy in policies { (self.policy(policy, kept)) } }
                }
            }
        }
    }

    fn policy(&self, policy: &PolicyStatus, kept: u64) -> Markup {
        let expired = policy.expire_time.is_some_and(|at| millis(&at) <= self.now);
        html! {
            tr {
                th scope="row" {
                    (policy.name)
                    @if policy.shadow { " " span .tag { "shadow" } }
                    @if let Some(at) = &policy.expire_time {
                        " "
                        span .tag { (if expired { "expired" } else { "expires" }) " " (moment(at)) }
                    }
                }
                td { (policy.r#type) }
                @if policy.shadow {
                    td .quiet colspan="5" {
                        "decides nothing; would have kept " (count(policy.shadow_kept_traces))
                        " more traces and dropped " (count(policy.shadow_dropped_traces))
                    }
                } @else {
                    td .number { (count(policy.matched_traces)) }
                    td .number { (count(policy.kept_traces)) }
                    td .number { (count(policy.kept_spans)) }
                    td { (bar(policy.kept_spans, kept, 0)) " " (share(policy.kept_spans, kept)) }
                    td .number { @match policy.percentage {
                        Some(now) => { (percentage(now)) }
                        None => { "–" }
                    } }
                }
            }
        }
    }

    fn ledger(&self) -> Markup {
        let ledger = self.status.ledger.clone().unwrap_or_default();
        let Ledger { accepted, kept, dropped, buffered, sent, failed, queued, .. } = ledger;
        let handed_over = ledger.handed_over;
        let row = |name: &str, spans: u64| html! { dt { (name) } dd { (count(spans)) } };
        html! {
            h2 { "Ledger, in spans since the start" }
            dl .facts {
                (row("accepted", accepted))
                (row("= kept", kept)) (row("+ dropped", dropped)) (row("+ buffered", buffered))
                @if handed_over > 0 { (row("+ handed over", handed_over)) }
            }
            dl .facts {
                (row("kept", kept))
                (row("= sent", sent)) (row("+ lost", failed)) (row("+ queued", queued))
            }
        }
    }

    fn configuration(&self) -> Markup {
        let configuration = self.status.configuration.clone().unwrap_or_default();
        let file = match configuration.file.as_str() {
            "" => "built in",
            file => file,
        };
        html! {
            h2 { "Configuration in force" }
            dl .facts #loaded data-live {
                dt { "file" } dd { span .mono { (file) } }
                dt { "SHA-256" } dd { span .mono { (configuration.hash) } }
                @if let Some(at) = &configuration.policies_load_time {
                    dt { "policies read" } dd { (moment(at)) }
                }
                @if !self.waiting.is_empty() {
                    dt { "waits for a restart" } dd .warn { (self.waiting.join(", ")) }
                }
            }
        }
    }

    fn files(&self) -> Markup {
        html! {
            @for (name, text) in self.files {
                details {
                    summary { (name) }
                    pre tabindex="0" { (text) }
                }
            }
        }
    }
}

/// What is read from Kafka.
fn read(kafka: &Kafka) -> Markup {
    let age = Duration::from_secs_f64(kafka.commit_age_seconds.clamp(0.0, 1e9));
    html! {
        h2 { "Kafka" }
        dl .facts {
            dt { "partitions" } dd { (count(kafka.partitions.into())) }
            dt { "records behind" } dd { (count(kafka.lag_records)) }
            dt { "age of the commit" } dd { (duration(age)) }
        }
    }
}

/// A number of bytes, and its share of a whole.
fn part_of(part: u64, whole: u64) -> String {
    format!("{} ({})", bytes(part), share(part, whole))
}

/// A bar that shows `part` of `whole`. From `mark` on it has the colour of a warning; 0 is no mark.
fn bar(part: u64, whole: u64, mark: u64) -> Markup {
    let of_whole = |value: u64| match whole {
        0 => 0.0,
        whole => (value as f64 / whole as f64 * 100.0).min(100.0),
    };
    let class = if mark > 0 && part >= mark { "fill warn" } else { "fill" };
    html! {
        svg .bar viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true" {
            rect width="100" height="8" rx="1" {}
            rect class=(class) width=(format!("{:.2}", of_whole(part))) height="8" rx="1" {}
            @if mark > 0 {
                rect .mark x=(format!("{:.2}", of_whole(mark))) width="0.4" height="8" {}
            }
        }
    }
}
