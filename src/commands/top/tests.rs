use std::{collections::HashMap, time::Duration};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use prost_types::Timestamp;
use ratatui::{Terminal, backend::TestBackend};

use super::{
    Options, SignalKind, draw, first, signal,
    view::{Act, View},
};
use crate::control::{
    Activity, Backend, Configuration, Diagnostic, GetStatusResponse, Ledger, Memory, PolicyStatus,
    Queue, Rates, ReloadResponse, Window, backend::State, diagnostic::Severity,
};

const NOW: u64 = 1_700_000_100_000;

fn policy(name: &str, kept_spans: u64) -> PolicyStatus {
    PolicyStatus {
        name: name.into(),
        r#type: "status_code".into(),
        kept_spans,
        kept_traces: kept_spans / 10,
        matched_traces: kept_spans / 5,
        percentage: Some(100.0),
        ..PolicyStatus::default()
    }
}

fn status() -> GetStatusResponse {
    let start = Some(Timestamp { seconds: 1_700_000_000, nanos: 0 });
    GetStatusResponse {
        version: "1.2.3".into(),
        start_time: start,
        ready: true,
        configuration: Some(Configuration {
            last_reload_successful: true,
            ..Configuration::default()
        }),
        ledger: Some(Ledger::default()),
        rates: Some(Rates { accepted: 2_000.0, kept: 200.0, dropped: 1_800.0, sent: 199.6 }),
        window: Some(Window { traces: 1_234, spans: 12_340, bytes: 5 << 20 }),
        memory: Some(Memory {
            used_bytes: 64 << 20,
            soft_limit_bytes: 96 << 20,
            limit_bytes: 128 << 20,
        }),
        queue: Some(Queue { spans: 0, bytes: 0, capacity_bytes: 64 << 20 }),
        backend: Some(Backend {
            endpoint: "http://tempo:4317".into(),
            state: State::Taking.into(),
            error: String::new(),
            state_start_time: start,
        }),
        policies: vec![policy("slow", 100), policy("errors", 1_000)],
        activity: Some(Activity::default()),
        ..GetStatusResponse::default()
    }
}

/// A view that has received a second status of the same instance after ten seconds.
fn view() -> View {
    let mut view = View::new("http://127.0.0.1:9464/", status());
    let mut later = status();
    later.policies = vec![policy("slow", 600), policy("errors", 2_500)];
    view.heard(later, Duration::from_secs(10), NOW);
    view
}

fn screen(view: &View, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| {
            draw::draw(frame, view, NOW);
        })
        .unwrap();
    let buffer = terminal.backend().buffer();
    let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..height).map(|y| row(y).trim_end().to_owned()).collect()
}

fn press(view: &mut View, keys: &str) -> Option<Act> {
    keys.chars().map(|key| view.press(KeyEvent::from(KeyCode::Char(key)))).last().flatten()
}

#[test]
fn a_screen_of_the_usual_size() {
    let screen = screen(&view(), 80, 16);
    let expected = [
        "Tailwater 1.2.3 at http://127.0.0.1:9464  ready  up 1m 40s",
        "",
        "Spans/s  in 2,000  kept 200 (10 %)  dropped 1,800  sent 200  over 10 s",
        "Window   1,234 traces, 12,340 spans, 5.0 MiB",
        "Memory   ██████████·········· 64.0 MiB of 128.0 MiB (50 %), soft limit 96.0 MiB",
        "Queue    ···················· 0 B of 64.0 MiB (0 %), 0 spans",
        "Backend  accepting spans for 1m 40s  http://tempo:4317",
        "Losses   none",
        "",
        "Kept by policy                   spans/s                      share  traces kept",
        "errors                               150  ████████████         75 %          250",
        "slow                                  50  ████                 25 %           60",
        "",
        "",
        "",
        "q quit   r reload   / look a trace up   ↑ ↓ scroll",
    ];
    assert_eq!(screen, expected, "{}", screen.join("\n"));
}

#[test]
fn every_size_is_drawn_and_the_state_comes_first() {
    let mut view = view();
    view.message = None;
    press(&mut view, "/");
    for width in [1, 2, 7, 20, 47, 48, 60, 76, 96, 120, 500] {
        for height in [1, 2, 3, 8, 10, 12, 24, 100] {
            let screen = screen(&view, width, height);
            if width >= 20 && height > 1 {
                assert!(screen[0].starts_with("Tailwater 1.2.3 at"), "{width} x {height}");
            }
            if width >= 20 && height >= 12 {
                let errors = screen.iter().find(|line| line.starts_with("errors"));
                assert!(errors.is_some_and(|line| line.contains("150")), "{width} x {height}");
            }
        }
    }
    assert!(screen(&view, 500, 24).join("").contains("keeps now"));
}

#[test]
fn failures_are_shown() {
    let mut view = view();
    view.status.ready = false;
    let backend = view.status.backend.as_mut().unwrap();
    backend.state = State::Failing.into();
    backend.error = "connection refused".into();
    view.status.ledger = Some(Ledger {
        failed: 1_300,
        failed_by_reason: HashMap::from([("rejected".into(), 300), ("queue_full".into(), 1_000)]),
        ..Ledger::default()
    });
    view.status.configuration = Some(Configuration::default());
    view.status.activity = Some(Activity { trial_running: true, recordings: 0, watchers: 2 });
    let text = screen(&view, 120, 24).join("\n");
    for expected in [
        "not ready",
        "FAILING for 1m 40s: connection refused  http://tempo:4317",
        "1,300 kept spans since the start: queue_full 1,000, rejected 300",
        "the last one failed; the old policies stay in force",
        "1 trial, 2 watchers",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn an_absence_is_shown_until_the_instance_is_back() {
    let mut view = view();
    view.missed(&"cannot reach it: refused", NOW - 12_000);
    view.missed(&"cannot reach it: timed out", NOW - 2_000);
    let away = screen(&view, 100, 20).join("\n");
    assert!(away.contains("AWAY since 2023-11-14T22:14:48Z"), "{away}");
    assert!(away.contains("cannot reach it: timed out. The figures are 12s old."), "{away}");

    let start_time = Some(Timestamp { seconds: 1_700_000_095, nanos: 0 });
    let restarted = GetStatusResponse { start_time, ..status() };
    view.heard(restarted, Duration::from_secs(22), NOW);
    let back = screen(&view, 100, 20).join("\n");
    assert!(!back.contains("AWAY"), "{back}");
    assert!(back.contains("The instance is back after 12s; it was restarted."), "{back}");
    assert!(back.contains("up 5s"), "{back}");
    assert_eq!(view.rate("errors"), 0.0, "counters of another life say nothing about this one");
}

#[test]
fn rates_are_those_of_the_last_ten_seconds() {
    let mut view = View::new("http://127.0.0.1", status());
    assert_eq!(view.rate("errors"), 0.0);
    for second in 1..=30u64 {
        let kept = 1_000 + if second > 20 { (second - 20) * 50 } else { 0 };
        let later = GetStatusResponse { policies: vec![policy("errors", kept)], ..status() };
        view.heard(later, Duration::from_secs(second), NOW);
    }
    assert_eq!(view.rate("errors"), 50.0);
    assert_eq!(view.rate("unknown"), 0.0);
}

#[test]
fn policies_without_room_are_counted_and_scrolled_to() {
    let mut view = view();
    view.status.policies = (0..40).map(|n| policy(&format!("policy-{n:02}"), 40 - n)).collect();
    let first = screen(&view, 80, 24);
    let text = first.join("\n");
    assert!(text.contains("Policies, 27 more below"), "{text}");
    assert!(text.contains("policy-12") && !text.contains("policy-13"), "{text}");
    for _ in 0..100 {
        view.press(KeyEvent::from(KeyCode::PageDown));
    }
    let text = screen(&view, 80, 24).join("\n");
    assert!(text.contains("policy-27") && text.contains("policy-39"), "{text}");
}

#[test]
fn a_shadow_and_an_expiry_are_named() {
    let mut view = view();
    view.status.policies[0].shadow = true;
    view.status.policies[0].shadow_kept_traces = 7;
    view.status.policies[1].expire_time = Some(Timestamp { seconds: 1_700_000_050, nanos: 0 });
    let text = screen(&view, 120, 24).join("\n");
    assert!(text.contains("slow (shadow)") && text.contains("+7"), "{text}");
    assert!(text.contains("errors (expired)"), "{text}");
}

#[test]
fn a_trace_is_looked_up() {
    let mut view = view();
    assert_eq!(press(&mut view, "/4bf92f35qr"), None, "letters are text now");
    view.press(KeyEvent::from(KeyCode::Backspace));
    view.press(KeyEvent::from(KeyCode::Backspace));
    let typed = screen(&view, 80, 24);
    assert_eq!(typed[23], "trace id: 4bf92f35");
    let act = view.press(KeyEvent::from(KeyCode::Enter));
    assert_eq!(act, Some(Act::LookUp("4bf92f35".into())));
    assert_eq!(press(&mut view, "r"), None, "one action at a time");

    view.explained(Ok::<_, String>("The trace was kept.\nIt had 7 spans.\n".into()));
    let text = screen(&view, 80, 24).join("\n");
    assert!(text.contains("The trace was kept.\nIt had 7 spans."), "{text}");
    assert!(text.contains("errors"), "the policies stay: {text}");
    view.press(KeyEvent::from(KeyCode::Esc));
    assert!(!screen(&view, 80, 24).join("\n").contains("was kept"));

    press(&mut view, "/");
    assert_eq!(view.press(KeyEvent::from(KeyCode::Enter)), None, "nothing was typed");
    press(&mut view, &format!("/{}", "a".repeat(1_000)));
    let Some(Act::LookUp(id)) = view.press(KeyEvent::from(KeyCode::Enter)) else { panic!() };
    assert_eq!(id.len(), 100);
}

#[test]
fn a_message_is_read_on_a_small_screen_too() {
    let mut view = view();
    view.explained(Ok::<_, String>("The trace was kept.\n".repeat(3)));
    for height in [4, 8, 10, 12, 16] {
        let text = screen(&view, 40, height).join("\n");
        assert!(text.contains("The trace was kept."), "{height}: {text}");
    }
}

#[test]
fn the_outcome_of_a_reload_is_shown() {
    let mut view = view();
    assert_eq!(press(&mut view, "r"), Some(Act::Reload));
    let diagnostic = Diagnostic {
        file: "policies.toml".into(),
        line: 3,
        column: 1,
        severity: Severity::Error.into(),
        message: "unknown type `x`".into(),
        hint: "did you mean `y`?".into(),
    };
    let answer = ReloadResponse { reloaded: false, diagnostics: vec![diagnostic] };
    view.reloaded(Ok::<_, String>(answer));
    let text = screen(&view, 80, 24).join("\n");
    assert!(text.contains("the old policies stay in force"), "{text}");
    assert!(text.contains("policies.toml:3:1: error: unknown type `x`"), "{text}");
    assert!(text.contains("help: did you mean `y`?"), "{text}");
    assert_eq!(press(&mut view, "r"), Some(Act::Reload), "and again");
    view.reloaded(Err("http://127.0.0.1 refuses: off unless `enable_lifecycle = true`"));
    let text = screen(&view, 80, 24).join("\n");
    assert!(text.contains("enable_lifecycle"), "{text}");
}

#[test]
fn q_and_ctrl_c_end_it() {
    let mut view = view();
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(view.press(interrupt), Some(Act::Quit));
    press(&mut view, "/");
    assert_eq!(press(&mut view, "q"), None);
    assert_eq!(view.press(interrupt), Some(Act::Quit));
    view.press(KeyEvent::from(KeyCode::Esc));
    assert_eq!(press(&mut view, "q"), Some(Act::Quit));
}

#[test]
fn hostile_text_is_printable() {
    let hostile = "\x1b[2J\x1b]0;x\x07\r\n\u{202e}\u{9b}31m";
    let mut view = view();
    view.status.version = hostile.into();
    view.status.policies[0].name = format!("p{hostile}");
    let backend = view.status.backend.as_mut().unwrap();
    backend.state = State::Failing.into();
    (backend.error, backend.endpoint) = (hostile.into(), hostile.into());
    let reasons = HashMap::from([(hostile.to_owned(), 1)]);
    view.status.ledger = Some(Ledger { failed: 1, failed_by_reason: reasons, ..Ledger::default() });
    view.missed(&hostile, NOW);
    view.explained(Ok::<_, String>(format!("It was kept by `{hostile}`")));
    view.input = Some(hostile.into());
    let lines = screen(&view, 200, 40);
    let is_hostile = |c: char| c.is_control() || c == '\u{202e}';
    assert!(!lines.iter().any(|line| line.contains(is_hostile)), "{lines:?}");
    assert!(lines[0].contains(r"\u{1b}[2J\u{1b}]0;x\u{7}\u{d}\u{a}\u{202e}\u{9b}31m"), "{lines:?}");
}

#[tokio::test]
async fn a_signal_ends_it_before_the_instance_answers() {
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = silent.local_addr().expect("an address").to_string();
    let cli = <Cli as clap::Parser>::parse_from(["top", "--address", &address]);
    for name in ["INT", "TERM"] {
        // Set before the signal is sent, so that it does not end this process.
        let signals = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
        let mut signals = signals.map(|signal| signal.expect("set"));
        let asked = cli.options.instance.client().expect("no files");
        let interrupt = async {
            let connection = silent.accept().await.expect("connected");
            let process = std::process::id().to_string();
            let kill = std::process::Command::new("kill").args(["-s", name, &process]).status();
            assert!(kill.expect("runs").success());
            connection
        };
        let (first, _connection) = tokio::join!(first(asked, &mut signals), interrupt);
        assert!(matches!(first, Ok(None)), "{name}");
    }
}
