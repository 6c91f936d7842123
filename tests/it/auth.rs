//! Bearer tokens at both receivers.

use std::{fs, path::Path, time::Duration};

use tailwater::config::Config;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    certificates::export,
    connections::one_span,
    harness::{ALL, Directory, Metrics, Running, config},
    wire::{Answer, connect, http1, http2, post},
};

fn with_tokens(file: &str) -> Config {
    Config { bearer_token_file: Some(file.into()), ..config(ALL) }
}

fn refused(metrics: &Metrics, transport: &str) -> f64 {
    let labels = format!("transport=\"{transport}\",reason=\"unauthenticated\"");
    metrics.get(&format!("receiver_refused_requests_total{{{labels}}}"))
}

/// One request over HTTP/1.1.
async fn send(running: &Running, authorization: &str, trace: u64) -> Answer {
    let body = one_span(trace, 9);
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nhost: t\r\ncontent-type: application/x-protobuf\r\n\
         {authorization}content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    http1(running.service.http_address, &[head.as_bytes(), &body].concat()).await
}

/// Scenario: requests to both receivers with the token, in another case and with spaces, and with
/// many wrong tokens, to paths that exist and that do not.
/// Guarantees: the wrong ones get UNAUTHENTICATED and 401 with the required scheme, are counted,
/// and nothing of them is accepted; the others are served, and health needs no token.
#[tokio::test]
async fn only_requests_with_the_token_are_served() {
    let directory = Directory::new();
    let running = Running::start(with_tokens(&directory.file("token", "  s3cret-token\r\n"))).await;
    let client = connect(running.service.grpc_address).await;
    let good = ["Bearer s3cret-token", "bearer s3cret-token", "BEARER  s3cret-token"];
    let bad = [
        "",
        "Bearer",
        "Bearer ",
        "Bearer s3cret-toke",
        "Bearer s3cret-tokens",
        "Bearer S3CRET-TOKEN",
        "Basic s3cret-token",
        "s3cret-token",
    ];
    let mut trace = 0;
    for value in good {
        trace += 2;
        let answer = export(&client, &[("authorization", value)], &one_span(trace, 9)).await;
        assert_eq!(answer.expect("answered").header("grpc-status"), "0", "{value}");
        let answer = send(&running, &format!("Authorization: {value}\r\n"), trace + 1).await;
        assert_eq!(answer.status, 200, "{value}");
    }
    for value in bad {
        let headers = [("authorization", value)];
        let headers = if value.is_empty() { &[][..] } else { &headers };
        let answer = export(&client, headers, &one_span(1, 9)).await.expect("answered");
        assert_eq!((answer.status, answer.header("grpc-status")), (200, "16"), "{value}");
        assert!(answer.header("grpc-message").contains("bearer"), "{answer:?}");
        assert_eq!(answer.header("grpc-status-details-bin"), "", "not to be retried");
        let header = format!("authorization: {value}\r\n");
        let answer = send(&running, if value.is_empty() { "" } else { &header }, 1).await;
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, "Bearer"), "{value}");
    }
    // A client without a token does not learn what exists.
    let metrics_service = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
    let answer = http2(&client, post(metrics_service, &[]), Vec::new()).await;
    assert_eq!(answer.header("grpc-status"), "16");
    let answer = http1(running.service.http_address, b"GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(answer.status, 401);
    let url = format!("http://{}", running.service.grpc_address);
    let channel = Channel::from_shared(url).expect("a url").connect_lazy();
    let mut health = HealthClient::new(channel);
    health.check(HealthCheckRequest::default()).await.expect("without a token");
    let metrics = running.at_rest().await;
    assert_eq!((refused(&metrics, "grpc"), refused(&metrics, "http")), (9.0, 9.0));
    let answered = |labels| metrics.get(&format!("receiver_requests_total{{{labels}}}"));
    assert_eq!(answered("transport=\"grpc\",code=\"UNAUTHENTICATED\""), 9.0);
    assert_eq!(answered("transport=\"http\",code=\"401\""), 9.0);
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 6.0);
    running.stop().await;
}

/// Scenario: a request without a token that announces a large body and sends none of it.
/// Guarantees: it is answered before the body arrives.
#[tokio::test]
async fn no_body_is_waited_for() {
    let directory = Directory::new();
    let running = Running::start(with_tokens(&directory.file("token", "s3cret"))).await;
    let mut stream = TcpStream::connect(running.service.http_address).await.expect("listening");
    let head = "POST /v1/traces HTTP/1.1\r\nhost: t\r\ncontent-length: 60000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.expect("answered");
    assert_eq!(&answer, b"HTTP/1.1 401");
    let client = connect(running.service.grpc_address).await;
    let (response, _body) =
        crate::wire::open(&client, post(tailwater::grpc::EXPORT_PATH, &[])).await;
    let answer = crate::wire::answer(response).await.expect("answered");
    assert_eq!(answer.header("grpc-status"), "16");
    running.at_rest().await;
    running.stop().await;
}

/// Waits until requests with this token get this status.
async fn until(running: &Running, token: &str, status: u16) -> u64 {
    let began = Instant::now();
    let mut taken = 0;
    loop {
        let trace = fastrand::u64(1..);
        let answer = send(running, &format!("authorization: Bearer {token}\r\n"), trace).await;
        taken += u64::from(answer.status == 200);
        if answer.status == status {
            return taken;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{token}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Scenario: a token is replaced: the new one is added, senders move to it, the old one is removed;
/// then the file is emptied by mistake.
/// Guarantees: no request fails meanwhile; the old token is refused in the end; the mistake changes
/// nothing but the metric.
#[tokio::test]
async fn tokens_are_replaced() {
    let directory = Directory::new();
    let file = directory.file("token", "old");
    let running = Running::start(with_tokens(&file)).await;
    let write = |tokens: &str| fs::write(Path::new(&file), tokens).expect("written");
    let mut taken = until(&running, "old", 200).await;
    write("old\nnew\n");
    taken += until(&running, "new", 200).await;
    taken += until(&running, "old", 200).await;
    write("new\n");
    taken += until(&running, "old", 401).await;
    taken += until(&running, "new", 200).await;
    write(" \n");
    let told = |metrics: &Metrics| metrics.get("credentials_last_reload_successful") == 0.0;
    running.until("the metric tells", told).await;
    taken += until(&running, "new", 200).await;
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), taken as f64);
    running.stop().await;
}
