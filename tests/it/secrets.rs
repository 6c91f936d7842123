//! The service never shows a secret.

use std::fs;

use crate::{
    certificates::{Ca, Client, export},
    cli::{NOBODY, Process, tailwater},
    connections::one_span,
    harness::{ALL, Directory, get},
    web::{Seen, Web, reply_with},
};

/// A text in every secret.
const CANARY: &str = "kanarienvogel";

/// Scenario: a service with a token, headers and a key file that all contain a canary, in the file
/// and in environment variables, with the most verbose log; senders with the right token, a wrong
/// one and none; a key and a token that are replaced by unusable ones; a backend that is down.
/// Guarantees: neither the log, metrics, pages nor answers contain the canary or a line of the key.
#[tokio::test]
async fn a_running_service_shows_no_secret() {
    let ca = Ca::new();
    let identity = ca.sign("localhost");
    let directory = Directory::new();
    let token = format!("{CANARY}-token");
    let key = directory.file("tls.key", &format!("{CANARY}\n{}", identity.key));
    let tokens = directory.file("tokens", &token);
    let more = format!(
        "shutdown_timeout = \"1s\"\n[receiver.tls]\ncert_file = \"{}\"\nkey_file = \"{key}\"\n\
         [receiver.auth]\nbearer_token_file = \"{tokens}\"\n\
         [exporter.otlp.headers]\nx-secret = \"{CANARY}\"\n\
         authorization = \"Bearer ${{env:TAILWATER_SECRET:-{CANARY}}}\"\n",
        directory.file("tls.crt", &identity.cert),
    );
    let mut process = Process::start_logging(&more, NOBODY, "trace");
    let (grpc, admin) = process.addresses().await;
    let client = Client::new(&[&ca], None).http2(grpc).await.expect("trusted");
    let right: &'static str = Box::leak(format!("Bearer {token}").into_boxed_str());
    let wrong: &'static str = Box::leak(format!("Bearer wrong-{CANARY}").into_boxed_str());
    let mut said = String::new();
    for (value, status) in [(right, "0"), (wrong, "16"), ("Bearer", "16")] {
        let answer = export(&client, &[("authorization", value)], &one_span(1, 9)).await;
        let answer = answer.expect("answered");
        assert_eq!(answer.header("grpc-status"), status);
        said += &format!("{answer:?}");
    }
    fs::write(&key, format!("-----BEGIN {CANARY}-----\n{CANARY}\n")).expect("written");
    fs::write(&tokens, format!("{CANARY} {CANARY}")).expect("written");
    process.line("no private key").await;
    process.line("not a token").await;
    for path in ["/metrics", "/-/healthy", "/-/ready", "/-/decisions/1", "/-/reload", "/", "/x"] {
        said += &get(admin, path).await.1;
    }
    process.signal("TERM");
    process.line("shutting down").await;
    process.exit().await;
    said += &fs::read_to_string(&process.log).expect("a log");
    let secrets = identity.key.lines().filter(|line| !line.starts_with("---"));
    for secret in secrets.chain([CANARY]) {
        let line = said.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
}

/// Scenario: a backend of either protocol that does not accept the exporter's token and repeats it
/// in its message, with the most verbose log; the token's file is replaced by an unusable one.
/// Guarantees: neither log nor metrics contain the token, and the log says what to check.
#[tokio::test]
async fn the_token_of_the_exporter_is_not_shown() {
    let web = Web::start(|seen: &Seen| {
        let token = seen.headers["authorization"].to_str().expect("text");
        let words = format!("not let in: {token}");
        let mut reply = reply_with(401, "text/plain", words.as_bytes());
        if seen.path == tailwater::grpc::EXPORT_PATH {
            reply.headers_mut().insert("grpc-status", 16.into());
            reply.headers_mut().insert("grpc-message", words.parse().expect("valid"));
        }
        reply
    })
    .await;
    for protocol in ["grpc", "http/protobuf"] {
        let directory = Directory::new();
        let file = directory.file("token", &format!("{CANARY}-token"));
        let exporter = format!(
            "endpoint = \"{}\"\nprotocol = \"{protocol}\"\nbearer_token_file = \"{file}\"\n\
             headers = {{ x-key = \"{CANARY}-key\" }}",
            web.url()
        );
        let more = "shutdown_timeout = \"3s\"";
        let mut process = Process::start_exporting(more, &exporter, "trace");
        process.export(1).await;
        fs::write(&file, format!("{CANARY}\n{CANARY}")).expect("written");
        process.line("more than one token").await;
        process.signal("TERM");
        let line = process.line("the backend does not accept spans").await;
        let message = line["fields"]["message"].as_str().expect("a message");
        assert!(message.contains("bearer_token_file"), "{message}");
        let said = line["fields"]["said"].as_str().expect("words");
        assert!(said.contains("not let in: Bearer (secret)"), "{said}");
        process.exit().await;
        let log = fs::read_to_string(&process.log).expect("a log");
        assert_eq!(log.lines().find(|line| line.contains(CANARY)), None, "{protocol}");
    }
    let seen = web.seen.lock().expect("no panic");
    assert!(seen.iter().all(|seen| seen.headers["authorization"] == "Bearer kanarienvogel-token"));
    assert!(seen.len() >= 4);
}

/// Scenario: files with mistakes near headers, tokens and variables that contain the canary, and
/// the token in place of the name of its file.
/// Guarantees: `check` and `run` refuse them without showing the canary, as text and as JSON.
#[test]
fn no_diagnostic_shows_a_secret() {
    let directory = Directory::new();
    let key = directory.file("key", &format!("-----BEGIN PRIVATE KEY-----\n{CANARY}\n"));
    for lines in [
        format!("exporter.otlp.headers = {{ 'a b' = '{CANARY}' }}"),
        format!("exporter.otlp.headers = {{ a = '{CANARY}\u{e9}' }}"),
        format!("exporter.otlp.headers = {{ a = '{CANARY}', b = }}"),
        format!("[exporter.otlp.headers]\nauthorization = 'Bearer {CANARY}\n"),
        format!("[receiver.tls]\ncert_file = '{key}'\nkey_file = '{key}'"),
        format!("[exporter.otlp]\nheaders.a = \"\"\"\\\n  Bearer {CANARY}\"\"\"\nb = 1"),
        format!("[exporter.otlp]\nheaders.a = \"Bearer {CANARY}\\d\""),
        format!("exporter.otlp.bearer_token = '{CANARY}'"),
        format!("receiver.auth.bearer_token_file = '{CANARY}'"),
        format!("exporter.otlp.bearer_token_file = '{CANARY}'"),
        "receiver.auth.bearer_token_file = '${env:TAILWATER_SECRET}'".to_owned(),
        "exporter.otlp.bearer_token_file = '${env:TAILWATER_SECRET}'".to_owned(),
        "exporter.otlp.endpoint = 'http://x:${env:TAILWATER_SECRET}@tempo'".to_owned(),
        "telemetry.log_level = '${env:TAILWATER_SECRET}'".to_owned(),
    ] {
        let file = directory.file("t.toml", &format!("{lines}\n{ALL}"));
        for arguments in [
            &["check", &file][..],
            &["check", "--format", "json", &file],
            &["run", "--config", &file],
        ] {
            let output = tailwater(arguments);
            assert_eq!(output.status.code(), Some(1), "{lines}");
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8(said).expect("UTF-8");
            assert!(said.contains("error") && !said.contains(CANARY), "{lines}\n{said}");
        }
    }
}

/// Scenario: a configuration with secrets, formatted as by a panic or a careless log line.
/// Guarantees: the text shows that there are headers, and none of their values.
#[test]
fn debug_shows_no_secret() {
    let mut config = crate::harness::config(ALL);
    config.exporter.headers = [("authorization".into(), CANARY.into())].into();
    let said = format!("{config:?}{config:#?}");
    assert!(said.contains("authorization") && !said.contains(CANARY), "{said}");
}
