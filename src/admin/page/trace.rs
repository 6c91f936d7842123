//! The traces on the page: the trace that was looked up, and the last decided traces.

use maud::{Markup, html};

use crate::control::{
    Decision, GetStatusResponse,
    decision::{Details, State},
    figures::{bytes, count, duration, length, moment, percentage},
};

/// The trace that `/?trace_id=` asks for.
pub(in crate::admin) struct Asked {
    /// The id as it was given.
    pub(in crate::admin) text: String,
    /// Its decision, or why there is none.
    pub(in crate::admin) found: Result<Decision, &'static str>,
}

/// The look-up form, and below it the result. `now` is in Unix milliseconds.
pub(super) fn form(asked: Option<&Asked>, now: u64) -> Markup {
    let text = asked.map_or("", |asked| &asked.text);
    html! {
        h2 { "Why is a trace kept or dropped?" }
        form action="/" method="get" {
            label for="trace_id" { "Trace ID" }
            input #trace_id name="trace_id" type="text" value=(text) spellcheck="false"
                autocomplete="off" autocapitalize="off" placeholder="32 hexadecimal digits";
            button type="submit" { "Explain" }
        }
        div #answer data-live aria-live="polite" {
            @match asked.map(|asked| &asked.found) {
                Some(Ok(decision)) => { (explained(decision, now)) }
                Some(Err(why_not)) => { p { (why_not) } }
                None => {}
            }
        }
    }
}

fn explained(decision: &Decision, now: u64) -> Markup {
    let details = decision.details.clone().unwrap_or_default();
    html! {
        p { (decision.explained(now).replace('\n', " ")) }
        dl .facts {
            dt { "trace" } dd { span .mono { (decision.trace_id) } }
            @if let Some(threshold) = &decision.threshold {
                dt { "threshold" }
                dd { span .mono { (threshold) } " (keeps " (percentage(decision.percentage)) ")" }
            }
            @if !decision.randomness.is_empty() {
                dt { "randomness" } dd { span .mono { (decision.randomness) } }
            }
            @if decision.details.is_some() {
                dt { "matched" } dd { (names(&details.matched)) }
                @if !details.shadow_matched.is_empty() {
                    dt { "shadow policies" } dd { (names(&details.shadow_matched)) }
                }
                dt { "size" } dd { (count(details.spans)) " spans, " (bytes(details.bytes)) }
                dt { "lasted" } dd { (lasted(&details)) }
                dt { "root span" }
                dd { (if details.root_received { "received" } else { "not received" }) }
            }
        }
    }
}

/// The last decisions, newest first.
pub(super) fn recent(status: &GetStatusResponse) -> Markup {
    html! {
        h2 { "Last decisions" }
        div .table tabindex="0" role="region" aria-label="Last decisions" {
            table {
                thead { tr {
                    th scope="col" { "trace" }
                    th scope="col" { "decision" }
                    th scope="col" { "policy" }
                    th scope="col" .number { "keeps" }
                    th scope="col" .number { "spans" }
                    th scope="col" .number { "lasted" }
                    th scope="col" { "decided" }
                } }
                tbody {
                    @for decision in &status.recent_decisions { (row(decision)) }
                    @if status.recent_decisions.is_empty() {
                        tr { td .quiet colspan="7" { "No trace has been decided yet." } }
                    }
                }
            }
        }
    }
}

fn row(decision: &Decision) -> Markup {
    let details = decision.details.clone().unwrap_or_default();
    let (class, word) = match decision.state() {
        State::Kept => ("good", "kept"),
        State::Dropped => ("quiet", "dropped"),
        State::Pending | State::Unspecified => ("quiet", "pending"),
    };
    html! {
        tr {
            td { a .mono href={ "/?trace_id=" (decision.trace_id) } { (decision.trace_id) } }
            td class=(class) { (word) }
            td { (decision.policy) }
            td .number { (percentage(decision.percentage)) }
            td .number { (count(details.spans)) }
            td .number { (lasted(&details)) }
            td { @if let Some(at) = &details.decision_time { (moment(at)) } }
        }
    }
}

fn lasted(details: &Details) -> String {
    let lasted = details.duration.as_ref().and_then(length);
    lasted.map_or_else(String::new, duration)
}

fn names(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}
