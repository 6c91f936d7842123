//! TLS on both receivers: which clients are accepted, which are not, and certificates that change.

pub mod export;

use std::{fs, net::SocketAddr, time::Duration};

use tailwater::{config::Config, credentials::ServerTls};
use tokio::{io::AsyncReadExt as _, time::Instant};

use crate::{
    certificates::{Ca, Client, Identity, export},
    connections::{one_span, patience},
    harness::{ALL, Directory, Metrics, Running, config},
    wire::{connect, http1, http1_over, http2, post},
};

/// A configuration with TLS whose files can be changed.
struct Files {
    directory: Directory,
    config: Config,
}

impl Files {
    fn new(server: &Identity, clients: Option<&Ca>) -> Self {
        let directory = Directory::new();
        let (cert, key) =
            (directory.file("tls.crt", &server.cert), directory.file("tls.key", &server.key));
        let clients = clients.map(|clients| directory.file("ca.crt", &clients.pem).into());
        let tls =
            ServerTls { cert_file: cert.into(), key_file: key.into(), client_ca_file: clients };
        let config = Config { tls: Some(tls), ..config(ALL) };
        Files { directory, config }
    }

    fn write(&self, server: &Identity) {
        self.directory.file("tls.crt", &server.cert);
        self.directory.file("tls.key", &server.key);
    }
}

fn failures(metrics: &Metrics, transport: &str) -> f64 {
    let labels = format!("transport=\"{transport}\"");
    metrics.get(&format!("receiver_tls_handshake_failures_total{{{labels}}}"))
}

/// One request with one span by HTTP/1.1.
fn http_request(trace: u64) -> Vec<u8> {
    let body = one_span(trace, 9);
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nhost: t\r\ncontent-type: application/x-protobuf\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), &body].concat()
}

/// Scenario: clients that trust the CA, over gRPC with TLS 1.2 and 1.3, and over OTLP/HTTP with
/// HTTP/1.1 and HTTP/2.
/// Guarantees: the protocol is agreed on in the handshake; every span is accepted.
#[tokio::test]
async fn spans_come_in_over_tls() {
    let ca = Ca::new();
    let files = Files::new(&ca.sign("localhost"), None);
    let running = Running::start(files.config.clone()).await;
    let (grpc, http) = (running.service.grpc_address, running.service.http_address);
    for (trace, version) in [(1, &rustls::version::TLS12), (2, &rustls::version::TLS13)] {
        let client = Client::of_versions(&[&ca], None, &[version]);
        let answer = client.export(grpc, &one_span(trace, 9)).await.expect("answered");
        assert_eq!(answer.header("grpc-status"), "0");
    }
    let client = Client::new(&[&ca], None).speaking("http/1.1");
    let stream = client.connect(http, "localhost").await.expect("trusted");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(http1_over(stream, &http_request(3)).await.status, 200);
    let client = Client::new(&[&ca], None);
    let client = client.http2(http).await.expect("trusted");
    let post = post("/v1/traces", &[("content-type", "application/x-protobuf")]);
    assert_eq!(http2(&client, post, one_span(4, 9)).await.status, 200);
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 4.0);
    assert_eq!(metrics.sum("receiver_tls_handshake_failures_total"), 0.0);
    let expiry = metrics.get("tls_certificate_expiry_timestamp_seconds{certificate=\"receiver\"}");
    assert_eq!(expiry, 16_725_225_600.0, "2500-01-01");
    running.stop().await;
}

/// Scenario: clients that trust another CA, ask for another name, find the certificate expired, or
/// speak another protocol or none.
/// Guarantees: they report the reason; each is counted, no span is accepted, and an honest client
/// is served.
#[tokio::test]
async fn clients_that_do_not_get_through() {
    let (ca, other) = (Ca::new(), Ca::new());
    let files = Files::new(&ca.sign("localhost"), None);
    let running = Running::start(files.config.clone()).await;
    let grpc = running.service.grpc_address;
    let client = Client::new(&[&ca], None);
    let told = Client::new(&[&other], None).connect(grpc, "localhost").await.expect_err("unknown");
    assert!(told.contains("UnknownIssuer"), "{told}");
    let told = client.connect(grpc, "tempo.example").await.expect_err("another name");
    assert!(told.contains("not valid for name"), "{told}");
    let client = client.speaking("http/1.1");
    client.connect(grpc, "localhost").await.expect_err("gRPC is HTTP/2");
    let refused = running.until("three failures", |metrics| failures(metrics, "grpc") == 3.0).await;
    assert_eq!(failures(&refused, "http"), 0.0);
    // Plaintext, from a client without TLS.
    let client = connect(grpc).await;
    assert!(export(&client, &[], &one_span(1, 9)).await.is_err());
    let http = running.service.http_address;
    let waited = patience(http, &http_request(1)).await;
    assert!(waited < Duration::from_secs(10), "{waited:?}");
    let count = |metrics: &Metrics| (failures(metrics, "grpc"), failures(metrics, "http"));
    running.until("plaintext is refused", |metrics| count(metrics) == (4.0, 1.0)).await;
    // A client that only checks whether the port is open is not a failure.
    drop(tokio::net::TcpStream::connect(grpc).await.expect("listening"));
    let honest = Client::new(&[&ca], None).export(grpc, &one_span(1, 9)).await;
    assert_eq!(honest.expect("answered").header("grpc-status"), "0");
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 1.0);
    assert_eq!(count(&metrics), (4.0, 1.0));
    running.stop().await;

    let files = Files::new(&ca.sign_expired("localhost"), None);
    let running = Running::start(files.config.clone()).await;
    let client = Client::new(&[&ca], None);
    let told = client.connect(running.service.grpc_address, "localhost").await;
    let told = told.expect_err("expired");
    assert!(told.contains("expired"), "{told}");
    running.stop().await;
}

/// Scenario: mutual TLS, and clients with a valid certificate, without one, with one of another CA,
/// and with an expired one.
/// Guarantees: the first is served by both receivers; no span of the others is accepted.
#[tokio::test]
async fn mutual_tls_asks_for_a_certificate() {
    let (ca, other) = (Ca::new(), Ca::new());
    let files = Files::new(&ca.sign("localhost"), Some(&ca));
    let running = Running::start(files.config.clone()).await;
    let (grpc, http) = (running.service.grpc_address, running.service.http_address);
    let client = |identity: Option<&Identity>| Client::new(&[&ca], identity);
    for (identity, why) in [
        (None, "CertificateRequired"),
        (Some(other.sign("sender")), "UnknownCA"),
        (Some(ca.sign_expired("sender")), "CertificateExpired"),
    ] {
        let client = client(identity.as_ref());
        let told = client.export(grpc, &one_span(1, 9)).await.expect_err("refused");
        assert!(told.contains(why), "{why}: {told}");
        // With TLS 1.3, the client only learns of the refusal when it reads.
        if let Ok(mut stream) = client.speaking("http/1.1").connect(http, "localhost").await {
            let told = stream.read(&mut [0]).await.expect_err("refused").to_string();
            assert!(told.contains(why), "{why}: {told}");
        }
    }
    let good = ca.sign("sender");
    let answer = client(Some(&good)).export(grpc, &one_span(1, 9)).await.expect("answered");
    assert_eq!(answer.header("grpc-status"), "0");
    let stream = client(Some(&good)).speaking("http/1.1").connect(http, "localhost").await;
    assert_eq!(http1_over(stream.expect("trusted"), &http_request(2)).await.status, 200);
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 2.0);
    assert_eq!((failures(&metrics, "grpc"), failures(&metrics, "http")), (3.0, 3.0));
    running.stop().await;
}

/// Scenario: connections that send nothing, half a hello, or nothing after a complete handshake.
/// Guarantees: they are closed after 10 s, for handshake and preface together.
#[tokio::test(start_paused = true)]
async fn half_a_handshake_is_closed() {
    let ca = Ca::new();
    let files = Files::new(&ca.sign("localhost"), None);
    let running = Running::start(files.config.clone()).await;
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let addresses = [running.service.grpc_address, running.service.http_address];
    for address in addresses {
        for beginning in [&b""[..], hello] {
            let waited = patience(address, beginning).await.as_secs_f64();
            assert!((10.0..60.0).contains(&waited), "{waited} s, {}", beginning.escape_ascii());
        }
    }
    for address in addresses {
        let began = Instant::now();
        let client = Client::new(&[&ca], None);
        let mut stream = client.connect(address, "localhost").await.expect("trusted");
        while stream.read(&mut [0; 1024]).await.is_ok_and(|length| length > 0) {}
        let waited = began.elapsed().as_secs_f64();
        assert!((9.0..60.0).contains(&waited), "{waited} s");
    }
    let metrics = running.metrics().await;
    assert_eq!((failures(&metrics, "grpc"), failures(&metrics, "http")), (2.0, 2.0));
    running.stop().await;
}

/// Sends a request on a connection of its own; returns the certificate of the server.
async fn certificate(client: &Client, address: SocketAddr, trace: u64) -> Vec<u8> {
    let stream = client.connect(address, "localhost").await.expect("trusted");
    let shown = stream.get_ref().1.peer_certificates().expect("shown")[0].to_vec();
    let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let answer = export(&client, &[], &one_span(trace, 9)).await.expect("answered");
    assert_eq!(answer.header("grpc-status"), "0");
    shown
}

/// Scenario: senders on old and on new connections, while the certificate and its CA are replaced
/// as by Kubernetes, replaced by unusable ones, and repaired.
/// Guarantees: no request fails; within ten seconds, new connections see the new certificate;
/// unusable files change nothing but the metric.
#[tokio::test]
async fn certificates_are_replaced_under_load() {
    let (old, new) = (Ca::new(), Ca::new());
    let mut files = Files::new(&old.sign("localhost"), None);
    // A link to a directory, which is replaced by a link to another one.
    let root = files.directory.0.clone();
    let data = |name: &str, identity: &Identity| {
        fs::create_dir(root.join(name)).expect("created");
        fs::write(root.join(name).join("crt"), &identity.cert).expect("written");
        fs::write(root.join(name).join("key"), &identity.key).expect("written");
    };
    let first = old.sign("localhost");
    data("1", &first);
    std::os::unix::fs::symlink("1", root.join("..data")).expect("linked");
    files.config.tls = Some(ServerTls {
        cert_file: root.join("..data/crt"),
        key_file: root.join("..data/key"),
        client_ca_file: None,
    });
    let running = Running::start(files.config.clone()).await;
    let grpc = running.service.grpc_address;
    let client = Client::new(&[&old, &new], None);
    let lasting = client.http2(grpc).await.expect("trusted");
    let mut sent = 0;
    let second = new.sign("localhost");
    let swap = |name: &str| {
        std::os::unix::fs::symlink(name, root.join("..tmp")).expect("linked");
        fs::rename(root.join("..tmp"), root.join("..data")).expect("swapped");
    };
    data("2", &second);
    let broken = Identity { key: first.key.clone(), ..second.clone() };
    data("3", &broken);
    for (name, in_force, shown) in [("2", 1.0, &second), ("3", 0.0, &second), ("1", 1.0, &first)] {
        swap(name);
        let began = Instant::now();
        loop {
            sent += 2;
            let seen = certificate(&client, grpc, sent).await;
            let answer = export(&lasting, &[], &one_span(sent + 1, 9)).await.expect("answered");
            assert_eq!(answer.header("grpc-status"), "0");
            let metrics = running.metrics().await;
            if metrics.get("credentials_last_reload_successful") == in_force && seen == *shown.der()
            {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(10), "{name}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), sent as f64);
    assert_eq!(metrics.sum("receiver_tls_handshake_failures_total"), 0.0);
    running.stop().await;
}

/// Scenario: mutual TLS, and the CA of the clients is replaced in place.
/// Guarantees: within ten seconds, new connections with certificates of the old CA are refused and
/// those of the new CA served; an open connection continues.
#[tokio::test]
async fn the_ca_of_clients_is_replaced() {
    let (ca, old, new) = (Ca::new(), Ca::new(), Ca::new());
    let files = Files::new(&ca.sign("localhost"), Some(&old));
    let running = Running::start(files.config.clone()).await;
    let grpc = running.service.grpc_address;
    let client = |of: &Ca| Client::new(&[&ca], Some(&of.sign("sender")));
    let (of_old, of_new) = (client(&old), client(&new));
    let lasting = of_old.http2(grpc).await.expect("trusted");
    export(&lasting, &[], &one_span(1, 9)).await.expect("answered");
    of_new.export(grpc, &one_span(2, 9)).await.expect_err("not yet");
    files.directory.file("ca.crt", &new.pem);
    files.write(&ca.sign("localhost"));
    let began = Instant::now();
    while of_new.export(grpc, &one_span(2, 9)).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    of_old.export(grpc, &one_span(3, 9)).await.expect_err("no longer");
    export(&lasting, &[], &one_span(3, 9)).await.expect("still open");
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("receiver_accepted_spans_total"), 3.0);
    running.stop().await;
}

/// Scenario: a request over plain HTTP/1.1 to a service without TLS.
/// Guarantees: TLS is off by default, and there is no series of a certificate.
#[tokio::test]
async fn plaintext_is_the_default() {
    let running = Running::start(config(ALL)).await;
    assert_eq!(http1(running.service.http_address, &http_request(1)).await.status, 200);
    let metrics = running.at_rest().await;
    assert_eq!(metrics.sum("tls_certificate_expiry_timestamp_seconds"), 0.0);
    running.stop().await;
}
