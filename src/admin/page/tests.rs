use std::time::SystemTime;

use super::*;
use crate::control::{Backend, Configuration, Decision, Memory, Queue, Rates, Window, decision};

const HOSTILE: &str = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>";

fn status(text: &str) -> GetStatusResponse {
    let policy = |name: &str, shadow, percentage| PolicyStatus {
        name: name.into(),
        r#type: text.into(),
        shadow,
        percentage,
        kept_spans: 50,
        expire_time: shadow.then(|| SystemTime::UNIX_EPOCH.into()),
        ..Default::default()
    };
    let failed_by_reason = [(text.to_owned(), 7), ("queue_full".into(), 9)].into();
    GetStatusResponse {
        version: text.into(),
        configuration: Some(Configuration {
            file: text.into(),
            hash: text.into(),
            ..Default::default()
        }),
        ledger: Some(Ledger { failed: 16, failed_by_reason, ..Default::default() }),
        rates: Some(Rates { accepted: 100.0, kept: 5.0, dropped: 95.0, sent: 5.0 }),
        window: Some(Window { traces: 12_345, ..Default::default() }),
        memory: Some(Memory {
            used_bytes: 1 << 20,
            soft_limit_bytes: 3 << 20,
            limit_bytes: 4 << 20,
        }),
        queue: Some(Queue::default()),
        backend: Some(Backend {
            endpoint: text.into(),
            error: text.into(),
            state: State::Failing.into(),
            ..Default::default()
        }),
        policies: vec![policy("errors", false, Some(100.0)), policy(text, true, None)],
        recent_decisions: vec![decision(text)],
        ..Default::default()
    }
}

fn decision(text: &str) -> Decision {
    Decision {
        trace_id: text.into(),
        state: decision::State::Kept.into(),
        policy: text.into(),
        threshold: Some(text.into()),
        randomness: text.into(),
        details: Some(decision::Details {
            matched: vec![text.into()],
            shadow_matched: vec![text.into()],
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn page(text: &str, asked: Option<&Asked>) -> String {
    let now = 90_000;
    let files = [(text.to_owned(), text.to_owned())];
    let seconds = [Second { wall_millis: 0, accepted: 1.0, kept: 1.0, dropped: 0.0, sent: 0.0 }];
    Page { status: &status(text), seconds: &seconds, files: &files, waiting: &[], asked, now }
        .render()
}

#[test]
fn text_of_senders_never_becomes_markup() {
    let asked = Asked { text: HOSTILE.into(), found: Ok(decision(HOSTILE)) };
    let rendered = page(HOSTILE, Some(&asked));
    let harmless = page("harmless", Some(&Asked { text: "x".into(), found: Ok(decision("x")) }));
    for markup in ["<script", "<img", "<a ", "<tr"] {
        let [hostile, harmless] = [&rendered, &harmless].map(|page| page.matches(markup).count());
        assert_eq!(hostile, harmless, "{markup}");
    }
    // In an attribute, the quote has to be escaped too.
    assert!(rendered.contains("value=\"&lt;script&gt;alert(1)&lt;/script&gt;&quot;"), "{rendered}");
}

#[test]
fn urgent_matters_come_first() {
    let rendered = page("harmless", None);
    let at = |text: &str| rendered.find(text).unwrap_or_else(|| panic!("no {text}: {rendered}"));
    assert!(at("16 kept spans were lost") < at("queue_full: 9"));
    assert!(at("queue_full: 9") < at("harmless: 7"));
    assert!(at("The backend does not accept spans") < at("Spans a second"));
    assert!(at("The last reload failed") < at("Spans a second"));
    let well = GetStatusResponse {
        configuration: Some(Configuration { last_reload_successful: true, ..Default::default() }),
        ..Default::default()
    };
    let now = 0;
    let page = Page { status: &well, seconds: &[], files: &[], waiting: &[], asked: None, now };
    let page = page.render();
    assert!(!page.contains("class=\"notice"), "{page}");
}

#[test]
fn the_policy_names_exactly_the_style_and_the_script_of_the_page() {
    let page = page("harmless", None);
    assert!(page.contains(SCRIPT) && page.contains(STYLE));
    assert!(POLICY.starts_with("default-src 'none'; style-src 'sha256-"));
    assert!(!page.contains(" style=") && !page.contains(" onclick="), "not allowed by the policy");
}

#[test]
fn every_part_that_changes_is_live() {
    let rendered = page("harmless", None);
    let ids = |part: &str| {
        part.split("id=\"")
            .skip(1)
            .map(|it| it.split('"').next().map(str::to_owned))
            .collect::<Vec<_>>()
    };
    let live: Vec<_> = rendered.split('<').filter(|tag| tag.contains(" data-live")).collect();
    assert!(live.iter().all(|tag| ids(tag).len() == 1), "the script finds parts by their ids");
    let live: Vec<_> = live.iter().flat_map(|tag| ids(tag)).flatten().collect();
    for part in ["state", "notices", "rates", "chart", "policies", "ledger", "loaded", "files"] {
        assert!(live.iter().any(|id| id == part), "{part}: {live:?}");
    }
}

#[test]
fn changes_that_wait_for_a_restart_are_named() {
    let status = status("harmless");
    let render = |waiting| {
        Page { status: &status, seconds: &[], files: &[], waiting, asked: None, now: 0 }.render()
    };
    assert!(!render(&[]).contains("waits for a restart"));
    let page = render(&["[sampling]", "[telemetry]"]);
    assert!(page.contains("waits for a restart"), "{page}");
    assert!(page.contains("[sampling], [telemetry]"), "{page}");
}
